"""What a skill gateway refuses before anything runs: strangers, forged tickets, wrong input."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from penstock.errors import GatewayRefused
from penstock.keys import new_session_key
from penstock.licences import LicenceId
from penstock.wire.receipts import NOTHING
from penstock.wire.skills import SKILL_SESSIONS_PATH, ExecuteRequest, LicenceGrantBody, new_licence_grant
from penstock.wire.tickets import TicketBody, sign_ticket
from tests.harness import PATIENCE
from tests.skills import SkillMarket, execute, needs_sandbox, write_skill

pytestmark = needs_sandbox


@pytest.fixture
def market(tmp_path: Path) -> SkillMarket:
    return SkillMarket(tmp_path)


def code(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json().get("error", {}).get("code", "")


async def test_who_has_no_licence_gets_no_token(market: SkillMarket) -> None:
    product = await market.publish(write_skill(market.folder / "count"))
    buyer, stranger = market.account(), market.account()
    number = await market.buy(buyer, product)
    async with market.gateway(), market.skills(buyer) as mine, market.skills(stranger) as theirs:
        licence = await market.licence(number)
        with pytest.raises(GatewayRefused, match="grant is not good") as refused:
            await theirs.session(licence)
        assert refused.value.code == "grant_invalid"

        async def sent(body: LicenceGrantBody) -> tuple[int, str]:
            async with httpx.AsyncClient(timeout=PATIENCE) as http:
                return code(await http.post(market.endpoint + SKILL_SESSIONS_PATH, content=msgspec.json.encode(body)))

        def grant(**changed: Any) -> LicenceGrantBody:
            """Signed, and then changed."""
            made = new_licence_grant(number, market.publisher.address, market.endpoint, int(time.time()))
            body = LicenceGrantBody.of(made, mine.key.sign_digest(made.digest(mine.domain)))
            return msgspec.structs.replace(body, **changed)

        now = int(time.time())
        assert await sent(grant()) == (201, "")
        for changed in ({"audience": "http://elsewhere"}, {"issued_at": now - 9}, {"nonce": NOTHING}):
            assert await sent(grant(**changed)) == (401, "grant_invalid")
        assert await sent(grant(expires_at=now - 60, issued_at=now - 100)) == (401, "grant_expired")
        assert await sent(grant(licence=number + 1)) == (402, "licence_unknown")
        assert await sent(grant(licence=-1)) == (400, "invalid_request")
        once = grant()
        assert [await sent(once) for _ in range(2)] == [(201, ""), (409, "grant_replayed")]
        session = await mine.session(licence)
        for token in ("wrong", session.token + "x"):
            assert code(await execute(market, session, ExecuteRequest({"text": "a"}), token)) == (
                401,
                "session_unknown",
            )


async def test_a_token_is_for_its_own_product(market: SkillMarket) -> None:
    one = await market.publish(write_skill(market.folder / "one"))
    two = await market.publish(write_skill(market.folder / "two", name="two"))
    buyer = market.account()
    await market.buy(buyer, one)
    async with market.gateway(), market.skills(buyer) as skills:
        session = await skills.session_for(one)
        session.product = await market.product(two)
        assert code(await execute(market, session, ExecuteRequest({"text": "a"}))) == (403, "wrong_licence")


async def test_input_is_held_against_the_schema_before_anything_runs(market: SkillMarket) -> None:
    product = await market.publish(write_skill(market.folder / "count"))
    buyer = market.account()
    await market.buy(buyer, product)
    async with market.gateway() as licensing, market.skills(buyer) as skills:
        session = await skills.session_for(product)
        for body, wanted in (
            (ExecuteRequest({"text": 1}, "count"), (400, "invalid_input")),
            (ExecuteRequest({"text": "a", "more": 1}, "count"), (400, "invalid_input")),
            (ExecuteRequest({"text": "a"}, "nothing"), (404, "operation_unknown")),
            (ExecuteRequest({"text": "a"}, "__class__"), (404, "operation_unknown")),
            ({"input": {}, "unknown": 1}, (400, "invalid_request")),
            (b"{", (400, "invalid_request")),
            (b'{"input":' + b"[" * 100_000, (400, "invalid_request")),
            (b" " * (2**20 + 1), (413, "body_too_large")),
            (ExecuteRequest({"text": "a"}, "count"), (402, "ticket_needed")),
        ):
            assert code(await execute(market, session, body)) == wanted
        assert await licensing.store.totals() == {}
        async with httpx.AsyncClient(timeout=PATIENCE) as http:
            for number in ("2", "0", "x", "-1", "9" * 30):
                answer = await http.get(f"{market.endpoint}/v1/skills/{number}/card")
                assert code(answer) == (404, "skill_unknown")


async def test_tickets_that_are_forged_or_too_small_or_too_large_are_refused(market: SkillMarket) -> None:
    product = await market.publish(write_skill(market.folder / "count"))
    buyer = market.account()
    number, other = await market.buy(buyer, product), await market.buy(market.account(), product)
    domain = market.chain.license_domain
    async with market.gateway() as licensing, market.skills(buyer) as skills:
        session = await skills.session(await market.licence(number))

        async def sent(ticket: TicketBody) -> tuple[int, str]:
            return code(await execute(market, session, ExecuteRequest({"text": "a"}, "count", ticket)))

        def signed(used: int, licence: LicenceId = number, key: Any = skills.key) -> TicketBody:
            return TicketBody.of(sign_ticket(domain, key, licence, used))

        for key in (buyer, market.publisher, new_session_key()):  # the session key signs, and not even the licensee
            assert await sent(signed(1, key=key)) == (401, "ticket_invalid")
        assert await sent(signed(1, other)) == (401, "ticket_invalid")
        assert await sent(signed(0)) == (402, "ticket_needed")
        assert await sent(signed(11)) == (402, "licence_used_up")
        assert await sent(msgspec.structs.replace(signed(1), used=2)) == (401, "ticket_invalid")
        assert await sent(msgspec.structs.replace(signed(1), signature="0x" + "11" * 65)) == (401, "ticket_invalid")
        assert await sent(msgspec.structs.replace(signed(1), signature="0x11")) == (400, "invalid_request")
        assert await licensing.store.tickets() == []
        assert await sent(signed(1)) == (200, "")
        used_again = ExecuteRequest({"text": "another"}, "count", signed(1))
        assert code(await execute(market, session, used_again)) == (402, "ticket_needed")
