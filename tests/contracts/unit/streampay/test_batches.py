"""StreamPay.withdraw_many and StreamPay.collect: 1 to 200 streams in one call"""

from collections.abc import Callable
from dataclasses import replace

import pytest

from penstock.accrual import flow
from tests.contracts.harness import (
    COIN,
    DURATION,
    NO_STREAM,
    RATE,
    Actor,
    Money,
    Terms,
    open_stream,
    reverts,
    state_of,
)
from tests.fastchain import Chain, Contract, Receipt, Reverted

DEPOSIT = flow(RATE, DURATION)
MOST = 200


@pytest.fixture
def many(pay: Contract, money: Money, payer: Actor, payee: Actor) -> list[Terms]:
    """Three streams of one payee and token."""
    streams = [Terms(payer, payee, money.address).with_offer(number) for number in range(3)]
    for number, terms in enumerate(streams):
        open_stream(pay, money, terms, rate=RATE * (number + 1), duration=DURATION - 100 * number)
    return streams


def withdraw_many(pay: Contract, streams: list[Terms], payee: str, to: str | None = None) -> Receipt:
    sources = [terms.source for terms in streams]
    token = streams[0].token if streams else COIN
    return pay.withdraw_many(token, sources, to or payee, sender=payee)  # type: ignore[no-any-return]


def collect(pay: Contract, streams: list[Terms], payee: str, sender: str) -> Receipt:
    sources = [terms.source for terms in streams]
    token = streams[0].token if streams else COIN
    return pay.collect(token, payee, sources, sender=sender)  # type: ignore[no-any-return]


def test_withdraw_many_pays_the_sum(
    pay: Contract, evm: Chain, money: Money, many: list[Terms], payee: Actor, keeper: Actor
) -> None:
    before = [state_of(pay, terms) for terms in many]
    held = money.held(pay.address)
    evm.sleep(100)
    due = [flow(RATE * n, 100) for n in (1, 2, 3)]
    receipt = withdraw_many(pay, many, payee, keeper)
    assert receipt.result == sum(due)
    assert [log.args for log in receipt.logs] == [
        {"id": terms.id, "to": keeper, "amount": amount} for terms, amount in zip(many, due, strict=True)
    ]
    assert [state_of(pay, terms) for terms in many] == [replace(state, last=evm.now) for state in before]
    assert (money.held(keeper), money.held(pay.address)) == (sum(due), held - sum(due))
    assert pay.balance_of(money.address, payee) == pay.settled_of(money.address, payee) == 0


def test_collect_credits_the_sum(pay: Contract, evm: Chain, money: Money, many: list[Terms], payee: Actor) -> None:
    before = [state_of(pay, terms) for terms in many]
    held = money.held(pay.address)
    evm.sleep(100)
    due = [flow(RATE * n, 100) for n in (1, 2, 3)]
    receipt = collect(pay, many, payee, payee)
    assert receipt.result == sum(due)
    assert [log.args for log in receipt.logs] == [
        {"id": terms.id, "to": COIN, "amount": amount} for terms, amount in zip(many, due, strict=True)
    ]
    assert [state_of(pay, terms) for terms in many] == [replace(state, last=evm.now) for state in before]
    assert pay.balance_of(money.address, payee) == pay.settled_of(money.address, payee) == sum(due)
    assert money.held(pay.address) == held


def test_collect_by_a_stranger_credits_nobody_but_the_payee(
    pay: Contract, evm: Chain, money: Money, many: list[Terms], payer: Actor, payee: Actor, attacker: Actor
) -> None:
    evm.sleep(100)
    receipt = collect(pay, many, payee, attacker)
    assert pay.balance_of(money.address, payee) == receipt.result
    assert pay.balance_of(money.address, attacker) == pay.balance_of(money.address, payer) == 0
    assert money.held(attacker) == 0


def test_collect_for_somebody_else_finds_nothing(pay: Contract, evm: Chain, many: list[Terms], attacker: Actor) -> None:
    evm.sleep(100)
    with reverts("streams: nothing due"):
        collect(pay, many, attacker, attacker)


def test_withdraw_many_by_somebody_else_finds_nothing(
    pay: Contract, evm: Chain, many: list[Terms], attacker: Actor
) -> None:
    evm.sleep(100)
    with reverts("streams: nothing due"):
        withdraw_many(pay, many, attacker)


@pytest.mark.parametrize("way", ["withdraw_many", "collect"])
def test_streams_where_nothing_is_due_are_passed_over(
    pay: Contract, evm: Chain, money: Money, many: list[Terms], payer: Actor, payee: Actor, way: str
) -> None:
    """Gone, unknown, just settled, named twice: none of them stops the batch."""
    evm.sleep(100)
    pay.cancel(payee, money.address, many[0].session_key, many[0].offer_id, COIN, sender=payer)
    before = pay.balance_of(money.address, payee)
    batch = [many[0], many[1].with_offer(9), many[1], many[1]]
    receipt = withdraw_many(pay, batch, payee) if way == "withdraw_many" else collect(pay, batch, payee, payer)
    due = flow(2 * RATE, 100)
    assert receipt.result == due
    assert [log.args["id"] for log in receipt.logs] == [many[1].id]
    assert money.held(payee) + pay.balance_of(money.address, payee) - before == due


