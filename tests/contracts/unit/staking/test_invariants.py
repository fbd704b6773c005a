"""A state machine against a model in Python: what staking holds is what it owes, to the wei.

Its random steps: stakes by anybody, exits, slashes, freezes, offers of few and many slots, sales of providers,
donations, time, and strangers who try everything. After each step every view is compared; in the end what is frozen is
let go, everybody leaves, and nothing is left but gifts.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.contracts.harness import Actor, reverts
from tests.contracts.market import COVER, MINIMUM, PERIOD, TERMS, Market
from tests.profiles import COUNTS, PROFILE

PROVIDERS = [Actor(f"provider {i}") for i in range(3)]
OWNERS = [*PROVIDERS, Actor("buyer")]
VICTIM, STRANGER, SAFE = Actor("victim"), Actor("stranger"), Actor("safe")
AMOUNTS = st.one_of(
    st.sampled_from([1, 2, MINIMUM - 1, MINIMUM, MINIMUM + 1, 3 * MINIMUM]), st.integers(1, 2 * MINIMUM)
)


OFFERS = [TERMS.but(slots=slots) for slots in (1, 999, 1_600)]
"""Of each provider: the minimum covers the first two, all three need more than twice as much."""


@dataclass
class Account:
    """What the model knows of a provider."""

    owner: str
    bonded: int = 0
    queue: list[tuple[int, int]] = field(default_factory=list)
    frozen: int = 0
    active: set[int] = field(default_factory=set)
    """Which of `OFFERS`."""
    created: set[int] = field(default_factory=set)
    slashed: bool = False

    @property
    def queued(self) -> int:
        return sum(amount for amount, _ in self.queue)

    @property
    def total(self) -> int:
        return self.bonded + self.queued

    @property
    def slots(self) -> int:
        return sum(OFFERS[i].slots for i in self.active)

    def covers(self, slots: int) -> bool:
        return self.bonded >= needed(slots)


def needed(slots: int) -> int:
    return max(MINIMUM, slots * COVER)


class StakingMachine(RuleBasedStateMachine):
    providers = st.sampled_from(PROVIDERS)
    offers = st.integers(0, len(OFFERS) - 1)

    def __init__(self, market: Market) -> None:
        super().__init__()
        self.market, self.staking, self.evm = market, market.staking, market.evm
        self.undo = ExitStack()
        self.undo.enter_context(self.evm.snapshot())
        self.calls_before = self.evm.calls
        self.accounts = {provider: Account(provider) for provider in PROVIDERS}
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
        if account.covers(account.slots) and part == 4:
            amount = account.bonded - needed(account.slots) + less  # around what offers need
        if amount <= 0:
            return

        def request() -> None:
            self.staking.request_unbond(provider, amount, sender=account.owner)

        if account.active and account.bonded - amount < needed(account.slots):
            with reverts("staking: active offers need their cover"):
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
            if account.bonded > needed(account.slots) and len(account.queue) < 16:
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
        free = max(0, account.total - account.frozen)
        if account.frozen and not free:
            with reverts("staking: all of it is frozen"):
                self.staking.withdraw(provider, SAFE, sender=account.owner)
            return
        if not due:
            with reverts("staking: nothing to withdraw yet"):
                self.staking.withdraw(provider, SAFE, sender=account.owner)
            return
        paid = min(due, free)
        assert self.staking.withdraw(provider, SAFE, sender=account.owner).log("Unstaked")["amount"] == paid
        self.paid[SAFE] += paid
        while paid:
            oldest, release_at = account.queue.pop(0)
            if paid < oldest:
                account.queue.insert(0, (oldest - paid, release_at))
            paid -= min(paid, oldest)

    @rule(provider=providers, amount=st.one_of(AMOUNTS, st.just(0)), around=st.booleans())
    def slash(self, provider: Actor, amount: int, around: bool) -> None:
        account = self.accounts[provider]
        if around and account.queue:
            amount = account.bonded + account.queue[-1][0] + amount % 3 - 1
        taken = self.staking.slash(provider, amount, VICTIM, sender=self.staking.slasher()).result
        assert taken == min(amount, account.bonded + account.queued)
        self.paid[VICTIM] += taken
        account.slashed |= taken > 0
        from_bonded = min(amount, account.bonded)
        account.bonded -= from_bonded
        taken -= from_bonded
        while taken:
            last, release_at = account.queue.pop()
            if taken < last:
                account.queue.append((last - taken, release_at))
            taken -= min(taken, last)

    @rule(provider=providers, amount=AMOUNTS, around=st.booleans())
    def freeze(self, provider: Actor, amount: int, around: bool) -> None:
        account = self.accounts[provider]
        if around and account.queue:  # so that part of an entry stays
            amount = max(0, account.total - account.frozen - account.queue[0][0] + amount % 3 - 1)
        self.market.freeze(provider, amount)
        account.frozen += amount

    @rule(provider=providers, part=st.integers(1, 3), more=st.integers(0, 1))
    def unfreeze(self, provider: Actor, part: int, more: int) -> None:
        account = self.accounts[provider]
        if part == 1 and more:
            with reverts("staking: more than is frozen"):
                self.market.unfreeze(provider, account.frozen + more)
            return
        amount = account.frozen // part
        self.market.unfreeze(provider, amount)
        account.frozen -= amount

    @rule(provider=providers)
    def lose_a_challenge(self, provider: Actor) -> None:
        """All that was frozen is taken, as far as it is there."""
        amount = self.accounts[provider].frozen
        self.unfreeze(provider, 1, 0)
        self.slash(provider, amount, False)

    @rule(provider=providers, which=offers)
    def toggle_offer(self, provider: Actor, which: int) -> None:
        account, registry, terms = self.accounts[provider], self.market.registry, OFFERS[which]

        def toggle() -> None:
            if which in account.created:
                registry.set_offer_active(terms.id(provider), which not in account.active, sender=account.owner)
            else:
                registry.create_offer(provider, terms.struct, sender=account.owner)

        if which not in account.active and not account.covers(account.slots + terms.slots):
            with reverts("registry: too little stake for the slots"):
                toggle()
            return
        toggle()
        account.created.add(which)
        account.active ^= {which}

    @rule(provider=providers, which=offers)
    def delist(self, provider: Actor, which: int) -> None:
        account, offer_id = self.accounts[provider], OFFERS[which].id(provider)
        if which not in account.active:
            return
        if account.covers(account.slots):
            with reverts("registry: provider has its stake"):
                self.market.registry.delist(offer_id, sender=STRANGER)
            return
        self.market.registry.delist(offer_id, sender=STRANGER)
        account.active.remove(which)

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
        for call in (
            lambda: self.staking.slash(provider, 1, stranger, sender=stranger),
            lambda: self.staking.freeze(provider, 1, sender=stranger),
            lambda: self.staking.unfreeze(provider, 0, sender=stranger),
        ):
            with reverts("staking: not the slasher"):
                call()

    # What holds after every step.

    @invariant()
    def views_agree_with_the_model(self) -> None:
        names = ("stake_of", "slashable", "frozen", "unbonding")
        views: list[tuple[Any, ...]] = []
        expected: list[Any] = []
        for provider, account in self.accounts.items():
            views += [(self.staking, name, provider) for name in names]
            expected += [account.bonded, account.total, account.frozen, account.queue]
            views += [(self.market.registry, name, provider) for name in ("active_offers_of", "active_slots_of")]
            expected += [len(account.active), account.slots]
            for slots in (account.slots, account.bonded // COVER, account.bonded // COVER + 1):
                views.append((self.staking, "covers", provider, slots))
                expected.append(account.covers(slots))
        answers = self.evm.read(*views)
        assert [list(answer) if isinstance(answer, tuple) else answer for answer in answers] == expected

    @invariant()
    def holds_what_it_owes(self) -> None:
        owed = sum(account.total for account in self.accounts.values())
        assert self.market.held(self.staking.address) == owed + self.gifts
        for receiver, amount in self.paid.items():
            assert self.market.held(receiver) == amount

    @invariant()
    def only_a_slash_takes_cover_from_the_active(self) -> None:
        for account in self.accounts.values():
            assert not account.active or account.covers(account.slots) or account.slashed

    def everybody_leaves(self) -> None:
        for provider, account in self.accounts.items():
            for which in sorted(account.active):
                self.toggle_offer(provider, which)
            self.market.unfreeze(provider, account.frozen)
            account.frozen = 0
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
