"""What the chain port promises of products and licences, of each of its two implementations."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import replace
from typing import Any

import pytest

from penstock.audit import Books
from penstock.errors import InsufficientFunds, NotFound, Reverted
from penstock.events import Receipt
from penstock.keys import LocalAccount, new_session_key
from penstock.licences import (
    DAY,
    ENDLESS,
    MONTH,
    NEVER,
    AutoCharge,
    Category,
    Item,
    Kind,
    LicenceId,
    Licensed,
    Listing,
    Part,
    Prices,
    Product,
    ProductId,
    Rating,
    Release,
    Status,
    Ticket,
    Tier,
    Version,
    split,
)
from penstock.types import ALL, NATIVE, ZERO_ADDRESS, Address, hex32
from penstock.wire.eip712 import ticket_digest
from tests.sdk.worlds import COIN, DOLLAR, World

NOBODY = Address("0x00000000000000000000000000000000DeaDBeef")
PRICES = (1_001, 2_003, 9_999)
FIRST = Release(Version(1, 0, 0), hex32(b"\x01" * 32), hex32(b"\x02" * 32), hex32(b"\x03" * 32), "ipfs://t", "ipfs://d")


def listing_of(kind: Kind = Kind.PERPETUAL, **changes: Any) -> Listing:
    unit = {Kind.SUBSCRIPTION: MONTH, Kind.USAGE: 10}.get(kind, 0)
    return replace(Listing("Translate", Item.SKILL, Category.UTILITY, kind, NATIVE, unit), **changes)


async def publish(
    world: World, publisher: LocalAccount, listing: Listing | None = None, prices: Prices = PRICES
) -> Product:
    listing = listing or listing_of()
    receipt = await world.chain.publish(publisher, listing, (0, 0, 0) if listing.kind is Kind.FREE else prices, FIRST)
    return await world.chain.product(receipt.licences[0].product)  # type: ignore[union-attr]


async def buy(world: World, payer: LocalAccount, product: Product, **changes: Any) -> LicenceId:
    quantity, tier = changes.get("quantity", 1), changes.get("tier", Tier.PERSONAL)
    cost = product.cost(tier, quantity)
    assert cost is not None
    words: dict[str, Any] = {"release": 1, "tier": tier, "max_cost": cost}
    words["value"] = cost if product.listing.token == NATIVE else 0
    receipt = await world.chain.buy_licence(payer, product.id, **(words | changes))
    (event,) = receipt.licences
    assert isinstance(event, Licensed)
    return event.licence


async def ticket(world: World, licence: LicenceId, used: int, key: LocalAccount) -> Ticket:
    return Ticket(licence, used, key.sign_digest(ticket_digest(world.chain.license_domain, licence, used)))


async def refused(call: Awaitable[Receipt]) -> str:
    """The contract's reason."""
    with pytest.raises(Reverted) as caught:
        await call
    return caught.value.reason


async def vault(world: World, account: Address, token: Address = NATIVE) -> int:
    return await world.chain.vault_balance(token, account)


# --- products ---


async def test_a_product_is_as_its_publisher_listed_it(world: World) -> None:
    chain, publisher = world.chain, world.account()
    listing = listing_of(
        Kind.USAGE, item=Item.MODEL, category=Category.CREATIVE, token=world.token, refund_window=DAY, revocable=True
    )
    receipt = await chain.publish(publisher, listing, (1, 0, 3), FIRST)
    listed, priced, released = receipt.licences
    assert listed.product == priced.product == released.product  # type: ignore[union-attr]
    product = await chain.product(listed.product)  # type: ignore[union-attr]
    assert product == Product(product.id, publisher.address, True, receipt.timestamp, 1, 0, 1, (1, 0, 3), listing)
    assert (listed.listing, listed.category) == (listing, Category.CREATIVE)  # type: ignore[union-attr]
    assert (released.number, released.release) == (1, FIRST)  # type: ignore[union-attr]
    assert await chain.release(product.id, 1) == FIRST
    assert await chain.products_of(publisher.address) == [product]
    assert product in await chain.products()
    assert product in await chain.products_in(Category.CREATIVE)
    assert product not in await chain.products_in(Category.ANALYSIS)
    for missing in (chain.product(ProductId(9_999)), chain.release(product.id, 2)):
        with pytest.raises(NotFound):
            await missing


