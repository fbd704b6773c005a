"""Engines: the one that comes along, and upstream ones that misbehave in every way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from aiohttp import web

from penstock.chain.web3 import Web3Chain
from provider.engines import Dialect, EngineFailed
from provider.engines.embedded import EmbeddedEngine
from provider.engines.upstream import UpstreamEngine
from provider.settings import BUNDLED_MODEL
from tests.deployed import Deployed
from tests.harness import PATIENCE, Node
from tests.provider.rig import MODEL, PROMPT, Buyer, EngineProcess, running, until

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# --- the embedded one ----------------------------------------------------------------------------


def embedded(gguf: Path = BUNDLED_MODEL) -> EmbeddedEngine:
    return EmbeddedEngine(gguf, MODEL, slots=2, context_length=1024, threads=1, start_seconds=PATIENCE)


async def ask(engine: EmbeddedEngine, key: str) -> int:
    body = {"model": MODEL, "messages": PROMPT, "max_tokens": 1}
    async with httpx.AsyncClient(base_url=engine.base_url, timeout=PATIENCE) as http:
        answer = await http.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"})
        return answer.status_code


async def test_the_embedded_engine_starts_answers_and_ends() -> None:
    engine = embedded()
    assert engine.trouble()
    await engine.start()
    try:
        assert engine.trouble() is None
        assert engine.dialect is Dialect.LLAMA_CPP
        assert engine.pid is not None
        child = psutil.Process(engine.pid)
        assert engine.api_key not in " ".join(child.cmdline())
        assert await ask(engine, engine.api_key) == 200
        assert await ask(engine, "other") == 401
        addresses = {c.laddr.ip for c in child.net_connections() if c.status == psutil.CONN_LISTEN}
        assert addresses == {"127.0.0.1"}
    finally:
        await engine.stop()
    assert not child.is_running()
    assert engine.trouble()


async def test_a_crashed_engine_is_started_again() -> None:
    engine = embedded()
    await engine.start()
    try:
        first = engine.pid
        assert first is not None
        psutil.Process(first).kill()
        await until(engine.trouble, what="the crash")
        await until(lambda: engine.trouble() is None and engine.pid not in (None, first), what="the restart")
        assert await ask(engine, engine.api_key) == 200
    finally:
        await engine.stop()


async def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"not a model")
    with pytest.raises(EngineFailed, match=r"broken\.gguf"):
        await embedded(broken).start()
    with pytest.raises(EngineFailed, match="--gguf"):
        await embedded(tmp_path / "missing.gguf").start()


async def test_an_engine_that_has_another_model(engine_child: EngineProcess) -> None:
    engine = UpstreamEngine(engine_child.url, {MODEL: "llama-7b"}, api_key=engine_child.key, start_seconds=PATIENCE)
    with pytest.raises(EngineFailed, match="penstock-tiny: set --engine-model"):
        await engine.start()
    engine = UpstreamEngine(engine_child.url, {MODEL: MODEL}, api_key="wrong", start_seconds=PATIENCE)
    with pytest.raises(EngineFailed, match="--engine-key"):
        await engine.start()
    engine = UpstreamEngine("http://127.0.0.1:9", {MODEL: MODEL}, api_key="", start_seconds=0.2)
    with pytest.raises(EngineFailed, match="not ready after"):
        await engine.start()


async def test_the_url_may_end_in_v1(engine_child: EngineProcess) -> None:
    engine = UpstreamEngine(engine_child.url + "/v1/", {MODEL: MODEL}, api_key=engine_child.key, start_seconds=PATIENCE)
    assert engine.base_url == engine_child.url


# --- upstream ones that misbehave ----------------------------------------------------------------


class BadEngine:
    """Lists its model, passes the first request, and then does what a test says."""

    def __init__(self) -> None:
        self.act: Handler | None = None
        self.asked: list[dict[str, object]] = []
        self.aborted = asyncio.Event()

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "inner-name", "owned_by": "vllm"}]})

    async def health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if self.act is None:
            return web.json_response({"choices": []})
        self.asked.append(body | {"headers": dict(request.headers)})
        try:
            return await self.act(request)
        except (asyncio.CancelledError, ConnectionError):
            self.aborted.set()
            raise


@pytest.fixture
async def bad() -> AsyncIterator[tuple[BadEngine, str]]:
    engine = BadEngine()
    app = web.Application()
    app.router.add_get("/v1/models", engine.models)
    app.router.add_get("/health", engine.health)
    app.router.add_post("/v1/chat/completions", engine.chat)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield engine, f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.fixture
async def customer(
    request: pytest.FixtureRequest,
    bad: tuple[BadEngine, str],
    node: Node,
    chain: Web3Chain,
    deployed: Deployed,
    tmp_path: Path,
) -> AsyncIterator[Buyer]:
    """Of a provider whose engine is the bad one, with short patience where that is what it tries."""
    engine = UpstreamEngine(bad[1], {MODEL: "inner-name"}, api_key="", start_seconds=PATIENCE)
    await engine.start()
    given = getattr(request.node, "callspec", None)
    silent = given is not None and given.params.get("act") in (hangs, falls_silent)
    patience = dict.fromkeys(("engine_answer_seconds", "engine_idle_seconds"), 0.5 if silent else PATIENCE)
    async with running(node, chain, deployed.deployment, engine, tmp_path, **patience) as rig:
        yield await (await rig.buyer()).arrive()
    await engine.stop()


def piece(text: str, **more: object) -> bytes:
    content = {
        "id": "c1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "inner-name",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}],
    } | more
    return b"data: " + json.dumps(content).encode() + b"\n\n"


@asynccontextmanager
async def events(request: web.Request) -> AsyncIterator[web.StreamResponse]:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    yield response


async def says_500(_: web.Request) -> web.Response:
    return web.json_response({"error": {"message": "CUDA out of memory at 0xdeadbeef"}}, status=500)


async def says_400(_: web.Request) -> web.Response:
    return web.json_response({"object": "error", "message": "context too long", "code": 400}, status=400)


async def says_503(_: web.Request) -> web.Response:
    return web.Response(text="overloaded", status=503)


async def says_401(_: web.Request) -> web.Response:
    return web.Response(status=401)


async def has_no_chat(_: web.Request) -> web.Response:
    return web.json_response({"detail": "Not Found"}, status=404)


async def has_lost_its_model(_: web.Request) -> web.Response:
    return web.json_response({"error": {"message": "the model 0xdeadbeef does not exist", "code": 404}}, status=404)


async def says_html(_: web.Request) -> web.Response:
    return web.Response(text="<html>hello</html>", content_type="text/html")


async def streams_garbage(request: web.Request) -> web.StreamResponse:
    async with events(request) as response:
        await response.write(b"<html>no events here</html>\n\n")
    return response


def failing(code: int, *before: bytes, once: asyncio.Event | None = None) -> Handler:
    """As vLLM tells an error once it has said 200; `once`: when a test has seen what came before."""

    async def act(request: web.Request) -> web.StreamResponse:
        async with events(request) as response:
            error = {"message": "0xdeadbeef" if code == 500 else "too many logprobs", "type": "x", "code": code}
            for each in before:
                await response.write(each)
            if once is not None:
                await once.wait()
            elif before:
                await asyncio.sleep(0.1)  # what comes together is judged together: then nothing has been passed on
            await response.write(b"data: " + json.dumps({"error": error}).encode() + b"\n\ndata: [DONE]\n\n")
        return response

    return act


async def says_nothing(request: web.Request) -> web.StreamResponse:
    async with events(request) as response:
        pass
    return response


async def hangs(_: web.Request) -> web.StreamResponse:
    await asyncio.sleep(60)
    raise AssertionError("nobody hung up")


async def hangs_up(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("act", "status", "code"),
    [
        (says_500, 502, "engine_error"),
        (says_400, 400, "invalid_request"),
        (says_503, 503, "engine_busy"),
        (says_401, 502, "engine_error"),
        (has_no_chat, 404, "no_completions"),
        (has_lost_its_model, 502, "engine_error"),
        (says_html, 502, "engine_garbage"),
        (streams_garbage, 502, "engine_garbage"),
        (says_nothing, 502, "engine_error"),
        (failing(400), 400, "invalid_request"),
        (failing(500), 502, "engine_error"),
        (hangs, 504, "engine_timeout"),
        (hangs_up, 502, "engine_unreachable"),
    ],
)
async def test_an_engine_that_fails_before_it_answers(
    bad: tuple[BadEngine, str], customer: Buyer, act: Handler, status: int, code: str, stream: bool
) -> None:
    bad[0].act = act
    answer = await customer.chat(stream=stream)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    assert "0xdeadbeef" not in answer.text, "the engine's inside stays inside"
    assert customer.rig.provider.admission.running == 0
    if act is hangs:
        await asyncio.wait_for(bad[0].aborted.wait(), PATIENCE)


async def breaks_off(request: web.Request) -> web.StreamResponse:
    async with events(request) as response:
        await response.write(piece("one"))
        await response.write(piece("two"))
        assert request.transport is not None
        request.transport.abort()
    return response


async def falls_silent(request: web.Request) -> web.StreamResponse:
    async with events(request) as response:
        await response.write(piece("one"))
        await response.write(piece("two"))
        await asyncio.sleep(60)
    return response


@pytest.mark.parametrize(
    ("act", "code"),
    [
        (breaks_off, "engine_error"),
        (falls_silent, "engine_timeout"),
        (failing(500, piece("one"), piece("two")), "engine_error"),
        (failing(400, piece("one"), piece("two")), "invalid_request"),
    ],
)
async def test_an_engine_that_fails_in_mid_answer(
    bad: tuple[BadEngine, str], customer: Buyer, act: Handler, code: str
) -> None:
    bad[0].act = act
    said: list[str] = []
    async with customer.openai() as client:
        with pytest.raises(openai.APIError) as caught:
            await collect(await client.chat.completions.create(model=MODEL, messages=PROMPT, stream=True), said)
    assert caught.value.code == code
    assert said == ["one", "two"] or isinstance(caught.value, openai.APIStatusError)
    assert "0xdeadbeef" not in caught.value.message
    (row,) = await until(lambda: customer.rig.provider.store.usage(), what="the usage on record")
    assert row.outcome != "done"
    whole = await customer.chat(stream=False)
    assert whole.json()["error"]["code"] == code


async def collect(stream: AsyncIterator[Any], said: list[str]) -> None:
    async for one in stream:
        said.append(one.choices[0].delta.content)


async def speaks_vllm(request: web.Request) -> web.StreamResponse:
    """In crumbs that end in the middle of events, with CRLF, and counting as it goes."""
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    whole = piece('a "usage":{ b') + piece("c") + piece("", choices=[], usage=usage) + b"data: [DONE]\n\n"
    whole = whole.replace(b"\n", b"\r\n")
    async with events(request) as response:
        for at in range(0, len(whole), 7):
            await response.write(whole[at : at + 7])
            await asyncio.sleep(0)
    return response


async def test_events_in_crumbs_arrive_whole_and_renamed(bad: tuple[BadEngine, str], customer: Buyer) -> None:
    bad[0].act = speaks_vllm
    answer = await customer.chat(stream=True)
    pieces = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    assert [p["choices"][0]["delta"]["content"] for p in pieces] == ['a "usage":{ b', "c"]
    assert {p["model"] for p in pieces} == {MODEL}
    assert answer.text.endswith("data: [DONE]\n\n")
    whole = (await customer.chat(stream=False, max_tokens=None, max_completion_tokens=9)).json()
    assert whole["choices"][0]["message"]["content"] == 'a "usage":{ bc'
    assert whole["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    first, second = bad[0].asked
    assert first["model"] == "inner-name"
    assert first["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert first["return_token_ids"] is True, "for the receipt"
    assert second["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert second["stream"] is True
    assert (second["max_tokens"], second["max_completion_tokens"]) == (9, 9), "an engine may know only the older name"


async def test_the_clients_headers_do_not_reach_the_engine(bad: tuple[BadEngine, str], customer: Buyer) -> None:
    bad[0].act = speaks_vllm
    await customer.rig.http.post(
        "/v1/chat/completions",
        json={"model": MODEL, "messages": PROMPT},
        headers=customer.bearer | {"x-vllm-priority": "-5", "x-data-parallel-rank": "1", "cookie": "a=b"},
    )
    (asked,) = bad[0].asked
    names = {name.lower() for name in asked["headers"]}  # type: ignore[union-attr, attr-defined]
    assert names.isdisjoint({"x-vllm-priority", "x-data-parallel-rank", "cookie", "authorization"})


async def test_an_engine_that_is_away_sells_nothing(
    node: Node, chain: Web3Chain, deployed: Deployed, tmp_path: Path
) -> None:
    engine = embedded()
    await engine.start()
    try:
        async with running(node, chain, deployed.deployment, engine, tmp_path, context_length=1024, slots=2) as rig:
            buyer = await (await rig.buyer()).arrive()
            assert engine.pid is not None
            psutil.Process(engine.pid).kill()
            await until(engine.trouble, what="the crash")
            refused = await buyer.chat()
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
            assert refused.headers["retry-after"]
            assert (await rig.http.get("/ready")).status_code == 503

            async def answers() -> bool:
                return (await buyer.chat()).status_code == 200

            await until(answers, what="the engine's return")
            assert (await rig.http.get("/ready")).status_code == 200
    finally:
        await engine.stop()


async def test_a_connection_that_the_engine_closed_meanwhile(bad: tuple[BadEngine, str], customer: Buyer) -> None:
    """It hangs up when the next request comes on a connection that had been idle: asked on another, it answers."""
    bad[0].act = speaks_vllm
    assert (await customer.chat()).status_code == 200
    first, stale = True, False

    async def once(request: web.Request) -> web.StreamResponse:
        nonlocal first, stale
        if not first:
            return await speaks_vllm(request)
        first, stale = False, True
        return await hangs_up(request)

    bad[0].act = once
    assert (await customer.chat()).status_code == 200
    assert stale
