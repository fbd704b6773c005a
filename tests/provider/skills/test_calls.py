"""Calls of skills over real HTTP: who may, what it takes, what is signed, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.skills import SkillMarket, until, write_skill


@pytest.fixture
def market(tmp_path: Path) -> SkillMarket:
    return SkillMarket(tmp_path)


async def test_a_licensee_calls_and_what_it_used_reaches_the_chain(market: SkillMarket) -> None:
    product = await market.publish(write_skill(market.folder / "count"))
    buyer = market.account()
    number = await market.buy(buyer, product)
    async with market.gateway() as licensing, market.skills(buyer) as skills:
        session = await skills.session_for(product)
        for used in (1, 2):
            answer = await session.call("count", {"text": "to be or not"})
            assert answer.output == {"words": 4}
            assert (answer.receipt.units, answer.receipt.total, answer.receipt.seq) == (1, used, used - 1)
            assert (answer.usage.cost, answer.usage.state.remaining) == (str(10**15), str(10 - used))
        assert (await market.licence(number)).used == 0
        assert await licensing.service.settle() == 1
        assert (await market.licence(number)).used == 2
        await until(lambda: licensing.licences.known[number].used == 2)
        assert await licensing.service.settle() == 0


async def test_another_process_of_the_licensee_goes_on_where_the_first_ended(market: SkillMarket) -> None:
    product = await market.publish(write_skill(market.folder / "count"))
    buyer = market.account()
    await market.buy(buyer, product)
    async with market.gateway():
        for total in (1, 2, 3):
            async with market.skills(buyer) as skills:
                session = await skills.session_for(product)
                assert (await session.call("count", {"text": "a"})).receipt.total == total
