"""The local engine first: when it is asked, when the market is, and a race between both."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from agents.buyer import Model, PriceRange
from agents.local import LocalEngine, LocalSettings, size_of
from agents.records.ledger import Outcome
from penstock.errors import ConfigError, NoOffer
from tests.agents.gateway.rig import CHAT_BODY, COIN, Script, Served, served, words
from tests.harness import PATIENCE
from tests.provider.rig import MODEL, engine_process, stretched


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that is there is found there, however slow the machine is."""
    monkeypatch.setattr("agents.local._CONNECT", PATIENCE)


@dataclass
class Engine:
    """What a local engine does: OpenAI's API, and Ollama's list."""

    url: str = ""
    chunks: list[dict[str, Any]] = field(default_factory=lambda: words("from ", "here"))
    pace: float = 0
    status: int = 200
    done: bool = True
    size: str = "8.0B"
    asked: list[dict[str, Any]] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    held: asyncio.Event | None = None
    """Until this is set, no answer begins."""

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "tiny"}, {"id": "other:latest"}]})

    async def tags(self, request: web.Request) -> web.Response:
        return web.json_response({"models": [{"name": "tiny", "details": {"parameter_size": self.size}}]})

    async def embed(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"embedding": [1.0]}], "usage": {"prompt_tokens": 1}})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(await request.json())
        if self.status != 200:
            return web.json_response({"error": {"message": "out of memory"}}, status=self.status)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        try:
            if self.held is not None:
                await self.held.wait()
            for chunk in self.chunks:
                await asyncio.sleep(self.pace)
                await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
            if self.done:
                await response.write(b"data: [DONE]\n\n")
        except (ConnectionError, asyncio.CancelledError):
            self.left.set()
            raise
        return response


@contextlib.asynccontextmanager
async def both(folder: Path, engine: Engine, script: Script, **settings: Any) -> AsyncIterator[Served]:
    """The gateway before a local engine and a market."""
    app = web.Application()
    app.router.add_get("/v1/models", engine.models)
    app.router.add_get("/api/tags", engine.tags)
    app.router.add_post("/v1/chat/completions", engine.chat)
    app.router.add_post("/v1/embeddings", engine.embed)
    runner = web.AppRunner(app, shutdown_timeout=0.01, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        engine.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        given = msgspec.convert({"url": engine.url, "timeout": PATIENCE} | settings, LocalSettings)
        async with LocalEngine(given) as local, served(folder, script, local=local) as gateway:
            yield gateway
    finally:
        await runner.cleanup()


async def ask(gateway: Served, model: str = "tiny") -> tuple[str, str]:
    """The answer's text, and where it is from."""
    answer = await gateway.http.post("/v1/chat/completions", json=CHAT_BODY | {"model": model})
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"], answer.headers["x-penstock-source"]


HERE, MARKET = ("from here", "local"), ("Hello you", "market")


async def test_what_runs_here_is_asked_first_and_costs_nothing(tmp_path: Path) -> None:
    engine, script = Engine(), Script()
    async with both(tmp_path, engine, script) as gateway:
        assert await ask(gateway) == HERE
        assert await ask(gateway, "auto") == HERE
        assert await ask(gateway, "other@local") == HERE
        assert script.jobs == []
        assert [one["model"] for one in engine.asked] == ["tiny", "tiny", "other:latest"]
        stream = await gateway.http.post("/v1/chat/completions", json=CHAT_BODY | {"stream": True})
        assert "from " in stream.text
        assert stream.text.rstrip().endswith("data: [DONE]")
        embedded = await gateway.http.post("/v1/embeddings", json={"model": "tiny", "input": "x"})
        assert embedded.json()["data"] == [{"embedding": [1.0]}]
        newer = await gateway.http.post("/api/embed", json={"model": "tiny", "input": ["x"]})
        assert (newer.json()["embeddings"], newer.json()["prompt_eval_count"]) == ([[1.0]], 1)
        older = await gateway.http.post("/api/embeddings", json={"model": "tiny", "prompt": "x"})
        assert older.json() == {"embedding": [1.0]}
        assert [(one.source, one.purchases) for one in gateway.ledger.requests()] == [("local", ())] * 7
        names = {one["id"] for one in (await gateway.http.get("/v1/models")).json()["data"]}
        assert names >= {"tiny", "tiny@local", "other:latest@local"}


@pytest.mark.parametrize("model", ["fastest", "cheapest/tiny", "tiny@0xab", "elsewhere"])
async def test_the_market_has_what_is_asked_of_it(tmp_path: Path, model: str) -> None:
    engine, script = Engine(), Script()
    async with both(tmp_path, engine, script) as gateway:
        assert await ask(gateway, model) == MARKET
        assert engine.asked == []


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({"size": "70.6B"}, {"max_size": 8}),
        ({"status": 500}, {}),
        ({"chunks": [], "done": False}, {}),
        ({"chunks": [{"error": "no"}]}, {}),
        ({"pace": 3600}, {"timeout": 0.2}),
        ({}, {"order": "market"}),
    ],
    ids=["too large", "fails", "hangs up", "errs", "too slow", "market first"],
)
async def test_the_market_takes_what_is_too_much_here(
    tmp_path: Path, changes: dict[str, Any], settings: dict[str, Any]
) -> None:
    async with both(tmp_path, Engine(**changes), Script(), **settings) as gateway:
        assert await ask(gateway) == MARKET


