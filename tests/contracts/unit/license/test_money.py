"""Who gets what of a price, where it waits, and who can hold it up: nobody"""

from collections.abc import Callable

import pytest

from penstock.licences import fee
from tests.contracts.harness import COIN, MAX, Actor, Money, fill_vault, reverts
from tests.contracts.shop import (
    COMMERCIAL,
    COMPLETED,
    DAY,
    ENTERPRISE,
    FREE,
    PENDING,
    PERSONAL,
    PUBLISHER,
    REFUNDED,
    REVOKED,
    SUBSCRIPTION,
    TREASURY,
    USAGE,
    Shop,
    let_spend,
    listing,
)
from tests.fastchain import Contract

SELLERS = [Actor(f"seller {number}") for number in range(9)]
STRANGER = Actor("stranger")


@pytest.mark.parametrize("price", [*range(1, 84), 399, 400, 401, 9_999, 10_000, 10_001, 10**18 + 1, 2**85 - 1])
def test_every_price_is_split_without_rest(shop: Shop, payer: Actor, price: int) -> None:
    shop.buy(shop.publish(prices=(price, 0, 0)), payer)
    assert shop.vault(TREASURY) == fee(price) == price * 25 // 1_000
    assert shop.vault(PUBLISHER) == price - fee(price)
    assert (shop.waits(), shop.vault(payer)) == (0, 0)


@pytest.mark.parametrize("price", [1, 2, 7, 40, 41, 99, 1_001, 10**18 + 1])
def test_a_composites_price_is_split_without_rest(shop: Shop, payer: Actor, price: int) -> None:
    """Eight parts with shares that never come out even; what is lost to rounding is the composite's own."""
    parts = tuple((shop.publish(sender=seller), 1_111) for seller in SELLERS[:8])
    shop.buy(shop.publish(listing(parts=parts), (price, 0, 0), sender=SELLERS[8]), payer)
    net = price - fee(price)
    each = net * 1_111 // 10_000
    assert [shop.vault(seller) for seller in SELLERS] == [each] * 8 + [net - 8 * each]
    assert shop.vault(TREASURY) == fee(price)


def test_a_tree_of_four_levels_is_paid_to_its_leaves(shop: Shop, payer: Actor) -> None:
    leaf = shop.publish(sender=SELLERS[0])
    low = shop.publish(listing(parts=((leaf, 5_000),)), sender=SELLERS[1])
    middle = shop.publish(listing(parts=((low, 3_333), (leaf, 1))), sender=SELLERS[2])
    top = shop.publish(listing(parts=((middle, 9_999), (leaf, 1))), (100_003, 0, 0), sender=SELLERS[3])
    shop.buy(top, payer)
    net = 100_003 - 2_500
    to_middle, direct = net * 9_999 // 10_000, net // 10_000
    to_low, beside = to_middle * 3_333 // 10_000, to_middle // 10_000
    to_leaf = to_low * 5_000 // 10_000
    assert [shop.vault(seller) for seller in SELLERS[:4]] == [
        direct + beside + to_leaf,
        to_low - to_leaf,
        to_middle - to_low - beside,
        net - to_middle - direct,
    ]


def test_parts_may_have_all_of_it(shop: Shop, payer: Actor) -> None:
    part = shop.publish(sender=SELLERS[0])
    shop.buy(shop.publish(listing(parts=((part, 10_000),)), sender=SELLERS[1]), payer)
    assert (shop.vault(SELLERS[0]), shop.vault(SELLERS[1])) == (976, 0)


def test_thirty_one_sellers_and_the_treasury_are_paid_at_once(shop: Shop, payer: Actor) -> None:
    leaf = shop.publish(sender=SELLERS[0])
    wide = shop.publish(listing(parts=((leaf, 1_000),) * 8), sender=SELLERS[1])
    full = shop.publish(listing(parts=((wide, 1_000),) * 3 + ((leaf, 1_000),) * 3), sender=SELLERS[2])
    assert shop.catalogue.product(full)[5] == 31
    shop.buy(full, payer)
    assert len(shop.catalogue.shares_of(full, 10**6)) == 31
    assert sum(map(shop.vault, [*SELLERS, TREASURY])) == 1_001


def test_a_part_off_the_market_has_its_share(shop: Shop, payer: Actor) -> None:
    part = shop.publish(sender=SELLERS[0])
    shop.catalogue.set_product_active(part, False, sender=SELLERS[0])
    shop.buy(shop.publish(listing(parts=((part, 5_000),))), payer)
    assert shop.vault(SELLERS[0]) == 488


# --- where it waits ---


