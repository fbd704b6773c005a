"""The store is what the chain says: from the first block, after any fault, on both databases."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, select, text, update
from structlog.testing import capture_logs

from agents.explorer import _schema as schema
from agents.explorer._check import check
from agents.explorer._feed import Feed
from agents.explorer._fold import spread
from agents.explorer._indexer import Indexer
from agents.explorer._store import Store
from agents.explorer._traffic import Traffic
from penstock.accrual import flow
from penstock.errors import ConfigError, NodeUnavailable, NotFound
from tests.agents.explorer.conftest import Rig, on_sqlite
from tests.market import until


async def assert_true(rig: Rig) -> None:
    """Every figure of the store is the chain's, at its head."""
    report = await check(rig.store, rig.feed, rig.deployment)
    assert report.differences == []
    assert report.block == rig.node.height


def everything(connection: Connection) -> dict[str, list[tuple[Any, ...]]]:
    tables = (*schema.DERIVED, schema.events)
    return {t.name: sorted(map(tuple, connection.execute(select(t))), key=repr) for t in tables}


async def assert_as_if_read_at_once(rig: Rig, tmp_path: Path) -> None:
    """No trace is left of what the chain no longer has: a new store that reads the chain once is the same."""
    other = Store.open(str(tmp_path / "other.db"), rig.deployment)
    await rig.another(other).sync()
    assert await rig.store.read(everything) == await other.read(everything)
    other.close()


async def test_a_back_fill_is_what_the_chain_says(rig: Rig) -> None:
    await rig.indexer.sync()
    await assert_true(rig)
    found = await rig.store.read(everything)
    kinds = {(row[3], row[4]) for row in found["events"]}
    assert {"Opened", "ToppedUp", "Withdrawn", "Closed", "KeeperPaid"} <= {name for _, name in kinds}
    assert {"Licensed", "Completed", "Refunded", "Revoked", "Renewed", "Reviewed"} <= {name for _, name in kinds}
    assert {"ChannelOpened", "ChannelSettled", "ChannelClosed", "FaultProven", "Slashed"} <= {n for _, n in kinds}
    assert {"CapsChanged", "Committed", "Released", "KeyChanged"} <= {
        n for contract, n in kinds if contract == "AgentWallet"
    }
    assert {name: len(rows) > 0 for name, rows in found.items() if name != "challenges"} == dict.fromkeys(
        (t.name for t in (*schema.DERIVED, schema.events) if t is not schema.challenges), True
    )


@pytest.mark.parametrize("span", [3, 17])
@on_sqlite
async def test_small_ranges_give_the_same_store(rig: Rig, tmp_path: Path, span: int) -> None:
    await rig.another(span=span).sync()
    await assert_true(rig)
    await assert_as_if_read_at_once(rig, tmp_path)


@on_sqlite
async def test_a_reorganisation_of_ten_blocks_is_undone(rig: Rig, tmp_path: Path) -> None:
    await rig.live()
    await rig.another(span=3).sync()
    for _ in range(2):
        before = rig.node.height
        rig.node.reorg(10)
        assert rig.node.height == before
        rig.node.mine()
        await rig.indexer.sync()
        await assert_true(rig)
        await assert_as_if_read_at_once(rig, tmp_path)


async def test_every_depth_of_a_reorganisation(rig: Rig, tmp_path: Path) -> None:
    """Wherever the fork is among the events, what came after it is undone."""
    await rig.live(sessions=6)
    await rig.indexer.sync()
    for depth in (1, 2, 5, 17, 40):
        rig.node.reorg(depth)
        rig.node.mine()
        await rig.indexer.sync()
        await assert_as_if_read_at_once(rig, tmp_path)
    await assert_true(rig)


@on_sqlite
async def test_the_edge_of_what_can_be_undone(rig: Rig, tmp_path: Path) -> None:
    """Reorganisations a little less deep, as deep, and deeper than the changes that are kept."""
    indexer = rig.another(depth=6)
    for depth in (5, 6, 7):
        await rig.live(sessions=1, seconds=10)
        await indexer.sync()
        rig.node.reorg(depth)
        rig.node.mine()
        await indexer.sync()
        await assert_as_if_read_at_once(rig, tmp_path)


