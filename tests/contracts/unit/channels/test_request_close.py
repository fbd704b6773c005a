"""StreamPay.request_close"""

import pytest

from penstock.channels import CLOSE_DELAY, ChannelState
from tests.contracts.harness import SESSION, Actor, Money, Terms, reverts
from tests.contracts.vouchers import DEPOSIT, channel_of, close, reclaim, request_close, settle
from tests.fastchain import Chain, Contract


def test_starts_fifteen_minutes(pay: Contract, evm: Chain, money: Money, terms: Terms) -> None:
    receipt = request_close(pay, terms)
    assert CLOSE_DELAY == 900
    assert receipt.log("ChannelCloseRequested") == {"id": terms.id, "reclaimable_at": evm.now + 900}
    assert [log.name for log in receipt.logs] == ["ChannelCloseRequested"]
    assert channel_of(pay, terms) == ChannelState(DEPOSIT, 0, evm.now, False)
    assert channel_of(pay, terms).reclaimable_at == evm.now + 900
    assert money.held(pay.address) == DEPOSIT


def test_leaves_what_is_settled(pay: Contract, evm: Chain, terms: Terms, payee: Actor) -> None:
    settle(evm, pay, terms, 400, sender=payee)
    request_close(pay, terms)
    assert channel_of(pay, terms) == ChannelState(DEPOSIT, 400, evm.now, False)


@pytest.mark.parametrize("seconds", [0, 1, CLOSE_DELAY - 1, CLOSE_DELAY])
def test_reverts_the_second_time(pay: Contract, evm: Chain, terms: Terms, payer: Actor, seconds: int) -> None:
    """The timer can be started once; nobody can start it anew."""
    request_close(pay, terms)
    asked = evm.now
    evm.sleep(seconds)
    with reverts("channels: already requested"):
        request_close(pay, terms)
    assert channel_of(pay, terms).requested_at == asked


@pytest.mark.parametrize("who", ["payee", "attacker", "guardian", "session"])
def test_nobody_else_can_ask(pay: Contract, terms: Terms, request: pytest.FixtureRequest, who: str) -> None:
    with reverts("channels: no such channel"):
        request_close(pay, terms, sender=SESSION if who == "session" else request.getfixturevalue(who))


def test_reverts_where_there_is_no_such_channel(pay: Contract, terms: Terms) -> None:
    with reverts("channels: no such channel"):
        request_close(pay, terms.with_offer(2))


def test_reverts_where_it_is_finished(pay: Contract, terms: Terms) -> None:
    close(pay, terms)
    with reverts("channels: finished"):
        request_close(pay, terms)


def test_works_while_paused(pay: Contract, evm: Chain, terms: Terms, payer: Actor, guardian: Actor) -> None:
    pay.set_paused(True, sender=guardian)
    request_close(pay, terms)
    evm.sleep(CLOSE_DELAY)
    reclaim(pay, terms)
    assert pay.balance_of(terms.token, payer) == DEPOSIT
