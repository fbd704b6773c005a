"""The store is what the chain says: from the first block, after any fault, on both databases."""

from __future__ import annotations

from agents.explorer._check import check
from tests.agents.explorer.conftest import Rig


async def assert_true(rig: Rig) -> None:
    report = await check(rig.store, rig.feed, rig.deployment)
    assert report.differences == []
    assert report.block == rig.node.height
    assert report.compared["streams"] > 10


async def test_a_back_fill_is_what_the_chain_says(rig: Rig) -> None:
    await rig.indexer.sync()
    await assert_true(rig)
