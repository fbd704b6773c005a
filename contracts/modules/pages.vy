# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title Lists that only grow, read by the page
@license MIT
@notice A list is a key; its entries are numbers below 2**32, eight to a word.
@dev No access control inside.
"""

MASK_32: constant(uint256) = 2**32 - 1
MAX_ENTRIES: constant(uint256) = 2**32 - 1
PAGE: constant(uint256) = 100

_lengths: HashMap[bytes32, uint256]
_entries: HashMap[bytes32, uint256[MAX_ENTRIES // 8 + 1]]


@internal
def _append(key: bytes32, entry: uint256):
    length: uint256 = self._lengths[key]
    self._entries[key][length >> 3] |= entry << ((length & 7) << 5)
    self._lengths[key] = length + 1


@internal
@view
def _page(key: bytes32, start: uint256, limit: uint256) -> DynArray[uint256, PAGE]:
    page: DynArray[uint256, PAGE] = []
    length: uint256 = self._lengths[key]
    for i: uint256 in range(PAGE):
        if i >= limit or start >= length or i >= length - start:
            break
        place: uint256 = start + i
        page.append((self._entries[key][place >> 3] >> ((place & 7) << 5)) & MASK_32)
    return page
