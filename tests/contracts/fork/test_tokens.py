"""What these tokens do that others do not, and what their issuers could do"""

from __future__ import annotations

import pytest

from tests.contracts.fork.chain import BscChain
from tests.contracts.fork.ledger import Ledger
from tests.contracts.fork.money import RealToken, WrappedToken
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
    fill_vault,
    open_stream,
    reverts,
)
from tests.fastchain import Contract

DEPOSIT = 3334
"""Of a stream with the usual rate and duration: base units."""


@pytest.fixture
def money(evm: BscChain, token: RealToken) -> Money:
    return Money(evm, token.address, token)


@pytest.fixture
def terms(token: RealToken, payer: Actor, payee: Actor) -> Terms:
    return Terms(payer, payee, token.address)


def test_coins_become_a_stream_and_coins_again(
    evm: BscChain, pay: Contract, tokens: dict[str, RealToken], books: Ledger, payer: Actor, payee: Actor
) -> None:
    """Wrapped by the payer, streamed, unwrapped by the payee."""
    wbnb = tokens["WBNB"]
    assert isinstance(wbnb, WrappedToken)
    backed = evm.balance(wbnb.address)
    wbnb.deposit(sender=payer, value=10**18)
    wbnb.approve(pay.address, MAX, sender=payer)
    books.read(pay.open(payee, wbnb.address, SESSION, OFFER, 10**18, 10**6, 0, sender=payer))
    evm.sleep(600_000)
    books.read(pay.withdraw(payer, wbnb.address, SESSION, OFFER, payee, sender=payee))
    earned = 6 * 10**17
    assert wbnb.balanceOf(payee) == earned
    before, fees = evm.balance(payee), evm.fees[payee]
    wbnb.withdraw(earned, sender=payee)
    assert evm.balance(payee) - before == earned - (evm.fees[payee] - fees)
    assert evm.balance(wbnb.address) - backed == 10**18 - earned
    assert wbnb.allowance(payer, pay.address) == MAX, "WBNB does not use up an allowance without bound"


def test_wrapped_coins_are_no_coins(
    evm: BscChain, pay: Contract, tokens: dict[str, RealToken], payer: Actor, payee: Actor
) -> None:
    """Value sent along with WBNB would stay in StreamPay, and is refused."""
    wbnb = tokens["WBNB"]
    with reverts("vault: value sent with a token"):
        pay.open(payee, wbnb.address, SESSION, OFFER, RATE, DURATION, 0, sender=payer, value=DEPOSIT)
    with reverts("vault: value sent with a token"):
        pay.deposit(wbnb.address, DEPOSIT, sender=payer, value=DEPOSIT)


@pytest.mark.parametrize("symbol", ["USDT", "USDC"])
def test_an_allowance_without_bound_is_used_up(
    evm: BscChain, pay: Contract, tokens: dict[str, RealToken], payer: Actor, payee: Actor, symbol: str
) -> None:
    token = tokens[symbol]
    terms = Terms(payer, payee, token.address)
    open_stream(pay, Money(evm, token.address, token), terms)
    assert token.allowance(payer, pay.address) == MAX - DEPOSIT


def test_money_that_is_not_there_does_not_open_a_stream(
    pay: Contract, token: RealToken, payer: Actor, payee: Actor
) -> None:
    reason = "0x" if token.symbol() == "WBNB" else "BEP20: transfer amount exceeds {}"
    token.approve(pay.address, MAX, sender=payer)
    with reverts(reason.format("balance")):
        pay.open(payee, token.address, SESSION, OFFER, RATE, DURATION, 0, sender=payer)
    token.mint(payer, DEPOSIT, sender=payer)
    token.approve(pay.address, DEPOSIT - 1, sender=payer)
    with reverts(reason.format("allowance")):
        pay.open(payee, token.address, SESSION, OFFER, RATE, DURATION, 0, sender=payer)


def test_tokens_sent_to_the_contract_belong_to_nobody(
    evm: BscChain, pay: Contract, money: Money, token: RealToken, payer: Actor, payee: Actor, terms: Terms
) -> None:
    token.mint(payer, 1_000, sender=payer)
    token.transfer(pay.address, 1_000, sender=payer)
    open_stream(pay, money, terms)
    evm.sleep(DURATION)
    pay.collect(token.address, payee, [terms.source], sender=payee)
    with reverts("vault: balance too low"):
        pay.withdraw_vault(token.address, DEPOSIT + 1, payee, sender=payee)
    pay.withdraw_vault(token.address, DEPOSIT, payee, sender=payee)
    assert token.balanceOf(pay.address) == 1_000


# An issuer that stops its token, or some of its holders.


