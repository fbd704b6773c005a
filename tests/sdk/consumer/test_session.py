"""Sessions on a real node against real servers: whatever happens, the stream is closed and the books are even."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from aiohttp import web

from penstock.chain.web3 import Web3Chain
from penstock.consumer import Consumer, Delta, Listing, News, Usage, Waits, Wanted, stopping_on_signals
from penstock.consumer.closing_streams import StreamCloser
from penstock.consumer.tasks import to_the_end
from penstock.errors import (
    AnswerCut,
    ConfigError,
    GatewayGarbage,
    GatewayRefused,
    GatewayUnreachable,
    InsufficientFunds,
    NodeUnavailable,
    OfferMismatch,
    PaymentRequired,
    StreamLeftOpen,
)
from penstock.events import Receipt
from penstock.journal import Journal, State
from penstock.keys import LocalAccount
from penstock.types import NATIVE, ZERO_ADDRESS, Address
from penstock.units import RATE_SCALE
from tests import gateways
from tests.gateways import PATIENT, Gateway, Handler, refuse, selling
from tests.harness import PATIENCE
from tests.market import COIN, DOLLAR, Market, until

WAITS = replace(PATIENT, settle=2)
"""Some tests wait for a stream that nobody opens."""


@asynccontextmanager
async def buying(
    market: Market, chain: Web3Chain, account: LocalAccount, news: list[News] | None = None, waits: Waits = WAITS
) -> AsyncIterator[Consumer]:
    """A consumer with a journal of its own; in the end nothing of its money may be locked."""
    with Journal(market.home(account) / "journal.db") as journal:
        hear = None if news is None else news.append
        async with Consumer(chain, account, journal, waits=waits, on_news=hear) as consumer:
            yield consumer


def waits_for(handler: Handler, *steps: str) -> Waits:
    """Short where the handler falls silent."""
    silent = handler in (gateways.hangs, gateways.stalls_in_mid_answer)
    return replace(WAITS, **dict.fromkeys(steps, 0.5)) if silent else WAITS


async def listing_of(consumer: Consumer, gateway: Gateway) -> Listing:
    assert gateway.offer is not None
    return await consumer.market.listing(gateway.offer.id)


async def test_pays_coins_by_the_second_and_gets_the_rest_back(market: Market, chain: Web3Chain) -> None:
    payer, news = market.account(), list[News]()
    async with selling(chain, market.account(), market.terms()) as gateway, buying(market, chain, payer, news) as buyer:
        listing = await listing_of(buyer, gateway)
        session = buyer.session(listing, duration=100)
        async with session:
            deltas = [delta async for delta in session.chat("What?", system="Be brief.", max_tokens=9, temperature=0)]
            assert session.base_url == f"{gateway.endpoint}/v1"
            assert session.token in gateway.sessions
            assert session.end - session.start == 100
            assert session.spent(session.start + 7) == 7 * 10**13
            assert session.spent(session.start + 1000) == 100 * 10**13
            assert session.spent(session.start) == 10**13
        assert "".join(delta.text for delta in deltas) == "A penstock is a gate."
        assert deltas[-2:] == [Delta("", "stop"), Delta(usage=Usage(3, 5, 8))]
        assert gateway.asked[0] | {"stream": True} == {
            "model": "penstock-tiny",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What?"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
            "max_tokens": 9,
            "temperature": 0,
        }
        assert gateway.calls == ["greet", "open", "chat"]
        summary = session.summary
        assert summary is not None
        assert summary.state is State.CLOSED
        assert summary.deposit == 100 * 10**13 == summary.paid + summary.refund
        assert summary.paid == summary.seconds * 10**13
        assert summary.refund_to == payer.address
        assert [one.what for one in summary.transactions] == ["open", "close"]
        fees = sum(one.fee for one in summary.transactions)
        assert await chain.native_balance(payer.address) == 10 * COIN - summary.paid - fees
        assert await chain.vault_balance(NATIVE, gateway.account.address) == summary.paid
    assert [one.what for one in news] == ["intended", "open", "closing", "close"]
    await market.assert_nothing_locked(chain, payer.address)


async def test_pays_tokens_and_approves_no_more_than_it_needs(market: Market, chain: Web3Chain) -> None:
    payer, dollar = market.account(dollars=DOLLAR), market.dollar
    async with selling(chain, market.account(), market.terms(dollar)) as gateway, buying(market, chain, payer) as buyer:
        session = buyer.session(await listing_of(buyer, gateway), duration=60)
        async with session:
            assert await chain.allowance(dollar, payer.address) == 0
            assert await session.chat("What?").read()
        summary = session.summary
        assert summary is not None
        assert [one.what for one in summary.transactions] == ["approve", "open", "close"]
        assert await chain.token_balance(dollar, payer.address) == DOLLAR - summary.paid
    await market.assert_nothing_locked(chain, payer.address)


@pytest.mark.parametrize("native", [True, False], ids=["coins", "tokens"])
async def test_takes_the_vault_balance_first(market: Market, chain: Web3Chain, native: bool) -> None:
    token = NATIVE if native else market.dollar
    payer = market.account(dollars=DOLLAR)
    terms = market.terms(token)
    async with selling(chain, market.account(), terms) as gateway, buying(market, chain, payer) as buyer:
        part = 10 * terms.rate // RATE_SCALE
        if not native:
            await chain.approve(payer, token, part)
        await chain.deposit(payer, token, part)
        async with buyer.session(await listing_of(buyer, gateway), duration=30):
            assert await chain.vault_balance(token, payer.address) == 0
            assert (await market.books(chain)).liabilities(token) >= 3 * part
    await market.assert_nothing_locked(chain, payer.address)


async def test_without_gas_the_provider_opens_and_closes(market: Market, chain: Web3Chain) -> None:
    payer, dollar = market.account(coins=0, dollars=DOLLAR), market.dollar
    async with selling(chain, market.account(), market.terms(dollar)) as gateway, buying(market, chain, payer) as buyer:
        session = buyer.session(await listing_of(buyer, gateway), duration=60)
        async with session:
            assert await session.chat("What?").read() == "A penstock is a gate."
        summary = session.summary
        assert summary is not None
        assert summary.state is State.CLOSED
        assert summary.gasless
        assert [(one.what, one.relayed, one.gas_used > 0) for one in summary.transactions] == [
            ("open", True, True),
            ("close", True, True),
        ]
        assert await chain.native_balance(payer.address) == 0
        assert await chain.token_balance(dollar, payer.address) == DOLLAR - summary.paid
        assert await chain.allowance(dollar, payer.address) == 0
    await market.assert_nothing_locked(chain, payer.address)


async def test_without_gas_coins_come_from_the_vault(market: Market, chain: Web3Chain) -> None:
    payer, friend = market.account(coins=0), market.account()
    await chain.deposit(friend, NATIVE, COIN // 100, account=payer.address)
    async with selling(chain, market.account(), market.terms()) as gateway, buying(market, chain, payer) as buyer:
        session = buyer.session(await listing_of(buyer, gateway), duration=60)
        async with session:
            pass
        assert session.summary is not None
        assert session.summary.gasless
        with pytest.raises(InsufficientFunds, match="paid from the vault"):
            async with buyer.session(await listing_of(buyer, gateway), duration=10**6, gasless=True):
                pytest.fail("it opened")
    await market.assert_nothing_locked(chain, payer.address)


async def test_the_default_duration_obeys_what_the_provider_relays(market: Market, chain: Web3Chain) -> None:
    payer, dollar = market.account(coins=0, dollars=DOLLAR), market.dollar
    async with (
        selling(chain, market.account(), market.terms(dollar), min_relayed_duration=90) as gateway,
        buying(market, chain, payer) as buyer,
    ):
        listing = await listing_of(buyer, gateway)
        with pytest.raises(ConfigError, match="--duration 90"):
            async with buyer.session(listing, duration=89):
                pytest.fail("it opened")
        async with buyer.session(listing) as session:
            assert session.end - session.start == 90
    await market.assert_nothing_locked(chain, payer.address)


async def test_top_up_lasts_longer_at_the_same_rate(market: Market, chain: Web3Chain) -> None:
    for token in (NATIVE, market.dollar):
        payer = market.account(dollars=DOLLAR)
        async with (
            selling(chain, market.account(), market.terms(token)) as gateway,
            buying(market, chain, payer) as buyer,
        ):
            session = buyer.session(await listing_of(buyer, gateway), duration=200)
            async with session:
                end = session.end
                assert await session.extend(150) == end + 150 == session.end
            summary = session.summary
            assert summary is not None
            assert summary.deposit == 350 * market.terms(token).rate // RATE_SCALE == summary.paid + summary.refund
            assert "top up" in [one.what for one in summary.transactions]
        await market.assert_nothing_locked(chain, payer.address)


# --- ways out ------------------------------------------------------------------------------------


async def test_an_error_in_the_block_closes_the_stream_and_goes_on(market: Market, chain: Web3Chain) -> None:
    payer = market.account()
    async with selling(chain, market.account(), market.terms()) as gateway, buying(market, chain, payer) as buyer:
        session = buyer.session(await listing_of(buyer, gateway))
        with pytest.raises(ZeroDivisionError):
            async with session:
                raise ZeroDivisionError
        assert session.summary is not None
        assert session.summary.state is State.CLOSED
    await market.assert_nothing_locked(chain, payer.address)


async def test_leaving_in_mid_answer_hangs_up(market: Market, chain: Web3Chain) -> None:
    payer = market.account()
    async with (
        selling(chain, market.account(), market.terms(), words=("x ",) * 1000, pace=0.01) as gateway,
        buying(market, chain, payer) as buyer,
        buyer.session(await listing_of(buyer, gateway)) as session,
    ):
        async for _ in session.chat("What?"):
            break
    await market.assert_nothing_locked(chain, payer.address)


async def test_a_cancelled_task_closes_the_stream(market: Market, chain: Web3Chain) -> None:
    payer = market.account()
    async with (
        selling(chain, market.account(), market.terms(), words=("x ",) * 1000, pace=0.05) as gateway,
        buying(market, chain, payer) as buyer,
    ):
        listing = await listing_of(buyer, gateway)

        async def work() -> None:
            async with buyer.session(listing) as session:
                await session.chat("What?").read()

        task = asyncio.create_task(work())
        await gateway.begun()
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()  # an impatient one
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [one.state for one in buyer.journal.all()] == [State.CLOSED]
    await market.assert_nothing_locked(chain, payer.address)


@pytest.mark.parametrize("step", ["greet", "open", "chat"])
async def test_cancelling_at_any_step_leaves_nothing_open(market: Market, chain: Web3Chain, step: str) -> None:
    payer, reached = market.account(), asyncio.Event()

    async def blocks(request: web.Request) -> web.StreamResponse:
        reached.set()
        return await gateways.hangs(request)

    handlers: dict[str, Handler] = {{"open": "open_session"}.get(step, step): blocks}
    async with (
        selling(chain, market.account(), market.terms(), **handlers) as gateway,  # type: ignore[arg-type]
        buying(market, chain, payer) as buyer,
    ):
        listing = await listing_of(buyer, gateway)

        async def work() -> None:
            async with buyer.session(listing) as session:
                await session.chat("What?").read()

        task = asyncio.create_task(work())
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [one.state for one in buyer.journal.all()] == ([] if step == "greet" else [State.CLOSED])
    await market.assert_nothing_locked(chain, payer.address)


async def test_cancelling_while_the_open_is_in_flight_closes_what_it_opens(market: Market, chain: Web3Chain) -> None:
    payer = market.account()
    async with selling(chain, market.account(), market.terms()) as gateway, buying(market, chain, payer) as buyer:
        listing = await listing_of(buyer, gateway)

        async def work() -> None:
            async with buyer.session(listing):
                pytest.fail("it was cancelled")

        with market.node.holding():
            task = asyncio.create_task(work())
            await until(lambda: int(market.node.rpc("txpool_status")["pending"], 16) > 0)
            task.cancel()
            await asyncio.sleep(0.05)
            assert not task.done()
        with pytest.raises(asyncio.CancelledError):
            await task
        (record,) = buyer.journal.all()
        assert record.state is State.CLOSED
        assert [one.what for one in record.transactions] == ["open", "close"]
    await market.assert_nothing_locked(chain, payer.address)


async def test_sigterm_closes_the_stream(market: Market, chain: Web3Chain) -> None:
    payer = market.account()
    async with (
        selling(chain, market.account(), market.terms(), words=("x ",) * 1000, pace=0.05) as gateway,
        buying(market, chain, payer) as buyer,
    ):
        listing = await listing_of(buyer, gateway)

        async def work() -> int:
            with stopping_on_signals() as stop:
                try:
                    async with buyer.session(listing) as session:
                        async for _ in session.chat("What?"):
                            os.kill(os.getpid(), signal.SIGTERM)
                except asyncio.CancelledError:
                    return stop.signal
            return 0

        assert await asyncio.create_task(work()) == signal.SIGTERM
    await market.assert_nothing_locked(chain, payer.address)


async def test_a_signal_stops_also_what_has_lost_its_terminal() -> None:
    def notice(_: object) -> None:
        raise BrokenPipeError

    async def work() -> int:
        with stopping_on_signals(notice=notice) as stop:
            try:
                os.kill(os.getpid(), signal.SIGHUP)
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                return stop.signal
        return 0

    async with asyncio.timeout(PATIENCE):
        assert await asyncio.create_task(work()) == signal.SIGHUP


async def test_to_the_end_finishes_before_it_is_cancelled() -> None:
    steps: list[str] = []

    async def work() -> str:
        await asyncio.sleep(0.05)
        steps.append("done")
        return "result"

    assert await to_the_end(work()) == "result"
    task = asyncio.create_task(to_the_end(work()))
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps == ["done", "done"]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await to_the_end(work())
    assert steps == ["done"] * 3

    async def fails() -> None:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await to_the_end(fails())


# --- providers that misbehave --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("handler", "error"),
    [
        (gateways.says_402, PaymentRequired),
        (gateways.says_500, GatewayRefused),
        (gateways.says_garbage, GatewayGarbage),
        (gateways.says_nothing, GatewayUnreachable),
        (gateways.hangs, GatewayUnreachable),
    ],
)
@pytest.mark.parametrize("step", ["greet", "open_session"])
@pytest.mark.parametrize("gasless", [False, True])
async def test_a_failed_handshake_leaves_nothing_open(
    market: Market, chain: Web3Chain, handler: Handler, error: type[Exception], step: str, gasless: bool
) -> None:
    payer = market.account(coins=0 if gasless else 10 * COIN, dollars=DOLLAR)
    terms = market.terms(market.dollar)
    waits = waits_for(handler, "greeting") if step == "greet" else waits_for(handler, "handshake", "relay")
    async with (
        selling(chain, market.account(), terms, **{step: handler}) as gateway,  # type: ignore[arg-type]
        buying(market, chain, payer, waits=waits) as buyer,
    ):
        with pytest.raises(error):
            async with buyer.session(await listing_of(buyer, gateway)):
                pytest.fail("it opened")
        if step == "greet":
            assert buyer.journal.all() == []
            assert await chain.token_balance(market.dollar, payer.address) == DOLLAR
        else:
            (record,) = buyer.journal.all()
            # A signed order that the provider has may still be used until it expires, and the journal says so.
            assert record.state is (State.INTENDED if gasless else State.CLOSED)
            assert ("may still open it" in record.problem) is gasless
    await market.assert_nothing_locked(chain, payer.address)


@pytest.mark.parametrize(
    ("handler", "error", "code"),
    [
        (gateways.says_402, PaymentRequired, "payment_required"),
        (gateways.says_500, GatewayRefused, "http_500"),
        (gateways.says_garbage, GatewayGarbage, None),
        (gateways.says_nothing, GatewayUnreachable, None),
        (gateways.hangs, AnswerCut, "stalled"),
        (gateways.stalls_in_mid_answer, AnswerCut, "stalled"),
        (gateways.dies_in_mid_answer, AnswerCut, "connection_lost"),
        (gateways.cuts_the_answer, AnswerCut, "stream_ended"),
    ],
)
async def test_a_failed_answer_closes_the_stream(
    market: Market, chain: Web3Chain, handler: Handler, error: type[Exception], code: str | None
) -> None:
    payer = market.account()
    async with (
        selling(chain, market.account(), market.terms(), chat=handler) as gateway,
        buying(market, chain, payer, waits=waits_for(handler, "stall")) as buyer,
    ):
        session = buyer.session(await listing_of(buyer, gateway))
        with pytest.raises(error) as raised:
            async with session:
                await session.chat("What?").read()
        assert getattr(raised.value, "code", None) == code
        assert session.summary is not None
        assert session.summary.state is State.CLOSED
    await market.assert_nothing_locked(chain, payer.address)


async def test_a_gateway_of_another_deployment_gets_no_money(market: Market, chain: Web3Chain) -> None:
    payer = market.account()

    async def impostor(request: web.Request) -> web.StreamResponse:
        real = await gateway.greet(request)
        assert isinstance(real, web.Response)
        assert isinstance(real.body, bytes)
        return web.Response(body=real.body.replace(b"31337", b"1"), content_type="application/json")

    async with (
        selling(chain, market.account(), market.terms(), greet=impostor) as gateway,
        buying(market, chain, payer) as buyer,
    ):
        with pytest.raises(GatewayGarbage, match="another provider, chain or deployment"):
            async with buyer.session(await listing_of(buyer, gateway)):
                pytest.fail("it opened")
        assert await chain.native_balance(payer.address) == 10 * COIN


async def test_a_token_for_another_stream_is_garbage(market: Market, chain: Web3Chain) -> None:
    payer = market.account()

    async def mixes_up(request: web.Request) -> web.StreamResponse:
        real = await gateway.open_session(request)
        assert isinstance(real, web.Response)
        assert isinstance(real.body, bytes)
        (record,) = buyer.journal.all()
        return web.Response(body=real.body.replace(record.id.encode(), b"0x" + b"00" * 32), status=201)

    async with (
        selling(chain, market.account(), market.terms(), open_session=mixes_up) as gateway,
        buying(market, chain, payer) as buyer,
    ):
        with pytest.raises(GatewayGarbage, match="another stream"):
            async with buyer.session(await listing_of(buyer, gateway)):
                pytest.fail("it opened")
    await market.assert_nothing_locked(chain, payer.address)


async def test_waits_for_a_provider_that_has_not_seen_the_open(market: Market, chain: Web3Chain) -> None:
    payer, tries = market.account(), list[int]()

    async def looks_late(request: web.Request) -> web.StreamResponse:
        tries.append(1)
        if len(tries) < 3:
            return refuse(402, "stream_unknown", "not seen yet")
        return await gateway.open_session(request)

    async with (
        selling(chain, market.account(), market.terms(), open_session=looks_late) as gateway,
        buying(market, chain, payer) as buyer,
        buyer.session(await listing_of(buyer, gateway)),
    ):
        assert len(tries) == 3
    await market.assert_nothing_locked(chain, payer.address)


async def test_a_provider_that_opens_and_says_that_it_did_not(market: Market, chain: Web3Chain) -> None:
    """It took the order, opened the stream and answers 500: we find the stream and have it cancelled."""
    payer = market.account(coins=0, dollars=DOLLAR)

    seen: list[int] = []

    async def lies_once(request: web.Request) -> web.StreamResponse:
        if seen:
            return await gateway.open_session(request)
        seen.append(1)
        await gateway.open_session(request)
        return refuse(500, "sorry", "something broke")

    async with (
        selling(chain, market.account(), market.terms(market.dollar), open_session=lies_once) as gateway,
        buying(market, chain, payer) as buyer,
    ):
        with pytest.raises(GatewayRefused, match="something broke"):
            async with buyer.session(await listing_of(buyer, gateway)):
                pytest.fail("it opened")
        (record,) = buyer.journal.all()
        assert record.state is State.CLOSED
        assert record.refund_to == payer.address
    await market.assert_nothing_locked(chain, payer.address)


async def test_a_pending_order_is_waited_for(market: Market, chain: Web3Chain) -> None:
    payer, calls = market.account(coins=0, dollars=DOLLAR), list[int]()

    async def slow(request: web.Request) -> web.StreamResponse:
        calls.append(1)
        answer = await gateway.open_session(request)
        return refuse(503, "order_pending", "not deep enough") if len(calls) == 1 else answer

    async with (
        selling(chain, market.account(), market.terms(market.dollar), open_session=slow) as gateway,
        buying(market, chain, payer) as buyer,
        buyer.session(await listing_of(buyer, gateway)) as session,
    ):
        assert await session.chat("What?").read()
    await market.assert_nothing_locked(chain, payer.address)


@pytest.mark.parametrize("handler", [gateways.says_500, gateways.hangs, gateways.says_garbage])
async def test_a_provider_that_does_not_close_is_done_without_by_who_has_gas(
    market: Market, chain: Web3Chain, handler: Handler
) -> None:
    payer = market.account(dollars=DOLLAR)
    async with (
        selling(chain, market.account(), market.terms(market.dollar), close=handler) as gateway,
        buying(market, chain, payer, waits=waits_for(handler, "close")) as buyer,
    ):
        session = buyer.session(await listing_of(buyer, gateway), gasless=True)
        async with session:
            pass
        assert session.summary is not None
        assert session.summary.state is State.CLOSED
        assert [(one.what, one.relayed) for one in session.summary.transactions] == [("open", True), ("close", False)]
    await market.assert_nothing_locked(chain, payer.address)


async def test_without_gas_and_provider_it_says_what_is_locked_until_when(market: Market, chain: Web3Chain) -> None:
    payer = market.account(coins=0, dollars=DOLLAR)
    async with (
        selling(chain, market.account(), market.terms(market.dollar), close=gateways.says_500) as gateway,
        buying(market, chain, payer) as buyer,
    ):
        session = buyer.session(await listing_of(buyer, gateway), duration=300)
        with pytest.raises(StreamLeftOpen, match=r"TUSD locked in it until .* UTC: .*; `penstock recover`") as left:
            async with session:
                end = session.end
        assert left.value.until == end
        assert 0 < left.value.locked <= 300 * 2000
        assert session.summary is not None
        assert session.summary.state is State.OPEN
        assert session.summary.problem
        # Some gas later the next start closes it.
        market.node.rpc("anvil_setBalance", payer.address, hex(COIN))
        (record,) = await buyer.reconcile()
        assert record.state is State.CLOSED
        assert record.problem == ""
    await market.assert_nothing_locked(chain, payer.address)


async def test_the_error_that_began_it_is_named_with_the_money_that_stays(market: Market, chain: Web3Chain) -> None:
    payer = market.account(coins=0, dollars=DOLLAR)
    async with (
        selling(
            chain, market.account(), market.terms(market.dollar), chat=gateways.says_402, close=gateways.says_500
        ) as gateway,
        buying(market, chain, payer) as buyer,
    ):
        with pytest.raises(StreamLeftOpen, match=r"it began with: .*402"):
            async with buyer.session(await listing_of(buyer, gateway)) as session:
                await session.chat("What?").read()
        market.node.rpc("anvil_setBalance", payer.address, hex(COIN))
        await buyer.reconcile()
    await market.assert_nothing_locked(chain, payer.address)


async def test_a_stream_that_the_provider_closes_first(market: Market, chain: Web3Chain) -> None:
    payer = market.account()
    async with selling(chain, market.account(), market.terms()) as gateway, buying(market, chain, payer) as buyer:
        session = buyer.session(await listing_of(buyer, gateway))
        async with session:
            (key, _) = gateway.sessions[session.token]
            await chain.close_stream(gateway.account, key, stop_at=0)
        summary = session.summary
        assert summary is not None
        assert (summary.state, summary.paid, summary.seconds) == (State.CLOSED, 0, 0)
        assert summary.refund == summary.deposit == await chain.vault_balance(NATIVE, payer.address)
        assert summary.refund_to == ZERO_ADDRESS
    await market.assert_nothing_locked(chain, payer.address)


async def test_a_stream_that_ran_to_its_end_needs_no_transaction(market: Market, chain: Web3Chain) -> None:
    payer = market.account()
    async with selling(chain, market.account(), market.terms()) as gateway, buying(market, chain, payer) as buyer:
        session = buyer.session(await listing_of(buyer, gateway), duration=1)
        async with session:
            while (await chain.head()).timestamp < session.end:
                await asyncio.sleep(0.1)
                market.node.rpc("evm_mine")
        summary = session.summary
        assert summary is not None
        assert (summary.state, summary.paid, summary.refund) == (State.CLOSED, summary.deposit, 0)
        assert [one.what for one in summary.transactions] == ["open"]


async def test_a_stream_that_ended_and_was_withdrawn(market: Market, chain: Web3Chain) -> None:
    payer = market.account()
    async with selling(chain, market.account(), market.terms()) as gateway, buying(market, chain, payer) as buyer:
        session = buyer.session(await listing_of(buyer, gateway), duration=1)
        async with session:
            (key, _) = gateway.sessions[session.token]
            while (await chain.head()).timestamp < session.end:
                await asyncio.sleep(0.1)
                market.node.rpc("evm_mine")
            await chain.withdraw(gateway.account, NATIVE, [key], to=gateway.account.address)
        summary = session.summary
        assert summary is not None
        assert (summary.state, summary.paid, summary.refund) == (State.CLOSED, summary.deposit, 0)
    await market.assert_nothing_locked(chain, payer.address)


# --- before money moves --------------------------------------------------------------------------


async def test_an_offer_taken_off_the_market_is_not_paid(market: Market, chain: Web3Chain) -> None:
    """A new price is a new offer: the old one, chosen a moment ago, is gone."""
    payer = market.account()
    async with selling(chain, market.account(), market.terms()) as gateway, buying(market, chain, payer) as buyer:
        listing = await listing_of(buyer, gateway)
        await chain.set_offer_active(gateway.account, listing.offer.id, False)
        await chain.create_offer(gateway.account, gateway.account.address, market.terms(rate=9 * 10**19))
        with pytest.raises(OfferMismatch, match="taken off the market"):
            async with buyer.session(listing):
                pytest.fail("it opened")
        assert await chain.native_balance(payer.address) == 10 * COIN
        assert gateway.calls == []


async def test_terms_that_differ_from_the_registry_are_not_paid(market: Market, chain: Web3Chain) -> None:
    payer = market.account()
    async with selling(chain, market.account(), market.terms()) as gateway, buying(market, chain, payer) as buyer:
        listing = await listing_of(buyer, gateway)
        cheaper = replace(listing, offer=replace(listing.offer, terms=replace(listing.offer.terms, rate=1)))
        moved = replace(listing, provider=replace(listing.provider, payee=Address("0x" + "11" * 20)))
        for wrong in (cheaper, moved):
            with pytest.raises(OfferMismatch):
                async with buyer.session(wrong):
                    pytest.fail("it opened")
        assert buyer.journal.all() == []


@pytest.mark.parametrize(
    ("coins", "dollars", "native", "message"),
    [
        (0, 0, True, "has 0 BNB and needs 0.0006 BNB"),
        (10**15, 0, True, "too little for the deposit and its gas"),
        (COIN, 0, False, "has 0 TUSD and needs 0.12 TUSD"),
        (0, 5, False, "has 0.000005 TUSD and needs 0.12 TUSD"),
    ],
)
async def test_what_is_lacking_is_said_before_anything_is_sent(
    market: Market, chain: Web3Chain, coins: int, dollars: int, native: bool, message: str
) -> None:
    payer = market.account(coins=coins, dollars=dollars)
    terms = market.terms(NATIVE if native else market.dollar)
    async with selling(chain, market.account(), terms) as gateway, buying(market, chain, payer) as buyer:
        with pytest.raises(InsufficientFunds, match=message):
            async with buyer.session(await listing_of(buyer, gateway)):
                pytest.fail("it opened")
        assert buyer.journal.all() == []
        assert await chain.native_balance(payer.address) == coins


# --- after a crash -------------------------------------------------------------------------------


class Crash(BaseException):
    """Stands for the end of the process: nothing is cleaned up."""


async def crash_at(
    market: Market, chain: Web3Chain, payer: LocalAccount, gateway: Gateway, breaks: Callable[[Consumer], None]
) -> None:
    """Run a session until the break, then let go of the journal as a dead process would."""
    journal = Journal(market.home(payer) / "journal.db")
    try:
        async with Consumer(chain, payer, journal, waits=WAITS) as buyer:
            listing = await listing_of(buyer, gateway)
            breaks(buyer)

            async def dead(*_: object, **__: object) -> None:
                raise Crash

            async def work() -> None:
                async with buyer.session(listing) as session:
                    await session.chat("What?").read()
                    raise Crash

            with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
                patch.setattr(StreamCloser, "stop", dead)
                await work()
    finally:
        journal.close()


@pytest.mark.parametrize("point", ["before send", "after send", "opened", "answering"])
async def test_the_next_start_closes_what_a_crash_left(market: Market, chain: Web3Chain, point: str) -> None:
    payer = market.account()

    class Dying(Web3Chain):
        async def open(self, *args: object, **kwargs: object) -> Receipt:  # type: ignore[override]
            if point == "before send":
                raise Crash
            await super().open(*args, **kwargs)  # type: ignore[arg-type]
            raise Crash

    def breaks(buyer: Consumer) -> None:
        if point in ("before send", "after send"):
            buyer.chain.__class__ = Dying

    dying = await market.connect()
    try:
        async with selling(
            chain,
            market.account(),
            market.terms(),
            open_session=None if point != "opened" else gateways.says_500,
        ) as gateway:
            await crash_at(market, dying, payer, gateway, breaks)
            async with buying(market, chain, payer) as buyer:
                (left,) = buyer.journal.unfinished()
                assert left.state is (State.INTENDED if "send" in point else State.OPEN)
                (record,) = await buyer.reconcile()
                if point == "before send":
                    assert record.state is State.INTENDED
                    assert "may still be mined" in record.problem
                    buyer.clock = lambda: time.time() + 4 * 3600
                    (record,) = await buyer.reconcile()
                    assert record.state is State.VOID
                else:
                    assert record.state is State.CLOSED
                    assert record.refund > 0
                assert await buyer.reconcile() == []
    finally:
        await dying.close()
    await market.assert_nothing_locked(chain, payer.address)


async def test_an_order_that_was_never_used_becomes_void(market: Market, chain: Web3Chain) -> None:
    payer = market.account(coins=0, dollars=DOLLAR)
    async with (
        selling(chain, market.account(), market.terms(market.dollar), open_session=gateways.says_500) as gateway,
        buying(market, chain, payer) as buyer,
    ):
        with pytest.raises(GatewayRefused):
            async with buyer.session(await listing_of(buyer, gateway)):
                pytest.fail("it opened")
        (record,) = buyer.journal.all()
        buyer.clock = lambda: record.void_after + 61
        (record,) = await buyer.reconcile()
        assert (record.state, record.problem) == (State.VOID, "")


async def test_streams_of_other_accounts_and_chains_are_left_alone(market: Market, chain: Web3Chain) -> None:
    payer, other = market.account(), market.account()
    async with selling(chain, market.account(), market.terms(), open_session=gateways.says_500) as gateway:
        await crash_at(market, chain, payer, gateway, lambda buyer: None)
        with Journal(market.home(payer) / "journal.db") as journal:
            async with Consumer(chain, other, journal, waits=WAITS) as buyer:
                assert await buyer.reconcile() == []
            async with Consumer(chain, payer, journal, waits=WAITS) as buyer:
                assert [one.state for one in await buyer.reconcile()] == [State.CLOSED]
    await market.assert_nothing_locked(chain, payer.address)


async def test_a_lost_journal_is_made_up_from_the_chain(market: Market, chain: Web3Chain) -> None:
    payer = market.account()
    async with selling(chain, market.account(), market.terms(), open_session=gateways.says_500) as gateway:
        await crash_at(market, chain, payer, gateway, lambda buyer: None)
        with Journal(market.home(payer) / "another.db") as journal:
            async with Consumer(chain, payer, journal, waits=WAITS) as buyer:
                (record,) = await buyer.recover_from_chain(market.deployment.first_block)
                assert record.state is State.CLOSED
                assert record.model == "penstock-tiny"
                assert await buyer.recover_from_chain(market.deployment.first_block) == []
    await market.assert_nothing_locked(chain, payer.address)


async def test_a_node_that_is_gone_keeps_the_stream_on_record(market: Market, chain: Web3Chain) -> None:
    payer = market.account()
    flaky = await market.connect()

    class Away(Web3Chain):
        async def streams(self, *_: object) -> list[None]:  # type: ignore[override]
            raise NodeUnavailable("the node does not answer")

    try:
        async with selling(chain, market.account(), market.terms()) as gateway:
            async with buying(market, flaky, payer) as buyer:
                with pytest.raises(StreamLeftOpen, match=r"still open.*the node does not answer"):
                    async with buyer.session(await listing_of(buyer, gateway)):
                        flaky.__class__ = Away
                (record,) = buyer.journal.unfinished()
                assert record.state is State.OPEN
            async with buying(market, chain, payer) as buyer:
                assert [one.state for one in await buyer.reconcile()] == [State.CLOSED]
    finally:
        await flaky.close()
    await market.assert_nothing_locked(chain, payer.address)


async def test_a_refund_that_the_wallet_cannot_take_goes_to_the_vault(market: Market, chain: Web3Chain) -> None:
    """A payer with code that refuses coins: the cancel to its wallet reverts, the one to the vault does not."""
    payer = market.account()
    async with selling(chain, market.account(), market.terms()) as gateway, buying(market, chain, payer) as buyer:
        session = buyer.session(await listing_of(buyer, gateway))
        async with session:
            market.node.rpc("anvil_setCode", payer.address, "0x5f5ffd")
        market.node.rpc("anvil_setCode", payer.address, "0x")
        summary = session.summary
        assert summary is not None
        assert (summary.state, summary.refund_to) == (State.CLOSED, ZERO_ADDRESS)
        assert await chain.vault_balance(NATIVE, payer.address) == summary.refund > 0
    await market.assert_nothing_locked(chain, payer.address)


# --- choosing ------------------------------------------------------------------------------------


async def test_the_market_lists_what_the_registry_has(market: Market, chain: Web3Chain) -> None:
    account = market.account()
    name = f"model-{account.address}"
    async with (
        selling(chain, account, market.terms(model=name)) as gateway,
        buying(market, chain, market.account()) as buyer,
    ):
        listing = await buyer.market.choose(Wanted(model=name))
        assert listing.offer == gateway.offer
        assert listing.provider.endpoint == gateway.endpoint
        assert (listing.stake, listing.token.symbol, listing.rate) == (COIN // 10, "BNB", "0.00001 BNB/s")
        assert [one.offer.id for one in await buyer.market.find(Wanted(model=name))] == [listing.offer.id]
        assert await buyer.market.find(Wanted(model=name, max_rate=1)) == []
        assert await buyer.market.find(Wanted(model=name, min_stake=COIN)) == []
        await chain.set_offer_active(account, listing.offer.id, False)
        assert await buyer.market.find(Wanted(model=name)) == []
        assert len([one for one in await buyer.market.listings(inactive=True) if one.provider.id == account.address])