async def test_its_publisher_alone_changes_prices_releases_and_sale(world: World) -> None:
    chain, publisher, stranger = world.chain, world.account(), world.account()
    product = await publish(world, publisher)
    later = replace(FIRST, version=Version(1, 0, 1))
    await chain.add_release(publisher, product.id, later)
    await chain.set_prices(publisher, product.id, (5, 0, 0))
    await chain.set_product_active(publisher, product.id, False)
    found = await chain.product(product.id)
    assert (found.releases, found.prices, found.active) == (2, (5, 0, 0), False)
    assert await chain.release(product.id, 2) == later
    reason = "catalogue: not the publisher"
    assert await refused(chain.add_release(stranger, product.id, later)) == reason
    assert await refused(chain.set_prices(stranger, product.id, PRICES)) == reason
    assert await refused(chain.set_product_active(stranger, product.id, True)) == reason
    assert await refused(chain.add_release(publisher, product.id, later)) == (
        "catalogue: version not above the one before"
    )
    assert await refused(chain.set_prices(publisher, product.id, (0, 0, 0))) == "catalogue: free of charge or not"


@pytest.mark.parametrize(
    ("changes", "prices", "reason"),
    [
        ({"name": ""}, PRICES, "catalogue: empty name"),
        ({"unit": 1}, PRICES, "catalogue: unit without a use"),
        ({"kind": Kind.SUBSCRIPTION, "unit": 2 * DAY}, PRICES, "catalogue: period is not a day, 7 or 30 days"),
        ({"kind": Kind.USAGE}, PRICES, "catalogue: no such pack of units"),
        ({"refund_window": 90 * DAY + 1}, PRICES, "catalogue: refund window too long"),
        ({"kind": Kind.FREE, "refund_window": 1}, (0, 0, 0), "catalogue: nothing to refund"),
        ({"kind": Kind.FREE}, PRICES, "catalogue: free of charge or not"),
        (
            {"token": NOBODY},
            PRICES,
            "catalogue: token is not a contract",
        ),
        ({"parts": (Part(ProductId(9_999), 1),)}, PRICES, "catalogue: no such part"),
        ({}, (2**85, 0, 0), "catalogue: price too large"),
    ],
)
async def test_a_listing_must_make_sense(world: World, changes: dict[str, Any], prices: Prices, reason: str) -> None:
    listing = replace(listing_of(), **changes)
    assert await refused(world.chain.publish(world.account(), listing, prices, FIRST)) == reason


async def test_a_tree_has_bounds(world: World) -> None:
    publisher = world.account()
    leaf = await publish(world, publisher)

    def of(*parts: Part) -> Listing:
        return listing_of(parts=parts)

    for parts, reason in (
        ((Part(leaf.id, 0),), "catalogue: part without a share"),
        ((Part(leaf.id, 9_999), Part(leaf.id, 2)), "catalogue: more than the whole is shared"),
    ):
        assert await refused(world.chain.publish(publisher, of(*parts), PRICES, FIRST)) == reason
    wide = await publish(world, publisher, of(*[Part(leaf.id, 1_250)] * 8))
    assert (wide.depth, wide.nodes) == (1, 9)
    full = await publish(world, publisher, of(Part(wide.id, 1), Part(wide.id, 1), Part(wide.id, 1)))
    assert (full.depth, full.nodes) == (2, 28)
    deep = await publish(world, publisher, of(Part(full.id, 1), Part(leaf.id, 1), Part(leaf.id, 1)))
    assert (deep.depth, deep.nodes) == (3, 31)
    call = world.chain.publish(publisher, of(Part(full.id, 1), *[Part(leaf.id, 1)] * 3), PRICES, FIRST)
    assert await refused(call) == "catalogue: tree too large"
    thin = await publish(world, publisher, of(Part((await publish(world, publisher, of(Part(leaf.id, 1)))).id, 1)))
    assert thin.depth == 2
    thinner = await publish(world, publisher, of(Part(thin.id, 1)))
    assert await refused(world.chain.publish(publisher, of(Part(thinner.id, 1)), PRICES, FIRST)) == (
        "catalogue: tree too deep"
    )


# --- buying ---


