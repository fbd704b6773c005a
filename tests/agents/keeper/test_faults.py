"""What a keeper lives through: outages, reorganisations, stuck transactions, its own death at any instant."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from agents.keeper._keeper import Keeper
from agents.keeper._ledger import JobState
from agents.keeper._sender import SenderPolicy
from penstock.audit import Books
from penstock.types import NATIVE
from tests.agents.keeper.rig import Rig
from tests.harness import PATIENCE
from tests.market import until


async def once(keeper: Keeper, patience: float = PATIENCE) -> None:
    async with asyncio.timeout(2 * PATIENCE):  # its own clock stands still
        await keeper.once(asyncio.Event(), patience=patience)


async def due(rig: Rig) -> None:
    """A payee that agreed, with enough to collect."""
    payee = await rig.payee()
    await rig.stream(payee.address)
    rig.node.advance(100)


@asynccontextmanager
async def running(keeper: Keeper) -> AsyncIterator[asyncio.Event]:
    stop = asyncio.Event()
    task = asyncio.create_task(keeper.run(stop))
    try:
        yield stop
    finally:
        stop.set()
        await task


# --- stuck ---------------------------------------------------------------------------------------


async def test_a_stuck_transaction_is_sent_again_at_a_higher_price(rig: Rig) -> None:
    await due(rig)
    keeper = await rig.keeper()
    with rig.node.holding():
        await once(keeper, patience=0)
        rig.clock.ahead += 29
        await keeper._sender.check()
        assert len(rig.seen.sent) == 1
        rig.clock.ahead += 2
        await keeper._sender.check()
        await keeper._sender.check()

    first, second = rig.seen.sent
    assert second.replaces
    assert first.attempt.fields["nonce"] == second.attempt.fields["nonce"]
    assert second.attempt.gas_price >= first.attempt.gas_price * 1.1
    await keeper._sender.check()
    assert rig.seen.landed[-1].job.hash == second.attempt.hash
    assert await rig.nonce() == 1
    await rig.assert_figures(keeper)


async def test_whichever_attempt_is_mined_counts_once(rig: Rig) -> None:
    await due(rig)
    keeper = await rig.keeper()
    rig.node.rpc("evm_setAutomine", False)
    await once(keeper, patience=0)
    transmit, rig.chain.transmit = rig.chain.transmit, _deaf
    rig.clock.ahead += 31
    await keeper._sender.check()  # the replacement does not get through
    rig.chain.transmit = transmit
    rig.node.mine()

    await keeper._sender.check()

    first, _ = rig.seen.sent
    assert rig.seen.landed[-1].job.hash == first.attempt.hash
    assert keeper.pending == 0
    await rig.assert_figures(keeper)


async def _deaf(raw: bytes) -> str:
    return "not now"


async def test_no_price_above_the_limit_is_ever_paid(rig: Rig) -> None:
    await due(rig)
    keeper = await rig.keeper(sending=SenderPolicy(max_gas_price=13 * 10**8))
    with rig.node.holding():
        await once(keeper, patience=0)
        for _ in range(5):
            rig.clock.ahead += 31
            await keeper._sender.check()

    prices = [one.attempt.gas_price for one in rig.seen.sent]
    assert prices == [10**9, 1_125_000_001, 1_265_625_002]


async def test_what_has_become_pointless_is_given_up_cheaply(rig: Rig) -> None:
    """Another keeper was faster while our transaction was stuck: its nonce is used up by a plain transfer."""
    payee = await rig.payee()
    key = await rig.stream(payee.address)
    rig.node.advance(100)
    keeper = await rig.keeper()
    transmit, rig.chain.transmit = rig.chain.transmit, _deaf
    await once(keeper, patience=0)
    rig.chain.transmit = transmit
    await rig.chain.close_stream(payee, key, stop_at=rig.node.now)
    rig.clock.ahead += 31

    await keeper._sender.check()
    await keeper._sender.check()

    assert rig.seen.sent[-1].voided == "streams: nothing due"
    totals = keeper.totals()
    assert (totals.spent // rig.seen.sent[-1].attempt.gas_price, totals.settled) == (21_000, 0)
    await rig.assert_figures(keeper)


async def test_a_nonce_that_something_else_used_is_noticed(rig: Rig) -> None:
    await due(rig)
    keeper = await rig.keeper()
    transmit, rig.chain.transmit = rig.chain.transmit, _deaf
    await once(keeper, patience=0)
    rig.chain.transmit = transmit
    await rig.chain.deposit(rig.account, NATIVE, 1)

    for _ in range(3):
        await keeper._sender.check()

    assert rig.seen.landed[-1].job.state is JobState.DISPLACED
    assert keeper.pending == 0
    rig.node.mine()
    await once(keeper)
    assert keeper.totals().settled == 1


# --- death ---------------------------------------------------------------------------------------


async def test_a_restart_waits_for_what_is_under_way(rig: Rig) -> None:
    await due(rig)
    keeper = await rig.keeper()
    with rig.node.holding():
        await once(keeper, patience=0)
        keeper = await rig.keeper()
        assert keeper.pending == 1
        await once(keeper, patience=0)
        assert not rig.seen.sent  # nothing is sent twice

    await once(keeper)

    assert keeper.pending == 0
    assert await rig.nonce() == 1
    await rig.assert_figures(keeper)


async def test_a_transaction_that_was_written_down_and_never_sent_is_sent_by_the_next_process(rig: Rig) -> None:
    await due(rig)
    keeper = await rig.keeper()

    async def die(raw: bytes) -> str:
        raise KeyboardInterrupt

    transmit, rig.chain.transmit = rig.chain.transmit, die
    with pytest.raises(KeyboardInterrupt):
        await once(keeper)
    rig.chain.transmit = transmit

    keeper = await rig.keeper()
    await once(keeper)

    assert not rig.seen.sent
    assert keeper.totals().settled == 1
    await rig.assert_figures(keeper)


async def test_figures_survive_restarts(rig: Rig) -> None:
    await due(rig)
    await once(await rig.keeper())
    await due(rig)
    keeper = await rig.keeper()
    before = keeper.totals()

    await once(keeper)

    assert keeper.totals().since(before).settled == 2
    assert keeper.totals().settled == 3
    await rig.assert_figures(keeper)


# --- reorganisations -----------------------------------------------------------------------------


async def test_a_collection_whose_block_is_gone_is_made_again(rig: Rig) -> None:
    await due(rig)
    rig.node.mine(5)
    keeper = await rig.keeper()
    await once(keeper)
    (first,) = rig.seen.sent

    rig.node.reorg(1)
    rig.node.mine()
    assert not await rig.rewards()
    await once(keeper)
    rig.node.mine()
    await once(keeper)

    assert rig.seen.undone
    assert JobState.SENT in [one.job.state for one in rig.seen.landed]
    assert rig.seen.sent == [first]  # the same transaction, told again
    assert await rig.nonce() == 1
    await rig.assert_figures(keeper)


async def test_the_books_after_a_reorganisation_are_those_of_the_chain(rig: Rig) -> None:
    payee = await rig.payee()
    kept = await rig.stream(payee.address)
    rig.node.mine(3)
    gone = await rig.stream(payee.address)
    keeper = await rig.keeper()
    assert {kept.id, gone.id} == set(keeper._follower.books.streams)

    rig.node.reorg(2)
    rig.node.mine(2)
    await keeper._follower.advance()

    assert set(keeper._follower.books.streams) == {kept.id}
    assert keeper._follower.books == await fresh(rig)


async def fresh(rig: Rig) -> Books:
    books = Books()
    head = await rig.chain.head()
    for event in await rig.chain.events(rig.market.deployment.first_block, head.number):
        books.apply(event)
    return books


async def test_a_reorganisation_while_it_was_down_is_noticed_at_the_start(rig: Rig) -> None:
    payee = await rig.payee()
    await rig.stream(payee.address)
    rig.node.mine(2)
    await rig.stream(payee.address)
    await rig.keeper()
    rig.node.reorg(2)
    rig.node.mine(3)

    keeper = await rig.keeper()

    assert rig.seen.undone
    assert keeper._follower.books == await fresh(rig)


async def test_snapshots_are_where_the_books_are_rebuilt_from(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.keeper._ledger._SNAPSHOT_EVERY", 3)
    payee, payer = await rig.payee(), await rig.payer()
    keeper = await rig.keeper()
    for _ in range(20):
        await rig.stream(payee.address, payer=payer, duration=50)
        await rig.chain.deposit(payer, NATIVE, 7)
        await keeper._follower.advance()
    dropped = rig.ledger._database.execute("SELECT count(*) FROM events").fetchone()
    assert dropped[0] < 20
    assert rig.ledger.books() == keeper._follower.books == await fresh(rig)

    rig.node.reorg(5)
    await keeper._follower.advance()
    assert rig.ledger.books() == keeper._follower.books == await fresh(rig)

    rig.node.reorg(30)  # deeper than what is kept
    rig.node.mine()
    await keeper._follower.advance()
    assert rig.ledger.books() == keeper._follower.books == await fresh(rig)


async def test_blocks_that_are_not_deep_enough_do_not_count(rig: Rig) -> None:
    await due(rig)
    keeper = await rig.keeper(sending=SenderPolicy(confirmations=3))
    await once(keeper)
    assert not rig.seen.sent

    rig.node.mine(3)
    await once(keeper)
    rig.node.advance(30)
    rig.node.mine()
    await once(keeper)  # its own collection is not in the books yet, and is not made again
    assert not rig.seen.alone

    (job,) = rig.ledger.jobs(JobState.MINED)
    assert len(rig.seen.sent) == 1
    rig.node.mine(1)
    await once(keeper)
    assert rig.ledger.jobs(JobState.FINAL)[0].id == job.id
    await rig.assert_figures(keeper)


async def test_another_chain_under_the_same_name_is_started_from_nothing(rig: Rig) -> None:
    await due(rig)
    keeper = await rig.keeper()
    await once(keeper)
    rig.ledger.put("born", "0x" + "00" * 32)

    keeper = await rig.keeper()

    assert rig.seen.forgot
    assert not keeper.totals().done
    assert keeper._follower.books == await fresh(rig)


# --- outages -------------------------------------------------------------------------------------


async def test_works_on_after_an_outage(rig: Rig) -> None:
    keeper = await rig.keeper()
    async with running(keeper):
        await until(lambda: rig.seen.looks > 1)
        await due(rig)
        await until(lambda: keeper.totals().settled)
        with rig.node.outage():
            await until(lambda: len(rig.seen.outages) >= 2)
        rig.node.advance(300)
        await until(lambda: keeper.totals().settled == 2)
    await rig.assert_figures(keeper)


async def test_an_outage_while_a_transaction_is_under_way(rig: Rig) -> None:
    """The node comes back without it: it is told again."""
    await due(rig)
    keeper = await rig.keeper()
    rig.node.rpc("evm_setAutomine", False)
    async with running(keeper):
        await until(lambda: keeper.pending)
        transmit, rig.chain.transmit = rig.chain.transmit, _deaf
        with rig.node.outage():  # afterwards it mines by itself
            await until(lambda: rig.seen.outages)
        rig.chain.transmit = transmit
        rig.clock.ahead += 6
        await until(lambda: keeper.totals().settled)
    assert rig.seen.sent[0].attempt.hash == rig.ledger.jobs(JobState.FINAL)[0].hash
    assert await rig.nonce() == len(rig.seen.sent)
    await rig.assert_figures(keeper)


async def test_a_node_that_hangs_is_an_outage(rig: Rig) -> None:
    keeper = await rig.keeper()
    async with running(keeper):
        rig.chain._rpc._timeout = 1.0
        with rig.node.frozen():
            await until(lambda: rig.seen.outages)
        rig.chain._rpc._timeout = PATIENCE
        await due(rig)
        await until(lambda: keeper.totals().settled)


async def test_a_node_that_leaves_out_events_is_not_believed(rig: Rig) -> None:
    payee, payer = await rig.payee(), await rig.payer()
    key = await rig.stream(payee.address, payer=payer)
    await rig.chain.cancel(payer, key, to=payer.address)
    events = rig.chain.events

    async def partial(first: int, last: int) -> list[Any]:
        return [event for event in await events(first, last) if type(event).__name__ != "Opened"]

    rig.chain.events = partial
    with pytest.raises(Exception, match="leaves out events"):
        await rig.keeper()
    rig.chain.events = events

    keeper = await rig.keeper()
    assert keeper._follower.books == await fresh(rig)
