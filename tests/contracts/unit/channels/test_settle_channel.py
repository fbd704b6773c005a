"""StreamPay.settle_channel"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from penstock.channels import CLOSE_DELAY, ChannelState
from tests.contracts.harness import (
    COIN,
    MAX,
    SESSION,
    Actor,
    Money,
    Terms,
    domain_of,
    flip_signature,
    reverts,
    sign_typed,
    v_from_zero,
)
from tests.contracts.vouchers import (
    DEPOSIT,
    channel_of,
    close,
    open_channel,
    reclaim,
    request_close,
    settle,
    top_up,
    voucher,
)
from tests.fastchain import Chain, Contract, Reverted


def test_credits_what_the_voucher_adds(
    pay: Contract, evm: Chain, money: Money, terms: Terms, payee: Actor, keeper: Actor
) -> None:
    receipt = settle(evm, pay, terms, 400, sender=keeper)
    assert receipt.result == 400
    assert receipt.log("ChannelSettled") == {"id": terms.id, "cumulative": 400}
    assert [log.name for log in receipt.logs] == ["ChannelSettled"]
    receipt = settle(evm, pay, terms, 1_001, sender=payee)
    assert receipt.result == 601
    assert receipt.log("ChannelSettled") == {"id": terms.id, "cumulative": 1_001}
    assert channel_of(pay, terms) == ChannelState(DEPOSIT, 1_001, 0, False)
    assert pay.balance_of(terms.token, payee) == pay.settled_of(terms.token, payee) == 1_001
    assert pay.balance_of(terms.token, keeper) == 0
    assert money.held(pay.address) == DEPOSIT


def test_settles_the_whole_deposit(
    pay: Contract, evm: Chain, money: Money, terms: Terms, payee: Actor, payer: Actor
) -> None:
    settle(evm, pay, terms, DEPOSIT, sender=payee)
    pay.withdraw_vault(terms.token, DEPOSIT, payee, sender=payee)
    assert (money.held(payee), money.held(pay.address)) == (DEPOSIT, 0)
    assert channel_of(pay, terms) == ChannelState(DEPOSIT, DEPOSIT, 0, False)


def test_a_top_up_lets_vouchers_go_on(
    pay: Contract, evm: Chain, money: Money, terms: Terms, payer: Actor, payee: Actor
) -> None:
    settle(evm, pay, terms, DEPOSIT, sender=payee)
    signature = voucher(evm, pay, terms, DEPOSIT + 5)
    with reverts("channels: voucher above the deposit"):
        settle(evm, pay, terms, DEPOSIT + 5, sender=payee, signature=signature)
    money.give(payer, 5, pay)
    top_up(pay, terms, 5, sender=payer, value=money.value(5))
    assert settle(evm, pay, terms, DEPOSIT + 5, sender=payee, signature=signature).result == 5


def test_reverts_for_the_same_voucher_again(pay: Contract, evm: Chain, terms: Terms, payee: Actor) -> None:
    settle(evm, pay, terms, 400, sender=payee)
    with reverts("channels: nothing to settle"):
        settle(evm, pay, terms, 400, sender=payee)
    assert pay.balance_of(terms.token, payee) == 400


@pytest.mark.parametrize("cumulative", [0, 1, 399])
def test_reverts_for_a_lower_voucher(pay: Contract, evm: Chain, terms: Terms, payee: Actor, cumulative: int) -> None:
    settle(evm, pay, terms, 400, sender=payee)
    with reverts("channels: nothing to settle"):
        settle(evm, pay, terms, cumulative, sender=payee)


def test_reverts_for_a_voucher_of_nothing(pay: Contract, evm: Chain, terms: Terms, payee: Actor) -> None:
    with reverts("channels: nothing to settle"):
        settle(evm, pay, terms, 0, sender=payee)


@pytest.mark.parametrize("excess", [1, 2**96, 2**127])
def test_reverts_above_the_deposit(pay: Contract, evm: Chain, terms: Terms, payee: Actor, excess: int) -> None:
    with reverts("channels: voucher above the deposit"):
        settle(evm, pay, terms, DEPOSIT + excess, sender=payee)


def test_reverts_for_a_sum_of_256_bits(pay: Contract, evm: Chain, terms: Terms, payee: Actor) -> None:
    with reverts("channels: voucher above the deposit"):
        settle(evm, pay, terms, MAX, sender=payee, signature=voucher(evm, pay, terms, 5))


@pytest.mark.parametrize("who", ["payer", "payee", "attacker"])
def test_reverts_for_another_key(
    pay: Contract, evm: Chain, terms: Terms, payee: Actor, request: pytest.FixtureRequest, who: str
) -> None:
    """The payer's own key is another key, too: vouchers are the session key's alone."""
    signature = voucher(evm, pay, terms, 5, key=request.getfixturevalue(who).key)
    with reverts("channels: voucher not signed by the session key"):
        settle(evm, pay, terms, 5, sender=payee, signature=signature)


def test_reverts_for_another_sum(pay: Contract, evm: Chain, terms: Terms, payee: Actor) -> None:
    with reverts("channels: voucher not signed by the session key"):
        settle(evm, pay, terms, 6, sender=payee, signature=voucher(evm, pay, terms, 5))


@pytest.mark.parametrize(
    "change", [{"chainId": 56}, {"name": "Penstock Session"}, {"version": "2"}, {"verifyingContract": "0x" + "11" * 20}]
)
def test_reverts_for_another_domain(
    pay: Contract, evm: Chain, terms: Terms, payee: Actor, change: dict[str, Any]
) -> None:
    with reverts("channels: voucher not signed by the session key"):
        settle(evm, pay, terms, 5, sender=payee, signature=voucher(evm, pay, terms, 5, **change))


def test_reverts_for_a_voucher_of_another_channel(
    pay: Contract, evm: Chain, money: Money, terms: Terms, payee: Actor
) -> None:
    other = terms.with_offer(2)
    open_channel(pay, money, other)
    with reverts("channels: voucher not signed by the session key"):
        settle(evm, pay, terms, 5, sender=payee, signature=voucher(evm, pay, other, 5))


def test_reverts_for_a_voucher_of_another_payees_channel(
    pay: Contract, evm: Chain, money: Money, terms: Terms, keeper: Actor
) -> None:
    """One session key, two providers: what one has earned the other cannot cash."""
    other = replace(terms, payee=keeper)
    open_channel(pay, money, other)
    with reverts("channels: voucher not signed by the session key"):
        settle(evm, pay, other, 5, sender=keeper, signature=voucher(evm, pay, terms, 5))


def test_reverts_for_another_type_of_message(pay: Contract, evm: Chain, terms: Terms, payee: Actor) -> None:
    fields = {"channelId": "bytes32", "cumulativeAmount": "uint256"}
    message = {"channelId": terms.id, "cumulativeAmount": 5}
    signature = sign_typed(SESSION.key, domain_of(evm, pay), {"Voucher": fields}, message)
    with reverts("channels: voucher not signed by the session key"):
        settle(evm, pay, terms, 5, sender=payee, signature=signature)


@pytest.mark.parametrize(
    "mangle", [flip_signature, v_from_zero, lambda s: s[:64] + b"\x1d", lambda s: bytes(65), lambda s: b"\xff" * 65]
)
def test_reverts_for_a_mangled_signature(
    pay: Contract, evm: Chain, terms: Terms, payee: Actor, mangle: Callable[[bytes], bytes]
) -> None:
    with reverts("channels: voucher not signed by the session key"):
        settle(evm, pay, terms, 5, sender=payee, signature=mangle(voucher(evm, pay, terms, 5)))


@pytest.mark.parametrize("length", [0, 1, 63, 64])
def test_reverts_for_a_short_signature(pay: Contract, evm: Chain, terms: Terms, payee: Actor, length: int) -> None:
    with reverts("channels: voucher signature is not 65 bytes"):
        settle(evm, pay, terms, 5, sender=payee, signature=voucher(evm, pay, terms, 5)[:length])


def test_a_long_signature_does_not_decode(pay: Contract, evm: Chain, terms: Terms, payee: Actor) -> None:
    with reverts("0x"):
        settle(evm, pay, terms, 5, sender=payee, signature=voucher(evm, pay, terms, 5) + b"\0")


def test_a_contract_cannot_be_a_session_key(
    pay: Contract, evm: Chain, coins: Money, deploy: Callable[..., Contract], payer: Actor, payee: Actor
) -> None:
    wallet = deploy("SigningWallet", payer)
    terms = Terms(payer, payee, COIN, session_key=wallet.address)
    open_channel(pay, coins, terms)
    with reverts("channels: voucher not signed by the session key"):
        settle(evm, pay, terms, 5, sender=payee, signature=voucher(evm, pay, terms, 5, key=payer.key))


def test_reverts_where_there_is_no_such_channel(pay: Contract, evm: Chain, terms: Terms, payee: Actor) -> None:
    with reverts("channels: voucher above the deposit"):
        settle(evm, pay, terms.with_offer(2), 1, sender=payee)


@pytest.mark.parametrize("seconds", [0, 1, CLOSE_DELAY - 1, CLOSE_DELAY, 10**6])
def test_settles_after_a_request_to_close(pay: Contract, evm: Chain, terms: Terms, payee: Actor, seconds: int) -> None:
    """Fifteen minutes are the payee's for sure; and after them it may settle until the payer reclaims."""
    request_close(pay, terms)
    asked = evm.now
    evm.sleep(seconds)
    assert settle(evm, pay, terms, 5, sender=payee).result == 5
    assert channel_of(pay, terms) == ChannelState(DEPOSIT, 5, asked, False)


