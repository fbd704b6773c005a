"""A registry whose stake is the native coin, with one provider that may list offers."""

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
def market_of_module(evm_of_module: Chain, deploy: Callable[..., Contract], slasher: Actor) -> Market:
    return deploy_market(evm_of_module, deploy, slasher, None)


@pytest.fixture
def market(evm: Chain, market_of_module: Market, provider: Actor) -> Market:
    """The provider is registered and has the minimum stake."""
    market_of_module.register(provider)
    market_of_module.stake(provider)
    return market_of_module


@pytest.fixture
def registry(market: Market) -> Contract:
    return market.registry


@pytest.fixture
def bare(evm: Chain, market_of_module: Market) -> Market:
    """Nobody is registered."""
    return market_of_module
