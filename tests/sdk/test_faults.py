"""What convicts a provider, and what does not: an honest one by no pile of its receipts, a liar by each of its lies."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field, replace

import pytest
from eth_abi.abi import encode
from eth_utils.crypto import keccak
from hypothesis import given
from hypothesis import strategies as st

from penstock.faults import EVIDENCE_WINDOW, Fault, Findings, Ground, Kind, Stakes, find
from penstock.keys import LocalAccount
from penstock.types import NATIVE, Address, Offer, OfferId, StreamId, StreamKey, Terms, address, hex32
from penstock.wire.receipts import NOTHING, Receipt, SignedReceipt, output_hash, pack_ids, request_hash, slashing_domain

DOMAIN = slashing_domain(31337, address("0x5FbDB2315678afecb367f032d93F642f64180aa3"))
START = 1_800_000_000
NOW = START + 1_000


def key_of(name: str) -> LocalAccount:
    return LocalAccount(keccak(text=name))


def parties(name: str, offer: Offer) -> StreamKey:
    made = [key_of(f"{name} {role}").address for role in ("payer", "payee", "session key")]
    return StreamKey(made[0], made[1], NATIVE, made[2], offer.id)


SIGNER = key_of("signer")
PROVIDER = key_of("provider").address


def offer_of(provider: Address = PROVIDER, **terms: object) -> Offer:
    plain = Terms("tiny", NATIVE, 10**6, 300_000, 900_001, 2, 4096, 2_000, "", "")
    said = replace(plain, **terms)  # type: ignore[arg-type]
    return Offer(said.offer_id(provider), provider, True, START, 0, said)


BY_TOKEN = offer_of()
BY_TIME = offer_of(prompt_price=0, completion_price=0, slots=1, max_ttft_ms=0)
FOREIGN = offer_of(key_of("somebody").address)


@dataclass
class Model:
    """An honest provider, by the rules of docs/spec.md: one after another in a session, no more sessions at once than
    slots, a clock that only moves on."""

    offer: Offer = BY_TOKEN
    clock: int = START * 1000
    sessions: list[tuple[StreamKey, int]] = field(default_factory=list)
    receipts: list[SignedReceipt] = field(default_factory=list)
    ids: dict[str, bytes] = field(default_factory=dict)
    tokens: dict[StreamId, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    last: dict[StreamId, Receipt] = field(default_factory=dict)

    def open(self, name: str, *, start: int = START) -> int:
        self.sessions.append((parties(name, self.offer), start))
        return len(self.sessions) - 1

    def tick(self, milliseconds: int = 1) -> int:
        self.clock += milliseconds
        return self.clock

    def finish(self, session: int, accepted: int, *, prompt: int = 5, ids: tuple[int, ...] = (1, 2, 3)) -> Receipt:
        key, start = self.sessions[session]
        first = self.tick() if ids else 0
        used, before = self.tokens[key.id], self.last.get(key.id)
        used[0] += prompt
        used[1] += len(ids)
        total = self.offer.terms.owed(*used)
        receipt = Receipt(
            PROVIDER, self.offer.id, key.id, start, before.seq + 1 if before else 0,
            request_hash(f"{session} {accepted}".encode()), output_hash(ids), prompt, len(ids),
            accepted, min(first, accepted + 2_000), self.tick(), total - (before.total if before else 0), total,
            before.hash if before else NOTHING,
        )  # fmt: skip
        self.last[key.id] = receipt
        self.ids[receipt.output_hash] = pack_ids(ids)
        self.receipts.append(receipt.sign(DOMAIN, SIGNER))
        return receipt

    def answer(self, session: int, **values: object) -> Receipt:
        return self.finish(session, self.tick(), **values)  # type: ignore[arg-type]


def ground(*models: Model, now: int = NOW, offers: tuple[Offer, ...] = (BY_TOKEN, BY_TIME, FOREIGN)) -> Ground:
    return Ground(
        DOMAIN,
        {offer.id: offer for offer in offers},
        {key.id: key for model in models for key, _ in model.sessions},
        lambda provider, signer, _: (provider, signer) == (PROVIDER, SIGNER.address),
        now,
        {name: ids for model in models for name, ids in model.ids.items()},
    )


def signed(receipt: Receipt, **changes: object) -> SignedReceipt:
    return replace(receipt, **changes).sign(DOMAIN, SIGNER)  # type: ignore[arg-type]


def judged(model: Model, *lies: SignedReceipt) -> tuple[Fault, ...]:
    return find([*model.receipts, *lies], ground(model)).faults


# --- honest ---------------------------------------------------------------------------------------


@st.composite
def histories(draw: st.DrawFn) -> list[Model]:
    """Of an honest provider that serves several consumers by two offers."""
    found = []
    for offer in (BY_TOKEN, BY_TIME):
        model = Model(offer)
        for number in range(draw(st.integers(1, 4))):
            model.open(f"{offer.id} {number}", start=draw(st.sampled_from([0, START])))
        running: dict[int, int] = {}
        for step in draw(st.lists(st.integers(0, len(model.sessions) - 1), max_size=12)):
            if step in running:
                ids = tuple(draw(st.lists(st.integers(0, 2**32 - 1), max_size=5)))
                model.finish(step, running.pop(step), prompt=draw(st.integers(0, 10**6)), ids=ids)
            elif len(running) < offer.terms.slots:
                running[step] = model.tick()
        for step, accepted in running.items():
            model.finish(step, accepted)
        found.append(model)
    return found


@given(histories(), st.randoms(use_true_random=False))
def test_an_honest_provider_has_no_fault_in_any_pile(models: list[Model], chance: random.Random) -> None:
    pile = [one for model in models for one in model.receipts]
    pile = [one for one in pile if chance.random() < 0.8] * 2
    chance.shuffle(pile)
    assert find(pile, ground(*models)) == Findings((), ())


@given(histories(), st.data())
def test_what_others_forge_convicts_nobody_and_hides_nothing(models: list[Model], data: st.DataObject) -> None:
    """Altered receipts under the old signature, and whole ones under a stranger's."""
    real = [one for model in models for one in model.receipts]
    if not real:
        return
    model = next(model for model in models if model.receipts)
    victim = model.receipts[data.draw(st.integers(0, len(model.receipts) - 1))]
    altered = replace(victim.receipt, amount=victim.receipt.amount + 10**9)
    forged = [
        SignedReceipt(altered, victim.signature),
        altered.sign(DOMAIN, key_of("stranger")),
        SignedReceipt(victim.receipt, bytes(65)),
        victim.receipt.sign(slashing_domain(56, DOMAIN.contract), SIGNER),
    ]
    findings = find([*real, *forged], ground(*models))
    assert findings.faults == ()
    assert {one.signed.signature for one in findings.ignored} == {one.signature for one in forged}
    assert all(one.reason for one in findings.ignored)
    caught = find([*real, *forged, altered.sign(DOMAIN, SIGNER)], ground(*models))
    assert {fault.kind for fault in caught.faults} >= {Kind.EQUIVOCATION, Kind.OVERBILLING}


