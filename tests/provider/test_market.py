"""Entering the market: what is done once, what is changed, what is refused."""

from __future__ import annotations

import pytest

from penstock.chain.web3 import Web3Chain
from penstock.errors import ConfigError, InsufficientFunds
from penstock.keys import LocalAccount, new_session_key
from penstock.types import NATIVE
from provider import market
from provider.market import Seller
from tests.deployed import Deployed
from tests.harness import Node
from tests.provider.rig import fresh_account, settings


class Entrance:
    def __init__(self, chain: Web3Chain, deployed: Deployed, account: LocalAccount) -> None:
        self.chain, self.deployed, self.account = chain, deployed, account

    async def enter(
        self, *offers: str, endpoint: str = "http://one.example", **more: object
    ) -> tuple[Seller, list[str]]:
        """The seller, and what was said to have been done."""
        chosen = settings(offers=offers, **more)
        said: list[str] = []
        wanted = await market.terms_of(chosen, self.chain, self.deployed.deployment.tokens)
        seller = await market.enter(
            self.chain, self.account, chosen, wanted, endpoint=endpoint, first_block=1, say=said.append
        )
        return seller, said


@pytest.fixture
def entrance(chain: Web3Chain, deployed: Deployed, node: Node) -> Entrance:
    return Entrance(chain, deployed, fresh_account(node))


async def test_a_first_entry_registers_stakes_and_lists(entrance: Entrance) -> None:
    seller, said = await entrance.enter("native:0.000001", "TUSD:0.25")
    me = entrance.account.address
    provider = await entrance.chain.provider(me)
    assert seller.provider == provider
    assert (provider.owner, provider.payee, provider.signer, provider.endpoint) == (me, me, me, "http://one.example")
    assert await entrance.chain.stake_of(me) == await entrance.chain.minimum_stake()
    rates = {offer.terms.token: offer.terms.rate for offer in seller.active}
    assert rates == {NATIVE: 10**12 * 10**6, entrance.deployed.deployment.tokens["TUSD"]: 250_000 * 10**6}
    assert [words.split()[0] for words in said] == ["registered", "staked", "listed", "listed"]


async def test_many_slots_need_more_than_the_minimum(entrance: Entrance) -> None:
    chain, me = entrance.chain, entrance.account.address
    minimum, each = await chain.minimum_stake(), await chain.cover_per_slot()
    slots = minimum // each - 1
    _, said = await entrance.enter("native:0.001", slots=slots)
    assert await chain.stake_of(me) == minimum
    assert "the minimum" in said[1]
    # A second offer is as many slots more; and an offer that goes frees what it needed.
    _, said = await entrance.enter("native:0.001", "TUSD:1", slots=slots)
    assert await chain.stake_of(me) == 2 * slots * each
    assert f"{2 * slots} slots on offer" in said[0]
    _, said = await entrance.enter("native:0.002", "TUSD:2", slots=slots)
    assert await chain.stake_of(me) == 2 * slots * each
    assert not any(words.startswith("staked") for words in said)


async def test_without_the_coins_for_the_stake(chain: Web3Chain, deployed: Deployed, node: Node) -> None:
    each = await chain.cover_per_slot()
    poor = Entrance(chain, deployed, fresh_account(node, coins=999 * each))
    with pytest.raises(InsufficientFunds, match=r"1000 slots on offer, .* fewer --slots"):
        await poor.enter("native:0.001", slots=1000)
    assert await chain.stake_of(poor.account.address) == 0


async def test_a_second_entry_does_nothing(entrance: Entrance) -> None:
    before, _ = await entrance.enter("native:0.000001")
    after, said = await entrance.enter("native:0.000001")
    assert said == []
    assert after == before
    without, said = await entrance.enter()
    assert (without, said) == (before, [])


async def test_a_new_endpoint_is_told(entrance: Entrance) -> None:
    await entrance.enter("native:0.000001")
    seller, said = await entrance.enter("native:0.000001", endpoint="http://two.example")
    assert seller.provider.endpoint == "http://two.example"
    assert len(said) == 1


async def test_new_terms_replace_the_old_which_may_come_back(entrance: Entrance) -> None:
    first, _ = await entrance.enter("native:0.001")
    second, said = await entrance.enter("native:0.002")
    assert [offer.active for offer in second.offers.values()] == [False, True]
    assert len(said) == 2
    third, said = await entrance.enter("native:0.001")
    assert [offer.active for offer in third.offers.values()] == [True, False]
    assert {o.id for o in third.active} == {o.id for o in first.active}
    assert len(said) == 2


async def test_without_any_offer_there_is_nothing_to_sell(entrance: Entrance) -> None:
    with pytest.raises(ConfigError, match="--offer"):
        await entrance.enter()


async def test_a_payee_is_for_ever(entrance: Entrance) -> None:
    payee = new_session_key().address
    seller, _ = await entrance.enter("native:1", payee=payee)
    assert seller.provider.payee == payee
    assert not seller.is_payee
    with pytest.raises(ConfigError, match="registered with payee"):
        await entrance.enter("native:1", payee=entrance.account.address)
    seller, _ = await entrance.enter("native:1")
    assert seller.provider.payee == payee


@pytest.mark.parametrize(
    ("offers", "said"),
    [
        (("native",), "TOKEN:PRICE"),
        (("native:x",), "not a rate"),
        (("native:0",), "zero"),
        (("native:99999999999999",), "out of range"),
        (("NOPE:1",), "no token 'NOPE'"),
        (("native:1", "native:1.0"), "twice"),
    ],
)
async def test_offers_that_make_no_sense(entrance: Entrance, offers: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        await entrance.enter(*offers)
