"""A market of mixed honesty under traffic for a while: what the buyer survives, what it pays, and its regret.

    python -m benchmarks.market [--seconds 600] [--clients 4] [--seed 1]

Fails where a request fails although a healthy provider is there, where anything stays open, or where the local books
are not the chain's to the wei.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path

import structlog

from agents.buyer import Buyer, Policy
from penstock.chain.web3 import Web3Chain
from penstock.consumer import Consumer, Waits
from penstock.journal import Journal
from penstock.units import format_amount
from provider.engines.upstream import UpstreamEngine
from tests.deployed import deploy
from tests.harness import Node
from tests.mixed_market import Report, audit, close_all, market_of, trade
from tests.provider.rig import COINS, MODEL, engine_process, fresh_account, stretched

POLICY = Policy(explore=0.1, aside=5, first_token=4, stall=4, idle_seconds=5, step_seconds=15, margin_seconds=5)
WAITS = Waits(connect=1, greeting=2, handshake=3, sight=5, settle=5, close=3, receipt=0.5)


async def run(folder: Path, seconds: float, clients: int, seed: int) -> Report:
    deployed = deploy(folder)
    with (
        Node(load_state=deployed.state) as node,
        engine_process(stretched(folder / "model.gguf"), slots=8) as child,
        Journal(folder / "journal.db") as journal,
    ):
        engine = UpstreamEngine(child.url, {MODEL: MODEL}, api_key=child.key, start_seconds=30)
        await engine.start()
        report, account = Report(), fresh_account(node, coins=1000 * COINS)
        async with (
            await Web3Chain.connect(node.url, deployed.deployment) as chain,
            market_of(node, chain, deployed, engine, folder) as stalls,
            Consumer(chain, account, journal, waits=WAITS) as consumer,
        ):
            buyer = Buyer(
                consumer,
                POLICY,
                folder=folder,
                on_purchase=report.purchases.append,
                dice=random.Random(seed),
            )
            began = time.monotonic()
            await trade(buyer, stalls, report, seconds=seconds, clients=clients, dice=random.Random(seed + 1))
            lasted = time.monotonic() - began
            reclaimed = await close_all(buyer, consumer, node)
            spent = await audit(consumer, chain, deployed, report, stalls, 1000 * COINS)
            show(report, lasted, spent, reclaimed=reclaimed)
            show_regret(report, *report.regret(stalls))
            by_name = Counter(stalls[one.provider].kind.name for one in report.purchases)
            good = Counter(stalls[one.provider].kind.name for one in report.purchases if one.outcome == "done")
            print("\n| provider | asked | answered |\n|---|---|---|")
            for name, count in by_name.most_common():
                print(f"| {name} | {count} | {good[name]} |")
        await engine.stop()
    return report


def show(report: Report, lasted: float, spent: Counter[str], *, reclaimed: bool) -> None:
    times = sorted(report.seconds)
    print(f"{lasted:.0f} s, {report.answered} answers, {report.completion_tokens} tokens; {report.left} clients left")
    print(f"{len(report.failed)} failed, {report.continued} went on with another provider in mid-answer")
    print(f"seconds per answer: median {statistics.median(times):.2f}, worst {times[-1]:.2f}")
    print("nothing is open, and the books are the chain's to the wei" + (" (a channel was reclaimed)" * reclaimed))
    print("\n| outcome | purchases | paid, BNB |\n|---|---|---|")
    counts = Counter(one.outcome for one in report.purchases)
    for outcome, count in counts.most_common():
        print(f"| {outcome} | {count} | {format_amount(spent[outcome], 18)} |")
    for failure in report.failed[:10]:
        print(f"FAILED {failure}")


def show_regret(report: Report, paid: int, best: int, name: str) -> None:
    print(
        f"\nwhere the price counted: paid {format_amount(paid, 18)} BNB; the best provider in hindsight, {name!r}, "
        f"would have taken {format_amount(best, 18)}: regret {(paid - best) / best:+.1%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="penstock-market-") as folder:
        report = asyncio.run(run(Path(folder), given.seconds, given.clients, given.seed))
    if report.failed:
        raise SystemExit(f"{len(report.failed)} requests failed")


if __name__ == "__main__":
    main()