async def test_it_takes_what_is_too_many(tmp_path: Path) -> None:
    engine = Engine(held=asyncio.Event())
    async with both(tmp_path, engine, Script(), max_running=1) as gateway:
        first = asyncio.create_task(ask(gateway))
        while not engine.asked:
            await asyncio.sleep(0.01)
        assert await ask(gateway) == MARKET
        engine.held.set()
        assert await first == HERE
        assert await ask(gateway) == HERE


@pytest.mark.parametrize(("price", "source"), [("0.079", "market"), ("0.08", "local")])
async def test_and_what_is_cheaper_there(tmp_path: Path, price: str, source: str) -> None:
    """At 0.8 of what it costs here, 0.1 a million tokens: less than 0.08."""
    asks = int(float(price) * 10**18)
    script = Script()
    model = Model("tiny", 1, (), 1024, (PriceRange(COIN, None, (1, 1), (asks, asks)),))

    async def models() -> list[Model]:
        return [model]

    script.models = models  # type: ignore[method-assign]
    async with both(tmp_path, Engine(), script, cost="0.1", cost_token="BNB") as gateway:
        assert (await ask(gateway))[1] == source


async def test_where_the_market_has_nothing_it_is_the_other_way_round(tmp_path: Path) -> None:
    async with both(tmp_path, Engine(), Script(refusal=NoOffer("nobody")), order="market") as gateway:
        assert await ask(gateway) == HERE
    async with both(tmp_path / "b", Engine(status=500), Script(refusal=NoOffer("nobody"))) as gateway:
        answer = await gateway.http.post("/v1/chat/completions", json=CHAT_BODY)
        assert "out of memory" in answer.json()["error"]["message"]


async def test_here_alone_is_not_bought(tmp_path: Path) -> None:
    script = Script()
    async with both(tmp_path, Engine(status=500), script) as gateway:
        answer = await gateway.http.post("/v1/chat/completions", json=CHAT_BODY | {"model": "tiny@local"})
        assert (answer.status_code, script.jobs) == (502, [])
        missing = await gateway.http.post("/v1/chat/completions", json=CHAT_BODY | {"model": "big@local"})
        assert missing.status_code == 404
        assert "it has tiny, other:latest" in missing.json()["error"]["message"]


@pytest.mark.parametrize(("here", "there", "wins"), [(0, 3600, HERE), (3600, 0, MARKET)])
async def test_in_a_race_the_first_to_speak_wins_and_the_other_is_stopped(
    tmp_path: Path, here: float, there: float, wins: tuple[str, str]
) -> None:
    engine, script = Engine(pace=here), Script(pace=there)
    async with both(tmp_path, engine, script, order="race") as gateway:
        assert await ask(gateway) == wins
        async with asyncio.timeout(PATIENCE):
            await (script.closed if wins == HERE else engine.left).wait()
        (asked,) = gateway.ledger.requests()
        assert (asked.source, asked.outcome) == (wins[1], Outcome.DONE)


async def test_a_race_with_one_that_fails_is_won_by_the_other(tmp_path: Path) -> None:
    async with both(tmp_path, Engine(status=500), Script(pace=0.05), order="race") as gateway:
        assert await ask(gateway) == MARKET
    async with both(tmp_path / "b", Engine(pace=0.05), Script(refusal=NoOffer("nobody")), order="race") as gateway:
        assert await ask(gateway) == HERE
    async with both(tmp_path / "c", Engine(status=500), Script(refusal=NoOffer("nobody")), order="race") as gateway:
        assert (await gateway.http.post("/v1/chat/completions", json=CHAT_BODY)).status_code in (404, 502)


async def test_a_client_that_hangs_up_frees_the_engine(tmp_path: Path) -> None:
    engine = Engine(chunks=words(*["x"] * 5000), pace=0.01)
    async with both(tmp_path, engine, Script(), max_running=1) as gateway:
        async with gateway.http.stream("POST", "/v1/chat/completions", json=CHAT_BODY | {"stream": True}) as answer:
            async for _ in answer.aiter_lines():
                break
        async with asyncio.timeout(PATIENCE):
            await engine.left.wait()


async def test_a_real_engine(tmp_path: Path) -> None:
    with engine_process(stretched(tmp_path / "model.gguf")) as child:
        settings = LocalSettings(url=f"{child.url}/v1", key=child.key)
        async with LocalEngine(settings) as local, served(tmp_path, Script(), local=local) as gateway:
            answer = await gateway.http.post("/v1/chat/completions", json=CHAT_BODY | {"model": MODEL, "max_tokens": 4})
            assert answer.headers["x-penstock-source"] == "local"
            assert answer.json()["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8.0B", 8),
        ("llama-3.2-1b-instruct", 1),
        ("qwen3:0.6b", 0.6),
        ("gemma3_270m", 0.27),
        ("penstock-tiny", None),
        ("v2beta", None),
        ("phi-4", None),
        ("", None),
    ],
)
def test_sizes_in_names(text: str, size: float | None) -> None:
    assert size_of(text) == size


@pytest.mark.parametrize(
    "settings",
    [{"url": "localhost:11434"}, {"timeout": 0}, {"cost": "1"}, {"cost_ratio": 0}, {"max_running": -1}],
)
def test_settings_that_cannot_be(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        LocalSettings(**settings).check()
