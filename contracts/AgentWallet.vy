# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title AgentWallet
@license MIT
@notice A payer on StreamPay that an agent spends from within caps, and that its owner alone can empty. Keys,
    which may be held by programs, open, top up and stop streams and channels; refunds come back to the wallet's
    vault balance. The guardian stops the spending, and takes nothing.

    What holds, and `docs/spec.md` numbers with the test of each:
    - within any hour, day or week no more of a token leaves by keys than its cap, whatever is opened, topped up,
      refunded or rotated, and whoever closes what when;
    - keys, guardian and strangers move money into streams, channels and licences that caps and lists allow, and nowhere
      else;
    - the owner can stop and take out everything at any time, paused or not.
@dev Used behind EIP-1167 proxies that the factory makes; the implementation itself belongs to nobody. What is counted
    is counted before anything is called.
"""

from ethereum.ercs import IERC20

from .interfaces import IAgentWallet
from .interfaces import ICatalogue
from .interfaces import ILicense
from .interfaces import IStreamPay
from .modules import accrual
from .modules import assets
from .modules import signatures
from .modules import spending

initializes: spending

interface StreamPay:
    def open(
        payee: address,
        token: address,
        session_key: address,
        offer_id: bytes32,
        rate: uint96,
        duration: uint40,
        from_vault: uint256,
    ) -> bytes32: payable
    def open_for(order: IStreamPay.Order, signature: Bytes[1024], permit: IStreamPay.Permit) -> bytes32: nonpayable
    def top_up(
        payer: address,
        payee: address,
        token: address,
        session_key: address,
        offer_id: bytes32,
        duration: uint40,
        from_vault: uint256,
    ): payable
    def cancel(payee: address, token: address, session_key: address, offer_id: bytes32, to: address): nonpayable
    def open_channel(
        payee: address, token: address, session_key: address, offer_id: bytes32, deposit: uint256, from_vault: uint256
    ) -> bytes32: payable
    def open_channel_for(
        order: IStreamPay.ChannelOrder, signature: Bytes[1024], permit: IStreamPay.Permit
    ) -> bytes32: nonpayable
    def top_up_channel(
        payer: address,
        payee: address,
        token: address,
        session_key: address,
        offer_id: bytes32,
        amount: uint256,
        from_vault: uint256,
    ): payable
    def request_close(payee: address, token: address, session_key: address, offer_id: bytes32): nonpayable
    def reclaim(payee: address, token: address, session_key: address, offer_id: bytes32, to: address): nonpayable
    def deposit(token: address, amount: uint256) -> uint256: payable
    def withdraw_vault(token: address, amount: uint256, to: address): nonpayable
    def balance_of(token: address, account: address) -> uint256: view
    def stream(id: bytes32) -> IStreamPay.Stream: view
    def channel(id: bytes32) -> IStreamPay.Channel: view
    def domain_separator() -> bytes32: view
    def allow_spender(spender: address, token: address, amount: uint256): nonpayable


interface License:
    def buy(
        product: uint256,
        release: uint256,
        tier: ICatalogue.Tier,
        quantity: uint256,
        max_cost: uint256,
        licensee: address,
        session_key: address,
    ) -> uint256: payable
    def renew(license: uint256, quantity: uint256, max_cost: uint256): payable
    def refund(license: uint256): nonpayable
    def complete(license: uint256): nonpayable
    def set_session_key(license: uint256, session_key: address): nonpayable
    def licence(license: uint256) -> ILicense.Licence: view
    def catalogue() -> address: view


interface Catalogue:
    def figures_of(product: uint256) -> ICatalogue.Figures: view
    def cost_of(product: uint256, tier: ICatalogue.Tier, quantity: uint256) -> uint256: view


NATIVE: constant(address) = empty(address)
MASK_96: constant(uint256) = 2**96 - 1
MASK_40: constant(uint256) = 2**40 - 1
MASK_64: constant(uint256) = 2**64 - 1
MAX_BATCH: constant(uint256) = 50
MAX_AT_START: constant(uint256) = 8
ERC1271_VALID: constant(bytes4) = 0x1626BA7E
ERC1271_REFUSED: constant(bytes4) = 0xFFFFFFFF
# As StreamPay has them.
ORDER_TYPE: constant(bytes32) = keccak256(
    "OpenStream(address payer,address payee,address token,address sessionKey,bytes32 offerId,uint96 rate,uint40 duration,uint256 fromVault,uint256 nonce,uint256 deadline)"
)
CHANNEL_TYPE: constant(bytes32) = keccak256(
    "OpenChannel(address payer,address payee,address token,address sessionKey,bytes32 offerId,uint256 deposit,uint256 fromVault,uint256 nonce,uint256 deadline)"
)
CANCEL_TYPE: constant(bytes32) = keccak256("CancelStream(bytes32 streamId,uint64 start,address to,uint256 deadline)")

_STREAM_PAY: immutable(StreamPay)
_LICENSE: immutable(License)
_CATALOGUE: immutable(Catalogue)

_owner: address
_paused: bool  # shares the owner's slot, as do the two switches
_payees_only: bool
_offers_only: bool
_pending_owner: address
_guardian: address
_keys: HashMap[address, uint256]  # expires_at 64 bits | scope
_payees: HashMap[address, bool]
_offers: HashMap[bytes32, bool]
# Of what is open, by token and id. A stream: committed 96 bits | start 40 bits | rate 96 bits. A channel: committed.
_streams: HashMap[address, HashMap[bytes32, uint256]]
_channels: HashMap[address, HashMap[bytes32, uint256]]
_latest: HashMap[address, bytes32]  # token -> id of what was opened last
_order: transient(bytes32)  # digest of the order that the wallet itself is submitting


@deploy
def __init__(stream_pay: address, license: address):
    """
    @param stream_pay Where every wallet's streams and channels live.
    @param license Where its licences do, which are paid through the same StreamPay.
    """
    assert stream_pay.is_contract, "wallet: no StreamPay there"
    assert license.is_contract, "wallet: no License there"
    _STREAM_PAY = StreamPay(stream_pay)
    _LICENSE = License(license)
    _CATALOGUE = Catalogue(staticcall License(license).catalogue())
    self._owner = 0x000000000000000000000000000000000000dEaD  # nobody


@external
def initialize(
    owner: address,
    guardian: address,
    limits: DynArray[IAgentWallet.Limit, MAX_AT_START],
    grants: DynArray[IAgentWallet.Grant, MAX_AT_START],
):
    """@notice Give a wallet that has no owner its first. The factory does, in the transaction that makes the wallet."""
    assert self._owner == empty(address), "wallet: already initialized"
    assert owner != empty(address), "wallet: zero owner"
    self._owner = owner
    self._guardian = guardian
    log IAgentWallet.Initialized(owner=owner, guardian=guardian)
    for limit: IAgentWallet.Limit in limits:
        spending._set_caps(limit.token, limit.caps)
    for grant: IAgentWallet.Grant in grants:
        self._set_key(grant.key, grant.expires_at, grant.scope)


@external
@payable
def __default__():
    """@notice Coins are welcome from anybody."""
    pass


# --- keys: streams -------------------------------------------------------------------------------


@external
def open(
    payee: address, token: address, session_key: address, offer_id: bytes32, rate: uint96, duration: uint40
) -> bytes32:
    """
    @notice Open a stream from the wallet: StreamPay's `open`, paid from the vault balance, then from what the wallet holds.
    @return The stream's id.
    """
    deposit: uint256 = self._commit_stream(msg.sender, payee, token, session_key, offer_id, rate, duration)
    coins: uint256 = self._fund(token, deposit, max_value(uint256))
    return extcall _STREAM_PAY.open(
        payee, token, session_key, offer_id, rate, duration, max_value(uint256), value=coins
    )


@external
def open_for(order: IStreamPay.Order, signature: Bytes[1024]) -> bytes32:
    """
    @notice Open a stream from the wallet that one of its keys signed: StreamPay's order, with the wallet as payer. Anyone
        may submit it, here and not to StreamPay, and pays the gas.
    @return The stream's id.
    """
    assert order.payer == self, "wallet: another payer"
    digest: bytes32 = self._digest(keccak256(abi_encode(ORDER_TYPE, order)))
    deposit: uint256 = self._commit_stream(
        self._signer(digest, signature),
        order.payee,
        order.token,
        order.session_key,
        order.offer_id,
        order.rate,
        order.duration,
    )
    self._fund_vault(order.token, deposit, order.from_vault)
    self._order = digest
    id: bytes32 = extcall _STREAM_PAY.open_for(order, signature, empty(IStreamPay.Permit))
    self._order = empty(bytes32)
    return id


@external
def top_up(payee: address, token: address, session_key: address, offer_id: bytes32, duration: uint40):
    """@notice Let a running stream of the wallet last `duration` seconds longer."""
    id: bytes32 = self._id(payee, token, session_key, offer_id)
    word: uint256 = self._streams[token][id]
    assert word != 0, "wallet: no such stream"
    running: IStreamPay.Stream = staticcall _STREAM_PAY.stream(id)
    rate: uint256 = convert(running.rate, uint256)
    lasts: uint256 = convert(running.end, uint256) - convert(running.start, uint256)
    cost: uint256 = accrual._flow(rate, lasts + convert(duration, uint256)) - accrual._flow(rate, lasts)
    self._commit(msg.sender, IAgentWallet.Scope.STREAMS, id, payee, token, offer_id, cost)
    self._streams[token][id] = word + cost
    coins: uint256 = self._fund(token, cost, max_value(uint256))
    extcall _STREAM_PAY.top_up(
        self, payee, token, session_key, offer_id, duration, max_value(uint256), value=coins
    )


@external
def cancel(payee: address, token: address, session_key: address, offer_id: bytes32) -> uint256:
    """
    @notice Stop a stream of the wallet now. Owner, or a key.
    @return The refund, which is in the wallet's vault balance.
    """
    self._require_may_stop(msg.sender, IAgentWallet.Scope.STREAMS)
    return self._cancel(payee, token, session_key, offer_id)


@external
def cancel_for(
    payee: address, token: address, session_key: address, offer_id: bytes32, deadline: uint256, signature: Bytes[1024]
) -> uint256:
    """
    @notice Stop a stream of the wallet that one of its keys, or its owner, signed to stop: StreamPay's `CancelStream`
        with the zero address as receiver. Anyone may submit it, here and not to StreamPay, and pays the gas.
    @return The refund, which is in the wallet's vault balance.
    """
    assert block.timestamp <= deadline, "wallet: order expired"
    id: bytes32 = self._id(payee, token, session_key, offer_id)
    start: uint256 = (self._streams[token][id] >> 96) & MASK_40
    digest: bytes32 = self._digest(keccak256(abi_encode(CANCEL_TYPE, id, start, empty(address), deadline)))
    self._require_may_stop(self._signer(digest, signature), IAgentWallet.Scope.STREAMS)
    return self._cancel(payee, token, session_key, offer_id)


# --- keys: channels ------------------------------------------------------------------------------


@external
def open_channel(
    payee: address, token: address, session_key: address, offer_id: bytes32, deposit: uint256
) -> bytes32:
    """
    @notice Open a channel from the wallet, paid like a stream.
    @return The channel's id.
    """
    self._commit_channel(msg.sender, payee, token, session_key, offer_id, deposit)
    coins: uint256 = self._fund(token, deposit, max_value(uint256))
    return extcall _STREAM_PAY.open_channel(
        payee, token, session_key, offer_id, deposit, max_value(uint256), value=coins
    )


@external
def open_channel_for(order: IStreamPay.ChannelOrder, signature: Bytes[1024]) -> bytes32:
    """
    @notice Open a channel from the wallet that one of its keys signed; as `open_for`.
    @return The channel's id.
    """
    assert order.payer == self, "wallet: another payer"
    digest: bytes32 = self._digest(keccak256(abi_encode(CHANNEL_TYPE, order)))
    self._commit_channel(
        self._signer(digest, signature), order.payee, order.token, order.session_key, order.offer_id, order.deposit
    )
    self._fund_vault(order.token, order.deposit, order.from_vault)
    self._order = digest
    id: bytes32 = extcall _STREAM_PAY.open_channel_for(order, signature, empty(IStreamPay.Permit))
    self._order = empty(bytes32)
    return id


@external
def top_up_channel(payee: address, token: address, session_key: address, offer_id: bytes32, amount: uint256):
    """@notice Add `amount` to the deposit of a channel of the wallet."""
    id: bytes32 = self._id(payee, token, session_key, offer_id)
    committed: uint256 = self._channels[token][id]
    assert committed != 0, "wallet: no such channel"
    self._commit(msg.sender, IAgentWallet.Scope.CHANNELS, id, payee, token, offer_id, amount)
    self._channels[token][id] = committed + amount
    coins: uint256 = self._fund(token, amount, max_value(uint256))
    extcall _STREAM_PAY.top_up_channel(
        self, payee, token, session_key, offer_id, amount, max_value(uint256), value=coins
    )


@external
def request_close(payee: address, token: address, session_key: address, offer_id: bytes32):
    """@notice Announce that the wallet will take back what a channel has not paid in 15 minutes. Owner, or a key."""
    self._require_may_stop(msg.sender, IAgentWallet.Scope.CHANNELS)
    extcall _STREAM_PAY.request_close(payee, token, session_key, offer_id)


@external
def reclaim(payee: address, token: address, session_key: address, offer_id: bytes32) -> uint256:
    """
    @notice End a channel of the wallet 15 minutes after the request. Anyone may: the rest comes back to the wallet.
    @return The refund, which is in the wallet's vault balance.
    """
    id: bytes32 = self._id(payee, token, session_key, offer_id)
    before: uint256 = staticcall _STREAM_PAY.balance_of(token, self)
    extcall _STREAM_PAY.reclaim(payee, token, session_key, offer_id, empty(address))
    refund: uint256 = staticcall _STREAM_PAY.balance_of(token, self) - before
    committed: uint256 = self._channels[token][id]
    self._channels[token][id] = 0
    self._release(id, token, committed, committed - min(committed, refund))
    return refund


# --- keys: licences ------------------------------------------------------------------------------


@external
def buy_license(
    product: uint256,
    release: uint256,
    tier: ICatalogue.Tier,
    quantity: uint256,
    max_cost: uint256,
    session_key: address,
) -> uint256:
    """
    @notice Buy a licence for the wallet: License's `buy`. Its price counts as spent at once, also where it comes back.
        On the lists its publisher is the payee, and the product's number the offer.
    @return The licence's number.
    """
    coins: uint256 = self._pay_license(product, tier, quantity, max_cost)
    return extcall _LICENSE.buy(
        product, release, tier, quantity, max_cost, self, session_key, value=coins
    )


@external
def renew_license(license: uint256, quantity: uint256, max_cost: uint256):
    """@notice Add periods or packs to a licence of the wallet."""
    held: ILicense.Licence = staticcall _LICENSE.licence(license)
    assert held.licensee == self, "wallet: not its licence"
    coins: uint256 = self._pay_license(held.product, held.tier, quantity, max_cost)
    extcall _LICENSE.renew(license, quantity, max_cost, value=coins)


@external
def refund_license(license: uint256):
    """@notice Give a licence back within its refund window, into the wallet's vault balance. Owner, or a key."""
    self._require_may_stop(msg.sender, IAgentWallet.Scope.LICENSES)
    extcall _LICENSE.refund(license)


