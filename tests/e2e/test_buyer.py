"""The buyer on a real market: one session serves many answers, and what is left open is closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from agents.buyer import Buyer, Filters, Job, Policy, Purchase, Wish, _pool
from penstock.caps import Caps
from penstock.chain.web3 import Web3Chain
from penstock.consumer import Consumer
from penstock.errors import AllFailed, AnswerCut, CapExceeded, GatewayRefused
from penstock.journal import Journal, State
from penstock.types import NATIVE
from penstock.wire.completions import CHAT
from provider.admission import Refusal
from provider.engines.upstream import UpstreamEngine
from tests.deployed import Deployed
from tests.harness import PATIENCE, Node
from tests.market import WAITS
from tests.misbehaving import Dies, Garbage, Layer, OtherPrices, Overclaims, Says402, Slow, Stalls
from tests.provider.rig import MODEL, Rig, fresh_account, running, until

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
        async with Consumer(chain, fresh_account(node), journal, waits=WAITS) as consumer:
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


@pytest.fixture
async def two(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path
) -> AsyncIterator[Two]:
    """The cheaper one misbehaves as a test says, the dearer one is well."""
    async with AsyncExitStack() as stack:

        async def enter(name: str, price: str, layer: Layer) -> Rig:
            stack.callback(layer.over.set)
            return await stack.enter_async_context(
                running(node, chain, deployed.deployment, engine, tmp_path / name, offers=(price,), wrap=layer, slots=8)
            )

        bad = Changing()
        yield Two(await enter("bad", "native:1/3", bad), await enter("good", "native:2/6", Layer()), bad)


class Changing(Layer):
    """Behaves as whatever layer it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.way = Layer()

    async def completion(self, *args: Any) -> None:
        await self.way.completion(*args)

    async def session(self, *args: Any) -> None:
        await self.way.session(*args)


@dataclass
class Two:
    bad: Rig
    good: Rig
    layer: Changing

    def wish(self, name: str = "auto") -> Wish:
        return Wish.parse(name, Filters(allow=frozenset({self.bad.me, self.good.me})))

    async def alone(self, buyer: Buyer, body: dict[str, Any]) -> dict[str, Any]:
        """What the good one answers."""
        return await (await buyer.start(Job(CHAT, body, self.wish(f"{MODEL}@{self.good.me}")))).whole()


CHEAPEST = Policy(weights={"price": 1}, explore=0, first_token=PATIENCE, stall=PATIENCE)
IMPATIENT = replace(CHEAPEST, stall=4, first_token=4)
BODY = {"messages": PROMPT, "max_tokens": 28, "temperature": 0}


def text_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])


