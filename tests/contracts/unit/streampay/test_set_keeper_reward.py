"""StreamPay.set_keeper_reward, and what it does to `collect`"""

import pytest

from tests.contracts.harness import DURATION, Actor, Money, Terms, open_stream, state_of
from tests.fastchain import Chain, Contract

RATE = 123_456_789_000  # 123,456.789 base units a second


@pytest.fixture
def terms(pay: Contract, money: Money, payer: Actor, payee: Actor) -> Terms:
    terms = Terms(payer, payee, money.address)
    open_stream(pay, money, terms, rate=RATE)
    return terms


def collect(pay: Contract, terms: Terms, sender: str) -> int:
    due: int = pay.collect(terms.token, terms.payee, [terms.source], sender=sender).result
    return due


def test_the_payee_says_so_for_itself(pay: Contract, payee: Actor, payer: Actor) -> None:
    assert pay.rewards_keepers(payee) is False
    receipt = pay.set_keeper_reward(True, sender=payee)
    assert receipt.log("KeeperRewardChanged") == {"payee": payee, "enabled": True}
    assert pay.rewards_keepers(payee) is True
    assert pay.rewards_keepers(payer) is False
    receipt = pay.set_keeper_reward(False, sender=payee)
    assert receipt.log("KeeperRewardChanged") == {"payee": payee, "enabled": False}
    assert pay.rewards_keepers(payee) is False


def test_the_keeper_gets_a_thousandth_out_of_the_payees_part(
    pay: Contract, evm: Chain, money: Money, terms: Terms, payee: Actor, keeper: Actor, payer: Actor
) -> None:
    pay.set_keeper_reward(True, sender=payee)
    held = money.held(pay.address)
    evm.sleep(100)
    refundable = pay.refundable(terms.id)
    receipt = pay.collect(terms.token, payee, [terms.source], sender=keeper)
    due = 12_345_679
    assert receipt.result == due
    assert receipt.log("Withdrawn")["amount"] == due
    assert receipt.log("KeeperPaid") == {
        "token": terms.token,
        "payee": payee,
        "keeper": keeper,
        "amount": due // 1_000,
    }
    assert pay.balance_of(terms.token, keeper) == due // 1_000 == 12_345
    assert pay.settled_of(terms.token, keeper) == 0
    assert pay.balance_of(terms.token, payee) == pay.settled_of(terms.token, payee) == due - due // 1_000
    assert pay.refundable(terms.id) == refundable
    assert money.held(pay.address) == held


def test_without_consent_there_is_none(pay: Contract, evm: Chain, terms: Terms, payee: Actor, keeper: Actor) -> None:
    evm.sleep(100)
    receipt = pay.collect(terms.token, payee, [terms.source], sender=keeper)
    assert [log.name for log in receipt.logs] == ["Withdrawn"]
    assert pay.balance_of(terms.token, keeper) == 0


def test_the_payee_pays_itself_none(pay: Contract, evm: Chain, terms: Terms, payee: Actor) -> None:
    pay.set_keeper_reward(True, sender=payee)
    evm.sleep(100)
    assert collect(pay, terms, payee) == pay.balance_of(terms.token, payee)


def test_collecting_every_second_earns_no_more(
    pay: Contract, evm: Chain, terms: Terms, payee: Actor, keeper: Actor, attacker: Actor
) -> None:
    pay.set_keeper_reward(True, sender=payee)
    with evm.snapshot():
        evm.sleep(30)
        collect(pay, terms, keeper)
        at_once = pay.balance_of(terms.token, keeper)
    for _ in range(30):
        evm.sleep(1)
        collect(pay, terms, attacker)
    assert 0 < pay.balance_of(terms.token, attacker) <= at_once


def test_a_reward_is_never_paid_twice(
    pay: Contract, evm: Chain, money: Money, terms: Terms, payer: Actor, payee: Actor, keeper: Actor
) -> None:
    """The field's mistake: a reward that the cancel refunds again drains the others."""
    pay.set_keeper_reward(True, sender=payee)
    deposit = state_of(pay, terms).deposit
    evm.sleep(100)
    collect(pay, terms, keeper)
    pay.cancel(payee, terms.token, terms.session_key, terms.offer_id, payer, sender=payer)
    for account in (payee, keeper):
        pay.withdraw_vault(terms.token, pay.balance_of(terms.token, account), account, sender=account)
    assert money.held(payer) + money.held(payee) + money.held(keeper) == deposit
    assert money.held(pay.address) == 0


def test_a_cancel_or_a_close_pays_no_reward(
    pay: Contract, evm: Chain, terms: Terms, payer: Actor, payee: Actor
) -> None:
    pay.set_keeper_reward(True, sender=payee)
    evm.sleep(100)
    receipt = pay.cancel(payee, terms.token, terms.session_key, terms.offer_id, payer, sender=payer)
    assert [log.name for log in receipt.logs] == ["Closed"]
    assert pay.balance_of(terms.token, payee) == receipt.log("Closed")["paid"]


def test_an_amount_too_small_for_a_reward_goes_to_the_payee_whole(
    pay: Contract, evm: Chain, money: Money, payer: Actor, payee: Actor, keeper: Actor
) -> None:
    pay.set_keeper_reward(True, sender=payee)
    terms = Terms(payer, payee, money.address)
    open_stream(pay, money, terms, rate=9_990_000, duration=DURATION)
    evm.sleep(100)
    receipt = pay.collect(terms.token, payee, [terms.source], sender=keeper)
    assert receipt.result == pay.balance_of(terms.token, payee) == 999
    assert [log.name for log in receipt.logs] == ["Withdrawn"]