@external
def complete_license(license: uint256):
    """@notice Waive what is left of a licence's refund window: its sellers are paid. Owner, or a key."""
    self._require_may_use_licenses()
    extcall _LICENSE.complete(license)


@external
def set_license_key(license: uint256, session_key: address):
    """
    @notice Have another key sign the tickets of a licence of the wallet; what the earlier one signed counts for a day
        more. Owner, or a key.
    """
    self._require_may_use_licenses()
    assert session_key != empty(address), "wallet: zero key"  # the wallet itself signs no tickets
    extcall _LICENSE.set_session_key(license, session_key)


# --- anyone --------------------------------------------------------------------------------------


@external
def release(token: address, ids: DynArray[bytes32, MAX_BATCH]) -> uint256:
    """
    @notice Stop counting as open what is over: streams and channels that others closed, or that ran to their end. What
        still runs is passed over. Anyone may call.
    @return How many were over.
    """
    count: uint256 = 0
    for id: bytes32 in ids:
        count += self._release_finished(id, token)
    assert count > 0, "wallet: nothing to release"
    return count


@external
@view
def isValidSignature(digest: bytes32, signature: Bytes[1024]) -> bytes4:
    """
    @notice ERC-1271. Good is only the order that the wallet is submitting itself this moment, which it has counted before.
    """
    return ERC1271_VALID if digest != empty(bytes32) and digest == self._order else ERC1271_REFUSED


