"""Licences: purchase, renewal, tiers, validity, reviews, revocation, and their words in storage"""

import pytest

from penstock.licences import MAX_PAID, MONTH, WEEK
from tests.contracts.harness import COIN, MAX, Actor, reverts
from tests.contracts.shop import (
    COMMERCIAL,
    COMPLETED,
    DAY,
    ENTERPRISE,
    FREE,
    NEVER,
    PERPETUAL,
    PERSONAL,
    PUBLISHER,
    REVOKED,
    SUBSCRIPTION,
    USAGE,
    Shop,
    listing,
)

STRANGER = Actor("stranger")


def test_what_was_bought_is_on_record(shop: Shop, payer: Actor, keeper: Actor) -> None:
    product = shop.publish(listing(SUBSCRIPTION, refund_window=DAY))
    done = shop.license.buy(product, 1, COMMERCIAL, 3, 6_009, keeper, STRANGER, **shop.paying(payer, 6_009))
    now = shop.evm.now
    assert shop.licence(done.result) == {
        "licensee": keeper.lower(),
        "product": product,
        "release": 1,
        "tier": COMMERCIAL,
        "status": 1,
        "bought_at": now,
        "expires_at": now + 3 * MONTH,
        "bought": 0,
        "used": 0,
        "paid": 6_009,
        "reviewed": False,
        "key": STRANGER.lower(),
        "payer": payer.lower(),
        "until": now + DAY,
    }
    said = done.log("Licensed")
    assert (said["licensee"], said["payer"], said["cost"]) == (keeper, payer, 6_009)
    assert (said["expires_at"], said["refundable_until"]) == (now + 3 * MONTH, now + DAY)


@pytest.mark.parametrize(
    ("kind", "tier", "quantity", "reason"),
    [
        (PERPETUAL, 0, 1, "license: not one tier"),
        (PERPETUAL, 3, 1, "license: not one tier"),
        (PERPETUAL, 7, 1, "license: not one tier"),
        (PERPETUAL, 8, 1, "0x"),
        (PERPETUAL, COMMERCIAL, 1, "license: not sold in this tier"),
        (PERPETUAL, PERSONAL, 0, "license: not a quantity"),
        (PERPETUAL, PERSONAL, 2, "license: not a quantity"),
        (FREE, PERSONAL, 2, "license: not a quantity"),
        (SUBSCRIPTION, PERSONAL, 0, "license: not a quantity"),
        (SUBSCRIPTION, PERSONAL, 2**32, "license: not a quantity"),
        (SUBSCRIPTION, PERSONAL, 2**32 - 1, "license: too long"),
        (USAGE, PERSONAL, 2**32, "license: not a quantity"),
    ],
)
def test_reverts_for_what_is_not_sold(
    shop: Shop, payer: Actor, kind: int, tier: int, quantity: int, reason: str
) -> None:
    product = shop.publish(listing(kind), (0, 0, 0) if kind == FREE else (1, 0, 5))
    with reverts(reason):
        shop.license.buy(product, 1, tier, quantity, MAX, payer, COIN, sender=payer)


def test_the_price_cannot_rise_on_the_way(shop: Shop, payer: Actor) -> None:
    product = shop.publish()
    shop.catalogue.set_prices(product, (1_002, 0, 0), sender=PUBLISHER)
    with reverts("license: dearer than the bound"):
        shop.buy(product, payer, max_cost=1_001)
    number = shop.buy(shop.publish(listing(USAGE)), payer)
    for call, args in (("renew", (number, 1, 1_000)), ("upgrade", (number, COMMERCIAL, 1_001))):
        with reverts("license: dearer than the bound"):
            getattr(shop.license, call)(*args, sender=payer)


