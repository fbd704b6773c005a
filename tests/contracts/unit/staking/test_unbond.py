"""request_unbond, cancel_unbond."""

from __future__ import annotations

import pytest

from tests.contracts.harness import Actor, reverts
from tests.contracts.market import COVER, MINIMUM, PERIOD, TERMS, Market

STAKE = MINIMUM + 1_000


@pytest.fixture(autouse=True)
def staked(market: Market, provider: Actor) -> None:
    market.stake(provider, STAKE)


def test_request_moves_stake_to_the_queue(market: Market, provider: Actor) -> None:
    receipt = market.staking.request_unbond(provider, 300, sender=provider)
    release_at = market.evm.now + PERIOD
    assert receipt.log("UnbondRequested") == {
        "provider": provider,
        "amount": 300,
        "release_at": release_at,
        "stake": STAKE - 300,
    }
    assert market.staking.stake_of(provider) == STAKE - 300
    assert market.staking.slashable(provider) == STAKE
    assert list(market.staking.unbonding(provider)) == [(300, release_at)]
    assert market.held(market.staking.address) == STAKE


def test_requests_queue_up_oldest_first(market: Market, provider: Actor) -> None:
    expected = []
    for amount in (1, 2, 3):
        market.staking.request_unbond(provider, amount, sender=provider)
        expected.append((amount, market.evm.now + PERIOD))
        market.evm.sleep(amount - 1)
    assert list(market.staking.unbonding(provider)) == expected


def test_the_whole_stake_may_leave(market: Market, provider: Actor) -> None:
    market.staking.request_unbond(provider, STAKE, sender=provider)
    assert market.staking.stake_of(provider) == 0
    assert not market.staking.covers(provider, 0)


def test_with_an_active_offer_down_to_the_minimum(market: Market, provider: Actor) -> None:
    market.create(provider)
    with reverts("staking: active offers need their cover"):
        market.staking.request_unbond(provider, 1_001, sender=provider)
    market.staking.request_unbond(provider, 1_000, sender=provider)
    assert market.staking.covers(provider, TERMS.slots)
    with reverts("staking: active offers need their cover"):
        market.staking.request_unbond(provider, 1, sender=provider)


def test_with_active_offers_down_to_the_cover_of_their_slots(market: Market, provider: Actor) -> None:
    sold = [TERMS.but(slots=1_200), TERMS.but(slots=1_300)]
    market.stake(provider, 2_600 * COVER - STAKE)
    first, _ = (market.create(provider, terms) for terms in sold)
    with reverts("staking: active offers need their cover"):
        market.staking.request_unbond(provider, 100 * COVER + 1, sender=provider)
    market.staking.request_unbond(provider, 100 * COVER, sender=provider)
    market.set_active(first, False, sender=provider)
    with reverts("staking: active offers need their cover"):
        market.staking.request_unbond(provider, 1_200 * COVER + 1, sender=provider)
    market.staking.request_unbond(provider, 1_200 * COVER, sender=provider)
    assert market.staking.stake_of(provider) == 1_300 * COVER
    with reverts("registry: too little stake for the slots"):
        market.set_active(first, True, sender=provider)


def test_a_frozen_stake_may_be_queued(market: Market, provider: Actor) -> None:
    market.freeze(provider, STAKE)
    market.staking.request_unbond(provider, STAKE, sender=provider)
    assert market.staking.frozen(provider) == market.staking.slashable(provider) == STAKE
    market.staking.cancel_unbond(provider, sender=provider)
    assert market.staking.stake_of(provider) == STAKE


def test_below_the_minimum_once_no_offer_is_active(market: Market, provider: Actor) -> None:
    offers = [market.create(provider, TERMS.but(slots=slots)) for slots in (1, 2)]
    for offer_id in offers:
        with reverts("staking: active offers need their cover"):
            market.staking.request_unbond(provider, STAKE, sender=provider)
        market.set_active(offer_id, False, sender=provider)
    market.staking.request_unbond(provider, STAKE, sender=provider)
    for offer_id in offers:
        with reverts("registry: too little stake for the slots"):
            market.set_active(offer_id, True, sender=provider)


def test_after_a_slash_offers_must_go_before_the_rest_leaves(market: Market, provider: Actor, attacker: Actor) -> None:
    offer_id = market.create(provider)
    market.slash(provider, STAKE - 10)
    with reverts("staking: active offers need their cover"):
        market.staking.request_unbond(provider, 1, sender=provider)
    market.registry.delist(offer_id, sender=attacker)
    market.staking.request_unbond(provider, 10, sender=provider)


