"""What the owner and the guardian may do, and nobody else; the owner's way out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from penstock.accrual import flow
from penstock.channels import CLOSE_DELAY
from tests.contracts.harness import COIN, RATE, Actor, Money, reverts
from tests.contracts.unit.wallet.conftest import EVERYTHING, FOREVER, STREAMS, Agent
from tests.fastchain import Chain, Contract

SOMEBODY = Actor("somebody")
OWNERS = [
    ("withdraw", (COIN, 1, SOMEBODY)),
    ("withdraw_vault", (COIN, 1, SOMEBODY)),
    ("set_caps", (COIN, (1, 1, 1, 1))),
    ("set_key", (SOMEBODY, FOREVER, STREAMS)),
    ("allow_payee", (SOMEBODY, True)),
    ("allow_offer", (b"\x01" * 32, True)),
    ("set_lists", (True, True)),
    ("unpause", ()),
    ("set_guardian", (SOMEBODY,)),
    ("transfer_ownership", (SOMEBODY,)),
]


@pytest.mark.parametrize(("function", "args"), OWNERS)
def test_the_owner_alone(agent: Agent, guardian: Actor, attacker: Actor, function: str, args: tuple[Any, ...]) -> None:
    agent.evm.set_balance(agent.wallet.address, 10)
    for account in (agent.key, guardian, attacker):
        with reverts("wallet: not the owner"):
            getattr(agent.wallet, function)(*args, sender=account)


@pytest.mark.parametrize(("function", "args"), [("pause", ()), ("revoke_key", (Actor("agent's key"),))])
def test_the_owner_or_the_guardian(
    agent: Agent, owner: Actor, guardian: Actor, attacker: Actor, function: str, args: tuple[Any, ...]
) -> None:
    for account in (agent.key, attacker):
        with reverts("wallet: not the owner or guardian"):
            getattr(agent.wallet, function)(*args, sender=account)
    for account in (owner, guardian):
        with agent.evm.snapshot():
            getattr(agent.wallet, function)(*args, sender=account)
            with reverts("wallet: paused" if function == "pause" else "wallet: no such key, or it has expired"):
                agent.open()


@pytest.mark.parametrize("paused", [False, True])
def test_the_owner_takes_everything_out(agent: Agent, owner: Actor, guardian: Actor, paused: bool) -> None:
    agent.fund_vault(700)
    agent.open()
    agent.open_channel(500)
    agent.evm.sleep(3)
    agent.wallet.revoke_key(agent.key, sender=guardian)
    if paused:
        agent.wallet.pause(sender=guardian)
        agent.pay.set_paused(True, sender=guardian)
    before = agent.money.held(owner)
    agent.cancel(by=owner)
    agent.wallet.request_close(*agent.parties(), sender=owner)
    agent.evm.sleep(CLOSE_DELAY)
    agent.wallet.reclaim(*agent.parties(), sender=owner)
    token = agent.money.address
    agent.wallet.withdraw_vault(token, agent.vault, owner, sender=owner)
    agent.wallet.withdraw(token, agent.money.held(agent.wallet.address), owner, sender=owner)
    assert agent.worth == 0
    assert agent.money.held(owner) - before == 10**9 + 700 - flow(RATE, 3)


def test_what_is_taken_out_is_logged(agent: Agent, owner: Actor, attacker: Actor) -> None:
    agent.fund_vault(9)
    token = agent.money.address
    for name, vault in (("withdraw", False), ("withdraw_vault", True)):
        done = getattr(agent.wallet, name)(token, 9, attacker, sender=owner)
        assert done.log("Withdrawn") == {"token": token, "to": attacker, "amount": 9, "from_vault": vault}
    assert agent.money.held(attacker) == 18


def test_withdraw_refuses(agent: Agent, owner: Actor) -> None:
    token = agent.money.address
    with reverts("wallet: zero receiver"):
        agent.wallet.withdraw(token, 1, COIN, sender=owner)
    with reverts("vault: zero receiver"):
        agent.wallet.withdraw_vault(token, 1, COIN, sender=owner)
    with reverts("assets: receiver refused" if agent.money.token is None else "0x"):
        agent.wallet.withdraw(token, 10**9 + 1, owner, sender=owner)


def test_a_token_that_says_no(agent: Agent, owner: Actor, evm: Chain, deploy: Callable[..., Contract]) -> None:
    odd = deploy("FalseToken")
    Money(evm, odd.address, odd).give(agent.wallet.address, 5)
    odd.set_refusing(True, sender=owner)
    with reverts("assets: token refused"):
        agent.wallet.withdraw(odd.address, 5, owner, sender=owner)


def test_the_wallet_is_handed_over_in_two_steps(agent: Agent, owner: Actor, attacker: Actor) -> None:
    heir = Actor("heir")
    started = agent.wallet.transfer_ownership(heir, sender=owner)
    assert started.log("OwnershipTransferStarted") == {"owner": owner, "pending_owner": heir}
    for account in (owner, attacker):
        with reverts("wallet: not the pending owner"):
            agent.wallet.accept_ownership(sender=account)
    done = agent.wallet.accept_ownership(sender=heir)
    assert done.log("OwnershipTransferred") == {"previous": owner, "owner": heir}
    assert (agent.wallet.owner(), agent.wallet.pending_owner()) == (heir, COIN)
    with reverts("wallet: not the owner"):
        agent.wallet.withdraw(agent.money.address, 1, owner, sender=owner)
    with reverts("wallet: not the pending owner"):
        agent.wallet.accept_ownership(sender=heir)


def test_an_offer_of_the_wallet_is_withdrawn(agent: Agent, owner: Actor) -> None:
    heir = Actor("heir")
    agent.wallet.transfer_ownership(heir, sender=owner)
    agent.wallet.transfer_ownership(COIN, sender=owner)
    with reverts("wallet: not the pending owner"):
        agent.wallet.accept_ownership(sender=heir)


def test_another_guardian(agent: Agent, owner: Actor, guardian: Actor) -> None:
    done = agent.wallet.set_guardian(SOMEBODY, sender=owner)
    assert done.log("GuardianChanged") == {"guardian": SOMEBODY}
    with reverts("wallet: not the owner or guardian"):
        agent.wallet.pause(sender=guardian)
    assert agent.wallet.pause(sender=SOMEBODY).log("PauseChanged") == {"paused": True, "by": SOMEBODY}
    assert agent.wallet.paused()
    assert agent.wallet.unpause(sender=owner).log("PauseChanged") == {"paused": False, "by": owner}


def test_keys_are_given_and_revoked(agent: Agent, owner: Actor) -> None:
    done = agent.wallet.set_key(SOMEBODY, 2_000_000_000, EVERYTHING, sender=owner)
    assert done.log("KeyChanged") == {"key": SOMEBODY, "expires_at": 2_000_000_000, "scope": EVERYTHING, "by": owner}
    assert agent.wallet.key(SOMEBODY) == (2_000_000_000, EVERYTHING)
    done = agent.wallet.revoke_key(SOMEBODY, sender=owner)
    assert done.log("KeyChanged") == {"key": SOMEBODY, "expires_at": 0, "scope": 0, "by": owner}
    assert agent.wallet.key(SOMEBODY) == (0, 0)


def test_lists_are_shown_and_logged(agent: Agent, owner: Actor) -> None:
    offer = agent.terms.offer_id
    done = agent.wallet.allow_payee(SOMEBODY, True, sender=owner)
    assert done.log("PayeeChanged") == {"payee": SOMEBODY, "allowed": True}
    done = agent.wallet.allow_offer(offer, True, sender=owner)
    assert done.log("OfferChanged") == {"offer_id": offer, "allowed": True}
    assert (agent.wallet.is_payee_listed(SOMEBODY), agent.wallet.is_offer_listed(offer)) == (True, True)
    agent.wallet.allow_payee(SOMEBODY, False, sender=owner)
    agent.wallet.allow_offer(offer, False, sender=owner)
    assert (agent.wallet.is_payee_listed(SOMEBODY), agent.wallet.is_offer_listed(offer)) == (False, False)
    done = agent.wallet.set_lists(True, False, sender=owner)
    assert done.log("ListsChanged") == {"payees_only": True, "offers_only": False}


def test_caps_are_shown_and_logged(agent: Agent, owner: Actor) -> None:
    done = agent.wallet.set_caps(SOMEBODY, (1, 2, 3, 2**96 - 1), sender=owner)
    expected = {"token": SOMEBODY, "payment": 1, "hour": 2, "day": 3, "week": 2**96 - 1}
    assert done.log("CapsChanged") == expected
    assert tuple(agent.wallet.caps(SOMEBODY)) == (1, 2, 3, 2**96 - 1)
