"""StreamPay.top_up"""

from dataclasses import replace

import pytest

from penstock.accrual import MAX_TIME, flow
from tests.contracts.harness import (
    COIN,
    DURATION,
    MAX,
    OFFER,
    RATE,
    SESSION,
    Actor,
    Money,
    Terms,
    fill_vault,
    open_stream,
    reverts,
    state_of,
)
from tests.fastchain import Chain, Contract, Receipt, Reverted

MORE = 77
COST = flow(RATE, DURATION + MORE) - flow(RATE, DURATION)


@pytest.fixture
def terms(pay: Contract, money: Money, payer: Actor, payee: Actor) -> Terms:
    terms = Terms(payer, payee, money.address)
    open_stream(pay, money, terms)
    return terms


def top_up(
    pay: Contract, terms: Terms, sender: str, *, duration: int = MORE, from_vault: int = 0, value: int = 0
) -> Receipt:
    parties = (terms.payer, terms.payee, terms.token, terms.session_key, terms.offer_id)
    return pay.top_up(*parties, duration, from_vault, sender=sender, value=value)  # type: ignore[no-any-return]


def test_extends_the_end_and_nothing_else(pay: Contract, evm: Chain, money: Money, terms: Terms, payer: Actor) -> None:
    evm.sleep(100)
    pay.withdraw(payer, terms.token, SESSION, OFFER, terms.payee, sender=terms.payee)
    evm.sleep(100)
    before = state_of(pay, terms)
    held = money.held(pay.address)
    money.give(payer, COST, pay)
    receipt = top_up(pay, terms, payer, value=money.value(COST))
    assert receipt.log("ToppedUp") == {
        "id": terms.id,
        "funder": payer,
        "end": before.end + MORE,
        "from_vault": 0,
    }
    assert [log.name for log in receipt.logs] == ["ToppedUp"]
    assert state_of(pay, terms) == replace(before, end=before.end + MORE)
    assert before.last == before.start + 100
    assert (money.held(payer), money.held(pay.address)) == (0, held + COST)


def test_a_stranger_may_pay_and_the_payer_gets_what_is_not_used(
    pay: Contract, evm: Chain, money: Money, terms: Terms, keeper: Actor, payer: Actor
) -> None:
    before = state_of(pay, terms)
    money.give(keeper, COST, pay)
    top_up(pay, terms, keeper, value=money.value(COST))
    assert state_of(pay, terms) == replace(before, end=before.end + MORE)
    evm.sleep(10)
    pay.cancel(terms.payee, terms.token, SESSION, OFFER, COIN, sender=payer)
    assert pay.balance_of(terms.token, payer) == before.deposit + COST - flow(RATE, 10)
    assert pay.balance_of(terms.token, keeper) == 0


def test_many_small_top_ups_cost_as_much_as_one(pay: Contract, money: Money, terms: Terms, attacker: Actor) -> None:
    """Nobody re-prices a stream, or resets its clock, by funding it little by little."""
    before = state_of(pay, terms)
    for _ in range(MORE):
        cost = flow(RATE, state_of(pay, terms).end + 1 - before.start) - state_of(pay, terms).deposit
        money.give(attacker, cost, pay)
        top_up(pay, terms, attacker, duration=1, value=money.value(cost))
    assert state_of(pay, terms) == replace(before, end=before.end + MORE)
    assert money.held(pay.address) == before.deposit + COST


def test_takes_from_the_vault_of_the_funder(
    pay: Contract, money: Money, terms: Terms, payer: Actor, keeper: Actor
) -> None:
    fill_vault(pay, money, payer, COST)
    fill_vault(pay, money, keeper, COST + 1)
    receipt = top_up(pay, terms, keeper, from_vault=MAX)
    assert receipt.log("ToppedUp")["from_vault"] == COST
    assert (pay.balance_of(terms.token, keeper), pay.balance_of(terms.token, payer)) == (1, COST)


@pytest.mark.parametrize("allowed", [9, COST - 1])
def test_takes_no_more_from_the_vault_than_allowed(
    pay: Contract, money: Money, terms: Terms, payer: Actor, allowed: int
) -> None:
    fill_vault(pay, money, payer, COST)
    money.give(payer, COST - allowed, pay)
    receipt = top_up(pay, terms, payer, from_vault=allowed, value=money.value(COST - allowed))
    assert receipt.log("ToppedUp")["from_vault"] == allowed
    assert pay.balance_of(terms.token, payer) == COST - allowed
    assert money.held(payer) == 0


def test_credits_coins_sent_in_excess_to_the_funder(
    pay: Contract, coins: Money, payer: Actor, payee: Actor, keeper: Actor
) -> None:
    terms = Terms(payer, payee, COIN)
    open_stream(pay, coins, terms)
    coins.give(keeper, COST + 5)
    receipt = top_up(pay, terms, keeper, value=COST + 5)
    assert receipt.log("Deposited") == {"token": COIN, "account": keeper, "funder": keeper, "amount": 5}
    assert (pay.balance_of(COIN, keeper), pay.balance_of(COIN, payer)) == (5, 0)


