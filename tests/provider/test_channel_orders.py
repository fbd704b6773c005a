"""Orders for channels that the provider is asked to submit: which it does, and which cost it no gas."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from penstock.chain.web3 import Web3Chain
from penstock.keys import LocalAccount, new_session_key
from penstock.types import ChannelOrder, Permit, PermitKind
from penstock.wire.eip712 import channel_order_digest, permit_digest
from penstock.wire.sessions import WELL_KNOWN_PATH, ChannelBody, SessionRequest
from provider.engines.upstream import UpstreamEngine
from tests.deployed import Deployed
from tests.harness import Node
from tests.provider.rig import Buyer, Rig, fresh_account, running
from tests.provider.test_sessions import code
from tests.provider.test_vouchers import Payer

LEAST = 30_000
"""Base units: the price of 10,000 completion tokens."""


@pytest.fixture
async def rig(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path
) -> AsyncIterator[Rig]:
    async with running(node, chain, deployed.deployment, engine, tmp_path, offers=("TUSD:1/3",)) as rig:
        yield rig


def payer(rig: Rig, dollars: int = 10**6) -> Payer:
    """Who holds dollars and no coin at all."""
    token = rig.deployment.tokens["TUSD"]
    one = Payer(rig, fresh_account(rig.node, coins=0), rig.offer(token))
    rig.node.mint(token, one.wallet.address, dollars)
    return one


async def order(one: Payer, deposit: int = LEAST, *, permit: bool = True, signer: LocalAccount | None = None) -> Any:
    """A signed order with a permit for the deposit."""
    chain = one.rig.chain
    deadline = int(one.rig.provider.projection.now()) + 300
    wanted = ChannelOrder(one.key, deposit, 0, secrets.randbits(200), deadline)
    allowed = Permit()
    if permit:
        domain = await chain.permit_domain(one.key.token, one.wallet.address)
        assert domain is not None
        digest = permit_digest(domain[0], one.wallet.address, chain.stream_pay, deposit, domain[1], deadline)
        allowed = Permit(PermitKind.ERC2612, deposit, 0, deadline, one.wallet.sign_digest(digest))
    signature = (signer or one.wallet).sign_digest(channel_order_digest(chain.stream_pay_domain, wanted))
    return ChannelBody.of(wanted, signature, allowed)


def request(one: Buyer, channel: ChannelBody) -> SessionRequest:
    return msgspec.structs.replace(one.request(grant=one.grant(start=0)), channel=channel)


async def test_an_order_opens_a_channel_and_the_provider_closes_it(rig: Rig) -> None:
    one = payer(rig)
    answer = await one.post(request(one, await order(one)))
    assert answer.status_code == 201, answer.text
    found = answer.json()
    one.token, one.deposit = found["token"], LEAST
    assert found["channel"]["deposit"] == str(LEAST)
    assert found["channel"]["transaction"].startswith("0x")
    assert found["channel"]["gas_used"] > 0
    usage = (await one.chat()).json()["usage"]
    owed = usage["prompt_tokens"] + 3 * usage["completion_tokens"]
    await one.pay(owed)
    closed = (await one.close()).json()["channel"]
    assert (closed["paid"], closed["refund"]) == (str(owed), str(LEAST - owed))
    assert await rig.chain.vault_balance(one.key.token, one.wallet.address) == LEAST - owed
    assert await rig.chain.native_balance(one.wallet.address) == 0


async def test_an_order_whose_answer_was_lost_is_not_paid_for_twice(rig: Rig) -> None:
    one = payer(rig)
    channel = await order(one)
    assert (await one.post(request(one, channel))).status_code == 201
    before = await rig.chain.native_balance(rig.me)
    again = await one.post(request(one, channel))
    assert (again.status_code, again.json()["channel"]["transaction"]) == (201, "")
    assert await rig.chain.native_balance(rig.me) == before


async def test_orders_that_are_refused_cost_no_gas(rig: Rig) -> None:
    one, poor = payer(rig), payer(rig, LEAST - 1)
    before = await rig.chain.native_balance(rig.me)
    good = await order(one)
    assert good.order is not None

    def but(**changes: Any) -> ChannelBody:
        return msgspec.structs.replace(good, order=msgspec.structs.replace(good.order, **changes))

    cases = [
        (one, await order(one, LEAST - 1), 402, "deposit_too_low"),
        (one, await order(one, permit=False), 402, "insufficient_funds"),
        (poor, await order(poor), 402, "insufficient_funds"),
        (one, await order(one, signer=new_session_key()), 402, "order_refused"),
        (one, but(signature="0x" + "11" * 64 + "1b"), 402, "order_refused"),
        (one, but(nonce="7"), 402, "order_refused"),
        (one, msgspec.structs.replace(good, deposit=str(LEAST + 1)), 402, "order_refused"),
        (one, but(deadline=1), 402, "order_expired"),
        (one, but(nonce="-1"), 400, "invalid_request"),
    ]
    for who, channel, status, expected in cases:
        answer = await who.post(request(who, channel))
        assert (answer.status_code, code(answer)) == (status, expected), answer.text
    assert await rig.chain.native_balance(rig.me) == before
    assert (await one.post(request(one, good))).status_code == 201, "and the good one is still good"


async def test_an_order_for_another_is_none(rig: Rig) -> None:
    one, other = payer(rig), payer(rig)
    answer = await other.post(request(other, await order(one)))
    assert (answer.status_code, code(answer)) == (402, "order_refused")


async def test_an_order_is_good_once(rig: Rig) -> None:
    one = payer(rig)
    channel = await order(one)
    answer = await one.post(request(one, channel))
    one.token = answer.json()["token"]
    assert (await one.close()).status_code == 200
    before = await rig.chain.native_balance(rig.me)
    again = await one.post(request(one, channel))
    assert (again.status_code, code(again)) == (402, "channel_closed")
    later = replace(one, session_key=new_session_key())
    again = await later.post(request(later, channel))
    assert (again.status_code, code(again)) == (402, "order_refused")
    assert await rig.chain.native_balance(rig.me) == before


async def test_without_the_payees_key_it_opens_none_for_others(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path
) -> None:
    payee = new_session_key().address
    async with running(node, chain, deployed.deployment, engine, tmp_path, offers=("TUSD:1/3",), payee=payee) as rig:
        assert (await rig.http.get(WELL_KNOWN_PATH)).json()["min_relayed_tokens"] == 0
        one = payer(rig)
        answer = await one.post(request(one, await order(one)))
        assert (answer.status_code, code(answer)) == (402, "relay_unavailable")


@pytest.mark.parametrize("prices", ["TUSD:1/3", "TUSD:0.0001"], ids=["channel", "stream"])
async def test_one_order_sent_many_times_at_once_is_submitted_once(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path, prices: str
) -> None:
    """Each with a grant of its own: all but one would fail on the chain, at the provider's cost."""
    async with running(node, chain, deployed.deployment, engine, tmp_path, offers=(prices,)) as rig:
        one = payer(rig)
        if "/" in prices:
            channel = await order(one)
            requests = [request(one, channel) for _ in range(5)]
        else:
            signed = await one.order(60)
            requests = [one.request(grant=one.grant(start=0), order=signed) for _ in range(5)]
        before = int(node.rpc("eth_getTransactionCount", rig.me, "latest"), 16)
        node.rpc("evm_setAutomine", False)
        node.rpc("evm_setIntervalMining", 1)
        try:
            answers = await asyncio.gather(*(one.post(each) for each in requests))
        finally:
            node.rpc("evm_setIntervalMining", 0)
            node.rpc("evm_setAutomine", True)
        assert [answer.status_code for answer in answers] == [201] * 5, [answer.text for answer in answers]
        assert int(node.rpc("eth_getTransactionCount", rig.me, "latest"), 16) == before + 1
