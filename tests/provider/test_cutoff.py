"""No unpaid byte: when the money ends in mid-answer, so does the generation, and the client is told why."""

from __future__ import annotations

import asyncio
import time

import openai
import pytest

from penstock.types import NATIVE
from tests.provider.rig import LONG, RATE, Buyer, EngineProcess, Rig, at_best, until

SOON = 5
"""Seconds within which a cut is felt on a busy machine. What is cut would have gone on for longer."""


def near_the_end(rig: Rig, buyer: Buyer, seconds: int = 2) -> None:
    """The chain's time passes, until so long before the end of what was deposited for ten minutes."""
    rig.node.mine()
    rig.node.advance(buyer.start + 600 - seconds - rig.node.now)


async def read_to_the_cut(stream: object) -> tuple[int, openai.APIError]:
    """Pieces that came before the error, and the error."""
    count = 0
    try:
        async for _ in stream:  # type: ignore[attr-defined]
            count += 1
    except openai.APIError as error:
        return count, error
    raise AssertionError("the answer was not cut")


async def test_a_cancel_cuts_the_answer(rig: Rig, engine_child: EngineProcess) -> None:
    async def cut() -> float:
        buyer = await (await rig.buyer()).arrive()
        async with engine_child.cutting(), buyer.openai() as client:
            stream = await client.chat.completions.create(**LONG, stream=True)
            await anext(aiter(stream))
            reading = asyncio.create_task(read_to_the_cut(stream))
            await buyer.cancel()
            mined = time.monotonic()
            count, error = await reading
            taken = time.monotonic() - mined
        assert count > 0
        assert error.code == "stream_closed"
        refused = await buyer.chat()
        assert refused.status_code == 402
        return taken

    await at_best(cut, SOON)
    rows = await until(lambda: rig.provider.store.usage(), what="the usage on record")
    assert {row.outcome for row in rows} == {"stream_closed"}
    assert all(row.completion_tokens > 0 for row in rows)


async def test_the_end_of_the_deposit_cuts_the_answer(rig: Rig, engine_child: EngineProcess) -> None:
    async def cut() -> float:
        buyer = await (await rig.buyer()).arrive()
        async with engine_child.cutting(), buyer.openai() as client:
            stream = await client.chat.completions.create(**LONG, stream=True)
            reading = asyncio.create_task(read_to_the_cut(stream))
            near_the_end(rig, buyer)
            _, error = await reading
            late = rig.provider.projection.now() - (buyer.start + 600)
        assert error.code == "stream_ended"
        assert late >= -0.1
        refused = await buyer.chat()
        assert (refused.status_code, refused.json()["error"]["code"]) == (402, "stream_ended")
        assert refused.json()["accepts"]
        return late

    await at_best(cut, SOON)


async def test_a_whole_answer_that_is_cut_tells_what_there_was(
    rig: Rig, buyer: Buyer, engine_child: EngineProcess
) -> None:
    async with engine_child.cutting(), buyer.openai() as client:
        asking = asyncio.create_task(client.chat.completions.create(**LONG))

        async def well_begun() -> bool:
            return await engine_child.at() > 100

        await until(well_begun, what="a hundred tokens")
        near_the_end(rig, buyer)
        with pytest.raises(openai.APIStatusError) as caught:
            await asking
    error = caught.value.body
    assert caught.value.status_code == 402
    assert error["code"] == "stream_ended"
    assert error["usage"]["completion_tokens"] > 10
    assert error["usage"]["prompt_tokens"] > 0
    assert "estimated" not in error["usage"]
    assert error["partial"]["choices"][0]["message"]["content"]


async def test_a_jump_of_the_chains_time_cuts_at_once(rig: Rig, engine_child: EngineProcess) -> None:
    async def cut() -> float:
        buyer = await (await rig.buyer()).arrive()
        async with engine_child.cutting(), buyer.openai() as client:
            stream = await client.chat.completions.create(**LONG, stream=True)
            reading = asyncio.create_task(read_to_the_cut(stream))
            await until(lambda: rig.provider.admission.running == 1)
            rig.node.advance(700)
            jumped = time.monotonic()
            _, error = await reading
            taken = time.monotonic() - jumped
        assert error.code == "stream_ended"
        return taken

    await at_best(cut, SOON)


async def test_a_top_up_lets_a_running_answer_go_on(rig: Rig, buyer: Buyer, engine_child: EngineProcess) -> None:
    more = 600
    async with engine_child.cutting(), buyer.openai() as client:
        stream = await client.chat.completions.create(**LONG, stream=True)
        pieces = aiter(stream)
        await anext(pieces)
        await rig.chain.top_up(buyer.wallet, buyer.key, duration=more, value=more * RATE // 10**6, from_vault=0)
        near_the_end(rig, buyer, 1)
        while rig.provider.projection.now() < buyer.start + 600 + 1.5:
            await anext(pieces)
        state = (await rig.http.get("/v1/penstock/sessions/current", headers=buyer.bearer)).json()
        assert state["end"] == state["expires_at"] == buyer.start + 600 + more
        await stream.close()


async def test_closing_cuts_what_runs(rig: Rig, buyer: Buyer, engine_child: EngineProcess) -> None:
    async with engine_child.cutting(), buyer.openai() as client:
        stream = await client.chat.completions.create(**LONG, stream=True)
        await anext(aiter(stream))
        reading = asyncio.create_task(read_to_the_cut(stream))
        closed = (await buyer.close()).json()
        _, error = await reading
    assert error.code == "stream_closed"
    assert closed["transaction"]
    assert await rig.chain.vault_balance(NATIVE, buyer.wallet.address) == int(closed["refund"])


async def test_no_request_asks_the_node(rig: Rig, buyer: Buyer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    async def noted(*args: object) -> object:
        asked.append(args)
        raise AssertionError("a request asked the node")

    for task in rig.provider._tasks:  # the provider's own looks at the chain
        if task.get_name() != "receipts":
            task.cancel()
    await asyncio.sleep(0)
    monkeypatch.setattr(rig.chain._rpc, "_post", noted)
    answers = [await buyer.chat(max_tokens=1) for _ in range(3)]
    monkeypatch.undo()
    assert [answer.status_code for answer in answers] == [200] * 3
    assert asked == []
