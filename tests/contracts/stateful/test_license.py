"""The catalogue and License against their model: products, purchases, refunds, usage, budgets, time

The model is `penstock.chain.fake`, which provider and consumer are tested with: at every step it must refuse with
the contract's reason, or end in the same state to the last unit. A third party, `penstock.licence_books`, sees
nothing but the logs and must know as much; so does `penstock.audit` of StreamPay's vault.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from penstock.audit import Books
from penstock.chain import _events, _licence_events
from penstock.chain.fake import FakeChain
from penstock.chain.web3._licences import _licence, _product
from penstock.errors import Reverted as ModelReverted
from penstock.keys import LocalAccount
from penstock.licence_books import LicenceBooks
from penstock.licences import (
    DAY,
    MONTH,
    WEEK,
    AutoCharge,
    Category,
    Item,
    Kind,
    Licence,
    LicenceId,
    Listing,
    Part,
    Prices,
    Product,
    Release,
    Status,
    Ticket,
    Tier,
    Version,
    upgrade_cost,
)
from penstock.types import ALL, NATIVE, ZERO_ADDRESS, Address, Token, address
from penstock.wire.eip712 import ticket_digest
from tests.contracts.harness import Actor, reverts
from tests.contracts.shop import TREASURY, Shop, open_shop
from tests.fastchain import Chain, Contract, Reverted
from tests.profiles import COUNTS, PROFILE

WEALTH = 10**30
SHARE = 10
"""Of the runs that a profile gives a state machine."""
PEOPLE = {actor: LocalAccount(actor.key) for actor in map(Actor, ("agent 1", "agent 2", "agent 3", "agent 4"))}
"""Each publishes, pays, holds and posts."""
KEYS = {actor: LocalAccount(actor.key) for actor in map(Actor, ("session key 1", "session key 2"))}
SIGNERS = PEOPLE | KEYS


@dataclass(frozen=True)
class World:
    shop: Shop
    tokens: list[str]

    @property
    def accounts(self) -> list[str]:
        return [*PEOPLE, TREASURY, self.shop.license.address]


@pytest.fixture(scope="module")
def world(evm_of_module: Chain, deploy: Callable[..., Contract], pay: Contract, token: Contract) -> World:
    shop = open_shop(evm_of_module, deploy, pay)
    for account in PEOPLE:
        evm_of_module.set_balance(account, WEALTH)
        token.mint(account, WEALTH, sender=account)
        token.approve(pay.address, ALL, sender=account)
    evm_of_module.set_balance(TREASURY, WEALTH)
    return World(shop, [NATIVE, token.address])


prices = st.one_of(st.integers(1, 60), st.integers(1, 10**6), st.integers(10**17, 10**19))
tiers = st.sampled_from(list(Tier))
people = st.sampled_from(list(PEOPLE))

# How often each among the others; what comes first is drawn oftener still.
ACTIONS: dict[str, int] = {
    "time_passes": 5,
    "buys": 6,
    "records": 6,
    "sets_a_budget": 4,
    "renews": 3,
    "upgrades": 3,
    "completes": 2,
    "refunds": 2,
    "changes_the_key": 1,
    "revokes": 1,
    "reviews": 2,
    "publishes": 2,
    "changes_a_product": 2,
    "pays_in": 2,
    "lets_spend": 2,
    "hands_the_treasury_over": 1,
    "somebody_moves_a_licence": 1,
    "everybody_could_leave": 1,
}

NEED_NO_LICENCE = {"publishes", "changes_a_product", "buys", "pays_in", "lets_spend", "time_passes"}


class LicenseMachine(RuleBasedStateMachine):
    world: World  # set by the test

    def __init__(self) -> None:
        super().__init__()
        self.shop = self.world.shop
        self.evm, self.pay, self.license = self.shop.evm, self.shop.pay, self.shop.license
        self.snapshot = self.evm.snapshot()
        self.snapshot.__enter__()
        self.loop = asyncio.new_event_loop()
        self.model = self.new_model()
        self.books, self.money = LicenceBooks(), Books()
        self.treasury: str = TREASURY
        self.paid_in = dict.fromkeys(self.world.tokens, 0)
        """By token, what StreamPay took in and has not given out."""
        self.before: dict[LicenceId, Licence] = {}

    def new_model(self) -> FakeChain:
        """Where the contracts are and with the same tokens, so that signatures and addresses are the same."""
        places = {"StreamPay": self.pay, "License": self.license, "Catalogue": self.shop.catalogue}
        model = FakeChain(
            chain_id=int(self.evm.rpc("eth_chainId"), 16),
            clock=lambda: self.evm.now,
            places={name: address(contract.address) for name, contract in places.items()},
        )
        state = model._state
        state.treasury = address(TREASURY)
        for token in self.world.tokens[1:]:
            state.tokens[Address(token)] = Token(Address(token), "PLAIN", 18)
            for person in PEOPLE:
                state.allowances[Address(token), Address(person)] = ALL
                model.mint(Address(token), Address(person), WEALTH)
        for person in (*PEOPLE, TREASURY):
            model.set_balance(Address(person), WEALTH)
        return model

    def teardown(self) -> None:
        try:
            self.everyone_exits()
        finally:
            self.snapshot.__exit__(None, None, None)
            self.loop.close()

    # One step.

    def do(self, real: Callable[[], Any], twin: Coroutine[Any, Any, Any], doing: str) -> bool:
        """Make a call on both sides and compare; True where it succeeded."""
        COUNTS["calls to License and its catalogue"] += 1
        reason = None
        try:
            self.loop.run_until_complete(twin)
        except ModelReverted as refused:
            reason = refused.reason
        COUNTS["of them, those that must revert, and did"] += reason is not None
        note(f"{doing}: {reason or 'succeeds'}")
        found, logs = None, []
        try:
            logs = real().raw_logs
        except Reverted as reverted:
            found = reverted.reason
        assert found == reason, f"{doing}: the contract says {found!r}, the model {reason!r}"
        for log in logs:
            if log["topics"][0] in _licence_events.shapes():
                self.books.apply(_licence_events.parse(log, self.evm.now))
            elif log["topics"][0] in _events.money_shapes():
                self.money.apply(_events.parse(log, self.evm.now))
        self.compare()
        return reason is None

    def compare(self) -> None:
        model, world, license = self.model._state, self.world, self.license
        ids, products = list(model.licences), list(model.products)
        pairs = [(token, account) for token in world.tokens for account in world.accounts]
        views: list[tuple[Any, ...]] = [(self.pay, "balance_of", *pair) for pair in pairs]
        views += [(license, "total_supply"), (self.shop.catalogue, "product_count"), (license, "treasury")]
        views += [(license, "balanceOf", person) for person in PEOPLE]
        for id in ids:
            views += [(license, name, id) for name in ("licence", "remaining", "is_valid", "auto_charge", "ownerOf")]
        for number in products:
            views += [(self.shop.catalogue, "product", number), (license, "rating", number)]
        answers = iter(self.evm.read(*views))
        for pair in pairs:
            held = next(answers)
            assert held == model.vault.get(pair, 0), f"the vault balance of {pair}: {held}"  # type: ignore[call-overload]
            assert held == self.money.vault.get(pair, 0)  # type: ignore[call-overload]
        assert (next(answers), next(answers), next(answers)) == (len(ids), len(products), self.treasury)
        counts = [next(answers) for _ in PEOPLE]
        assert sum(counts) == len(ids), "a licence is nobody's, or somebody's twice"
        for id in ids:
            twin, remaining = model.licences[id], model.licences[id].remaining(self.evm.now)
            assert _licence(id, next(answers)) == twin == self.books.licences[id]
            assert (next(answers), next(answers)) == (remaining, remaining > 0)
            auto = AutoCharge(*next(answers))
            assert auto == model.auto_charges.get(id, AutoCharge()) == self.books.auto_charges[id]
            assert next(answers) == twin.licensee
            self.check_licence(twin)
        for number in products:
            assert _product(number, next(answers)) == model.products[number] == self.books.products[number]
            rating = tuple(next(answers))
            assert rating == _fields(model.ratings.get(number)) == _fields(self.books.ratings[number])
        self.check_money()

    def check_licence(self, now: Licence) -> None:
        """What may happen to a licence from one step to the next."""
        then = self.before.get(now.id, now)
        self.before[now.id] = now
        assert (now.licensee, now.product, now.release) == (then.licensee, then.product, then.release)
        assert now.expires_at >= then.expires_at, "a licence was shortened"
        assert then.bought <= now.bought, "units were taken away"
        assert then.used <= now.used <= now.bought, "usage fell, or exceeds what was bought"
        assert now.tier >= then.tier
        allowed = {
            Status.PENDING: set(Status),
            Status.COMPLETED: {Status.COMPLETED, Status.REVOKED},
            Status.REFUNDED: {Status.REFUNDED},
            Status.REVOKED: {Status.REVOKED},
        }
        assert now.status in allowed[then.status]

    def check_money(self) -> None:
        license = self.license.address
        for token in self.world.tokens:
            waiting = self.books.waiting(Address(token))
            assert self.money.vault[Address(token), Address(license)] == waiting, "License has not what it owes"
            owed = sum(amount for (held, _), amount in self.money.vault.items() if held == token)
            holds = self.evm.balance(self.pay.address) if token == NATIVE else self.token.balanceOf(self.pay.address)
            assert owed == holds, "the sum of all credits is not what was paid in"

    @property
    def token(self) -> Contract:
        return self.evm.contracts[self.world.tokens[1]]

    # What is drawn.

    def a_product(self, data: st.DataObject) -> Product:
        return data.draw(st.sampled_from(list(self.model._state.products.values())), label="product")

    def a_licence(
        self, data: st.DataObject, *statuses: Status, kinds: tuple[Kind, ...] = tuple(Kind), reviewed: bool = True
    ) -> Licence:
        """Mostly one that fits."""
        known = list(self.model._state.licences.values())
        fit = [
            licence
            for licence in known
            if self.model._state.products[licence.product].listing.kind in kinds
            and licence.status in (statuses or tuple(Status))
            and licence.reviewed <= reviewed
        ]
        if fit and data.draw(st.integers(0, 9), label="fits?") != 7:
            return data.draw(st.sampled_from(fit), label="licence")
        return data.draw(st.sampled_from(known), label="any licence")

    def who(self, data: st.DataObject, right: str) -> str:
        """Mostly the one who may."""
        if right in PEOPLE and data.draw(st.integers(0, 6), label="the right one?") != 5:
            return right
        return data.draw(people, label="sender")

    def coins(self, data: st.DataObject, token: str, cost: int) -> int:
        if token != NATIVE:
            return int(data.draw(st.integers(0, 20), label="coins with a token") == 17)
        how = data.draw(st.sampled_from(["exact", "exact", "none", "half", "short", "more"]), label="value")
        return {"exact": cost, "none": 0, "half": cost // 2, "short": max(cost - 1, 0), "more": cost + 7}[how]

    @initialize(data=st.data())
    def some_are_there(self, data: st.DataObject) -> None:
        for kind in (Kind.USAGE, Kind.SUBSCRIPTION, Kind.PERPETUAL):
            self.publishes(data, kind)
        for person in PEOPLE:
            for token in self.world.tokens:
                if data.draw(st.booleans(), label=f"{person} lets License spend {token}"):
                    self.spending(person, token, ALL)
        for _ in range(3):
            self.buys(data)

    @rule(data=st.data(), action=st.sampled_from([name for name, weight in ACTIONS.items() for _ in range(weight)]))
    def step(self, data: st.DataObject, action: str) -> None:
        """One rule for all, so that every run mixes all of them."""
        if not self.model._state.products:
            action = "publishes"
        elif not self.model._state.licences and action not in NEED_NO_LICENCE:
            action = "buys"
        getattr(self, action)(data)

    # Actions: products.

    def publishes(self, data: st.DataObject, kind: Kind | None = None) -> None:
        kind = kind or data.draw(st.sampled_from(list(Kind)), label="kind")
        token = data.draw(st.sampled_from(self.world.tokens), label="token")
        known = list(self.model._state.products)
        count = data.draw(st.sampled_from([0, 0, 1, 2, 3, 8]), label="parts") if known else 0
        share = st.one_of(st.integers(0, 10_000 // (count or 1)), st.integers(1, 9_999))
        parts = tuple(
            Part(data.draw(st.sampled_from(known), label="part"), data.draw(share, label="share")) for _ in range(count)
        )
        unit = 0
        if kind is Kind.SUBSCRIPTION:
            unit = data.draw(st.sampled_from([DAY, WEEK, MONTH, DAY, DAY + 1]), label="period")
        elif kind is Kind.USAGE:
            unit = data.draw(st.integers(1, 20), label="pack")
        window = data.draw(st.sampled_from([0, 0, DAY, 3 * DAY]), label="window") if kind is not Kind.FREE else 0
        listing = Listing(
            "Skill",
            data.draw(st.sampled_from(list(Item)), label="item"),
            data.draw(st.sampled_from(list(Category)), label="category"),
            kind,
            Address(token),
            unit,
            window,
            data.draw(st.booleans(), label="revocable"),
            parts,
        )
        asked = self.some_prices(data, kind)
        release, publisher = Release(Version(1, 0, 0)), data.draw(people, label="publisher")
        self.do(
            lambda: self.shop.catalogue.publish(listing.as_tuple(), asked, release.as_tuple(), sender=publisher),
            self.model.publish(PEOPLE[publisher], listing, asked, release),
            f"{publisher} publishes {listing} for {asked}",
        )

    def some_prices(self, data: st.DataObject, kind: Kind) -> Prices:
        if kind is Kind.FREE:
            return 0, 0, 0
        drawn = [data.draw(st.one_of(prices, st.just(0)), label="price") for _ in range(3)]
        return drawn[0], drawn[1], drawn[2]

    def changes_a_product(self, data: st.DataObject) -> None:
        product = self.a_product(data)
        sender = self.who(data, product.publisher)
        words: Any
        what = data.draw(st.sampled_from(["prices", "prices", "sale", "release"]), label="what")
        if what == "prices":
            asked = self.some_prices(data, product.listing.kind)
            name, words = "set_prices", asked
            twin = self.model.set_prices(PEOPLE[sender], product.id, asked)
        elif what == "sale":
            active = data.draw(st.integers(0, 3), label="active") > 0
            name, words = "set_product_active", active
            twin = self.model.set_product_active(PEOPLE[sender], product.id, active)
        else:
            minor = data.draw(st.sampled_from([product.releases, product.releases, 0]), label="minor")
            release = Release(Version(1, minor, 0))
            name, words = "add_release", release.as_tuple()
            twin = self.model.add_release(PEOPLE[sender], product.id, release)
        change = getattr(self.shop.catalogue, name)
        self.do(lambda: change(product.id, words, sender=sender), twin, f"{sender} changes {what} of {product.id}")

    # Actions: purchases.

    def buys(self, data: st.DataObject) -> None:
        product, payer = self.a_product(data), data.draw(people, label="payer")
        sold = [tier for tier in Tier if product.prices[tier.place]] or list(Tier)
        tier = data.draw(st.one_of(st.sampled_from(sold), st.sampled_from(sold), tiers), label="tier")
        counted = product.listing.kind in (Kind.SUBSCRIPTION, Kind.USAGE)
        quantity = data.draw(st.sampled_from([1, 2, 3, 4, 0] if counted else [1, 1, 1, 1, 2]), label="quantity")
        cost = product.prices[tier.place] * quantity
        max_cost = data.draw(st.sampled_from([cost, cost, ALL, max(cost - 1, 0)]), label="bound")
        release = product.releases + int(data.draw(st.integers(0, 15), label="other release") == 15)
        licensee = data.draw(st.one_of(st.just(payer), people), label="licensee")
        key = data.draw(st.sampled_from([ZERO_ADDRESS, *KEYS]), label="session key")
        value = self.coins(data, product.listing.token, cost)
        words = (product.id, release, int(tier), quantity, max_cost, licensee, key)
        twin = self.model.buy_licence(
            PEOPLE[payer],
            product.id,
            release=release,
            tier=tier,
            max_cost=max_cost,
            quantity=quantity,
            licensee=Address(licensee),
            session_key=Address(key),
            value=value,
        )
        self.do(lambda: self.license.buy(*words, sender=payer, value=value), twin, f"{payer} buys {words} for {value}")

    def renews(self, data: st.DataObject) -> None:
        licence = self.a_licence(data, Status.COMPLETED, kinds=(Kind.SUBSCRIPTION, Kind.USAGE))
        product = self.model._state.products[licence.product]
        payer, quantity = data.draw(people, label="payer"), data.draw(st.sampled_from([1, 2, 3, 0]), label="quantity")
        cost = product.prices[licence.tier.place] * quantity
        bound = data.draw(st.sampled_from([cost, ALL, max(cost - 1, 0)]), label="bound")
        value = self.coins(data, product.listing.token, cost)
        self.do(
            lambda: self.license.renew(licence.id, quantity, bound, sender=payer, value=value),
            self.model.renew_licence(PEOPLE[payer], licence.id, quantity=quantity, max_cost=bound, value=value),
            f"{payer} renews {licence.id} by {quantity} for {value}",
        )

    def upgrades(self, data: st.DataObject) -> None:
        licence, tier = self.a_licence(data, Status.COMPLETED), data.draw(st.sampled_from([Tier(4), Tier(2), Tier(1)]))
        product = self.model._state.products[licence.product]
        sender, cost = self.who(data, licence.licensee), upgrade_cost(product, licence, tier, self.evm.now)
        value = self.coins(data, product.listing.token, cost)
        bound = data.draw(st.sampled_from([ALL, ALL, 10**6]), label="bound")
        self.do(
            lambda: self.license.upgrade(licence.id, int(tier), bound, sender=sender, value=value),
            self.model.upgrade_licence(PEOPLE[sender], licence.id, tier, max_cost=bound, value=value),
            f"{sender} upgrades {licence.id} to {tier} for {value}",
        )

    def completes(self, data: st.DataObject) -> None:
        licence = self.a_licence(data, Status.PENDING)
        self.plain(data, "complete", self.model.complete_licence, licence, licence.payer)

    def refunds(self, data: st.DataObject) -> None:
        licence = self.a_licence(data, Status.PENDING)
        self.plain(data, "refund", self.model.refund_licence, licence, licence.payer)

    def revokes(self, data: st.DataObject) -> None:
        licence = self.a_licence(data)
        self.plain(data, "revoke", self.model.revoke_licence, licence, self.publisher_of(licence), "because")

    def changes_the_key(self, data: st.DataObject) -> None:
        key = Address(data.draw(st.sampled_from([ZERO_ADDRESS, *KEYS]), label="key"))
        licence = self.a_licence(data)
        self.plain(data, "set_session_key", self.model.set_session_key, licence, licence.licensee, key)

    def plain(
        self, data: st.DataObject, name: str, twin: Callable[..., Any], licence: Licence, right: str, *args: Any
    ) -> None:
        sender = self.who(data, right)
        self.do(
            lambda: getattr(self.license, name)(licence.id, *args, sender=sender),
            twin(PEOPLE[sender], licence.id, *args),
            f"{sender} calls {name} of {licence.id} with {args}",
        )

    def publisher_of(self, licence: Licence) -> str:
        return self.model._state.products[licence.product].publisher

    # Actions: usage.

    def records(self, data: st.DataObject) -> None:
        sender, batch = data.draw(people, label="sender"), []
        for _ in range(data.draw(st.sampled_from([1, 1, 2, 4]), label="tickets")):
            licence = self.a_licence(data, Status.PENDING, Status.COMPLETED, kinds=(Kind.USAGE,))
            left = licence.bought - licence.used
            ahead = data.draw(st.one_of(st.integers(0, left), st.just(left + 1), st.integers(-1, 60)), label="units")
            used = max(0, licence.used + ahead)
            signer: str = licence.ticket_key
            if data.draw(st.integers(0, 9), label="forged?") == 7 or signer not in SIGNERS:
                signer = data.draw(st.sampled_from(list(SIGNERS)), label="signer")
            digest = ticket_digest(self.model.license_domain, licence.id, used)
            batch.append(Ticket(licence.id, used, SIGNERS[signer].sign_digest(digest)))  # type: ignore[index]
        self.do(
            lambda: self.license.record_usage([ticket.as_tuple() for ticket in batch], sender=sender),
            self.model.record_usage(PEOPLE[sender], batch),
            f"{sender} records {[(ticket.licence, ticket.used) for ticket in batch]}",
        )

    def sets_a_budget(self, data: st.DataObject) -> None:
        licence = self.a_licence(data, Status.PENDING, Status.COMPLETED, kinds=(Kind.USAGE,))
        product = self.model._state.products[licence.product]
        price = product.prices[licence.tier.place]
        packs = data.draw(st.sampled_from([1, 2, 3, 0]), label="packs")
        bound = data.draw(st.sampled_from([price, price, price + 1, max(price - 1, 0)]), label="max price")
        amounts = [price * 9 + 3, price * packs, 0, max(price - 1, 0)]
        auto = AutoCharge(data.draw(st.sampled_from(amounts), label="budget"), packs, bound)
        held = self.model._state.auto_charges.get(licence.id, AutoCharge()).budget
        value = self.coins(data, product.listing.token, max(0, auto.budget - held))
        sender = self.who(data, licence.licensee)
        self.do(
            lambda: self.license.set_auto_charge(
                licence.id, auto.packs, auto.max_price, auto.budget, sender=sender, value=value
            ),
            self.model.set_auto_charge(PEOPLE[sender], licence.id, auto, value=value),
            f"{sender} sets {auto} for {licence.id} with {value}",
        )

    def reviews(self, data: st.DataObject) -> None:
        licence = self.a_licence(data, Status.COMPLETED, reviewed=False)
        stars = data.draw(st.sampled_from([1, 2, 3, 4, 5, 0, 6]), label="stars")
        sender = self.who(data, licence.licensee)
        self.do(
            lambda: self.license.review(licence.id, stars, "", bytes(32), sender=sender),
            self.model.review(PEOPLE[sender], licence.id, stars),
            f"{sender} gives {licence.id} {stars} stars",
        )

    # Actions: money, offices, time.

    def pays_in(self, data: st.DataObject) -> None:
        person, token = data.draw(people, label="who"), data.draw(st.sampled_from(self.world.tokens), label="token")
        amount = data.draw(prices, label="amount")
        self.do(
            lambda: self.pay.deposit(token, amount, sender=person, value=amount if token == NATIVE else 0),
            self.model.deposit(PEOPLE[person], Address(token), amount),
            f"{person} pays in {amount} of {token}",
        )

    def lets_spend(self, data: st.DataObject) -> None:
        token = data.draw(st.sampled_from(self.world.tokens), label="token")
        self.spending(data.draw(people, label="who"), token, data.draw(st.one_of(prices, st.sampled_from([0, ALL]))))

    def spending(self, person: str, token: str, amount: int) -> None:
        self.do(
            lambda: self.pay.allow_spender(self.license.address, token, amount, sender=person),
            self.model.allow_spender(PEOPLE[person], self.model.license, Address(token), amount),  # type: ignore[index]
            f"{person} lets License spend {amount} of {token}",
        )

    def hands_the_treasury_over(self, data: st.DataObject) -> None:
        """To one of the people, or to nobody who accepts; it moves nothing but later parts."""
        if self.treasury != TREASURY:
            return
        heir = data.draw(people, label="heir")
        with reverts("license: not the treasury"):
            self.license.transfer_treasury(heir, sender=heir)
        self.license.transfer_treasury(heir, sender=TREASURY)
        self.license.accept_treasury(sender=heir)
        self.treasury = heir
        self.model._state.treasury = address(heir)
        self.compare()

    def somebody_moves_a_licence(self, data: st.DataObject) -> None:
        licence = self.a_licence(data)
        holder, thief = licence.licensee, data.draw(people, label="receiver")
        name, args = data.draw(
            st.sampled_from(
                [
                    ("transferFrom", (holder, thief, licence.id)),
                    ("safeTransferFrom", (holder, thief, licence.id)),
                    ("approve", (thief, licence.id)),
                    ("setApprovalForAll", (thief, True)),
                ]
            ),
            label="path",
        )
        if name == "safeTransferFrom":  # the ABI has it twice
            body = self.license.encode("transferFrom", *args)[4:]
            data_ = bytes.fromhex("42842e0e") + body
            if data.draw(st.booleans(), label="with data"):
                data_ = bytes.fromhex("b88d4fde") + body + (128).to_bytes(32) + bytes(32)
            with reverts("license: soulbound"):
                self.evm.send(self.license.address, data_, sender=self.who(data, holder))
        else:
            with reverts("license: soulbound"):
                getattr(self.license, name)(*args, sender=self.who(data, holder))
        self.compare()

    def time_passes(self, data: st.DataObject) -> None:
        pauses = st.one_of(st.sampled_from([0, 1, DAY, DAY + 1, WEEK]), st.integers(1, 10 * DAY))
        self.evm.sleep(data.draw(pauses, label="seconds"))
        self.compare()

    def everybody_could_leave(self, data: st.DataObject) -> None:
        if data.draw(st.integers(0, 4), label="do they") == 4:
            self.everyone_exits()

    # Everybody can leave, at any moment, whoever else does what.

    def everyone_exits(self) -> None:
        """In a snapshot: payers take back what they may, the rest is completed by strangers, budgets and credits go
        out; nothing is left."""
        license, pay = self.license, self.pay
        licences = self.model._state.licences
        with self.evm.snapshot():
            for id, licence in licences.items():
                if licence.status is Status.PENDING and self.evm.now <= licence.refundable_until and id % 2:
                    license.refund(id, sender=licence.payer)
                if self.books.auto_charges[id].budget:
                    license.set_auto_charge(id, 0, 0, 0, sender=licence.licensee)
            self.evm.sleep(4 * DAY)
            for id in licences:
                if license.licence(id)[4] == Status.PENDING:
                    license.complete(id, sender=TREASURY)
            for token in self.world.tokens:
                assert pay.balance_of(token, license.address) == 0, "something is left in License"
                for account in (*PEOPLE, TREASURY):
                    if held := pay.balance_of(token, account):
                        pay.withdraw_vault(token, held, account, sender=account)
            assert self.evm.balance(pay.address) == self.token.balanceOf(pay.address) == 0


def _fields(rating: Any) -> tuple[int, int, int]:
    return (rating.count, rating.weight, rating.sum) if rating else (0, 0, 0)


def test_license_does_what_the_model_does(world: World) -> None:
    machine = type("Machine", (LicenseMachine,), {"world": world})
    # A step compares every licence and product there is: dearer than one of StreamPay.
    run_state_machine_as_test(machine, settings=settings(max_examples=max(8, PROFILE.examples // SHARE)))
