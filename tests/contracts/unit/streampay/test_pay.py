"""StreamPay.pay and allow_spender"""

import pytest

from tests.contracts.harness import COIN, MAX, Actor, Money, fill_vault, reverts
from tests.fastchain import Chain, Contract, Reverted

FIRST, SECOND = Actor("first receiver"), Actor("second receiver")


def test_credits_each_receiver_at_the_callers_cost(pay: Contract, money: Money, payer: Actor) -> None:
    money.give(payer, 30, pay)
    payments = [(FIRST, 10), (SECOND, 20)]
    receipt = pay.pay(payer, money.address, payments, sender=payer, value=money.value(30))
    assert [log.name for log in receipt.logs if log.name != "Transfer"] == ["Deposited", "Deposited"]
    assert receipt.logs[0].args == {"token": money.address, "account": FIRST, "funder": payer, "amount": 10}
    assert [pay.balance_of(money.address, account) for account in (payer, FIRST, SECOND)] == [0, 10, 20]
    assert (money.held(payer), money.held(pay.address)) == (0, 30)


def test_coins_come_first_then_the_vault(pay: Contract, coins: Money, payer: Actor) -> None:
    fill_vault(pay, coins, payer, 100)
    coins.give(payer, 7)
    receipt = pay.pay(payer, COIN, [(FIRST, 10)], sender=payer, value=7)
    assert receipt.log("VaultSpent") == {"token": COIN, "account": payer, "spender": payer, "amount": 3}
    assert pay.balance_of(COIN, payer) == 97


def test_the_vault_comes_first_then_the_allowance(pay: Contract, tokens: Money, payer: Actor) -> None:
    fill_vault(pay, tokens, payer, 4)
    tokens.give(payer, 6, pay)
    receipt = pay.pay(payer, tokens.address, [(FIRST, 10)], sender=payer)
    assert receipt.log("VaultSpent")["amount"] == 4
    assert (pay.balance_of(tokens.address, payer), tokens.held(payer)) == (0, 0)


def test_coins_in_excess_are_the_payers(pay: Contract, coins: Money, payer: Actor, keeper: Actor) -> None:
    coins.give(keeper, 15)
    pay.pay(payer, COIN, [(FIRST, 10)], sender=keeper, value=15)
    assert (pay.balance_of(COIN, payer), pay.balance_of(COIN, keeper)) == (5, 0)


@pytest.mark.parametrize("allowed", [0, 9])
def test_a_stranger_cannot_spend(pay: Contract, money: Money, payer: Actor, attacker: Actor, allowed: int) -> None:
    fill_vault(pay, money, payer, 100)
    money.give(payer, 100, pay)
    pay.allow_spender(attacker, money.address, allowed, sender=payer)
    with reverts("vault: not allowed so much"):
        pay.pay(payer, money.address, [(attacker, 10)], sender=attacker)


def test_who_was_allowed_spends_so_much_and_no_more(pay: Contract, money: Money, payer: Actor, keeper: Actor) -> None:
    fill_vault(pay, money, payer, 100)
    receipt = pay.allow_spender(keeper, money.address, 25, sender=payer)
    assert receipt.log("SpenderAllowed") == {
        "owner": payer,
        "spender": keeper,
        "token": money.address,
        "amount": 25,
    }
    pay.pay(payer, money.address, [(FIRST, 10), (SECOND, 5)], sender=keeper)
    assert pay.spendable(money.address, payer, keeper) == 10
    with reverts("vault: not allowed so much"):
        pay.pay(payer, money.address, [(FIRST, 11)], sender=keeper)
    pay.pay(payer, money.address, [(FIRST, 10)], sender=keeper)
    assert pay.spendable(money.address, payer, keeper) == 0
    assert pay.balance_of(money.address, payer) == 75


def test_who_was_allowed_spends_the_payers_money_alone(
    pay: Contract, tokens: Money, payer: Actor, keeper: Actor
) -> None:
    """From its vault balance and then its allowance; the spender's own would be there."""
    for account in (payer, keeper):
        fill_vault(pay, tokens, account, 4)
        tokens.give(account, 6, pay)
    pay.allow_spender(keeper, tokens.address, 10, sender=payer)
    receipt = pay.pay(payer, tokens.address, [(FIRST, 10)], sender=keeper)
    expected = {"token": tokens.address, "account": payer, "spender": keeper, "amount": 4}
    assert receipt.log("VaultSpent") == expected
    assert receipt.log("Deposited")["funder"] == payer
    assert (pay.balance_of(tokens.address, payer), tokens.held(payer)) == (0, 0)
    assert (pay.balance_of(tokens.address, keeper), tokens.held(keeper)) == (4, 6)


def test_the_maximum_has_no_end_and_zero_ends_it(pay: Contract, money: Money, payer: Actor, keeper: Actor) -> None:
    fill_vault(pay, money, payer, 100)
    pay.allow_spender(keeper, money.address, MAX, sender=payer)
    pay.pay(payer, money.address, [(FIRST, 60)], sender=keeper)
    assert pay.spendable(money.address, payer, keeper) == MAX
    pay.allow_spender(keeper, money.address, 0, sender=payer)
    with reverts("vault: not allowed so much"):
        pay.pay(payer, money.address, [(FIRST, 1)], sender=keeper)


