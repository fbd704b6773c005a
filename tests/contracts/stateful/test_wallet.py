"""AgentWallet against its twin: keys, caps, licences, hostile tokens, strangers, time

Every step is made on the chain and in `penstock.caps`; the call must revert with the reason that the twin gives, or
both must count the same. Beside them a sceptic believes neither: it adds up all that the wallet owns, locked or not,
and checks that no window ever lost more than its cap.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from penstock.accrual import RATE_SCALE, StreamState, flow
from penstock.caps import WINDOWS, Caps, Ledger
from penstock.channels import CLOSE_DELAY
from tests.contracts.harness import (
    COIN,
    MAX,
    NO_PERMIT,
    Actor,
    ChannelOrder,
    Order,
    Terms,
    domain_of,
    sign_cancel,
    sign_voucher,
    state_of,
)
from tests.fastchain import Chain, Contract, Reverted
from tests.profiles import COUNTS, PROFILE

OWNER, GUARDIAN, STRANGER, RELAYER = (
    Actor(f"wallet's {role}") for role in ("owner", "guardian", "stranger", "relayer")
)
KEYS = [Actor(f"wallet's key {number}") for number in range(3)]
PAYEES = [Actor("wallet's payee 1"), Actor("wallet's payee 2")]
WEALTH = 10**24
PUBLISHER = Actor("wallet's publisher")
DAY = 86_400
SCOPES = {"stream": 1, "channel": 2, "license": 4}
LARGEST = Caps(payment=40_000, hour=100_000, day=250_000, week=600_000)


@dataclass(frozen=True)
class World:
    evm: Chain
    pay: Contract
    wallet: Contract
    tokens: dict[str, Contract | None]
    reentrant: Contract
    license: Contract
    products: list[tuple[int, str, int]]
    """Subscriptions for a day: number, token, price. One of each two can be given back for a day."""


@pytest.fixture(scope="module")
def world(
    evm_of_module: Chain, deploy: Callable[..., Contract], pay: Contract, token: Contract, artifacts: Any
) -> World:
    evm, reentrant = evm_of_module, deploy("ReentrantToken")
    tokens: dict[str, Contract | None] = {COIN: None, token.address: token, reentrant.address: reentrant}
    catalogue = deploy("Catalogue")
    license = deploy("License", pay.address, catalogue.address, OWNER)
    factory = deploy("AgentWalletFactory", deploy("AgentWallet", pay.address, license.address).address)
    limits = [(address, LARGEST.as_tuple()) for address in tokens]
    grants = [(key, 2**64 - 1, 7) for key in (KEYS[0], KEYS[1], reentrant.address)]
    made = factory.create(OWNER, GUARDIAN, limits, grants, bytes(32), sender=OWNER)
    wallet = evm.at(made.result, artifacts["AgentWallet"][1])
    for account in (wallet.address, STRANGER):
        evm.set_balance(account, WEALTH)
        for contract in filter(None, tokens.values()):
            contract.mint(account, WEALTH, sender=OWNER)
    for contract in filter(None, tokens.values()):
        contract.approve(pay.address, MAX, sender=STRANGER)
    products = []
    for place, address in enumerate(tokens):
        for price, window in ((11_000 + place, DAY), (1_700 + place, 0)):
            listing = ("skill", 1, 1, 4, address, DAY, window, False, [])
            release = (1 << 64, b"\x01" * 32, b"\x02" * 32, bytes(32), "ipfs://terms", "")
            done = catalogue.publish(listing, [price, 0, 0], release, sender=PUBLISHER)
            products.append((done.result, address, price))
    return World(evm, pay, wallet, tokens, reentrant, license, products)


@dataclass
class Item:
    """A stream or a channel that the wallet has counted."""

    terms: Terms
    kind: str
    committed: int
    start: int
    rate: int


@dataclass
class Twin:
    """What the wallet must hold to be so; one token's part is a `Ledger`."""

    ledgers: dict[str, Ledger]
    items: dict[tuple[str, bytes], Item] = field(default_factory=dict)
    """By kind and id, of what is counted as open."""
    latest: dict[str, bytes] = field(default_factory=dict)
    keys: dict[str, tuple[int, int]] = field(default_factory=dict)
    paused: bool = False


