"""Slashing beside its registry and staking, once with the native coin and once with an ERC-20."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.contracts.court import COVER, Court, deploy_court
from tests.contracts.harness import Actor
from tests.fastchain import Chain, Contract

STAKE = 40 * COVER


@pytest.fixture(scope="session")
def provider() -> Actor:
    """Registered, with `Actor("signer")` as its signer, and owned by itself."""
    return Actor("provider")


@pytest.fixture(scope="session")
def rival() -> Actor:
    """A second provider, with a signer of its own."""
    return Actor("rival")


@pytest.fixture(scope="session")
def reporter() -> Actor:
    return Actor("reporter")


@pytest.fixture(scope="module")
def courts(evm_of_module: Chain, deploy: Callable[..., Contract]) -> dict[str, Court]:
    return {
        "coins": deploy_court(evm_of_module, deploy, None),
        "tokens": deploy_court(evm_of_module, deploy, deploy("PlainToken")),
    }


def furnish(court: Court, provider: Actor, rival: Actor) -> Court:
    """Both providers have stake and an offer; the clock is well past the registration."""
    for each, signer in ((provider, "signer"), (rival, "rival's signer")):
        court.market.register(each, signer=Actor(signer))
        court.market.stake(each, STAKE)
        court.market.create(each, court.terms)
    court.evm.sleep(3_600 * 24 * 2)
    return court


@pytest.fixture(params=["coins", "tokens"])
def court(request: pytest.FixtureRequest, evm: Chain, courts: dict[str, Court], provider: Actor, rival: Actor) -> Court:
    """A test that takes this runs twice."""
    return furnish(courts[request.param], provider, rival)


@pytest.fixture
def coins(evm: Chain, courts: dict[str, Court], provider: Actor, rival: Actor) -> Court:
    return furnish(courts["coins"], provider, rival)


@pytest.fixture
def tokens(evm: Chain, courts: dict[str, Court], provider: Actor, rival: Actor) -> Court:
    return furnish(courts["tokens"], provider, rival)
