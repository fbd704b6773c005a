"""A consumer that pays by the token, a provider that sells so, and what is left when one of them misbehaves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from penstock.chain.web3 import Web3Chain
from penstock.channels import CLOSE_DELAY
from penstock.consumer import Consumer, Listing, Wanted
from penstock.consumer.vouchers import STEP_TOKENS
from penstock.errors import Overcharged, StreamLeftOpen
from penstock.journal import Journal, State
from penstock.types import NATIVE
from provider.engines.upstream import UpstreamEngine
from tests.deployed import Deployed
from tests.harness import PATIENCE, Node
from tests.market import WAITS
from tests.provider.rig import COINS, MODEL, Rig, fresh_account, running

OFFERS = ("native:1/3",)
TOKEN_PRICE = 3 * COINS // 10**6
PROMPT_PRICE = COINS // 10**6


@pytest.fixture
async def consumer(node: Node, chain: Web3Chain, tmp_path: Path) -> AsyncIterator[Consumer]:
    with Journal(tmp_path / "journal.db") as journal:
        async with Consumer(chain, fresh_account(node), journal, waits=WAITS) as consumer:
            yield consumer


async def listing(consumer: Consumer, rig: Rig) -> Listing:
    return await consumer.market.choose(Wanted(provider=rig.me, by_token=True, token=NATIVE))


async def test_tokens_are_paid_as_they_come(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path, consumer: Consumer
) -> None:
    async with running(node, chain, deployed.deployment, engine, tmp_path, offers=OFFERS, payout_gas_multiple=0) as rig:
        before = await chain.native_balance(consumer.account.address)
        async with consumer.channel_session(await listing(consumer, rig)) as session:
            account = None
            answer = session.chat("Why does water flow downhill?", max_tokens=900, ignore_eos=True)
            async for _ in answer:
                account = account or next(iter(rig.provider.accounts._accounts.values()))
                assert session.signed <= session.owed + STEP_TOKENS * TOKEN_PRICE
                assert account.owed - account.cumulative <= account.credit
            assert answer.usage.completion_tokens == 900
            assert session.signed > 500 * TOKEN_PRICE, "vouchers went out meanwhile"
            second = session.chat("And uphill?", max_tokens=3)
            await second.read()
        summary = session.summary
        assert summary is not None
        tokens = answer.usage.prompt_tokens + second.usage.prompt_tokens
        assert (summary.state, summary.completion_tokens, summary.prompt_tokens) == (State.CLOSED, 903, tokens)
        owed = tokens * PROMPT_PRICE + 903 * TOKEN_PRICE
        assert summary.paid == owed, "nothing is paid ahead where the credit is large enough"
        assert summary.paid + summary.refund == summary.deposit
        whats = [one.what for one in summary.transactions]
        assert whats == ["open", "close", "withdraw"]
        fees = sum(one.fee for one in summary.transactions)
        assert await chain.native_balance(consumer.account.address) == before - summary.paid - fees
        payouts = await rig.provider.payouts.run()
        assert sum(payout.amount for payout in payouts) == summary.paid


async def test_a_provider_with_little_credit_is_paid_ahead_by_one_step_at_most(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path, consumer: Consumer
) -> None:
    async with running(node, chain, deployed.deployment, engine, tmp_path, offers=OFFERS, credit_tokens=72) as rig:
        most = 0
        async with consumer.channel_session(await listing(consumer, rig)) as session:
            answer = session.chat("Why does water flow downhill?", max_tokens=300, ignore_eos=True)
            async for _ in answer:
                most = max(most, session.signed - session.owed)
            assert answer.usage.completion_tokens == 300
        assert 0 < most <= STEP_TOKENS * TOKEN_PRICE + 200 * PROMPT_PRICE


async def test_a_long_prompt_is_paid_before_it_is_taken(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path, consumer: Consumer
) -> None:
    async with (
        running(node, chain, deployed.deployment, engine, tmp_path, offers=OFFERS) as rig,
        consumer.channel_session(await listing(consumer, rig)) as session,
    ):
        assert await session.chat("water " * 400, max_tokens=4).read()
        assert session.signed <= (400 * 6 + 400) * PROMPT_PRICE + STEP_TOKENS * TOKEN_PRICE


async def test_what_a_provider_does_not_close_is_taken_back(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path, consumer: Consumer
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        rig = await stack.enter_async_context(
            running(node, chain, deployed.deployment, engine, tmp_path, offers=OFFERS, payout_gas_multiple=0)
        )
        session = consumer.channel_session(await listing(consumer, rig), deposit=COINS)
        with pytest.raises(StreamLeftOpen) as left:
            async with session:
                await session.chat("Hello", max_tokens=4).read()
                paid = session.owed
                await session.pay(paid)
                await stack.aclose()  # the provider leaves, and settles what it has
    highest = session.signed
    assert left.value.locked == COINS - highest
    channel = session.channel
    (state,) = await chain.channels([channel])
    assert state is not None
    assert state.requested_at
    assert state.settled == highest >= paid
    with pytest.raises(StreamLeftOpen):
        await consumer.stop_channel(channel)
    node.advance(CLOSE_DELAY)
    (record,) = await consumer.reconcile_channels()
    assert (record.state, record.paid, record.refund) == (State.CLOSED, highest, COINS - highest)
    assert record.refund_to == consumer.account.address
    assert [one.what for one in record.transactions] == ["open", "request", "reclaim"]


async def test_a_provider_that_counts_too_much_is_not_paid_for_it(
    node: Node,
    chain: Web3Chain,
    deployed: Deployed,
    tmp_path: Path,
    consumer: Consumer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("provider.completions.most_tokens", lambda _: 10**9)  # it passes on what its engine claims
    async with liar() as url:
        engine = UpstreamEngine(url, {MODEL: MODEL}, api_key="", start_seconds=PATIENCE)
        await engine.start()
        async with running(
            node, chain, deployed.deployment, engine, tmp_path, offers=OFFERS, credit_tokens=10_000
        ) as rig:
            session = consumer.channel_session(await listing(consumer, rig), deposit=COINS)
            with pytest.raises(Overcharged):
                async with session:
                    await session.chat("Hello").read()
        await engine.stop()
    summary = session.summary
    assert summary is not None
    assert summary.state is State.CLOSED
    assert summary.paid <= 300 * PROMPT_PRICE + (len("Hello") + 16 + STEP_TOKENS) * TOKEN_PRICE


@contextlib.asynccontextmanager
async def liar() -> AsyncIterator[str]:
    """An engine that says one word and claims thousands of tokens."""

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": MODEL, "owned_by": "liar"}]})

    async def chat(request: web.Request) -> web.StreamResponse:
        if not (await request.json()).get("stream"):
            return web.json_response({"choices": []})
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        piece = '{"choices":[{"index":0,"delta":{"content":"Hello"},"finish_reason":"stop"}]}'
        usage = '{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":5000,"total_tokens":5005}}'
        await response.write(f"data: {piece}\n\ndata: {usage}\n\ndata: [DONE]\n\n".encode())
        return response

    app = web.Application()
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/chat/completions", chat)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await asyncio.shield(runner.cleanup())
