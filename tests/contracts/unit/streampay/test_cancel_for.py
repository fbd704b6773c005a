"""StreamPay.cancel_for"""

from dataclasses import replace
from typing import Any

import pytest

from tests.contracts.harness import (
    COIN,
    MAX,
    NO_STREAM,
    Actor,
    Money,
    Terms,
    domain_of,
    flip_signature,
    open_stream,
    reverts,
    sign_cancel,
    state_of,
)
from tests.fastchain import Chain, Contract, Receipt

NOT_SIGNED = "signatures: not signed by the account"


@pytest.fixture
def terms(pay: Contract, money: Money, payer: Actor, payee: Actor) -> Terms:
    terms = Terms(payer, payee, money.address)
    open_stream(pay, money, terms)
    return terms


@pytest.fixture
def domain(pay: Contract, evm: Chain) -> dict[str, Any]:
    return domain_of(evm, pay)


def cancel_for(
    pay: Contract, terms: Terms, sender: str, signature: bytes, *, to: str = COIN, deadline: int = MAX
) -> Receipt:
    parties = (terms.payer, terms.payee, terms.token, terms.session_key, terms.offer_id)
    return pay.cancel_for(*parties, to, deadline, signature, sender=sender)  # type: ignore[no-any-return]


def test_stops_the_stream_whoever_submits(
    pay: Contract,
    evm: Chain,
    money: Money,
    terms: Terms,
    domain: dict[str, Any],
    payer: Actor,
    payee: Actor,
    keeper: Actor,
    attacker: Actor,
) -> None:
    before = state_of(pay, terms)
    signature = sign_cancel(payer.key, domain, terms.id, evm.now, keeper, MAX)
    evm.sleep(100)
    receipt = cancel_for(pay, terms, attacker, signature, to=keeper)
    assert receipt.log("Closed") == {
        "id": terms.id,
        "stop": evm.now,
        "paid": 334,
        "refund": before.deposit - 334,
        "to": keeper,
    }
    assert state_of(pay, terms) == NO_STREAM
    assert pay.balance_of(terms.token, payee) == 334
    assert money.held(keeper) == before.deposit - 334
    assert money.held(attacker) == 0


def test_refunds_into_the_vault_of_the_payer(
    pay: Contract, evm: Chain, terms: Terms, domain: dict[str, Any], payer: Actor, keeper: Actor
) -> None:
    before = state_of(pay, terms)
    signature = sign_cancel(payer.key, domain, terms.id, evm.now, COIN, MAX)
    evm.sleep(100)
    cancel_for(pay, terms, keeper, signature)
    assert pay.balance_of(terms.token, payer) == before.deposit - 334
    assert pay.balance_of(terms.token, keeper) == 0


def test_reverts_after_the_deadline(
    pay: Contract, evm: Chain, terms: Terms, domain: dict[str, Any], payer: Actor, keeper: Actor
) -> None:
    deadline = evm.now + 10
    signature = sign_cancel(payer.key, domain, terms.id, evm.now, COIN, deadline)
    evm.sleep(11)
    with reverts("signatures: order expired"):
        cancel_for(pay, terms, keeper, signature, deadline=deadline)


def test_works_in_the_second_of_the_deadline(
    pay: Contract, evm: Chain, terms: Terms, domain: dict[str, Any], payer: Actor, keeper: Actor
) -> None:
    deadline = evm.now + 10
    signature = sign_cancel(payer.key, domain, terms.id, evm.now, COIN, deadline)
    evm.sleep(10)
    cancel_for(pay, terms, keeper, signature, deadline=deadline)


def test_reverts_where_anything_was_changed(
    pay: Contract, evm: Chain, money: Money, terms: Terms, domain: dict[str, Any], payer: Actor, attacker: Actor
) -> None:
    signature = sign_cancel(payer.key, domain, terms.id, evm.now, payer, MAX)
    other = terms.with_offer(2)
    open_stream(pay, money, other)
    for call in (
        lambda: cancel_for(pay, terms, attacker, signature, to=attacker),
        lambda: cancel_for(pay, terms, attacker, signature, to=payer, deadline=MAX - 1),
        lambda: cancel_for(pay, other, attacker, signature, to=payer),
    ):
        with reverts(NOT_SIGNED):
            call()
    cancel_for(pay, terms, attacker, signature, to=payer)


@pytest.mark.parametrize("who", ["payee", "attacker", "guardian"])
def test_reverts_where_somebody_else_signed(
    pay: Contract, evm: Chain, terms: Terms, domain: dict[str, Any], request: pytest.FixtureRequest, who: str
) -> None:
    signer = request.getfixturevalue(who)
    signature = sign_cancel(signer.key, domain, terms.id, evm.now, COIN, MAX)
    with reverts(NOT_SIGNED):
        cancel_for(pay, terms, signer, signature)


def test_reverts_for_the_mirrored_signature(
    pay: Contract, evm: Chain, terms: Terms, domain: dict[str, Any], payer: Actor, keeper: Actor
) -> None:
    signature = flip_signature(sign_cancel(payer.key, domain, terms.id, evm.now, COIN, MAX))
    with reverts(NOT_SIGNED):
        cancel_for(pay, terms, keeper, signature)


def test_says_nothing_about_the_next_stream_of_the_same_id(
    pay: Contract, evm: Chain, money: Money, terms: Terms, domain: dict[str, Any], payer: Actor, keeper: Actor
) -> None:
    signature = sign_cancel(payer.key, domain, terms.id, evm.now, COIN, MAX)
    cancel_for(pay, terms, keeper, signature)
    evm.sleep(1)
    open_stream(pay, money, terms)
    with reverts(NOT_SIGNED):
        cancel_for(pay, terms, keeper, signature)


def test_reverts_where_there_is_no_such_stream(
    pay: Contract, terms: Terms, domain: dict[str, Any], payer: Actor, keeper: Actor
) -> None:
    other = terms.with_offer(2)
    with reverts("streams: no such stream"):
        cancel_for(pay, other, keeper, sign_cancel(payer.key, domain, other.id, 0, COIN, MAX))


def test_reverts_for_another_domain(pay: Contract, evm: Chain, terms: Terms, payer: Actor, keeper: Actor) -> None:
    signature = sign_cancel(payer.key, domain_of(evm, pay, chainId=1), terms.id, evm.now, COIN, MAX)
    with reverts(NOT_SIGNED):
        cancel_for(pay, replace(terms), keeper, signature)
