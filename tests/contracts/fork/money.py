"""The money that is on BSC, for the words of the harness: coins, and tokens that nobody here may mint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.contracts.fork.chain import BscChain
from tests.contracts.fork.upstream import USDC, USDT, WBNB
from tests.contracts.harness import COIN, Money
from tests.fastchain import Contract

FOREIGN = {"mint", "initialize"}
"""Functions of the compiled stand-ins that tests must not use: real tokens have none that fit."""


class RealToken(Contract):
    """A token at its address on BSC. `mint` is a cheat: it finds the storage slot of the balance and writes it."""

    def __init__(self, chain: BscChain, address: str, abi: list[dict[str, Any]]) -> None:
        super().__init__(chain, address, [item for item in abi if item.get("name") not in FOREIGN])

    def mint(self, account: str, amount: int, *, sender: str) -> None:
        held = self.balanceOf(account) + amount
        self.chain.rpc("anvil_dealERC20", account, self.address, hex(held))
        assert self.balanceOf(account) == held, "the node did not find where the token keeps its balances"


class WrappedToken(RealToken):
    """Every token of it stands for a coin that it holds, so that `mint` pays one in."""

    def mint(self, account: str, amount: int, *, sender: str) -> None:
        self.chain.set_balance(sender, self.chain.balance(sender) + amount)
        self.deposit(sender=sender, value=amount)
        if account != sender:
            self.transfer(account, amount, sender=sender)


@dataclass(frozen=True)
class Currency:
    """One of the moneys that the tests are run with."""

    symbol: str
    address: str
    artifact: str = ""
    """The compiled stand-in, whose ABI the real token shares."""
    kind: type[RealToken] = RealToken


BNB = Currency("BNB", COIN)
TOKENS = (
    Currency("WBNB", WBNB, "WrappedBNB", WrappedToken),
    Currency("USDT", USDT, "BEP20Token"),
    Currency("USDC", USDC, "BEP20Token"),
)


@dataclass(frozen=True)
class Coins(Money):
    """BNB: what an account holds is told as if it had paid no gas. `BscChain` checks what gas costs."""

    evm: BscChain

    def give(self, account: str, amount: int, spender: Contract | None = None) -> None:
        self.evm.set_balance(account, self.evm.balance(account) + amount)

    def held(self, account: str) -> int:
        return self.evm.balance(account) + self.evm.fees[account]


def gate(token: RealToken, code: Contract, gated: Contract) -> RealToken:
    """Let the issuer of the token get hold of it: from now on it can stop transfers.

    `code` is any contract, which the token's own code replaces; `gated` is a `TokenGate` in front of it.
    """
    chain = token.chain
    chain.rpc("anvil_setCode", code.address, chain.rpc("eth_getCode", token.address, "latest"))
    chain.rpc("anvil_setCode", token.address, chain.rpc("eth_getCode", gated.address, "latest"))
    functions = [item for item in gated.abi if item["type"] == "function"]
    return type(token)(chain, token.address, [*token.abi, *functions])  # type: ignore[arg-type]
