"""stake, and the views of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.contracts.harness import Actor, reverts
from tests.contracts.market import MINIMUM, Market, deploy_market
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


def test_has_minimum(market: Market, provider: Actor, rival: Actor) -> None:
    assert not market.staking.has_minimum(provider)
    market.stake(provider, MINIMUM - 1)
    assert not market.staking.has_minimum(provider)
    market.stake(provider, 1)
    assert market.staking.has_minimum(provider)
    market.stake(provider, 1)
    assert market.staking.has_minimum(provider)
    assert not market.staking.has_minimum(rival)


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
