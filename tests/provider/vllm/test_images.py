"""Images through the provider to a vLLM with a vision-language model (LLaVA's architecture)."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio

from penstock.chain.web3 import Web3Chain
from penstock.consumer import Consumer, Waits, Wanted
from penstock.journal import Journal, State
from provider.engines.vllm import VllmEngine
from tests.deployed import Deployed
from tests.harness import Node
from tests.provider.rig import COINS, fresh_account
from tests.provider.vllm.started import MARKS, buyer_of, providing, started, vllm

pytestmark = MARKS

SEES = "model-that-sees"
IMAGE_TOKENS = 576
RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def eyes(folder: Path) -> AsyncIterator[VllmEngine]:
    engine = vllm(folder, "vision", {SEES: "inner"})
    async with started(engine):
        yield engine


def image(colour: tuple[int, int, int], side: int = 64) -> dict[str, Any]:
    """A part of a message: a PNG of one colour, which is a few dozen bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress((b"\0" + bytes(colour) * side) * side))
    png = b"\x89PNG\r\n\x1a\n" + head + rows + chunk(b"IEND", b"")
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(png).decode()}"}}


def asking(*images: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*images, {"type": "text", "text": "What is this?"}]}]


async def test_an_image_is_seen_whole_and_streamed(
    node: Node, deployed: Deployed, eyes: VllmEngine, tmp_path: Path
) -> None:
    async with providing(node, deployed, eyes, tmp_path, f"{SEES}=native:0.000001") as rig:
        buyer = await buyer_of(rig, SEES)
        async with buyer.openai() as client:
            asked = {"model": SEES, "max_tokens": 8, "temperature": 0, "extra_body": {"ignore_eos": True}}

            async def seen(*images: dict[str, Any]) -> tuple[str, int]:
                whole = await client.chat.completions.create(messages=asking(*images), **asked)
                stream = await client.chat.completions.create(messages=asking(*images), stream=True, **asked)
                said = "".join([piece.choices[0].delta.content or "" async for piece in stream])
                assert said == whole.choices[0].message.content
                assert whole.usage.completion_tokens == 8
                return said, whole.usage.prompt_tokens

            blind, red, blue = await seen(), await seen(image(RED)), await seen(image(BLUE))
            assert red[0] != blue[0], "what it shows counts"
            assert red == await seen(image(RED))
            assert red[1] - blind[1] in (IMAGE_TOKENS, IMAGE_TOKENS + 1), "the engine may begin a new line after it"
            said, used = await seen(image(RED), image(BLUE))
            assert said != red[0]
            assert 2 * IMAGE_TOKENS <= used - blind[1] <= 2 * IMAGE_TOKENS + 2
            broken = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
            with pytest.raises(openai.BadRequestError, match="image"):
                await seen(broken)
            elsewhere = {"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}
            with pytest.raises(openai.BadRequestError) as caught:
                await seen(elsewhere)
            assert caught.value.code == "url_not_fetched"


async def test_an_image_of_few_bytes_and_many_tokens_is_no_overcharge(
    node: Node, deployed: Deployed, eyes: VllmEngine, tmp_path: Path
) -> None:
    async with (
        providing(node, deployed, eyes, tmp_path, f"{SEES}=native:1/3") as rig,
        await Web3Chain.connect(node.url, deployed.deployment) as chain,
    ):
        with Journal(tmp_path / "journal.db") as journal:
            waits = Waits(settle=3, sight=3, connect=5)
            async with Consumer(chain, fresh_account(node), journal, waits=waits) as consumer:
                listing = await consumer.market.choose(Wanted(provider=rig.me, by_token=True))
                async with consumer.channel_session(listing) as session:
                    for colour in (RED, BLUE):
                        answer = session.chat(asking(image(colour)), max_tokens=4, ignore_eos=True)
                        assert await answer.read()
                        assert answer.usage.prompt_tokens > IMAGE_TOKENS
                    receipts = session.receipts.receipts
                assert session.summary is not None
                assert session.summary.state is State.CLOSED
                price = COINS // 10**6
                assert [r.amount for r in receipts] == [r.prompt_tokens * price + 4 * 3 * price for r in receipts]
