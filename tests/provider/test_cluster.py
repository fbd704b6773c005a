"""Several gateways over one database, on real sockets: one account, one set of slots, one chain of receipts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from penstock.chain.web3 import Web3Chain
from penstock.errors import ConfigError
from penstock.wire.receipts import RECEIPT_HEADER, RECEIPTS_PATH, SignedReceipt
from penstock.wire.sessions import SESSIONS_PATH
from provider import cluster
from provider.engines.upstream import UpstreamEngine
from provider.errors import ApiError
from provider.store import Store
from tests.deployed import Deployed
from tests.harness import PATIENCE, Node, wait_until
from tests.postgres import Cluster, database, postgres
from tests.provider.rig import LONG, MODEL, PROMPT, Buyer, EngineProcess, Rig, fresh_account, running, until
from tests.provider.test_process import Stage, new_buyer
from tests.provider.test_vouchers import OFFERS, payer, price

__all__ = ["database", "postgres"]

Pair = Callable[..., contextlib.AbstractAsyncContextManager[tuple[Rig, Rig]]]


@pytest.fixture
def pair(
    node: Node,
    chain: Web3Chain,
    deployed: Deployed,
    engine: UpstreamEngine,
    tmp_path: Path,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Pair:
    """Two gateways of one provider, which do not give each other up, nor themselves, because the machine stalls."""
    monkeypatch.setattr(cluster, "FENCE", PATIENCE)
    monkeypatch.setattr(cluster, "LEASE", 2 * PATIENCE)

    @contextlib.asynccontextmanager
    async def both(**changes: Any) -> AsyncIterator[tuple[Rig, Rig]]:
        account = fresh_account(node)
        given: dict[str, Any] = {"account": account, "state": database, "payout_gas_multiple": 0} | changes
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
        async with running(node, chain, deployed.deployment, engine, tmp_path / "one", **given) as one:
            given["endpoint"] = one.url
            async with running(node, chain, deployed.deployment, engine, tmp_path / "two", **given) as two:
                # Buyers name the provider's one endpoint, whichever gateway they reach.
                yield one, replace(two, url=one.url)

    return both


def at(rig: Rig, buyer: Buyer) -> Buyer:
    """The same consumer, whose requests reach this gateway."""
    return replace(buyer, rig=rig)


async def test_a_session_is_served_through_either_and_its_receipts_are_one_chain(pair: Pair) -> None:
    async with pair() as (one, two):
        buyer = await (await one.buyer()).arrive()
        receipts = []
        for rig in (one, two, two, one):
            answer = await at(rig, buyer).chat()
            assert answer.status_code == 200, answer.text
            receipts.append(SignedReceipt.parse(answer.headers[RECEIPT_HEADER]).receipt)
        assert [receipt.seq for receipt in receipts] == [0, 1, 2, 3]
        assert [receipt.previous for receipt in receipts[1:]] == [receipt.hash for receipt in receipts[:-1]]
        streamed = await at(two, buyer).chat(stream=True)
        assert streamed.text.endswith("data: [DONE]\n\n")
        listed = await two.http.get(RECEIPTS_PATH, headers=buyer.bearer)
        assert [each["seq"] for each in listed.json()["receipts"]] == [0, 1, 2, 3, 4], listed.text
        current = await two.http.get(f"{SESSIONS_PATH}/current", headers=buyer.bearer)
        assert current.json()["stream_id"] == buyer.key.id
        assert (
            await two.http.get(f"{SESSIONS_PATH}/current", headers={"authorization": "Bearer x"})
        ).status_code == 401
        # A second session of the stream, asked for at the other, is the owner's too.
        await at(two, buyer).session()
        closed = await at(two, buyer).close()
        assert closed.status_code == 200, closed.text
        assert (await at(two, buyer).chat()).status_code == 402
        assert (await buyer.chat()).status_code == 402


async def test_a_client_that_leaves_the_wrong_gateway_stops_the_answer(pair: Pair) -> None:
    async with pair() as (one, two):
        buyer = await (await one.buyer()).arrive()
        body = {"model": MODEL, "messages": PROMPT, "max_tokens": 15_000, "ignore_eos": True, "stream": True}
        async with two.http.stream("POST", "/v1/chat/completions", json=body, headers=buyer.bearer) as answer:
            async for _ in answer.aiter_bytes():
                break
            assert one.provider.admission.running == 1
        await until(lambda: one.provider.admission.running == 0, what="the end of the answer")


async def test_slots_are_counted_over_all_gateways(pair: Pair) -> None:
    async with pair(slots=2) as (one, two):
        buyers = [await one.buyer() for _ in range(3)]
        for buyer in buyers:
            await buyer.open()
        assert (await at(one, buyers[0]).post(buyers[0].request())).status_code == 201
        assert (await at(two, buyers[1]).post(buyers[1].request())).status_code == 201
        for rig in (one, two):
            refused = await at(rig, buyers[2]).post(buyers[2].request())
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_free_slot")
        await buyers[0].cancel()

        async def free() -> bool:
            return (await at(two, buyers[2]).post(buyers[2].request())).status_code == 201

        await until(free, what="a free slot")


async def test_sessions_that_come_at_once_do_not_oversell(pair: Pair) -> None:
    async with pair(slots=2) as (one, two):
        buyers = [await one.buyer() for _ in range(6)]
        for buyer in buyers:
            await buyer.open()
        rigs = [one, two] * 3
        answers = await asyncio.gather(*(at(r, b).post(b.request()) for r, b in zip(rigs, buyers, strict=True)))
        assert sorted(answer.status_code for answer in answers) == [201, 201, 503, 503, 503, 503]


async def test_answers_paid_by_the_token_do_not_overlap_beyond_the_offers_slots(pair: Pair) -> None:
    async with pair(slots=1, offers=OFFERS, credit_tokens=20_000) as (one, two):
        first = await payer(one).open_channel()
        second = await payer(two).open_channel()
        await first.shake()
        await second.shake()
        body = {"model": MODEL, "messages": PROMPT, "max_tokens": 15_000, "ignore_eos": True, "stream": True}
        async with one.http.stream("POST", "/v1/chat/completions", json=body, headers=first.bearer) as answer:
            assert answer.status_code == 200
            await until(one.provider.store.unanswered, what="its accept")
            refused = await second.chat()
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_free_slot"), refused.text
            assert two.provider.admission.running == 0

        async def free() -> bool:
            return (await second.chat()).status_code == 200

        await until(free, what="the slot")


async def test_vouchers_count_wherever_they_arrive_and_pay_once(pair: Pair, chain: Web3Chain) -> None:
    async with pair(offers=OFFERS) as (one, two):
        here = await payer(one).open_channel()
        await here.shake()
        there = replace(here, rig=two)
        owed = price((await there.chat()).json()["usage"])
        assert (await there.pay(owed))["cumulative"] == str(owed)
        owed += price((await here.chat()).json()["usage"])
        assert (await here.channel())["owed"] == (await there.channel())["owed"] == str(owed)
        await there.pay(owed)
        await asyncio.gather(one.provider.payouts.run(), two.provider.payouts.run())
        await until(lambda: one.provider.projection.channels[here.key.id].state.settled == owed, what="the settling")
        assert sum(p.amount for p in await one.provider.store.payouts() if p.kind == "settle") == owed


async def test_two_orders_for_the_same_money_are_put_in_turn(
    pair: Pair, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both look good until one is sent: the other would fail on the chain, at the provider's cost."""
    trial, tried = Web3Chain._tried, 0

    async def together(*given: Any, **named: Any) -> Any:
        """None is sent before both were tried, unless one waits for the other."""
        nonlocal tried
        prepared = await trial(*given, **named)
        tried += 1
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                while tried == 1:
                    await asyncio.sleep(0.01)
        return prepared

    async with pair(offers=("TUSD:0.0001",)) as (one, two):
        monkeypatch.setattr(Web3Chain, "_tried", together)
        token = one.deployment.tokens["TUSD"]
        wallet = fresh_account(node, coins=0)
        node.mint(token, wallet.address, 600 * 100)
        buyers = [Buyer(rig, wallet, one.offer(token)) for rig in (one, two)]
        requests = [buyer.request(grant=buyer.grant(start=0), order=await buyer.order(600)) for buyer in buyers]
        before = int(node.rpc("eth_getTransactionCount", one.me, "latest"), 16)
        answers = await asyncio.gather(*(b.post(each) for b, each in zip(buyers, requests, strict=True)))
        assert sorted(answer.status_code for answer in answers) == [201, 402], [answer.text for answer in answers]
        assert int(node.rpc("eth_getTransactionCount", one.me, "latest"), 16) == before + 1
        # Who failed gave the turn back.
        node.mint(token, wallet.address, 600 * 100)
        late = Buyer(one, wallet, one.offer(token))
        assert (
            await late.post(late.request(grant=late.grant(start=0), order=await late.order(600)))
        ).status_code == 201