def test_the_gate_is_the_token_that_it_was(
    evm: BscChain,
    pay: Contract,
    token: RealToken,
    payer: Actor,
    payee: Actor,
    terms: Terms,
    request: pytest.FixtureRequest,
) -> None:
    """What was held and allowed before an issuer's change is so after it."""
    open_stream(pay, Money(evm, token.address, token), terms)
    token.mint(payee, 5, sender=payee)
    before = (token.symbol(), token.totalSupply(), token.allowance(payer, pay.address), token.balanceOf(pay.address))
    gated: RealToken = request.getfixturevalue("gated")
    found = (gated.symbol(), gated.totalSupply(), gated.allowance(payer, pay.address), gated.balanceOf(pay.address))
    assert found == before
    gated.transfer(payer, 5, sender=payee)
    assert (gated.balanceOf(payer), gated.balanceOf(payee)) == (5, 0)


def test_a_blocked_payer_cannot_keep_the_payee_from_its_money(
    evm: BscChain, pay: Contract, terms: Terms, payer: Actor, payee: Actor, keeper: Actor, gated: RealToken
) -> None:
    open_stream(pay, Money(evm, gated.address, gated), terms)
    evm.sleep(100)
    gated.set_blocked(payer, True, sender=keeper)
    held = gated.balanceOf(payee)
    pay.withdraw(payer, gated.address, SESSION, OFFER, payee, sender=payee)
    assert gated.balanceOf(payee) - held == 334
    pay.close(payer, gated.address, SESSION, OFFER, MAX, sender=payee)
    # Its refund waits in the vault, and goes wherever the token allows.
    with reverts("token: blocked"):
        pay.withdraw_vault(gated.address, DEPOSIT - 334, payer, sender=payer)
    pay.withdraw_vault(gated.address, DEPOSIT - 334, keeper, sender=payer)
    assert gated.balanceOf(pay.address) == 0


def test_a_blocked_payee_cannot_keep_the_payer_from_its_refund(
    evm: BscChain, pay: Contract, terms: Terms, payer: Actor, payee: Actor, keeper: Actor, gated: RealToken
) -> None:
    open_stream(pay, Money(evm, gated.address, gated), terms)
    evm.sleep(100)
    gated.set_blocked(payee, True, sender=keeper)
    with reverts("token: blocked"):
        pay.withdraw(payer, gated.address, SESSION, OFFER, payee, sender=payee)
    pay.cancel(payee, gated.address, SESSION, OFFER, payer, sender=payer)
    assert gated.balanceOf(payer) == DEPOSIT - 334
    assert pay.balance_of(gated.address, payee) == 334
    gated.set_blocked(payee, False, sender=keeper)
    pay.withdraw_vault(gated.address, 334, payee, sender=payee)
    assert gated.balanceOf(pay.address) == 0


def test_a_stopped_token_stops_no_clock(
    evm: BscChain, pay: Contract, terms: Terms, payer: Actor, payee: Actor, keeper: Actor, gated: RealToken
) -> None:
    """While nothing of it moves, streams end, and everyone is credited; when it moves again, all leave."""
    money = Money(evm, gated.address, gated)
    fill_vault(pay, money, payer, 77)
    open_stream(pay, money, terms)
    open_stream(pay, money, terms.with_offer(7))
    evm.sleep(100)
    gated.set_blocked(COIN, True, sender=keeper)
    with reverts("token: paused"):
        pay.withdraw(payer, gated.address, SESSION, OFFER, payee, sender=payee)
    with reverts("token: paused"):
        pay.cancel(payee, gated.address, SESSION, OFFER, payer, sender=payer)
    with reverts("token: paused"):
        pay.withdraw_vault(gated.address, 77, payer, sender=payer)
    pay.collect(gated.address, payee, [terms.source], sender=keeper)
    pay.cancel(payee, gated.address, SESSION, OFFER, COIN, sender=payer)
    evm.sleep(100)
    pay.close(payer, gated.address, SESSION, terms.with_offer(7).offer_id, MAX, sender=payee)
    assert pay.balance_of(gated.address, payee) == 334 + 667
    assert pay.balance_of(gated.address, payer) == 77 + 2 * DEPOSIT - 334 - 667
    # Coins are another currency, and go on.
    pay.open(payee, COIN, SESSION, OFFER, RATE, DURATION, 0, sender=payer, value=DEPOSIT)
    gated.set_blocked(COIN, False, sender=keeper)
    for account in (payer, payee):
        pay.withdraw_vault(gated.address, pay.balance_of(gated.address, account), account, sender=account)
    assert gated.balanceOf(pay.address) == 0
