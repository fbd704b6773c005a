"""prove_oversold: its set of receipts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from penstock.types import Address
from penstock.wire.receipts import Receipt
from tests.contracts.court import COVER, OVERSOLD, Court, Parties, Proof
from tests.contracts.harness import Actor, reverts
from tests.contracts.market import OfferTerms
from tests.fastchain import Reverted


def sessions(court: Court, count: int) -> list[Parties]:
    return [court.parties.but(session_key=Actor(f"session {i}")) for i in range(count)]


def made(court: Court, provider: str, count: int, terms: OfferTerms | None = None, **changes: Any) -> list[Receipt]:
    """Of so many sessions, in order of their ids."""
    found = [court.receipt(provider, parties=p, terms=terms, **changes) for p in sessions(court, count)]
    return sorted(found, key=lambda r: r.session_id)


def proof_of(court: Court, receipts: list[Receipt]) -> Proof:
    return Proof(OVERSOLD, "prove_oversold", tuple(court.sign(r) for r in receipts))


def refused(court: Court, receipts: list[Receipt], reason: str) -> None:
    with court.evm.snapshot():
        proof = proof_of(court, receipts)
        court.commit(proof, Actor("reporter"))
        court.next_block()
        with reverts(reason):
            court.reveal(proof, Actor("reporter"))


@pytest.mark.parametrize("count", [2, 3, 4, 6])
def test_needs_one_more_than_the_slots(court: Court, provider: Actor, count: int) -> None:
    refused(court, made(court, provider, count), "slashing: not one more than the slots")


@pytest.mark.parametrize("count", [0, 1])
def test_needs_two(court: Court, provider: Actor, count: int) -> None:
    refused(court, made(court, provider, count), "slashing: not a signature for each")


def test_needs_a_signature_for_each(court: Court, provider: Actor) -> None:
    proof = proof_of(court, made(court, provider, 5))
    receipts, signatures, salt = proof.arguments(bytes(32))
    for wrong in (signatures[:-1], [*signatures, signatures[0]], []):
        with reverts("slashing: not a signature for each"):
            court.slashing.prove_oversold(receipts, wrong, salt, sender=Actor("reporter"))


def test_needs_pairwise_distinct_sessions(court: Court, provider: Actor) -> None:
    """One session may ask several things at once: it holds one slot."""
    five = made(court, provider, 5)
    refused(court, [*five[:4], replace(five[3], seq=7)], "slashing: sessions out of order")
    refused(court, [*five[:4], replace(five[3], start=1_700_000_000)], "slashing: sessions out of order")
    refused(court, five[::-1], "slashing: sessions out of order")
    refused(court, [five[0], five[0], *five[2:]], "slashing: sessions out of order")


def test_needs_one_offer_of_one_provider(court: Court, provider: Actor, rival: Actor) -> None:
    five = made(court, provider, 5)
    other = court.terms.but(region="another")
    court.market.create(provider, other)
    foreign = court.receipt(provider, parties=sessions(court, 5)[4], terms=other)
    refused(court, [*five[:4], replace(foreign, session_id=five[4].session_id)], "slashing: not of one offer")
    refused(court, [*five[:4], replace(five[4], provider=Address(str(rival)))], "slashing: not of one offer")


def test_the_offer_must_be_the_providers(court: Court, provider: Actor, rival: Actor) -> None:
    foreign = made(court, provider, 5, offer_id="0x" + court.terms.id(rival).hex())
    refused(court, foreign, "slashing: not the provider's offer")


@pytest.mark.parametrize(("overlap", "is_proven"), [(-1, False), (0, False), (1, True)])
def test_all_must_overlap_in_one_instant(coins: Court, provider: Actor, overlap: int, is_proven: bool) -> None:
    """A slot that is freed in a millisecond may be taken in the same one."""
    five = made(coins, provider, 5)
    five[2] = replace(five[2], finished_at=five[0].accepted_at + 2_000 + overlap)
    five[4] = replace(five[4], accepted_at=five[0].accepted_at + 2_000)
    if is_proven:
        coins.prove(proof_of(coins, five))
    else:
        refused(coins, five, "slashing: not at one instant")


def test_pairs_that_overlap_without_one_instant(court: Court, provider: Actor) -> None:
    """A chain of overlaps is no oversale."""
    five = made(court, provider, 5)
    at = five[0].accepted_at
    chained = [replace(r, accepted_at=at + i * 600, finished_at=at + i * 600 + 1_000) for i, r in enumerate(five)]
    refused(court, chained, "slashing: not at one instant")


def test_a_receipt_serves_in_one_proof_only(court: Court, provider: Actor) -> None:
    """Nine sessions at once over four slots: one proof of five, and what is left is not enough for a second."""
    nine = made(court, provider, 9)
    court.prove(proof_of(court, nine[:5]))
    for shared in range(5):
        refused(court, sorted([nine[shared], *nine[5:]], key=lambda r: r.session_id), "slashing: already proven")
    assert court.stake(provider) == 39 * COVER


def test_ten_at_once_are_two_proofs(court: Court, provider: Actor) -> None:
    ten = made(court, provider, 10)
    court.prove(proof_of(court, ten[:5]))
    court.prove(proof_of(court, ten[5:]))
    assert court.stake(provider) == 38 * COVER


def test_nobody_is_compensated(court: Court, provider: Actor, reporter: Actor) -> None:
    five = made(court, provider, 5, amount=10**18, total=10**18)
    court.prove(proof_of(court, five), reporter)
    assert court.credit(court.parties.payer) == 0
    assert court.credit(reporter) == COVER // 10


def test_an_offer_of_one_slot(coins: Court, provider: Actor) -> None:
    terms = coins.terms.but(slots=1)
    coins.market.create(provider, terms)
    coins.prove(proof_of(coins, made(coins, provider, 2, terms)))


def test_the_largest_offer_that_can_be_judged(coins: Court, provider: Actor) -> None:
    """32 slots, 33 receipts. With 33 slots there is no such proof, as the documents say."""
    coins.market.stake(provider, 100 * COVER)
    for slots in (32, 33):
        coins.market.create(provider, coins.terms.but(slots=slots))
    terms = coins.terms.but(slots=32)
    mined = coins.prove(proof_of(coins, made(coins, provider, 33, terms)))
    assert mined.gas_used < 1_500_000
    larger = coins.terms.but(slots=33)
    proof = proof_of(coins, made(coins, provider, 34, larger))
    coins.commit(proof, Actor("reporter"))
    coins.next_block()
    with pytest.raises(Reverted):
        coins.reveal(proof, Actor("reporter"))
