"""StreamPay against its model: vault, streams, channels, pause, hostile tokens, donations, time

Every step is made on the chain and in `model.py`; the call must revert with the reason that the model
gives, or both must end in the same state to the last unit. A third party, `penstock.audit.Books`, sees
nothing but the logs and must know as much.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pytest
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from penstock.accrual import MAX_TIME, RATE_SCALE, StreamState
from penstock.audit import Books
from penstock.chain._events import parse
from penstock.channels import CLOSE_DELAY
from tests.contracts.harness import (
    COIN,
    MAX,
    NO_PERMIT,
    NO_STREAM,
    Actor,
    Order,
    Terms,
    domain_of,
    sign_cancel,
    sign_standing_order,
    sign_voucher,
)
from tests.contracts.stateful.model import NO_CHANNEL, Armed, Kind, Model, Refused
from tests.contracts.vouchers import ChannelOrder
from tests.fastchain import Chain, Contract, Log, Reverted
from tests.profiles import COUNTS

WEALTH = 10**30
NOT_ABOUT_MONEY = {"KeeperRewardChanged", "PauseChanged", "NoncesInvalidated", "SpenderAllowed"}
KEYS = [Actor("session key 1"), Actor("session key 2")]
OFFERS = [b"\x01" * 32, b"\x02" * 32]


@dataclass(frozen=True)
class World:
    """What is there before the first step; each run starts from it."""

    evm: Chain
    pay: Contract
    lens: Contract
    tokens: dict[str, tuple[Kind, Contract | None]]
    payers: list[str]
    payees: list[str]
    stranger: str
    guardian: str
    refuser: str

    @cached_property
    def look(self) -> bytes:
        """The call that reads all balances."""
        return self.lens.encode("balances", self.pay.address, list(self.tokens), self.accounts)

    @cached_property
    def accounts(self) -> list[str]:
        reentrant = [address for address, (kind, _) in self.tokens.items() if kind is Kind.REENTRANT]
        return list(dict.fromkeys([*self.payers, *self.payees, self.stranger, *reentrant]))

    def of_kind(self, kind: Kind) -> Contract:
        found = next(token for k, token in self.tokens.values() if k is kind)
        assert found
        return found


def make_world(
    evm: Chain,
    deploy: Callable[..., Contract],
    pay: Contract,
    guardian: Actor,
    contracts: Sequence[tuple[Kind, Contract]],
) -> World:
    """Three payers, of which one is also a payee; three payees, of which one takes no coins. All have all tokens."""
    refuser = deploy("RevertingReceiver").address
    tokens: dict[str, tuple[Kind, Contract | None]] = {COIN: (Kind.COIN, None)}
    tokens |= {contract.address: (kind, contract) for kind, contract in contracts}
    payers: list[str] = [Actor("first payer"), Actor("second payer"), refuser]
    payees: list[str] = [Actor("first payee"), refuser, payers[1]]
    world = World(evm, pay, deploy("LensMock"), tokens, payers, payees, Actor("stranger"), guardian, refuser)
    for account in world.accounts:
        evm.set_balance(account, WEALTH)
        for _, contract in contracts:
            contract.mint(account, WEALTH, sender=account)
            contract.approve(pay.address, MAX, sender=account)
        evm.set_balance(account, WEALTH)  # where gas has a price, it has cost some
    return world


@pytest.fixture(scope="module")
def world(
    evm_of_module: Chain, deploy: Callable[..., Contract], pay: Contract, token: Contract, guardian: Actor
) -> World:
    contracts = [
        (Kind.PLAIN, token),
        (Kind.PLAIN, deploy("TestUSD")),
        (Kind.PLAIN, deploy("NoReturnToken")),
        (Kind.FEE, deploy("FeeToken")),
        (Kind.REENTRANT, deploy("ReentrantToken")),
        (Kind.BLOCKING, deploy("BlockingToken")),
    ]
    return make_world(evm_of_module, deploy, pay, guardian, contracts)


rates = st.one_of(
    st.integers(1, 10),
    st.integers(1, 10 * RATE_SCALE),
    st.integers(1, 10**6).map(lambda units: units * RATE_SCALE),
    st.integers(RATE_SCALE, 10**24),
)
durations = st.one_of(st.integers(1, 5), st.integers(1, 300), st.integers(1, 10**5))
pauses = st.one_of(st.sampled_from([0, 1, 1, 2, 3, 10]), st.integers(1, 400), st.integers(1, 20_000))
amounts = st.one_of(st.integers(0, 3), st.integers(1, 10**6), st.integers(1, 10**24))
shares = st.integers(0, 100)


def word(value: int) -> bytes:
    return value.to_bytes(32, "big")


def words(raw: bytes) -> list[int]:
    return [int.from_bytes(raw[at : at + 32], "big") for at in range(0, len(raw), 32)]


# What may happen next: how often among the others, and what is drawn for it before the rest.
ACTIONS: dict[str, tuple[int, dict[str, st.SearchStrategy[Any]]]] = {
    "pays_in": (2, {"amount": amounts}),
    "takes_out": (3, {"share": st.one_of(st.sampled_from([0, 100, 101]), shares)}),
    "pays": (4, {"amount": amounts, "parts": st.integers(0, 4)}),
    "lets_spend": (2, {"amount": st.one_of(amounts, st.just(MAX))}),
    "opens": (4, {"rate": rates, "duration": durations}),
    "opens_by_signature": (3, {"rate": rates, "duration": durations, "again": st.booleans()}),
    "tops_up": (3, {"duration": st.one_of(durations, st.sampled_from([0, MAX_TIME]))}),
    "extends_by_signature": (2, {"ahead": durations, "until": st.one_of(st.just(MAX_TIME), durations)}),
    "cancels": (2, {"mine": st.integers(0, 5)}),
    "cancels_by_signature": (1, {}),
    "closes": (2, {"mine": st.integers(0, 5), "waived": st.one_of(st.just(0), st.integers(-10, 1_000))}),
    "withdraws": (3, {"mine": st.integers(0, 5)}),
    "settles_a_batch": (5, {"by_payee": st.booleans(), "size": st.integers(0, 6)}),
    "opens_a_channel": (3, {"deposit": st.one_of(amounts, st.sampled_from([2**96 - 1, 2**96]))}),
    "opens_a_channel_by_signature": (1, {"deposit": amounts, "again": st.booleans()}),
    "tops_up_a_channel": (1, {"amount": amounts}),
    "settles_a_channel": (4, {}),
    "closes_a_channel": (1, {"with_voucher": st.booleans(), "mine": st.integers(0, 5)}),
    "takes_a_channel_back": (1, {"mine": st.integers(0, 5), "wait": st.sampled_from([0, 899, 900, 901])}),
    "time_passes": (7, {"seconds": pauses}),
    "somebody_forges": (
        1,
        {"what": st.sampled_from(["open", "extend", "cancel", "open channel", "settle", "close", "guardian"])},
    ),
    "somebody_donates": (1, {"amount": st.integers(1, 10**20)}),
    "somebody_changes_a_rule": (
        3,
        {"what": st.sampled_from(["pause", "reward", "nonce", "fee", "block"]), "on": st.booleans()},
    ),
    "token_arms_itself": (
        2,
        {"what": st.sampled_from(["collect", "deposit", "withdraw_vault"]), "after": st.booleans()},
    ),
    "everybody_could_leave": (1, {"often": st.integers(0, 5)}),
}


class StreamPayMachine(RuleBasedStateMachine):
    world: World  # set by the test

    def __init__(self) -> None:
        super().__init__()
        world = self.world
        self.evm, self.pay = world.evm, world.pay
        self.snapshot = self.evm.snapshot()
        self.snapshot.__enter__()
        self.domain = domain_of(self.evm, self.pay)
        self.model = Model({address: kind for address, (kind, _) in world.tokens.items()}, self.evm.now)
        self.model.refusers = {world.refuser, world.of_kind(Kind.REENTRANT).address}
        for account in world.accounts:
            for token in world.tokens:
                self.model.wallets[token, account] = WEALTH
        self.books = Books()
        self.paid_out: dict[bytes, int] = defaultdict(int)
        """By id, what the logs say that the payee of the running stream has had."""
        self.known: dict[Terms, None] = {}
        """All that ever named a stream or a channel."""
        self.orders: list[tuple[Order, bytes]] = []
        self.channel_orders: list[tuple[ChannelOrder, bytes]] = []
        self.settled: dict[tuple[str, str], int] = defaultdict(int)
        """By (token, payee), what the logs say was ever settled to a vault, the keepers' part included."""
        self.rewards: dict[tuple[str, str], int] = defaultdict(int)
        """By (token, payee), what of it went to keepers."""

    def teardown(self) -> None:
        try:
            self.everyone_exits()
        finally:
            self.snapshot.__exit__(None, None, None)

    # One step.

    def do(self, name: str, *args: Any, sender: str, value: int = 0) -> bool:
        """Make a call on both sides and compare; True where it succeeded."""
        COUNTS["calls to StreamPay"] += 1
        trial = self.model.copy()
        reason = None
        try:
            getattr(trial, name)(*args, sender=sender, value=value)
        except Refused as refused:
            reason = refused.reason
        COUNTS["calls that must revert, and did"] += reason is not None
        note(f"{name}{args} from {sender} with {value}: {reason or 'succeeds'}")
        found, logs = None, []
        try:
            logs = getattr(self.pay, name)(*args, sender=sender, value=value).raw_logs
        except Reverted as reverted:
            found = reverted.reason
        assert found == reason, f"{name}: the contract says {found!r}, the model {reason!r}"
        if reason is None:
            self.model = trial
            self.read_logs(logs)
        self.compare()
        return reason is None

    def read_logs(self, logs: list[dict[str, Any]]) -> None:
        for raw in logs:
            if raw["address"].lower() != self.pay.address.lower():
                continue
            log = self.pay.parse(raw)
            assert log is not None
            if log.name in NOT_ABOUT_MONEY:
                continue
            if log.name == "Opened":
                self.paid_out[log.args["id"]] = 0
            elif log.name == "Withdrawn":
                self.paid_out[log.args["id"]] += log.args["amount"]
            elif log.name == "Closed":
                _, state = self.books.streams["0x" + log.args["id"].hex()]  # type: ignore[index]
                paid = self.paid_out[log.args["id"]] + log.args["paid"]
                assert paid + log.args["refund"] == state.deposit, "paid and refunded are not what was deposited"
                assert paid == state.cost(log.args["stop"]), "what was paid depends on how often it was settled"
            self.read_channel_log(log)
            self.books.apply(parse(raw, self.evm.now))

    def read_channel_log(self, log: Log) -> None:
        """Before the books know of it: what a log may say, given those before it."""
        args = log.args
        if log.name == "Withdrawn" and args["to"] == COIN:
            key, _ = self.books.streams["0x" + args["id"].hex()]  # type: ignore[index]
            self.settled[key.token, key.payee] += args["amount"]
        elif log.name == "KeeperPaid":
            self.rewards[args["token"], args["payee"]] += args["amount"]
            rewards, settled = (known[args["token"], args["payee"]] for known in (self.rewards, self.settled))
            assert rewards <= settled // 1_000, "keepers got more than a thousandth"
        if not log.name.startswith("Channel"):
            return
        id = "0x" + args["id"].hex()
        if log.name == "ChannelOpened":
            assert id not in self.books.channels, "a channel was opened twice"
            return
        key, channel = self.books.channels[id]  # type: ignore[index]
        assert channel.running, "something happened to a finished channel"
        if log.name == "ChannelSettled":
            assert channel.settled < args["cumulative"] <= channel.deposit, "a voucher counted twice, or too much"
            self.settled[key.token, key.payee] += args["cumulative"] - channel.settled
        elif log.name == "ChannelCloseRequested":
            assert channel.requested_at == 0, "the timer was set anew"
            assert args["reclaimable_at"] == self.evm.now + CLOSE_DELAY
        elif log.name == "ChannelClosed":
            assert args["cumulative"] + args["refund"] == channel.deposit, "paid and refunded are not the deposit"
            assert channel.settled <= args["cumulative"]

    def compare(self) -> None:
        model, world = self.model, self.world
        model.check()
        terms = list(self.known)
        ids = b"".join(map(word, (int.from_bytes(bytes.fromhex(self.pay.address[2:])), 64, len(terms))))
        ids += b"".join(t.id for t in terms)
        lens = world.lens.functions
        balances, streams, channels, paused = map(
            words,
            self.evm.call_many(
                [
                    (world.lens.address, world.look),
                    (world.lens.address, lens["streams"].selector + ids),
                    (world.lens.address, lens["channels"].selector + ids),
                    (self.pay.address, self.pay.functions["paused"].selector),
                ]
            ),
        )
        expected: list[int] = []
        for token in world.tokens:
            expected.append(model.holding[token])
            assert model.holding[token] >= model.liabilities(token)
            for account in world.accounts:
                key = token, account
                expected += (model.vault[key], model.settled[key], model.wallets[key])
        assert balances[2:] == expected
        assert paused == [model.paused]
        expected = []
        spendable = list(model.spendable)
        found = self.evm.read(*((self.pay, "spendable", token, owner, spender) for owner, spender, token in spendable))
        assert found == list(model.spendable.values())
        for t in terms:
            state = model.streams.get(t, NO_STREAM)
            expected += (state.start, state.last, state.end, state.rate)
            expected += (state.withdrawable(self.evm.now), state.refundable(self.evm.now))
        assert streams[2:] == expected
        expected = []
        for t in terms:
            channel = model.channels.get(t, NO_CHANNEL)
            expected += (channel.deposit, channel.settled, channel.requested_at, channel.finished)
        assert channels[2:] == expected
        self.compare_books()

    def compare_books(self) -> None:
        """Events and block timestamps alone tell all."""
        books, model = self.books, self.model
        assert {key: amount for key, amount in books.vault.items() if amount} == {
            key: amount for key, amount in model.vault.items() if amount
        }
        assert {id: state for id, (_, state) in books.streams.items()} == {
            "0x" + t.id.hex(): state for t, state in model.streams.items()
        }
        assert {id: (c.deposit, c.settled, c.requested_at, c.finished) for id, (_, c) in books.channels.items()} == {
            "0x" + t.id.hex(): (c.deposit, c.settled, c.requested_at, c.finished) for t, c in model.channels.items()
        }
        for token in model.kinds:
            assert books.liabilities(token) == model.liabilities(token)  # type: ignore[arg-type]

    # What is drawn.

    def actor(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(self.world.accounts), label="actor")

    def a_token(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(list(self.world.tokens)), label="token")

    def some_terms(self, data: st.DataObject) -> Terms:
        terms = Terms(
            data.draw(st.sampled_from(self.world.payers), label="payer"),
            data.draw(st.sampled_from(self.world.payees), label="payee"),
            self.a_token(data),
            data.draw(st.sampled_from(KEYS), label="session key"),
            data.draw(st.sampled_from(OFFERS), label="offer"),
        )
        self.known[terms] = None
        return terms

    def a_stream(self, data: st.DataObject) -> Terms:
        """Mostly one that is open; now and then one that is not."""
        running = list(self.model.streams)
        if running and data.draw(st.integers(0, 9), label="open?") != 7:
            return data.draw(st.sampled_from(running), label="stream")
        return self.some_terms(data)

    def a_channel(self, data: st.DataObject) -> Terms:
        known = list(self.model.channels)
        if known and data.draw(st.integers(0, 9), label="known?") != 7:
            return data.draw(st.sampled_from(known), label="channel")
        return self.some_terms(data)

    def a_receiver(self, data: st.DataObject, default: str) -> str:
        """Mostly the account itself or, as the zero address, its vault balance."""
        choices = [default, default, COIN, self.world.stranger, self.world.refuser]
        return data.draw(st.sampled_from(choices), label="to")

    def a_payment(self, data: st.DataObject, token: str, cost: int) -> tuple[int, int]:
        """`from_vault` and the value to send: exact, short, in excess, or with the vault's help."""
        from_vault = data.draw(st.sampled_from([0, MAX, MAX, cost // 2, 1]), label="from vault")
        if token != COIN:
            return from_vault, int(data.draw(st.integers(0, 30), label="coins with a token") == 17)
        how = data.draw(st.sampled_from(["exact", "none", "half", "short", "more"]), label="value")
        value = {"exact": cost, "none": 0, "half": cost - cost // 2, "short": max(cost - 1, 0), "more": cost + 7}
        return from_vault, value[how]

    @initialize(data=st.data(), rates=st.lists(rates, min_size=4, max_size=4))
    def some_are_there(self, data: st.DataObject, rates: list[int]) -> None:
        """A run does not begin with nothing, since much can happen only to what is there."""
        for rate in rates:
            self.opens(data, rate, data.draw(durations, label="duration"))

    @rule(
        data=st.data(), action=st.sampled_from([name for name, (weight, _) in ACTIONS.items() for _ in range(weight)])
    )
    def step(self, data: st.DataObject, action: str) -> None:
        """One rule for all, so that every run mixes all of them."""
        _, strategies = ACTIONS[action]
        drawn = {name: data.draw(strategy, label=name) for name, strategy in strategies.items()}
        getattr(self, action)(data, **drawn)

    # Actions: the vault.

    def pays_in(self, data: st.DataObject, amount: int) -> None:
        token, sender = self.a_token(data), self.actor(data)
        value = amount if token == COIN else 0
        if data.draw(st.integers(0, 20), label="odd value") == 13:
            value += 1
        if data.draw(st.booleans(), label="for somebody else"):
            account = data.draw(st.sampled_from([*self.world.accounts, COIN]), label="account")
            self.do("deposit_for", account, token, amount, sender=sender, value=value)
        else:
            self.do("deposit", token, amount, sender=sender, value=value)

    def takes_out(self, data: st.DataObject, share: int) -> None:
        held = [key for key, amount in self.model.vault.items() if amount]
        if held and data.draw(st.integers(0, 9), label="holds any?") != 7:
            token, sender = data.draw(st.sampled_from(held), label="balance")
        else:
            token, sender = self.a_token(data), self.actor(data)
        balance = self.model.vault[token, sender]
        amount = balance + 1 if share == 101 else balance * share // 100
        self.do("withdraw_vault", token, amount, self.a_receiver(data, sender), sender=sender)

    def pays(self, data: st.DataObject, amount: int, parts: int) -> None:
        """For itself or for somebody else, who let it or not; to anyone, itself included."""
        token, sender = self.a_token(data), self.actor(data)
        payer, allowed = sender, [key for key, limit in self.model.spendable.items() if limit]
        if allowed and data.draw(st.booleans(), label="as a spender"):
            payer, sender, token = data.draw(st.sampled_from(allowed), label="allowed")
        elif data.draw(st.integers(0, 4), label="for somebody else") == 3:
            payer = self.actor(data)
        receivers = st.sampled_from([*self.world.accounts, *self.world.accounts, COIN])
        payments = [(data.draw(receivers, label="receiver"), amount // (part + 1)) for part in range(parts)]
        cost = sum(part for _, part in payments)
        _, value = self.a_payment(data, token, cost)
        self.do("pay", payer, token, payments, sender=sender, value=value)

    def lets_spend(self, data: st.DataObject, amount: int) -> None:
        self.do("allow_spender", self.actor(data), self.a_token(data), amount, sender=self.actor(data))

    # Actions: streams.

    def opens(self, data: st.DataObject, rate: int, duration: int) -> None:
        terms = self.some_terms(data)
        odd = data.draw(st.integers(0, 40), label="odd")
        changes = {20: {"session_key": COIN}, 21: {"payee": COIN}}.get(odd, {})
        terms = replace(terms, **changes)
        self.known[terms] = None
        rate = 0 if odd == 22 else rate
        duration = {23: 0, 24: MAX_TIME}.get(odd, duration)
        cost = StreamState(0, 0, duration, rate).deposit if odd != 24 else 10
        from_vault, value = self.a_payment(data, terms.token, cost)
        self.do(
            *("open", terms.payee, terms.token, terms.session_key, terms.offer_id, rate, duration, from_vault),
            sender=terms.payer,
            value=value,
        )

    def opens_by_signature(self, data: st.DataObject, rate: int, duration: int, again: bool) -> None:
        if again and self.orders:
            order, signature = data.draw(st.sampled_from(self.orders), label="order")
        else:
            terms = self.some_terms(data)
            if not isinstance(terms.payer, Actor):
                terms = replace(terms, payer=self.world.payers[0])
            self.known[terms] = None
            assert isinstance(terms.payer, Actor)
            nonce = data.draw(st.sampled_from([0, 1, 255, 256, 257, MAX, *range(2, 9)]), label="nonce")
            deadline = self.evm.now + data.draw(st.integers(0, 1_000), label="deadline")
            order = Order(terms, rate, duration, MAX, nonce, deadline, self.domain)
            signature = order.sign(terms.payer.key)
            self.orders.append((order, signature))
        self.do("open_for", order.struct, signature, NO_PERMIT, sender=self.actor(data))

    def tops_up(self, data: st.DataObject, duration: int) -> None:
        terms = self.a_stream(data)
        state = self.model.streams.get(terms, StreamState(0, 0, 1, 1))
        cost = replace(state, end=state.end + duration).deposit - state.deposit if duration < MAX_TIME else 10
        from_vault, value = self.a_payment(data, terms.token, cost)
        parties = (terms.payer, terms.payee, terms.token, terms.session_key, terms.offer_id)
        self.do("top_up", *parties, duration, from_vault, sender=self.actor(data), value=value)

    def extends_by_signature(self, data: st.DataObject, ahead: int, until: int) -> None:
        terms = self.a_stream(data)
        if not isinstance(terms.payer, Actor):
            return
        until = min(self.evm.now + until, MAX_TIME)
        start = self.model.streams.get(terms, NO_STREAM).start
        signature = sign_standing_order(terms.payer.key, self.domain, terms.id, start, ahead, until)
        parties = (terms.payer, terms.payee, terms.token, terms.session_key, terms.offer_id)
        self.do("extend_for", *parties, (ahead, until), signature, sender=self.actor(data))

    def cancels(self, data: st.DataObject, mine: int) -> None:
        terms = self.a_stream(data)
        sender = terms.payer if mine != 4 else self.actor(data)
        self.known[replace(terms, payer=sender)] = None
        to = self.a_receiver(data, sender)
        self.do("cancel", terms.payee, terms.token, terms.session_key, terms.offer_id, to, sender=sender)

    def cancels_by_signature(self, data: st.DataObject) -> None:
        terms = self.a_stream(data)
        if not isinstance(terms.payer, Actor):
            return
        start, to = self.model.streams.get(terms, NO_STREAM).start, self.a_receiver(data, terms.payer)
        deadline = self.evm.now + data.draw(st.integers(-1, 5), label="deadline")
        signature = sign_cancel(terms.payer.key, self.domain, terms.id, start, to, deadline)
        parties = (terms.payer, terms.payee, terms.token, terms.session_key, terms.offer_id)
        self.do("cancel_for", *parties, to, deadline, signature, sender=self.actor(data))

    def closes(self, data: st.DataObject, mine: int, waived: int) -> None:
        terms = self.a_stream(data)
        sender = terms.payee if mine != 4 else self.actor(data)
        self.known[replace(terms, payee=sender)] = None
        stop_at = data.draw(st.sampled_from([MAX, 0, max(0, self.evm.now - waived)]), label="stop at")
        self.do("close", terms.payer, terms.token, terms.session_key, terms.offer_id, stop_at, sender=sender)

    def withdraws(self, data: st.DataObject, mine: int) -> None:
        terms = self.a_stream(data)
        sender = terms.payee if mine != 4 else self.actor(data)
        self.known[replace(terms, payee=sender)] = None
        to = self.a_receiver(data, sender)
        self.do("withdraw", terms.payer, terms.token, terms.session_key, terms.offer_id, to, sender=sender)

    def settles_a_batch(self, data: st.DataObject, by_payee: bool, size: int) -> None:
        """Streams that pay one payee in one token, some of them gone, some of them named twice."""
        first = self.a_stream(data)
        candidates = [t for t in self.known if (t.payee, t.token) == (first.payee, first.token)]
        batch = [data.draw(st.sampled_from(candidates), label="source").source for _ in range(size)]
        if by_payee:
            to = self.a_receiver(data, first.payee)
            self.do("withdraw_many", first.token, batch, to, sender=first.payee)
        else:
            self.do("collect", first.token, first.payee, batch, sender=self.actor(data))

    # Actions: channels.

    def opens_a_channel(self, data: st.DataObject, deposit: int) -> None:
        terms = self.some_terms(data)
        from_vault, value = self.a_payment(data, terms.token, deposit)
        parties = (terms.payee, terms.token, terms.session_key, terms.offer_id)
        self.do("open_channel", *parties, deposit, from_vault, sender=terms.payer, value=value)

    def opens_a_channel_by_signature(self, data: st.DataObject, deposit: int, again: bool) -> None:
        if again and self.channel_orders:
            order, signature = data.draw(st.sampled_from(self.channel_orders), label="order")
        else:
            terms = self.some_terms(data)
            if not isinstance(terms.payer, Actor):
                terms = replace(terms, payer=self.world.payers[0])
            self.known[terms] = None
            assert isinstance(terms.payer, Actor)
            nonce = data.draw(st.sampled_from([0, 1, 255, 256, 257, MAX, *range(2, 9)]), label="nonce")
            deadline = self.evm.now + data.draw(st.integers(0, 1_000), label="deadline")
            order = ChannelOrder(terms, deposit, MAX, nonce, deadline, self.domain)
            signature = order.sign(terms.payer.key)
            self.channel_orders.append((order, signature))
        self.do("open_channel_for", order.struct, signature, NO_PERMIT, sender=self.actor(data))

    def tops_up_a_channel(self, data: st.DataObject, amount: int) -> None:
        terms = self.a_channel(data)
        from_vault, value = self.a_payment(data, terms.token, amount)
        parties = (terms.payer, terms.payee, terms.token, terms.session_key, terms.offer_id)
        self.do("top_up_channel", *parties, amount, from_vault, sender=self.actor(data), value=value)

    def a_voucher(self, data: st.DataObject, terms: Terms) -> tuple[int, bytes]:
        channel = self.model.channels.get(terms, NO_CHANNEL)
        share = data.draw(st.one_of(shares, st.sampled_from([100, 101])), label="share of the rest")
        rest = channel.deposit - channel.settled
        cumulative = channel.deposit + 1 if share == 101 else channel.settled + rest * share // 100
        assert isinstance(terms.session_key, Actor)
        return cumulative, sign_voucher(self.domain, terms.id, cumulative, terms.session_key.key)

    def settles_a_channel(self, data: st.DataObject) -> None:
        terms = self.a_channel(data)
        cumulative, signature = self.a_voucher(data, terms)
        if terms not in self.model.channels and cumulative:
            return  # a channel of nothing has no deposit: covered by the unit tests
        sender = self.actor(data)
        if data.draw(st.booleans(), label="in a batch"):
            voucher = (terms.payer, terms.session_key, terms.offer_id, cumulative, signature)
            self.do("settle_many", terms.token, terms.payee, [voucher, voucher], sender=sender)
        else:
            parties = (terms.payer, terms.payee, terms.token, terms.session_key, terms.offer_id)
            self.do("settle_channel", *parties, cumulative, signature, sender=sender)

    def closes_a_channel(self, data: st.DataObject, with_voucher: bool, mine: int) -> None:
        terms = self.a_channel(data)
        cumulative, signature = self.a_voucher(data, terms) if with_voucher else (0, b"")
        sender = terms.payee if mine != 4 or with_voucher else self.actor(data)
        self.known[replace(terms, payee=sender)] = None
        parties = (terms.payer, terms.token, terms.session_key, terms.offer_id)
        self.do("close_channel", *parties, cumulative, signature, sender=sender)

    def takes_a_channel_back(self, data: st.DataObject, mine: int, wait: int) -> None:
        """Asks to close, or reclaims if it has asked before."""
        terms = self.a_channel(data)
        sender = terms.payer if mine != 4 else self.actor(data)
        self.known[replace(terms, payer=sender)] = None
        parties = (terms.payee, terms.token, terms.session_key, terms.offer_id)
        if self.do("request_close", *parties, sender=sender):
            self.passes(wait)
        self.do("reclaim", *parties, self.a_receiver(data, sender), sender=sender)

    # Actions: the world.

    def passes(self, seconds: int) -> None:
        self.evm.sleep(seconds)
        self.model.now = self.evm.now

    def time_passes(self, data: st.DataObject, seconds: int) -> None:
        self.passes(seconds)
        self.compare()

    def somebody_forges(self, data: st.DataObject, what: str) -> None:
        """A stranger signs in the place of others, or pretends to be the guardian: nothing comes of it."""
        world, pay = self.world, self.pay
        forger = world.stranger
        assert isinstance(forger, Actor)
        is_channel = what in ("settle", "close", "open channel")
        terms = self.a_channel(data) if is_channel else self.a_stream(data)
        parties = (terms.payer, terms.payee, terms.token, terms.session_key, terms.offer_id)
        start, ahead = self.model.streams.get(terms, NO_STREAM).start, MAX_TIME - self.evm.now
        channel = self.model.channels.get(terms, NO_CHANNEL)
        cumulative = channel.settled + 1
        by_payer = {
            "signatures: not signed by the account",
            "guardian: paused, only exits are open",
            "receiver: no coins, please",  # a contract that is asked for its signature, and has none to give
        }
        by_session_key = {
            "channels: voucher not signed by the session key",
            "channels: voucher above the deposit",
            "channels: nothing to settle",
            "channels: finished",
            "channels: no such channel",
        }
        voucher = sign_voucher(self.domain, terms.id, cumulative, forger.key)
        sender, reasons = forger, by_session_key if is_channel else by_payer
        if what == "open":
            order = Order(terms, 1, 1, MAX, 0, MAX, self.domain)
            name, args = "open_for", (order.struct, order.sign(forger.key), NO_PERMIT)
        elif what == "open channel":
            reasons = by_payer
            promise = ChannelOrder(terms, 1, MAX, 0, MAX, self.domain)
            name, args = "open_channel_for", (promise.struct, promise.sign(forger.key), NO_PERMIT)
        elif what == "extend":
            signature = sign_standing_order(forger.key, self.domain, terms.id, start, ahead, MAX_TIME)
            name, args = "extend_for", (*parties, (ahead, MAX_TIME), signature)
        elif what == "cancel":
            signature = sign_cancel(forger.key, self.domain, terms.id, start, forger, MAX)
            name, args = "cancel_for", (*parties, forger, MAX, signature)
        elif what == "settle":
            name, args = "settle_channel", (*parties, cumulative, voucher)
        elif what == "close":
            sender = terms.payee  # even the payee cannot: it is not the session key
            name, args = "close_channel", (terms.payer, *parties[2:], cumulative, voucher)
        else:
            reasons = {"guardian: not the guardian", "guardian: not the pending guardian"}
            options = [("set_paused", (True,)), ("transfer_guardian", (forger,)), ("accept_guardian", ())]
            name, args = data.draw(st.sampled_from(options), label="office")
        COUNTS["calls to StreamPay"] += 1
        COUNTS["calls that must revert, and did"] += 1
        with pytest.raises(Reverted) as caught:
            getattr(pay, name)(*args, sender=sender)
        assert caught.value.reason in reasons
        self.compare()

    def somebody_donates(self, data: st.DataObject, amount: int) -> None:
        """Coins by force, tokens by a plain transfer: nobody's balance changes."""
        token = self.a_token(data)
        _, contract = self.world.tokens[token]
        if contract is None:
            self.evm.set_balance(self.pay.address, self.evm.balance(self.pay.address) + amount)
        else:
            contract.mint(self.pay.address, amount, sender=self.world.stranger)
        self.model.holding[token] += amount
        self.model.donated[token] += amount
        self.compare()

    def somebody_changes_a_rule(self, data: st.DataObject, what: str, on: bool) -> None:
        """The guardian, a payee, a payer, or the issuer of a token."""
        world = self.world
        if what == "pause":
            self.do("set_paused", on and not data.draw(st.integers(0, 2), label="really"), sender=world.guardian)
        elif what == "reward":
            self.do("set_keeper_reward", on, sender=data.draw(st.sampled_from(world.payees), label="payee"))
        elif what == "nonce":
            nonce = data.draw(st.integers(0, 8), label="nonce")
            sender = data.draw(st.sampled_from(world.payers), label="payer")
            self.do("invalidate_nonces", 0, 1 << nonce, sender=sender)
        elif what == "fee":
            self.model.fee_bps = data.draw(st.sampled_from([1, 100, 10_000]), label="fee") if on else 0
            world.of_kind(Kind.FEE).set_fee(self.model.fee_bps, sender=world.stranger)
        else:
            account = self.actor(data)
            world.of_kind(Kind.BLOCKING).set_blocked(account, on, sender=world.stranger)
            (self.model.blocked.add if on else self.model.blocked.discard)(account)

    def token_arms_itself(self, data: st.DataObject, what: str, after: bool) -> None:
        """In its next move it calls StreamPay, as the account that it is."""
        hostile = self.world.of_kind(Kind.REENTRANT)
        token = hostile.address
        args: tuple[Any, ...]
        if what == "collect":
            payee = data.draw(st.sampled_from(self.world.payees), label="payee")
            args = (token, payee, [t.source for t in self.known if (t.payee, t.token) == (payee, token)][:20])
        elif what == "deposit":
            args = (token, data.draw(amounts, label="amount"))
        else:  # of another token: within a measurement of its own it would give its balance away
            other = next(address for address, kind in self.model.kinds.items() if kind is Kind.PLAIN)
            args = (other, self.model.vault[other, token], token)
        hostile.arm(self.pay.address, self.pay.encode(what, *args), after, False, sender=self.world.stranger)
        self.model.armed = Armed(what, args, after)

    def everybody_could_leave(self, data: st.DataObject, often: int) -> None:
        if often == 4:
            self.everyone_exits()

    # Everybody can leave, at any moment, whoever else does what.

    def everyone_exits(self) -> None:
        """In a snapshot: all stop and take out; nothing is left but what was donated."""
        model, books, paid_out = self.model, self.books, self.paid_out.copy()
        known, settled, rewards = self.known.copy(), self.settled.copy(), self.rewards.copy()
        with self.evm.snapshot():
            self.model = model.copy()
            self.books = Books()
            self.books.vault.update(books.vault)
            self.books.streams.update(books.streams)
            self.books.channels.update(books.channels)
            self.leave()
        self.model, self.books, self.known = model, books, known
        self.paid_out, self.settled, self.rewards = paid_out, settled, rewards

    def leave(self) -> None:
        world = self.world
        if self.model.armed:
            hostile = world.of_kind(Kind.REENTRANT)
            hostile.arm(COIN, b"", False, False, sender=world.stranger)
            self.model.armed = None
        for number, terms in enumerate(list(self.model.streams)):
            parties = (terms.token, terms.session_key, terms.offer_id)
            if number % 2:
                assert self.do("cancel", terms.payee, *parties, COIN, sender=terms.payer)
            else:
                assert self.do("close", terms.payer, *parties, MAX, sender=terms.payee)
        waiting = [t for t, channel in self.model.channels.items() if not channel.finished]
        for terms in waiting:
            if not self.model.channels[terms].requested_at:
                parties = (terms.payee, terms.token, terms.session_key, terms.offer_id)
                assert self.do("request_close", *parties, sender=terms.payer)
        self.passes(900)
        for terms in waiting:
            parties = (terms.payee, terms.token, terms.session_key, terms.offer_id)
            assert self.do("reclaim", *parties, COIN, sender=terms.payer)
        for token, account in [key for key, amount in self.model.vault.items() if amount]:
            to = account
            if token == COIN and account in self.model.refusers:
                to = world.stranger
            elif self.model.kinds[token] is Kind.BLOCKING:
                to = next((a for a in world.accounts if a not in self.model.blocked), world.guardian)
            assert self.do("withdraw_vault", token, self.model.vault[token, account], to, sender=account)
        for token in world.tokens:
            assert self.model.holding[token] == self.model.donated[token], "something is left"


def test_streampay_does_what_the_model_does(world: World) -> None:
    machine = type("Machine", (StreamPayMachine,), {"world": world})
    run_state_machine_as_test(machine)
