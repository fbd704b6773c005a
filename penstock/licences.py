"""Products, the licences to use them, and what Catalogue.vy and License.vy say of them, with their arithmetic.

Nothing here talks to a chain. Amounts are integers of the token's base units, times Unix seconds; products and
licences are numbered from 1. A gateway that must not ask a node at each request keeps `Licence` values from events
(`penstock.licence_books`) and asks them: `licence.is_valid(now)`, `licence.remaining(now)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NewType

from penstock.types import ZERO_ADDRESS, Address, Place

ProductId = NewType("ProductId", int)
LicenceId = NewType("LicenceId", int)

BPS = 10_000
TREASURY_BPS = 250
"""Of each price, rounded down: what is lost to rounding is the seller's gain."""
MAX_PRICE = 2**85 - 1
"""Of one period or pack: base units."""
MAX_PAID = 2**104 - 1
"""Of one licence at once: base units."""
MAX_UNITS = 2**56 - 1
MAX_QUANTITY = 2**32 - 1
MAX_PARTS = 8
MAX_DEPTH = 3
"""Levels of parts below a composite."""
MAX_NODES = 31
"""Products in a composite's tree, itself included."""
MAX_REFUND_WINDOW = 90 * 24 * 3600
MAX_TICKETS = 100
"""In one call."""
KEY_GRACE = 24 * 3600
"""Seconds in which tickets of a session key that was replaced still count."""
NEVER = 2**40 - 1
"""As `expires_at`: it does not expire."""
ENDLESS = 2**256 - 1
"""As what remains of a licence that is neither a subscription nor sold by usage."""
DAY, WEEK, MONTH = 24 * 3600, 7 * 24 * 3600, 30 * 24 * 3600
"""The periods of subscriptions, in seconds."""
NO_HASH = "0x" + "00" * 32


class Item(IntEnum):
    """What a product is; the values of all these are Vyper's flag bits."""

    SKILL = 1
    MODEL = 2
    DATA = 4


class Category(IntEnum):
    COMMUNICATION = 1
    AUTOMATION = 2
    ANALYSIS = 4
    CREATIVE = 8
    UTILITY = 16
    INTEGRATION = 32


class Kind(IntEnum):
    """By what a licence is sold."""

    FREE = 1
    PERPETUAL = 2
    SUBSCRIPTION = 4
    """By the period."""
    USAGE = 8
    """By the pack of units."""


class Tier(IntEnum):
    """What the licensee may do, by the terms; each has its price."""

    PERSONAL = 1
    COMMERCIAL = 2
    ENTERPRISE = 4

    @property
    def place(self) -> int:
        """Its place among a product's prices."""
        return self.bit_length() - 1


class Status(IntEnum):
    PENDING = 1
    """Valid; the price may still go back to the payer."""
    COMPLETED = 2
    REFUNDED = 4
    REVOKED = 8


@dataclass(frozen=True, slots=True)
class Part:
    product: ProductId
    share: int
    """Basis points of what the composite earns."""


@dataclass(frozen=True, slots=True)
class Version:
    """A semantic version, without the parts after a hyphen or plus."""

    major: int
    minor: int
    patch: int

    @classmethod
    def parse(cls, text: str) -> Version:
        """ "1.4.2"; ValueError where it is none."""
        words = text.split(".")
        if len(words) != 3 or not all(word.isascii() and word.isdigit() for word in words):
            raise ValueError(f"{text!r} is no version: write it as 1.4.2")
        version = cls(*map(int, words))
        if max(version.major, version.minor, version.patch) >= 2**32:
            raise ValueError(f"{text!r} does not fit: each number is below {2**32}")
        return version

    @classmethod
    def unpack(cls, packed: int) -> Version:
        return cls(packed >> 64, packed >> 32 & 2**32 - 1, packed & 2**32 - 1)

    @property
    def packed(self) -> int:
        """As the contract has it; ordered as versions are."""
        return self.major << 64 | self.minor << 32 | self.patch

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


@dataclass(frozen=True, slots=True)
class Release:
    """A version of a product, which never changes. URIs may be empty."""

    version: Version
    content_hash: str = NO_HASH
    """keccak256 of what is licensed, or of the document that names it."""
    terms_hash: str = NO_HASH
    docs_hash: str = NO_HASH
    terms_uri: str = ""
    docs_uri: str = ""
    """JSON that follows ERC-721's metadata schema."""

    def as_tuple(self) -> tuple[object, ...]:
        """In the order of the contract's struct."""
        hashes = (bytes.fromhex(text[2:]) for text in (self.content_hash, self.terms_hash, self.docs_hash))
        return (self.version.packed, *hashes, self.terms_uri, self.docs_uri)


