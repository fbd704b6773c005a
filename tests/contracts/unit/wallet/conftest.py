"""A wallet on StreamPay, with an owner, a guardian, a key and caps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from penstock.accrual import flow
from penstock.caps import NO_LIMIT, Caps
from tests.contracts.harness import COIN, DURATION, MAX, OFFER, RATE, SESSION, Actor, ChannelOrder, Money, Order, Terms
from tests.contracts.harness import domain_of as domain_of
from tests.fastchain import Chain, Contract, Receipt

STREAMS, CHANNELS, LICENSES = 1, 2, 4
EVERYTHING = STREAMS | CHANNELS | LICENSES
FOREVER = 2**64 - 1
CAPS = Caps(payment=10_000, hour=20_000, day=50_000, week=100_000)
DEPOSIT = flow(RATE, DURATION)
HOUR, DAY, WEEK = 3_600, 86_400, 604_800


@pytest.fixture(scope="session")
def owner() -> Actor:
    return Actor("owner")


@pytest.fixture(scope="session")
def key() -> Actor:
    return Actor("agent's key")


@pytest.fixture(scope="module")
def catalogue(deploy: Callable[..., Contract]) -> Contract:
    return deploy("Catalogue")


@pytest.fixture(scope="module")
def license(deploy: Callable[..., Contract], pay: Contract, catalogue: Contract, owner: Actor) -> Contract:
    return deploy("License", pay.address, catalogue.address, Actor("treasury"))


@pytest.fixture(scope="module")
def factory(deploy: Callable[..., Contract], pay: Contract, license: Contract) -> Contract:
    return deploy("AgentWalletFactory", deploy("AgentWallet", pay.address, license.address).address)


@pytest.fixture(scope="module")
def make(factory: Contract, artifacts: Any, evm_of_module: Chain) -> Callable[..., Contract]:
    """`make(owner, guardian, limits, grants, salt)`."""

    def make_one(*args: Any) -> Contract:
        made = factory.create(*args, sender=args[0])
        return evm_of_module.at(made.log("Created")["wallet"], artifacts["AgentWallet"][1])

    return make_one


@pytest.fixture(scope="module")
def wallet(make: Callable[..., Contract], owner: Actor, guardian: Actor, key: Actor, token: Contract) -> Contract:
    limits = [(COIN, CAPS.as_tuple()), (token.address, CAPS.as_tuple())]
    return make(owner, guardian, limits, [(key, FOREVER, EVERYTHING)], bytes(32))


@dataclass(frozen=True)
class Agent:
    """What a key does with a wallet, in one token."""

    evm: Chain
    pay: Contract
    wallet: Contract
    owner: Actor
    key: Actor
    payee: Actor
    money: Money

    @property
    def terms(self) -> Terms:
        return Terms(self.wallet.address, self.payee, self.money.address)

    def parties(self, terms: Terms | None = None) -> tuple[Any, ...]:
        t = terms or self.terms
        return t.payee, t.token, t.session_key, t.offer_id

    def fund(self, amount: int = 10**9) -> None:
        self.money.give(self.wallet.address, amount)

    def fund_vault(self, amount: int) -> None:
        self.money.give(self.owner, amount, self.pay)
        value = self.money.value(amount)
        self.pay.deposit_for(self.wallet.address, self.money.address, amount, sender=self.owner, value=value)

    def open(self, terms: Terms | None = None, *, rate: int = RATE, duration: int = DURATION, by: str = "") -> Receipt:
        return self.wallet.open(*self.parties(terms), rate, duration, sender=by or self.key)  # type: ignore[no-any-return]

    def cancel(self, terms: Terms | None = None, *, by: str = "") -> Receipt:
        return self.wallet.cancel(*self.parties(terms), sender=by or self.key)  # type: ignore[no-any-return]

    def open_channel(self, deposit: int, terms: Terms | None = None, *, by: str = "") -> Receipt:
        return self.wallet.open_channel(*self.parties(terms), deposit, sender=by or self.key)  # type: ignore[no-any-return]

    def order(self, **changes: Any) -> Order:
        return replace(Order(self.terms, domain=domain_of(self.evm, self.pay)), **changes)

    def channel_order(self, deposit: int, **changes: Any) -> ChannelOrder:
        return replace(ChannelOrder(self.terms, deposit, domain=domain_of(self.evm, self.pay)), **changes)

    @property
    def vault(self) -> int:
        held: int = self.pay.balance_of(self.money.address, self.wallet.address)
        return held

    @property
    def worth(self) -> int:
        """All that the wallet holds, but for what is locked."""
        return self.vault + self.money.held(self.wallet.address)

    @property
    def usage(self) -> tuple[int, int, int, int]:
        """Open, and spent in the last hour, day and week."""
        found: tuple[int, int, int, int] = self.wallet.usage(self.money.address)
        return found

    @property
    def committed(self) -> tuple[int, int]:
        found: tuple[int, int] = self.wallet.committed(self.money.address, self.terms.id)
        return found

    def set_caps(self, **caps: int) -> None:
        changed = replace(Caps(), **caps)
        self.wallet.set_caps(self.money.address, changed.as_tuple(), sender=self.owner)


@pytest.fixture
def agent(evm: Chain, pay: Contract, wallet: Contract, owner: Actor, key: Actor, payee: Actor, money: Money) -> Agent:
    """With plenty of money in the wallet's hands."""
    agent = Agent(evm, pay, wallet, owner, key, payee, money)
    agent.fund()
    return agent


__all__ = ["MAX", "NO_LIMIT", "OFFER", "SESSION"]
