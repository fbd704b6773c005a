# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title Windows: how much was spent within the last hour, day and week
@license MIT
@notice A window is four buckets of a third of its length, the last of them filling: together they reach back over the
    whole window always, and at most a third of it further. What is spent is never forgotten early.
@dev No access control inside. `penstock/caps.py` is the Python twin.

    Two words per token and window, amounts below 2**96 each, the youngest bucket first:
        low   bucket 0 96 bits | bucket 1 96 bits | number of the youngest bucket 64 bits
        high  bucket 2 96 bits | bucket 3 96 bits
"""

MASK_96: constant(uint256) = 2**96 - 1
BUCKETS: constant(uint256) = 4
# A third of an hour, a day and a week: seconds.
BUCKET_SECONDS: constant(uint256[3]) = [1_200, 28_800, 201_600]

_words: HashMap[address, uint256[6]]  # token -> low and high word of each window


@internal
@view
def _buckets(token: address, window: uint256) -> uint256[BUCKETS]:
    """@return The amounts in the four buckets as of now, the youngest first."""
    low: uint256 = self._words[token][2 * window]
    number: uint256 = block.timestamp // BUCKET_SECONDS[window]
    age: uint256 = number - (low >> 192)
    found: uint256[BUCKETS] = empty(uint256[BUCKETS])
    if age >= BUCKETS:
        return found
    high: uint256 = self._words[token][2 * window + 1]
    then: uint256[BUCKETS] = [low & MASK_96, (low >> 96) & MASK_96, high & MASK_96, high >> 96]
    for i: uint256 in range(BUCKETS):
        if i + age < BUCKETS:
            found[i + age] = then[i]
    return found


@internal
@view
def _spent(token: address, window: uint256) -> uint256:
    """@return Base units spent within the window, 0: hour, 1: day, 2: week."""
    found: uint256[BUCKETS] = self._buckets(token, window)
    return found[0] + found[1] + found[2] + found[3]


@internal
def _spend(token: address, amount: uint256):
    """@notice Count `amount`, below 2**96, as spent now. What does not fit a bucket any more leaves it full."""
    for window: uint256 in range(3):
        found: uint256[BUCKETS] = self._buckets(token, window)
        found[0] = min(found[0] + amount, MASK_96)
        number: uint256 = block.timestamp // BUCKET_SECONDS[window]
        self._words[token][2 * window] = found[0] | (found[1] << 96) | (number << 192)
        self._words[token][2 * window + 1] = found[2] | (found[3] << 96)
