"""StreamPay.open_channel"""

from collections.abc import Callable

import pytest

from penstock.channels import MAX_DEPOSIT, ChannelState
from tests.contracts.harness import (
    COIN,
    MAX,
    OFFER,
    SESSION,
    Actor,
    Money,
    Terms,
    fill_vault,
    open_stream,
    reverts,
    state_of,
)
from tests.contracts.vouchers import DEPOSIT, NO_CHANNEL, channel_of, close, open_channel, settle, voucher
from tests.fastchain import Chain, Contract, Reverted


def test_locks_the_deposit_under_the_id(pay: Contract, money: Money, payer: Actor, payee: Actor) -> None:
    terms = Terms(payer, payee, money.address)
    assert channel_of(pay, terms) == NO_CHANNEL
    money.give(payer, DEPOSIT + 5, pay)
    receipt = pay.open_channel(
        payee, money.address, SESSION, OFFER, DEPOSIT, 0, sender=payer, value=money.value(DEPOSIT)
    )
    assert receipt.result == terms.id == pay.stream_id(payer, payee, money.address, SESSION, OFFER)
    assert receipt.log("ChannelOpened") == {
        "id": terms.id,
        "payer": payer,
        "payee": payee,
        "token": money.address,
        "session_key": SESSION,
        "offer_id": OFFER,
        "deposit": DEPOSIT,
        "from_vault": 0,
    }
    assert [log.name for log in receipt.logs] == ["ChannelOpened"]
    assert channel_of(pay, terms) == ChannelState(DEPOSIT, 0, 0, False)
    assert (money.held(payer), money.held(pay.address)) == (5, DEPOSIT)
    assert pay.balance_of(money.address, payer) == pay.balance_of(money.address, payee) == 0


def attempt(pay: Contract, payer: str, receiver: str, *, value: int = DEPOSIT, **changes: object) -> None:
    arguments = {
        "payee": receiver,
        "token": COIN,
        "session_key": SESSION,
        "offer_id": OFFER,
        "deposit": DEPOSIT,
        "from_vault": 0,
    }
    pay.open_channel(*(arguments | changes).values(), sender=payer, value=value)


def test_reverts_for_the_zero_payee(pay: Contract, coins: Money, payer: Actor, payee: Actor) -> None:
    coins.give(payer, DEPOSIT)
    with reverts("channels: zero payee"):
        attempt(pay, payer, payee, payee=COIN)


def test_reverts_where_the_payer_is_the_payee(pay: Contract, coins: Money, payer: Actor) -> None:
    coins.give(payer, DEPOSIT)
    with reverts("channels: payer is the payee"):
        attempt(pay, payer, payer)


def test_reverts_for_the_zero_session_key(pay: Contract, coins: Money, payer: Actor, payee: Actor) -> None:
    """Where a signature is invalid, it recovers to the zero address: as a key that would sign everything."""
    coins.give(payer, DEPOSIT)
    with reverts("channels: zero session key"):
        attempt(pay, payer, payee, session_key=COIN)


def test_reverts_for_a_zero_deposit(pay: Contract, payer: Actor, payee: Actor) -> None:
    with reverts("channels: zero deposit"):
        attempt(pay, payer, payee, deposit=0, value=0)


@pytest.mark.parametrize("deposit", [MAX_DEPOSIT + 1, 2**192, MAX])
def test_reverts_beyond_96_bits(pay: Contract, payer: Actor, payee: Actor, deposit: int) -> None:
    with reverts("channels: deposit too large"):
        attempt(pay, payer, payee, deposit=deposit, value=0)


def test_takes_96_bits_and_one_unit(
    pay: Contract, evm: Chain, money: Money, payer: Actor, payee: Actor, keeper: Actor
) -> None:
    for deposit, offer in ((MAX_DEPOSIT, 1), (1, 2)):
        terms = Terms(payer, payee, money.address).with_offer(offer)
        open_channel(pay, money, terms, deposit=deposit)
        assert channel_of(pay, terms) == ChannelState(deposit, 0, 0, False)
        settle(evm, pay, terms, deposit, sender=keeper)
        assert channel_of(pay, terms) == ChannelState(deposit, deposit, 0, False)
        close(pay, terms)
        assert channel_of(pay, terms) == ChannelState(deposit, deposit, 0, True)
    assert pay.balance_of(money.address, payee) == MAX_DEPOSIT + 1


