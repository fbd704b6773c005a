"""The API: what it says is the chain's, pages do not skip, caches and limits hold, and its description is true."""

from __future__ import annotations

import asyncio
import html
import itertools
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from agents.explorer import _api, _asgi
from agents.explorer._app import Server, app
from agents.explorer._asgi import Buckets
from agents.explorer._indexer import Indexer
from agents.explorer._live import Live
from penstock.accrual import StreamState
from penstock.types import NATIVE, StreamId
from tests.agents.explorer.conftest import Rig, on_sqlite
from tests.harness import PATIENCE
from tests.market import until


@asynccontextmanager
async def served(rig: Rig, indexer: Indexer | None = None, **options: Any) -> AsyncIterator[str]:
    """The real server on a free port, with its indexer; its URL."""
    indexer = indexer or rig.another()
    indexer._poll = 0.05
    await indexer.sync()
    server = Server(app(rig.deployment, rig.store, indexer, **{"per_minute": 0, **options}), port=0)
    task = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await task


@pytest.fixture
async def http(rig: Rig) -> AsyncIterator[httpx.AsyncClient]:
    async with served(rig) as url, httpx.AsyncClient(base_url=f"{url}/api/v1", timeout=PATIENCE) as client:
        yield client


async def every(http: httpx.AsyncClient, path: str, **params: Any) -> list[dict[str, Any]]:
    """All pages of a list, a few at a time."""
    found, after = [], None
    while True:
        given = {**params, "limit": 7} | ({"after": after} if after else {})
        body = (await http.get(path, params=given)).raise_for_status().json()
        assert len(body["items"]) <= 7
        found += body["items"]
        after = body["next"]
        if after is None:
            return found


async def test_what_it_says_is_what_the_chain_says(rig: Rig, http: httpx.AsyncClient) -> None:
    overview = (await http.get("/overview")).json()
    providers = await every(http, "/providers")
    assert overview["block"] == rig.node.height
    assert overview["providers"] == len(providers) == len(await rig.chain.providers())
    for provider in providers:
        assert int(provider["stake"]) == await rig.chain.stake_of(provider["id"])
    assert {o["id"] for o in await every(http, "/offers")} == {o.id for o in await rig.chain.offers() if o.active}
    streams = await every(http, "/streams")
    assert len(streams) == len({(s["id"], s["start"]) for s in streams}) > 10
    running = [s for s in streams if s["status"] == "open"]
    states = await rig.chain.streams([StreamId(s["id"]) for s in running])
    now = overview["timestamp"]
    for shown, state in zip(running, states, strict=True):
        assert isinstance(state, StreamState)
        assert int(shown["cost"]) == state.cost(min(now, state.end))
        assert int(shown["deposit"]) == state.deposit
    flowing = {NATIVE: 0, rig.deployment.tokens["TUSD"]: 0}
    for stream in running:
        flowing[stream["token"]] += int(stream["rate"]) if now < stream["end"] else 0
    assert {token: int(rate) for token, rate in overview["flowing"].items()} == {t: r for t, r in flowing.items() if r}
    events = await every(http, "/events")
    assert [int(e["seq"]) for e in events] == sorted({int(e["seq"]) for e in events}, reverse=True)


@on_sqlite
async def test_one_of_each(rig: Rig, http: httpx.AsyncClient) -> None:
    (fault,) = (await http.get("/faults")).json()["items"]
    assert (fault["kind"], int(fault["slashed"]) > 0) == (1, True)
    provider = (await http.get(f"/providers/{fault['provider'].lower()}")).json()
    assert (provider["faults"], provider["success"] < 1) == (1, True)
    stream = (await http.get("/streams", params={"status": "closed"})).json()["items"][0]
    detail = (await http.get(f"/streams/{stream['id']}")).json()
    names = [event["name"] for event in detail["events"]]
    assert (names[0], names[-1]) == ("Opened", "Closed")
    assert int(detail["paid"]) + int(detail["refund"]) == int(detail["deposit"])
    account = (await http.get(f"/accounts/{stream['payer']}")).json()
    assert int(account["spent"][stream["token"]]) >= int(stream["paid"])
    channel = (await http.get("/channels", params={"status": "closed"})).json()["items"][0]
    detail = (await http.get(f"/channels/{channel['id']}")).json()
    assert int(detail["settled"]) + int(detail["refund"]) == int(detail["deposit"])
    hours = (await http.get("/volume")).json()
    paid = sum(int(s["cost"]) for s in await every(http, "/streams") if s["token"] == NATIVE)
    assert sum(int(h["flowed"]) for h in hours if h["token"] == NATIVE) == paid
    for path in ("/providers", "/offers", "/streams", "/channels"):
        assert (await http.get(f"{path}/0x{'00' * 32}")).status_code == 404


