"""A chain as it looks to whoever pays from an agent wallet.

    chain = paying_from_wallet(chain, WalletAccount(wallet, key))
    await chain.open(account, key, ...)      # goes to the wallet, which opens the stream; the key pays the gas

What moves the wallet's money goes to the wallet; all else passes through. The wallet takes what it needs from its vault
balance first and then from its hands, gets refunds back into its vault balance, and approves StreamPay and License
itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, cast

from penstock.chain import wallet_calls
from penstock.chain.calls import Call
from penstock.chain.port import Account, Chain
from penstock.errors import CapExceeded, ConfigError, Reverted
from penstock.events import Receipt
from penstock.licences import LicenceId, ProductId, Tier
from penstock.types import ALL, Address, StreamId, StreamKey
from penstock.wallets import WalletAccount

_AT_ONCE = 50
"""What one `release` takes."""

Over = Callable[[Address], Sequence[StreamId]]
"""By token, the ids of what the wallet had open and is known to be over; it may still count as open."""


def paying_from_wallet(chain: Chain, account: WalletAccount, over: Over = lambda _: ()) -> Chain:
    """Where a cap forbids a payment, what is `over` is released first, and the payment tried again."""
    return cast(Chain, _Paying(chain, account, over))


class _Paying:
    def __init__(self, chain: Chain, account: WalletAccount, over: Over) -> None:
        self._chain, self._wallet, self._key, self._over = chain, account.address, account.key, over

    def __getattr__(self, name: str) -> Any:
        return getattr(self._chain, name)

    async def allowance(self, token: Address, owner: Address) -> int:
        return ALL if owner == self._wallet else await self._chain.allowance(token, owner)

    async def spendable(self, token: Address, owner: Address, spender: Address) -> int:
        """It allows License what a licence costs as it buys one, and nothing else."""
        return ALL if owner == self._wallet else await self._chain.spendable(token, owner, spender)

    async def open(
        self, payer: Account, key: StreamKey, *, rate: int, duration: int, value: int, from_vault: int
    ) -> Receipt:
        return await self._pay(key.token, wallet_calls.open(key, rate, duration))

    async def top_up(self, funder: Account, key: StreamKey, *, duration: int, value: int, from_vault: int) -> Receipt:
        return await self._pay(key.token, wallet_calls.top_up(key, duration))

    async def cancel(self, payer: Account, key: StreamKey, *, to: Address) -> Receipt:
        return await self._at_wallet(wallet_calls.cancel(key))

    async def open_channel(
        self, payer: Account, key: StreamKey, *, deposit: int, value: int, from_vault: int
    ) -> Receipt:
        return await self._pay(key.token, wallet_calls.open_channel(key, deposit))

    async def top_up_channel(
        self, funder: Account, key: StreamKey, *, amount: int, value: int, from_vault: int
    ) -> Receipt:
        return await self._pay(key.token, wallet_calls.top_up_channel(key, amount))

    async def request_close(self, payer: Account, key: StreamKey) -> Receipt:
        return await self._at_wallet(wallet_calls.request_close(key))

    async def reclaim(self, payer: Account, key: StreamKey, *, to: Address) -> Receipt:
        return await self._at_wallet(wallet_calls.reclaim(key))

    async def buy_licence(
        self,
        payer: Account,
        product: ProductId,
        *,
        release: int,
        tier: Tier,
        max_cost: int,
        quantity: int = 1,
        licensee: Address | None = None,
        session_key: Address | None = None,
        value: int = 0,
    ) -> Receipt:
        if licensee not in (None, self._wallet):
            raise ConfigError(f"a wallet buys licences for itself alone: not for {licensee}")
        call = wallet_calls.buy_license(
            product,
            release=release,
            tier=tier,
            quantity=quantity,
            max_cost=max_cost,
            session_key=session_key or self._key.address,  # the wallet itself signs no tickets
        )
        return await self._pay((await self._chain.product(product)).listing.token, call)

    async def renew_licence(
        self, payer: Account, licence: LicenceId, *, quantity: int, max_cost: int, value: int = 0
    ) -> Receipt:
        product = await self._chain.product((await self._chain.licence(licence)).product)
        return await self._pay(product.listing.token, wallet_calls.renew_license(licence, quantity, max_cost))

    async def refund_licence(self, sender: Account, licence: LicenceId) -> Receipt:
        return await self._at_wallet(wallet_calls.refund_license(licence))

    async def complete_licence(self, sender: Account, licence: LicenceId) -> Receipt:
        return await self._at_wallet(wallet_calls.complete_license(licence))

    async def set_session_key(self, licensee: Account, licence: LicenceId, key: Address) -> Receipt:
        return await self._at_wallet(wallet_calls.set_license_key(licence, key))

    async def _pay(self, token: Address, call: Call) -> Receipt:
        try:
            return await self._at_wallet(call)
        except CapExceeded:
            over = list(self._over(token))[-_AT_ONCE:]
            counted = await self._chain.wallet_committed(self._wallet, token, over)
            still = [id for id, amounts in zip(over, counted, strict=True) if any(amounts)]
            if not still:
                raise
            with suppress(Reverted):  # somebody else was faster
                await self._at_wallet(wallet_calls.release(token, still))
            return await self._at_wallet(call)

    async def _at_wallet(self, call: Call) -> Receipt:
        return await self._chain.at_wallet(self._key, self._wallet, call)
