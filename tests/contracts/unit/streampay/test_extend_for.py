"""StreamPay.extend_for: standing orders"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from penstock.accrual import MAX_TIME, flow
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
    flip_signature,
    open_stream,
    reverts,
    state_of,
    v_from_zero,
)
from tests.contracts.vouchers import StandingOrder, open_channel
from tests.fastchain import Chain, Contract, Reverted

AHEAD = 1_500


@pytest.fixture
def terms(pay: Contract, money: Money, payer: Actor, payee: Actor) -> Terms:
    """A stream that runs, and a vault balance that pays for much more of it."""
    terms = Terms(payer, payee, money.address)
    open_stream(pay, money, terms)
    fill_vault(pay, money, payer, 10**6)
    return terms


@pytest.fixture
def order(pay: Contract, evm: Chain, terms: Terms) -> StandingOrder:
    return StandingOrder(terms, state_of(pay, terms).start, AHEAD, domain=domain_of(evm, pay))


def test_moves_the_end_to_so_far_from_now(
    pay: Contract, evm: Chain, money: Money, terms: Terms, order: StandingOrder, payer: Actor, keeper: Actor
) -> None:
    before = state_of(pay, terms)
    held = money.held(pay.address)
    evm.sleep(100)
    receipt = order.submit(pay, order.sign(payer.key), sender=keeper)
    cost = flow(RATE, 100 + AHEAD) - before.deposit
    assert receipt.log("ToppedUp") == {
        "id": terms.id,
        "funder": payer,
        "end": evm.now + AHEAD,
        "from_vault": cost,
    }
    assert [log.name for log in receipt.logs] == ["ToppedUp"]
    assert state_of(pay, terms) == replace(before, end=evm.now + AHEAD)
    assert pay.balance_of(terms.token, payer) == 10**6 - cost
    assert money.held(pay.address) == held
    assert pay.balance_of(terms.token, keeper) == 0


def test_takes_the_rest_by_the_payers_allowance(
    pay: Contract, evm: Chain, tokens: Money, payer: Actor, payee: Actor, keeper: Actor
) -> None:
    terms = Terms(payer, payee, tokens.address)
    open_stream(pay, tokens, terms)
    fill_vault(pay, tokens, payer, 10)
    cost = flow(RATE, AHEAD) - flow(RATE, DURATION)
    tokens.give(payer, cost, pay)
    order = StandingOrder(terms, evm.now, AHEAD, domain=domain_of(evm, pay))
    receipt = order.submit(pay, order.sign(payer.key), sender=keeper)
    assert receipt.log("ToppedUp")["from_vault"] == 10
    assert (pay.balance_of(tokens.address, payer), tokens.held(payer)) == (0, 10)


def test_never_takes_the_submitters_money(
    pay: Contract, evm: Chain, money: Money, payer: Actor, payee: Actor, keeper: Actor
) -> None:
    terms = Terms(payer, payee, money.address)
    open_stream(pay, money, terms)
    fill_vault(pay, money, keeper, 10**6)
    order = StandingOrder(terms, evm.now, AHEAD, domain=domain_of(evm, pay))
    with pytest.raises(Reverted):
        order.submit(pay, order.sign(payer.key), sender=keeper)
    assert pay.balance_of(terms.token, keeper) == 10**6


def test_however_often_a_stranger_calls_no_more_than_ahead_is_locked(
    pay: Contract, evm: Chain, terms: Terms, order: StandingOrder, payer: Actor, payee: Actor, attacker: Actor
) -> None:
    start = evm.now
    signature = order.sign(payer.key)
    for pause in (0, 1, 1, 0, 7, 300, 0, 900, 1):
        evm.sleep(pause)
        locked = state_of(pay, terms).end - evm.now
        if locked < AHEAD:
            order.submit(pay, signature, sender=attacker)
        with reverts("streams: nothing to extend"):
            order.submit(pay, signature, sender=attacker)
        assert state_of(pay, terms).end == evm.now + AHEAD
        assert pay.refundable(terms.id) <= flow(RATE, AHEAD)
    pay.cancel(payee, terms.token, SESSION, OFFER, COIN, sender=payer)
    spent = flow(RATE, evm.now - start)
    assert pay.balance_of(terms.token, payee) == spent
    assert pay.balance_of(terms.token, payer) == 10**6 + flow(RATE, DURATION) - spent


def test_reverts_where_the_end_is_as_far_already(
    pay: Contract, terms: Terms, order: StandingOrder, payer: Actor, keeper: Actor
) -> None:
    order = replace(order, ahead=DURATION)
    with reverts("streams: nothing to extend"):
        order.submit(pay, order.sign(payer.key), sender=keeper)


def test_extends_by_a_single_second(
    pay: Contract, evm: Chain, terms: Terms, order: StandingOrder, payer: Actor, keeper: Actor
) -> None:
    order = replace(order, ahead=DURATION)
    evm.sleep(1)
    order.submit(pay, order.sign(payer.key), sender=keeper)
    assert state_of(pay, terms).end == evm.now + DURATION


def test_never_moves_the_end_beyond_until(
    pay: Contract, evm: Chain, terms: Terms, order: StandingOrder, payer: Actor, keeper: Actor
) -> None:
    end = state_of(pay, terms).end
    order = replace(order, until=end + 7)
    signature = order.sign(payer.key)
    order.submit(pay, signature, sender=keeper)
    assert state_of(pay, terms).end == end + 7
    evm.sleep(DURATION)
    with reverts("streams: nothing to extend"):
        order.submit(pay, signature, sender=keeper)


@pytest.mark.parametrize("until", [0, DURATION - 1, DURATION])
def test_reverts_where_until_is_no_later_than_the_end(
    pay: Contract, terms: Terms, order: StandingOrder, payer: Actor, keeper: Actor, until: int
) -> None:
    order = replace(order, until=order.start + until if until else 0)
    with reverts("streams: nothing to extend"):
        order.submit(pay, order.sign(payer.key), sender=keeper)


def test_its_greatest_bounds_are_those_of_a_stream(
    pay: Contract, evm: Chain, terms: Terms, order: StandingOrder, payer: Actor, keeper: Actor, money: Money
) -> None:
    fill_vault(pay, money, payer, flow(RATE, MAX_TIME))
    order = replace(order, ahead=MAX_TIME, until=MAX_TIME)
    order.submit(pay, order.sign(payer.key), sender=keeper)
    assert state_of(pay, terms).end == MAX_TIME


def test_reverts_where_the_stream_has_ended(
    pay: Contract, evm: Chain, order: StandingOrder, payer: Actor, keeper: Actor
) -> None:
    """A stream that has ended would charge its payer for the time in between."""
    evm.sleep(DURATION)
    with reverts("streams: already ended"):
        order.submit(pay, order.sign(payer.key), sender=keeper)


def test_reverts_where_there_is_no_such_stream(
    pay: Contract, order: StandingOrder, payer: Actor, keeper: Actor
) -> None:
    order = replace(order, terms=order.terms.with_offer(2), start=0)
    with reverts("streams: no such stream"):
        order.submit(pay, order.sign(payer.key), sender=keeper)


def test_a_cancel_revokes_it(
    pay: Contract, order: StandingOrder, terms: Terms, payer: Actor, payee: Actor, keeper: Actor
) -> None:
    signature = order.sign(payer.key)
    pay.cancel(payee, terms.token, SESSION, OFFER, COIN, sender=payer)
    with reverts("signatures: not signed by the account"):
        order.submit(pay, signature, sender=keeper)


def test_says_nothing_about_the_next_stream_of_the_same_id(
    pay: Contract, evm: Chain, money: Money, order: StandingOrder, terms: Terms, payer: Actor, payee: Actor
) -> None:
    signature = order.sign(payer.key)
    pay.cancel(payee, terms.token, SESSION, OFFER, COIN, sender=payer)
    evm.sleep(1)
    open_stream(pay, money, terms)
    with reverts("signatures: not signed by the account"):
        order.submit(pay, signature, sender=payee)
    again = replace(order, start=evm.now)
    again.submit(pay, again.sign(payer.key), sender=payee)


@pytest.mark.parametrize(("field", "value"), [("start", -1), ("start", 1), ("ahead", 1), ("until", -1), ("ahead", -1)])
def test_reverts_where_anything_signed_is_changed(
    pay: Contract, evm: Chain, order: StandingOrder, payer: Actor, keeper: Actor, field: str, value: int
) -> None:
    signed = replace(order, **{field: getattr(order, field) + value}).sign(payer.key)
    with reverts("signatures: not signed by the account"):
        order.submit(pay, signed, sender=keeper)


def test_reverts_for_an_order_about_another_stream(
    pay: Contract, money: Money, order: StandingOrder, terms: Terms, payer: Actor, keeper: Actor
) -> None:
    open_stream(pay, money, terms.with_offer(2))
    with reverts("signatures: not signed by the account"):
        replace(order, terms=terms.with_offer(2)).submit(pay, order.sign(payer.key), sender=keeper)


@pytest.mark.parametrize("who", ["payee", "attacker", "session"])
def test_reverts_for_another_key(
    pay: Contract, order: StandingOrder, keeper: Actor, request: pytest.FixtureRequest, who: str
) -> None:
    """The session key moves no money: it cannot prolong what its payer pays for."""
    key = SESSION.key if who == "session" else request.getfixturevalue(who).key
    with reverts("signatures: not signed by the account"):
        order.submit(pay, order.sign(key), sender=keeper)


@pytest.mark.parametrize(
    "change", [{"chainId": 56}, {"name": "Penstock"}, {"version": "2"}, {"verifyingContract": "0x" + "11" * 20}]
)
def test_reverts_for_another_domain(
    pay: Contract, evm: Chain, order: StandingOrder, payer: Actor, keeper: Actor, change: dict[str, Any]
) -> None:
    order = replace(order, domain=domain_of(evm, pay, **change))
    with reverts("signatures: not signed by the account"):
        order.submit(pay, order.sign(payer.key), sender=keeper)


@pytest.mark.parametrize("mangle", [flip_signature, v_from_zero, lambda s: s[:64], lambda s: s + b"\0", lambda s: b""])
def test_reverts_for_a_mangled_signature(
    pay: Contract, order: StandingOrder, payer: Actor, keeper: Actor, mangle: Callable[[bytes], bytes]
) -> None:
    with reverts("signatures: not signed by the account"):
        order.submit(pay, mangle(order.sign(payer.key)), sender=keeper)


def test_reverts_while_paused(
    pay: Contract, order: StandingOrder, payer: Actor, keeper: Actor, guardian: Actor
) -> None:
    pay.set_paused(True, sender=guardian)
    with reverts("guardian: paused, only exits are open"):
        order.submit(pay, order.sign(payer.key), sender=keeper)


def test_reverts_where_the_vault_is_empty(
    pay: Contract, evm: Chain, coins: Money, payer: Actor, payee: Actor, keeper: Actor
) -> None:
    terms = Terms(payer, payee, COIN)
    open_stream(pay, coins, terms)
    coins.give(payer, 10**6)  # coins outside the vault are out of anybody's reach
    order = StandingOrder(terms, evm.now, AHEAD, domain=domain_of(evm, pay))
    with reverts("vault: balance too low"):
        order.submit(pay, order.sign(payer.key), sender=keeper)


def test_a_contract_wallet_signs_by_erc1271(
    pay: Contract,
    evm: Chain,
    tokens: Money,
    deploy: Callable[..., Contract],
    payer: Actor,
    payee: Actor,
    keeper: Actor,
    attacker: Actor,
) -> None:
    wallet = deploy("SigningWallet", payer)
    tokens.give(wallet.address, flow(RATE, AHEAD), pay)
    deposit = flow(RATE, DURATION)
    data = pay.encode("open", payee, tokens.address, SESSION, OFFER, RATE, DURATION, MAX)
    wallet.execute(pay.address, 0, data, sender=keeper)
    assert tokens.held(pay.address) == deposit
    order = StandingOrder(Terms(wallet.address, payee, tokens.address), evm.now, AHEAD, domain=domain_of(evm, pay))
    with reverts("signatures: refused by the account's contract"):
        order.submit(pay, order.sign(attacker.key), sender=keeper)
    order.submit(pay, order.sign(payer.key), sender=keeper)
    assert state_of(pay, order.terms).end == evm.now + AHEAD
    assert (tokens.held(wallet.address), tokens.held(pay.address)) == (0, flow(RATE, AHEAD))


def test_a_channel_has_no_end_to_extend(
    pay: Contract, evm: Chain, money: Money, payer: Actor, payee: Actor, keeper: Actor
) -> None:
    terms = Terms(payer, payee, money.address, session_key=keeper)
    open_channel(pay, money, terms)
    order = StandingOrder(terms, 0, AHEAD, domain=domain_of(evm, pay))
    with reverts("streams: no such stream"):
        order.submit(pay, order.sign(payer.key), sender=keeper)
