"""Fixtures of the SDK's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from penstock.chain.web3 import Web3Chain
from tests.deployed import Deployed, chain, deployed, node
from tests.harness import PATIENCE, Node
from tests.sdk.worlds import AnvilWorld, FakeWorld, World

__all__ = ["chain", "deployed", "node", "world"]


@pytest.fixture(params=["fake", "anvil"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """Each test runs in memory and on anvil: what holds for one must hold for the other."""
    if request.param == "fake":
        yield FakeWorld()
        return
    found: Deployed = request.getfixturevalue("deployed")
    node: Node = request.getfixturevalue("node")
    waits = {"request_timeout": PATIENCE, "receipt_timeout": 2 * PATIENCE}
    async with await Web3Chain.connect(node.url, found.deployment, **waits) as chain:
        yield AnvilWorld(node, chain, found.deployment.tokens["TUSD"])