def test_what_is_off_the_market_is_not_sold_nor_renewed(shop: Shop, payer: Actor) -> None:
    product = shop.publish(listing(USAGE))
    number = shop.buy(product, payer)
    shop.catalogue.set_product_active(product, False, sender=PUBLISHER)
    for call, args in (
        ("buy", (product, 1, PERSONAL, 1, MAX, payer, COIN)),
        ("buy", (product + 1, 0, PERSONAL, 1, MAX, payer, COIN)),
        ("renew", (number, 1, MAX)),
        ("upgrade", (number, COMMERCIAL, MAX)),
    ):
        with reverts("license: not for sale"):
            getattr(shop.license, call)(*args, sender=payer)
    assert shop.license.is_valid(number)


def test_a_cost_that_does_not_fit_is_refused(shop: Shop, payer: Actor) -> None:
    product = shop.publish(listing(USAGE, unit=1), (2**85 - 1, 0, 0))
    most = MAX_PAID // (2**85 - 1)
    with reverts("license: cost too large"):
        shop.license.buy(product, 1, PERSONAL, most + 1, MAX, payer, COIN, sender=payer)
    number = shop.buy(product, payer, quantity=most)
    assert shop.licence(number)["paid"] == most * (2**85 - 1)


def test_what_was_paid_counts_to_its_maximum_and_stops_nothing(shop: Shop, payer: Actor) -> None:
    product = shop.publish(listing(USAGE, unit=1), (2**85 - 1, 0, 0))
    most = MAX_PAID // (2**85 - 1)
    number = shop.buy(product, payer, quantity=most)
    shop.license.renew(number, most, MAX, **shop.paying(payer, most * (2**85 - 1)))
    found = shop.licence(number)
    assert (found["paid"], found["bought"], found["used"], found["expires_at"]) == (MAX_PAID, 2 * most, 0, NEVER)


# --- time ---


@pytest.mark.parametrize("period", [DAY, WEEK, MONTH])
def test_a_subscription_ends_to_the_second(shop: Shop, payer: Actor, period: int) -> None:
    number = shop.buy(shop.publish(listing(SUBSCRIPTION, unit=period)), payer, quantity=2)
    assert shop.license.remaining(number) == 2 * period
    shop.evm.sleep(2 * period - 1)
    assert (shop.license.remaining(number), shop.license.is_valid(number)) == (1, True)
    shop.evm.sleep(1)
    assert (shop.license.remaining(number), shop.license.is_valid(number)) == (0, False)
    shop.evm.sleep(10**6)
    assert shop.license.remaining(number) == 0


@pytest.mark.parametrize("late", [-1, 0, 1, 10**7])
def test_renewing_never_shortens(shop: Shop, payer: Actor, late: int) -> None:
    number = shop.buy(shop.publish(listing(SUBSCRIPTION)), payer)
    before = shop.licence(number)["expires_at"]
    shop.evm.sleep(MONTH + late)
    done = shop.license.renew(number, 2, MAX, **shop.paying(STRANGER, 2_002))
    after = shop.licence(number)["expires_at"]
    assert after == max(before, shop.evm.now) + 2 * MONTH == done.log("Renewed")["expires_at"]
    assert done.log("Renewed")["payer"] == STRANGER


def test_renewing_has_an_end(shop: Shop, payer: Actor) -> None:
    product = shop.publish(listing(SUBSCRIPTION, unit=DAY), (1, 0, 0))
    left = (NEVER - shop.evm.now - 1) // DAY
    number = shop.buy(product, payer, quantity=left)
    with reverts("license: too long"):
        shop.license.renew(number, 1, MAX, **shop.paying(payer, 1))
    assert shop.license.is_valid(number)


def test_some_have_nothing_to_renew(shop: Shop, payer: Actor) -> None:
    for kind in (FREE, PERPETUAL):
        number = shop.buy(shop.publish(listing(kind)), payer)
        with reverts("license: nothing to renew"):
            shop.license.renew(number, 1, MAX, sender=payer)
        assert shop.license.remaining(number) == MAX


