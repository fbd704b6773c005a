"""StreamPay.cancel"""

from collections.abc import Callable

import pytest

from penstock.accrual import flow
from tests.contracts.harness import (
    COIN,
    DURATION,
    NO_STREAM,
    OFFER,
    RATE,
    SESSION,
    Actor,
    Money,
    Terms,
    open_stream,
    reverts,
    state_of,
)
from tests.fastchain import Chain, Contract, OutOfGas, Receipt, Reverted

DEPOSIT = flow(RATE, DURATION)


@pytest.fixture
def terms(pay: Contract, money: Money, payer: Actor, payee: Actor) -> Terms:
    terms = Terms(payer, payee, money.address)
    open_stream(pay, money, terms)
    return terms


def cancel(pay: Contract, terms: Terms, to: str = COIN, *, sender: str | None = None) -> Receipt:
    return pay.cancel(  # type: ignore[no-any-return]
        terms.payee, terms.token, terms.session_key, terms.offer_id, to, sender=sender or terms.payer
    )


def test_credits_the_payee_and_refunds_the_payer(
    pay: Contract, evm: Chain, money: Money, terms: Terms, payer: Actor, payee: Actor
) -> None:
    evm.sleep(100)
    receipt = cancel(pay, terms, payer)
    paid = flow(RATE, 100)
    assert receipt.log("Closed") == {
        "id": terms.id,
        "stop": evm.now,
        "paid": paid,
        "refund": DEPOSIT - paid,
        "to": payer,
    }
    assert [log.name for log in receipt.logs] == ["Closed"]
    assert paid == 334
    assert pay.balance_of(terms.token, payee) == pay.settled_of(terms.token, payee) == paid
    assert pay.balance_of(terms.token, payer) == 0
    assert (money.held(payer), money.held(pay.address)) == (DEPOSIT - paid, paid)
    assert state_of(pay, terms) == NO_STREAM


def test_refunds_into_the_vault_for_the_zero_receiver(
    pay: Contract, evm: Chain, money: Money, terms: Terms, payer: Actor
) -> None:
    evm.sleep(100)
    receipt = cancel(pay, terms)
    assert receipt.log("Closed")["to"] == COIN
    assert pay.balance_of(terms.token, payer) == DEPOSIT - 334
    assert pay.settled_of(terms.token, payer) == 0
    assert money.held(pay.address) == DEPOSIT


def test_refunds_to_any_account(pay: Contract, money: Money, terms: Terms, keeper: Actor) -> None:
    cancel(pay, terms, keeper)
    assert money.held(keeper) == DEPOSIT - 4


def test_in_the_second_of_the_open_one_second_is_due(
    pay: Contract, evm: Chain, money: Money, terms: Terms, payer: Actor, payee: Actor
) -> None:
    assert pay.refundable(terms.id) == DEPOSIT - 4
    receipt = cancel(pay, terms, payer)
    assert receipt.log("Closed") == {
        "id": terms.id,
        "stop": evm.now + 1,
        "paid": 4,
        "refund": DEPOSIT - 4,
        "to": payer,
    }
    assert pay.balance_of(terms.token, payee) == 4


def test_one_second_later_the_same_is_due(pay: Contract, evm: Chain, terms: Terms, payee: Actor) -> None:
    evm.sleep(1)
    cancel(pay, terms)
    assert pay.balance_of(terms.token, payee) == 4


def test_after_a_withdrawal_only_the_rest_is_due(
    pay: Contract, evm: Chain, money: Money, terms: Terms, payer: Actor, payee: Actor
) -> None:
    evm.sleep(100)
    pay.withdraw(payer, terms.token, SESSION, OFFER, payee, sender=payee)
    evm.sleep(50)
    receipt = cancel(pay, terms, payer)
    assert receipt.log("Closed")["paid"] == flow(RATE, 150) - flow(RATE, 100)
    assert money.held(payee) + pay.balance_of(terms.token, payee) == flow(RATE, 150)
    assert money.held(payer) == DEPOSIT - flow(RATE, 150)


def test_in_the_second_of_a_withdrawal_nothing_more_is_due(
    pay: Contract, evm: Chain, terms: Terms, payer: Actor, payee: Actor
) -> None:
    evm.sleep(100)
    pay.withdraw(payer, terms.token, SESSION, OFFER, payee, sender=payee)
    receipt = cancel(pay, terms)
    assert receipt.log("Closed")["paid"] == 0
    assert pay.settled_of(terms.token, payee) == 0


def test_a_single_unit_is_paid_and_a_single_unit_refunded(
    pay: Contract, evm: Chain, money: Money, payer: Actor, payee: Actor
) -> None:
    """At one unit per million seconds: no sum is too small to be somebody's."""
    terms = Terms(payer, payee, money.address)
    open_stream(pay, money, terms, rate=1, duration=1_000_001)
    assert money.held(pay.address) == 2
    receipt = cancel(pay, terms)
    assert (receipt.log("Closed")["paid"], receipt.log("Closed")["refund"]) == (1, 1)
    assert pay.balance_of(terms.token, payee) == pay.settled_of(terms.token, payee) == 1
    assert pay.balance_of(terms.token, payer) == 1


