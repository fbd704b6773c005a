"""From the end of the money to the engine's free slot, by vLLM's own metrics. `-s` prints what was measured."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import openai
import pytest
import pytest_asyncio

from provider.engines.vllm import VllmEngine
from tests.deployed import Deployed
from tests.harness import Node
from tests.provider.rig import PROMPT, Buyer, Rig, until
from tests.provider.vllm.conftest import BASE
from tests.provider.vllm.started import MARKS, RUNNING, buyer_of, figure, providing

pytestmark = MARKS

TIMES = 3
LONG = 32_000
WITHIN = 5.0
"""Seconds, on a machine that others keep busy; the answers would go on for far longer."""
SETTINGS = {"poll_seconds": 0.4}
"""What a provider has who sets nothing."""


@pytest_asyncio.fixture(loop_scope="session")
async def paid(deployed: Deployed, engine: VllmEngine, tmp_path: Path) -> AsyncIterator[Rig]:
    """On a chain that makes a block each second."""
    with Node(block_time=1, load_state=deployed.state) as node:
        async with providing(node, deployed, engine, tmp_path, f"{BASE}=native:0.000001", **SETTINGS) as rig:
            yield rig


async def generating(buyer: Buyer, client: Any, engine: VllmEngine) -> Any:
    """An answer that goes on for as long as the model's context."""
    asked = {"model": BASE, "messages": PROMPT, "max_tokens": LONG, "extra_body": {"ignore_eos": True}}
    stream = await client.chat.completions.create(**asked, stream=True)
    await anext(aiter(stream))
    await until(lambda: busy(engine), what="the metrics' word that it runs")
    return stream


async def busy(engine: VllmEngine) -> bool:
    return await figure(engine, RUNNING) > 0


async def freed(engine: VllmEngine) -> float:
    """When vLLM had nothing to do any more."""
    while await busy(engine):
        await asyncio.sleep(0.005)
    return time.time()


async def watch(node: Node, seen: dict[int, float]) -> None:
    """When each block came to be."""
    while True:
        seen.setdefault(int(await asyncio.to_thread(node.rpc, "eth_blockNumber"), 16), time.time())
        await asyncio.sleep(0.01)


def say(what: str, seconds: list[float]) -> None:
    told = ", ".join(f"{each * 1000:.0f}" for each in sorted(seconds))
    print(f"\n{what}: p50 {median(seconds) * 1000:.0f} ms, most {max(seconds) * 1000:.0f} ms ({told})")
    assert max(seconds) < WITHIN


async def read(stream: Any) -> None:
    with suppress(openai.APIError):
        async for _ in stream:
            pass


async def test_a_stream_that_runs_out(paid: Rig, engine: VllmEngine) -> None:
    found = []
    for _ in range(TIMES):
        buyer = await buyer_of(paid, BASE, duration=5)
        async with buyer.openai() as client:
            reading = asyncio.ensure_future(read(await generating(buyer, client, engine)))
            seen = asyncio.ensure_future(freed(engine))
            while paid.provider.projection.now() < buyer.start + 5:
                await asyncio.sleep(0.002)
            over = time.time()
            found.append(await seen - over)
            await reading
    say("a stream that runs out", found)


async def test_a_cancel_on_the_chain(paid: Rig, engine: VllmEngine) -> None:
    found = []
    for _ in range(TIMES):
        buyer = await buyer_of(paid, BASE)
        async with buyer.openai() as client:
            reading = asyncio.ensure_future(read(await generating(buyer, client, engine)))
            blocks: dict[int, float] = {}
            watching = asyncio.ensure_future(watch(paid.node, blocks))
            seen = asyncio.ensure_future(freed(engine))
            receipt = await buyer.cancel()
            found.append(await seen - blocks[receipt.block])
            watching.cancel()
            await reading
    say("a cancel, from its block on", found)


@pytest.mark.parametrize("streams", [True, False], ids=["streamed", "whole"])
async def test_a_client_that_leaves(paid: Rig, engine: VllmEngine, streams: bool) -> None:
    buyer = await buyer_of(paid, BASE)
    found = []
    for _ in range(TIMES):
        async with buyer.openai() as client:
            if streams:
                stream = await generating(buyer, client, engine)
                left = time.time()
                await stream.close()
            else:
                asked = asyncio.ensure_future(buyer.chat(model=BASE, max_tokens=LONG, ignore_eos=True))
                await until(lambda: busy(engine), what="the metrics' word that it runs")
                left = time.time()
                asked.cancel()
            found.append(await freed(engine) - left)
    say("a client that leaves", found)


async def test_one_that_ends_leaves_the_other_its_slot(paid: Rig, engine: VllmEngine) -> None:
    one, two = await buyer_of(paid, BASE), await buyer_of(paid, BASE)
    async with one.openai() as first, two.openai() as second:
        await generating(one, first, engine)
        stream = await generating(two, second, engine)
        assert await figure(engine, RUNNING) == 2
        await one.close()

        async def one_runs() -> bool:
            return await figure(engine, RUNNING) == 1

        await until(one_runs, WITHIN, "the free slot")
        await anext(aiter(stream))
        await stream.close()
    await freed(engine)
