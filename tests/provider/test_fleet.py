"""Several engines behind one gateway; the guard that runs an engine which is not ours."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
from aiohttp import web

from penstock.chain.web3 import Web3Chain
from penstock.errors import ConfigError
from penstock.wire.receipts import RECEIPT_HEADER, SignedReceipt
from provider.engines import EngineFailed, Fleet
from provider.engines import upstream as upstream_engine
from provider.engines._base import session_for
from provider.engines.guard import __file__ as GUARD
from provider.engines.upstream import UpstreamEngine
from provider.engines.vllm import find
from provider.service import make_engines
from provider.settings import Settings
from tests.deployed import Deployed
from tests.harness import PATIENCE, Node, wait_until
from tests.provider.rig import MODEL, EngineProcess, running, until
from tests.provider.test_vouchers import OFFERS, PROMPT_PRICE, payer


class Counter:
    """A small server that answers every chat with its own name, when it is let."""

    def __init__(self, name: str) -> None:
        self.name, self.asked, self.well = name, 0, True
        self.let = asyncio.Event()
        self.let.set()
        self.url = ""

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": self.name}]}, status=200 if self.well else 500)

    async def embed(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        data = [{"object": "embedding", "index": n, "embedding": [float(len(t)), 0.5]} for n, t in enumerate(texts)]
        await self.let.wait()
        usage = {"prompt_tokens": sum(map(len, texts)), "total_tokens": sum(map(len, texts))}
        return web.json_response({"object": "list", "data": data, "model": body["model"], "usage": usage})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        if not (await request.json()).get("stream"):  # the probe
            return web.json_response({"choices": []})
        self.asked += 1
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await self.let.wait()
        await response.write(
            b'data: {"choices": [{"index": 0, "delta": {"content": "%s"}}]}\n\ndata: [DONE]\n\n' % self.name.encode()
        )
        return response


@asynccontextmanager
async def serving(*names: str) -> AsyncIterator[list[Counter]]:
    runners, found = [], []
    for name in names:
        counter = Counter(name)
        app = web.Application()
        app.router.add_get("/v1/models", counter.models)
        app.router.add_post("/v1/chat/completions", counter.chat)
        app.router.add_post("/v1/embeddings", counter.embed)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        counter.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        counter.stop = runner.cleanup  # type: ignore[attr-defined]
        runners.append(runner)
        found.append(counter)
    try:
        yield found
    finally:
        for runner in runners:
            await runner.cleanup()


def upstream(counter: Counter, model: str = MODEL) -> UpstreamEngine:
    return UpstreamEngine(counter.url, {model: counter.name}, api_key="", start_seconds=PATIENCE, check_seconds=0.5)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines are looked at often, and are not given up because they take their time."""
    patiently = lambda socket, seconds=0: session_for(socket, seconds=PATIENCE)  # noqa: E731
    monkeypatch.setattr(upstream_engine, "session_for", patiently)


@pytest.mark.usefixtures("patient")
async def test_the_least_busy_engine_is_asked_and_a_failing_one_left_out(
    node: Node, chain: Web3Chain, deployed: Deployed, tmp_path: Path
) -> None:
    async with serving("same", "same") as (one, two):
        fleet = Fleet([upstream(one), upstream(two)])
        await fleet.start()
        try:
            async with running(node, chain, deployed.deployment, fleet, tmp_path) as rig:
                buyer = await (await rig.buyer()).arrive()
                one.let.clear()
                two.let.clear()
                answers = [asyncio.ensure_future(buyer.chat()) for _ in range(4)]
                await until(lambda: one.asked + two.asked == 4, what="four requests")
                assert (one.asked, two.asked) == (2, 2)
                assert [engine.running for engine in fleet.engines] == [2, 2]
                one.let.set()
                two.let.set()
                assert {(await answer).status_code for answer in answers} == {200}
                assert [engine.running for engine in fleet.engines] == [0, 0]
                # One is not well: the other gets everything, and nobody notices.
                one.well = False
                await until(fleet.engines[0].trouble, what="the look at it")
                assert {(await buyer.chat()).status_code for _ in range(3)} == {200}
                assert (one.asked, two.asked) == (2, 5)
                assert (await rig.http.get("/ready")).status_code == 200
                one.well = True
                await until(lambda: fleet.engines[0].trouble() is None, what="its return")
                # One is gone between two looks: the request in hand goes to the other.
                two.let.clear()
                held = asyncio.ensure_future(buyer.chat())
                await until(lambda: one.asked == 3, what="the turn of the first")
                await held
                await one.stop()  # type: ignore[attr-defined]
                two.let.set()
                fleet.engines[0]._trouble = None  # type: ignore[attr-defined]
                assert (await buyer.chat()).status_code == 200
                assert fleet.engines[0].trouble()
                await two.stop()  # type: ignore[attr-defined]
                gone = await buyer.chat()
                assert (gone.status_code, gone.json()["error"]["code"]) in (
                    (502, "engine_unreachable"),
                    (503, "engine_unavailable"),
                )
        finally:
            await fleet.stop()