def test_the_whole_price_waits_until_the_licence_is_completed(shop: Shop, payer: Actor) -> None:
    number = shop.buy(shop.publish(listing(refund_window=DAY)), payer)
    assert (shop.waits(), shop.vault(TREASURY), shop.status(number)) == (1_001, 0, PENDING)
    done = shop.license.complete(number, sender=payer)
    assert done.log("Completed")["cost"] == 1_001
    assert (shop.waits(), shop.vault(TREASURY), shop.vault(PUBLISHER)) == (0, 25, 976)
    assert shop.status(number) == COMPLETED


def test_the_window_ends_to_the_second(shop: Shop, payer: Actor) -> None:
    product = shop.publish(listing(refund_window=DAY))
    first, second = shop.buy(product, payer), shop.buy(product, payer)
    shop.evm.sleep(DAY)
    with reverts("license: still refundable"):
        shop.license.complete(second, sender=PUBLISHER)
    shop.license.refund(first, sender=payer)
    shop.evm.sleep(1)
    with reverts("license: refund window is over"):
        shop.license.refund(second, sender=payer)
    shop.license.complete(second, sender=STRANGER)
    assert shop.vault(payer) == 1_001


def test_a_refund_gives_all_back_to_who_paid(shop: Shop, payer: Actor, keeper: Actor) -> None:
    number = shop.buy(shop.publish(listing(refund_window=DAY)), payer, licensee=keeper)
    for sender in (keeper, STRANGER, TREASURY):
        with reverts("license: not the payer"):
            shop.license.refund(number, sender=sender)
    done = shop.license.refund(number, sender=payer)
    assert done.log("Refunded")["amount"] == 1_001
    assert (shop.vault(payer), shop.waits(), shop.vault(TREASURY)) == (1_001, 0, 0)
    assert (shop.status(number), shop.licence(number)["paid"]) == (REFUNDED, 0)
    for call in ("refund", "complete"):
        with reverts("license: not pending"):
            getattr(shop.license, call)(number, sender=payer)


def test_the_publisher_may_give_it_back_while_it_waits(shop: Shop, payer: Actor) -> None:
    number = shop.buy(shop.publish(listing(refund_window=DAY)), payer)
    shop.evm.sleep(10 * DAY)
    shop.license.refund(number, sender=PUBLISHER)
    assert shop.vault(payer) == 1_001


def test_revoking_what_waits_gives_it_back(shop: Shop, payer: Actor) -> None:
    product = shop.publish(listing(refund_window=DAY, revocable=True))
    number = shop.buy(product, payer)
    done = shop.license.revoke(number, "abuse", sender=PUBLISHER)
    said = done.log("Revoked")
    assert (said["refund"], said["reason"]) == (1_001, "abuse")
    assert (shop.vault(payer), shop.status(number), shop.licence(number)["payer"]) == (1_001, REVOKED, COIN)
    assert shop.waits() == 0


def test_a_publishers_composite_waits_as_a_whole(shop: Shop, payer: Actor) -> None:
    part = shop.publish(sender=SELLERS[0])
    number = shop.buy(shop.publish(listing(parts=((part, 5_000),), refund_window=DAY)), payer)
    assert shop.vault(SELLERS[0]) == 0
    shop.license.complete(number, sender=payer)
    assert (shop.vault(SELLERS[0]), shop.vault(PUBLISHER)) == (488, 488)


# --- how it is paid ---


def test_from_the_vault_or_the_allowance(shop: Shop, money: Money, payer: Actor) -> None:
    product = shop.publish(listing(token=money.address))
    fill_vault(shop.pay, money, payer, 600)
    if money.token:
        money.give(payer, 401, shop.pay)
    with reverts("vault: not allowed so much"):
        shop.buy(product, payer, value=0)
    let_spend(shop, money, payer, 1_001)
    shop.buy(product, payer, value=money.value(401))
    assert (shop.vault(payer, money.address), money.held(payer)) == (0, 0)
    assert shop.vault(PUBLISHER, money.address) == 976
    left = 401 if money.token is None else 0  # coins that were sent are no part of it
    assert shop.pay.spendable(money.address, payer, shop.license.address) == left


def test_nobody_else_can_use_what_license_was_allowed(shop: Shop, coins: Money, payer: Actor, attacker: Actor) -> None:
    product = shop.publish()
    fill_vault(shop.pay, coins, payer, 10_000)
    let_spend(shop, coins, payer)
    with reverts("vault: not allowed so much"):
        shop.buy(product, attacker, licensee=payer, value=0)
    number = shop.buy(product, payer, value=0)
    usage = shop.buy(shop.publish(listing(USAGE)), payer, value=0)
    with reverts("vault: not allowed so much"):
        shop.license.renew(usage, 1, MAX, sender=attacker)
    with reverts("license: not the licensee"):
        shop.license.upgrade(number, ENTERPRISE, MAX, sender=attacker)
    assert shop.vault(payer) == 10_000 - 2 * 1_001


