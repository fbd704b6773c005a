"""What StreamPay owes, told by its events alone, and compared with what it says and what it holds."""

from __future__ import annotations

from typing import Any

from penstock.accrual import StreamState
from penstock.audit import Books
from penstock.chain._events import money_shapes, parse
from penstock.types import Address, StreamId
from tests.contracts.fork.chain import BscChain
from tests.contracts.harness import COIN, Terms
from tests.fastchain import Contract, Receipt


class Ledger:
    """Every transaction of a test goes through `read`, which compares all to the wei."""

    def __init__(self, evm: BscChain, pay: Contract, tokens: list[Any]) -> None:
        self.evm, self.pay, self.tokens = evm, pay, tokens
        self.books = Books()

    def read(self, receipt: Receipt) -> Receipt:
        for log in receipt.raw_logs:
            if log["address"].lower() == self.pay.address.lower() and log["topics"][0] in money_shapes():
                self.books.apply(parse(log, receipt.timestamp))
        self.compare()
        return receipt

    def compare(self) -> None:
        """StreamPay holds what it owes, no more and no less, and knows the same balances, streams and channels."""
        pay, books = self.pay, self.books
        assert self.evm.balance(pay.address) == books.liabilities(Address(COIN))
        for token in self.tokens:
            assert token.balanceOf(pay.address) == books.liabilities(token.address)
        for (token, account), amount in books.vault.items():
            assert pay.balance_of(token, account) == amount
        for id, (_, state) in books.streams.items():
            assert StreamState(*pay.stream(bytes.fromhex(id[2:]))) == state
        for id, (_, channel) in books.channels.items():
            found = pay.channel(bytes.fromhex(id[2:]))
            assert found == (channel.deposit, channel.settled, channel.requested_at, channel.finished)

    def stream(self, terms: Terms) -> StreamState | None:
        found = self.books.streams.get(StreamId("0x" + terms.id.hex()))
        return found[1] if found else None

    @property
    def is_empty(self) -> bool:
        """Nothing is owed to anybody any more."""
        return not any(self.books.liabilities(token) for token in self.books.tokens())
