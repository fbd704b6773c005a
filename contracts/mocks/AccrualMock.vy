# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title AccrualMock
@license MIT
@notice The accrual module's functions, each open to tests, one by one and in batches.
"""

from ..modules import accrual

MAX_CASES: constant(uint256) = 8192


@external
@pure
def flow(rate: uint256, elapsed: uint256) -> uint256:
    return accrual._flow(rate, elapsed)


@external
@pure
def between(word: uint256, since: uint256, until: uint256) -> uint256:
    return accrual._between(word, since, until)


@external
@pure
def pack(start: uint256, last: uint256, end: uint256, rate: uint256) -> uint256:
    return accrual._pack(start, last, end, rate)


@external
@pure
def unpack(word: uint256) -> (uint256, uint256, uint256, uint256):
    return accrual._unpack(word)


@external
@pure
def costs(cases: DynArray[uint256[2], MAX_CASES]) -> DynArray[uint256[2], MAX_CASES]:
    """
    @param cases The word of a stream, and since | until << 40.
    @return For each, what the stream costs until `until`, and between the two seconds.
    """
    found: DynArray[uint256[2], MAX_CASES] = []
    for case: uint256[2] in cases:
        start: uint256 = 0
        last: uint256 = 0
        end: uint256 = 0
        rate: uint256 = 0
        start, last, end, rate = accrual._unpack(case[0])
        since: uint256 = case[1] & accrual.MASK_40
        until: uint256 = case[1] >> 40
        found.append([accrual._flow(rate, until - start), accrual._between(case[0], since, until)])
    return found


@external
@pure
def repack(words: DynArray[uint256, MAX_CASES]) -> DynArray[uint256[5], MAX_CASES]:
    """@return For each word its four fields, and the word that they pack to."""
    found: DynArray[uint256[5], MAX_CASES] = []
    for word: uint256 in words:
        start: uint256 = 0
        last: uint256 = 0
        end: uint256 = 0
        rate: uint256 = 0
        start, last, end, rate = accrual._unpack(word)
        found.append([start, last, end, rate, accrual._pack(start, last, end, rate)])
    return found
