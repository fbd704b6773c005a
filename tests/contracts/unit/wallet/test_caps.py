"""What counts against the caps, for how long; the Python twin counts the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from penstock.caps import NO_LIMIT, WINDOWS, Caps, Ledger
from tests.contracts.harness import COIN, Actor, domain_of, reverts, sign_voucher
from tests.contracts.unit.wallet.conftest import EVERYTHING, FOREVER, HOUR, Agent
from tests.fastchain import Contract

NAMES = ["payment", "hour", "day", "week"]


def spend(agent: Agent, number: int, amount: int) -> None:
    """Have so much paid, and nothing open afterwards."""
    terms = agent.terms.with_offer(number)
    agent.open_channel(amount, terms)
    voucher = sign_voucher(domain_of(agent.evm, agent.pay), terms.id, amount)
    parties = agent.parties(terms)
    agent.pay.close_channel(agent.wallet.address, *parties[1:], amount, voucher, sender=agent.payee)
    agent.wallet.release(agent.money.address, [terms.id], sender=agent.payee)


@pytest.mark.parametrize("name", NAMES)
def test_each_cap_is_exact(agent: Agent, name: str) -> None:
    agent.set_caps(**{name: 1_000})
    if name != "payment":
        spend(agent, 1, 300)
        agent.open_channel(200, agent.terms.with_offer(2))
    left = 1_000 if name == "payment" else 500
    assert agent.wallet.available(agent.money.address) == left
    with reverts(f"wallet: above the cap per {name}"):
        agent.open_channel(left + 1)
    agent.open_channel(left)
    assert agent.wallet.available(agent.money.address) == (1_000 if name == "payment" else 0)


def test_top_ups_count_as_payments_of_their_own(agent: Agent) -> None:
    agent.set_caps(payment=100, hour=250)
    agent.open_channel(100)
    agent.wallet.top_up_channel(*agent.parties(), 100, sender=agent.key)
    with reverts("wallet: above the cap per payment"):
        agent.wallet.top_up_channel(*agent.parties(), 101, sender=agent.key)
    with reverts("wallet: above the cap per hour"):
        agent.wallet.top_up_channel(*agent.parties(), 51, sender=agent.key)
    agent.wallet.top_up_channel(*agent.parties(), 50, sender=agent.key)


def test_without_caps_nothing_is_spent(
    agent: Agent, deploy: Callable[..., Contract], make: Callable[..., Contract]
) -> None:
    bare = make(agent.owner, COIN, [], [(agent.key, FOREVER, EVERYTHING)], b"\x01" * 32)
    assert bare.available(agent.money.address) == 0
    with reverts("wallet: above the cap per payment"):
        bare.open_channel(*agent.parties(), 1, sender=agent.key)


@pytest.mark.parametrize("name", list(WINDOWS))
def test_what_was_spent_counts_for_the_window_and_a_third_more_at_most(agent: Agent, name: str) -> None:
    seconds, place = WINDOWS[name], 1 + list(WINDOWS).index(name)
    agent.set_caps(**{name: 100})
    bucket = seconds // 3
    agent.evm.at_time((agent.evm.now // bucket + 1) * bucket)  # the youngest bucket begins now
    spend(agent, 1, 100)
    for later in (0, seconds - 1, seconds, seconds + bucket - 1):
        with agent.evm.snapshot():
            agent.evm.sleep(later)
            assert agent.usage[place] == 100
            with reverts(f"wallet: above the cap per {name}"):
                agent.open_channel(1)
    agent.evm.sleep(seconds + bucket)
    assert agent.usage[place] == 0
    agent.open_channel(100)


def test_what_was_spent_at_the_end_of_a_bucket_counts_for_the_window(agent: Agent) -> None:
    agent.set_caps(hour=100)
    agent.evm.at_time((agent.evm.now // 1_200 + 1) * 1_200 + 1_199)
    spend(agent, 1, 100)
    agent.evm.sleep(HOUR)
    with reverts("wallet: above the cap per hour"):
        agent.open_channel(1)
    agent.evm.sleep(1)
    agent.open_channel(1)


def test_what_is_open_counts_for_as_long_as_it_is_open(agent: Agent) -> None:
    agent.set_caps(hour=100)
    agent.open_channel(100)
    agent.evm.sleep(30 * 86_400)
    with reverts("wallet: above the cap per hour"):
        agent.open_channel(1, agent.terms.with_offer(1))


def test_a_new_key_inherits_what_counts(agent: Agent, owner: Actor) -> None:
    agent.set_caps(hour=100)
    spend(agent, 1, 60)
    agent.open_channel(40)
    other = Actor("new key")
    agent.wallet.revoke_key(agent.key, sender=owner)
    agent.wallet.set_key(other, FOREVER, EVERYTHING, sender=owner)
    with reverts("wallet: above the cap per hour"):
        agent.open_channel(1, agent.terms.with_offer(2), by=other)


def test_lower_caps_stop_what_is_new(agent: Agent) -> None:
    agent.open_channel(5_000)
    agent.set_caps(hour=4_000)
    assert agent.wallet.available(agent.money.address) == 0
    with reverts("wallet: above the cap per hour"):
        agent.open_channel(1, agent.terms.with_offer(2))
    agent.set_caps(hour=5_001)
    assert agent.wallet.available(agent.money.address) == 1
    agent.open_channel(1, agent.terms.with_offer(2))


def test_tokens_do_not_share_caps(agent: Agent, owner: Actor, attacker: Actor) -> None:
    agent.wallet.set_caps(attacker, Caps().as_tuple(), sender=owner)
    agent.set_caps(hour=10)
    agent.open_channel(10)
    assert tuple(agent.wallet.usage(attacker)) == (0, 0, 0, 0)
    assert agent.wallet.available(attacker) == NO_LIMIT


def test_no_limit_is_none(agent: Agent) -> None:
    agent.set_caps()
    agent.fund(2**95)
    agent.open_channel(2**95)
    assert agent.wallet.available(agent.money.address) == NO_LIMIT - 2**95


def test_the_twin_counts_the_same(agent: Agent) -> None:
    """Many payments at uneven times, over weeks."""
    agent.set_caps()
    twin, now = Ledger(Caps()), agent.evm.now
    for number in range(40):
        agent.evm.sleep((number * number * 977) % 70_001)
        amount = 1 + number * 31
        spend(agent, number, amount)
        twin = twin.commit(amount).release(amount, amount, agent.evm.now)
        assert agent.usage == (twin.open, *(window.spent(agent.evm.now) for window in twin.windows))
    assert agent.evm.now - now > WINDOWS["week"]
