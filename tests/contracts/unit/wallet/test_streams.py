"""Streams that a key opens, tops up and stops; who may; where the money comes from and goes to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from penstock.accrual import flow
from tests.contracts.harness import DURATION, MAX, RATE, Actor, Money, fill_vault, reverts, state_of
from tests.contracts.unit.wallet.conftest import CHANNELS, DEPOSIT, FOREVER, STREAMS, Agent
from tests.fastchain import Chain, Contract


def test_open_counts_and_pays(agent: Agent) -> None:
    before = agent.worth
    done = agent.open()
    state = state_of(agent.pay, agent.terms)
    assert (state.deposit, state.rate, state.end - state.start) == (DEPOSIT, RATE, DURATION)
    assert done.result == agent.terms.id
    assert agent.worth == before - DEPOSIT
    assert agent.usage == (DEPOSIT, 0, 0, 0)
    assert agent.committed == (DEPOSIT, 0)
    assert done.log("Committed") == {
        "id": agent.terms.id,
        "token": agent.money.address,
        "key": agent.key,
        "payee": agent.payee,
        "offer_id": agent.terms.offer_id,
        "amount": DEPOSIT,
    }


@pytest.mark.parametrize("share", [0, 1, DEPOSIT - 1, DEPOSIT, DEPOSIT + 5])
def test_open_pays_from_the_vault_first(agent: Agent, share: int) -> None:
    if share:
        agent.fund_vault(share)
    held = agent.money.held(agent.wallet.address)
    agent.open()
    assert agent.vault == max(0, share - DEPOSIT)
    assert held - agent.money.held(agent.wallet.address) == DEPOSIT - min(share, DEPOSIT)


def test_open_says_what_is_lacking(evm: Chain, agent: Agent, owner: Actor) -> None:
    agent.wallet.withdraw(agent.money.address, 10**9 - DEPOSIT + 1, owner, sender=owner)
    with reverts("wallet: too few coins" if agent.money.token is None else "wallet: too few tokens"):
        agent.open()
    agent.fund(1)
    agent.open()
    assert agent.worth == 0


def test_cancel_gives_back_and_counts_what_was_spent(agent: Agent) -> None:
    before = agent.worth
    agent.open()
    agent.evm.sleep(7)
    done = agent.cancel()
    spent = flow(RATE, 7)
    assert done.result == DEPOSIT - spent
    assert agent.vault == DEPOSIT - spent
    assert agent.worth == before - spent
    assert agent.usage == (0, spent, spent, spent)
    assert done.log("Released") == {
        "id": agent.terms.id,
        "token": agent.money.address,
        "committed": DEPOSIT,
        "spent": spent,
    }
    assert agent.committed == (0, 0)


def test_top_up_counts_and_lasts(agent: Agent) -> None:
    agent.open()
    agent.evm.sleep(5)
    agent.wallet.top_up(*agent.parties(), 11, sender=agent.key)
    state = state_of(agent.pay, agent.terms)
    assert state.end - state.start == DURATION + 11
    assert agent.usage[0] == state.deposit == flow(RATE, DURATION + 11)
    refund = agent.cancel().result
    assert agent.usage == (0, *(3 * (flow(RATE, 5),)))
    assert refund == state.deposit - flow(RATE, 5)


def test_a_strangers_top_up_costs_the_wallet_nothing(agent: Agent, attacker: Actor, payee: Actor) -> None:
    before = agent.worth
    agent.open(duration=10)
    agent.money.give(attacker, 10**6, agent.pay)
    parties = (agent.wallet.address, *agent.parties())
    agent.pay.top_up(*parties, 10, 0, sender=attacker, value=agent.money.value(flow(RATE, 20) - flow(RATE, 10)))
    assert agent.usage[0] == flow(RATE, 10)
    agent.evm.sleep(15)
    agent.cancel()
    # What it lost, and no more, is what counts: here the stranger has paid for most of the five seconds.
    assert agent.usage == (0, *(3 * (before - agent.worth,)))
    assert before - agent.worth <= flow(RATE, 10)


def test_a_wallets_top_up_after_a_strangers(agent: Agent, attacker: Actor) -> None:
    before = agent.worth
    agent.open(duration=10)
    agent.money.give(attacker, 10**6, agent.pay)
    parties = (agent.wallet.address, *agent.parties())
    agent.pay.top_up(*parties, 3, 0, sender=attacker, value=agent.money.value(flow(RATE, 13) - flow(RATE, 10)))
    agent.wallet.top_up(*agent.parties(), 4, sender=agent.key)
    assert before - agent.worth == agent.usage[0] == flow(RATE, 10) + flow(RATE, 17) - flow(RATE, 13)


def test_top_up_needs_a_stream_of_the_wallet(agent: Agent) -> None:
    with reverts("wallet: no such stream"):
        agent.wallet.top_up(*agent.parties(), 1, sender=agent.key)
    agent.open()
    agent.pay.close(agent.wallet.address, *agent.parties()[1:], MAX, sender=agent.payee)
    with reverts("streams: no such stream"):
        agent.wallet.top_up(*agent.parties(), 1, sender=agent.key)


@pytest.mark.parametrize("waited", [0, 1, 50])
def test_what_the_payee_closed_is_released_by_anybody(agent: Agent, attacker: Actor, waited: int) -> None:
    agent.open()
    agent.evm.sleep(9)
    agent.pay.close(agent.wallet.address, *agent.parties()[1:], MAX, sender=agent.payee)
    agent.evm.sleep(waited)
    assert agent.usage[0] == DEPOSIT, "nobody has told the wallet"
    done = agent.wallet.release(agent.money.address, [agent.terms.id], sender=attacker)
    assert done.result == 1
    # StreamPay has forgotten when it ended: all that can have flowed by now.
    spent = flow(RATE, 9 + waited)
    assert agent.usage == (0, spent, spent, spent)


def test_what_ran_to_its_end_is_spent(agent: Agent, attacker: Actor) -> None:
    agent.open()
    agent.evm.sleep(DURATION - 1)
    with reverts("wallet: nothing to release"):
        agent.wallet.release(agent.money.address, [agent.terms.id], sender=attacker)
    agent.evm.sleep(1)
    agent.wallet.release(agent.money.address, [agent.terms.id], sender=attacker)
    assert agent.usage == (0, DEPOSIT, DEPOSIT, DEPOSIT)
    with reverts("wallet: nothing to release"):
        agent.wallet.release(agent.money.address, [agent.terms.id], sender=attacker)
    assert agent.cancel().result == 0, "it may be cleared all the same"
    assert agent.usage == (0, DEPOSIT, DEPOSIT, DEPOSIT)


def test_a_stream_settled_to_its_end_is_spent(agent: Agent, keeper: Actor) -> None:
    agent.open()
    agent.evm.sleep(2 * DURATION)
    agent.pay.collect(agent.money.address, agent.payee, [agent.terms.source], sender=keeper)
    agent.wallet.release(agent.money.address, [agent.terms.id], sender=keeper)
    assert agent.usage == (0, DEPOSIT, DEPOSIT, DEPOSIT)


def test_another_tokens_name_releases_nothing(agent: Agent, attacker: Actor) -> None:
    agent.open()
    agent.evm.sleep(DURATION)
    with reverts("wallet: nothing to release"):
        agent.wallet.release(attacker, [agent.terms.id], sender=attacker)


def test_what_was_opened_last_is_released_by_the_next_open(agent: Agent) -> None:
    agent.open()
    agent.evm.sleep(2)
    agent.pay.close(agent.wallet.address, *agent.parties()[1:], MAX, sender=agent.payee)
    agent.open(agent.terms.with_offer(2))
    assert agent.usage == (DEPOSIT, *(3 * (flow(RATE, 2),)))
    assert agent.committed == (0, 0)


def test_the_same_stream_again_releases_the_first(agent: Agent) -> None:
    agent.open()
    agent.open(agent.terms.with_offer(2))  # so that the first is not the latest
    agent.evm.sleep(3)
    agent.pay.close(agent.wallet.address, *agent.parties()[1:], MAX, sender=agent.payee)
    agent.open()
    assert agent.usage == (2 * DEPOSIT, *(3 * (flow(RATE, 3),)))
    with reverts("streams: already open"):
        agent.open()


def test_keys_alone_open(agent: Agent, owner: Actor, guardian: Actor, attacker: Actor) -> None:
    for account in (owner, guardian, attacker):
        with reverts("wallet: no such key, or it has expired"):
            agent.open(by=account)


def test_a_key_expires(agent: Agent, owner: Actor) -> None:
    other = Actor("short key")
    agent.wallet.set_key(other, agent.evm.now + 10, STREAMS, sender=owner)
    agent.open(by=other)
    agent.evm.sleep(10)
    for act in (lambda: agent.open(agent.terms.with_offer(3), by=other), lambda: agent.cancel(by=other)):
        with reverts("wallet: no such key, or it has expired"):
            act()
    with reverts("wallet: no such key, or it has expired"):
        agent.wallet.top_up(*agent.parties(), 1, sender=other)


def test_a_key_has_a_scope(agent: Agent, owner: Actor) -> None:
    streams, channels = Actor("streams"), Actor("channels")
    agent.wallet.set_key(streams, FOREVER, STREAMS, sender=owner)
    agent.wallet.set_key(channels, FOREVER, CHANNELS, sender=owner)
    for act in (
        lambda: agent.open(by=channels),
        lambda: agent.cancel(by=channels),
        lambda: agent.open_channel(5, by=streams),
        lambda: agent.wallet.request_close(*agent.parties(), sender=streams),
    ):
        with reverts("wallet: outside the key's scope"):
            act()
    agent.open(by=streams)
    agent.open_channel(5, by=channels)
    with reverts("wallet: outside the key's scope"):
        agent.wallet.top_up(*agent.parties(), 1, sender=channels)
    with reverts("wallet: outside the key's scope"):
        agent.wallet.top_up_channel(*agent.parties(), 1, sender=streams)
    assert agent.committed == (DEPOSIT, 5)


def test_the_guardian_and_strangers_stop_nothing(agent: Agent, guardian: Actor, attacker: Actor) -> None:
    agent.open()
    for account in (guardian, attacker):
        with reverts("wallet: no such key, or it has expired"):
            agent.cancel(by=account)


def test_lists_bind_opens_and_top_ups(agent: Agent, owner: Actor) -> None:
    wallet, payee, offer = agent.wallet, agent.payee, agent.terms.offer_id
    agent.open()
    for lists, reason, allow in (
        ((True, False), "wallet: payee not on the list", lambda on: wallet.allow_payee(payee, on, sender=owner)),
        ((False, True), "wallet: offer not on the list", lambda on: wallet.allow_offer(offer, on, sender=owner)),
    ):
        wallet.set_lists(*lists, sender=owner)
        assert wallet.lists() == lists
        for act in (
            lambda: agent.open(agent.terms.with_offer(9)),
            lambda: agent.open_channel(1),
            lambda: wallet.top_up(*agent.parties(), 1, sender=agent.key),
        ):
            with reverts(reason):
                act()
        allow(True)
        wallet.top_up(*agent.parties(), 1, sender=agent.key)
        allow(False)
        with reverts(reason):
            wallet.top_up(*agent.parties(), 1, sender=agent.key)
    agent.cancel()


def test_a_pause_stops_spending_and_nothing_else(agent: Agent, guardian: Actor, owner: Actor, attacker: Actor) -> None:
    agent.open()
    agent.open_channel(5)
    agent.wallet.pause(sender=guardian)
    for act in (
        lambda: agent.open(agent.terms.with_offer(9)),
        lambda: agent.open_channel(1, agent.terms.with_offer(9)),
        lambda: agent.wallet.top_up(*agent.parties(), 1, sender=agent.key),
        lambda: agent.wallet.top_up_channel(*agent.parties(), 1, sender=agent.key),
    ):
        with reverts("wallet: paused"):
            act()
    agent.cancel()
    agent.wallet.request_close(*agent.parties(), sender=agent.key)
    agent.evm.sleep(900)
    agent.wallet.reclaim(*agent.parties(), sender=attacker)
    assert agent.worth == 10**9 - flow(RATE, 1)
    with reverts("wallet: not the owner"):
        agent.wallet.unpause(sender=guardian)
    agent.wallet.unpause(sender=owner)
    agent.open()


def test_the_first_open_approves_for_good(agent: Agent, tokens: Money, token: Contract) -> None:
    dollars = replace(agent, money=tokens)
    dollars.fund()
    first = dollars.open().gas_used
    assert token.allowance(agent.wallet.address, agent.pay.address) == MAX
    assert dollars.open(dollars.terms.with_offer(2)).gas_used < first


@pytest.mark.parametrize("name", ["NoReturnToken", "TestUSD", "BlockingToken"])
def test_odd_tokens(evm: Chain, agent: Agent, deploy: Callable[..., Contract], name: str) -> None:
    odd = deploy(name)
    money = Money(evm, odd.address, odd)
    other = Agent(evm, agent.pay, agent.wallet, agent.owner, agent.key, agent.payee, money)
    other.set_caps()
    other.fund(DEPOSIT)
    other.open()
    evm.sleep(4)
    other.cancel()
    assert other.worth == DEPOSIT - flow(RATE, 4)
    agent.wallet.withdraw_vault(odd.address, other.vault, agent.owner, sender=agent.owner)


@pytest.mark.parametrize("allowed", [1, DEPOSIT - 1])
def test_an_allowance_that_does_not_suffice_is_replaced(
    evm: Chain, agent: Agent, deploy: Callable[..., Contract], allowed: int
) -> None:
    """By way of zero, since some tokens change it in no other."""
    odd = deploy("NoReturnToken")
    other = replace(agent, money=Money(evm, odd.address, odd))
    other.set_caps()
    other.fund(DEPOSIT)
    odd.approve(agent.pay.address, allowed, sender=agent.wallet.address)
    other.open()
    assert odd.allowance(agent.wallet.address, agent.pay.address) == MAX
    assert other.worth == 0


def test_a_token_with_a_fee_is_paid_from_the_vault(evm: Chain, agent: Agent, deploy: Callable[..., Contract]) -> None:
    odd = deploy("FeeToken")
    odd.set_fee(100, sender=agent.owner)
    money = Money(evm, odd.address, odd)
    other = Agent(evm, agent.pay, agent.wallet, agent.owner, agent.key, agent.payee, money)
    other.set_caps()
    other.fund(10 * DEPOSIT)
    with reverts("vault: the token kept a fee, deposit first"):
        other.open()
    fill_vault(agent.pay, money, agent.wallet.address, 2 * DEPOSIT)
    other.open()


def test_a_token_that_calls_back_spends_no_more_than_the_caps(
    evm: Chain, agent: Agent, deploy: Callable[..., Contract], artifacts: object
) -> None:
    """It even holds a key of the wallet."""
    odd = deploy("ReentrantToken")
    money = Money(evm, odd.address, odd)
    other = Agent(evm, agent.pay, agent.wallet, agent.owner, agent.key, agent.payee, money)
    agent.wallet.set_key(odd.address, FOREVER, STREAMS | CHANNELS, sender=agent.owner)
    other.set_caps(hour=DEPOSIT + 1)
    other.fund(10 * DEPOSIT)
    again = agent.wallet.encode("open_channel", *other.parties(), 2)
    odd.arm(agent.wallet.address, again, False, True, sender=agent.owner)
    with reverts("wallet: above the cap per hour"):
        other.open()
    cancel = agent.wallet.encode("cancel", *other.parties())
    odd.arm(agent.wallet.address, cancel, True, False, sender=agent.owner)
    other.open()
    # It has cancelled its own stream in the middle of being paid for: the wallet is whole, but for the second due.
    assert other.usage == (0, *(3 * (flow(RATE, 1),)))
    assert other.worth == 10 * DEPOSIT - flow(RATE, 1)
