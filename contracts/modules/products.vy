# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title Products: what is licensed, at what price, and who has what of it
@license MIT
@notice What a product is never changes: its kind, its token, its parts. Prices and whether it is for sale do,
    and releases are added. A composite names products that are there already, so that no tree has a cycle.
@dev No access control inside: the deployable checks who calls.

    What is stored of a product, from the lowest bit of each word:
        head    publisher 160 | created_at 40 (block timestamp, seconds) | releases 16 | item 8 | category 8 | kind 8 |
                depth 8 | active 1 | revocable 1 | spare 6
        terms   token 160 | unit 56 | refund_window 32 (seconds) | nodes 8
        prices  85 each: personal, commercial, enterprise; base units
        parts   products 8 x 32; shares 8 x 16, basis points, of which 0 ends them
    A head of zero means that there is no such product.
"""

from . import pages
from ..interfaces import ICatalogue

uses: pages

BPS: constant(uint256) = 10_000
DAY: constant(uint256) = 24 * 3600
MASK_8: constant(uint256) = 2**8 - 1
MASK_16: constant(uint256) = 2**16 - 1
MASK_32: constant(uint256) = 2**32 - 1
MASK_40: constant(uint256) = 2**40 - 1
MASK_56: constant(uint256) = 2**56 - 1
MASK_160: constant(uint256) = 2**160 - 1
MAX_PRICE: constant(uint256) = 2**85 - 1
MAX_DEPTH: constant(uint256) = 3  # levels of parts below a composite
MAX_NODES: constant(uint256) = 31  # products in a tree: with the treasury, all that StreamPay pays at once
MAX_REFUND_WINDOW: constant(uint256) = 90 * DAY
ACTIVE: constant(uint256) = 1 << 248
REVOCABLE: constant(uint256) = 1 << 249
# As ICatalogue's flags; a pure function may not name those.
FREE: constant(uint256) = 1
SUBSCRIPTION: constant(uint256) = 4
USAGE: constant(uint256) = 8

_heads: HashMap[uint256, uint256]
_terms: HashMap[uint256, uint256]
_prices: HashMap[uint256, uint256]
_parts: HashMap[uint256, uint256[2]]
_names: HashMap[uint256, String[64]]
_releases: HashMap[uint256, HashMap[uint256, ICatalogue.Release]]
_count: uint256


@internal
@pure
def _publisher(head: uint256) -> address:
    return convert(head & MASK_160, address)


@internal
@pure
def _release_count(head: uint256) -> uint256:
    return (head >> 200) & MASK_16


@internal
@pure
def _kind(head: uint256) -> uint256:
    return (head >> 232) & MASK_8


@internal
@pure
def _depth(head: uint256) -> uint256:
    return (head >> 240) & MASK_8


@internal
@pure
def _token(terms: uint256) -> address:
    return convert(terms & MASK_160, address)


@internal
@pure
def _unit(terms: uint256) -> uint256:
    return (terms >> 160) & MASK_56


@internal
@pure
def _refund_window(terms: uint256) -> uint256:
    return (terms >> 216) & MASK_32


@internal
@pure
def _is_one(bits: uint256) -> bool:
    """@return True where exactly one flag is set."""
    return bits != 0 and bits & (bits - 1) == 0


@internal
@pure
def _publisher_key(publisher: address) -> bytes32:
    """@notice The list of a publisher's products."""
    return keccak256(abi_encode("publisher", publisher))


@internal
@pure
def _category_key(category: uint256) -> bytes32:
    """@notice The list of a category's products."""
    return keccak256(abi_encode("category", category))


