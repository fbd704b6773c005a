"""The two chains that the SDK's tests run on, behind one face: one in memory, one on anvil with the real contracts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from penstock.chain.fake import FakeChain
from penstock.chain.port import Chain
from penstock.chain.web3 import Web3Chain
from penstock.keys import LocalAccount, new_session_key
from penstock.types import Address
from tests.harness import Node

COIN = 10**18
DOLLAR = 10**6


class World(Protocol):
    """A chain, and what a test may do to it."""

    @property
    def chain(self) -> Chain: ...

    token: Address
    """TUSD: 6 decimals, ERC-2612."""

    def account(self, *, coins: int = COIN, dollars: int = 0) -> LocalAccount:
        """A new one with so much in hand: base units."""
        ...

    def advance(self, seconds: int) -> int:
        """Let time pass, and mine a block. Its timestamp."""
        ...

    def reorg(self, depth: int) -> None: ...

    def outage(self) -> AbstractContextManager[None]: ...

    def losing(self) -> AbstractContextManager[None]:
        """Inside, transactions are sent and never mined."""
        ...


class FakeWorld:
    def __init__(self) -> None:
        self.fake = FakeChain()
        self.chain = self.fake
        self.token = self.fake.create_token("TUSD", 6)

    def account(self, *, coins: int = COIN, dollars: int = 0) -> LocalAccount:
        account = new_session_key()
        self.fake.set_balance(account.address, coins)
        if dollars:
            self.fake.mint(self.token, account.address, dollars)
        return account

    def advance(self, seconds: int) -> int:
        return self.fake.advance(seconds)

    def reorg(self, depth: int) -> None:
        self.fake.reorg(depth)

    def outage(self) -> AbstractContextManager[None]:
        return self.fake.outage()

    @contextmanager
    def losing(self) -> Iterator[None]:
        self.fake.lose_next()
        yield


class AnvilWorld:
    def __init__(self, node: Node, chain: Web3Chain, token: Address) -> None:
        self.node, self.chain, self.token = node, chain, token

    def account(self, *, coins: int = COIN, dollars: int = 0) -> LocalAccount:
        account = new_session_key()
        self.node.set_balance(account.address, coins)
        if dollars:
            self.node.mint(self.token, account.address, dollars)
        return account

    def advance(self, seconds: int) -> int:
        return self.node.advance(seconds)

    def reorg(self, depth: int) -> None:
        self.node.reorg(depth)

    def outage(self) -> AbstractContextManager[None]:
        return self.node.outage()

    @contextmanager
    def losing(self) -> Iterator[None]:
        self.node.rpc("evm_setAutomine", False)
        try:
            yield
        finally:
            self.node.rpc("anvil_dropAllTransactions")
            self.node.rpc("evm_setAutomine", True)
