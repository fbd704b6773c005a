"""The market's index: on both chains it is what the registry says, after changes, reorganisations and restarts."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from agents.buyer._index import DEPTH, Index
from penstock.chain.fake import FakeChain
from penstock.chain.port import Chain
from penstock.consumer import Listing, Market
from penstock.errors import NodeUnavailable
from penstock.keys import LocalAccount, new_session_key
from penstock.reporting import bring, judge
from penstock.types import NATIVE, Address, OfferId, Terms
from tests.gateways import list_offer
from tests.liar import Liar

COIN = 10**18


def terms(number: int, model: str = "m", token: Address = NATIVE) -> Terms:
    return Terms(model, token, 10**12 + number, 0, 0, 1, 4096, 0, "", "")


async def seller(chain: FakeChain) -> LocalAccount:
    account = new_session_key()
    chain.set_balance(account.address, 1000 * COIN)
    return account


async def truth(chain: Chain) -> set[tuple[OfferId, str, int]]:
    """What the market itself says."""
    listings = await Market(chain).listings()
    slots = {one.provider.id: await chain.active_slots_of(one.provider.id) for one in listings}
    covered = {id for id, count in slots.items() if await chain.covers(id, count)}
    assert all(one.covered == (one.provider.id in covered) for one in listings)
    return {_row(one) for one in listings if one.provider.id in covered}


async def indexed(index: Index) -> set[tuple[OfferId, str, int]]:
    return {_row(entry.listing) for entry in await index.entries()}


def _row(listing: Listing) -> tuple[OfferId, str, int]:
    return listing.offer.id, listing.provider.endpoint, listing.stake


async def test_follows_all_that_happens(tmp_path: Path) -> None:
    """Whatever happens, in whatever order, with reorganisations and new processes between: the index is the market."""
    chain, dice = FakeChain(), random.Random(5)
    accounts = [await seller(chain) for _ in range(4)]
    index = Index(tmp_path / "market.db", chain, refresh=0)
    for number in range(120):
        account = dice.choice(accounts)
        me = account.address
        match dice.randrange(8):
            case 0 | 1 | 2:
                await list_offer(chain, account, f"http://127.0.0.1:{number + 1}", terms(number))
            case 3:
                for offer in (await chain.offers_of(me))[:1]:
                    if offer.active:
                        await chain.set_offer_active(account, offer.id, False)
            case 4:
                if await chain.offers_of(me):
                    await chain.stake(account, me, number + 1)
            case 5:
                chain.mine(dice.choice((1, DEPTH)))
            case 6:
                depth = min(dice.choice((1, 2, 5)), (await chain.head()).number)
                if depth:
                    chain.reorg(depth)
            case 7:
                index.close()
                index = Index(tmp_path / "market.db", chain, refresh=0)
        if dice.random() < 0.6:
            assert await indexed(index) == await truth(chain), number
    assert await indexed(index) == await truth(chain)
    index.close()


async def test_two_processes_share_the_file(tmp_path: Path) -> None:
    """Each sees all, though the other one was there before."""
    chain = FakeChain()
    account = await seller(chain)
    indexes = [Index(tmp_path / "market.db", chain, refresh=0) for _ in range(2)]
    for number in range(6):
        await list_offer(chain, account, f"http://127.0.0.1:{number + 1}", terms(number))
        for index in (indexes[number % 2], indexes[1 - number % 2])[: 1 + number // 2]:
            assert await indexed(index) == await truth(chain)
    chain.reorg(2)
    for index in indexes:
        assert await indexed(index) == await truth(chain)


async def test_a_chain_that_began_anew_is_read_anew(tmp_path: Path) -> None:
    for number in range(2):
        chain = FakeChain()
        chain._made += 1000 * number  # other hashes
        chain.mine(5)
        await list_offer(chain, await seller(chain), "http://127.0.0.1:1", terms(number))
        index = Index(tmp_path / "market.db", chain, refresh=0)
        assert await indexed(index) == await truth(chain)
        index.close()


async def test_nothing_is_asked_again_while_it_is_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = FakeChain()
    await list_offer(chain, await seller(chain), "http://127.0.0.1:1", terms(1))
    index = Index(None, chain, refresh=1000)
    assert len(await index.entries("m")) == 1
    assert await index.entries("n") == []
    with chain.outage():
        assert len(await index.entries("m")) == 1
        with pytest.raises(NodeUnavailable):
            await Index(None, chain).entries()


async def test_an_offer_in_what_is_no_token_hides_no_other() -> None:
    chain = FakeChain()
    account = await seller(chain)
    await list_offer(chain, account, "http://127.0.0.1:1", terms(1))
    await list_offer(chain, account, "http://127.0.0.1:1", terms(1, token=new_session_key().address))
    index = Index(None, chain)
    assert [entry.listing.token.symbol for entry in await index.entries()] == ["BNB"]
    assert list(await index.models()) == ["m"]


async def test_a_proven_fault_is_counted_and_a_reorganisation_forgets_it(tmp_path: Path) -> None:
    chain = FakeChain()
    account, reporter = await seller(chain), await seller(chain)
    liar = await Liar.register(chain, account, chain.advance)
    await chain.stake(reporter, account.address, 10 * COIN)  # what is left covers its slots
    index = Index(tmp_path / "market.db", chain, refresh=0)
    (entry,) = await index.entries()
    assert entry.faults == 0
    chain.mine(3)
    pieces = liar.lies(reporter.address)["overbilling"]
    chain.advance(10)
    (case,) = (await judge(chain, pieces)).cases
    before = (await chain.head()).number
    await bring(chain, reporter, case.fault)
    (convicted,) = await index.entries()
    assert convicted.faults == 1
    assert convicted.listing.stake < entry.listing.stake
    again = Index(tmp_path / "market.db", chain, refresh=0)
    assert [one.faults for one in await again.entries()] == [1]
    chain.reorg((await chain.head()).number - before)
    for one in (index, again):
        (acquitted,) = await one.entries()
        assert (acquitted.faults, acquitted.listing.stake) == (0, entry.listing.stake)
