"""StreamPay.top_up_channel"""

import pytest

from penstock.channels import CLOSE_DELAY, MAX_DEPOSIT, ChannelState
from tests.contracts.harness import COIN, MAX, Actor, Money, Terms, fill_vault, reverts
from tests.contracts.vouchers import (
    DEPOSIT,
    channel_of,
    close,
    open_channel,
    reclaim,
    request_close,
    settle,
    top_up,
)
from tests.fastchain import Chain, Contract, Reverted

MORE = 333


def test_adds_to_the_deposit_and_touches_nothing_else(
    pay: Contract, evm: Chain, money: Money, terms: Terms, payer: Actor
) -> None:
    settle(evm, pay, terms, 100, sender=payer)
    money.give(payer, MORE, pay)
    receipt = top_up(pay, terms, MORE, sender=payer, value=money.value(MORE))
    assert receipt.log("ChannelToppedUp") == {"id": terms.id, "funder": payer, "amount": MORE, "from_vault": 0}
    assert [log.name for log in receipt.logs] == ["ChannelToppedUp"]
    assert channel_of(pay, terms) == ChannelState(DEPOSIT + MORE, 100, 0, False)
    assert (money.held(payer), money.held(pay.address)) == (0, DEPOSIT + MORE)


def test_a_stranger_may_pay_and_the_payer_gets_what_is_not_used(
    pay: Contract, evm: Chain, money: Money, terms: Terms, keeper: Actor, payer: Actor, payee: Actor
) -> None:
    money.give(keeper, MORE, pay)
    receipt = top_up(pay, terms, MORE, sender=keeper, value=money.value(MORE))
    assert receipt.log("ChannelToppedUp")["funder"] == keeper
    settle(evm, pay, terms, DEPOSIT + MORE - 1, sender=keeper)
    close(pay, terms)
    assert pay.balance_of(terms.token, payee) == DEPOSIT + MORE - 1
    assert (pay.balance_of(terms.token, payer), pay.balance_of(terms.token, keeper)) == (1, 0)


def test_a_stranger_does_not_touch_the_timer(
    pay: Contract, evm: Chain, money: Money, terms: Terms, payer: Actor, attacker: Actor
) -> None:
    request_close(pay, terms)
    asked = evm.now
    for _ in range(9):
        evm.sleep(100)
        money.give(attacker, 1, pay)
        top_up(pay, terms, 1, sender=attacker, value=money.value(1))
    assert channel_of(pay, terms) == ChannelState(DEPOSIT + 9, 0, asked, False)
    assert evm.now == asked + CLOSE_DELAY
    reclaim(pay, terms, payer)
    assert money.held(payer) == DEPOSIT + 9


def test_takes_from_the_vault_of_the_funder(
    pay: Contract, money: Money, terms: Terms, payer: Actor, keeper: Actor
) -> None:
    fill_vault(pay, money, payer, MORE)
    fill_vault(pay, money, keeper, MORE + 1)
    receipt = top_up(pay, terms, MORE, sender=keeper, from_vault=MAX)
    assert receipt.log("ChannelToppedUp")["from_vault"] == MORE
    assert (pay.balance_of(terms.token, keeper), pay.balance_of(terms.token, payer)) == (1, MORE)


@pytest.mark.parametrize("allowed", [9, MORE - 1])
def test_takes_no_more_from_the_vault_than_allowed(
    pay: Contract, money: Money, terms: Terms, payer: Actor, allowed: int
) -> None:
    fill_vault(pay, money, payer, MORE)
    money.give(payer, MORE - allowed, pay)
    receipt = top_up(pay, terms, MORE, sender=payer, from_vault=allowed, value=money.value(MORE - allowed))
    assert receipt.log("ChannelToppedUp")["from_vault"] == allowed
    assert (pay.balance_of(terms.token, payer), money.held(payer)) == (MORE - allowed, 0)
    assert money.held(pay.address) == DEPOSIT + MORE + MORE - allowed


def test_credits_coins_sent_in_excess_to_the_funder(
    pay: Contract, coins: Money, payer: Actor, payee: Actor, keeper: Actor
) -> None:
    terms = Terms(payer, payee, COIN)
    open_channel(pay, coins, terms)
    coins.give(keeper, MORE + 5)
    receipt = top_up(pay, terms, MORE, sender=keeper, value=MORE + 5)
    assert receipt.log("Deposited") == {"token": COIN, "account": keeper, "funder": keeper, "amount": 5}
    assert receipt.log("ChannelToppedUp")["amount"] == MORE
    assert (pay.balance_of(COIN, keeper), pay.balance_of(COIN, payer)) == (5, 0)


def test_reaches_96_bits_and_not_beyond(pay: Contract, money: Money, terms: Terms, payer: Actor) -> None:
    left = MAX_DEPOSIT - DEPOSIT
    for amount in (left + 1, 2**96, MAX):
        with reverts("channels: deposit too large"):
            top_up(pay, terms, amount, sender=payer)
    money.give(payer, left, pay)
    top_up(pay, terms, left, sender=payer, value=money.value(left))
    assert channel_of(pay, terms) == ChannelState(MAX_DEPOSIT, 0, 0, False)
    with reverts("channels: deposit too large"):
        top_up(pay, terms, 1, sender=payer)


def test_reverts_for_a_zero_amount(pay: Contract, terms: Terms, attacker: Actor) -> None:
    with reverts("channels: zero amount"):
        top_up(pay, terms, 0, sender=attacker)


def test_reverts_where_there_is_no_such_channel(pay: Contract, terms: Terms, payer: Actor) -> None:
    with reverts("channels: no such channel"):
        top_up(pay, terms.with_offer(2), MORE, sender=payer)


def test_reverts_where_it_is_finished(pay: Contract, terms: Terms, payer: Actor) -> None:
    close(pay, terms)
    with reverts("channels: finished"):
        top_up(pay, terms, MORE, sender=payer)


def test_reverts_while_paused(pay: Contract, money: Money, terms: Terms, payer: Actor, guardian: Actor) -> None:
    money.give(payer, MORE, pay)
    pay.set_paused(True, sender=guardian)
    with reverts("guardian: paused, only exits are open"):
        top_up(pay, terms, MORE, sender=payer, value=money.value(MORE))


def test_reverts_where_the_value_is_too_low(pay: Contract, coins: Money, payer: Actor, payee: Actor) -> None:
    terms = Terms(payer, payee, COIN)
    open_channel(pay, coins, terms)
    coins.give(payer, MORE)
    with reverts("vault: value too low"):
        top_up(pay, terms, MORE, sender=payer, value=MORE - 1)


def test_reverts_where_coins_come_with_a_token(
    pay: Contract, coins: Money, tokens: Money, payer: Actor, payee: Actor
) -> None:
    terms = Terms(payer, payee, tokens.address)
    open_channel(pay, tokens, terms)
    tokens.give(payer, MORE, pay)
    coins.give(payer, MORE)
    for value in (1, MORE):
        with reverts("vault: value sent with a token"):
            top_up(pay, terms, MORE, sender=payer, value=value)


def test_never_takes_a_strangers_allowance(
    pay: Contract, tokens: Money, payer: Actor, payee: Actor, attacker: Actor
) -> None:
    terms = Terms(payer, payee, tokens.address)
    open_channel(pay, tokens, terms)
    tokens.give(payer, MORE, pay)
    fill_vault(pay, tokens, payer, MORE)
    with pytest.raises(Reverted):
        top_up(pay, terms, MORE, sender=attacker, from_vault=MAX)
