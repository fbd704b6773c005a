"""What the chain's events say about sales: by day for a seller, by licence for a buyer, and what goes together.

Everything here is recomputed from public events by License's own arithmetic: anybody comes to the same sums.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from penstock.licences import (
    Completed,
    LicenceEvent,
    LicenceId,
    Licensed,
    Product,
    ProductId,
    Refunded,
    Renewed,
    Upgraded,
    UsageRecorded,
    split,
)
from penstock.types import Address


@dataclass(slots=True)
class Day:
    """What a publisher sold of one product on one day (UTC), directly and as part of composites."""

    day: str
    product: ProductId
    sales: int = 0
    renewals: int = 0
    refunds: int = 0
    units: int = 0
    """Used, as tickets say that were posted."""
    earned: int = 0
    """Base units of the sold product's token, for the publisher alone: after the treasury and other parts."""
    token: str = ""


def by_day(
    events: Iterable[LicenceEvent], products: Mapping[ProductId, Product], publisher: Address, treasury: Address
) -> list[Day]:
    """By day, product and token, oldest first."""
    days: dict[tuple[str, ProductId, str], Day] = {}
    used: dict[LicenceId, int] = defaultdict(int)

    def day(at: int, product: ProductId, token: str) -> Day:
        date = datetime.fromtimestamp(at, UTC).date().isoformat()
        return days.setdefault((date, product, token), Day(date, product, token=token))

    def earn(event: Licensed | Renewed | Upgraded | Completed) -> None:
        sold = products[event.product]
        for share in split(event.cost, sold, products.__getitem__, treasury):
            if share.product is not None and share.account == publisher:
                day(event.place.timestamp, share.product, sold.listing.token).earned += share.amount

    for event in events:
        match event:
            case Licensed() | Renewed() | Upgraded() | Completed():
                if not (isinstance(event, Licensed) and event.refundable_until):
                    earn(event)
        product = getattr(event, "product", None)
        if product is None or product not in products or products[product].publisher != publisher:
            continue
        at = day(event.place.timestamp, product, products[product].listing.token)
        match event:
            case Licensed():
                at.sales += 1
            case Renewed():
                at.renewals += 1
            case Refunded():
                at.refunds += 1
            case UsageRecorded():
                at.units += event.used - used[event.licence]
                used[event.licence] = event.used
    rows = [one for one in days.values() if one.sales or one.renewals or one.refunds or one.units or one.earned]
    return sorted(rows, key=lambda one: (one.day, one.product))


@dataclass(frozen=True, slots=True)
class Together:
    product: ProductId
    both: int
    """Accounts that bought both."""
    of: int
    """Accounts that bought this one."""


def bought_together(
    events: Iterable[LicenceEvent], products: Mapping[ProductId, Product], product: ProductId
) -> list[Together]:
    """What those who bought a product also bought: most common buyers first, then those of whom it has the larger part.
    Publishers who buy their own do not count, nor does what was refunded. No account counts twice."""
    buyers: dict[ProductId, set[Address]] = defaultdict(set)
    refunded: set[LicenceId] = set()
    seen = list(events)
    for event in seen:
        if isinstance(event, Refunded):
            refunded.add(event.licence)
    for event in seen:
        if isinstance(event, Licensed) and event.licence not in refunded:
            found = products.get(event.product)
            if found is not None and event.payer != found.publisher and event.licensee != found.publisher:
                buyers[event.product].add(event.licensee)
    ours = buyers.pop(product, set())
    rows = [
        Together(other, len(ours & accounts), len(accounts))
        for other, accounts in buyers.items()
        if products[other].active and ours & accounts
    ]
    return sorted(rows, key=lambda one: (-one.both, one.of, one.product))
