"""StreamPay.settle_many"""

import pytest

from penstock.channels import ChannelState
from tests.contracts.harness import COIN, Actor, Money, Terms, reverts
from tests.contracts.vouchers import DEPOSIT, batch, channel_of, close, open_channel, settle, voucher
from tests.fastchain import Chain, Contract, Reverted


@pytest.fixture
def many(pay: Contract, money: Money, terms: Terms, attacker: Actor) -> list[Terms]:
    """Three channels to one payee; the last has another payer and another session key."""
    other = Terms(attacker, terms.payee, terms.token, session_key=attacker)
    found = [terms, terms.with_offer(2), other]
    for one in found[1:]:
        open_channel(pay, money, one)
    return found


def test_settles_all_and_credits_once(
    pay: Contract, evm: Chain, many: list[Terms], payee: Actor, keeper: Actor, attacker: Actor
) -> None:
    vouchers = batch(evm, pay, (many[0], 10), (many[1], 200))
    vouchers.append((*many[2].source, 3_000, voucher(evm, pay, many[2], 3_000, key=attacker.key)))
    receipt = pay.settle_many(many[0].token, payee, vouchers, sender=keeper)
    assert receipt.result == 3_210
    assert [(log.name, log.args) for log in receipt.logs] == [
        ("ChannelSettled", {"id": terms.id, "cumulative": cumulative})
        for terms, cumulative in zip(many, (10, 200, 3_000), strict=True)
    ]
    assert [channel_of(pay, terms).settled for terms in many] == [10, 200, 3_000]
    assert pay.balance_of(many[0].token, payee) == pay.settled_of(many[0].token, payee) == 3_210


def test_passes_over_what_adds_nothing(pay: Contract, evm: Chain, many: list[Terms], payee: Actor) -> None:
    """A finished channel and an old voucher, which the payer could bring about at any time, stop no batch."""
    one, two, three = many
    close(pay, one, 10, voucher(evm, pay, one, 10))
    settle(evm, pay, two, 200, sender=payee)
    old = batch(evm, pay, (one, 10), (one, 11), (two, 199), (two, 200))
    garbage = (*three.source, 0, b"")
    receipt = pay.settle_many(one.token, payee, [*old, garbage, *batch(evm, pay, (two, 201))], sender=payee)
    assert receipt.result == 1
    assert [log.name for log in receipt.logs] == ["ChannelSettled"]
    assert channel_of(pay, one) == ChannelState(DEPOSIT, 10, 0, True)
    assert pay.balance_of(one.token, payee) == 211


def test_a_voucher_counts_once_in_a_batch(pay: Contract, evm: Chain, terms: Terms, payee: Actor) -> None:
    vouchers = batch(evm, pay, (terms, 10), (terms, 10), (terms, 30), (terms, 20))
    assert pay.settle_many(terms.token, payee, vouchers, sender=payee).result == 30
    assert pay.balance_of(terms.token, payee) == 30


def test_reverts_where_nothing_is_to_settle(pay: Contract, evm: Chain, terms: Terms, payee: Actor) -> None:
    settle(evm, pay, terms, 10, sender=payee)
    for vouchers in ([], batch(evm, pay, (terms, 10), (terms, 9))):
        with reverts("channels: nothing to settle"):
            pay.settle_many(terms.token, payee, vouchers, sender=payee)


def test_reverts_where_one_is_not_signed(
    pay: Contract, evm: Chain, many: list[Terms], payee: Actor, attacker: Actor
) -> None:
    vouchers = batch(evm, pay, (many[0], 10), (many[2], 10))  # the other session key's channel
    with reverts("channels: voucher not signed by the session key"):
        pay.settle_many(many[0].token, payee, vouchers, sender=payee)
    assert channel_of(pay, many[0]).settled == 0


def test_reverts_where_one_is_above_its_deposit(pay: Contract, evm: Chain, many: list[Terms], payee: Actor) -> None:
    with reverts("channels: voucher above the deposit"):
        pay.settle_many(many[0].token, payee, batch(evm, pay, (many[0], 10), (many[1], DEPOSIT + 1)), sender=payee)


def test_reverts_where_one_signature_is_short(pay: Contract, evm: Chain, terms: Terms, payee: Actor) -> None:
    with reverts("channels: voucher signature is not 65 bytes"):
        pay.settle_many(terms.token, payee, [(*terms.source, 10, b"\1" * 64)], sender=payee)


@pytest.mark.parametrize("which", ["token", "payee"])
def test_reverts_for_another_token_or_payee(
    pay: Contract, evm: Chain, tokens: Money, terms: Terms, payee: Actor, attacker: Actor, which: str
) -> None:
    """They are part of the id: vouchers of one payee are nothing to another."""
    token = (tokens.address if terms.token == COIN else COIN) if which == "token" else terms.token
    with reverts("channels: voucher above the deposit"):
        pay.settle_many(token, attacker if which == "payee" else payee, batch(evm, pay, (terms, 10)), sender=attacker)


def test_settles_two_hundred_and_no_more(
    pay: Contract, evm: Chain, coins: Money, payer: Actor, payee: Actor, keeper: Actor
) -> None:
    every = [Terms(payer, payee, COIN).with_offer(number) for number in range(200)]
    for terms in every:
        open_channel(pay, coins, terms, deposit=3)
    vouchers = batch(evm, pay, *((terms, 2) for terms in every))
    with pytest.raises(Reverted):
        pay.settle_many(COIN, payee, [*vouchers, vouchers[0]], sender=keeper)
    assert pay.settle_many(COIN, payee, vouchers, sender=keeper).result == 400
    assert pay.balance_of(COIN, payee) == 400


def test_works_while_paused(pay: Contract, evm: Chain, terms: Terms, payee: Actor, guardian: Actor) -> None:
    pay.set_paused(True, sender=guardian)
    assert pay.settle_many(terms.token, payee, batch(evm, pay, (terms, 10)), sender=payee).result == 10
