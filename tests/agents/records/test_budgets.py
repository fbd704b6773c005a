"""Budgets: what counts, when is warned, when is stopped."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agents.records.budgets import Budget, BudgetExceeded, Budgets, periods, spent
from penstock.accrual import flow
from penstock.journal import ChannelRecord, Record, State
from penstock.types import NATIVE, Address, OfferId, StreamKey, Token

COIN = Token(NATIVE, "BNB", 18)
ADDRESS = Address("0x" + "01" * 20)
KEY = StreamKey(ADDRESS, ADDRESS, NATIVE, ADDRESS, OfferId("0x" + "02" * 32))
NIGHT = 1_795_219_200
"""2026-11-21 00:00 UTC."""
DAY = 86_400
RATE = 7 * 10**6 + 1
"""A little over 7 base units a second, so that rounding shows."""


def stream(start: int, end: int, *, stop: int = 0, state: State = State.OPEN) -> Record:
    record = Record(KEY, 1, ADDRESS, ADDRESS, "", "m", b"", RATE, end - start, 0, 0, start, state, start, end, stop)
    return replace(record, paid=flow(RATE, stop - start) if stop else 0)


def channel(at: int, *, signed: int, paid: int = 0, state: State = State.OPEN) -> ChannelRecord:
    return ChannelRecord(KEY, 1, ADDRESS, ADDRESS, "", "m", b"", 1, 1, 100, 0, at, 0, state, signed, paid=paid)


def test_a_stream_over_midnight_costs_each_day_what_flowed_in_it() -> None:
    record = stream(NIGHT - 50, NIGHT + 100, stop=NIGHT + 33, state=State.CLOSED)
    before = spent(record, NIGHT - DAY, NIGHT, NIGHT + 500)
    after = spent(record, NIGHT, NIGHT + DAY, NIGHT + 500)
    assert before == flow(RATE, 50)
    assert before + after == record.paid
    assert spent(record, NIGHT + DAY, NIGHT + 2 * DAY, NIGHT + 500) == 0


def test_an_open_stream_costs_what_has_flowed_and_one_second_at_least() -> None:
    record = stream(NIGHT, NIGHT + 100)
    assert spent(record, NIGHT, NIGHT + DAY, NIGHT) == flow(RATE, 1)
    assert spent(record, NIGHT, NIGHT + DAY, NIGHT + 10) == flow(RATE, 10)
    assert spent(record, NIGHT, NIGHT + DAY, NIGHT + 1000) == flow(RATE, 100)
    assert spent(replace(record, start=0, state=State.VOID), NIGHT, NIGHT + DAY, NIGHT + 10) == 0


def test_a_channel_counts_on_the_day_it_was_opened() -> None:
    assert spent(channel(NIGHT, signed=60), NIGHT, NIGHT + DAY, NIGHT) == 60
    assert spent(channel(NIGHT, signed=60, paid=50, state=State.CLOSED), NIGHT, NIGHT + DAY, NIGHT) == 50
    assert spent(channel(NIGHT - 1, signed=60), NIGHT, NIGHT + DAY, NIGHT) == 0


def test_months_end_where_they_do() -> None:
    assert periods(NIGHT)["day"] == ("2026-11-21", NIGHT, NIGHT + DAY)
    key, first, last = periods(NIGHT)["month"]
    assert (key, (last - first) // DAY) == ("2026-11", 30)
    assert [(periods(NIGHT + days * DAY)["month"][0]) for days in (10, 41)] == ["2026-12", "2027-01"]


def test_it_warns_once_at_each_step_and_stops_where_it_should() -> None:
    told: list[str] = []
    open_channels = [channel(NIGHT, signed=49)]
    now = NIGHT
    budgets = Budgets([Budget(COIN, 100, 10_000, True)], lambda: open_channels, now=lambda: now, warn=told.append)
    budgets.check()
    assert told == []
    for signed, count in ((50, 1), (79, 1), (80, 2), (99, 2)):
        open_channels[0] = channel(NIGHT, signed=signed)
        budgets.check()
        budgets.check()
        assert len(told) == count, told
    open_channels[0] = channel(NIGHT, signed=100)
    with pytest.raises(BudgetExceeded, match=r"100 % of the budget for the day .* wait for the next day"):
        budgets.check()
    assert told[-1].startswith("100 %")
    now = NIGHT + DAY
    budgets.check()
    assert [(one.period, one.percent) for one in budgets.standings()] == [("day", 0), ("month", 1)]


def test_one_that_does_not_stop_only_warns_and_other_tokens_do_not_count() -> None:
    told: list[str] = []
    records = [channel(NIGHT, signed=100)]
    Budgets([Budget(COIN, 10, None, False)], lambda: records, now=lambda: NIGHT, warn=told.append).check()
    assert len(told) == 1
    other = Token(Address("0x" + "99" * 20), "TUSD", 6)
    Budgets([Budget(other, 10, None, True)], lambda: records, now=lambda: NIGHT, warn=told.append).check()
    assert len(told) == 1


def test_a_budget_of_nothing_is_used_up() -> None:
    with pytest.raises(BudgetExceeded):
        Budgets([Budget(COIN, 0, None, True)], list, now=lambda: NIGHT, warn=lambda text: None).check()
