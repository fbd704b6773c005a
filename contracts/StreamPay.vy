# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title StreamPay
@license MIT
@notice The vault, the payment streams and the voucher channels of Penstock. A payer opens a stream, which
    costs by the second, and can stop it at any second; the payee is owed what has flowed, and can take
    it at any time. A channel does the same for prices by the token, with vouchers in place of seconds.

    What holds, and `docs/spec.md` numbers with the test of each:
    - the contract holds, of every token, at least what it owes;
    - a payer loses at most rate x seconds run, and nobody can keep back its refund;
    - what was earned is never taken back;
    - no role moves, freezes or taxes funds: the guardian pauses opens and top-ups, and nothing else.
@dev Checks, effects, interactions; `assets` holds the one lock and says why no other is needed. Tokens
    that take a fee on the way in are credited with what arrived; tokens whose balances shrink by themselves are not supported: their holders share
    the loss, and no other token is touched.
"""

from .interfaces import IStreamPay
from .modules import accrual
from .modules import assets
from .modules import channels
from .modules import guardianship
from .modules import signatures
from .modules import streams
from .modules import vault

initializes: guardianship
initializes: signatures
initializes: vault
initializes: streams[vault := vault]
initializes: channels[signatures := signatures, vault := vault]

MAX_BATCH: constant(uint256) = 200
ORDER_TYPE: constant(bytes32) = keccak256(
    "OpenStream(address payer,address payee,address token,address sessionKey,bytes32 offerId,uint96 rate,uint40 duration,uint256 fromVault,uint256 nonce,uint256 deadline)"
)
CHANNEL_TYPE: constant(bytes32) = keccak256(
    "OpenChannel(address payer,address payee,address token,address sessionKey,bytes32 offerId,uint256 deposit,uint256 fromVault,uint256 nonce,uint256 deadline)"
)
STANDING_TYPE: constant(bytes32) = keccak256("StandingOrder(bytes32 streamId,uint64 start,uint40 ahead,uint40 until)")
CANCEL_TYPE: constant(bytes32) = keccak256("CancelStream(bytes32 streamId,uint64 start,address to,uint256 deadline)")

KEEPER_BPS: constant(uint256) = 10  # 0.1 % of what is settled, rounded down: settling more often brings nothing

_rewards_keepers: HashMap[address, bool]


@deploy
def __init__(guardian: address, permit2: address):
    """
    @param guardian Who may pause opens and top-ups; zero: nobody, ever.
    @param permit2 Uniswap's Permit2 on this chain; zero: not supported.
    """
    guardianship.__init__(guardian)
    signatures.__init__("Penstock StreamPay", "1")
    vault.__init__(permit2)


# --- vault ---------------------------------------------------------------------------------------


@external
@payable
def deposit(token: address, amount: uint256) -> uint256:
    """
    @notice Pay into the caller's vault balance: `amount` of an ERC-20 by allowance, or coins (value = amount).
    @return What was credited: less than `amount` where the token takes a fee.
    """
    return vault._pay_in(token, msg.sender, msg.sender, amount, msg.value)


@external
@payable
def deposit_for(account: address, token: address, amount: uint256) -> uint256:
    """
    @notice Pay into somebody else's vault balance; only that account can spend it.
    @return What was credited.
    """
    return vault._pay_in(token, msg.sender, account, amount, msg.value)


@external
def withdraw_vault(token: address, amount: uint256, to: address):
    """@notice Take `amount` of the caller's vault balance out, to `to`."""
    vault._take_out(token, msg.sender, amount, to)


@external
@payable
def pay(payer: address, token: address, payments: DynArray[IStreamPay.Payment, vault.MAX_PAYMENTS]):
    """
    @notice Credit accounts in the vault. It is paid with the value sent, then the payer's vault balance, then
        (ERC-20) its allowance; coins sent in excess are credited to the payer.
    @param payer The caller, or who let it with `allow_spender`.
    """
    vault._pay(payer, token, payments, msg.value)


@external
def allow_spender(spender: address, token: address, amount: uint256):
    """
    @notice Let a contract pay up to `amount` for the caller, by `pay`; the maximum: without end. Replaces what
        was allowed before.
    """
    vault._spendable[msg.sender][spender][token] = amount
    log IStreamPay.SpenderAllowed(owner=msg.sender, spender=spender, token=token, amount=amount)


