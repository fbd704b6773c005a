"""StreamPay.reclaim"""

from collections.abc import Callable

import pytest

from penstock.channels import CLOSE_DELAY, ChannelState
from tests.contracts.harness import COIN, OFFER, SESSION, Actor, Money, Terms, reverts
from tests.contracts.vouchers import (
    DEPOSIT,
    channel_of,
    close,
    open_channel,
    reclaim,
    request_close,
    settle,
)
from tests.fastchain import Chain, Contract, OutOfGas, Reverted


def test_pays_the_rest_back(pay: Contract, evm: Chain, money: Money, terms: Terms, payer: Actor, payee: Actor) -> None:
    settle(evm, pay, terms, 400, sender=payee)
    request_close(pay, terms)
    asked = evm.now
    evm.sleep(CLOSE_DELAY)
    receipt = reclaim(pay, terms, payer)
    assert receipt.log("ChannelClosed") == {
        "id": terms.id,
        "cumulative": 400,
        "refund": DEPOSIT - 400,
        "to": payer,
    }
    assert [log.name for log in receipt.logs] == ["ChannelClosed"]
    assert channel_of(pay, terms) == ChannelState(DEPOSIT, 400, asked, True)
    assert (money.held(payer), money.held(pay.address)) == (DEPOSIT - 400, 400)
    assert (pay.balance_of(terms.token, payer), pay.balance_of(terms.token, payee)) == (0, 400)


def test_refunds_into_the_vault_for_the_zero_receiver(
    pay: Contract, evm: Chain, money: Money, terms: Terms, payer: Actor
) -> None:
    request_close(pay, terms)
    evm.sleep(CLOSE_DELAY)
    assert reclaim(pay, terms).log("ChannelClosed")["to"] == COIN
    assert pay.balance_of(terms.token, payer) == money.held(pay.address) == DEPOSIT
    assert pay.settled_of(terms.token, payer) == 0


def test_refunds_to_any_account(pay: Contract, evm: Chain, money: Money, terms: Terms, keeper: Actor) -> None:
    request_close(pay, terms)
    evm.sleep(10**6)
    reclaim(pay, terms, keeper)
    assert money.held(keeper) == DEPOSIT


def test_reverts_at_899_seconds_and_not_at_900(
    pay: Contract, evm: Chain, money: Money, terms: Terms, payer: Actor
) -> None:
    request_close(pay, terms)
    for pause in (0, 1, 898):
        evm.sleep(pause)
        with reverts("channels: too early"):
            reclaim(pay, terms, payer)
    evm.sleep(1)
    reclaim(pay, terms, payer)
    assert money.held(payer) == DEPOSIT


def test_reverts_without_a_request(pay: Contract, evm: Chain, terms: Terms) -> None:
    evm.sleep(10**6)
    with reverts("channels: close not requested"):
        reclaim(pay, terms)


def test_reverts_the_second_time(pay: Contract, evm: Chain, money: Money, terms: Terms, payer: Actor) -> None:
    request_close(pay, terms)
    evm.sleep(CLOSE_DELAY)
    reclaim(pay, terms, payer)
    with reverts("channels: finished"):
        reclaim(pay, terms, payer)
    with reverts("channels: finished"):
        close(pay, terms)
    with reverts("channels: finished"):
        request_close(pay, terms)
    money.give(payer, DEPOSIT, pay)
    with reverts("channels: already used"):
        pay.open_channel(terms.payee, terms.token, SESSION, OFFER, DEPOSIT, 0, sender=payer, value=money.value(DEPOSIT))


def test_what_is_settled_in_the_window_is_not_refunded(
    pay: Contract, evm: Chain, money: Money, terms: Terms, payer: Actor, payee: Actor
) -> None:
    request_close(pay, terms)
    evm.sleep(CLOSE_DELAY - 1)
    settle(evm, pay, terms, DEPOSIT, sender=payee)
    evm.sleep(1)
    receipt = reclaim(pay, terms, payer)
    assert receipt.log("ChannelClosed")["refund"] == 0
    assert money.held(payer) == 0
    assert pay.balance_of(terms.token, payee) == DEPOSIT


