"""StreamPay's channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from penstock.chain import wallet_calls
from penstock.chain._batches import require_batch
from penstock.chain.fake._rules.channels import ChannelRules
from penstock.chain.fake._vault import Vault
from penstock.chain.fake._wallets import Wallets
from penstock.chain.port import Noted
from penstock.channels import ChannelState
from penstock.events import Receipt
from penstock.keys import Account
from penstock.types import NATIVE, Address, ChannelOrder, Permit, StreamId, StreamKey, Voucher


class Channels(Vault, Wallets):
    async def channels(self, ids: Sequence[StreamId]) -> list[ChannelState | None]:
        channels = (await self._latest()).state.channels
        return [channels.get(item) for item in ids]

    # --- writing ---

    async def open_channel(
        self, payer: Account, key: StreamKey, *, deposit: int, value: int, from_vault: int
    ) -> Receipt:
        parties = replace(key, payer=payer.address)
        return await self._transact(
            payer, "opening the channel", lambda tx: ChannelRules(tx).open(parties, deposit, from_vault), value
        )

    async def open_channel_for(self, sender: Account, order: ChannelOrder, signature: bytes, permit: Permit) -> Receipt:
        if await self.is_wallet(order.key.payer):
            return await self.at_wallet(sender, order.key.payer, wallet_calls.open_channel_for(order, signature))
        return await self._transact(
            sender, "opening the ordered channel", lambda tx: ChannelRules(tx).open_for(order, signature, permit)
        )

    async def top_up_channel(
        self, funder: Account, key: StreamKey, *, amount: int, value: int, from_vault: int
    ) -> Receipt:
        return await self._transact(
            funder, "topping up the channel", lambda tx: ChannelRules(tx).top_up(key, amount, from_vault), value
        )

    async def settle(self, sender: Account, vouchers: Sequence[Voucher], *, noted: Noted | None = None) -> Receipt:
        keys = [voucher.key for voucher in vouchers]
        require_batch(keys, token=keys[0].token if keys else NATIVE, payee=keys[0].payee if keys else NATIVE)
        return await self._transact(
            sender, "settling vouchers", lambda tx: ChannelRules(tx).settle(vouchers), noted=noted
        )

    async def close_channel(self, payee: Account, voucher: Voucher) -> Receipt:
        own = replace(voucher, key=replace(voucher.key, payee=payee.address))
        return await self._transact(payee, "closing the channel", lambda tx: ChannelRules(tx).close(own))

    async def request_close(self, payer: Account, key: StreamKey) -> Receipt:
        parties = replace(key, payer=payer.address)
        return await self._transact(
            payer, "asking to close the channel", lambda tx: ChannelRules(tx).request_close(parties)
        )

    async def reclaim(self, payer: Account, key: StreamKey, *, to: Address) -> Receipt:
        parties = replace(key, payer=payer.address)
        return await self._transact(
            payer, "taking back the channel's rest", lambda tx: ChannelRules(tx).reclaim(parties, to)
        )
