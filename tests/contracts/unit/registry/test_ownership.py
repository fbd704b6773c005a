"""transfer_ownership, accept_ownership."""

from __future__ import annotations

from tests.contracts.harness import Actor, reverts
from tests.contracts.market import TERMS, ZERO, Market
from tests.fastchain import Contract

BUYER = Actor("buyer")


def test_offers_to_another_owner(market: Market, provider: Actor) -> None:
    before = market.record(provider)
    receipt = market.registry.transfer_ownership(provider, BUYER, sender=provider)
    assert receipt.log("OwnershipTransferStarted") == {
        "provider": provider,
        "owner": provider,
        "pending_owner": BUYER,
    }
    assert market.record(provider) == (provider, BUYER, *before[2:])
    assert market.registry.owner_of(provider) == provider


def test_changes_hands_when_accepted(market: Market, provider: Actor) -> None:
    before = market.record(provider)
    market.registry.transfer_ownership(provider, BUYER, sender=provider)
    receipt = market.registry.accept_ownership(provider, sender=BUYER)
    assert receipt.log("OwnershipTransferred") == {"provider": provider, "previous": provider, "owner": BUYER}
    assert market.record(provider) == (BUYER, ZERO, *before[2:])
    assert market.registry.owner_of(provider) == BUYER
    assert market.registry.owner_of(BUYER) == ZERO


def test_only_the_new_owner_acts_after_it(market: Market, provider: Actor) -> None:
    market.registry.transfer_ownership(provider, BUYER, sender=provider)
    market.registry.accept_ownership(provider, sender=BUYER)
    with reverts("registry: not the owner"):
        market.registry.create_offer(provider, TERMS.struct, sender=provider)
    offer_id = market.registry.create_offer(provider, TERMS.struct, sender=BUYER).result
    assert offer_id == TERMS.id(provider)
    second = market.registry.transfer_ownership(provider, provider, sender=BUYER)
    assert second.log("OwnershipTransferStarted")["owner"] == BUYER
    back = market.registry.accept_ownership(provider, sender=provider)
    assert back.log("OwnershipTransferred") == {"provider": provider, "previous": BUYER, "owner": provider}


def test_the_offer_can_be_withdrawn(market: Market, provider: Actor) -> None:
    market.registry.transfer_ownership(provider, BUYER, sender=provider)
    receipt = market.registry.transfer_ownership(provider, ZERO, sender=provider)
    assert receipt.log("OwnershipTransferStarted")["pending_owner"] == ZERO
    with reverts("registry: not the pending owner"):
        market.registry.accept_ownership(provider, sender=BUYER)


def test_only_the_last_one_offered_may_accept(market: Market, provider: Actor, rival: Actor) -> None:
    market.registry.transfer_ownership(provider, BUYER, sender=provider)
    market.registry.transfer_ownership(provider, rival, sender=provider)
    with reverts("registry: not the pending owner"):
        market.registry.accept_ownership(provider, sender=BUYER)
    market.registry.accept_ownership(provider, sender=rival)
    assert market.registry.owner_of(provider) == rival


def test_accept_works_once(registry: Contract, provider: Actor) -> None:
    registry.transfer_ownership(provider, BUYER, sender=provider)
    registry.accept_ownership(provider, sender=BUYER)
    with reverts("registry: not the pending owner"):
        registry.accept_ownership(provider, sender=BUYER)


def test_transfer_reverts_for_strangers(registry: Contract, provider: Actor, attacker: Actor) -> None:
    with reverts("registry: not the owner"):
        registry.transfer_ownership(provider, attacker, sender=attacker)


def test_transfer_reverts_for_the_pending_owner(registry: Contract, provider: Actor) -> None:
    registry.transfer_ownership(provider, BUYER, sender=provider)
    with reverts("registry: not the owner"):
        registry.transfer_ownership(provider, BUYER, sender=BUYER)


def test_accept_reverts_for_strangers(registry: Contract, provider: Actor, attacker: Actor) -> None:
    for stranger in (attacker, provider):
        with reverts("registry: not the pending owner"):
            registry.accept_ownership(provider, sender=stranger)
