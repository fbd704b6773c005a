"""Agent wallets."""

from __future__ import annotations

from collections.abc import Sequence

from eth_utils.crypto import keccak

from penstock.caps import Caps, Ledger, Usage
from penstock.chain.calls import Call
from penstock.chain.fake._node import Node
from penstock.chain.fake._rules.state import WalletState
from penstock.chain.fake._rules.transaction import Transaction
from penstock.chain.fake._rules.wallets import WalletRules
from penstock.chain.refusals import as_cap_exceeded
from penstock.errors import NotFound, Reverted
from penstock.events import Receipt
from penstock.keys import Account
from penstock.types import Address, StreamId, address
from penstock.wallets import Beginning, Grant, Wallet, WalletEvent


class Wallets(Node):
    async def is_wallet(self, account: Address) -> bool:
        return account in (await self._latest()).state.wallets

    async def wallet(self, wallet: Address) -> Wallet:
        found = await self._wallet(wallet)
        owners = found.owner, found.pending_owner, found.guardian
        return Wallet(wallet, *owners, found.paused, *found.lists)

    async def wallet_address(self, beginning: Beginning) -> Address:
        return address("0x" + keccak(text=repr(beginning.as_tuple()))[-20:].hex())

    async def wallet_caps(self, wallet: Address, token: Address) -> tuple[Caps, Usage]:
        found = (await self._wallet(wallet)).ledgers.get(token, Ledger())
        return found.caps, found.usage((await self._latest()).block.timestamp)

    async def wallet_grant(self, wallet: Address, key: Address) -> Grant:
        return (await self._wallet(wallet)).grant(key)

    async def wallet_committed(self, wallet: Address, token: Address, ids: Sequence[StreamId]) -> list[tuple[int, int]]:
        found = await self._wallet(wallet)
        streams = (found.streams.get(id, ("", 0, 0, 0)) for id in ids)
        channels = (found.channels.get(id, ("", 0)) for id in ids)
        return [
            (stream[1] if stream[0] == token else 0, channel[1] if channel[0] == token else 0)
            for stream, channel in zip(streams, channels, strict=True)
        ]

    async def wallet_events(self, wallet: Address, first: int, last: int) -> list[WalletEvent]:
        return [event for event in (await self._wallet(wallet)).events if first <= event.place.block <= last]

    async def create_wallet(self, sender: Account, beginning: Beginning) -> Receipt:
        made = await self.wallet_address(beginning)

        def act(tx: Transaction) -> None:
            if made in tx.state.wallets:
                return
            one = WalletRules(tx, made, WalletState(beginning.owner, beginning.guardian))
            one.begin(beginning)
            one.save()

        return await self._transact(sender, "creating the wallet", act, to=self.wallet_factory)

    async def at_wallet(self, sender: Account, wallet: Address, call: Call) -> Receipt:
        await self._wallet(wallet)

        def act(tx: Transaction) -> None:
            one = WalletRules(tx, wallet)
            getattr(one, call.function)(*call.args)
            one.save()

        try:
            return await self._transact(sender, call.doing, act, to=wallet)
        except Reverted as error:
            raise as_cap_exceeded(error, wallet) or error from None

    async def _wallet(self, wallet: Address) -> WalletState:
        found: WalletState | None = (await self._latest()).state.wallets.get(wallet)
        if found is None:
            raise NotFound(
                f"{wallet} is no wallet that this deployment made: check --wallet, or make one with "
                "`penstock wallet create`"
            )
        return found