async def test_a_licence_is_paid_to_its_seller_and_the_treasury(world: World) -> None:
    chain, publisher, payer, key = world.chain, world.account(), world.account(), new_session_key()
    product, treasury = await publish(world, publisher), await chain.treasury()
    before = await vault(world, treasury)
    licence = await chain.licence(await buy(world, payer, product, session_key=key.address))
    assert await vault(world, publisher.address) == 1_001 - 25
    assert await vault(world, treasury) - before == 25
    assert (licence.licensee, licence.product, licence.release) == (payer.address, product.id, 1)
    assert (licence.tier, licence.status, licence.paid) == (Tier.PERSONAL, Status.COMPLETED, 1_001)
    assert (licence.expires_at, licence.bought, licence.used) == (NEVER, 0, 0)
    assert (licence.session_key, licence.payer, licence.refundable_until) == (key.address, ZERO_ADDRESS, 0)
    assert await chain.licences_of(payer.address) == [licence]
    assert await chain.remaining(licence.id) == ENDLESS
    assert await chain.is_valid(licence.id)
    assert not await chain.is_valid(LicenceId(9_999))
    with pytest.raises(NotFound):
        await chain.licence(LicenceId(9_999))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"product": 9_999}, "license: not for sale"),
        ({"release": 2}, "license: not the current release"),
        ({"max_cost": 1_000}, "license: dearer than the bound"),
        ({"quantity": 0}, "license: not a quantity"),
        ({"quantity": 2}, "license: not a quantity"),
        ({"licensee": ZERO_ADDRESS}, "license: zero licensee"),
        ({"tier": Tier.COMMERCIAL}, "license: not sold in this tier"),
        ({"value": 1_000}, "vault: not allowed so much"),
    ],
)
async def test_a_purchase_must_make_sense(world: World, changes: dict[str, Any], reason: str) -> None:
    product = await publish(world, world.account(), prices=(1_001, 0, 0))
    words = {"product": product.id, "release": 1, "tier": Tier.PERSONAL, "max_cost": 1_001, "value": 1_001} | changes
    assert await refused(world.chain.buy_licence(world.account(), **words)) == reason


async def test_the_vault_and_the_allowance_pay_as_far_as_the_payer_let_license(world: World) -> None:
    chain, publisher, payer = world.chain, world.account(), world.account(dollars=10 * DOLLAR)
    product = await publish(world, publisher, listing_of(token=world.token))
    assert await refused(buy(world, payer, product)) == "vault: not allowed so much"
    await chain.allow_spender(payer, chain.license, world.token, 2_500)
    assert await chain.spendable(world.token, payer.address, chain.license) == 2_500
    with pytest.raises(InsufficientFunds, match="approve it first"):
        await buy(world, payer, product)
    await chain.approve(payer, world.token, ALL)
    await chain.deposit(payer, world.token, 600)
    await buy(world, payer, product)
    assert await vault(world, payer.address, world.token) == 0
    assert await chain.token_balance(world.token, payer.address) == 10 * DOLLAR - 1_001
    await buy(world, payer, product)
    assert await chain.spendable(world.token, payer.address, chain.license) == 498
    assert await refused(buy(world, payer, product)) == "vault: not allowed so much"
    await chain.allow_spender(payer, chain.license, world.token, ALL)
    await buy(world, payer, product)
    assert await chain.spendable(world.token, payer.address, chain.license) == ALL
    assert await vault(world, publisher.address, world.token) == 3 * (1_001 - 25)
    assert await refused(buy(world, payer, product, value=1)) == "vault: value sent with a token"


async def test_coins_in_excess_are_the_payers(world: World) -> None:
    payer = world.account()
    await buy(world, payer, await publish(world, world.account()), value=5_000)
    assert await vault(world, payer.address) == 5_000 - 1_001


async def test_what_is_free_takes_no_money(world: World) -> None:
    chain, payer = world.chain, world.account()
    product = await publish(world, world.account(), listing_of(Kind.FREE))
    call = chain.buy_licence(payer, product.id, release=1, tier=Tier.ENTERPRISE, max_cost=0, value=1)
    assert await refused(call) == "license: value sent for nothing"
    licence = await buy(world, payer, product)
    assert await chain.is_valid(licence)
    await chain.upgrade_licence(payer, licence, Tier.ENTERPRISE, max_cost=0)
    assert (await chain.licence(licence)).tier is Tier.ENTERPRISE


