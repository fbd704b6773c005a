"""Earnings: when they are taken out, to whom, and never twice."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from pathlib import Path

import aiohttp
import pytest
from sqlalchemy import Connection

from penstock.chain.web3 import Web3Chain
from penstock.events import Withdrawn
from penstock.keys import new_session_key
from penstock.types import NATIVE
from provider.engines.upstream import UpstreamEngine
from provider.store import Store
from tests.deployed import Deployed
from tests.harness import Node
from tests.provider.rig import COINS, Buyer, Clock, Rig, fresh_account, on_both, running, until

RICH = ("native:0.001",)


def sees(rig: Rig, buyer: Buyer) -> bool:
    """The provider has the stream, and the chain's time."""
    return buyer.key.id in rig.provider.projection.streams and rig.provider.projection.now() >= rig.node.now


@on_both
async def test_earnings_go_to_the_payee_on_a_schedule(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path, state: str
) -> None:
    # Worth its gas once the streams are due for a quarter of an hour in all, and not while they are opened.
    schedule = {"offers": RICH, "payout_seconds": 0.2, "payout_gas_multiple": 20_000}
    async with running(node, chain, deployed.deployment, engine, tmp_path, state=state, **schedule) as rig:
        await rig.provider.store.write_meta("gas_price", str(10**9))
        buyers = [await rig.buyer() for _ in range(3)]
        for buyer in buyers:
            await buyer.open(3600)
        before = await chain.native_balance(rig.me)
        node.advance(1000)
        payouts = await until(rig.provider.store.payouts, what="a payout")
        assert payouts[0].kind == "withdraw"
        assert payouts[0].streams == 3
        assert payouts[0].amount >= 3 * 1000 * COINS // 1000
        paid, fees = sum(p.amount for p in payouts), sum(p.fee for p in payouts)
        assert await chain.native_balance(rig.me) == before + paid - fees
        states = await chain.streams([buyer.key.id for buyer in buyers])
        assert sum(state.paid for state in states if state) == paid


@on_both
async def test_twice_pays_nothing_twice(rig: Rig) -> None:
    buyer = await rig.buyer()
    await buyer.open(3600)
    rig.node.advance(200)
    await until(lambda: sees(rig, buyer))
    first = await rig.provider.payouts.run()
    await until(lambda: rig.provider.projection.streams[buyer.key.id].state.last > buyer.start, what="the event")
    second = await rig.provider.payouts.run()
    (state,) = await rig.chain.streams([buyer.key.id])
    assert state is not None
    assert sum(p.amount for p in first + second) == state.paid


async def test_what_is_not_worth_its_gas_waits(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path
) -> None:
    clock = Clock()
    async with running(
        # No scheduled payout may come first.
        node,
        chain,
        deployed.deployment,
        engine,
        tmp_path,
        offers=RICH,
        payout_gas_multiple=1000,
        payout_seconds=9999,
        clock=clock,
    ) as rig:
        buyer = await rig.buyer()
        await buyer.open(36_000)
        node.advance(1)
        clock.stop()  # time passes by blocks alone
        await until(lambda: sees(rig, buyer))
        (first,) = await rig.provider.payouts.run()
        assert first.amount, "the gas price is not known before the first"
        needed = 1000 * 45_000 * 10**9
        (state,) = await chain.streams([buyer.key.id])
        assert state is not None
        worth = state.last + needed // (COINS // 1000)
        for moment in (worth - 1, worth + 1):
            node.mine_at(moment)
            await until(lambda: rig.provider.projection.block == node.height)
            assert rig.provider.projection.now() == moment
            if moment < worth:
                assert await rig.provider.payouts.run() == []
        (second,) = await rig.provider.payouts.run()
        assert second.amount >= needed


