"""The stakes."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.chain._codec import checksum, interface
from penstock.chain.web3._sending import Sending
from penstock.events import Receipt
from penstock.keys import Account
from penstock.types import Address


class Staking(Sending):
    async def stake_of(self, provider: Address) -> int:
        return int(await self._view(self.staking, interface("Staking")["stake_of"], provider))

    async def stakes_of(self, providers: Sequence[Address]) -> list[int]:
        found = await self._views(self.staking, interface("Staking")["stake_of"], [(id,) for id in providers])
        return [int(stake) for stake in found]

    async def minimum_stake(self) -> int:
        return int(await self._view(self.staking, interface("Staking")["minimum_stake"]))

    async def cover_per_slot(self) -> int:
        return int(await self._view(self.staking, interface("Staking")["cover_per_slot"]))

    async def covers(self, provider: Address, slots: int) -> bool:
        return bool(await self._view(self.staking, interface("Staking")["covers"], provider, slots))

    async def stake_asset(self) -> Address:
        return checksum(await self._view(self.staking, interface("Staking")["asset"]))

    async def stake(self, funder: Account, provider: Address, amount: int) -> Receipt:
        return await self._send(
            funder,
            self.staking,
            interface("Staking")["stake"],
            (provider, amount),
            value=amount,
            doing="staking",
        )