@pytest.mark.parametrize("way", ["withdraw_many", "collect"])
def test_a_stream_paid_up_to_its_end_is_gone(
    pay: Contract, evm: Chain, money: Money, many: list[Terms], payee: Actor, way: str
) -> None:
    evm.sleep(DURATION - 100)
    states = [state_of(pay, terms) for terms in many]
    receipt = withdraw_many(pay, many, payee) if way == "withdraw_many" else collect(pay, many, payee, payee)
    assert receipt.result == states[0].cost(evm.now) + states[1].deposit + states[2].deposit
    assert state_of(pay, many[0]) == replace(states[0], last=evm.now)
    assert state_of(pay, many[1]) == state_of(pay, many[2]) == NO_STREAM


@pytest.mark.parametrize("way", ["withdraw_many", "collect"])
def test_a_single_unit_is_worth_a_batch(
    pay: Contract, evm: Chain, money: Money, payer: Actor, payee: Actor, way: str
) -> None:
    terms = Terms(payer, payee, money.address)
    open_stream(pay, money, terms, rate=1)
    evm.sleep(1)
    receipt = withdraw_many(pay, [terms], payee) if way == "withdraw_many" else collect(pay, [terms], payee, payer)
    assert receipt.result == 1
    assert money.held(payee) + pay.balance_of(terms.token, payee) == 1


@pytest.mark.parametrize("way", ["withdraw_many", "collect"])
def test_reverts_where_nothing_is_due(pay: Contract, many: list[Terms], payee: Actor, way: str) -> None:
    with reverts("streams: nothing due"):
        if way == "withdraw_many":
            withdraw_many(pay, many, payee)
        else:
            collect(pay, many, payee, payee)


@pytest.mark.parametrize("way", ["withdraw_many", "collect"])
def test_reverts_for_an_empty_batch(pay: Contract, evm: Chain, payee: Actor, way: str) -> None:
    with reverts("streams: nothing due"):
        if way == "withdraw_many":
            withdraw_many(pay, [], payee)
        else:
            collect(pay, [], payee, payee)


def test_withdraw_many_reverts_for_the_zero_receiver(
    pay: Contract, evm: Chain, many: list[Terms], payee: Actor
) -> None:
    evm.sleep(1)
    with reverts("streams: zero receiver"):
        withdraw_many(pay, many, payee, COIN)


def test_two_hundred_streams_fit_and_one_more_does_not(
    pay: Contract, evm: Chain, tokens: Money, payer: Actor, payee: Actor
) -> None:
    streams = [Terms(payer, payee, tokens.address).with_offer(number) for number in range(MOST)]
    for terms in streams:
        open_stream(pay, tokens, terms)
    evm.sleep(3)
    receipt = collect(pay, streams, payee, payer)
    assert receipt.result == pay.balance_of(tokens.address, payee) == MOST * 10
    assert receipt.gas_used < 200 * 9_000
    evm.sleep(3)
    receipt = withdraw_many(pay, streams, payee)
    assert receipt.result == tokens.held(payee) == MOST * 10
    evm.sleep(3)
    for call in (withdraw_many, lambda p, s, who: collect(p, s, who, who)):
        with pytest.raises(Reverted):
            call(pay, [*streams, streams[0]], payee)


def test_a_batch_takes_one_token_alone(
    pay: Contract, evm: Chain, coins: Money, tokens: Money, payer: Actor, payee: Actor
) -> None:
    """What is due in one token can never be paid in another: the token is a part of the id."""
    in_coins, in_tokens = Terms(payer, payee, COIN), Terms(payer, payee, tokens.address)
    open_stream(pay, coins, in_coins)
    open_stream(pay, tokens, in_tokens, rate=RATE * 1_000)
    evm.sleep(100)
    receipt = collect(pay, [in_coins, in_tokens], payee, payee)
    assert receipt.result == pay.balance_of(COIN, payee) == 334
    assert pay.balance_of(tokens.address, payee) == 0


def test_a_payee_without_taste_for_coins_can_be_collected_for(
    pay: Contract, evm: Chain, coins: Money, deploy: Callable[..., Contract], payer: Actor, keeper: Actor
) -> None:
    payee = deploy("RevertingReceiver")
    terms = Terms(payer, payee.address, COIN)
    open_stream(pay, coins, terms)
    evm.sleep(100)
    collect(pay, [terms], payee.address, keeper)
    assert pay.balance_of(COIN, payee.address) == 334
