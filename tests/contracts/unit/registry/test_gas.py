"""What the registry costs, against its budget; the exact figures are in the gas snapshot."""

from __future__ import annotations

import random

import pytest

from tests.contracts.harness import Actor
from tests.contracts.market import COVER, MINIMUM, SECOND, TOKEN, ZERO, Market, OfferTerms

OFFERS = 1_000
BUDGET = 1_600_000
"""Gas of `cheapest_offer` over 1,000 offers, the 21,000 of a transaction included."""


def create_many(market: Market, provider: Actor, offers: list[OfferTerms]) -> None:
    """Many transactions to a block."""
    rpc, registry = market.evm.rpc, market.registry
    rpc("evm_setBlockGasLimit", hex(2 * 10**9))
    nonce = int(rpc("eth_getTransactionCount", provider, "latest"), 16)
    base = {"from": provider, "to": registry.address, "gas": hex(600_000), "gasPrice": "0x0"}
    calls = []
    for i, terms in enumerate(offers):
        data = registry.encode("create_offer", provider, terms.struct).hex()
        calls.append(("eth_sendTransaction", (base | {"nonce": hex(nonce + i), "data": "0x" + data},)))
    before = registry.offer_count()
    for i in range(0, len(calls), 250):
        rpc.batch(calls[i : i + 250])
        rpc("evm_mine")
    assert registry.offer_count() == before + len(offers)


def gas_of_cheapest(market: Market, terms: OfferTerms, basis: int) -> int:
    data = market.registry.encode("cheapest_offer", terms.model, terms.token, basis)
    tx = {"from": ZERO, "to": market.registry.address, "data": "0x" + data.hex()}
    return int(market.evm.rpc("eth_estimateGas", tx), 16)


@pytest.mark.parametrize("order", ["ascending", "descending", "random"])
def test_cheapest_of_a_thousand(market: Market, provider: Actor, order: str) -> None:
    prices = [10_000 + 7 * i for i in range(OFFERS)]
    if order == "descending":
        prices.reverse()
    elif order == "random":
        random.Random(1).shuffle(prices)
    offers = [OfferTerms(rate=price, prompt_price=0, completion_price=price * 3) for price in prices]
    market.stake(provider, sum(terms.slots for terms in offers) * COVER)
    create_many(market, provider, offers)
    best = offers[prices.index(10_000)]
    assert market.cheapest(best, SECOND) == (best.id(provider), 10_000)
    assert market.cheapest(best, TOKEN) == (best.id(provider), 30_000)
    gas = gas_of_cheapest(market, best, SECOND)
    print(f"cheapest_offer of {OFFERS}, {order}: {gas}")
    assert gas < BUDGET


def test_register(bare: Market, provider: Actor) -> None:
    bare.register(Actor("first"))
    gas = bare.register(provider).gas_used
    print(f"register: {gas}")
    assert gas < 400_000


def test_stake(market: Market, rival: Actor) -> None:
    market.register(rival)
    first, second = market.stake(rival).gas_used, market.stake(rival, MINIMUM).gas_used
    print(f"stake, first and later: {first} {second}")
    assert first < 65_000
    assert second < 50_000


def test_create_offer(market: Market, provider: Actor) -> None:
    gas = []
    for number in range(12):
        terms = OfferTerms(rate=1_000 + number)
        gas.append(market.registry.create_offer(provider, terms.struct, sender=provider).gas_used)
    by_second = OfferTerms(rate=77, prompt_price=0, completion_price=0)
    gas_one = market.registry.create_offer(provider, by_second.struct, sender=provider).gas_used
    print(f"create_offer, both bases: {gas}; by the second only: {gas_one}")
    off = market.registry.set_offer_active(by_second.id(provider), False, sender=provider).gas_used
    on = market.registry.set_offer_active(by_second.id(provider), True, sender=provider).gas_used
    print(f"set_offer_active off {off}, on {on}")
    rotate = market.registry.set_signer(provider, Actor("next signer"), sender=provider).gas_used
    print(f"set_signer {rotate}")
    assert max(gas[1:]) < 400_000
