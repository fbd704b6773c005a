"""What is not on the chain: receipts that consumers publish, and whether providers answer; on both databases."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from aiohttp import web
from sqlalchemy import select, text

from agents.explorer import _receipts as receipts
from agents.explorer import _schema as schema
from agents.explorer._probe import Prober
from agents.explorer._store import Store, Tip
from penstock.evidence import Source
from penstock.journal import Journal
from penstock.keys import new_session_key
from penstock.types import Address
from penstock.wire.evidence import Piece
from penstock.wire.receipts import SignedReceipt
from tests.agents.explorer.conftest import Rig, on_sqlite
from tests.agents.explorer.shop import IDS, Shop, funded
from tests.agents.explorer.test_api import served, stop_the_clock
from tests.agents.explorer.test_cli import Shell
from tests.deployed import Deployed
from tests.harness import PATIENCE


def lines(signed: Sequence[SignedReceipt]) -> bytes:
    return "\n".join(one.text() for one in signed).encode()


@asynccontextmanager
async def explorer(rig: Rig, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with served(rig, **options) as url, httpx.AsyncClient(base_url=f"{url}/api/v1", timeout=PATIENCE) as http:
        yield http


async def publish(http: httpx.AsyncClient, body: bytes) -> tuple[int, int, dict[int, str]]:
    """Taken, known, and by line why the others were refused."""
    said = (await http.post("/receipts", content=body)).raise_for_status().json()
    return said["taken"], said["known"], {one["line"]: one["reason"] for one in said["refused"]}


async def test_published_receipts_are_judged_and_measured(rig: Rig) -> None:
    shop, payer = await Shop.opened(rig), funded(rig)
    key, start = await shop.sold(payer)
    good = [shop.sign(shop.receipt(key, start, seq, wait=100 + 10 * seq, took=2000)) for seq in range(20)]
    async with explorer(rig) as http:
        path = f"/providers/{shop.account.address}/receipts"
        assert (await http.get(path)).json() == []
        assert await publish(http, lines(good)) == (20, 0, {})
        assert await publish(http, b"\n" + lines(good[:3]) + b"\n\n") == (0, 3, {})
        fresh = shop.receipt(key, start, 20)
        wrong = [
            (shop.sign(fresh, new_session_key()), "was no key of"),
            (shop.sign(fresh, provider=payer.address), "no provider"),
            (shop.sign(fresh, offer_id="0x" + "11" * 32), "has no offer"),
            (shop.sign(fresh, session_id="0x" + "11" * 32), "no session"),
            (shop.sign(fresh, start=start + 1), "no session"),
            (shop.sign(fresh, start=0), "no session"),
            (shop.sign(fresh, first_token_at=fresh.finished_at + 1), "not in order"),
            (shop.sign(fresh, finished_at=2**63), "time to come"),
            (shop.sign(shop.receipt(key, start, 0), completion_tokens=42), "same number"),
            (replace(good[0], signature=bytes(65)), "signature"),
        ]
        taken, known, refused = await publish(http, lines([one for one, _ in wrong]) + b'\n{"no": "receipt"}')
        assert (taken, known) == (0, 0)
        assert all(says in refused[number] for number, (_, says) in enumerate(wrong, 1)), refused
        assert set(refused) == set(range(1, len(wrong) + 2))
        every, by_offer = (await http.get(path)).json()
        assert every | {"offer_id": shop.offer.id, "model": "test/model"} == by_offer
        assert (every["answers"], every["prompt_tokens"], every["completion_tokens"]) == (20, 100, 820)
        assert (every["ttft_p50_ms"], every["ttft_p95_ms"], every["tokens_per_second_p50"]) == (190, 280, 20)
        assert every["last_at"] == good[-1].receipt.finished_at // 1000


async def test_receipts_follow_the_chain_and_outlive_the_store_s_tables(rig: Rig, database: str) -> None:
    """A rotated key signs no more; and what a reorganisation took away does not count, until it is back."""
    shop, payer = await Shop.opened(rig), funded(rig)
    unsold = rig.node.height
    key, start = await shop.sold(payer)
    old, new = shop.signer, new_session_key()
    before = rig.node.height
    async with explorer(rig) as http:
        assert (await publish(http, lines([shop.sign(shop.receipt(key, start))])))[0] == 1

    async def answers(store: Store) -> list[int]:
        return [row["answers"] for row in await store.read(lambda c: receipts.measured(c, shop.account.address))]

    assert await answers(rig.store) == [1, 1]
    rig.node.advance(100)
    await rig.chain._register(shop.account, "set_signer", (shop.account.address, new.address), "rotating the key")
    rotated = (await rig.chain.head()).timestamp
    rig.node.advance(100)
    async with explorer(rig) as http:
        by_old, by_new = (
            [shop.sign(shop.receipt(key, at, wait=0, took=0), signer, start=start, seq=seq) for at, seq in cases]
            for signer, cases in ((old, [(rotated, 1), (rotated + 1, 2)]), (new, [(rotated, 3), (rotated - 1, 4)]))
        )
        taken, _, refused = await publish(http, lines([*by_old, *by_new]))
        assert (taken, sorted(refused)) == (2, [2, 4])
    assert await answers(rig.store) == [3, 3]
    # Tables of another version are filled anew; what was published stays.
    await rig.store._write(lambda c: c.execute(text("UPDATE meta SET value = '0' WHERE name = 'schema'")) and None)
    again = Store.open(database, rig.deployment)
    assert await answers(again) == []
    await rig.another(again).sync()
    assert await answers(again) == [3, 3]
    again.close()
    # A real reorganisation: the rotation and what came after it are gone.
    rig.node.reorg(rig.node.height - before)
    rig.node.mine()
    tip = await rig.indexer.sync()
    assert await answers(rig.store) == [2, 2], "the new key never was this provider's"
    # The store goes back behind the stream, and comes to it again.
    block = await rig.feed.block(unsold)
    assert tip
    assert block
    assert await rig.store.rewind(tip, Tip(block.number, block.hash, block.timestamp))
    assert await answers(rig.store) == []
    await rig.indexer.sync()
    assert await answers(rig.store) == [2, 2]


@on_sqlite
async def test_what_is_too_much_is_refused(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipts, "KEPT", 5)
    stop_the_clock(monkeypatch)
    shop = await Shop.opened(rig)
    key, start = await shop.sold(funded(rig))
    async with explorer(rig) as http:
        assert (await http.post("/receipts", content=b"")).status_code == 400
        for body in (b"x" * (receipts.MAX_BODY + 1), b"{}\n" * (receipts.MAX_LINES + 1)):
            assert (await http.post("/receipts", content=body)).status_code == 413
        taken, _, refused = await publish(http, b"[" * 200_000 + b"\n\xff\n{}")
        assert (taken, sorted(refused)) == (0, [1, 2, 3])
        assert (await publish(http, lines([shop.sign(shop.receipt(key, start, n)) for n in range(9)])))[0] == 9
        every, _ = (await http.get(f"/providers/{shop.account.address}/receipts")).json()
        assert (every["answers"], every["last_at"]) == (5, shop.receipt(key, start, 8).finished_at // 1000)
    async with explorer(rig, per_minute=100) as http:
        codes = [(await http.post("/receipts", content=b"{}")).status_code for _ in range(3)]
        assert codes[0] == 200
        assert codes[-1] == 429
        assert (await http.get("/tokens")).status_code == 200


@on_sqlite
async def test_the_cli_publishes_what_is_on_record(rig: Rig, deployed: Deployed, tmp_path: Path) -> None:
    shop, payer = await Shop.opened(rig), funded(rig)
    key, start = await shop.sold(payer)
    home = tmp_path / "home"
    shell = Shell(rig.node, deployed, home)
    shell._environment |= {"PENSTOCK_ACCOUNT": "env", "PENSTOCK_PRIVATE_KEY": payer.secret.hex()}
    assert (await shell.run("receipts", "publish", "--to", "http://127.0.0.1:9")).code == 0, "there is nothing to send"
    (path,) = home.rglob("*.db")
    slashing = Address(rig.deployment.contracts["Slashing"].address)
    with Journal(path) as journal:
        for seq, refused in ((0, ""), (1, ""), (2, "completion_tokens")):
            signed = shop.sign(shop.receipt(key, start, seq))
            source = Source(rig.deployment.chain_id, slashing, shop.account.address, "http://x", key, start)
            journal.evidence.keep_receipt(source, Piece(signed, key, IDS), received_at=1, refused=refused)
    async with served(rig) as url:
        done = await shell.run("receipts", "publish", "--to", url)
        assert (done.code, done.out.strip()) == (0, "2 published, 0 known there before, 0 refused"), done.err
        done = await shell.run("receipts", "publish", "--to", url + "/", "--json")
        assert (done.code, done.json) == (0, {"taken": 0, "known": 2, "refused": []})
    for to, code, says in (("explorer.example", 2, "is no explorer's URL"), (url, 6, "no explorer answers at")):
        done = await shell.run("receipts", "publish", "--to", to)
        assert (done.code, says in done.err) == (code, True), done.err


# --- uptime ---


@asynccontextmanager
async def answering(provider: str, chain_id: int) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """What a provider's gateway says of itself at a URL. To be changed; `answer` makes another response."""
    names = ("stream_pay", "registry", "staking", "slashing", "license")
    said: dict[str, Any] = {"version": 1, "provider": provider, "endpoint": "http://x", "chain_id": chain_id}
    said |= {"signer": provider, "payee": provider, "offers": [], "contracts": dict.fromkeys(names, provider)}

    async def document(_: web.Request) -> web.StreamResponse:
        answer = said["answer"]() if "answer" in said else web.json_response(said)
        return answer if isinstance(answer, web.StreamResponse) else await answer

    app = web.Application()
    app.router.add_get("/.well-known/penstock.json", document)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", said
    finally:
        await runner.cleanup()