def test_reverts_where_it_is_already_open(pay: Contract, money: Money, payer: Actor, payee: Actor) -> None:
    terms = Terms(payer, payee, money.address)
    open_channel(pay, money, terms)
    with reverts("channels: already used"):
        open_channel(pay, money, terms, deposit=1)


def test_reverts_while_paused(pay: Contract, coins: Money, payer: Actor, payee: Actor, guardian: Actor) -> None:
    coins.give(payer, DEPOSIT)
    pay.set_paused(True, sender=guardian)
    with reverts("guardian: paused, only exits are open"):
        attempt(pay, payer, payee)
    pay.set_paused(False, sender=guardian)
    attempt(pay, payer, payee)


def test_reverts_where_the_value_is_too_low(pay: Contract, coins: Money, payer: Actor, payee: Actor) -> None:
    coins.give(payer, DEPOSIT)
    with reverts("vault: value too low"):
        attempt(pay, payer, payee, value=DEPOSIT - 1)


def test_reverts_where_value_and_vault_are_too_low(pay: Contract, coins: Money, payer: Actor, payee: Actor) -> None:
    fill_vault(pay, coins, payer, 9)
    coins.give(payer, DEPOSIT)
    with reverts("vault: balance too low"):
        attempt(pay, payer, payee, value=DEPOSIT - 10, from_vault=MAX)


def test_reverts_where_coins_come_with_a_token(
    pay: Contract, coins: Money, tokens: Money, payer: Actor, payee: Actor
) -> None:
    tokens.give(payer, DEPOSIT, pay)
    coins.give(payer, DEPOSIT)
    for value in (1, DEPOSIT):
        with reverts("vault: value sent with a token"):
            attempt(pay, payer, payee, token=tokens.address, value=value)


def test_reverts_where_the_allowance_is_short(
    pay: Contract, tokens: Money, token: Contract, payer: Actor, payee: Actor
) -> None:
    tokens.give(payer, DEPOSIT, pay)
    token.approve(pay.address, DEPOSIT - 1, sender=payer)
    with pytest.raises(Reverted):
        attempt(pay, payer, payee, token=tokens.address, value=0)


def test_reverts_where_the_token_keeps_a_fee(
    pay: Contract, evm: Chain, deploy: Callable[..., Contract], payer: Actor, payee: Actor
) -> None:
    token = deploy("FeeToken")
    money = Money(evm, token.address, token)
    token.set_fee(100, sender=payer)
    with reverts("vault: the token kept a fee, deposit first"):
        open_channel(pay, money, Terms(payer, payee, token.address))


def test_credits_coins_sent_in_excess(pay: Contract, coins: Money, payer: Actor, payee: Actor) -> None:
    coins.give(payer, DEPOSIT + 9)
    receipt = pay.open_channel(payee, COIN, SESSION, OFFER, DEPOSIT, MAX, sender=payer, value=DEPOSIT + 9)
    assert receipt.log("Deposited") == {"token": COIN, "account": payer, "funder": payer, "amount": 9}
    assert receipt.log("ChannelOpened")["from_vault"] == 0
    assert pay.balance_of(COIN, payer) == 9
    assert coins.held(pay.address) == DEPOSIT + 9


def test_takes_all_from_the_vault(pay: Contract, money: Money, payer: Actor, payee: Actor) -> None:
    fill_vault(pay, money, payer, DEPOSIT + 4)
    receipt = open_channel(pay, money, Terms(payer, payee, money.address), from_vault=MAX)
    assert receipt.log("ChannelOpened")["from_vault"] == DEPOSIT
    assert pay.balance_of(money.address, payer) == 4
    assert money.held(pay.address) == DEPOSIT + 4


