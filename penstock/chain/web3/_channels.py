"""StreamPay's channels."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.chain import calls, wallet_calls
from penstock.chain._codec import interface
from penstock.chain.calls import parties
from penstock.chain.port import Noted
from penstock.chain.web3._vault import Vault
from penstock.chain.web3._wallets import Wallets
from penstock.channels import ChannelState
from penstock.events import Receipt
from penstock.keys import Account
from penstock.types import Address, ChannelOrder, Permit, PermitKind, StreamId, StreamKey, Voucher, unhex


class Channels(Vault, Wallets):
    async def channels(self, ids: Sequence[StreamId]) -> list[ChannelState | None]:
        function = interface("StreamPay")["channel"]
        found = await self._views(self.stream_pay, function, [(unhex(id),) for id in ids])
        states = [ChannelState(*value) for value in found]
        return [state if state.deposit else None for state in states]

    # --- writing ---

    async def open_channel(
        self, payer: Account, key: StreamKey, *, deposit: int, value: int, from_vault: int
    ) -> Receipt:
        return await self._pay(
            payer,
            "open_channel",
            (key.payee, key.token, key.session_key, unhex(key.offer_id), deposit, from_vault),
            value=value,
            doing="opening the channel",
            takes=(key.token, payer.address, deposit, from_vault),
        )

    async def open_channel_for(self, sender: Account, order: ChannelOrder, signature: bytes, permit: Permit) -> Receipt:
        if await self.is_wallet(order.key.payer):
            return await self.at_wallet(sender, order.key.payer, wallet_calls.open_channel_for(order, signature))
        return await self._pay(
            sender,
            "open_channel_for",
            (order.as_tuple(), signature, permit.as_tuple()),
            doing="opening the ordered channel",
            takes=(order.key.token, order.key.payer, order.deposit, order.from_vault),
            has_permit=permit.kind is not PermitKind.NONE,
        )

    async def top_up_channel(
        self, funder: Account, key: StreamKey, *, amount: int, value: int, from_vault: int
    ) -> Receipt:
        return await self._pay(
            funder,
            "top_up_channel",
            (*parties(key), amount, from_vault),
            value=value,
            doing="topping up the channel",
            takes=(key.token, funder.address, amount, from_vault),
        )

    async def settle(self, sender: Account, vouchers: Sequence[Voucher], *, noted: Noted | None = None) -> Receipt:
        return await self._make(sender, calls.settle(vouchers), noted)

    async def close_channel(self, payee: Account, voucher: Voucher) -> Receipt:
        key = voucher.key
        parties = (key.payer, key.token, key.session_key, unhex(key.offer_id))
        return await self._pay(
            payee,
            "close_channel",
            (*parties, voucher.cumulative, voucher.signature),
            doing="closing the channel",
        )

    async def request_close(self, payer: Account, key: StreamKey) -> Receipt:
        parties = (key.payee, key.token, key.session_key, unhex(key.offer_id))
        return await self._pay(payer, "request_close", parties, doing="asking to close the channel")

    async def reclaim(self, payer: Account, key: StreamKey, *, to: Address) -> Receipt:
        return await self._make(payer, calls.reclaim(key, to=to))
