"""The contracts under test, on the node that Ape starts, through the fast lane.

A module's contracts are deployed once; each test runs inside a snapshot. `evm` is the node and its clock.

`tests/mutation` sets PENSTOCK_NODE, a node to use instead of Ape's, and PENSTOCK_ARTIFACTS, a folder with other
bytecode in files of the contracts' names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ape
import pytest
from ape.api.providers import SubprocessProvider
from ape.managers.networks import NodeProcessMap

from scripts._ports import free_port
from tests.contracts.harness import COIN, Actor, Money
from tests.fastchain import Chain, Contract
from tests.harness import PATIENCE

# Before Ape connects, in each worker. It would try a random port, once, and anvil cannot have one that a finished
# connection still holds: after the other suites there are thousands of those.
os.environ["APE_FOUNDRY_HOST"] = f"http://127.0.0.1:{free_port()}"
# Ape gives a node 20 seconds to start, of which a machine that stalls may take more.
SubprocessProvider.start.__defaults__ = (2 * PATIENCE,)


class Nodes(NodeProcessMap):
    """Ape's list of its nodes, which each worker keeps for itself: the file is deleted and written anew while others
    read it."""

    def model_dump_file(self, *_: Any, **__: Any) -> None:
        return


vars(ape.networks)["running_nodes"] = Nodes()


def pytest_configure(config: pytest.Config) -> None:
    """Our snapshots suffice. Ape's isolation would set fixtures up in the order of all definitions of their names in
    the session, with the scopes of those, so that a module's deployments may fall inside one test's snapshot."""
    config.option.disable_isolation = True


class Artifacts:
    """Bytecode and ABI of each contract that Ape has compiled, by name."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, list[dict[str, Any]]]] = {}

    def __getitem__(self, name: str) -> tuple[str, list[dict[str, Any]]]:
        if name not in self._known:
            kind = getattr(ape.project, name).contract_type
            abi = [item.model_dump(mode="json", by_alias=True) for item in kind.abi]
            other = Path(os.environ.get("PENSTOCK_ARTIFACTS", os.devnull), name)
            bytecode = other.read_text() if other.is_file() else str(kind.deployment_bytecode.bytecode)
            self._known[name] = (bytecode, abi)
        return self._known[name]


@pytest.fixture(scope="session")
def artifacts() -> Artifacts:
    return Artifacts()


@pytest.fixture(scope="module")
def evm_of_module() -> Iterator[Chain]:
    """Automatic mining is off for the whole module: its tests send no transaction through Ape."""
    chain = Chain(os.environ.get("PENSTOCK_NODE") or ape.chain.provider.uri)
    yield chain
    chain.close()


@pytest.fixture(scope="module")
def deploy(evm_of_module: Chain, artifacts: Artifacts) -> Callable[..., Contract]:
    """`deploy("PlainToken")`, `deploy("StreamPay", guardian, permit2)`."""

    def deploy_one(name: str, *args: Any) -> Contract:
        return evm_of_module.deploy(*artifacts[name], *args)

    return deploy_one


@pytest.fixture
def evm(evm_of_module: Chain) -> Iterator[Chain]:
    with evm_of_module.snapshot():
        yield evm_of_module


# Actors. Each has a key, and no coins unless a test gives it some.


@pytest.fixture(scope="session")
def payer() -> Actor:
    return Actor("payer")


@pytest.fixture(scope="session")
def payee() -> Actor:
    return Actor("payee")


@pytest.fixture(scope="session")
def attacker() -> Actor:
    return Actor("attacker")


@pytest.fixture(scope="session")
def keeper() -> Actor:
    return Actor("keeper")


@pytest.fixture(scope="session")
def guardian() -> Actor:
    return Actor("guardian")


# Contracts.


@pytest.fixture(scope="module")
def permit2(deploy: Callable[..., Contract]) -> Contract:
    return deploy("MockPermit2")


@pytest.fixture(scope="module")
def pay(deploy: Callable[..., Contract], guardian: Actor, permit2: Contract) -> Contract:
    return deploy("StreamPay", guardian, permit2.address)


@pytest.fixture(scope="module")
def token(deploy: Callable[..., Contract]) -> Contract:
    return deploy("PlainToken")


@pytest.fixture
def coins(evm: Chain) -> Money:
    return Money(evm, COIN, None)


@pytest.fixture
def tokens(evm: Chain, token: Contract) -> Money:
    return Money(evm, token.address, token)


@pytest.fixture(params=["coins", "tokens"])
def money(request: pytest.FixtureRequest, coins: Money, tokens: Money) -> Money:
    """A test that takes this runs twice: with native coins, and with an ERC-20."""
    return coins if request.param == "coins" else tokens