# --- streams: the payer's side -------------------------------------------------------------------


@external
@payable
def open(
    payee: address,
    token: address,
    session_key: address,
    offer_id: bytes32,
    rate: uint96,
    duration: uint40,
    from_vault: uint256,
) -> bytes32:
    """
    @notice Open a stream from the caller. Its deposit, ceil(rate * duration / 1e6), comes from the value
        sent, then the vault balance up to `from_vault`, then (ERC-20) the allowance; coins sent in
        excess are credited.
    @param session_key The key that speaks for the payer in this session: it signs grants, moves no money.
    @param rate Base units x 1e6 per second.
    @param duration Seconds until the deposit is used up.
    @param from_vault At most so much comes from the vault balance; the maximum: whatever is there.
    @return The stream's id.
    """
    guardianship._require_running()
    return streams._open(
        msg.sender,
        payee,
        token,
        session_key,
        offer_id,
        convert(rate, uint256),
        convert(duration, uint256),
        msg.value,
        from_vault,
    )


@external
def open_for(order: IStreamPay.Order, signature: Bytes[1024], permit: IStreamPay.Permit) -> bytes32:
    """
    @notice Open a stream that its payer signed; anyone may submit it and pays the gas. The deposit comes
        from the payer's vault balance, then its allowance or the permit.
    @return The stream's id.
    """
    guardianship._require_running()
    assert block.timestamp <= order.deadline, "signatures: order expired"
    signatures._require_signed(order.payer, signatures._digest(keccak256(abi_encode(ORDER_TYPE, order))), signature)
    signatures._use_nonce(order.payer, order.nonce)
    vault._use_permit(order.token, order.payer, permit)
    return streams._open(
        order.payer,
        order.payee,
        order.token,
        order.session_key,
        order.offer_id,
        convert(order.rate, uint256),
        convert(order.duration, uint256),
        0,
        order.from_vault,
    )


@external
def invalidate_nonces(word: uint256, mask: uint256):
    """@notice Burn the caller's nonces word * 256 + i for each bit i of `mask`: orders signed with them are void."""
    signatures._burn_nonces(msg.sender, word, mask)


@external
@payable
def top_up(
    payer: address,
    payee: address,
    token: address,
    session_key: address,
    offer_id: bytes32,
    duration: uint40,
    from_vault: uint256,
):
    """
    @notice Let a running stream last `duration` seconds longer, at its own rate. Anyone may pay, in
        the same ways as for an open; what is not used goes to the payer in the end.
    """
    guardianship._require_running()
    streams._top_up(
        streams._id(payer, payee, token, session_key, offer_id),
        token,
        msg.sender,
        convert(duration, uint256),
        msg.value,
        from_vault,
    )


@external
def extend_for(
    payer: address,
    payee: address,
    token: address,
    session_key: address,
    offer_id: bytes32,
    order: IStreamPay.StandingOrder,
    signature: Bytes[1024],
):
    """
    @notice Keep a running stream of a payer that signed a standing order running: move its end to
        `ahead` seconds from now, never beyond `until`, at the payer's cost (vault balance, then
        allowance). Anyone may call, as often as it likes.
    @dev No nonce: what is signed names the stream's start and bounds what is locked at any time. The
        payer ends it by cancelling the stream.
    """
    guardianship._require_running()
    id: bytes32 = streams._id(payer, payee, token, session_key, offer_id)
    word: uint256 = streams._streams[id]
    struct_hash: bytes32 = keccak256(
        abi_encode(STANDING_TYPE, id, word & accrual.MASK_40, order.ahead, order.until)
    )
    signatures._require_signed(payer, signatures._digest(struct_hash), signature)
    end: uint256 = (word >> 80) & accrual.MASK_40
    target: uint256 = min(block.timestamp + convert(order.ahead, uint256), convert(order.until, uint256))
    assert target > end, "streams: nothing to extend"
    streams._top_up(id, token, payer, target - end, 0, max_value(uint256))


@external
def cancel(payee: address, token: address, session_key: address, offer_id: bytes32, to: address):
    """
    @notice Stop a stream of the caller now: the payee is credited, the rest goes back.
    @param to Who receives the refund; zero: the caller's vault balance, which no token can refuse.
    """
    id: bytes32 = streams._id(msg.sender, payee, token, session_key, offer_id)
    self._cancel(id, msg.sender, payee, token, to)