async def test_a_chain_that_began_anew_is_read_anew(rig: Rig, tmp_path: Path) -> None:
    """Deeper than what can be undone: everything goes, and the chain is read from the first block."""
    await rig.live()
    indexer = rig.another(depth=5)
    await indexer.sync()
    rig.node.reorg(30)
    rig.node.mine()
    await indexer.sync()
    await assert_true(rig)
    await assert_as_if_read_at_once(rig, tmp_path)


@on_sqlite
async def test_an_outage_and_a_reorganisation_while_the_market_goes_on(rig: Rig, tmp_path: Path) -> None:
    """The indexer runs by itself all the time: money moves, the node goes away, comes back, and ten blocks change."""
    traffic = Traffic(rig.chain, rig.rpc, rig.deployment.tokens["TUSD"], seed=7)
    indexer = rig.another()
    indexer._poll = 0.05
    running = asyncio.create_task(indexer.run())
    try:
        await traffic.prepare(consumers=2)
        await traffic.run(100, sessions=4)
        with capture_logs() as said, rig.node.outage():
            await until(lambda: any(one["event"] == "cannot go on" for one in said))
        assert not running.done()
        await traffic.run(200, sessions=6)
        rig.node.reorg(10)
        rig.node.mine()

        async def caught_up() -> bool:
            tip = await rig.store.tip()
            return tip is not None and tip.number == rig.node.height

        await until(caught_up)
    finally:
        running.cancel()
        await asyncio.wait({running})
    await assert_true(rig)
    await assert_as_if_read_at_once(rig, tmp_path)


@on_sqlite
async def test_a_node_that_lags_is_waited_for(rig: Rig) -> None:
    await rig.indexer.sync()
    tip = await rig.store.tip()
    behind = await rig.feed.block(rig.node.height - 3)

    class Lagging(Feed):
        async def head(self) -> Any:
            return behind

        async def hashes(self, numbers: Any) -> list[str | None]:
            found = await super().hashes(numbers)
            return [one if number <= behind.number else None for number, one in zip(numbers, found, strict=True)]

    indexer = Indexer(Lagging(rig.rpc, rig.deployment), rig.chain, rig.store, first_block=rig.deployment.first_block)
    # Only blocks with events are on record; the youngest of them that the node has is found, and nothing is undone.
    with pytest.raises(NodeUnavailable, match="was seen before: waiting for it"):
        await indexer.sync()
    assert await rig.store.tip() == tip


@on_sqlite
async def test_events_that_a_node_left_out_are_not_swallowed(rig: Rig) -> None:
    """Some public nodes do that. Nothing is stored, and the next try starts from the same block."""

    class Forgetful(Feed):
        async def events(self, first: int, last: int, wallets: Any = ()) -> Any:
            return [one for one in await super().events(first, last, wallets) if one.name != "Opened"]

    forgetful = Forgetful(rig.rpc, rig.deployment)
    indexer = Indexer(forgetful, rig.chain, rig.store, first_block=rig.deployment.first_block)
    with pytest.raises(NodeUnavailable, match="left out events"):
        await indexer.sync()
    assert await rig.store.tip() is None
    await rig.indexer.sync()
    await assert_true(rig)


async def test_two_indexers_may_fill_one_store(rig: Rig, tmp_path: Path, database: str) -> None:
    second = Store.open(database, rig.deployment)
    await rig.live()
    await asyncio.gather(rig.another(span=5).sync(), rig.another(second, span=3).sync())
    rig.node.reorg(10)
    rig.node.mine()
    await asyncio.gather(rig.another().sync(), rig.another(second).sync())
    second.close()
    await assert_true(rig)
    await assert_as_if_read_at_once(rig, tmp_path)