@internal
def _publish(
    publisher: address, listing: ICatalogue.Listing, prices: uint256[3], release: ICatalogue.Release
) -> uint256:
    kind: uint256 = convert(listing.kind, uint256)
    category: uint256 = convert(listing.category, uint256)
    item: uint256 = convert(listing.item, uint256)
    assert len(listing.name) > 0, "catalogue: empty name"
    assert self._is_one(item) and self._is_one(category) and self._is_one(kind), "catalogue: not one of its sort"
    if kind == SUBSCRIPTION:
        period: uint256 = listing.unit
        assert period == DAY or period == 7 * DAY or period == 30 * DAY, "catalogue: period is not a day, 7 or 30 days"
    elif kind == USAGE:
        assert 0 < listing.unit and listing.unit <= MASK_56, "catalogue: no such pack of units"
    else:
        assert listing.unit == 0, "catalogue: unit without a use"
    assert listing.refund_window <= MAX_REFUND_WINDOW, "catalogue: refund window too long"
    assert kind != FREE or listing.refund_window == 0, "catalogue: nothing to refund"
    assert listing.token == empty(address) or listing.token.is_contract, "catalogue: token is not a contract"

    number: uint256 = self._count + 1
    assert number <= MASK_32, "catalogue: too many products"
    depth: uint256 = 0
    nodes: uint256 = 0
    depth, nodes = self._set_parts(number, listing.parts)
    head: uint256 = (
        convert(publisher, uint256)
        | (block.timestamp << 160)
        | (item << 216)
        | (category << 224)
        | (kind << 232)
        | (depth << 240)
        | ACTIVE
    )
    if listing.revocable:
        head |= REVOCABLE
    self._heads[number] = head
    self._terms[number] = (
        convert(listing.token, uint256) | (listing.unit << 160) | (listing.refund_window << 216) | (nodes << 248)
    )
    self._names[number] = listing.name
    self._count = number
    pages._append(self._publisher_key(publisher), number)
    pages._append(self._category_key(category), number)
    log ICatalogue.ProductPublished(
        product=number, publisher=publisher, category=listing.category, listing=listing
    )
    self._set_prices(number, kind, prices)
    self._add_release(number, release)
    return number


@internal
def _set_parts(number: uint256, parts: DynArray[ICatalogue.Part, 8]) -> (uint256, uint256):
    """@return Levels below the product, and products in its tree."""
    depth: uint256 = 0
    nodes: uint256 = 1
    shared: uint256 = 0
    ids: uint256 = 0
    shares: uint256 = 0
    place: uint256 = 0
    for part: ICatalogue.Part in parts:
        head: uint256 = self._heads[part.product]
        assert head != 0, "catalogue: no such part"
        assert part.share > 0, "catalogue: part without a share"
        assert part.share <= BPS - shared, "catalogue: more than the whole is shared"
        shared += part.share
        depth = max(depth, self._depth(head) + 1)
        nodes += self._terms[part.product] >> 248
        ids |= part.product << (place << 5)
        shares |= part.share << (place << 4)
        place += 1
    assert depth <= MAX_DEPTH, "catalogue: tree too deep"
    assert nodes <= MAX_NODES, "catalogue: tree too large"
    if place > 0:
        self._parts[number] = [ids, shares]
    return depth, nodes


@internal
def _set_prices(number: uint256, kind: uint256, prices: uint256[3]):
    word: uint256 = 0
    for i: uint256 in range(3):
        assert prices[i] <= MAX_PRICE, "catalogue: price too large"
        word |= prices[i] << (85 * i)
    assert (word == 0) == (kind == FREE), "catalogue: free of charge or not"
    self._prices[number] = word
    log ICatalogue.PricesChanged(product=number, prices=prices)


@internal
def _add_release(number: uint256, release: ICatalogue.Release):
    head: uint256 = self._heads[number]
    last: uint256 = self._release_count(head)
    assert last < MASK_16, "catalogue: too many releases"
    assert release.version > self._releases[number][last].version, "catalogue: version not above the one before"
    self._releases[number][last + 1] = release
    self._heads[number] = head + (1 << 200)
    log ICatalogue.Released(product=number, number=last + 1, release=release)


@internal
def _set_active(number: uint256, active: bool):
    head: uint256 = self._heads[number]
    if active:
        self._heads[number] = head | ACTIVE
    else:
        self._heads[number] = head & ~ACTIVE
    log ICatalogue.ProductActiveChanged(product=number, active=active)


