"""StreamPay.deposit"""

import pytest

from tests.contracts.harness import COIN, MAX, Actor, Money, reverts
from tests.fastchain import Chain, Contract, Reverted

AMOUNT = 10**18 + 1


def test_credits_the_caller(pay: Contract, money: Money, payer: Actor) -> None:
    money.give(payer, AMOUNT, pay)
    receipt = pay.deposit(money.address, AMOUNT, sender=payer, value=money.value(AMOUNT))
    assert receipt.result == AMOUNT
    assert receipt.log("Deposited") == {
        "token": money.address,
        "account": payer,
        "funder": payer,
        "amount": AMOUNT,
    }
    assert pay.balance_of(money.address, payer) == AMOUNT
    assert pay.settled_of(money.address, payer) == 0
    assert (money.held(payer), money.held(pay.address)) == (0, AMOUNT)


def test_adds_to_what_is_there(pay: Contract, money: Money, payer: Actor) -> None:
    money.give(payer, 7, pay)
    for amount in (3, 4):
        pay.deposit(money.address, amount, sender=payer, value=money.value(amount))
    assert pay.balance_of(money.address, payer) == 7


def test_each_token_has_its_own_balance(pay: Contract, coins: Money, tokens: Money, payer: Actor) -> None:
    tokens.give(payer, 5, pay)
    pay.deposit(tokens.address, 5, sender=payer)
    assert (pay.balance_of(tokens.address, payer), pay.balance_of(COIN, payer)) == (5, 0)


@pytest.mark.parametrize("value", [0, 4, 6])
def test_reverts_where_the_value_is_not_the_amount(pay: Contract, coins: Money, payer: Actor, value: int) -> None:
    coins.give(payer, 6)
    with reverts("vault: value is not the amount"):
        pay.deposit(COIN, 5, sender=payer, value=value)


def test_reverts_where_coins_come_with_a_token(pay: Contract, coins: Money, tokens: Money, payer: Actor) -> None:
    tokens.give(payer, 5, pay)
    coins.give(payer, 1)
    with reverts("vault: value sent with a token"):
        pay.deposit(tokens.address, 5, sender=payer, value=1)


def test_reverts_where_nothing_arrives(pay: Contract, money: Money, payer: Actor) -> None:
    money.give(payer, 1, pay)
    with reverts("vault: nothing arrived"):
        pay.deposit(money.address, 0, sender=payer)


def test_reverts_where_the_allowance_is_short(pay: Contract, tokens: Money, token: Contract, payer: Actor) -> None:
    tokens.give(payer, 5)
    token.approve(pay.address, 4, sender=payer)
    with pytest.raises(Reverted):
        pay.deposit(tokens.address, 5, sender=payer)


def test_reverts_where_the_token_has_no_code(pay: Contract, evm: Chain, payer: Actor) -> None:
    with reverts("0x"):
        pay.deposit(payer, 5, sender=payer)


def test_reverts_where_the_balance_would_not_fit(pay: Contract, tokens: Money, payer: Actor) -> None:
    tokens.give(payer, 2**128, pay)
    pay.deposit(tokens.address, 2**128 - 1, sender=payer)
    assert pay.balance_of(tokens.address, payer) == 2**128 - 1
    assert pay.settled_of(tokens.address, payer) == 0
    with reverts("vault: balance too large"):
        pay.deposit(tokens.address, 1, sender=payer)


def test_reverts_where_the_amount_alone_does_not_fit(pay: Contract, tokens: Money, payer: Actor) -> None:
    tokens.give(payer, MAX, pay)
    with reverts("vault: balance too large"):
        pay.deposit(tokens.address, MAX, sender=payer)
