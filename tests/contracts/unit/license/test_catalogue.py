"""Catalogue: products, releases, trees, pages"""

import pytest
from eth_abi import encode
from eth_utils import keccak

from penstock.licences import DAY, MONTH, Version
from tests.contracts.harness import COIN, MAX, Actor, reverts
from tests.contracts.shop import FREE, PERPETUAL, PRICES, PUBLISHER, SUBSCRIPTION, USAGE, Shop, listing, release
from tests.fastchain import Contract

STRANGER = Actor("stranger")


def test_a_product_is_as_it_was_listed(shop: Shop, token: Contract) -> None:
    part = shop.publish()
    what = listing(
        USAGE,
        name="n" * 64,
        item=4,
        category=32,
        token=token.address,
        unit=2**56 - 1,
        refund_window=90 * DAY,
        revocable=True,
        parts=((part, 9_999), (part, 1)),
    )
    prices = (2**85 - 1, 0, 2**85 - 1)
    done = shop.catalogue.publish(what.struct, prices, release(), sender=PUBLISHER)
    number = done.result
    assert number == part + 1 == shop.catalogue.product_count()
    found = shop.catalogue.product(number)
    assert found[:7] == (PUBLISHER.lower(), True, shop.evm.now, 1, 1, 3, prices)
    name, item, category, kind, paid_in, unit, window, revocable, parts = found[7]
    assert (name, item, category, kind, paid_in) == ("n" * 64, 4, 32, USAGE, token.address.lower())
    assert (unit, window, revocable) == (2**56 - 1, 90 * DAY, True)
    assert tuple(parts) == what.parts
    assert shop.catalogue.release(number, 1) == release()
    assert shop.catalogue.figures_of(number) == (
        PUBLISHER.lower(),
        True,
        True,
        USAGE,
        1,
        1,
        token.address.lower(),
        2**56 - 1,
        90 * DAY,
        prices,
    )
    published = done.log("ProductPublished")
    assert (published["product"], published["publisher"], published["category"]) == (number, PUBLISHER, 32)
    assert done.log("PricesChanged")["prices"] == prices
    assert (done.log("Released")["number"], done.log("Released")["release"]) == (1, release())


def test_there_is_no_product_that_was_not_published(shop: Shop) -> None:
    for number in (0, shop.catalogue.product_count() + 1, 2**32, MAX):
        assert shop.catalogue.product(number)[:3] == (COIN, False, 0)
        assert shop.catalogue.figures_of(number)[:2] == (COIN, False)
        assert shop.catalogue.release(number, 1)[0] == 0
        assert shop.catalogue.docs_uri_of(number, 1) == ""
        with reverts("catalogue: no such product"):
            shop.catalogue.shares_of(number, 1)
        with reverts("catalogue: not for sale"):
            shop.catalogue.cost_of(number, 1, 1)
        for call, args in (
            ("set_prices", (number, PRICES)),
            ("add_release", (number, release("9.0.0"))),
            ("set_product_active", (number, True)),
        ):
            with reverts("catalogue: not the publisher"):
                getattr(shop.catalogue, call)(*args, sender=PUBLISHER)