async def test_a_composite_pays_its_tree(world: World) -> None:
    chain, payer = world.chain, world.account()
    sellers = [world.account() for _ in range(4)]
    first = await publish(world, sellers[0])
    second = await publish(world, sellers[1])
    inner = await publish(world, sellers[2], listing_of(parts=(Part(first.id, 3_333), Part(second.id, 1))))
    outer = await publish(
        world, sellers[3], listing_of(parts=(Part(inner.id, 5_000), Part(second.id, 777))), (100_003, 0, 0)
    )
    treasury = await chain.treasury()
    before = await vault(world, treasury)
    await buy(world, payer, outer)
    known = {product.id: product for product in await chain.products()}
    shares = split(100_003, outer, known.__getitem__, treasury)
    assert sum(share.amount for share in shares) == 100_003
    for seller in sellers:
        due = sum(share.amount for share in shares if share.account == seller.address)
        assert await vault(world, seller.address) == due > 0
    assert await vault(world, treasury) - before == 2_500


# --- the refund window ---


async def test_within_the_window_the_payer_has_its_money_back(world: World) -> None:
    chain, publisher, payer, friend = world.chain, world.account(), world.account(), world.account()
    product = await publish(world, publisher, listing_of(refund_window=DAY))
    licence = await buy(world, payer, product, licensee=friend.address)
    found = await chain.licence(licence)
    assert (found.status, found.payer, found.licensee) == (Status.PENDING, payer.address, friend.address)
    assert found.refundable_until == found.bought_at + DAY
    assert await chain.is_valid(licence)
    assert await vault(world, publisher.address) == 0
    assert await refused(chain.complete_licence(publisher, licence)) == "license: still refundable"
    assert await refused(chain.refund_licence(friend, licence)) == "license: not the payer"
    assert await refused(chain.renew_licence(payer, licence, quantity=1, max_cost=ALL)) == "license: not completed"
    await chain.refund_licence(payer, licence)
    assert await vault(world, payer.address) == 1_001
    assert (await chain.licence(licence)).status is Status.REFUNDED
    assert not await chain.is_valid(licence)
    assert await refused(chain.refund_licence(payer, licence)) == "license: not pending"


async def test_after_the_window_anyone_pays_the_seller(world: World) -> None:
    chain, publisher, payer, stranger = world.chain, world.account(), world.account(), world.account()
    product = await publish(world, publisher, listing_of(refund_window=DAY))
    licence = await buy(world, payer, product)
    world.advance(DAY + 1)
    assert await refused(chain.refund_licence(payer, licence)) == "license: refund window is over"
    await chain.complete_licence(stranger, licence)
    assert await vault(world, publisher.address) == 976
    early = await buy(world, payer, product)
    await chain.complete_licence(payer, early)
    assert await vault(world, publisher.address) == 2 * 976
    late = await buy(world, payer, product)
    world.advance(2 * DAY)
    await chain.refund_licence(publisher, late)
    assert await vault(world, payer.address) == 1_001


async def test_revocation_is_where_the_product_admits_it(world: World) -> None:
    chain, publisher, payer = world.chain, world.account(), world.account()
    firm = await buy(world, payer, await publish(world, publisher))
    assert await refused(chain.revoke_licence(publisher, firm, "because")) == "license: not revocable"
    product = await publish(world, publisher, listing_of(revocable=True, refund_window=DAY))
    pending, done = await buy(world, payer, product), await buy(world, payer, product)
    await chain.complete_licence(payer, done)
    assert await refused(chain.revoke_licence(payer, done, "because")) == "license: not the publisher"
    (said,) = (await chain.revoke_licence(publisher, pending, "abuse")).licences
    assert (said.refund, said.reason) == (1_001, "abuse")  # type: ignore[union-attr]
    (said,) = (await chain.revoke_licence(publisher, done, "abuse")).licences
    assert (said.refund, said.reason) == (0, "abuse")  # type: ignore[union-attr]
    assert await vault(world, payer.address) == 1_001
    assert not await chain.is_valid(done)
    assert await refused(chain.revoke_licence(publisher, done, "again")) == "license: not in force"


# --- renewal and tiers ---


