"""Calls of skills over real HTTP: what they take, what is signed, what is kept, what ends a licence."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import msgspec
import pytest

from penstock.errors import ConfigError, GatewayRefused, Overcharged, Reverted
from penstock.licences import AutoCharge, Licensed, Status
from penstock.wire.receipts import NOTHING
from penstock.wire.skills import SKILL_RECEIPTS_PATH, ExecuteRequest, SkillReceiptsAnswer
from penstock.wire.tickets import TicketBody, sign_ticket
from tests.harness import PATIENCE
from tests.skills import COUNTS, TEXT, SkillMarket, execute, needs_sandbox, until, write_skill

pytestmark = needs_sandbox
DAY = 'kind = "subscription"\nprice = "0.01"\nperiod = "day"'


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


async def test_a_call_that_came_twice_is_served_once(market: SkillMarket) -> None:
    product = await market.publish(write_skill(market.folder / "count"))
    buyer = market.account()
    number = await market.buy(buyer, product)
    async with market.gateway() as licensing, market.skills(buyer) as skills:
        session = await skills.session_for(product)
        ticket = TicketBody.of(sign_ticket(market.chain.license_domain, skills.key, number, 1))
        body = ExecuteRequest({"text": "a b"}, "count", ticket)
        first, second = [(await execute(market, session, body)).json() for _ in range(2)]
        assert first["receipt"] == second["receipt"]
        assert first["output"] == second["output"] == {"words": 2}
        assert await licensing.store.totals() == {number: 1}
        assert (await session.call("count", {"text": "a"})).receipt.total == 2  # the client goes on from there


async def test_what_was_bought_is_served_and_no_unit_more(market: SkillMarket) -> None:
    product = await market.publish(
        write_skill(market.folder / "count", licence='kind = "usage"\nprice = "0.01"\npack = 3')
    )
    buyer = market.account()
    number = await market.buy(buyer, product)
    async with market.gateway() as licensing, market.skills(buyer) as skills:
        session = await skills.session_for(product)
        for left in (2, 1, 0):
            assert (await session.call("count", {"text": "a"})).usage.state.remaining == str(left)
        for _ in range(2):
            with pytest.raises(GatewayRefused) as refused:
                await session.call("count", {"text": "a"})
            assert (refused.value.status, refused.value.code) == (402, "licence_used_up")
        await licensing.service.settle()
        await market.chain.renew_licence(buyer, number, quantity=1, max_cost=10**16, value=10**16)
        await until(lambda: licensing.licences.known[number].bought == 6)
        assert (await session.call("count", {"text": "a"})).receipt.total == 4


async def test_a_call_that_fails_takes_nothing_and_has_a_receipt(market: SkillMarket) -> None:
    source = "def boom():\n    raise ValueError('no')\n\ndef lies():\n    return {'words': 'many'}\n"
    source += "\ndef count(text):\n    return {'words': 1}\n"
    nothing = {"type": "object"}
    operations = dict.fromkeys(("boom", "lies"), (nothing, COUNTS)) | {"count": (TEXT, COUNTS)}
    product = await market.publish(write_skill(market.folder / "skill", code=source, operations=operations))
    source = "import time\n\ndef sleeps():\n    time.sleep(600)\n"
    slow = await market.publish(
        write_skill(
            market.folder / "slow",
            name="slow",
            code=source,
            operations={"sleeps": (nothing, COUNTS)},
            run="seconds = 1",
        )
    )
    buyer = market.account()
    await market.buy(buyer, product)
    await market.buy(buyer, slow)
    async with market.gateway(), market.skills(buyer) as skills:
        session = await skills.session_for(product)
        for used, operation, status, wanted in (
            (session, "boom", 502, "skill_failed"),
            (session, "lies", 502, "skill_garbage"),
            (await skills.session_for(slow), "sleeps", 504, "skill_timed_out"),
        ):
            with pytest.raises(GatewayRefused) as refused:
                await used.call(operation, {})
            assert (refused.value.status, refused.value.code) == (status, wanted)
            receipt = refused.value.body["receipt"]
            assert (receipt["units"], receipt["total"], receipt["output_hash"]) == (0, 0, NOTHING)
        assert (await session.call("count", {"text": "a"})).receipt.total == 1
        async with httpx.AsyncClient(timeout=PATIENCE) as http:
            headers = {"authorization": f"Bearer {session.token}"}
            found = await http.get(market.endpoint + SKILL_RECEIPTS_PATH, headers=headers)
        receipts = [one.value()[0] for one in msgspec.json.decode(found.content, type=SkillReceiptsAnswer).receipts]
        assert [one.seq for one in receipts] == [0, 1, 2]
        assert [one.previous for one in receipts] == [NOTHING, *(one.hash for one in receipts[:-1])]
        assert [one.succeeded for one in receipts] == [False, False, True]


async def test_a_licence_may_call_so_often(market: SkillMarket) -> None:
    skill = write_skill(market.folder / "count", licence='kind = "free"', run="calls_per_minute = 2")
    product = await market.publish(skill)
    buyer, other = market.account(), market.account()
    await market.buy(buyer, product)
    await market.buy(other, product)
    async with market.gateway(), market.skills(buyer) as skills, market.skills(other) as others:
        session = await skills.session_for(product)
        served, began = 0, time.monotonic()
        with pytest.raises(GatewayRefused, match="2 times a minute") as refused:
            while True:
                answer = await session.call("", {"text": "a"})
                assert (answer.usage.units, answer.usage.cost, answer.usage.state.remaining) == (0, "0", "unlimited")
                served += 1
        assert refused.value.status == 429
        assert 2 <= served <= 2 + (time.monotonic() - began) / 30
        await (await others.session_for(product)).call("", {"text": "a"})  # another licence has calls of its own


async def test_a_subscription_ends_with_its_time(market: SkillMarket) -> None:
    product = await market.publish(write_skill(market.folder / "count", licence=DAY))
    buyer = market.account()
    number = await market.buy(buyer, product)
    async with market.gateway() as licensing, market.skills(buyer) as skills:
        session = await skills.session_for(product)
        assert 86_000 < int((await session.call("count", {"text": "a"})).usage.state.remaining) <= 86_400
        market.advance(86_401)
        await until(lambda: licensing.licences.now() > licensing.licences.known[number].expires_at)
        with pytest.raises(GatewayRefused) as refused:
            await session.call("count", {"text": "a"})
        assert (refused.value.status, refused.value.code) == (402, "licence_expired")
        await market.chain.renew_licence(buyer, number, quantity=2, max_cost=2 * 10**16, value=2 * 10**16)
        await until(lambda: licensing.licences.known[number].is_valid(licensing.licences.now()))
        await session.call("count", {"text": "a"})


async def test_a_licence_that_was_refunded_or_revoked_is_over(market: SkillMarket) -> None:
    terms = 'kind = "perpetual"\nprice = "0.01"\nrefund_window = 3600\nrevocable = true'
    product = await market.publish(write_skill(market.folder / "count", licence=terms))
    one, two, three = (market.account() for _ in range(3))
    first, second, third = [await market.buy(account, product) for account in (one, two, three)]
    async with market.gateway() as licensing, market.skills(one) as skills, market.skills(two) as others:
        session, other = await skills.session_for(product), await others.session_for(product)
        await session.call("count", {"text": "a"})  # valid while the window is open
        await market.chain.refund_licence(one, first)
        await market.chain.revoke_licence(market.publisher, second, "spam")
        await until(lambda: licensing.licences.known[second].status is Status.REVOKED)
        for used, wanted in ((session, "licence_refunded"), (other, "licence_revoked")):
            with pytest.raises(GatewayRefused) as refused:
                await used.call("count", {"text": "a"})
            assert (refused.value.status, refused.value.code) == (402, wanted)
        market.advance(3601)
        await until(lambda: licensing.licences.now() > licensing.licences.known[third].refundable_until > 0)
        await licensing.service.settle()  # nobody else has to
        assert (await market.licence(third)).status is Status.COMPLETED


async def test_a_licence_that_a_reorganisation_took_away_is_gone(market: SkillMarket) -> None:
    product = await market.publish(write_skill(market.folder / "count", licence=DAY))
    keeps, loses = market.account(), market.account()
    await market.buy(keeps, product)
    async with market.gateway() as licensing, market.skills(loses) as skills, market.skills(keeps) as others:
        lost = await market.buy(loses, product)
        session, other = await skills.session_for(product), await others.session_for(product)
        await session.call("count", {"text": "a"})
        head = (await market.chain.head()).number
        bought = [one for one in await market.chain.licence_events(0, head) if isinstance(one, Licensed)]
        market.chain.reorg(head - bought[-1].place.block + 1)  # empty blocks came since
        await until(lambda: lost not in licensing.licences.known)
        with pytest.raises(GatewayRefused) as refused:
            await session.call("count", {"text": "a"})
        assert refused.value.code in ("session_unknown", "licence_unknown")
        await other.call("count", {"text": "a"})


async def test_no_call_waits_for_the_node(market: SkillMarket) -> None:
    product = await market.publish(write_skill(market.folder / "count"))
    buyer = market.account()
    await market.buy(buyer, product)
    async with market.gateway() as licensing, market.skills(buyer) as skills:
        session = await skills.session_for(product)
        with market.chain.outage():
            assert (await session.call("count", {"text": "a"})).receipt.total == 1
            assert await licensing.service.settle() == 0  # tickets wait
        assert await licensing.service.settle() == 1


async def test_a_restart_forgets_neither_tickets_nor_sessions_nor_receipts(market: SkillMarket) -> None:
    product = await market.publish(write_skill(market.folder / "count"))
    buyer = market.account()
    number = await market.buy(buyer, product)
    async with market.skills(buyer) as skills:
        async with market.gateway():
            session = await skills.session_for(product)
            await session.call("count", {"text": "a"})
        async with market.gateway() as licensing:
            assert await licensing.store.totals() == {number: 1}
            assert [ticket.used for ticket in await licensing.store.tickets()] == [1]
            ticket = TicketBody.of(sign_ticket(market.chain.license_domain, skills.key, number, 2))
            answer = (await execute(market, session, ExecuteRequest({"text": "b"}, "count", ticket))).json()
            assert (answer["receipt"]["total"], answer["receipt"]["seq"]) == (2, 1)


async def test_a_gateway_that_claims_more_than_was_signed_for_is_left(market: SkillMarket) -> None:
    product = await market.publish(write_skill(market.folder / "count"))
    buyer = market.account()
    number = await market.buy(buyer, product)
    async with market.gateway() as licensing, market.skills(buyer) as skills:
        licensing.service._totals[number] = 5
        with pytest.raises(Overcharged, match="5 units were used, and tickets were signed for 0"):
            await skills.session_for(product)


async def test_changed_content_is_not_served(market: SkillMarket) -> None:
    product = await market.publish(write_skill(market.folder / "count"))
    card = (await market.chain.release(product, 1)).content_hash
    path = market.content.path(card)
    path.write_bytes(path.read_bytes().replace(b"For tests", b"For trees"))
    with pytest.raises(ConfigError, match="was changed"):
        async with market.gateway():
            pass
    path.unlink()
    with pytest.raises(ConfigError, match="cannot be served"):
        async with market.gateway():
            pass


async def test_only_the_publisher_serves_a_product(market: SkillMarket) -> None:
    product = await market.publish(write_skill(market.folder / "count"))
    with pytest.raises(ConfigError, match="name products that"):
        async with market.gateway(market.account(), skills=(product,)):
            pass


async def test_a_budget_buys_packs_before_what_they_pay_for_is_served(market: SkillMarket) -> None:
    skill = write_skill(market.folder / "count", licence='kind = "usage"\nprice = "0.01"\npack = 2')
    product = await market.publish(skill)
    buyer = market.account()
    number = await market.buy(buyer, product)
    await market.chain.set_auto_charge(buyer, number, AutoCharge(10**16, 1, 10**16), value=10**16)
    async with market.gateway() as licensing, market.skills(buyer) as skills:
        session = await skills.session_for(product)
        for total in (1, 2, 3, 4):
            assert (await session.call("count", {"text": "a"})).receipt.total == total
            assert (await market.licence(number)).bought == (2 if total < 3 else 4)
        await until(lambda: licensing.licences.known[number].bought == 4)
        with pytest.raises(GatewayRefused) as refused:
            await session.call("count", {"text": "a"})
        assert refused.value.code == "licence_used_up"


async def test_what_was_used_cannot_be_taken_back(market: SkillMarket) -> None:
    terms = 'kind = "usage"\nprice = "0.01"\npack = 5\nrefund_window = 3600'
    product = await market.publish(write_skill(market.folder / "count", licence=terms))
    buyer = market.account()
    number = await market.buy(buyer, product)
    async with market.gateway() as licensing, market.skills(buyer) as skills:
        session = await skills.session_for(product)
        with market.chain.outage(), pytest.raises(GatewayRefused) as refused:
            await session.call("count", {"text": "a"})
        assert refused.value.status == 503
        await session.call("count", {"text": "a"})
        with pytest.raises(Reverted):
            await market.chain.refund_licence(buyer, number)
        assert (await market.licence(number)).status is Status.COMPLETED
        await until(lambda: licensing.licences.known[number].used == 1)
        assert (await session.call("count", {"text": "a"})).receipt.total == 2
        assert (await market.licence(number)).used == 1  # the next one waits for others