def test_an_allowance_is_of_one_token_and_one_spender(
    pay: Contract, coins: Money, tokens: Money, payer: Actor, keeper: Actor, attacker: Actor
) -> None:
    fill_vault(pay, coins, payer, 100)
    fill_vault(pay, tokens, payer, 100)
    pay.allow_spender(keeper, COIN, MAX, sender=payer)
    for token, sender in ((tokens.address, keeper), (COIN, attacker)):
        with reverts("vault: not allowed so much"):
            pay.pay(payer, token, [(FIRST, 1)], sender=sender)


def test_a_spenders_coins_count_before_what_it_was_allowed(
    pay: Contract, coins: Money, payer: Actor, keeper: Actor
) -> None:
    fill_vault(pay, coins, payer, 100)
    pay.allow_spender(keeper, COIN, 3, sender=payer)
    coins.give(keeper, 7)
    pay.pay(payer, COIN, [(FIRST, 10)], sender=keeper, value=7)
    assert (pay.spendable(COIN, payer, keeper), pay.balance_of(COIN, payer)) == (0, 97)


def test_paying_oneself_changes_nothing(pay: Contract, money: Money, payer: Actor) -> None:
    fill_vault(pay, money, payer, 10)
    pay.pay(payer, money.address, [(payer, 10), (payer, 10)], sender=payer)
    assert pay.balance_of(money.address, payer) == 10
    pay.pay(FIRST, money.address, [(FIRST, 10)], sender=FIRST)
    assert pay.balance_of(money.address, FIRST) == 0
    with reverts("vault: balance too low") if money.token is None else pytest.raises(Reverted):
        pay.pay(FIRST, money.address, [(FIRST, 10), (SECOND, 1)], sender=FIRST)


def test_reverts_for_the_zero_account(pay: Contract, money: Money, payer: Actor) -> None:
    fill_vault(pay, money, payer, 10)
    with reverts("vault: zero account"):
        pay.pay(payer, money.address, [(COIN, 1)], sender=payer)


def test_reverts_where_coins_come_with_a_token(
    pay: Contract, coins: Money, tokens: Money, payer: Actor, attacker: Actor
) -> None:
    """Nor do they stand in for what a spender is allowed."""
    fill_vault(pay, tokens, payer, 10)
    coins.give(attacker, 10)
    with reverts("vault: value sent with a token"):
        pay.pay(payer, tokens.address, [(attacker, 10)], sender=attacker, value=10)


def test_a_fee_is_refused(pay: Contract, deploy: object, evm: Chain, payer: Actor) -> None:
    token = deploy("FeeToken")  # type: ignore[operator]
    token.mint(payer, 100, sender=payer)
    token.approve(pay.address, MAX, sender=payer)
    token.set_fee(100, sender=payer)
    with reverts("vault: the token kept a fee, deposit first"):
        pay.pay(payer, token.address, [(FIRST, 100)], sender=payer)


def test_the_receiver_cannot_take_it_out_before_it_has_come(pay: Contract, deploy: object, evm: Chain) -> None:
    """The token, which is the receiver too, withdraws its credit while it is to move the money in."""
    token, owner, saver = deploy("ReentrantToken"), Actor("owner"), Actor("saver")  # type: ignore[operator]
    for account in (owner, saver):
        token.mint(account, 100, sender=account)
        token.approve(pay.address, MAX, sender=account)
    pay.deposit(token.address, 100, sender=saver)
    payload = pay.encode("withdraw_vault", token.address, 100, token.address)
    for after in (False, True):
        token.arm(pay.address, payload, after, True, sender=owner)
        with reverts("vault: the token kept a fee, deposit first"):
            pay.pay(owner, token.address, [(token.address, 100)], sender=owner)
    assert token.balanceOf(pay.address) == 100


def test_all_go_or_none(pay: Contract, coins: Money, payer: Actor) -> None:
    fill_vault(pay, coins, payer, 10)
    with reverts("vault: balance too low"):
        pay.pay(payer, COIN, [(FIRST, 10), (SECOND, 1)], sender=payer)
    assert pay.balance_of(COIN, FIRST) == 0


def test_thirty_two_at_once(pay: Contract, coins: Money, payer: Actor) -> None:
    fill_vault(pay, coins, payer, 33)
    payments = [(Actor(f"receiver {number}"), 1) for number in range(32)]
    pay.pay(payer, COIN, payments, sender=payer)
    assert pay.balance_of(COIN, payer) == 1
    with reverts("0x"):
        pay.pay(payer, COIN, [*payments, (FIRST, 1)], sender=payer)


def test_a_pause_does_not_stop_it(pay: Contract, coins: Money, payer: Actor, guardian: Actor) -> None:
    """What waits in a contract's balance must be able to leave."""
    fill_vault(pay, coins, payer, 1)
    pay.set_paused(True, sender=guardian)
    pay.pay(payer, COIN, [(FIRST, 1)], sender=payer)
    assert pay.balance_of(COIN, FIRST) == 1
