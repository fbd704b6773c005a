"""StreamPay's vault, and what its streams and channels share."""

from __future__ import annotations

from typing import Protocol

from penstock.chain.port._node import Noted
from penstock.events import Event, Receipt
from penstock.keys import Account
from penstock.types import Address
from penstock.wire.eip712 import Domain


class Vault(Protocol):
    stream_pay: Address

    # --- reading ---

    async def vault_balance(self, token: Address, account: Address) -> int: ...

    async def spendable(self, token: Address, owner: Address, spender: Address) -> int:
        """What the spender may still pay out of the owner's vault balance and allowance to StreamPay."""
        ...

    async def rewards_keepers(self, payee: Address) -> bool:
        """Whether who settles for this payee keeps 0.1 % of what it settles."""
        ...

    async def is_nonce_used(self, account: Address, nonce: int) -> bool: ...

    async def events(self, first: int, last: int) -> list[Event]:
        """All that StreamPay said in these blocks, both ends included, in order."""
        ...

    # --- writing ---

    async def deposit(
        self, funder: Account, token: Address, amount: int, *, account: Address | None = None
    ) -> Receipt: ...

    async def withdraw_vault(
        self, account: Account, token: Address, amount: int, *, to: Address, noted: Noted | None = None
    ) -> Receipt: ...

    async def approve(self, owner: Account, token: Address, amount: int) -> Receipt:
        """Let StreamPay take so much."""
        ...

    async def allow_spender(self, owner: Account, spender: Address, token: Address, amount: int) -> Receipt:
        """Let a contract, such as License, pay so much out of the owner's vault balance and of what StreamPay may take
        of it; the maximum: without end. Replaces what was allowed before."""
        ...

    async def set_keeper_reward(self, payee: Account, enabled: bool) -> Receipt: ...

    # --- domains ---

    @property
    def stream_pay_domain(self) -> Domain: ...

    @property
    def session_domain(self) -> Domain: ...
