"""Two vLLMs for one model, of which one is killed while both are busy."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest_asyncio

from penstock.wire.receipts import ACCEPT_HEADER, RECEIPT_HEADER, SignedReceipt
from provider.engines import Fleet
from provider.engines.vllm import VllmEngine
from tests.deployed import Deployed
from tests.harness import Node
from tests.provider.rig import Buyer, Rig, until
from tests.provider.vllm.started import GENERATED, MARKS, figure, providing, started, vllm

pytestmark = MARKS

SHARED = "shared-model"
ANSWER = 1500
"""Tokens."""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def two(folder: Path) -> AsyncIterator[Fleet]:
    engines = [vllm(folder, "text", {SHARED: "inner"}, log=f"two-{number}") for number in range(2)]
    async with started(*engines) as fleet:
        yield fleet


async def asked(buyer: Buyer, count: int, tokens: int) -> list[httpx.Response]:
    """One after the other; a failed one is not asked again."""
    return [await buyer.chat(model=SHARED, max_tokens=tokens, ignore_eos=True) for _ in range(count)]


async def test_one_is_killed_and_every_request_has_its_receipt(
    node: Node, deployed: Deployed, two: Fleet, tmp_path: Path
) -> None:
    offer = f"{SHARED}=native:0.000001"
    async with providing(node, deployed, two, tmp_path, offer, slots=6, session_rate=0) as rig:
        buyers = [await (await rig.buyer()).arrive() for _ in range(6)]
        one, other = two.engines
        assert isinstance(one, VllmEngine)
        before = await figure(one, GENERATED)
        load = [asyncio.ensure_future(asked(buyer, 3, ANSWER)) for buyer in buyers]

        async def in_mid_answer() -> bool:
            return other.running >= 2 and await figure(one, GENERATED) > before + 200

        await until(in_mid_answer, 60, "answers by both")
        caught = one.running
        os.killpg(one._group, signal.SIGKILL)
        await until(one.trouble, what="the loss")
        answers = [answer for each in load for answer in await each]
        bad = [answer for answer in answers if answer.status_code != 200]
        assert 0 < len(bad) <= caught, [answer.text for answer in bad]
        assert {(answer.status_code, answer.json()["error"]["code"]) for answer in bad} == {(502, "engine_error")}
        assert other.trouble() is None
        for answer in answers:
            receipt = SignedReceipt.parse(answer.headers[RECEIPT_HEADER]).receipt
            assert answer.headers[ACCEPT_HEADER]
            if answer.status_code == 200:
                assert receipt.completion_tokens == answer.json()["usage"]["completion_tokens"] == ANSWER
        await nothing_owed(rig, len(answers))
        assert all(answer.status_code == 200 for answer in await asked(buyers[0], 2, 4)), "the other answers"
        assert (await rig.http.get("/ready")).status_code == 200
        await until(lambda: one.trouble() is None, 300, "its return")
        pid = one.pid
        await asyncio.gather(*(asked(buyer, 1, 200) for buyer in buyers))
        assert one.pid == pid is not None
        assert two.of(SHARED)[0].running == 0


async def nothing_owed(rig: Rig, count: int) -> None:
    """By the provider's own books."""
    store = rig.provider.store
    assert await store.unanswered(None) == []
    assert len(await until(lambda: store.usage(), what="the usage on record")) == count
