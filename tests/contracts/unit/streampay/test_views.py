"""StreamPay's views, against the Python twin"""

from collections.abc import Callable

import pytest
from eth_abi import encode
from eth_utils import keccak

from penstock.accrual import StreamState
from tests.contracts.harness import (
    COIN,
    DURATION,
    NO_STREAM,
    OFFER,
    RATE,
    SESSION,
    Actor,
    Money,
    Terms,
    domain_of,
    fill_vault,
    open_stream,
    state_of,
)
from tests.fastchain import Chain, Contract, Reverted


@pytest.fixture
def terms(pay: Contract, money: Money, payer: Actor, payee: Actor) -> Terms:
    terms = Terms(payer, payee, money.address)
    open_stream(pay, money, terms)
    return terms


def test_stream_id_is_the_hash_of_the_terms(pay: Contract, payer: Actor, payee: Actor) -> None:
    terms = Terms(payer, payee, COIN)
    assert pay.stream_id(payer, payee, COIN, SESSION, OFFER) == terms.id


def test_stream_is_zero_where_there_is_none(pay: Contract, payer: Actor, payee: Actor) -> None:
    terms = Terms(payer, payee, COIN)
    assert state_of(pay, terms) == NO_STREAM
    assert pay.withdrawable(terms.id) == pay.refundable(terms.id) == 0


def test_withdrawable_and_refundable_at_every_kind_of_second(pay: Contract, evm: Chain, terms: Terms) -> None:
    state = state_of(pay, terms)
    assert state == StreamState(evm.now, evm.now, evm.now + DURATION, RATE)
    for second in (0, 1, 2, 3, 500, DURATION - 1, DURATION, DURATION + 1, 10**6):
        evm.at_time(state.start + second)
        assert pay.withdrawable(terms.id) == state.withdrawable(evm.now)
        assert pay.refundable(terms.id) == state.refundable(evm.now)
        assert state.ended(evm.now) is (second >= DURATION)


def test_views_agree_with_what_the_calls_then_pay(
    pay: Contract, evm: Chain, terms: Terms, payer: Actor, payee: Actor
) -> None:
    evm.sleep(333)
    due, refund = pay.withdrawable(terms.id), pay.refundable(terms.id)
    with evm.snapshot():
        assert pay.withdraw(payer, terms.token, SESSION, OFFER, payee, sender=payee).result == due
    receipt = pay.cancel(payee, terms.token, SESSION, OFFER, COIN, sender=payer)
    assert (receipt.log("Closed")["paid"], receipt.log("Closed")["refund"]) == (due, refund)


def test_streams_of_answers_in_order(pay: Contract, money: Money, terms: Terms) -> None:
    other = terms.with_offer(2)
    open_stream(pay, money, other, rate=RATE + 1)
    ids = [other.id, b"\x01" * 32, terms.id, other.id]
    states = [StreamState(*state) for state in pay.streams_of(ids)]
    assert states == [state_of(pay, other), NO_STREAM, state_of(pay, terms), state_of(pay, other)]
    assert pay.streams_of([]) == ()
    assert len(pay.streams_of([terms.id] * 200)) == 200
    with pytest.raises(Reverted):
        pay.streams_of([terms.id] * 201)


def test_balance_of_and_settled_of(
    pay: Contract, evm: Chain, money: Money, terms: Terms, payer: Actor, payee: Actor
) -> None:
    """`settled_of` counts what was settled into the vault, and only grows."""
    fill_vault(pay, money, payee, 11)
    evm.sleep(100)
    pay.withdraw(payer, terms.token, SESSION, OFFER, payee, sender=payee)
    assert (pay.balance_of(terms.token, payee), pay.settled_of(terms.token, payee)) == (11, 0)
    evm.sleep(100)
    pay.collect(terms.token, payee, [terms.source], sender=payee)
    settled = 667 - 334
    assert (pay.balance_of(terms.token, payee), pay.settled_of(terms.token, payee)) == (11 + settled, settled)
    pay.withdraw_vault(terms.token, 11 + settled, payee, sender=payee)
    assert (pay.balance_of(terms.token, payee), pay.settled_of(terms.token, payee)) == (0, settled)


def test_domain_separator_follows_eip_712(pay: Contract, evm: Chain) -> None:
    domain = domain_of(evm, pay)
    kind = keccak(text="EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
    assert pay.domain_separator() == keccak(
        encode(
            ["bytes32", "bytes32", "bytes32", "uint256", "address"],
            [kind, keccak(text=domain["name"]), keccak(text="1"), domain["chainId"], pay.address],
        )
    )


def test_two_deployments_have_two_domains(pay: Contract, deploy: Callable[..., Contract]) -> None:
    assert deploy("StreamPay", COIN, COIN).domain_separator() != pay.domain_separator()


def test_takes_no_coins_but_through_its_functions(pay: Contract, evm: Chain, coins: Money, payer: Actor) -> None:
    coins.give(payer, 1)
    with pytest.raises(Reverted):
        evm.send(pay.address, b"", sender=payer, value=1)
    with pytest.raises(Reverted):
        evm.send(pay.address, b"\x01\x02\x03\x04", sender=payer)


def test_only_functions_that_take_coins_are_payable(pay: Contract) -> None:
    payable = {i["name"] for i in pay.abi if i["type"] == "function" and i["stateMutability"] == "payable"}
    assert payable == {"deposit", "deposit_for", "pay", "open", "top_up", "open_channel", "top_up_channel"}
