"""A state machine against a model in Python: what staking holds is what it owes, to the wei.

Its random steps: stakes by anybody, exits, slashes, offers, sales of providers, donations, time, and strangers who
try everything. After each step every view is compared; in the end everybody leaves, and nothing is left but gifts.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.contracts.harness import Actor, reverts
from tests.contracts.market import MINIMUM, PERIOD, TERMS, Market
from tests.profiles import COUNTS, PROFILE

PROVIDERS = [Actor(f"provider {i}") for i in range(3)]
OWNERS = [*PROVIDERS, Actor("buyer")]
VICTIM, STRANGER, SAFE = Actor("victim"), Actor("stranger"), Actor("safe")
AMOUNTS = st.one_of(
    st.sampled_from([1, 2, MINIMUM - 1, MINIMUM, MINIMUM + 1, 3 * MINIMUM]), st.integers(1, 2 * MINIMUM)
)


@dataclass
class Account:
    """What the model knows of a provider."""

    owner: str
    offer: bytes
    bonded: int = 0
    queue: list[tuple[int, int]] = field(default_factory=list)
    active: bool = False
    created: bool = False

    @property
    def queued(self) -> int:
        return sum(amount for amount, _ in self.queue)


class StakingMachine(RuleBasedStateMachine):
    providers = st.sampled_from(PROVIDERS)

    def __init__(self, market: Market) -> None:
        super().__init__()
        self.market, self.staking, self.evm = market, market.staking, market.evm
        self.undo = ExitStack()
        self.undo.enter_context(self.evm.snapshot())
        self.calls_before = self.evm.calls
        self.accounts = {provider: Account(provider, TERMS.id(provider)) for provider in PROVIDERS}
        self.gifts = 0
        self.paid = dict.fromkeys((VICTIM, SAFE), 0)

    @initialize()
    def register(self) -> None:
        for provider in PROVIDERS:
            self.market.register(provider)

    def teardown(self) -> None:
        try:
            self.everybody_leaves()
        finally:
            COUNTS["staking: calls compared"] += self.evm.calls - self.calls_before
            self.undo.close()

    # What people do.

    @rule(provider=providers, amount=AMOUNTS, funder=st.sampled_from([*PROVIDERS, STRANGER]))
    def stake(self, provider: Actor, amount: int, funder: Actor) -> None:
        self.market.stake(provider, amount, funder=funder)
        self.accounts[provider].bonded += amount

    @rule(provider=providers, part=st.integers(1, 4), less=st.integers(0, 1))
    def request_unbond(self, provider: Actor, part: int, less: int) -> None:
        account = self.accounts[provider]
        amount = account.bonded // part - less
        if account.bonded >= MINIMUM and part == 4:
            amount = account.bonded - MINIMUM + less  # around what offers need
        if amount <= 0:
            return

        def request() -> None:
            self.staking.request_unbond(provider, amount, sender=account.owner)

        if account.bonded - amount < MINIMUM and account.active:
            with reverts("staking: active offers need the minimum"):
                request()
        elif len(account.queue) == 16:
            with reverts("staking: exit queue is full"):
                request()
        else:
            request()
            account.bonded -= amount
            account.queue.append((amount, self.evm.now + PERIOD))

    @rule(provider=providers, times=st.integers(2, 16))
    def request_many_small(self, provider: Actor, times: int) -> None:
        for _ in range(times):
            account = self.accounts[provider]
            if account.bonded > MINIMUM and len(account.queue) < 16:
                self.staking.request_unbond(provider, 1, sender=account.owner)
                account.bonded -= 1
                account.queue.append((1, self.evm.now + PERIOD))

    @rule(provider=providers)
    def cancel_unbond(self, provider: Actor) -> None:
        account = self.accounts[provider]
        if not account.queue:
            with reverts("staking: nothing is queued"):
                self.staking.cancel_unbond(provider, sender=account.owner)
            return
        self.staking.cancel_unbond(provider, sender=account.owner)
        account.bonded += account.queued
        account.queue = []

    @rule(provider=providers)
    def withdraw(self, provider: Actor) -> None:
        account = self.accounts[provider]
        due = sum(amount for amount, release_at in account.queue if release_at <= self.evm.now)
        if not due:
            with reverts("staking: nothing to withdraw yet"):
                self.staking.withdraw(provider, SAFE, sender=account.owner)
            return
        self.staking.withdraw(provider, SAFE, sender=account.owner)
        account.queue = [entry for entry in account.queue if entry[1] > self.evm.now]
        self.paid[SAFE] += due

    @rule(provider=providers, amount=st.one_of(AMOUNTS, st.just(0)), around=st.booleans())
    def slash(self, provider: Actor, amount: int, around: bool) -> None:
        account = self.accounts[provider]
        if around and account.queue:
            amount = account.bonded + account.queue[-1][0] + amount % 3 - 1
        taken = self.staking.slash(provider, amount, VICTIM, sender=self.staking.slasher()).result
        assert taken == min(amount, account.bonded + account.queued)
        self.paid[VICTIM] += taken
        from_bonded = min(amount, account.bonded)
        account.bonded -= from_bonded
        taken -= from_bonded
        while taken:
            last, release_at = account.queue.pop()
            if taken < last:
                account.queue.append((last - taken, release_at))
            taken -= min(taken, last)

    @rule(provider=providers)
    def toggle_offer(self, provider: Actor) -> None:
        account, registry = self.accounts[provider], self.market.registry

        def toggle() -> None:
            if account.created:
                registry.set_offer_active(account.offer, not account.active, sender=account.owner)
            else:
                registry.create_offer(provider, TERMS.struct, sender=account.owner)

        if not account.active and account.bonded < MINIMUM:
            with reverts("registry: below the minimum stake"):
                toggle()
            return
        toggle()
        account.created, account.active = True, not account.active

    @rule(provider=providers)
    def delist(self, provider: Actor) -> None:
        account = self.accounts[provider]
        if not account.active:
            return
        if account.bonded >= MINIMUM:
            with reverts("registry: provider has its stake"):
                self.market.registry.delist(account.offer, sender=STRANGER)
            return
        self.market.registry.delist(account.offer, sender=STRANGER)
        account.active = False

    @rule(provider=providers, to=st.sampled_from(OWNERS))
    def sell(self, provider: Actor, to: Actor) -> None:
        account = self.accounts[provider]
        self.market.registry.transfer_ownership(provider, to, sender=account.owner)
        self.market.registry.accept_ownership(provider, sender=to)
        account.owner = to

    # What strangers and the world do.

    @rule(amount=st.integers(1, MINIMUM))
    def donate(self, amount: int) -> None:
        self.market.give(self.staking.address, amount)
        self.gifts += amount

    @rule(seconds=st.sampled_from([0, 1, PERIOD // 3, PERIOD - 1, PERIOD]))
    def wait(self, seconds: int) -> None:
        self.evm.sleep(seconds)

    @rule(provider=providers, stranger=st.sampled_from([*OWNERS, STRANGER, VICTIM]))
    def meddle(self, provider: Actor, stranger: Actor) -> None:
        if stranger == self.accounts[provider].owner:
            return
        for call in (
            lambda: self.staking.request_unbond(provider, 1, sender=stranger),
            lambda: self.staking.cancel_unbond(provider, sender=stranger),
            lambda: self.staking.withdraw(provider, stranger, sender=stranger),
        ):
            with reverts("staking: not the owner"):
                call()
        with reverts("staking: not the slasher"):
            self.staking.slash(provider, 1, stranger, sender=stranger)

    # What holds after every step.

    @invariant()
    def views_agree_with_the_model(self) -> None:
        names = ("stake_of", "slashable", "has_minimum", "unbonding")
        views = [(self.staking, name, provider) for provider in PROVIDERS for name in names]
        views += [(self.market.registry, "active_offers_of", provider) for provider in PROVIDERS]
        answers = self.evm.read(*views)
        for i, account in enumerate(self.accounts.values()):
            assert answers[4 * i] == account.bonded
            assert answers[4 * i + 1] == account.bonded + account.queued
            assert answers[4 * i + 2] == (account.bonded >= MINIMUM)
            assert list(answers[4 * i + 3]) == account.queue
            assert answers[4 * len(PROVIDERS) + i] == account.active

    @invariant()
    def holds_what_it_owes(self) -> None:
        owed = sum(account.bonded + account.queued for account in self.accounts.values())
        assert self.market.held(self.staking.address) == owed + self.gifts
        for receiver, amount in self.paid.items():
            assert self.market.held(receiver) == amount

    def everybody_leaves(self) -> None:
        for provider, account in self.accounts.items():
            if account.active:
                self.toggle_offer(provider)
            self.cancel_all(provider, account)
            if account.bonded:
                self.staking.request_unbond(provider, account.bonded, sender=account.owner)
        self.evm.sleep(PERIOD)
        for provider, account in self.accounts.items():
            if account.bonded:
                self.staking.withdraw(provider, SAFE, sender=account.owner)
        assert self.market.held(self.staking.address) == self.gifts

    def cancel_all(self, provider: Actor, account: Account) -> None:
        if account.queue:
            self.cancel_unbond(provider)


@pytest.mark.parametrize("asset", ["coins", "tokens"])
def test_holds_what_it_owes(markets: dict[str, Market], asset: str) -> None:
    # Each step is several transactions: fewer examples than the profile's, and shorter ones, find as much.
    few = settings(max_examples=max(8, PROFILE.examples // 5), stateful_step_count=50)
    run_state_machine_as_test(lambda: StakingMachine(markets[asset]), settings=few)