async def test_a_turn_ends_with_the_gateway_that_had_it(
    pair: Pair, postgres: Cluster, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pair() as (one, two):
        first, second = one.provider.cluster, two.provider.cluster
        assert first is not None
        assert second is not None
        async with first.turn("payer"):
            with monkeypatch.context() as patch:
                patch.setattr(cluster, "_TURN_SECONDS", 0.3)
                with pytest.raises(ApiError, match="another order of this payer"):
                    async with second.turn("payer"):
                        pass
            name = database.partition("?")[0].rpartition("/")[2]
            postgres.sql(f"UPDATE turns SET gateway = 'gone' WHERE gateway = '{first.id}'", name)
            async with second.turn("payer"):
                pass
        async with first.turn("payer"), second.turn("another"):
            pass


async def test_streams_are_paid_out_once_by_whoever_has_them(pair: Pair) -> None:
    async with pair(offers=("native:0.001",)) as (one, two):
        buyers = [await (await rig.buyer()).arrive(3600) for rig in (one, two)]
        idle = await one.buyer()
        await idle.open(3600)
        one.node.advance(60)
        for rig in (one, two):
            await until(lambda rig=rig: len(rig.provider.projection.streams) == 3)
            await until(lambda rig=rig: rig.provider.projection.now() >= rig.node.now)
        streams = [buyer.key.id for buyer in (*buyers, idle)]

        def owners() -> list[int]:
            """How many gateways take each stream for theirs."""
            clusters = [rig.provider.cluster for rig in (one, two)]
            return [sum(cluster is not None and cluster.ours(stream) for cluster in clusters) for stream in streams]

        await until(lambda: owners() == [1, 1, 1], what="one owner of each")
        done = await asyncio.gather(one.provider.payouts.run(), two.provider.payouts.run())
        states = await one.chain.streams([b.key.id for b in (*buyers, idle)])
        withdrawn = sum(p.amount for each in done for p in each if p.kind == "withdraw")
        assert withdrawn == sum(state.paid for state in states if state)
        assert all(state and state.paid > 0 for state in states)


async def test_streams_that_nobody_paid_for_are_forgotten(
    pair: Pair, postgres: Cluster, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks about a stream has the database remember it; not for ever."""
    name = database.partition("?")[0].rpartition("/")[2]
    async with pair() as (one, two):
        buyer = await (await one.buyer()).arrive()
        for _ in range(3):
            stranger = await one.buyer()
            refused = await stranger.post(stranger.request(grant=stranger.grant(start=1)))
            assert refused.status_code == 402, "it never was opened"
        assert postgres.sql("SELECT stream_id FROM slot_holders", name) == buyer.key.id, "nor do they hold a slot"
        assert postgres.sql("SELECT count(*) FROM owners", name) == "4"
        await one.provider.sessions.forget()
        assert postgres.sql("SELECT count(*) FROM owners", name) == "4", "a handshake may be at it"
        monkeypatch.setattr(cluster, "_CLAIM_KEPT", 0.0)
        await one.provider.sessions.forget()
        assert postgres.sql("SELECT stream_id FROM owners", name) == buyer.key.id
        for rig in (one, two):
            assert (await at(rig, buyer).chat()).status_code == 200
        refused = await at(two, stranger).post(stranger.request(grant=stranger.grant(start=1)))
        assert refused.status_code == 402
        assert postgres.sql("SELECT count(DISTINCT gateway) FROM owners", name) == "2"


async def test_kill_9_of_one_and_the_other_goes_on(
    node: Node,
    chain: Web3Chain,
    deployed: Deployed,
    engine_child: EngineProcess,
    tmp_path: Path,
    database: str,
) -> None:
    stage = Stage(node, deployed, tmp_path, fresh_account(node))
    stage.environment |= {"PENSTOCK_PROVIDER_ENGINE_KEY": engine_child.key, "PENSTOCK_PROVIDER_STATE": database}
    words = ["--offer", "native:0.001", "--slots", "2", "--engine-url", engine_child.url, "--context-length", "16384"]
    with stage.started("--port", "0", *words) as one:
        with stage.started("--port", "0", "--public-url", one.endpoint, *words) as two:
            peer = _peers(database)
            (other,) = [url for url in peer if url != one.endpoint]
            async with httpx.AsyncClient(base_url=one.endpoint, timeout=PATIENCE) as http:
                buyer = await new_buyer(one, stage, node, chain, http)
                await buyer.arrive()
                before = [await buyer.chat(), await buyer.chat()]
                async with buyer.openai() as client:
                    stream = await client.chat.completions.create(**LONG, stream=True)
                    await anext(aiter(stream))
                    one.process.kill()
                    one.process.wait()
                    await stream.close()
            assert two.process.poll() is None
            async with httpx.AsyncClient(base_url=other, timeout=PATIENCE) as http:
                buyer.rig.http = http  # type: ignore[misc]

                async def answers() -> httpx.Response | None:
                    answer = await buyer.chat()
                    assert answer.status_code in (200, 503), answer.text
                    return answer if answer.status_code == 200 else None

                after = await until(answers, what="the other gateway's turn")
                listed = (await http.get(RECEIPTS_PATH, headers=buyer.bearer)).json()["receipts"]
                assert [each["seq"] for each in listed] == [0, 1, 2, 3]
                known = [SignedReceipt.parse(a.headers[RECEIPT_HEADER]).receipt.hash for a in (*before, after)]
                assert listed[2]["completion_tokens"] == 0, "what nobody lived to conclude is not billed"
                assert SignedReceipt.parse(after.headers[RECEIPT_HEADER]).receipt.seq == 3
                assert len(set(known)) == 3
                assert (await buyer.close()).status_code == 200
            assert two.stop() == 0


def _peers(database: str) -> list[str]:
    import psycopg

    def urls() -> list[str]:
        with psycopg.connect(database) as connection:
            return [row[0] for row in connection.execute("SELECT url FROM gateways").fetchall()]

    return wait_until(lambda: urls() if len(urls()) == 2 else [], what="both gateways")


async def test_a_gateway_whose_streams_were_taken_ends_and_serves_nothing_meanwhile(
    pair: Pair, postgres: Cluster, database: str
) -> None:
    async with pair() as (one, two):
        buyer = await (await one.buyer()).arrive()
        assert (await buyer.chat()).status_code == 200
        # As after it was frozen for long: the next sign of life tells it so.
        name = database.partition("?")[0].rpartition("/")[2]
        assert two.provider.cluster is not None
        postgres.sql(f"UPDATE owners SET gateway = '{two.provider.cluster.id}'", name)
        refused = await buyer.chat()
        assert (refused.status_code, refused.json()["error"]["code"] in ("moving", "stopping")) == (503, True)
        await until(lambda: one.provider.admission.stopping, what="its end")
        refused = await buyer.chat()
        assert refused.json()["error"]["code"] == "stopping"
        assert (await at(two, buyer).chat()).status_code == 200
        assert one.provider.store.fence is not None
        with pytest.raises(Exception, match="another gateway"):
            session = next(iter(await two.provider.store.sessions()))
            await one.provider.receipts.begin(session, b"x").written()


def test_a_database_that_is_not_there_or_anothers(database: str) -> None:
    with pytest.raises(ConfigError, match=r"no usable state .*check the URL"):
        Store.open("postgresql://nobody:secret@127.0.0.1:9/none", owner="me")
    with pytest.raises(ConfigError) as caught:
        Store.open("postgresql://nobody:secret@127.0.0.1:9/none", owner="me")
    assert "secret" not in str(caught.value)
    asyncio.run(Store.open(database, owner="me").close())
    with pytest.raises(ConfigError, match="not you"):
        Store.open(database, owner="you")