@internal
@view
def _cost(number: uint256, tier: uint256, quantity: uint256) -> uint256:
    head: uint256 = self._heads[number]
    kind: uint256 = self._kind(head)
    assert head & ACTIVE != 0, "catalogue: not for sale"
    assert self._is_one(tier), "catalogue: not one tier"
    assert quantity > 0 and quantity <= (MASK_32 if kind >= SUBSCRIPTION else 1), "catalogue: not a quantity"
    price: uint256 = (self._prices[number] >> (85 * (tier >> 1))) & MAX_PRICE
    assert price > 0 or kind == FREE, "catalogue: not sold in this tier"
    return price * quantity


@internal
@view
def _shares(number: uint256, amount: uint256) -> DynArray[ICatalogue.Share, MAX_NODES]:
    """@return As ICatalogue.shares_of, from the root down, without those who get nothing."""
    shares: DynArray[ICatalogue.Share, MAX_NODES] = []
    products: DynArray[uint256, MAX_NODES] = [number]
    amounts: DynArray[uint256, MAX_NODES] = [amount]
    for i: uint256 in range(MAX_NODES):
        if i == len(products):
            break
        head: uint256 = self._heads[products[i]]
        left: uint256 = amounts[i]
        if self._depth(head) > 0:
            words: uint256[2] = self._parts[products[i]]
            for j: uint256 in range(8):
                share: uint256 = (words[1] >> (j << 4)) & MASK_16
                if share == 0:
                    break
                part: uint256 = amounts[i] * share // BPS
                left -= part
                products.append((words[0] >> (j << 5)) & MASK_32)
                amounts.append(part)
        if left > 0:
            shares.append(ICatalogue.Share(publisher=self._publisher(head), amount=left))
    return shares


@internal
@view
def _figures(number: uint256) -> ICatalogue.Figures:
    """@return All zero where there is no such product."""
    head: uint256 = self._heads[number]
    terms: uint256 = self._terms[number]
    return ICatalogue.Figures(
        publisher=self._publisher(head),
        active=head & ACTIVE != 0,
        revocable=head & REVOCABLE != 0,
        kind=convert(self._kind(head), ICatalogue.Kind),
        releases=self._release_count(head),
        depth=self._depth(head),
        token=self._token(terms),
        unit=self._unit(terms),
        refund_window=self._refund_window(terms),
        prices=self._unpacked(self._prices[number]),
    )


@internal
@pure
def _unpacked(prices: uint256) -> uint256[3]:
    return [prices & MAX_PRICE, (prices >> 85) & MAX_PRICE, prices >> 170]


@internal
@view
def _get(number: uint256) -> ICatalogue.Product:
    """@return All zero where there is no such product."""
    head: uint256 = self._heads[number]
    if head == 0:
        return empty(ICatalogue.Product)
    terms: uint256 = self._terms[number]
    parts: DynArray[ICatalogue.Part, 8] = []
    if self._depth(head) > 0:
        words: uint256[2] = self._parts[number]
        for j: uint256 in range(8):
            share: uint256 = (words[1] >> (j << 4)) & MASK_16
            if share == 0:
                break
            parts.append(ICatalogue.Part(product=(words[0] >> (j << 5)) & MASK_32, share=share))
    return ICatalogue.Product(
        publisher=self._publisher(head),
        active=head & ACTIVE != 0,
        created_at=convert((head >> 160) & MASK_40, uint64),
        releases=self._release_count(head),
        depth=self._depth(head),
        nodes=terms >> 248,
        prices=self._unpacked(self._prices[number]),
        listing=ICatalogue.Listing(
            name=self._names[number],
            item=convert((head >> 216) & MASK_8, ICatalogue.Item),
            category=convert((head >> 224) & MASK_8, ICatalogue.Category),
            kind=convert(self._kind(head), ICatalogue.Kind),
            token=self._token(terms),
            unit=self._unit(terms),
            refund_window=self._refund_window(terms),
            revocable=head & REVOCABLE != 0,
            parts=parts,
        ),
    )
