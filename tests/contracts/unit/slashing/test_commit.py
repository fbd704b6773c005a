"""commit, and what a proof needs of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from eth_utils import keccak

from tests.contracts.court import COVER, KINDS, SALT, Court, Proof, commitment, shares
from tests.contracts.harness import Actor, reverts

OTHER_SALT = keccak(text="another salt")


@pytest.fixture
def proof(court: Court, provider: Actor) -> Proof:
    return court.faulty("prove_equivocation", provider)


def test_commit(court: Court, proof: Proof, reporter: Actor) -> None:
    mined = court.commit(proof, reporter)
    made = commitment(reporter, SALT, proof.evidence(court.domain))
    assert mined.log("Committed") == {"commitment": made, "account": reporter}
    assert court.slashing.committed_at(made) == mined.block


def test_reverts_the_second_time(court: Court, proof: Proof, reporter: Actor, attacker: Actor) -> None:
    """Nobody can move a commitment to a later block."""
    first = court.commit(proof, reporter)
    made = commitment(reporter, SALT, proof.evidence(court.domain))
    court.next_block()
    for sender in (reporter, attacker):
        with reverts("slashing: already committed"):
            court.slashing.commit(made, sender=sender)
    assert court.slashing.committed_at(made) == first.block
    court.reveal(proof, reporter)


@pytest.mark.parametrize("function", KINDS)
def test_every_proof_needs_one(court: Court, provider: Actor, reporter: Actor, function: str) -> None:
    with reverts("slashing: not committed"):
        court.reveal(court.faulty(function, provider), reporter)


@pytest.mark.parametrize("function", KINDS)
def test_every_proof_needs_it_in_a_block_before(court: Court, provider: Actor, reporter: Actor, function: str) -> None:
    proof = court.faulty(function, provider)
    court.commit(proof, reporter)
    with reverts("slashing: committed in this block"):
        court.reveal(proof, reporter)
    court.next_block()
    court.reveal(proof, reporter)


@pytest.mark.parametrize("function", KINDS)
def test_every_proof_uses_it_up(court: Court, provider: Actor, reporter: Actor, function: str) -> None:
    proof = court.faulty(function, provider)
    court.prove(proof, reporter)
    assert court.slashing.committed_at(commitment(reporter, SALT, proof.evidence(court.domain))) == 0


def test_reverts_with_anothers_commitment(court: Court, proof: Proof, reporter: Actor, attacker: Actor) -> None:
    court.commit(proof, reporter)
    court.next_block()
    with reverts("slashing: not committed"):
        court.reveal(proof, attacker)


def test_reverts_with_another_salt(court: Court, proof: Proof, reporter: Actor) -> None:
    court.commit(proof, reporter)
    court.next_block()
    with reverts("slashing: not committed"):
        court.reveal(proof, reporter, OTHER_SALT)


def test_reverts_with_other_evidence(court: Court, provider: Actor, proof: Proof, reporter: Actor) -> None:
    court.commit(proof, reporter)
    court.next_block()
    for other in (
        replace(proof, messages=proof.messages[::-1]),
        court.faulty("prove_overbilling", provider),
        court.faulty("prove_equivocation", provider, prompt_tokens=7),
    ):
        with reverts("slashing: not committed"):
            court.reveal(other, reporter)
    court.reveal(proof, reporter)


def test_reverts_with_the_commitment_to_another_kind(court: Court, provider: Actor, reporter: Actor) -> None:
    """One receipt at two faults needs two commitments."""
    bad = court.sign(court.receipt(provider, amount=10**9))
    proofs = [
        Proof(KINDS[name], name, (bad,), (court.parties.struct,)) for name in ("prove_overbilling", "prove_first_total")
    ]
    court.commit(proofs[0], reporter)
    court.next_block()
    with reverts("slashing: not committed"):
        court.reveal(proofs[1], reporter)
    court.reveal(proofs[0], reporter)
    court.prove(proofs[1], reporter)


def test_who_sees_the_proof_in_the_pool_comes_too_late(
    court: Court, proof: Proof, reporter: Actor, attacker: Actor
) -> None:
    """The front-runner sees commitment and proof before they are mined, and is mined first each time."""
    made = commitment(reporter, SALT, proof.evidence(court.domain))
    court.slashing.commit(made, sender=attacker)  # copied: still the reporter's
    court.next_block()
    with reverts("slashing: not committed"):
        court.reveal(proof, attacker)
    court.commit(proof, attacker, OTHER_SALT)  # its own, now that it knows the evidence
    with reverts("slashing: committed in this block"):
        court.reveal(proof, attacker, OTHER_SALT)
    court.reveal(proof, reporter)
    court.next_block()
    with reverts("slashing: already proven"):
        court.reveal(proof, attacker, OTHER_SALT)
    paid = max(m.receipt.total for m in proof.messages)
    assert court.credit(reporter) == shares(COVER, paid)[0]
    assert court.credit(attacker) == 0


def test_a_commitment_tells_nothing(court: Court, proof: Proof, reporter: Actor) -> None:
    """The same evidence under two salts has nothing in common, whoever knows the evidence."""
    evidence = proof.evidence(court.domain)
    logged = court.commit(proof, reporter).log("Committed")["commitment"]
    assert logged != commitment(reporter, bytes(32), evidence)
    assert logged != evidence
