"""Twenty-one providers, most of them bad, and clients that notice nothing of it."""

from __future__ import annotations

import random
from pathlib import Path

from agents.buyer import Buyer, Policy
from penstock.chain.web3 import Web3Chain
from penstock.consumer import Consumer, Waits
from penstock.journal import Journal
from provider.engines.upstream import UpstreamEngine
from tests.deployed import Deployed
from tests.harness import Node
from tests.mixed_market import Report, audit, close_all, market_of, trade
from tests.provider.rig import COINS, fresh_account

POLICY = Policy(explore=0.3, aside=2, first_token=3, stall=3, idle_seconds=1, step_seconds=10, margin_seconds=4)
REQUESTS = 30
WAITS = Waits(connect=2, greeting=5, handshake=5, sight=3, settle=3, close=5, receipt=0.5)


async def test_a_market_of_mixed_honesty(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path
) -> None:
    account, report = fresh_account(node, coins=100 * COINS), Report()
    with Journal(tmp_path / "journal.db") as journal:
        async with (
            market_of(node, chain, deployed, engine, tmp_path) as stalls,
            Consumer(chain, account, journal, waits=WAITS) as consumer,
        ):
            buyer = Buyer(consumer, POLICY, on_purchase=report.purchases.append, dice=random.Random(7))
            await trade(buyer, stalls, report, requests=REQUESTS, clients=3, dice=random.Random(11))
            await close_all(buyer, consumer, node)
            await audit(consumer, chain, deployed, report, stalls, 100 * COINS)
            assert report.failed == [], "a healthy provider was there all the time"
            assert report.answered + report.left == REQUESTS
            tried = {stalls[one.provider].kind.name for one in report.purchases}
            assert {one.outcome for one in report.purchases} > {"done"}
            assert len(tried) > 5
