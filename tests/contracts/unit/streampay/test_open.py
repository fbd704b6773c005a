"""StreamPay.open"""

from collections.abc import Callable

import pytest

from penstock.accrual import MAX_RATE, MAX_TIME, RATE_SCALE, StreamState, flow
from tests.contracts.harness import (
    COIN,
    DURATION,
    MAX,
    NO_STREAM,
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
from tests.fastchain import Chain, Contract, Reverted

DEPOSIT = flow(RATE, DURATION)


def test_locks_the_deposit_under_the_id(pay: Contract, evm: Chain, money: Money, payer: Actor, payee: Actor) -> None:
    terms = Terms(payer, payee, money.address)
    money.give(payer, DEPOSIT + 5, pay)
    receipt = pay.open(
        payee, money.address, SESSION, OFFER, RATE, DURATION, 0, sender=payer, value=money.value(DEPOSIT)
    )
    assert receipt.result == terms.id
    assert receipt.log("Opened") == {
        "id": terms.id,
        "payer": payer,
        "payee": payee,
        "token": money.address,
        "session_key": SESSION,
        "offer_id": OFFER,
        "rate": RATE,
        "start": evm.now,
        "end": evm.now + DURATION,
        "from_vault": 0,
    }
    assert [log.name for log in receipt.logs] == ["Opened"]
    assert state_of(pay, terms) == StreamState(evm.now, evm.now, evm.now + DURATION, RATE)
    assert DEPOSIT == 3_334
    assert (money.held(payer), money.held(pay.address)) == (5, DEPOSIT)
    assert pay.balance_of(money.address, payer) == pay.balance_of(money.address, payee) == 0


def attempt(pay: Contract, payer: str, to: str, **changes: object) -> None:
    terms = {
        "payee": to,
        "token": COIN,
        "session_key": SESSION,
        "offer_id": OFFER,
        "rate": RATE,
        "duration": DURATION,
        "from_vault": 0,
    }
    pay.open(*(terms | changes).values(), sender=payer, value=DEPOSIT)


def test_reverts_for_the_zero_payee(pay: Contract, coins: Money, payer: Actor, payee: Actor) -> None:
    coins.give(payer, DEPOSIT)
    with reverts("streams: zero payee"):
        attempt(pay, payer, payee, payee=COIN)


def test_reverts_where_the_payer_is_the_payee(pay: Contract, coins: Money, payer: Actor, payee: Actor) -> None:
    coins.give(payer, DEPOSIT)
    with reverts("streams: payer is the payee"):
        attempt(pay, payer, payee, payee=payer)


def test_reverts_for_the_zero_session_key(pay: Contract, coins: Money, payer: Actor, payee: Actor) -> None:
    coins.give(payer, DEPOSIT)
    with reverts("streams: zero session key"):
        attempt(pay, payer, payee, session_key=COIN)


def test_reverts_for_a_zero_rate(pay: Contract, coins: Money, payer: Actor, payee: Actor) -> None:
    coins.give(payer, DEPOSIT)
    with reverts("streams: zero rate"):
        attempt(pay, payer, payee, rate=0)


def test_reverts_for_a_zero_duration(pay: Contract, coins: Money, payer: Actor, payee: Actor) -> None:
    coins.give(payer, DEPOSIT)
    with reverts("streams: zero duration"):
        attempt(pay, payer, payee, duration=0)


def test_reverts_beyond_the_last_second(pay: Contract, evm: Chain, coins: Money, payer: Actor, payee: Actor) -> None:
    coins.give(payer, DEPOSIT)
    for duration in (MAX_TIME - evm.now + 1, MAX_TIME):
        with reverts("streams: duration too long"):
            attempt(pay, payer, payee, rate=1, duration=duration)


def test_reverts_where_it_is_already_open(pay: Contract, money: Money, payer: Actor, payee: Actor) -> None:
    terms = Terms(payer, payee, money.address)
    open_stream(pay, money, terms)
    with reverts("streams: already open"):
        open_stream(pay, money, terms, rate=RATE + 1)


def test_reverts_while_paused(pay: Contract, money: Money, payer: Actor, payee: Actor, guardian: Actor) -> None:
    pay.set_paused(True, sender=guardian)
    with reverts("guardian: paused, only exits are open"):
        open_stream(pay, money, Terms(payer, payee, money.address))


def test_reverts_where_the_value_is_too_low(pay: Contract, coins: Money, payer: Actor, payee: Actor) -> None:
    coins.give(payer, DEPOSIT)
    with reverts("vault: value too low"):
        pay.open(payee, COIN, SESSION, OFFER, RATE, DURATION, 0, sender=payer, value=DEPOSIT - 1)


def test_reverts_where_value_and_vault_are_too_low(pay: Contract, coins: Money, payer: Actor, payee: Actor) -> None:
    fill_vault(pay, coins, payer, 9)
    coins.give(payer, DEPOSIT)
    with reverts("vault: balance too low"):
        pay.open(payee, COIN, SESSION, OFFER, RATE, DURATION, MAX, sender=payer, value=DEPOSIT - 10)


def test_reverts_where_coins_come_with_a_token(
    pay: Contract, coins: Money, tokens: Money, payer: Actor, payee: Actor
) -> None:
    tokens.give(payer, DEPOSIT, pay)
    fill_vault(pay, tokens, payer, DEPOSIT)
    coins.give(payer, DEPOSIT)
    for value in (1, DEPOSIT):
        for from_vault in (0, MAX):
            with reverts("vault: value sent with a token"):
                pay.open(payee, tokens.address, SESSION, OFFER, RATE, DURATION, from_vault, sender=payer, value=value)


def test_reverts_where_the_allowance_is_short(
    pay: Contract, tokens: Money, token: Contract, payer: Actor, payee: Actor
) -> None:
    tokens.give(payer, DEPOSIT, pay)
    token.approve(pay.address, DEPOSIT - 1, sender=payer)
    with pytest.raises(Reverted):
        pay.open(payee, tokens.address, SESSION, OFFER, RATE, DURATION, 0, sender=payer)


def test_credits_coins_sent_in_excess(pay: Contract, coins: Money, payer: Actor, payee: Actor) -> None:
    coins.give(payer, DEPOSIT + 9)
    receipt = pay.open(payee, COIN, SESSION, OFFER, RATE, DURATION, MAX, sender=payer, value=DEPOSIT + 9)
    assert receipt.log("Deposited") == {"token": COIN, "account": payer, "funder": payer, "amount": 9}
    assert receipt.log("Opened")["from_vault"] == 0
    assert pay.balance_of(COIN, payer) == 9
    assert coins.held(pay.address) == DEPOSIT + 9


def test_takes_all_from_the_vault(pay: Contract, money: Money, payer: Actor, payee: Actor) -> None:
    fill_vault(pay, money, payer, DEPOSIT + 4)
    receipt = open_stream(pay, money, Terms(payer, payee, money.address), from_vault=MAX)
    assert receipt.log("Opened")["from_vault"] == DEPOSIT
    assert pay.balance_of(money.address, payer) == 4
    assert money.held(pay.address) == DEPOSIT + 4


@pytest.mark.parametrize("rest", [1, DEPOSIT - 1_000])
def test_takes_the_rest_from_outside(pay: Contract, money: Money, payer: Actor, payee: Actor, rest: int) -> None:
    """Coins: the value first, then the vault. Tokens: the vault first, then the allowance."""
    fill_vault(pay, money, payer, DEPOSIT - rest)
    money.give(payer, rest, pay)
    receipt = pay.open(payee, money.address, SESSION, OFFER, RATE, DURATION, MAX, sender=payer, value=money.value(rest))
    assert receipt.log("Opened")["from_vault"] == DEPOSIT - rest
    assert pay.balance_of(money.address, payer) == 0
    assert (money.held(payer), money.held(pay.address)) == (0, DEPOSIT)


def test_takes_coins_from_the_vault_only_where_the_value_is_short(
    pay: Contract, coins: Money, payer: Actor, payee: Actor
) -> None:
    fill_vault(pay, coins, payer, DEPOSIT)
    coins.give(payer, DEPOSIT)
    receipt = pay.open(payee, COIN, SESSION, OFFER, RATE, DURATION, MAX, sender=payer, value=DEPOSIT)
    assert receipt.log("Opened")["from_vault"] == 0
    assert pay.balance_of(COIN, payer) == DEPOSIT


@pytest.mark.parametrize("allowed", [1, 100])
def test_takes_no_more_tokens_from_the_vault_than_allowed(
    pay: Contract, tokens: Money, payer: Actor, payee: Actor, allowed: int
) -> None:
    fill_vault(pay, tokens, payer, DEPOSIT)
    tokens.give(payer, DEPOSIT, pay)
    receipt = pay.open(payee, tokens.address, SESSION, OFFER, RATE, DURATION, allowed, sender=payer)
    assert receipt.log("Opened")["from_vault"] == allowed
    assert pay.balance_of(tokens.address, payer) == DEPOSIT - allowed
    assert tokens.held(payer) == allowed


def test_takes_no_more_coins_from_the_vault_than_allowed(
    pay: Contract, coins: Money, payer: Actor, payee: Actor
) -> None:
    fill_vault(pay, coins, payer, DEPOSIT)
    coins.give(payer, DEPOSIT)
    with reverts("vault: value too low"):
        pay.open(payee, COIN, SESSION, OFFER, RATE, DURATION, 100, sender=payer, value=DEPOSIT - 101)
    receipt = pay.open(payee, COIN, SESSION, OFFER, RATE, DURATION, 100, sender=payer, value=DEPOSIT - 100)
    assert receipt.log("Opened")["from_vault"] == 100


def test_never_touches_a_vault_balance_by_default(pay: Contract, money: Money, payer: Actor, payee: Actor) -> None:
    fill_vault(pay, money, payer, DEPOSIT)
    open_stream(pay, money, Terms(payer, payee, money.address), from_vault=0)
    assert pay.balance_of(money.address, payer) == DEPOSIT


def test_the_highest_rate_and_the_longest_duration(
    pay: Contract, evm: Chain, tokens: Money, payer: Actor, payee: Actor
) -> None:
    terms = Terms(payer, payee, tokens.address)
    duration = MAX_TIME - evm.now
    open_stream(pay, tokens, terms, rate=MAX_RATE, duration=duration)
    state = state_of(pay, terms)
    assert state == StreamState(evm.now, evm.now, MAX_TIME, MAX_RATE)
    assert tokens.held(pay.address) == state.deposit == -(-MAX_RATE * duration // RATE_SCALE)
    evm.at_time(MAX_TIME)
    pay.withdraw(payer, tokens.address, SESSION, OFFER, payee, sender=payee)
    assert (tokens.held(payee), tokens.held(pay.address)) == (state.deposit, 0)


def test_the_lowest_rate_costs_one_unit(pay: Contract, evm: Chain, money: Money, payer: Actor, payee: Actor) -> None:
    terms = Terms(payer, payee, money.address)
    open_stream(pay, money, terms, rate=1, duration=1)
    assert money.held(pay.address) == 1
    assert state_of(pay, terms) == StreamState(evm.now, evm.now, evm.now + 1, 1)


def test_an_id_may_be_used_again_after_the_close(
    pay: Contract, evm: Chain, money: Money, payer: Actor, payee: Actor
) -> None:
    terms = Terms(payer, payee, money.address)
    open_stream(pay, money, terms)
    evm.sleep(10)
    pay.cancel(payee, money.address, SESSION, OFFER, COIN, sender=payer)
    assert state_of(pay, terms) == NO_STREAM
    open_stream(pay, money, terms, rate=RATE + 1, duration=5)
    assert state_of(pay, terms) == StreamState(evm.now, evm.now, evm.now + 5, RATE + 1)


@pytest.mark.parametrize("part", ["payer", "payee", "token", "session_key", "offer_id"])
def test_each_part_of_the_terms_makes_another_stream(
    pay: Contract, coins: Money, tokens: Money, keeper: Actor, payer: Actor, payee: Actor, part: str
) -> None:
    terms = Terms(payer, payee, COIN)
    other = {
        "payer": keeper,
        "payee": keeper,
        "token": tokens.address,
        "session_key": keeper,
        "offer_id": b"\x01" * 32,
    }[part]
    changed = Terms(**(terms.__dict__ | {part: other}))
    open_stream(pay, coins, terms)
    open_stream(pay, tokens if part == "token" else coins, changed)
    assert terms.id != changed.id
    assert state_of(pay, terms) == state_of(pay, changed) != NO_STREAM


def test_refuses_a_token_that_keeps_a_fee_but_takes_it_from_the_vault(
    pay: Contract, evm: Chain, deploy: Callable[..., Contract], payer: Actor, payee: Actor
) -> None:
    fee_token = deploy("FeeToken")
    fee_token.set_fee(100, sender=payer)
    money = Money(evm, fee_token.address, fee_token)
    terms = Terms(payer, payee, money.address)
    with reverts("vault: the token kept a fee, deposit first"):
        open_stream(pay, money, terms)
    pay.deposit(money.address, DEPOSIT, sender=payer)
    assert pay.balance_of(money.address, payer) == fee_token.balanceOf(pay.address) == DEPOSIT - 33
    open_stream(pay, money, terms, duration=900, from_vault=MAX)
    assert state_of(pay, terms).deposit == 3_000
