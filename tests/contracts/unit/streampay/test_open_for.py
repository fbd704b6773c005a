"""StreamPay.open_for: streams that their payer signed, and the permits that may pay for them"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from penstock.accrual import StreamState, flow
from tests.contracts.harness import (
    COIN,
    DURATION,
    ERC2612,
    MAX,
    NO_PERMIT,
    NO_STREAM,
    PERMIT2,
    RATE,
    Actor,
    Money,
    Order,
    Terms,
    domain_of,
    fill_vault,
    flip_signature,
    permit_2612,
    permit_permit2,
    reverts,
    state_of,
    v_from_zero,
)
from tests.fastchain import Chain, Contract, Receipt, Reverted

DEPOSIT = flow(RATE, DURATION)
NOT_SIGNED = "signatures: not signed by the account"


@pytest.fixture
def order(pay: Contract, evm: Chain, money: Money, payer: Actor, payee: Actor) -> Order:
    """An order that the payer's vault balance can pay for."""
    fill_vault(pay, money, payer, DEPOSIT + 7)
    return Order(Terms(payer, payee, money.address), domain=domain_of(evm, pay))


@pytest.fixture
def token_order(pay: Contract, evm: Chain, tokens: Money, payer: Actor, payee: Actor) -> Order:
    """An order in a token, by a payer that holds enough of it outside the vault."""
    tokens.give(payer, DEPOSIT)
    return Order(Terms(payer, payee, tokens.address), domain=domain_of(evm, pay))


@pytest.fixture(scope="module")
def usd(deploy: Callable[..., Contract]) -> Contract:
    return deploy("TestUSD")


@pytest.fixture
def usd_order(pay: Contract, evm: Chain, usd: Contract, payer: Actor, payee: Actor) -> Order:
    """An order in a token with ERC-2612, which the payer holds and has given no allowance for."""
    usd.mint(payer, DEPOSIT + 7, sender=payer)
    return Order(Terms(payer, payee, usd.address), domain=domain_of(evm, pay))


def submit(
    pay: Contract, order: Order, sender: str, signature: bytes | None = None, permit: tuple[Any, ...] = NO_PERMIT
) -> Receipt:
    if signature is None:
        assert isinstance(order.terms.payer, Actor)
        signature = order.sign(order.terms.payer.key)
    return pay.open_for(order.struct, signature, permit, sender=sender)  # type: ignore[no-any-return]


def test_opens_for_the_payer_whoever_submits(
    pay: Contract, evm: Chain, money: Money, order: Order, payer: Actor, payee: Actor, keeper: Actor
) -> None:
    terms = order.terms
    receipt = submit(pay, order, keeper)
    assert receipt.result == terms.id
    assert receipt.log("Opened") == {
        "id": terms.id,
        "payer": payer,
        "payee": payee,
        "token": terms.token,
        "session_key": terms.session_key,
        "offer_id": terms.offer_id,
        "rate": RATE,
        "start": evm.now,
        "end": evm.now + DURATION,
        "from_vault": DEPOSIT,
    }
    assert [log.name for log in receipt.logs] == ["Opened"]
    assert state_of(pay, terms) == StreamState(evm.now, evm.now, evm.now + DURATION, RATE)
    assert pay.balance_of(terms.token, payer) == 7
    assert money.held(pay.address) == DEPOSIT + 7
    assert pay.is_nonce_used(payer, 0) is True


def test_takes_the_rest_from_the_allowance(
    pay: Contract, tokens: Money, token_order: Order, token: Contract, payer: Actor, keeper: Actor
) -> None:
    fill_vault(pay, tokens, payer, 100)
    token.approve(pay.address, DEPOSIT - 100, sender=payer)
    receipt = submit(pay, token_order, keeper)
    assert receipt.log("Opened")["from_vault"] == 100
    assert tokens.held(payer) == 100


def test_respects_what_may_come_from_the_vault(
    pay: Contract, tokens: Money, token_order: Order, token: Contract, payer: Actor, keeper: Actor
) -> None:
    fill_vault(pay, tokens, payer, DEPOSIT)
    token.approve(pay.address, MAX, sender=payer)
    receipt = submit(pay, replace(token_order, from_vault=30), keeper)
    assert receipt.log("Opened")["from_vault"] == 30
    assert (pay.balance_of(tokens.address, payer), tokens.held(payer)) == (DEPOSIT - 30, 30)