@pytest.mark.parametrize(
    ("way", "outcome"),
    [
        (Dies(9), "connection_lost"),
        (Stalls(9), "stalled"),
        (Overclaims(), "Overcharged"),
        (Garbage(), "GatewayGarbage"),
        (Says402(), "payment_required"),
        (Stalls(0), "stalled"),
        (OtherPrices(), None),
    ],
    ids=lambda given: type(given).__name__ if isinstance(given, Layer) else "",
)
async def test_another_provider_goes_on_where_one_breaks_off(
    two: Two, consumer: Consumer, way: Layer, outcome: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client sees one answer, the same as from one provider, and no token of it is paid twice."""
    if outcome == "stalled":  # its receipt is there once it has noticed, which takes as long as it takes here
        monkeypatch.setattr(_pool, "_TRIES", 60)
    two.layer.way = way
    bought: list[Purchase] = []
    policy = IMPATIENT if outcome == "stalled" else CHEAPEST
    async with Buyer(consumer, policy, on_purchase=bought.append) as buyer:
        answer = await buyer.start(Job(CHAT, BODY, two.wish()))
        chunks = [chunk async for chunk in answer.chunks()]
        way.over.set()
        whole = await two.alone(buyer, BODY)
        assert (await buyer.start(Job(CHAT, BODY, two.wish()))) is not None
        again = bought[:]
    assert text_of(chunks) == whole["choices"][0]["message"]["content"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert [c["choices"][0]["delta"].get("role") for c in chunks if c["choices"]].count("assistant") == 1
    assert not any("token_ids" in choice for chunk in chunks for choice in chunk["choices"])
    assert chunks[-1]["usage"] == whole["usage"]
    mine = [one for one in bought if one in answer.purchases]
    assert mine == answer.purchases
    assert [one.outcome for one in mine] == ([outcome] if outcome else []) + ["done"]
    assert mine[-1].provider == two.good.me
    had = [one.completion_tokens for one in mine if one.outcome not in ("Overcharged", "GatewayGarbage")]
    assert sum(had) == whole["usage"]["completion_tokens"] or outcome == "Overcharged"
    assert two.bad.me not in [one.provider for one in again[len(mine) :]], "it is put aside"
    if outcome == "stalled":
        signed = {kept.provider for kept in consumer.journal.evidence.receipts()}
        assert signed == {two.bad.me, two.good.me}, "what it gave, it has signed for"


async def test_two_receipts_split_the_bill(two: Two, consumer: Consumer) -> None:
    """A provider that is told to stop in mid-answer signs for what it gave, and another one for the rest."""
    bought: list[Purchase] = []
    body = {"messages": PROMPT, "max_tokens": 3000, "ignore_eos": True}
    async with Buyer(consumer, CHEAPEST, on_purchase=bought.append) as buyer:
        answer = await buyer.start(Job(CHAT, body, two.wish()))
        chunks: list[dict[str, Any]] = []
        async for chunk in answer.chunks():
            chunks.append(chunk)
            if len(chunks) == 20:
                two.bad.provider.admission.cut_all(Refusal("stopping", "it is stopping"))
    one, other = bought
    assert (one.provider, one.outcome) == (two.bad.me, "stopping")
    assert (other.provider, other.outcome) == (two.good.me, "done")
    assert chunks[-1]["usage"]["completion_tokens"] == 3000
    signed = {
        kept.piece.signed.receipt.hash: kept.piece.signed.receipt for kept in consumer.journal.evidence.receipts()
    }
    parts = [signed[purchase.receipt] for purchase in (one, other)]
    assert [part.completion_tokens for part in parts] == [one.completion_tokens, other.completion_tokens]
    assert sum(part.completion_tokens for part in parts) == 3000
    assert 0 < parts[0].completion_tokens < 3000
    for part, rig in zip(parts, (two.bad, two.good), strict=True):
        assert part.amount == rig.offer().terms.owed(part.prompt_tokens, part.completion_tokens)
    paid = {record.provider: record.paid for record in consumer.journal.channels()}
    assert paid[two.bad.me] == parts[0].total, "what it was paid is what it signed for"


async def test_the_faster_of_two_answers(two: Two, consumer: Consumer) -> None:
    two.layer.way = Slow(20)
    bought: list[Purchase] = []
    async with Buyer(consumer, replace(CHEAPEST, hedge=0.15), on_purchase=bought.append) as buyer:
        await two.alone(buyer, BODY)
        for _ in range(2):
            answer = await buyer.start(Job(CHAT, BODY, two.wish()))
            assert (await answer.whole())["choices"][0]["message"]["content"]
    outcomes = [(one.provider, one.outcome) for one in bought]
    assert (two.bad.me, "beaten") in outcomes
    assert outcomes.count((two.good.me, "done")) >= 2


async def test_a_client_that_leaves_stops_the_work(two: Two, consumer: Consumer) -> None:
    bought: list[Purchase] = []
    async with Buyer(consumer, CHEAPEST, on_purchase=bought.append) as buyer:
        async with await buyer.start(Job(CHAT, BODY | {"max_tokens": 9000, "ignore_eos": True}, two.wish())) as answer:
            async for _ in answer.chunks():
                break
        await until(lambda: two.bad.provider.admission.running == 0)
        late = asyncio.create_task(buyer.start(Job(CHAT, BODY, two.wish())))
        await asyncio.sleep(0)
        late.cancel()
        with pytest.raises(asyncio.CancelledError):
            await late
    (one,) = bought
    assert one.outcome == "stopped"
    assert one.completion_tokens < 9000


async def test_what_is_wrong_with_the_request_is_the_clients_to_hear(two: Two, consumer: Consumer) -> None:
    async with Buyer(consumer, CHEAPEST) as buyer:
        with pytest.raises(GatewayRefused, match="n is 1 to") as refused:
            await buyer.start(Job(CHAT, BODY | {"n": 99}, two.wish()))
        assert refused.value.status == 400
        two.layer.way = Dies(0)
        answer = await buyer.start(Job(CHAT, BODY, two.wish()))
        assert answer.model == MODEL
        await answer.aclose()


async def test_nobody_answers(two: Two, consumer: Consumer) -> None:
    two.layer.way = Garbage()
    two.good.provider.admission.stopping = True
    async with Buyer(consumer, CHEAPEST) as buyer:
        with pytest.raises(AllFailed, match="none of 2 providers answered") as failed:
            await buyer.start(Job(CHAT, BODY, two.wish()))
        assert failed.value.failures.keys() == {two.bad.me, two.good.me}


async def test_an_answer_of_more_than_text_ends_where_its_provider_does(two: Two, consumer: Consumer) -> None:
    """Or begins anew, for a client that has nothing of it yet."""
    two.layer.way = Dies(9)
    async with Buyer(consumer, CHEAPEST) as buyer:
        answer = await buyer.start(Job(CHAT, BODY | {"n": 2}, two.wish()))
        whole = await answer.whole()
        assert [one.outcome for one in answer.purchases] == ["connection_lost", "done"]
        assert [choice["finish_reason"] is not None for choice in whole["choices"]] == [True, True]
    async with Buyer(consumer, CHEAPEST) as buyer:
        answer = await buyer.start(Job(CHAT, BODY | {"n": 2}, two.wish()))
        with pytest.raises(AnswerCut, match="cannot be continued") as cut:
            async for _ in answer.chunks():
                pass
    assert cut.value.code == "not_continued"


async def test_a_stream_is_topped_up_while_it_is_used(rig: Rig, consumer: Consumer) -> None:
    """In small steps; and a channel when its deposit would not pay for one more answer."""
    policy = Policy(step_seconds=30, margin_seconds=29, step_answers=1)
    wish = Wish.parse(f"{MODEL}@{rig.me}")
    async with Buyer(consumer, policy) as buyer:
        for tokens in (1500, 1500):
            job = Job(CHAT, {"messages": PROMPT, "max_tokens": tokens, "ignore_eos": True}, wish)
            whole = await (await buyer.start(job)).whole()
            assert whole["usage"]["completion_tokens"] == tokens
    for record in [*consumer.journal.all(), *consumer.journal.channels()]:
        assert record.state is State.CLOSED
        assert "top up" in [one.what for one in record.transactions]


async def test_what_nobody_uses_is_closed(rig: Rig, consumer: Consumer) -> None:
    policy = Policy(idle_seconds=0.1, idle_channel_seconds=0.1)
    async with Buyer(consumer, policy) as buyer:
        await (await buyer.start(Job(CHAT, BODY, Wish.parse(f"{MODEL}@{rig.me}")))).whole()
        records = lambda: [*consumer.journal.all(), *consumer.journal.channels()]  # noqa: E731
        await until(lambda: {one.state for one in records()} == {State.CLOSED})
        await (await buyer.start(Job(CHAT, BODY, Wish.parse(f"{MODEL}@{rig.me}")))).whole()
    assert len({one.id for one in records()}) == 2


async def test_caps_hold_and_idle_sessions_make_room(
    two: Two, node: Node, chain: Web3Chain, tmp_path: Path, consumer: Consumer
) -> None:
    """What is open counts: a cap for one deposit lets one provider after another be asked, and nothing beyond."""
    good, bad = (rig.offer().terms for rig in (two.good, two.bad))
    one_deposit = Policy().step_answers * good.owed(400, 28)
    assert bad.owed(400, 28) * Policy().step_answers > one_deposit // 3
    with Journal(tmp_path / "capped.db") as journal:
        caps = {NATIVE: Caps(hour=one_deposit)}
        async with (
            Consumer(chain, fresh_account(node), journal, waits=consumer.waits, caps=caps) as capped,
            Buyer(capped, CHEAPEST) as buyer,
        ):
            for rig in (two.good, two.bad, two.good):
                whole = await (await buyer.start(Job(CHAT, BODY, two.wish(f"{MODEL}@{rig.me}")))).whole()
                assert whole["usage"]["completion_tokens"]
            with pytest.raises(CapExceeded):
                await buyer.start(Job(CHAT, BODY | {"max_tokens": 4000}, two.wish()))
        assert [record.state for record in journal.channels()] == [State.CLOSED] * len(journal.channels())
        assert {record.provider for record in journal.channels()} == {two.good.me, two.bad.me}
