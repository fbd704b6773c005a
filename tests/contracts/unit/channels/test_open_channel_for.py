"""StreamPay.open_channel_for"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from penstock.channels import MAX_DEPOSIT, ChannelState
from tests.contracts.harness import (
    COIN,
    MAX,
    NO_PERMIT,
    ORDER_FIELDS,
    Actor,
    Money,
    Terms,
    domain_of,
    fill_vault,
    flip_signature,
    permit_2612,
    permit_permit2,
    reverts,
    sign_typed,
    v_from_zero,
)
from tests.contracts.vouchers import DEPOSIT, NO_CHANNEL, ChannelOrder, channel_of, close, settle
from tests.fastchain import Chain, Contract, Receipt, Reverted


@pytest.fixture
def order(pay: Contract, evm: Chain, money: Money, payer: Actor, payee: Actor) -> ChannelOrder:
    """An order that the payer's vault balance can pay."""
    fill_vault(pay, money, payer, DEPOSIT + 4)
    return ChannelOrder(Terms(payer, payee, money.address), nonce=300, domain=domain_of(evm, pay))


def submit(
    pay: Contract, order: ChannelOrder, signature: bytes, sender: str, permit: tuple[Any, ...] = NO_PERMIT
) -> Receipt:
    return pay.open_channel_for(order.struct, signature, permit, sender=sender)  # type: ignore[no-any-return]


def test_opens_what_the_payer_signed(pay: Contract, order: ChannelOrder, payer: Actor, keeper: Actor) -> None:
    receipt = submit(pay, order, order.sign(payer.key), keeper)
    terms = order.terms
    assert receipt.result == terms.id
    assert receipt.log("ChannelOpened") == {
        "id": terms.id,
        "payer": payer,
        "payee": terms.payee,
        "token": terms.token,
        "session_key": terms.session_key,
        "offer_id": terms.offer_id,
        "deposit": DEPOSIT,
        "from_vault": DEPOSIT,
    }
    assert [log.name for log in receipt.logs] == ["ChannelOpened"]
    assert channel_of(pay, terms) == ChannelState(DEPOSIT, 0, 0, False)
    assert pay.balance_of(terms.token, payer) == 4
    assert pay.is_nonce_used(payer, 300)
    assert not any(pay.is_nonce_used(payer, nonce) for nonce in (0, 44, 299, 301, 556))
    assert not pay.is_nonce_used(keeper, 300)


def test_reverts_after_the_deadline(
    pay: Contract, evm: Chain, order: ChannelOrder, payer: Actor, keeper: Actor
) -> None:
    order = replace(order, deadline=evm.now + 10)
    evm.sleep(11)
    with reverts("signatures: order expired"):
        submit(pay, order, order.sign(payer.key), keeper)


def test_the_deadline_itself_is_in_time(
    pay: Contract, evm: Chain, order: ChannelOrder, payer: Actor, keeper: Actor
) -> None:
    order = replace(order, deadline=evm.now + 10)
    evm.sleep(10)
    submit(pay, order, order.sign(payer.key), keeper)


def test_reverts_while_paused(pay: Contract, order: ChannelOrder, payer: Actor, keeper: Actor, guardian: Actor) -> None:
    pay.set_paused(True, sender=guardian)
    with reverts("guardian: paused, only exits are open"):
        submit(pay, order, order.sign(payer.key), keeper)
    assert not pay.is_nonce_used(payer, order.nonce)


def test_reverts_for_another_key(pay: Contract, order: ChannelOrder, attacker: Actor) -> None:
    with reverts("signatures: not signed by the account"):
        submit(pay, order, order.sign(attacker.key), attacker)


@pytest.mark.parametrize(
    "field", ["payer", "payee", "token", "session_key", "offer_id", "deposit", "from_vault", "nonce", "deadline"]
)
def test_reverts_where_anything_signed_is_changed(
    pay: Contract, order: ChannelOrder, payer: Actor, attacker: Actor, field: str
) -> None:
    signature = order.sign(payer.key)
    if field in ("deposit", "from_vault", "nonce", "deadline"):
        changed = replace(order, **{field: getattr(order, field) - 1})
    else:
        value = b"\1" * 32 if field == "offer_id" else str(attacker)
        changed = replace(order, terms=replace(order.terms, **{field: value}))
    with reverts("signatures: not signed by the account"):
        submit(pay, changed, signature, attacker)


