"""offers, offers_of, active_offers."""

from __future__ import annotations

from tests.contracts.harness import Actor, reverts
from tests.contracts.market import MINIMUM, SECOND, TERMS, TOKEN, Market

LAST = 2**256 - 1


def test_pages_of_offers(market: Market, provider: Actor, rival: Actor) -> None:
    """Two providers in turn, so that neither's own numbers are without gaps."""
    market.register(rival)
    for each in (provider, rival):
        market.stake(each, 3 * MINIMUM)
    ids = []
    for i in range(105):
        ids.append(market.create((provider, rival)[i % 2], TERMS.but(slots=1 + i)))
    registry = market.registry
    assert registry.offer_count() == 105
    for ids_of_list, page in (
        (ids, lambda start, limit: list(registry.offers(start, limit))),
        (ids[::2], lambda start, limit: list(registry.offers_of(provider, start, limit))),
        (ids[1::2], lambda start, limit: list(registry.offers_of(rival, start, limit))),
        (ids, lambda start, limit: market.page(basis=SECOND, start=start, limit=limit)),
        (ids, lambda start, limit: market.page(basis=TOKEN, start=start, limit=limit)),
    ):
        count = len(ids_of_list)
        assert page(0, LAST) == ids_of_list[:100]
        assert page(0, 7) == ids_of_list[:7]
        assert page(3, 100) == ids_of_list[3:103]
        assert page(count - 1, LAST) == ids_of_list[-1:]
        assert page(0, 0) == page(count, 1) == page(LAST, LAST) == []


def test_inactive_offers_stay_in_the_lists_of_all(market: Market, provider: Actor) -> None:
    ids = [market.create(provider, TERMS.but(slots=1 + i)) for i in range(3)]
    market.set_active(ids[0], False, sender=provider)
    assert list(market.registry.offers(0, 9)) == ids
    assert list(market.registry.offers_of(provider, 0, 9)) == ids
    assert sorted(market.page()) == sorted(ids[1:])


def test_active_offers_are_of_one_model_and_token(market: Market, provider: Actor) -> None:
    others = [TERMS.but(model="another"), TERMS.but(token=Actor("token"))]
    ids = [market.create(provider, terms) for terms in (TERMS, *others)]
    assert [market.page(terms) for terms in (TERMS, *others)] == [[id] for id in ids]
    assert market.page(TERMS.but(model="another", token=Actor("token"))) == []


def test_a_stranger_has_no_offers(market: Market, attacker: Actor) -> None:
    assert list(market.registry.offers_of(attacker, 0, 10)) == []


def test_active_offers_revert_unless_one_basis(market: Market) -> None:
    for basis in (0, SECOND | TOKEN):
        with reverts("registry: not one basis"):
            market.page(basis=basis)
    with reverts("0x"):
        market.page(basis=4)
