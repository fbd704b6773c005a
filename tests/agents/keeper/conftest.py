"""A keeper on a chain of each test's own: what one test opens, another's keeper would collect."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from penstock.chain.web3 import Web3Chain
from tests.agents.keeper.rig import Chain, Rig
from tests.deployed import Deployed
from tests.harness import PATIENCE, Node
from tests.market import Market


@pytest.fixture
def node(deployed: Deployed) -> Iterator[Node]:
    with Chain(load_state=deployed.state) as node:
        yield node


@pytest.fixture
def market(node: Node, deployed: Deployed, tmp_path: Path) -> Market:
    return Market(node, deployed, tmp_path)


@pytest.fixture
async def rig(market: Market, tmp_path: Path) -> AsyncIterator[Rig]:
    chain = await Web3Chain.connect(market.node.url, market.deployment, request_timeout=PATIENCE)
    rig = Rig(market, chain, tmp_path / "ledger.db")
    try:
        yield rig
    finally:
        rig.close()
        await chain.close()