async def test_renewal_adds_whole_periods(world: World) -> None:
    chain, publisher, payer, friend = world.chain, world.account(), world.account(), world.account()
    product = await publish(world, publisher, listing_of(Kind.SUBSCRIPTION))
    licence = await buy(world, payer, product, quantity=2)
    found = await chain.licence(licence)
    assert found.expires_at == found.bought_at + 2 * MONTH
    await chain.renew_licence(friend, licence, quantity=1, max_cost=1_001, value=1_001)
    assert (await chain.licence(licence)).expires_at == found.expires_at + MONTH
    now = world.advance(4 * MONTH)
    assert not await chain.is_valid(licence)
    assert await chain.remaining(licence) == 0
    receipt = await chain.renew_licence(payer, licence, quantity=1, max_cost=1_001, value=1_001)
    found = await chain.licence(licence)
    assert found.expires_at == receipt.timestamp + MONTH >= now + MONTH
    assert found.paid == 4 * 1_001
    assert await refused(chain.renew_licence(payer, licence, quantity=1, max_cost=1_000, value=1_001)) == (
        "license: dearer than the bound"
    )
    await chain.set_product_active(publisher, product.id, False)
    assert await refused(chain.renew_licence(payer, licence, quantity=1, max_cost=ALL)) == "license: not for sale"