# --- each lie is found ----------------------------------------------------------------------------


@pytest.fixture
def model() -> Model:
    """Two answers in one session."""
    found = Model()
    found.open("alice")
    found.answer(0)
    found.answer(0, prompt=7, ids=(4, 5))
    return found


def only(faults: tuple[Fault, ...]) -> Fault:
    assert len(faults) == 1, faults
    return faults[0]


def test_two_receipts_in_one_place(model: Model) -> None:
    second = model.receipts[1].receipt
    fault = only(judged(model, signed(second, finished_at=second.finished_at + 1)))
    assert (fault.kind, fault.function) == (Kind.EQUIVOCATION, "prove_equivocation")
    a, _, b, _, session, _ = fault.arguments(bytes(32))
    assert a[4] == b[4] == 1
    assert a != b
    alice = parties("alice", BY_TOKEN)
    assert session == (alice.payer, alice.payee, alice.token, alice.session_key)


def test_three_receipts_in_one_place_are_one_fault(model: Model) -> None:
    second = model.receipts[1].receipt
    lies = [signed(second, finished_at=second.finished_at + more) for more in (1, 2)]
    assert only(judged(model, *lies)).kind is Kind.EQUIVOCATION


def test_more_than_the_price(model: Model) -> None:
    last = model.receipts[1].receipt
    price = BY_TOKEN.terms.owed(last.prompt_tokens, last.completion_tokens)
    for over, kinds in ((0, set()), (1, {Kind.OVERBILLING})):
        billed = signed(last, seq=2, previous=last.hash, amount=price + over, total=last.total + price + over)
        assert {fault.kind for fault in judged(model, billed)} == kinds