@external
def cancel_for(
    payer: address,
    payee: address,
    token: address,
    session_key: address,
    offer_id: bytes32,
    to: address,
    deadline: uint256,
    signature: Bytes[1024],
):
    """
    @notice Stop a stream now whose payer signed that it wants so; anyone may submit it and pays the gas.
    @dev No nonce: what is signed names the stream's start, and the stream is gone afterwards.
    @param to As for `cancel`.
    """
    assert block.timestamp <= deadline, "signatures: order expired"
    id: bytes32 = streams._id(payer, payee, token, session_key, offer_id)
    start: uint256 = streams._streams[id] & accrual.MASK_40
    signatures._require_signed(
        payer, signatures._digest(keccak256(abi_encode(CANCEL_TYPE, id, start, to, deadline))), signature
    )
    self._cancel(id, payer, payee, token, to)


@internal
def _cancel(id: bytes32, payer: address, payee: address, token: address, to: address):
    self._give_back(token, payer, streams._close(id, payee, token, max_value(uint256), to), to)


@internal
def _give_back(token: address, payer: address, refund: uint256, to: address):
    """@notice Send a refund to `to`, or where that is zero credit it to the payer."""
    if refund > 0:
        if to == empty(address):
            vault._credit(token, payer, refund)
        else:
            assets._push(token, to, refund)


# --- streams: the payee's side -------------------------------------------------------------------


@external
def withdraw(payer: address, token: address, session_key: address, offer_id: bytes32, to: address) -> uint256:
    """
    @notice Pay out what the caller has earned by now in one stream, to `to`.
    @return What was paid.
    """
    assert to != empty(address), "streams: zero receiver"
    due: uint256 = streams._settle(streams._id(payer, msg.sender, token, session_key, offer_id), to)
    assert due > 0, "streams: nothing due"
    assets._push(token, to, due)
    return due


@external
def withdraw_many(token: address, sources: DynArray[IStreamPay.Source, MAX_BATCH], to: address) -> uint256:
    """
    @notice Pay out what the caller has earned by now in these streams, to `to`. Those where nothing is due
        are passed over.
    @return What was paid.
    """
    assert to != empty(address), "streams: zero receiver"
    total: uint256 = 0
    for source: IStreamPay.Source in sources:
        total += streams._settle(
            streams._id(source.payer, msg.sender, token, source.session_key, source.offer_id), to
        )
    assert total > 0, "streams: nothing due"
    assets._push(token, to, total)
    return total


@external
def collect(token: address, payee: address, sources: DynArray[IStreamPay.Source, MAX_BATCH]) -> uint256:
    """
    @notice Credit to the payee's vault balance what it has earned by now in these streams. Anyone may call.
    @return What was credited.
    """
    total: uint256 = 0
    for source: IStreamPay.Source in sources:
        total += streams._settle(
            streams._id(source.payer, payee, token, source.session_key, source.offer_id), empty(address)
        )
    assert total > 0, "streams: nothing due"
    self._credit_earnings(token, payee, total)
    return total


@external
def close(payer: address, token: address, session_key: address, offer_id: bytes32, stop_at: uint256):
    """
    @notice End a stream that pays the caller; the payer's refund goes to its vault balance.
    @param stop_at The second up to which the payer is charged, never before what is already paid; a
        second that has not come yet means now.
    """
    id: bytes32 = streams._id(payer, msg.sender, token, session_key, offer_id)
    refund: uint256 = streams._close(id, msg.sender, token, stop_at, empty(address))
    if refund > 0:
        vault._credit(token, payer, refund)


@external
def set_keeper_reward(enabled: bool):
    """
    @notice Let whoever settles to the caller's vault balance keep 0.1 % of what it settles, or no longer.
        What the caller settles itself is never reduced.
    """
    self._rewards_keepers[msg.sender] = enabled
    log IStreamPay.KeeperRewardChanged(payee=msg.sender, enabled=enabled)


@internal
def _credit_earnings(token: address, payee: address, total: uint256):
    """@notice Credit what was settled to the payee, less the keeper's part where the payee agreed to one."""
    reward: uint256 = 0
    if msg.sender != payee and self._rewards_keepers[payee]:
        reward = total * KEEPER_BPS // 10_000
    vault._settle(token, payee, total - reward)
    if reward > 0:
        vault._credit(token, msg.sender, reward)
        log IStreamPay.KeeperPaid(token=token, payee=payee, keeper=msg.sender, amount=reward)


