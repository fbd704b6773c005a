"""The state of all products and licences, kept from nothing but events: for gateways that ask no node at each
request, and for whoever checks that License holds what it owes.

    books = LicenceBooks()
    for event in await chain.licence_events(first, last):
        books.apply(event)
    books.licences[number].is_valid(now)
    books.waiting(token)  # License's balance in StreamPay's vault, less what was donated to it

Events must be applied in the order of the chain, from the block of the deployment on.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace

from penstock.licences import (
    ENDLESS,
    MAX_PAID,
    AutoCharge,
    AutoChargeChanged,
    Completed,
    Licence,
    LicenceEvent,
    LicenceId,
    Licensed,
    PricesChanged,
    Product,
    ProductActiveChanged,
    ProductId,
    ProductPublished,
    Rating,
    Refunded,
    Release,
    Released,
    Renewed,
    Reviewed,
    Revoked,
    SessionKeyChanged,
    Status,
    Upgraded,
    UsageRecorded,
)
from penstock.types import ZERO_ADDRESS, Address


@dataclass
class LicenceBooks:
    products: dict[ProductId, Product] = field(default_factory=dict)
    releases: dict[tuple[ProductId, int], Release] = field(default_factory=dict)
    """By product and number, from 1."""
    licences: dict[LicenceId, Licence] = field(default_factory=dict)
    auto_charges: dict[LicenceId, AutoCharge] = field(default_factory=lambda: defaultdict(AutoCharge))
    earlier_keys: dict[LicenceId, tuple[Address, int]] = field(default_factory=dict)
    """Of a licence whose session key was replaced: who signed before, and the last second at which that counts."""
    ratings: dict[ProductId, Rating] = field(default_factory=lambda: defaultdict(lambda: Rating(0, 0, 0)))
    _of: dict[tuple[Address, ProductId], list[LicenceId]] = field(default_factory=lambda: defaultdict(list))
    """By licensee and product."""

    def apply(self, event: LicenceEvent) -> None:
        match event:
            case ProductPublished():
                parts = [self.products[part.product] for part in event.listing.parts]
                self.products[event.product] = Product(
                    id=event.product,
                    publisher=event.publisher,
                    active=True,
                    created_at=event.place.timestamp,
                    releases=0,
                    depth=max((part.depth + 1 for part in parts), default=0),
                    nodes=1 + sum(part.nodes for part in parts),
                    prices=(0, 0, 0),
                    listing=event.listing,
                )
            case PricesChanged():
                self.products[event.product] = replace(self.products[event.product], prices=event.prices)
            case Released():
                self.releases[event.product, event.number] = event.release
                self.products[event.product] = replace(self.products[event.product], releases=event.number)
            case ProductActiveChanged():
                self.products[event.product] = replace(self.products[event.product], active=event.active)
            case Reviewed():
                old = self.ratings[event.product]
                self.ratings[event.product] = Rating(
                    old.count + 1, old.weight + event.weight, old.sum + event.stars * event.weight
                )
                self._change(event.licence, reviewed=True)
            case AutoChargeChanged():
                self.auto_charges[event.licence] = AutoCharge(event.budget, event.packs, event.max_price)
            case SessionKeyChanged():
                self.earlier_keys[event.licence] = (self.licences[event.licence].ticket_key, event.previous_until)
                self._change(event.licence, session_key=event.session_key)
            case _:
                self._apply_to_licence(event)

    def _apply_to_licence(
        self, event: Licensed | Renewed | Upgraded | Completed | Refunded | Revoked | UsageRecorded
    ) -> None:
        id = event.licence
        match event:
            case Licensed():
                pending = event.refundable_until > 0
                self.licences[id] = Licence(
                    id=id,
                    licensee=event.licensee,
                    product=event.product,
                    release=event.release,
                    tier=event.tier,
                    status=Status.PENDING if pending else Status.COMPLETED,
                    bought_at=event.place.timestamp,
                    expires_at=event.expires_at,
                    bought=event.bought,
                    used=0,
                    paid=event.cost,
                    reviewed=False,
                    session_key=event.session_key,
                    payer=event.payer if pending else ZERO_ADDRESS,
                    refundable_until=event.refundable_until,
                )
                self._of[event.licensee, event.product].append(id)
            case Renewed():
                self._pay(id, event.cost)
                self._change(id, expires_at=event.expires_at, bought=event.bought)
            case Upgraded():
                self._pay(id, event.cost)
                self._change(id, tier=event.tier)
            case Completed():
                self._end_window(id, Status.COMPLETED)
            case Refunded():
                self._end_window(id, Status.REFUNDED)
                self._change(id, paid=0)
            case Revoked():
                self._end_window(id, Status.REVOKED)
                if event.refund:
                    self._change(id, paid=0)
            case UsageRecorded():
                self._change(id, used=event.used)

    def _change(self, id: LicenceId, **changes: object) -> None:
        self.licences[id] = replace(self.licences[id], **changes)  # type: ignore[arg-type]

    def _pay(self, id: LicenceId, cost: int) -> None:
        self._change(id, paid=min(self.licences[id].paid + cost, MAX_PAID))

    def _end_window(self, id: LicenceId, status: Status) -> None:
        self._change(id, status=status, payer=ZERO_ADDRESS, refundable_until=0)

    def held(self, account: Address, product: ProductId, now: int) -> Licence | None:
        """The licence that an account may use of a product now: of several, the highest tier with most left."""
        own = [self.licences[id] for id in self._of.get((account, product), ())]
        found = [licence for licence in own if licence.is_valid(now)]
        return max(found, key=lambda licence: (licence.tier, licence.remaining(now)), default=None)

    def may_sign(self, id: LicenceId, key: Address, now: int) -> bool:
        """Whether a ticket of this licence, signed by this key, can be recorded now."""
        earlier, until = self.earlier_keys.get(id, (ZERO_ADDRESS, -1))
        return key == self.licences[id].ticket_key or (key == earlier and now <= until)

    def chargeable(self, id: LicenceId, now: int) -> int:
        """The units up to which a ticket can be recorded now, packs out of the budget included; ENDLESS where the
        licence is not sold by usage."""
        licence = self.licences[id]
        if not licence.bought:
            return ENDLESS if licence.is_valid(now) else 0
        if not licence.in_force:
            return licence.used
        product = self.products[licence.product]
        price = product.prices[licence.tier.place] if product.active else 0
        return licence.bought + self.auto_charges[id].affords(price, product.listing.unit)

    def waiting(self, token: Address) -> int:
        """What License keeps of a token in the vault: prices that may go back to their payers, and budgets."""
        total = 0
        for id, licence in self.licences.items():
            if self.products[licence.product].listing.token == token:
                total += licence.paid if licence.status is Status.PENDING else 0
                total += self.auto_charges[id].budget
        return total
