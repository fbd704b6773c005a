"""Traces: one span for each request, in the client's trace and above the engine's, at a collector that speaks OTLP."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from penstock.chain.web3 import Web3Chain
from tests.deployed import Deployed
from tests.harness import PATIENCE, Node
from tests.provider.rig import MODEL, PROMPT, at_best, fresh_account, until
from tests.provider.test_engines import BadEngine, bad
from tests.provider.test_plain import DONE, LAST, ROLE, counted, event, words
from tests.provider.test_process import Running, Stage, new_buyer
from tests.provider.test_receipts import says

__all__ = ["bad"]

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector:
    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.services: set[str] = set()
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        said = ExportTraceServiceRequest.FromString(await request.read())
        for of_resource in said.resource_spans:
            named = {each.key: each.value.string_value for each in of_resource.resource.attributes}
            self.services.add(named["service.name"])
            self.spans += [span for scope in of_resource.scope_spans for span in scope.spans]
        return web.Response(
            body=ExportTraceServiceResponse().SerializeToString(), content_type="application/x-protobuf"
        )


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    found = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", found.take)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield found
    await runner.cleanup()


def told(span: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


@asynccontextmanager
async def beside(stage: Stage, engine: str) -> AsyncIterator[Running]:
    """A provider's process, whose engine and collector are in this one and must answer meanwhile."""
    words = ("--port", "0", "--offer", "native:0.001", "--engine-url", engine, "--engine-model", "inner-name")
    starting = stage.started(*words)
    process = await asyncio.to_thread(starting.__enter__)
    try:
        yield process
    finally:
        await asyncio.to_thread(starting.__exit__, None, None, None)


async def test_a_request_is_a_span_between_its_clients_and_the_engines(
    bad: tuple[BadEngine, str], collector: Collector, node: Node, chain: Web3Chain, deployed: Deployed, tmp_path: Path
) -> None:
    stage = Stage(node, deployed, tmp_path, fresh_account(node))
    stage.environment |= {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "50"}
    engine, url = bad
    async with beside(stage, url) as process:
        engine.act = says(event(ROLE), event(words("a", 7, made=1)), event(LAST | counted(1)), DONE)
        async with httpx.AsyncClient(base_url=process.endpoint, timeout=PATIENCE) as http:
            buyer = await (await new_buyer(process, stage, node, chain, http)).arrive()
            body = {"model": MODEL, "messages": PROMPT, "stream": True}
            headers = buyer.bearer | {"traceparent": f"00-{TRACE}-{PARENT}-01", "baggage": "secret=1"}
            answer = await http.post("/v1/chat/completions", json=body, headers=headers)
            assert answer.text.endswith("data: [DONE]\n\n")
            (span,) = await until(lambda: collector.spans, what="the span")
            assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
            sent = {name.lower(): value for name, value in engine.asked[-1]["headers"].items()}  # type: ignore[attr-defined]
            assert sent["traceparent"] == f"00-{TRACE}-{span.span_id.hex()}-01"
            assert "baggage" not in sent
            assert span.name == "POST /v1/chat/completions"
            said = told(span)
            offer, session = said.pop("penstock.offer"), said.pop("penstock.session")
            assert offer == buyer.offer.id
            assert session.startswith("ses_")
            assert abs(said.pop("penstock.accepted_at") / 1000 - time.time()) < 600
            assert 0 <= said.pop("penstock.time_to_first_token") < PATIENCE
            assert said == {
                "http.request.method": "POST",
                "url.path": "/v1/chat/completions",
                "http.response.status_code": 200,
                "gen_ai.operation.name": "chat",
                "gen_ai.request.model": MODEL,
                "gen_ai.usage.input_tokens": 3,
                "gen_ai.usage.output_tokens": 1,
                "penstock.outcome": "done",
            }
            assert PROMPT[0]["content"] not in str(span)
            assert 0 < span.end_time_unix_nano - span.start_time_unix_nano < PATIENCE * 1e9
            # What is refused is a span, too, of a trace of its own where the client names none, or none that is one.
            await http.post("/v1/responses", json={}, headers={"authorization": "Bearer x", "traceparent": "zz"})
            await until(lambda: len(collector.spans) == 2, what="the second span")
            refused = collector.spans[1]
            assert refused.parent_span_id == b""
            assert (told(refused)["error.type"], told(refused)["http.response.status_code"]) == ("invalid_token", 401)
            # The last one is sent when the process ends.
            await http.post("/v1/embeddings", json={})
        assert await asyncio.to_thread(process.stop) == 0
    assert told(collector.spans[-1])["gen_ai.operation.name"] == "embeddings"
    assert collector.services == {"penstock-provider"}


async def test_a_collector_that_is_away_delays_nobody(
    bad: tuple[BadEngine, str], node: Node, chain: Web3Chain, deployed: Deployed, tmp_path: Path
) -> None:
    stage = Stage(node, deployed, tmp_path, fresh_account(node))
    stage.environment |= {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_BSP_SCHEDULE_DELAY": "50"}
    engine, url = bad
    engine.act = says(event(words("a", 7, made=1)), event(LAST | counted(1)), DONE)

    async def end() -> float:
        async with beside(stage, url) as process:
            async with httpx.AsyncClient(base_url=process.endpoint, timeout=PATIENCE) as http:
                buyer = await (await new_buyer(process, stage, node, chain, http)).arrive()
                assert (await buyer.chat()).status_code == 200
            began = time.monotonic()
            assert await asyncio.to_thread(process.stop) == 0
            return time.monotonic() - began

    await at_best(end, 15, 3)


def test_nothing_of_it_is_imported_where_nobody_asks_for_it() -> None:
    code = "import sys, provider.service; print('opentelemetry.sdk' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"