@on_sqlite
async def test_every_event_has_words_of_its_own(rig: Rig) -> None:
    """Two contracts may have an event of one name."""
    async with served(rig) as url, httpx.AsyncClient(base_url=url, timeout=PATIENCE) as http:
        seen = {(e["contract"], e["name"]) for e in await every(http, "/api/v1/events")}
        assert seen >= set(itertools.product(("AgentWallet", "Slashing"), ("Committed",)))
        assert seen >= set(itertools.product(("AgentWallet", "Catalogue"), ("Released",)))
        path: str | None = "/events"
        while path:
            page = await http.get(path)
            assert page.status_code == 200, path
            older = re.search(r'rel="next" href="([^"]+)"', page.text)
            path = older and html.unescape(older[1])


@on_sqlite
async def test_offers_are_filtered_and_searched(http: httpx.AsyncClient) -> None:
    offers = await every(http, "/offers")
    token = offers[-1]["token"]
    rate = sorted(int(o["rate"]) for o in offers if o["token"] == token and int(o["rate"]))[1]
    cases: list[tuple[dict[str, Any], Any]] = [
        ({"model": "QWEN"}, lambda o: "Qwen" in o["model"]),
        ({"region": "eu-"}, lambda o: "eu-" in o["region"]),
        ({"quantization": "fp8"}, lambda o: o["quantization"] == "fp8"),
        ({"token": token, "max_rate": rate}, lambda o: o["token"] == token and 0 < int(o["rate"]) <= rate),
        ({"min_stake": 10**18}, lambda o: int(o["stake"]) >= 10**18),
        ({"min_success": 0.999}, lambda o: o["success"] >= 0.999),
        ({"basis": "token"}, lambda o: int(o["completion_price"]) > 0),
        ({"model": "%"}, lambda o: False),
    ]
    for params, fits in cases:
        wanted = [o["id"] for o in offers if fits(o)]
        assert [o["id"] for o in await every(http, "/offers", **params)] == wanted, params
        assert params["model"] == "%" if "model" in params and not wanted else wanted
    stakes = [int(o["stake"]) for o in await every(http, "/offers", sort="stake")]
    assert stakes == sorted(stakes, reverse=True)
    hits = (await http.get("/search", params={"q": offers[0]["id"][:12]})).json()
    assert {"kind": "offer", "id": offers[0]["id"]}.items() <= hits[0].items()
    assert (await http.get("/search", params={"q": "x"})).status_code == 422


@on_sqlite
async def test_answers_are_cached_until_the_chain_moves(rig: Rig, http: httpx.AsyncClient) -> None:
    first = await http.get("/overview")
    tag = first.headers["etag"]
    again = await http.get("/overview", headers={"if-none-match": tag})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    rig.node.mine()

    async def moved() -> bool:
        return (await http.get("/overview", headers={"if-none-match": tag})).status_code == 200

    await until(moved)


def stop_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of clients' limits: what they may ask again depends on how fast a test runs."""
    for module in (_api, _asgi):
        monkeypatch.setattr(module, "Buckets", partial(Buckets, clock=lambda: 0.0))


