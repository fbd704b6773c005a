"""What is worth doing: the planner as a function of books, prices and gas."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from fractions import Fraction

import pytest

from agents.keeper._planner import (
    BATCH_GAS,
    COLLECT_GAS,
    SETTLE_GAS,
    Action,
    Feed,
    Kind,
    Policy,
    plan,
)
from penstock.accrual import StreamState
from penstock.audit import Books
from penstock.channels import CLOSE_DELAY, ChannelState
from penstock.types import NATIVE, Address, OfferId, StandingOrder, StreamId, StreamKey, Voucher
from penstock.wire.keeper import SignedOrder

NOW = 1_000_000
GWEI = 10**9
KEEPER = Address("0x" + "aa" * 20)
PAYEE, OTHER = Address("0x" + "bb" * 20), Address("0x" + "cc" * 20)
PAYER = Address("0x" + "dd" * 20)
TOKEN = Address("0x" + "ee" * 20)
BREAK_EVEN = (BATCH_GAS + COLLECT_GAS) * GWEI * 3 // 2 * 1_000
"""What one stream must have due, in wei, for its reward to be the gas times the margin."""


def key(number: int, payee: Address = PAYEE, token: Address = NATIVE, payer: Address = PAYER) -> StreamKey:
    return StreamKey(payer, payee, token, payer, OfferId(f"0x{number:064x}"))


class Case:
    """Books that a test fills, and what follows from them."""

    def __init__(self) -> None:
        self.books = Books()
        self.vouchers: dict[StreamId, list[Voucher]] = {}
        self.received: dict[StreamId, int] = {}
        self.orders: dict[StreamId, list[SignedOrder]] = {}
        self.opted = {PAYEE}

    def stream(
        self, due: int, *, payee: Address = PAYEE, token: Address = NATIVE, ended: bool = False, since: int = 100
    ) -> StreamId:
        """One that owes exactly `due` by now, last paid `since` seconds ago."""
        at = key(len(self.books.streams), payee, token)
        rate = due * 10**6 // since
        state = StreamState(NOW - since, NOW - since, NOW if ended else NOW + 1_000, rate)
        assert state.withdrawable(NOW) == due
        self.books.streams[at.id] = at, state
        return at.id

    def channel(
        self,
        *sums: int,
        payee: Address = PAYEE,
        payer: Address = PAYER,
        deposit: int = 10**18,
        settled: int = 0,
        requested: int = 0,
        received: int = NOW,
    ) -> StreamId:
        at = key(10_000 + len(self.books.channels), payee, payer=payer)
        self.books.channels[at.id] = at, ChannelState(deposit, settled, requested, False)
        self.vouchers[at.id] = [Voucher(at, cumulative, b"s") for cumulative in sums]
        self.received[at.id] = received
        return at.id

    def order(self, left: int, ahead: int, until: int, *, start: int = NOW - 100) -> StreamId:
        at = key(20_000 + len(self.orders))
        self.books.streams[at.id] = at, StreamState(NOW - 100, NOW, NOW + left, 10**6)
        self.orders[at.id] = [SignedOrder(at, start, StandingOrder(ahead, until), b"signed")]
        return at.id

    def plan(self, policy: Policy | None = None, *, gas_price: int = GWEI, busy: Collection[str] = ()) -> list[Action]:
        return plan(
            self.books,
            policy or Policy(),
            now=NOW,
            gas_price=gas_price,
            keeper=KEEPER,
            opted_in=self.opted.__contains__,
            feed=Feed(self.vouchers, self.received, self.orders),
            busy=busy,
        )


@pytest.fixture
def case() -> Case:
    return Case()


# --- for profit ----------------------------------------------------------------------------------


def test_collects_for_payees_that_agreed_alone(case: Case) -> None:
    agreed = case.stream(10**18)
    case.stream(10**18, payee=OTHER)

    (action,) = case.plan()

    assert (action.kind, action.ids, action.payee) == (Kind.COLLECT, (agreed,), PAYEE)
    assert (action.amount, action.reward, action.gain) == (10**18, 10**15, 10**15)
    assert not action.forced


@pytest.mark.parametrize(("due", "collected"), [(BREAK_EVEN, False), (BREAK_EVEN + 1_000, True)])
def test_collects_from_where_the_reward_exceeds_the_gas_times_the_margin(case: Case, due: int, collected: bool) -> None:
    case.stream(due)

    assert bool(case.plan()) is collected


def test_what_pays_at_one_price_of_gas_does_not_at_another(case: Case) -> None:
    case.stream(BREAK_EVEN + 1_000)

    assert case.plan()
    assert not case.plan(gas_price=GWEI + 1)
    assert not case.plan(Policy(margin=Fraction(2)))


def test_many_small_streams_pay_together(case: Case) -> None:
    # Each pays for itself, none for the transaction.
    each = COLLECT_GAS * GWEI * 1_000 * 2
    ids = {case.stream(each) for _ in range(50)}

    (action,) = case.plan()

    assert set(action.ids) == ids


def test_a_stream_that_does_not_pay_for_itself_waits(case: Case) -> None:
    good = case.stream(10**18)
    case.stream(1_000)

    (action,) = case.plan()

    assert action.ids == (good,)


def test_an_ended_stream_rides_along_but_never_makes_a_batch(case: Case) -> None:
    dust = case.stream(1_000, ended=True)
    assert not case.plan()

    good = case.stream(10**18)
    (action,) = case.plan()

    assert action.ids == (good, dust)


def test_ended_dust_rides_only_as_long_as_the_batch_pays(case: Case) -> None:
    case.stream(BREAK_EVEN + COLLECT_GAS * GWEI * 3 // 2 * 1_000 * 5)
    for _ in range(100):
        case.stream(100, ended=True)

    (action,) = case.plan()

    assert 1 < len(action.ids) < 100
    assert action.gain is not None
    assert action.gain > action.cost * Fraction(3, 2)


@pytest.mark.parametrize(("streams", "batches"), [(200, [200]), (201, [200, 1]), (450, [200, 200, 50])])
def test_splits_batches_at_200(case: Case, streams: int, batches: list[int]) -> None:
    ids = {case.stream(10**18) for _ in range(streams)}

    actions = case.plan()

    assert [len(action.ids) for action in actions] == batches
    assert {id for action in actions for id in action.ids} == ids


def test_batches_are_of_one_payee_and_token(case: Case) -> None:
    case.opted.add(OTHER)
    case.stream(10**18)
    case.stream(10**18, payee=OTHER)
    case.stream(10**18, token=TOKEN)

    actions = case.plan(Policy(prices={TOKEN: Fraction(1)}))

    assert {(action.payee, action.token) for action in actions} == {(PAYEE, NATIVE), (OTHER, NATIVE), (PAYEE, TOKEN)}


def test_the_most_profitable_comes_first(case: Case) -> None:
    case.opted.add(OTHER)
    case.stream(10**18)
    best = case.stream(2 * 10**18, payee=OTHER)

    assert case.plan()[0].ids == (best,)


def test_leaves_what_is_under_way(case: Case) -> None:
    under_way, free = case.stream(10**18), case.stream(10**18)

    (action,) = case.plan(busy=[f"collect:{under_way}"])

    assert action.ids == (free,)


# --- tokens --------------------------------------------------------------------------------------


def test_a_token_without_a_price_is_left_unless_asked_for(case: Case) -> None:
    id = case.stream(10**9, token=TOKEN, since=5_000)

    assert not case.plan()
    (action,) = case.plan(Policy(collect_unpriced=True))

    assert (action.ids, action.gain, action.forced) == ((id,), None, True)


def test_a_token_without_a_price_is_collected_once_in_a_while(case: Case) -> None:
    case.stream(10**9, token=TOKEN, since=3_599)
    ripe = case.stream(10**9, token=TOKEN, since=3_600)
    over = case.stream(10**9, token=TOKEN, since=10, ended=True)

    (action,) = case.plan(Policy(collect_unpriced=True))

    assert set(action.ids) == {ripe, over}


def test_without_a_reward_a_token_is_left(case: Case) -> None:
    case.stream(900, token=TOKEN, ended=True)

    assert not case.plan(Policy(collect_unpriced=True))


def test_a_price_decides(case: Case) -> None:
    # 1,000 dollars of six decimals: the reward is one dollar.
    case.stream(1_000 * 10**6, token=TOKEN)
    cost = (BATCH_GAS + COLLECT_GAS) * GWEI
    dollar = Fraction(cost * 3, 2) / 10**6

    assert not case.plan(Policy(prices={TOKEN: dollar}))
    assert case.plan(Policy(prices={TOKEN: dollar * 2}))


# --- the keeper's own ----------------------------------------------------------------------------


def test_own_streams_are_collected_whatever_they_pay(case: Case) -> None:
    case.stream(100, payee=KEEPER, since=100)
    ripe = case.stream(3_600, payee=KEEPER, since=3_600)
    over = case.stream(10, payee=KEEPER, since=10, ended=True)

    (action,) = case.plan()

    assert set(action.ids) == {ripe, over}
    assert (action.reward, action.forced) == (0, True)


def test_own_channels_are_settled_in_time(case: Case) -> None:
    case.channel(1_000, payee=KEEPER)
    ripe = case.channel(1_000, payee=KEEPER, received=NOW - 3_600)
    leaving = case.channel(1_000, payee=KEEPER, requested=NOW - 1)

    (action,) = case.plan()

    assert set(action.ids) == {ripe, leaving}


def test_reclaims_its_own_channels_and_nobody_elses(case: Case) -> None:
    ripe = case.channel(payer=KEEPER, requested=NOW - CLOSE_DELAY)
    case.channel(payer=KEEPER, requested=NOW - CLOSE_DELAY + 1)
    case.channel(payer=KEEPER)
    case.channel(payer=PAYER, requested=NOW - CLOSE_DELAY)
    case.channel(payer=KEEPER, requested=NOW - CLOSE_DELAY, settled=10**18)

    (action,) = case.plan()

    assert (action.kind, action.ids, action.amount) == (Kind.RECLAIM, (ripe,), 10**18)


# --- vouchers ------------------------------------------------------------------------------------


def test_settles_the_highest_voucher_that_the_deposit_covers(case: Case) -> None:
    id = case.channel(4 * 10**17, 9 * 10**17, 2 * 10**18, settled=10**17)

    (action,) = case.plan()

    assert (action.kind, action.ids, action.amount) == (Kind.SETTLE, (id,), 8 * 10**17)
    assert action.call.args[-2] == 9 * 10**17


def test_vouchers_that_add_nothing_are_left(case: Case) -> None:
    case.channel(10**17, settled=10**17)
    finished = case.channel(10**18)
    at, state = case.books.channels[finished]
    case.books.channels[finished] = at, replace(state, finished=True)

    assert not case.plan()


def test_vouchers_of_channels_that_are_not_known_are_left(case: Case) -> None:
    id = case.channel(10**18)
    del case.books.channels[id]

    assert not case.plan()


def test_settles_for_payees_that_agreed_alone_and_where_it_pays(case: Case) -> None:
    limit = (BATCH_GAS + SETTLE_GAS) * GWEI * 3 // 2 * 1_000
    case.channel(10**18, payee=OTHER)
    case.channel(limit)
    assert not case.plan()

    good = case.channel(limit + 1_000)
    (action,) = case.plan(busy=[f"settle:{id}" for id in list(case.vouchers)[:2]])

    assert action.ids == (good,)


def test_settles_many_at_once(case: Case) -> None:
    for _ in range(201):
        case.channel(10**18)

    assert sorted(len(action.ids) for action in case.plan()) == [1, 200]


# --- standing orders -----------------------------------------------------------------------------


def test_extends_when_little_time_is_left(case: Case) -> None:
    id = case.order(left=59, ahead=600, until=NOW + 7_200)
    case.order(left=60, ahead=600, until=NOW + 7_200)

    (action,) = case.plan()

    assert (action.kind, action.ids, action.amount) == (Kind.EXTEND, (id,), 541)


@pytest.mark.parametrize(
    ("left", "ahead", "until"),
    [
        (0, 600, NOW + 7_200),  # over
        (10, 600, NOW + 10),  # as long as it may be
        (10, 600, NOW - 1),  # its time is over
        (30, 60, NOW + 7_200),  # half of what it looks ahead is left
    ],
)
def test_does_not_extend(case: Case, left: int, ahead: int, until: int) -> None:
    case.order(left, ahead, until)

    assert not case.plan()


def test_never_extends_beyond_what_was_signed(case: Case) -> None:
    case.order(left=10, ahead=600, until=NOW + 30)

    (action,) = case.plan()

    assert action.amount == 20


def test_an_order_for_an_earlier_stream_is_not_followed(case: Case) -> None:
    case.order(left=10, ahead=600, until=NOW + 7_200, start=NOW - 101)

    assert not case.plan()


def test_takes_the_order_that_goes_furthest_and_the_next_when_it_fails(case: Case) -> None:
    id = case.order(left=10, ahead=600, until=NOW + 100)
    case.orders[id].append(replace(case.orders[id][0], order=StandingOrder(600, NOW + 300), signature=b"further"))

    (action,) = case.plan()
    assert action.amount == 290

    (action,) = case.plan(busy=action.tries)
    assert action.amount == 90
    assert not case.plan(busy=action.marks)
