"""AgentWallet.vy's and its factory's rules in memory, for `penstock.chain.fake`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from eth_utils.crypto import keccak

from penstock.accrual import flow
from penstock.caps import NO_LIMIT, Caps, Ledger, Usage
from penstock.chain._fake_licences import Shop
from penstock.chain.calls import Call
from penstock.chain.refusals import as_cap_exceeded
from penstock.errors import BadSignature, NotFound, Reverted
from penstock.licences import LicenceId, ProductId, Tier
from penstock.types import (
    ALL,
    NATIVE,
    ZERO_ADDRESS,
    Address,
    ChannelOrder,
    OfferId,
    Order,
    Place,
    Receipt,
    StreamId,
    StreamKey,
    address,
    hex32,
)
from penstock.wallets import Beginning, Grant, Scope, Wallet, WalletEvent
from penstock.wire.eip712 import cancel_digest, channel_order_digest, order_digest, recover

if TYPE_CHECKING:
    from penstock.chain.fake import _State, _StreamPay
    from penstock.chain.port import Account

_NO_KEY = "wallet: no such key, or it has expired"


@dataclass(frozen=True)
class FakeWallet:
    """One wallet's storage. Immutable, as all of the fake chain's state."""

    owner: Address
    guardian: Address
    pending_owner: Address = ZERO_ADDRESS
    paused: bool = False
    lists: tuple[bool, bool] = (False, False)
    payees: frozenset[str] = frozenset()
    offers: frozenset[str] = frozenset()
    keys: tuple[Grant, ...] = ()
    ledgers: dict[str, Ledger] = field(default_factory=dict)
    """By token; never changed in place."""
    streams: dict[StreamId, tuple[str, int, int, int]] = field(default_factory=dict)
    """Token, committed, start, rate."""
    channels: dict[StreamId, tuple[str, int]] = field(default_factory=dict)
    latest: dict[str, StreamId] = field(default_factory=dict)
    events: tuple[WalletEvent, ...] = ()

    def grant(self, key: str) -> Grant:
        return next((one for one in self.keys if one.key == key), Grant(Address(key), 0, Scope(0)))


class FakeWallets:
    """Mixed into `FakeChain`, which gives `_latest` and `_transact`."""

    wallet_factory: Address

    if TYPE_CHECKING:

        async def _latest(self) -> Any: ...
        async def _transact(
            self,
            account: Account,
            doing: str,
            act: Callable[[_StreamPay], None],
            value: int = 0,
            *,
            to: Address | None = None,
        ) -> Receipt: ...

    async def is_wallet(self, account: Address) -> bool:
        return account in (await self._latest()).state.wallets

    async def wallet(self, wallet: Address) -> Wallet:
        found = await self._wallet(wallet)
        owners = found.owner, found.pending_owner, found.guardian
        return Wallet(wallet, *owners, found.paused, *found.lists)

    async def wallet_address(self, beginning: Beginning) -> Address:
        return address("0x" + keccak(text=repr(beginning.as_tuple()))[-20:].hex())

    async def wallet_caps(self, wallet: Address, token: Address) -> tuple[Caps, Usage]:
        found = (await self._wallet(wallet)).ledgers.get(token, Ledger())
        return found.caps, found.usage((await self._latest()).block.timestamp)

    async def wallet_grant(self, wallet: Address, key: Address) -> Grant:
        return (await self._wallet(wallet)).grant(key)

    async def wallet_committed(self, wallet: Address, token: Address, ids: Sequence[StreamId]) -> list[tuple[int, int]]:
        found = await self._wallet(wallet)
        streams = (found.streams.get(id, ("", 0, 0, 0)) for id in ids)
        channels = (found.channels.get(id, ("", 0)) for id in ids)
        return [
            (stream[1] if stream[0] == token else 0, channel[1] if channel[0] == token else 0)
            for stream, channel in zip(streams, channels, strict=True)
        ]

    async def wallet_events(self, wallet: Address, first: int, last: int) -> list[WalletEvent]:
        return [event for event in (await self._wallet(wallet)).events if first <= event.place.block <= last]

    async def create_wallet(self, sender: Account, beginning: Beginning) -> Receipt:
        made = await self.wallet_address(beginning)

        def act(pay: _StreamPay) -> None:
            if made in pay.state.wallets:
                return
            one = _One(pay, made, FakeWallet(beginning.owner, beginning.guardian))
            one.require(beginning.owner != ZERO_ADDRESS, "wallet: zero owner")
            one.log("Initialized", owner=beginning.owner, guardian=beginning.guardian)
            for token, caps in beginning.limits:
                one.put_caps(token, caps)
            for grant in beginning.grants:
                one.put_key(grant)
            one.save()

        return await self._transact(sender, "creating the wallet", act, to=self.wallet_factory)

    async def at_wallet(self, sender: Account, wallet: Address, call: Call) -> Receipt:
        await self._wallet(wallet)

        def act(pay: _StreamPay) -> None:
            one = _One(pay, wallet, pay.state.wallets[wallet])
            getattr(one, call.function)(*call.args)
            one.save()

        try:
            return await self._transact(sender, call.doing, act, to=wallet)
        except Reverted as error:
            raise as_cap_exceeded(error, wallet) or error from None

    async def _wallet(self, wallet: Address) -> FakeWallet:
        found: FakeWallet | None = (await self._latest()).state.wallets.get(wallet)
        if found is None:
            raise NotFound(
                f"{wallet} is no wallet that this deployment made: check --wallet, or make one with "
                "`penstock wallet create`"
            )
        return found


class _One:
    """One call to a wallet under way; methods as the contract names them."""

    def __init__(self, pay: _StreamPay, wallet: Address, state: FakeWallet) -> None:
        self.pay, self.address, self.state = pay, wallet, state
        self.caller = pay.sender

    def save(self) -> None:
        self.pay.state.wallets[self.address] = self.state

    def require(self, condition: bool, reason: str) -> None:
        self.pay.require(condition, reason)

    def log(self, name: str, **values: Any) -> None:
        place = Place(*self.pay.place, len(self.state.events))
        self.set(events=(*self.state.events, WalletEvent(place, name, values)))

    def set(self, **changes: Any) -> None:
        self.state = replace(self.state, **changes)

    # Keys: streams and channels.

    def open(self, payee: str, token: str, speaker: str, offer: bytes, rate: int, duration: int) -> None:
        key = self._key(payee, token, speaker, offer)
        deposit = flow(rate, duration)
        self._commit_stream(self.caller, key, rate, duration)
        self._as_payer(key.token, deposit, lambda: self.pay.open(key, rate, duration, ALL))

    def open_for(self, order: tuple[Any, ...], signature: bytes) -> None:
        payer, payee, token, speaker, offer, rate, duration, from_vault, nonce, deadline = order
        self.require(payer == self.address, "wallet: another payer")
        key = self._key(payee, token, speaker, offer)
        signed = Order(key, rate, duration, from_vault, nonce, deadline)
        digest = order_digest(self.pay.chain.stream_pay_domain, signed)
        self._commit_stream(self._signer(digest, signature), key, rate, duration)
        self._order(key, deadline, nonce)
        self._as_payer(key.token, flow(rate, duration), lambda: self.pay.open(key, rate, duration, from_vault))

    def top_up(self, payee: str, token: str, speaker: str, offer: bytes, duration: int) -> None:
        key = self._key(payee, token, speaker, offer)
        self.require(key.id in self.state.streams, "wallet: no such stream")
        running = self.pay.state.streams.get(key.id)
        cost = running.cost(running.end + duration) - running.deposit if running else 0
        self._commit(self.caller, Scope.STREAMS, key, cost)
        _, committed, start, rate = self.state.streams[key.id]
        self.set(streams=self.state.streams | {key.id: (token, committed + cost, start, rate)})
        self._as_payer(key.token, cost, lambda: self.pay.top_up(key, self.address, duration, ALL))

    def cancel(self, payee: str, token: str, speaker: str, offer: bytes) -> None:
        self._require_may_stop(self.caller, Scope.STREAMS)
        self._stop(self._key(payee, token, speaker, offer))

    def cancel_for(self, payee: str, token: str, speaker: str, offer: bytes, deadline: int, signature: bytes) -> None:
        self.require(self.pay.now <= deadline, "wallet: order expired")
        key = self._key(payee, token, speaker, offer)
        start = self.state.streams.get(key.id, ("", 0, 0, 0))[2]
        digest = cancel_digest(self.pay.chain.stream_pay_domain, key.id, start, ZERO_ADDRESS, deadline)
        self._require_may_stop(self._signer(digest, signature), Scope.STREAMS)
        self._stop(key)

    def open_channel(self, payee: str, token: str, speaker: str, offer: bytes, deposit: int) -> None:
        key = self._key(payee, token, speaker, offer)
        self._commit_channel(self.caller, key, deposit)
        self._as_payer(key.token, deposit, lambda: self.pay.open_channel(key, deposit, ALL))

    def open_channel_for(self, order: tuple[Any, ...], signature: bytes) -> None:
        payer, payee, token, speaker, offer, deposit, from_vault, nonce, deadline = order
        self.require(payer == self.address, "wallet: another payer")
        key = self._key(payee, token, speaker, offer)
        signed = ChannelOrder(key, deposit, from_vault, nonce, deadline)
        digest = channel_order_digest(self.pay.chain.stream_pay_domain, signed)
        self._commit_channel(self._signer(digest, signature), key, deposit)
        self._order(key, deadline, nonce)
        self._as_payer(key.token, deposit, lambda: self.pay.open_channel(key, deposit, from_vault))

    def top_up_channel(self, payee: str, token: str, speaker: str, offer: bytes, amount: int) -> None:
        key = self._key(payee, token, speaker, offer)
        self.require(key.id in self.state.channels, "wallet: no such channel")
        self._commit(self.caller, Scope.CHANNELS, key, amount)
        committed = self.state.channels[key.id][1] + amount
        self.set(channels=self.state.channels | {key.id: (token, committed)})
        self._as_payer(key.token, amount, lambda: self.pay.top_up_channel(key, amount, ALL))

    def request_close(self, payee: str, token: str, speaker: str, offer: bytes) -> None:
        self._require_may_stop(self.caller, Scope.CHANNELS)
        self.pay.request_close(self._key(payee, token, speaker, offer))

    def reclaim(self, payee: str, token: str, speaker: str, offer: bytes) -> None:
        key = self._key(payee, token, speaker, offer)
        before = self._vault(token)
        self.pay.reclaim(key, ZERO_ADDRESS)
        self._forget(key.id, token, self._vault(token) - before, stream=False)

    # Keys: licences.

    def buy_license(
        self, product: int, release: int, tier: int, quantity: int, max_cost: int, session_key: str
    ) -> None:
        number = ProductId(product)
        self._pay_license(number, Tier(tier), quantity, max_cost)
        self._shop.buy(number, release, Tier(tier), quantity, max_cost, self.address, Address(session_key))

    def renew_license(self, license: int, quantity: int, max_cost: int) -> None:
        held = self.pay.state.licences.get(LicenceId(license))
        if held is None or held.licensee != self.address:
            self.require(False, "wallet: not its licence")
            return
        self._pay_license(held.product, held.tier, quantity, max_cost)
        self._shop.renew(LicenceId(license), quantity, max_cost)

    def refund_license(self, license: int) -> None:
        self._require_may_stop(self.caller, Scope.LICENSES)
        self.pay.sender = self.address
        self._shop.refund(LicenceId(license))

    @property
    def _shop(self) -> Shop:
        chain = self.pay.chain
        return Shop(self.pay, chain.license, chain.license_domain, self.pay.require)

    def _pay_license(self, number: ProductId, tier: Tier, quantity: int, max_cost: int) -> None:
        found = self.pay.state.products.get(number)
        if found is None:
            self.require(False, "license: not for sale")
            return
        cost, token, name = found.prices[tier.place] * quantity, found.listing.token, hex32(number.to_bytes(32))
        self.require(cost <= max_cost, "wallet: dearer than the bound")
        key = StreamKey(self.address, found.publisher, token, ZERO_ADDRESS, OfferId(name))
        self._commit(self.caller, Scope.LICENSES, key, cost, StreamId(name))
        released = self._ledger(token).release(cost, cost, self.pay.now)
        self.set(ledgers=self.state.ledgers | {token: released})
        self.log("Released", id=name, token=token, committed=cost, spent=cost)
        self.pay.state.spendable[token, self.address, self.pay.chain.license] = cost
        self._as_payer(token, cost, lambda: None)

    def release(self, token: str, ids: Sequence[bytes]) -> None:
        count = sum(self._release_finished(StreamId(hex32(id)), token) for id in ids)
        self.require(count > 0, "wallet: nothing to release")

    # The owner and the guardian.

    def withdraw(self, token: str, amount: int, to: str) -> None:
        self._require_owner()
        self.require(to != ZERO_ADDRESS, "wallet: zero receiver")
        self.log("Withdrawn", token=token, to=to, amount=amount, from_vault=False)
        refused = "assets: receiver refused" if token == NATIVE else "no reason given"
        self.require(self.pay.held(Address(token), self.address) >= amount, refused)
        self.pay.move(Address(token), self.address, Address(to), amount)

    def withdraw_vault(self, token: str, amount: int, to: str) -> None:
        self._require_owner()
        self.log("Withdrawn", token=token, to=to, amount=amount, from_vault=True)
        self.pay.sender = self.address
        self.pay.take_out(Address(token), amount, Address(to))

    def set_caps(self, token: str, caps: tuple[int, int, int, int]) -> None:
        self._require_owner()
        self.put_caps(token, Caps(*caps))

    def set_key(self, key: str, expires_at: int, scope: int) -> None:
        self._require_owner()
        self.put_key(Grant(Address(key), expires_at, Scope(scope)))

    def revoke_key(self, key: str) -> None:
        self._require_owner_or_guardian()
        self.set(keys=tuple(one for one in self.state.keys if one.key != key))
        self.log("KeyChanged", key=key, expires_at=0, scope=0, by=self.caller)

    def allow_payee(self, payee: str, allowed: bool) -> None:
        self._require_owner()
        self.set(payees=self.state.payees | {payee} if allowed else self.state.payees - {payee})
        self.log("PayeeChanged", payee=payee, allowed=allowed)

    def allow_offer(self, offer: bytes, allowed: bool) -> None:
        self._require_owner()
        name = hex32(offer)
        self.set(offers=self.state.offers | {name} if allowed else self.state.offers - {name})
        self.log("OfferChanged", offer_id=name, allowed=allowed)

    def set_lists(self, payees_only: bool, offers_only: bool) -> None:
        self._require_owner()
        self.set(lists=(payees_only, offers_only))
        self.log("ListsChanged", payees_only=payees_only, offers_only=offers_only)

    def pause(self) -> None:
        self._require_owner_or_guardian()
        self.set(paused=True)
        self.log("PauseChanged", paused=True, by=self.caller)

    def unpause(self) -> None:
        self._require_owner()
        self.set(paused=False)
        self.log("PauseChanged", paused=False, by=self.caller)

    def set_guardian(self, guardian: str) -> None:
        self._require_owner()
        self.set(guardian=Address(guardian))
        self.log("GuardianChanged", guardian=guardian)

    def transfer_ownership(self, to: str) -> None:
        self._require_owner()
        self.set(pending_owner=Address(to))
        self.log("OwnershipTransferStarted", owner=self.caller, pending_owner=to)

    def accept_ownership(self) -> None:
        self.require(self.caller == self.state.pending_owner, "wallet: not the pending owner")
        previous = self.state.owner
        self.set(owner=self.caller, pending_owner=ZERO_ADDRESS)
        self.log("OwnershipTransferred", previous=previous, owner=self.caller)

    # Inside.

    def put_caps(self, token: str, caps: Caps) -> None:
        self.set(ledgers=self.state.ledgers | {token: replace(self._ledger(token), caps=caps)})
        names = ("payment", "hour", "day", "week")
        self.log("CapsChanged", token=token, **dict(zip(names, caps.as_tuple(), strict=True)))

    def put_key(self, grant: Grant) -> None:
        self.require(grant.key != ZERO_ADDRESS, "wallet: zero key")
        self.require(grant.expires_at < 2**64, "wallet: expires too late")
        self.require(grant.expires_at > self.pay.now, "wallet: expires in the past")
        self.require(bool(grant.scope), "wallet: empty scope")
        self.set(keys=(*(one for one in self.state.keys if one.key != grant.key), grant))
        given = {"key": grant.key, "expires_at": grant.expires_at, "scope": int(grant.scope)}
        self.log("KeyChanged", **given, by=self.caller)

    def _ledger(self, token: str) -> Ledger:
        return self.state.ledgers.get(token, Ledger())

    def _key(self, payee: str, token: str, speaker: str, offer: bytes) -> StreamKey:
        return StreamKey(self.address, Address(payee), Address(token), Address(speaker), OfferId(hex32(offer)))

    def _vault(self, token: str) -> int:
        return self.pay.state.vault.get((Address(token), self.address), 0)

    def _signer(self, digest: bytes, signature: bytes) -> str:
        self.require(len(signature) == 65, "wallet: signature is not 65 bytes")
        signer: str = ZERO_ADDRESS
        try:
            signer = recover(digest, signature)
        except BadSignature:
            self.require(False, "wallet: not a signature")
        return signer

    def _order(self, key: StreamKey, deadline: int, nonce: int) -> None:
        self.pay.require_order(deadline)
        self.pay.use_nonce(key.payer, nonce)

    def _require_owner(self) -> None:
        self.require(self.caller == self.state.owner, "wallet: not the owner")

    def _require_owner_or_guardian(self) -> None:
        known = self.caller in (self.state.owner, self.state.guardian)
        self.require(known, "wallet: not the owner or guardian")

    def _require_key(self, key: str, scope: Scope) -> None:
        grant = self.state.grant(key)
        self.require(self.pay.now < grant.expires_at, _NO_KEY)
        self.require(scope in grant.scope, "wallet: outside the key's scope")

    def _require_may_stop(self, account: str, scope: Scope) -> None:
        if account != self.state.owner:
            self._require_key(account, scope)

    def _commit(self, signer: str, scope: Scope, key: StreamKey, amount: int, id: StreamId | None = None) -> None:
        state, ledger = self.state, self._ledger(key.token)
        self._require_key(signer, scope)
        self.require(not state.paused, "wallet: paused")
        self.require(not state.lists[0] or key.payee in state.payees, "wallet: payee not on the list")
        self.require(not state.lists[1] or key.offer_id in state.offers, "wallet: offer not on the list")
        excess = ledger.caps.excess(min(amount, NO_LIMIT + 1), ledger.usage(self.pay.now))
        self.require(not excess, f"wallet: above the cap per {excess}")
        self.set(ledgers=state.ledgers | {key.token: ledger.commit(amount)})
        named = {"id": id or key.id, "token": key.token, "key": signer, "payee": key.payee, "offer_id": key.offer_id}
        self.log("Committed", **named, amount=amount)

    def _commit_stream(self, signer: str, key: StreamKey, rate: int, duration: int) -> None:
        self._release_before(key)
        deposit = flow(rate, duration)
        self._commit(signer, Scope.STREAMS, key, deposit)
        self.set(streams=self.state.streams | {key.id: (key.token, deposit, self.pay.now, rate)})

    def _commit_channel(self, signer: str, key: StreamKey, deposit: int) -> None:
        self._release_before(key)
        self._commit(signer, Scope.CHANNELS, key, deposit)
        self.set(channels=self.state.channels | {key.id: (key.token, deposit)})

    def _release_before(self, key: StreamKey) -> None:
        for id in dict.fromkeys((self.state.latest.get(key.token), key.id)):
            if id is not None:
                self._release_finished(id, key.token)
        self.set(latest=self.state.latest | {key.token: key.id})

    def _release_finished(self, id: StreamId, token: str) -> int:
        count = 0
        counted = self.state.streams.get(id)
        if counted is not None and counted[0] == token:
            _, committed, start, rate = counted
            running = self.pay.state.streams.get(id)
            if running is None:
                spent = min(committed, flow(rate, max(self.pay.now - start, 1)))
                self._forget(id, token, committed - spent, stream=True)
                count += 1
            elif running.end <= self.pay.now:
                self._forget(id, token, 0, stream=True)
                count += 1
        channel = self.pay.state.channels.get(id)
        known = self.state.channels.get(id)
        if known is not None and known[0] == token and channel is not None and channel.finished:
            self._forget(id, token, channel.deposit - channel.settled, stream=False)
            count += 1
        return count

    def _stop(self, key: StreamKey) -> None:
        before = self._vault(key.token)
        self.pay.stop(key, ALL, ZERO_ADDRESS)
        self._forget(key.id, key.token, self._vault(key.token) - before, stream=True)

    def _forget(self, id: StreamId, token: str, refund: int, *, stream: bool) -> None:
        committed = 0
        if stream:
            committed = self.state.streams.get(id, (token, 0, 0, 0))[1]
            self.set(streams={name: one for name, one in self.state.streams.items() if name != id})
        else:
            committed = self.state.channels.get(id, (token, 0))[1]
            self.set(channels={name: one for name, one in self.state.channels.items() if name != id})
        spent = committed - min(committed, refund)
        released = self._ledger(token).release(committed, spent, self.pay.now)
        self.set(ledgers=self.state.ledgers | {token: released})
        self.log("Released", id=id, token=token, committed=committed, spent=spent)

    def _as_payer(self, token: Address, amount: int, act: Callable[[], None]) -> None:
        """Have StreamPay do something that costs the wallet so much, from the vault balance and then its hands."""
        state: _State = self.pay.state
        lacking = max(0, amount - self._vault(token))
        what = "coins" if token == NATIVE else "tokens"
        self.require(self.pay.held(token, self.address) >= lacking, f"wallet: too few {what}")
        if token == NATIVE and lacking:
            self.pay.move(token, self.address, self.pay.chain.stream_pay, lacking)
            self.pay.credit(token, self.address, lacking)
        state.allowances[token, self.address] = ALL
        self.pay.sender = self.address
        act()
