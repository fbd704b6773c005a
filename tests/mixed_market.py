"""A market of twenty real providers, honest and otherwise, and traffic that a buyer has to get through it.

Used by a short test and by a long benchmark. Every provider is the whole of `provider`, with one real engine behind
them all; what is bad about a bad one is a layer around it (`tests.misbehaving`). Bad ones are the cheapest: who goes by
the price alone meets them all.
"""

from __future__ import annotations

import asyncio
import math
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agents.buyer import Buyer, Filters, Job, Purchase, Wish
from penstock.accrual import flow
from penstock.audit import Books
from penstock.chain.web3 import Web3Chain
from penstock.channels import CLOSE_DELAY
from penstock.consumer import Consumer
from penstock.errors import PenstockError, StreamLeftOpen
from penstock.journal import State
from penstock.types import NATIVE, Address, Terms
from penstock.wire.completions import CHAT, TEXT
from provider.engines import Engine
from tests.deployed import Deployed
from tests.harness import Node
from tests.misbehaving import (
    Dies,
    Flaps,
    Garbage,
    Layer,
    OtherPrices,
    Overclaims,
    Says402,
    Slow,
    Stalls,
    Vanishes,
)
from tests.provider.rig import MODEL, Rig, running

PROMPTS = ("Why does water flow downhill?", "What is a penstock?", "Tell me about rivers.", "Who turns the wheel?")
VANISH_AFTER = 3


@dataclass(frozen=True)
class Kind:
    """One provider: what it sells, and what is wrong with it."""

    name: str
    offer: str
    layer: Callable[[], Layer]
    healthy: bool = False


KINDS = (
    Kind("honest, cheap", "native:1/3", Layer, True),
    Kind("honest, dearer", "native:1.3/3.9", Layer, True),
    Kind("honest, dear", "native:3/9", Layer, True),
    Kind("honest by the second", "native:0.0003", Layer, True),
    Kind("honest by the second, dear", "native:0.0006", Layer, True),
    Kind("honest by both", "native:0.0001+1/2", Layer, True),
    Kind("honest, slowish", "native:0.9/2.7", lambda: Slow(0.3, 0.005), True),
    Kind("honest by the second, slowish", "native:0.0002", lambda: Slow(0.4, 0.01), True),
    Kind("stalls at once", "native:0.5/1.5", lambda: Stalls(0)),
    Kind("stalls in mid-answer", "native:0.5/1.6", lambda: Stalls(6)),
    Kind("stalls in mid-answer, by the second", "native:0.0001", lambda: Stalls(4)),
    Kind("hangs up at once", "native:0.5/1.7", lambda: Dies(0)),
    Kind("hangs up in mid-answer", "native:0.6/1.8", lambda: Dies(8)),
    Kind("hangs up in mid-answer, by the second", "native:0.00011", lambda: Dies(5)),
    Kind("says 402", "native:0.5/1.4", Says402),
    Kind("answers garbage", "native:0.5/1.3", Garbage),
    Kind("claims too many tokens", "native:0.4/1.2", Overclaims),
    Kind("names other prices", "native:0.4/1.1", OtherPrices),
    Kind("far too slow", "native:0.3/0.9", lambda: Slow(20)),
    Kind("well and ill in turn", "native:0.7/2.1", lambda: Flaps(3, 4)),
    Kind("vanishes for ever", "native:0.6/1.9", lambda: Vanishes(VANISH_AFTER)),
)


@dataclass
class Stall:
    """A provider on this market."""

    kind: Kind
    rig: Rig
    layer: Layer

    @property
    def terms(self) -> Terms:
        return self.rig.offer().terms


@dataclass
class Report:
    """What came of the traffic."""

    answered: int = 0
    continued: int = 0
    """By another provider, in mid-answer."""
    failed: list[str] = field(default_factory=list)
    left: int = 0
    """By their client."""
    purchases: list[Purchase] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """Of each answer."""
    completion_tokens: int = 0

    def regret(self, stalls: dict[Address, Stall]) -> tuple[int, int, str]:
        """Of the answers that were to be cheap: what they took, failures included, what the best healthy provider in
        hindsight would have taken for the same tokens, and which that is: base units. One that is paid by the second
        is taken to be as fast as it was here."""
        cheap = [one for one in self.purchases if "fastest:" not in one.why]
        done = [one for one in cheap if one.outcome == "done"]
        pace: dict[Address, list[float]] = defaultdict(list)
        for one in self.purchases:
            if one.outcome == "done":
                pace[one.provider].append(one.ended_at - one.began_at)
        prompt, completion = sum(one.prompt_tokens for one in done), sum(one.completion_tokens for one in done)
        costs = []
        for id, stall in stalls.items():
            if stall.kind.healthy and pace[id]:
                seconds = len(done) * sum(pace[id]) / len(pace[id])
                taken = stall.terms.owed(prompt, completion) + flow(stall.terms.rate, int(seconds) + 1)
                costs.append((taken, stall.kind.name))
        return sum(one.cost for one in cheap), *min(costs)