def test_reverts_where_it_is_finished(pay: Contract, evm: Chain, terms: Terms, payee: Actor) -> None:
    close(pay, terms, 400, voucher(evm, pay, terms, 400))
    for cumulative in (399, 400, 401, DEPOSIT, DEPOSIT + 1):
        with reverts("channels: nothing to settle"):
            settle(evm, pay, terms, cumulative, sender=payee)
    assert pay.balance_of(terms.token, payee) == 400


def test_reverts_where_it_is_reclaimed(pay: Contract, evm: Chain, terms: Terms, payee: Actor) -> None:
    request_close(pay, terms)
    evm.sleep(CLOSE_DELAY)
    reclaim(pay, terms)
    with reverts("channels: nothing to settle"):
        settle(evm, pay, terms, 400, sender=payee)
    assert pay.balance_of(terms.token, payee) == 0


def test_works_while_paused(pay: Contract, evm: Chain, terms: Terms, payee: Actor, guardian: Actor) -> None:
    pay.set_paused(True, sender=guardian)
    assert settle(evm, pay, terms, 5, sender=payee).result == 5


def test_needs_nothing_of_the_token_nor_of_the_payee(
    pay: Contract, evm: Chain, deploy: Callable[..., Contract], payer: Actor, keeper: Actor
) -> None:
    token = deploy("BlockingToken")
    money = Money(evm, token.address, token)
    payee = deploy("RevertingReceiver")
    terms = Terms(payer, payee.address, token.address)
    open_channel(pay, money, terms)
    token.set_paused(True, sender=keeper)
    token.set_blocked(payee.address, True, sender=keeper)
    settle(evm, pay, terms, 5, sender=keeper)
    assert pay.balance_of(token.address, payee.address) == 5
    with pytest.raises(Reverted):
        pay.withdraw_vault(token.address, 5, payee.address, sender=payee.address)
    token.set_paused(False, sender=keeper)
    pay.withdraw_vault(token.address, 5, keeper, sender=payee.address)
    assert token.balanceOf(keeper) == 5