# --- channels ------------------------------------------------------------------------------------


@external
@payable
def open_channel(
    payee: address, token: address, session_key: address, offer_id: bytes32, deposit: uint256, from_vault: uint256
) -> bytes32:
    """
    @notice Open a channel from the caller, funded like a stream.
    @param session_key The key that signs the vouchers; a plain key, not a contract.
    @param deposit Base units locked; no voucher counts beyond it.
    @return The channel's id, `stream_id` of the same parties.
    """
    guardianship._require_running()
    id: bytes32 = streams._id(msg.sender, payee, token, session_key, offer_id)
    channels._open(id, msg.sender, payee, token, session_key, offer_id, deposit, msg.value, from_vault)
    return id


@external
def open_channel_for(order: IStreamPay.ChannelOrder, signature: Bytes[1024], permit: IStreamPay.Permit) -> bytes32:
    """
    @notice Open a channel that its payer signed; anyone may submit it and pays the gas.
    @return The channel's id.
    """
    guardianship._require_running()
    assert block.timestamp <= order.deadline, "signatures: order expired"
    signatures._require_signed(order.payer, signatures._digest(keccak256(abi_encode(CHANNEL_TYPE, order))), signature)
    signatures._use_nonce(order.payer, order.nonce)
    vault._use_permit(order.token, order.payer, permit)
    id: bytes32 = streams._id(order.payer, order.payee, order.token, order.session_key, order.offer_id)
    channels._open(
        id,
        order.payer,
        order.payee,
        order.token,
        order.session_key,
        order.offer_id,
        order.deposit,
        0,
        order.from_vault,
    )
    return id


@external
@payable
def top_up_channel(
    payer: address,
    payee: address,
    token: address,
    session_key: address,
    offer_id: bytes32,
    amount: uint256,
    from_vault: uint256,
):
    """@notice Add `amount` to a channel's deposit. Anyone may pay; what is not used goes to the payer in the end."""
    guardianship._require_running()
    channels._top_up(
        streams._id(payer, payee, token, session_key, offer_id), token, msg.sender, amount, msg.value, from_vault
    )


@external
def settle_channel(
    payer: address,
    payee: address,
    token: address,
    session_key: address,
    offer_id: bytes32,
    cumulative: uint256,
    signature: Bytes[65],
) -> uint256:
    """
    @notice Credit to the payee's vault balance what a voucher adds to what is settled. Anyone may call.
    @return What was settled.
    """
    id: bytes32 = streams._id(payer, payee, token, session_key, offer_id)
    added: uint256 = channels._settle(id, session_key, cumulative, signature)
    assert added > 0, "channels: nothing to settle"
    self._credit_earnings(token, payee, added)
    return added


@external
def settle_many(token: address, payee: address, vouchers: DynArray[IStreamPay.Voucher, MAX_BATCH]) -> uint256:
    """
    @notice Settle vouchers of many channels of one payee and token. Those that add nothing are passed over.
    @return What was settled.
    """
    total: uint256 = 0
    for voucher: IStreamPay.Voucher in vouchers:
        id: bytes32 = streams._id(voucher.payer, payee, token, voucher.session_key, voucher.offer_id)
        total += channels._settle(id, voucher.session_key, voucher.cumulative, voucher.signature)
    assert total > 0, "channels: nothing to settle"
    self._credit_earnings(token, payee, total)
    return total


@external
def close_channel(
    payer: address,
    token: address,
    session_key: address,
    offer_id: bytes32,
    cumulative: uint256,
    signature: Bytes[65],
):
    """
    @notice End a channel that pays the caller: its last voucher is settled, the rest refunded to the payer's
        vault balance.
    @param cumulative The voucher's sum; at most what is settled: no voucher, and the signature may be empty.
    """
    id: bytes32 = streams._id(payer, msg.sender, token, session_key, offer_id)
    refund: uint256 = channels._close(id, msg.sender, token, session_key, cumulative, signature)
    if refund > 0:
        vault._credit(token, payer, refund)


@external
def request_close(payee: address, token: address, session_key: address, offer_id: bytes32):
    """@notice Announce that the caller will take back what its channel has not paid 15 minutes from now."""
    channels._request_close(streams._id(msg.sender, payee, token, session_key, offer_id))


