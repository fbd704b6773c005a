"""AgentWallet.vy. Methods as the contract names them, with the arguments of `penstock.chain.wallet_calls`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from penstock.accrual import flow
from penstock.caps import NO_LIMIT, Caps, Ledger
from penstock.chain.fake._rules.channels import ChannelRules
from penstock.chain.fake._rules.licences import LicenceRules
from penstock.chain.fake._rules.state import WalletState
from penstock.chain.fake._rules.streams import StreamRules
from penstock.chain.fake._rules.transaction import Refused, Rules, Transaction, require
from penstock.chain.fake._rules.vault import VaultRules
from penstock.errors import BadSignature
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
    StreamId,
    StreamKey,
    hex32,
)
from penstock.wallets import Beginning, Grant, Scope, WalletEvent
from penstock.wire.eip712 import cancel_digest, channel_order_digest, order_digest, recover

_NO_KEY = "wallet: no such key, or it has expired"


class WalletRules(Rules):
    def __init__(self, tx: Transaction, address: Address, wallet: WalletState | None = None) -> None:
        super().__init__(tx)
        self.address, self.wallet, self.caller = address, wallet or tx.state.wallets[address], tx.sender

    def save(self) -> None:
        self.state.wallets[self.address] = self.wallet

    def log(self, name: str, **values: Any) -> None:
        place = Place(*self.tx.place, len(self.wallet.events))
        self.set(events=(*self.wallet.events, WalletEvent(place, name, values)))

    def set(self, **changes: Any) -> None:
        self.wallet = replace(self.wallet, **changes)

    def begin(self, beginning: Beginning) -> None:
        require(beginning.owner != ZERO_ADDRESS, "wallet: zero owner")
        self.log("Initialized", owner=beginning.owner, guardian=beginning.guardian)
        for token, caps in beginning.limits:
            self._put_caps(token, caps)
        for grant in beginning.grants:
            self._put_key(grant)

    # Keys: streams and channels.

    def open(self, payee: str, token: str, speaker: str, offer: bytes, rate: int, duration: int) -> None:
        key = self._key(payee, token, speaker, offer)
        deposit = flow(rate, duration)
        self._commit_stream(self.caller, key, rate, duration)
        self._as_payer(key.token, deposit, lambda: StreamRules(self.tx).open(key, rate, duration, ALL))

    def open_for(self, order: tuple[Any, ...], signature: bytes) -> None:
        payer, payee, token, speaker, offer, rate, duration, from_vault, nonce, deadline = order
        require(payer == self.address, "wallet: another payer")
        key = self._key(payee, token, speaker, offer)
        signed = Order(key, rate, duration, from_vault, nonce, deadline)
        digest = order_digest(self.tx.contracts.stream_pay_domain, signed)
        self._commit_stream(self._signer(digest, signature), key, rate, duration)
        self._order(key, deadline, nonce)
        self._as_payer(
            key.token, flow(rate, duration), lambda: StreamRules(self.tx).open(key, rate, duration, from_vault)
        )

    def top_up(self, payee: str, token: str, speaker: str, offer: bytes, duration: int) -> None:
        key = self._key(payee, token, speaker, offer)
        require(key.id in self.wallet.streams, "wallet: no such stream")
        running = self.state.streams.get(key.id)
        cost = running.cost(running.end + duration) - running.deposit if running else 0
        self._commit(self.caller, Scope.STREAMS, key, cost)
        _, committed, start, rate = self.wallet.streams[key.id]
        self.set(streams=self.wallet.streams | {key.id: (token, committed + cost, start, rate)})
        self._as_payer(key.token, cost, lambda: StreamRules(self.tx).top_up(key, self.address, duration, ALL))

    def cancel(self, payee: str, token: str, speaker: str, offer: bytes) -> None:
        self._require_may_stop(self.caller, Scope.STREAMS)
        self._stop(self._key(payee, token, speaker, offer))

    def cancel_for(self, payee: str, token: str, speaker: str, offer: bytes, deadline: int, signature: bytes) -> None:
        require(self.now <= deadline, "wallet: order expired")
        key = self._key(payee, token, speaker, offer)
        start = self.wallet.streams.get(key.id, ("", 0, 0, 0))[2]
        digest = cancel_digest(self.tx.contracts.stream_pay_domain, key.id, start, ZERO_ADDRESS, deadline)
        self._require_may_stop(self._signer(digest, signature), Scope.STREAMS)
        self._stop(key)

    def open_channel(self, payee: str, token: str, speaker: str, offer: bytes, deposit: int) -> None:
        key = self._key(payee, token, speaker, offer)
        self._commit_channel(self.caller, key, deposit)
        self._as_payer(key.token, deposit, lambda: ChannelRules(self.tx).open(key, deposit, ALL))

    def open_channel_for(self, order: tuple[Any, ...], signature: bytes) -> None:
        payer, payee, token, speaker, offer, deposit, from_vault, nonce, deadline = order
        require(payer == self.address, "wallet: another payer")
        key = self._key(payee, token, speaker, offer)
        signed = ChannelOrder(key, deposit, from_vault, nonce, deadline)
        digest = channel_order_digest(self.tx.contracts.stream_pay_domain, signed)
        self._commit_channel(self._signer(digest, signature), key, deposit)
        self._order(key, deadline, nonce)
        self._as_payer(key.token, deposit, lambda: ChannelRules(self.tx).open(key, deposit, from_vault))

    def top_up_channel(self, payee: str, token: str, speaker: str, offer: bytes, amount: int) -> None:
        key = self._key(payee, token, speaker, offer)
        require(key.id in self.wallet.channels, "wallet: no such channel")
        self._commit(self.caller, Scope.CHANNELS, key, amount)
        committed = self.wallet.channels[key.id][1] + amount
        self.set(channels=self.wallet.channels | {key.id: (token, committed)})
        self._as_payer(key.token, amount, lambda: ChannelRules(self.tx).top_up(key, amount, ALL))

    def request_close(self, payee: str, token: str, speaker: str, offer: bytes) -> None:
        self._require_may_stop(self.caller, Scope.CHANNELS)
        ChannelRules(self.tx).request_close(self._key(payee, token, speaker, offer))

    def reclaim(self, payee: str, token: str, speaker: str, offer: bytes) -> None:
        key = self._key(payee, token, speaker, offer)
        before = self._vault(token)
        ChannelRules(self.tx).reclaim(key, ZERO_ADDRESS)
        self._forget(key.id, token, self._vault(token) - before, stream=False)

    # Keys: licences.

    def buy_license(
        self, product: int, release: int, tier: int, quantity: int, max_cost: int, session_key: str
    ) -> None:
        number = ProductId(product)
        self._pay_license(number, Tier(tier), quantity, max_cost)
        LicenceRules(self.tx).buy(number, release, Tier(tier), quantity, max_cost, self.address, Address(session_key))

    def renew_license(self, license: int, quantity: int, max_cost: int) -> None:
        held = self.state.licences.get(LicenceId(license))
        if held is None or held.licensee != self.address:
            raise Refused("wallet: not its licence")
        self._pay_license(held.product, held.tier, quantity, max_cost)
        LicenceRules(self.tx).renew(LicenceId(license), quantity, max_cost)

    def refund_license(self, license: int) -> None:
        self._require_may_stop(self.caller, Scope.LICENSES)
        self.tx.sender = self.address
        LicenceRules(self.tx).refund(LicenceId(license))

    def complete_license(self, license: int) -> None:
        self._use_licenses()
        LicenceRules(self.tx).complete(LicenceId(license))

    def set_license_key(self, license: int, session_key: str) -> None:
        self._use_licenses()
        require(session_key != ZERO_ADDRESS, "wallet: zero key")
        LicenceRules(self.tx).set_session_key(LicenceId(license), Address(session_key))

    def _use_licenses(self) -> None:
        """Go on as the wallet, where the caller may."""
        self._require_may_stop(self.caller, Scope.LICENSES)
        require(self.caller == self.wallet.owner or not self.wallet.paused, "wallet: paused")
        self.tx.sender = self.address

    def _pay_license(self, number: ProductId, tier: Tier, quantity: int, max_cost: int) -> None:
        found = self.state.products.get(number)
        if found is None:
            raise Refused("license: not for sale")
        cost, token, name = found.prices[tier.place] * quantity, found.listing.token, hex32(number.to_bytes(32))
        require(cost <= max_cost, "wallet: dearer than the bound")
        key = StreamKey(self.address, found.publisher, token, ZERO_ADDRESS, OfferId(name))
        self._commit(self.caller, Scope.LICENSES, key, cost, StreamId(name))
        released = self._ledger(token).release(cost, cost, self.now)
        self.set(ledgers=self.wallet.ledgers | {token: released})
        self.log("Released", id=name, token=token, committed=cost, spent=cost)
        self.state.spendable[token, self.address, self.tx.contracts.license] = cost
        self._as_payer(token, cost, lambda: None)

    def release(self, token: str, ids: Sequence[bytes]) -> None:
        count = sum(self._release_finished(StreamId(hex32(id)), token) for id in ids)
        require(count > 0, "wallet: nothing to release")

    # The owner and the guardian.

    def withdraw(self, token: str, amount: int, to: str) -> None:
        self._require_owner()
        require(to != ZERO_ADDRESS, "wallet: zero receiver")
        self.log("Withdrawn", token=token, to=to, amount=amount, from_vault=False)
        refused = "assets: receiver refused" if token == NATIVE else "no reason given"
        require(self.tx.held(Address(token), self.address) >= amount, refused)
        self.tx.move(Address(token), self.address, Address(to), amount)

    def withdraw_vault(self, token: str, amount: int, to: str) -> None:
        self._require_owner()
        self.log("Withdrawn", token=token, to=to, amount=amount, from_vault=True)
        self.tx.sender = self.address
        VaultRules(self.tx).take_out(Address(token), amount, Address(to))

    def set_caps(self, token: str, caps: tuple[int, int, int, int]) -> None:
        self._require_owner()
        self._put_caps(token, Caps(*caps))

    def set_key(self, key: str, expires_at: int, scope: int) -> None:
        self._require_owner()
        self._put_key(Grant(Address(key), expires_at, Scope(scope)))

    def revoke_key(self, key: str) -> None:
        self._require_owner_or_guardian()
        self.set(keys=tuple(one for one in self.wallet.keys if one.key != key))
        self.log("KeyChanged", key=key, expires_at=0, scope=0, by=self.caller)

    def allow_payee(self, payee: str, allowed: bool) -> None:
        self._require_owner()
        self.set(payees=self.wallet.payees | {payee} if allowed else self.wallet.payees - {payee})
        self.log("PayeeChanged", payee=payee, allowed=allowed)

    def allow_offer(self, offer: bytes, allowed: bool) -> None:
        self._require_owner()
        name = hex32(offer)
        self.set(offers=self.wallet.offers | {name} if allowed else self.wallet.offers - {name})
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
        require(self.caller == self.wallet.pending_owner, "wallet: not the pending owner")
        previous = self.wallet.owner
        self.set(owner=self.caller, pending_owner=ZERO_ADDRESS)
        self.log("OwnershipTransferred", previous=previous, owner=self.caller)

    # Inside.

    def _put_caps(self, token: str, caps: Caps) -> None:
        self.set(ledgers=self.wallet.ledgers | {token: replace(self._ledger(token), caps=caps)})
        names = ("payment", "hour", "day", "week")
        self.log("CapsChanged", token=token, **dict(zip(names, caps.as_tuple(), strict=True)))

    def _put_key(self, grant: Grant) -> None:
        require(grant.key != ZERO_ADDRESS, "wallet: zero key")
        require(grant.expires_at < 2**64, "wallet: expires too late")
        require(grant.expires_at > self.now, "wallet: expires in the past")
        require(bool(grant.scope), "wallet: empty scope")
        self.set(keys=(*(one for one in self.wallet.keys if one.key != grant.key), grant))
        given = {"key": grant.key, "expires_at": grant.expires_at, "scope": int(grant.scope)}
        self.log("KeyChanged", **given, by=self.caller)

    def _ledger(self, token: str) -> Ledger:
        return self.wallet.ledgers.get(token, Ledger())

    def _key(self, payee: str, token: str, speaker: str, offer: bytes) -> StreamKey:
        return StreamKey(self.address, Address(payee), Address(token), Address(speaker), OfferId(hex32(offer)))

    def _vault(self, token: str) -> int:
        return self.state.vault.get((Address(token), self.address), 0)

    def _signer(self, digest: bytes, signature: bytes) -> str:
        require(len(signature) == 65, "wallet: signature is not 65 bytes")
        try:
            return recover(digest, signature)
        except BadSignature:
            raise Refused("wallet: not a signature") from None

    def _order(self, key: StreamKey, deadline: int, nonce: int) -> None:
        self.tx.require_order(deadline)
        self.tx.use_nonce(key.payer, nonce)

    def _require_owner(self) -> None:
        require(self.caller == self.wallet.owner, "wallet: not the owner")

    def _require_owner_or_guardian(self) -> None:
        known = self.caller in (self.wallet.owner, self.wallet.guardian)
        require(known, "wallet: not the owner or guardian")

    def _require_key(self, key: str, scope: Scope) -> None:
        grant = self.wallet.grant(key)
        require(self.now < grant.expires_at, _NO_KEY)
        require(scope in grant.scope, "wallet: outside the key's scope")

    def _require_may_stop(self, account: str, scope: Scope) -> None:
        if account != self.wallet.owner:
            self._require_key(account, scope)

    def _commit(self, signer: str, scope: Scope, key: StreamKey, amount: int, id: StreamId | None = None) -> None:
        state, ledger = self.wallet, self._ledger(key.token)
        self._require_key(signer, scope)
        require(not state.paused, "wallet: paused")
        require(not state.lists[0] or key.payee in state.payees, "wallet: payee not on the list")
        require(not state.lists[1] or key.offer_id in state.offers, "wallet: offer not on the list")
        excess = ledger.caps.excess(min(amount, NO_LIMIT + 1), ledger.usage(self.now))
        require(not excess, f"wallet: above the cap per {excess}")
        self.set(ledgers=state.ledgers | {key.token: ledger.commit(amount)})
        named = {"id": id or key.id, "token": key.token, "key": signer, "payee": key.payee, "offer_id": key.offer_id}
        self.log("Committed", **named, amount=amount)

    def _commit_stream(self, signer: str, key: StreamKey, rate: int, duration: int) -> None:
        self._release_before(key)
        deposit = flow(rate, duration)
        self._commit(signer, Scope.STREAMS, key, deposit)
        self.set(streams=self.wallet.streams | {key.id: (key.token, deposit, self.now, rate)})

    def _commit_channel(self, signer: str, key: StreamKey, deposit: int) -> None:
        self._release_before(key)
        self._commit(signer, Scope.CHANNELS, key, deposit)
        self.set(channels=self.wallet.channels | {key.id: (key.token, deposit)})

    def _release_before(self, key: StreamKey) -> None:
        for id in dict.fromkeys((self.wallet.latest.get(key.token), key.id)):
            if id is not None:
                self._release_finished(id, key.token)
        self.set(latest=self.wallet.latest | {key.token: key.id})

    def _release_finished(self, id: StreamId, token: str) -> int:
        count = 0
        counted = self.wallet.streams.get(id)
        if counted is not None and counted[0] == token:
            _, committed, start, rate = counted
            running = self.state.streams.get(id)
            if running is None:
                spent = min(committed, flow(rate, max(self.now - start, 1)))
                self._forget(id, token, committed - spent, stream=True)
                count += 1
            elif running.end <= self.now:
                self._forget(id, token, 0, stream=True)
                count += 1
        channel = self.state.channels.get(id)
        known = self.wallet.channels.get(id)
        if known is not None and known[0] == token and channel is not None and channel.finished:
            self._forget(id, token, channel.deposit - channel.settled, stream=False)
            count += 1
        return count

    def _stop(self, key: StreamKey) -> None:
        before = self._vault(key.token)
        StreamRules(self.tx).stop(key, ALL, ZERO_ADDRESS)
        self._forget(key.id, key.token, self._vault(key.token) - before, stream=True)

    def _forget(self, id: StreamId, token: str, refund: int, *, stream: bool) -> None:
        committed = 0
        if stream:
            committed = self.wallet.streams.get(id, (token, 0, 0, 0))[1]
            self.set(streams={name: one for name, one in self.wallet.streams.items() if name != id})
        else:
            committed = self.wallet.channels.get(id, (token, 0))[1]
            self.set(channels={name: one for name, one in self.wallet.channels.items() if name != id})
        spent = committed - min(committed, refund)
        released = self._ledger(token).release(committed, spent, self.now)
        self.set(ledgers=self.wallet.ledgers | {token: released})
        self.log("Released", id=id, token=token, committed=committed, spent=spent)

    def _as_payer(self, token: Address, amount: int, act: Callable[[], None]) -> None:
        """Have StreamPay do something that costs the wallet so much, from the vault balance and then its hands."""
        lacking = max(0, amount - self._vault(token))
        what = "coins" if token == NATIVE else "tokens"
        require(self.tx.held(token, self.address) >= lacking, f"wallet: too few {what}")
        if token == NATIVE and lacking:
            self.tx.move(token, self.address, self.tx.contracts.stream_pay, lacking)
            VaultRules(self.tx).credit(token, self.address, lacking)
        self.state.allowances[token, self.address] = ALL
        self.tx.sender = self.address
        act()