def test_may_cost_nothing_where_the_rounding_has_paid_already(
    pay: Contract, evm: Chain, coins: Money, payer: Actor, payee: Actor, keeper: Actor
) -> None:
    """At one unit per million seconds the first unit lasts that long."""
    terms = Terms(payer, payee, COIN)
    open_stream(pay, coins, terms, rate=1, duration=1)
    top_up(pay, terms, keeper, duration=999_999)
    assert state_of(pay, terms).end == evm.now + 1_000_000
    assert state_of(pay, terms).deposit == coins.held(pay.address) == 1
    with reverts("vault: value too low"):
        top_up(pay, terms, keeper, duration=1)


def test_reverts_while_paused(pay: Contract, terms: Terms, payer: Actor, guardian: Actor) -> None:
    pay.set_paused(True, sender=guardian)
    with reverts("guardian: paused, only exits are open"):
        top_up(pay, terms, payer, from_vault=MAX)


def test_reverts_where_there_is_no_such_stream(pay: Contract, terms: Terms, payer: Actor) -> None:
    with reverts("streams: no such stream"):
        top_up(pay, terms.with_offer(2), payer, from_vault=MAX)


@pytest.mark.parametrize("late", [0, 1, 10_000])
def test_reverts_where_it_has_ended(
    pay: Contract, evm: Chain, money: Money, terms: Terms, payer: Actor, late: int
) -> None:
    evm.sleep(DURATION + late)
    money.give(payer, COST, pay)
    with reverts("streams: already ended"):
        top_up(pay, terms, payer, value=money.value(COST))


def test_works_in_the_last_second(pay: Contract, evm: Chain, money: Money, terms: Terms, payer: Actor) -> None:
    evm.sleep(DURATION - 1)
    money.give(payer, COST, pay)
    top_up(pay, terms, payer, value=money.value(COST))
    assert state_of(pay, terms).end == evm.now + 1 + MORE


def test_reverts_for_a_zero_duration(pay: Contract, terms: Terms, payer: Actor) -> None:
    with reverts("streams: zero duration"):
        top_up(pay, terms, payer, duration=0)


def test_reverts_beyond_the_last_second(pay: Contract, terms: Terms, payer: Actor) -> None:
    left = MAX_TIME - state_of(pay, terms).end
    for duration in (left + 1, MAX_TIME):
        with reverts("streams: duration too long"):
            top_up(pay, terms, payer, duration=duration)


def test_reaches_the_last_second(pay: Contract, money: Money, terms: Terms, payer: Actor) -> None:
    before = state_of(pay, terms)
    cost = replace(before, end=MAX_TIME).deposit - before.deposit
    money.give(payer, cost, pay)
    top_up(pay, terms, payer, duration=MAX_TIME - before.end, value=money.value(cost))
    assert state_of(pay, terms) == replace(before, end=MAX_TIME)


def test_reverts_where_the_value_is_too_low(pay: Contract, coins: Money, payer: Actor, payee: Actor) -> None:
    terms = Terms(payer, payee, COIN)
    open_stream(pay, coins, terms)
    coins.give(payer, COST)
    with reverts("vault: value too low"):
        top_up(pay, terms, payer, value=COST - 1)


def test_reverts_where_the_vault_is_too_low(pay: Contract, coins: Money, payer: Actor, payee: Actor) -> None:
    terms = Terms(payer, payee, COIN)
    open_stream(pay, coins, terms)
    fill_vault(pay, coins, payer, COST - 1)
    with reverts("vault: balance too low"):
        top_up(pay, terms, payer, from_vault=MAX)


def test_reverts_where_coins_come_with_a_token(
    pay: Contract, coins: Money, tokens: Money, payer: Actor, payee: Actor
) -> None:
    terms = Terms(payer, payee, tokens.address)
    open_stream(pay, tokens, terms)
    tokens.give(payer, COST, pay)
    coins.give(payer, COST)
    for value in (1, COST):
        with reverts("vault: value sent with a token"):
            top_up(pay, terms, payer, value=value)


def test_never_takes_a_strangers_allowance(
    pay: Contract, tokens: Money, payer: Actor, payee: Actor, attacker: Actor
) -> None:
    """The payer's allowance and vault balance pay for what the payer itself asks, and for nothing else."""
    terms = Terms(payer, payee, tokens.address)
    open_stream(pay, tokens, terms)
    tokens.give(payer, COST, pay)
    fill_vault(pay, tokens, payer, COST)
    with pytest.raises(Reverted):
        top_up(pay, terms, attacker, from_vault=MAX)
