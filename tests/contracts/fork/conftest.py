"""The contracts on a fork of BSC, deployed as users deploy them, with the tokens that are there.

    make fork
    ape test tests/contracts/fork --network bsc:mainnet-fork:foundry

The upstream is started, or taken from PENSTOCK_BSC_RPC_URL, before Ape connects; Ape forks it. On other networks
these tests are skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import ape
import pytest
from ape.api import AccountAPI
from ape_accounts.accounts import ApeSigner

import penstock.deploy
from penstock.deployments import Deployment
from penstock.types import hex32
from tests.contracts.conftest import Artifacts
from tests.contracts.fork.chain import GAS_PRICE, BscChain
from tests.contracts.fork.ledger import Ledger
from tests.contracts.fork.money import TOKENS, Coins, RealToken, gate
from tests.contracts.fork.upstream import PERMIT2, Unfit, upstream
from tests.contracts.harness import COIN, Actor, Money
from tests.contracts.market import MINIMUM, Market
from tests.fastchain import Contract

HERE = Path(__file__).parent
GAS_MONEY = 10**20
"""Wei."""


def on_fork(config: pytest.Config) -> bool:
    ecosystem, network, *_ = f"{config.getoption('--network', None) or ''}::".split(":")
    return ecosystem == "bsc" and network.replace("_", "-") == "mainnet-fork"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The last moment before Ape connects, and the first at which it is known that there are tests to run."""
    ours = [item for item in items if HERE in item.path.parents]
    if not on_fork(config):
        for item in ours:
            item.add_marker(pytest.mark.skip(reason="on a fork of BSC alone: make fork"))
    elif ours and not config.option.collectonly:
        running = ExitStack()
        config.add_cleanup(running.close)
        try:
            url = running.enter_context(upstream(Artifacts().__getitem__))
        except Unfit as error:
            items.clear()  # or Ape connects all the same, to any public endpoint that it knows
            raise pytest.UsageError(str(error)) from None
        # Not by ape-config.yaml: Ape does not start where a variable in there is not set.
        foundry = ape.config.get_config("foundry")
        foundry.fork["bsc"]["mainnet"].upstream_provider = url
        foundry.gas_price = GAS_PRICE


@pytest.fixture(autouse=True)
def _undone(evm: BscChain, payer: Actor, payee: Actor, keeper: Actor, attacker: Actor, guardian: Actor) -> None:
    """Each test runs inside a snapshot, and its actors can pay for gas."""
    for actor in (payer, payee, keeper, attacker, guardian):
        evm.set_balance(actor, GAS_MONEY)


@pytest.fixture(scope="session")
def deployer() -> AccountAPI:
    """An account that this chain has never seen."""
    account = ApeSigner(private_key=hex32(Actor("deployer").key))
    ape.chain.provider.set_balance(account.address, GAS_MONEY)
    return account


@pytest.fixture(scope="session")
def deployment(deployer: AccountAPI, guardian: Actor) -> Deployment:
    """By the code that deploys for users, before automatic mining is switched off."""
    return penstock.deploy.deploy(deployer, guardian=guardian, minimum_stake=MINIMUM)


@pytest.fixture(scope="module")
def evm_of_module(deployment: Deployment) -> Iterator[BscChain]:
    chain = BscChain(ape.chain.provider.uri)
    yield chain
    chain.close()


@pytest.fixture(scope="module")
def pay(evm_of_module: BscChain, deployment: Deployment, artifacts: Artifacts) -> Contract:
    return evm_of_module.at(deployment.stream_pay, artifacts["StreamPay"][1])


@pytest.fixture(scope="module")
def permit2(evm_of_module: BscChain, artifacts: Artifacts) -> Contract:
    return evm_of_module.at(PERMIT2, artifacts["MockPermit2"][1])


@pytest.fixture
def market(evm: BscChain, deployment: Deployment, artifacts: Artifacts) -> Market:
    registry = evm.at(deployment.registry, artifacts["Registry"][1])
    staking = evm.at(deployment.staking, artifacts["Staking"][1])
    return Market(evm, registry, staking, None)


@pytest.fixture(scope="module")
def tokens(evm_of_module: BscChain, artifacts: Artifacts) -> dict[str, RealToken]:
    """By symbol."""
    return {one.symbol: one.kind(evm_of_module, one.address, artifacts[one.artifact][1]) for one in TOKENS}


@pytest.fixture(params=["BNB", *(one.symbol for one in TOKENS)])
def money(request: pytest.FixtureRequest, evm: BscChain, tokens: dict[str, RealToken]) -> Money:
    """A test that takes this runs with each currency."""
    if request.param == "BNB":
        return Coins(evm, COIN, None)
    return Money(evm, tokens[request.param].address, tokens[request.param])


@pytest.fixture(params=[one.symbol for one in TOKENS])
def token(request: pytest.FixtureRequest, tokens: dict[str, RealToken]) -> RealToken:
    """A test that takes this runs with each token."""
    return tokens[request.param]


@pytest.fixture
def gated(token: RealToken, deploy: Callable[..., Contract]) -> RealToken:
    """The same, after its issuer has given itself the power to stop transfers."""
    code = deploy("PlainToken")
    return gate(token, code, deploy("TokenGate", code.address))


@pytest.fixture
def books(evm: BscChain, pay: Contract, tokens: dict[str, RealToken]) -> Ledger:
    return Ledger(evm, pay, list(tokens.values()))