# --- owner ---------------------------------------------------------------------------------------


@external
def withdraw(token: address, amount: uint256, to: address):
    """@notice Take out `amount` of what the wallet holds itself. Owner only."""
    self._require_owner()
    assert to != empty(address), "wallet: zero receiver"
    log IAgentWallet.Withdrawn(token=token, to=to, amount=amount, from_vault=False)
    assets._push(token, to, amount)


@external
def withdraw_vault(token: address, amount: uint256, to: address):
    """@notice Take out `amount` of the wallet's vault balance. Owner only."""
    self._require_owner()
    log IAgentWallet.Withdrawn(token=token, to=to, amount=amount, from_vault=True)
    extcall _STREAM_PAY.withdraw_vault(token, amount, to)


@external
def set_caps(token: address, caps: IAgentWallet.Caps):
    """
    @notice Say how much of a token keys may spend; until that is said, nothing. Owner only.
    @dev Caps below what counts already stop what is new, and nothing that runs.
    """
    self._require_owner()
    spending._set_caps(token, caps)


@external
def set_key(key: address, expires_at: uint256, scope: IAgentWallet.Scope):
    """@notice Let `key` buy what is in `scope` until `expires_at`, a block timestamp. Owner only."""
    self._require_owner()
    self._set_key(key, expires_at, scope)


