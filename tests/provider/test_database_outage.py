"""PostgreSQL stops and starts again under load, or hangs: no answer without its receipt, and all goes on afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from contextlib import suppress

import psycopg
import pytest
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import OperationalError, PendingRollbackError

from penstock.wire.receipts import ACCEPT_HEADER, RECEIPT_HEADER, RECEIPTS_PATH, SignedAccept, SignedReceipt
from provider import cluster
from provider import postgres as lines
from provider.store import Store
from tests.postgres import Cluster
from tests.provider.killed import NAMES, opened, session
from tests.provider.rig import MODEL, PROMPT, Buyer, Rig, until
from tests.provider.test_cluster import Pair, at, pair

__all__ = ["pair"]


class Client:
    """One that asks again and again, answers and streams in turns, and keeps what it was given."""

    def __init__(self, buyer: Buyer) -> None:
        self.buyer = buyer
        self.accepts: list[SignedAccept] = []
        self.receipts: list[SignedReceipt] = []
        self.refused: Counter[tuple[int, str]] = Counter()
        self.leaving = False

    async def run(self) -> None:
        while not self.leaving:
            for stream in (False, True):
                await self._ask(stream)

    async def _ask(self, stream: bool) -> None:
        answer = await self.buyer.chat(max_tokens=6, stream=stream)
        if ACCEPT_HEADER in answer.headers:
            self.accepts.append(SignedAccept.parse(answer.headers[ACCEPT_HEADER]))
        prefix = f": {RECEIPT_HEADER} "
        said = [line.removeprefix(prefix) for line in answer.text.splitlines() if line.startswith(prefix)]
        said += [answer.headers[RECEIPT_HEADER]] if RECEIPT_HEADER in answer.headers else []
        self.receipts += [SignedReceipt.parse(text) for text in said]
        if answer.status_code != 200:
            self.refused[answer.status_code, answer.json()["error"]["code"]] += 1
        elif '"error"' in answer.text:
            (error,) = [line for line in answer.text.splitlines() if line.startswith('data: {"error"')]
            self.refused[200, json.loads(error.removeprefix("data: "))["error"]["code"]] += 1

    async def check(self) -> None:
        """That the provider answers for all that it gave."""
        listed = (await self.buyer.rig.http.get(RECEIPTS_PATH, headers=self.buyer.bearer)).json()["receipts"]
        kept = [SignedReceipt.parse(json.dumps(one)) for one in listed]
        assert [signed.receipt.seq for signed in kept] == list(range(len(kept)))
        assert all(signed in kept for signed in self.receipts), "a receipt that was given is kept"
        for signed in self.accepts:
            (receipt,) = [one.receipt for one in kept if one.receipt.accepted_at == signed.accept.accepted_at]
            assert signed.accept.answered_by(receipt)


async def load(one: Rig, two: Rig) -> list[Client]:
    """Two consumers of each gateway."""
    buyers = [at(rig, await one.buyer()) for rig in (one, one, two, two)]
    return [Client(await buyer.arrive(3600)) for buyer in buyers]


async def more(clients: list[Client], count: int = 4) -> None:
    """Until each has so many receipts more."""
    known = [len(client.receipts) for client in clients]
    await until(lambda: all(len(c.receipts) >= n + count for c, n in zip(clients, known, strict=True)), what="the load")


async def answered_for(*rigs: Rig) -> None:
    async def none_open() -> bool:
        return not await rigs[0].provider.store.unanswered()

    await until(none_open, what="every accept's receipt")
    assert not any(rig.provider.admission.running for rig in rigs)


async def test_a_restart_of_the_database_under_load(pair: Pair, postgres: Cluster) -> None:
    async with pair() as (one, two):
        clients = await load(one, two)
        running = [asyncio.create_task(client.run()) for client in clients]
        for turn in range(6):
            await more(clients)
            if turn > 1 and any(client.refused for client in clients):
                break
            await asyncio.to_thread(postgres.control, "restart", "-m", "immediate")
        for client in clients:
            client.leaving = True
        await asyncio.gather(*running)
        await answered_for(one, two)
        told = sum((client.refused for client in clients), Counter())
        assert told, "they met the outage"
        assert set(told) <= {(503, "state_unavailable"), (200, "state_unavailable"), (503, "moving")}, told
        for client in clients:
            await client.check()
        for rig in (one, two):

            async def well(rig: Rig = rig) -> bool:
                return (await rig.http.get("/ready")).json()["troubles"] == {}

            await until(well, what="a gateway without troubles")
        closed = await asyncio.gather(*(client.buyer.close() for client in clients))
        assert [answer.status_code for answer in closed] == [200] * 4


async def test_an_outage_in_mid_answer_cuts_it_and_both_gateways_go_on(
    pair: Pair, postgres: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pair() as (one, two), contextlib.AsyncExitStack() as impatience:
        clients = await load(one, two)
        for client in clients:
            assert (await client.buyer.chat()).status_code == 200
        buyer = clients[0].buyer
        body = {"model": MODEL, "messages": PROMPT, "max_tokens": 15_000, "ignore_eos": True, "stream": True}
        try:
            async with one.http.stream("POST", "/v1/chat/completions", json=body, headers=buyer.bearer) as answer:
                lines = answer.aiter_lines()
                while '"content":"' not in await anext(lines):
                    pass
                patch = impatience.enter_context(monkeypatch.context())
                patch.setattr(cluster, "FENCE", 0.5)  # only now: before it a machine that stalls would do
                patch.setattr(cluster, "BEAT", 0.2)
                await asyncio.to_thread(postgres.control, "stop", "-m", "immediate")
                rest = [line async for line in lines]
            assert any('"code":"state_unavailable"' in line for line in rest), rest[-3:]
            for client in clients:
                refused = await client.buyer.chat()
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "state_unavailable")
                assert "database" in refused.json()["error"]["message"]
            assert "state" in (await one.http.get("/ready")).json()["troubles"]
        finally:
            await asyncio.to_thread(postgres.control, "start")
            await impatience.aclose()
        for client in clients:

            async def answers(client: Client = client) -> bool:
                return (await client.buyer.chat()).status_code == 200

            await until(answers, what="an answer")
        await answered_for(one, two)
        listed = (await one.http.get(RECEIPTS_PATH, headers=buyer.bearer)).json()["receipts"]
        assert listed[1]["completion_tokens"] > 0, "what was served until it was cut"
        assert not one.provider.admission.stopping
        assert not two.provider.admission.stopping


async def test_a_database_that_hangs_under_load(pair: Pair, postgres: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says nothing for a while, on connections that stay, and goes on where it was."""
    monkeypatch.setattr(lines, "PATIENCE", 3.0)
    async with pair() as (one, two):
        clients = await load(one, two)
        running = [asyncio.create_task(client.run()) for client in clients]
        await more(clients)
        with postgres.frozen():
            await until(lambda: all(client.refused for client in clients), what="what each is told")
            assert "does not answer" in (await one.http.get("/ready")).json()["troubles"]["state"]
        await more(clients)
        for client in clients:
            client.leaving = True
        await asyncio.gather(*running)
        await answered_for(one, two)
        told = sum((client.refused for client in clients), Counter())
        assert set(told) <= {(503, "state_unavailable"), (200, "state_unavailable"), (503, "moving")}, told
        for client in clients:
            await client.check()
        for rig in (one, two):
            assert (await rig.http.get("/ready")).json()["troubles"] == {}
        closed = await asyncio.gather(*(client.buyer.close() for client in clients))
        assert [answer.status_code for answer in closed] == [200] * 4
        assert await one.chain.streams([client.buyer.key.id for client in clients]) == [None] * 4


