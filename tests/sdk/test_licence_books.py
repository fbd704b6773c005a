"""What a gateway knows of licences from events alone; versions; shares"""

from __future__ import annotations

import pytest

from penstock.keys import new_session_key
from penstock.licence_books import LicenceBooks
from penstock.licences import (
    DAY,
    ENDLESS,
    MAX_NODES,
    MONTH,
    AutoCharge,
    Kind,
    LicenceId,
    Part,
    ProductId,
    Tier,
    Version,
    fee,
    split,
)
from penstock.types import NATIVE, ZERO_ADDRESS, Address
from tests.sdk.test_licence_port import buy, listing_of, publish, ticket
from tests.sdk.worlds import FakeWorld


async def books_of(world: FakeWorld) -> LicenceBooks:
    books = LicenceBooks()
    for event in await world.chain.licence_events(0, (await world.chain.head()).number):
        books.apply(event)
    return books


async def test_the_best_licence_of_an_account_counts() -> None:
    world = FakeWorld()
    payer, friend = world.account(), world.account()
    product = await publish(world, world.account(), listing_of(Kind.SUBSCRIPTION, refund_window=DAY))
    other = await publish(world, world.account())
    short = await buy(world, payer, product)
    long = await buy(world, payer, product, quantity=2)
    best = await buy(world, payer, product, tier=Tier.ENTERPRISE)
    await buy(world, payer, other, licensee=friend.address)
    now = (await world.chain.head()).timestamp

    async def held(account: Address, id: ProductId, later: int = 0) -> LicenceId | None:
        found = (await books_of(world)).held(account, id, now + later)
        return found.id if found else None

    assert await held(payer.address, product.id) == best
    await world.chain.refund_licence(payer, best)
    assert await held(payer.address, product.id) == long
    await world.chain.refund_licence(payer, long)
    assert await held(payer.address, product.id, MONTH - 1) == short
    assert await held(payer.address, product.id, MONTH) is None
    assert await held(payer.address, other.id) is None
    assert await held(friend.address, other.id) is not None


async def test_who_may_sign_tickets_when() -> None:
    world = FakeWorld()
    payer, first, second = world.account(), new_session_key(), new_session_key()
    licence = await buy(world, payer, await publish(world, world.account(), listing_of(Kind.USAGE)))
    now = (await world.chain.head()).timestamp
    books = await books_of(world)
    assert books.may_sign(licence, payer.address, now)
    assert not books.may_sign(licence, first.address, now)
    await world.chain.set_session_key(payer, licence, first.address)
    now = world.advance(DAY + 1)
    await world.chain.set_session_key(payer, licence, second.address)
    books = await books_of(world)
    for key, at, may in (
        (second.address, now + DAY + 1, True),
        (first.address, now + DAY, True),
        (first.address, now + DAY + 1, False),
        (payer.address, now, False),
        (ZERO_ADDRESS, now, False),
    ):
        assert books.may_sign(licence, key, at) is may


async def test_how_far_a_ticket_can_go() -> None:
    """To what was bought, and the packs that the budget still buys: the contract records that and not one more."""
    world = FakeWorld()
    chain, publisher, payer = world.chain, world.account(), world.account()
    product = await publish(world, publisher, listing_of(Kind.USAGE))
    licence = await buy(world, payer, product)
    assert (await books_of(world)).chargeable(licence, 0) == 10
    await chain.set_auto_charge(payer, licence, AutoCharge(5_000, 2, 1_001), value=5_000)
    books = await books_of(world)
    assert books.chargeable(licence, 0) == 10 + 40
    assert books.waiting(NATIVE) == 5_000
    await chain.set_prices(publisher, product.id, (1_002, 0, 0))
    assert (await books_of(world)).chargeable(licence, 0) == 10
    await chain.set_prices(publisher, product.id, (1_000, 0, 0))
    assert (await books_of(world)).chargeable(licence, 0) == 10 + 40
    await chain.record_usage(publisher, [await ticket(world, licence, 50, payer)])
    books = await books_of(world)
    assert books.chargeable(licence, 0) == 50
    assert books.waiting(NATIVE) == 1_000
    endless = await buy(world, payer, await publish(world, publisher))
    assert (await books_of(world)).chargeable(endless, 0) == ENDLESS


def test_versions_are_three_numbers_in_order() -> None:
    words = ["0.0.1", "0.9.10", "1.0.0", "1.2.3", "10.0.0"]
    versions = [Version.parse(word) for word in words]
    assert [str(version) for version in versions] == words
    assert [version.packed for version in versions] == sorted(version.packed for version in versions)
    assert [Version.unpack(version.packed) for version in versions] == versions
    for wrong in ("1.0", "1.0.0-rc1", "v1.0.0", "1.0.", "1.0.²", f"{2**32}.0.0"):
        with pytest.raises(ValueError, match="version|fit"):
            Version.parse(wrong)


async def test_shares_of_a_tree_sum_to_the_price() -> None:
    world = FakeWorld()
    sellers = [world.account() for _ in range(3)]
    leaf = await publish(world, sellers[0])
    middle = await publish(world, sellers[1], listing_of(parts=(Part(leaf.id, 3_333),) * 3))
    top = await publish(world, sellers[2], listing_of(parts=(Part(middle.id, 1_111),) * 7))
    known = {product.id: product for product in await world.chain.products()}
    assert top.nodes == 1 + 7 * 4 <= MAX_NODES
    for price in (1, 39, 40, 9_999, 10**18 + 1):
        shares = split(price, top, known.__getitem__, sellers[0].address)
        assert sum(share.amount for share in shares) == price
        assert sum(share.amount for share in shares if share.product is None) == fee(price)
        assert all(share.amount > 0 for share in shares)
