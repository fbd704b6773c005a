"""Who waits, who is refused, who is hung up on; and what Prometheus is told of it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from penstock.chain.web3 import Web3Chain
from penstock.types import NATIVE
from provider import asgi, server
from provider.engines.upstream import UpstreamEngine
from provider.errors import ApiError
from provider.limits import Buckets, Queue
from provider.metrics import merged, serving
from tests.deployed import Deployed
from tests.harness import PATIENCE, Node
from tests.provider.rig import MODEL, PROMPT, Buyer, Rig, running, until

# --- the queue -----------------------------------------------------------------------------------


async def test_those_that_pay_for_their_time_go_first() -> None:
    queue, order = Queue(1, 10, 5), []

    async def come(name: str, first: bool) -> None:
        await queue.enter(first)
        order.append(name)
        await asyncio.sleep(0)
        queue.leave()

    await queue.enter(True)
    tasks = [asyncio.create_task(come(name, name.isupper())) for name in "aBcD"]
    await asyncio.sleep(0)
    assert queue.waiting == 4
    queue.leave()
    await asyncio.gather(*tasks)
    assert "".join(order) == "BDac"
    assert await queue.enter(False) == 0.0, "the turn came back"


async def test_the_queue_has_a_bound_and_a_deadline() -> None:
    queue = Queue(1, 1, 0.05)
    await queue.enter(True)
    waiting = asyncio.create_task(queue.enter(True))
    await asyncio.sleep(0)
    with pytest.raises(ApiError, match="too many requests wait") as caught:
        await queue.enter(True)
    assert (caught.value.status, caught.value.code) == (503, "queue_full")
    with pytest.raises(ApiError) as late:
        await waiting
    assert late.value.code == "queue_timeout"
    gone = asyncio.create_task(queue.enter(True))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait({gone})
    queue.leave()
    assert await queue.enter(True) == 0.0, "who left the queue holds no turn"


async def test_a_turn_that_is_given_while_its_waiter_leaves_goes_on() -> None:
    queue = Queue(1, 9, 5)
    await queue.enter(True)
    leaver, stayer = asyncio.create_task(queue.enter(True)), asyncio.create_task(queue.enter(True))
    await asyncio.sleep(0)
    queue.leave()
    leaver.cancel()
    await asyncio.wait({leaver})
    await asyncio.wait_for(stayer, PATIENCE)


def test_a_bucket_fills_again() -> None:
    now = [0.0]
    buckets = Buckets(60, lambda: now[0])
    for _ in range(60):
        buckets.take("a")
    with pytest.raises(ApiError) as caught:
        buckets.take("a")
    assert (caught.value.status, caught.value.headers["retry-after"]) == (429, "1")
    buckets.take("b")
    now[0] = 2.0
    buckets.take("a")
    buckets.take("a")
    with pytest.raises(ApiError):
        buckets.take("a")
    now[0] = 10_000.0
    for _ in range(60):
        buckets.take("a")
    with pytest.raises(ApiError):
        buckets.take("a")


# --- in the gateway ------------------------------------------------------------------------------


async def test_answers_wait_their_turn_and_requests_their_rate(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path
) -> None:
    limits = {"max_running": 1, "queue_length": 1, "queue_seconds": 60, "session_rate": 3, "address_rate": 3}
    async with running(node, chain, deployed.deployment, engine, tmp_path, **limits) as rig:
        one, two = await (await rig.buyer()).arrive(), await (await rig.buyer()).arrive()
        now = time.monotonic()
        admission, queue = rig.provider.admission, rig.provider.gateway.queue
        for buckets in (rig.provider.buckets, rig.provider.gateway._buckets):  # a minute does not pass meanwhile
            buckets._clock = lambda: now
        body = {"model": MODEL, "messages": PROMPT, "max_tokens": 15_000, "ignore_eos": True, "stream": True}
        async with rig.http.stream("POST", "/v1/chat/completions", json=body, headers=one.bearer) as first:
            assert (first.status_code, admission.running) == (200, 1)
            second = asyncio.ensure_future(two.chat())
            await until(lambda: queue.waiting == 1, what="the queue")
            full = await two.chat()
            assert (full.status_code, full.json()["error"]["code"]) == (503, "queue_full")
        assert (await second).status_code == 200
        assert (await two.chat()).status_code == 200
        slow_down = await two.chat()
        assert (slow_down.status_code, slow_down.json()["error"]["code"]) == (429, "rate_limited")
        assert (await one.chat()).status_code == 200, "each session has its own"
        three = await rig.buyer()
        await three.open()
        await three.session()
        refused = await three.post(three.request())
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limited")
        text = rig.provider.metrics.text()
        assert 'penstock_refusals_total{code="queue_full"} 1.0' in text


async def test_clients_that_say_nothing_are_hung_up_on(rig: Rig, buyer: Buyer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.5)
    monkeypatch.setattr(asgi, "BODY_SECONDS", 0.5)
    host, port = rig.url.removeprefix("http://").split(":")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {buyer.token}\r\n".encode()
    for said in (b"", b"GET /hea", head):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(said)
        async with asyncio.timeout(PATIENCE):
            assert await reader.read() == b""
        writer.close()
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(head + b"content-length: 100\r\n\r\n{")
    async with asyncio.timeout(PATIENCE):
        said = await reader.read()
    assert b"408" in said.split(b"\r\n")[0]
    assert b"body_too_slow" in said
    writer.close()
    assert rig.provider.admission.running == 0
    # One that takes its time between requests, and over an answer, is none of them.
    assert (await buyer.chat(max_tokens=300, ignore_eos=True)).status_code == 200


# --- metrics -------------------------------------------------------------------------------------


async def test_metrics_tell_what_happened_and_the_engines_own(rig: Rig, buyer: Buyer) -> None:
    answer = await buyer.chat(max_tokens=5, ignore_eos=True)
    usage = answer.json()["usage"]
    async with buyer.openai() as client:
        stream = await client.chat.completions.create(
            model=MODEL, messages=PROMPT, max_tokens=15_000, stream=True, extra_body={"ignore_eos": True}
        )
        async for _ in stream:
            await buyer.cancel()
            break
        with pytest.raises(Exception, match="cancelled or closed"):
            async for _ in stream:
                pass
    other = await (await rig.buyer()).arrive()
    rig.node.advance(5)
    await until(lambda: rig.provider.projection.now() >= other.start + 5)
    await until(lambda: rig.provider.projection.block == rig.node.height)
    engines = rig.provider.engines.engines
    async with (
        serving("127.0.0.1", 0, rig.provider.metrics, engines) as port,
        httpx.AsyncClient(timeout=PATIENCE) as http,
    ):
        text = (await http.get(f"http://127.0.0.1:{port}/metrics")).text
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    model = ("model", MODEL)
    assert samples["penstock_answers_total", model, ("outcome", "done")] == 1
    assert samples["penstock_answers_total", model, ("outcome", "stream_closed")] == 1
    assert samples["penstock_tokens_total", ("kind", "completion"), model] >= usage["completion_tokens"]
    assert samples["penstock_first_token_seconds_count", model] == 2
    assert samples["penstock_engine_up", ("engine", engines[0].name)] == 1
    assert samples["penstock_block",] == rig.provider.projection.block
    assert samples["penstock_due_base_units", ("token", NATIVE)] > 0
    assert samples["llamacpp:tokens_predicted_total", ("penstock_engine", engines[0].name)] > 0
    assert "penstock_answers" not in (await rig.http.get("/metrics")).text, "not where consumers are"


def test_engines_metrics_become_one() -> None:
    one = '# HELP a_total Things.\n# TYPE a_total counter\na_total 1\na_total{x="y",} 2\n# TYPE b gauge\nb 1 1700\n'
    two = '# HELP a_total Things.\n# TYPE a_total counter\na_total{x="y z"} 3\n# TYPE h histogram\nh_bucket{le="1"} 4\n'
    text = merged([("e1", one), ("e2", two), ("e3", "")])
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert {(s.labels.get("x"), s.labels["penstock_engine"], s.value) for s in families["a"].samples} == {
        (None, "e1", 1),
        ("y", "e1", 2),
        ("y z", "e2", 3),
    }
    assert text.count("# TYPE a_total") == 1
    assert families["h"].samples[0].labels == {"le": "1", "penstock_engine": "e2"}
