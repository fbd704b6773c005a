# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title Lists of prices that are cheap to scan
@license MIT
@notice For each key, an unordered list of what is for sale now: who has number `number` asks `price`.
    Adding and removing take the same work at any length; the lowest price is found by reading the list
    through, two entries to a storage word.
@dev No access control inside. An entry is price << 32 | number, so that entries compare by price and,
    among equals, by age. A price is never zero, so that no entry is; the half word beyond an odd end is.

    A number may stand in two lists at once, one for each side; its places are one word, from the lowest bit:
        side 0  32 bits  position in that list + 1; 0: not in it
        side 1  32 bits  the same
"""

MASK_32: constant(uint256) = 2**32 - 1
MASK_128: constant(uint256) = 2**128 - 1
MAX_WORDS: constant(uint256) = 2**31

_words: HashMap[bytes32, uint256[MAX_WORDS]]  # key -> entries, two to a word, the lower half first
_lengths: HashMap[bytes32, uint256]           # key -> number of entries
_places: HashMap[uint256, uint256]            # number -> word as above


@internal
@view
def _listed(number: uint256) -> bool:
    """@return True where `number` stands in a list of either side."""
    return self._places[number] != 0


@internal
@view
def _entry(key: bytes32, position: uint256) -> uint256:
    """@param position Below the length."""
    return (self._words[key][position >> 1] >> ((position & 1) << 7)) & MASK_128


@internal
def _set_entry(key: bytes32, position: uint256, entry: uint256):
    offset: uint256 = (position & 1) << 7
    word: uint256 = self._words[key][position >> 1]
    self._words[key][position >> 1] = (word & ~(MASK_128 << offset)) | (entry << offset)


@internal
def _set_place(number: uint256, side: uint256, place: uint256):
    offset: uint256 = side << 5
    self._places[number] = (self._places[number] & ~(MASK_32 << offset)) | (place << offset)


@internal
def _insert(key: bytes32, side: uint256, price: uint256, number: uint256):
    """
    @param side 0 or 1. `number` must not stand in a list of this side.
    @param price Above 0 and below 2**96.
    @param number Below 2**32.
    """
    length: uint256 = self._lengths[key]
    self._set_entry(key, length, (price << 32) | number)
    self._lengths[key] = unsafe_add(length, 1)
    self._set_place(number, side, unsafe_add(length, 1))


@internal
def _remove(key: bytes32, side: uint256, number: uint256):
    """@notice The last entry of the list takes the place that becomes free. `number` must be in the list."""
    place: uint256 = (self._places[number] >> (side << 5)) & MASK_32
    last: uint256 = self._lengths[key]
    if place != last:
        moved: uint256 = self._entry(key, unsafe_sub(last, 1))
        self._set_entry(key, unsafe_sub(place, 1), moved)
        self._set_place(moved & MASK_32, side, place)
    self._set_entry(key, unsafe_sub(last, 1), 0)
    self._lengths[key] = unsafe_sub(last, 1)
    self._set_place(number, side, 0)


@internal
@view
def _least_above(key: bytes32, above: uint256) -> uint256:
    """
    @return The smallest entry greater than `above`; 0 where there is none.
    @dev Differences to above + 1 are compared: what is too small wraps to the top and so drops out,
        and with it the empty half word at the end.
    """
    base: uint256 = unsafe_add(above, 1)
    least: uint256 = max_value(uint256)
    for i: uint256 in range(unsafe_add(self._lengths[key], 1) >> 1, bound=MAX_WORDS):
        word: uint256 = self._words[key][i]
        least = min(least, min(unsafe_sub(word & MASK_128, base), unsafe_sub(word >> 128, base)))
    return 0 if least > MASK_128 else unsafe_add(least, base)
