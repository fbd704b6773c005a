"""Staking.vy."""

from __future__ import annotations

from penstock.chain.fake._rules.state import State
from penstock.chain.fake._rules.transaction import Contracts, Rules, require
from penstock.types import Address


class StakingRules(Rules):
    def stake(self, provider: Address, amount: int) -> None:
        require(provider in self.state.providers, "staking: no such provider")
        require(amount > 0, "staking: nothing arrived")
        self.state.stakes[provider] = self.state.stakes.get(provider, 0) + amount


def covers(contracts: Contracts, state: State, provider: Address, slots: int) -> bool:
    return state.stakes.get(provider, 0) >= max(contracts.minimum_stake, slots * contracts.cover_per_slot)