def test_respects_that_no_coins_may_come_from_the_vault(
    pay: Contract, evm: Chain, coins: Money, payer: Actor, payee: Actor, keeper: Actor
) -> None:
    fill_vault(pay, coins, payer, DEPOSIT)
    order = Order(Terms(payer, payee, COIN), from_vault=DEPOSIT - 1, domain=domain_of(evm, pay))
    with reverts("vault: value too low"):
        submit(pay, order, keeper)


def test_reverts_while_paused(pay: Contract, order: Order, keeper: Actor, guardian: Actor) -> None:
    pay.set_paused(True, sender=guardian)
    with reverts("guardian: paused, only exits are open"):
        submit(pay, order, keeper)


def test_reverts_after_the_deadline(pay: Contract, evm: Chain, order: Order, keeper: Actor) -> None:
    late = replace(order, deadline=evm.now + 5)
    evm.sleep(6)
    with reverts("signatures: order expired"):
        submit(pay, late, keeper)


def test_works_in_the_second_of_the_deadline(pay: Contract, evm: Chain, order: Order, keeper: Actor) -> None:
    last_call = replace(order, deadline=evm.now + 5)
    evm.sleep(5)
    submit(pay, last_call, keeper)


def test_reverts_the_second_time(
    pay: Contract, evm: Chain, money: Money, order: Order, payer: Actor, keeper: Actor
) -> None:
    submit(pay, order, keeper)
    fill_vault(pay, money, payer, DEPOSIT)
    with reverts("signatures: nonce already used"):
        submit(pay, order, keeper)
    pay.cancel(order.terms.payee, order.terms.token, order.terms.session_key, order.terms.offer_id, COIN, sender=payer)
    with reverts("signatures: nonce already used"):
        submit(pay, order, keeper)


@pytest.mark.parametrize("nonce", [0, 1, 255, 256, MAX])
def test_reverts_for_a_nonce_that_was_invalidated(
    pay: Contract, order: Order, payer: Actor, keeper: Actor, nonce: int
) -> None:
    pay.invalidate_nonces(nonce >> 8, 1 << (nonce & 255), sender=payer)
    with reverts("signatures: nonce already used"):
        submit(pay, replace(order, nonce=nonce), keeper)


def test_nonces_come_in_any_order(pay: Contract, money: Money, order: Order, payer: Actor, keeper: Actor) -> None:
    nonces = [300, 2, MAX, 1, 0, 299, 255, 256]
    fill_vault(pay, money, payer, DEPOSIT * len(nonces))
    for number, nonce in enumerate(nonces):
        submit(pay, replace(order, nonce=nonce, terms=order.terms.with_offer(number)), keeper)
    assert all(pay.is_nonce_used(payer, nonce) for nonce in nonces)
    assert not any(pay.is_nonce_used(payer, nonce) for nonce in (3, 254, 257, 301, MAX - 1))


def test_a_failed_open_uses_no_nonce(pay: Contract, order: Order, payer: Actor, keeper: Actor) -> None:
    with pytest.raises(Reverted):
        submit(pay, replace(order, duration=DURATION + 1_000), keeper)
    assert pay.is_nonce_used(payer, 0) is False
    submit(pay, order, keeper)


def test_reverts_where_somebody_else_signed(pay: Contract, order: Order, attacker: Actor) -> None:
    with reverts(NOT_SIGNED):
        submit(pay, order, attacker, order.sign(attacker.key))


