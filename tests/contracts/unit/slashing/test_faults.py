"""Each fault is proven, each near-miss refused, each fault once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from eth_utils import keccak

from penstock.types import Address, OfferId, hex32, unhex
from penstock.wire.receipts import Receipt, SignedReceipt, output_hash, pack_ids, request_hash
from tests.contracts.court import COVER, IDS, KINDS, OVERSOLD, Court, Proof, penalty, shares
from tests.contracts.harness import Actor, reverts

ANOTHER = hex32(keccak(text="another"))
ONES = [name for name in KINDS if name not in ("prove_oversold",)]


def refused(court: Court, proof: Proof, reason: str) -> None:
    """Refused for what it says, before anybody looks for a commitment."""
    with reverts(reason):
        court.reveal(proof, Actor("reporter"))


def proof_of(court: Court, function: str, *receipts: Receipt, rest: tuple[Any, ...] | None = None) -> Proof:
    rest = (court.parties.struct,) if rest is None else rest
    return Proof(KINDS[function], function, tuple(court.sign(r) for r in receipts), rest)


@pytest.mark.parametrize("function", KINDS)
def test_is_proven(court: Court, provider: Actor, reporter: Actor, function: str) -> None:
    """The event says all, the stake falls by the penalty, each part is a credit, to the base unit."""
    proof = court.faulty(function, provider)
    accused, kind = proof.accused, proof.kind
    place = (provider, unhex(accused.session_id), accused.start, accused.seq)
    staked = court.stake(provider)
    assert not court.slashing.is_proven(kind, *place)
    mined = court.prove(proof, reporter)
    amount = penalty(kind)
    paid = 0 if kind == OVERSOLD else max(m.receipt.total for m in proof.messages)
    to_reporter, to_victim, burned = shares(amount, paid)
    victim = "0x" + "00" * 20 if kind == OVERSOLD else court.parties.payer
    assert mined.log("FaultProven") == {
        "provider": provider,
        "kind": kind,
        "session_id": unhex(accused.session_id),
        "start": accused.start,
        "seq": accused.seq,
        "evidence": proof.evidence(court.domain),
        "reporter": reporter,
        "victim": victim,
        "slashed": amount,
        "to_reporter": to_reporter,
        "to_victim": to_victim,
        "burned": burned,
    }
    assert court.stake(provider) == staked - amount
    assert court.credit(reporter) == to_reporter
    assert court.credit(court.parties.payer) == to_victim == court.slashing.compensated(*place[:-1])
    assert court.credit("0x000000000000000000000000000000000000dEaD") == burned
    assert court.market.held(court.slashing.address) == amount
    assert court.slashing.is_proven(kind, *place)


@pytest.mark.parametrize("function", KINDS)
def test_each_fault_once(court: Court, provider: Actor, function: str, attacker: Actor) -> None:
    """Not by another reporter, not by other words for it, not twice by the same."""
    proof = court.faulty(function, provider)
    court.prove(proof)
    for reporter in (Actor("reporter"), attacker):
        court.commit(proof, reporter)
        court.next_block()
        with reverts("slashing: already proven"):
            court.reveal(proof, reporter)
    if proof.kind == OVERSOLD:
        return
    again = court.faulty(function, provider, prompt_tokens=999)
    court.commit(again, attacker)
    court.next_block()
    with reverts("slashing: already proven"):
        court.reveal(again, attacker)


@pytest.mark.parametrize("function", ONES)
def test_the_same_fault_elsewhere_is_another(court: Court, provider: Actor, function: str) -> None:
    """In another session, at another start, and (where it may be) at another place."""
    staked = court.stake(provider)
    proofs = [
        court.faulty(function, provider),
        court.faulty(function, provider, parties=court.parties.but(session_key=Actor("another session"))),
        court.faulty(function, provider, start=court.evm.now - 1_000),
    ]
    if function not in ("prove_first_total", "prove_first_link", "prove_running_total", "prove_broken_chain"):
        proofs += [court.faulty(function, provider, seq=seq) for seq in (1, 15, 16, 17, 2**32 - 1)]
    for proof in proofs:
        court.prove(proof)
    assert court.stake(provider) == staked - len(proofs) * penalty(KINDS[function])


def test_every_fault_of_one_receipt(court: Court, provider: Actor) -> None:
    """Kinds do not stand in each other's way: one receipt at seven faults."""
    parties, ids = court.parties, IDS[:-1]
    opened = court.terms.but(model="something larger").id(provider)
    plain = court.receipt(provider, seq=3)
    bad = court.receipt(
        provider,
        seq=4,
        previous=plain.hash,
        amount=10**9,
        output_hash=output_hash(ids),
        first_token_at=plain.finished_at,
    )
    other = replace(bad, previous=ANOTHER)
    staked = court.stake(provider)
    for proof in (
        proof_of(court, "prove_overbilling", bad),
        proof_of(court, "prove_padding", bad, rest=(pack_ids(ids), parties.struct)),
        proof_of(court, "prove_late", bad),
        proof_of(court, "prove_running_total", plain, bad),
        proof_of(court, "prove_broken_chain", plain, other),
        proof_of(court, "prove_equivocation", bad, other),
    ):
        court.prove(proof)
    assert court.stake(provider) == staked - 5 * COVER - COVER // 10
    named = replace(bad, session_id=parties.id(opened), seq=4)
    court.prove(proof_of(court, "prove_wrong_offer", named, rest=(parties.struct, opened)))


