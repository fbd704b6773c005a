"""StreamPay.set_paused, transfer_guardian, accept_guardian, renounce_guardian, and what a pause stops"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.contracts.harness import (
    COIN,
    MAX,
    NO_PERMIT,
    SESSION,
    Actor,
    ChannelOrder,
    Money,
    Order,
    Terms,
    domain_of,
    fill_vault,
    open_channel,
    open_stream,
    reverts,
    sign_cancel,
    sign_standing_order,
    sign_voucher,
)
from tests.fastchain import Chain, Contract, Receipt

NOBODY = COIN
PAUSED = "guardian: paused, only exits are open"


def test_the_deployer_has_no_role(pay: Contract, evm: Chain, guardian: Actor, permit2: Contract) -> None:
    assert (pay.guardian(), pay.pending_guardian(), pay.paused()) == (guardian, NOBODY, False)
    assert pay.permit2() == permit2.address
    with reverts("guardian: not the guardian"):
        pay.set_paused(True, sender=evm.accounts[0])


def test_the_deployment_says_who_is_guardian(pay: Contract, evm: Chain, guardian: Actor) -> None:
    logs = evm.rpc("eth_getLogs", {"address": pay.address, "fromBlock": "0x0", "toBlock": "latest"})
    (told,) = [log for log in map(pay.parse, logs) if log]
    assert (told.name, told.args) == ("GuardianTransferred", {"previous": NOBODY, "guardian": guardian})


# set_paused


def test_set_paused_pauses_and_ends_the_pause(pay: Contract, guardian: Actor) -> None:
    assert pay.set_paused(True, sender=guardian).log("PauseChanged") == {"paused": True}
    assert pay.paused() is True
    assert pay.guardian() == guardian
    assert pay.set_paused(False, sender=guardian).log("PauseChanged") == {"paused": False}
    assert pay.paused() is False


@pytest.mark.parametrize("paused", [True, False])
def test_set_paused_reverts_for_anybody_else(pay: Contract, attacker: Actor, paused: bool) -> None:
    with reverts("guardian: not the guardian"):
        pay.set_paused(paused, sender=attacker)


# transfer_guardian, accept_guardian


def test_transfer_guardian_offers_the_role(pay: Contract, guardian: Actor, keeper: Actor) -> None:
    receipt = pay.transfer_guardian(keeper, sender=guardian)
    assert receipt.log("GuardianTransferStarted") == {"guardian": guardian, "pending_guardian": keeper}
    assert (pay.guardian(), pay.pending_guardian()) == (guardian, keeper)
    with reverts("guardian: not the guardian"):
        pay.set_paused(True, sender=keeper)


def test_transfer_guardian_reverts_for_anybody_else(pay: Contract, attacker: Actor) -> None:
    with reverts("guardian: not the guardian"):
        pay.transfer_guardian(attacker, sender=attacker)


def test_transfer_guardian_to_zero_withdraws_the_offer(pay: Contract, guardian: Actor, keeper: Actor) -> None:
    pay.transfer_guardian(keeper, sender=guardian)
    pay.transfer_guardian(NOBODY, sender=guardian)
    with reverts("guardian: not the pending guardian"):
        pay.accept_guardian(sender=keeper)


def test_accept_guardian_takes_the_role(pay: Contract, guardian: Actor, keeper: Actor) -> None:
    pay.transfer_guardian(keeper, sender=guardian)
    receipt = pay.accept_guardian(sender=keeper)
    assert receipt.log("GuardianTransferred") == {"previous": guardian, "guardian": keeper}
    assert (pay.guardian(), pay.pending_guardian()) == (keeper, NOBODY)
    pay.set_paused(True, sender=keeper)
    with reverts("guardian: not the guardian"):
        pay.set_paused(False, sender=guardian)
    with reverts("guardian: not the pending guardian"):
        pay.accept_guardian(sender=keeper)


def test_accept_guardian_leaves_a_pause_as_it_is(pay: Contract, guardian: Actor, keeper: Actor) -> None:
    pay.set_paused(True, sender=guardian)
    pay.transfer_guardian(keeper, sender=guardian)
    pay.accept_guardian(sender=keeper)
    assert pay.paused() is True


def test_accept_guardian_reverts_for_anybody_else(
    pay: Contract, guardian: Actor, keeper: Actor, attacker: Actor
) -> None:
    pay.transfer_guardian(keeper, sender=guardian)
    for who in (attacker, guardian):
        with reverts("guardian: not the pending guardian"):
            pay.accept_guardian(sender=who)


# renounce_guardian


def test_renounce_guardian_leaves_nobody(pay: Contract, guardian: Actor) -> None:
    receipt = pay.renounce_guardian(sender=guardian)
    assert receipt.log("GuardianTransferred") == {"previous": guardian, "guardian": NOBODY}
    assert [log.name for log in receipt.logs] == ["GuardianTransferred"]
    assert pay.guardian() == NOBODY
    with reverts("guardian: not the guardian"):
        pay.set_paused(True, sender=guardian)


def test_renounce_guardian_ends_a_pause_and_an_offer(pay: Contract, guardian: Actor, keeper: Actor) -> None:
    pay.set_paused(True, sender=guardian)
    pay.transfer_guardian(keeper, sender=guardian)
    receipt = pay.renounce_guardian(sender=guardian)
    assert receipt.log("PauseChanged") == {"paused": False}
    assert (pay.paused(), pay.pending_guardian()) == (False, NOBODY)
    with reverts("guardian: not the pending guardian"):
        pay.accept_guardian(sender=keeper)


def test_renounce_guardian_reverts_for_anybody_else(pay: Contract, attacker: Actor) -> None:
    with reverts("guardian: not the guardian"):
        pay.renounce_guardian(sender=attacker)


def test_without_a_guardian_nobody_can_ever_pause(deploy: Callable[..., Contract], evm: Chain, attacker: Actor) -> None:
    orphan = deploy("StreamPay", NOBODY, NOBODY)
    assert (orphan.guardian(), orphan.permit2()) == (NOBODY, NOBODY)
    for call in (lambda: orphan.set_paused(True, sender=attacker), lambda: orphan.renounce_guardian(sender=attacker)):
        with reverts("guardian: not the guardian"):
            call()


# What a pause stops, and that it stops nothing else: every function that changes state is in one list.

STOPPED = {
    "open",
    "open_for",
    "top_up",
    "extend_for",
    "open_channel",
    "open_channel_for",
    "top_up_channel",
}
GOES_ON = {
    "deposit",
    "deposit_for",
    "pay",
    "allow_spender",
    "withdraw_vault",
    "invalidate_nonces",
    "cancel",
    "cancel_for",
    "withdraw",
    "withdraw_many",
    "collect",
    "close",
    "set_keeper_reward",
    "settle_channel",
    "settle_many",
    "close_channel",
    "request_close",
    "reclaim",
    "set_paused",
    "transfer_guardian",
    "accept_guardian",
    "renounce_guardian",
}


def test_every_function_is_in_one_of_the_lists(pay: Contract) -> None:
    assert not STOPPED & GOES_ON
    assert {f.name for f in pay.functions.values() if not f.is_view} == STOPPED | GOES_ON


def actions(
    pay: Contract, evm: Chain, money: Money, payer: Actor, payee: Actor, keeper: Actor, guardian: Actor
) -> dict[str, Callable[[], Receipt]]:
    """One call of each function that works, whatever the order, in the state that `prepare` makes."""
    token = money.address
    stream, second = Terms(payer, payee, token), Terms(payer, payee, token).with_offer(2)
    channel, closing = second.with_offer(3), second.with_offer(4)
    parties = (payer, payee, token, SESSION)
    domain = domain_of(evm, pay)
    start = evm.now - 1_000
    order = Order(second.with_offer(5), nonce=1, domain=domain)
    channel_order = ChannelOrder(second.with_offer(6), 10, nonce=2, domain=domain)
    standing = (1_000, 2**40 - 1)
    voucher = sign_voucher(domain, channel.id, 5)
    more_voucher = sign_voucher(domain, channel.id, 6)
    last_voucher = sign_voucher(domain, channel.id, 7)
    return {
        "deposit": lambda: pay.deposit(token, 1, sender=keeper, value=money.value(1)),
        "deposit_for": lambda: pay.deposit_for(payer, token, 1, sender=keeper, value=money.value(1)),
        "pay": lambda: pay.pay(payer, token, [(keeper, 1)], sender=payer),
        "allow_spender": lambda: pay.allow_spender(keeper, token, 1, sender=payer),
        "open": lambda: pay.open(payee, token, SESSION, b"\x07" * 32, 1, 1, MAX, sender=payer),
        "open_for": lambda: pay.open_for(order.struct, order.sign(payer.key), NO_PERMIT, sender=keeper),
        "top_up": lambda: pay.top_up(*parties, stream.offer_id, 1, MAX, sender=payer),
        "extend_for": lambda: pay.extend_for(
            *parties,
            second.offer_id,
            standing,
            sign_standing_order(payer.key, domain, second.id, start, *standing),
            sender=keeper,
        ),
        "open_channel": lambda: pay.open_channel(payee, token, SESSION, b"\x08" * 32, 1, MAX, sender=payer),
        "open_channel_for": lambda: pay.open_channel_for(
            channel_order.struct, channel_order.sign(payer.key), NO_PERMIT, sender=keeper
        ),
        "top_up_channel": lambda: pay.top_up_channel(*parties, channel.offer_id, 1, MAX, sender=payer),
        "settle_channel": lambda: pay.settle_channel(*parties, channel.offer_id, 5, voucher, sender=keeper),
        "settle_many": lambda: pay.settle_many(
            token, payee, [(payer, SESSION, channel.offer_id, 6, more_voucher)], sender=keeper
        ),
        "close_channel": lambda: pay.close_channel(
            payer, token, SESSION, channel.offer_id, 7, last_voucher, sender=payee
        ),
        "reclaim": lambda: pay.reclaim(payee, token, SESSION, closing.offer_id, payer, sender=payer),
        "request_close": lambda: pay.request_close(payee, token, SESSION, second.with_offer(9).offer_id, sender=payer),
        "withdraw": lambda: pay.withdraw(payer, token, SESSION, stream.offer_id, payee, sender=payee),
        "withdraw_many": lambda: pay.withdraw_many(token, [second.with_offer(10).source], payee, sender=payee),
        "collect": lambda: pay.collect(token, payee, [second.with_offer(11).source], sender=keeper),
        "cancel": lambda: pay.cancel(payee, token, SESSION, stream.offer_id, payer, sender=payer),
        "cancel_for": lambda: pay.cancel_for(
            *parties,
            second.offer_id,
            payer,
            MAX,
            sign_cancel(payer.key, domain, second.id, start, payer, MAX),
            sender=keeper,
        ),
        "close": lambda: pay.close(payer, token, SESSION, second.with_offer(10).offer_id, MAX, sender=payee),
        "withdraw_vault": lambda: pay.withdraw_vault(token, 1, keeper, sender=payer),
        "invalidate_nonces": lambda: pay.invalidate_nonces(0, 1, sender=payer),
        "set_keeper_reward": lambda: pay.set_keeper_reward(True, sender=payee),
        "transfer_guardian": lambda: pay.transfer_guardian(keeper, sender=guardian),
        "set_paused": lambda: pay.set_paused(pay.paused(), sender=guardian),
        "accept_guardian": lambda: pay.accept_guardian(sender=keeper),
        "renounce_guardian": lambda: pay.renounce_guardian(sender=keeper),
    }


def prepare(pay: Contract, evm: Chain, money: Money, payer: Actor, payee: Actor, keeper: Actor) -> None:
    terms = Terms(payer, payee, money.address)
    fill_vault(pay, money, payer, 10**6)
    money.give(keeper, 10, pay)
    for stream in (terms, *map(terms.with_offer, (2, 10, 11))):
        open_stream(pay, money, stream, duration=2_000 - (stream.offer_id == terms.with_offer(2).offer_id) * 500)
    for number in (3, 4, 9):
        open_channel(pay, money, terms.with_offer(number), 100)
    pay.request_close(payee, money.address, SESSION, terms.with_offer(4).offer_id, sender=payer)
    evm.sleep(1_000)


def test_a_pause_stops_opens_and_top_ups_and_nothing_else(
    pay: Contract, evm: Chain, money: Money, payer: Actor, payee: Actor, keeper: Actor, guardian: Actor
) -> None:
    prepare(pay, evm, money, payer, payee, keeper)
    calls = actions(pay, evm, money, payer, payee, keeper, guardian)
    assert set(calls) == STOPPED | GOES_ON
    with evm.snapshot():  # each of them works without a pause
        for call in calls.values():
            call()
    pay.set_paused(True, sender=guardian)
    for name, call in calls.items():
        if name in STOPPED:
            with reverts(PAUSED):
                call()
        else:
            call()