async def test_a_higher_tier_costs_the_difference_of_what_is_left(world: World) -> None:
    chain, payer, stranger = world.chain, world.account(), world.account()
    product = await publish(world, world.account(), listing_of(Kind.USAGE))
    licence = await buy(world, payer, product, quantity=3)
    await chain.record_usage(stranger, [await ticket(world, licence, 11, payer)])
    assert await chain.upgrade_cost(licence, Tier.COMMERCIAL) == -(-(2_003 - 1_001) * 19 // 10) == 1_904
    assert await refused(chain.upgrade_licence(stranger, licence, Tier.COMMERCIAL, max_cost=ALL)) == (
        "license: not the licensee"
    )
    await chain.upgrade_licence(payer, licence, Tier.COMMERCIAL, max_cost=1_904, value=1_904)
    found = await chain.licence(licence)
    assert (found.tier, found.paid, found.bought) == (Tier.COMMERCIAL, 3 * 1_001 + 1_904, 30)
    for tier in (Tier.PERSONAL, Tier.COMMERCIAL):
        assert await refused(chain.upgrade_licence(payer, licence, tier, max_cost=ALL)) == "license: not a higher tier"


# --- usage ---


async def test_usage_falls_by_tickets(world: World) -> None:
    chain, publisher, payer, key = world.chain, world.account(), world.account(), new_session_key()
    product = await publish(world, publisher, listing_of(Kind.USAGE))
    licence = await buy(world, payer, product, session_key=key.address)
    four, seven = await ticket(world, licence, 4, key), await ticket(world, licence, 7, key)
    await chain.record_usage(publisher, [four, seven, four])
    assert await chain.remaining(licence) == 3
    assert await refused(chain.record_usage(publisher, [seven])) == "license: nothing to record"
    forged = await ticket(world, licence, 8, payer)
    assert await refused(chain.record_usage(publisher, [forged])) == "license: ticket not signed by the session key"
    over = await ticket(world, licence, 11, key)
    assert await refused(chain.record_usage(publisher, [over])) == "license: more than was bought"
    await chain.record_usage(publisher, [await ticket(world, licence, 10, key)])
    assert not await chain.is_valid(licence)
    with pytest.raises(ValueError, match="0 tickets"):
        await chain.record_usage(publisher, [])


async def test_a_ticket_completes_a_pending_licence(world: World) -> None:
    chain, publisher, payer = world.chain, world.account(), world.account()
    product = await publish(world, publisher, listing_of(Kind.USAGE, refund_window=DAY))
    licence = await buy(world, payer, product)
    await chain.record_usage(publisher, [await ticket(world, licence, 1, payer)])
    assert await vault(world, publisher.address) == 976
    assert await refused(chain.refund_licence(payer, licence)) == "license: not pending"


async def test_an_earlier_session_key_counts_for_a_day(world: World) -> None:
    chain, publisher, payer = world.chain, world.account(), world.account()
    first, second = new_session_key(), new_session_key()
    product = await publish(world, publisher, listing_of(Kind.USAGE))
    licence = await buy(world, payer, product, session_key=first.address)
    await chain.set_session_key(payer, licence, second.address)
    assert await refused(chain.set_session_key(payer, licence, first.address)) == "license: key changed within a day"
    await chain.record_usage(publisher, [await ticket(world, licence, 1, first)])
    await chain.record_usage(publisher, [await ticket(world, licence, 2, second)])
    world.advance(DAY + 1)
    late = await ticket(world, licence, 3, first)
    assert await refused(chain.record_usage(publisher, [late])) == "license: ticket not signed by the session key"
    assert await refused(chain.set_session_key(publisher, licence, first.address)) == "license: not the licensee"


async def test_packs_are_bought_in_steps_out_of_the_budget(world: World) -> None:
    chain, publisher, payer = world.chain, world.account(), world.account()
    product = await publish(world, publisher, listing_of(Kind.USAGE))
    licence = await buy(world, payer, product)
    auto = AutoCharge(5_000, 2, 1_001)
    await chain.set_auto_charge(payer, licence, auto, value=5_000)
    assert await chain.auto_charge(licence) == auto
    await chain.record_usage(publisher, [await ticket(world, licence, 11, payer)])
    assert await chain.auto_charge(licence) == replace(auto, budget=5_000 - 2_002)
    assert await chain.remaining(licence) == 19
    assert await vault(world, publisher.address) == 976 + 2_002 - 50
    await chain.set_prices(publisher, product.id, (1_002, 0, 0))
    over = await ticket(world, licence, 31, payer)
    assert await refused(chain.record_usage(publisher, [over])) == "license: more than was bought"
    await chain.set_auto_charge(payer, licence, AutoCharge())
    assert await vault(world, payer.address) == 5_000 - 2_002
    assert await refused(chain.set_auto_charge(publisher, licence, auto, value=5_000)) == "license: not the licensee"


# --- reviews and events ---


async def test_reviews_weigh_what_was_paid(world: World) -> None:
    chain, publisher, one, two = world.chain, world.account(), world.account(), world.account()
    product = await publish(world, publisher)
    first, second = await buy(world, one, product), await buy(world, two, product, tier=Tier.ENTERPRISE)
    await chain.review(one, first, 5, uri="ipfs://praise", hash=hex32(b"\x07" * 32))
    (said,) = (await chain.review(two, second, 2)).licences
    assert (said.stars, said.weight) == (2, 9_999)  # type: ignore[union-attr]
    rating = await chain.rating(product.id)
    assert rating == Rating(2, 11_000, 5 * 1_001 + 2 * 9_999)
    assert rating.stars == pytest.approx(2.273)
    assert await refused(chain.review(one, first, 1)) == "license: already reviewed"
    third = await buy(world, one, product)
    assert await refused(chain.review(one, third, 6)) == "license: not 1 to 5 stars"
    assert await refused(chain.review(two, third, 5)) == "license: not the licensee"


async def test_events_tell_all(world: World) -> None:
    """Those of receipts and those of the blocks are the same; and StreamPay's books balance by them."""
    chain, publisher, payer = world.chain, world.account(), world.account()
    start = (await chain.head()).number + 1
    product = await publish(world, publisher, listing_of(Kind.USAGE, refund_window=DAY))
    licence = await buy(world, payer, product)
    receipts = [
        await chain.set_auto_charge(payer, licence, AutoCharge(3_003, 1, 1_001), value=3_003),
        await chain.record_usage(publisher, [await ticket(world, licence, 12, payer)]),
        await chain.renew_licence(payer, licence, quantity=1, max_cost=1_001, value=1_001),
    ]
    found = await chain.licence_events(start, (await chain.head()).number)
    assert [type(event).__name__ for event in found] == [
        "ProductPublished",
        "PricesChanged",
        "Released",
        "Licensed",
        "AutoChargeChanged",
        "Completed",
        "Renewed",
        "AutoChargeChanged",
        "UsageRecorded",
        "Renewed",
    ]
    assert found[4:] == [event for receipt in receipts for event in receipt.licences]
    books = Books()
    for event in await chain.events(0, (await chain.head()).number):
        books.apply(event)
    for account in (publisher.address, payer.address, chain.license, await chain.treasury()):
        assert books.vault[NATIVE, account] == await vault(world, account)
    assert COIN > books.liabilities(NATIVE) > 0