@pytest.mark.parametrize(
    ("changes", "prices", "reason"),
    [
        ({"name": ""}, None, "catalogue: empty name"),
        ({"item": 0}, None, "catalogue: not one of its sort"),
        ({"item": 3}, None, "catalogue: not one of its sort"),
        ({"category": 0}, None, "catalogue: not one of its sort"),
        ({"category": 48}, None, "catalogue: not one of its sort"),
        ({"kind": 0}, (0, 0, 0), "catalogue: not one of its sort"),
        ({"kind": 6}, None, "catalogue: not one of its sort"),
        ({"item": 8}, None, "0x"),
        ({"category": 64}, None, "0x"),
        ({"kind": 16}, None, "0x"),
        ({"name": "n" * 65}, None, "0x"),
        ({"parts": ((1, 1),) * 9}, None, "0x"),
        ({"kind": SUBSCRIPTION, "unit": 0}, None, "catalogue: period is not a day, 7 or 30 days"),
        ({"kind": SUBSCRIPTION, "unit": DAY + 1}, None, "catalogue: period is not a day, 7 or 30 days"),
        ({"kind": SUBSCRIPTION, "unit": 2**160 + DAY}, None, "catalogue: period is not a day, 7 or 30 days"),
        ({"kind": USAGE, "unit": 0}, None, "catalogue: no such pack of units"),
        ({"kind": USAGE, "unit": 2**56}, None, "catalogue: no such pack of units"),
        ({"kind": PERPETUAL, "unit": 1}, None, "catalogue: unit without a use"),
        ({"kind": FREE, "unit": 1}, (0, 0, 0), "catalogue: unit without a use"),
        ({"refund_window": 90 * DAY + 1}, None, "catalogue: refund window too long"),
        ({"kind": FREE, "refund_window": 1}, (0, 0, 0), "catalogue: nothing to refund"),
        ({"kind": FREE}, (0, 0, 1), "catalogue: free of charge or not"),
        ({}, (0, 0, 0), "catalogue: free of charge or not"),
        ({}, (2**85, 0, 0), "catalogue: price too large"),
        ({}, (0, 2**85, 0), "catalogue: price too large"),
        ({}, (0, 0, MAX), "catalogue: price too large"),
        ({"token": STRANGER}, None, "catalogue: token is not a contract"),
        ({"parts": ((0, 1),)}, None, "catalogue: no such part"),
        ({"parts": ((10**6, 1),)}, None, "catalogue: no such part"),
        ({"parts": ((1, 0),)}, None, "catalogue: part without a share"),
        ({"parts": ((1, 10_001),)}, None, "catalogue: more than the whole is shared"),
        ({"parts": ((1, 5_000), (1, 5_001))}, None, "catalogue: more than the whole is shared"),
        ({"parts": ((1, 5_000), (1, MAX))}, None, "catalogue: more than the whole is shared"),
    ],
)
def test_a_listing_must_make_sense(
    shop: Shop, changes: dict[str, object], prices: tuple[int, int, int] | None, reason: str
) -> None:
    shop.publish()
    with reverts(reason):
        shop.catalogue.publish(listing(**changes).struct, prices or PRICES, release(), sender=PUBLISHER)  # type: ignore[arg-type]


def test_no_product_can_be_its_own_part(shop: Shop) -> None:
    """Parts are there before, and never change: a tree has no cycle."""
    coming = shop.catalogue.product_count() + 1
    with reverts("catalogue: no such part"):
        shop.publish(listing(parts=((coming, 1),)))


def test_trees_end_at_four_levels_and_thirty_one_products(shop: Shop) -> None:
    leaf = shop.publish()
    low = shop.publish(listing(parts=((leaf, 1),)))
    middle = shop.publish(listing(parts=((low, 1),)))
    top = shop.publish(listing(parts=((middle, 1),)))
    assert [shop.catalogue.product(number)[4] for number in (leaf, low, middle, top)] == [0, 1, 2, 3]
    with reverts("catalogue: tree too deep"):
        shop.publish(listing(parts=((leaf, 1), (top, 1))))
    wide = shop.publish(listing(parts=((leaf, 1),) * 8))
    full = shop.publish(listing(parts=((wide, 1),) * 3 + ((leaf, 1),) * 3))
    assert shop.catalogue.product(full)[5] == 31
    with reverts("catalogue: tree too large"):
        shop.publish(listing(parts=((wide, 1),) * 3 + ((leaf, 1),) * 4))


def test_what_a_product_is_never_changes(shop: Shop) -> None:
    """Of all that its publisher can do, the listing is the same to the last bit."""
    number = shop.publish(listing(SUBSCRIPTION, revocable=True, refund_window=DAY, unit=MONTH))
    before = shop.catalogue.product(number)
    shop.catalogue.set_prices(number, (0, 7, 0), sender=PUBLISHER)
    shop.catalogue.add_release(number, release("1.0.1"), sender=PUBLISHER)
    done = shop.catalogue.set_product_active(number, False, sender=PUBLISHER)
    assert done.log("ProductActiveChanged") == {"product": number, "active": False}
    shop.catalogue.set_product_active(number, False, sender=PUBLISHER)
    after = shop.catalogue.product(number)
    assert after[7] == before[7]
    assert after[:7] == (before[0], False, before[2], 2, before[4], before[5], (0, 7, 0))
    shop.catalogue.set_product_active(number, True, sender=PUBLISHER)
    shop.catalogue.set_product_active(number, True, sender=PUBLISHER)
    assert shop.catalogue.product(number)[1] is True
    with reverts("catalogue: free of charge or not"):
        shop.catalogue.set_prices(number, (0, 0, 0), sender=PUBLISHER)


