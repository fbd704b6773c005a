"""StreamPay.close"""

from collections.abc import Callable

import pytest

from penstock.accrual import flow
from tests.contracts.harness import (
    COIN,
    DURATION,
    MAX,
    NO_STREAM,
    RATE,
    Actor,
    Money,
    Terms,
    open_stream,
    reverts,
    state_of,
)
from tests.fastchain import Chain, Contract, Receipt

DEPOSIT = flow(RATE, DURATION)


@pytest.fixture
def terms(pay: Contract, money: Money, payer: Actor, payee: Actor) -> Terms:
    terms = Terms(payer, payee, money.address)
    open_stream(pay, money, terms)
    return terms


def close(pay: Contract, terms: Terms, stop_at: int = MAX, *, sender: str | None = None) -> Receipt:
    return pay.close(  # type: ignore[no-any-return]
        terms.payer, terms.token, terms.session_key, terms.offer_id, stop_at, sender=sender or terms.payee
    )


def test_credits_the_payee_and_refunds_the_payer_in_the_vault(
    pay: Contract, evm: Chain, money: Money, terms: Terms, payer: Actor, payee: Actor
) -> None:
    evm.sleep(100)
    receipt = close(pay, terms)
    assert receipt.log("Closed") == {
        "id": terms.id,
        "stop": evm.now,
        "paid": 334,
        "refund": DEPOSIT - 334,
        "to": COIN,
    }
    assert [log.name for log in receipt.logs] == ["Closed"]
    assert state_of(pay, terms) == NO_STREAM
    assert pay.balance_of(terms.token, payee) == pay.settled_of(terms.token, payee) == 334
    assert pay.balance_of(terms.token, payer) == DEPOSIT - 334
    assert pay.settled_of(terms.token, payer) == 0
    assert (money.held(payee), money.held(payer), money.held(pay.address)) == (0, 0, DEPOSIT)


def test_waives_the_time_after_the_second_named(
    pay: Contract, evm: Chain, terms: Terms, payer: Actor, payee: Actor
) -> None:
    evm.sleep(100)
    receipt = close(pay, terms, evm.now - 40)
    assert receipt.log("Closed")["stop"] == evm.now - 40
    assert pay.balance_of(terms.token, payee) == flow(RATE, 60)
    assert pay.balance_of(terms.token, payer) == DEPOSIT - flow(RATE, 60)


@pytest.mark.parametrize("stop_at", [0, 1])
def test_may_waive_all_that_is_not_yet_paid(
    pay: Contract, evm: Chain, money: Money, terms: Terms, payer: Actor, payee: Actor, stop_at: int
) -> None:
    evm.sleep(60)
    pay.withdraw(payer, terms.token, terms.session_key, terms.offer_id, payee, sender=payee)
    last = evm.now
    evm.sleep(40)
    receipt = close(pay, terms, stop_at)
    assert receipt.log("Closed")["stop"] == last
    assert receipt.log("Closed")["paid"] == 0
    assert money.held(payee) == flow(RATE, 60)
    assert pay.balance_of(terms.token, payer) == DEPOSIT - flow(RATE, 60)


def test_may_waive_even_the_first_second(pay: Contract, terms: Terms, payer: Actor) -> None:
    close(pay, terms, 0)
    assert pay.balance_of(terms.token, payer) == DEPOSIT


@pytest.mark.parametrize("ahead", [1, 50, DURATION, 10**12])
def test_a_second_that_has_not_come_means_now(
    pay: Contract, evm: Chain, terms: Terms, payer: Actor, ahead: int
) -> None:
    evm.sleep(100)
    receipt = close(pay, terms, evm.now + ahead)
    assert receipt.log("Closed")["stop"] == evm.now
    assert pay.balance_of(terms.token, payer) == DEPOSIT - 334


def test_in_the_second_of_the_open_one_second_is_due(pay: Contract, evm: Chain, terms: Terms, payee: Actor) -> None:
    receipt = close(pay, terms)
    assert receipt.log("Closed")["stop"] == evm.now + 1
    assert pay.balance_of(terms.token, payee) == 4


def test_a_single_unit_is_paid_and_a_single_unit_refunded(
    pay: Contract, money: Money, payer: Actor, payee: Actor
) -> None:
    terms = Terms(payer, payee, money.address)
    open_stream(pay, money, terms, rate=1, duration=1_000_001)
    receipt = close(pay, terms)
    assert (receipt.log("Closed")["paid"], receipt.log("Closed")["refund"]) == (1, 1)
    assert pay.balance_of(terms.token, payee) == pay.balance_of(terms.token, payer) == 1


@pytest.mark.parametrize("late", [0, 1, 10**6])
def test_after_the_end_all_is_due(
    pay: Contract, evm: Chain, terms: Terms, payer: Actor, payee: Actor, late: int
) -> None:
    end = state_of(pay, terms).end
    evm.sleep(DURATION + late)
    receipt = close(pay, terms)
    assert (receipt.log("Closed")["stop"], receipt.log("Closed")["refund"]) == (end, 0)
    assert pay.balance_of(terms.token, payee) == DEPOSIT
    assert pay.balance_of(terms.token, payer) == 0


def test_reverts_where_there_is_no_such_stream(pay: Contract, terms: Terms) -> None:
    with reverts("streams: no such stream"):
        close(pay, terms.with_offer(2))


def test_reverts_the_second_time(pay: Contract, terms: Terms) -> None:
    close(pay, terms)
    with reverts("streams: no such stream"):
        close(pay, terms)


@pytest.mark.parametrize("who", ["payer", "attacker", "guardian"])
def test_nobody_else_can_close(pay: Contract, terms: Terms, request: pytest.FixtureRequest, who: str) -> None:
    with reverts("streams: no such stream"):
        close(pay, terms, sender=request.getfixturevalue(who))


def test_a_payer_that_takes_no_coins_cannot_block_it(
    pay: Contract, coins: Money, deploy: Callable[..., Contract], payee: Actor, keeper: Actor
) -> None:
    payer = deploy("RevertingReceiver")
    terms = Terms(payer.address, payee, COIN)
    coins.give(keeper, DEPOSIT)
    data = pay.encode("open", payee, COIN, terms.session_key, terms.offer_id, RATE, DURATION, 0)
    payer.execute(pay.address, DEPOSIT, data, sender=keeper, value=DEPOSIT)
    close(pay, terms)
    assert (pay.balance_of(COIN, payee), pay.balance_of(COIN, payer.address)) == (4, DEPOSIT - 4)
