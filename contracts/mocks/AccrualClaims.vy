# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title AccrualClaims
@license MIT
@notice What must be true of the accrual module for every input, as functions that a symbolic executor is to break:
    each panics where its claim is wrong (`python -m tests.symbolic`).
"""

from ..modules import accrual


@internal
@pure
def _claim(condition: bool):
    """@notice Solidity's Panic(1), which is what such tools look for; plain reverts are inputs out of bounds."""
    if not condition:
        raw_revert(abi_encode(convert(1, uint256), method_id=method_id("Panic(uint256)")))


@external
@pure
def check_round_trip(start: uint40, last: uint40, end: uint40, rate: uint96):
    """@notice What is packed is unpacked, and nothing is beyond bit 216."""
    word: uint256 = accrual._pack(
        convert(start, uint256), convert(last, uint256), convert(end, uint256), convert(rate, uint256)
    )
    a: uint256 = 0
    b: uint256 = 0
    c: uint256 = 0
    d: uint256 = 0
    a, b, c, d = accrual._unpack(word)
    self._claim(a == convert(start, uint256) and b == convert(last, uint256))
    self._claim(c == convert(end, uint256) and d == convert(rate, uint256))
    self._claim(word >> 216 == 0)


@external
@pure
def check_setting_one_field_leaves_the_others(word: uint256, second: uint40):
    """@notice `last` and `end` are replaced as `streams` does it."""
    new: uint256 = convert(second, uint256)
    settled: uint256 = (word & accrual.CLEAR_LAST) | (new << 40)
    extended: uint256 = (word & accrual.CLEAR_END) | (new << 80)
    self._claim((settled >> 40) & accrual.MASK_40 == new and (extended >> 80) & accrual.MASK_40 == new)
    self._claim(settled & accrual.MASK_40 == word & accrual.MASK_40 and settled >> 80 == word >> 80)
    self._claim(extended & (2**80 - 1) == word & (2**80 - 1) and extended >> 120 == word >> 120)


@external
@pure
def check_telescope(start: uint40, rate: uint96, a: uint40, b: uint40, c: uint40):
    """@notice Settling in between changes nothing: what is due until b and from b is what is due in all."""
    assert start <= a and a <= b and b <= c, "out of bounds"
    word: uint256 = accrual._pack(
        convert(start, uint256), convert(a, uint256), convert(c, uint256), convert(rate, uint256)
    )
    first: uint256 = accrual._between(word, convert(a, uint256), convert(b, uint256))
    second: uint256 = accrual._between(word, convert(b, uint256), convert(c, uint256))
    whole: uint256 = accrual._between(word, convert(a, uint256), convert(c, uint256))
    self._claim(unsafe_add(first, second) == whole)


@external
@pure
def check_no_overflow(rate: uint96, elapsed: uint40):
    """@notice The product and what is added to it stay far below 2**256, so that unchecked arithmetic is exact."""
    product: uint256 = unsafe_mul(convert(rate, uint256), convert(elapsed, uint256))
    self._claim(product < 2**136 and unsafe_add(product, 10**6 - 1) < 2**137)
    self._claim(accrual._flow(convert(rate, uint256), convert(elapsed, uint256)) < 2**118)