@pytest.mark.parametrize(
    "change",
    [
        {"rate": RATE + 1},
        {"duration": DURATION - 1},
        {"from_vault": 1},
        {"nonce": 1},
        {"deadline": MAX - 1},
        {"payee": "attacker"},
        {"session_key": "attacker"},
        {"offer_id": b"\x01" * 32},
        {"token": "other"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_reverts_where_anything_was_changed(
    pay: Contract, money: Money, tokens: Money, order: Order, attacker: Actor, change: dict[str, Any]
) -> None:
    signature = order.sign(order.terms.payer.key)  # type: ignore[attr-defined]
    (name, value), other = next(iter(change.items())), tokens.address if money.token is None else COIN
    value = {"attacker": attacker, "other": other}.get(value, value) if isinstance(value, str) else value
    if name in Order.__dataclass_fields__:
        changed = replace(order, **{name: value})
    else:
        changed = replace(order, terms=replace(order.terms, **{name: value}))
    with reverts(NOT_SIGNED):
        submit(pay, changed, attacker, signature)


@pytest.mark.parametrize(
    "change",
    [{"chainId": 1}, {"version": "2"}, {"name": "StreamPay"}, {"verifyingContract": "0x" + "11" * 20}],
    ids=lambda change: next(iter(change)),
)
def test_reverts_for_another_domain(
    pay: Contract, evm: Chain, order: Order, keeper: Actor, change: dict[str, Any]
) -> None:
    with reverts(NOT_SIGNED):
        submit(pay, replace(order, domain=domain_of(evm, pay, **change)), keeper)


def test_reverts_for_the_mirrored_signature(pay: Contract, order: Order, payer: Actor, keeper: Actor) -> None:
    with reverts(NOT_SIGNED):
        submit(pay, order, keeper, flip_signature(order.sign(payer.key)))


def test_reverts_for_v_zero_or_one(pay: Contract, order: Order, payer: Actor, keeper: Actor) -> None:
    with reverts(NOT_SIGNED):
        submit(pay, order, keeper, v_from_zero(order.sign(payer.key)))


@pytest.mark.parametrize("size", [0, 64, 66, 1024])
def test_reverts_for_another_length(pay: Contract, order: Order, payer: Actor, keeper: Actor, size: int) -> None:
    with reverts(NOT_SIGNED):
        submit(pay, order, keeper, order.sign(payer.key).ljust(size, b"\0")[:size])


def test_reverts_for_zeros_and_the_zero_payer(pay: Contract, order: Order, keeper: Actor) -> None:
    """An invalid signature recovers to the zero address, which must not be taken for a signer."""
    with reverts(NOT_SIGNED):
        submit(pay, replace(order, terms=replace(order.terms, payer=COIN)), keeper, bytes(65))


def test_a_wallet_signs_by_its_contract(
    pay: Contract, deploy: Callable[..., Contract], money: Money, order: Order, payer: Actor, keeper: Actor
) -> None:
    wallet = deploy("SigningWallet", payer)
    money.give(keeper, DEPOSIT, pay)
    pay.deposit_for(wallet.address, money.address, DEPOSIT, sender=keeper, value=money.value(DEPOSIT))
    theirs = replace(order, terms=replace(order.terms, payer=wallet.address))
    submit(pay, theirs, keeper, theirs.sign(payer.key))
    assert state_of(pay, theirs.terms) != NO_STREAM
    assert pay.balance_of(money.address, wallet.address) == 0
    assert pay.balance_of(money.address, payer) == DEPOSIT + 7


def test_reverts_where_the_wallets_contract_refuses(
    pay: Contract, deploy: Callable[..., Contract], order: Order, payer: Actor, attacker: Actor
) -> None:
    for wallet in (deploy("RefusingWallet"), deploy("SigningWallet", payer)):
        theirs = replace(order, terms=replace(order.terms, payer=wallet.address))
        with reverts("signatures: refused by the account's contract"):
            submit(pay, theirs, attacker, theirs.sign(attacker.key))


def test_reverts_where_the_contract_knows_no_signatures(
    pay: Contract, deploy: Callable[..., Contract], order: Order, attacker: Actor
) -> None:
    theirs = replace(order, terms=replace(order.terms, payer=deploy("PlainToken").address))
    with reverts("0x"):
        submit(pay, theirs, attacker, theirs.sign(attacker.key))


@pytest.mark.parametrize("kind", ["SigningWallet", "RefusingWallet"])
def test_an_account_that_carries_code_may_sign_with_its_key(
    pay: Contract, evm: Chain, deploy: Callable[..., Contract], order: Order, payer: Actor, keeper: Actor, kind: str
) -> None:
    """EIP-7702: the payer's own account delegates to a contract, and its key still counts."""
    wallet = deploy(kind, *([keeper] if kind == "SigningWallet" else []))
    evm.rpc("anvil_setCode", payer, "0xef0100" + wallet.address[2:].lower())
    submit(pay, order, keeper)
    assert state_of(pay, order.terms) != NO_STREAM


def test_an_account_that_carries_code_may_sign_by_its_contract(
    pay: Contract, evm: Chain, deploy: Callable[..., Contract], order: Order, payer: Actor, keeper: Actor
) -> None:
    wallet = deploy("SigningWallet", keeper)
    evm.rpc("anvil_setCode", payer, "0xef0100" + wallet.address[2:].lower())
    submit(pay, order, keeper, order.sign(keeper.key))
    assert state_of(pay, order.terms) != NO_STREAM


# ERC-2612


def test_a_permit_pays(pay: Contract, evm: Chain, usd: Contract, usd_order: Order, payer: Actor, keeper: Actor) -> None:
    permit = permit_2612(evm, usd, payer, pay.address, DEPOSIT)
    receipt = submit(pay, usd_order, keeper, permit=permit)
    assert receipt.log("Opened")["from_vault"] == 0
    assert (usd.balanceOf(payer), usd.balanceOf(pay.address)) == (7, DEPOSIT)
    assert usd.allowance(payer, pay.address) == 0


def test_a_permit_that_somebody_submitted_before_still_pays(
    pay: Contract, evm: Chain, usd: Contract, usd_order: Order, payer: Actor, keeper: Actor, attacker: Actor
) -> None:
    permit = permit_2612(evm, usd, payer, pay.address, DEPOSIT)
    s = permit[4]
    usd.permit(payer, pay.address, DEPOSIT, MAX, s[64], s[:32], s[32:64], sender=attacker)
    submit(pay, usd_order, keeper, permit=permit)
    assert usd.balanceOf(pay.address) == DEPOSIT


def test_reverts_where_the_permit_is_too_small(
    pay: Contract, evm: Chain, usd: Contract, usd_order: Order, payer: Actor, keeper: Actor
) -> None:
    with pytest.raises(Reverted) as caught:
        submit(pay, usd_order, keeper, permit=permit_2612(evm, usd, payer, pay.address, DEPOSIT - 1))
    assert caught.value.data.startswith("0xfb8f41b2")  # ERC20InsufficientAllowance


@pytest.mark.parametrize("wrong", ["signer", "spender", "deadline"])
def test_reverts_where_the_permit_is_not_good(
    pay: Contract, evm: Chain, usd: Contract, usd_order: Order, payer: Actor, keeper: Actor, wrong: str
) -> None:
    spender = keeper if wrong == "spender" else pay.address
    permit = permit_2612(evm, usd, payer, spender, DEPOSIT, deadline=evm.now - 1 if wrong == "deadline" else MAX)
    if wrong == "signer":
        permit = (*permit[:4], permit_2612(evm, usd, keeper, spender, DEPOSIT)[4])
    with pytest.raises(Reverted) as caught:
        submit(pay, usd_order, keeper, permit=permit)
    assert caught.value.data.startswith("0xfb8f41b2")


def test_reverts_where_the_permits_signature_is_not_65_bytes(pay: Contract, usd_order: Order, keeper: Actor) -> None:
    with reverts("vault: permit signature is not 65 bytes"):
        submit(pay, usd_order, keeper, permit=(ERC2612, DEPOSIT, 0, MAX, bytes(64)))


def test_a_token_without_permits_needs_an_allowance(
    pay: Contract, evm: Chain, token: Contract, token_order: Order, payer: Actor, keeper: Actor
) -> None:
    permit = (ERC2612, DEPOSIT, 0, MAX, bytes(65))
    with pytest.raises(Reverted):
        submit(pay, token_order, keeper, permit=permit)
    token.approve(pay.address, DEPOSIT, sender=payer)
    submit(pay, token_order, keeper, permit=permit)


# Permit2


@pytest.fixture
def permitted(permit2: Contract, token: Contract, token_order: Order, payer: Actor) -> Order:
    token.approve(permit2.address, MAX, sender=payer)
    return token_order


def test_permit2_pays_in_whole_and_the_vault_pays_the_stream(
    pay: Contract, evm: Chain, permit2: Contract, tokens: Money, permitted: Order, payer: Actor, keeper: Actor
) -> None:
    tokens.give(payer, 50)
    permit = permit_permit2(evm, permit2, tokens.address, payer, pay.address, DEPOSIT + 50)
    receipt = submit(pay, permitted, keeper, permit=permit)
    assert receipt.log("Deposited") == {
        "token": tokens.address,
        "account": payer,
        "funder": payer,
        "amount": DEPOSIT + 50,
    }
    assert receipt.log("Opened")["from_vault"] == DEPOSIT
    assert (pay.balance_of(tokens.address, payer), tokens.held(payer)) == (50, 0)
    assert tokens.held(pay.address) == DEPOSIT + 50


def test_permit2_and_the_vault_together(
    pay: Contract, evm: Chain, permit2: Contract, tokens: Money, permitted: Order, payer: Actor, keeper: Actor
) -> None:
    fill_vault(pay, tokens, payer, 10)
    permit = permit_permit2(evm, permit2, tokens.address, payer, pay.address, DEPOSIT - 10)
    submit(pay, permitted, keeper, permit=permit)
    assert (pay.balance_of(tokens.address, payer), tokens.held(payer)) == (0, 10)


def test_permit2_and_the_allowance_together(
    pay: Contract,
    evm: Chain,
    permit2: Contract,
    tokens: Money,
    token: Contract,
    permitted: Order,
    payer: Actor,
    keeper: Actor,
) -> None:
    """Tokens come in twice in one transaction, and are measured each time."""
    token.approve(pay.address, 10, sender=payer)
    permit = permit_permit2(evm, permit2, tokens.address, payer, pay.address, DEPOSIT - 10)
    receipt = submit(pay, permitted, keeper, permit=permit)
    assert receipt.log("Deposited")["amount"] == receipt.log("Opened")["from_vault"] == DEPOSIT - 10
    assert (pay.balance_of(tokens.address, payer), tokens.held(payer)) == (0, 0)
    assert tokens.held(pay.address) == state_of(pay, permitted.terms).deposit == DEPOSIT


def test_reverts_where_permit2_is_too_small(
    pay: Contract, evm: Chain, permit2: Contract, tokens: Money, permitted: Order, payer: Actor, keeper: Actor
) -> None:
    permit = permit_permit2(evm, permit2, tokens.address, payer, pay.address, DEPOSIT - 1)
    with pytest.raises(Reverted):
        submit(pay, permitted, keeper, permit=permit)


def test_reverts_where_permit2_was_used_before(
    pay: Contract, evm: Chain, permit2: Contract, tokens: Money, permitted: Order, payer: Actor, keeper: Actor
) -> None:
    permit = permit_permit2(evm, permit2, tokens.address, payer, pay.address, DEPOSIT)
    submit(pay, permitted, keeper, permit=permit)
    tokens.give(payer, DEPOSIT)
    again = replace(permitted, nonce=1, terms=permitted.terms.with_offer(2))
    with reverts("permit2: invalid nonce"):
        submit(pay, again, keeper, permit=permit)


def test_reverts_where_permit2_was_signed_for_another_spender(
    pay: Contract, evm: Chain, permit2: Contract, tokens: Money, permitted: Order, payer: Actor, keeper: Actor
) -> None:
    permit = permit_permit2(evm, permit2, tokens.address, payer, keeper, DEPOSIT)
    with reverts("permit2: invalid signer"):
        submit(pay, permitted, keeper, permit=permit)


def test_a_permit_of_somebody_else_pays_for_nobody(
    pay: Contract, evm: Chain, permit2: Contract, tokens: Money, permitted: Order, payer: Actor, attacker: Actor
) -> None:
    """The attacker signs an order of its own and passes the payer's permit along with it."""
    permit = permit_permit2(evm, permit2, tokens.address, payer, pay.address, DEPOSIT)
    theirs = replace(permitted, terms=replace(permitted.terms, payer=attacker))
    with reverts("permit2: invalid signer"):
        submit(pay, theirs, attacker, permit=permit)


def test_reverts_where_there_is_no_permit2(
    deploy: Callable[..., Contract], evm: Chain, tokens: Money, token_order: Order, keeper: Actor
) -> None:
    plain = deploy("StreamPay", keeper, COIN)
    order = replace(token_order, domain=domain_of(evm, plain))
    with reverts("vault: no Permit2 on this chain"):
        submit(plain, order, keeper, permit=(PERMIT2, DEPOSIT, 0, MAX, bytes(65)))