@external
def revoke_key(key: address):
    """@notice From now on `key` can do nothing. Owner or guardian."""
    self._require_owner_or_guardian()
    self._keys[key] = 0
    log IAgentWallet.KeyChanged(key=key, expires_at=0, scope=0, by=msg.sender)


@external
def allow_payee(payee: address, allowed: bool):
    """@notice Put a payee on the list, or take it off. Owner only."""
    self._require_owner()
    self._payees[payee] = allowed
    log IAgentWallet.PayeeChanged(payee=payee, allowed=allowed)


@external
def allow_offer(offer_id: bytes32, allowed: bool):
    """@notice Put an offer on the list, or take it off. Owner only."""
    self._require_owner()
    self._offers[offer_id] = allowed
    log IAgentWallet.OfferChanged(offer_id=offer_id, allowed=allowed)


@external
def set_lists(payees_only: bool, offers_only: bool):
    """@notice Whether keys may pay none but listed payees, and for none but listed offers. Owner only."""
    self._require_owner()
    self._payees_only = payees_only
    self._offers_only = offers_only
    log IAgentWallet.ListsChanged(payees_only=payees_only, offers_only=offers_only)


@external
def pause():
    """@notice Stop all spending; stopping and taking out go on. Owner or guardian."""
    self._require_owner_or_guardian()
    self._paused = True
    log IAgentWallet.PauseChanged(paused=True, by=msg.sender)


