"""Accepts and receipts that come together share a transaction, and none of them suffers for another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from penstock.keys import LocalAccount
from penstock.types import NATIVE, Address, Offer, OfferId, Provider, Service, StreamId, Terms
from penstock.wire.receipts import NOTHING, Accept, Receipt, SignedAccept, slashing_domain
from provider.market import Seller
from provider.receipts import Answered, Receipts, following
from provider.store import DRAIN, Last, Session, Store, Usage, vouchers_kept, write_control
from tests.provider.rig import on_both

pytestmark = on_both

ME = Address("0x" + "11" * 20)
OFFER = OfferId("0x" + "22" * 32)
SESSIONS = [StreamId("0x" + digit * 64) for digit in "345"]
SESSION = Session("ses", b"\0" * 32, SESSIONS[0], 7, OFFER, 0.0, "")


def accept(moment: int, session: StreamId = SESSIONS[0]) -> Accept:
    return Accept(ME, OFFER, session, 7, "0x" + "66" * 32, moment)


def usage(moment: int) -> Usage:
    return Usage(moment, "ses", moment, None, moment + 1, 2, 3, True, "done")


@pytest.fixture
def place(state: str, tmp_path: Path) -> str:
    return state or str(tmp_path / "state.sqlite")


@pytest.fixture
async def store(place: str) -> AsyncIterator[Store]:
    store = Store.open(place, owner="test")
    yield store
    await store.close()


def add(store: Store, one: Accept) -> asyncio.Future[None]:
    return store.add_accept(one, 4)


def finish(store: Store, one: Accept, billed: Usage | None = None) -> asyncio.Future[Receipt]:
    def make(last: Last | None) -> Receipt:
        return following(one, Answered(2, 3), one.accepted_at + 5, last, None)

    return asyncio.ensure_future(store.add_receipt(one, make, b"", billed or usage(one.accepted_at)))


async def test_receipts_of_a_session_that_come_together_are_a_chain_across_restarts(place: str) -> None:
    store = Store.open(place, owner="test")
    commits = 0

    def count(_: object) -> None:
        nonlocal commits
        commits += 1

    event.listen(store.engine, "commit", count)
    some = [accept(moment, SESSIONS[moment % 3]) for moment in range(1, 13)]
    await asyncio.gather(*(add(store, one) for one in some))
    made = await asyncio.gather(*(finish(store, one) for one in some))
    assert commits <= 4, "they share transactions"
    await store.close()
    again = Store.open(place, owner="test")
    await add(again, accept(20, SESSIONS[1]))
    made.append(await finish(again, accept(20, SESSIONS[1])))
    for session in SESSIONS:
        chain = [receipt for receipt in made if receipt.session_id == session]
        assert [receipt.seq for receipt in chain] == list(range(len(chain)))
        assert [receipt.previous for receipt in chain] == [NOTHING, *(receipt.hash for receipt in chain[:-1])]
        assert [stored.receipt for stored in await again.receipts_of(session, 7, 0, 100)] == chain
    assert len(await again.usage()) == len(made)
    await again.close()


async def test_one_that_fails_fails_alone(store: Store) -> None:
    """An accept whose moment is taken, a receipt without an accept, a second receipt for one accept."""
    await add(store, accept(1))
    found = await asyncio.gather(
        add(store, accept(1)),
        add(store, accept(2)),
        finish(store, accept(1)),
        finish(store, accept(1), usage(100)),
        finish(store, accept(9)),
        finish(store, accept(2)),
        return_exceptions=True,
    )
    failed = [isinstance(one, Exception) for one in found]
    assert failed == [True, False, False, True, True, False]
    kept = [stored.receipt for stored in await store.receipts_of(SESSIONS[0], 7, 0, 100)]
    assert kept == [found[2], found[5]]
    assert [receipt.seq for receipt in kept] == [0, 1]
    assert {row.accepted_at for row in await store.usage()} == {1, 2}, "nothing is billed without its receipt"


async def test_a_place_that_another_process_took_is_not_taken_again(store: Store) -> None:
    """As where gateways share a database: what is remembered of a session is no longer so."""
    for moment in (1, 2, 3):
        await add(store, accept(moment))
    first = await finish(store, accept(1))
    remembered = dict(store._last)
    second = await finish(store, accept(2))
    store._last |= remembered
    third = await finish(store, accept(3))
    assert [first.seq, second.seq, third.seq] == [0, 1, 2]
    assert third.previous == second.hash


async def test_who_stops_waiting_stops_nothing(store: Store) -> None:
    waiting = add(store, accept(1))
    waiting.cancel()
    await add(store, accept(2))
    assert [one.accepted_at for one in await store.unanswered()] == [1, 2]
    leaving = finish(store, accept(1))
    await asyncio.sleep(0)
    leaving.cancel()
    assert (await finish(store, accept(2))).seq == 1
    assert replace(accept(1)) not in await store.unanswered()


def receipts_of(store: Store) -> Receipts:
    account = LocalAccount(b"\1" * 32)
    provider = Provider(
        ME, ME, NATIVE, ME, account.address, Service.INFERENCE, 0, 1, 0, "0x" + "00" * 32, "http://here", ""
    )
    terms = Terms("model", NATIVE, 10**6, 0, 0, 4, 1024, 0, "", "")
    seller = Seller(account, provider, {OFFER: Offer(OFFER, ME, True, 0, 0, terms)}, 0)
    return Receipts(store, seller, account, slashing_domain(31337, ME), lambda: 1_800_000_000.0)


async def test_an_accept_is_signed_once_it_is_on_the_disk_and_not_before(store: Store) -> None:
    """However soon after that it is asked for."""
    receipts = receipts_of(store)
    for _ in range(20):
        job = receipts.begin(SESSION, b"{}")
        assert not job._kept.done()
        while not job._kept.done():
            await asyncio.sleep(0)
        signed = SignedAccept.parse(await job.accepted())
        signed.require_signed(receipts.domain, receipts.signer.address)
        assert signed.accept == job.accept


class Gone:
    """A database that is gone in the midst of commits: before it has written, or before it can say so."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self._dialect = store.engine.dialect
        self._commit = self._dialect.do_commit
        self.script: list[bool] = []
        """Of the next commits: whether what they write is written."""
        monkeypatch.setattr(self._dialect, "do_commit", self)

    def __call__(self, connection: Any) -> None:
        if not self.script:
            self._commit(connection)
            return
        if self.script.pop(0):
            self._commit(connection)
        raise self._dialect.loaded_dbapi.OperationalError("the server closed the connection")


