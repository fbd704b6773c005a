# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title What a stream owes, and the one storage word that it lives in
@license MIT
@notice With f(s) = ceil(rate * s / 1e6), a stream that runs from `start` has cost f(t - start) by the
    second t. What is due between two seconds is the difference of two such values, so the sums
    telescope: they leave no dust and do not depend on how often somebody settles.
@dev Pure functions. `penstock/accrual.py` is the Python twin; a test compares the two.

    The word, from the lowest bit:
        start  40 bits  block timestamp of the open, seconds
        last   40 bits  timestamp up to which the payee has been paid
        end    40 bits  timestamp up to which the deposit lasts
        rate   96 bits  token base units x 1e6 per second
        spare  40 bits  zero
    An open stream has start <= last < end and rate > 0; a word of zero means that there is no stream.
"""

RATE_SCALE: constant(uint256) = 10**6
MASK_40: constant(uint256) = 2**40 - 1
MASK_96: constant(uint256) = 2**96 - 1
# The word without one field, which the caller then fills.
CLEAR_LAST: constant(uint256) = ~(MASK_40 << 40)
CLEAR_END: constant(uint256) = ~(MASK_40 << 80)


@internal
@pure
def _flow(rate: uint256, elapsed: uint256) -> uint256:
    """
    @notice What a stream costs in its first `elapsed` seconds, rounded up.
    @param rate Base units x 1e6 per second, below 2**96.
    @param elapsed Seconds, below 2**40: the product stays below 2**136.
    """
    return unsafe_div(unsafe_add(unsafe_mul(rate, elapsed), RATE_SCALE - 1), RATE_SCALE)


@internal
@pure
def _pack(start: uint256, last: uint256, end: uint256, rate: uint256) -> uint256:
    """@dev Every argument must fit its field; callers take them from typed or bounded values."""
    return start | (last << 40) | (end << 80) | (rate << 120)


@internal
@pure
def _unpack(word: uint256) -> (uint256, uint256, uint256, uint256):
    """@return start, last, end, rate."""
    return word & MASK_40, (word >> 40) & MASK_40, (word >> 80) & MASK_40, (word >> 120) & MASK_96


@internal
@pure
def _between(word: uint256, since: uint256, until: uint256) -> uint256:
    """@notice f(until) - f(since): what the stream costs between two seconds, start <= since <= until <= end."""
    start: uint256 = word & MASK_40
    rate: uint256 = (word >> 120) & MASK_96
    paid_until: uint256 = unsafe_div(
        unsafe_add(unsafe_mul(rate, unsafe_sub(until, start)), RATE_SCALE - 1), RATE_SCALE
    )
    paid_since: uint256 = unsafe_div(
        unsafe_add(unsafe_mul(rate, unsafe_sub(since, start)), RATE_SCALE - 1), RATE_SCALE
    )
    return unsafe_sub(paid_until, paid_since)