@dataclass(frozen=True, slots=True)
class Listing:
    """What never changes of a product."""

    name: str
    item: Item
    category: Category
    kind: Kind
    token: Address
    unit: int = 0
    """SUBSCRIPTION: seconds of a period (DAY, WEEK or MONTH); USAGE: units in a pack; else 0."""
    refund_window: int = 0
    """Seconds in which a buyer may have its money back; 0: none."""
    revocable: bool = False
    parts: Sequence[Part] = ()

    def as_tuple(self) -> tuple[object, ...]:
        """In the order of the contract's struct."""
        return (
            self.name,
            int(self.item),
            int(self.category),
            int(self.kind),
            self.token,
            self.unit,
            self.refund_window,
            self.revocable,
            [(part.product, part.share) for part in self.parts],
        )


Prices = tuple[int, int, int]
"""Personal, commercial, enterprise: of one period or pack, or of all; 0: not sold in this tier."""


@dataclass(frozen=True, slots=True)
class Product:
    id: ProductId
    publisher: Address
    """Whom its sales pay, for ever."""
    active: bool
    """For sale."""
    created_at: int
    releases: int
    """How many there are; the last is the current one."""
    depth: int
    """Levels of parts below it; 0: no composite."""
    nodes: int
    """Products in its tree, itself included."""
    prices: Prices
    listing: Listing

    def cost(self, tier: Tier, quantity: int = 1) -> int | None:
        """What a licence, or so many periods or packs more, cost now; None where that is not for sale."""
        price = self.prices[tier.place]
        several = self.listing.kind in (Kind.SUBSCRIPTION, Kind.USAGE)
        sold = self.active and (price > 0 or self.listing.kind is Kind.FREE)
        if not sold or not 1 <= quantity <= (MAX_QUANTITY if several else 1):
            return None
        return price * quantity


@dataclass(frozen=True, slots=True)
class Licence:
    id: LicenceId
    licensee: Address
    product: ProductId
    release: int
    """The one that was bought, from 1: its terms hold."""
    tier: Tier
    status: Status
    bought_at: int
    expires_at: int
    """SUBSCRIPTION: the first second without it; else NEVER."""
    bought: int
    """USAGE: units in all; else 0."""
    used: int
    paid: int
    """Base units in all; while pending, what a refund gives back."""
    reviewed: bool
    session_key: Address
    """Signs tickets; the zero address: the licensee itself."""
    payer: Address
    """While pending, who gets a refund; then the zero address."""
    refundable_until: int
    """While pending, the last second of the window; then 0."""

    @property
    def in_force(self) -> bool:
        """Neither refunded nor revoked; it may have expired, or be used up."""
        return self.status in (Status.PENDING, Status.COMPLETED)

    @property
    def ticket_key(self) -> Address:
        """Whose signature a ticket needs."""
        return self.licensee if self.session_key == ZERO_ADDRESS else self.session_key

    def remaining(self, now: int) -> int:
        """Seconds of a subscription, units of usage, else ENDLESS; 0 where it is not valid."""
        if not self.in_force:
            return 0
        if self.bought:
            return self.bought - self.used
        return ENDLESS if self.expires_at == NEVER else max(0, self.expires_at - now)

    def is_valid(self, now: int) -> bool:
        return self.remaining(now) > 0


@dataclass(frozen=True, slots=True)
class AutoCharge:
    """Money set aside by which packs are bought when a ticket needs them."""

    budget: int = 0
    packs: int = 0
    """Bought at a time; 0: none."""
    max_price: int = 0
    """Of a pack: nothing is bought above."""

    def affords(self, price: int, unit: int) -> int:
        """The units that it could buy now at this price of a pack."""
        if not self.packs or not 0 < price <= self.max_price:
            return 0
        return self.budget // (price * self.packs) * self.packs * unit


@dataclass(frozen=True, slots=True)
class Ticket:
    """How many units of a licence were used in all; signed by its session key (EIP-712 type `Ticket`)."""

    licence: LicenceId
    used: int
    signature: bytes = b""

    def as_tuple(self) -> tuple[object, ...]:
        return (self.licence, self.used, self.signature)


@dataclass(frozen=True, slots=True)
class Rating:
    """Of all reviews of a product."""

    count: int
    weight: int
    """What the reviewers paid, together."""
    sum: int
    """Stars x what each paid."""

    @property
    def stars(self) -> float | None:
        """The mean, weighted by what was paid; None where nobody paid."""
        return self.sum / self.weight if self.weight else None