@pytest.mark.parametrize(
    "change", [{"chainId": 56}, {"name": "Penstock"}, {"version": "2"}, {"verifyingContract": "0x" + "11" * 20}]
)
def test_reverts_for_another_domain(
    pay: Contract, evm: Chain, order: ChannelOrder, payer: Actor, keeper: Actor, change: dict[str, Any]
) -> None:
    order = replace(order, domain=domain_of(evm, pay, **change))
    with reverts("signatures: not signed by the account"):
        submit(pay, order, order.sign(payer.key), keeper)


def test_reverts_for_an_order_of_a_stream(pay: Contract, order: ChannelOrder, payer: Actor, keeper: Actor) -> None:
    """The same fields under another type are another message."""
    message = {
        **dict(zip(("payer", "payee", "token", "sessionKey", "offerId"), order.struct, strict=False)),
        "rate": DEPOSIT,
        "duration": 1,
        "fromVault": MAX,
        "nonce": order.nonce,
        "deadline": MAX,
    }
    signature = sign_typed(payer.key, order.domain, {"OpenStream": ORDER_FIELDS}, message)
    with reverts("signatures: not signed by the account"):
        submit(pay, order, signature, keeper)


@pytest.mark.parametrize("mangle", [flip_signature, v_from_zero, lambda s: s[:64], lambda s: s + b"\0", lambda s: b""])
def test_reverts_for_a_mangled_signature(
    pay: Contract, order: ChannelOrder, payer: Actor, keeper: Actor, mangle: Callable[[bytes], bytes]
) -> None:
    with reverts("signatures: not signed by the account"):
        submit(pay, order, mangle(order.sign(payer.key)), keeper)


def test_reverts_the_second_time(pay: Contract, order: ChannelOrder, payer: Actor, keeper: Actor) -> None:
    signature = order.sign(payer.key)
    submit(pay, order, signature, keeper)
    with reverts("signatures: nonce already used"):
        submit(pay, order, signature, keeper)
    close(pay, order.terms)
    with reverts("signatures: nonce already used"):
        submit(pay, order, signature, keeper)
    again = replace(order, nonce=301)
    with reverts("channels: already used"):
        submit(pay, again, again.sign(payer.key), keeper)


def test_a_nonce_is_shared_with_orders_of_streams_and_can_be_burnt(
    pay: Contract, order: ChannelOrder, payer: Actor, keeper: Actor
) -> None:
    pay.invalidate_nonces(300 >> 8, 1 << (300 & 255), sender=payer)
    with reverts("signatures: nonce already used"):
        submit(pay, order, order.sign(payer.key), keeper)


def test_nonces_are_good_in_any_order(pay: Contract, order: ChannelOrder, payer: Actor, keeper: Actor) -> None:
    for number, nonce in enumerate((MAX, 0, 255, 256, 1)):
        one = replace(order, terms=order.terms.with_offer(number), nonce=nonce, deposit=1)
        submit(pay, one, one.sign(payer.key), keeper)
        assert pay.is_nonce_used(payer, nonce)


@pytest.mark.parametrize(
    ("deposit", "reason"), [(0, "channels: zero deposit"), (MAX_DEPOSIT + 1, "channels: deposit too large")]
)
def test_reverts_for_a_deposit_out_of_bounds(
    pay: Contract, order: ChannelOrder, payer: Actor, keeper: Actor, deposit: int, reason: str
) -> None:
    order = replace(order, deposit=deposit)
    with reverts(reason):
        submit(pay, order, order.sign(payer.key), keeper)


def test_takes_from_the_vault_no_more_than_signed(
    pay: Contract, evm: Chain, tokens: Money, payer: Actor, payee: Actor, keeper: Actor
) -> None:
    fill_vault(pay, tokens, payer, DEPOSIT)
    tokens.give(payer, DEPOSIT, pay)
    order = ChannelOrder(Terms(payer, payee, tokens.address), from_vault=7, domain=domain_of(evm, pay))
    receipt = submit(pay, order, order.sign(payer.key), keeper)
    assert receipt.log("ChannelOpened")["from_vault"] == 7
    assert (pay.balance_of(tokens.address, payer), tokens.held(payer)) == (DEPOSIT - 7, 7)


