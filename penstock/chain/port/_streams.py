"""StreamPay's streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from penstock.accrual import StreamState
from penstock.chain.port._node import Noted
from penstock.events import Receipt, StreamEvent
from penstock.keys import Account
from penstock.types import Address, Order, Permit, StandingOrder, StreamId, StreamKey


class Streams(Protocol):
    # --- reading ---

    async def streams(self, ids: Sequence[StreamId]) -> list[StreamState | None]:
        """In order; None where there is no such stream, never opened or gone."""
        ...

    async def stream_events(
        self, first: int, last: int, *, payee: Address | None = None, payer: Address | None = None
    ) -> list[StreamEvent]:
        """All stream events of these blocks, both ends included, in order. With a payee or payer, of `Opened` only
        its own, and of the others those whose stream is among them or was opened earlier (the caller sorts out
        which of these it knows)."""
        ...

    # --- writing ---

    async def open(
        self, payer: Account, key: StreamKey, *, rate: int, duration: int, value: int, from_vault: int
    ) -> Receipt: ...

    async def open_for(self, sender: Account, order: Order, signature: bytes, permit: Permit) -> Receipt: ...

    async def top_up(
        self, funder: Account, key: StreamKey, *, duration: int, value: int, from_vault: int
    ) -> Receipt: ...

    async def extend_for(self, sender: Account, key: StreamKey, order: StandingOrder, signature: bytes) -> Receipt: ...

    async def cancel(self, payer: Account, key: StreamKey, *, to: Address) -> Receipt: ...

    async def cancel_for(
        self, sender: Account, key: StreamKey, *, to: Address, deadline: int, signature: bytes
    ) -> Receipt: ...

    async def close_stream(self, payee: Account, key: StreamKey, *, stop_at: int) -> Receipt: ...

    async def withdraw(
        self, payee: Account, token: Address, keys: Sequence[StreamKey], *, to: Address, noted: Noted | None = None
    ) -> Receipt:
        """One stream or up to 200, all of this payee and token."""
        ...

    async def collect(
        self,
        sender: Account,
        token: Address,
        payee: Address,
        keys: Sequence[StreamKey],
        *,
        noted: Noted | None = None,
    ) -> Receipt: ...