# --- events --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProductPublished:
    place: Place
    product: ProductId
    publisher: Address
    category: Category
    listing: Listing


@dataclass(frozen=True, slots=True)
class Released:
    place: Place
    product: ProductId
    number: int
    release: Release


@dataclass(frozen=True, slots=True)
class PricesChanged:
    place: Place
    product: ProductId
    prices: Prices


@dataclass(frozen=True, slots=True)
class ProductActiveChanged:
    place: Place
    product: ProductId
    active: bool


@dataclass(frozen=True, slots=True)
class Licensed:
    """A licence was bought."""

    place: Place
    licence: LicenceId
    product: ProductId
    licensee: Address
    payer: Address
    release: int
    tier: Tier
    cost: int
    expires_at: int
    bought: int
    session_key: Address
    refundable_until: int
    """0: no window, and the sellers have been paid."""


@dataclass(frozen=True, slots=True)
class Renewed:
    place: Place
    licence: LicenceId
    product: ProductId
    payer: Address
    """The zero address: the budget set aside for it."""
    cost: int
    expires_at: int
    bought: int


@dataclass(frozen=True, slots=True)
class Upgraded:
    place: Place
    licence: LicenceId
    product: ProductId
    tier: Tier
    cost: int


@dataclass(frozen=True, slots=True)
class Completed:
    """The sellers and the treasury have the price."""

    place: Place
    licence: LicenceId
    product: ProductId
    cost: int


@dataclass(frozen=True, slots=True)
class Refunded:
    place: Place
    licence: LicenceId
    product: ProductId
    payer: Address
    amount: int


@dataclass(frozen=True, slots=True)
class Revoked:
    place: Place
    licence: LicenceId
    product: ProductId
    refund: int
    reason: str


@dataclass(frozen=True, slots=True)
class SessionKeyChanged:
    place: Place
    licence: LicenceId
    session_key: Address
    previous_until: int
    """What the earlier key signed counts until then."""


@dataclass(frozen=True, slots=True)
class UsageRecorded:
    place: Place
    licence: LicenceId
    product: ProductId
    used: int


@dataclass(frozen=True, slots=True)
class AutoChargeChanged:
    place: Place
    licence: LicenceId
    budget: int
    packs: int
    max_price: int


@dataclass(frozen=True, slots=True)
class Reviewed:
    place: Place
    licence: LicenceId
    product: ProductId
    stars: int
    weight: int
    uri: str
    hash: str


ProductEvent = ProductPublished | Released | PricesChanged | ProductActiveChanged
LicenceEvent = (
    ProductEvent
    | Licensed
    | Renewed
    | Upgraded
    | Completed
    | Refunded
    | Revoked
    | SessionKeyChanged
    | UsageRecorded
    | AutoChargeChanged
    | Reviewed
)
"""All that the catalogue and License say of products and licences."""


# --- who gets what -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Share:
    """What of a sale goes to whom."""

    product: ProductId | None
    """None: the treasury's part."""
    account: Address
    amount: int


def fee(cost: int) -> int:
    """The treasury's part of a price."""
    return cost * TREASURY_BPS // BPS


def upgrade_cost(product: Product, licence: Licence, tier: Tier, now: int) -> int:
    """What a higher tier costs: the difference in price of what is left, rounded up."""
    more = max(0, product.prices[tier.place] - product.prices[licence.tier.place])
    unit = product.listing.unit
    match product.listing.kind:
        case Kind.SUBSCRIPTION:
            left = max(0, licence.expires_at - now)
        case Kind.USAGE:
            left = licence.bought - licence.used
        case _:
            return more
    return -(-more * left // unit)


@dataclass
class _Node:
    product: Product
    amount: int
    parts: list[_Node] = field(default_factory=list)


def split(cost: int, product: Product, product_of: Callable[[ProductId], Product], treasury: Address) -> list[Share]:
    """How a price is shared among the treasury, the product's publisher and those of its parts, to the last unit.

    Each part has its share rounded down, of what its composite has; what is left is the composite's publisher's.
    The sum is `cost`. `product_of` finds a part.
    """
    queue = [_Node(product, cost - fee(cost))]
    for node in queue:  # grows as parts are found
        whole = node.amount
        for part in node.product.listing.parts:
            amount = whole * part.share // BPS
            node.amount -= amount
            queue.append(_Node(product_of(part.product), amount))
    shares = [Share(None, treasury, fee(cost))]
    shares += [Share(node.product.id, node.product.publisher, node.amount) for node in queue]
    return [share for share in shares if share.amount]
