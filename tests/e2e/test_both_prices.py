"""Offers that charge for time and for tokens: a stream and a channel, each billed once, and neither left locked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from penstock.accrual import flow
from penstock.audit import Books
from penstock.chain.web3 import Web3Chain
from penstock.consumer import BothSession, Consumer, Gateway, Wanted
from penstock.errors import (
    AnswerCut,
    ConfigError,
    GatewayRefused,
    GatewayUnreachable,
    InsufficientFunds,
    PaymentRequired,
    Reverted,
)
from penstock.journal import Journal, State
from provider.engines.upstream import UpstreamEngine
from tests.deployed import Deployed
from tests.harness import Node
from tests.market import WAITS
from tests.provider.rig import COINS, Rig, fresh_account, running

OFFERS = ("TUSD:0.0001+1/3",)
"""100 base units a second, 1 and 3 a token."""
DOLLARS = 10**6
PROMPT = "Why does water flow downhill?"


@pytest.fixture
async def rig(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path
) -> AsyncIterator[Rig]:
    async with running(node, chain, deployed.deployment, engine, tmp_path, offers=OFFERS) as rig:
        yield rig


@pytest.fixture(params=[COINS, 0], ids=["own gas", "gasless"])
async def consumer(
    request: pytest.FixtureRequest, node: Node, chain: Web3Chain, deployed: Deployed, tmp_path: Path
) -> AsyncIterator[Consumer]:
    """With a dollar, and with or without coins for gas. In the end nothing of it is locked, and none of it is lost
    but what its records say was paid."""
    account = fresh_account(node, coins=request.param)
    token = deployed.deployment.tokens["TUSD"]
    node.mint(token, account.address, DOLLARS)
    with Journal(tmp_path / "journal.db") as journal:
        async with Consumer(chain, account, journal, waits=WAITS) as consumer:
            yield consumer
            books, head = Books(), await chain.head()
            for event in await chain.events(deployed.deployment.first_block, head.number):
                books.apply(event)
            # One that has ended is all its payee's.
            running = [state for key, state in books.streams.values() if key.payer == account.address]
            assert [state for state in running if state.end > head.timestamp] == []
            locked = [state.locked for key, state in books.channels.values() if key.payer == account.address]
            assert sum(locked) == 0
            paid = sum(one.paid for one in [*journal.all(), *journal.channels()])
            left = await chain.token_balance(token, account.address) + await chain.vault_balance(token, account.address)
            assert left == DOLLARS - paid
            assert await chain.native_balance(account.address) <= request.param


async def buy(consumer: Consumer, rig: Rig, **options: Any) -> BothSession:
    return consumer.both_session(await consumer.market.choose(Wanted(provider=rig.me)), **options)


async def test_time_and_tokens_are_each_paid_once(rig: Rig, chain: Web3Chain, consumer: Consumer) -> None:
    vault = await chain.vault_balance(rig.offer(rig.deployment.tokens["TUSD"]).terms.token, rig.me)
    async with await buy(consumer, rig, duration=100) as session:
        answer = session.chat(PROMPT, max_tokens=200, ignore_eos=True)
        assert await answer.read()
        assert session.signed <= session.owed + 64 * 3
    stream, channel = session.stream_summary, session.summary
    assert stream is not None
    assert channel is not None
    assert stream.stream == channel.channel
    assert (stream.state, channel.state) == (State.CLOSED, State.CLOSED)
    assert stream.deposit == 100 * 100 == stream.paid + stream.refund
    assert stream.paid == flow(100 * 10**6, stream.seconds)
    assert channel.paid == answer.usage.prompt_tokens + 200 * 3
    assert channel.paid + channel.refund == channel.deposit
    gasless = not await chain.native_balance(consumer.account.address)
    assert stream.gasless is channel.gasless is gasless
    whats = [one.what for one in channel.transactions], [one.what for one in stream.transactions]
    assert whats == ((["open", "close"] if gasless else ["approve", "open", "close", "withdraw"]), ["open", "close"])
    assert all(one.relayed is gasless for one in stream.transactions)
    assert await chain.vault_balance(channel.token.address, rig.me) - vault == stream.paid + channel.paid
    assert await chain.allowance(channel.token.address, consumer.account.address) == 0


async def test_the_vault_pays_first(rig: Rig, chain: Web3Chain, consumer: Consumer, node: Node) -> None:
    """The deposit from the vault alone, the stream from what the vault has left and the wallet."""
    token, me = rig.deployment.tokens["TUSD"], consumer.account.address
    held = await chain.native_balance(me)
    node.set_balance(me, COINS)
    await chain.approve(consumer.account, token, 35_000)
    await chain.deposit(consumer.account, token, 35_000)
    node.set_balance(me, held)
    async with await buy(consumer, rig, duration=100, deposit=30_000):
        assert await chain.vault_balance(token, me) == 0
        assert await chain.token_balance(token, me) == DOLLARS - 40_000


async def test_a_stream_that_ends_ends_the_answer_and_the_channel_is_closed(
    rig: Rig, consumer: Consumer, node: Node
) -> None:
    with pytest.raises((AnswerCut, PaymentRequired)) as cut:
        async with await buy(consumer, rig, duration=60) as session:
            async for _ in session.chat(PROMPT, max_tokens=9000, ignore_eos=True):
                if session.owed > 50 and node is not None:
                    node.advance(61)
                    node = None  # type: ignore[assignment]
    assert cut.value.code == "stream_ended"
    stream, channel = session.stream_summary, session.summary
    assert stream is not None
    assert channel is not None
    assert (stream.state, stream.refund) == (State.CLOSED, 0)
    assert (channel.state, channel.paid) == (State.CLOSED, session.owed)


async def test_a_cancelled_task_closes_both(rig: Rig, consumer: Consumer) -> None:
    session = await buy(consumer, rig)
    talking = asyncio.Event()

    async def talk() -> None:
        async with session:
            async for _ in session.chat(PROMPT, max_tokens=4000, ignore_eos=True):
                talking.set()

    task = asyncio.create_task(talk())
    await talking.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert {one.state for one in (session.summary, session.stream_summary) if one is not None} == {State.CLOSED}


@pytest.mark.parametrize("error", [GatewayRefused(402, "rate_too_low", "no"), GatewayUnreachable("gone")])
async def test_a_handshake_that_fails_leaves_nothing(
    rig: Rig, consumer: Consumer, monkeypatch: pytest.MonkeyPatch, node: Node, error: Exception
) -> None:
    async def fail(*_: Any, **__: Any) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Gateway, "open_session", fail)
        with pytest.raises(type(error)):
            async with await buy(consumer, rig):
                raise AssertionError("it was let in")
    node.advance(200)  # beyond the deadline of the orders
    await consumer.reconcile()
    await consumer.reconcile_channels()
    states = {one.state for one in [*consumer.journal.all(), *consumer.journal.channels()]}
    assert states in ({State.CLOSED}, {State.VOID})


async def test_an_answer_of_the_handshake_that_is_lost_leaves_nothing(
    rig: Rig, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The provider opens both, and nobody hears of it: a grant closes what there is no token for."""
    send = Gateway.open_session

    async def lose(gateway: Gateway, *words: Any, **more: Any) -> Any:
        await send(gateway, *words, **more)
        raise GatewayUnreachable("the line is dead")

    with monkeypatch.context() as patch:
        patch.setattr(Gateway, "open_session", lose)
        with pytest.raises(GatewayUnreachable):
            async with await buy(consumer, rig):
                raise AssertionError("it was let in")
    (stream,), (channel,) = consumer.journal.all(), consumer.journal.channels()
    assert (stream.state, channel.state, channel.paid) == (State.CLOSED, State.CLOSED, 0)