def test_a_stranger_cannot_use_a_providers_faults_up(court: Court, provider: Actor, rival: Actor) -> None:
    """The rival signs receipts of the provider's session, to have the fault proven beforehand."""
    mine = court.faulty("prove_first_link", provider)
    copied = replace(mine.accused, provider=Address(str(rival)))
    court.prove(Proof(5, "prove_first_link", (court.sign(copied, Actor("rival's signer")),), mine.rest))
    assert court.stake(provider) == 40 * COVER
    assert court.stake(rival) == 39 * COVER
    court.prove(mine, salt=bytes(32))
    assert court.stake(provider) == 39 * COVER


# --- near misses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"seq": 1},
        {"start": 1_700_000_000},
        {"session_id": ANOTHER},
        {"provider": Address("0x000000000000000000000000000000000000c0Fe")},
    ],
    ids=lambda value: next(iter(value)),
)
def test_no_equivocation_elsewhere(court: Court, provider: Actor, changes: dict[str, Any]) -> None:
    one = court.receipt(provider)
    refused(
        court,
        proof_of(court, "prove_equivocation", one, replace(one, **changes)),
        "slashing: not one place of one session",
    )


def test_no_equivocation_of_a_receipt_with_itself(court: Court, provider: Actor) -> None:
    """A receipt signed twice, also in two ways, is one receipt."""
    one = court.receipt(provider)
    refused(court, proof_of(court, "prove_equivocation", one, one), "slashing: the same receipt twice")


@pytest.mark.parametrize(
    "changes",
    [
        {"offer_id": OfferId(ANOTHER)},
        {"request_hash": ANOTHER},
        {"output_hash": ANOTHER},
        {"prompt_tokens": 1},
        {"completion_tokens": 1},
        {"accepted_at": 1},
        {"first_token_at": 1},
        {"amount": 1},
        {"total": 1},
        {"previous": ANOTHER},
    ],
    ids=lambda value: next(iter(value)),
)
def test_equivocation_in_any_field(coins: Court, provider: Actor, changes: dict[str, Any]) -> None:
    one = coins.receipt(provider)
    coins.prove(proof_of(coins, "prove_equivocation", one, replace(one, **changes)))


@pytest.mark.parametrize(
    ("prompt", "completion", "price"),
    [
        (0, 0, 0),
        (1, 0, 1),
        (0, 1, 1),
        (20, 0, 1),
        (21, 0, 2),
        (0, 5, 1),
        (1_000, 500, 150),
        (2**32 - 1, 2**32 - 1, 1_073_741_824),
    ],
)
def test_overbilling_starts_above_the_rounded_price(
    coins: Court, provider: Actor, prompt: int, completion: int, price: int
) -> None:
    """50,000 and 200,000 base units for a million tokens."""
    tokens = {"prompt_tokens": prompt, "completion_tokens": completion}
    refused(
        coins,
        proof_of(coins, "prove_overbilling", coins.receipt(provider, **tokens, amount=price)),
        "slashing: no more than the offer's price",
    )
    coins.prove(proof_of(coins, "prove_overbilling", coins.receipt(provider, **tokens, amount=price + 1)))


