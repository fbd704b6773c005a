# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title ChannelClaims
@license MIT
@notice What must be true of the channels' word for every input, as functions that a symbolic executor is to break:
    each panics where its claim is wrong (`python -m tests.symbolic`).
"""

from ..modules import channels
from ..modules import signatures
from ..modules import vault

initializes: signatures
initializes: vault
initializes: channels[signatures := signatures, vault := vault]

ID: constant(bytes32) = empty(bytes32)
CHEATS: constant(address) = 0x7109709ECfa91a80626fF3989D68f67F5b1DD12D  # where such tools take orders


@deploy
def __init__():
    signatures.__init__("Penstock StreamPay", "1")
    vault.__init__(empty(address))


@internal
@pure
def _claim(condition: bool):
    """@notice Solidity's Panic(1), which is what such tools look for; plain reverts are inputs out of bounds."""
    if not condition:
        raw_revert(abi_encode(convert(1, uint256), method_id=method_id("Panic(uint256)")))


@internal
def _enter(deposit: uint96, settled: uint96, requested: uint40) -> uint256:
    """@notice A running channel of any state."""
    assert 0 < deposit and settled <= deposit, "out of bounds"
    word: uint256 = (
        convert(deposit, uint256) | (convert(settled, uint256) << 96) | (convert(requested, uint256) << 192)
    )
    channels._channels[ID] = word
    return word


@internal
@view
def _claim_word(deposit: uint256, settled: uint256, requested: uint256, finished: bool):
    word: uint256 = channels._channels[ID]
    self._claim(word & channels.MASK_96 == deposit and (word >> 96) & channels.MASK_96 == settled)
    self._claim((word >> 192) & channels.MASK_40 == requested)
    self._claim((word & channels.FINISHED != 0) == finished and word >> 233 == 0)


@external
def check_finish(deposit: uint96, settled: uint96, requested: uint40, cumulative: uint96):
    """@notice The end of a channel: refund and payments are the deposit, and nothing else of the word changes."""
    word: uint256 = self._enter(deposit, settled, requested)
    assert settled <= cumulative and cumulative <= deposit, "out of bounds"
    final: uint256 = convert(cumulative, uint256)
    refund: uint256 = channels._finish(ID, word, final, empty(address))
    self._claim(unsafe_add(refund, final) == convert(deposit, uint256))
    self._claim_word(convert(deposit, uint256), final, convert(requested, uint256), True)


@internal
def _warp(timestamp: uint40):
    raw_call(CHEATS, abi_encode(convert(timestamp, uint256), method_id=method_id("warp(uint256)")))


@external
def check_request_close(deposit: uint96, settled: uint96, requested: uint40, timestamp: uint40):
    """@notice Succeeds only where there was no request, and sets nothing but its time."""
    word: uint256 = self._enter(deposit, settled, requested)
    self._warp(timestamp)
    channels._request_close(ID)
    self._claim(requested == 0)
    self._claim_word(convert(deposit, uint256), convert(settled, uint256), convert(timestamp, uint256), False)


@external
def check_reclaim(deposit: uint96, settled: uint96, requested: uint40, timestamp: uint40):
    """@notice Never before 15 minutes have passed, and never more than what is not settled."""
    word: uint256 = self._enter(deposit, settled, requested)
    self._warp(timestamp)
    refund: uint256 = channels._reclaim(ID, empty(address))
    self._claim(requested != 0 and convert(timestamp, uint256) >= convert(requested, uint256) + 900)
    self._claim(refund == convert(deposit, uint256) - convert(settled, uint256))
    self._claim_word(convert(deposit, uint256), convert(settled, uint256), convert(requested, uint256), True)


@external
@payable
def check_top_up(deposit: uint96, settled: uint96, requested: uint40, amount: uint256):
    """@notice With exact coins: the deposit grows by the amount and stays below 2**96; nothing else changes."""
    word: uint256 = self._enter(deposit, settled, requested)
    channels._top_up(ID, empty(address), msg.sender, amount, amount, 0)
    self._claim(0 < amount and amount < 2**96)
    total: uint256 = unsafe_add(convert(deposit, uint256), amount)
    self._claim(total < 2**96)
    self._claim_word(total, convert(settled, uint256), convert(requested, uint256), False)


@external
def check_old_voucher(deposit: uint96, settled: uint96, requested: uint40, cumulative: uint256):
    """@notice A sum that is no higher than what is settled changes nothing, whatever the signature."""
    word: uint256 = self._enter(deposit, settled, requested)
    assert cumulative <= convert(settled, uint256), "out of bounds"
    self._claim(channels._settle(ID, msg.sender, cumulative, b"") == 0)
    self._claim(channels._channels[ID] == word)
