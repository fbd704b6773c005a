"""Payers without coins: what they sign is good on this chain alone, and pays in tokens that have no permit"""

from __future__ import annotations

from typing import Any

import pytest

from tests.contracts.fork.chain import CHAIN_ID, BscChain
from tests.contracts.fork.ledger import Ledger
from tests.contracts.fork.money import RealToken
from tests.contracts.harness import (
    COIN,
    ERC2612,
    MAX,
    NO_PERMIT,
    NO_STREAM,
    OFFER,
    SESSION,
    Actor,
    ChannelOrder,
    Money,
    Order,
    Terms,
    domain_of,
    fill_vault,
    permit_permit2,
    reverts,
    sign_cancel,
    sign_voucher,
    state_of,
)
from tests.fastchain import Contract

NOT_SIGNED = "signatures: not signed by the account"


@pytest.fixture
def domain(evm: BscChain, pay: Contract) -> dict[str, Any]:
    domain = domain_of(evm, pay)
    assert domain["chainId"] == CHAIN_ID
    return domain


def test_an_order_and_its_cancel(
    evm: BscChain,
    pay: Contract,
    money: Money,
    books: Ledger,
    domain: dict[str, Any],
    payer: Actor,
    payee: Actor,
) -> None:
    """The payer has money in the vault and not one coin for gas; the payee submits what it signed."""
    terms = Terms(payer, payee, money.address)
    order = Order(terms, domain=domain)
    money.give(payee, order.deposit, pay)
    deposit = pay.deposit_for(payer, money.address, order.deposit, sender=payee, value=money.value(order.deposit))
    books.read(deposit)
    evm.set_balance(payer, 0)
    opened = books.read(pay.open_for(order.struct, order.sign(payer.key), NO_PERMIT, sender=payee))
    assert opened.result == terms.id
    with reverts("signatures: nonce already used"):
        pay.open_for(order.struct, order.sign(payer.key), NO_PERMIT, sender=payee)
    start = evm.now
    evm.sleep(250)
    held = money.held(payer)
    signature = sign_cancel(payer.key, domain, terms.id, start, payer, MAX)
    cancelled = books.read(
        pay.cancel_for(payer, payee, money.address, SESSION, OFFER, payer, MAX, signature, sender=payee)
    )
    refund = cancelled.log("Closed")["refund"]
    assert money.held(payer) - held == refund == order.deposit - pay.balance_of(money.address, payee)
    assert state_of(pay, terms) == NO_STREAM


def test_a_channel_by_signature(
    evm: BscChain, pay: Contract, money: Money, books: Ledger, domain: dict[str, Any], payer: Actor, payee: Actor
) -> None:
    order = ChannelOrder(Terms(payer, payee, money.address), 1_000, domain=domain)
    money.give(payee, 1_000, pay)
    books.read(pay.deposit_for(payer, money.address, 1_000, sender=payee, value=money.value(1_000)))
    evm.set_balance(payer, 0)
    books.read(pay.open_channel_for(order.struct, order.sign(payer.key), NO_PERMIT, sender=payee))
    elsewhere = sign_voucher(domain | {"chainId": 97}, order.terms.id, 600)
    with reverts("channels: voucher not signed by the session key"):
        pay.close_channel(payer, money.address, SESSION, OFFER, 600, elsewhere, sender=payee)
    voucher = sign_voucher(domain, order.terms.id, 600)
    books.read(pay.close_channel(payer, money.address, SESSION, OFFER, 600, voucher, sender=payee))
    assert (pay.balance_of(money.address, payer), pay.balance_of(money.address, payee)) == (400, 600)


@pytest.mark.parametrize("chain_id", [1, 97, 31337])
def test_a_signature_for_another_chain_is_worth_nothing(
    evm: BscChain, pay: Contract, money: Money, domain: dict[str, Any], payer: Actor, payee: Actor, chain_id: int
) -> None:
    terms = Terms(payer, payee, money.address)
    order = Order(terms, domain=domain | {"chainId": chain_id})
    fill_vault(pay, money, payer, order.deposit)
    with reverts(NOT_SIGNED):
        pay.open_for(order.struct, order.sign(payer.key), NO_PERMIT, sender=payee)
    right = Order(terms, domain=domain)
    pay.open_for(right.struct, right.sign(payer.key), NO_PERMIT, sender=payee)
    signature = sign_cancel(payer.key, order.domain, terms.id, evm.now, COIN, MAX)
    with reverts(NOT_SIGNED):
        pay.cancel_for(payer, payee, money.address, SESSION, OFFER, COIN, MAX, signature, sender=payee)


def test_permit2_pays_in_tokens_without_a_permit(
    evm: BscChain,
    pay: Contract,
    permit2: Contract,
    token: RealToken,
    books: Ledger,
    domain: dict[str, Any],
    payer: Actor,
    payee: Actor,
) -> None:
    order = Order(Terms(payer, payee, token.address), domain=domain)
    token.mint(payer, order.deposit, sender=payer)
    token.approve(permit2.address, order.deposit, sender=payer)
    evm.set_balance(payer, 0)
    permit = permit_permit2(evm, permit2, token.address, payer, pay.address, order.deposit)
    books.read(pay.open_for(order.struct, order.sign(payer.key), permit, sender=payee))
    assert token.balanceOf(pay.address) == order.deposit
    assert token.balanceOf(payer) == 0


def test_a_permit_that_a_token_only_seems_to_have_pays_nothing(
    evm: BscChain, pay: Contract, token: RealToken, domain: dict[str, Any], payer: Actor, payee: Actor
) -> None:
    """WBNB takes any call for a deposit, so that its `permit` succeeds, whoever "signed" it; the others refuse."""
    order = Order(Terms(payer, payee, token.address), domain=domain)
    token.mint(payer, order.deposit, sender=payer)
    permit = (ERC2612, MAX, 0, MAX, b"\x01" * 65)
    with reverts("0x" if token.symbol() == "WBNB" else "BEP20: transfer amount exceeds allowance"):
        pay.open_for(order.struct, order.sign(payer.key), permit, sender=payee)
    # With an allowance it is not needed, and does no harm.
    token.approve(pay.address, order.deposit, sender=payer)
    pay.open_for(order.struct, order.sign(payer.key), permit, sender=payee)
    assert token.balanceOf(payer) == 0
