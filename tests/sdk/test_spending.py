"""Caps that the journal holds: what counts, for how long, and for every process that uses it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.accrual import flow
from penstock.caps import Caps
from penstock.errors import CapExceeded
from penstock.journal import ChannelRecord, Journal, Limit, Purse, Record, State
from penstock.keys import new_session_key
from penstock.types import Address, OfferId, StreamKey, Token, address
from tests.harness import PATIENCE

TOKEN = Token(address("0x" + "11" * 20), "TUSD", 6)
OTHER = Token(address("0x" + "22" * 20), "OTHER", 6)
PAYER, PAYEE, PAY = (address("0x" + digit * 40) for digit in "345")
RATE = 10**6
"""A base unit a second."""
NOW = 1_800_000_000


def key(token: Token = TOKEN, payer: Address = PAYER) -> StreamKey:
    return StreamKey(payer, PAYEE, token.address, new_session_key().address, OfferId("0x" + "0f" * 32))


def stream(seconds: int, token: Token = TOKEN, payer: Address = PAYER) -> Record:
    return Record(key(token, payer), 31337, PAY, PAYEE, "http://x", "m", b"", RATE, seconds, 0, 0, NOW)


def channel(deposit: int, token: Token = TOKEN) -> ChannelRecord:
    return ChannelRecord(key(token), 31337, PAY, PAYEE, "http://x", "m", b"", 1, 1, deposit, 0, NOW)


def limit(now: int = NOW, token: Token = TOKEN, **caps: int) -> Limit:
    return Limit(token, replace(Caps(), **caps), now)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal.db") as journal:
        yield journal


@pytest.mark.parametrize("name", ["payment", "hour", "day", "week"])
def test_each_cap_is_exact_and_nothing_is_recorded_where_it_forbids(journal: Journal, name: str) -> None:
    if name != "payment":
        journal.intend_channel(channel(400), limit())
        journal.intend(stream(500), limit())
    left = 1_000 if name == "payment" else 100
    refused = stream(left + 1)
    with pytest.raises(CapExceeded, match=f"the cap per {name} of 0.001 TUSD.*this software alone") as error:
        journal.intend(refused, limit(**{name: 1_000}))
    assert (error.value.cap, error.value.contract) == (name, False)
    assert journal.get(refused.id) is None
    locked = channel(left + 1)
    with pytest.raises(CapExceeded):
        journal.intend_channel(locked, limit(**{name: 1_000}))
    assert journal.channel(locked.id) is None
    journal.intend(stream(left), limit(**{name: 1_000}))


def test_what_is_paid_at_once_counts_for_the_window_unless_it_was_not_paid(journal: Journal) -> None:
    purse = Purse(31337, PAY, PAYER, TOKEN.address)
    journal.pay("first", purse, 600, limit(hour=1_000), NOW)
    with pytest.raises(CapExceeded, match="the cap per hour of 0.001 TUSD, of which 0.0006 TUSD"):
        journal.intend(stream(401), limit(hour=1_000))
    journal.intend(stream(100), limit(hour=1_000))
    with pytest.raises(CapExceeded):
        journal.pay("second", purse, 301, limit(hour=1_000), NOW)
    journal.pay("second", purse, 300, limit(hour=1_000), NOW)
    journal.unpaid("second")
    with pytest.raises(CapExceeded):
        journal.pay("third", purse, 301, limit(hour=1_000), NOW)
    journal.pay("third", purse._replace(token=OTHER.address), 1_000, limit(hour=1_000, token=OTHER), NOW)
    journal.pay("fourth", purse, 900, limit(now=NOW + 3_600, hour=1_000), NOW + 3_600)


def test_what_is_over_counts_what_it_cost_for_the_window(journal: Journal) -> None:
    bought = stream(1_000)
    journal.intend(bought, limit(hour=1_000))
    journal.opened(bought.id, start=NOW, end=NOW + 1_000)
    journal.closed(
        bought.id, start=NOW, end=NOW + 1_000, stop=NOW + 300, paid=300, refund=700, refund_to=PAYER, at=NOW + 310
    )
    locked = channel(700)
    journal.intend_channel(locked, limit(now=NOW + 311, hour=1_000))
    with pytest.raises(CapExceeded, match="of which 0.001 TUSD is used or locked"):
        journal.intend(stream(1), limit(now=NOW + 311, hour=1_000))
    journal.channel_closed(locked.id, deposit=700, paid=1, refund=699, refund_to=PAYER, at=NOW + 400)
    with pytest.raises(CapExceeded):
        journal.intend(stream(700), limit(now=NOW + 3_909, hour=1_000))
    journal.intend(stream(699), limit(now=NOW + 3_909, hour=1_000))
    journal.intend(stream(300), limit(now=NOW + 3_910, hour=1_000))
    with pytest.raises(CapExceeded):
        journal.intend(stream(1), limit(now=NOW + 3_910, day=1_300))


def test_what_never_opened_counts_nothing(journal: Journal) -> None:
    bought, locked = stream(600), channel(400)
    journal.intend(bought, limit(hour=1_000))
    journal.intend_channel(locked, limit(hour=1_000))
    journal.void(bought.id)
    journal.set_channel(locked.id, state=State.VOID)
    journal.intend(stream(1_000), limit(hour=1_000))


def test_a_top_up_counts_before_it_is_paid(journal: Journal) -> None:
    bought, locked = stream(500), channel(200)
    journal.intend(bought, limit(hour=1_000))
    journal.opened(bought.id, start=NOW, end=NOW + 500)
    journal.intend_channel(locked, limit(hour=1_000))
    journal.reserve(bought.id, 100, limit(hour=1_000))
    journal.reserve_channel(locked.id, 150, limit(hour=1_000))
    with pytest.raises(CapExceeded):
        journal.reserve(bought.id, 51, limit(hour=1_000))
    with pytest.raises(CapExceeded):
        journal.reserve_channel(locked.id, 51, limit(hour=1_000))
    journal.reserve_channel(locked.id, -150, None)  # it was refused
    journal.opened(bought.id, start=NOW, end=NOW + 600)
    with pytest.raises(CapExceeded):
        journal.reserve(bought.id, 201, limit(hour=1_000))
    journal.reserve(bought.id, 200, limit(hour=1_000))


def test_other_tokens_and_payers_do_not_count(journal: Journal) -> None:
    journal.intend(stream(900, OTHER), None)
    journal.intend(stream(900, payer=PAYEE), None)
    journal.intend_channel(channel(900, OTHER), None)
    journal.intend(stream(1_000), limit(hour=1_000))


def test_large_amounts_are_exact(journal: Journal) -> None:
    journal.intend_channel(channel(2**90 + 1), limit(hour=2**91))
    with pytest.raises(CapExceeded):
        journal.intend_channel(channel(2**90), limit(hour=2**91))
    journal.intend_channel(channel(2**90 - 1), limit(hour=2**91))


def _buy(path: Path, start: object, bought: object) -> None:
    with Journal(path) as journal:
        start.wait()  # type: ignore[attr-defined]
        for _ in range(20):
            try:
                journal.intend(stream(10), limit(hour=100))
            except CapExceeded:
                continue
            with bought.get_lock():  # type: ignore[attr-defined]
                bought.value += 1  # type: ignore[attr-defined]


def test_processes_share_the_caps(tmp_path: Path) -> None:
    """Three at once want six times as much as there is."""
    path, context = tmp_path / "journal.db", multiprocessing.get_context("spawn")
    start, bought = context.Barrier(3), context.Value("i", 0)
    workers = [context.Process(target=_buy, args=(path, start, bought)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(2 * PATIENCE)
        assert worker.exitcode == 0
    assert bought.value == 10
    with Journal(path) as journal:
        assert sum(flow(record.rate, record.duration) for record in journal.all()) == 100
