"""The buyer on a real market: one session serves many answers, and what is left open is closed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from agents.buyer import Buyer, Filters, Job, Policy, Purchase, Wish
from penstock.chain.web3 import Web3Chain
from penstock.consumer import Consumer, Waits
from penstock.journal import Journal, State
from penstock.wire.completions import CHAT
from provider.engines.upstream import UpstreamEngine
from tests.deployed import Deployed
from tests.harness import Node
from tests.misbehaving import Dies, Layer
from tests.provider.rig import MODEL, Rig, fresh_account, running

PROMPT = [{"role": "user", "content": "Why does water flow downhill?"}]


@pytest.fixture(params=["native:0.000001", "native:1/3", "native:0.000001+1/3"], ids=["second", "token", "both"])
async def rig(
    request: pytest.FixtureRequest,
    node: Node,
    chain: Web3Chain,
    deployed: Deployed,
    engine: UpstreamEngine,
    tmp_path: Path,
) -> AsyncIterator[Rig]:
    async with running(node, chain, deployed.deployment, engine, tmp_path, offers=(request.param,)) as rig:
        yield rig


@pytest.fixture
async def consumer(node: Node, chain: Web3Chain, tmp_path: Path) -> AsyncIterator[Consumer]:
    with Journal(tmp_path / "journal.db") as journal:
        async with Consumer(chain, fresh_account(node), journal, waits=Waits(settle=3, sight=3, connect=2)) as consumer:
            yield consumer


async def test_one_session_serves_many_answers(rig: Rig, consumer: Consumer) -> None:
    bought: list[Purchase] = []
    async with Buyer(consumer, Policy(), on_purchase=bought.append) as buyer:
        (model,) = [one for one in await buyer.models() if rig.me in one.providers]
        assert model.name == MODEL
        wish = Wish.parse(f"{MODEL}@{rig.me}")
        for _ in range(2):
            answer = await buyer.start(Job(CHAT, {"messages": PROMPT, "max_tokens": 20}, wish))
            chunks = [chunk async for chunk in answer.chunks()]
            assert chunks[-1]["usage"]["completion_tokens"] <= 20
            assert chunks[-1]["choices"] == []
        whole = await (await buyer.start(Job(CHAT, {"messages": PROMPT, "max_tokens": 5}, wish))).whole()
        assert whole["choices"][0]["message"]["content"]
        assert whole["usage"]["completion_tokens"] <= 5
    assert len({purchase.session for purchase in bought}) == 1
    assert [purchase.outcome for purchase in bought] == ["done"] * 3
    assert all(purchase.receipt for purchase in bought)
    records = [*consumer.journal.all(), *consumer.journal.channels()]
    assert {record.state for record in records} == {State.CLOSED}
    assert 0 < sum(purchase.cost for purchase in bought) <= sum(record.paid for record in records)


async def test_another_provider_goes_on_where_one_breaks_off(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path, consumer: Consumer
) -> None:
    """The client sees one answer, the same as from one provider; each token is paid once, and two receipts say whose
    it was."""
    bought: list[Purchase] = []
    model = "penstock-tiny"
    body = {"messages": PROMPT, "max_tokens": 28, "temperature": 0}
    layer = Dies(9)
    async with AsyncExitStack() as stack:
        first, second = [
            await stack.enter_async_context(
                running(node, chain, deployed.deployment, engine, tmp_path / name, offers=(price,), wrap=wrap)
            )
            for name, price, wrap in (("a", "native:1/3", layer), ("b", "native:2/6", Layer()))
        ]
        only = Filters(allow=frozenset({first.me, second.me}))
        policy = Policy(weights={"price": 1}, explore=0)
        async with Buyer(consumer, policy, on_purchase=bought.append) as buyer:
            chunks = [c async for c in (await buyer.start(Job(CHAT, body, Wish.parse("auto", only)))).chunks()]
            layer.on = False
            whole = await (await buyer.start(Job(CHAT, body, Wish.parse(f"{model}@{second.me}", only)))).whole()
    text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
    assert text == whole["choices"][0]["message"]["content"]
    assert len({c["id"] for c in chunks}) == 1
    assert [c["choices"][0]["delta"].get("role") for c in chunks if c["choices"]].count("assistant") == 1
    assert not any("token_ids" in choice for c in chunks for choice in c["choices"])
    one, two, _ = bought
    assert (one.provider, two.provider) == (first.me, second.me)
    assert (one.outcome, two.outcome) == ("connection_lost", "done")
    assert one.completion_tokens + two.completion_tokens == whole["usage"]["completion_tokens"]
    assert chunks[-1]["usage"] == whole["usage"]