async def test_what_the_server_may_still_do_is_waited_for(
    postgres: Cluster, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit is on its way when the server hangs. Whether it was written is not told before that is decided."""
    monkeypatch.setattr(lines, "PATIENCE", 1.0)
    async with opened(database) as receipts:
        store, frozen, at_it = receipts.store, [], []

        def freeze(connection: Connection) -> None:
            if not frozen:
                at_it.append(connection.connection.dbapi_connection.info.backend_pid)  # type: ignore[union-attr]
                frozen.extend(postgres.freeze())

        async def held_back() -> bool:
            """The others of the server's processes answer. All that is told is that the session before is not over."""
            with pytest.raises(OperationalError) as told:
                await store.written(job.accept)
            return "statement timeout" in str(told.value)

        event.listen(store.engine, "commit", freeze)
        try:
            job = receipts.begin(session(NAMES[0], 0), b"a request")
            with pytest.raises(OperationalError, match="does not answer"):
                await job.accepted()
            postgres.thaw(*set(frozen) - set(at_it))
            await until(held_back, what="a look-up that waits")
        finally:
            postgres.thaw(*frozen)

        async def decided() -> tuple[bool, object] | None:
            try:
                return await store.written(job.accept)
            except OperationalError:
                return None

        found = await until(decided, what="that the server answers")
        await receipts.flush()
        (kept, receipt) = await store.written(job.accept)
        assert kept == found[0]
        assert (receipt is not None) == kept, "one that is written has its receipt, for nothing"
        assert await store.unanswered() == []


def session_now(connection: Connection) -> int:
    """The server's name of it."""
    return int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())


async def test_who_waits_for_a_silent_server_is_told_with_the_first(
    postgres: Cluster, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "PATIENCE", 1.0)
    store, tries = Store.open(database, owner="test"), []
    event.listen(store.engine, "do_connect", lambda *_: tries.append(1) or None, insert=True)
    try:
        with postgres.frozen():
            found = await asyncio.gather(*(store.run(session_now) for _ in range(50)), return_exceptions=True)
            assert all(isinstance(each, OperationalError) for each in found), found
            assert "does not answer" in str(found[-1])
            assert len(tries) < 5, "one waits for all"
        # Nobody says goodbye on a connection that the network has swallowed: the next one ends its session.
        lost = []

        def lose(connection: Connection) -> None:
            raw = connection.connection.dbapi_connection
            raw.close = lambda: lost.append(raw)  # type: ignore[union-attr, method-assign]
            connection.invalidate()

        async def answers() -> int | None:
            with suppress(OperationalError):
                return await store.run(session_now)
            return None

        before = await until(answers, what="an answer")
        with pytest.raises(PendingRollbackError):
            await store.run(lose)
        assert await store.run(session_now) != before
        with pytest.raises(psycopg.OperationalError, match="terminating"):
            lost[0].execute("SELECT 1")
    finally:
        await store.close()


async def test_a_lock_that_another_keeps_and_a_pause_of_our_own_end_as_outages(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "PATIENCE", 1.0)
    store = Store.open(database, owner="test")

    def pause(connection: Connection) -> None:
        connection.execute(text("SELECT 1"))
        time.sleep(2)  # as a process that is stopped does: others wait for its locks
        connection.execute(text("SELECT 1"))

    try:
        before = await store.run(session_now)
        with psycopg.connect(database) as other:
            other.execute("SELECT pg_advisory_xact_lock(5)")
            with pytest.raises(OperationalError, match="timeout"):
                await store.run(lambda c: c.execute(text("SELECT pg_advisory_xact_lock(5)")) and None)
        assert await store.run(session_now) == before, "the connection is as good as before"
        with pytest.raises(OperationalError):
            await store.run(pause)
        assert store.trouble()
        await store.write_meta("written", "again")
        assert store.trouble() is None
    finally:
        await store.close()
