"""Challenges and agents' wallets: as the chain has them, in the store, the API and on the pages."""

from __future__ import annotations

import re
from typing import Any

import httpx

from agents.explorer import _queries as queries
from penstock.caps import NO_LIMIT, Caps
from penstock.chain import wallet_calls
from penstock.faults import ANSWER_WINDOW
from penstock.types import NATIVE, OfferId, StreamKey
from penstock.wallets import Beginning, Grant
from penstock.wire.receipts import output_hash
from tests.agents.explorer.conftest import Rig
from tests.agents.explorer.shop import COIN, IDS, Shop, funded
from tests.agents.explorer.test_api import served
from tests.agents.explorer.test_indexer import assert_as_if_read_at_once, assert_true
from tests.harness import PATIENCE


async def test_challenges_are_shown_from_the_first_question_to_their_end(rig: Rig, tmp_path: Any) -> None:
    """One is answered, one is lost; a reorganisation takes the ends back."""
    shop, payer = await Shop.opened(rig), funded(rig)
    key, start = await shop.sold(payer)
    owed = [shop.receipt(key, start, seq) for seq in (0, 1)]
    rig.node.advance(3700)
    for receipt in owed:
        signed = shop.accept(receipt).sign(rig.chain.slashing_domain, shop.signer)
        await rig.chain.open_challenge(payer, signed, key)
    await rig.indexer.sync()
    await assert_true(rig)

    async def states() -> list[tuple[str, int]]:
        page = await rig.store.read(lambda c: queries.challenges(c, provider=shop.account.address))
        return [(row["status"], row["slashed"]) for row in page.rows]

    assert await states() == [("open", 0), ("open", 0)]
    asked = rig.node.height
    assert owed[0].output_hash == output_hash([7] * 41)
    await rig.chain.answer_challenge(shop.account, shop.sign(owed[0]), IDS)
    rig.node.advance(ANSWER_WINDOW + 1)
    await rig.chain.resolve_challenge(payer, shop.accept(owed[1]), key)
    penalty = await rig.chain.penalty(9)
    await rig.indexer.sync()
    await assert_true(rig)
    assert await states() == [("lost", penalty), ("answered", 0)]
    async with served(rig) as url, httpx.AsyncClient(base_url=url, timeout=PATIENCE) as http:
        me = shop.account.address
        provider = (await http.get(f"/api/v1/providers/{me}")).json()
        assert (provider["challenges"], provider["challenges_lost"], provider["success"]) == (2, 1, 0)
        assert int(provider["slashed"]) == penalty
        listed = (await http.get("/api/v1/challenges", params={"provider": me})).json()["items"]
        assert [(one["status"], one["challenger"]) for one in listed] == [
            ("lost", payer.address),
            ("answered", payer.address),
        ]
        assert all(one["ended_at"] >= one["opened_at"] for one in listed)
        for path in ("/faults", f"/providers/{me}"):
            page = (await http.get(path)).text
            assert re.search(r">lost<.*>answered<", page, re.DOTALL), path
        assert "1 of 2 challenges lost" in page
        account = (await http.get(f"/api/v1/accounts/{payer.address}")).json()
        (credit,) = [b for b in account["balances"] if b["contract"] == "Slashing" and b["token"] == NATIVE]
        assert int(credit["amount"]) >= await rig.chain.challenge_bond()
    rig.node.reorg(rig.node.height - asked)
    rig.node.mine()
    await rig.indexer.sync()
    assert await states() == [("open", 0), ("open", 0)]
    await assert_as_if_read_at_once(rig, tmp_path)


async def test_a_wallet_s_caps_and_spending_are_its_own_words(rig: Rig, tmp_path: Any) -> None:
    """Two wallets in one range of blocks, one known before; what is not of the factory is not listened to."""
    shop, owner, agent = await Shop.opened(rig), funded(rig), funded(rig)
    caps = Caps(payment=COIN // 10, hour=COIN // 2)

    async def made(salt: int) -> Any:
        grant = Grant(agent.address, rig.node.now + 10**6)
        beginning = Beginning(owner.address, agent.address, ((NATIVE, caps),), (grant,), salt.to_bytes(32))
        await rig.chain.create_wallet(owner, beginning)
        wallet = await rig.chain.wallet_address(beginning)
        rig.node.set_balance(wallet, COIN)
        return wallet

    first = await made(1)
    await rig.indexer.sync()
    before = rig.node.height
    rig.node.advance(5)
    second = await made(2)
    rate = shop.offer.terms.rate
    keys = [StreamKey(w, shop.account.address, NATIVE, agent.address, OfferId(shop.offer.id)) for w in (first, second)]
    for wallet, key in zip((first, second), keys, strict=True):
        await rig.chain.at_wallet(agent, wallet, wallet_calls.open(key, rate, 1000))
    rig.node.advance(100)
    await rig.chain.at_wallet(agent, first, wallet_calls.cancel(keys[0]))
    await rig.chain.at_wallet(owner, first, wallet_calls.set_caps(NATIVE, Caps(day=5)))
    await rig.chain.at_wallet(agent, second, wallet_calls.pause())
    await rig.indexer.sync()
    await assert_true(rig)
    await assert_as_if_read_at_once(rig, tmp_path)
    deposit = rate * 1000 // 10**6
    async with served(rig) as url, httpx.AsyncClient(base_url=url, timeout=PATIENCE) as http:
        mine = (await http.get(f"/api/v1/accounts/{owner.address}")).json()
        assert [w["id"] for w in mine["wallets"]] == [first, second]
        (one,), (two,) = (w["tokens"] for w in mine["wallets"])
        assert (int(one["day"]), int(one["payment"]), int(one["open"])) == (5, NO_LIMIT, 0)
        spent = (await rig.chain.wallet_caps(first, NATIVE))[1].hour
        assert int(one["spent"]) == spent > 0
        assert (int(two["payment"]), int(two["open"]), int(two["spent"])) == (COIN // 10, deposit, 0)
        assert [w["paused"] for w in mine["wallets"]] == [False, True]
        page = (await http.get(f"/account/{second}")).text
        assert "An agent's wallet" in page
        assert "paused" in page
        assert "no limit" in page
        assert "committed by key" in page
        assert first in (await http.get(f"/account/{owner.address}")).text
    rig.node.reorg(rig.node.height - before)
    rig.node.mine()
    await rig.indexer.sync()
    await assert_true(rig)
    await assert_as_if_read_at_once(rig, tmp_path)
