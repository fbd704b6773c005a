"""Agent wallets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from penstock.caps import Caps, Usage
from penstock.chain.calls import Call
from penstock.events import Receipt
from penstock.keys import Account
from penstock.types import Address, StreamId
from penstock.wallets import Beginning, Grant, Wallet, WalletEvent


class Wallets(Protocol):
    wallet_factory: Address

    async def is_wallet(self, account: Address) -> bool:
        """Whether this deployment's factory made it: only then is it known to do what a wallet does."""
        ...

    async def wallet(self, wallet: Address) -> Wallet:
        """NotFound where it is none."""
        ...

    async def wallet_address(self, beginning: Beginning) -> Address:
        """Where `create_wallet` puts it."""
        ...

    async def wallet_caps(self, wallet: Address, token: Address) -> tuple[Caps, Usage]:
        """A token's caps, and what counts against them now."""
        ...

    async def wallet_grant(self, wallet: Address, key: Address) -> Grant: ...

    async def wallet_committed(self, wallet: Address, token: Address, ids: Sequence[StreamId]) -> list[tuple[int, int]]:
        """What counts as open, in order: for the stream and for the channel of each id."""
        ...

    async def wallet_events(self, wallet: Address, first: int, last: int) -> list[WalletEvent]:
        """All that it said in these blocks, both ends included, in order."""
        ...

    async def create_wallet(self, sender: Account, beginning: Beginning) -> Receipt:
        """Where it is there already, nothing happens."""
        ...

    async def at_wallet(self, sender: Account, wallet: Address, call: Call) -> Receipt:
        """Make one of the calls of `penstock.chain.wallet_calls`. CapExceeded where a cap forbids it."""
        ...
