"""What a gateway costs: the same load on the bare engine, on ours, and on its peers.

    python -m benchmarks.gateway                                # a synthetic engine, faster than any gateway
    python -m benchmarks.gateway --engine-url http://127.0.0.1:8000 --engine-model NAME     # a real one, such as vLLM
    python -m benchmarks.gateway --quick                        # some seconds: does the benchmark itself run?

Peers run from an environment of their own (`make peers`); without it they are left out. Engine, load and each gateway
are processes of their own; the targets take turns within each round, so that what else the machine does falls on all
of them; figures are medians over the rounds, times to the first token are pooled. CPU is what the kernel counted for
the gateway's processes, and so the figure to trust on a machine that others use.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles

from benchmarks.gateways import stand
from benchmarks.gateways.engine import MODEL
from benchmarks.gateways.load import Job, Measured
from benchmarks.gateways.stand import Load, Target

BARE = "the engine, bare"
PEERS = stand.ROOT / ".engines" / "peers" / "bin"
_IDLE_PACE = 0.05
"""Tokens a second of a stream that is idle."""


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    streams: tuple[int, ...]
    tokens: int
    rounds: int
    paced: tuple[int, ...]
    """Streams at once, in the measurement at a steady speed."""
    paced_seconds: float
    short: int
    """Short requests in a round."""
    idle: int
    """Idle streams."""

    @property
    def most(self) -> int:
        return max(*self.streams, *self.paced, self.idle, 64)


FULL = Plan((1, 16, 64, 256), 100, 5, (64, 512), 10, 3_000, 256)
QUICK = Plan((1, 4), 10, 1, (4,), 0.3, 20, 4)


@dataclass(frozen=True)
class Row:
    """One target under one load. Times in milliseconds."""

    target: str
    streams: int
    tokens_per_second: float
    ratio: float
    """Of the bare engine's tokens per second."""
    ttft_p50: float
    ttft_p99: float
    added_p50: float
    """Time to the first token beyond the bare engine's."""
    added_p99: float
    between: float
    """Between two tokens of a stream."""
    cpu_per_1000: float
    """CPU of the gateway for 1,000 tokens; of the engine's own, nothing is known here."""
    cpu_per_request: float
    busy: float
    """Share of one core that the gateway used meanwhile."""
    load_busy: float
    """The same of the load's process: close to 1 it would have been the bottleneck."""


@dataclass
class _Taken:
    measured: Measured
    cpu: float


def compare(load: Load, targets: Sequence[Target], rounds: int, job: Callable[[Target], Job]) -> list[Row]:
    """The targets in turn, so many rounds; the first is the bare engine."""
    taken: dict[str, list[_Taken]] = defaultdict(list)
    for _ in range(rounds):
        for target in targets:
            before = target.cpu()
            measured = load.run(job(target))
            taken[target.name].append(_Taken(measured, target.cpu() - before))
    rows: list[Row] = []
    for target in targets:
        found = taken[target.name]
        p50, p99 = _percentiles([each for one in found for each in one.measured.ttft])
        speed = median(one.measured.tokens / one.measured.seconds for one in found)
        bare = rows[0] if rows else None
        rows.append(
            Row(
                target=target.name,
                streams=job(target).streams,
                tokens_per_second=speed,
                ratio=speed / bare.tokens_per_second if bare else 1.0,
                ttft_p50=p50,
                ttft_p99=p99,
                added_p50=p50 - bare.ttft_p50 if bare else 0.0,
                added_p99=p99 - bare.ttft_p99 if bare else 0.0,
                between=1000 * median(one.measured.between for one in found),
                cpu_per_1000=median(1e6 * one.cpu / one.measured.tokens for one in found),
                cpu_per_request=median(1e3 * one.cpu / one.measured.requests for one in found),
                busy=median(one.cpu / one.measured.seconds for one in found),
                load_busy=median(one.measured.cpu / one.measured.seconds for one in found),
            )
        )
    return rows


