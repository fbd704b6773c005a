"""Usage falls by tickets: whose, how far, at what cost"""

import pytest

from tests.contracts.harness import COIN, MAX, Actor, flip_signature, reverts, v_from_zero
from tests.contracts.shop import (
    COMMERCIAL,
    COMPLETED,
    DAY,
    PUBLISHER,
    SUBSCRIPTION,
    TREASURY,
    USAGE,
    Shop,
    listing,
)

KEY, OTHER = Actor("session key 1"), Actor("session key 2")
STRANGER = Actor("stranger")
FORGED = "license: ticket not signed by the session key"
OVER = "license: more than was bought"


@pytest.fixture
def number(shop: Shop, payer: Actor) -> int:
    """Thirty units, three packs of ten."""
    return shop.buy(shop.publish(listing(USAGE)), payer, quantity=3, key=KEY)


def used(shop: Shop, number: int) -> int:
    return int(shop.licence(number)["used"])


def test_a_ticket_says_how_much_in_all(shop: Shop, number: int) -> None:
    done = shop.record(number, 4, KEY.key)
    assert (done.result, done.log("UsageRecorded")["used"]) == (4, 4)
    assert shop.record(number, 10, KEY.key, sender=STRANGER).result == 6
    assert (used(shop, number), shop.license.remaining(number)) == (10, 20)


def test_old_tickets_add_nothing_and_stop_no_batch(shop: Shop, number: int) -> None:
    tickets = [shop.ticket(number, units, KEY.key) for units in (5, 3, 5, 8)]
    assert shop.license.record_usage(tickets, sender=PUBLISHER).result == 8
    for batch in (tickets, []):
        with reverts("license: nothing to record"):
            shop.license.record_usage(batch, sender=PUBLISHER)


def test_all_units_and_not_one_more(shop: Shop, number: int) -> None:
    with reverts(OVER):
        shop.record(number, 31, KEY.key)
    shop.record(number, 30, KEY.key)
    assert not shop.license.is_valid(number)
    for units in (31, MAX):
        with reverts(OVER):
            shop.record(number, units, KEY.key)
    shop.license.renew(number, 1, 1_001, **shop.paying(STRANGER, 1_001))
    shop.record(number, 31, KEY.key)
    assert shop.license.remaining(number) == 9


def test_a_hundred_tickets_of_many_licences(shop: Shop, payer: Actor) -> None:
    product = shop.publish(listing(USAGE))
    numbers = [shop.buy(product, payer, key=KEY) for _ in range(10)]
    tickets = [shop.ticket(number, units, KEY.key) for units in range(1, 11) for number in numbers]
    assert shop.license.record_usage(tickets, sender=PUBLISHER).result == 100
    with reverts("0x"):
        shop.license.record_usage([*tickets, tickets[0]], sender=PUBLISHER)


# --- who signs ---


def test_without_a_session_key_the_licensee_signs(shop: Shop, payer: Actor) -> None:
    number = shop.buy(shop.publish(listing(USAGE)), payer)
    shop.record(number, 1, payer.key)
    with reverts(FORGED):
        shop.record(number, 2, KEY.key)


def test_with_one_nobody_else_does(shop: Shop, payer: Actor, number: int) -> None:
    for forger in (payer, PUBLISHER, STRANGER):
        with reverts(FORGED):
            shop.record(number, 1, forger.key)


