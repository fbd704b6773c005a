"""Staking beside its registry, once with the native coin and once with an ERC-20."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.contracts.harness import Actor
from tests.contracts.market import Market, deploy_market
from tests.fastchain import Chain, Contract


@pytest.fixture(scope="session")
def owner() -> Actor:
    """Registered a provider, which it still owns: the provider's id is its address."""
    return Actor("owner")


@pytest.fixture(scope="session")
def provider(owner: Actor) -> Actor:
    return owner


@pytest.fixture(scope="session")
def rival() -> Actor:
    """A second provider."""
    return Actor("rival")


@pytest.fixture(scope="session")
def slasher() -> Actor:
    return Actor("slasher")


@pytest.fixture(scope="module")
def markets(evm_of_module: Chain, deploy: Callable[..., Contract], slasher: Actor) -> dict[str, Market]:
    return {
        "coins": deploy_market(evm_of_module, deploy, slasher, None),
        "tokens": deploy_market(evm_of_module, deploy, slasher, deploy("PlainToken")),
    }


def with_providers(market: Market, *providers: Actor) -> Market:
    for each in providers:
        market.register(each)
    return market


@pytest.fixture
def coins(evm: Chain, markets: dict[str, Market], provider: Actor, rival: Actor) -> Market:
    return with_providers(markets["coins"], provider, rival)


@pytest.fixture
def tokens(evm: Chain, markets: dict[str, Market], provider: Actor, rival: Actor) -> Market:
    return with_providers(markets["tokens"], provider, rival)


@pytest.fixture(params=["coins", "tokens"])
def market(
    request: pytest.FixtureRequest, evm: Chain, markets: dict[str, Market], provider: Actor, rival: Actor
) -> Market:
    """Provider and rival are registered, and nothing is staked. A test that takes this runs twice."""
    return with_providers(markets[request.param], provider, rival)
