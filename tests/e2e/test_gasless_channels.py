"""Tokens bought by an account that holds no coin: it signs, the provider sends, and nothing is locked afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from penstock.chain.web3 import Web3Chain
from penstock.channels import CLOSE_DELAY
from penstock.consumer import ChannelSession, Consumer, Gateway, News, Wanted
from penstock.consumer.base import ORDER_LIFE
from penstock.errors import (
    ConfigError,
    GatewayRefused,
    GatewayUnreachable,
    InsufficientFunds,
    PaymentRequired,
    Reverted,
    StreamLeftOpen,
)
from penstock.journal import Journal, State
from penstock.keys import new_session_key
from penstock.types import ZERO_ADDRESS, Address
from penstock.wire.sessions import SessionRequest
from provider.engines.upstream import UpstreamEngine
from tests.deployed import Deployed
from tests.harness import Node
from tests.market import WAITS
from tests.provider.rig import COINS, Rig, fresh_account, running

OFFERS = ("TUSD:1/3",)
"""Dollars per million prompt and completion tokens: 1 and 3 base units a token."""
DOLLARS = 10**6


@pytest.fixture
async def consumer(node: Node, chain: Web3Chain, deployed: Deployed, tmp_path: Path) -> AsyncIterator[Consumer]:
    """With a dollar and no coin at all."""
    account = fresh_account(node, coins=0)
    node.mint(deployed.deployment.tokens["TUSD"], account.address, DOLLARS)
    with Journal(tmp_path / "journal.db") as journal:
        async with Consumer(chain, account, journal, waits=WAITS) as consumer:
            yield consumer


@pytest.fixture
async def rig(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path
) -> AsyncIterator[Rig]:
    async with running(node, chain, deployed.deployment, engine, tmp_path, offers=OFFERS) as rig:
        yield rig


async def buy(consumer: Consumer, rig: Rig, **options: Any) -> ChannelSession:
    return consumer.channel_session(await consumer.market.choose(Wanted(provider=rig.me)), **options)


async def worth(consumer: Consumer, token: Address) -> int:
    """All that the account has, base units."""
    me = consumer.account.address
    return await consumer.chain.token_balance(token, me) + await consumer.chain.vault_balance(token, me)


async def test_who_holds_no_coin_buys_tokens_twice(rig: Rig, chain: Web3Chain, consumer: Consumer) -> None:
    me, news = consumer.account.address, list[News]()
    consumer._on_news = news.append
    token = rig.deployment.tokens["TUSD"]
    left = DOLLARS
    for turn in range(2):
        async with await buy(consumer, rig) as session:
            assert await chain.allowance(token, me) == 0, "the permit was for the deposit and no more"
            answer = session.chat("Why does water flow downhill?", max_tokens=200, ignore_eos=True)
            assert await answer.read()
        summary = session.summary
        assert summary is not None
        assert (summary.state, summary.gasless, summary.refund_to) == (State.CLOSED, True, ZERO_ADDRESS)
        assert summary.deposit == 10_000 * 3, "the least that the provider opens for others"
        assert summary.paid == answer.usage.prompt_tokens + 200 * 3
        assert summary.paid + summary.refund == summary.deposit
        assert [(one.what, one.relayed, one.fee) for one in summary.transactions] == [
            ("open", True, 0),
            ("close", True, 0),
        ]
        left -= summary.paid
        assert await worth(consumer, token) == left
        wallet = await chain.token_balance(token, me)
        # The second deposit was first of all what the first one had left in the vault.
        assert wallet == (DOLLARS - summary.deposit if not turn else left - summary.refund)
    assert await chain.native_balance(me) == 0
    assert [one.what for one in news] == ["intended", "open", "closing", "close"] * 2
    assert {one.record.id for one in news[:4]} == {consumer.journal.channels()[0].id}


async def test_the_order_is_on_the_disk_before_it_leaves(
    rig: Rig, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    send = Gateway.open_session

    async def look(gateway: Gateway, request: SessionRequest, **more: Any) -> Any:
        with Journal(consumer.journal.path) as other:  # as the next start would read it
            seen.extend(other.channels())
        assert request.channel is not None
        assert request.channel.order is not None
        assert seen[0].void_after == request.channel.order.deadline
        assert (seen[0].state, seen[0].deposit) == (State.INTENDED, int(request.channel.deposit))
        return await send(gateway, request, **more)

    monkeypatch.setattr(Gateway, "open_session", look)
    async with await buy(consumer, rig):
        pass
    assert len(seen) == 1


async def lost(consumer: Consumer, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> SessionRequest:
    """Sign an order that the provider never answers; it."""
    kept: list[SessionRequest] = []

    async def lose(_: Gateway, request: SessionRequest, **__: Any) -> Any:
        kept.append(request)
        raise GatewayUnreachable("the line is dead")

    with monkeypatch.context() as patch:
        patch.setattr(Gateway, "open_session", lose)
        with pytest.raises(GatewayUnreachable, match="the line is dead"):
            async with await buy(consumer, rig):
                raise AssertionError("it was let in")
    (record,) = consumer.journal.channels()
    assert record.state is State.INTENDED
    assert "may still open it from your signed order" in record.problem
    return kept[0]


async def test_an_order_that_was_never_submitted_becomes_void(
    rig: Rig, node: Node, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = await lost(consumer, rig, monkeypatch)
    (record,) = await consumer.reconcile_channels()
    assert record.state is State.INTENDED, "its deadline has not passed"
    node.advance(ORDER_LIFE + 5)
    (record,) = await consumer.reconcile_channels()
    assert (record.state, record.problem) == (State.VOID, "")
    assert request.channel is not None
    _, signed = request.channel.value(record.key)
    assert signed is not None
    with pytest.raises(Reverted, match="expired|deadline"):
        await rig.chain.open_channel_for(rig.provider.seller.account, *signed)


async def test_an_order_that_was_submitted_late_is_closed_by_the_next_start(
    rig: Rig, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = await lost(consumer, rig, monkeypatch)
    assert request.channel is not None
    key = consumer.journal.channels()[0].key
    _, signed = request.channel.value(key)
    assert signed is not None
    await rig.chain.open_channel_for(rig.provider.seller.account, *signed)
    (record,) = await consumer.reconcile_channels()
    assert (record.state, record.paid, record.refund) == (State.CLOSED, 0, record.deposit)
    assert await worth(consumer, key.token) == DOLLARS
    # Neither the order nor the channel's id is ever good again.
    with pytest.raises(Reverted, match="nonce|used"):
        await rig.chain.open_channel_for(rig.provider.seller.account, *signed)
    gateway = consumer.gateway(rig.url)
    with pytest.raises(PaymentRequired) as refused:
        await gateway.open_session(request)
    assert refused.value.code == "channel_closed"
    assert await worth(consumer, key.token) == DOLLARS


async def test_a_refused_order_leaves_nothing(rig: Rig, consumer: Consumer, node: Node) -> None:
    """The provider finds the order forged: the account that signs is not the one that pays."""
    forger = new_session_key()

    class Forged:
        address = consumer.account.address

        def sign_digest(self, digest: bytes) -> bytes:
            return forger.sign_digest(digest)

        def sign_transaction(self, transaction: dict[str, Any]) -> bytes:
            return consumer.account.sign_transaction(transaction)

    real, consumer.account = consumer.account, Forged()
    before = await rig.chain.native_balance(rig.me)
    with pytest.raises(GatewayRefused) as refused:
        async with await buy(consumer, rig):
            raise AssertionError("it was let in")
    consumer.account = real
    assert refused.value.code in ("order_refused", "insufficient_funds")
    assert await rig.chain.native_balance(rig.me) == before, "no gas was spent on it"
    node.advance(ORDER_LIFE + 5)
    (record,) = await consumer.reconcile_channels()
    assert record.state is State.VOID


async def test_without_the_provider_and_gas_it_says_what_is_locked_and_how_it_comes_back(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path, consumer: Consumer
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        rig = await stack.enter_async_context(
            running(node, chain, deployed.deployment, engine, tmp_path, offers=OFFERS, payout_gas_multiple=0)
        )
        session = await buy(consumer, rig)
        with pytest.raises(StreamLeftOpen, match="needs gas") as left:
            async with session:
                await session.chat("Hello", max_tokens=4).read()
                await session.pay(session.owed)
                await stack.aclose()
    assert left.value.locked == session.summary.deposit - session.signed  # type: ignore[union-attr]
    (record,) = await consumer.reconcile_channels()
    assert (record.state, "needs gas" in record.problem) == (State.OPEN, True)
    node.set_balance(consumer.account.address, COINS)
    (record,) = await consumer.reconcile_channels()
    assert record.reclaimable_at > 0
    node.advance(CLOSE_DELAY)
    (record,) = await consumer.reconcile_channels()
    assert (record.state, record.paid, record.refund_to) == (State.CLOSED, session.signed, consumer.account.address)
    assert await worth(consumer, record.key.token) == DOLLARS - session.signed


async def test_a_provider_that_could_not_close_opens_nothing_for_others(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path, consumer: Consumer
) -> None:
    payee = new_session_key().address
    async with running(node, chain, deployed.deployment, engine, tmp_path, offers=OFFERS, payee=payee) as rig:
        with pytest.raises(ConfigError, match="opens no channels by signature"):
            async with await buy(consumer, rig):
                raise AssertionError("it was let in")
    assert consumer.journal.channels() == []


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"deposit": 29_999}, ConfigError, "from 0.03 TUSD on: use --deposit 0.03"),
        ({"deposit": DOLLARS + 1}, InsufficientFunds, "choose a smaller --deposit"),
        ({"gasless": False}, InsufficientFunds, "too little for gas"),
    ],
)
async def test_what_is_lacking_is_said_before_anything_is_signed(
    rig: Rig, consumer: Consumer, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        async with await buy(consumer, rig, **options):
            raise AssertionError("it was let in")
    assert consumer.journal.channels() == []
