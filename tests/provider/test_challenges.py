"""Challenges on chain: the provider shows there what it owes, while the window is open, whatever is in the way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from penstock.chain.web3 import Web3Chain
from penstock.errors import NodeUnavailable
from penstock.events import Receipt as Mined
from penstock.faults import ANSWER_WINDOW
from penstock.wire.receipts import ACCEPT_HEADER, SignedAccept
from provider.challenges import Challenges, Court
from provider.engines.upstream import UpstreamEngine
from tests.deployed import Deployed
from tests.harness import Node
from tests.provider.rig import COINS, Buyer, Rig, fresh_account, on_both, running

HOUR = 3600


@pytest.fixture
async def rig(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path, state: str
) -> AsyncIterator[Rig]:
    # Other tests have moved this chain's time: the provider's clock is a little behind the chain's.
    async with running(
        node, chain, deployed.deployment, engine, tmp_path, clock=lambda: float(node.now), state=state
    ) as rig:
        for task in rig.provider._tasks:  # it looks every ten seconds: here that is the test's to do
            if task.get_name() == "challenges":
                task.cancel()
        yield rig


async def accepted(rig: Rig, buyer: Buyer, **changes: Any) -> SignedAccept:
    """Of a request that was answered, and whose answer was lost."""
    return SignedAccept.parse((await buyer.chat(**changes)).headers[ACCEPT_HEADER])


async def customer(rig: Rig) -> Buyer:
    buyer = await rig.buyer(coins=10**6 * COINS)
    await buyer.open(10 * HOUR)
    rig.node.mine()
    await buyer.session(grant=buyer.grant(now=rig.node.now))
    return buyer


def watcher(rig: Rig, court: Court | None = None) -> Challenges:
    """As one that has just started."""
    return Challenges(
        court or rig.chain,
        rig.provider.receipts,
        rig.provider.seller.account,
        first_block=rig.deployment.first_block,
        now=lambda: float(rig.node.now),
    )


@on_both
async def test_a_challenge_is_answered_with_the_receipt_and_its_ids(rig: Rig) -> None:
    buyer = await customer(rig)
    signed = [await accepted(rig, buyer, max_tokens=n) for n in (1, 40)]
    assert rig.provider.challenges is not None, "the provider looks for them by itself"
    at_work = watcher(rig)
    assert await at_work.look() == 0
    rig.node.advance(HOUR + 5)
    stranger = fresh_account(rig.node)
    for each in signed:
        await rig.chain.open_challenge(stranger, each, buyer.key)
    assert await at_work.look() == 2
    for each in signed:
        found = await rig.chain.challenge("0x" + each.accept.digest(rig.slashing).hex())
        assert found is not None
        assert not found.open
    assert await at_work.look() == 0
    assert await watcher(rig).look() == 0, "a new process sees that they are over"


@on_both
async def test_what_was_asked_while_it_was_down_or_the_node_away_is_answered_in_time(rig: Rig) -> None:
    buyer = await customer(rig)
    signed = await accepted(rig, buyer)
    rig.node.advance(HOUR + 5)
    await rig.chain.open_challenge(fresh_account(rig.node), signed, buyer.key)
    rig.node.advance(ANSWER_WINDOW // 2)

    class Away:
        """The real chain, behind a node that takes nothing."""

        head, block, verdicts = rig.chain.head, rig.chain.block, rig.chain.verdicts

        async def answer_challenge(self, *_: object) -> Mined:
            raise NodeUnavailable("the node does not answer")

    late = watcher(rig, Away())
    assert await late.look() == 0
    late._court = rig.chain
    assert await late.look() == 1


async def test_what_is_over_is_left_alone(rig: Rig) -> None:
    buyer = await customer(rig)
    signed = await accepted(rig, buyer)
    rig.node.advance(HOUR + 5)
    await rig.chain.open_challenge(fresh_account(rig.node), signed, buyer.key)
    at_work = watcher(rig)
    rig.node.advance(ANSWER_WINDOW)
    before = await rig.chain.native_balance(rig.me)
    assert await at_work.look() == 0
    assert await rig.chain.native_balance(rig.me) == before, "no gas is spent in vain"
    await rig.chain.resolve_challenge(fresh_account(rig.node), signed.accept, buyer.key)
    assert await at_work.look() == 0