async def test_dollars_are_weighed_by_the_offers_own_prices(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path
) -> None:
    offers = ("native:0.001", "TUSD:0.5")
    async with running(node, chain, deployed.deployment, engine, tmp_path, offers=offers, payout_gas_multiple=2) as rig:
        dollar = deployed.deployment.tokens["TUSD"]
        await rig.provider.store.write_meta("gas_price", str(10**9))
        payouts = rig.provider.payouts
        from provider.payouts import Due

        key = (await rig.buyer(token=dollar)).key
        worth = 2 * 45_000 * 10**9  # wei; 0.5 TUSD are worth 0.001 coins here
        enough = worth * 500_000 // (COINS // 1000)
        assert await payouts._worthwhile(Due(dollar, enough, (key,)))
        assert not await payouts._worthwhile(Due(dollar, enough - 1, (key,)))


async def test_what_a_cancel_credits_to_the_vault_is_taken_out(rig: Rig, buyer: Buyer) -> None:
    rig.node.advance(300)
    await buyer.cancel()
    credit = await rig.chain.vault_balance(NATIVE, rig.me)
    assert credit > 0
    before = await rig.chain.native_balance(rig.me)
    await until(lambda: rig.provider.projection.streams[buyer.key.id].closed)
    (payout,) = await rig.provider.payouts.run()
    assert (payout.kind, payout.amount) == ("vault", credit)
    assert await rig.chain.native_balance(rig.me) == before + credit - payout.fee
    assert await rig.chain.vault_balance(NATIVE, rig.me) == 0


async def test_another_payee_is_collected_for(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path
) -> None:
    payee = new_session_key().address
    async with running(node, chain, deployed.deployment, engine, tmp_path, offers=RICH, payee=payee) as rig:
        buyer = await (await rig.buyer()).arrive(3600)
        assert buyer.key.payee == payee
        assert (await buyer.chat()).status_code == 200
        node.advance(100)
        await until(lambda: rig.provider.projection.now() >= node.now)
        (payout,) = await rig.provider.payouts.run()
        assert payout.kind == "collect"
        assert await chain.vault_balance(NATIVE, payee) == payout.amount > 0
        refused = await buyer.close()
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "cancel_needed")
        assert (await buyer.chat()).status_code == 200
        closed = await buyer.close(buyer.cancel_body())
        assert closed.status_code == 200, closed.text


@on_both
async def test_killed_at_any_instant_the_books_are_the_chains(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path, state: str
) -> None:
    """Each payout is on record once, with what the chain says of it, and none that was not made."""
    account = fresh_account(node)
    async with running(node, chain, deployed.deployment, engine, tmp_path, account=account, offers=RICH) as rig:
        buyers = [await rig.buyer() for _ in range(2)]
        for buyer in buyers:
            await buyer.open(36_000)
    before = await chain.native_balance(account.address)
    place = state or str(tmp_path / "payouts.sqlite")
    command = [sys.executable, "-m", "tests.provider.killed_payouts", node.url, str(deployed.path), place]
    environment = deployed.environment(node) | {"PENSTOCK_PRIVATE_KEY": account.secret.hex()}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, env=environment, stdin=pipe, stdout=pipe)
    assert process.stdin is not None
    assert process.stdout is not None
    for instant in ("due", "noted", "mined", "sent", "mined", "due", "none"):
        node.advance(700)  # what was noted and never sent is given up in the end
        process.stdin.write(f"{instant}\n".encode())
        assert await process.stdout.readline() == f"{instant}\n".encode()
    process.stdin.close()
    assert await process.wait() == 0
    store = Store.open(place, owner="test")
    try:
        payouts = await store.payouts()
        assert await store.sent_payouts() == []
    finally:
        await store.close()
    paid = [event for event in await chain.events(0, node.height) if isinstance(event, Withdrawn)]
    paid = [event for event in paid if event.to == account.address]
    assert {payout.transaction for payout in payouts} == {event.place.transaction for event in paid}
    assert len(payouts) == 3, "one that was mined, one that was sent, and the last"
    assert sum(payout.amount for payout in payouts) == sum(event.amount for event in paid)
    assert all(payout.streams == 2 for payout in payouts)
    fees = sum(payout.fee for payout in payouts)
    assert await chain.native_balance(account.address) == before + sum(payout.amount for payout in payouts) - fees