places = st.integers(0, 2)
signers = st.sampled_from([0, 0, 0, 0, 1, 2])
rates = st.one_of(st.integers(1, 10), st.integers(1, 3 * RATE_SCALE))
durations = st.one_of(st.integers(1, 5), st.integers(1, 300), st.integers(1, 5_000))
amounts = st.one_of(st.integers(1, 5), st.integers(1, 500), st.integers(1, 50_000))
pauses = st.one_of(st.integers(0, 3), st.integers(1, 1_300), st.integers(1, 30_000), st.integers(1, 250_000))
ways = st.sampled_from(["sent", "signed"])


class WalletMachine(RuleBasedStateMachine):
    world: World  # set by the test

    def __init__(self) -> None:
        super().__init__()
        world = self.world
        self.evm, self.pay, self.wallet = world.evm, world.pay, world.wallet
        self.snapshot = self.evm.snapshot()
        self.snapshot.__enter__()
        self.tokens = list(world.tokens)
        self.domain = domain_of(self.evm, self.pay)
        forever = (2**64 - 1, 7)
        self.twin = Twin({token: Ledger(LARGEST) for token in self.tokens})
        self.twin.keys = {KEYS[0]: forever, KEYS[1]: forever, world.reentrant.address: forever}
        self.known: dict[bytes, Terms] = {}
        self.licences: list[tuple[int, int]] = []
        """Number, and place among the products."""
        self.keyed: dict[int, int] = {}
        """By licence, until when its session key stays."""
        self.gifts: dict[str, int] = defaultdict(int)
        self.lost: dict[str, list[tuple[int, int]]] = {token: [(self.evm.now, 0)] for token in self.tokens}
        self.nonce = 0

    def teardown(self) -> None:
        try:
            self.the_owner_takes_everything_out()
        finally:
            self.snapshot.__exit__(None, None, None)

    # What the wallet must say.

    def refusal(self, key: str, kind: str, token: str, amount: int, ledger: Ledger) -> str | None:
        twin, now = self.twin, self.evm.now
        expires, scope = twin.keys.get(key, (0, 0))
        if now >= expires:
            return "wallet: no such key, or it has expired"
        if not scope & SCOPES[kind]:
            return "wallet: outside the key's scope"
        if twin.paused:
            return "wallet: paused"
        excess = ledger.caps.excess(amount, ledger.usage(now))
        return f"wallet: above the cap per {excess}" if excess else None

    def finished(self, id: bytes, token: str) -> list[tuple[Item, int]]:
        """What of this id is counted and over, and what of it is spent."""
        found = []
        stream, channel = self.twin.items.get(("stream", id)), self.twin.items.get(("channel", id))
        if stream and stream.terms.token == token:
            state = state_of(self.pay, stream.terms)
            if not state.rate:
                seconds = max(self.evm.now - stream.start, 1)
                found.append((stream, min(stream.committed, flow(stream.rate, seconds))))
            elif state.end <= self.evm.now:
                found.append((stream, stream.committed))
        if channel and channel.terms.token == token:
            deposit, settled, _, finished = self.pay.channel(id)
            if finished:
                found.append((channel, max(0, channel.committed - (deposit - settled))))
        return found

    def release(self, item: Item, spent: int) -> None:
        twin, token = self.twin, item.terms.token
        twin.ledgers[token] = twin.ledgers[token].release(item.committed, spent, self.evm.now)
        del twin.items[item.kind, item.terms.id]

    def expect(self, reason: str | None, act: Callable[[], Any]) -> Any:
        """Make a call that must go well, or be refused for this reason."""
        COUNTS["calls to wallets"] += 1
        COUNTS["calls to wallets that must revert, and did"] += reason is not None
        found, answer = None, None
        try:
            answer = act()
        except Reverted as reverted:
            found = reverted.reason
        assert found == reason, f"the wallet says {found!r}, the twin {reason!r}"
        return answer

    def commits(self, terms: Terms, kind: str, key: str, amount: int, rate: int, act: Callable[[], Any]) -> None:
        """Open something; what is over and in the way is released before."""
        token, before = terms.token, self.twin
        self.twin = replace(before, ledgers=dict(before.ledgers), items=dict(before.items), latest=dict(before.latest))
        ids = dict.fromkeys((before.latest.get(token, bytes(32)), terms.id))
        for id in ids:
            for item, spent in self.finished(id, token):
                self.release(item, spent)
        reason = self.refusal(key, kind, token, amount, self.twin.ledgers[token])
        if reason is None and kind == "stream" and state_of(self.pay, terms).rate:
            reason = "streams: already open"
        if reason is None and kind == "channel" and self.pay.channel(terms.id)[0]:
            reason = "channels: already used"
        self.expect(reason, act)
        if reason is not None:
            self.twin = before
            return
        self.known[terms.id] = terms
        self.twin.latest[token] = terms.id
        self.twin.ledgers[token] = self.twin.ledgers[token].commit(amount)
        self.twin.items[kind, terms.id] = Item(terms, kind, amount, self.evm.now, rate)

    # What may happen.

    def terms(self, place: int, payee: int, offer: int) -> Terms:
        # Channels are used once: their session keys differ.
        speaker = Actor(f"session {offer // 3}")
        return Terms(self.wallet.address, PAYEES[payee], self.tokens[place], speaker, bytes([1 + offer % 3]) * 32)

    def parties(self, terms: Terms) -> tuple[Any, ...]:
        return terms.payee, terms.token, terms.session_key, terms.offer_id

    def pick(self, kind: str, number: int) -> Terms | None:
        found = [item.terms for (k, _), item in self.twin.items.items() if k == kind]
        return found[number % len(found)] if found else None

    @rule(
        place=places,
        payee=st.integers(0, 1),
        offer=st.integers(0, 5),
        key=signers,
        rate=rates,
        lasts=durations,
        way=ways,
    )
    def opens(self, place: int, payee: int, offer: int, key: int, rate: int, lasts: int, way: str) -> None:
        terms, signer = self.terms(place, payee, offer), KEYS[key]
        self.nonce += 1
        order = Order(terms, rate=rate, duration=lasts, nonce=self.nonce, domain=self.domain)

        def act() -> None:
            if way == "sent":
                self.wallet.open(*self.parties(terms), rate, lasts, sender=signer)
            else:
                self.wallet.open_for(order.struct, order.sign(signer.key), sender=RELAYER)

        self.commits(terms, "stream", signer, flow(rate, lasts), rate, act)

    @rule(place=places, payee=st.integers(0, 1), offer=st.integers(0, 30), key=signers, amount=amounts, way=ways)
    def opens_a_channel(self, place: int, payee: int, offer: int, key: int, amount: int, way: str) -> None:
        terms, signer = self.terms(place, payee, offer), KEYS[key]
        self.nonce += 1
        order = ChannelOrder(terms, amount, nonce=self.nonce, domain=self.domain)

        def act() -> None:
            if way == "sent":
                self.wallet.open_channel(*self.parties(terms), amount, sender=signer)
            else:
                self.wallet.open_channel_for(order.struct, order.sign(signer.key), sender=RELAYER)

        self.commits(terms, "channel", signer, amount, 0, act)

    @rule(number=st.integers(0, 9), key=signers, more=durations)
    def tops_up(self, number: int, key: int, more: int) -> None:
        if (terms := self.pick("stream", number)) is None:
            return
        state, item = state_of(self.pay, terms), self.twin.items["stream", terms.id]
        cost = state.cost(state.end + more) - state.deposit
        reason = self.refusal(KEYS[key], "stream", terms.token, cost, self.twin.ledgers[terms.token])
        if reason is None and not state.rate:
            reason = "streams: no such stream"
        if reason is None and state.end <= self.evm.now:
            reason = "streams: already ended"
        self.expect(reason, lambda: self.wallet.top_up(*self.parties(terms), more, sender=KEYS[key]))
        if reason is None:
            self.twin.ledgers[terms.token] = self.twin.ledgers[terms.token].commit(cost)
            item.committed += cost

    @rule(number=st.integers(0, 9), key=signers, amount=amounts)
    def tops_up_a_channel(self, number: int, key: int, amount: int) -> None:
        if (terms := self.pick("channel", number)) is None:
            return
        reason = self.refusal(KEYS[key], "channel", terms.token, amount, self.twin.ledgers[terms.token])
        if reason is None and self.pay.channel(terms.id)[3]:
            reason = "channels: finished"
        self.expect(reason, lambda: self.wallet.top_up_channel(*self.parties(terms), amount, sender=KEYS[key]))
        if reason is None:
            self.twin.ledgers[terms.token] = self.twin.ledgers[terms.token].commit(amount)
            self.twin.items["channel", terms.id].committed += amount

    @rule(product=st.integers(0, 5), key=signers, quantity=st.integers(1, 4), short=st.sampled_from([*[0] * 9, 1]))
    def buys_a_licence(self, product: int, key: int, quantity: int, short: int) -> None:
        number, token, price = self.world.products[product]
        cost, speaker = price * quantity, Actor("speaks for the wallet")
        args = (number, 1, 1, quantity, cost - short, speaker)
        answer = self.pays_at_once(
            token, cost, short, KEYS[key], lambda: self.wallet.buy_license(*args, sender=KEYS[key])
        )
        if answer is not None:
            self.licences.append((answer.result, product))

    @rule(number=st.integers(0, 9), key=signers, quantity=st.integers(1, 4))
    def renews_a_licence(self, number: int, key: int, quantity: int) -> None:
        if not self.licences:
            return
        held, product = self.licences[number % len(self.licences)]
        _, token, price = self.world.products[product]
        cost = price * quantity
        act = lambda: self.wallet.renew_license(held, quantity, cost, sender=KEYS[key])  # noqa: E731
        self.pays_at_once(token, cost, 0, KEYS[key], act, held)

    def pays_at_once(self, token: str, cost: int, short: int, key: Actor, act: Callable[[], Any], held: int = 0) -> Any:
        """It counts as spent, and nothing as open."""
        ledger = self.twin.ledgers[token]
        reason = "wallet: dearer than the bound" if short else self.refusal(key, "license", token, cost, ledger)
        if reason is None and held and self.pending(held):
            reason = "license: not completed"
        answer = self.expect(reason, act)
        if reason is None:
            self.twin.ledgers[token] = ledger.commit(cost).release(cost, cost, self.evm.now)
        return answer

    def pending(self, held: int) -> bool:
        """Its price is with nobody yet."""
        return bool(self.world.license.licence(held)[4] == 1)

    def waits(self, held: int) -> bool:
        return self.pending(held) and bool(self.evm.now <= self.world.license.licence(held)[13])

    @rule(number=st.integers(0, 9), who=st.sampled_from([OWNER, KEYS[0], KEYS[2], STRANGER]))
    def gives_a_licence_back(self, number: int, who: Actor) -> None:
        """What comes back counts on: only the sceptic hears of it."""
        if not self.licences:
            return
        held, product = self.licences[number % len(self.licences)]
        token, before = self.world.products[product][1], self.pay.balance_of
        expires, scope = self.twin.keys.get(who, (0, 0))
        reason = None
        if who != OWNER and self.evm.now >= expires:
            reason = "wallet: no such key, or it has expired"
        elif who != OWNER and not scope & SCOPES["license"]:
            reason = "wallet: outside the key's scope"
        elif not self.pending(held):
            reason = "license: not pending"
        elif not self.waits(held):
            reason = "license: refund window is over"
        had = before(token, self.wallet.address)
        self.expect(reason, lambda: self.wallet.refund_license(held, sender=who))
        if reason is None:
            back = before(token, self.wallet.address) - had
            assert back > 0
            self.gifts[token] += back
            self.licences.remove((held, product))

    @rule(number=st.integers(0, 9), who=st.sampled_from([OWNER, KEYS[0], KEYS[2], STRANGER]), what=st.booleans())
    def uses_a_licence(self, number: int, who: Actor, what: bool) -> None:
        """Waives its refund window, or has another key sign its tickets: no money leaves by it."""
        if not self.licences:
            return
        held, _ = self.licences[number % len(self.licences)]
        expires, scope = self.twin.keys.get(who, (0, 0))
        reason = None
        if who != OWNER and self.evm.now >= expires:
            reason = "wallet: no such key, or it has expired"
        elif who != OWNER and not scope & SCOPES["license"]:
            reason = "wallet: outside the key's scope"
        elif who != OWNER and self.twin.paused:
            reason = "wallet: paused"
        elif what and not self.pending(held):
            reason = "license: not pending"
        elif not what and self.evm.now <= self.keyed.get(held, 0):
            reason = "license: key changed within a day"
        if what:
            self.expect(reason, lambda: self.wallet.complete_license(held, sender=who))
        else:
            self.expect(reason, lambda: self.wallet.set_license_key(held, who, sender=who))
            if reason is None:
                self.keyed[held] = self.evm.now + DAY

    @rule(number=st.integers(0, 9), more=st.integers(1, 3_000))
    def a_stranger_tops_up(self, number: int, more: int) -> None:
        terms = self.pick("stream", number)
        state = state_of(self.pay, terms) if terms else StreamState(0, 0, 0, 0)
        if terms and state.rate and self.evm.now < state.end:
            cost = state.cost(state.end + more) - state.deposit
            value = cost if terms.token == COIN else 0
            self.pay.top_up(terms.payer, *self.parties(terms), more, 0, sender=STRANGER, value=value)
            self.gifts[terms.token] += cost
        terms = self.pick("channel", number)
        if terms and not self.pay.channel(terms.id)[3]:
            value = more if terms.token == COIN else 0
            self.pay.top_up_channel(terms.payer, *self.parties(terms), more, 0, sender=STRANGER, value=value)
            self.gifts[terms.token] += more

    @rule(number=st.integers(0, 9), who=st.sampled_from(["key", "owner", "signed", "stranger", "guardian"]))
    def cancels(self, number: int, who: str) -> None:
        if (terms := self.pick("stream", number)) is None:
            return
        item, state = self.twin.items["stream", terms.id], state_of(self.pay, terms)
        sender = {"key": KEYS[0], "owner": OWNER, "signed": KEYS[0], "stranger": STRANGER, "guardian": GUARDIAN}[who]
        expires, scope = self.twin.keys.get(sender, (0, 0))
        reason = None
        if who != "owner":
            if self.evm.now >= expires:
                reason = "wallet: no such key, or it has expired"
            elif not scope & 1:
                reason = "wallet: outside the key's scope"
        if reason is None and not state.rate:
            reason = "streams: no such stream"

        def act() -> Any:
            if who != "signed":
                return self.wallet.cancel(*self.parties(terms), sender=sender)
            signature = sign_cancel(sender.key, self.domain, terms.id, item.start, COIN, MAX)
            return self.wallet.cancel_for(*self.parties(terms), MAX, signature, sender=RELAYER)

        answer = self.expect(reason, act)
        if reason is None:
            refund = state.refundable(self.evm.now)
            assert answer.result == refund
            self.release(item, max(0, item.committed - refund))

    @rule(number=st.integers(0, 9), ago=st.integers(0, 100))
    def a_payee_closes(self, number: int, ago: int) -> None:
        terms = self.pick("stream", number)
        if terms and (state := state_of(self.pay, terms)).rate:
            stop = max(0, self.evm.now - ago)
            done = self.pay.close(terms.payer, *self.parties(terms)[1:], stop, sender=terms.payee)
            self.gifts[terms.token] += done.log("Closed")["refund"] - state.refundable(self.evm.now)  # what it waived

    @rule(number=st.integers(0, 9), share=st.integers(0, 100), ends=st.booleans())
    def a_payee_uses_a_voucher(self, number: int, share: int, ends: bool) -> None:
        terms = self.pick("channel", number)
        if terms is None:
            return
        deposit, settled, _, finished = self.pay.channel(terms.id)
        amount = max(settled, deposit * share // 100)
        voucher = sign_voucher(self.domain, terms.id, amount, terms.session_key.key)  # type: ignore[attr-defined]
        if not finished and ends:
            self.pay.close_channel(terms.payer, *self.parties(terms)[1:], amount, voucher, sender=terms.payee)
        elif not finished and amount > settled:
            self.pay.settle_channel(terms.payer, *self.parties(terms), amount, voucher, sender=STRANGER)

    @rule(number=st.integers(0, 9))
    def takes_a_channel_back(self, number: int) -> None:
        terms = self.pick("channel", number)
        if terms is None or self.pay.channel(terms.id)[3]:
            return
        if not self.pay.channel(terms.id)[2]:
            self.wallet.request_close(*self.parties(terms), sender=OWNER)
        self.evm.sleep(CLOSE_DELAY)
        deposit, settled, _, _ = self.pay.channel(terms.id)
        assert self.wallet.reclaim(*self.parties(terms), sender=STRANGER).result == deposit - settled
        item = self.twin.items["channel", terms.id]
        self.release(item, max(0, item.committed - (deposit - settled)))

    @rule(place=places, often=st.integers(1, 2))
    def anybody_releases(self, place: int, often: int) -> None:
        token = self.tokens[place]
        over = [found for id in self.known for found in self.finished(id, token)]
        reason = None if over else "wallet: nothing to release"
        act = lambda: self.wallet.release(token, list(self.known)[-25:] * often, sender=STRANGER)  # noqa: E731
        if len(self.known) <= 25:
            self.expect(reason, act)
            for item, spent in over:
                self.release(item, spent)

    @rule(seconds=pauses)
    def time_passes(self, seconds: int) -> None:
        self.evm.sleep(seconds)

    @rule(key=signers, life=st.sampled_from([0, 30_000, 10**7, 10**7, 10**7]), scope=st.integers(1, 7))
    def keys_rotate(self, key: int, life: int, scope: int) -> None:
        if life:
            self.wallet.set_key(KEYS[key], self.evm.now + life, scope, sender=OWNER)
            self.twin.keys[KEYS[key]] = self.evm.now + life, scope
        else:
            self.wallet.revoke_key(KEYS[key], sender=GUARDIAN)
            self.twin.keys[KEYS[key]] = 0, 0

    @rule(on=st.sampled_from([True, *[False] * 7]))
    def the_guardian_pauses(self, on: bool) -> None:
        if on:
            self.wallet.pause(sender=GUARDIAN)
        else:
            self.wallet.unpause(sender=OWNER)
        self.twin.paused = on

    @rule(place=places, percent=st.tuples(*[st.sampled_from([3, 100, 100, 100, 100, 100])] * 4))
    def caps_change(self, place: int, percent: tuple[int, ...]) -> None:
        caps = Caps(*(most * share // 100 for most, share in zip(LARGEST.as_tuple(), percent, strict=True)))
        token = self.tokens[place]
        self.wallet.set_caps(token, caps.as_tuple(), sender=OWNER)
        self.twin.ledgers[token] = replace(self.twin.ledgers[token], caps=caps)

    @rule(place=places, amount=amounts, way=st.sampled_from(["vault", "hand"]))
    def somebody_gives(self, place: int, amount: int, way: str) -> None:
        token = self.tokens[place]
        value = amount if token == COIN else 0
        contract = self.world.tokens[token]
        if way == "vault":
            self.pay.deposit_for(self.wallet.address, token, amount, sender=STRANGER, value=value)
        elif contract:
            contract.mint(self.wallet.address, amount, sender=STRANGER)
        else:
            self.evm.set_balance(self.wallet.address, self.evm.balance(self.wallet.address) + amount)
        self.gifts[token] += amount

    @rule(
        place=places,
        what=st.sampled_from(
            ["withdraw", "withdraw_vault", "initialize", "unpause", "set_key", "set_caps", "open_for"]
        ),
        who=st.sampled_from([STRANGER, GUARDIAN, *KEYS]),
    )
    def somebody_tries_to_take(self, place: int, what: str, who: Actor) -> None:
        token = self.tokens[place]
        order = Order(self.terms(place, 0, 0), nonce=MAX, domain=self.domain)
        target, args = (
            self.wallet,
            {
                "withdraw": (token, 1, who),
                "withdraw_vault": (token, 1, who),
                "initialize": (who, who, [], []),
                "unpause": (),
                "set_key": (who, 2**64 - 1, 7),
                "set_caps": (token, (1, 1, 1, 1)),
            }.get(what, ()),
        )
        reason = "wallet: already initialized" if what == "initialize" else "wallet: not the owner"
        if what == "open_for":
            target, args = self.pay, (order.struct, order.sign(who.key), NO_PERMIT)
            reason = "signatures: refused by the account's contract"
        self.expect(reason, lambda: getattr(target, what)(*args, sender=who))

    @rule(offer=st.integers(0, 5), payee=st.integers(0, 1), deposit=amounts, inner=amounts, after=st.booleans())
    def a_token_calls_back(self, offer: int, payee: int, deposit: int, inner: int, after: bool) -> None:
        """It holds a key, and opens a channel of its own while one is being paid in it."""
        odd, speaker = self.world.reentrant, Actor(f"inner {self.nonce}")
        terms = replace(self.terms(2, payee, offer), session_key=Actor(f"outer {self.nonce}"))
        self.nonce += 1
        nested = replace(terms, session_key=speaker)
        call = self.wallet.encode("open_channel", *self.parties(nested), inner)
        odd.arm(self.wallet.address, call, after, False, sender=STRANGER)
        held = self.pay.balance_of(odd.address, self.wallet.address)
        self.commits(terms, "channel", KEYS[0], deposit, 0, lambda: self.call_open(terms, deposit))
        called = odd.target() == COIN and ("channel", terms.id) in self.twin.items
        if called and held < deposit and self.pay.channel(nested.id)[0]:
            assert self.refusal(odd.address, "channel", odd.address, inner, self.twin.ledgers[odd.address]) is None
            self.known[nested.id] = nested
            self.twin.ledgers[odd.address] = self.twin.ledgers[odd.address].commit(inner)
            self.twin.items["channel", nested.id] = Item(nested, "channel", inner, self.evm.now, 0)
            self.twin.latest[odd.address] = nested.id
        odd.arm(COIN, b"", False, False, sender=STRANGER)

    def call_open(self, terms: Terms, deposit: int) -> Any:
        return self.wallet.open_channel(*self.parties(terms), deposit, sender=KEYS[0])

    # What always holds.

    @invariant()
    def both_count_the_same(self) -> None:
        views: list[tuple[Any, ...]] = [(self.wallet, "usage", token) for token in self.tokens]
        views += [(self.wallet, "available", token) for token in self.tokens]
        views += [(self.wallet, "committed", terms.token, id) for id, terms in self.known.items()]
        answers = self.evm.read(*views)
        count = len(self.tokens)
        for token, found, left in zip(self.tokens, answers, answers[count:], strict=False):
            ledger = self.twin.ledgers[token]
            usage = ledger.usage(self.evm.now)
            assert tuple(found) == (usage.open, usage.hour, usage.day, usage.week)
            assert left == ledger.caps.available(usage)
            for window in WINDOWS:
                assert usage.counted(window) <= getattr(LARGEST, window)
        for id, found in zip(self.known, answers[2 * count :], strict=True):
            items = (self.twin.items.get((kind, id)) for kind in ("stream", "channel"))
            assert tuple(found) == tuple(item.committed if item else 0 for item in items)

    @invariant()
    def no_window_lost_more_than_its_cap(self) -> None:
        """By what the wallet owns: in its hands, in the vault, and back if all ended now."""
        for token in self.tokens:
            contract = self.world.tokens[token]
            owned: int = contract.balanceOf(self.wallet.address) if contract else self.evm.balance(self.wallet.address)
            owned += self.pay.balance_of(token, self.wallet.address)
            for id, terms in self.known.items():
                if terms.token == token:
                    owned += self.pay.refundable(id)
                    deposit, settled, _, finished = self.pay.channel(id)
                    owned += 0 if finished else deposit - settled
            lost, now = WEALTH + self.gifts[token] - owned, self.evm.now
            history = self.lost[token]
            assert lost >= history[-1][1], "money came from nowhere"
            history.append((now, lost))
            for window, seconds in WINDOWS.items():
                within = [before for at, before in history if now - at < seconds]
                assert lost - min(within) <= getattr(LARGEST, window), f"a cap per {window} did not hold"

    def the_owner_takes_everything_out(self) -> None:
        self.wallet.pause(sender=GUARDIAN)
        for (kind, _), item in list(self.twin.items.items()):
            if kind == "stream" and state_of(self.pay, item.terms).rate:
                self.wallet.cancel(*self.parties(item.terms), sender=OWNER)
            if kind == "channel" and not any(self.pay.channel(item.terms.id)[2:]):
                self.wallet.request_close(*self.parties(item.terms), sender=OWNER)
        self.evm.sleep(CLOSE_DELAY)
        for (kind, id), item in list(self.twin.items.items()):
            if kind == "channel" and not self.pay.channel(id)[3]:
                self.wallet.reclaim(*self.parties(item.terms), sender=OWNER)
        for token, contract in self.world.tokens.items():
            if held := self.pay.balance_of(token, self.wallet.address):
                self.wallet.withdraw_vault(token, held, OWNER, sender=OWNER)
            held = contract.balanceOf(self.wallet.address) if contract else self.evm.balance(self.wallet.address)
            self.wallet.withdraw(token, held, OWNER, sender=OWNER)
            assert self.evm.balance(self.wallet.address) == 0 or contract
            open_now = self.wallet.usage(token)[0]
            over = [id for id, terms in self.known.items() if terms.token == token]
            for start in range(0, len(over), 50):
                if open_now:
                    self.wallet.release(token, over[start : start + 50], sender=STRANGER)
                    open_now = self.wallet.usage(token)[0]
            assert open_now == 0, "something counts as open that is not"


def test_wallets_count_what_the_twin_counts(world: World) -> None:
    WalletMachine.world = world
    # A step here makes several calls, and looks at all that the wallet owns: fewer runs than of StreamPay's machine.
    run_state_machine_as_test(WalletMachine, settings=settings(max_examples=max(8, PROFILE.examples // 8)))
