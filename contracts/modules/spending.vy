# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title Spending: caps that count what is open in full
@license MIT
@notice What is committed counts until it is released; of that, what was spent counts on for the length of each window.
    So the sum of both bounds what can have left within any hour, day or week, and nothing but a new
    commitment ever makes it larger.
@dev No access control inside. `penstock/caps.py` is the Python twin.

    Three words per token, from the lowest bit:
        payment 96 bits | hour 96 bits
        day     96 bits | week 96 bits
        open    96 bits | 1 bit that is set for good, so that the word is never zero again
"""

from . import windows
from ..interfaces import IAgentWallet

initializes: windows

MASK_96: constant(uint256) = 2**96 - 1
KNOWN: constant(uint256) = 1 << 96

_words: HashMap[address, uint256[3]]  # token -> caps, and what is open


@internal
def _set_caps(token: address, caps: IAgentWallet.Caps):
    """@dev Caps below what counts already take nothing back: they stop what is new."""
    self._words[token][0] = convert(caps.payment, uint256) | (convert(caps.hour, uint256) << 96)
    self._words[token][1] = convert(caps.day, uint256) | (convert(caps.week, uint256) << 96)
    self._words[token][2] |= KNOWN
    log IAgentWallet.CapsChanged(
        token=token,
        payment=convert(caps.payment, uint256),
        hour=convert(caps.hour, uint256),
        day=convert(caps.day, uint256),
        week=convert(caps.week, uint256),
    )


@internal
@view
def _caps(token: address) -> uint256[4]:
    """@return payment, hour, day, week."""
    low: uint256 = self._words[token][0]
    high: uint256 = self._words[token][1]
    return [low & MASK_96, low >> 96, high & MASK_96, high >> 96]


@internal
@view
def _open(token: address) -> uint256:
    return self._words[token][2] & MASK_96


@internal
@view
def _available(token: address) -> uint256:
    """@return The most that may be committed at once now."""
    caps: uint256[4] = self._caps(token)
    left: uint256 = caps[0]
    for window: uint256 in range(3):
        used: uint256 = self._open(token) + windows._spent(token, window)
        left = min(left, caps[window + 1] - min(used, caps[window + 1]))
    return left


@internal
def _commit(token: address, amount: uint256):
    """@notice Count `amount` more as open, if every cap allows it."""
    caps: uint256[4] = self._caps(token)
    assert amount <= caps[0], "wallet: above the cap per payment"
    word: uint256 = self._words[token][2]
    open: uint256 = (word & MASK_96) + amount
    assert open + windows._spent(token, 0) <= caps[1], "wallet: above the cap per hour"
    assert open + windows._spent(token, 1) <= caps[2], "wallet: above the cap per day"
    assert open + windows._spent(token, 2) <= caps[3], "wallet: above the cap per week"
    self._words[token][2] = open | KNOWN


@internal
def _release(token: address, committed: uint256, spent: uint256):
    """@notice Count `committed`, which was open, as spent as far as `spent` goes, at most all of it."""
    self._words[token][2] -= committed
    if spent > 0:
        windows._spend(token, spent)
