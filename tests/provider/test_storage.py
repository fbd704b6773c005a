"""A disk that is full, a database that is locked, kill -9 under load, and what is forgotten in the end."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from penstock.chain.web3 import Web3Chain
from penstock.wire.receipts import RECEIPT_HEADER, RECEIPTS_PATH, SignedReceipt
from provider.service import state_place
from scripts._ports import free_port
from tests.deployed import Deployed
from tests.harness import PATIENCE, Node
from tests.provider.rig import Buyer, Rig, fresh_account, on_both, until
from tests.provider.test_process import Stage, new_buyer


async def pragma(rig: Rig, text: str) -> None:
    await rig.provider.store.run(lambda c: c.exec_driver_sql(f"PRAGMA {text}") and None)


async def fill(rig: Rig) -> list[int]:
    """No page is left in the file but for what is free within those in use. The bound, to be lifted again."""
    most = [10**6]
    event.listen(
        rig.provider.store.engine,
        "checkout",
        lambda raw, *_: raw.execute(f"PRAGMA max_page_count = {most[0]}") and None,
    )

    async def run(statement: str) -> None:
        await rig.provider.store.run(lambda c: c.exec_driver_sql(statement) and None)

    await run("CREATE TABLE filler (bytes BLOB)")
    most[0] = 1  # as many as there are: it cannot be less
    for size in (3000, 500, 50):
        with pytest.raises(OperationalError, match="full"):
            while True:
                await run(f"INSERT INTO filler VALUES (zeroblob({size}))")
    return most


@pytest.mark.parametrize("stream", [True, False])
async def test_a_full_disk_serves_nothing_that_it_could_not_answer_for(rig: Rig, buyer: Buyer, stream: bool) -> None:
    assert (await buyer.chat()).status_code == 200
    most = await fill(rig)
    refused: list[httpx.Response] = []
    for _ in range(300):  # what is free within the pages is used up first
        answer = await buyer.chat(stream=stream, max_tokens=40)
        if answer.status_code != 200 or '"error"' in answer.text:
            refused.append(answer)
            break
    (told,) = refused
    assert '"code":"state_unavailable"' in told.text, "in the status where there is none yet, else in the last event"
    if told.status_code != 200:
        assert (told.status_code, told.headers["retry-after"]) == (503, "10")
    assert await rig.provider.store.read_meta("none") is None, "what is there can be read"
    ready = (await rig.http.get("/ready")).json()
    assert "full" in ready["troubles"]["state"], "and that is no sign that anything can be written"
    assert rig.provider.admission.running == 0
    most[0] = 10**6
    assert (await buyer.chat()).status_code == 200
    assert "state" not in (await rig.http.get("/ready")).json()["troubles"]

    async def answered_for() -> bool:
        return not await rig.provider.store.unanswered()

    await until(answered_for, what="the receipts that were owed")
    listed = (await rig.http.get(RECEIPTS_PATH, headers=buyer.bearer)).json()["receipts"]
    assert [each["seq"] for each in listed] == list(range(len(listed)))
    assert sum(not each["finished_at"] for each in listed) == 0


async def test_a_locked_database_is_waited_for_and_then_told(rig: Rig, buyer: Buyer) -> None:
    settings, chain = rig.provider.settings, rig.chain
    path = state_place(settings, chain.chain_id, rig.me)
    await pragma(rig, "busy_timeout = 300")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        refused = await buyer.chat()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "state_unavailable")
        await pragma(rig, "busy_timeout = 30000")
        waiting = asyncio.ensure_future(buyer.chat())
        await asyncio.sleep(0.1)
        other.execute("ROLLBACK")
        assert (await waiting).status_code == 200
    assert rig.provider.admission.running == 0


@on_both
async def test_old_ids_go_first_and_receipts_with_their_session(
    rig: Rig, buyer: Buyer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("provider.store._receipts._PRUNED_AT_ONCE", 1)
    store = rig.provider.store
    answer = await buyer.chat()
    receipt = SignedReceipt.parse(answer.headers[RECEIPT_HEADER]).receipt
    now = int(time.time() * 1000) + 60_000
    await store.prune(now - 120_000)
    kept = await store.receipt(receipt.hash)
    assert kept is not None
    assert kept.token_ids
    await store.prune(now)
    kept = await store.receipt(receipt.hash)
    assert kept is not None, "its session is not over"
    assert kept.token_ids is None
    assert kept.receipt == receipt
    again = SignedReceipt.parse((await buyer.chat()).headers[RECEIPT_HEADER]).receipt
    assert (again.seq, again.previous) == (1, receipt.hash)
    await store.forget_sessions([session.id for session in await store.sessions()])
    assert len(await store.usage()) == 2
    await store.prune(now)
    assert await store.receipt(receipt.hash) is None
    assert await store.usage() == []


class Client:
    """One who keeps what it was given."""

    def __init__(self, buyer: Buyer) -> None:
        self.buyer = buyer
        self.receipts: list[str] = []

    def __len__(self) -> int:
        return len(self.receipts)

    async def run(self) -> None:
        """Until the provider is gone: whole answers and streams in turns."""
        with contextlib.suppress(httpx.HTTPError, openai.APIError):
            while True:
                answer = await self.buyer.chat(max_tokens=8)
                self.receipts.append(answer.headers[RECEIPT_HEADER])
                streamed = await self.buyer.chat(max_tokens=8, stream=True)
                said = [line for line in streamed.text.splitlines() if line.startswith(f": {RECEIPT_HEADER} ")]
                self.receipts += [line.removeprefix(f": {RECEIPT_HEADER} ") for line in said]


@on_both
async def test_kill_9_under_load_loses_nothing_that_a_client_has(
    node: Node, chain: Web3Chain, deployed: Deployed, tmp_path: Path, state: str
) -> None:
    stage = Stage(node, deployed, tmp_path, fresh_account(node), state)
    words = ("--port", str(free_port()), "--offer", "native:0.001", "--slots", "4")
    clients: list[Client] = []
    async with contextlib.AsyncExitStack() as stack:
        first = stack.enter_context(stage.started(*words))
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=first.endpoint, timeout=PATIENCE))
        for _ in range(4):
            buyer = await new_buyer(first, stage, node, chain, http)
            await buyer.arrive(3600)
            clients.append(Client(buyer))
        load = [asyncio.create_task(client.run()) for client in clients]
        enough = lambda: all(clients) and sum(map(len, clients)) >= 40  # noqa: E731
        await until(enough, 2 * PATIENCE, "the load")
        first.process.kill()
        first.process.wait()
        await asyncio.gather(*load)
    with stage.started(*words) as second:
        async with httpx.AsyncClient(base_url=second.endpoint, timeout=PATIENCE) as http:
            for client in clients:
                buyer = client.buyer
                buyer.rig.http = http  # type: ignore[misc]
                answer = await buyer.chat(max_tokens=4)
                assert answer.status_code == 200, answer.text
                listed: list[dict[str, Any]] = (await http.get(RECEIPTS_PATH, headers=buyer.bearer)).json()["receipts"]
                assert [each["seq"] for each in listed] == list(range(len(listed)))
                mine = [SignedReceipt.parse(text).receipt for text in client.receipts]
                assert len(listed) - len(mine) in (1, 2), "the new one, and what was running when it was killed"
                for receipt in mine:
                    found = await http.get(f"{RECEIPTS_PATH}/{receipt.hash}")
                    assert found.status_code == 200, "a receipt that was given is kept"
                last = SignedReceipt.parse(answer.headers[RECEIPT_HEADER]).receipt
                assert last.seq == len(listed) - 1
                assert last.accepted_at > max(receipt.finished_at for receipt in mine)
                closed = await buyer.close()
                assert closed.status_code == 200
                (left,) = await chain.streams([buyer.key.id])
                assert left is None, "the chain agrees that it is over"
