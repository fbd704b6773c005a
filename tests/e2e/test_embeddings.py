"""Embeddings bought from real providers with a real engine that gives them, by each way of paying."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agents.buyer import Buyer, Filters, Job, Policy, Purchase, Wish
from penstock.chain.web3 import Web3Chain
from penstock.consumer import Consumer, Wanted
from penstock.errors import AllFailed, GatewayRefused, NoOffer, Overcharged, ReceiptRefused
from penstock.journal import Journal, State
from penstock.wire.completions import EMBEDDINGS, NO_EMBEDDINGS
from penstock.wire.receipts import ACCEPT_HEADER, RECEIPT_HEADER
from provider.engines.upstream import UpstreamEngine
from provider.settings import BUNDLED_MODEL
from tests.deployed import Deployed
from tests.harness import PATIENCE, Node
from tests.market import WAITS
from tests.misbehaving import Layer, Says402
from tests.provider.rig import COINS, MODEL, Rig, engine_process, fresh_account, running

TEXTS = ["Water flows downhill.", "A gate.", "A gate."]
PROMPT_PRICE = COINS // 10**6


@pytest.fixture(scope="module")
def embedding_child() -> Iterator[tuple[str, str]]:
    with engine_process(BUNDLED_MODEL, "--embeddings", "mean", slots=2, context=1024) as child:
        yield child.url, child.key


@pytest.fixture
async def embedding(embedding_child: tuple[str, str]) -> AsyncIterator[UpstreamEngine]:
    engine = UpstreamEngine(embedding_child[0], {MODEL: MODEL}, api_key=embedding_child[1], start_seconds=PATIENCE)
    await engine.start()
    yield engine
    await engine.stop()


@pytest.fixture
async def consumer(node: Node, chain: Web3Chain, tmp_path: Path) -> AsyncIterator[Consumer]:
    with Journal(tmp_path / "journal.db") as journal:
        async with Consumer(chain, fresh_account(node), journal, waits=WAITS) as consumer:
            yield consumer


class Lies(Layer):
    """Counts completion tokens where there can be none."""

    def __init__(self, *, receipts: bool) -> None:
        super().__init__()
        self.left_out = {b"content-length"} | (set() if receipts else {ACCEPT_HEADER.encode(), RECEIPT_HEADER.encode()})

    async def completion(self, app: Any, scope: Any, receive: Any, send: Any) -> None:
        async def lying(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = [(name, value) for name, value in message["headers"] if name not in self.left_out]
                message = message | {"headers": headers}
            elif message.get("body"):
                body = msgspec.json.decode(message["body"])
                body["usage"]["completion_tokens"] = 1
                message = message | {"body": msgspec.json.encode(body)}
            await send(message)

        await app(scope, receive, lying)


@pytest.mark.parametrize("offer", ["native:0.000001", "native:1/3", "native:0.000001+1/3"])
async def test_a_session_buys_embeddings_and_pays_for_their_prompt(
    node: Node,
    chain: Web3Chain,
    deployed: Deployed,
    embedding: UpstreamEngine,
    tmp_path: Path,
    consumer: Consumer,
    offer: str,
) -> None:
    async with running(node, chain, deployed.deployment, embedding, tmp_path, offers=(offer,)) as rig:
        by_token, by_second = "/" in offer, offer != "native:1/3"
        listing = await consumer.market.choose(Wanted(provider=rig.me, by_token=by_token, by_second=by_second))
        opened = (
            consumer.session(listing, duration=60)
            if not by_token
            else consumer.both_session(listing, duration=60)
            if by_second
            else consumer.channel_session(listing)
        )
        async with opened as session:
            water, gate, again = await session.embed(TEXTS)
            assert gate == pytest.approx(again, abs=1e-4)
            assert water != pytest.approx(gate, abs=1e-2)
            assert await session.embed("A gate.") == [pytest.approx(gate, abs=1e-3)]
            assert await session.chat("What is a penstock?", max_tokens=3).read(), "the same session, the same engine"
            first, second, third = session.receipts.receipts
            assert (first.completion_tokens, second.completion_tokens, third.completion_tokens) == (0, 0, 3)
            assert first.prompt_tokens > second.prompt_tokens > 0
            assert first.amount == first.prompt_tokens * PROMPT_PRICE * by_token
        if by_token:
            summary = session.summary
            assert summary.prompt_tokens == first.prompt_tokens + second.prompt_tokens + third.prompt_tokens
            assert (summary.completion_tokens, summary.paid) == (3, third.total)
            assert summary.paid >= first.amount + second.amount > 0


async def test_a_prompt_beyond_the_credit_is_paid_first(
    node: Node, chain: Web3Chain, deployed: Deployed, embedding: UpstreamEngine, tmp_path: Path, consumer: Consumer
) -> None:
    more: dict[str, Any] = {"offers": ("native:1/3",), "credit_tokens": 72}
    async with running(node, chain, deployed.deployment, embedding, tmp_path, **more) as rig:
        listing = await consumer.market.choose(Wanted(provider=rig.me, by_token=True))
        async with consumer.channel_session(listing) as session:
            await session.embed("A gate.")
            assert session.signed <= session.owed
            assert len(await session.embed(TEXTS * 20)) == 60
            assert session.signed >= session.owed == session.receipts.receipts[-1].total
        summary = session.summary
        assert summary is not None
        assert summary.paid == session.signed


@pytest.mark.parametrize(("offer", "error"), [("native:0.000001", ReceiptRefused), ("native:1/3", Overcharged)])
async def test_completion_tokens_of_embeddings_are_a_lie(
    node: Node,
    chain: Web3Chain,
    deployed: Deployed,
    embedding: UpstreamEngine,
    tmp_path: Path,
    consumer: Consumer,
    offer: str,
    error: type[Exception],
) -> None:
    layer = Lies(receipts=error is ReceiptRefused)
    async with running(
        node,
        chain,
        deployed.deployment,
        embedding,
        tmp_path,
        offers=(offer,),
        wrap=layer,
    ) as rig:
        listing = await consumer.market.choose(Wanted(provider=rig.me, by_token="/" in offer))
        with pytest.raises(error):
            if error is Overcharged:
                async with consumer.channel_session(listing) as paid:
                    await paid.embed(TEXTS)
            else:
                async with consumer.session(listing, duration=60) as session:
                    await session.embed(TEXTS)


async def test_the_buyer_goes_on_to_who_gives_embeddings(
    node: Node,
    chain: Web3Chain,
    deployed: Deployed,
    engine: UpstreamEngine,
    embedding: UpstreamEngine,
    tmp_path: Path,
    consumer: Consumer,
) -> None:
    async with AsyncExitStack() as stack:

        async def enter(name: str, engine: UpstreamEngine, price: str, layer: Layer) -> Rig:
            stack.callback(layer.over.set)
            return await stack.enter_async_context(
                running(node, chain, deployed.deployment, engine, tmp_path / name, offers=(price,), wrap=layer)
            )

        none = [await enter(f"none-{n}", engine, f"native:{n}/3", Layer()) for n in (1, 2)]
        broken = await enter("broken", embedding, "native:3/3", Says402())
        good = await enter("good", embedding, "native:4/3", Layer())
        bought: list[Purchase] = []
        policy = Policy(weights={"price": 1}, explore=0)

        def job(*rigs: Rig, name: str = MODEL) -> Job:
            filters = Filters(allow=frozenset(rig.me for rig in rigs))
            return Job(EMBEDDINGS, {"input": TEXTS}, Wish.parse(name, filters))

        async with Buyer(consumer, policy, on_purchase=bought.append) as buyer:
            answer = await buyer.start(job(*none, broken, good))
            found = await answer.whole()
            assert [one["index"] for one in found["data"]] == [0, 1, 2]
            assert answer.model == found["model"] == MODEL
            assert [one.provider for one in bought] == [*(rig.me for rig in none), broken.me, good.me]
            refusals = [one.outcome for one in bought[:3]]
            assert refusals == [NO_EMBEDDINGS, NO_EMBEDDINGS, "payment_required"]
            assert (bought[3].outcome, bought[3].completion_tokens) == ("done", 0)
            assert bought[3].prompt_tokens == found["usage"]["prompt_tokens"]
            assert bought[3].cost == bought[3].prompt_tokens * 4 * PROMPT_PRICE
            assert bought[3].receipt
            del bought[:]
            await (await buyer.start(job(*none, good))).whole()
            assert [one.provider for one in bought] == [good.me], "who has none is not asked again"
            with pytest.raises(NoOffer, match=f"nobody who offers {MODEL} now gives embeddings"):
                await buyer.start(job(*none))
            with pytest.raises(NoOffer, match="name the model"):
                await buyer.start(job(good, name="auto"))
            chat = Job(
                "/v1/chat/completions",
                {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2},
                job(none[0]).wish,
            )
            assert (await (await buyer.start(chat)).whole())["choices"], "for completions it is as good as ever"
        async with Buyer(consumer, policy) as buyer:
            with pytest.raises(NoOffer, match="gives embeddings"):
                await buyer.start(job(*none))
            with pytest.raises((AllFailed, GatewayRefused)):
                await buyer.start(job(none[0], broken))
    records = [*consumer.journal.all(), *consumer.journal.channels()]
    assert {record.state for record in records} == {State.CLOSED}