def test_the_stake_follows_the_owner(market: Market, provider: Actor) -> None:
    buyer = Actor("buyer")
    market.registry.transfer_ownership(provider, buyer, sender=provider)
    market.staking.request_unbond(provider, 1, sender=provider)
    market.registry.accept_ownership(provider, sender=buyer)
    with reverts("staking: not the owner"):
        market.staking.request_unbond(provider, 1, sender=provider)
    market.staking.request_unbond(provider, 2, sender=buyer)
    with reverts("staking: not the owner"):
        market.staking.cancel_unbond(provider, sender=provider)
    market.evm.sleep(PERIOD)
    with reverts("staking: not the owner"):
        market.staking.withdraw(provider, provider, sender=provider)
    market.staking.withdraw(provider, buyer, sender=buyer)
    assert market.held(buyer) == 3


def test_request_reverts_for_strangers(market: Market, provider: Actor, rival: Actor, attacker: Actor) -> None:
    for stranger in (attacker, rival, Actor("payee"), Actor("signer")):
        with reverts("staking: not the owner"):
            market.staking.request_unbond(provider, 1, sender=stranger)


def test_request_reverts_for_zero(market: Market, provider: Actor) -> None:
    with reverts("staking: zero amount"):
        market.staking.request_unbond(provider, 0, sender=provider)


def test_request_reverts_for_more_than_is_staked(market: Market, provider: Actor, rival: Actor) -> None:
    for amount in (STAKE + 1, 2**256 - 1):
        with reverts("staking: more than is staked"):
            market.staking.request_unbond(provider, amount, sender=provider)
    with reverts("staking: more than is staked"):
        market.staking.request_unbond(rival, 1, sender=rival)


def test_request_reverts_where_the_queue_is_full(market: Market, provider: Actor) -> None:
    first = market.evm.now
    for i in range(16):
        market.staking.request_unbond(provider, 1 + i, sender=provider)
        market.evm.sleep(1)
    with reverts("staking: exit queue is full"):
        market.staking.request_unbond(provider, 1, sender=provider)
    market.evm.at_time(first + PERIOD + 1)
    market.staking.withdraw(provider, provider, sender=provider)
    assert market.held(provider) == 1 + 2
    for _ in range(2):
        market.staking.request_unbond(provider, 1, sender=provider)
    with reverts("staking: exit queue is full"):
        market.staking.request_unbond(provider, 1, sender=provider)


def test_cancel_bonds_all_again(market: Market, provider: Actor) -> None:
    for amount in (300, 20):
        market.staking.request_unbond(provider, amount, sender=provider)
    receipt = market.staking.cancel_unbond(provider, sender=provider)
    assert receipt.log("UnbondCancelled") == {"provider": provider, "amount": 320, "stake": STAKE}
    assert market.staking.stake_of(provider) == market.staking.slashable(provider) == STAKE
    assert list(market.staking.unbonding(provider)) == []


def test_cancel_takes_back_what_could_have_been_withdrawn(market: Market, provider: Actor) -> None:
    market.staking.request_unbond(provider, 300, sender=provider)
    market.evm.sleep(PERIOD)
    market.staking.cancel_unbond(provider, sender=provider)
    with reverts("staking: nothing to withdraw yet"):
        market.staking.withdraw(provider, provider, sender=provider)
    market.staking.request_unbond(provider, 300, sender=provider)
    assert list(market.staking.unbonding(provider)) == [(300, market.evm.now + PERIOD)]


def test_the_whole_queue_is_free_after_a_cancel(market: Market, provider: Actor) -> None:
    for _ in range(2):
        for _ in range(16):
            market.staking.request_unbond(provider, 1, sender=provider)
        market.staking.cancel_unbond(provider, sender=provider)
    assert market.staking.stake_of(provider) == STAKE


def test_cancel_reverts_for_strangers(market: Market, provider: Actor, attacker: Actor) -> None:
    market.staking.request_unbond(provider, 300, sender=provider)
    with reverts("staking: not the owner"):
        market.staking.cancel_unbond(provider, sender=attacker)


def test_cancel_reverts_where_nothing_is_queued(market: Market, provider: Actor) -> None:
    with reverts("staking: nothing is queued"):
        market.staking.cancel_unbond(provider, sender=provider)