@asynccontextmanager
async def market_of(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: Engine, folder: Path
) -> AsyncIterator[dict[Address, Stall]]:
    """All of them, serving; by provider."""
    async with AsyncExitStack() as stack:

        async def enter(number: int, kind: Kind) -> Stall:
            layer = kind.layer()
            rig = await stack.enter_async_context(
                running(
                    node,
                    chain,
                    deployed.deployment,
                    engine,
                    folder / f"provider-{number}",
                    offers=(kind.offer,),
                    wrap=layer,
                    poll_seconds=0.5,
                    slots=8,
                )
            )
            stack.callback(layer.over.set)
            return Stall(kind, rig, layer)

        found = [await enter(number, kind) for number, kind in enumerate(KINDS)]
        yield {stall.rig.me: stall for stall in found}


async def trade(
    buyer: Buyer,
    stalls: dict[Address, Stall],
    report: Report,
    *,
    clients: int,
    dice: random.Random,
    requests: int = sys.maxsize,
    seconds: float = math.inf,
) -> None:
    """Mixed traffic of so many clients at once, for so many requests or seconds in all."""
    end, made = time.monotonic() + seconds, 0
    filters = Filters(allow=frozenset(stalls))
    wishes = [Wish.parse(name, filters) for name in ("auto", MODEL, MODEL, "cheapest", f"fastest/{MODEL}")]

    async def client() -> None:
        nonlocal made
        while time.monotonic() < end and made < requests:
            made += 1
            most = dice.choice((3, 12, 40, 40, 120))
            body: dict[str, Any] = {"max_tokens": most, "temperature": dice.choice((0, 1))}
            prompt = dice.choice(PROMPTS)
            path = dice.choice((CHAT, CHAT, CHAT, TEXT))
            body |= {"messages": [{"role": "user", "content": prompt}]} if path == CHAT else {"prompt": prompt}
            await _one(buyer, report, Job(path, body, dice.choice(wishes)), dice)
            await asyncio.sleep(dice.choice((0, 0, 0.05, 0.3)))

    await asyncio.gather(*(client() for _ in range(clients)))


async def _one(buyer: Buyer, report: Report, job: Job, dice: random.Random) -> None:
    began = time.monotonic()
    leaves_after = dice.randrange(1, 6) if dice.random() < 0.05 else None
    try:
        async with await buyer.start(job) as answer:
            tokens = 0
            if dice.random() < 0.3:
                tokens = (await answer.whole())["usage"]["completion_tokens"]
            else:
                chunks = answer.chunks()
                count = 0
                async for chunk in chunks:
                    count += 1
                    if count == leaves_after:
                        await chunks.aclose()  # type: ignore[attr-defined]
                        report.left += 1
                        return
                    if not chunk["choices"]:
                        tokens = chunk["usage"]["completion_tokens"]
            assert 0 < tokens <= job.body["max_tokens"]
    except PenstockError as error:
        report.failed.append(f"{type(error).__name__}: {error}")
        return
    report.answered += 1
    report.completion_tokens += tokens
    report.continued += sum(bool(one.completion_tokens) for one in answer.purchases) > 1
    report.seconds.append(time.monotonic() - began)


async def close_all(buyer: Buyer, consumer: Consumer, node: Node) -> bool:
    """Stop the buyer. Where a provider has vanished, take back from the contract what was locked with it, once that
    lets us. Whether that was needed."""
    try:
        await buyer.stop()
        return False
    except StreamLeftOpen:
        node.advance(CLOSE_DELAY + 1)
        await consumer.reconcile()
        await consumer.reconcile_channels()
        return True


async def audit(
    consumer: Consumer, chain: Web3Chain, deployed: Deployed, report: Report, stalls: dict[Address, Stall], coins: int
) -> Counter[str]:
    """That nothing is open, that the books are the chain's to the wei, and that no more was paid than was had. What
    was paid, by what became of it."""
    journal, me = consumer.journal, consumer.account.address
    records = [*journal.all(), *journal.channels()]
    assert {one.state for one in records} <= {State.CLOSED, State.VOID}, [one.problem for one in records]
    books, head = Books(), await chain.head()
    for event in await chain.events(deployed.deployment.first_block, head.number):
        books.apply(event)
    for token in books.tokens():
        assert await chain.token_balance(token, chain.stream_pay) == books.liabilities(token)
    assert [key for key, state in books.streams.values() if key.payer == me and state.end > head.timestamp] == []
    assert sum(state.locked for key, state in books.channels.values() if key.payer == me) == 0
    paid = sum(one.paid for one in records)
    fees = {one.hash: one.fee for record in records for one in record.transactions if not one.relayed}
    held = await chain.native_balance(me) + await chain.vault_balance(NATIVE, me)
    assert held == coins - paid - sum(fees.values()), "the local books are the chain's"
    for channel in journal.channels():
        terms = stalls[channel.provider].terms
        had = terms.owed(channel.prompt_tokens, channel.completion_tokens)
        assert channel.paid <= had + terms.owed(0, 64), "never more than a step beyond what came"
    for stream in journal.all():
        assert stream.paid == flow(stream.rate, stream.stop - stream.start), "never more than the seconds that it ran"
    # What a purchase cost is part of what its session was paid, or of what a session that failed was not.
    assert sum(one.cost for one in report.purchases) <= paid + sum(
        one.cost for one in report.purchases if one.outcome != "done"
    )
    outcomes: Counter[str] = Counter()
    for one in report.purchases:
        outcomes[one.outcome] += one.cost
    return outcomes
