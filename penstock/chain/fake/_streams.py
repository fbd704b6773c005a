"""StreamPay's streams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from penstock.accrual import StreamState
from penstock.chain import wallet_calls
from penstock.chain._batches import require_batch
from penstock.chain._filter import only_of
from penstock.chain.fake._rules.streams import StreamRules
from penstock.chain.fake._rules.transaction import UINT256
from penstock.chain.fake._vault import Vault
from penstock.chain.fake._wallets import Wallets
from penstock.chain.port import Noted
from penstock.events import Receipt, StreamEvent
from penstock.keys import Account
from penstock.types import ZERO_ADDRESS, Address, Order, Permit, StandingOrder, StreamId, StreamKey


class Streams(Vault, Wallets):
    # --- reading ---

    async def streams(self, ids: Sequence[StreamId]) -> list[StreamState | None]:
        streams = (await self._latest()).state.streams
        return [streams.get(item) for item in ids]

    async def stream_events(
        self, first: int, last: int, *, payee: Address | None = None, payer: Address | None = None
    ) -> list[StreamEvent]:
        return only_of(await self.events(first, last), payee=payee, payer=payer)

    # --- writing ---

    async def open(
        self, payer: Account, key: StreamKey, *, rate: int, duration: int, value: int, from_vault: int
    ) -> Receipt:
        # The contract takes the payer from the transaction, whatever the key says.
        parties = replace(key, payer=payer.address)
        return await self._transact(
            payer, "opening the stream", lambda tx: StreamRules(tx).open(parties, rate, duration, from_vault), value
        )

    async def open_for(self, sender: Account, order: Order, signature: bytes, permit: Permit) -> Receipt:
        if await self.is_wallet(order.key.payer):
            return await self.at_wallet(sender, order.key.payer, wallet_calls.open_for(order, signature))
        return await self._transact(
            sender, "opening the ordered stream", lambda tx: StreamRules(tx).open_for(order, signature, permit)
        )

    async def top_up(self, funder: Account, key: StreamKey, *, duration: int, value: int, from_vault: int) -> Receipt:
        return await self._transact(
            funder,
            "topping up the stream",
            lambda tx: StreamRules(tx).top_up(key, tx.sender, duration, from_vault),
            value,
        )

    async def extend_for(self, sender: Account, key: StreamKey, order: StandingOrder, signature: bytes) -> Receipt:
        return await self._transact(
            sender, "extending the stream for its payer", lambda tx: StreamRules(tx).extend_for(key, order, signature)
        )

    async def cancel(self, payer: Account, key: StreamKey, *, to: Address) -> Receipt:
        parties = replace(key, payer=payer.address)
        return await self._transact(
            payer, "cancelling the stream", lambda tx: StreamRules(tx).stop(parties, UINT256, to)
        )

    async def cancel_for(
        self, sender: Account, key: StreamKey, *, to: Address, deadline: int, signature: bytes
    ) -> Receipt:
        if await self.is_wallet(key.payer):
            return await self.at_wallet(sender, key.payer, wallet_calls.cancel_for(key, deadline, signature))
        return await self._transact(
            sender,
            "cancelling the stream for its payer",
            lambda tx: StreamRules(tx).cancel_for(key, to, deadline, signature),
        )

    async def close_stream(self, payee: Account, key: StreamKey, *, stop_at: int) -> Receipt:
        parties = replace(key, payee=payee.address)
        return await self._transact(
            payee, "closing the stream", lambda tx: StreamRules(tx).stop(parties, stop_at, ZERO_ADDRESS)
        )

    async def withdraw(
        self, payee: Account, token: Address, keys: Sequence[StreamKey], *, to: Address, noted: Noted | None = None
    ) -> Receipt:
        require_batch(keys, token=token, payee=payee.address)
        return await self._transact(
            payee, "withdrawing earnings", lambda tx: StreamRules(tx).withdraw(token, keys, to), noted=noted
        )

    async def collect(
        self,
        sender: Account,
        token: Address,
        payee: Address,
        keys: Sequence[StreamKey],
        *,
        noted: Noted | None = None,
    ) -> Receipt:
        require_batch(keys, token=token, payee=payee)
        return await self._transact(
            sender, "collecting earnings", lambda tx: StreamRules(tx).collect(token, payee, keys), noted=noted
        )
