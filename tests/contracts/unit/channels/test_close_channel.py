"""StreamPay.close_channel"""

from collections.abc import Callable

import pytest

from penstock.channels import CLOSE_DELAY, ChannelState
from tests.contracts.harness import COIN, MAX, OFFER, SESSION, Actor, Money, Terms, flip_signature, reverts
from tests.contracts.vouchers import (
    DEPOSIT,
    channel_of,
    close,
    open_channel,
    reclaim,
    request_close,
    settle,
    voucher,
)
from tests.fastchain import Chain, Contract


def test_settles_the_last_voucher_and_refunds_the_rest(
    pay: Contract, evm: Chain, money: Money, terms: Terms, payer: Actor, payee: Actor
) -> None:
    settle(evm, pay, terms, 400, sender=payee)
    receipt = close(pay, terms, 1_000, voucher(evm, pay, terms, 1_000))
    assert receipt.log("ChannelClosed") == {
        "id": terms.id,
        "cumulative": 1_000,
        "refund": DEPOSIT - 1_000,
        "to": COIN,
    }
    assert [log.name for log in receipt.logs] == ["ChannelClosed"]
    assert channel_of(pay, terms) == ChannelState(DEPOSIT, 1_000, 0, True)
    assert pay.balance_of(terms.token, payee) == pay.settled_of(terms.token, payee) == 1_000
    assert pay.balance_of(terms.token, payer) == DEPOSIT - 1_000
    assert pay.settled_of(terms.token, payer) == 0
    assert money.held(pay.address) == DEPOSIT


@pytest.mark.parametrize(("cumulative", "signature"), [(0, b""), (0, b"\1" * 65), (399, b"\1" * 65), (400, b"")])
def test_without_a_voucher_what_is_settled_stays(
    pay: Contract, evm: Chain, terms: Terms, payer: Actor, payee: Actor, cumulative: int, signature: bytes
) -> None:
    settle(evm, pay, terms, 400, sender=payee)
    receipt = close(pay, terms, cumulative, signature)
    assert receipt.log("ChannelClosed")["cumulative"] == 400
    assert (pay.balance_of(terms.token, payee), pay.balance_of(terms.token, payer)) == (400, DEPOSIT - 400)


def test_of_an_unused_channel_all_is_refunded(pay: Contract, terms: Terms, payer: Actor, payee: Actor) -> None:
    receipt = close(pay, terms)
    assert receipt.log("ChannelClosed") == {"id": terms.id, "cumulative": 0, "refund": DEPOSIT, "to": COIN}
    assert (pay.balance_of(terms.token, payee), pay.balance_of(terms.token, payer)) == (0, DEPOSIT)


def test_of_a_used_up_channel_nothing_is_refunded(
    pay: Contract, evm: Chain, terms: Terms, payer: Actor, payee: Actor
) -> None:
    receipt = close(pay, terms, DEPOSIT, voucher(evm, pay, terms, DEPOSIT))
    assert receipt.log("ChannelClosed") == {"id": terms.id, "cumulative": DEPOSIT, "refund": 0, "to": COIN}
    assert (pay.balance_of(terms.token, payee), pay.balance_of(terms.token, payer)) == (DEPOSIT, 0)


@pytest.mark.parametrize("seconds", [0, CLOSE_DELAY - 1, CLOSE_DELAY])
def test_closes_after_a_request_as_well(pay: Contract, evm: Chain, terms: Terms, payee: Actor, seconds: int) -> None:
    request_close(pay, terms)
    asked = evm.now
    evm.sleep(seconds)
    close(pay, terms, 5, voucher(evm, pay, terms, 5))
    assert channel_of(pay, terms) == ChannelState(DEPOSIT, 5, asked, True)
    assert pay.balance_of(terms.token, payee) == 5


def test_works_while_paused(pay: Contract, terms: Terms, payer: Actor, guardian: Actor) -> None:
    pay.set_paused(True, sender=guardian)
    close(pay, terms)
    assert pay.balance_of(terms.token, payer) == DEPOSIT


def test_reverts_above_the_deposit(pay: Contract, evm: Chain, terms: Terms) -> None:
    for cumulative in (DEPOSIT + 1, 2**96, MAX):
        with reverts("channels: voucher above the deposit"):
            close(pay, terms, cumulative, voucher(evm, pay, terms, DEPOSIT))


