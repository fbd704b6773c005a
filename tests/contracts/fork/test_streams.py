"""The life of streams and channels in each currency, to the wei"""

from __future__ import annotations

import pytest

from penstock.accrual import StreamState, flow
from tests.contracts.fork.chain import BscChain
from tests.contracts.fork.ledger import Ledger
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
    domain_of,
    fill_vault,
    open_channel,
    open_stream,
    reverts,
    sign_voucher,
)
from tests.fastchain import Contract

DEPOSIT = flow(RATE, DURATION)


@pytest.fixture
def terms(money: Money, payer: Actor, payee: Actor) -> Terms:
    return Terms(payer, payee, money.address)


def test_a_stream_from_its_open_to_its_cancel(
    evm: BscChain,
    pay: Contract,
    money: Money,
    books: Ledger,
    terms: Terms,
    payer: Actor,
    payee: Actor,
    keeper: Actor,
    attacker: Actor,
) -> None:
    held = {account: money.held(account) for account in (payer, payee, keeper)}

    opened = books.read(open_stream(pay, money, terms))
    start = opened.timestamp
    assert opened.result == terms.id
    assert opened.log("Opened") == {
        "id": terms.id,
        "payer": payer,
        "payee": payee,
        "token": money.address,
        "session_key": SESSION,
        "offer_id": OFFER,
        "rate": RATE,
        "start": start,
        "end": start + DURATION,
        "from_vault": 0,
    }
    assert money.held(pay.address) == DEPOSIT
    assert books.stream(terms) == StreamState(start, start, start + DURATION, RATE)

    # Anyone collects for the payee, into its vault balance.
    evm.sleep(101)
    collected = books.read(pay.collect(money.address, payee, [terms.source], sender=attacker))
    assert collected.log("Withdrawn") == {"id": terms.id, "to": COIN, "amount": flow(RATE, 101)}
    assert pay.balance_of(money.address, payee) == flow(RATE, 101)

    # The payee takes what has flowed since.
    evm.sleep(56)
    books.read(pay.withdraw(payer, money.address, SESSION, OFFER, payee, sender=payee))
    assert money.held(payee) - held[payee] == flow(RATE, 157) - flow(RATE, 101)

    # A stranger makes it last longer; no more than that.
    longer = flow(RATE, DURATION + 500) - DEPOSIT
    money.give(keeper, longer, pay)
    parties = (payer, payee, money.address, SESSION, OFFER)
    topped = books.read(pay.top_up(*parties, 500, 0, sender=keeper, value=money.value(longer)))
    assert topped.log("ToppedUp") == {
        "id": terms.id,
        "funder": keeper,
        "end": start + DURATION + 500,
        "from_vault": 0,
    }
    assert money.held(keeper) == held[keeper]

    # The payer stops it, and is paid back at once.
    evm.sleep(43)
    stopped = books.read(pay.cancel(payee, money.address, SESSION, OFFER, payer, sender=payer))
    refund = DEPOSIT + longer - flow(RATE, 200)
    assert stopped.log("Closed") == {
        "id": terms.id,
        "stop": start + 200,
        "paid": flow(RATE, 200) - flow(RATE, 157),
        "refund": refund,
        "to": payer,
    }
    assert money.held(payer) - held[payer] == refund
    assert books.stream(terms) is None

    # What is left is the payee's.
    rest = pay.balance_of(money.address, payee)
    books.read(pay.withdraw_vault(money.address, rest, payee, sender=payee))
    assert money.held(payee) - held[payee] == flow(RATE, 200)
    assert money.held(pay.address) == 0
    assert books.is_empty


def test_a_stream_from_the_vault_to_its_close(
    evm: BscChain,
    pay: Contract,
    money: Money,
    books: Ledger,
    terms: Terms,
    payer: Actor,
    payee: Actor,
    keeper: Actor,
) -> None:
    """The payee ends it and waives some seconds; the payer takes the rest to another account."""
    money.give(payer, DEPOSIT + 7, pay)
    deposited = books.read(pay.deposit(money.address, DEPOSIT + 7, sender=payer, value=money.value(DEPOSIT + 7)))
    assert deposited.log("Deposited") == {
        "token": money.address,
        "account": payer,
        "funder": payer,
        "amount": DEPOSIT + 7,
    }
    opened = books.read(open_stream(pay, money, terms, from_vault=MAX))
    assert opened.log("Opened")["from_vault"] == DEPOSIT
    assert pay.balance_of(money.address, payer) == 7

    evm.sleep(300)
    closed = books.read(pay.close(payer, money.address, SESSION, OFFER, evm.now - 40, sender=payee))
    assert closed.log("Closed")["paid"] == flow(RATE, 260)
    assert pay.balance_of(money.address, payer) == 7 + DEPOSIT - flow(RATE, 260)

    held = money.held(keeper)
    rest = pay.balance_of(money.address, payer)
    with reverts("vault: balance too low"):
        pay.withdraw_vault(money.address, rest + 1, keeper, sender=payer)
    books.read(pay.withdraw_vault(money.address, rest, keeper, sender=payer))
    books.read(pay.withdraw_vault(money.address, flow(RATE, 260), keeper, sender=payee))
    assert money.held(keeper) - held == DEPOSIT + 7
    assert books.is_empty


