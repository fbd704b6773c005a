"""The chain itself, and the tokens on it."""

from __future__ import annotations

from typing import Protocol

from penstock.types import Address, Block, Token


class Node(Protocol):
    chain_id: int

    async def close(self) -> None:
        """Give back connections."""
        ...

    async def head(self) -> Block: ...

    async def block(self, number: int) -> Block | None:
        """None where the chain is not that long."""
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