def bursts(load: Load, targets: Sequence[Target], plan: Plan, streams: int) -> list[Row]:
    """All streams start at once and run as fast as they can."""
    waves = max(1, min(40, 192 // streams))
    return compare(
        load,
        targets,
        plan.rounds,
        lambda target: Job(target.url, target.model, plan.tokens, target.keys, streams=streams, waves=waves),
    )


def paced(load: Load, targets: Sequence[Target], plan: Plan, streams: int, speed: float) -> list[Row]:
    """Streams at a steady speed, as engines give it."""
    tokens = max(2, int(plan.paced_seconds * speed))
    return compare(
        load, targets, plan.rounds, lambda target: Job(target.url, target.model, tokens, target.keys, streams=streams)
    )


def short(load: Load, targets: Sequence[Target], plan: Plan) -> list[Row]:
    """Requests for one token, answered whole, on 32 connections."""
    streams = min(32, plan.short)
    return compare(
        load,
        targets,
        plan.rounds,
        lambda target: Job(
            target.url, target.model, 1, target.keys, streams=streams, waves=plan.short // streams, stream=False
        ),
    )


def idle(load: Load, target: Target, streams: int) -> float:
    """KiB of the target's memory for each stream that waits for its engine."""
    before = target.memory()
    load.begin(Job(target.url, target.model, 1_000, target.keys, streams=streams, hold=3))
    time.sleep(2)
    taken = target.memory() - before
    load.end()
    return taken / streams / 1024


def _percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    """p50 and p99, milliseconds."""
    if len(seconds) < 2:
        return (1000 * seconds[0], 1000 * seconds[0]) if seconds else (0.0, 0.0)
    cuts = quantiles(seconds, n=100, method="inclusive")
    return 1000 * cuts[49], 1000 * cuts[98]


def table(title: str, rows: Sequence[Row]) -> str:
    head = "| streams | target | tokens/s | of bare | TTFT p50, p99 ms | added p50, p99 ms | between tokens ms |"
    head += " CPU ms per 1,000 tokens | CPU ms per request | busy | load busy |"
    lines = [f"\n### {title}\n", head, "|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"]
    for row in rows:
        gateway = row.target != BARE
        cells = [
            str(row.streams),
            row.target,
            f"{row.tokens_per_second:,.0f}",
            f"{row.ratio:.2f}",
            f"{row.ttft_p50:.2f}, {row.ttft_p99:.2f}",
            f"{row.added_p50:.2f}, {row.added_p99:.2f}" if gateway else "",
            f"{row.between:.3f}",
            f"{row.cpu_per_1000:.1f}" if gateway else "",
            f"{row.cpu_per_request:.3f}" if gateway else "",
            f"{row.busy:.0%}" if gateway else "",
            f"{row.load_busy:.0%}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    given = _arguments(arguments)
    plan = _plan(given)
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        load = stack.enter_context(stand.load())
        synthetic = not given.engine_url
        url = given.engine_url or stack.enter_context(stand.synthetic_engine())
        model = given.engine_model or MODEL
        targets = [
            Target(BARE, url, model, ["none"], None),
            stack.enter_context(stand.ours(url, model, plan.most, folder)),
        ]
        if not given.quick:
            for peer in (stand.router, stand.litellm):
                if peer.__name__ in given.peers.split(",") and given.peers_from.exists():
                    targets.append(stack.enter_context(peer(given.peers_from, url, model, folder)))
        load_before = os.getloadavg()[0]
        print(f"{os.cpu_count()} cores, load {load_before:.1f} before; {plan.rounds} rounds", flush=True)
        compare(load, targets, 1, lambda target: Job(target.url, target.model, 2, target.keys))  # warm
        if synthetic:  # first, before loads have made the processes as large as they get
            stand.set_pace(url, _IDLE_PACE)
            print("\n### Memory\n\n| target | KiB per idle stream |\n|---|---:|")
            for target in targets[1:]:
                print(f"| {target.name} | {idle(load, target, plan.idle):.0f} |", flush=True)
            stand.set_pace(url, 0)
        results: dict[str, list[Row]] = {}

        def show(title: str, rows: list[Row]) -> None:
            results.setdefault(title, []).extend(rows)
            print(table(title, rows), flush=True)

        for streams in plan.streams:
            show("Bursts", bursts(load, targets, plan, streams))
        show("Short requests", short(load, targets, plan))
        if synthetic:
            stand.set_pace(url, given.speed)
            fast = [target for target in targets if target.name != "LiteLLM"]
            for streams in plan.paced:
                show(f"{given.speed:g} tokens/s for each stream", paced(load, fast, plan, streams, given.speed))
        if given.json:
            shown = {title: [asdict(row) for row in rows] for title, rows in results.items()}
            given.json.write_text(json.dumps(shown, indent=1) + "\n")


def _plan(given: argparse.Namespace) -> Plan:
    base = QUICK if given.quick else FULL
    return Plan(
        given.streams or base.streams,
        given.tokens or base.tokens,
        given.rounds or base.rounds,
        base.paced,
        base.paced_seconds,
        base.short,
        base.idle,
    )


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine-url", default="", help="an engine that runs already; default: the synthetic one")
    parser.add_argument("--engine-model", default="", help="what that engine calls its model")
    parser.add_argument("--streams", type=_numbers, metavar="N,N,…", help="streams at once, default 1,16,64,256")
    parser.add_argument("--tokens", type=int, default=0, help="of each answer, default 100")
    parser.add_argument("--rounds", type=int, default=0, help="default 5")
    parser.add_argument("--speed", type=float, default=50, help="tokens per second and stream, in the steady part")
    parser.add_argument("--peers", default="router,litellm", help="default router,litellm; none: ours alone")
    parser.add_argument("--peers-from", type=Path, default=PEERS, help=f"folder with their programs, default {PEERS}")
    parser.add_argument("--quick", action="store_true", help="a few seconds, no peers: the figures mean nothing")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    given = parser.parse_args(arguments)
    if given.engine_url and not given.engine_model:
        parser.error("say with --engine-model what the engine at --engine-url calls its model")
    given.engine_url = given.engine_url.rstrip("/").removesuffix("/v1")
    return given


def _numbers(text: str) -> tuple[int, ...]:
    found = tuple(int(each) for each in text.split(","))
    if min(found) < 1:
        raise ValueError(text)
    return found


if __name__ == "__main__":
    main()