@pytest.mark.parametrize("who", ["payer", "payee", "attacker"])
def test_reverts_for_another_key(
    pay: Contract, evm: Chain, terms: Terms, request: pytest.FixtureRequest, who: str
) -> None:
    with reverts("channels: voucher not signed by the session key"):
        close(pay, terms, 5, voucher(evm, pay, terms, 5, key=request.getfixturevalue(who).key))


def test_reverts_for_a_malleable_twin(pay: Contract, evm: Chain, terms: Terms) -> None:
    with reverts("channels: voucher not signed by the session key"):
        close(pay, terms, 5, flip_signature(voucher(evm, pay, terms, 5)))


@pytest.mark.parametrize("length", [0, 64])
def test_reverts_for_a_short_signature(pay: Contract, evm: Chain, terms: Terms, length: int) -> None:
    with reverts("channels: voucher signature is not 65 bytes"):
        close(pay, terms, 5, voucher(evm, pay, terms, 5)[:length])


@pytest.mark.parametrize("who", ["payer", "attacker", "guardian", "session"])
def test_nobody_else_can_close(pay: Contract, terms: Terms, request: pytest.FixtureRequest, who: str) -> None:
    with reverts("channels: no such channel"):
        close(pay, terms, sender=SESSION if who == "session" else request.getfixturevalue(who))


def test_reverts_the_second_time(pay: Contract, evm: Chain, terms: Terms, payer: Actor) -> None:
    close(pay, terms)
    for cumulative in (0, 5):
        with reverts("channels: finished"):
            close(pay, terms, cumulative, voucher(evm, pay, terms, cumulative))
    assert pay.balance_of(terms.token, payer) == DEPOSIT


def test_a_finished_channel_is_finished_for_ever(
    pay: Contract, evm: Chain, money: Money, terms: Terms, payer: Actor, payee: Actor, guardian: Actor
) -> None:
    request_close(pay, terms)
    close(pay, terms, 5, voucher(evm, pay, terms, 5))
    over = channel_of(pay, terms)
    held = money.held(pay.address)
    money.give(payer, DEPOSIT, pay)
    evm.sleep(CLOSE_DELAY)
    with reverts("channels: already used"):
        pay.open_channel(payee, terms.token, SESSION, OFFER, DEPOSIT, 0, sender=payer, value=money.value(DEPOSIT))
    with reverts("channels: finished"):
        reclaim(pay, terms)
    with reverts("channels: finished"):
        request_close(pay, terms)
    with reverts("channels: finished"):
        close(pay, terms, 5, voucher(evm, pay, terms, 5))
    with reverts("channels: nothing to settle"):
        settle(evm, pay, terms, 6, sender=payee)
    assert channel_of(pay, terms) == over
    assert money.held(pay.address) == held


@pytest.mark.parametrize("kind", ["RevertingReceiver", "GasBurningReceiver"])
def test_a_payer_that_takes_no_coins_cannot_block_it(
    pay: Contract, evm: Chain, coins: Money, deploy: Callable[..., Contract], payee: Actor, keeper: Actor, kind: str
) -> None:
    payer = deploy(kind)
    terms = Terms(payer.address, payee, COIN)
    open_channel(pay, coins, terms)
    close(pay, terms, 5, voucher(evm, pay, terms, 5))
    pay.withdraw_vault(COIN, 5, payee, sender=payee)
    assert coins.held(payee) == 5
    pay.withdraw_vault(COIN, DEPOSIT - 5, keeper, sender=payer.address)
    assert coins.held(keeper) == DEPOSIT - 5


def test_a_token_that_refuses_both_sides_cannot_block_it(
    pay: Contract, evm: Chain, deploy: Callable[..., Contract], payer: Actor, payee: Actor, keeper: Actor
) -> None:
    token = deploy("BlockingToken")
    terms = Terms(payer, payee, token.address)
    open_channel(pay, Money(evm, token.address, token), terms)
    for account in (payer, payee):
        token.set_blocked(account, True, sender=keeper)
    close(pay, terms, 5, voucher(evm, pay, terms, 5))
    assert (pay.balance_of(token.address, payee), pay.balance_of(token.address, payer)) == (5, DEPOSIT - 5)