@pytest.mark.parametrize("rest", [1, 1_000])
def test_takes_the_rest_from_outside(pay: Contract, money: Money, payer: Actor, payee: Actor, rest: int) -> None:
    fill_vault(pay, money, payer, DEPOSIT - rest)
    money.give(payer, rest, pay)
    receipt = pay.open_channel(
        payee, money.address, SESSION, OFFER, DEPOSIT, DEPOSIT - rest, sender=payer, value=money.value(rest)
    )
    assert receipt.log("ChannelOpened")["from_vault"] == DEPOSIT - rest
    assert pay.balance_of(money.address, payer) == 0
    assert (money.held(payer), money.held(pay.address)) == (0, DEPOSIT)


def test_spends_nothing_of_the_vault_unasked(pay: Contract, money: Money, payer: Actor, payee: Actor) -> None:
    fill_vault(pay, money, payer, DEPOSIT)
    open_channel(pay, money, Terms(payer, payee, money.address))
    assert pay.balance_of(money.address, payer) == DEPOSIT


@pytest.mark.parametrize("field", ["payee", "token", "session_key", "offer_id"])
def test_each_party_and_purpose_has_a_channel_of_its_own(
    pay: Contract, evm: Chain, coins: Money, tokens: Money, payer: Actor, payee: Actor, keeper: Actor, field: str
) -> None:
    mine = Terms(payer, payee, COIN)
    changes = {"payee": keeper, "token": tokens.address, "session_key": keeper, "offer_id": b"\1" * 32}
    other = Terms(**{**vars(mine), field: changes[field]})
    open_channel(pay, coins, mine)
    open_channel(pay, tokens if field == "token" else coins, other, deposit=5)
    settle(evm, pay, mine, 7, sender=keeper)
    assert channel_of(pay, mine) == ChannelState(DEPOSIT, 7, 0, False)
    assert channel_of(pay, other) == ChannelState(5, 0, 0, False)


def test_the_same_parties_may_hold_a_stream_and_a_channel_with_separate_money(
    pay: Contract, evm: Chain, money: Money, payer: Actor, payee: Actor
) -> None:
    terms = Terms(payer, payee, money.address)
    open_stream(pay, money, terms)
    open_channel(pay, money, terms)
    stream, channel = state_of(pay, terms), channel_of(pay, terms)
    assert money.held(pay.address) == stream.deposit + DEPOSIT

    settle(evm, pay, terms, 500, sender=payee)
    assert state_of(pay, terms) == stream
    evm.sleep(100)
    pay.cancel(payee, terms.token, SESSION, OFFER, COIN, sender=payer)
    assert channel_of(pay, terms) == channel.settled_to(500)
    assert pay.balance_of(terms.token, payer) == stream.refundable(evm.now)
    close(pay, terms, 600, voucher(evm, pay, terms, 600))
    earned = stream.deposit - stream.refundable(evm.now) + 600
    assert pay.balance_of(terms.token, payee) == pay.settled_of(terms.token, payee) == earned
    assert pay.balance_of(terms.token, payer) == stream.deposit + DEPOSIT - earned

    open_stream(pay, money, terms)  # a stream may come back; the channel may not
    with reverts("channels: already used"):
        open_channel(pay, money, terms)


def test_a_token_that_calls_back_cannot_open_it_twice(
    pay: Contract, evm: Chain, deploy: Callable[..., Contract], payee: Actor, keeper: Actor
) -> None:
    token = deploy("ReentrantToken")  # an account too: it is the payer itself
    token.mint(token.address, 2 * DEPOSIT, sender=keeper)
    evm.send(token.address, token.encode("approve", pay.address, MAX), sender=token.address)
    again = pay.encode("open_channel", payee, token.address, SESSION, OFFER, DEPOSIT, 0)
    for after_move in (False, True):
        token.arm(pay.address, again, after_move, False, sender=keeper)
        with evm.snapshot():
            receipt = token.execute(pay.address, 0, again, sender=keeper)
            assert receipt.log("CalledBack")["success"] is False
            assert receipt.log("ChannelOpened")["deposit"] == DEPOSIT
            assert token.balanceOf(pay.address) == DEPOSIT
