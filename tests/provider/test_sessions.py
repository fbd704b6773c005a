"""The handshake: what opens a session, and each thing that does not."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from penstock.keys import new_session_key
from penstock.types import OfferId
from penstock.wire.eip712 import session_domain
from penstock.wire.sessions import SESSIONS_PATH, WELL_KNOWN_PATH, new_grant
from tests.provider.rig import RATE, Buyer, Rig, on_both, until


def code(answer: object) -> str:
    return str(answer.json()["error"]["code"])  # type: ignore[attr-defined]


@on_both
async def test_a_paid_stream_and_a_grant_give_a_token(rig: Rig) -> None:
    buyer = await rig.buyer()
    await buyer.open(600)
    answer = await buyer.post(buyer.request())
    assert answer.status_code == 201
    found = answer.json()
    assert found["stream_id"] == buyer.key.id
    assert (found["start"], found["end"]) == (buyer.start, buyer.start + 600)
    assert (found["rate"], found["offer_id"], found["model"]) == (str(RATE), buyer.offer.id, "penstock-tiny")
    buyer.token = found["token"]
    current = await rig.http.get(f"{SESSIONS_PATH}/current", headers=buyer.bearer)
    assert current.status_code == 200
    assert current.json() == found | {"token": ""}


async def test_the_well_known_document_says_who_sells(rig: Rig) -> None:
    found = (await rig.http.get(WELL_KNOWN_PATH)).json()
    assert found["provider"] == found["payee"] == found["signer"] == rig.me
    assert (found["endpoint"], found["chain_id"]) == (rig.url, 31337)
    assert found["contracts"]["stream_pay"] == rig.chain.stream_pay
    assert {offer["id"] for offer in found["offers"]} == {o.id for o in await rig.chain.offers_of(rig.me)}
    assert found["min_relayed_duration"] == 30


async def test_forged_grant(rig: Rig) -> None:
    buyer = await rig.buyer()
    await buyer.open()
    answer = await buyer.post(buyer.request(signer=new_session_key()))
    assert (answer.status_code, code(answer)) == (401, "grant_invalid")


async def test_the_payers_own_signature_is_no_grant(rig: Rig) -> None:
    buyer = await rig.buyer()
    await buyer.open()
    answer = await buyer.post(buyer.request(signer=buyer.wallet))
    assert (answer.status_code, code(answer)) == (401, "grant_invalid")


@on_both
async def test_replayed_grant(rig: Rig) -> None:
    buyer = await rig.buyer()
    await buyer.open()
    request = buyer.request()
    assert (await buyer.post(request)).status_code == 201
    answer = await buyer.post(request)
    assert (answer.status_code, code(answer)) == (409, "grant_replayed")


async def test_expired_grant(rig: Rig) -> None:
    buyer = await rig.buyer()
    await buyer.open()
    answer = await buyer.post(buyer.request(grant=buyer.grant(now=int(time.time()) - 600)))
    assert (answer.status_code, code(answer)) == (401, "grant_expired")


async def test_grant_from_the_future(rig: Rig) -> None:
    buyer = await rig.buyer()
    await buyer.open()
    answer = await buyer.post(buyer.request(grant=buyer.grant(now=int(time.time()) + 600)))
    assert (answer.status_code, code(answer)) == (401, "grant_invalid")


async def test_grant_for_another_gateway(rig: Rig) -> None:
    buyer = await rig.buyer()
    await buyer.open()
    for changes in ({"audience": "http://elsewhere.example"}, {"provider": buyer.wallet.address}):
        answer = await buyer.post(buyer.request(grant=buyer.grant(**changes)))
        assert (answer.status_code, code(answer)) == (401, "grant_invalid")


async def test_grant_for_another_chain(rig: Rig) -> None:
    buyer = await rig.buyer()
    await buyer.open()
    answer = await buyer.post(buyer.request(domain=session_domain(56, rig.chain.stream_pay)))
    assert (answer.status_code, code(answer)) == (401, "grant_invalid")


async def test_grant_for_another_stream(rig: Rig) -> None:
    buyer, other = await rig.buyer(), await rig.buyer()
    await buyer.open()
    await other.open()
    grant = new_grant(other.key.id, other.start, rig.me, rig.url, int(time.time()))
    answer = await buyer.post(buyer.request(grant=grant))
    assert (answer.status_code, code(answer)) == (400, "grant_mismatch")


async def test_stream_that_was_never_opened(rig: Rig) -> None:
    buyer = await rig.buyer()
    answer = await buyer.post(buyer.request(grant=buyer.grant(start=int(time.time()))))
    assert (answer.status_code, code(answer)) == (402, "stream_unknown")
    assert answer.headers["retry-after"] == "1"


async def test_stream_to_another_payee(rig: Rig) -> None:
    buyer = await rig.buyer()
    key = replace(buyer.key, payee=new_session_key().address)
    await buyer.open(key=key)
    grant = new_grant(key.id, buyer.start, rig.me, rig.url, int(time.time()))
    answer = await buyer.post(buyer.request(key=key, grant=grant))
    assert (answer.status_code, code(answer)) == (402, "wrong_payee")


async def test_stream_in_another_token(rig: Rig) -> None:
    buyer = await rig.buyer()
    key = replace(buyer.key, token=rig.deployment.tokens["TUSD"])
    grant = new_grant(key.id, int(time.time()), rig.me, rig.url, int(time.time()))
    answer = await buyer.post(buyer.request(key=key, grant=grant))
    assert (answer.status_code, code(answer)) == (402, "wrong_token")


async def test_stream_for_an_unknown_offer(rig: Rig) -> None:
    buyer = await rig.buyer()
    key = replace(buyer.key, offer_id=OfferId("0x" + "11" * 32))
    await buyer.open(key=key)
    grant = new_grant(key.id, buyer.start, rig.me, rig.url, int(time.time()))
    answer = await buyer.post(buyer.request(key=key, grant=grant))
    assert (answer.status_code, code(answer)) == (404, "offer_unknown")


async def test_stream_below_the_price(rig: Rig) -> None:
    buyer = await rig.buyer()
    await buyer.open(rate=RATE - 1)
    answer = await buyer.post(buyer.request())
    assert (answer.status_code, code(answer)) == (402, "rate_too_low")


async def test_stream_that_was_cancelled(rig: Rig) -> None:
    buyer = await rig.buyer()
    await buyer.open()
    await buyer.cancel()
    answer = await buyer.post(buyer.request())
    assert (answer.status_code, code(answer)) == (402, "stream_closed")


async def test_a_later_stream_needs_a_grant_of_its_own(rig: Rig) -> None:
    buyer = await rig.buyer()
    await buyer.open()
    before = buyer.grant()
    await buyer.cancel()
    rig.node.advance(2)
    await buyer.open()
    answer = await buyer.post(buyer.request(grant=before))
    assert (answer.status_code, code(answer)) == (402, "stream_ended")
    await buyer.session()


async def test_a_402_quotes_the_offers_as_x402_does(rig: Rig) -> None:
    answer = await rig.http.post("/v1/chat/completions", json={"model": "penstock-tiny", "messages": []})
    assert (answer.status_code, code(answer)) == (402, "payment_required")
    body = answer.json()
    assert body["error"]["type"] == "payment_required"
    assert body["x402Version"] == 2
    assert body["resource"]["url"] == f"{rig.url}/v1/chat/completions"
    native = next(q for q in body["accepts"] if q["extra"]["offerId"] == rig.offer().id)
    assert (native["scheme"], native["network"], native["payTo"]) == ("penstock-stream", "eip155:31337", rig.me)
    assert native["amount"] == str(60 * RATE // 10**6)
    assert native["extra"]["sessions"] == f"{rig.url}{SESSIONS_PATH}"
    assert "payment-required" in answer.headers


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"{not json", "invalid_json"),
        (b"[]", "invalid_request"),
        (b'{"stream": {}}', "invalid_request"),
        (b'{"grant": null, "stream": null, "more": 1}', "invalid_request"),
        (b"\xff\xfe", "invalid_json"),
    ],
)
async def test_malformed_handshake(rig: Rig, content: bytes, expected: str) -> None:
    answer = await rig.http.post(SESSIONS_PATH, content=content)
    assert (answer.status_code, code(answer)) == (400, expected)


async def test_malformed_fields_are_named(rig: Rig) -> None:
    buyer = await rig.buyer()
    request = buyer.request(grant=buyer.grant(start=1))
    import msgspec

    body = msgspec.to_builtins(request)
    body["stream"]["payer"] = "0x12"
    answer = await rig.http.post(SESSIONS_PATH, json=body)
    assert (answer.status_code, code(answer)) == (400, "invalid_request")
    assert "payer" in answer.json()["error"]["message"]


async def test_oversized_handshake(rig: Rig) -> None:
    answer = await rig.http.post(SESSIONS_PATH, content=b" " * 70_000)
    assert (answer.status_code, code(answer)) == (413, "body_too_large")


@on_both
async def test_slots_are_bounded_and_come_free(rig: Rig) -> None:
    first = [await (await rig.buyer()).arrive() for _ in range(4)]
    late = await rig.buyer()
    await late.open()
    answer = await late.post(late.request())
    assert (answer.status_code, code(answer)) == (503, "no_free_slot")
    assert int(answer.headers["retry-after"]) >= 1
    again = await first[0].post(first[0].request())
    assert again.status_code == 201, "a stream that holds a slot needs no second one"
    await first[1].cancel()

    async def admitted() -> bool:
        return (await late.post(late.request())).status_code == 201

    await until(admitted, what="a free slot")


# --- orders --------------------------------------------------------------------------------------


async def dollar_buyer(rig: Rig) -> Buyer:
    """Who holds dollars and no coin at all."""
    dollar = rig.deployment.tokens["TUSD"]
    buyer = await rig.buyer(coins=0, token=dollar)
    rig.node.mint(dollar, buyer.wallet.address, 10**6)
    return buyer


@on_both
async def test_an_order_opens_a_stream_without_gas(rig: Rig) -> None:
    buyer = await dollar_buyer(rig)
    found = await buyer.session(order=await buyer.order(600))
    assert found["transaction"].startswith("0x")
    assert found["gas_used"] > 0
    assert found["end"] - found["start"] == 600
    assert await rig.chain.native_balance(buyer.wallet.address) == 0
    assert (await buyer.chat()).status_code == 200
    answer = await buyer.close(buyer.cancel_body())
    assert answer.status_code == 200, answer.text
    closed = answer.json()
    assert int(closed["paid"]) + int(closed["refund"]) == 600 * 100
    held = await rig.chain.token_balance(buyer.key.token, buyer.wallet.address)
    assert held == 10**6 - int(closed["paid"])
    assert await rig.chain.native_balance(buyer.wallet.address) == 0
    again = await buyer.close(buyer.cancel_body())
    assert again.status_code == 200
    assert again.json() == closed | {"transaction": "", "gas_used": 0}


@on_both
async def test_an_order_whose_answer_was_lost(rig: Rig) -> None:
    buyer = await dollar_buyer(rig)
    order = await buyer.order()
    await buyer.session(order=order)
    start = buyer.start
    before = await rig.chain.native_balance(rig.me)
    found = await buyer.session(order=order, grant=buyer.grant(start=0))
    assert found["start"] == start
    assert found["transaction"] == ""
    await buyer.session()
    assert await rig.chain.native_balance(rig.me) == before, "nothing was sent twice"


async def test_orders_that_are_refused_cost_no_gas(rig: Rig) -> None:
    buyer = await dollar_buyer(rig)
    before = await rig.chain.native_balance(rig.me)
    rate = buyer.offer.terms.rate
    cases = [
        (await buyer.order(rate=rate - 1), "rate_too_low"),
        (await buyer.order(10), "duration_too_short"),
        (await buyer.order(permit=False), "insufficient_funds"),
        (await buyer.order(20_000), "insufficient_funds"),
    ]
    forged = await buyer.order()
    import msgspec

    cases.append((msgspec.structs.replace(forged, signature="0x" + "11" * 64 + "1b"), "order_refused"))
    cases.append((msgspec.structs.replace(forged, deadline=1), "order_expired"))
    for order, expected in cases:
        answer = await buyer.post(buyer.request(order=order))
        assert (answer.status_code, code(answer)) == (402, expected), answer.text
    assert await rig.chain.native_balance(rig.me) == before


async def test_an_order_goes_with_a_grant_for_no_start_yet(rig: Rig) -> None:
    buyer = await dollar_buyer(rig)
    order = await buyer.order()
    answer = await buyer.post(buyer.request(order=order, grant=buyer.grant(start=5)))
    assert (answer.status_code, code(answer)) == (400, "grant_mismatch")
    answer = await buyer.post(buyer.request(grant=buyer.grant(start=0)))
    assert (answer.status_code, code(answer)) == (400, "grant_mismatch")


# --- closing -------------------------------------------------------------------------------------


@on_both
async def test_closing_without_a_cancel_refunds_to_the_vault(rig: Rig, buyer: Buyer) -> None:
    answer = await buyer.close()
    assert answer.status_code == 200, answer.text
    closed = answer.json()
    assert int(closed["paid"]) + int(closed["refund"]) == 600 * RATE // 10**6
    assert await rig.chain.vault_balance(buyer.key.token, buyer.wallet.address) == int(closed["refund"])
    refused = await buyer.chat()
    assert (refused.status_code, code(refused)) == (402, "stream_closed")
    again = await buyer.close()
    assert again.json()["transaction"] == ""


async def test_a_cancel_that_the_payer_did_not_sign(rig: Rig, buyer: Buyer) -> None:
    answer = await buyer.close(buyer.cancel_body(signer=new_session_key()))
    assert (answer.status_code, code(answer)) == (400, "cancel_refused")
    assert (await buyer.chat()).status_code == 200, "nothing was closed"


async def test_a_stranger_closes_nothing(rig: Rig, buyer: Buyer) -> None:
    stranger = Buyer(rig, buyer.wallet, buyer.offer, buyer.session_key, buyer.start, "pst_guess")
    answer = await stranger.close()
    assert (answer.status_code, code(answer)) == (401, "invalid_token")