@pytest.mark.parametrize("who", ["payee", "attacker", "guardian", "session"])
def test_nobody_else_can_reclaim(
    pay: Contract, evm: Chain, terms: Terms, request: pytest.FixtureRequest, who: str
) -> None:
    request_close(pay, terms)
    evm.sleep(CLOSE_DELAY)
    sender = SESSION if who == "session" else request.getfixturevalue(who)
    with reverts("channels: no such channel"):
        reclaim(pay, terms, sender, sender=sender)


def test_works_while_paused(
    pay: Contract, evm: Chain, money: Money, terms: Terms, payer: Actor, guardian: Actor
) -> None:
    request_close(pay, terms)
    evm.sleep(CLOSE_DELAY)
    pay.set_paused(True, sender=guardian)
    reclaim(pay, terms, payer)
    assert money.held(payer) == DEPOSIT


@pytest.mark.parametrize("kind", ["RevertingReceiver", "GasBurningReceiver"])
def test_a_payer_that_takes_no_coins_gets_its_refund_in_the_vault(
    pay: Contract, evm: Chain, coins: Money, deploy: Callable[..., Contract], payee: Actor, keeper: Actor, kind: str
) -> None:
    payer = deploy(kind)
    terms = Terms(payer.address, payee, COIN)
    open_channel(pay, coins, terms)
    request_close(pay, terms)
    evm.sleep(CLOSE_DELAY)
    with pytest.raises((Reverted, OutOfGas)):
        reclaim(pay, terms, payer.address)
    assert channel_of(pay, terms).running
    reclaim(pay, terms)
    pay.withdraw_vault(COIN, DEPOSIT, keeper, sender=payer.address)
    assert coins.held(keeper) == DEPOSIT


def test_a_token_that_refuses_the_payer_cannot_keep_the_refund(
    pay: Contract, evm: Chain, deploy: Callable[..., Contract], payer: Actor, payee: Actor, keeper: Actor
) -> None:
    token = deploy("BlockingToken")
    terms = Terms(payer, payee, token.address)
    open_channel(pay, Money(evm, token.address, token), terms)
    request_close(pay, terms)
    evm.sleep(CLOSE_DELAY)
    token.set_blocked(payer, True, sender=keeper)
    with reverts("token: blocked"):
        reclaim(pay, terms, payer)
    with evm.snapshot():
        reclaim(pay, terms, keeper)
        assert token.balanceOf(keeper) == DEPOSIT
    reclaim(pay, terms)
    assert pay.balance_of(token.address, payer) == DEPOSIT


def test_a_receiver_that_calls_back_gets_the_refund_once(
    pay: Contract,
    evm: Chain,
    coins: Money,
    deploy: Callable[..., Contract],
    keeper: Actor,
    payer: Actor,
    payee: Actor,
) -> None:
    thief = deploy("ReentrantReceiver")
    open_channel(pay, coins, Terms(payer, payee, COIN))  # somebody else's money is there to be stolen
    terms = Terms(thief.address, payee, COIN)
    open_channel(pay, coins, terms)
    request_close(pay, terms)
    evm.sleep(CLOSE_DELAY)
    again = pay.encode("reclaim", payee, COIN, SESSION, OFFER, thief.address)
    thief.arm(pay.address, again, sender=keeper)
    receipt = thief.execute(pay.address, 0, again, sender=keeper)
    assert receipt.log("CalledBack")["success"] is False
    assert (coins.held(thief.address), coins.held(pay.address)) == (DEPOSIT, DEPOSIT)


def test_where_nothing_is_left_nobody_is_called(
    pay: Contract, evm: Chain, coins: Money, deploy: Callable[..., Contract], payer: Actor, payee: Actor
) -> None:
    """A receiver that refuses coins cannot block the end of a channel that is used up."""
    refuser = deploy("RevertingReceiver")
    terms = Terms(payer, payee, COIN)
    open_channel(pay, coins, terms)
    settle(evm, pay, terms, DEPOSIT, sender=payee)
    request_close(pay, terms)
    evm.sleep(CLOSE_DELAY)
    assert reclaim(pay, terms, refuser.address).log("ChannelClosed")["refund"] == 0
    assert not channel_of(pay, terms).running
