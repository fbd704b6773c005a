"""Catalogue and License: products, and the licences to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from penstock.chain._batches import require_tickets
from penstock.chain.fake._node import Node
from penstock.chain.fake._rules.licences import LicenceRules
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
    Ticket,
    Tier,
    upgrade_cost,
)
from penstock.types import ZERO_ADDRESS, Address
from penstock.wire.eip712 import Domain

Found = TypeVar("Found")


class Licences(Node):
    # --- reading ---

    async def product(self, product: ProductId) -> Product:
        return _found((await self._latest()).state.products.get(product), f"product {product}")

    async def products(self) -> list[Product]:
        return list((await self._latest()).state.products.values())

    async def products_of(self, publisher: Address) -> list[Product]:
        return [product for product in await self.products() if product.publisher == publisher]

    async def products_in(self, category: Category) -> list[Product]:
        return [product for product in await self.products() if product.listing.category == category]

    async def release(self, product: ProductId, number: int) -> Release:
        found = (await self._latest()).state.releases.get((product, number))
        return _found(found, f"release {number} of product {product}")

    async def rating(self, product: ProductId) -> Rating:
        return (await self._latest()).state.ratings.get(product, Rating(0, 0, 0))

    async def licence(self, licence: LicenceId) -> Licence:
        return _found((await self._latest()).state.licences.get(licence), f"licence {licence}")

    async def licences_of(self, licensee: Address) -> list[Licence]:
        found = (await self._latest()).state.licences.values()
        return [licence for licence in found if licence.licensee == licensee]

    async def is_valid(self, licence: LicenceId) -> bool:
        return await self.remaining(licence) > 0

    async def remaining(self, licence: LicenceId) -> int:
        latest = await self._latest()
        found = latest.state.licences.get(licence)
        return found.remaining(latest.block.timestamp) if found else 0

    async def upgrade_cost(self, licence: LicenceId, tier: Tier) -> int:
        latest = await self._latest()
        found = _found(latest.state.licences.get(licence), f"licence {licence}")
        return upgrade_cost(latest.state.products[found.product], found, tier, latest.block.timestamp)

    async def auto_charge(self, licence: LicenceId) -> AutoCharge:
        return (await self._latest()).state.auto_charges.get(licence, AutoCharge())

    async def treasury(self) -> Address:
        return (await self._latest()).state.treasury

    async def licence_events(self, first: int, last: int) -> list[LicenceEvent]:
        return [event for mined in await self._between(first, last) for event in mined.licences]

    # --- writing ---

    async def publish(self, publisher: Account, listing: Listing, prices: Prices, release: Release) -> Receipt:
        return await self._trade(
            publisher, "publishing the product", lambda shop: shop.publish(listing, prices, release)
        )

    async def add_release(self, publisher: Account, product: ProductId, release: Release) -> Receipt:
        return await self._trade(publisher, "publishing the release", lambda shop: shop.add_release(product, release))

    async def set_prices(self, publisher: Account, product: ProductId, prices: Prices) -> Receipt:
        return await self._trade(publisher, "changing the prices", lambda shop: shop.set_prices(product, prices))

    async def set_product_active(self, publisher: Account, product: ProductId, active: bool) -> Receipt:
        return await self._trade(
            publisher, "changing whether the product is for sale", lambda shop: shop.set_active(product, active)
        )

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
        def act(shop: LicenceRules) -> None:
            holder, key = licensee or payer.address, session_key or ZERO_ADDRESS
            shop.buy(product, release, tier, quantity, max_cost, holder, key)

        return await self._trade(payer, "buying the licence", act, value)

    async def renew_licence(
        self, payer: Account, licence: LicenceId, *, quantity: int, max_cost: int, value: int = 0
    ) -> Receipt:
        return await self._trade(
            payer, "renewing the licence", lambda shop: shop.renew(licence, quantity, max_cost), value
        )

    async def upgrade_licence(
        self, licensee: Account, licence: LicenceId, tier: Tier, *, max_cost: int, value: int = 0
    ) -> Receipt:
        return await self._trade(
            licensee, "upgrading the licence", lambda shop: shop.upgrade(licence, tier, max_cost), value
        )

    async def complete_licence(self, sender: Account, licence: LicenceId) -> Receipt:
        return await self._trade(sender, "completing the purchase", lambda shop: shop.complete(licence))

    async def refund_licence(self, sender: Account, licence: LicenceId) -> Receipt:
        return await self._trade(sender, "giving the price back", lambda shop: shop.refund(licence))

    async def revoke_licence(self, publisher: Account, licence: LicenceId, reason: str) -> Receipt:
        return await self._trade(publisher, "revoking the licence", lambda shop: shop.revoke(licence, reason))

    async def set_session_key(self, licensee: Account, licence: LicenceId, key: Address) -> Receipt:
        return await self._trade(licensee, "changing the session key", lambda shop: shop.set_session_key(licence, key))

    async def record_usage(self, sender: Account, tickets: Sequence[Ticket]) -> Receipt:
        require_tickets(tickets)
        return await self._trade(sender, "recording usage", lambda shop: shop.record_usage(tickets))

    async def set_auto_charge(
        self, licensee: Account, licence: LicenceId, auto: AutoCharge, *, value: int = 0
    ) -> Receipt:
        return await self._trade(
            licensee, "setting the budget", lambda shop: shop.set_auto_charge(licence, auto), value
        )

    async def review(
        self, licensee: Account, licence: LicenceId, stars: int, *, uri: str = "", hash: str = NO_HASH
    ) -> Receipt:
        return await self._trade(licensee, "writing the review", lambda shop: shop.review(licence, stars, uri, hash))

    async def _trade(
        self, account: Account, doing: str, act: Callable[[LicenceRules], None], value: int = 0
    ) -> Receipt:
        return await self._transact(account, doing, lambda tx: act(LicenceRules(tx)), value)

    # --- the domain of tickets ---

    @property
    def license_domain(self) -> Domain:
        return self.contracts.license_domain


def _found(value: Found | None, what: str) -> Found:
    if value is None:
        raise NotFound(f"there is no {what}")
    return value
