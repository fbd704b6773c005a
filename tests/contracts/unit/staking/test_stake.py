"""stake, and the views of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.contracts.harness import Actor, reverts
from tests.contracts.market import COVER, MINIMUM, Market, deploy_market
from tests.fastchain import Chain, Contract


def test_stakes(market: Market, provider: Actor) -> None:
    receipt = market.stake(provider, 70)
    assert receipt.log("Staked") == {"provider": provider, "funder": provider, "amount": 70, "stake": 70}
    assert market.staking.stake_of(provider) == market.staking.slashable(provider) == 70
    assert list(market.staking.unbonding(provider)) == []
    assert market.held(market.staking.address) == 70
    assert market.held(provider) == 0


def test_adds_up_whoever_pays(market: Market, provider: Actor, rival: Actor, attacker: Actor) -> None:
    market.stake(provider, 70)
    receipt = market.stake(provider, 30, funder=attacker)
    assert receipt.log("Staked") == {"provider": provider, "funder": attacker, "amount": 30, "stake": 100}
    assert market.staking.stake_of(provider) == 100
    assert market.staking.stake_of(attacker) == market.staking.stake_of(rival) == 0


def test_covers_from_the_minimum_on(market: Market, provider: Actor, rival: Actor) -> None:
    few = range(0, MINIMUM // COVER + 1, 250)
    for step, enough in ((MINIMUM - 1, False), (1, True), (1, True)):
        market.stake(provider, step)
        for slots in few:
            assert market.staking.covers(provider, slots) is enough
        assert not market.staking.covers(provider, MINIMUM // COVER + 1)
    assert not market.staking.covers(rival, 0)


def test_covers_each_slot_beyond_the_minimum(market: Market, provider: Actor) -> None:
    slots = 5 * MINIMUM // COVER
    market.stake(provider, slots * COVER - 1)
    assert market.staking.covers(provider, slots - 1)
    assert not market.staking.covers(provider, slots)
    market.stake(provider, 1)
    assert market.staking.covers(provider, slots)
    assert not market.staking.covers(provider, slots + 1)
    assert not market.staking.covers(provider, 2**64 - 1)


def test_only_bonded_stake_covers(market: Market, provider: Actor) -> None:
    market.stake(provider, MINIMUM)
    market.staking.request_unbond(provider, 1, sender=provider)
    assert not market.staking.covers(provider, 0)
    market.staking.cancel_unbond(provider, sender=provider)
    market.freeze(provider, MINIMUM)  # what is frozen is still there to be slashed
    assert market.staking.covers(provider, 1)


def test_the_largest_cover_of_the_most_slots_overflows_nothing(
    evm: Chain, deploy: Callable[..., Contract], provider: Actor, slasher: Actor
) -> None:
    market = deploy_market(evm, deploy, slasher, deploy("PlainToken"), 2**128 - 1, 2**128 - 1)
    market.register(provider)
    market.stake(provider, 2**128 - 1)
    assert market.staking.covers(provider, 1)
    assert not market.staking.covers(provider, 2)
    assert not market.staking.covers(provider, 2**64 - 1)


def test_takes_only_the_amount_by_allowance(tokens: Market, provider: Actor) -> None:
    tokens.give(provider, 100)
    tokens.asset.approve(tokens.staking.address, 40, sender=provider)
    tokens.staking.stake(provider, 40, sender=provider)
    assert tokens.held(provider) == 60
    with reverts("0x"):
        tokens.staking.stake(provider, 1, sender=provider)


def test_credits_what_arrived(evm: Chain, deploy: Callable[..., Contract], provider: Actor, slasher: Actor) -> None:
    token = deploy("FeeToken")
    token.set_fee(100, sender=provider)
    market = deploy_market(evm, deploy, slasher, token)
    market.register(provider)
    receipt = market.stake(provider, 1_000)
    assert receipt.log("Staked") == {"provider": provider, "funder": provider, "amount": 990, "stake": 990}
    assert market.staking.stake_of(provider) == market.held(market.staking.address) == 990
    token.set_fee(10_000, sender=provider)
    with reverts("staking: nothing arrived"):
        market.stake(provider, 1_000)


def test_donations_are_nobodys_stake(market: Market, provider: Actor) -> None:
    market.stake(provider, 70)
    market.give(market.staking.address, 1_000)
    market.stake(provider, 1)
    assert market.staking.stake_of(provider) == 71


def test_reverts_for_an_unknown_provider(market: Market, attacker: Actor) -> None:
    with reverts("staking: no such provider"):
        market.stake(attacker)


def test_reverts_for_nothing(market: Market, provider: Actor) -> None:
    with reverts("staking: nothing arrived"):
        market.stake(provider, 0)


@pytest.mark.parametrize("value", [0, 9, 11])
def test_reverts_where_the_value_is_not_the_amount(coins: Market, provider: Actor, value: int) -> None:
    coins.give(provider, 100)
    with reverts("staking: value is not the amount"):
        coins.staking.stake(provider, 10, sender=provider, value=value)


def test_reverts_where_value_comes_with_a_token(tokens: Market, provider: Actor) -> None:
    tokens.give(provider, 100)
    tokens.evm.set_balance(provider, 100)
    with reverts("staking: value sent with a token"):
        tokens.staking.stake(provider, 10, sender=provider, value=1)


def test_reverts_beyond_what_a_word_holds(tokens: Market, provider: Actor) -> None:
    tokens.stake(provider, 2**128 - 1)
    with reverts("staking: stake too large"):
        tokens.stake(provider, 1)
    tokens.staking.request_unbond(provider, 5, sender=provider)
    with reverts("staking: stake too large"):
        tokens.stake(provider, 1)
    tokens.staking.cancel_unbond(provider, sender=provider)
    assert tokens.staking.stake_of(provider) == 2**128 - 1


def test_reverts_where_the_token_refuses(
    evm: Chain, deploy: Callable[..., Contract], provider: Actor, slasher: Actor
) -> None:
    market = deploy_market(evm, deploy, slasher, deploy("FalseToken"))
    market.register(provider)
    with reverts("assets: token refused"):
        market.staking.stake(provider, 1, sender=provider)
