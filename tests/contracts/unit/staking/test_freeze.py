"""freeze, unfreeze, and what they do to withdrawals."""

from __future__ import annotations

import pytest

from tests.contracts.harness import Actor, reverts
from tests.contracts.market import MINIMUM, PERIOD, TERMS, Market

SAFE = Actor("safe")
QUEUE = (100, 200, 300)


@pytest.fixture(autouse=True)
def staked(market: Market, provider: Actor, rival: Actor) -> None:
    """1,000 bonded, and 100, 200, 300 in the queue."""
    market.stake(provider, 1_600)
    market.stake(rival, 5_000)
    for amount in QUEUE:
        market.staking.request_unbond(provider, amount, sender=provider)


def amounts(market: Market, provider: Actor) -> tuple[int, ...]:
    return tuple(amount for amount, _ in market.staking.unbonding(provider))


def test_adds_up_and_comes_back(market: Market, provider: Actor, rival: Actor) -> None:
    assert market.freeze(provider, 70).log("StakeFrozen") == {"provider": provider, "amount": 70, "frozen": 70}
    assert market.freeze(provider, 30).log("StakeFrozen") == {"provider": provider, "amount": 30, "frozen": 100}
    assert market.unfreeze(provider, 70).log("StakeUnfrozen") == {"provider": provider, "amount": 70, "frozen": 30}
    assert market.staking.frozen(provider) == 30
    assert market.staking.frozen(rival) == 0
    assert market.unfreeze(provider, 30).log("StakeUnfrozen") == {"provider": provider, "amount": 30, "frozen": 0}
    assert market.staking.stake_of(provider) == 1_000
    assert amounts(market, provider) == QUEUE
    assert market.held(market.staking.address) == 6_600


@pytest.mark.parametrize(
    ("frozen", "paid", "left"),
    [
        (1, 600, ()),
        (1_000, 600, ()),
        (1_001, 599, (1,)),
        (1_299, 301, (299,)),
        (1_300, 300, (300,)),
        (1_301, 299, (1, 300)),
        (1_500, 100, (200, 300)),
        (1_501, 99, (1, 200, 300)),
        (1_599, 1, (99, 200, 300)),
    ],
)
def test_withdraw_leaves_what_is_frozen_and_no_more(
    market: Market, provider: Actor, frozen: int, paid: int, left: tuple[int, ...]
) -> None:
    releases = [release_at for _, release_at in market.staking.unbonding(provider)]
    market.freeze(provider, frozen)
    market.evm.sleep(PERIOD)
    receipt = market.staking.withdraw(provider, SAFE, sender=provider)
    assert receipt.log("Unstaked") == {"provider": provider, "to": SAFE, "amount": paid}
    assert market.held(SAFE) == paid
    assert market.staking.slashable(provider) == 1_600 - paid >= frozen
    assert list(market.staking.unbonding(provider)) == list(zip(left, releases[3 - len(left) :], strict=True))
    if left:
        with reverts("staking: all of it is frozen"):
            market.staking.withdraw(provider, SAFE, sender=provider)
        market.unfreeze(provider, frozen)
        market.staking.withdraw(provider, SAFE, sender=provider)
    assert market.held(SAFE) == 600


@pytest.mark.parametrize("frozen", [1_600, 1_601, 2**255])
def test_as_much_as_there_is_holds_back_everything(market: Market, provider: Actor, frozen: int) -> None:
    market.freeze(provider, frozen)
    market.evm.sleep(PERIOD)
    with reverts("staking: all of it is frozen"):
        market.staking.withdraw(provider, SAFE, sender=provider)
    assert amounts(market, provider) == QUEUE
    market.unfreeze(provider, frozen)
    market.staking.withdraw(provider, SAFE, sender=provider)
    assert market.held(SAFE) == 600


def test_more_than_there_is_holds_back_what_comes_later(market: Market, provider: Actor) -> None:
    market.freeze(provider, 2_000)
    market.stake(provider, 450)
    market.evm.sleep(PERIOD)
    market.staking.withdraw(provider, SAFE, sender=provider)
    assert market.held(SAFE) == 50
    assert market.staking.slashable(provider) == 2_000


def test_does_not_ripen_the_queue(market: Market, provider: Actor) -> None:
    market.freeze(provider, 1)
    with reverts("staking: nothing to withdraw yet"):
        market.staking.withdraw(provider, SAFE, sender=provider)
    market.unfreeze(provider, 1)
    with reverts("staking: nothing to withdraw yet"):
        market.staking.withdraw(provider, SAFE, sender=provider)


