"""StreamPay's vault, and what its streams and channels share."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from penstock.chain import _events
from penstock.chain._codec import ERC20, interface
from penstock.chain.port import Noted
from penstock.chain.web3._sending import Sending, Takes
from penstock.events import Event, Receipt
from penstock.keys import Account
from penstock.types import NATIVE, Address
from penstock.wire.eip712 import Domain, session_domain, stream_pay_domain


class Vault(Sending):
    # --- reading ---

    async def vault_balance(self, token: Address, account: Address) -> int:
        return int(await self._view(self.stream_pay, interface("StreamPay")["balance_of"], token, account))

    async def spendable(self, token: Address, owner: Address, spender: Address) -> int:
        return int(await self._view(self.stream_pay, interface("StreamPay")["spendable"], token, owner, spender))

    async def rewards_keepers(self, payee: Address) -> bool:
        return bool(await self._view(self.stream_pay, interface("StreamPay")["rewards_keepers"], payee))

    async def is_nonce_used(self, account: Address, nonce: int) -> bool:
        return bool(await self._view(self.stream_pay, interface("StreamPay")["is_nonce_used"], account, nonce))

    async def events(self, first: int, last: int) -> list[Event]:
        return await self._parsed(first, last, list(_events.money_shapes()))

    # --- writing ---

    async def deposit(self, funder: Account, token: Address, amount: int, *, account: Address | None = None) -> Receipt:
        args: tuple[Any, ...]
        function, args = "deposit", (token, amount)
        if account is not None and account != funder.address:
            function, args = "deposit_for", (account, token, amount)
        return await self._pay(
            funder,
            function,
            args,
            value=amount if token == NATIVE else 0,
            doing="paying into the vault",
            takes=(token, funder.address, amount, 0),
        )

    async def withdraw_vault(
        self, account: Account, token: Address, amount: int, *, to: Address, noted: Noted | None = None
    ) -> Receipt:
        return await self._pay(
            account,
            "withdraw_vault",
            (token, amount, to),
            doing="withdrawing from the vault",
            noted=noted,
        )

    async def approve(self, owner: Account, token: Address, amount: int) -> Receipt:
        return await self._send(
            owner, token, ERC20["approve"], (self.stream_pay, amount), doing="allowing StreamPay to take tokens"
        )

    async def allow_spender(self, owner: Account, spender: Address, token: Address, amount: int) -> Receipt:
        return await self._pay(owner, "allow_spender", (spender, token, amount), doing="letting a contract spend")

    async def set_keeper_reward(self, payee: Account, enabled: bool) -> Receipt:
        return await self._pay(payee, "set_keeper_reward", (enabled,), doing="changing the keeper's reward")

    async def _pay(
        self,
        account: Account,
        function: str,
        args: tuple[Any, ...],
        *,
        doing: str,
        value: int = 0,
        streams: int = 0,
        takes: Takes | None = None,
        has_permit: bool = False,
        noted: Noted | None = None,
    ) -> Receipt:
        return await self._send(
            account,
            self.stream_pay,
            interface("StreamPay")[function],
            args,
            doing=doing,
            value=value,
            streams=streams,
            takes=takes,
            has_permit=has_permit,
            noted=noted,
        )

    # --- domains ---

    @cached_property
    def stream_pay_domain(self) -> Domain:
        return stream_pay_domain(self.chain_id, self.stream_pay)

    @cached_property
    def session_domain(self) -> Domain:
        return session_domain(self.chain_id, self.stream_pay)

    # --- events ---

    async def _parsed(self, first: int, last: int, topics: list[str]) -> list[Event]:
        found = await self._logs_of(first, last, topics, self.stream_pay)
        return [_events.parse(log, moment) for log, moment in found]