@external
def unpause():
    """@notice Let keys spend again. Owner only."""
    self._require_owner()
    self._paused = False
    log IAgentWallet.PauseChanged(paused=False, by=msg.sender)


@external
def set_guardian(guardian: address):
    """@notice Say who may pause and revoke keys; zero: nobody but the owner. Owner only."""
    self._require_owner()
    self._guardian = guardian
    log IAgentWallet.GuardianChanged(guardian=guardian)


@external
def transfer_ownership(to: address):
    """@notice Offer the wallet to another account, which must accept; zero withdraws the offer. Owner only."""
    self._require_owner()
    self._pending_owner = to
    log IAgentWallet.OwnershipTransferStarted(owner=msg.sender, pending_owner=to)


@external
def accept_ownership():
    """@notice Take the wallet that was offered to the caller."""
    assert msg.sender == self._pending_owner, "wallet: not the pending owner"
    previous: address = self._owner
    self._owner = msg.sender
    self._pending_owner = empty(address)
    log IAgentWallet.OwnershipTransferred(previous=previous, owner=msg.sender)


# --- views ---------------------------------------------------------------------------------------


@external
@view
def stream_pay() -> address:
    return _STREAM_PAY.address


@external
@view
def license() -> address:
    return _LICENSE.address


@external
@view
def owner() -> address:
    return self._owner


