"""StreamPay's vault."""

from __future__ import annotations

from functools import cached_property

from penstock.chain.fake._node import Node
from penstock.chain.fake._rules.transaction import UINT256, Transaction
from penstock.chain.fake._rules.vault import VaultRules
from penstock.chain.port import Noted
from penstock.events import Event, Receipt
from penstock.keys import Account
from penstock.types import NATIVE, Address
from penstock.wire.eip712 import Domain, session_domain


class Vault(Node):
    # --- reading ---

    async def vault_balance(self, token: Address, account: Address) -> int:
        return (await self._latest()).state.vault.get((token, account), 0)

    async def spendable(self, token: Address, owner: Address, spender: Address) -> int:
        return (await self._latest()).state.spendable.get((token, owner, spender), 0)

    async def rewards_keepers(self, payee: Address) -> bool:
        return payee in (await self._latest()).state.keepers_rewarded

    async def is_nonce_used(self, account: Address, nonce: int) -> bool:
        return (account, nonce) in (await self._latest()).state.nonces

    async def events(self, first: int, last: int) -> list[Event]:
        return [event for mined in await self._between(first, last) for event in mined.events]

    # --- writing ---

    async def deposit(self, funder: Account, token: Address, amount: int, *, account: Address | None = None) -> Receipt:
        def act(tx: Transaction) -> None:
            VaultRules(tx).pay_in(token, account or funder.address, amount)

        value = amount if token == NATIVE else 0
        return await self._transact(funder, "paying into the vault", act, value)

    async def withdraw_vault(
        self, account: Account, token: Address, amount: int, *, to: Address, noted: Noted | None = None
    ) -> Receipt:
        return await self._transact(
            account, "withdrawing from the vault", lambda tx: VaultRules(tx).take_out(token, amount, to), noted=noted
        )

    async def approve(self, owner: Account, token: Address, amount: int) -> Receipt:
        def act(tx: Transaction) -> None:
            tx.require_token(token)
            tx.state.allowances[token, owner.address] = amount

        return await self._transact(owner, "allowing StreamPay to take tokens", act)

    async def allow_spender(self, owner: Account, spender: Address, token: Address, amount: int) -> Receipt:
        def act(tx: Transaction) -> None:
            tx.require_fits((amount, UINT256))
            tx.state.spendable[token, owner.address, spender] = amount

        return await self._transact(owner, "letting a contract spend", act)

    async def set_keeper_reward(self, payee: Account, enabled: bool) -> Receipt:
        def act(tx: Transaction) -> None:
            rewarded = tx.state.keepers_rewarded
            (rewarded.add if enabled else rewarded.discard)(payee.address)

        return await self._transact(payee, "changing the keeper's reward", act)

    # --- domains ---

    @property
    def stream_pay_domain(self) -> Domain:
        return self.contracts.stream_pay_domain

    @cached_property
    def session_domain(self) -> Domain:
        return session_domain(self.chain_id, self.stream_pay)