def test_streams_that_ran_dry_are_collected_in_a_batch(
    evm: BscChain, pay: Contract, money: Money, books: Ledger, terms: Terms, payee: Actor, keeper: Actor
) -> None:
    """The keeper has its part, where the payee agreed to one."""
    streams = [terms.with_offer(number) for number in range(1, 6)]
    for stream in streams:
        books.read(open_stream(pay, money, stream))
    books.read(pay.set_keeper_reward(True, sender=payee))
    evm.sleep(DURATION + 1)
    sources = [stream.source for stream in streams]
    receipt = books.read(pay.collect(money.address, payee, sources, sender=keeper))
    total = 5 * DEPOSIT
    assert receipt.log("KeeperPaid")["amount"] == pay.balance_of(money.address, keeper) == total // 1000
    assert pay.balance_of(money.address, payee) == total - total // 1000
    assert all(books.stream(stream) is None for stream in streams)
    for account in (payee, keeper):
        amount = pay.balance_of(money.address, account)
        books.read(pay.withdraw_vault(money.address, amount, account, sender=account))
    assert money.held(pay.address) == 0


def test_a_channel_from_its_open_to_its_close(
    evm: BscChain,
    pay: Contract,
    money: Money,
    books: Ledger,
    terms: Terms,
    payer: Actor,
    payee: Actor,
    keeper: Actor,
) -> None:
    books.read(open_channel(pay, money, terms, 1000))
    money.give(payer, 500, pay)
    parties = (payer, payee, money.address, SESSION, OFFER)
    books.read(pay.top_up_channel(*parties, 500, 0, sender=payer, value=money.value(500)))
    domain = domain_of(evm, pay)
    books.read(pay.settle_channel(*parties, 400, sign_voucher(domain, terms.id, 400), sender=keeper))
    assert pay.balance_of(money.address, payee) == 400
    last = sign_voucher(domain, terms.id, 1100)
    closed = books.read(pay.close_channel(payer, money.address, SESSION, OFFER, 1100, last, sender=payee))
    assert closed.log("ChannelClosed") == {"id": terms.id, "cumulative": 1100, "refund": 400, "to": COIN}
    with reverts("channels: nothing to settle"):
        pay.settle_channel(*parties, 1200, sign_voucher(domain, terms.id, 1200), sender=keeper)
    assert (pay.balance_of(money.address, payer), pay.balance_of(money.address, payee)) == (400, 1100)


def test_a_channel_that_its_payer_takes_back(
    evm: BscChain, pay: Contract, money: Money, books: Ledger, terms: Terms, payer: Actor, payee: Actor
) -> None:
    held = money.held(payer)
    books.read(open_channel(pay, money, terms, 1000))
    books.read(pay.request_close(payee, money.address, SESSION, OFFER, sender=payer))
    evm.sleep(15 * 60 - 1)
    with reverts("channels: too early"):
        pay.reclaim(payee, money.address, SESSION, OFFER, payer, sender=payer)
    evm.sleep(1)
    books.read(pay.reclaim(payee, money.address, SESSION, OFFER, payer, sender=payer))
    assert money.held(payer) - held == 1000
    assert books.is_empty


def test_a_pause_lets_everything_out(
    evm: BscChain, pay: Contract, money: Money, books: Ledger, terms: Terms, payer: Actor, payee: Actor, guardian: Actor
) -> None:
    books.read(open_stream(pay, money, terms))
    fill_vault(pay, money, payee, 5)
    evm.sleep(10)
    pay.set_paused(True, sender=guardian)
    with reverts("guardian: paused, only exits are open"):
        pay.top_up(payer, payee, money.address, SESSION, OFFER, 5, 0, sender=payer, value=money.value(17))
    pay.withdraw(payer, money.address, SESSION, OFFER, payee, sender=payee)
    evm.sleep(10)
    pay.cancel(payee, money.address, SESSION, OFFER, payer, sender=payer)
    pay.withdraw_vault(money.address, pay.balance_of(money.address, payee), payee, sender=payee)
    assert money.held(pay.address) == 0