def test_a_signature_is_for_one_licence_one_number_and_one_place(shop: Shop, payer: Actor, number: int) -> None:
    good = shop.ticket(number, 1, KEY.key)
    other = shop.buy(shop.publish(listing(USAGE)), payer, key=KEY)
    for ticket in (
        (other, 1, good[2]),
        (number, 2, good[2]),
        shop.ticket(number, 1, KEY.key, chainId=1),
        shop.ticket(number, 1, KEY.key, verifyingContract=shop.pay.address),
        shop.ticket(number, 1, KEY.key, name="Penstock StreamPay"),
        shop.ticket(number, 1, KEY.key, version="2"),
        (number, 1, flip_signature(good[2])),
        (number, 1, v_from_zero(good[2])),
        (number, 1, bytes(65)),
    ):
        with reverts(FORGED):
            shop.license.record_usage([ticket], sender=PUBLISHER)
    for length in (0, 64):
        with reverts("license: ticket signature is not 65 bytes"):
            shop.license.record_usage([(number, 1, good[2][:length])], sender=PUBLISHER)
    shop.license.record_usage([good], sender=PUBLISHER)


def test_the_domain_is_the_one_that_others_compute(shop: Shop) -> None:
    from penstock.types import address
    from penstock.wire.eip712 import license_domain, ticket_digest
    from tests.contracts.shop import TICKET_FIELDS

    chain = int(shop.evm.rpc("eth_chainId"), 16)
    domain = license_domain(chain, address(shop.license.address))
    assert shop.license.domain_separator() == domain.separator
    from eth_account.messages import _hash_eip191_message, encode_typed_data

    words = {"name": domain.name, "version": "1", "chainId": chain, "verifyingContract": domain.contract}
    kinds = {"Ticket": [{"name": name, "type": kind} for name, kind in TICKET_FIELDS.items()]}
    message = encode_typed_data(words, kinds, {"license": 7, "used": 9})
    assert ticket_digest(domain, 7, 9) == bytes(_hash_eip191_message(message))


def test_a_key_that_was_replaced_counts_for_a_day(shop: Shop, payer: Actor, number: int) -> None:
    done = shop.license.set_session_key(number, OTHER, sender=payer)
    assert done.log("SessionKeyChanged") == {
        "license": number,
        "session_key": OTHER,
        "previous_until": shop.evm.now + DAY,
    }
    assert shop.licence(number)["key"] == OTHER.lower()
    shop.record(number, 1, OTHER.key)
    shop.evm.sleep(DAY)
    shop.record(number, 2, KEY.key)
    with reverts("license: key changed within a day"):
        shop.license.set_session_key(number, STRANGER, sender=payer)
    shop.evm.sleep(1)
    with reverts(FORGED):
        shop.record(number, 3, KEY.key)
    shop.license.set_session_key(number, COIN, sender=payer)
    for units, signer in ((3, payer), (4, OTHER)):
        shop.record(number, units, signer.key)
    with reverts("license: not the licensee"):
        shop.license.set_session_key(number, STRANGER, sender=STRANGER)


def test_the_licensees_own_signature_counts_for_a_day_too(shop: Shop, payer: Actor) -> None:
    number = shop.buy(shop.publish(listing(USAGE)), payer)
    shop.license.set_session_key(number, KEY, sender=payer)
    shop.record(number, 1, payer.key)
    shop.evm.sleep(DAY + 1)
    with reverts(FORGED):
        shop.record(number, 2, payer.key)


# --- what it is good for ---


def test_only_usage_is_recorded(shop: Shop, payer: Actor) -> None:
    for kind in (1, 2, SUBSCRIPTION):
        number = shop.buy(shop.publish(listing(kind)), payer)
        with reverts("license: not sold by usage"):
            shop.record(number, 1, payer.key)
        with reverts("license: not sold by usage"):
            shop.license.set_auto_charge(number, 1, 1, 0, sender=payer)
    with reverts("license: not in force"):
        shop.record(10**6, 1, payer.key)


def test_a_ticket_accepts_what_was_pending(shop: Shop, payer: Actor) -> None:
    number = shop.buy(shop.publish(listing(USAGE, refund_window=DAY)), payer)
    done = shop.record(number, 1, payer.key)
    assert done.log("Completed")["cost"] == 1_001
    assert (shop.status(number), used(shop, number), shop.vault(PUBLISHER)) == (COMPLETED, 1, 976)
    with reverts("license: not pending"):
        shop.license.refund(number, sender=payer)