@pytest.mark.usefixtures("patient")
async def test_models_of_different_engines_are_sold_by_one_provider(
    node: Node, chain: Web3Chain, deployed: Deployed, tmp_path: Path
) -> None:
    async with serving("left-inner", "right-inner") as (left, right):
        fleet = Fleet([upstream(left, "left"), upstream(right, "right")])
        await fleet.start()
        offers = ("left=native:0.000001", "right=native:0.000002")
        try:
            async with running(node, chain, deployed.deployment, fleet, tmp_path, offers=offers) as rig:
                listed = (await rig.http.get("/v1/models")).json()["data"]
                assert {model["id"] for model in listed} == {"left", "right"}
                for name in ("left", "right"):
                    buyer = await rig.buyer()
                    buyer.offer = next(o for o in rig.provider.seller.active if o.terms.model == name)
                    await buyer.arrive()
                    answer = await buyer.chat(model=name)
                    assert answer.json()["choices"][0]["message"]["content"] == f"{name}-inner"
                left.well = False
                await until(fleet.trouble, what="the trouble of one model")
                assert (await buyer.chat(model="right")).status_code == 200
        finally:
            await fleet.stop()


@pytest.mark.usefixtures("patient")
async def test_embeddings_are_paid_by_their_prompt(
    node: Node, chain: Web3Chain, deployed: Deployed, tmp_path: Path
) -> None:
    async with serving("inner") as (counter,):
        fleet = Fleet([upstream(counter)])
        await fleet.start()
        try:
            async with running(node, chain, deployed.deployment, fleet, tmp_path, offers=OFFERS) as rig:
                one = await payer(rig).open_channel()
                await one.shake()
                async with one.openai() as client:
                    raw = await client.embeddings.with_raw_response.create(model=MODEL, input=["ab", "cde"])
                    found = raw.parse()
                    assert [item.embedding[0] for item in found.data] == [2.0, 3.0]
                    assert (found.model, found.usage.prompt_tokens) == (MODEL, 5)
                receipt = SignedReceipt.parse(raw.headers[RECEIPT_HEADER]).receipt
                assert (receipt.prompt_tokens, receipt.completion_tokens) == (5, 0)
                assert receipt.amount == 5 * PROMPT_PRICE
                assert (await one.channel())["owed"] == str(receipt.amount)
                for wrong in ({"model": MODEL}, {"model": MODEL, "input": 7}, {"model": "x", "input": "y"}):
                    refused = await rig.http.post("/v1/embeddings", json=wrong, headers=one.bearer)
                    assert refused.status_code in (400, 404)
                counter.let.clear()
                asked = asyncio.ensure_future(
                    rig.http.post("/v1/embeddings", json={"model": MODEL, "input": "x"}, headers=one.bearer)
                )
                await until(lambda: rig.provider.admission.running, what="the request")
                await one.close()
                cut = await asked
                assert (cut.status_code, cut.json()["error"]["code"]) == (402, "channel_closed")
        finally:
            await fleet.stop()


