"""Stake cannot flee a verdict, and leaves after it."""

from __future__ import annotations

import pytest

from penstock.wire.receipts import Accept, Receipt
from tests.contracts.court import ANSWER, COVER, HOUR, IDS, KINDS, NON_DELIVERY, WINDOW, Court, penalty
from tests.contracts.harness import Actor, reverts

FROZEN = penalty(NON_DELIVERY)
SAFE = Actor("safe")


def leave(court: Court, provider: str) -> int:
    """Take the offer off the market and ask for all of the stake; when it may go."""
    court.market.set_active(court.terms.id(provider), False, sender=provider)
    court.staking.request_unbond(provider, court.staking.stake_of(provider), sender=provider)
    return court.evm.now + WINDOW


def owed(court: Court, provider: str) -> tuple[Receipt, Accept]:
    receipt = court.receipt(provider, end=court.evm.now - 2 * HOUR)
    return receipt, court.accept(receipt)


@pytest.mark.parametrize("function", KINDS)
def test_a_fault_reaches_the_queue_for_as_long_as_it_is_evidence(court: Court, provider: Actor, function: str) -> None:
    """A provider that asks for its stake in the second of its fault still has it there when the evidence expires."""
    proof = court.faulty(function, provider, end=court.evm.now)
    release = leave(court, provider)
    court.evm.at_time(release - 1)
    with court.evm.snapshot():
        court.prove(proof)
    court.evm.at_time(release)
    with court.evm.snapshot():
        court.prove(proof)
        court.staking.withdraw(provider, SAFE, sender=provider)
        assert court.market.held(SAFE) == 40 * COVER - penalty(KINDS[function])
    court.staking.withdraw(provider, SAFE, sender=provider)
    assert court.market.held(SAFE) == 40 * COVER


def test_an_open_challenge_freezes_what_it_claims(court: Court, provider: Actor) -> None:
    """All is in the queue and may go: all but that goes, and that as soon as the challenge is answered."""
    release = leave(court, provider)
    court.evm.at_time(release)
    receipt, accept = owed(court, provider)
    court.challenge(court.sign_accept(accept), court.parties, Actor("challenger"))
    court.staking.withdraw(provider, SAFE, sender=provider)
    assert court.market.held(SAFE) == 40 * COVER - FROZEN
    with reverts("staking: all of it is frozen"):
        court.staking.withdraw(provider, SAFE, sender=provider)
    with court.evm.snapshot():
        court.answer(court.sign(receipt), IDS)
        court.staking.withdraw(provider, SAFE, sender=provider)
        assert court.market.held(SAFE) == 40 * COVER
    court.evm.sleep(ANSWER)
    court.resolve(accept, court.parties)
    assert court.stake(provider) == 0
    assert court.market.held(court.slashing.address) == FROZEN + (
        court.evm.balance(court.slashing.address) - FROZEN
    ) * (court.market.asset is None)


def test_the_provider_itself_may_end_what_nobody_else_ends(court: Court, provider: Actor) -> None:
    """The challenger goes away: the exit still works, at the cost of the verdict."""
    release = leave(court, provider)
    court.evm.at_time(release)
    _, accept = owed(court, provider)
    court.challenge(court.sign_accept(accept), court.parties, Actor("challenger"))
    court.evm.sleep(10 * WINDOW)
    court.resolve(accept, court.parties, sender=provider)
    court.staking.withdraw(provider, SAFE, sender=provider)
    assert court.market.held(SAFE) == 40 * COVER - FROZEN
    assert court.stake(provider) == 0


def test_many_challenges_freeze_all_and_let_all_go(coins: Court, provider: Actor) -> None:
    """More is frozen than there is; when they are answered, all of it leaves."""
    coins.market.set_active(coins.terms.id(provider), False, sender=provider)
    coins.staking.slash(provider, 40 * COVER - 3 * FROZEN, Actor("nowhere"), sender=coins.slashing.address)
    coins.staking.request_unbond(provider, 3 * FROZEN, sender=provider)
    coins.evm.sleep(WINDOW)
    receipts = [
        coins.receipt(provider, end=coins.evm.now - 2 * HOUR, seq=i, request_hash=f"0x{i:064x}") for i in range(5)
    ]
    for each in receipts:
        coins.challenge(coins.sign_accept(coins.accept(each)), coins.parties, Actor("challenger"))
    for answered, each in enumerate(receipts[:4], 1):
        coins.answer(coins.sign(each), IDS)
        if answered < 3:
            with reverts("staking: all of it is frozen"):
                coins.staking.withdraw(provider, SAFE, sender=provider)
        else:
            coins.staking.withdraw(provider, SAFE, sender=provider)
            assert coins.market.held(SAFE) == (answered - 2) * FROZEN
    coins.evm.sleep(ANSWER)
    coins.resolve(coins.accept(receipts[4]), coins.parties)
    assert coins.stake(provider) == 0


def test_a_verdict_takes_frozen_stake_too(coins: Court, provider: Actor) -> None:
    """Another fault is proven meanwhile; the challenge then finds what is left."""
    _, accept = owed(coins, provider)
    coins.challenge(coins.sign_accept(accept), coins.parties, Actor("challenger"))
    coins.staking.slash(provider, 39 * COVER, Actor("nowhere"), sender=coins.slashing.address)
    coins.prove(coins.faulty("prove_padding", provider))
    assert coins.stake(provider) == 0
    coins.evm.sleep(ANSWER)
    log = coins.resolve(accept, coins.parties).log("ChallengeResolved")
    assert log["slashed"] == 0
    assert coins.staking.frozen(provider) == 0
    coins.market.stake(provider, COVER)
    coins.market.set_active(coins.terms.id(provider), False, sender=provider)
    coins.staking.request_unbond(provider, COVER, sender=provider)
    coins.evm.sleep(WINDOW)
    coins.staking.withdraw(provider, SAFE, sender=provider)
    assert coins.market.held(SAFE) == COVER


def test_a_provider_that_was_slashed_may_go_on_and_leave(court: Court, provider: Actor) -> None:
    for function in KINDS:
        court.prove(court.faulty(function, provider, parties=court.parties.but(session_key=Actor(function))))
    left = 40 * COVER - sum(penalty(kind) for kind in KINDS.values())
    court.market.stake(provider, COVER)
    release = leave(court, provider)
    court.evm.at_time(release)
    court.staking.withdraw(provider, SAFE, sender=provider)
    assert court.market.held(SAFE) == left + COVER