def test_more_tokens_than_ids(model: Model) -> None:
    last = model.receipts[1].receipt
    price = BY_TOKEN.terms.owed(last.prompt_tokens, 3)
    padded = signed(last, seq=2, previous=last.hash, completion_tokens=3, amount=price, total=last.total + price)
    fault = only(judged(model, padded))
    assert (fault.kind, fault.ids) == (Kind.PADDING, pack_ids([4, 5]))
    assert fault.arguments(bytes(32))[2] == fault.ids
    # Who does not know the ids cannot tell.
    assert find([*model.receipts, padded], replace(ground(model), ids={})).faults == ()


@pytest.mark.parametrize("off", [-1, 1])
def test_a_total_that_is_no_sum(model: Model, off: int) -> None:
    first, last = (one.receipt for one in model.receipts)
    lie = signed(last, total=last.total + off)
    fault = only(find([model.receipts[0], lie], ground(model)).faults)
    assert (fault.kind, fault.function) == (Kind.RUNNING_TOTAL, "prove_running_total")
    assert [one.receipt for one in fault.receipts] == [first, lie.receipt]
    fault = only(find([signed(first, total=first.total + off)], ground(model)).faults)
    assert (fault.kind, fault.function) == (Kind.RUNNING_TOTAL, "prove_first_total")


def test_a_chain_that_is_none(model: Model) -> None:
    first, last = (one.receipt for one in model.receipts)
    fault = only(find([model.receipts[0], signed(last, previous="0x" + "11" * 32)], ground(model)).faults)
    assert (fault.kind, fault.function) == (Kind.BROKEN_CHAIN, "prove_broken_chain")
    fault = only(find([signed(first, previous="0x" + "11" * 32)], ground(model)).faults)
    assert (fault.kind, fault.function) == (Kind.BROKEN_CHAIN, "prove_first_link")


def test_another_offer_than_the_session_s(model: Model) -> None:
    first = model.receipts[0].receipt
    fault = only(find([signed(first, offer_id=BY_TIME.id)], ground(model)).faults)
    assert (fault.kind, fault.offer) == (Kind.WRONG_OFFER, BY_TOKEN)
    *_, session, offer, salt = fault.arguments(b"s" * 32)
    assert (hex32(offer), salt) == (BY_TOKEN.id, b"s" * 32)
    assert hex32(keccak(encode(["address"] * 4 + ["bytes32"], [*session, offer]))) == first.session_id


@pytest.mark.parametrize("exists", [True, False])
def test_an_offer_of_somebody_else(exists: bool) -> None:
    model = Model(FOREIGN)
    model.open("alice")
    model.answer(0)
    assert only(judged(model)).kind is Kind.WRONG_OFFER
    unknown = replace(ground(model), offers={FOREIGN.id: FOREIGN if exists else None})
    assert only(find(model.receipts, unknown).faults).kind is Kind.WRONG_OFFER
    # An offer that was not looked up proves nothing.
    assert find(model.receipts, replace(unknown, offers={})).faults == ()


