"""A provider registers, stakes and lists on BSC"""

from __future__ import annotations

import pytest

from tests.contracts.fork.chain import BscChain
from tests.contracts.fork.money import RealToken
from tests.contracts.harness import Actor, Money, Terms, open_stream, reverts, state_of
from tests.contracts.market import MINIMUM, PERIOD, TERMS, Market
from tests.fastchain import Contract


@pytest.fixture
def provider(market: Market, payee: Actor) -> Actor:
    market.register(payee, payee=payee)
    return payee


def test_an_offer_needs_the_minimum_stake(market: Market, provider: Actor, money: Money) -> None:
    terms = TERMS.but(token=money.address)
    market.stake(provider, MINIMUM - 1)
    with reverts("registry: too little stake for the slots"):
        market.create(provider, terms)
    market.stake(provider, 1)
    offer = market.create(provider, terms)
    assert offer == terms.id(provider)
    assert market.page(terms) == [offer]
    assert market.cheapest(terms) == (offer, terms.rate)


def test_a_stream_pays_for_an_offer(
    market: Market, provider: Actor, money: Money, pay: Contract, payer: Actor, evm: BscChain
) -> None:
    terms = TERMS.but(token=money.address)
    market.stake(provider)
    offer = market.create(provider, terms)
    _, active, _, _, found = market.offer(offer)
    assert active
    stream = Terms(payer, market.record(provider)[2], found.token, offer_id=offer)
    open_stream(pay, money, stream, rate=found.rate)
    evm.sleep(60)
    assert pay.withdrawable(stream.id) == state_of(pay, stream).cost(evm.now) == -(-60 * terms.rate // 10**6)


def test_the_stake_comes_back(market: Market, provider: Actor, token: RealToken, evm: BscChain) -> None:
    market.stake(provider)
    offer = market.create(provider, TERMS.but(token=token.address))
    with reverts("staking: active offers need their cover"):
        market.staking.request_unbond(provider, 1, sender=provider)
    market.set_active(offer, False, sender=provider)
    market.staking.request_unbond(provider, MINIMUM, sender=provider)
    evm.sleep(PERIOD)
    held, fees = evm.balance(provider), evm.fees[provider]
    market.staking.withdraw(provider, provider, sender=provider)
    assert evm.balance(provider) - held == MINIMUM - (evm.fees[provider] - fees)
    assert evm.balance(market.staking.address) == 0