def test_an_old_ticket_does_not(shop: Shop, payer: Actor) -> None:
    number = shop.buy(shop.publish(listing(USAGE, refund_window=DAY)), payer)
    with reverts("license: nothing to record"):
        shop.license.record_usage([(number, 0, b"")], sender=PUBLISHER)


def test_what_was_refunded_or_revoked_is_not_used(shop: Shop, payer: Actor) -> None:
    product = shop.publish(listing(USAGE, refund_window=DAY, revocable=True))
    refunded, revoked = shop.buy(product, payer), shop.buy(product, payer)
    shop.license.refund(refunded, sender=payer)
    shop.license.revoke(revoked, "", sender=PUBLISHER)
    for number in (refunded, revoked):
        assert shop.license.remaining(number) == 0
        with reverts("license: not in force"):
            shop.record(number, 1, payer.key)


# --- budgets ---


def budget(shop: Shop, number: int) -> int:
    return int(shop.license.auto_charge(number)[0])


def test_packs_are_bought_when_they_are_needed(shop: Shop, payer: Actor, number: int) -> None:
    shop.license.set_auto_charge(number, 2, 1_001, 5_005, **shop.paying(payer, 5_005))
    assert shop.waits() == 5_005
    shop.record(number, 30, KEY.key)
    assert budget(shop, number) == 5_005
    done = shop.record(number, 31, KEY.key)
    renewed = done.log("Renewed")
    assert (renewed["payer"], renewed["cost"], renewed["bought"]) == (COIN, 2_002, 50)
    assert done.log("AutoChargeChanged")["budget"] == 3_003
    assert (shop.waits(), shop.license.remaining(number)) == (3_003, 19)
    assert shop.licence(number)["paid"] == 5 * 1_001
    assert shop.vault(TREASURY) == 75 + 50


def test_packs_are_bought_at_the_price_of_the_tier(shop: Shop, payer: Actor) -> None:
    number = shop.buy(shop.publish(listing(USAGE)), payer, tier=COMMERCIAL)
    shop.license.set_auto_charge(number, 1, 2_002, 5_000, **shop.paying(payer, 5_000))
    with reverts(OVER):
        shop.record(number, 11, payer.key)
    shop.license.set_auto_charge(number, 1, 2_003, 5_000, sender=payer)
    shop.record(number, 11, payer.key)
    assert (budget(shop, number), shop.licence(number)["paid"]) == (5_000 - 2_003, 2 * 2_003)


def test_a_larger_budget_costs_the_difference(shop: Shop, payer: Actor, number: int) -> None:
    for held, more in ((0, 3_000), (3_000, 2_000), (5_000, 1)):
        assert shop.waits() == held
        with reverts("vault: not allowed so much"):
            shop.license.set_auto_charge(number, 1, 1, held + more, **shop.paying(payer, more - 1))
        shop.license.set_auto_charge(number, 1, 1, held + more, **shop.paying(payer, more))
    assert (budget(shop, number), shop.waits(), shop.vault(payer)) == (5_001, 5_001, 0)


def test_as_many_steps_as_a_ticket_takes(shop: Shop, payer: Actor, number: int) -> None:
    shop.license.set_auto_charge(number, 2, MAX >> 171, 6_006, **shop.paying(payer, 6_006))
    with reverts(OVER):
        shop.record(number, 30 + 61, KEY.key)
    shop.record(number, 30 + 60, KEY.key)
    assert (budget(shop, number), shop.license.remaining(number)) == (0, 0)


def test_a_step_is_bought_whole_or_not_at_all(shop: Shop, payer: Actor, number: int) -> None:
    shop.license.set_auto_charge(number, 2, 1_001, 2_001, **shop.paying(payer, 2_001))
    with reverts(OVER):
        shop.record(number, 31, KEY.key)
    assert budget(shop, number) == 2_001


