"""Closing without a token: a grant of the session key, or of the payer, is enough, and is good for nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from penstock.chain.web3 import Web3Chain
from penstock.keys import LocalAccount, new_session_key
from penstock.wire.sessions import CLOSE_PATH, CloseRequest, GrantBody, StreamKeyBody, closing_audience
from provider.engines.upstream import UpstreamEngine
from tests.deployed import Deployed
from tests.harness import Node
from tests.provider.rig import COINS, Rig, fresh_account, on_both, running
from tests.provider.test_sessions import code
from tests.provider.test_vouchers import Payer, price

OFFERS = ("native:0.000001+1/3",)


@pytest.fixture
async def rig(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path, state: str
) -> AsyncIterator[Rig]:
    async with running(node, chain, deployed.deployment, engine, tmp_path, offers=OFFERS, state=state) as rig:
        yield rig


async def arrived(rig: Rig) -> Payer:
    """With a stream and a channel, and a session."""
    one = await Payer(rig, fresh_account(rig.node), rig.offer()).open_channel()
    await one.open(600)
    await one.shake()
    return one


def asked(one: Payer, *, signer: LocalAccount | None = None, **changes: Any) -> CloseRequest:
    grant = one.grant(**({"audience": closing_audience(one.rig.url)} | changes))
    signature = grant.sign(one.rig.chain.session_domain, signer or one.session_key)
    return CloseRequest(None, StreamKeyBody.of(one.key), GrantBody.of(grant, signature))


async def post(one: Payer, request: CloseRequest) -> httpx.Response:
    return await one.rig.http.post(CLOSE_PATH, content=msgspec.json.encode(request))


@on_both
@pytest.mark.parametrize("by_payer", [False, True], ids=["session key", "payer"])
async def test_a_grant_closes_stream_and_channel(rig: Rig, by_payer: bool) -> None:
    one = await arrived(rig)
    owed = price((await one.chat()).json()["usage"])
    await one.pay(owed)
    request = asked(one, signer=one.wallet if by_payer else None)
    closed = (await post(one, request)).json()
    assert (closed["channel"]["paid"], closed["channel"]["refund"]) == (str(owed), str(COINS - owed))
    assert int(closed["paid"]) + int(closed["refund"]) == 600 * 10**12
    left = int(closed["refund"]) + COINS - owed
    assert await rig.chain.vault_balance(one.key.token, one.wallet.address) == left
    again = (await post(one, request)).json()
    assert again["transaction"] == ""
    assert (again["paid"], again["channel"]["paid"]) == (closed["paid"], str(owed))


async def test_what_is_open_of_the_two_is_closed(rig: Rig) -> None:
    stream = Payer(rig, fresh_account(rig.node), rig.offer())
    await stream.open(600)
    closed = (await post(stream, asked(stream))).json()
    assert (closed["stream_id"], closed["channel"]) == (stream.key.id, None)
    assert closed["transaction"].startswith("0x")
    channel = await Payer(rig, fresh_account(rig.node), rig.offer()).open_channel()
    closed = (await post(channel, asked(channel))).json()
    assert (closed["transaction"], closed["channel"]["refund"]) == ("", str(COINS))
    ended = await arrived(rig)
    await ended.cancel()
    closed = (await ended.close()).json()
    assert (closed["transaction"], closed["channel"]["refund"]) == ("", str(COINS))


async def test_an_offer_that_is_off_the_market_is_still_closed(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path
) -> None:
    account = fresh_account(node)
    async with running(node, chain, deployed.deployment, engine, tmp_path / "1", offers=OFFERS, account=account) as rig:
        one = await Payer(rig, fresh_account(node), rig.offer()).open_channel()
        await one.open(600)
    # Another machine, and other prices: it knows nothing of the session.
    async with running(
        node, chain, deployed.deployment, engine, tmp_path / "2", offers=("native:0.1",), account=account
    ) as rig:
        one.rig = rig
        assert code(await one.post(one.ask())) == "offer_unknown"
        closed = (await post(one, asked(one))).json()
        assert closed["channel"]["refund"] == str(COINS)


async def test_a_closing_grant_of_anybody_else_is_none(rig: Rig) -> None:
    one, other = await arrived(rig), await arrived(rig)
    cases = [
        (asked(one, signer=new_session_key()), 401, "grant_invalid"),
        (asked(one, signer=other.wallet), 401, "grant_invalid"),
        (asked(one, audience=rig.url), 401, "grant_invalid"),
        (asked(one, provider=other.wallet.address), 401, "grant_invalid"),
        (asked(one, now=1), 401, "grant_expired"),
        (asked(one, stream_id=other.key.id), 400, "grant_mismatch"),
        (msgspec.structs.replace(asked(one), stream=None), 400, "grant_mismatch"),
        (msgspec.structs.replace(asked(one), grant=None), 401, "invalid_token"),
        (asked(one, start=one.start + 1), 402, "stream_unknown"),
        (asked(one, start=one.start - 1), 402, "stream_ended"),
    ]
    for request, status, expected in cases:
        answer = await post(one, request)
        assert (answer.status_code, code(answer)) == (status, expected), answer.text
    assert (await one.chat()).status_code == 200, "nothing was closed"
    stranger = Payer(rig, fresh_account(rig.node), rig.offer())
    assert code(await post(stranger, asked(stranger))) == "channel_unknown"


async def test_a_closing_grant_opens_no_session(rig: Rig) -> None:
    one = await Payer(rig, fresh_account(rig.node), rig.offer()).open_channel()
    await one.open(600)
    answer = await one.post(one.ask(audience=closing_audience(rig.url)))
    assert (answer.status_code, code(answer)) == (401, "grant_invalid")


@on_both
async def test_closing_many_times_at_once_is_submitted_once(rig: Rig, node: Node) -> None:
    one = await arrived(rig)
    before = int(node.rpc("eth_getTransactionCount", rig.me, "latest"), 16)
    node.rpc("evm_setAutomine", False)
    node.rpc("evm_setIntervalMining", 1)
    try:
        answers = await asyncio.gather(*(post(one, asked(one)) for _ in range(5)))
    finally:
        node.rpc("evm_setIntervalMining", 0)
        node.rpc("evm_setAutomine", True)
    assert 200 in {answer.status_code for answer in answers}
    assert {code(answer) for answer in answers if answer.status_code != 200} <= {"closing"}
    assert int(node.rpc("eth_getTransactionCount", rig.me, "latest"), 16) == before + 2
