"""withdraw."""

from __future__ import annotations

import pytest

from tests.contracts.harness import Actor, reverts
from tests.contracts.market import MINIMUM, PERIOD, ZERO, Market

SAFE = Actor("safe")


@pytest.fixture(autouse=True)
def staked(market: Market, provider: Actor, rival: Actor) -> None:
    market.stake(provider, MINIMUM)
    market.stake(rival, MINIMUM)


def test_pays_out_after_the_period(market: Market, provider: Actor) -> None:
    market.staking.request_unbond(provider, 300, sender=provider)
    market.evm.sleep(PERIOD)
    receipt = market.staking.withdraw(provider, SAFE, sender=provider)
    assert receipt.log("Unstaked") == {"provider": provider, "to": SAFE, "amount": 300}
    assert market.held(SAFE) == 300
    assert market.held(market.staking.address) == 2 * MINIMUM - 300
    assert market.staking.slashable(provider) == market.staking.stake_of(provider) == MINIMUM - 300
    assert list(market.staking.unbonding(provider)) == []


def test_not_a_second_before(market: Market, provider: Actor) -> None:
    market.staking.request_unbond(provider, 300, sender=provider)
    market.evm.sleep(PERIOD - 1)
    with reverts("staking: nothing to withdraw yet"):
        market.staking.withdraw(provider, SAFE, sender=provider)
    market.evm.sleep(1)
    market.staking.withdraw(provider, SAFE, sender=provider)


def test_pays_all_that_is_due_and_nothing_else(market: Market, provider: Actor) -> None:
    start = market.evm.now
    for amount in (1, 20, 300, 4_000):
        market.staking.request_unbond(provider, amount, sender=provider)
        market.evm.sleep(1_000)
    market.evm.at_time(start + PERIOD + 1_000)
    assert market.staking.withdraw(provider, SAFE, sender=provider).log("Unstaked")["amount"] == 21
    left = [(300, start + 2_000 + PERIOD), (4_000, start + 3_000 + PERIOD)]
    assert list(market.staking.unbonding(provider)) == left
    with reverts("staking: nothing to withdraw yet"):
        market.staking.withdraw(provider, SAFE, sender=provider)
    market.evm.sleep(PERIOD)
    assert market.staking.withdraw(provider, SAFE, sender=provider).log("Unstaked")["amount"] == 4_300
    assert market.held(SAFE) == 4_321


def test_works_with_active_offers(market: Market, provider: Actor) -> None:
    market.stake(provider, 10)
    market.create(provider)
    market.staking.request_unbond(provider, 10, sender=provider)
    market.evm.sleep(PERIOD)
    market.staking.withdraw(provider, SAFE, sender=provider)
    assert market.held(SAFE) == 10


def test_reverts_for_strangers(market: Market, provider: Actor, rival: Actor, attacker: Actor) -> None:
    market.staking.request_unbond(provider, 300, sender=provider)
    market.evm.sleep(PERIOD)
    for stranger in (attacker, rival, Actor("payee"), Actor("signer"), market.staking.slasher()):
        with reverts("staking: not the owner"):
            market.staking.withdraw(provider, stranger, sender=stranger)


def test_reverts_to_zero(market: Market, provider: Actor) -> None:
    market.staking.request_unbond(provider, 300, sender=provider)
    market.evm.sleep(PERIOD)
    with reverts("staking: zero receiver"):
        market.staking.withdraw(provider, ZERO, sender=provider)


def test_reverts_where_nothing_is_queued(market: Market, provider: Actor) -> None:
    with reverts("staking: nothing to withdraw yet"):
        market.staking.withdraw(provider, SAFE, sender=provider)
