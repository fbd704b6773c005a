"""StreamPay's channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from penstock.chain.port._node import Noted
from penstock.channels import ChannelState
from penstock.events import Receipt
from penstock.keys import Account
from penstock.types import Address, ChannelOrder, Permit, StreamId, StreamKey, Voucher


class Channels(Protocol):
    async def channels(self, ids: Sequence[StreamId]) -> list[ChannelState | None]:
        """In order; None where there never was such a channel."""
        ...

    # --- writing ---

    async def open_channel(
        self, payer: Account, key: StreamKey, *, deposit: int, value: int, from_vault: int
    ) -> Receipt: ...

    async def open_channel_for(
        self, sender: Account, order: ChannelOrder, signature: bytes, permit: Permit
    ) -> Receipt: ...

    async def top_up_channel(
        self, funder: Account, key: StreamKey, *, amount: int, value: int, from_vault: int
    ) -> Receipt: ...

    async def settle(self, sender: Account, vouchers: Sequence[Voucher], *, noted: Noted | None = None) -> Receipt:
        """One channel or up to 200, all of one payee and token."""
        ...

    async def close_channel(self, payee: Account, voucher: Voucher) -> Receipt:
        """Its sum at most what is settled: no voucher, and the signature may be empty."""
        ...

    async def request_close(self, payer: Account, key: StreamKey) -> Receipt: ...

    async def reclaim(self, payer: Account, key: StreamKey, *, to: Address) -> Receipt: ...
