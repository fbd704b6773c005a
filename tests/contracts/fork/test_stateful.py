"""The state machine of StreamPay against its model, on the fork: BSC's tokens, its chain id, its gas price"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.contracts.fork.chain import BscChain
from tests.contracts.fork.money import RealToken, gate
from tests.contracts.harness import COIN, Actor
from tests.contracts.stateful.model import Kind
from tests.contracts.stateful.test_streampay import StreamPayMachine, World, make_world
from tests.fastchain import Contract
from tests.profiles import PROFILE

SHARE = 8
"""A profile's runs are so many times fewer here, but 4 at least: 4 of 60 steps in quick, 15 of 200 in ci, 250 of 300 in
deep."""


class ForkMachine(StreamPayMachine):
    """The model knows nothing of gas: what an account has paid for it is taken from it in the model too, before the two
    are compared."""

    evm: BscChain
    charged: Counter[str]

    def __init__(self) -> None:
        super().__init__()
        self.charged = self.evm.fees.copy()

    def charge_fees(self) -> None:
        for account, fee in (self.evm.fees - self.charged).items():
            self.model.wallets[COIN, account] -= fee
        self.charged = self.evm.fees.copy()

    def compare(self) -> None:
        self.charge_fees()
        super().compare()

    def everyone_exits(self) -> None:
        self.charge_fees()
        super().everyone_exits()
        self.charged = self.evm.fees.copy()  # the snapshot is undone, and the fees in it


@pytest.fixture(scope="module")
def world(
    evm_of_module: BscChain,
    deploy: Callable[..., Contract],
    pay: Contract,
    tokens: dict[str, RealToken],
    guardian: Actor,
) -> World:
    """BNB, WBNB, USDT and, its issuer having got hold of it, USDC; and two that are hostile."""
    evm_of_module.set_balance(guardian, 10**20)
    code = deploy("PlainToken")
    contracts = [
        (Kind.PLAIN, tokens["WBNB"]),
        (Kind.PLAIN, tokens["USDT"]),
        (Kind.BLOCKING, gate(tokens["USDC"], code, deploy("TokenGate", code.address))),
        (Kind.FEE, deploy("FeeToken")),
        (Kind.REENTRANT, deploy("ReentrantToken")),
    ]
    return make_world(evm_of_module, deploy, pay, guardian, contracts)


def test_streampay_does_what_the_model_does_on_bsc(world: World) -> None:
    machine = type("Machine", (ForkMachine,), {"world": world})
    fewer = max(4, PROFILE.examples // SHARE)
    run_state_machine_as_test(machine, settings=settings(max_examples=fewer))
