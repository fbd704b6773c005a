"""The chain itself, and the tokens on it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from penstock.chain.calls import Mined
from penstock.types import Address, Block, Token

Noted = Callable[[str, int], Awaitable[None]]
"""Is told a transaction's hash and its sender's nonce before it leaves; what it raises keeps the transaction back."""


class Node(Protocol):
    chain_id: int

    async def close(self) -> None:
        """Give back connections."""
        ...

    async def head(self) -> Block: ...

    async def block(self, number: int) -> Block | None:
        """None where the chain is not that long."""
        ...

    async def mined(self, transaction: str) -> Mined | None:
        """None where it is in no block now, be it that it never was or that its block is gone."""
        ...

    async def nonces(self, account: Address) -> tuple[int, int]:
        """The next one by the blocks that are there, and the next one by what the node has heard of besides."""
        ...

    async def native_balance(self, account: Address) -> int: ...

    async def token(self, token: Address) -> Token:
        """Symbol and decimals; NoContract where the address holds no token."""
        ...

    async def token_balance(self, token: Address, account: Address) -> int:
        """In the account's own hands, native coin included; not its vault balance."""
        ...

    async def allowance(self, token: Address, owner: Address) -> int:
        """What StreamPay may take."""
        ...

    async def permit_domain(self, token: Address, owner: Address) -> tuple[bytes, int] | None:
        """The token's ERC-2612 domain separator and the owner's next nonce; None where it has no permit."""
        ...