def test_more_sessions_at_once_than_slots() -> None:
    model = Model()
    for name in ("alice", "bob", "carol", "dave"):
        model.open(name)
    accepted = [model.tick() for _ in range(4)]
    for session in range(3):
        model.finish(session, accepted[session])
    fault = only(judged(model))
    assert (fault.kind, fault.session, len(fault.receipts)) == (Kind.OVERSOLD, None, 3)
    assert max(one.receipt.accepted_at for one in fault.receipts) < min(
        one.receipt.finished_at for one in fault.receipts
    )
    ids = [one.receipt.session_id for one in fault.receipts]
    assert ids == sorted(set(ids))
    receipts, signatures, _ = fault.arguments(bytes(32))
    assert (len(receipts), len(signatures)) == (3, 3)
    # A fourth at the same time is not another three.
    model.finish(3, accepted[3])
    assert only(judged(model)).kind is Kind.OVERSOLD


def test_one_session_may_ask_as_often_as_it_likes_at_once() -> None:
    model = Model()
    model.open("alice")
    accepted = [model.tick() for _ in range(5)]
    for at in accepted:
        model.finish(0, at)
    assert judged(model) == ()


def test_slots_that_are_given_on_in_the_same_millisecond_are_not_oversold() -> None:
    model = Model(BY_TIME)
    for name in ("alice", "bob"):
        model.open(name)
    done = model.answer(0)
    model.finish(1, done.finished_at)
    assert judged(model) == ()
    model.receipts[1] = signed(model.receipts[1].receipt, accepted_at=done.finished_at - 1)
    assert only(judged(model)).kind is Kind.OVERSOLD


@pytest.mark.parametrize(("taken", "tokens", "late"), [(2_000, 3, False), (2_001, 3, True), (2_001, 0, False)])
def test_late_by_its_own_clock(model: Model, taken: int, tokens: int, late: bool) -> None:
    first = model.receipts[0].receipt
    slow = signed(
        first, first_token_at=first.accepted_at + taken, finished_at=first.accepted_at + 3_000,
        completion_tokens=tokens, amount=0, total=0,
    )  # fmt: skip
    assert [fault.kind for fault in find([slow], ground(model)).faults] == ([Kind.LATE] if late else [])


# --- what the contract would not take -------------------------------------------------------------


def test_times_at_which_evidence_counts(model: Model) -> None:
    lie = signed(model.receipts[0].receipt, total=10**9)
    done = lie.receipt.finished_at // 1000
    for now, counts in ((done - 1, False), (done + 1, True), (done + EVIDENCE_WINDOW, True)):
        assert bool(find([lie], ground(model, now=now)).faults) is counts
    late = find([lie], ground(model, now=done + EVIDENCE_WINDOW + 1))
    assert late.faults == ()
    assert "older than 21 days" in late.ignored[0].reason


def test_a_key_counts_for_the_time_of_its_registration(model: Model) -> None:
    lie = signed(model.receipts[0].receipt, total=10**9)
    rotated = replace(ground(model), was_signer=lambda _, key, at: key == SIGNER.address and at < START)
    assert find([lie], rotated).faults == ()
    assert "not the provider's key then" in find([lie], rotated).ignored[0].reason


def test_without_the_session_s_parties_nothing_is_proven(model: Model) -> None:
    lie = signed(model.receipts[0].receipt, total=10**9)
    for sessions in ({}, {lie.receipt.session_id: parties("mallory", BY_TOKEN)}):
        assert find([lie], replace(ground(model), sessions=sessions)).faults == ()


# --- the result is the pile's alone ---------------------------------------------------------------


@given(st.lists(st.sampled_from(range(8)), max_size=6), st.randoms(use_true_random=False))
def test_order_and_repetition_do_not_matter(lies: list[int], chance: random.Random) -> None:
    model = Model()
    for name in ("alice", "bob", "carol"):
        model.open(name)
    at = [model.tick() for _ in range(3)]
    for session in range(2 + (7 in lies)):
        model.finish(session, at[session])
    model.answer(0)
    first, last = model.receipts[0].receipt, model.receipts[-1].receipt
    made = [
        signed(first, amount=first.amount + 5),
        signed(first, total=first.total + 5),
        signed(first, previous="0x" + "22" * 32),
        signed(last, previous="0x" + "33" * 32),
        signed(last, total=last.total + 1),
        signed(last, offer_id=BY_TIME.id),
        signed(last, first_token_at=last.accepted_at + 9_999, finished_at=last.accepted_at + 10_000),
        model.receipts[0],
    ]
    pile = [*model.receipts, *(made[lie] for lie in lies)]
    expected = find(pile, ground(model))
    assert bool(expected.faults) is bool(lies)
    shuffled = pile * 2
    chance.shuffle(shuffled)
    assert find(shuffled, ground(model)) == expected