def test_what_is_not_completed_is_not_renewed_upgraded_or_reviewed(shop: Shop, payer: Actor) -> None:
    product = shop.publish(listing(USAGE, refund_window=DAY, revocable=True))
    pending, revoked = shop.buy(product, payer), shop.buy(product, payer)
    shop.license.complete(revoked, sender=payer)
    shop.license.revoke(revoked, "", sender=PUBLISHER)
    for number in (pending, revoked):
        for call, args in (
            ("renew", (number, 1, MAX)),
            ("upgrade", (number, COMMERCIAL, MAX)),
            ("review", (number, 5, "", bytes(32))),
        ):
            with reverts("license: not completed"):
                getattr(shop.license, call)(*args, sender=payer)
        with reverts("license: not completed"):
            shop.license.upgrade_cost(number, COMMERCIAL)


# --- tiers ---


def test_a_tier_costs_the_difference(shop: Shop, payer: Actor) -> None:
    number = shop.buy(shop.publish(), payer)
    assert shop.license.upgrade_cost(number, ENTERPRISE) == 9_999 - 1_001
    done = shop.license.upgrade(number, COMMERCIAL, 1_002, **shop.paying(payer, 1_002))
    assert (done.log("Upgraded")["tier"], done.log("Upgraded")["cost"]) == (COMMERCIAL, 1_002)
    assert shop.license.upgrade_cost(number, ENTERPRISE) == 9_999 - 2_003
    for tier in (PERSONAL, COMMERCIAL):
        with reverts("license: not a higher tier"):
            shop.license.upgrade(number, tier, MAX, sender=payer)
    with reverts("license: not one tier"):
        shop.license.upgrade(number, 3, MAX, sender=payer)