def test_coins_come_from_the_vault_alone(
    pay: Contract, evm: Chain, coins: Money, payer: Actor, payee: Actor, keeper: Actor
) -> None:
    coins.give(payer, DEPOSIT)
    fill_vault(pay, coins, keeper, DEPOSIT)  # the submitter's own balance is not touched
    order = ChannelOrder(Terms(payer, payee, COIN), domain=domain_of(evm, pay))
    with reverts("vault: balance too low"):
        submit(pay, order, order.sign(payer.key), keeper)
    assert channel_of(pay, order.terms) == NO_CHANNEL
    assert not pay.is_nonce_used(payer, order.nonce)


def test_a_permit_pays_in_the_same_transaction(
    pay: Contract, evm: Chain, deploy: Callable[..., Contract], payer: Actor, payee: Actor, keeper: Actor
) -> None:
    usd = deploy("TestUSD")
    usd.mint(payer, DEPOSIT, sender=keeper)
    order = ChannelOrder(Terms(payer, payee, usd.address), domain=domain_of(evm, pay))
    permit = permit_2612(evm, usd, payer, pay.address, DEPOSIT)
    with evm.snapshot():
        submit(pay, order, order.sign(payer.key), keeper, permit)
        assert channel_of(pay, order.terms).deposit == usd.balanceOf(pay.address) == DEPOSIT
    r, s, v = permit[4][:32], permit[4][32:64], permit[4][64]
    usd.permit(payer, pay.address, DEPOSIT, MAX, v, r, s, sender=keeper)  # somebody was faster: no harm
    submit(pay, order, order.sign(payer.key), keeper, permit)
    assert (usd.balanceOf(payer), usd.balanceOf(pay.address)) == (0, DEPOSIT)


def test_reverts_where_the_permit_allows_too_little(
    pay: Contract, evm: Chain, deploy: Callable[..., Contract], payer: Actor, payee: Actor, keeper: Actor
) -> None:
    usd = deploy("TestUSD")
    usd.mint(payer, DEPOSIT, sender=keeper)
    order = ChannelOrder(Terms(payer, payee, usd.address), domain=domain_of(evm, pay))
    with pytest.raises(Reverted):
        submit(pay, order, order.sign(payer.key), keeper, permit_2612(evm, usd, payer, pay.address, DEPOSIT - 1))


def test_permit2_pays_in_the_same_transaction(
    pay: Contract,
    evm: Chain,
    tokens: Money,
    token: Contract,
    permit2: Contract,
    payer: Actor,
    payee: Actor,
    keeper: Actor,
) -> None:
    tokens.give(payer, DEPOSIT + 2)
    token.approve(permit2.address, MAX, sender=payer)
    order = ChannelOrder(Terms(payer, payee, token.address), domain=domain_of(evm, pay))
    permit = permit_permit2(evm, permit2, token.address, payer, pay.address, DEPOSIT + 2)
    receipt = submit(pay, order, order.sign(payer.key), keeper, permit)
    assert receipt.log("Deposited")["amount"] == DEPOSIT + 2
    assert receipt.log("ChannelOpened")["from_vault"] == DEPOSIT
    assert (pay.balance_of(token.address, payer), tokens.held(pay.address)) == (2, DEPOSIT + 2)


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
    tokens.give(wallet.address, DEPOSIT, pay)
    order = ChannelOrder(Terms(wallet.address, payee, tokens.address), domain=domain_of(evm, pay))
    with reverts("signatures: refused by the account's contract"):
        submit(pay, order, order.sign(attacker.key), keeper)
    submit(pay, order, order.sign(payer.key), keeper)
    assert channel_of(pay, order.terms) == ChannelState(DEPOSIT, 0, 0, False)
    settle(evm, pay, order.terms, 5, sender=keeper)  # the session key signs vouchers, not the wallet
    assert pay.balance_of(tokens.address, payee) == 5


def test_reverts_where_the_wallet_refuses(
    pay: Contract, evm: Chain, deploy: Callable[..., Contract], payer: Actor, payee: Actor, keeper: Actor
) -> None:
    wallet = deploy("RefusingWallet")
    order = ChannelOrder(Terms(wallet.address, payee, COIN), domain=domain_of(evm, pay))
    with reverts("signatures: refused by the account's contract"):
        submit(pay, order, order.sign(payer.key), keeper)
