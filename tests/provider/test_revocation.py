"""A token that is revoked, by who holds it or by the operator, is worth nothing from then on, wherever it is shown."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import httpx
import openai
import pytest

from penstock.chain.web3 import Web3Chain
from penstock.wire.sessions import SESSIONS_PATH
from provider.admission import hash_token
from provider.errors import ApiError
from tests.deployed import Deployed
from tests.harness import PATIENCE, Node
from tests.postgres import database, postgres
from tests.provider.rig import LONG, Buyer, EngineProcess, Rig, fresh_account, running, until
from tests.provider.test_cluster import Pair, at, pair
from tests.provider.test_process import Stage, new_buyer
from tests.provider.test_receipts import checked
from tests.provider.test_vouchers import OFFERS, Payer, price

__all__ = ["database", "pair", "postgres"]

CURRENT = f"{SESSIONS_PATH}/current"


async def revoke(buyer: Buyer) -> httpx.Response:
    return await buyer.rig.http.delete(CURRENT, headers=buyer.bearer)


def refused(answer: httpx.Response) -> bool:
    return answer.status_code == 401 and answer.json()["error"]["code"] == "token_revoked"


async def test_who_holds_a_token_ends_it_and_what_runs_for_it(
    rig: Rig, buyer: Buyer, engine_child: EngineProcess
) -> None:
    first = buyer.token
    other = (await buyer.session())["token"]
    buyer.token = first
    async with buyer.openai() as client:
        mine = await client.chat.completions.create(**LONG, stream=True)
        await anext(mine)
        buyer.token = other
        async with buyer.openai() as also:
            theirs = await also.chat.completions.create(**LONG, stream=True)
            await anext(theirs)
            buyer.token = first
            done = await revoke(buyer)
            assert (done.status_code, done.json()["revoked"]) == (200, True)
            assert done.json()["session_id"].startswith("ses_")
            with pytest.raises(openai.APIError) as caught:
                async for _ in mine:
                    pass
            assert caught.value.body["code"] == "token_revoked"  # type: ignore[index]
            await anext(theirs)  # goes on: another session of the same stream
            await theirs.close()
    for answer in (
        await buyer.chat(),
        await rig.http.get(CURRENT, headers=buyer.bearer),
        await rig.http.get("/v1/penstock/receipts", headers=buyer.bearer),
        await buyer.close(),
        await revoke(buyer),
    ):
        assert refused(answer), answer.text
        assert answer.headers["www-authenticate"] == "Bearer"
    assert rig.provider.admission.live_sessions() == 1, "the stream is paid for, and keeps its slot"
    buyer.token = other
    assert (await buyer.chat()).status_code == 200
    await buyer.session()
    await until(lambda: rig.provider.admission.running == 0, what="the end of what was left")
    receipts = await checked(buyer)
    assert len(receipts) == 3
    assert receipts[0].completion_tokens > 0, "what was cut has its receipt"
    rows = await rig.provider.store.usage()
    assert [row.outcome for row in rows if row.outcome == "token_revoked"] == ["token_revoked"]


async def test_tokens_can_be_changed_for_as_long_as_the_stream_runs(rig: Rig, buyer: Buyer) -> None:
    for _ in range(17):  # more than a stream may have at once
        assert (await revoke(buyer)).status_code == 200
        await buyer.session()
    assert (await buyer.chat()).status_code == 200


async def test_a_request_that_waited_for_its_turn_finds_its_token_revoked(
    node: Node, chain: Web3Chain, deployed: Deployed, tmp_path: Path, engine_child: EngineProcess, engine: object
) -> None:
    async with running(node, chain, deployed.deployment, engine, tmp_path, max_running=1) as rig:  # type: ignore[arg-type]
        one, two = await (await rig.buyer()).arrive(), await (await rig.buyer()).arrive()
        async with one.openai() as client:
            running_on = await client.chat.completions.create(**LONG, stream=True)
            await anext(running_on)
            waiting = asyncio.create_task(two.chat())
            await until(lambda: rig.provider.gateway.queue.waiting == 1, what="the wait")
            await revoke(two)
            await running_on.close()
        assert refused(await waiting)


async def test_it_holds_over_kill_9_and_what_was_served_stays_owed(
    node: Node, chain: Web3Chain, deployed: Deployed, tmp_path: Path
) -> None:
    stage = Stage(node, deployed, tmp_path, fresh_account(node))
    words = ("--offer", OFFERS[0])
    with stage.started("--port", "0", *words) as process:
        async with httpx.AsyncClient(base_url=process.endpoint, timeout=PATIENCE) as http:
            found = await new_buyer(process, stage, node, chain, http)
            one = await Payer(found.rig, found.wallet, found.offer).open_channel()
            await one.shake()
            served = price((await one.chat()).json()["usage"])
            by_holder = one.token
            await one.shake()
            served += price((await one.chat()).json()["usage"])
            by_operator = one.token
            one.token = by_holder
            assert (await revoke(one)).status_code == 200
            assert refused(await one.chat())
        listed = stage.command("sessions", "--json")
        assert listed.returncode == 0, listed.stderr
        kept = [json.loads(line) for line in listed.stdout.splitlines()]
        assert [bool(each["revoked_at"]) for each in kept] == [False, True]
        assert [(each["answers"], each["completion_tokens"]) for each in kept] == [(1, 4)] * 2
        assert process.stop(signal.SIGKILL) == -signal.SIGKILL
    with stage.started("--port", process.endpoint.rsplit(":", 1)[1], *words) as process:
        async with httpx.AsyncClient(base_url=process.endpoint, timeout=PATIENCE) as http:
            one.rig.http = http
            one.token = by_holder
            assert refused(await one.chat())
            one.token = by_operator
            assert (await one.chat(max_tokens=1)).status_code == 200
            # The operator, while it runs; not by a name that fits several, or none.
            for name in ("ses_", "ses_nobody", "x", ""):
                assert stage.command("revoke", name).returncode != 0
            done = stage.command("revoke", kept[0]["id"][:12])
            assert (done.returncode, done.stdout) == (0, f"{kept[0]['id']} is revoked\n"), done.stderr
            assert "revoked" in stage.command("sessions").stdout

            async def gone() -> bool:
                return refused(await one.chat(max_tokens=1))

            await until(gone, what="the operator's word")
            await one.shake()
            assert int((await one.channel())["owed"]) > served, "what sessions used is owed though they are revoked"
        assert process.stop() == 0


async def test_it_holds_at_every_gateway_of_a_cluster(pair: Pair) -> None:
    async with pair() as (one, two):
        buyer = await (await one.buyer()).arrive()
        async with buyer.openai() as client:
            stream = await client.chat.completions.create(**LONG, stream=True)
            await anext(stream)
            assert (await revoke(at(two, buyer))).status_code == 200
            with pytest.raises(openai.APIError):
                async for _ in stream:
                    pass
        for rig in (one, two):
            assert refused(await at(rig, buyer).chat())
        again = at(two, buyer)
        await again.session()
        # As if the operator had said it at the database.
        token_hash = hash_token(again.token.encode())
        (session,) = [s for s in await two.provider.store.sessions() if s.token_hash == token_hash]
        await two.provider.store.revoke(session.id, 1.0)
        for rig in (one, two):

            async def gone(rig: Rig = rig) -> bool:
                return refused(await at(rig, again).chat())

            await until(gone, what="the word")
        # A gateway that takes a stream over knows it before it hears of it.
        (kept,) = [kept for kept in await two.provider.store.sessions() if kept.id == session.id]
        two.provider.admission.add(kept)
        with pytest.raises(ApiError, match="revoked"):
            two.provider.admission.session(again.bearer["authorization"].encode())
