"""A chain that reorganises, falls silent or stands still; a projection that is told so."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from penstock.chain.web3 import Web3Chain
from penstock.errors import NodeUnavailable
from penstock.events import Closed
from provider.engines.upstream import UpstreamEngine
from tests.deployed import Deployed
from tests.harness import Node
from tests.provider.rig import Buyer, Clock, Rig, fresh_account, running, until


async def test_a_reorganisation_takes_a_stream_away(rig: Rig) -> None:
    buyer = await rig.buyer()
    await buyer.open()
    await buyer.session()
    assert (await buyer.chat()).status_code == 200
    rig.node.reorg(1)
    await until(lambda: buyer.key.id not in rig.provider.projection.streams, what="the projection's way back")
    refused = await buyer.chat()
    assert (refused.status_code, refused.json()["error"]["code"]) == (402, "stream_unknown")
    assert await rig.chain.streams([buyer.key.id]) == [None]


async def test_a_reorganisation_undoes_a_cancel(rig: Rig) -> None:
    buyer = await rig.buyer()
    await buyer.open()
    await buyer.session()
    rig.node.mine(3)
    await buyer.cancel()
    projection = rig.provider.projection
    await until(lambda: isinstance(projection.streams[buyer.key.id].closed, Closed), what="the cancel")
    assert rig.provider.admission.live_sessions() == 0
    rig.node.reorg(1)
    await until(lambda: projection.streams[buyer.key.id].closed is None, what="the way back")
    await until(lambda: rig.provider.admission.live_sessions() == 1, what="its slot")
    assert (await buyer.chat()).status_code == 200
    stored = await rig.provider.store.events([buyer.key.id])
    assert not any(isinstance(event, Closed) for event in stored)


async def test_an_outage_serves_to_the_known_end_and_opens_nothing(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path
) -> None:
    clock = Clock()
    async with running(node, chain, deployed.deployment, engine, tmp_path, outage_seconds=0.3, clock=clock) as rig:
        buyer, late = await rig.buyer(), await rig.buyer()
        await buyer.open(600)
        await late.open(6000)
        await buyer.session()
        clock.stop()  # the six seconds that are left are the test's to spend
        node.mine_at(buyer.start + 594)
        await until(lambda: rig.provider.projection.now() >= node.now, what="the sight of it")
        with node.frozen():
            await until(lambda: rig.provider.projection.trouble(), what="the outage")
            assert (await buyer.chat()).status_code == 200
            refused = await late.post(late.request())
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "chain_unavailable")
            ready = await rig.http.get("/ready")
            assert (ready.status_code, list(ready.json()["troubles"])) == (503, ["chain"])
            assert (await rig.http.get("/health")).status_code == 200

            clock.advance(5)
            assert (await buyer.chat()).status_code == 200, "it is paid for to the end"
            clock.advance(1)
            assert (await buyer.chat()).status_code == 402
        await until(lambda: rig.provider.projection.trouble() is None, what="the node's return")
        await late.session()


async def test_confirmations_are_waited_for(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path
) -> None:
    async with running(node, chain, deployed.deployment, engine, tmp_path, confirmations=3) as rig:
        buyer = await rig.buyer()
        await buyer.open()
        refused = await buyer.post(buyer.request())
        assert (refused.status_code, refused.json()["error"]["code"]) == (402, "stream_unknown")
        assert "3 confirmations" in refused.json()["error"]["message"]
        node.mine(3)
        await buyer.session()


async def test_large_deposits_have_to_be_deeper(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path
) -> None:
    large = {"large_deposits": ("native:0.001",), "large_confirmations": 4}
    async with running(node, chain, deployed.deployment, engine, tmp_path, **large) as rig:
        small, big = await rig.buyer(), await rig.buyer()
        await small.open(60)
        await small.session()
        await big.open(2000)  # 0.000001 a second
        refused = await big.post(big.request())
        assert (refused.status_code, refused.json()["error"]["code"]) == (402, "stream_unknown")
        assert "needs 4 confirmations" in refused.json()["error"]["message"]
        node.mine(4)
        await until(lambda: rig.provider.projection.head and rig.provider.projection.head.number == node.height)
        await big.session()


async def test_a_head_that_stands_still_is_trouble(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path
) -> None:
    async with running(node, chain, deployed.deployment, engine, tmp_path, head_stuck_seconds=0.5) as rig:
        await until(lambda: rig.provider.projection.trouble(), what="the suspicion")

        def relieved() -> bool:
            node.mine()  # each time: soon it is suspicious again
            return rig.provider.projection.trouble() is None

        await until(relieved, what="the relief")


async def test_a_clock_that_is_wrong_is_trouble(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path
) -> None:
    ahead = [0.0]
    clock = lambda: time.time() + ahead[0]  # noqa: E731
    node.advance(max(1, int(time.time()) - node.now))
    async with running(node, chain, deployed.deployment, engine, tmp_path, clock=clock, max_skew_seconds=1000) as rig:
        projection = rig.provider.projection
        for seconds, said in ((5000, "behind"), (-5000, "ahead of")):
            ahead[0] = float(seconds)
            node.mine()
            await until(projection.trouble, what="the suspicion")
            assert said in (projection.trouble() or "")
            buyer = await rig.buyer()
            await buyer.open()
            refused = await buyer.post(buyer.request(grant=buyer.grant(now=int(clock()))))
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "chain_unavailable")
            ahead[0] = 0

            def relieved() -> bool:
                node.mine()  # until those are seen that were mined by the right clock
                return projection.trouble() is None

            await until(relieved, what="the relief")
            await buyer.session()


async def test_another_node_is_asked_where_one_is_gone(
    node: Node, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path
) -> None:
    with Node(load_state=deployed.state) as other, Node(chain_id=999) as foreign:
        urls = f"{other.url},{foreign.url},{node.url}"
        async with await Web3Chain.connect(urls, deployed.deployment) as chain:
            assert (await chain.head()).number == other.height
            other.stop()
            node.mine()
            assert (await chain.head()).number == node.height, "the one on another chain is passed over"
            async with running(node, chain, deployed.deployment, engine, tmp_path) as rig:
                buyer = await (await rig.buyer()).arrive()
                assert (await buyer.chat()).status_code == 200
    with pytest.raises(NodeUnavailable, match=r"no node answers at .*; no node answers at"):
        await Web3Chain.connect("http://127.0.0.1:9,http://127.0.0.1:7", deployed.deployment)


async def test_what_was_read_is_not_read_again(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path
) -> None:
    account = fresh_account(node)
    async with running(node, chain, deployed.deployment, engine, tmp_path, account=account) as rig:
        buyer = await (await rig.buyer()).arrive()
        await until(lambda: buyer.key.id in rig.provider.projection.streams)
        block, streams = rig.provider.projection.block, dict(rig.provider.projection.streams)
    async with running(node, chain, deployed.deployment, engine, tmp_path, account=account) as rig:
        stored = await rig.provider.store.last_block()
        assert stored is not None
        assert stored[0] >= block
        found = rig.provider.projection.streams[buyer.key.id]
        assert (found.key, found.start, found.end) == (buyer.key, buyer.start, streams[buyer.key.id].end)


async def test_streams_of_others_are_not_ours(rig: Rig, buyer: Buyer) -> None:
    assert set(rig.provider.projection.streams) == {buyer.key.id}