def test_one_signature_of_many_is_taken(model: Model) -> None:
    """A key can sign one receipt in many ways: it is one receipt all the same."""
    lie = signed(model.receipts[0].receipt, total=10**9)
    garbage = SignedReceipt(lie.receipt, lie.signature[:64] + bytes([lie.signature[64] ^ 7]))
    findings = find([garbage, lie, garbage], ground(model))
    assert only(findings.faults).receipts == (lie,)
    assert [one.signed for one in findings.ignored] == [garbage]


# --- commitments and money ------------------------------------------------------------------------


def test_what_is_committed_to_names_reporter_kind_and_receipts(model: Model) -> None:
    second = model.receipts[1].receipt
    fault = only(judged(model, signed(second, finished_at=second.finished_at + 1)))
    digests = [one.receipt.digest(DOMAIN) for one in fault.receipts]
    assert fault.evidence == keccak(encode(["uint256", "bytes32", "bytes32"], [1, *digests]))
    me, salt = key_of("reporter").address, b"s" * 32
    assert fault.commitment(me, salt) == keccak(encode(["address", "bytes32", "bytes32"], [me, salt, fault.evidence]))
    others = [fault.commitment(PROVIDER, salt), fault.commitment(me, bytes(32))]
    others.append(Fault(Kind.BROKEN_CHAIN, fault.receipts, fault.session, fault.offer, DOMAIN).commitment(me, salt))
    assert fault.commitment(me, salt) not in others


@given(st.integers(0, 10**20), st.integers(0, 10**20), st.integers(0, 10**20), st.sampled_from([START, 0]))
def test_at_least_half_of_what_is_slashed_is_burned(cover: int, staked: int, total: int, start: int) -> None:
    model = Model()
    model.open("alice", start=start)
    lie = signed(model.answer(0), total=total + 10**3)
    fault = only(find([lie], ground(model)).faults)
    run = (lie.receipt.finished_at // 1000 - START) if start else 0
    assert fault.paid == total + 10**3 + run
    moved = Stakes.of(fault, penalty=cover, staked=staked, asset=NATIVE)
    assert moved.slashed == min(cover, staked) == moved.reporter + moved.victim + moved.burned
    assert moved.reporter == moved.slashed // 10
    assert moved.victim == min(fault.paid, moved.slashed * 4 // 10)
    assert 2 * moved.burned >= moved.slashed
    elsewhere = Stakes.of(fault, penalty=cover, staked=staked, asset=PROVIDER)
    assert (elsewhere.victim, elsewhere.reporter) == (0, moved.reporter)


def test_each_fault_says_what_is_wrong(model: Model) -> None:
    first = model.receipts[0].receipt
    lies = [
        signed(first, amount=first.amount + 9, total=first.total + 9),
        signed(first, previous="0x" + "22" * 32),
        signed(first, offer_id=BY_TIME.id),
        signed(first, first_token_at=first.accepted_at + 9_999, finished_at=first.accepted_at + 10_000),
        signed(first, completion_tokens=4),
    ]
    details = {fault.kind: fault.detail for fault in judged(model, *lies)}
    assert set(details) == set(Kind) - {Kind.OVERSOLD, Kind.RUNNING_TOTAL}
    assert details[Kind.LATE] == "receipt 0 took 9999 ms to its first token, and the offer says 2000"
    assert details[Kind.PADDING] == "receipt 0 charges 4 tokens of an answer of 3"
    assert OfferId(BY_TIME.id)[:10] in details[Kind.WRONG_OFFER]