@pytest.mark.parametrize("passed", [0, 1, MONTH - 1, MONTH, 2 * MONTH])
def test_of_a_subscription_for_the_time_that_is_left(shop: Shop, payer: Actor, passed: int) -> None:
    number = shop.buy(shop.publish(listing(SUBSCRIPTION)), payer)
    shop.evm.sleep(passed)
    left = max(0, MONTH - passed)
    assert shop.license.upgrade_cost(number, COMMERCIAL) == -(-1_002 * left // MONTH)


def test_a_tier_that_became_cheaper_costs_nothing(shop: Shop, payer: Actor) -> None:
    product = shop.publish()
    number = shop.buy(product, payer)
    shop.catalogue.set_prices(product, (5_000, 4_000, 0), sender=PUBLISHER)
    assert shop.license.upgrade_cost(number, COMMERCIAL) == 0
    shop.license.upgrade(number, COMMERCIAL, 0, sender=payer)
    with reverts("license: not sold in this tier"):
        shop.license.upgrade(number, ENTERPRISE, MAX, sender=payer)


# --- revocation and reviews ---


def test_revocation_is_what_the_product_admits_from_the_beginning(shop: Shop, payer: Actor) -> None:
    firm = shop.buy(shop.publish(), payer)
    with reverts("license: not revocable"):
        shop.license.revoke(firm, "", sender=PUBLISHER)
    number = shop.buy(shop.publish(listing(revocable=True)), payer)
    for sender in (payer, STRANGER):
        with reverts("license: not the publisher"):
            shop.license.revoke(number, "", sender=sender)
    done = shop.license.revoke(number, "terms, 4.2", sender=PUBLISHER)
    assert (done.log("Revoked")["refund"], done.log("Revoked")["reason"]) == (0, "terms, 4.2")
    assert (shop.status(number), shop.license.is_valid(number), shop.vault(payer)) == (REVOKED, False, 0)
    with reverts("license: not in force"):
        shop.license.revoke(number, "", sender=PUBLISHER)


def test_reviews_weigh_what_was_paid(shop: Shop, payer: Actor, keeper: Actor) -> None:
    product = shop.publish()
    first, second = shop.buy(product, payer), shop.buy(product, keeper, tier=ENTERPRISE)
    done = shop.license.review(first, 4, "ipfs://why", b"\x01" * 32, sender=payer)
    said = done.log("Reviewed")
    assert (said["stars"], said["weight"], said["uri"], said["hash"]) == (4, 1_001, "ipfs://why", b"\x01" * 32)
    shop.license.review(second, 1, "", bytes(32), sender=keeper)
    assert shop.license.rating(product) == (2, 11_000, 4 * 1_001 + 9_999)
    assert shop.licence(first)["reviewed"]
    with reverts("license: already reviewed"):
        shop.license.review(first, 4, "", bytes(32), sender=payer)
    third = shop.buy(product, payer)
    for stars in (0, 6):
        with reverts("license: not 1 to 5 stars"):
            shop.license.review(third, stars, "", bytes(32), sender=payer)
    with reverts("license: not the licensee"):
        shop.license.review(third, 5, "", bytes(32), sender=keeper)
    shop.license.review(third, 5, "", bytes(32), sender=payer)


# --- storage ---


def test_changes_touch_nothing_else(shop: Shop, payer: Actor) -> None:
    """Of a licence whose every field is in use, each change moves its own field alone."""
    number = shop.buy(shop.publish(listing(USAGE, revocable=True)), payer, quantity=2, key=Actor("key"))
    license = shop.license

    def changed(call: str, *args: object, **how: object) -> set[str]:
        before = shop.licence(number)
        getattr(license, call)(number, *args, **how)
        return {name for name, value in shop.licence(number).items() if value != before[name]}

    assert changed("set_session_key", STRANGER, sender=payer) == {"key"}
    assert changed("upgrade", COMMERCIAL, MAX, **shop.paying(payer, 2_004)) == {"tier", "paid"}
    assert changed("upgrade", ENTERPRISE, MAX, **shop.paying(payer, 2 * 7_996)) == {"tier", "paid"}
    assert changed("renew", 1, MAX, **shop.paying(payer, 9_999)) == {"bought", "paid"}
    assert changed("review", 5, "", bytes(32), sender=payer) == {"reviewed"}
    assert changed("set_auto_charge", 1, 1, 5, **shop.paying(payer, 5)) == set()
    before = shop.licence(number)
    shop.record(number, 7, STRANGER.key)
    assert {name for name, value in shop.licence(number).items() if value != before[name]} == {"used"}
    assert changed("revoke", "", sender=PUBLISHER) == {"status"}
    assert shop.licence(number)["reviewed"]


def test_completing_touches_nothing_else(shop: Shop, payer: Actor) -> None:
    number = shop.buy(shop.publish(listing(SUBSCRIPTION, refund_window=DAY)), payer, tier=ENTERPRISE)
    before = shop.licence(number)
    shop.license.complete(number, sender=payer)
    gone = {"status": COMPLETED, "payer": COIN, "until": 0}
    assert shop.licence(number) == before | gone


def test_licences_come_by_the_page(shop: Shop, payer: Actor, keeper: Actor) -> None:
    product = shop.publish(listing(FREE))
    numbers = [shop.buy(product, STRANGER, licensee=keeper if i % 3 else payer) for i in range(30)]
    of_payer = [number for i, number in enumerate(numbers) if not i % 3]
    license = shop.license

    def page(account: str, start: int, limit: int) -> list[int]:
        return list(license.licences_of(account, start, limit))

    assert page(payer, 0, 100) == of_payer
    assert page(payer, 8, 100) == of_payer[8:]
    assert page(payer, 7, 2) == of_payer[7:9]
    assert page(payer, 0, 0) == page(payer, 10, 5) == []
    assert page(payer, MAX, MAX) == page(STRANGER, 0, 1) == []
    assert license.balanceOf(payer) + license.balanceOf(keeper) == 30
    assert [license.ownerOf(number) for number in of_payer] == [payer] * 10
