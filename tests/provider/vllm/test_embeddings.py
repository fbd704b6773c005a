"""Embeddings from a vLLM with a model that pools (BERT's architecture), by each way of paying."""

from __future__ import annotations

import base64
from array import array
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
import pytest_asyncio

from penstock.wire.receipts import RECEIPT_HEADER, SignedReceipt
from provider.engines.vllm import VllmEngine
from tests.deployed import Deployed
from tests.harness import Node
from tests.provider.rig import COINS
from tests.provider.test_vouchers import payer
from tests.provider.vllm.started import MARKS, buyer_of, providing, started, vllm

pytestmark = MARKS

POOLS = "model-that-embeds"
WIDTH = 128
TEXTS = ["Water flows downhill.", "A gate.", "A gate."]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pooling(folder: Path) -> AsyncIterator[VllmEngine]:
    engine = vllm(folder, "pooling", {POOLS: "inner"}, "--runner", "pooling", context_length=512)
    async with started(engine):
        yield engine


async def test_embeddings_are_sold_by_the_second(
    node: Node, deployed: Deployed, pooling: VllmEngine, tmp_path: Path
) -> None:
    offer = f"{POOLS}=native:0.000001"
    async with providing(node, deployed, pooling, tmp_path, offer, context_length=512) as rig:
        buyer = await buyer_of(rig, POOLS)
        async with buyer.openai() as client:
            found = await client.embeddings.create(model=POOLS, input=TEXTS)  # the client asks for base64
            water, gate, again = (item.embedding for item in found.data)
            assert {len(water), len(gate)} == {WIDTH}
            assert gate == pytest.approx(again, abs=1e-2)
            assert water != pytest.approx(gate, abs=1e-2)
            assert found.usage.prompt_tokens > 3
            raw = await client.embeddings.create(model=POOLS, input=TEXTS[0], encoding_format="base64")
            packed = array("f", base64.b64decode(str(raw.data[0].embedding)))
            assert packed.tolist() == pytest.approx(water, abs=1e-2)
            with pytest.raises(openai.BadRequestError, match="512"):
                await client.embeddings.create(model=POOLS, input="water " * 600)
            with pytest.raises(openai.NotFoundError) as caught:
                await client.chat.completions.create(model=POOLS, messages=[{"role": "user", "content": "Hello"}])
            assert caught.value.code == "no_completions"


async def test_embeddings_are_sold_by_their_prompt(
    node: Node, deployed: Deployed, pooling: VllmEngine, tmp_path: Path
) -> None:
    async with providing(node, deployed, pooling, tmp_path, f"{POOLS}=native:1/3", context_length=512) as rig:
        one = await payer(rig).open_channel()
        await one.shake()
        async with one.openai() as client:
            raw = await client.embeddings.with_raw_response.create(model=POOLS, input=TEXTS)
        used = raw.parse().usage.prompt_tokens
        receipt = SignedReceipt.parse(raw.headers[RECEIPT_HEADER]).receipt
        assert (receipt.prompt_tokens, receipt.completion_tokens) == (used, 0)
        assert receipt.amount == used * COINS // 10**6
        await one.pay(receipt.amount)
        assert (await one.close()).json()["channel"]["paid"] == str(receipt.amount)