def test_the_count_of_releases_never_reaches_into_what_a_product_is(shop: Shop) -> None:
    """Nobody makes 65,535 of them in a test: the word is written as if somebody had made all but one."""
    number, evm, catalogue = shop.publish(), shop.evm, shop.catalogue
    places = ["0x" + keccak(encode(["uint256", "uint256"], [slot, number])).hex() for slot in range(8)]
    words = {place: int(evm.rpc("eth_getStorageAt", catalogue.address, place, "latest"), 16) for place in places}
    ((place, head),) = ((p, word) for p, word in words.items() if word % 2**160 == int(PUBLISHER, 16))
    evm.rpc("anvil_setStorageAt", catalogue.address, place, f"0x{head + (2**16 - 3 << 200):064x}")
    before = catalogue.product(number)
    catalogue.add_release(number, release("2.0.0"), sender=PUBLISHER)
    with reverts("catalogue: too many releases"):
        catalogue.add_release(number, release("3.0.0"), sender=PUBLISHER)
    after = catalogue.product(number)
    assert (before[3], after[3]) == (2**16 - 2, 2**16 - 1)
    assert (before[:3], before[4:]) == (after[:3], after[4:])


def test_releases_only_rise_and_stay(shop: Shop) -> None:
    number = shop.publish()
    versions = ["1.0.1", "1.1.0", "1.10.0", "2.0.0", f"{2**32 - 1}.0.{2**32 - 1}"]
    for version in versions:
        shop.catalogue.add_release(number, release(version, version), sender=PUBLISHER)
        for same_or_lower in (version, "0.9.9"):
            with reverts("catalogue: version not above the one before"):
                shop.catalogue.add_release(number, release(same_or_lower), sender=PUBLISHER)
    for place, version in enumerate(versions, 2):
        assert shop.catalogue.release(number, place)[0] == Version.parse(version).packed
        assert shop.catalogue.docs_uri_of(number, place) == version
    assert shop.catalogue.release(number, 1) == release()
    with reverts("catalogue: version not above the one before"):
        shop.catalogue.publish(listing().struct, PRICES, release("0.0.0"), sender=PUBLISHER)


def test_a_price_is_that_of_its_tier(shop: Shop) -> None:
    number = shop.publish(listing(USAGE), (3, 0, 7))
    cost = shop.catalogue.cost_of
    assert (cost(number, 1, 5), cost(number, 4, 2**32 - 1)) == (15, 7 * (2**32 - 1))
    for tier, quantity, reason in (
        (2, 1, "catalogue: not sold in this tier"),
        (3, 1, "catalogue: not one tier"),
        (0, 1, "catalogue: not one tier"),
        (1, 0, "catalogue: not a quantity"),
        (1, 2**32, "catalogue: not a quantity"),
    ):
        with reverts(reason):
            cost(number, tier, quantity)
    assert cost(shop.publish(listing(FREE)), 4, 1) == 0
    with reverts("catalogue: not a quantity"):
        cost(shop.publish(), 1, 2)


@pytest.mark.parametrize("amount", [0, 1, 2, 9, 10_000, 10**18 + 1, 2**128 - 1])
def test_shares_sum_to_the_amount(shop: Shop, amount: int) -> None:
    leaf = shop.publish(sender=STRANGER)
    low = shop.publish(listing(parts=((leaf, 3_333), (leaf, 3_334))))
    top = shop.publish(
        listing(
            parts=(
                (low, 1_234),
                (leaf, 8_766),
            )
        )
    )
    for number in (leaf, low, top):
        shares = shop.catalogue.shares_of(number, amount)
        assert sum(share for _, share in shares) == amount
        assert all(share > 0 for _, share in shares)


def test_products_come_by_the_page(shop: Shop) -> None:
    catalogue = shop.catalogue
    first = catalogue.product_count() + 1
    for number in range(20):
        shop.publish(listing(FREE, category=1 << number % 6), sender=PUBLISHER if number % 2 else STRANGER)
    numbers = list(range(first, first + 20))
    assert list(catalogue.products_of(STRANGER, 0, 100)) == numbers[::2]
    assert list(catalogue.products_of(STRANGER, 3, 5)) == numbers[::2][3:8]
    assert list(catalogue.products_of(Actor("nobody"), 0, 100)) == []
    for place in range(6):
        assert list(catalogue.products_in(1 << place, 0, 100))[-3:] == numbers[place::6][-3:]
    assert list(catalogue.products_in(0, 0, 100)) == []


def test_a_page_has_at_most_a_hundred(shop: Shop) -> None:
    free = shop.publish(listing(FREE))
    many = [shop.buy(free, Actor("holder")) for _ in range(103)]
    assert list(shop.license.licences_of(Actor("holder"), 0, MAX)) == many[:100]
    assert list(shop.license.licences_of(Actor("holder"), 100, MAX)) == many[100:]


def test_names_may_be_in_any_script(shop: Shop) -> None:
    name = "翻訳" * 10
    assert len(name.encode()) == 60
    assert shop.catalogue.product(shop.publish(listing(name=name)))[7][0] == name