async def test_uptime_is_what_was_asked_and_answered(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async with answering("0x" + "00" * 20, 31337) as (url, said):
        shop = await Shop.opened(rig, url)
        me = shop.account.address
        await rig.indexer.sync()
        monkeypatch.setattr("agents.explorer._probe._WITHIN", PATIENCE)
        prober = Prober(rig.store, rig.deployment, every=60)
        now = time.time()  # all of it within one hour
        monkeypatch.setattr("agents.explorer._probe.time", SimpleNamespace(time=lambda: now))
        answers: list[Any] = [
            {"provider": me},
            {"chain_id": 56},
            {"provider": rig.deployment.stream_pay, "chain_id": 31337},
            {"provider": me.lower()},
            {"answer": lambda: web.Response(body=b" " * 300_000)},
            {"answer": lambda: web.Response(status=302, headers={"location": url + "/.well-known/penstock.json"})},
            {"answer": lambda: web.Response(text="[]")},
        ]
        async with prober.connections() as http:
            seen = []
            for change in answers:
                said.update(change)
                seen.append(await prober._answers(http, me, url))
            assert seen == [True, False, False, True, False, False, False]
            said["answer"] = lambda: asyncio.sleep(3600, web.Response())
            with monkeypatch.context() as patch:
                patch.setattr("agents.explorer._probe._WITHIN", 0.2)
                assert not await prober._answers(http, me, url)
                await prober.round(http)
            del said["answer"]
            await prober.round(http)
        (hour,) = await rig.store.read(
            lambda c: c.execute(select(schema.uptime).where(schema.uptime.c.provider == me)).mappings().all()
        )
        assert (hour["asked"], hour["up"]) == (2, 1)
        # Two days ago it always answered.
        past = {"provider": me, "hour": hour["hour"] - 2 * 86_400, "asked": 2, "up": 2}
        gone = {"provider": me, "hour": hour["hour"] - 8 * 86_400, "asked": 90, "up": 0}
        await rig.store.note(lambda c: c.execute(schema.uptime.insert(), [past, gone]) and None)
        async with explorer(rig) as http:
            found = (await http.get(f"/providers/{me}")).json()
            assert (found["uptime_24h"], found["uptime_7d"]) == (0.5, 0.75)
            listed = {one["id"]: one for one in (await http.get("/providers", params={"limit": 200})).json()["items"]}
            assert (listed[me]["uptime_24h"], listed[me]["uptime_7d"]) == (0.5, 0.75)
            others = [one["uptime_24h"] for id, one in listed.items() if id != me]
            assert others == [0] * len(others), "nobody stands behind the other endpoints"


@on_sqlite
async def test_the_prober_stays_off_private_hosts_of_a_public_chain(rig: Rig) -> None:
    async with answering("0x" + "00" * 20, 56) as (url, said):
        asked: list[int] = []
        shop = await Shop.opened(rig)
        await rig.indexer.sync()
        said["answer"] = lambda: asked.append(1) or web.json_response({})
        public = Prober(rig.store, replace(rig.deployment, chain_id=56), every=60)
        local = Prober(rig.store, rig.deployment, every=60)
        async with public.connections() as http:
            for endpoint in (
                url,
                url.replace("127.0.0.1", "localhost"),
                url.replace("127.0.0.1", "[::ffff:127.0.0.1]"),
            ):
                assert not await public._answers(http, shop.account.address, endpoint)
            assert asked == []
        async with local.connections() as http:
            assert not await local._answers(http, shop.account.address, url)
            assert asked == [1]


@on_sqlite
async def test_a_server_probes_by_itself(rig: Rig) -> None:
    async with answering("0x" + "00" * 20, 31337) as (url, said):
        shop = await Shop.opened(rig, url)
        said["provider"] = shop.account.address
        await rig.indexer.sync()
        async with explorer(rig, prober=Prober(rig.store, rig.deployment, every=0.05)) as http:
            tag = (await http.get("/providers")).headers["etag"]
            async with asyncio.timeout(PATIENCE):
                while not (await http.get(f"/providers/{shop.account.address}")).json()["uptime_24h"]:
                    await asyncio.sleep(0.05)
                # No block came, and yet what a cache has is old.
                while (await http.get("/providers", headers={"if-none-match": tag})).status_code != 200:
                    await asyncio.sleep(0.05)