async def test_a_payout_that_cannot_be_written_down_is_not_made(
    rig: Rig, buyer: Buyer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = rig.provider.store
    await until(lambda: sees(rig, buyer))
    rig.node.advance(100)
    await until(lambda: sees(rig, buyer))
    before = await rig.chain.native_balance(rig.me)

    def full(connection: Connection) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    async def away(*_: object) -> None:
        await store.run(full)

    with monkeypatch.context() as patch:
        patch.setattr(store, "send_payout", away)
        with pytest.raises(sqlite3.OperationalError):
            await rig.provider.payouts.run()
    assert await rig.chain.native_balance(rig.me) == before
    assert await store.payouts() == []
    with monkeypatch.context() as patch:
        patch.setattr(store, "add_payout", away)
        with pytest.raises(sqlite3.OperationalError):
            await rig.provider.payouts.run()
    (sent,) = await store.sent_payouts()
    await rig.provider.payouts.run()
    assert sent.transaction in {payout.transaction for payout in await store.payouts()}
    assert await store.sent_payouts() == []


@on_both
async def test_a_close_during_an_outage_is_made_good(
    node: Node,
    chain: Web3Chain,
    deployed: Deployed,
    engine: UpstreamEngine,
    tmp_path: Path,
    state: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is charged after the second at which the consumer asked, whenever the chain comes to know."""
    clock = Clock()
    async with running(
        node, chain, deployed.deployment, engine, tmp_path, state=state, offers=RICH, clock=clock
    ) as rig:
        buyer = await (await rig.buyer()).arrive(3600)
        clock.stop()
        with node.frozen(), monkeypatch.context() as patch:
            patch.setattr(chain._rpc._session, "_timeout", aiohttp.ClientTimeout(total=0.5))
            asked = int(rig.provider.projection.now())
            pending = await buyer.close()
            assert (pending.status_code, pending.json()["error"]["code"]) == (503, "close_pending")
            refused = await buyer.chat()
            assert (refused.status_code, refused.json()["error"]["code"]) == (402, "stream_closed")
        node.advance(200)
        await rig.provider.sessions.finish_closings()
        closed = await until(lambda: rig.provider.projection.streams[buyer.key.id].closed, what="the close")
        assert asked <= closed.stop <= asked + 1
        await rig.provider.sessions.finish_closings()
        assert await rig.provider.store.closings() == []
        assert await chain.vault_balance(NATIVE, buyer.wallet.address) == closed.refund > 0


@pytest.mark.parametrize("cut", ["before", "after"])
async def test_a_close_survives_a_restart(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path, cut: str
) -> None:
    from provider.store import Closing

    account = fresh_account(node)
    async with running(node, chain, deployed.deployment, engine, tmp_path, account=account, offers=RICH) as rig:
        buyer = await (await rig.buyer()).arrive(3600)
        asked = int(rig.provider.projection.now())
        rig.provider.sessions.finish_closings = _nothing  # type: ignore[method-assign]
        await rig.provider.store.add_closing(Closing(buyer.key.id, buyer.start, asked))
        if cut == "after":
            await chain.close_stream(account, buyer.key, stop_at=asked)
    node.advance(100)
    async with running(node, chain, deployed.deployment, engine, tmp_path, account=account, offers=RICH) as rig:
        await rig.provider.sessions.finish_closings()
        closed = await until(lambda: rig.provider.projection.streams[buyer.key.id].closed, what="the close")
        assert asked <= closed.stop <= asked + 1
        await rig.provider.sessions.finish_closings()
        assert await rig.provider.store.closings() == []


async def _nothing() -> None:
    """The process died before it came to it."""
