# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title Streams: money that flows by the second
@license MIT
@notice A stream is one storage word under the hash of its immutable parties and purpose. Settling
    credits the vault; nothing here calls anybody.
@dev No access control and no lock inside: the deployable checks who calls and passes the parties, which
    are part of the id, so a wrong party is simply another (unknown) stream.
"""

from . import accrual
from . import vault
from ..interfaces import IStreamPay

uses: vault

# At least so much is due once a stream has opened, because several blocks may share a timestamp.
MIN_SECONDS: constant(uint256) = 1
MAX_TIME: constant(uint256) = 2**40 - 1

_streams: HashMap[bytes32, uint256]


@internal
@pure
def _id(payer: address, payee: address, token: address, session_key: address, offer_id: bytes32) -> bytes32:
    return keccak256(abi_encode(payer, payee, token, session_key, offer_id))


@internal
@view
def _stop_now(start: uint256, end: uint256) -> uint256:
    """@return The second at which a stream that is stopped now has cost what it costs."""
    return min(max(block.timestamp, start + MIN_SECONDS), end)


@internal
@view
def _withdrawable(word: uint256) -> uint256:
    start: uint256 = 0
    last: uint256 = 0
    end: uint256 = 0
    rate: uint256 = 0
    start, last, end, rate = accrual._unpack(word)
    return accrual._between(word, last, min(block.timestamp, end))


@internal
@view
def _refundable(word: uint256) -> uint256:
    start: uint256 = 0
    last: uint256 = 0
    end: uint256 = 0
    rate: uint256 = 0
    start, last, end, rate = accrual._unpack(word)
    return accrual._between(word, self._stop_now(start, end), end)


@internal
def _open(
    payer: address,
    payee: address,
    token: address,
    session_key: address,
    offer_id: bytes32,
    rate: uint256,
    duration: uint256,
    coins: uint256,
    from_vault: uint256,
) -> bytes32:
    assert payee != empty(address), "streams: zero payee"
    assert payee != payer, "streams: payer is the payee"
    assert session_key != empty(address), "streams: zero session key"
    assert rate > 0, "streams: zero rate"
    assert duration > 0, "streams: zero duration"
    end: uint256 = block.timestamp + duration
    assert end <= MAX_TIME, "streams: duration too long"

    id: bytes32 = self._id(payer, payee, token, session_key, offer_id)
    assert self._streams[id] == 0, "streams: already open"
    self._streams[id] = block.timestamp | (block.timestamp << 40) | (end << 80) | (rate << 120)

    deposit: uint256 = accrual._flow(rate, duration)
    spent: uint256 = 0
    lacking: uint256 = 0
    if token != empty(address) or coins != deposit:  # exact coins are the common case, and need no vault
        spent, lacking = vault._spend(token, payer, deposit, coins, from_vault)
    log IStreamPay.Opened(
        id=id,
        payer=payer,
        payee=payee,
        token=token,
        session_key=session_key,
        offer_id=offer_id,
        rate=rate,
        start=block.timestamp,
        end=end,
        from_vault=spent,
    )
    if lacking > 0:
        vault._draw(token, payer, lacking)
    return id


@internal
def _top_up(id: bytes32, token: address, funder: address, duration: uint256, coins: uint256, from_vault: uint256):
    """@dev Only a running stream: one that has ended would charge its payer for the time in between."""
    word: uint256 = self._streams[id]
    assert word != 0, "streams: no such stream"
    end: uint256 = (word >> 80) & accrual.MASK_40
    assert block.timestamp < end, "streams: already ended"
    assert duration > 0, "streams: zero duration"
    extended: uint256 = end + duration
    assert extended <= MAX_TIME, "streams: duration too long"
    self._streams[id] = (word & accrual.CLEAR_END) | (extended << 80)

    cost: uint256 = accrual._between(word, end, extended)
    spent: uint256 = 0
    lacking: uint256 = 0
    if token != empty(address) or coins != cost:
        spent, lacking = vault._spend(token, funder, cost, coins, from_vault)
    log IStreamPay.ToppedUp(id=id, funder=funder, end=extended, from_vault=spent)
    if lacking > 0:
        vault._draw(token, funder, lacking)


@internal
def _settle(id: bytes32, to: address) -> uint256:
    """
    @notice Count as paid what is due by now; a stream paid up to its end is cleared.
    @return What is due, which the caller must credit or send. Zero, and no change, where nothing is:
        one dead stream must not stop a batch.
    """
    word: uint256 = self._streams[id]
    end: uint256 = (word >> 80) & accrual.MASK_40
    until: uint256 = min(block.timestamp, end)
    due: uint256 = accrual._between(word, (word >> 40) & accrual.MASK_40, until)
    if due > 0:
        self._streams[id] = 0 if until == end else (word & accrual.CLEAR_LAST) | (until << 40)
        log IStreamPay.Withdrawn(id=id, to=to, amount=due)
    return due


@internal
def _close(id: bytes32, payee: address, token: address, stop_at: uint256, refund_to: address) -> uint256:
    """
    @notice End a stream at `stop_at`, but not before what is already paid nor after now, and credit the payee.
    @return The refund, which the caller must credit (`refund_to` zero) or send to `refund_to`.
    """
    word: uint256 = self._streams[id]
    assert word != 0, "streams: no such stream"
    self._streams[id] = 0
    last: uint256 = (word >> 40) & accrual.MASK_40
    end: uint256 = (word >> 80) & accrual.MASK_40
    stop: uint256 = min(max(stop_at, last), self._stop_now(word & accrual.MASK_40, end))
    paid: uint256 = accrual._between(word, last, stop)
    refund: uint256 = accrual._between(word, stop, end)
    if paid > 0:
        vault._settle(token, payee, paid)
    log IStreamPay.Closed(id=id, stop=stop, paid=paid, refund=refund, to=refund_to)
    return refund
