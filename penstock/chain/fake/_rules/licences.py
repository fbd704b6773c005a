"""Catalogue.vy and License.vy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from penstock.chain.fake._rules.transaction import UINT256, Rules, require, require_text
from penstock.chain.fake._rules.vault import VaultRules
from penstock.errors import BadSignature
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
    WEEK,
    AutoCharge,
    AutoChargeChanged,
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
from penstock.types import NATIVE, ZERO_ADDRESS, Address
from penstock.wire.eip712 import recover, ticket_digest


class LicenceRules(Rules):
    def _say(self, kind: Callable[..., LicenceEvent], *values: object) -> None:
        self.tx.license(kind, *values)

    # --- products ---

    def publish(self, listing: Listing, prices: Prices, release: Release) -> None:
        for text, most in ((listing.name, 64), (release.terms_uri, 200), (release.docs_uri, 200)):
            require_text(text, most)
        self.tx.require_fits((listing.unit, UINT256), (listing.refund_window, UINT256))
        require(len(listing.name) > 0, "catalogue: empty name")
        if listing.kind is Kind.SUBSCRIPTION:
            require(listing.unit in (DAY, WEEK, MONTH), "catalogue: period is not a day, 7 or 30 days")
        elif listing.kind is Kind.USAGE:
            require(0 < listing.unit <= MAX_UNITS, "catalogue: no such pack of units")
        else:
            require(listing.unit == 0, "catalogue: unit without a use")
        require(listing.refund_window <= MAX_REFUND_WINDOW, "catalogue: refund window too long")
        require(listing.kind is not Kind.FREE or listing.refund_window == 0, "catalogue: nothing to refund")
        require(listing.token == NATIVE or listing.token in self.state.tokens, "catalogue: token is not a contract")
        depth, nodes = self._tree(listing)
        self._require_prices(listing.kind, prices)
        number = ProductId(len(self.state.products) + 1)
        publisher = self.tx.sender
        self.state.products[number] = Product(number, publisher, True, self.now, 0, depth, nodes, prices, listing)
        self._say(ProductPublished, number, publisher, listing.category, listing)
        self._say(PricesChanged, number, prices)
        self._release(number, release)

    def _tree(self, listing: Listing) -> tuple[int, int]:
        """Its depth, and how many products are in it."""
        depth, nodes, shared = 0, 1, 0
        require(len(listing.parts) <= MAX_PARTS, "no reason given")
        for part in listing.parts:
            found = self.state.products.get(part.product)
            require(found is not None, "catalogue: no such part")
            assert found is not None
            require(part.share > 0, "catalogue: part without a share")
            shared += part.share
            require(shared <= BPS, "catalogue: more than the whole is shared")
            depth = max(depth, found.depth + 1)
            nodes += found.nodes
        require(depth <= MAX_DEPTH, "catalogue: tree too deep")
        require(nodes <= MAX_NODES, "catalogue: tree too large")
        return depth, nodes

    def _require_prices(self, kind: Kind, prices: Prices) -> None:
        self.tx.require_fits(*((price, UINT256) for price in prices))
        require(all(price <= MAX_PRICE for price in prices), "catalogue: price too large")
        require((kind is Kind.FREE) == (not any(prices)), "catalogue: free of charge or not")

    def add_release(self, number: ProductId, release: Release) -> None:
        for text in (release.terms_uri, release.docs_uri):
            require_text(text, 200)
        self._published(number)
        self._release(number, release)

    def _release(self, number: ProductId, release: Release) -> None:
        product = self.state.products[number]
        last = self.state.releases.get((number, product.releases))
        above = release.version.packed > (last.version.packed if last else 0)
        require(above, "catalogue: version not above the one before")
        count = product.releases + 1
        self.state.releases[number, count] = release
        self.state.products[number] = replace(product, releases=count)
        self._say(Released, number, count, release)

    def set_prices(self, number: ProductId, prices: Prices) -> None:
        product = self._published(number)
        self._require_prices(product.listing.kind, prices)
        self.state.products[number] = replace(product, prices=prices)
        self._say(PricesChanged, number, prices)

    def set_active(self, number: ProductId, active: bool) -> None:
        product = self._published(number)
        self.state.products[number] = replace(product, active=active)
        self._say(ProductActiveChanged, number, active)

    def _published(self, number: ProductId) -> Product:
        """The product that is the sender's."""
        product = self.state.products.get(number)
        require(product is not None and product.publisher == self.tx.sender, "catalogue: not the publisher")
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
        product = self.state.products.get(number)
        require(product is not None and product.active, "license: not for sale")
        assert product is not None
        require(release == product.releases, "license: not the current release")
        require(licensee != ZERO_ADDRESS, "license: zero licensee")
        cost = self._cost(product, tier, quantity, max_cost)
        expires_at, bought = self._extended(product, NEVER, 0, quantity, self.now)
        id = LicenceId(len(self.state.licences) + 1)
        listing, payer = product.listing, self.tx.sender
        pending = listing.refund_window > 0
        until = self.now + listing.refund_window if pending else 0
        self.state.licences[id] = Licence(
            id,
            licensee,
            number,
            release,
            tier,
            Status.PENDING if pending else Status.COMPLETED,
            self.now,
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
            self._charge(listing.token, cost, [(self.tx.contracts.license, cost)])
        else:
            self._charge(listing.token, cost, self._shares(product, cost))

    def renew(self, id: LicenceId, quantity: int, max_cost: int) -> None:
        licence = self._completed(id)
        product = self.state.products[licence.product]
        require(product.active, "license: not for sale")
        several = product.listing.kind in (Kind.SUBSCRIPTION, Kind.USAGE)
        require(several, "license: nothing to renew")
        cost = self._cost(product, licence.tier, quantity, max_cost)
        self._add(licence, product, quantity, cost, self.tx.sender)
        self._charge(product.listing.token, cost, self._shares(product, cost))

    def _add(self, licence: Licence, product: Product, quantity: int, cost: int, payer: Address) -> None:
        since = max(licence.expires_at, self.now)
        expires_at, bought = self._extended(product, licence.expires_at, licence.bought, quantity, since)
        paid = min(licence.paid + cost, MAX_PAID)
        self.state.licences[licence.id] = replace(licence, expires_at=expires_at, bought=bought, paid=paid)
        self._say(Renewed, licence.id, product.id, payer, cost, expires_at, bought)

    def _cost(self, product: Product, tier: Tier, quantity: int, max_cost: int) -> int:
        listing = product.listing
        self.tx.require_fits((quantity, UINT256), (max_cost, UINT256))
        most = MAX_QUANTITY if listing.kind in (Kind.SUBSCRIPTION, Kind.USAGE) else 1
        require(0 < quantity <= most, "license: not a quantity")
        price = product.prices[tier.place]
        require(price > 0 or listing.kind is Kind.FREE, "license: not sold in this tier")
        cost = price * quantity
        require(cost <= max_cost, "license: dearer than the bound")
        require(cost <= MAX_PAID, "license: cost too large")
        return cost

    def _extended(self, product: Product, expires_at: int, bought: int, quantity: int, since: int) -> tuple[int, int]:
        """When it expires, and its units in all."""
        listing = product.listing
        if listing.kind is Kind.SUBSCRIPTION:
            expires_at = since + quantity * listing.unit
            require(expires_at < NEVER, "license: too long")
        if listing.kind is Kind.USAGE:
            bought += quantity * listing.unit
            require(bought <= MAX_UNITS, "license: too many units")
        return expires_at, bought

    def upgrade(self, id: LicenceId, tier: Tier, max_cost: int) -> None:
        licence = self._held(id)
        self._completed(id)
        product = self.state.products[licence.product]
        require(product.active, "license: not for sale")
        require(tier > licence.tier, "license: not a higher tier")
        sold = product.prices[tier.place] > 0 or product.listing.kind is Kind.FREE
        require(sold, "license: not sold in this tier")
        cost = upgrade_cost(product, licence, tier, self.now)
        require(cost <= max_cost, "license: dearer than the bound")
        paid = min(licence.paid + cost, MAX_PAID)
        self.state.licences[id] = replace(licence, tier=tier, paid=paid)
        self._say(Upgraded, id, product.id, tier, cost)
        self._charge(product.listing.token, cost, self._shares(product, cost))

    def complete(self, id: LicenceId) -> None:
        licence = self._pending(id)
        over = self.now > licence.refundable_until
        require(over or self.tx.sender == licence.payer, "license: still refundable")
        self._complete(licence)

    def _complete(self, licence: Licence) -> Licence:
        product = self.state.products[licence.product]
        done = replace(licence, status=Status.COMPLETED, payer=ZERO_ADDRESS, refundable_until=0)
        self.state.licences[licence.id] = done
        self._say(Completed, licence.id, product.id, licence.paid)
        self._pay_out(product.listing.token, self._shares(product, licence.paid))
        return done

    def refund(self, id: LicenceId) -> None:
        licence = self._pending(id)
        product = self.state.products[licence.product]
        if self.tx.sender != product.publisher:
            require(self.tx.sender == licence.payer, "license: not the payer")
            require(self.now <= licence.refundable_until, "license: refund window is over")
        self._end(licence, Status.REFUNDED)
        self._say(Refunded, id, product.id, licence.payer, licence.paid)
        self._pay_out(product.listing.token, [(licence.payer, licence.paid)])

    def revoke(self, id: LicenceId, reason: str) -> None:
        require_text(reason, 200)
        licence = self._in_force(id)
        product = self.state.products[licence.product]
        require(self.tx.sender == product.publisher, "license: not the publisher")
        require(product.listing.revocable, "license: not revocable")
        refund = licence.paid if licence.status is Status.PENDING else 0
        self._end(licence, Status.REVOKED)
        self._say(Revoked, id, product.id, refund, reason)
        if refund:
            self._pay_out(product.listing.token, [(licence.payer, refund)])

    def _end(self, licence: Licence, status: Status) -> None:
        paid = 0 if licence.status is Status.PENDING else licence.paid
        self.state.licences[licence.id] = replace(
            licence, status=status, paid=paid, payer=ZERO_ADDRESS, refundable_until=0
        )

    def set_session_key(self, id: LicenceId, key: Address) -> None:
        licence = self._held(id)
        _, until = self.state.earlier_keys.get(id, (ZERO_ADDRESS, -1))
        require(self.now > until, "license: key changed within a day")
        until = self.now + KEY_GRACE
        self.state.earlier_keys[id] = (licence.ticket_key, until)
        self.state.licences[id] = replace(licence, session_key=key)
        self._say(SessionKeyChanged, id, key, until)

    def record_usage(self, tickets: Sequence[Ticket]) -> None:
        total = sum(self._record(ticket) for ticket in tickets)
        require(total > 0, "license: nothing to record")

    def _record(self, ticket: Ticket) -> int:
        licence = self._in_force(ticket.licence)
        product = self.state.products[licence.product]
        require(product.listing.kind is Kind.USAGE, "license: not sold by usage")
        if ticket.used <= licence.used:
            return 0
        self._require_ticket(licence, ticket)
        if licence.status is Status.PENDING:
            licence = self._complete(licence)
        if ticket.used > licence.bought:
            licence = self._auto_charge(licence, product, ticket.used)
        self.state.licences[licence.id] = replace(licence, used=ticket.used)
        self._say(UsageRecorded, licence.id, product.id, ticket.used)
        return ticket.used - licence.used

    def _require_ticket(self, licence: Licence, ticket: Ticket) -> None:
        require(len(ticket.signature) == 65, "license: ticket signature is not 65 bytes")
        try:
            signer = recover(
                ticket_digest(self.tx.contracts.license_domain, ticket.licence, ticket.used), ticket.signature
            )
        except BadSignature:
            signer = ZERO_ADDRESS
        earlier, until = self.state.earlier_keys.get(licence.id, (ZERO_ADDRESS, -1))
        good = signer == licence.ticket_key or (signer == earlier and self.now <= until)
        require(signer != ZERO_ADDRESS and good, "license: ticket not signed by the session key")

    def _auto_charge(self, licence: Licence, product: Product, used: int) -> Licence:
        auto = self.state.auto_charges.get(licence.id, AutoCharge())
        price, unit = product.prices[licence.tier.place], product.listing.unit
        lacking = used - licence.bought
        affords = auto.affords(price, unit) if product.active else 0
        require(lacking <= affords, "license: more than was bought")
        quantity = -(-lacking // (auto.packs * unit)) * auto.packs
        cost = price * quantity
        left = replace(auto, budget=auto.budget - cost)
        self.state.auto_charges[licence.id] = left
        self._add(licence, product, quantity, cost, ZERO_ADDRESS)
        self._say(AutoChargeChanged, licence.id, left.budget, left.packs, left.max_price)
        self._pay_out(product.listing.token, self._shares(product, cost))
        return self.state.licences[licence.id]

    def set_auto_charge(self, id: LicenceId, auto: AutoCharge) -> None:
        self.tx.require_fits((auto.budget, UINT256), (auto.packs, UINT256), (auto.max_price, UINT256))
        licence = self._held(id)
        product = self.state.products[licence.product]
        require(product.listing.kind is Kind.USAGE, "license: not sold by usage")
        require(auto.packs <= MAX_QUANTITY, "license: not a quantity")
        require(auto.max_price <= MAX_PRICE, "license: price too large")
        require(auto.budget <= 2**128 - 1, "license: cost too large")
        held = self.state.auto_charges.get(id, AutoCharge()).budget
        self.state.auto_charges[id] = auto
        self._say(AutoChargeChanged, id, auto.budget, auto.packs, auto.max_price)
        token, more = product.listing.token, auto.budget - held
        if more > 0:
            require(licence.in_force, "license: not in force")
            self._charge(token, more, [(self.tx.contracts.license, more)])
            return
        self._charge(token, 0, [])
        if more < 0:
            self._pay_out(token, [(licence.licensee, -more)])

    def review(self, id: LicenceId, stars: int, uri: str, hash: str) -> None:
        require_text(uri, 200)
        licence = self._held(id)
        self._completed(id)
        require(not licence.reviewed, "license: already reviewed")
        require(1 <= stars <= 5, "license: not 1 to 5 stars")
        self.state.licences[id] = replace(licence, reviewed=True)
        old = self.state.ratings.get(licence.product, Rating(0, 0, 0))
        self.state.ratings[licence.product] = Rating(
            old.count + 1, old.weight + licence.paid, old.sum + stars * licence.paid
        )
        self._say(Reviewed, id, licence.product, stars, licence.paid, uri, hash)

    # --- helpers ---

    def _held(self, id: LicenceId) -> Licence:
        """The licence that is the sender's."""
        licence = self.state.licences.get(id)
        require(licence is not None and licence.licensee == self.tx.sender, "license: not the licensee")
        assert licence is not None
        return licence

    def _completed(self, id: LicenceId) -> Licence:
        return self._of_status(id, (Status.COMPLETED,), "license: not completed")

    def _pending(self, id: LicenceId) -> Licence:
        return self._of_status(id, (Status.PENDING,), "license: not pending")

    def _in_force(self, id: LicenceId) -> Licence:
        return self._of_status(id, (Status.PENDING, Status.COMPLETED), "license: not in force")

    def _of_status(self, id: LicenceId, wanted: tuple[Status, ...], reason: str) -> Licence:
        licence = self.state.licences.get(id)
        require(licence is not None and licence.status in wanted, reason)
        assert licence is not None
        return licence

    def _shares(self, product: Product, cost: int) -> list[tuple[Address, int]]:
        shares = split(cost, product, self.state.products.__getitem__, self.state.treasury)
        return [(share.account, share.amount) for share in shares]

    def _charge(self, token: Address, cost: int, payments: list[tuple[Address, int]]) -> None:
        """What the sender pays now."""
        if cost == 0:
            require(self.tx.value == 0, "license: value sent for nothing")
            return
        VaultRules(self.tx).pay(self.tx.sender, self.tx.contracts.license, token, payments, self.tx.value)

    def _pay_out(self, token: Address, payments: list[tuple[Address, int]]) -> None:
        """Out of what this contract has in the vault."""
        VaultRules(self.tx).pay(self.tx.contracts.license, self.tx.contracts.license, token, payments, 0)