@pytest.mark.parametrize("change", ["price", "sale", "tier", "stop"])
def test_nothing_is_bought_beyond_what_the_licensee_let(shop: Shop, payer: Actor, number: int, change: str) -> None:
    shop.license.set_auto_charge(number, 1, 1_001, 5_000, **shop.paying(payer, 5_000))
    product = shop.licence(number)["product"]
    if change == "price":
        shop.catalogue.set_prices(product, (1_002, 0, 0), sender=PUBLISHER)
    elif change == "sale":
        shop.catalogue.set_product_active(product, False, sender=PUBLISHER)
    elif change == "tier":
        shop.catalogue.set_prices(product, (0, 1, 0), sender=PUBLISHER)
    else:
        shop.license.set_auto_charge(number, 0, 1_001, 5_000, sender=payer)
    with reverts(OVER):
        shop.record(number, 31, KEY.key)


def test_the_budget_can_always_be_taken_back(shop: Shop, payer: Actor) -> None:
    product = shop.publish(listing(USAGE, refund_window=DAY, revocable=True))
    for end in ("nothing", "revoked", "refunded", "off the market"):
        number = shop.buy(product, payer)
        shop.license.set_auto_charge(number, 1, 1_001, 5_000, **shop.paying(payer, 5_000))
        if end == "revoked":
            shop.license.revoke(number, end, sender=PUBLISHER)
        elif end == "refunded":
            shop.license.refund(number, sender=payer)
        elif end == "off the market":
            shop.catalogue.set_product_active(product, False, sender=PUBLISHER)
        before = shop.vault(payer)
        shop.license.set_auto_charge(number, 1, 1_001, 1, sender=payer)
        shop.license.set_auto_charge(number, 0, 0, 0, sender=payer)
        assert shop.vault(payer) - before == 5_000
        if end in ("revoked", "refunded"):
            with reverts("license: not in force"):
                shop.license.set_auto_charge(number, 1, 1_001, 1, **shop.paying(payer, 1))


def test_a_budget_is_the_licensees_to_set(shop: Shop, payer: Actor, number: int) -> None:
    shop.license.set_auto_charge(number, 1, 1, 100, **shop.paying(payer, 100))
    for sender in (PUBLISHER, STRANGER):
        with reverts("license: not the licensee"):
            shop.license.set_auto_charge(number, 0, 0, 0, sender=sender)
    for args, reason in (
        ((2**32, 0, 100), "license: not a quantity"),
        ((0, 2**85, 100), "license: price too large"),
        ((0, 0, 2**128), "license: cost too large"),
        ((0, 0, 101), "vault: not allowed so much"),
    ):
        with reverts(reason):
            shop.license.set_auto_charge(number, *args, sender=payer)
    shop.license.set_auto_charge(number, 2**32 - 1, 2**85 - 1, 100, sender=payer)
    assert shop.license.auto_charge(number) == (100, 2**32 - 1, 2**85 - 1)


def test_packs_of_the_largest_size_overflow_nothing(shop: Shop, payer: Actor) -> None:
    product = shop.publish(listing(USAGE, unit=2**56 - 1), (1, 0, 0))
    number = shop.buy(product, payer)
    assert shop.licence(number)["bought"] == 2**56 - 1
    with reverts("license: too many units"):
        shop.license.renew(number, 1, 1, **shop.paying(payer, 1))
    shop.license.set_auto_charge(number, 2**32 - 1, 1, 2**33, **shop.paying(payer, 2**33))
    shop.record(number, 2**56 - 1, payer.key)
    with reverts("license: too many units"):
        shop.record(number, 2**56, payer.key)
    with reverts(OVER):
        shop.record(number, MAX, payer.key)
    found = shop.licence(number)
    assert (found["used"], found["bought"], found["paid"], found["expires_at"]) == (2**56 - 1, 2**56 - 1, 1, 2**40 - 1)
