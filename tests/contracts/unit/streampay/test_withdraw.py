"""StreamPay.withdraw"""

from collections.abc import Callable
from dataclasses import replace

import pytest

from penstock.accrual import flow
from tests.contracts.harness import (
    COIN,
    DURATION,
    NO_STREAM,
    RATE,
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


def withdraw(pay: Contract, terms: Terms, to: str | None = None, *, sender: str | None = None) -> Receipt:
    return pay.withdraw(  # type: ignore[no-any-return]
        terms.payer, terms.token, terms.session_key, terms.offer_id, to or terms.payee, sender=sender or terms.payee
    )


def test_pays_what_is_due(pay: Contract, evm: Chain, money: Money, terms: Terms, payee: Actor) -> None:
    before = state_of(pay, terms)
    evm.sleep(100)
    assert pay.withdrawable(terms.id) == 334
    receipt = withdraw(pay, terms)
    assert receipt.result == 334
    assert receipt.log("Withdrawn") == {"id": terms.id, "to": payee, "amount": 334}
    assert [log.name for log in receipt.logs] == ["Withdrawn"]
    assert state_of(pay, terms) == replace(before, last=evm.now)
    assert pay.withdrawable(terms.id) == 0
    assert (money.held(payee), money.held(pay.address)) == (334, DEPOSIT - 334)
    assert pay.balance_of(terms.token, payee) == pay.settled_of(terms.token, payee) == 0


def test_pays_to_any_account(pay: Contract, evm: Chain, money: Money, terms: Terms, keeper: Actor) -> None:
    evm.sleep(3)
    withdraw(pay, terms, keeper)
    assert money.held(keeper) == 10


def test_the_total_does_not_depend_on_how_often(
    pay: Contract, evm: Chain, money: Money, terms: Terms, payee: Actor
) -> None:
    for pause in (1, 1, 1, 2, 3, 5, 8, 13, 21):
        evm.sleep(pause)
        withdraw(pay, terms)
    assert money.held(payee) == flow(RATE, 55)


def test_after_the_end_it_pays_the_rest_and_clears_the_stream(
    pay: Contract, evm: Chain, money: Money, terms: Terms, payee: Actor
) -> None:
    evm.sleep(100)
    withdraw(pay, terms)
    evm.sleep(DURATION)
    receipt = withdraw(pay, terms)
    assert receipt.log("Withdrawn")["amount"] == DEPOSIT - 334
    assert state_of(pay, terms) == NO_STREAM
    assert (money.held(payee), money.held(pay.address)) == (DEPOSIT, 0)


def test_one_second_before_the_end_the_stream_stays(pay: Contract, evm: Chain, terms: Terms) -> None:
    evm.sleep(DURATION - 1)
    withdraw(pay, terms)
    assert state_of(pay, terms) != NO_STREAM


def test_at_the_end_the_stream_goes(pay: Contract, evm: Chain, terms: Terms) -> None:
    evm.sleep(DURATION)
    withdraw(pay, terms)
    assert state_of(pay, terms) == NO_STREAM


def test_reverts_for_the_zero_receiver(pay: Contract, evm: Chain, terms: Terms) -> None:
    evm.sleep(1)
    with reverts("streams: zero receiver"):
        withdraw(pay, terms, COIN)


def test_reverts_in_the_second_of_the_open(pay: Contract, terms: Terms) -> None:
    with reverts("streams: nothing due"):
        withdraw(pay, terms)


def test_reverts_twice_in_a_second(pay: Contract, evm: Chain, terms: Terms) -> None:
    evm.sleep(1)
    withdraw(pay, terms)
    with reverts("streams: nothing due"):
        withdraw(pay, terms)


def test_reverts_where_there_is_no_such_stream(pay: Contract, evm: Chain, terms: Terms) -> None:
    evm.sleep(1)
    with reverts("streams: nothing due"):
        withdraw(pay, terms.with_offer(2))


@pytest.mark.parametrize("who", ["payer", "attacker", "guardian"])
def test_nobody_else_can_withdraw(
    pay: Contract, evm: Chain, terms: Terms, request: pytest.FixtureRequest, who: str
) -> None:
    evm.sleep(100)
    with reverts("streams: nothing due"):
        withdraw(pay, terms, sender=request.getfixturevalue(who))


def test_a_second_that_costs_nothing_leaves_the_stream_as_it_is(
    pay: Contract, evm: Chain, coins: Money, payer: Actor, payee: Actor
) -> None:
    """Rounding up pays the first unit at once; where a later second adds none, nothing is written."""
    terms = Terms(payer, payee, COIN)
    open_stream(pay, coins, terms, rate=1, duration=2)
    evm.sleep(1)
    withdraw(pay, terms)
    evm.sleep(1)
    before = state_of(pay, terms)
    with reverts("streams: nothing due"):
        withdraw(pay, terms)
    assert state_of(pay, terms) == before
    receipt = pay.cancel(payee, COIN, terms.session_key, terms.offer_id, COIN, sender=payer)
    assert (receipt.log("Closed")["paid"], receipt.log("Closed")["refund"]) == (0, 0)


@pytest.mark.parametrize("kind", ["RevertingReceiver", "GasBurningReceiver"])
def test_a_payee_that_takes_no_coins_can_name_another_receiver(
    pay: Contract, evm: Chain, coins: Money, deploy: Callable[..., Contract], payer: Actor, keeper: Actor, kind: str
) -> None:
    payee = deploy(kind)
    terms = Terms(payer, payee.address, COIN)
    open_stream(pay, coins, terms)
    evm.sleep(100)
    with pytest.raises((Reverted, OutOfGas)):
        withdraw(pay, terms)
    withdraw(pay, terms, keeper)
    assert coins.held(keeper) == 334


def test_a_receiver_that_calls_back_is_paid_once(
    pay: Contract, evm: Chain, coins: Money, deploy: Callable[..., Contract], payer: Actor, keeper: Actor
) -> None:
    thief = deploy("ReentrantReceiver")
    terms = Terms(payer, thief.address, COIN)
    open_stream(pay, coins, terms)
    evm.sleep(100)
    again = pay.encode("withdraw", payer, COIN, terms.session_key, terms.offer_id, thief.address)
    thief.arm(pay.address, again, sender=keeper)
    receipt = thief.execute(pay.address, 0, again, sender=keeper)
    assert receipt.log("CalledBack")["success"] is False
    assert (coins.held(thief.address), coins.held(pay.address)) == (334, DEPOSIT - 334)