def test_what_is_queued_later_holds_back_nothing_that_is_due(market: Market, provider: Actor) -> None:
    market.freeze(provider, 1_000)
    market.evm.sleep(PERIOD)
    market.staking.request_unbond(provider, 1_000, sender=provider)
    market.staking.withdraw(provider, SAFE, sender=provider)
    assert market.held(SAFE) == 600
    assert amounts(market, provider) == (1_000,)


def test_a_cut_entry_keeps_its_place_in_a_full_queue(market: Market, provider: Actor) -> None:
    for _ in range(13):
        market.staking.request_unbond(provider, 1, sender=provider)
    market.freeze(provider, 1_590)
    market.evm.sleep(PERIOD)
    market.staking.withdraw(provider, SAFE, sender=provider)
    assert amounts(market, provider) == (90, 200, 300, *[1] * 13)
    with reverts("staking: exit queue is full"):
        market.staking.request_unbond(provider, 1, sender=provider)
    market.unfreeze(provider, 1_590)
    market.staking.withdraw(provider, SAFE, sender=provider)
    assert market.held(SAFE) == 613
    assert amounts(market, provider) == ()


def test_a_frozen_stake_may_be_slashed_and_stays_counted(market: Market, provider: Actor) -> None:
    market.freeze(provider, 1_550)
    market.slash(provider, 1_200)
    assert (market.staking.stake_of(provider), amounts(market, provider)) == (0, (100, 200, 100))
    assert market.staking.frozen(provider) == 1_550
    market.evm.sleep(PERIOD)
    with reverts("staking: all of it is frozen"):
        market.staking.withdraw(provider, SAFE, sender=provider)
    market.unfreeze(provider, 1_550)
    assert market.slash(provider, 1_550).result == 400
    assert market.staking.frozen(provider) == market.staking.slashable(provider) == 0


def test_two_challenges_hold_back_both_penalties(market: Market, provider: Actor) -> None:
    market.freeze(provider, 800)
    market.freeze(provider, 700)
    market.evm.sleep(PERIOD)
    market.staking.withdraw(provider, SAFE, sender=provider)
    assert market.held(SAFE) == 100
    market.unfreeze(provider, 800)  # the first is lost
    assert market.slash(provider, 800).result == 800
    with reverts("staking: all of it is frozen"):
        market.staking.withdraw(provider, SAFE, sender=provider)
    market.unfreeze(provider, 700)  # the second is answered
    market.staking.withdraw(provider, SAFE, sender=provider)
    assert market.held(SAFE) == 600
    assert market.staking.slashable(provider) == 200


def test_leaves_the_offers_alone(market: Market, provider: Actor) -> None:
    market.stake(provider, MINIMUM)
    market.freeze(provider, 2 * MINIMUM)
    offer_id = market.create(provider)
    with reverts("registry: provider has its stake"):
        market.registry.delist(offer_id, sender=Actor("stranger"))
    assert market.cheapest() == (offer_id, TERMS.rate)


def test_nothing_may_be_frozen(market: Market, provider: Actor) -> None:
    assert market.freeze(provider, 0).log("StakeFrozen")["frozen"] == 0
    assert market.unfreeze(provider, 0).log("StakeUnfrozen")["frozen"] == 0
    market.evm.sleep(PERIOD)
    market.staking.withdraw(provider, SAFE, sender=provider)
    assert market.held(SAFE) == 600


def test_reverts_for_all_but_the_slasher(market: Market, provider: Actor, attacker: Actor) -> None:
    market.freeze(provider, 10)
    for sender in (attacker, provider, market.evm.accounts[0], market.registry.address):
        with reverts("staking: not the slasher"):
            market.staking.freeze(provider, 1, sender=sender)
        with reverts("staking: not the slasher"):
            market.staking.unfreeze(provider, 1, sender=sender)


def test_unfreeze_reverts_for_more_than_is_frozen(market: Market, provider: Actor, rival: Actor) -> None:
    market.freeze(provider, 10)
    for amount in (11, 2**256 - 1):
        with reverts("staking: more than is frozen"):
            market.unfreeze(provider, amount)
    with reverts("staking: more than is frozen"):
        market.unfreeze(rival, 1)


def test_freeze_reverts_beyond_a_word(market: Market, provider: Actor) -> None:
    market.freeze(provider, 2**256 - 1)
    with reverts("0x"):
        market.freeze(provider, 1)
