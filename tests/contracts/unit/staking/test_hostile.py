"""Receivers and tokens that misbehave, and gifts that nobody asked for."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.contracts.harness import Actor, reverts
from tests.contracts.market import PERIOD, Market, deploy_market
from tests.fastchain import Chain, Contract

SAFE = Actor("safe")


def test_a_receiver_that_refuses_keeps_its_claim(
    coins: Market, deploy: Callable[..., Contract], provider: Actor
) -> None:
    refuser = deploy("RevertingReceiver")
    coins.stake(provider, 300)
    coins.staking.request_unbond(provider, 300, sender=provider)
    coins.evm.sleep(PERIOD)
    with reverts("assets: receiver refused"):
        coins.staking.withdraw(provider, refuser.address, sender=provider)
    coins.staking.withdraw(provider, SAFE, sender=provider)
    assert coins.held(SAFE) == 300


@pytest.mark.parametrize("again", ["withdraw", "request_unbond", "cancel_unbond", "stake_of"])
def test_a_receiver_that_calls_back_gets_no_more(
    coins: Market, deploy: Callable[..., Contract], provider: Actor, attacker: Actor, again: str
) -> None:
    """The receiver is itself a provider, so that it may make every call that an owner may."""
    evm, staking, thief = coins.evm, coins.staking, deploy("ReentrantReceiver")

    def act(data: bytes, target: Contract = staking, value: int = 0) -> None:
        thief.execute(target.address, value, data, sender=attacker)

    register = coins.registry.encode("register", attacker, attacker, 1, "https://t.example", "", bytes(32), 0)
    act(register, coins.registry)
    coins.stake(provider, 5_000)  # somebody else's, to be stolen
    evm.set_balance(thief.address, 1_000)
    act(staking.encode("stake", thief.address, 1_000), value=1_000)
    act(staking.encode("request_unbond", thief.address, 100))
    evm.sleep(PERIOD)
    act(staking.encode("request_unbond", thief.address, 50))
    payloads = {
        "withdraw": staking.encode("withdraw", thief.address, thief.address),
        "request_unbond": staking.encode("request_unbond", thief.address, 1),
        "cancel_unbond": staking.encode("cancel_unbond", thief.address),
        "stake_of": staking.encode("stake_of", thief.address),
    }
    thief.arm(staking.address, payloads[again], sender=attacker)
    receipt = thief.execute(
        staking.address, 0, staking.encode("withdraw", thief.address, thief.address), sender=attacker
    )
    assert receipt.log("CalledBack")["success"] is False
    assert receipt.log("Unstaked")["amount"] == coins.held(thief.address) == 100
    assert staking.stake_of(thief.address) == 850
    assert staking.slashable(thief.address) == 900
    assert coins.held(staking.address) == 5_900


def test_a_token_that_fails_can_be_tried_again(
    evm: Chain, deploy: Callable[..., Contract], provider: Actor, slasher: Actor
) -> None:
    token = deploy("BlockingToken")
    market = deploy_market(evm, deploy, slasher, token)
    market.register(provider)
    market.stake(provider, 10)
    market.staking.request_unbond(provider, 10, sender=provider)
    evm.sleep(PERIOD)
    token.set_blocked(SAFE, True, sender=provider)
    with reverts("token: blocked"):
        market.staking.withdraw(provider, SAFE, sender=provider)
    market.staking.withdraw(provider, provider, sender=provider)
    assert market.held(provider) == 10


def test_a_receiver_that_refuses_undoes_the_slash(
    coins: Market, deploy: Callable[..., Contract], provider: Actor, slasher: Actor
) -> None:
    refuser = deploy("RevertingReceiver")
    coins.stake(provider, 1_600)
    coins.staking.request_unbond(provider, 600, sender=provider)
    with reverts("assets: receiver refused"):
        coins.staking.slash(provider, 1_100, refuser.address, sender=slasher)
    assert coins.staking.stake_of(provider) == 1_000
    assert coins.staking.slashable(provider) == 1_600


def test_a_token_that_calls_back_while_it_is_measured_is_stopped(
    evm: Chain, deploy: Callable[..., Contract], provider: Actor, slasher: Actor
) -> None:
    """A stake within a stake would be counted twice."""
    token = deploy("ReentrantToken")
    market = deploy_market(evm, deploy, slasher, token)
    market.register(provider)
    market.give(provider, 100)
    market.give(token.address, 100)
    approve = token.encode("approve", market.staking.address, 100)
    token.execute(token.address, 0, approve, sender=provider)
    inner = market.staking.encode("stake", provider, 10)
    token.arm(market.staking.address, inner, False, False, sender=provider)
    receipt = market.staking.stake(provider, 100, sender=provider)
    assert receipt.log("CalledBack")["success"] is False
    assert receipt.log("Staked")["amount"] == market.staking.stake_of(provider) == 100
    assert market.held(market.staking.address) == 100


def test_gifts_change_nothing_and_are_lost(market: Market, provider: Actor, attacker: Actor) -> None:
    """Coins arrive by force where a contract destroys itself in their favour; here the node does it."""
    market.give(market.staking.address, 1_000)
    market.stake(provider, 10)
    market.staking.request_unbond(provider, 10, sender=provider)
    market.evm.sleep(PERIOD)
    market.staking.withdraw(provider, SAFE, sender=provider)
    assert market.held(SAFE) == 10
    assert market.held(market.staking.address) == 1_000
    assert market.slash(provider, 1_000).result == 0


def test_nobody_can_exhaust_the_queue_of_another(market: Market, provider: Actor, attacker: Actor) -> None:
    market.stake(provider, 100, funder=attacker)
    with reverts("staking: not the owner"):
        market.staking.request_unbond(provider, 1, sender=attacker)
    assert list(market.staking.unbonding(provider)) == []
