"""Tokens and receivers that do not behave: what they can do to their own users, and that it ends there"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from penstock.accrual import flow
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
from tests.fastchain import Chain, Contract

DEPOSIT = flow(RATE, DURATION)


@pytest.fixture
def make(evm: Chain, deploy: Callable[..., Contract]) -> Callable[[str], Money]:
    def make_one(kind: str) -> Money:
        token = deploy(kind)
        return Money(evm, token.address, token)

    return make_one


def run_through(pay: Contract, evm: Chain, money: Money, payer: Actor, payee: Actor) -> None:
    """A whole life of a stream, to the last unit."""
    terms = Terms(payer, payee, money.address)
    open_stream(pay, money, terms)
    evm.sleep(100)
    pay.withdraw(payer, money.address, SESSION, OFFER, payee, sender=payee)
    evm.sleep(100)
    pay.collect(money.address, payee, [terms.source], sender=payer)
    evm.sleep(100)
    pay.cancel(payee, money.address, SESSION, OFFER, payer, sender=payer)
    pay.withdraw_vault(money.address, pay.balance_of(money.address, payee), payee, sender=payee)
    assert money.held(payee) == flow(RATE, 300)
    assert money.held(payer) == DEPOSIT - flow(RATE, 300)
    assert money.held(pay.address) == 0


@pytest.mark.parametrize("kind", ["PlainToken", "NoReturnToken", "FalseToken", "TestUSD"])
def test_tokens_that_keep_no_fee_work(
    pay: Contract, evm: Chain, make: Callable[[str], Money], payer: Actor, payee: Actor, kind: str
) -> None:
    run_through(pay, evm, make(kind), payer, payee)


# A token that returns false


def test_false_on_the_way_in_is_a_refusal(
    pay: Contract, make: Callable[[str], Money], payer: Actor, payee: Actor
) -> None:
    money = make("FalseToken")
    for call in (
        lambda: pay.deposit(money.address, 1, sender=payer),
        lambda: pay.open(payee, money.address, SESSION, OFFER, RATE, DURATION, 0, sender=payer),
    ):
        with reverts("assets: token refused"):
            call()


def test_false_on_the_way_out_changes_nothing(
    pay: Contract, evm: Chain, make: Callable[[str], Money], payer: Actor, payee: Actor
) -> None:
    money = make("FalseToken")
    assert money.token
    terms = Terms(payer, payee, money.address)
    open_stream(pay, money, terms)
    fill_vault(pay, money, payer, 5)
    evm.sleep(100)
    money.token.set_refusing(True, sender=payer)
    before = state_of(pay, terms)
    for call in (
        lambda: pay.withdraw(payer, money.address, SESSION, OFFER, payee, sender=payee),
        lambda: pay.withdraw_many(money.address, [terms.source], payee, sender=payee),
        lambda: pay.cancel(payee, money.address, SESSION, OFFER, payer, sender=payer),
        lambda: pay.withdraw_vault(money.address, 5, payer, sender=payer),
    ):
        with reverts("assets: token refused"):
            call()
    assert state_of(pay, terms) == before
    pay.cancel(payee, money.address, SESSION, OFFER, COIN, sender=payer)
    assert pay.balance_of(money.address, payer) == 5 + DEPOSIT - 334


# A token that keeps a fee


def test_a_fee_is_credited_as_what_arrived(
    pay: Contract, make: Callable[[str], Money], payer: Actor, keeper: Actor
) -> None:
    money = make("FeeToken")
    assert money.token
    money.token.set_fee(250, sender=payer)
    money.give(payer, 2_000, pay)
    assert pay.deposit(money.address, 1_000, sender=payer).result == 975
    receipt = pay.deposit_for(keeper, money.address, 1_000, sender=payer)
    assert receipt.log("Deposited")["amount"] == receipt.result == 975
    assert pay.balance_of(money.address, payer) == pay.balance_of(money.address, keeper) == 975
    assert money.held(pay.address) == 1_950


def test_a_fee_of_everything_deposits_nothing(pay: Contract, make: Callable[[str], Money], payer: Actor) -> None:
    money = make("FeeToken")
    assert money.token
    money.token.set_fee(10_000, sender=payer)
    money.give(payer, 10, pay)
    with reverts("vault: nothing arrived"):
        pay.deposit(money.address, 10, sender=payer)


def test_a_fee_on_the_way_out_is_the_receivers(
    pay: Contract, make: Callable[[str], Money], payer: Actor, keeper: Actor
) -> None:
    money = make("FeeToken")
    assert money.token
    fill_vault(pay, money, payer, 1_000)
    fill_vault(pay, money, keeper, 1_000)
    money.token.set_fee(100, sender=payer)
    pay.withdraw_vault(money.address, 1_000, payer, sender=payer)
    assert money.held(payer) == 990
    assert money.held(pay.address) == pay.balance_of(money.address, keeper) == 1_000


# A token that delivers more than was asked: here it mints to the contract in the middle of the transfer


def test_what_arrives_in_excess_is_credited_to_whoever_pays(
    pay: Contract, make: Callable[[str], Money], payer: Actor, payee: Actor, keeper: Actor
) -> None:
    money = make("ReentrantToken")
    assert money.token
    terms = Terms(payer, payee, money.address)
    bonus = money.token.encode("mint", pay.address, 5)
    cost = flow(RATE, DURATION + 50) - DEPOSIT
    money.give(payer, DEPOSIT, pay)
    money.give(keeper, cost, pay)
    opening = (payee, money.address, SESSION, OFFER)
    for account, call in (
        (payer, lambda: pay.open(*opening, RATE, DURATION, 0, sender=payer)),
        (keeper, lambda: pay.top_up(payer, *opening, 50, 0, sender=keeper)),
    ):
        money.token.arm(money.address, bonus, True, True, sender=payer)
        receipt = call()
        assert receipt.log("Deposited") == {
            "token": money.address,
            "account": account,
            "funder": account,
            "amount": 5,
        }
        assert (money.held(account), pay.balance_of(money.address, account)) == (0, 5)
    assert state_of(pay, terms).deposit == DEPOSIT + cost
    assert money.held(pay.address) == DEPOSIT + cost + 10


# A token that stops


def test_a_stopped_token_harms_no_other_token(
    pay: Contract, evm: Chain, coins: Money, make: Callable[[str], Money], payer: Actor, payee: Actor
) -> None:
    money = make("BlockingToken")
    assert money.token
    terms = Terms(payer, payee, money.address)
    open_stream(pay, money, terms)
    money.token.set_paused(True, sender=payer)
    evm.sleep(100)
    with reverts("token: paused"):
        pay.withdraw(payer, money.address, SESSION, OFFER, payee, sender=payee)
    pay.collect(money.address, payee, [terms.source], sender=payee)
    pay.cancel(payee, money.address, SESSION, OFFER, COIN, sender=payer)
    run_through(pay, evm, coins, payer, payee)
    money.token.set_paused(False, sender=payer)
    for account in (payer, payee):
        pay.withdraw_vault(money.address, pay.balance_of(money.address, account), account, sender=account)
    assert (money.held(payer), money.held(payee)) == (DEPOSIT - 334, 334)


# A token that calls back. It is its own worst user: it may do what any account may do, in the middle of
# its own transfer.


@pytest.fixture
def hostile(pay: Contract, make: Callable[[str], Money], keeper: Actor) -> Money:
    """Honest people hold 10,000 of it in the vault: that is the prey. The token is an account there too."""
    money = make("ReentrantToken")
    assert money.token
    fill_vault(pay, money, keeper, 10_000)
    money.give(money.address, 5_000)
    approve = money.token.encode("approve", pay.address, MAX)
    money.token.execute(money.address, 0, approve, sender=keeper)
    money.token.execute(pay.address, 0, pay.encode("deposit", money.address, 1_000), sender=keeper)
    return money


def liabilities(pay: Contract, money: Money, *streams: Terms, accounts: list[str]) -> int:
    owed = sum(pay.balance_of(money.address, account) for account in accounts)
    return owed + sum(state_of(pay, terms).deposit - state_of(pay, terms).paid for terms in streams)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("inner", ["deposit", "deposit_for", "open", "top_up", "open_channel"])
def test_a_payment_within_a_measurement_is_refused(
    pay: Contract, hostile: Money, payer: Actor, payee: Actor, inner: str, after: bool
) -> None:
    assert hostile.token
    token = hostile.address
    own = Terms(token, payee, token)
    hostile.token.execute(
        pay.address, 0, pay.encode("open", payee, token, SESSION, OFFER, RATE, DURATION, MAX), sender=payer
    )
    data = {
        "deposit": pay.encode("deposit", token, 100),
        "deposit_for": pay.encode("deposit_for", payer, token, 100),
        "open": pay.encode("open", payee, token, SESSION, b"\x02" * 32, RATE, DURATION, 0),
        "top_up": pay.encode("top_up", token, payee, token, SESSION, OFFER, 50, 0),
        "open_channel": pay.encode("open_channel", payee, token, SESSION, b"\x03" * 32, 100, 0),
    }[inner]
    hostile.give(payer, 100, pay)
    hostile.token.arm(pay.address, data, after, True, sender=payer)
    before = state_of(pay, own)
    with reverts("assets: reentered"):
        pay.deposit(token, 100, sender=payer)
    assert state_of(pay, own) == before


@pytest.mark.parametrize("after", [False, True])
def test_a_withdrawal_within_a_measurement_is_not_credited_again(
    pay: Contract, hostile: Money, payer: Actor, keeper: Actor, after: bool
) -> None:
    """The token takes its 1,000 out while the payer pays 3,000 in: the payer is credited with the difference.

    So the contract holds more than it owes; who trusts such a token has lost to that token.
    """
    assert hostile.token
    token = hostile.address
    out = pay.encode("withdraw_vault", token, 1_000, token)
    hostile.give(payer, 3_000, pay)
    hostile.token.arm(pay.address, out, after, True, sender=payer)
    assert pay.deposit(token, 3_000, sender=payer).result == 2_000
    assert hostile.held(pay.address) == 13_000
    assert liabilities(pay, hostile, accounts=[token, payer, keeper]) == 12_000


def test_a_withdrawal_larger_than_the_payment_reverts(
    pay: Contract, hostile: Money, payer: Actor, keeper: Actor
) -> None:
    assert hostile.token
    out = pay.encode("withdraw_vault", hostile.address, 1_000, hostile.address)
    hostile.give(payer, 10, pay)
    hostile.token.arm(pay.address, out, False, True, sender=payer)
    with reverts("0x"):
        pay.deposit(hostile.address, 10, sender=payer)


def test_a_stream_cancelled_within_its_own_funding_must_still_be_paid_for(
    pay: Contract, hostile: Money, payer: Actor, payee: Actor, keeper: Actor
) -> None:
    """The deposit is not yet there when the refund is credited; the transfer must still arrive in full."""
    assert hostile.token
    token = hostile.address
    own = Terms(token, payee, token)
    cancel = pay.encode("cancel", payee, token, SESSION, OFFER, COIN)
    hostile.token.arm(pay.address, cancel, False, True, sender=payer)
    opening = pay.encode("open", payee, token, SESSION, OFFER, RATE, DURATION, 0)
    held = hostile.held(pay.address)
    hostile.token.execute(pay.address, 0, opening, sender=payer)
    assert state_of(pay, own) == NO_STREAM
    assert hostile.held(pay.address) == held + DEPOSIT
    assert pay.balance_of(token, token) == 1_000 + DEPOSIT - 4
    assert hostile.held(pay.address) == liabilities(pay, hostile, own, accounts=[token, payee, keeper])


def test_a_stream_cancelled_and_paid_out_within_its_own_funding_reverts(
    pay: Contract, hostile: Money, payer: Actor, payee: Actor
) -> None:
    """The refund would come out of what others hold; less arrives than was asked for."""
    assert hostile.token
    token = hostile.address
    cancel = pay.encode("cancel", payee, token, SESSION, OFFER, token)
    hostile.token.arm(pay.address, cancel, False, True, sender=payer)
    opening = pay.encode("open", payee, token, SESSION, OFFER, RATE, DURATION, 0)
    held = hostile.held(pay.address)
    with reverts("vault: the token kept a fee, deposit first"):
        hostile.token.execute(pay.address, 0, opening, sender=payer)
    assert hostile.held(pay.address) == held


@pytest.mark.parametrize("way", ["withdraw", "withdraw_many", "withdraw_vault", "cancel"])
def test_a_payout_happens_once(
    pay: Contract, evm: Chain, hostile: Money, payer: Actor, keeper: Actor, way: str
) -> None:
    """Armed to ask for the same payout again from within it."""
    assert hostile.token
    token = hostile.address
    inbound = Terms(payer, token, token)
    open_stream(pay, hostile, inbound)
    hostile.token.execute(
        pay.address, 0, pay.encode("open", keeper, token, SESSION, OFFER, RATE, DURATION, 0), sender=payer
    )
    outbound = Terms(token, keeper, token)
    evm.sleep(100)
    data, once = {
        "withdraw": (pay.encode("withdraw", payer, token, SESSION, OFFER, payer), 334),
        "withdraw_many": (pay.encode("withdraw_many", token, [inbound.source], payer), 334),
        "withdraw_vault": (pay.encode("withdraw_vault", token, 600, payer), 600),
        "cancel": (pay.encode("cancel", keeper, token, SESSION, OFFER, payer), DEPOSIT - 334),
    }[way]
    held = hostile.held(pay.address)
    hostile.token.arm(pay.address, data, True, False, sender=payer)
    receipt = hostile.token.execute(pay.address, 0, data, sender=payer)
    assert receipt.log("CalledBack")["success"] is False
    assert hostile.held(payer) == once
    assert hostile.held(pay.address) == held - once
    owed = liabilities(pay, hostile, inbound, outbound, accounts=[token, payer, keeper])
    assert hostile.held(pay.address) == owed


def test_the_lock_opens_again(pay: Contract, hostile: Money, payer: Actor) -> None:
    hostile.give(payer, 20, pay)
    for _ in range(2):
        pay.deposit(hostile.address, 10, sender=payer)
    assert pay.balance_of(hostile.address, payer) == 20


@pytest.mark.parametrize("what", ["open", "top_up", "open_channel", "top_up_channel"])
def test_events_come_in_the_order_of_what_happened(
    pay: Contract, evm: Chain, hostile: Money, payer: Actor, payee: Actor, what: str
) -> None:
    """A stream that is closed within its own funding was opened first: books kept from events must see it so."""
    assert hostile.token
    token = hostile.address
    own = (payee, token, SESSION, OFFER)
    if what == "top_up":
        hostile.token.execute(pay.address, 0, pay.encode("open", *own, RATE, DURATION, 0), sender=payer)
    if what == "top_up_channel":
        hostile.token.execute(pay.address, 0, pay.encode("open_channel", *own, 100, 0), sender=payer)
    outer, inner, first, then = {
        "open": (pay.encode("open", *own, RATE, DURATION, 0), pay.encode("cancel", *own, COIN), "Opened", "Closed"),
        "top_up": (
            pay.encode("top_up", token, *own, 10, 0),
            pay.encode("cancel", *own, COIN),
            "ToppedUp",
            "Closed",
        ),
        "open_channel": (
            pay.encode("open_channel", *own, 100, 0),
            pay.encode("request_close", *own),
            "ChannelOpened",
            "ChannelCloseRequested",
        ),
        "top_up_channel": (
            pay.encode("top_up_channel", token, *own, 10, 0),
            pay.encode("request_close", *own),
            "ChannelToppedUp",
            "ChannelCloseRequested",
        ),
    }[what]
    hostile.token.arm(pay.address, inner, False, True, sender=payer)
    receipt = hostile.token.execute(pay.address, 0, outer, sender=payer)
    assert [log.name for log in receipt.logs if log.address == pay.address] == [first, then]
