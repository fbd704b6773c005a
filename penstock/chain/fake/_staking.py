"""The stakes."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.chain.fake._node import Node
from penstock.chain.fake._rules.staking import StakingRules, covers
from penstock.events import Receipt
from penstock.keys import Account
from penstock.types import NATIVE, Address


class Staking(Node):
    async def stake_of(self, provider: Address) -> int:
        return (await self._latest()).state.stakes.get(provider, 0)

    async def stakes_of(self, providers: Sequence[Address]) -> list[int]:
        stakes = (await self._latest()).state.stakes
        return [stakes.get(id, 0) for id in providers]

    async def minimum_stake(self) -> int:
        await self._latest()
        return self.contracts.minimum_stake

    async def cover_per_slot(self) -> int:
        await self._latest()
        return self.contracts.cover_per_slot

    async def covers(self, provider: Address, slots: int) -> bool:
        return covers(self.contracts, (await self._latest()).state, provider, slots)

    async def stake_asset(self) -> Address:
        return NATIVE

    async def stake(self, funder: Account, provider: Address, amount: int) -> Receipt:
        return await self._transact(
            funder, "staking", lambda tx: StakingRules(tx).stake(provider, amount), amount, to=self.staking
        )
