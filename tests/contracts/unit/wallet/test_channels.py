"""Channels that a key opens, tops up and takes back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from penstock.channels import CLOSE_DELAY
from tests.contracts.harness import Actor, domain_of, reverts, sign_voucher
from tests.contracts.unit.wallet.conftest import Agent

LOCKED = 1_000


def settle(agent: Agent, amount: int) -> None:
    voucher = sign_voucher(domain_of(agent.evm, agent.pay), agent.terms.id, amount)
    agent.pay.settle_channel(agent.wallet.address, *agent.parties(), amount, voucher, sender=agent.payee)


def close(agent: Agent, amount: int) -> None:
    voucher = sign_voucher(domain_of(agent.evm, agent.pay), agent.terms.id, amount) if amount else b""
    agent.pay.close_channel(agent.wallet.address, *agent.parties()[1:], amount, voucher, sender=agent.payee)


@pytest.mark.parametrize("share", [0, 300, LOCKED, LOCKED + 1])
def test_open_counts_and_pays(agent: Agent, share: int) -> None:
    if share:
        agent.fund_vault(share)
    before = agent.worth
    done = agent.open_channel(LOCKED)
    assert done.result == agent.terms.id
    assert agent.pay.channel(agent.terms.id)[0] == LOCKED
    assert (agent.vault, before - agent.worth) == (max(0, share - LOCKED), LOCKED)
    assert agent.usage == (LOCKED, 0, 0, 0)
    assert agent.committed == (0, LOCKED)
    assert done.log("Committed")["amount"] == LOCKED


def test_settling_releases_nothing_before_the_end(agent: Agent, attacker: Actor) -> None:
    agent.open_channel(LOCKED)
    settle(agent, 400)
    assert agent.usage == (LOCKED, 0, 0, 0)
    with reverts("wallet: nothing to release"):
        agent.wallet.release(agent.money.address, [agent.terms.id], sender=attacker)


@pytest.mark.parametrize("paid", [0, 1, 400, LOCKED])
def test_what_the_payee_closed_is_known_to_the_unit(agent: Agent, attacker: Actor, paid: int) -> None:
    before = agent.worth
    agent.open_channel(LOCKED)
    settle(agent, paid) if 0 < paid < LOCKED else None
    close(agent, paid)
    agent.evm.sleep(1_000)
    done = agent.wallet.release(agent.money.address, [agent.terms.id], sender=attacker)
    assert agent.usage == (0, paid, paid, paid)
    assert before - agent.worth == paid
    assert done.log("Released")["spent"] == paid


def test_a_channel_is_taken_back(agent: Agent, owner: Actor, attacker: Actor) -> None:
    before = agent.worth
    agent.open_channel(LOCKED)
    settle(agent, 250)
    with reverts("wallet: no such key, or it has expired"):
        agent.wallet.request_close(*agent.parties(), sender=attacker)
    agent.wallet.request_close(*agent.parties(), sender=owner)
    with reverts("channels: too early"):
        agent.wallet.reclaim(*agent.parties(), sender=attacker)
    agent.evm.sleep(CLOSE_DELAY)
    done = agent.wallet.reclaim(*agent.parties(), sender=attacker)
    assert (done.result, before - agent.worth) == (LOCKED - 250, 250)
    assert agent.usage == (0, 250, 250, 250)
    assert agent.committed == (0, 0)


@pytest.mark.parametrize(("paid", "spent"), [(0, 0), (500, 0), (700, 200), (1_500, LOCKED)])
def test_what_strangers_added_is_spent_first(agent: Agent, attacker: Actor, paid: int, spent: int) -> None:
    before = agent.worth
    agent.open_channel(LOCKED)
    agent.money.give(attacker, 500, agent.pay)
    parties = (agent.wallet.address, *agent.parties())
    agent.pay.top_up_channel(*parties, 500, 0, sender=attacker, value=agent.money.value(500))
    close(agent, paid)
    agent.wallet.release(agent.money.address, [agent.terms.id], sender=attacker)
    assert agent.usage == (0, spent, spent, spent)
    assert before - agent.worth == paid - 500 <= spent


def test_top_up_counts(agent: Agent) -> None:
    with reverts("wallet: no such channel"):
        agent.wallet.top_up_channel(*agent.parties(), 1, sender=agent.key)
    agent.open_channel(LOCKED)
    agent.wallet.top_up_channel(*agent.parties(), 77, sender=agent.key)
    assert agent.pay.channel(agent.terms.id)[0] == LOCKED + 77
    assert agent.usage == (LOCKED + 77, 0, 0, 0)
    assert agent.committed == (0, LOCKED + 77)


def test_a_stream_and_a_channel_of_one_session(agent: Agent, attacker: Actor) -> None:
    """They have one id."""
    agent.open()
    agent.open_channel(LOCKED)
    deposit = agent.committed[0]
    assert agent.committed == (deposit, LOCKED)
    agent.evm.sleep(4)
    close(agent, 300)
    agent.cancel()
    assert agent.committed == (0, LOCKED)
    other = replace(agent)
    assert other.wallet.release(agent.money.address, [agent.terms.id], sender=attacker).result == 1
    assert agent.usage[0] == 0


def test_what_was_opened_last_is_released_by_the_next_open(agent: Agent) -> None:
    agent.open_channel(LOCKED)
    close(agent, 10)
    agent.open_channel(LOCKED, agent.terms.with_offer(5))
    assert agent.usage == (LOCKED, 10, 10, 10)


def test_a_finished_channel_is_never_opened_again(agent: Agent) -> None:
    agent.open_channel(LOCKED)
    close(agent, 10)
    with reverts("channels: already used"):
        agent.open_channel(LOCKED)


def test_releases_many_and_passes_over_what_runs(agent: Agent, attacker: Actor) -> None:
    terms = [agent.terms.with_offer(number) for number in range(1, 6)]
    for each in terms:
        agent.open_channel(100, each)
    domain = domain_of(agent.evm, agent.pay)
    for each in terms[:3]:
        voucher = sign_voucher(domain, each.id, 30)
        agent.pay.close_channel(agent.wallet.address, *agent.parties(each)[1:], 30, voucher, sender=agent.payee)
    # The third was not the latest: nothing has released it.
    ids = [each.id for each in terms] * 2
    assert agent.wallet.release(agent.money.address, ids, sender=attacker).result == 3
    assert agent.usage == (200, 90, 90, 90)
