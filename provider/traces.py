"""A span for each request, sent by OTLP where `OTEL_EXPORTER_OTLP_ENDPOINT` says; without that, nothing is imported.

OpenTelemetry's own variables configure it all: the sampler, the service's name, headers, the batch. The span continues
the client's trace, and the engine continues the span's: both by W3C's `traceparent`. No words of a prompt or an answer
are in it.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import structlog

from penstock.wire.completions import CHAT, EMBEDDINGS, TEXT
from penstock.wire.responses import RESPONSES
from provider.asgi import App, Message, Receive, Scope, Send
from provider.store import Usage

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

log = structlog.get_logger("provider.traces")

_STOP_SECONDS = 2.0
"""How long the last spans may keep the process from ending."""
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_KINDS = {CHAT: "chat", RESPONSES: "chat", TEXT: "text_completion", EMBEDDINGS: "embeddings"}
"""Operations, as the conventions for generative AI call them."""


class Traces:
    """None: nobody collects them."""

    def around(self, app: App) -> App:
        """The same application, with a span for each request."""
        return app

    def onward(self) -> Mapping[str, str] | None:
        """Headers that tell the engine what the request at hand belongs to."""
        return None

    def served(self, usage: Usage, model: str, offer: str) -> None:
        """What became of the request at hand."""

    def refused(self, code: str) -> None:
        """Why it was not served, or not to its end."""


OFF = Traces()


class _Spans(Traces):
    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer = provider.get_tracer("penstock.provider")
        self._current = trace.get_current_span
        self._words = TraceContextTextMapPropagator()

    def around(self, app: App) -> App:
        from opentelemetry.trace import SpanKind, Status, StatusCode

        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            path, method = scope["path"], scope["method"]
            told = {"http.request.method": method, "url.path": path, "gen_ai.operation.name": _KINDS.get(path, "")}
            sent = {
                name.decode("latin-1"): value.decode("latin-1")
                for name, value in scope["headers"]
                if name in (b"traceparent", b"tracestate")
            }
            with self._tracer.start_as_current_span(
                f"{method} {path}", self._words.extract(sent), SpanKind.SERVER, told, set_status_on_exception=False
            ) as span:

                async def heard(message: Message) -> None:
                    if message["type"] == "http.response.start":
                        status = message["status"]
                        span.set_attribute("http.response.status_code", status)
                        if status >= 500:
                            span.set_status(Status(StatusCode.ERROR))
                    await send(message)

                await app(scope, receive, heard)

        return traced

    def onward(self) -> Mapping[str, str]:
        headers: dict[str, str] = {}
        self._words.inject(headers)
        return headers

    def served(self, usage: Usage, model: str, offer: str) -> None:
        told: dict[str, Any] = {
            "gen_ai.request.model": model,
            "gen_ai.usage.input_tokens": usage.prompt_tokens,
            "gen_ai.usage.output_tokens": usage.completion_tokens,
            "penstock.offer": offer,
            "penstock.session": usage.session_id,
            "penstock.accepted_at": usage.accepted_at,
            "penstock.outcome": usage.outcome,
        }
        if usage.first_token_at is not None:
            told["penstock.time_to_first_token"] = usage.first_token_at - usage.started_at
        self._current().set_attributes(told)

    def refused(self, code: str) -> None:
        self._current().set_attribute("error.type", code)


@asynccontextmanager
async def tracing() -> AsyncIterator[Traces]:
    """Those that the environment asks for. What is not sent at the end gets a moment."""
    if not any(os.environ.get(name) for name in _ENDPOINTS):
        yield OFF
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError:
        log.warning("no traces are sent: OpenTelemetry is not installed", cure="pip install 'penstock[provider,otel]'")
        yield OFF
        return
    named = {"service.name": "penstock-provider", **OTELResourceDetector().detect().attributes}
    provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    try:
        yield _Spans(provider)
    finally:
        # In a thread that ends with the process: a collector that does not answer is waited for by nobody.
        last = threading.Thread(target=provider.shutdown, daemon=True)
        last.start()
        await asyncio.to_thread(last.join, _STOP_SECONDS)