@external
@view
def pending_owner() -> address:
    return self._pending_owner


@external
@view
def guardian() -> address:
    return self._guardian


@external
@view
def paused() -> bool:
    return self._paused


@external
@view
def key(key: address) -> (uint256, IAgentWallet.Scope):
    """@return When it expires, 0 where it was never given or is revoked; and its scope."""
    word: uint256 = self._keys[key]
    return word & MASK_64, convert(word >> 64, IAgentWallet.Scope)


@external
@view
def lists() -> (bool, bool):
    """@return payees_only, offers_only."""
    return self._payees_only, self._offers_only


@external
@view
def is_payee_listed(payee: address) -> bool:
    return self._payees[payee]


@external
@view
def is_offer_listed(offer_id: bytes32) -> bool:
    return self._offers[offer_id]


@external
@view
def caps(token: address) -> IAgentWallet.Caps:
    found: uint256[4] = spending._caps(token)
    return IAgentWallet.Caps(
        payment=convert(found[0], uint96),
        hour=convert(found[1], uint96),
        day=convert(found[2], uint96),
        week=convert(found[3], uint96),
    )


@external
@view
def usage(token: address) -> IAgentWallet.Usage:
    """@return What counts against the caps now."""
    return IAgentWallet.Usage(
        open=spending._open(token),
        hour=spending.windows._spent(token, 0),
        day=spending.windows._spent(token, 1),
        week=spending.windows._spent(token, 2),
    )


@external
@view
def available(token: address) -> uint256:
    """@return The most that a key may commit at once now, were there as much money."""
    return spending._available(token)


@external
@view
def committed(token: address, id: bytes32) -> (uint256, uint256):
    """@return What counts as open for the stream and for the channel of this id."""
    return self._streams[token][id] & MASK_96, self._channels[token][id]


# --- inside --------------------------------------------------------------------------------------


@internal
@view
def _require_owner():
    assert msg.sender == self._owner, "wallet: not the owner"


@internal
@view
def _require_owner_or_guardian():
    assert msg.sender == self._owner or msg.sender == self._guardian, "wallet: not the owner or guardian"


@internal
@view
def _require_key(key: address, scope: IAgentWallet.Scope):
    word: uint256 = self._keys[key]
    assert block.timestamp < word & MASK_64, "wallet: no such key, or it has expired"
    assert convert(word >> 64, IAgentWallet.Scope) & scope != empty(IAgentWallet.Scope), "wallet: outside the key's scope"


@internal
@view
def _require_may_stop(account: address, scope: IAgentWallet.Scope):
    """@dev Stopping brings money back: no pause is in its way."""
    if account != self._owner:
        self._require_key(account, scope)


@internal
@view
def _require_may_use_licenses():
    """@dev Neither brings money back: a pause is in the way of keys."""
    if msg.sender != self._owner:
        self._require_key(msg.sender, IAgentWallet.Scope.LICENSES)
        assert not self._paused, "wallet: paused"


