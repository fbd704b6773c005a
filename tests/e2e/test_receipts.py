"""The consumer's checks against the real provider: whatever it sells by, its receipts match and convict of nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from penstock.chain.web3 import Web3Chain
from penstock.consumer import Consumer, Wanted
from penstock.errors import AnswerCut
from penstock.journal import Journal
from penstock.reporting import judge, missing
from provider.engines.upstream import UpstreamEngine
from tests.deployed import Deployed
from tests.harness import Node
from tests.market import WAITS
from tests.provider.rig import COINS, Rig, fresh_account, running, until

OFFERS = {"by the second": "TUSD:0.0001", "by the token": "TUSD:1/3", "by both": "TUSD:0.0001+1/3"}
PROMPT = "Why does water flow downhill?"


@pytest.fixture(params=OFFERS)
async def rig(
    request: pytest.FixtureRequest, node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine,
    tmp_path: Path,
) -> AsyncIterator[Rig]:  # fmt: skip
    offers = (OFFERS[request.param],)
    async with running(node, chain, deployed.deployment, engine, tmp_path, offers=offers) as rig:
        yield rig


async def test_every_answer_has_a_receipt_that_matches(
    rig: Rig, node: Node, chain: Web3Chain, deployed: Deployed, tmp_path: Path
) -> None:
    account, warnings = fresh_account(node, coins=COINS), list[str]()
    node.mint(deployed.deployment.tokens["TUSD"], account.address, 10**6)
    with Journal(tmp_path / "journal.db") as journal:
        async with Consumer(chain, account, journal, waits=WAITS, on_warning=warnings.append) as consumer:
            listing = await consumer.market.choose(Wanted(provider=rig.me))
            terms = listing.offer.terms
            if terms.by_second and terms.by_token:
                made = consumer.both_session(listing)
            else:
                made = consumer.channel_session(listing) if terms.by_token else consumer.session(listing)
            async with made as session:
                texts = [await session.chat(PROMPT, max_tokens=12, n=2).read()]
                texts += await asyncio.gather(*(session.chat(f"{PROMPT} {i}", max_tokens=9).read() for i in range(2)))
                left = session.chat(PROMPT, max_tokens=200)
                async for delta in left:
                    if delta.text:
                        break
                await left.aclose()
                await until(lambda: rig.provider.admission.running == 0, what="the end of what was left")
                try:
                    texts.append(await session.chat(PROMPT, max_tokens=5).read())
                except AnswerCut as error:
                    pytest.fail(str(error))
                receipts = session.receipts.receipts
            assert all(texts)
            assert warnings == []
            assert [one.seq for one in receipts] == [0, 1, 2, 3, 4]
            assert receipts[0].completion_tokens > 12  # two choices
            assert receipts[-1].total == terms.owed(
                sum(one.prompt_tokens for one in receipts), sum(one.completion_tokens for one in receipts)
            )
            kept = journal.evidence.receipts()
            assert sorted(one.piece.signed.receipt.seq for one in kept) == [0, 1, 2, 3, 4]
            assert [one.refused for one in kept] == [""] * 5
            with_ids = [one.piece.ids for one in kept if one.piece.ids is not None]
            assert len(with_ids) == 4
            assert [accept.answered for accept in journal.evidence.accepts()] == [True] * 5
            assert await missing(chain, journal.evidence.accepts()) == []
            node.advance(5)
            docket = await judge(chain, [one.piece for one in kept])
            assert (docket.cases, docket.ignored) == ((), ())