async def test_a_killed_indexer_goes_on_where_it_was(rig: Rig, tmp_path: Path, database: str, deployed: Any) -> None:
    """kill -9 in the middle, several times: blocks come one at a time, so that it dies in one of them."""
    program = "import asyncio, sys\nfrom tests.agents.explorer.killed import main\nasyncio.run(main(*sys.argv[1:]))\n"
    reached = []
    for _ in range(2):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program, database, rig.node.url, str(deployed.path)),
            env=deployed.environment(rig.node),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout
        for _ in range(25):
            if not (line := await process.stdout.readline()):
                break
            reached.append(int(line))
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
    assert reached == sorted(set(reached)), "a block was read twice"
    await rig.indexer.sync()
    await assert_true(rig)
    await assert_as_if_read_at_once(rig, tmp_path)


@on_sqlite
async def test_the_check_finds_what_is_wrong(rig: Rig, database: str) -> None:
    with pytest.raises(NotFound, match="is empty"):
        await check(rig.store, rig.feed, rig.deployment)
    await rig.indexer.sync()
    wrong = {
        schema.balances: {"amount": 7},
        schema.providers: {"stake": 7},
        schema.offers: {"active": False},
        schema.channels: {"settled": 7},
        schema.hours: {"flowed": 7},
    }
    for table, change in wrong.items():
        await rig.store._write(lambda c, t=table, v=change: c.execute(update(t).values(**v)) and None)
        report = await check(rig.store, rig.feed, rig.deployment)
        assert report.differences, table.name
        tip = await rig.store.tip()
        assert tip
        assert await rig.store.rewind(tip, None)
        await rig.indexer.sync()
        await assert_true(rig)


@on_sqlite
async def test_coins_that_came_past_the_functions_are_a_surplus(rig: Rig) -> None:
    rig.node.set_balance(rig.deployment.stream_pay, 10**21)
    rig.node.mine()
    await rig.indexer.sync()
    report = await check(rig.store, rig.feed, rig.deployment)
    assert report.differences == []
    assert sum(report.surplus.values()) > 0
    rig.node.set_balance(rig.deployment.stream_pay, 1)
    rig.node.mine()
    await rig.indexer.sync()
    report = await check(rig.store, rig.feed, rig.deployment)
    assert any(one.startswith("holdings") for one in report.differences)


# --- databases ---


async def test_a_database_of_another_version_is_filled_anew(rig: Rig, database: str) -> None:
    await rig.indexer.sync()
    await rig.store._write(lambda c: c.execute(text("UPDATE meta SET value = '0' WHERE name = 'schema'")) and None)
    again = Store.open(database, rig.deployment)
    assert await again.tip() is None
    again.close()
    await rig.indexer.sync()
    await assert_true(rig)


def test_databases_that_cannot_be_used_say_why(deployed: Any, tmp_path: Path) -> None:
    deployment = deployed.deployment
    for url, says in (
        ("mysql://root@localhost/x", "SQLite and PostgreSQL"),
        ("postgresql://nobody:secret@127.0.0.1:1/none", "cannot use the explorer's database"),
        (str(tmp_path), "cannot use the explorer's database"),
    ):
        with pytest.raises(ConfigError, match=says) as caught:
            Store.open(url, deployment)
        assert "secret" not in str(caught.value)


def test_an_amount_keeps_every_digit_and_its_order(database: str, deployed: Any) -> None:
    store = Store.open(database, deployed.deployment)
    amounts = [0, 1, 9, 10, 2**64, 2**128 - 1, 2**256 - 1]

    async def round_trip() -> list[int]:
        rows = [{"contract": "X", "token": "t", "account": str(n), "amount": n} for n in reversed(amounts)]
        await store._write(lambda c: c.execute(schema.balances.insert(), rows) and None)
        query = select(schema.balances.c.amount).order_by(schema.balances.c.amount)
        return await store.read(lambda c: list(c.scalars(query)))

    assert asyncio.run(round_trip()) == amounts
    store.close()


def test_a_stream_s_cost_by_hours_adds_up() -> None:
    start, rate = 1_700_001_234, 1_234_567
    for first, last in ((0, 0), (0, 1), (17, 9_000), (0, 86_400 * 3)):
        parts = list(spread(rate, start, start + first, start + last))
        assert sum(amount for _, amount in parts) == flow(rate, last) - flow(rate, first)
        hours = [moment // 3600 for moment, _ in parts]
        assert hours == sorted(set(hours))