async def test_a_channel_without_its_stream_is_closed_again(
    rig: Rig, consumer: Consumer, monkeypatch: pytest.MonkeyPatch, node: Node
) -> None:
    """The channel opens, and then the stream does not: its signature is bad, or the contract refuses it."""

    async def refuse(*_: Any, **__: Any) -> Any:
        raise Reverted("streams: no", doing="opening the stream")

    with monkeypatch.context() as patch:
        patch.setattr("penstock.consumer.both.order_digest", lambda *_: bytes(32))
        patch.setattr(Web3Chain, "open", refuse)
        with pytest.raises((Reverted, GatewayRefused)) as refused:
            async with await buy(consumer, rig):
                raise AssertionError("it was let in")
    if isinstance(refused.value, GatewayRefused):
        assert refused.value.code == "order_refused"
    (channel,) = consumer.journal.channels()
    assert (channel.state, channel.paid, channel.refund) == (State.CLOSED, 0, channel.deposit)
    node.advance(200)
    await consumer.reconcile()
    (stream,) = consumer.journal.all()
    assert stream.state is State.VOID


async def test_a_channel_that_does_not_open_costs_no_stream(
    rig: Rig, consumer: Consumer, monkeypatch: pytest.MonkeyPatch, node: Node
) -> None:
    async def refuse(*_: Any, **__: Any) -> Any:
        raise Reverted("channels: no", doing="opening the channel")

    with monkeypatch.context() as patch:
        patch.setattr("penstock.consumer.channel.channel_order_digest", lambda *_: bytes(32))
        patch.setattr(Web3Chain, "open_channel", refuse)
        with pytest.raises((Reverted, GatewayRefused)):
            async with await buy(consumer, rig):
                raise AssertionError("it was let in")
    node.advance(200)
    await consumer.reconcile()
    await consumer.reconcile_channels()
    assert {one.state for one in [*consumer.journal.all(), *consumer.journal.channels()]} == {State.VOID}


async def test_the_next_start_closes_what_a_crash_left(rig: Rig, consumer: Consumer) -> None:
    session = await (await buy(consumer, rig)).__aenter__()
    answer = session.chat(PROMPT, max_tokens=40, ignore_eos=True)
    assert await answer.read()
    await session.pay(session.owed)
    # The token went with the process; the journal has the session key.
    (stream,) = await consumer.reconcile()
    assert stream.state is State.CLOSED
    (channel,) = await consumer.reconcile_channels()
    assert (channel.state, channel.paid) == (State.CLOSED, session.owed)
    assert consumer.journal.unfinished() == []


async def test_what_is_lacking_is_said_before_anything_is_signed(rig: Rig, consumer: Consumer) -> None:
    for options, error, said in [
        ({"deposit": DOLLARS}, InsufficientFunds, "choose a smaller --deposit"),
        ({"duration": 0}, ConfigError, "at least 1 second|from 30 seconds on"),
    ]:
        with pytest.raises(error, match=said):  # type: ignore[call-overload]
            async with await buy(consumer, rig, **options):  # type: ignore[arg-type]
                raise AssertionError("it was let in")
    listing = await consumer.market.choose(Wanted(provider=rig.me))
    for wrong in (consumer.session, consumer.channel_session):
        with pytest.raises(ConfigError, match="choose another offer"):
            wrong(listing)  # type: ignore[operator]
    assert [*consumer.journal.all(), *consumer.journal.channels()] == []
