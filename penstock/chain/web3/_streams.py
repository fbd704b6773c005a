"""StreamPay's streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from penstock.accrual import StreamState, flow
from penstock.chain import _events, calls, wallet_calls
from penstock.chain._batches import AT_ONCE, require_batch
from penstock.chain._codec import interface
from penstock.chain._filter import only_of
from penstock.chain.calls import parties, sources
from penstock.chain.port import Noted
from penstock.chain.web3._vault import Vault
from penstock.chain.web3._wallets import Wallets
from penstock.events import Receipt, StreamEvent
from penstock.keys import Account
from penstock.types import NATIVE, Address, Order, Permit, PermitKind, StandingOrder, StreamId, StreamKey, unhex


class Streams(Vault, Wallets):
    # --- reading ---

    async def streams(self, ids: Sequence[StreamId]) -> list[StreamState | None]:
        raw = [unhex(item) for item in ids]
        pages = [(raw[at : at + AT_ONCE],) for at in range(0, len(raw), AT_ONCE)]
        found = await self._views(self.stream_pay, interface("StreamPay")["streams_of"], pages)
        return [StreamState(*item) if item[3] else None for page in found for item in page]

    async def stream_events(
        self, first: int, last: int, *, payee: Address | None = None, payer: Address | None = None
    ) -> list[StreamEvent]:
        found = await self._parsed(first, last, list(_events.stream_shapes()))
        return only_of(found, payee=payee, payer=payer)

    # --- writing ---

    async def open(
        self, payer: Account, key: StreamKey, *, rate: int, duration: int, value: int, from_vault: int
    ) -> Receipt:
        return await self._pay(
            payer,
            "open",
            (key.payee, key.token, key.session_key, unhex(key.offer_id), rate, duration, from_vault),
            value=value,
            doing="opening the stream",
            takes=(key.token, payer.address, flow(rate, duration), from_vault),
        )

    async def open_for(self, sender: Account, order: Order, signature: bytes, permit: Permit) -> Receipt:
        key = order.key
        if await self.is_wallet(key.payer):
            return await self.at_wallet(sender, key.payer, wallet_calls.open_for(order, signature))
        return await self._pay(
            sender,
            "open_for",
            (order.as_tuple(), signature, permit.as_tuple()),
            doing="opening the ordered stream",
            takes=(key.token, key.payer, flow(order.rate, order.duration), order.from_vault),
            has_permit=permit.kind is not PermitKind.NONE,
        )

    async def top_up(self, funder: Account, key: StreamKey, *, duration: int, value: int, from_vault: int) -> Receipt:
        takes = None
        if key.token != NATIVE:
            (state,) = await self.streams([key.id])
            if state:
                cost = state.cost(state.end + duration) - state.deposit
                takes = (key.token, funder.address, cost, from_vault)
        return await self._pay(
            funder,
            "top_up",
            (*parties(key), duration, from_vault),
            value=value,
            doing="topping up the stream",
            takes=takes,
        )

    async def extend_for(self, sender: Account, key: StreamKey, order: StandingOrder, signature: bytes) -> Receipt:
        return await self._make(sender, calls.extend_for(key, order, signature))

    async def cancel(self, payer: Account, key: StreamKey, *, to: Address) -> Receipt:
        return await self._pay(
            payer,
            "cancel",
            (key.payee, key.token, key.session_key, unhex(key.offer_id), to),
            doing="cancelling the stream",
        )

    async def cancel_for(
        self, sender: Account, key: StreamKey, *, to: Address, deadline: int, signature: bytes
    ) -> Receipt:
        if await self.is_wallet(key.payer):
            return await self.at_wallet(sender, key.payer, wallet_calls.cancel_for(key, deadline, signature))
        return await self._pay(
            sender,
            "cancel_for",
            (*parties(key), to, deadline, signature),
            doing="cancelling the stream for its payer",
        )

    async def close_stream(self, payee: Account, key: StreamKey, *, stop_at: int) -> Receipt:
        return await self._pay(
            payee,
            "close",
            (key.payer, key.token, key.session_key, unhex(key.offer_id), stop_at),
            doing="closing the stream",
        )

    async def withdraw(
        self, payee: Account, token: Address, keys: Sequence[StreamKey], *, to: Address, noted: Noted | None = None
    ) -> Receipt:
        require_batch(keys, token=token, payee=payee.address)
        args: tuple[Any, ...]
        function, args = "withdraw_many", (token, sources(keys), to)
        if len(keys) == 1:
            function, args = "withdraw", (keys[0].payer, token, keys[0].session_key, unhex(keys[0].offer_id), to)
        return await self._pay(
            payee,
            function,
            args,
            doing="withdrawing earnings",
            streams=len(keys),
            noted=noted,
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
        return await self._make(sender, calls.collect(token, payee, keys), noted)