@internal
def _set_key(key: address, expires_at: uint256, scope: IAgentWallet.Scope):
    assert key != empty(address), "wallet: zero key"
    assert expires_at <= MASK_64, "wallet: expires too late"
    assert expires_at > block.timestamp, "wallet: expires in the past"
    assert scope != empty(IAgentWallet.Scope), "wallet: empty scope"
    self._keys[key] = expires_at | (convert(scope, uint256) << 64)
    log IAgentWallet.KeyChanged(key=key, expires_at=expires_at, scope=convert(scope, uint256), by=msg.sender)


@internal
@view
def _id(payee: address, token: address, session_key: address, offer_id: bytes32) -> bytes32:
    """@dev StreamPay's `stream_id`, with the wallet as payer."""
    return keccak256(abi_encode(self, payee, token, session_key, offer_id))


@internal
@view
def _digest(struct_hash: bytes32) -> bytes32:
    """@dev In StreamPay's domain."""
    return keccak256(concat(b"\x19\x01", staticcall _STREAM_PAY.domain_separator(), struct_hash))


@internal
@view
def _signer(digest: bytes32, signature: Bytes[1024]) -> address:
    assert len(signature) == 65, "wallet: signature is not 65 bytes"
    signer: address = signatures._recover(digest, slice(signature, 0, 65))
    assert signer != empty(address), "wallet: not a signature"
    return signer


@internal
def _commit(
    key: address,
    scope: IAgentWallet.Scope,
    id: bytes32,
    payee: address,
    token: address,
    offer_id: bytes32,
    amount: uint256,
):
    """@notice Count what a key is about to spend, if nothing forbids it."""
    self._require_key(key, scope)
    assert not self._paused, "wallet: paused"
    assert not self._payees_only or self._payees[payee], "wallet: payee not on the list"
    assert not self._offers_only or self._offers[offer_id], "wallet: offer not on the list"
    spending._commit(token, amount)
    log IAgentWallet.Committed(
        id=id, token=token, key=key, payee=payee, offer_id=offer_id, amount=amount
    )


@internal
def _commit_stream(
    key: address,
    payee: address,
    token: address,
    session_key: address,
    offer_id: bytes32,
    rate: uint96,
    duration: uint40,
) -> uint256:
    """@return The deposit."""
    id: bytes32 = self._id(payee, token, session_key, offer_id)
    self._release_before(id, token)
    flows: uint256 = convert(rate, uint256)
    deposit: uint256 = accrual._flow(flows, convert(duration, uint256))
    self._commit(key, IAgentWallet.Scope.STREAMS, id, payee, token, offer_id, deposit)
    self._streams[token][id] = deposit | (block.timestamp << 96) | (flows << 136)
    return deposit


@internal
def _commit_channel(
    key: address, payee: address, token: address, session_key: address, offer_id: bytes32, deposit: uint256
):
    id: bytes32 = self._id(payee, token, session_key, offer_id)
    self._release_before(id, token)
    self._commit(key, IAgentWallet.Scope.CHANNELS, id, payee, token, offer_id, deposit)
    self._channels[token][id] = deposit


@internal
def _pay_license(product: uint256, tier: ICatalogue.Tier, quantity: uint256, max_cost: uint256) -> uint256:
    """
    @notice Count the price of a licence as spent, and let License take it.
    @return The coins to send along.
    """
    figures: ICatalogue.Figures = staticcall _CATALOGUE.figures_of(product)
    cost: uint256 = staticcall _CATALOGUE.cost_of(product, tier, quantity)
    assert cost <= max_cost, "wallet: dearer than the bound"
    id: bytes32 = convert(product, bytes32)
    self._commit(msg.sender, IAgentWallet.Scope.LICENSES, id, figures.publisher, figures.token, id, cost)
    self._release(id, figures.token, cost, cost)
    coins: uint256 = self._fund(figures.token, cost, max_value(uint256))
    if cost > coins:
        # License takes exactly this, or the whole call reverts: nothing is allowed afterwards.
        extcall _STREAM_PAY.allow_spender(_LICENSE.address, figures.token, cost - coins)
    return coins