@on_sqlite
async def test_each_client_has_its_limit(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_the_clock(monkeypatch)
    async with served(rig, per_minute=40) as url, httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client:
        codes = [(await client.get("/api/v1/tokens")).status_code for _ in range(12)]
        assert codes == [200] * 10 + [429] * 2
        refused = await client.get("/api/v1/tokens")
        assert int(refused.headers["retry-after"]) >= 1
        assert (await client.get("/static/style.css")).status_code == 200


def test_a_bucket_fills_again() -> None:
    now = [0.0]
    limit = Buckets(60, lambda: now[0])
    assert [limit.take("a") <= 0 for _ in range(16)] == [True] * 15 + [False]
    assert limit.take("b") <= 0
    assert 0 < limit.take("a") <= 1
    now[0] += 1
    assert limit.take("a") <= 0
    assert limit.take("a") > 0


@on_sqlite
async def test_news_come_as_they_happen_and_what_was_missed_first(rig: Rig) -> None:
    async with served(rig) as url, httpx.AsyncClient(base_url=f"{url}/api/v1", timeout=PATIENCE) as http:
        last = int((await http.get("/events", params={"limit": 1})).json()["items"][0]["seq"])
        async with http.stream("GET", "/live") as live:
            lines = live.aiter_lines()
            assert await anext(lines) == "retry: 2000"
            await rig.live(sessions=2, seconds=20)
            head = rig.node.height
            told = await read_news(lines, lambda news: news[-1][0] == "block" and news[-1][2]["block"] == head)
            seqs = [seq for kind, seq, _ in told if kind == "event"]
            assert len(seqs) > 5
            assert seqs == sorted(set(seqs))
            assert min(seqs) > last
            rig.node.reorg(10)
            rig.node.mine()
            await read_news(lines, lambda news: news[-1][0] == "reorg")
        async with http.stream("GET", "/live", headers={"last-event-id": str(seqs[0])}) as live:
            lines = live.aiter_lines()
            missed = await read_news(lines, lambda news: len(news) >= 2)
            assert [seq for _, seq, _ in missed] == seqs[1:3]
            assert missed[0][2]["name"]


@on_sqlite
async def test_a_reorganisation_is_told_though_new_events_came_before_the_next_look(rig: Rig) -> None:
    await rig.live(sessions=1, seconds=10)
    await rig.indexer.sync()
    live = Live(rig.store)
    await live.look()
    rig.node.reorg(3)
    await rig.live(sessions=1, seconds=10)
    await rig.indexer.sync()
    async with live.listen() as news:
        await live.look()
        told = news.get_nowait()
    assert told is not None
    assert told.kind == "reorg"


async def read_news(lines: AsyncIterator[str], enough: Any) -> list[tuple[str, int, Any]]:
    told: list[tuple[str, int, Any]] = []
    seq, kind = 0, ""
    async with asyncio.timeout(PATIENCE):
        async for line in lines:
            name, _, rest = line.partition(": ")
            match name:
                case "id":
                    seq = int(rest)
                case "event":
                    kind = rest
                case "data":
                    told.append((kind, seq, json.loads(rest)))
                    if enough(told):
                        break
    return told


@on_sqlite
async def test_a_wallet_is_given_what_the_contract_takes(rig: Rig) -> None:
    """The unsigned transactions open and stop a real stream."""
    async with served(rig) as url, httpx.AsyncClient(base_url=f"{url}/api/v1", timeout=PATIENCE) as http:
        for token in (NATIVE, rig.deployment.tokens["TUSD"]):
            offers = (await http.get("/offers", params={"token": token, "basis": "second"})).json()["items"]
            payer = rig.node.rpc("eth_accounts")[5]
            if token != NATIVE:
                rig.node.mint(token, payer, 10**9)
            body = (await http.get(f"/offers/{offers[0]['id']}/open", params={"payer": payer, "seconds": 600})).json()
            send(rig, payer, body)

            async def opened(token: str = token, payer: str = payer) -> Any:
                found = (await http.get("/streams", params={"payer": payer, "status": "open"})).json()["items"]
                return [s for s in found if s["token"] == token and s["provider"] is not None]

            (stream,) = await until(opened)
            assert stream["end"] - stream["start"] == 600
            send(rig, payer, (await http.get(f"/streams/{stream['id']}/stop")).json())

            async def over(id: str = stream["id"]) -> bool:
                return (await http.get(f"/streams/{id}")).json()["status"] == "closed"

            await until(over)
            assert (await http.get(f"/streams/{stream['id']}/stop")).status_code == 409


def send(rig: Rig, payer: str, body: dict[str, Any]) -> None:
    for one in body["transactions"]:
        rig.node.transact(payer, one["to"], bytes.fromhex(one["data"][2:]), int(one["value"], 16))


@on_sqlite
async def test_the_description_is_true(rig: Rig) -> None:
    """Schemathesis asks everything that the description allows, and much that it does not."""
    async with served(rig) as url:
        schema = await asyncio.to_thread(schemathesis.openapi.from_url, f"{url}/api/v1/openapi.json", timeout=PATIENCE)
        quick = settings(
            max_examples=6, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
        )

        def ask_all() -> int:
            operations = [found.ok() for found in schema.exclude(path="/api/v1/live").get_all_operations()]
            for operation in operations:
                quick(asking(operation))()
            return len(operations)

        assert await asyncio.to_thread(ask_all) >= 18


def asking(operation: Any) -> Any:
    @given(case=operation.as_strategy())
    def ask(case: Any) -> None:
        case.call_and_validate(timeout=PATIENCE)

    return ask
