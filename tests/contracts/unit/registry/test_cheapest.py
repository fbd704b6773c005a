"""cheapest_offer."""

from __future__ import annotations

import random

from tests.contracts.harness import Actor, reverts
from tests.contracts.market import COVER, MINIMUM, SECOND, TERMS, TOKEN, Market

NONE = (bytes(32), 0)
POOR = Actor("poor")


def test_finds_the_lowest_price(market: Market, provider: Actor) -> None:
    ids = {rate: market.create(provider, TERMS.but(rate=rate, completion_price=9_000 - rate)) for rate in (7, 5, 6)}
    assert market.cheapest(basis=SECOND) == (ids[5], 5)
    assert market.cheapest(basis=TOKEN) == (ids[7], 8_993)


def test_among_equals_the_oldest(market: Market, provider: Actor) -> None:
    ids = [market.create(provider, TERMS.but(slots=1 + i)) for i in range(4)]
    assert market.cheapest() == (ids[0], TERMS.rate)
    market.set_active(ids[0], False, sender=provider)
    assert market.cheapest() == (ids[1], TERMS.rate)
    market.set_active(ids[0], True, sender=provider)
    assert market.cheapest() == (ids[0], TERMS.rate)


def test_holds_the_extreme_prices(market: Market, provider: Actor) -> None:
    dear = market.create(provider, TERMS.but(rate=2**96 - 1, completion_price=2**96 - 1))
    for basis in (SECOND, TOKEN):
        assert market.cheapest(basis=basis) == (dear, 2**96 - 1)
    cheap = market.create(provider, TERMS.but(rate=1, completion_price=1))
    for basis in (SECOND, TOKEN):
        assert market.cheapest(basis=basis) == (cheap, 1)


def test_none(market: Market, provider: Actor) -> None:
    assert market.cheapest() == NONE
    id = market.create(provider, TERMS.but(prompt_price=0, completion_price=0))
    assert market.cheapest(basis=TOKEN) == NONE
    assert market.cheapest(TERMS.but(model="another")) == NONE
    assert market.cheapest(TERMS.but(token=Actor("token"))) == NONE
    market.set_active(id, False, sender=provider)
    assert market.cheapest() == NONE


def test_after_random_changes(market: Market, provider: Actor) -> None:
    choice = random.Random(11)
    offers = [
        TERMS.but(rate=choice.randint(1, 9), completion_price=choice.randint(1, 9), slots=1 + i) for i in range(20)
    ]
    ids = [market.create(provider, terms) for terms in offers]
    on = set(range(20))
    for _ in range(60):
        i = choice.randrange(20)
        market.set_active(ids[i], i not in on, sender=provider)
        on ^= {i}
        by_second = min(((offers[j].rate, j) for j in on), default=None)
        by_token = min(((offers[j].completion_price, j) for j in on), default=None)
        assert market.cheapest(basis=SECOND) == ((ids[by_second[1]], by_second[0]) if by_second else NONE)
        assert market.cheapest(basis=TOKEN) == ((ids[by_token[1]], by_token[0]) if by_token else NONE)


def list_unbacked(market: Market, count: int) -> list[bytes]:
    """So many of the cheapest offers, whose provider has just lost a wei of its stake."""
    market.register(POOR)
    market.stake(POOR)
    ids = [market.create(POOR, TERMS.but(rate=1 + i // 2, slots=1 + i)) for i in range(count)]
    market.slash(POOR, 1)
    return ids


def test_passes_over_those_without_stake(market: Market, provider: Actor) -> None:
    list_unbacked(market, 15)
    assert market.cheapest() == NONE
    backed = market.create(provider)
    assert market.cheapest() == (backed, TERMS.rate)
    market.stake(POOR, 1)
    assert market.cheapest()[1] == 1


def test_gives_up_where_too_many_have_none(market: Market, provider: Actor, attacker: Actor) -> None:
    market.create(provider)
    unbacked = list_unbacked(market, 16)
    with reverts("registry: delist what has no stake"):
        market.cheapest()
    market.registry.delist(unbacked[3], sender=attacker)
    assert market.cheapest() == (TERMS.id(provider), TERMS.rate)


def test_stake_on_its_way_out_does_not_count(market: Market, provider: Actor) -> None:
    market.stake(provider, 5)
    id = market.create(provider)
    market.staking.request_unbond(provider, 5, sender=provider)
    assert market.cheapest() == (id, TERMS.rate)
    market.slash(provider, 1)
    assert market.staking.slashable(provider) == MINIMUM + 4
    assert market.cheapest() == NONE


def test_passes_over_those_whose_slots_are_not_covered(market: Market, provider: Actor, attacker: Actor) -> None:
    market.register(POOR)
    market.stake(POOR, 3_000 * COVER)
    dear = market.create(provider)
    many, few = (market.create(POOR, TERMS.but(rate=rate, slots=slots)) for rate, slots in ((5, 2_000), (7, 1_000)))
    assert market.cheapest() == (many, 5)
    market.slash(POOR, 1)
    assert market.cheapest() == (dear, TERMS.rate)
    market.registry.delist(many, sender=attacker)  # the stake that is left covers the other one
    assert market.cheapest() == (few, 7)
    market.stake(POOR, 1)
    market.set_active(many, True, sender=POOR)
    assert market.cheapest() == (many, 5)


def test_reverts_unless_one_basis(market: Market) -> None:
    for basis in (0, SECOND | TOKEN):
        with reverts("registry: not one basis"):
            market.cheapest(basis=basis)