async def test_what_was_written_though_nobody_heard_of_it_is_not_written_twice(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = Gone(store, monkeypatch)
    gone.script = [True]
    await asyncio.gather(*(add(store, accept(moment)) for moment in (1, 2)))
    gone.script = [True]
    made = await asyncio.gather(*(finish(store, accept(moment)) for moment in (1, 2)))
    assert [receipt.seq for receipt in made] == [0, 1]
    assert [stored.receipt for stored in await store.receipts_of(SESSIONS[0], 7, 0, 100)] == made
    assert len(await store.usage()) == 2
    gone.script = [False]
    await add(store, accept(3))
    assert (await finish(store, accept(3))).previous == made[1].hash


async def test_what_could_not_be_written_is_answered_for_later(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """An accept that nobody heard of has a receipt for nothing; a receipt is written once, with its usage."""
    receipts, gone = receipts_of(store), Gone(store, monkeypatch)
    for is_written in (True, False):
        gone.script = [is_written, False]  # nor can it be looked up
        with pytest.raises(OperationalError):
            await receipts.begin(SESSION, b"{}").written()
    (doubtful,) = await store.unanswered()
    jobs = []
    for number, is_written in enumerate((True, False)):
        jobs.append(receipts.begin(SESSION, b"{}"))
        await jobs[-1].written()
        gone.script = [is_written, False]
        with pytest.raises(OperationalError):
            await jobs[-1].finish(Answered(2, 3), usage(number))
    await receipts.flush()
    assert await store.unanswered() == []
    kept = [stored.receipt for stored in await store.receipts_of(SESSIONS[0], 7, 0, 100)]
    assert {receipt.accepted_at: receipt.completion_tokens for receipt in kept} == {
        doubtful.accepted_at: 0,
        jobs[0].accept.accepted_at: 3,
        jobs[1].accept.accepted_at: 3,
    }
    assert [receipt.seq for receipt in kept] == [0, 1, 2]
    assert [row.accepted_at for row in await store.usage()] == [job.accept.accepted_at for job in jobs]


async def test_the_highest_voucher_is_kept_and_read_by_another_process(store: Store, place: str) -> None:
    for cumulative in (5, 10**30, 7):
        await store.keep_voucher(SESSIONS[0], cumulative, b"%d" % cumulative)
    await store.keep_voucher(SESSIONS[1], 1, b"1")
    kept = {SESSIONS[0]: (10**30, b"%d" % 10**30), SESSIONS[1]: (1, b"1")}
    assert await store.vouchers() == vouchers_kept(place) == kept
    assert await store.vouchers(SESSIONS[1]) == {SESSIONS[1]: (1, b"1")}


async def test_the_operators_word_reaches_a_running_gateway(store: Store, place: str) -> None:
    assert await store.read_meta(DRAIN) is None
    for word in ("since noon", ""):
        write_control(place, DRAIN, word)
        assert await store.read_meta(DRAIN) == word
