"""set_offer_active and delist."""

from __future__ import annotations

import pytest

from tests.contracts.harness import Actor, reverts
from tests.contracts.market import COVER, MINIMUM, SECOND, TERMS, TOKEN, Market


@pytest.fixture
def offer_id(market: Market, provider: Actor) -> bytes:
    return market.create(provider)


def test_takes_an_offer_off_the_market(market: Market, provider: Actor, offer_id: bytes) -> None:
    before = market.offer(offer_id)
    receipt = market.set_active(offer_id, False, sender=provider)
    assert receipt.log("OfferActiveChanged") == {"offer_id": offer_id, "provider": provider, "active": False}
    assert market.offer(offer_id) == (before[0], False, *before[2:])
    assert market.registry.active_offers_of(provider) == 0
    assert market.page(basis=SECOND) == market.page(basis=TOKEN) == []
    assert list(market.registry.offers_of(provider, 0, 10)) == [offer_id]


def test_puts_it_back(market: Market, provider: Actor, offer_id: bytes) -> None:
    before = market.offer(offer_id)
    market.set_active(offer_id, False, sender=provider)
    market.evm.sleep(10)
    receipt = market.set_active(offer_id, True, sender=provider)
    assert receipt.log("OfferActiveChanged") == {"offer_id": offer_id, "provider": provider, "active": True}
    assert market.offer(offer_id) == before
    assert market.registry.active_offers_of(provider) == 1
    assert market.page(basis=SECOND) == market.page(basis=TOKEN) == [offer_id]


def test_leaves_the_others_alone(market: Market, provider: Actor) -> None:
    kinds = [{}, {"prompt_price": 0, "completion_price": 0}, {"rate": 0}]
    offers = [TERMS.but(region=f"region {i}", **kinds[i % 3]) for i in range(9)]
    ids = [market.create(provider, terms) for terms in offers]
    on = set(range(9))
    for i in (0, 8, 4, 1, 7, 5):
        market.set_active(ids[i], False, sender=provider)
        on.remove(i)
        assert sorted(market.page(basis=SECOND)) == sorted(ids[j] for j in on if offers[j].rate)
        assert sorted(market.page(basis=TOKEN)) == sorted(ids[j] for j in on if offers[j].completion_price)
        assert market.registry.active_offers_of(provider) == len(on)
        assert market.registry.active_slots_of(provider) == TERMS.slots * len(on)
        assert [market.is_active(id) for id in ids] == [j in on for j in range(9)]


def test_can_always_be_taken_off_without_stake(market: Market, provider: Actor, offer_id: bytes) -> None:
    market.slash(provider)
    market.set_active(offer_id, False, sender=provider)
    assert not market.is_active(offer_id)


def test_set_reverts_for_strangers(market: Market, offer_id: bytes, attacker: Actor) -> None:
    for active in (False, True):
        with reverts("registry: not the owner"):
            market.set_active(offer_id, active, sender=attacker)


def test_set_reverts_for_an_unknown_offer(market: Market, provider: Actor) -> None:
    for active in (False, True):
        with reverts("registry: no such offer"):
            market.set_active(bytes(32), active, sender=provider)


def test_set_reverts_where_nothing_changes(market: Market, provider: Actor, offer_id: bytes) -> None:
    with reverts("registry: offer already active"):
        market.set_active(offer_id, True, sender=provider)
    market.set_active(offer_id, False, sender=provider)
    with reverts("registry: offer not active"):
        market.set_active(offer_id, False, sender=provider)


def test_putting_back_reverts_without_stake(market: Market, provider: Actor, offer_id: bytes) -> None:
    market.set_active(offer_id, False, sender=provider)
    market.staking.request_unbond(provider, 1, sender=provider)
    with reverts("registry: too little stake for the slots"):
        market.set_active(offer_id, True, sender=provider)
    market.staking.cancel_unbond(provider, sender=provider)
    market.set_active(offer_id, True, sender=provider)


def test_putting_back_needs_cover_beside_what_is_active(market: Market, provider: Actor) -> None:
    offers = [market.create(provider, TERMS.but(slots=slots)) for slots in (600, 400)]
    market.set_active(offers[1], False, sender=provider)
    other = market.create(provider, TERMS.but(slots=399))
    with reverts("registry: too little stake for the slots"):
        market.set_active(offers[1], True, sender=provider)
    with reverts("registry: offer already active"):
        market.set_active(offers[0], True, sender=provider)
    market.set_active(other, False, sender=provider)
    market.set_active(offers[1], True, sender=provider)
    assert market.registry.active_slots_of(provider) == 1_000


def test_delist_where_the_slots_are_no_longer_covered(market: Market, provider: Actor, attacker: Actor) -> None:
    market.stake(provider, 2_000 * COVER)
    offers = [market.create(provider, TERMS.but(slots=slots)) for slots in (1_500, 500, 1_000)]
    market.slash(provider, 500 * COVER)
    market.registry.delist(offers[1], sender=attacker)
    for offer_id in (offers[0], offers[2]):  # 2,500 slots, and cover for as many
        with reverts("registry: provider has its stake"):
            market.registry.delist(offer_id, sender=attacker)
    market.slash(provider, 1)
    market.registry.delist(offers[0], sender=attacker)
    assert market.registry.active_slots_of(provider) == 1_000
    with reverts("registry: provider has its stake"):
        market.registry.delist(offers[2], sender=attacker)
    market.slash(provider, 1_500 * COVER)  # below the minimum, none may stay
    market.registry.delist(offers[2], sender=attacker)
    assert market.registry.active_slots_of(provider) == 0


def test_delist(market: Market, provider: Actor, attacker: Actor, offer_id: bytes) -> None:
    market.slash(provider, 1)
    receipt = market.registry.delist(offer_id, sender=attacker)
    assert receipt.log("OfferActiveChanged") == {"offer_id": offer_id, "provider": provider, "active": False}
    assert not market.is_active(offer_id)
    assert market.registry.active_offers_of(provider) == 0
    assert market.page(basis=SECOND) == market.page(basis=TOKEN) == []


def test_delisted_offers_come_back_with_stake(
    market: Market, provider: Actor, attacker: Actor, offer_id: bytes
) -> None:
    market.slash(provider, MINIMUM)
    market.registry.delist(offer_id, sender=attacker)
    with reverts("registry: too little stake for the slots"):
        market.set_active(offer_id, True, sender=provider)
    market.stake(provider)
    market.set_active(offer_id, True, sender=provider)
    assert market.cheapest() == (offer_id, TERMS.rate)


def test_delist_reverts_where_the_stake_is_there(market: Market, attacker: Actor, offer_id: bytes) -> None:
    with reverts("registry: provider has its stake"):
        market.registry.delist(offer_id, sender=attacker)


def test_delist_reverts_where_it_is_off(market: Market, provider: Actor, attacker: Actor, offer_id: bytes) -> None:
    market.set_active(offer_id, False, sender=provider)
    market.slash(provider)
    with reverts("registry: offer not active"):
        market.registry.delist(offer_id, sender=attacker)


def test_delist_reverts_for_an_unknown_offer(market: Market, attacker: Actor) -> None:
    with reverts("registry: no such offer"):
        market.registry.delist(bytes(32), sender=attacker)
