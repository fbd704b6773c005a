"""StreamPay.vy's vault, and what its streams and channels share."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.chain.fake._rules.transaction import UINT256, Refused, Rules, require
from penstock.errors import BadSignature, InsufficientFunds
from penstock.events import Deposited, KeeperPaid, VaultSpent, VaultWithdrawn
from penstock.types import NATIVE, ZERO_ADDRESS, Address, Permit, PermitKind, StreamKey
from penstock.units import format_amount
from penstock.wire.eip712 import permit_digest, recover

MASK_128 = 2**128 - 1
_KEEPER_BPS = 10


class VaultRules(Rules):
    def push(self, token: Address, to: Address, amount: int) -> None:
        self.tx.move(token, self.tx.contracts.stream_pay, to, amount)

    def _pull(self, token: Address, owner: Address, amount: int) -> None:
        self.tx.require_token(token)
        held = self.state.balances.get((token, owner), 0)
        kind = self.state.tokens[token]
        needs = format_amount(amount, kind.decimals, kind.symbol)
        if held < amount:
            raise InsufficientFunds(
                f"{self.tx.doing}: {owner} has {format_amount(held, kind.decimals, kind.symbol)}, needs {needs}"
            )
        allowed = self.state.allowances.get((token, owner), 0)
        if allowed < amount:
            raise InsufficientFunds(
                f"{self.tx.doing}: StreamPay may take {format_amount(allowed, kind.decimals, kind.symbol)} of {owner}, "
                f"needs {needs}: approve it first"
            )
        if allowed != UINT256:
            self.state.allowances[token, owner] = allowed - amount
        self.tx.move(token, owner, self.tx.contracts.stream_pay, amount)

    def credit(self, token: Address, account: Address, amount: int) -> None:
        held = self.state.vault.get((token, account), 0)
        require(amount <= MASK_128 - held, "vault: balance too large")
        self.state.vault[token, account] = held + amount

    def _debit(self, token: Address, account: Address, amount: int) -> None:
        held = self.state.vault.get((token, account), 0)
        require(amount <= held, "vault: balance too low")
        self.state.vault[token, account] = held - amount

    def pay_in(self, token: Address, account: Address, amount: int) -> None:
        if token != NATIVE:
            self._pull(token, self.tx.sender, amount)
        require(amount > 0, "vault: nothing arrived")
        require(account != ZERO_ADDRESS, "vault: zero account")
        self.credit(token, account, amount)
        self.tx.log(Deposited, token, account, self.tx.sender, amount)

    def take_out(self, token: Address, amount: int, to: Address) -> None:
        require(amount > 0, "vault: zero amount")
        require(to != ZERO_ADDRESS, "vault: zero receiver")
        self._debit(token, self.tx.sender, amount)
        self.tx.log(VaultWithdrawn, token, self.tx.sender, to, amount)
        self.push(token, to, amount)

    def pay(
        self, payer: Address, spender: Address, token: Address, payments: Sequence[tuple[Address, int]], coins: int
    ) -> None:
        """As `spender` calls it, with so many coins."""
        paid = 0
        for account, amount in payments:
            if amount:
                self.credit(token, account, amount)
                self.tx.log(Deposited, token, account, payer, amount)
                paid += amount
        if spender != payer and paid > coins:
            limit = self.state.spendable.get((token, payer, spender), 0)
            require(paid - coins <= limit, "vault: not allowed so much")
            if limit != UINT256:
                self.state.spendable[token, payer, spender] = limit - (paid - coins)
        spent, lacking = self._spend(token, payer, paid, UINT256, coins)
        if spent:
            self.tx.log(VaultSpent, token, payer, spender, spent)
        if lacking:
            self._pull(token, payer, lacking)

    def _spend(
        self, token: Address, payer: Address, amount: int, from_vault: int, coins: int | None = None
    ) -> tuple[int, int]:
        """What the vault balance pays, and what the allowance must."""
        coins = self.tx.value if coins is None else coins
        if token == NATIVE:
            if coins >= amount:
                if coins > amount:
                    self.credit(token, payer, coins - amount)
                    self.tx.log(Deposited, token, payer, payer, coins - amount)
                return 0, 0
            lacking = amount - coins
            require(lacking <= from_vault, "vault: value too low")
            self._debit(token, payer, lacking)
            return lacking, 0
        require(coins == 0, "vault: value sent with a token")
        held = min(self.state.vault.get((token, payer), 0), from_vault, amount)
        if held:
            self._debit(token, payer, held)
        return held, amount - held

    def use_permit(self, token: Address, owner: Address, permit: Permit) -> None:
        if permit.kind is PermitKind.PERMIT2:
            raise Refused("vault: no Permit2 on this chain")
        if permit.kind is PermitKind.NONE:
            return
        require(len(permit.signature) == 65, "vault: permit signature is not 65 bytes")
        if token not in self.state.tokens or permit.deadline < self.now:
            return
        nonce = self.state.permits.get((token, owner), 0)
        separator = self.tx.contracts.permit_separator(self.state.tokens[token])
        digest = permit_digest(separator, owner, self.tx.contracts.stream_pay, permit.amount, nonce, permit.deadline)
        try:
            signer = recover(digest, permit.signature)
        except BadSignature:
            return
        if signer == owner:
            self.state.permits[token, owner] = nonce + 1
            self.state.allowances[token, owner] = permit.amount

    def credit_earnings(self, token: Address, payee: Address, total: int) -> None:
        reward = 0
        if self.tx.sender != payee and payee in self.state.keepers_rewarded:
            reward = total * _KEEPER_BPS // 10_000
        self.credit(token, payee, total - reward)
        if reward:
            self.credit(token, self.tx.sender, reward)
            self.tx.log(KeeperPaid, token, payee, self.tx.sender, reward)

    def give_back(self, key: StreamKey, refund: int, to: Address) -> None:
        if refund and to == ZERO_ADDRESS:
            self.credit(key.token, key.payer, refund)
        elif refund:
            self.push(key.token, to, refund)
