"""StreamPay.deposit_for"""

import pytest

from tests.contracts.harness import COIN, Actor, Money, reverts
from tests.fastchain import Contract, Reverted

AMOUNT = 10**18 + 1


def test_credits_the_account_named(pay: Contract, money: Money, payer: Actor, keeper: Actor) -> None:
    money.give(keeper, AMOUNT, pay)
    receipt = pay.deposit_for(payer, money.address, AMOUNT, sender=keeper, value=money.value(AMOUNT))
    assert receipt.result == AMOUNT
    assert receipt.log("Deposited") == {
        "token": money.address,
        "account": payer,
        "funder": keeper,
        "amount": AMOUNT,
    }
    assert pay.balance_of(money.address, payer) == AMOUNT
    assert pay.balance_of(money.address, keeper) == 0
    assert (money.held(keeper), money.held(payer), money.held(pay.address)) == (0, 0, AMOUNT)


def test_reverts_for_the_zero_account(pay: Contract, money: Money, keeper: Actor) -> None:
    money.give(keeper, 1, pay)
    with reverts("vault: zero account"):
        pay.deposit_for(COIN, money.address, 1, sender=keeper, value=money.value(1))


@pytest.mark.parametrize("value", [0, 1, 3])
def test_reverts_where_the_value_is_not_the_amount(
    pay: Contract, coins: Money, payer: Actor, keeper: Actor, value: int
) -> None:
    coins.give(keeper, 3)
    with reverts("vault: value is not the amount"):
        pay.deposit_for(payer, COIN, 2, sender=keeper, value=value)


def test_reverts_where_coins_come_with_a_token(
    pay: Contract, coins: Money, tokens: Money, payer: Actor, keeper: Actor
) -> None:
    tokens.give(keeper, 1, pay)
    coins.give(keeper, 1)
    with reverts("vault: value sent with a token"):
        pay.deposit_for(payer, tokens.address, 1, sender=keeper, value=1)


def test_reverts_where_nothing_arrives(pay: Contract, money: Money, payer: Actor, keeper: Actor) -> None:
    money.give(keeper, 1, pay)
    with reverts("vault: nothing arrived"):
        pay.deposit_for(payer, money.address, 0, sender=keeper)


def test_takes_the_token_from_the_caller_and_never_from_the_account(
    pay: Contract, tokens: Money, token: Contract, payer: Actor, attacker: Actor
) -> None:
    tokens.give(payer, 5, pay)
    with pytest.raises(Reverted):
        pay.deposit_for(payer, tokens.address, 5, sender=attacker)