@pytest.mark.parametrize("value", [0, 1_000])
def test_reverts_for_too_little(shop: Shop, payer: Actor, value: int) -> None:
    with reverts("vault: not allowed so much"):
        shop.buy(shop.publish(), payer, value=value)


def test_coins_never_get_stuck(shop: Shop, payer: Actor, tokens: Money) -> None:
    """In excess they are the payer's; where nothing is due they are refused."""
    shop.buy(shop.publish(), payer, value=5_000)
    assert shop.vault(payer) == 3_999
    free = shop.publish(listing(FREE))
    with reverts("license: value sent for nothing"):
        shop.buy(free, payer, value=1)
    number = shop.buy(free, payer)
    with reverts("license: value sent for nothing"):
        shop.license.upgrade(number, COMMERCIAL, 0, **shop.paying(payer, 1))
    let_spend(shop, tokens, payer)
    with reverts("vault: value sent with a token"):
        shop.buy(shop.publish(listing(token=tokens.address)), payer, value=1)
    usage = shop.buy(shop.publish(listing(USAGE)), payer)
    with reverts("license: value sent for nothing"):
        shop.license.set_auto_charge(usage, 0, 0, 0, **shop.paying(payer, 1))
    assert shop.evm.balance(shop.license.address) == 0
    with reverts("0x"):
        shop.evm.send(shop.license.address, b"", **shop.paying(payer, 1))


# --- hostile parties ---


def test_receivers_that_take_nothing_hold_nobody_up(shop: Shop, deploy: Callable[..., Contract], payer: Actor) -> None:
    """A seller, a treasury and a payer that revert on coins: a credit asks nobody."""
    refuser = deploy("RevertingReceiver").address
    shop.license.transfer_treasury(refuser, sender=TREASURY)
    shop.license.accept_treasury(sender=refuser)
    part = shop.publish(sender=refuser)
    product = shop.publish(listing(parts=((part, 5_000),), refund_window=DAY), sender=refuser)
    first, second = shop.buy(product, payer), shop.buy(product, refuser)
    shop.license.complete(first, sender=payer)
    shop.license.refund(second, sender=refuser)
    assert shop.vault(refuser) == 2 * 1_001


def test_a_token_that_calls_back_buys_once(
    shop: Shop, deploy: Callable[..., Contract], payer: Actor, attacker: Actor
) -> None:
    """While it is to move the price it refunds, completes or buys: each price is paid for what it bought."""
    token = deploy("ReentrantToken")
    product = shop.publish(listing(token=token.address, refund_window=DAY), sender=token.address)
    coming = shop.license.total_supply() + 1
    payers = [payer, Actor("second payer"), Actor("third payer")]
    for buyer, (name, args, succeeds) in zip(
        payers,
        (
            (
                "refund",
                (coming,),
                True,
            ),  # the token is the publisher, and may: the payer gets a credit, the price comes in
            ("complete", (coming + 1,), False),
            ("buy", (product, 1, PERSONAL, 1, MAX, token.address, COIN), False),
        ),
        strict=True,
    ):
        token.mint(buyer, 1_001, sender=buyer)
        token.approve(shop.pay.address, MAX, sender=buyer)
        shop.pay.allow_spender(shop.license.address, token.address, MAX, sender=buyer)
        token.arm(shop.license.address, shop.license.encode(name, *args), False, False, sender=attacker)
        called = shop.license.buy(product, 1, PERSONAL, 1, MAX, buyer, COIN, sender=buyer).log("CalledBack")
        assert called["success"] is succeeds
    assert [shop.status(coming + i) for i in range(3)] == [REFUNDED, PENDING, PENDING]
    assert shop.vault(payer, token.address) == 1_001
    assert shop.waits(token.address) == 2 * 1_001
    assert token.balanceOf(shop.pay.address) == 3 * 1_001


def test_a_token_that_keeps_a_fee_pays_from_the_vault_alone(
    shop: Shop, deploy: Callable[..., Contract], payer: Actor
) -> None:
    token = deploy("FeeToken")
    token.mint(payer, 10_000, sender=payer)
    token.approve(shop.pay.address, MAX, sender=payer)
    token.set_fee(100, sender=payer)
    shop.pay.allow_spender(shop.license.address, token.address, MAX, sender=payer)
    product = shop.publish(listing(token=token.address))
    with reverts("vault: the token kept a fee, deposit first"):
        shop.buy(product, payer)
    shop.pay.deposit(token.address, 2_000, sender=payer)
    shop.buy(product, payer)
    assert shop.vault(PUBLISHER, token.address) == 976


