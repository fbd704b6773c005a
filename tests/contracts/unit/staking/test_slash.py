"""slash."""

from __future__ import annotations

import pytest

from tests.contracts.harness import Actor, reverts
from tests.contracts.market import PERIOD, ZERO, Market
from tests.fastchain import Receipt

VICTIM = Actor("victim")
QUEUE = (100, 200, 300)


@pytest.fixture(autouse=True)
def staked(market: Market, provider: Actor, rival: Actor) -> None:
    """1,000 bonded, and 100, 200, 300 in the queue."""
    market.stake(provider, 1_600)
    market.stake(rival, 5_000)
    for amount in QUEUE:
        market.staking.request_unbond(provider, amount, sender=provider)
        market.evm.sleep(10)


def slash(market: Market, provider: Actor, amount: int) -> Receipt:
    return market.staking.slash(provider, amount, VICTIM, sender=market.staking.slasher())


@pytest.mark.parametrize(
    ("amount", "taken", "bonded", "queue"),
    [
        (1, 1, 999, (100, 200, 300)),
        (1_000, 1_000, 0, (100, 200, 300)),
        (1_001, 1_001, 0, (100, 200, 299)),
        (1_299, 1_299, 0, (100, 200, 1)),
        (1_300, 1_300, 0, (100, 200)),
        (1_350, 1_350, 0, (100, 150)),
        (1_500, 1_500, 0, (100,)),
        (1_599, 1_599, 0, (1,)),
        (1_600, 1_600, 0, ()),
        (1_601, 1_600, 0, ()),
        (2**256 - 1, 1_600, 0, ()),
    ],
)
def test_takes_bonded_stake_first_then_the_youngest_entry(
    market: Market, provider: Actor, rival: Actor, amount: int, taken: int, bonded: int, queue: tuple[int, ...]
) -> None:
    releases = [release_at for _, release_at in market.staking.unbonding(provider)]
    receipt = slash(market, provider, amount)
    assert receipt.result == taken
    assert receipt.log("Slashed") == {
        "provider": provider,
        "to": VICTIM,
        "amount": taken,
        "stake": bonded,
        "unbonding": sum(queue),
    }
    assert market.staking.stake_of(provider) == bonded
    assert market.staking.slashable(provider) == bonded + sum(queue)
    assert list(market.staking.unbonding(provider)) == list(zip(queue, releases, strict=False))
    assert market.held(VICTIM) == taken
    assert market.held(market.staking.address) == 6_600 - taken
    assert market.staking.stake_of(rival) == 5_000


def test_the_queue_stays_slashable_until_it_is_withdrawn(market: Market, provider: Actor) -> None:
    market.evm.sleep(2 * PERIOD)
    assert slash(market, provider, 1_450).result == 1_450
    market.staking.withdraw(provider, provider, sender=provider)
    assert market.held(provider) == 150
    assert slash(market, provider, 1).result == 0


def test_what_is_left_in_the_queue_still_leaves(market: Market, provider: Actor) -> None:
    slash(market, provider, 1_350)
    market.stake(provider, 40)
    market.staking.request_unbond(provider, 40, sender=provider)
    assert [amount for amount, _ in market.staking.unbonding(provider)] == [100, 150, 40]
    market.evm.sleep(PERIOD)
    market.staking.withdraw(provider, provider, sender=provider)
    assert market.held(provider) == 290


def test_a_full_queue_can_be_taken_whole(market: Market, provider: Actor) -> None:
    for _ in range(13):
        market.staking.request_unbond(provider, 10, sender=provider)
    assert slash(market, provider, 2_000).result == 1_600
    for _ in range(16):
        market.stake(provider, 1)
        market.staking.request_unbond(provider, 1, sender=provider)
    assert market.staking.slashable(provider) == 16


@pytest.mark.parametrize("amount", [0, 10])
def test_takes_nothing_where_there_is_nothing(market: Market, provider: Actor, amount: int) -> None:
    if amount:
        slash(market, provider, 1_600)
    receipt = slash(market, provider, amount)
    assert receipt.result == 0
    assert receipt.logs == []


def test_a_stranger_has_nothing_to_take(market: Market, attacker: Actor) -> None:
    assert slash(market, attacker, 10).result == 0


def test_reverts_for_all_but_the_slasher(market: Market, provider: Actor, attacker: Actor) -> None:
    for sender in (attacker, provider, market.evm.accounts[0], market.registry.address):
        with reverts("staking: not the slasher"):
            market.staking.slash(provider, 1, sender, sender=sender)


def test_reverts_to_zero(market: Market, provider: Actor, slasher: Actor) -> None:
    with reverts("staking: zero receiver"):
        market.staking.slash(provider, 1, ZERO, sender=slasher)
