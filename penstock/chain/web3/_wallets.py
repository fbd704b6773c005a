"""Agent wallets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from penstock.caps import Caps, Usage
from penstock.chain._codec import checksum, event_shapes, interface, place_of
from penstock.chain.calls import Call
from penstock.chain.refusals import as_cap_exceeded
from penstock.chain.web3._sending import Sending
from penstock.errors import NotFound, Reverted
from penstock.events import Receipt
from penstock.keys import Account
from penstock.types import Address, StreamId, unhex
from penstock.wallets import Beginning, Grant, Scope, Wallet, WalletEvent

EVENTS = (
    "CapsChanged",
    "Committed",
    "GuardianChanged",
    "Initialized",
    "KeyChanged",
    "ListsChanged",
    "OfferChanged",
    "OwnershipTransferStarted",
    "OwnershipTransferred",
    "PauseChanged",
    "PayeeChanged",
    "Released",
    "Withdrawn",
)


class Wallets(Sending):
    async def is_wallet(self, account: Address) -> bool:
        if account not in self._known_wallets:
            if not await self._view(self.wallet_factory, interface("AgentWalletFactory")["is_wallet"], account):
                return False
            self._known_wallets.add(account)  # for ever
        return True

    async def wallet(self, wallet: Address) -> Wallet:
        await self._require_wallet(wallet)
        names = ("owner", "pending_owner", "guardian")
        owner, pending, guardian = [checksum(await self._of(wallet, name)) for name in names]
        payees_only, offers_only = await self._of(wallet, "lists")
        return Wallet(wallet, owner, pending, guardian, await self._of(wallet, "paused"), payees_only, offers_only)

    async def wallet_address(self, beginning: Beginning) -> Address:
        view = interface("AgentWalletFactory")["wallet_address"]
        return checksum(await self._view(self.wallet_factory, view, *beginning.as_tuple()))

    async def wallet_caps(self, wallet: Address, token: Address) -> tuple[Caps, Usage]:
        await self._require_wallet(wallet)
        return Caps(*await self._of(wallet, "caps", token)), Usage(*await self._of(wallet, "usage", token))

    async def wallet_grant(self, wallet: Address, key: Address) -> Grant:
        await self._require_wallet(wallet)
        expires_at, scope = await self._of(wallet, "key", key)
        return Grant(key, expires_at, Scope(scope))

    async def wallet_committed(self, wallet: Address, token: Address, ids: Sequence[StreamId]) -> list[tuple[int, int]]:
        await self._require_wallet(wallet)
        view = interface("AgentWallet")["committed"]
        return [(a, b) for a, b in await self._views(wallet, view, [(token, unhex(id)) for id in ids])]

    async def wallet_events(self, wallet: Address, first: int, last: int) -> list[WalletEvent]:
        await self._require_wallet(wallet)
        shapes = event_shapes("AgentWallet", EVENTS)
        found = []
        for log, timestamp in await self._logs_of(first, last, list(shapes), wallet):
            shape = shapes[log["topics"][0]]
            found.append(WalletEvent(place_of(log, timestamp), shape.name, shape.decode(log["topics"], log["data"])))
        return found

    async def create_wallet(self, sender: Account, beginning: Beginning) -> Receipt:
        function = interface("AgentWalletFactory")["create"]
        return await self._send(
            sender, self.wallet_factory, function, beginning.as_tuple(), doing="creating the wallet"
        )

    async def at_wallet(self, sender: Account, wallet: Address, call: Call) -> Receipt:
        await self._require_wallet(wallet)
        try:
            return await self._send(
                sender, wallet, interface("AgentWallet")[call.function], call.args, doing=call.doing
            )
        except Reverted as error:
            raise as_cap_exceeded(error, wallet) or error from None

    async def _of(self, wallet: Address, view: str, *args: Any) -> Any:
        return await self._view(wallet, interface("AgentWallet")[view], *args)

    async def _require_wallet(self, wallet: Address) -> None:
        if not await self.is_wallet(wallet):
            raise NotFound(
                f"{wallet} is no wallet that this deployment made: check --wallet, or make one with "
                "`penstock wallet create`"
            )
