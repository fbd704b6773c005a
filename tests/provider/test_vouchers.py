"""Tokens paid by vouchers: what a channel's payer owes, how far it is trusted, and how the money comes home."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from penstock.chain.web3 import Web3Chain
from penstock.keys import LocalAccount, new_session_key
from penstock.types import NATIVE, Voucher
from penstock.wire.eip712 import voucher_digest
from penstock.wire.sessions import (
    SESSIONS_PATH,
    VOUCHER_PATH,
    ChannelBody,
    GrantBody,
    SessionRequest,
    StreamKeyBody,
    VoucherRequest,
)
from provider.engines.upstream import UpstreamEngine
from scripts._ports import free_port
from tests.deployed import Deployed
from tests.harness import PATIENCE, Node
from tests.provider.rig import COINS, MODEL, PROMPT, Buyer, EngineProcess, Rig, fresh_account, on_both, running, until
from tests.provider.test_process import Stage, new_buyer

OFFERS = ("native:1/3",)
"""Coins per million prompt and completion tokens."""
PROMPT_PRICE, TOKEN_PRICE = COINS // 10**6, 3 * COINS // 10**6
"""Wei a token."""
CREDIT_TOKENS = 256
CREDIT = CREDIT_TOKENS * TOKEN_PRICE


@dataclass
class Payer(Buyer):
    """A consumer with a channel in place of a stream."""

    deposit: int = 0

    async def open_channel(self, deposit: int = COINS) -> Payer:
        await self.rig.chain.open_channel(self.wallet, self.key, deposit=deposit, value=deposit, from_vault=0)
        self.deposit = deposit
        return self

    def ask(self, **changes: Any) -> SessionRequest:
        grant = self.grant(**changes)
        body = GrantBody.of(grant, grant.sign(self.rig.chain.session_domain, self.session_key))
        return SessionRequest(StreamKeyBody.of(self.key), body, channel=ChannelBody(str(self.deposit)))

    async def shake(self) -> dict[str, Any]:
        answer = await self.post(self.ask())
        assert answer.status_code == 201, answer.text
        found: dict[str, Any] = answer.json()
        self.token = found["token"]
        return found

    def voucher(self, cumulative: int, signer: LocalAccount | None = None) -> VoucherRequest:
        digest = voucher_digest(self.rig.chain.stream_pay_domain, self.key.id, cumulative)
        signature = (signer or self.session_key).sign_digest(digest)
        return VoucherRequest.of(Voucher(self.key, cumulative, signature))

    async def send(self, voucher: VoucherRequest) -> httpx.Response:
        content = msgspec.json.encode(voucher)
        return await self.rig.http.post(VOUCHER_PATH, content=content, headers=self.bearer)

    async def pay(self, cumulative: int) -> dict[str, Any]:
        answer = await self.send(self.voucher(cumulative))
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def channel(self) -> dict[str, Any]:
        answer = await self.rig.http.get(f"{SESSIONS_PATH}/current", headers=self.bearer)
        found: dict[str, Any] = answer.json()["channel"]
        return found

    async def raw(self, **changes: Any) -> list[str]:
        """The lines of a streamed answer."""
        body = {"model": MODEL, "messages": PROMPT, "max_tokens": 4, "stream": True} | changes
        return [
            line
            for line in (await self.rig.http.post("/v1/chat/completions", json=body, headers=self.bearer)).text.split(
                "\n"
            )
            if line
        ]


def payer(rig: Rig) -> Payer:
    return Payer(rig, fresh_account(rig.node), rig.offer())


def price(usage: dict[str, int]) -> int:
    return usage["prompt_tokens"] * PROMPT_PRICE + usage["completion_tokens"] * TOKEN_PRICE


@pytest.fixture
async def rig(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path, state: str
) -> AsyncIterator[Rig]:
    """A provider that sells by the token alone."""
    async with running(
        node,
        chain,
        deployed.deployment,
        engine,
        tmp_path,
        offers=OFFERS,
        state=state,
        voucher_seconds=2,
        payout_gas_multiple=0,
    ) as rig:
        yield rig


@on_both
async def test_a_whole_answer_is_paid_by_a_voucher(rig: Rig) -> None:
    one = await payer(rig).open_channel()
    opened = await one.shake()
    assert (opened["start"], opened["end"], opened["rate"]) == (0, 0, "0")
    assert opened["channel"] | {"step": ""} == {
        "deposit": str(COINS),
        "settled": "0",
        "cumulative": "0",
        "owed": "0",
        "prompt_price": str(PROMPT_PRICE * 10**6),
        "completion_price": str(TOKEN_PRICE * 10**6),
        "credit": str(CREDIT),
        "step": "",
        "transaction": "",
        "gas_used": 0,
    }
    answer = await one.chat()
    owed = price(answer.json()["usage"])
    assert answer.headers["penstock-owed"] == f"owed={owed}, cumulative=0"
    assert await one.pay(owed) == {"cumulative": str(owed), "owed": str(owed), "deposit": str(COINS)}
    before = await rig.chain.native_balance(rig.me)
    closed = (await one.close()).json()["channel"]
    assert (closed["paid"], closed["refund"]) == (str(owed), str(COINS - owed))
    assert await rig.chain.vault_balance(NATIVE, one.wallet.address) == COINS - owed
    assert (await one.chat()).json()["error"]["code"] == "channel_closed"
    assert (await one.close()).json()["channel"] == closed | {"gas_used": 0}
    payouts = await rig.provider.payouts.run()
    assert sum(p.amount for p in payouts) == owed
    assert await rig.chain.native_balance(rig.me) > before - COINS // 100


async def test_a_stream_of_events_says_what_is_owed_before_it_is_done(rig: Rig) -> None:
    one = await payer(rig).open_channel()
    await one.shake()
    lines = await one.raw(stream_options={"include_usage": True})
    assert lines[-1] == "data: [DONE]"
    usage = json.loads(lines[-4][6:])["usage"]
    assert lines[-3] == f": penstock owed={price(usage)}, cumulative=0"
    assert lines[-2].startswith(": penstock-receipt {")
    silent = await one.raw()
    assert not any('"choices":[]' in line for line in silent), "usage that was not asked for"
    assert int((await one.channel())["owed"]) > price(usage), "and counted all the same"
    async with one.openai() as client:
        text = [
            piece
            async for piece in await client.chat.completions.create(
                model=MODEL, messages=PROMPT, max_tokens=4, stream=True
            )
        ]
    assert text, "strict clients never notice"


async def test_requests_add_up_without_rounding_each(rig: Rig) -> None:
    one = await payer(rig).open_channel()
    await one.shake()
    usages = [(await one.chat(max_tokens=2)).json()["usage"] for _ in range(3)]
    assert int((await one.channel())["owed"]) == sum(map(price, usages))


async def test_beyond_the_credit_nothing_is_served(rig: Rig, engine_child: EngineProcess) -> None:
    one = await payer(rig).open_channel()
    await one.shake()
    paid = 40 * TOKEN_PRICE
    await one.pay(paid)
    lines = await one.raw(max_tokens=2000, ignore_eos=True)
    error = json.loads(lines[-1][6:])["error"]
    assert error["code"] == "voucher_needed"
    owed = int(error["owed"])
    assert paid + CREDIT - 8 * TOKEN_PRICE < owed <= paid + CREDIT
    assert int(error["needed"]) > paid
    assert int((await one.channel())["owed"]) == owed
    pieces = sum(line.startswith("data: ") and '"content"' in line for line in lines)
    assert pieces * TOKEN_PRICE <= owed
    await until(engine_child.idle, what="the engine's slot")
    (row,) = await until(lambda: rig.provider.store.usage(), what="the usage on record")
    assert row.prompt_tokens * PROMPT_PRICE + row.completion_tokens * TOKEN_PRICE == owed
    refused = (await one.chat()).json()
    assert refused["error"]["code"] == "voucher_needed"
    assert refused["accepts"][0]["scheme"] == "penstock-channel"
    await one.pay(int(refused["error"]["needed"]))
    assert (await one.chat(max_tokens=1)).status_code == 200


@on_both
async def test_vouchers_on_the_way_keep_an_answer_flowing(rig: Rig) -> None:
    rig.provider.accounts._grace = PATIENCE
    one = await payer(rig).open_channel()
    await one.shake()
    most = 0
    account = next(iter(rig.provider.accounts._accounts.values()))
    body = {"model": MODEL, "messages": PROMPT, "max_tokens": 900, "ignore_eos": True, "stream": True}
    async with rig.http.stream("POST", "/v1/chat/completions", json=body, headers=one.bearer) as answer:
        pieces, last = 0, ""
        async for line in answer.aiter_lines():
            pieces += line.startswith("data: {")
            most = max(most, account.owed - account.cumulative)
            if pieces % 64 == 0 and pieces:
                await one.pay((pieces + 300) * TOKEN_PRICE)
            last = line or last
    assert last == "data: [DONE]"
    assert pieces > 800
    assert most <= CREDIT


async def test_answers_at_once_share_one_credit(rig: Rig) -> None:
    one = await payer(rig).open_channel()
    await one.shake()
    answers = await asyncio.gather(*(one.chat(max_tokens=400, ignore_eos=True) for _ in range(3)))
    assert {answer.json()["error"]["code"] for answer in answers if answer.status_code == 402} == {"voucher_needed"}
    assert 0 < int((await one.channel())["owed"]) <= CREDIT


async def test_the_engine_stops_where_the_deposit_ends(rig: Rig, engine_child: EngineProcess) -> None:
    deposit = 1200 * TOKEN_PRICE
    one = await payer(rig).open_channel(deposit)
    await one.shake()
    await one.pay(deposit)
    before = await engine_child.predicted()
    lines = await one.raw(max_tokens=15_000, ignore_eos=True)
    assert lines[-1] == "data: [DONE]"
    assert await engine_child.predicted() - before <= 1200
    owed = int((await one.channel())["owed"])
    assert deposit * 0.8 < owed <= deposit
    used_up = (await one.chat(messages=[{"role": "user", "content": "x" * 3000}])).json()["error"]
    assert used_up["code"] == "deposit_too_low"


async def test_a_prompt_that_is_more_than_is_trusted_needs_a_voucher_first(rig: Rig) -> None:
    one = await payer(rig).open_channel()
    await one.shake()
    messages = [{"role": "user", "content": "water " * 400}]
    refused = (await one.chat(messages=messages)).json()["error"]
    assert (refused["code"], refused["owed"]) == ("voucher_needed", "0")
    await one.pay(int(refused["needed"]))
    assert (await one.chat(messages=messages, max_tokens=1)).status_code == 200


async def test_bad_vouchers_are_refused(rig: Rig) -> None:
    one, other = await payer(rig).open_channel(), await payer(rig).open_channel()
    await one.shake()
    await other.shake()
    await one.pay(1000)

    async def code(voucher: VoucherRequest) -> tuple[int, str]:
        answer = await one.send(voucher)
        return answer.status_code, answer.json()["error"]["code"]

    assert await code(one.voucher(2000, signer=new_session_key())) == (401, "voucher_invalid")
    assert await code(one.voucher(2000, signer=one.wallet)) == (401, "voucher_invalid")
    assert await code(other.voucher(2000)) == (401, "voucher_invalid")
    assert await code(msgspec.structs.replace(one.voucher(2000), cumulative="2001")) == (401, "voucher_invalid")
    assert await code(one.voucher(999)) == (409, "voucher_too_low")
    assert await code(one.voucher(COINS + 1)) == (402, "deposit_too_low")
    assert await code(VoucherRequest("-1", one.voucher(1).signature)) == (400, "invalid_request")
    assert await code(VoucherRequest("2000", "0x12")) == (400, "invalid_request")
    assert (await one.channel())["cumulative"] == "1000"
    nobody = await rig.http.post(VOUCHER_PATH, content=msgspec.json.encode(one.voucher(2000)))
    assert nobody.status_code == 401


@on_both
async def test_a_voucher_whose_answer_was_lost_is_sent_again(rig: Rig) -> None:
    one = await payer(rig).open_channel()
    await one.shake()
    first = await one.pay(5000)
    answers = await asyncio.gather(*(one.pay(5000) for _ in range(4)))
    assert all(answer == first for answer in answers)
    assert await rig.provider.store.vouchers() == {one.key.id: (5000, bytes.fromhex(one.voucher(5000).signature[2:]))}


@on_both
async def test_a_close_request_ends_the_service_and_is_answered_at_once(rig: Rig) -> None:
    one = await payer(rig).open_channel()
    await one.shake()
    owed = price((await one.chat()).json()["usage"])
    await one.pay(owed)
    await rig.chain.request_close(one.wallet, one.key)
    await until(lambda: rig.provider.projection.channels[one.key.id].state.requested_at)
    assert (await one.chat()).json()["error"]["code"] in ("channel_closing", "channel_closed")
    assert (await one.post(one.ask())).json()["error"]["code"] in ("channel_closing", "channel_closed")
    await rig.provider.sessions.finish_closings()
    (state,) = await rig.chain.channels([one.key.id])
    assert state is not None
    assert (state.finished, state.settled) == (True, owed)
    assert await rig.chain.vault_balance(NATIVE, one.wallet.address) == COINS - owed


@on_both
async def test_vouchers_are_settled_together(rig: Rig) -> None:
    payers = [await payer(rig).open_channel() for _ in range(3)]
    for number, one in enumerate(payers, 1):
        await one.shake()
        await one.pay(number * 1000)
    payouts = await rig.provider.payouts.run()
    assert [(p.kind, p.amount, p.streams) for p in payouts] == [("settle", 6000, 3), ("vault", 6000, 0)]
    assert await rig.provider.payouts.run() == [] or (await rig.chain.channels([payers[0].key.id]))[0].settled == 1000
    await payers[0].pay(1500)
    await until(lambda: rig.provider.projection.channels[payers[2].key.id].state.settled)
    assert [(p.kind, p.amount) for p in await rig.provider.payouts.run()] == [("settle", 500), ("vault", 500)]


@on_both
async def test_a_restart_keeps_the_highest_voucher_and_what_is_owed(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path, state: str
) -> None:
    account = fresh_account(node)
    common = {"offers": OFFERS, "account": account, "state": state, "payout_gas_multiple": 1e12}
    async with running(node, chain, deployed.deployment, engine, tmp_path, **common) as rig:
        one = await payer(rig).open_channel()
        await one.shake()
        owed = price((await one.chat()).json()["usage"])
        await one.pay(owed + 7)
    async with running(node, chain, deployed.deployment, engine, tmp_path, **common) as rig:
        one.rig = rig
        known = await one.channel()
        assert (known["owed"], known["cumulative"]) == (str(owed), str(owed + 7))
        assert (await one.close()).json()["channel"]["paid"] == str(owed + 7)


async def test_an_offer_by_time_and_token_needs_both_and_bills_each_once(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path
) -> None:
    async with running(
        node, chain, deployed.deployment, engine, tmp_path, offers=("native:0.000001+1/3",), voucher_seconds=0.2
    ) as rig:
        one = await payer(rig).open_channel()
        alone = (await one.post(one.ask())).json()["error"]
        assert alone["code"] == "grant_mismatch"
        await one.open(600)
        lacking = (await one.post(one.request())).json()["error"]
        assert lacking["code"] == "channel_mismatch"
        opened = await one.shake()
        assert opened["start"] == one.start
        assert opened["channel"]["deposit"] == str(COINS)
        owed = price((await one.chat()).json()["usage"])
        await one.pay(owed)
        closed = (await one.close()).json()
        assert closed["channel"]["paid"] == str(owed)
        assert int(closed["paid"]) <= 20 * COINS // 10**6
        assert await chain.vault_balance(NATIVE, one.wallet.address) == COINS - owed + int(closed["refund"])


@on_both
async def test_kill_9_keeps_the_highest_voucher_which_the_next_process_settles(
    node: Node, chain: Web3Chain, deployed: Deployed, tmp_path: Path, state: str
) -> None:
    stage = Stage(node, deployed, tmp_path, fresh_account(node), state)
    stage.environment["PENSTOCK_PROVIDER_PAYOUT_GAS_MULTIPLE"] = "0"
    words = ("--offer", "native:1/3", "--payout-seconds", "3600")
    port = str(free_port())
    with stage.started("--port", port, *words) as first:
        async with httpx.AsyncClient(base_url=first.endpoint, timeout=PATIENCE) as http:
            known = await new_buyer(first, stage, node, chain, http)
            one = await Payer(known.rig, known.wallet, known.offer).open_channel()
            await one.shake()
            owed = price((await one.chat()).json()["usage"])
            await one.pay(owed)
            first.process.kill()  # the voucher was acknowledged, so it is on the disk
            first.process.wait()
    with stage.started("--port", port, *words) as second:
        async with httpx.AsyncClient(base_url=second.endpoint, timeout=PATIENCE) as http:
            one.rig.http = http
            assert (await one.channel())["cumulative"] == str(owed)
            assert await one.pay(owed), "an answer that was lost is asked for again"
        assert second.stop() == 0
    (channel,) = await chain.channels([one.key.id])
    assert channel is not None
    assert (channel.settled, channel.finished) == (owed, False)
