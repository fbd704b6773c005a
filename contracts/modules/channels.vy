# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title Channels: money that flows by signed vouchers
@license MIT
@notice A payer locks a deposit; its session key signs vouchers, each for the whole sum owed so far; the
    payee settles the highest one. The payee may close at any time, which refunds the rest at once; the
    payer asks to close, and takes the rest back 15 minutes later, so that the payee can settle first.
    Words and terms follow the Machine Payments Protocol's session draft where it has them.
@dev No access control and no lock inside: the deployable checks who calls and passes the parties, which
    are part of the id. A finished channel's word stays for ever, so that no voucher is ever good twice;
    whoever wants another channel takes another session key.

    The word, from the lowest bit:
        deposit   96 bits  base units locked in all
        settled   96 bits  base units paid to the payee so far, settled <= deposit
        request   40 bits  block timestamp of the payer's request to close, 0: none
        finished   1 bit
        spare     23 bits  zero
    A word of zero means that there never was such a channel.
"""

from . import signatures
from . import vault
from ..interfaces import IStreamPay

uses: signatures
uses: vault

MASK_96: constant(uint256) = 2**96 - 1
MASK_40: constant(uint256) = 2**40 - 1
CLEAR_SETTLED: constant(uint256) = ~(MASK_96 << 96)
FINISHED: constant(uint256) = 1 << 232
CLOSE_DELAY: constant(uint256) = 15 * 60
VOUCHER_TYPE: constant(bytes32) = keccak256("Voucher(bytes32 channelId,uint128 cumulativeAmount)")

_channels: HashMap[bytes32, uint256]


@internal
@view
def _running(id: bytes32) -> uint256:
    word: uint256 = self._channels[id]
    assert word != 0, "channels: no such channel"
    assert word & FINISHED == 0, "channels: finished"
    return word


@internal
def _open(
    id: bytes32,
    payer: address,
    payee: address,
    token: address,
    session_key: address,
    offer_id: bytes32,
    deposit: uint256,
    coins: uint256,
    from_vault: uint256,
):
    assert payee != empty(address), "channels: zero payee"
    assert payee != payer, "channels: payer is the payee"
    assert session_key != empty(address), "channels: zero session key"
    assert deposit > 0, "channels: zero deposit"
    assert deposit <= MASK_96, "channels: deposit too large"
    assert self._channels[id] == 0, "channels: already used"
    self._channels[id] = deposit

    spent: uint256 = 0
    lacking: uint256 = 0
    if token != empty(address) or coins != deposit:
        spent, lacking = vault._spend(token, payer, deposit, coins, from_vault)
    log IStreamPay.ChannelOpened(
        id=id,
        payer=payer,
        payee=payee,
        token=token,
        session_key=session_key,
        offer_id=offer_id,
        deposit=deposit,
        from_vault=spent,
    )
    if lacking > 0:
        vault._draw(token, payer, lacking)


@internal
def _top_up(id: bytes32, token: address, funder: address, amount: uint256, coins: uint256, from_vault: uint256):
    """@dev Leaves a request to close as it is: nobody's money can hold up the payer's exit."""
    word: uint256 = self._running(id)
    assert amount > 0, "channels: zero amount"
    assert amount <= MASK_96 - (word & MASK_96), "channels: deposit too large"
    self._channels[id] = unsafe_add(word, amount)

    spent: uint256 = 0
    lacking: uint256 = 0
    if token != empty(address) or coins != amount:
        spent, lacking = vault._spend(token, funder, amount, coins, from_vault)
    log IStreamPay.ChannelToppedUp(id=id, funder=funder, amount=amount, from_vault=spent)
    if lacking > 0:
        vault._draw(token, funder, lacking)


@internal
@view
def _require_voucher(id: bytes32, session_key: address, cumulative: uint256, signature: Bytes[65]):
    """@dev Session keys are plain keys: a contract could change its mind about a voucher after the work is done."""
    digest: bytes32 = signatures._digest(keccak256(abi_encode(VOUCHER_TYPE, id, cumulative)))
    assert len(signature) == 65, "channels: voucher signature is not 65 bytes"
    assert signatures._recover(digest, signature) == session_key, "channels: voucher not signed by the session key"


@internal
def _settle(id: bytes32, session_key: address, cumulative: uint256, signature: Bytes[65]) -> uint256:
    """
    @notice Count as paid all that a voucher says.
    @return What it adds, which the caller must credit to the payee. Zero, and no change, where it adds
        nothing or the channel is finished: one old voucher must not stop a batch.
    """
    word: uint256 = self._channels[id]
    settled: uint256 = (word >> 96) & MASK_96
    if word & FINISHED != 0 or cumulative <= settled:
        return 0
    assert cumulative <= word & MASK_96, "channels: voucher above the deposit"
    self._require_voucher(id, session_key, cumulative, signature)
    self._channels[id] = (word & CLEAR_SETTLED) | (cumulative << 96)
    log IStreamPay.ChannelSettled(id=id, cumulative=cumulative)
    return unsafe_sub(cumulative, settled)


@internal
def _finish(id: bytes32, word: uint256, cumulative: uint256, refund_to: address) -> uint256:
    """
    @notice End a channel that has paid `cumulative` in all, settled <= cumulative <= deposit.
    @return The refund, which the caller must credit (`refund_to` zero) or send.
    """
    refund: uint256 = unsafe_sub(word & MASK_96, cumulative)
    self._channels[id] = (word & CLEAR_SETTLED) | (cumulative << 96) | FINISHED
    log IStreamPay.ChannelClosed(id=id, cumulative=cumulative, refund=refund, to=refund_to)
    return refund


@internal
def _close(id: bytes32, payee: address, token: address, session_key: address, cumulative: uint256, signature: Bytes[65]) -> uint256:
    """
    @notice End a channel with its last voucher, or with none (`cumulative` at most what is settled).
    @return The refund, which the caller must credit to the payer.
    """
    word: uint256 = self._running(id)
    settled: uint256 = (word >> 96) & MASK_96
    final: uint256 = max(settled, cumulative)
    if final > settled:
        assert final <= word & MASK_96, "channels: voucher above the deposit"
        self._require_voucher(id, session_key, final, signature)
        vault._settle(token, payee, unsafe_sub(final, settled))
    return self._finish(id, word, final, empty(address))


@internal
def _request_close(id: bytes32):
    word: uint256 = self._running(id)
    assert (word >> 192) & MASK_40 == 0, "channels: already requested"
    self._channels[id] = word | (block.timestamp << 192)
    log IStreamPay.ChannelCloseRequested(id=id, reclaimable_at=block.timestamp + CLOSE_DELAY)


@internal
def _reclaim(id: bytes32, refund_to: address) -> uint256:
    """@return The refund, which the caller must credit (`refund_to` zero) or send."""
    word: uint256 = self._running(id)
    requested: uint256 = (word >> 192) & MASK_40
    assert requested != 0, "channels: close not requested"
    assert block.timestamp >= requested + CLOSE_DELAY, "channels: too early"
    return self._finish(id, word, (word >> 96) & MASK_96, refund_to)