def test_overbilling_at_the_highest_price(coins: Court, provider: Actor) -> None:
    """Nothing overflows."""
    terms = coins.terms.but(prompt_price=2**96 - 1, completion_price=2**96 - 1)
    coins.market.create(provider, terms)
    tokens = {"prompt_tokens": 2**32 - 1, "completion_tokens": 2**32 - 1}
    price = -(-(2 * (2**32 - 1) * (2**96 - 1)) // 10**6)
    fair = coins.receipt(provider, terms=terms, **tokens, amount=price)
    refused(coins, proof_of(coins, "prove_overbilling", fair), "slashing: no more than the offer's price")
    coins.prove(proof_of(coins, "prove_overbilling", replace(fair, amount=price + 1)))
    coins.prove(proof_of(coins, "prove_overbilling", replace(fair, seq=1, amount=2**128 - 1)))


def test_an_offer_by_the_second_bills_no_tokens(coins: Court, provider: Actor) -> None:
    terms = coins.terms.but(prompt_price=0, completion_price=0)
    coins.market.create(provider, terms)
    fair = coins.receipt(provider, terms=terms, start=coins.evm.now - 100)
    assert fair.amount == 0
    refused(coins, proof_of(coins, "prove_overbilling", fair), "slashing: no more than the offer's price")
    coins.prove(proof_of(coins, "prove_overbilling", replace(fair, amount=1)))


@pytest.mark.parametrize("function", ["prove_overbilling", "prove_late"])
def test_the_offer_must_be_the_providers(court: Court, provider: Actor, rival: Actor, function: str) -> None:
    """That is another fault."""
    for offer_id in (hex32(court.terms.id(rival)), ANOTHER):
        bad = court.faulty(function, provider, offer_id=OfferId(offer_id))
        refused(court, bad, "slashing: not the provider's offer")


@pytest.mark.parametrize("told", [0, 1, 2, 499, 500, 501])
def test_padding_starts_below_the_tokens_billed(coins: Court, provider: Actor, told: int) -> None:
    ids = tuple(range(told))
    bad = coins.receipt(provider, output_hash=output_hash(ids))
    proof = proof_of(coins, "prove_padding", bad, rest=(pack_ids(ids), coins.parties.struct))
    if told >= 500:
        refused(coins, proof, "slashing: no more tokens than ids")
    else:
        coins.prove(proof)


def test_padding_needs_the_very_ids(court: Court, provider: Actor) -> None:
    struct = court.parties.struct
    fair = court.receipt(provider)
    for ids in (pack_ids(IDS[:-1]), pack_ids(IDS) + b"\x00", b""):
        refused(
            court,
            proof_of(court, "prove_padding", fair, rest=(ids, struct)),
            "slashing: not the ids of the output",
        )
    untold = replace(fair, output_hash="0x" + "00" * 32)
    refused(court, proof_of(court, "prove_padding", untold, rest=(b"", struct)), "slashing: not the ids of the output")


def test_padding_by_part_of_an_id(coins: Court, provider: Actor) -> None:
    """Bytes that are no whole ids are fewer ids than they seem."""
    raw = pack_ids(IDS)[:-1]
    bad = coins.receipt(provider, output_hash=hex32(keccak(raw)))
    coins.prove(proof_of(coins, "prove_padding", bad, rest=(raw, coins.parties.struct)))


def test_padding_of_the_longest_answer(coins: Court, provider: Actor) -> None:
    ids = tuple(range(8_192))
    bad = coins.receipt(provider, output_hash=output_hash(ids), completion_tokens=8_193)
    coins.prove(proof_of(coins, "prove_padding", bad, rest=(pack_ids(ids), coins.parties.struct)))


def test_a_longer_answer_cannot_be_revealed(coins: Court, provider: Actor) -> None:
    ids = tuple(range(8_193))
    bad = coins.receipt(provider, output_hash=output_hash(ids), completion_tokens=9_000)
    with reverts("0x"):
        coins.reveal(
            proof_of(coins, "prove_padding", bad, rest=(pack_ids(ids), coins.parties.struct)), Actor("reporter")
        )


@pytest.mark.parametrize("function", ["prove_running_total", "prove_broken_chain"])
@pytest.mark.parametrize(
    "changes",
    [
        {"seq": 0},
        {"seq": 2},
        {"start": 1_700_000_000},
        {"session_id": ANOTHER},
        {"provider": Address(str(Actor("rival")))},
    ],
    ids=lambda value: next(iter(value)),
)
def test_only_neighbours_contradict_each_other(
    court: Court, provider: Actor, function: str, changes: dict[str, Any]
) -> None:
    one = court.receipt(provider)
    after = replace(court.receipt(provider, after=one, total=1), **changes)
    refused(court, proof_of(court, function, one, after), "slashing: not one after the other")


@pytest.mark.parametrize("function", ["prove_running_total", "prove_broken_chain"])
def test_the_last_number_has_no_next(court: Court, provider: Actor, function: str) -> None:
    one = court.receipt(provider, seq=2**32 - 1)
    refused(court, proof_of(court, function, one, replace(one, seq=0)), "slashing: not one after the other")


def test_a_right_total_and_a_whole_chain(court: Court, provider: Actor) -> None:
    one = court.receipt(provider)
    two = court.receipt(provider, after=one)
    refused(court, proof_of(court, "prove_running_total", one, two), "slashing: the total is right")
    refused(court, proof_of(court, "prove_broken_chain", one, two), "slashing: the chain holds")
    refused(court, proof_of(court, "prove_first_total", one), "slashing: the total is right")
    refused(court, proof_of(court, "prove_first_link", one), "slashing: the chain holds")
    for function in ("prove_first_total", "prove_first_link"):
        refused(court, proof_of(court, function, replace(two, total=1)), "slashing: not the first")


def test_a_running_total_counts_from_the_one_that_is_named(court: Court, provider: Actor) -> None:
    """Two receipts in one place: the total is judged by the one that is named, and the other one breaks the chain."""
    one = court.receipt(provider)
    other = replace(one, total=1)
    two = court.receipt(provider, after=one)
    refused(court, proof_of(court, "prove_running_total", other, two), "slashing: not the one before")
    court.prove(proof_of(court, "prove_broken_chain", other, two))


@pytest.mark.parametrize("step", [-1, 1])
def test_a_running_total_of_one_too_few_or_too_many(coins: Court, provider: Actor, step: int) -> None:
    one = coins.receipt(provider)
    two = coins.receipt(provider, after=one)
    coins.prove(proof_of(coins, "prove_running_total", one, replace(two, total=two.total + step)))
    coins.prove(proof_of(coins, "prove_first_total", replace(one, total=one.total + step)))


def test_a_running_total_that_would_overflow(coins: Court, provider: Actor) -> None:
    one = coins.receipt(provider, amount=2**128 - 1, total=2**128 - 1)
    two = coins.receipt(provider, after=one, amount=2**128 - 1, total=2**128 - 2)
    coins.prove(proof_of(coins, "prove_running_total", one, two))


def test_wrong_offer_of_another_provider(court: Court, provider: Actor, rival: Actor) -> None:
    """Session and receipt agree, and the offer is not the provider's; or there is none."""
    parties = court.parties
    for offer_id in (court.terms.id(rival), keccak(text="no offer")):
        bad = court.receipt(provider, offer_id=OfferId(hex32(offer_id)), session_id=parties.id(offer_id))
        court.prove(proof_of(court, "prove_wrong_offer", bad, rest=(parties.struct, offer_id)))


def test_the_right_offer_is_no_fault(court: Court, provider: Actor) -> None:
    fair = court.receipt(provider)
    offer_id = court.terms.id(provider)
    proof = proof_of(court, "prove_wrong_offer", fair, rest=(court.parties.struct, offer_id))
    refused(court, proof, "slashing: the session's own offer")
    court.market.set_active(offer_id, False, sender=provider)
    refused(court, proof, "slashing: the session's own offer")


def test_wrong_offer_needs_what_the_session_was_opened_with(court: Court, provider: Actor, rival: Actor) -> None:
    """Nobody can name an offer at will."""
    fair = court.receipt(provider)
    for offer_id in (court.terms.id(rival), keccak(text="no offer")):
        proof = proof_of(court, "prove_wrong_offer", fair, rest=(court.parties.struct, offer_id))
        refused(court, proof, "slashing: not the session")


@pytest.mark.parametrize("late", [-1, 0, 1, 10**9])
def test_late_starts_a_millisecond_after_the_bound(coins: Court, provider: Actor, late: int) -> None:
    fair = coins.receipt(provider)
    proof = proof_of(
        coins, "prove_late", replace(fair, first_token_at=fair.accepted_at + coins.terms.max_ttft_ms + late)
    )
    if late > 0:
        coins.prove(proof)
    else:
        refused(coins, proof, "slashing: in time")


def test_late_needs_a_bound_and_a_token(court: Court, provider: Actor) -> None:
    terms = court.terms.but(max_ttft_ms=0)
    court.market.create(provider, terms)
    unbound = court.receipt(provider, terms=terms, first_token_at=court.evm.now * 1000)
    refused(court, proof_of(court, "prove_late", unbound), "slashing: the offer has no bound")
    empty = court.receipt(provider, completion_tokens=0, first_token_at=court.evm.now * 1000)
    refused(court, proof_of(court, "prove_late", empty), "slashing: no token came")
    for first_token_at in (0, 1):
        early = court.receipt(provider, first_token_at=first_token_at)
        refused(court, proof_of(court, "prove_late", early), "slashing: in time")


@pytest.mark.parametrize("function", ONES)
def test_every_proof_needs_its_session(court: Court, provider: Actor, function: str, attacker: Actor) -> None:
    """Otherwise whoever reports could say who is the victim."""
    proof = court.faulty(function, provider)
    mine = court.parties
    for wrong in (
        mine.but(payer=attacker),
        mine.but(payee=attacker),
        mine.but(token=attacker),
        mine.but(session_key=attacker),
    ):
        rest = tuple(wrong.struct if part == mine.struct else part for part in proof.rest)
        with reverts("slashing: not the session"):
            court.reveal(replace(proof, rest=rest), Actor("reporter"))


def test_is_proven_knows_its_kinds(court: Court, provider: Actor) -> None:
    for kind in (0, 9):
        with reverts("slashing: no such kind"):
            court.slashing.is_proven(kind, provider, bytes(32), 0, 0)


def test_marks_touch_no_other_place(coins: Court, provider: Actor) -> None:
    """One fault at one place: every other kind and place still says no."""
    session_id = unhex(coins.receipt(provider).session_id)
    coins.prove(coins.faulty("prove_padding", provider, seq=17))
    places = [(kind, provider, session_id, 0, seq) for kind in range(1, 9) for seq in range(40)]
    said = coins.evm.read(*((coins.slashing, "is_proven", *place) for place in places))
    assert [place for place, proven in zip(places, said, strict=True) if proven] == [(3, provider, session_id, 0, 17)]


def test_a_signed_pair_is_judged_in_either_order(coins: Court, provider: Actor) -> None:
    """Equivocation names the same place however it is told."""
    proof = coins.faulty("prove_equivocation", provider)
    turned = replace(proof, messages=proof.messages[::-1])
    coins.prove(turned)
    coins.commit(proof, Actor("reporter"))
    coins.next_block()
    with reverts("slashing: already proven"):
        coins.reveal(proof, Actor("reporter"))


def test_request_hashes_tell_receipts_apart(coins: Court, provider: Actor) -> None:
    """What the SDK hashes is what the contract compares."""
    one = coins.receipt(provider, request_hash=request_hash(b"a"))
    two = replace(one, request_hash=request_hash(b"b"))
    signed: tuple[SignedReceipt, ...] = (coins.sign(one), coins.sign(two))
    coins.prove(Proof(1, "prove_equivocation", signed, (coins.parties.struct,)))
