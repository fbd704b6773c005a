"""The stakes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from penstock.events import Receipt
from penstock.keys import Account
from penstock.types import Address


class Staking(Protocol):
    staking: Address

    async def stake_of(self, provider: Address) -> int: ...

    async def stakes_of(self, providers: Sequence[Address]) -> list[int]:
        """In order: base units of the stake's asset."""
        ...

    async def minimum_stake(self) -> int:
        """What a provider with an active offer must have staked, however few its slots: base units."""
        ...

    async def cover_per_slot(self) -> int:
        """What it must have staked for each slot of its active offers: base units."""
        ...

    async def covers(self, provider: Address, slots: int) -> bool:
        """Whether its stake is at least the minimum, and at least the cover of so many slots."""
        ...

    async def stake_asset(self) -> Address: ...

    async def stake(self, funder: Account, provider: Address, amount: int) -> Receipt: ...