def test_a_token_that_blocks_its_payer_does_not_block_what_was_paid(
    shop: Shop, deploy: Callable[..., Contract], payer: Actor
) -> None:
    token = deploy("BlockingToken")
    token.mint(payer, 10_000, sender=payer)
    token.approve(shop.pay.address, MAX, sender=payer)
    shop.pay.allow_spender(shop.license.address, token.address, MAX, sender=payer)
    product = shop.publish(listing(token=token.address, refund_window=DAY))
    first, second = shop.buy(product, payer), shop.buy(product, payer)
    for account in (payer, PUBLISHER, shop.pay.address):
        token.set_blocked(account, True, sender=payer)
    shop.license.refund(first, sender=payer)
    shop.license.complete(second, sender=payer)
    assert (shop.vault(payer, token.address), shop.vault(PUBLISHER, token.address)) == (1_001, 976)


def test_a_pause_holds_nothing_back(shop: Shop, payer: Actor, guardian: Actor) -> None:
    product = shop.publish(listing(refund_window=DAY))
    first, second = shop.buy(product, payer), shop.buy(product, payer)
    shop.pay.set_paused(True, sender=guardian)
    shop.license.refund(first, sender=payer)
    shop.license.complete(second, sender=payer)
    assert shop.waits() == 0


# --- the treasury ---


def test_the_treasury_is_handed_over_in_two_steps_and_only_receives(shop: Shop, payer: Actor, attacker: Actor) -> None:
    heir, license = Actor("heir"), shop.license
    waiting = shop.buy(shop.publish(listing(refund_window=DAY)), payer)
    for call, args, reason in (
        ("transfer_treasury", (attacker,), "license: not the treasury"),
        ("accept_treasury", (), "license: not the pending treasury"),
    ):
        with reverts(reason):
            getattr(license, call)(*args, sender=attacker)
    license.transfer_treasury(heir, sender=TREASURY)
    assert (license.treasury(), license.pending_treasury()) == (TREASURY, heir)
    license.accept_treasury(sender=heir)
    assert (license.treasury(), license.pending_treasury()) == (heir, COIN)
    with reverts("license: not the pending treasury"):
        license.accept_treasury(sender=heir)
    shop.license.complete(waiting, sender=payer)
    assert (shop.vault(heir), shop.vault(TREASURY)) == (25, 0)
    for call in ("refund", "complete"):
        with reverts("license: not pending"):
            getattr(license, call)(waiting, sender=heir)


def test_it_is_made_of_contracts_that_are_there(shop: Shop, artifacts: object, payer: Actor) -> None:
    from tests.contracts.market import try_deploy

    artifact, here = artifacts["License"], (shop.pay.address, shop.catalogue.address)  # type: ignore[index]
    for args, reason in (
        ((payer, here[1], TREASURY), "license: no StreamPay there"),
        ((here[0], payer, TREASURY), "license: no catalogue there"),
        ((*here, COIN), "license: zero treasury"),
    ):
        with reverts(reason):
            try_deploy(shop.evm, artifact, *args)
    assert (shop.license.stream_pay(), shop.license.catalogue()) == here


# --- renewals and upgrades pay, too ---


@pytest.mark.parametrize("kind", [SUBSCRIPTION, USAGE])
def test_renewals_are_split_as_purchases_are(shop: Shop, payer: Actor, kind: int) -> None:
    part = shop.publish(sender=SELLERS[0])
    number = shop.buy(shop.publish(listing(kind, parts=((part, 5_000),))), payer)
    shop.license.renew(number, 3, 3_003, **shop.paying(STRANGER, 3_003))
    assert (shop.vault(TREASURY), shop.vault(SELLERS[0])) == (25 + 75, 488 + 1_464)
    assert shop.vault(PUBLISHER) == 1_001 + 3_003 - 100 - 488 - 1_464
    assert shop.licence(number)["paid"] == 4_004
    shop.license.upgrade(number, ENTERPRISE, MAX, **shop.paying(payer, 10**9))
    cost = shop.licence(number)["paid"] - 4_004
    assert cost == (9_999 - 1_001) * 4
    assert sum(map(shop.vault, [TREASURY, SELLERS[0], PUBLISHER])) == 4_004 + cost