@internal
def _release_before(id: bytes32, token: address):
    """
    @notice Make room for what is about to be opened under `id`.
    @dev What was opened last is over by now where an agent buys one thing after the other, so that it never needs `release`.
    """
    latest: bytes32 = self._latest[token]
    count: uint256 = self._release_finished(latest, token)
    if id != latest:
        count += self._release_finished(id, token)
        self._latest[token] = id


@internal
def _release_finished(id: bytes32, token: address) -> uint256:
    """
    @notice Stop counting the stream and the channel of this id as open, where they are over.
    @return How many of the two were.
    """
    count: uint256 = 0
    word: uint256 = self._streams[token][id]
    if word != 0:
        running: IStreamPay.Stream = staticcall _STREAM_PAY.stream(id)
        if running.rate == 0 or convert(running.end, uint256) <= block.timestamp:
            # StreamPay forgets what a stream has paid: at most what has flowed by now, and all where it ran to its end.
            committed: uint256 = word & MASK_96
            spent: uint256 = committed
            if running.rate == 0:
                seconds: uint256 = max(block.timestamp - ((word >> 96) & MASK_40), 1)
                spent = min(committed, accrual._flow(word >> 136, seconds))
            self._streams[token][id] = 0
            self._release(id, token, committed, spent)
            count += 1
    committed: uint256 = self._channels[token][id]
    if committed != 0:
        channel: IStreamPay.Channel = staticcall _STREAM_PAY.channel(id)
        if channel.finished:
            # What strangers added to the deposit is not spent before what the wallet did.
            refund: uint256 = convert(channel.deposit - channel.settled, uint256)
            self._channels[token][id] = 0
            self._release(id, token, committed, committed - min(committed, refund))
            count += 1
    return count


@internal
def _release(id: bytes32, token: address, committed: uint256, spent: uint256):
    spending._release(token, committed, spent)
    log IAgentWallet.Released(id=id, token=token, committed=committed, spent=spent)


@internal
def _cancel(payee: address, token: address, session_key: address, offer_id: bytes32) -> uint256:
    """@dev StreamPay calls nobody here, so that the vault balance grows by the refund and nothing else."""
    id: bytes32 = self._id(payee, token, session_key, offer_id)
    committed: uint256 = self._streams[token][id] & MASK_96
    before: uint256 = staticcall _STREAM_PAY.balance_of(token, self)
    extcall _STREAM_PAY.cancel(payee, token, session_key, offer_id, empty(address))
    refund: uint256 = staticcall _STREAM_PAY.balance_of(token, self) - before
    self._streams[token][id] = 0
    self._release(id, token, committed, committed - min(committed, refund))
    return refund


@internal
def _fund(token: address, amount: uint256, from_vault: uint256) -> uint256:
    """
    @notice See that StreamPay can take what the vault balance, up to `from_vault`, does not cover of `amount`.
    @return The coins to send along.
    """
    held: uint256 = staticcall _STREAM_PAY.balance_of(token, self)
    lacking: uint256 = amount - min(min(held, from_vault), amount)
    if lacking == 0:
        return 0
    if token == NATIVE:
        assert self.balance >= lacking, "wallet: too few coins"
        return lacking
    assert staticcall IERC20(token).balanceOf(self) >= lacking, "wallet: too few tokens"
    allowed: uint256 = staticcall IERC20(token).allowance(self, _STREAM_PAY.address)
    if allowed < lacking:
        # Some tokens refuse to change an allowance that is not zero. StreamPay takes nothing but what the wallet asks it to.
        if allowed > 0:
            self._approve(token, 0)
        self._approve(token, max_value(uint256))
    return 0


@internal
def _approve(token: address, amount: uint256):
    approved: bool = extcall IERC20(token).approve(_STREAM_PAY.address, amount, default_return_value=True)
    assert approved, "wallet: token refused the approval"


@internal
def _fund_vault(token: address, amount: uint256, from_vault: uint256):
    """@notice As `_fund`, for an order: StreamPay takes coins from the vault balance alone."""
    coins: uint256 = self._fund(token, amount, from_vault)
    if coins > 0:
        arrived: uint256 = extcall _STREAM_PAY.deposit(NATIVE, coins, value=coins)