async def test_a_fleet_starts_with_what_is_there_and_takes_the_rest_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("provider.engines.fleet._AGAIN_SECONDS", 0.05)
    async with serving("same", "same") as (one, two):
        two.well = False
        late = UpstreamEngine(two.url, {MODEL: "same"}, api_key="", start_seconds=0.2)
        fleet = Fleet([upstream(one), late])
        await fleet.start()
        try:
            assert [engine.name for engine in fleet.of(MODEL)] == [fleet.engines[0].name]
            two.well = True
            await until(lambda: len(fleet.of(MODEL)) == 2, what="the second")
        finally:
            await fleet.stop()
        lonely = Fleet([UpstreamEngine("http://127.0.0.1:9", {MODEL: "x"}, api_key="", start_seconds=0.1)])
        with pytest.raises(EngineFailed, match="not ready"):
            await lonely.start()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"offers": ("a=native:1", "b=native:1"), "engine_urls": ("a=http://x",)}, "no engine is named for b"),
        ({"offers": ("a=native:1",), "engine_urls": ("c=http://x",)}, "of which nothing is sold"),
        ({"offers": ("a=native:1", "b=native:1"), "engine_models": ("x",), "engine_urls": ("http://x",)}, "MODEL=x"),
        ({"offers": ("a=native:1", "b=native:1")}, "embedded engine has one model"),
        ({"offers": ("a=native:1", "b=native:1"), "vllm": "/v"}, "for one model and adapters"),
    ],
)
def test_engines_that_do_not_fit_what_is_sold(given: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_engines(Settings.model_validate(given))


def test_settings_say_which_engine_has_which_model() -> None:
    given = {
        "offers": ("a=native:1", "b=native:1", "l=native:1"),
        "engine_urls": ("b=http://b?x=y", "b=http://c"),
        "engine_models": ("b=inner",),
        "vllm": "/v",
        "lora": ("l=/adapters/l",),
    }
    fleet = make_engines(Settings.model_validate(given))
    assert [dict(engine.models) for engine in fleet.engines] == [{"b": "inner"}, {"b": "inner"}, {"a": "a", "l": "l"}]
    assert fleet.engines[0].base_url == "http://b?x=y"


def test_a_vllm_that_is_not_there(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "none", Path(sys.executable)):
        with pytest.raises(EngineFailed, match="there is no vLLM"):
            find(str(place))


# --- the guard -----------------------------------------------------------------------------------

PARENT = """
import subprocess, sys, time
guard = subprocess.Popen([sys.executable, "-I", sys.argv[1], "1", "sh", "-c", sys.argv[2]],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
print(guard.stdout.readline(), guard.pid, flush=True)
time.sleep(600)
"""


def group(pgid: int) -> list[int]:
    """Processes of a group that are alive."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == pgid and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


@pytest.mark.parametrize("victim", ["parent", "guard"])
def test_no_worker_outlives_a_parent_that_is_killed(victim: str) -> None:
    command = "trap '' TERM; sleep 600 & sleep 600 & wait"
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, GUARD, command], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert parent.stdout is not None
    pgid, guard = int(parent.stdout.readline()), int(parent.stdout.readline())
    try:
        wait_until(lambda: len(group(pgid)) == 3, what="the workers")
        if victim == "parent":
            parent.kill()
            wait_until(lambda: not group(pgid), what="the end of the group")
            wait_until(lambda: not psutil.pid_exists(guard) or psutil.Process(guard).status() == "zombie")
        else:
            os.kill(guard, signal.SIGKILL)
            wait_until(lambda: len(group(pgid)) == 2, what="the command's end: its workers are the caller's to end")
    finally:
        parent.kill()
        parent.wait()
        if group(pgid):
            os.killpg(pgid, signal.SIGKILL)
        parent.stdout.close()


@pytest.mark.parametrize(("trap", "grace", "status"), [("exit 7", 60, 7), ("", 1, 137)])
def test_told_to_stop_it_asks_and_then_insists(trap: str, grace: int, status: int) -> None:
    command = f"trap '{trap}' TERM; echo up; while :; do sleep 0.05; done"
    guard = subprocess.Popen(
        [sys.executable, "-I", GUARD, str(grace), "sh", "-c", command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert guard.stdin is not None
    assert guard.stdout is not None
    assert guard.stderr is not None
    pgid = int(guard.stdout.readline())
    assert guard.stderr.readline() == "up\n"
    began = time.monotonic()
    guard.stdin.write("stop\n")
    guard.stdin.flush()
    assert guard.wait(timeout=2 * PATIENCE) == status
    assert (time.monotonic() - began >= grace) is not bool(trap)
    assert not group(pgid)
    for pipe in (guard.stdin, guard.stdout, guard.stderr):
        pipe.close()


async def test_an_engine_that_hangs_is_ended_and_started_again(engine_child: EngineProcess) -> None:
    from tests.provider.test_engines import embedded

    engine = embedded()
    engine._check_seconds = 0.3
    await engine.start()
    try:
        first = engine.pid
        assert first is not None
        psutil.Process(first).suspend()
        await until(engine.trouble, what="the suspicion")
        await until(lambda: engine.pid not in (None, first), what="a new one")
        engine._check_seconds = PATIENCE  # that one is well, however long it takes to say so
        await until(lambda: engine.trouble() is None, what="its readiness")
    finally:
        await engine.stop()
