"""Catalogue and License: products, and the licences to them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from penstock.chain import _licence_events, calls
from penstock.chain._codec import checksum, interface
from penstock.chain.web3._sending import Sending, Takes
from penstock.errors import NotFound
from penstock.events import Receipt
from penstock.keys import Account
from penstock.licences import (
    NO_HASH,
    AutoCharge,
    Category,
    Licence,
    LicenceEvent,
    LicenceId,
    Listing,
    Prices,
    Product,
    ProductId,
    Rating,
    Release,
    Status,
    Ticket,
    Tier,
)
from penstock.types import NATIVE, ZERO_ADDRESS, Address, unhex
from penstock.wire.eip712 import Domain, license_domain


class Licences(Sending):
    # --- reading ---

    async def product(self, product: ProductId) -> Product:
        (found,) = await self._products([product])
        return found

    async def products(self) -> list[Product]:
        count = await self._view(self.catalogue, interface("Catalogue")["product_count"])
        return await self._products(range(1, count + 1))

    async def products_of(self, publisher: Address) -> list[Product]:
        view = interface("Catalogue")["products_of"]
        return await self._products(await self._all_pages(self.catalogue, view, (publisher,)))

    async def products_in(self, category: Category) -> list[Product]:
        view = interface("Catalogue")["products_in"]
        return await self._products(await self._all_pages(self.catalogue, view, (int(category),)))

    async def _products(self, ids: Sequence[int]) -> list[Product]:
        found = await self._views(self.catalogue, interface("Catalogue")["product"], [(id,) for id in ids])
        return [_product(id, value) for id, value in zip(ids, found, strict=True)]

    async def release(self, product: ProductId, number: int) -> Release:
        value = await self._view(self.catalogue, interface("Catalogue")["release"], product, number)
        found = _licence_events.release(value)
        if not found.version.packed:
            raise NotFound(f"there is no release {number} of product {product} on chain {self.chain_id}")
        return found

    async def rating(self, product: ProductId) -> Rating:
        return Rating(*await self._licensed("rating", product))

    async def licence(self, licence: LicenceId) -> Licence:
        (found,) = await self._licences([licence])
        if found is None:
            raise NotFound(f"there is no licence {licence} on chain {self.chain_id}")
        return found

    async def licences_of(self, licensee: Address) -> list[Licence]:
        ids = await self._all_pages(self.license, interface("License")["licences_of"], (licensee,))
        return [found for found in await self._licences(ids) if found]

    async def _licences(self, ids: Sequence[int]) -> list[Licence | None]:
        found = await self._views(self.license, interface("License")["licence"], [(id,) for id in ids])
        return [_licence(id, value) for id, value in zip(ids, found, strict=True)]

    async def is_valid(self, licence: LicenceId) -> bool:
        return bool(await self._licensed("is_valid", licence))

    async def remaining(self, licence: LicenceId) -> int:
        return int(await self._licensed("remaining", licence))

    async def upgrade_cost(self, licence: LicenceId, tier: Tier) -> int:
        return int(await self._licensed("upgrade_cost", licence, int(tier)))

    async def auto_charge(self, licence: LicenceId) -> AutoCharge:
        return AutoCharge(*await self._licensed("auto_charge", licence))

    async def treasury(self) -> Address:
        return checksum(await self._licensed("treasury"))

    async def licence_events(self, first: int, last: int) -> list[LicenceEvent]:
        topics = list(_licence_events.shapes())
        found = await self._logs_of(first, last, topics, [self.catalogue, self.license])
        return [_licence_events.parse(log, moment) for log, moment in found]

    async def _licensed(self, view: str, *args: Any) -> Any:
        return await self._view(self.license, interface("License")[view], *args)

    # --- writing: products ---

    async def publish(self, publisher: Account, listing: Listing, prices: Prices, release: Release) -> Receipt:
        args = (listing.as_tuple(), prices, release.as_tuple())
        return await self._catalogue(publisher, "publish", args, "publishing the product")

    async def add_release(self, publisher: Account, product: ProductId, release: Release) -> Receipt:
        args = (product, release.as_tuple())
        return await self._catalogue(publisher, "add_release", args, "publishing the release")

    async def set_prices(self, publisher: Account, product: ProductId, prices: Prices) -> Receipt:
        return await self._catalogue(publisher, "set_prices", (product, prices), "changing the prices")

    async def set_product_active(self, publisher: Account, product: ProductId, active: bool) -> Receipt:
        args, doing = (product, active), "changing whether the product is for sale"
        return await self._catalogue(publisher, "set_product_active", args, doing)

    async def _catalogue(self, publisher: Account, function: str, args: tuple[Any, ...], doing: str) -> Receipt:
        return await self._send(publisher, self.catalogue, interface("Catalogue")[function], args, doing=doing)

    # --- writing: licences ---

    async def buy_licence(
        self,
        payer: Account,
        product: ProductId,
        *,
        release: int,
        tier: Tier,
        max_cost: int,
        quantity: int = 1,
        licensee: Address | None = None,
        session_key: Address | None = None,
        value: int = 0,
    ) -> Receipt:
        args = (product, release, int(tier), quantity, max_cost, licensee or payer.address, session_key or ZERO_ADDRESS)
        takes = await self._takes(payer, product, tier, quantity)
        return await self._license(payer, "buy", args, "buying the licence", value, takes)

    async def renew_licence(
        self, payer: Account, licence: LicenceId, *, quantity: int, max_cost: int, value: int = 0
    ) -> Receipt:
        (found,) = await self._licences([licence])
        takes = await self._takes(payer, found.product, found.tier, quantity) if found else None
        return await self._license(payer, "renew", (licence, quantity, max_cost), "renewing the licence", value, takes)

    async def upgrade_licence(
        self, licensee: Account, licence: LicenceId, tier: Tier, *, max_cost: int, value: int = 0
    ) -> Receipt:
        args = (licence, int(tier), max_cost)
        return await self._license(licensee, "upgrade", args, "upgrading the licence", value)

    async def complete_licence(self, sender: Account, licence: LicenceId) -> Receipt:
        return await self._license(sender, "complete", (licence,), "completing the purchase")

    async def refund_licence(self, sender: Account, licence: LicenceId) -> Receipt:
        return await self._license(sender, "refund", (licence,), "giving the price back")

    async def revoke_licence(self, publisher: Account, licence: LicenceId, reason: str) -> Receipt:
        return await self._license(publisher, "revoke", (licence, reason), "revoking the licence")

    async def set_session_key(self, licensee: Account, licence: LicenceId, key: Address) -> Receipt:
        return await self._license(licensee, "set_session_key", (licence, key), "changing the session key")

    async def record_usage(self, sender: Account, tickets: Sequence[Ticket]) -> Receipt:
        return await self._make(sender, calls.record_usage(tickets))

    async def set_auto_charge(
        self, licensee: Account, licence: LicenceId, auto: AutoCharge, *, value: int = 0
    ) -> Receipt:
        args = (licence, auto.packs, auto.max_price, auto.budget)
        return await self._license(licensee, "set_auto_charge", args, "setting the budget", value)

    async def review(
        self, licensee: Account, licence: LicenceId, stars: int, *, uri: str = "", hash: str = NO_HASH
    ) -> Receipt:
        args = (licence, stars, uri, unhex(hash))
        return await self._license(licensee, "review", args, "writing the review")

    async def _license(
        self,
        account: Account,
        function: str,
        args: tuple[Any, ...],
        doing: str,
        value: int = 0,
        takes: Takes | None = None,
    ) -> Receipt:
        function_ = interface("License")[function]
        return await self._send(account, self.license, function_, args, doing=doing, value=value, takes=takes)

    async def _takes(self, payer: Account, product: ProductId, tier: Tier, quantity: int) -> Takes | None:
        """What a purchase takes of whom, for a message that says what is lacking."""
        try:
            found = await self.product(product)
        except NotFound:  # the contract says so
            return None
        token, cost = found.listing.token, found.cost(tier, quantity)
        return (token, payer.address, cost, 2**256 - 1) if cost and token != NATIVE else None

    # --- the domain of tickets ---

    @cached_property
    def license_domain(self) -> Domain:
        return license_domain(self.chain_id, self.license)


def _product(id: int, value: tuple[Any, ...]) -> Product:
    publisher, active, created_at, releases, depth, nodes, prices, listing = value
    if not created_at:
        raise NotFound(f"there is no product {id}")
    first, second, third = prices
    return Product(
        ProductId(id),
        checksum(publisher),
        active,
        created_at,
        releases,
        depth,
        nodes,
        (first, second, third),
        _licence_events.listing(listing),
    )


def _licence(id: int, value: tuple[Any, ...]) -> Licence | None:
    """None where there is no such licence."""
    licensee, product, release, tier, status, *rest = value
    if not product:
        return None
    bought_at, expires_at, bought, used, paid, reviewed, session_key, payer, until = rest
    return Licence(
        LicenceId(id),
        checksum(licensee),
        ProductId(product),
        release,
        Tier(tier),
        Status(status),
        bought_at,
        expires_at,
        bought,
        used,
        paid,
        reviewed,
        checksum(session_key),
        checksum(payer),
        until,
    )
