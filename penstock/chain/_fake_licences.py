"""Catalogue.vy's and License.vy's rules in memory, for `penstock.chain.fake`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from penstock.chain._batches import require_tickets
from penstock.errors import BadSignature, NotFound
from penstock.licences import (
    BPS,
    DAY,
    KEY_GRACE,
    MAX_DEPTH,
    MAX_NODES,
    MAX_PAID,
    MAX_PARTS,
    MAX_PRICE,
    MAX_QUANTITY,
    MAX_REFUND_WINDOW,
    MAX_UNITS,
    MONTH,
    NEVER,
    NO_HASH,
    WEEK,
    AutoCharge,
    AutoChargeChanged,
    Category,
    Completed,
    Kind,
    Licence,
    LicenceEvent,
    LicenceId,
    Licensed,
    Listing,
    Prices,
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
    Ticket,
    Tier,
    Upgraded,
    UsageRecorded,
    split,
    upgrade_cost,
)
from penstock.types import NATIVE, ZERO_ADDRESS, Address, Receipt
from penstock.wire.eip712 import Domain, recover, ticket_digest

if TYPE_CHECKING:
    from penstock.chain.fake import _Mined, _State, _StreamPay
    from penstock.chain.port import Account

_UINT256 = 2**256 - 1

Require = Callable[[bool, str], None]
Found = TypeVar("Found")


class Shop:
    """One call to the catalogue or to License under way, on a copy of the state. `require` refuses with a reason."""

    def __init__(self, pay: _StreamPay, address: Address, domain: Domain, require: Require) -> None:
        self._pay, self._address, self._domain, self._require = pay, address, domain, require

    @property
    def _state(self) -> _State:
        return self._pay.state

    def _say(self, kind: Callable[..., LicenceEvent], *values: object) -> None:
        self._pay.license(kind, *values)

    # --- products ---

    def publish(self, listing: Listing, prices: Prices, release: Release) -> None:
        for text, most in ((listing.name, 64), (release.terms_uri, 200), (release.docs_uri, 200)):
            self._pay.require_text(text, most)
        self._pay.require_fits((listing.unit, _UINT256), (listing.refund_window, _UINT256))
        require = self._require
        require(len(listing.name) > 0, "catalogue: empty name")
        if listing.kind is Kind.SUBSCRIPTION:
            require(listing.unit in (DAY, WEEK, MONTH), "catalogue: period is not a day, 7 or 30 days")
        elif listing.kind is Kind.USAGE:
            require(0 < listing.unit <= MAX_UNITS, "catalogue: no such pack of units")
        else:
            require(listing.unit == 0, "catalogue: unit without a use")
        require(listing.refund_window <= MAX_REFUND_WINDOW, "catalogue: refund window too long")
        require(listing.kind is not Kind.FREE or listing.refund_window == 0, "catalogue: nothing to refund")
        require(listing.token == NATIVE or listing.token in self._state.tokens, "catalogue: token is not a contract")
        depth, nodes = self._tree(listing)
        self._require_prices(listing.kind, prices)
        number = ProductId(len(self._state.products) + 1)
        publisher = self._pay.sender
        self._state.products[number] = Product(number, publisher, True, self._pay.now, 0, depth, nodes, prices, listing)
        self._say(ProductPublished, number, publisher, listing.category, listing)
        self._say(PricesChanged, number, prices)
        self._release(number, release)

    def _tree(self, listing: Listing) -> tuple[int, int]:
        """Its depth, and how many products are in it."""
        depth, nodes, shared = 0, 1, 0
        self._require(len(listing.parts) <= MAX_PARTS, "no reason given")
        for part in listing.parts:
            found = self._state.products.get(part.product)
            self._require(found is not None, "catalogue: no such part")
            assert found is not None
            self._require(part.share > 0, "catalogue: part without a share")
            shared += part.share
            self._require(shared <= BPS, "catalogue: more than the whole is shared")
            depth = max(depth, found.depth + 1)
            nodes += found.nodes
        self._require(depth <= MAX_DEPTH, "catalogue: tree too deep")
        self._require(nodes <= MAX_NODES, "catalogue: tree too large")
        return depth, nodes

    def _require_prices(self, kind: Kind, prices: Prices) -> None:
        self._pay.require_fits(*((price, _UINT256) for price in prices))
        self._require(all(price <= MAX_PRICE for price in prices), "catalogue: price too large")
        self._require((kind is Kind.FREE) == (not any(prices)), "catalogue: free of charge or not")

    def add_release(self, number: ProductId, release: Release) -> None:
        for text in (release.terms_uri, release.docs_uri):
            self._pay.require_text(text, 200)
        self._published(number)
        self._release(number, release)

    def _release(self, number: ProductId, release: Release) -> None:
        product = self._state.products[number]
        last = self._state.releases.get((number, product.releases))
        above = release.version.packed > (last.version.packed if last else 0)
        self._require(above, "catalogue: version not above the one before")
        count = product.releases + 1
        self._state.releases[number, count] = release
        self._state.products[number] = replace(product, releases=count)
        self._say(Released, number, count, release)

    def set_prices(self, number: ProductId, prices: Prices) -> None:
        product = self._published(number)
        self._require_prices(product.listing.kind, prices)
        self._state.products[number] = replace(product, prices=prices)
        self._say(PricesChanged, number, prices)

    def set_active(self, number: ProductId, active: bool) -> None:
        product = self._published(number)
        self._state.products[number] = replace(product, active=active)
        self._say(ProductActiveChanged, number, active)

    def _published(self, number: ProductId) -> Product:
        """The product that is the sender's."""
        product = self._state.products.get(number)
        self._require(product is not None and product.publisher == self._pay.sender, "catalogue: not the publisher")
        assert product is not None
        return product

    # --- licences ---

    def buy(
        self,
        number: ProductId,
        release: int,
        tier: Tier,
        quantity: int,
        max_cost: int,
        licensee: Address,
        session_key: Address,
    ) -> None:
        product = self._state.products.get(number)
        self._require(product is not None and product.active, "license: not for sale")
        assert product is not None
        self._require(release == product.releases, "license: not the current release")
        self._require(licensee != ZERO_ADDRESS, "license: zero licensee")
        cost = self._cost(product, tier, quantity, max_cost)
        expires_at, bought = self._extended(product, NEVER, 0, quantity, self._pay.now)
        id = LicenceId(len(self._state.licences) + 1)
        listing, payer = product.listing, self._pay.sender
        pending = listing.refund_window > 0
        until = self._pay.now + listing.refund_window if pending else 0
        self._state.licences[id] = Licence(
            id,
            licensee,
            number,
            release,
            tier,
            Status.PENDING if pending else Status.COMPLETED,
            self._pay.now,
            expires_at,
            bought,
            0,
            cost,
            False,
            session_key,
            payer if pending else ZERO_ADDRESS,
            until,
        )
        self._say(Licensed, id, number, licensee, payer, release, tier, cost, expires_at, bought, session_key, until)
        if pending:
            self._charge(listing.token, cost, [(self._address, cost)])
        else:
            self._charge(listing.token, cost, self._shares(product, cost))

    def renew(self, id: LicenceId, quantity: int, max_cost: int) -> None:
        licence = self._completed(id)
        product = self._state.products[licence.product]
        self._require(product.active, "license: not for sale")
        several = product.listing.kind in (Kind.SUBSCRIPTION, Kind.USAGE)
        self._require(several, "license: nothing to renew")
        cost = self._cost(product, licence.tier, quantity, max_cost)
        self._add(licence, product, quantity, cost, self._pay.sender)
        self._charge(product.listing.token, cost, self._shares(product, cost))

    def _add(self, licence: Licence, product: Product, quantity: int, cost: int, payer: Address) -> None:
        since = max(licence.expires_at, self._pay.now)
        expires_at, bought = self._extended(product, licence.expires_at, licence.bought, quantity, since)
        paid = min(licence.paid + cost, MAX_PAID)
        self._state.licences[licence.id] = replace(licence, expires_at=expires_at, bought=bought, paid=paid)
        self._say(Renewed, licence.id, product.id, payer, cost, expires_at, bought)

    def _cost(self, product: Product, tier: Tier, quantity: int, max_cost: int) -> int:
        listing = product.listing
        self._pay.require_fits((quantity, _UINT256), (max_cost, _UINT256))
        most = MAX_QUANTITY if listing.kind in (Kind.SUBSCRIPTION, Kind.USAGE) else 1
        self._require(0 < quantity <= most, "license: not a quantity")
        price = product.prices[tier.place]
        self._require(price > 0 or listing.kind is Kind.FREE, "license: not sold in this tier")
        cost = price * quantity
        self._require(cost <= max_cost, "license: dearer than the bound")
        self._require(cost <= MAX_PAID, "license: cost too large")
        return cost

    def _extended(self, product: Product, expires_at: int, bought: int, quantity: int, since: int) -> tuple[int, int]:
        """When it expires, and its units in all."""
        listing = product.listing
        if listing.kind is Kind.SUBSCRIPTION:
            expires_at = since + quantity * listing.unit
            self._require(expires_at < NEVER, "license: too long")
        if listing.kind is Kind.USAGE:
            bought += quantity * listing.unit
            self._require(bought <= MAX_UNITS, "license: too many units")
        return expires_at, bought

    def upgrade(self, id: LicenceId, tier: Tier, max_cost: int) -> None:
        licence = self._held(id)
        self._completed(id)
        product = self._state.products[licence.product]
        self._require(product.active, "license: not for sale")
        self._require(tier > licence.tier, "license: not a higher tier")
        sold = product.prices[tier.place] > 0 or product.listing.kind is Kind.FREE
        self._require(sold, "license: not sold in this tier")
        cost = upgrade_cost(product, licence, tier, self._pay.now)
        self._require(cost <= max_cost, "license: dearer than the bound")
        paid = min(licence.paid + cost, MAX_PAID)
        self._state.licences[id] = replace(licence, tier=tier, paid=paid)
        self._say(Upgraded, id, product.id, tier, cost)
        self._charge(product.listing.token, cost, self._shares(product, cost))

    def complete(self, id: LicenceId) -> None:
        licence = self._pending(id)
        over = self._pay.now > licence.refundable_until
        self._require(over or self._pay.sender == licence.payer, "license: still refundable")
        self._complete(licence)

    def _complete(self, licence: Licence) -> Licence:
        product = self._state.products[licence.product]
        done = replace(licence, status=Status.COMPLETED, payer=ZERO_ADDRESS, refundable_until=0)
        self._state.licences[licence.id] = done
        self._say(Completed, licence.id, product.id, licence.paid)
        self._pay_out(product.listing.token, self._shares(product, licence.paid))
        return done

    def refund(self, id: LicenceId) -> None:
        licence = self._pending(id)
        product = self._state.products[licence.product]
        if self._pay.sender != product.publisher:
            self._require(self._pay.sender == licence.payer, "license: not the payer")
            self._require(self._pay.now <= licence.refundable_until, "license: refund window is over")
        self._end(licence, Status.REFUNDED)
        self._say(Refunded, id, product.id, licence.payer, licence.paid)
        self._pay_out(product.listing.token, [(licence.payer, licence.paid)])

    def revoke(self, id: LicenceId, reason: str) -> None:
        self._pay.require_text(reason, 200)
        licence = self._in_force(id)
        product = self._state.products[licence.product]
        self._require(self._pay.sender == product.publisher, "license: not the publisher")
        self._require(product.listing.revocable, "license: not revocable")
        refund = licence.paid if licence.status is Status.PENDING else 0
        self._end(licence, Status.REVOKED)
        self._say(Revoked, id, product.id, refund, reason)
        if refund:
            self._pay_out(product.listing.token, [(licence.payer, refund)])

    def _end(self, licence: Licence, status: Status) -> None:
        paid = 0 if licence.status is Status.PENDING else licence.paid
        self._state.licences[licence.id] = replace(
            licence, status=status, paid=paid, payer=ZERO_ADDRESS, refundable_until=0
        )

    def set_session_key(self, id: LicenceId, key: Address) -> None:
        licence = self._held(id)
        _, until = self._state.earlier_keys.get(id, (ZERO_ADDRESS, -1))
        self._require(self._pay.now > until, "license: key changed within a day")
        until = self._pay.now + KEY_GRACE
        self._state.earlier_keys[id] = (licence.ticket_key, until)
        self._state.licences[id] = replace(licence, session_key=key)
        self._say(SessionKeyChanged, id, key, until)

    def record_usage(self, tickets: Sequence[Ticket]) -> None:
        total = sum(self._record(ticket) for ticket in tickets)
        self._require(total > 0, "license: nothing to record")

    def _record(self, ticket: Ticket) -> int:
        licence = self._in_force(ticket.licence)
        product = self._state.products[licence.product]
        self._require(product.listing.kind is Kind.USAGE, "license: not sold by usage")
        if ticket.used <= licence.used:
            return 0
        self._require_ticket(licence, ticket)
        if licence.status is Status.PENDING:
            licence = self._complete(licence)
        if ticket.used > licence.bought:
            licence = self._auto_charge(licence, product, ticket.used)
        self._state.licences[licence.id] = replace(licence, used=ticket.used)
        self._say(UsageRecorded, licence.id, product.id, ticket.used)
        return ticket.used - licence.used

    def _require_ticket(self, licence: Licence, ticket: Ticket) -> None:
        self._require(len(ticket.signature) == 65, "license: ticket signature is not 65 bytes")
        try:
            signer = recover(ticket_digest(self._domain, ticket.licence, ticket.used), ticket.signature)
        except BadSignature:
            signer = ZERO_ADDRESS
        earlier, until = self._state.earlier_keys.get(licence.id, (ZERO_ADDRESS, -1))
        good = signer == licence.ticket_key or (signer == earlier and self._pay.now <= until)
        self._require(signer != ZERO_ADDRESS and good, "license: ticket not signed by the session key")

    def _auto_charge(self, licence: Licence, product: Product, used: int) -> Licence:
        auto = self._state.auto_charges.get(licence.id, AutoCharge())
        price, unit = product.prices[licence.tier.place], product.listing.unit
        lacking = used - licence.bought
        affords = auto.affords(price, unit) if product.active else 0
        self._require(lacking <= affords, "license: more than was bought")
        quantity = -(-lacking // (auto.packs * unit)) * auto.packs
        cost = price * quantity
        left = replace(auto, budget=auto.budget - cost)
        self._state.auto_charges[licence.id] = left
        self._add(licence, product, quantity, cost, ZERO_ADDRESS)
        self._say(AutoChargeChanged, licence.id, left.budget, left.packs, left.max_price)
        self._pay_out(product.listing.token, self._shares(product, cost))
        return self._state.licences[licence.id]

    def set_auto_charge(self, id: LicenceId, auto: AutoCharge) -> None:
        self._pay.require_fits((auto.budget, _UINT256), (auto.packs, _UINT256), (auto.max_price, _UINT256))
        licence = self._held(id)
        product = self._state.products[licence.product]
        self._require(product.listing.kind is Kind.USAGE, "license: not sold by usage")
        self._require(auto.packs <= MAX_QUANTITY, "license: not a quantity")
        self._require(auto.max_price <= MAX_PRICE, "license: price too large")
        self._require(auto.budget <= 2**128 - 1, "license: cost too large")
        held = self._state.auto_charges.get(id, AutoCharge()).budget
        self._state.auto_charges[id] = auto
        self._say(AutoChargeChanged, id, auto.budget, auto.packs, auto.max_price)
        token, more = product.listing.token, auto.budget - held
        if more > 0:
            self._require(licence.in_force, "license: not in force")
            self._charge(token, more, [(self._address, more)])
            return
        self._charge(token, 0, [])
        if more < 0:
            self._pay_out(token, [(licence.licensee, -more)])

    def review(self, id: LicenceId, stars: int, uri: str, hash: str) -> None:
        self._pay.require_text(uri, 200)
        licence = self._held(id)
        self._completed(id)
        self._require(not licence.reviewed, "license: already reviewed")
        self._require(1 <= stars <= 5, "license: not 1 to 5 stars")
        self._state.licences[id] = replace(licence, reviewed=True)
        old = self._state.ratings.get(licence.product, Rating(0, 0, 0))
        self._state.ratings[licence.product] = Rating(
            old.count + 1, old.weight + licence.paid, old.sum + stars * licence.paid
        )
        self._say(Reviewed, id, licence.product, stars, licence.paid, uri, hash)

    # --- helpers ---

    def _held(self, id: LicenceId) -> Licence:
        """The licence that is the sender's."""
        licence = self._state.licences.get(id)
        self._require(licence is not None and licence.licensee == self._pay.sender, "license: not the licensee")
        assert licence is not None
        return licence

    def _completed(self, id: LicenceId) -> Licence:
        return self._of_status(id, (Status.COMPLETED,), "license: not completed")

    def _pending(self, id: LicenceId) -> Licence:
        return self._of_status(id, (Status.PENDING,), "license: not pending")

    def _in_force(self, id: LicenceId) -> Licence:
        return self._of_status(id, (Status.PENDING, Status.COMPLETED), "license: not in force")

    def _of_status(self, id: LicenceId, wanted: tuple[Status, ...], reason: str) -> Licence:
        licence = self._state.licences.get(id)
        self._require(licence is not None and licence.status in wanted, reason)
        assert licence is not None
        return licence

    def _shares(self, product: Product, cost: int) -> list[tuple[Address, int]]:
        shares = split(cost, product, self._state.products.__getitem__, self._state.treasury)
        return [(share.account, share.amount) for share in shares]

    def _charge(self, token: Address, cost: int, payments: list[tuple[Address, int]]) -> None:
        """What the sender pays now."""
        if cost == 0:
            self._require(self._pay.value == 0, "license: value sent for nothing")
            return
        self._pay.pay(self._pay.sender, self._address, token, payments, self._pay.value)

    def _pay_out(self, token: Address, payments: list[tuple[Address, int]]) -> None:
        """Out of what this contract has in the vault."""
        self._pay.pay(self._address, self._address, token, payments, 0)


class FakeLicences:
    """What FakeChain does of `penstock.chain.licences.Licences`."""

    if TYPE_CHECKING:

        @property
        def license_domain(self) -> Domain: ...
        async def _latest(self) -> _Mined: ...
        async def _trade(
            self, account: Account, doing: str, act: Callable[[Shop], None], value: int = 0
        ) -> Receipt: ...

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
        def act(shop: Shop) -> None:
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


def _found(value: Found | None, what: str) -> Found:
    if value is None:
        raise NotFound(f"there is no {what}")
    return value