@pytest.mark.parametrize("late", [0, 1, 10**6])
def test_after_the_end_all_is_due(
    pay: Contract, evm: Chain, money: Money, terms: Terms, payer: Actor, payee: Actor, late: int
) -> None:
    end = state_of(pay, terms).end
    evm.sleep(DURATION + late)
    receipt = cancel(pay, terms, payer)
    assert receipt.log("Closed") == {"id": terms.id, "stop": end, "paid": DEPOSIT, "refund": 0, "to": payer}
    assert pay.balance_of(terms.token, payee) == DEPOSIT
    assert money.held(payer) == 0


def test_reverts_where_there_is_no_such_stream(pay: Contract, terms: Terms) -> None:
    with reverts("streams: no such stream"):
        cancel(pay, terms.with_offer(2))


def test_reverts_the_second_time(pay: Contract, terms: Terms) -> None:
    cancel(pay, terms)
    with reverts("streams: no such stream"):
        cancel(pay, terms)


@pytest.mark.parametrize("who", ["payee", "attacker", "guardian", "session"])
def test_nobody_else_can_cancel(pay: Contract, terms: Terms, request: pytest.FixtureRequest, who: str) -> None:
    with reverts("streams: no such stream"):
        cancel(pay, terms, sender=SESSION if who == "session" else request.getfixturevalue(who))


@pytest.mark.parametrize("kind", ["RevertingReceiver", "GasBurningReceiver"])
def test_a_payee_that_takes_no_coins_cannot_block_it(
    pay: Contract, evm: Chain, coins: Money, deploy: Callable[..., Contract], payer: Actor, kind: str
) -> None:
    payee = deploy(kind)
    terms = Terms(payer, payee.address, COIN)
    open_stream(pay, coins, terms)
    evm.sleep(100)
    cancel(pay, terms, payer)
    assert (coins.held(payer), pay.balance_of(COIN, payee.address)) == (DEPOSIT - 334, 334)


@pytest.mark.parametrize("kind", ["RevertingReceiver", "GasBurningReceiver"])
def test_a_payer_that_takes_no_coins_gets_its_refund_in_the_vault(
    pay: Contract, coins: Money, deploy: Callable[..., Contract], keeper: Actor, payee: Actor, kind: str
) -> None:
    payer = deploy(kind)
    coins.give(keeper, DEPOSIT)
    terms = Terms(payer.address, payee, COIN)
    data = pay.encode("open", payee, COIN, SESSION, OFFER, RATE, DURATION, 0)
    payer.execute(pay.address, DEPOSIT, data, sender=keeper, value=DEPOSIT)
    with pytest.raises((Reverted, OutOfGas)):
        cancel(pay, terms, payer.address)
    assert state_of(pay, terms) != NO_STREAM
    cancel(pay, terms)
    assert pay.balance_of(COIN, payer.address) == DEPOSIT - 4
    pay.withdraw_vault(COIN, DEPOSIT - 4, keeper, sender=payer.address)
    assert coins.held(keeper) == DEPOSIT - 4


def test_a_token_that_refuses_the_payer_cannot_keep_the_refund(
    pay: Contract, evm: Chain, deploy: Callable[..., Contract], payer: Actor, payee: Actor, keeper: Actor
) -> None:
    token = deploy("BlockingToken")
    money = Money(evm, token.address, token)
    terms = Terms(payer, payee, token.address)
    open_stream(pay, money, terms)
    token.set_blocked(payer, True, sender=keeper)
    with reverts("token: blocked"):
        cancel(pay, terms, payer)
    cancel(pay, terms)
    pay.withdraw_vault(token.address, DEPOSIT - 4, keeper, sender=payer)
    assert token.balanceOf(keeper) == DEPOSIT - 4


def test_a_receiver_that_calls_back_gets_the_refund_once(
    pay: Contract, coins: Money, deploy: Callable[..., Contract], keeper: Actor, payer: Actor, payee: Actor
) -> None:
    thief = deploy("ReentrantReceiver")
    open_stream(pay, coins, Terms(payer, payee, COIN))  # somebody else's money is there to be stolen
    coins.give(keeper, DEPOSIT)
    data = pay.encode("open", payee, COIN, SESSION, OFFER, RATE, DURATION, 0)
    thief.execute(pay.address, DEPOSIT, data, sender=keeper, value=DEPOSIT)
    again = pay.encode("cancel", payee, COIN, SESSION, OFFER, thief.address)
    thief.arm(pay.address, again, sender=keeper)
    receipt = thief.execute(pay.address, 0, again, sender=keeper)
    assert receipt.log("CalledBack")["success"] is False
    assert coins.held(thief.address) == DEPOSIT - 4
    assert coins.held(pay.address) == DEPOSIT + 4


def test_where_nothing_is_left_nobody_is_called(
    pay: Contract, evm: Chain, coins: Money, deploy: Callable[..., Contract], payer: Actor, payee: Actor
) -> None:
    """A receiver that refuses coins cannot block the end of a stream that is used up."""
    refuser = deploy("RevertingReceiver")
    terms = Terms(payer, payee, COIN)
    open_stream(pay, coins, terms)
    evm.sleep(DURATION)
    assert cancel(pay, terms, refuser.address).log("Closed")["refund"] == 0
    assert state_of(pay, terms) == NO_STREAM
