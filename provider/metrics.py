"""What the provider counts, for Prometheus: its own figures, and those of its engines beside them.

Served on a port of its own, by default to this machine alone: what a provider earns is nobody's business.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from penstock.errors import ConfigError
from provider.engines import Dialect, Engine, headers
from provider.engines._base import session_for
from provider.store import Payout, Usage

_ENGINE_SECONDS = 2.0
_WAITS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_PACES = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1)
_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(\{.*\})?( .*)$")
_FAMILY = re.compile(r"_(?:total|created|bucket|sum|count|info)$")

Figures = dict[str, tuple[str, float | dict[tuple[str, ...], float]]]


class Metrics:
    def __init__(self, now: Callable[[], Iterable[Metric]]) -> None:
        """`now`: figures that are looked up when they are asked for."""
        self.registry = CollectorRegistry()
        self.registry.register(_Now(now))
        self._answers = Counter(
            "penstock_answers",
            "Requests that were answered, by how they ended.",
            ["model", "outcome"],
            registry=self.registry,
        )
        self._tokens = Counter(
            "penstock_tokens", "Tokens of prompts and completions.", ["model", "kind"], registry=self.registry
        )
        self._first = Histogram(
            "penstock_first_token_seconds",
            "From a request to its first token.",
            ["model"],
            buckets=_WAITS,
            registry=self.registry,
        )
        self._pace = Histogram(
            "penstock_token_seconds",
            "Between two tokens, on average over an answer.",
            ["model"],
            buckets=_PACES,
            registry=self.registry,
        )
        self._queued = Histogram(
            "penstock_queue_seconds", "Waited for a turn at the engines.", buckets=_WAITS, registry=self.registry
        )
        self._refused = Counter(
            "penstock_refusals",
            "Requests that were refused before they began, by the error's code.",
            ["code"],
            registry=self.registry,
        )
        self._paid = Counter(
            "penstock_paid_out_base_units", "Taken out of the contract.", ["token", "kind"], registry=self.registry
        )
        self._fees = Counter("penstock_fees_wei", "Paid for the gas of payouts.", registry=self.registry)

    def answered(self, usage: Usage, model: str) -> None:
        self._answers.labels(model, usage.outcome).inc()
        self._tokens.labels(model, "prompt").inc(usage.prompt_tokens)
        self._tokens.labels(model, "completion").inc(usage.completion_tokens)
        if usage.first_token_at is not None:
            self._first.labels(model).observe(max(0.0, usage.first_token_at - usage.started_at))
            if usage.completion_tokens > 1:
                passed = max(0.0, usage.finished_at - usage.first_token_at)
                self._pace.labels(model).observe(passed / (usage.completion_tokens - 1))

    def queued(self, seconds: float) -> None:
        self._queued.observe(seconds)

    def refused(self, code: str) -> None:
        self._refused.labels(code).inc()

    def paid_out(self, payout: Payout) -> None:
        self._paid.labels(payout.token, payout.kind).inc(payout.amount)
        self._fees.inc(payout.fee)

    def text(self) -> str:
        return generate_latest(self.registry).decode()


class _Now(Collector):
    def __init__(self, now: Callable[[], Iterable[Metric]]) -> None:
        self._now = now

    def collect(self) -> Iterable[Metric]:
        return self._now()

    def describe(self) -> Iterable[Metric]:
        return []  # so that registering asks nothing


def gauge(name: str, said: str, value: float) -> Metric:
    return GaugeMetricFamily(name, said, value=value)


def gauges(name: str, said: str, label: str, values: Iterable[tuple[str, float]]) -> Metric:
    family = GaugeMetricFamily(name, said, labels=[label])
    for which, value in values:
        family.add_metric([which], value)
    return family


def merged(texts: Iterable[tuple[str, str]]) -> str:
    """Expositions of several engines as one: each sample says whose it is, each family comes once and together."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for engine, text in texts:
        named = f'penstock_engine="{engine}"'
        for line in text.splitlines():
            words = line.split(" ", 3)
            if line.startswith("# ") and len(words) > 2 and words[1] in ("HELP", "TYPE"):
                known = heads.setdefault(words[2], [])
                if not any(head.split(" ", 2)[1] == words[1] for head in known):
                    known.append(line)
            elif found := _SAMPLE.match(line):
                name, labels, rest = found.groups()
                inside = f"{labels[1:-1].rstrip(',')}," if labels and labels != "{}" else ""
                family = name if name in heads else _family(name, heads)
                samples.setdefault(family, []).append(f"{name}{{{inside}{named}}}{rest}")
    lines: list[str] = []
    for family, found_samples in samples.items():
        lines += [*heads.get(family, []), *found_samples]
    return "".join(f"{line}\n" for line in lines)


def _family(name: str, heads: Iterable[str]) -> str:
    base = _FAMILY.sub("", name)
    return base if base in heads else name


async def of_engines(engines: Iterable[Engine]) -> str:
    """What the engines tell of themselves; those that tell nothing are left out."""

    async def ask(engine: Engine) -> tuple[str, str]:
        if engine.dialect is Dialect.PLAIN or engine.trouble() is not None:
            return engine.name, ""
        try:
            async with (
                session_for(engine.socket, seconds=_ENGINE_SECONDS) as http,
                http.get(f"{engine.base_url}/metrics", headers=headers(engine.api_key)) as answer,
            ):
                return engine.name, await answer.text() if answer.status == 200 else ""
        except (aiohttp.ClientError, TimeoutError):
            return engine.name, ""

    return merged(await asyncio.gather(*(ask(engine) for engine in engines)))


@asynccontextmanager
async def serving(host: str, port: int, metrics: Metrics, engines: Iterable[Engine]) -> AsyncIterator[int]:
    """Serve `/metrics`; gives the port. ConfigError where that is taken."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(
            body=(metrics.text() + await of_engines(engines)).encode(),
            headers={"content-type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    app = web.Application()
    app.router.add_get("/metrics", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise ConfigError(f"cannot serve metrics on {host}:{port}: {error.strerror}; choose another port") from None
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


def names(metrics: Metrics) -> Iterator[str]:
    """Of all samples that `Metrics` can have."""
    for family in metrics.registry.collect():
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        yield from (family.name + suffix for suffix in suffixes)
