"""StreamPay.withdraw_vault"""

from collections.abc import Callable

import pytest

from tests.contracts.harness import COIN, Actor, Money, fill_vault, reverts
from tests.fastchain import Chain, Contract, OutOfGas, Reverted


def test_pays_the_caller_to_any_account(pay: Contract, money: Money, payer: Actor, keeper: Actor) -> None:
    fill_vault(pay, money, payer, 10)
    receipt = pay.withdraw_vault(money.address, 7, keeper, sender=payer)
    assert receipt.log("VaultWithdrawn") == {"token": money.address, "account": payer, "to": keeper, "amount": 7}
    assert pay.balance_of(money.address, payer) == 3
    assert (money.held(keeper), money.held(pay.address)) == (7, 3)


def test_empties_the_balance(pay: Contract, money: Money, payer: Actor) -> None:
    fill_vault(pay, money, payer, 10)
    pay.withdraw_vault(money.address, 10, payer, sender=payer)
    assert pay.balance_of(money.address, payer) == 0
    assert (money.held(payer), money.held(pay.address)) == (10, 0)


def test_reverts_for_a_zero_amount(pay: Contract, money: Money, payer: Actor) -> None:
    with reverts("vault: zero amount"):
        pay.withdraw_vault(money.address, 0, payer, sender=payer)


def test_reverts_for_the_zero_receiver(pay: Contract, money: Money, payer: Actor) -> None:
    fill_vault(pay, money, payer, 1)
    with reverts("vault: zero receiver"):
        pay.withdraw_vault(money.address, 1, COIN, sender=payer)


def test_reverts_beyond_the_balance(pay: Contract, money: Money, payer: Actor) -> None:
    fill_vault(pay, money, payer, 10)
    with reverts("vault: balance too low"):
        pay.withdraw_vault(money.address, 11, payer, sender=payer)


def test_a_stranger_has_no_part_in_it(pay: Contract, money: Money, payer: Actor, attacker: Actor) -> None:
    fill_vault(pay, money, payer, 10)
    with reverts("vault: balance too low"):
        pay.withdraw_vault(money.address, 1, attacker, sender=attacker)


def test_a_balance_of_one_token_is_none_of_another(
    pay: Contract, coins: Money, tokens: Money, payer: Actor, keeper: Actor
) -> None:
    fill_vault(pay, coins, payer, 10)
    fill_vault(pay, tokens, keeper, 10)
    with reverts("vault: balance too low"):
        pay.withdraw_vault(tokens.address, 1, payer, sender=payer)


@pytest.mark.parametrize("kind", ["RevertingReceiver", "GasBurningReceiver"])
def test_a_receiver_that_fails_harms_nobody_but_the_caller(
    pay: Contract, coins: Money, deploy: Callable[..., Contract], payer: Actor, kind: str
) -> None:
    receiver = deploy(kind)
    fill_vault(pay, coins, payer, 10)
    with pytest.raises((Reverted, OutOfGas)):
        pay.withdraw_vault(COIN, 10, receiver.address, sender=payer)
    pay.withdraw_vault(COIN, 10, payer, sender=payer)
    assert coins.held(payer) == 10


def test_says_that_a_receiver_refused(
    pay: Contract, coins: Money, deploy: Callable[..., Contract], payer: Actor
) -> None:
    fill_vault(pay, coins, payer, 1)
    with reverts("assets: receiver refused"):
        pay.withdraw_vault(COIN, 1, deploy("RevertingReceiver").address, sender=payer)


def test_a_receiver_that_calls_back_gets_its_balance_once(
    pay: Contract, coins: Money, deploy: Callable[..., Contract], evm: Chain, payer: Actor, keeper: Actor
) -> None:
    thief = deploy("ReentrantReceiver")
    fill_vault(pay, coins, payer, 100)
    coins.give(keeper, 10)
    pay.deposit_for(thief.address, COIN, 10, sender=keeper, value=10)
    again = pay.encode("withdraw_vault", COIN, 10, thief.address)
    thief.arm(pay.address, again, sender=keeper)
    receipt = thief.execute(pay.address, 0, again, sender=keeper)
    assert receipt.log("CalledBack")["success"] is False
    assert coins.held(thief.address) == 10
    assert (pay.balance_of(COIN, payer), coins.held(pay.address)) == (100, 100)
