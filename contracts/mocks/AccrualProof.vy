# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title AccrualProof
@license MIT
@notice What must be true of the accrual module, tried on every case of a range, on the machine that will run it.
    Each function returns how many cases it has tried, and reverts at the first that is wrong.
@dev f depends on the product of rate and seconds alone, and repeats every 1e6 of it but for a whole number: a range
    of products that is longer than 1e6 shows all that f does.
"""

from ..modules import accrual

SCALE: constant(uint256) = 10**6
BOUND: constant(uint256) = 10**8


@external
@pure
def check_rounding(first: uint256, last: uint256) -> uint256:
    """@notice f is the least whole number that is no less than rate * seconds / 1e6; products first..last."""
    for product: uint256 in range(first, last + 1, bound=BOUND):
        cost: uint256 = accrual._flow(product, 1)
        assert cost * SCALE >= product, "f is less than what has flowed"
        assert cost == 0 or (cost - 1) * SCALE < product, "f is a whole unit more than what has flowed"
    return last + 1 - first


@external
@pure
def check_telescope(rate: uint256, start: uint256, seconds: uint256) -> uint256:
    """
    @notice Every way to settle at two seconds in between pays what settling once pays, never less than
        nothing, and no more than a unit beside the exact flow; all seconds start <= a <= b <= c <= start + seconds.
    """
    tried: uint256 = 0
    end: uint256 = start + seconds
    word: uint256 = accrual._pack(start, start, end, rate)
    for a: uint256 in range(start, end + 1, bound=BOUND):
        paid: uint256 = accrual._between(word, start, a)
        assert paid == accrual._flow(rate, a - start), "what is paid is not f"
        for b: uint256 in range(a, end + 1, bound=BOUND):
            due: uint256 = accrual._between(word, a, b)
            assert due <= rate * (b - a) // SCALE + 1, "more than a unit too much"
            assert (due + 1) * SCALE > rate * (b - a), "more than a unit too little"
            for c: uint256 in range(b, end + 1, bound=BOUND):
                rest: uint256 = accrual._between(word, b, c)
                assert paid + due + rest == accrual._flow(rate, c - start), "the parts are not the whole"
                tried += 1
    return tried