@external
def reclaim(payee: address, token: address, session_key: address, offer_id: bytes32, to: address):
    """
    @notice End a channel of the caller 15 minutes after the request, and take back the rest.
    @param to As for `cancel`.
    """
    refund: uint256 = channels._reclaim(streams._id(msg.sender, payee, token, session_key, offer_id), to)
    self._give_back(token, msg.sender, refund, to)


# --- guardian ------------------------------------------------------------------------------------


@external
def set_paused(paused: bool):
    """@notice Stop, or allow again, opens and top-ups. Guardian only."""
    guardianship._set_paused(paused)


@external
def transfer_guardian(to: address):
    """@notice Offer the role to another account, which must accept; zero withdraws the offer. Guardian only."""
    guardianship._transfer(to)


@external
def accept_guardian():
    """@notice Take the role that was offered to the caller."""
    guardianship._accept()


@external
def renounce_guardian():
    """@notice Give the role up for ever; a pause that is on ends. Guardian only."""
    guardianship._renounce()


# --- views ---------------------------------------------------------------------------------------


@external
@view
def balance_of(token: address, account: address) -> uint256:
    """@return What the account may withdraw from the vault."""
    return vault._balance_of(token, account)


@external
@view
def spendable(token: address, owner: address, spender: address) -> uint256:
    """@return What the spender may still pay for the owner."""
    return vault._spendable[owner][spender][token]


@external
@view
def settled_of(token: address, account: address) -> uint256:
    """@return What streams have ever credited to the account's vault balance; what `withdraw` paid out is not in it."""
    return vault._settled_of(token, account)


@external
@pure
def stream_id(payer: address, payee: address, token: address, session_key: address, offer_id: bytes32) -> bytes32:
    """@return keccak256(abi_encode(payer, payee, token, session_key, offer_id))."""
    return streams._id(payer, payee, token, session_key, offer_id)


@external
@view
def stream(id: bytes32) -> IStreamPay.Stream:
    """@return All zero where there is no such stream, never opened or gone."""
    return self._stream(id)


@external
@view
def streams_of(ids: DynArray[bytes32, MAX_BATCH]) -> DynArray[IStreamPay.Stream, MAX_BATCH]:
    """@return `stream(id)` for each, in order."""
    found: DynArray[IStreamPay.Stream, MAX_BATCH] = []
    for id: bytes32 in ids:
        found.append(self._stream(id))
    return found


@external
@view
def withdrawable(id: bytes32) -> uint256:
    """@return What the payee could settle now; 0 where there is no such stream."""
    word: uint256 = streams._streams[id]
    return streams._withdrawable(word) if word != 0 else 0


@external
@view
def refundable(id: bytes32) -> uint256:
    """@return What the payer would get back if it stopped now; 0 where there is no such stream."""
    word: uint256 = streams._streams[id]
    return streams._refundable(word) if word != 0 else 0


@external
@view
def channel(id: bytes32) -> IStreamPay.Channel:
    """@return All zero where there never was such a channel."""
    word: uint256 = channels._channels[id]
    return IStreamPay.Channel(
        deposit=convert(word & channels.MASK_96, uint128),
        settled=convert((word >> 96) & channels.MASK_96, uint128),
        requested_at=convert((word >> 192) & channels.MASK_40, uint64),
        finished=word & channels.FINISHED != 0,
    )


@external
@view
def rewards_keepers(payee: address) -> bool:
    return self._rewards_keepers[payee]


@external
@view
def is_nonce_used(account: address, nonce: uint256) -> bool:
    return signatures._is_used(account, nonce)


@external
@view
def domain_separator() -> bytes32:
    return signatures._domain_separator()


@external
@view
def guardian() -> address:
    return guardianship._guardian


@external
@view
def pending_guardian() -> address:
    return guardianship._pending_guardian


@external
@view
def paused() -> bool:
    return guardianship._paused


@external
@view
def permit2() -> address:
    return vault._PERMIT2


@internal
@view
def _stream(id: bytes32) -> IStreamPay.Stream:
    start: uint256 = 0
    last: uint256 = 0
    end: uint256 = 0
    rate: uint256 = 0
    start, last, end, rate = accrual._unpack(streams._streams[id])
    return IStreamPay.Stream(
        start=convert(start, uint64),
        last=convert(last, uint64),
        end=convert(end, uint64),
        rate=convert(rate, uint96),
    )
