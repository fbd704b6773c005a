"""Faults in a pile of receipts: what a provider has signed that Slashing.vy punishes.

    findings = find(pile, ground)
    for fault in findings.faults:
        fault.commitment(reporter, salt)      # commit this, then a block later prove it

Nothing here talks to a chain: the ground on which receipts are judged is given. The result depends on what is in the
pile alone, not on its order, nor on what is in it twice. Receipts may be of any number of sessions and consumers;
forged ones, and those from which nothing can be proven now, are passed over with a reason.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from eth_abi.abi import encode
from eth_utils.crypto import keccak

from penstock.accrual import RATE_SCALE
from penstock.errors import BadSignature
from penstock.types import Address, Offer, OfferId, StreamId, StreamKey, unhex
from penstock.wire.eip712 import Domain, recover
from penstock.wire.receipts import NOTHING, Receipt, SignedReceipt

EVIDENCE_WINDOW = 21 * 86_400
"""Seconds for which a receipt convicts after it was finished: as long as stake takes to leave."""
CHALLENGE_AFTER, CHALLENGE_UNTIL = 3600, 24 * 3600
"""Seconds from an accept: when its receipt may be asked for on chain."""
ANSWER_WINDOW = 15 * 60
"""Seconds from a challenge: how long a provider has to answer."""
NON_DELIVERY = 9
"""Among the kinds of faults, the one that no receipt shows."""
BURNED = Address("0x000000000000000000000000000000000000dEaD")
"""Whose credit is what nobody gets."""
MAX_OVERSOLD = 33
"""Receipts in one proof at most: offers with as many slots or more cannot be shown to be oversold."""
MAX_IDS = 8_192
"""Token ids that one proof of padding, or the answer to a challenge, can reveal at most."""
REPORTER_PERCENT = 10
VICTIM_PERCENT = 40
"""Of what is slashed, at most; and never more than it paid in the session."""


class Kind(IntEnum):
    """The faults that the contract decides, by its numbers."""

    EQUIVOCATION = 1
    """Two receipts for one place in a session."""
    OVERBILLING = 2
    """More charged than the tokens cost by the offer."""
    PADDING = 3
    """More tokens charged than the answer has ids."""
    RUNNING_TOTAL = 4
    """The total is not the total before plus the amount."""
    BROKEN_CHAIN = 5
    """It names another receipt as the one before than its provider gave."""
    WRONG_OFFER = 6
    """It names another offer than its session was made for, or none of this provider's."""
    OVERSOLD = 7
    """More answers at the same time than the offer has slots."""
    LATE = 8
    """The first token came later than the offer says, by the provider's own clock."""

    @property
    def words(self) -> str:
        """For people."""
        return self.name.lower().replace("_", " ")


@dataclass(frozen=True)
class Ground:
    """On what receipts are judged."""

    domain: Domain
    offers: Mapping[OfferId, Offer | None]
    """Those that receipts name; None: the registry has no such offer. One that is missing is not known."""
    sessions: Mapping[StreamId, StreamKey]
    """The parties of sessions, by id: of a session whose parties are not known nothing can be proven."""
    was_signer: Callable[[Address, Address, int], bool]
    """Whether a provider had registered a key at a second."""
    now: int
    """Unix seconds, of the chain."""
    ids: Mapping[str, bytes] = field(default_factory=dict)
    """Packed token ids of answers, by their hash."""


@dataclass(frozen=True)
class Fault:
    """One fault, ready to be proven."""

    kind: Kind
    receipts: tuple[SignedReceipt, ...]
    """As the proof takes them."""
    session: StreamKey | None
    """The one that the proof names: its payer is the victim. None where there is no one victim: oversold slots."""
    offer: Offer | None
    """By which it is judged; of the wrong offer, that of the session. None: not known, and not needed."""
    domain: Domain
    ids: bytes = b""
    """Of padding: the answer's packed token ids."""

    @property
    def provider(self) -> Address:
        return self.receipts[0].receipt.provider

    @property
    def name(self) -> tuple[Kind, Address, StreamId, int, int]:
        """By which the contract knows it: punished once, whatever the evidence."""
        last = self.receipts[-1].receipt
        return self.kind, last.provider, last.session_id, last.start, last.seq

    @property
    def function(self) -> str:
        """The contract's, that decides it."""
        if len(self.receipts) == 1:
            match self.kind:
                case Kind.RUNNING_TOTAL:
                    return "prove_first_total"
                case Kind.BROKEN_CHAIN:
                    return "prove_first_link"
        return f"prove_{self.kind.name.lower()}"

    def arguments(self, salt: bytes) -> tuple[Any, ...]:
        """Of that function, in order."""
        if self.kind is Kind.OVERSOLD:
            return [one.receipt.as_tuple() for one in self.receipts], [one.signature for one in self.receipts], salt
        assert self.session is not None
        given = [part for one in self.receipts for part in (one.receipt.as_tuple(), one.signature)]
        if self.kind is Kind.PADDING:
            given.append(self.ids)
        given.append((self.session.payer, self.session.payee, self.session.token, self.session.session_key))
        if self.kind is Kind.WRONG_OFFER:
            given.append(unhex(self.session.offer_id))
        return *given, salt

    @property
    def evidence(self) -> bytes:
        """What a commitment hides: which receipts prove which fault."""
        digests = [signed.receipt.digest(self.domain) for signed in self.receipts]
        return keccak(encode(["uint256", *["bytes32"] * len(digests)], [int(self.kind), *digests]))

    def commitment(self, reporter: Address, salt: bytes) -> bytes:
        return commitment(reporter, salt, self.evidence)

    @property
    def paid(self) -> int:
        """What the payer paid in the session by the receipts: base units of the session's token."""
        told = [one.receipt for one in self.receipts] if self.kind is Kind.EQUIVOCATION else [self.receipts[-1].receipt]
        start, until = told[0].start, max(one.finished_at for one in told) // 1000
        paid = max(one.total for one in told)
        if self.offer is not None and 0 < start < until:
            paid += self.offer.terms.rate * (until - start) // RATE_SCALE
        return paid

    @property
    def detail(self) -> str:
        """What is wrong, in numbers."""
        return _DETAILS[self.kind](self)


@dataclass(frozen=True)
class Ignored:
    """A receipt from which nothing was concluded."""

    signed: SignedReceipt
    reason: str


@dataclass(frozen=True)
class Findings:
    faults: tuple[Fault, ...]
    ignored: tuple[Ignored, ...]


@dataclass(frozen=True, slots=True)
class Stakes:
    """What a fault moves: base units of the stake's asset."""

    slashed: int
    reporter: int
    victim: int
    """At most: what it got before for the same session counts."""
    burned: int

    @classmethod
    def of(cls, fault: Fault, *, penalty: int, staked: int, asset: Address) -> Stakes:
        """`penalty`: of the fault's kind, where so much is staked."""
        slashed = min(penalty, staked)
        reporter = slashed * REPORTER_PERCENT // 100
        victim = 0
        if fault.session is not None and fault.session.token == asset:
            victim = min(fault.paid, slashed * VICTIM_PERCENT // 100)
        return cls(slashed, reporter, victim, slashed - reporter - victim)


def commitment(reporter: Address, salt: bytes, evidence: bytes) -> bytes:
    """What is put on chain a block before the proof, so that nobody takes a reporter's proof for its own."""
    return keccak(encode(["address", "bytes32", "bytes32"], [reporter, salt, evidence]))


def find(pile: Iterable[SignedReceipt], ground: Ground) -> Findings:
    """Every fault that the pile proves, each once, and what was passed over."""
    judged, ignored = _sift(pile, ground)
    faults: dict[tuple[Any, ...], Fault] = {}
    for fault in (*_alone(judged, ground), *_in_sessions(judged, ground), *_at_once(judged, ground)):
        known = faults.get(fault.name)
        if known is None or _order(fault) < _order(known):
            faults[fault.name] = fault
    return Findings(tuple(sorted(faults.values(), key=lambda fault: (fault.name[1:], _order(fault)))), ignored)


def _order(fault: Fault) -> tuple[Kind, bytes]:
    return fault.kind, fault.evidence


# --- what counts ---------------------------------------------------------------------------------


def _sift(pile: Iterable[SignedReceipt], ground: Ground) -> tuple[list[SignedReceipt], tuple[Ignored, ...]]:
    """Each receipt once, in an order of their own."""
    good: dict[str, SignedReceipt] = {}
    bad: dict[tuple[str, bytes], Ignored] = {}
    for signed in pile:
        reason = _amiss(signed, ground)
        if reason:
            bad[signed.receipt.hash, signed.signature] = Ignored(signed, reason)
            continue
        known = good.get(signed.receipt.hash)
        if known is None or signed.signature < known.signature:
            good[signed.receipt.hash] = signed
    ignored = tuple(bad[name] for name in sorted(bad))
    return [good[name] for name in sorted(good)], ignored


def _amiss(signed: SignedReceipt, ground: Ground) -> str:
    """Why the contract would not take a receipt as its provider's now; empty where it would."""
    receipt, now = signed.receipt, ground.now
    try:
        key = recover(receipt.digest(ground.domain), signed.signature)
    except BadSignature as error:
        return str(error)
    if not ground.was_signer(receipt.provider, key, receipt.finished_at // 1000):
        return f"signed by {key}, which was not the provider's key then"
    if receipt.finished_at > now * 1000:
        return "it is dated after the chain's last block: wait"
    if receipt.finished_at // 1000 + EVIDENCE_WINDOW < now:
        return f"it is older than {EVIDENCE_WINDOW // 86_400} days, and convicts nobody any more"
    return ""


def _session(receipt: Receipt, ground: Ground) -> StreamKey | None:
    """The parties whose id, with the offer that the receipt names, is the receipt's session."""
    key = ground.sessions.get(receipt.session_id)
    if key is None or key.id != receipt.session_id or key.offer_id != receipt.offer_id:
        return None
    return key


# --- faults of one receipt -----------------------------------------------------------------------


def _alone(judged: Sequence[SignedReceipt], ground: Ground) -> Iterator[Fault]:
    for signed in judged:
        receipt = signed.receipt
        key = ground.sessions.get(receipt.session_id)
        if key is None or key.id != receipt.session_id:
            continue
        offer = ground.offers.get(receipt.offer_id)
        own = offer is not None and offer.provider == receipt.provider
        foreign = receipt.offer_id in ground.offers and not own
        if key.offer_id != receipt.offer_id or foreign:
            # What else it says needs the session by the offer that it names, and that offer to be the provider's.
            yield Fault(Kind.WRONG_OFFER, (signed,), key, ground.offers.get(key.offer_id), ground.domain)
        if key.offer_id != receipt.offer_id:
            continue
        for kind, wrong in (
            (Kind.RUNNING_TOTAL, receipt.seq == 0 and receipt.total != receipt.amount),
            (Kind.BROKEN_CHAIN, receipt.seq == 0 and receipt.previous != NOTHING),
            (Kind.OVERBILLING, own and offer is not None and receipt.amount > _price(receipt, offer)),
            (Kind.LATE, own and offer is not None and _is_late(receipt, offer)),
        ):
            if wrong:
                yield Fault(kind, (signed,), key, offer, ground.domain)
        ids = ground.ids.get(receipt.output_hash)
        if ids is not None and len(ids) < 4 * receipt.completion_tokens and len(ids) <= 4 * MAX_IDS:
            yield Fault(Kind.PADDING, (signed,), key, offer, ground.domain, ids)


def _price(receipt: Receipt, offer: Offer) -> int:
    return offer.terms.owed(receipt.prompt_tokens, receipt.completion_tokens)


def _is_late(receipt: Receipt, offer: Offer) -> bool:
    bound, taken = offer.terms.max_ttft_ms, receipt.first_token_at - receipt.accepted_at
    return bound > 0 and receipt.completion_tokens > 0 and taken > bound


# --- faults of two receipts of one session -------------------------------------------------------


def _in_sessions(judged: Sequence[SignedReceipt], ground: Ground) -> Iterator[Fault]:
    sessions: dict[tuple[Address, StreamId, int], dict[int, list[SignedReceipt]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for signed in judged:
        receipt = signed.receipt
        sessions[receipt.provider, receipt.session_id, receipt.start][receipt.seq].append(signed)
    for places in sessions.values():
        for seq, found in places.items():
            yield from _equivocations(found, ground)
            for one in found:
                for before in places.get(seq - 1, ()):
                    yield from _links(before, one, ground)


def _equivocations(found: Sequence[SignedReceipt], ground: Ground) -> Iterator[Fault]:
    """The first that names its session's own offer, with the first other: the session is proven by the first."""
    for one in found:
        key = _session(one.receipt, ground)
        if key is not None and len(found) > 1:
            other = next(each for each in found if each is not one)
            offer = ground.offers.get(one.receipt.offer_id)
            yield Fault(Kind.EQUIVOCATION, (one, other), key, offer, ground.domain)
            return


def _links(before: SignedReceipt, signed: SignedReceipt, ground: Ground) -> Iterator[Fault]:
    a, b = before.receipt, signed.receipt
    key = _session(b, ground)
    if key is None:
        return
    offer = ground.offers.get(b.offer_id)
    if b.previous != a.hash:
        yield Fault(Kind.BROKEN_CHAIN, (before, signed), key, offer, ground.domain)
    elif b.total != a.total + b.amount:
        yield Fault(Kind.RUNNING_TOTAL, (before, signed), key, offer, ground.domain)


# --- too many at once ----------------------------------------------------------------------------


def _at_once(judged: Sequence[SignedReceipt], ground: Ground) -> Iterator[Fault]:
    """Each time that an offer's slots are exceeded; a receipt counts in one of them."""
    offered: dict[tuple[Address, OfferId], list[SignedReceipt]] = defaultdict(list)
    for signed in judged:
        offered[signed.receipt.provider, signed.receipt.offer_id].append(signed)
    for (provider, name), found in offered.items():
        offer = ground.offers.get(name)
        if offer is None or offer.provider != provider or offer.terms.slots >= MAX_OVERSOLD:
            continue
        found.sort(key=lambda signed: (signed.receipt.accepted_at, signed.receipt.hash))
        running: list[SignedReceipt] = []
        for signed in found:
            at = signed.receipt.accepted_at
            running = [one for one in (*running, signed) if one.receipt.finished_at > at]
            by_session: dict[StreamId, SignedReceipt] = {}
            for one in running:
                by_session.setdefault(one.receipt.session_id, one)
            if len(by_session) <= offer.terms.slots:
                continue
            chosen = tuple(by_session[session] for session in sorted(by_session)[: offer.terms.slots + 1])
            running = [one for one in running if one not in chosen]
            yield Fault(Kind.OVERSOLD, chosen, None, offer, ground.domain)


# --- words ---------------------------------------------------------------------------------------


def _overbilled(fault: Fault) -> str:
    receipt = fault.receipts[0].receipt
    assert fault.offer is not None
    due = fault.offer.terms.owed(receipt.prompt_tokens, receipt.completion_tokens)
    tokens = f"{receipt.prompt_tokens} + {receipt.completion_tokens} tokens"
    return f"receipt {receipt.seq} charges {receipt.amount} for {tokens} that cost {due}"


def _padded(fault: Fault) -> str:
    receipt = fault.receipts[0].receipt
    return f"receipt {receipt.seq} charges {receipt.completion_tokens} tokens of an answer of {len(fault.ids) // 4}"


def _wrong_total(fault: Fault) -> str:
    last = fault.receipts[-1].receipt
    before = fault.receipts[0].receipt.total if len(fault.receipts) > 1 else 0
    return f"receipt {last.seq} says {last.total} in all, and {before} before plus its {last.amount} is another sum"


def _misnamed(fault: Fault) -> str:
    receipt, session = fault.receipts[0].receipt, fault.session
    assert session is not None
    named = f"receipt {receipt.seq} names offer {receipt.offer_id[:10]}"
    if session.offer_id == receipt.offer_id:
        return f"{named}, which is none of its provider's"
    return f"{named}, and its session is of {session.offer_id[:10]}"


def _late(fault: Fault) -> str:
    receipt = fault.receipts[0].receipt
    assert fault.offer is not None
    taken = receipt.first_token_at - receipt.accepted_at
    return (
        f"receipt {receipt.seq} took {taken} ms to its first token, and the offer says {fault.offer.terms.max_ttft_ms}"
    )


_DETAILS: dict[Kind, Callable[[Fault], str]] = {
    Kind.EQUIVOCATION: lambda fault: f"two receipts are signed as number {fault.receipts[0].receipt.seq}",
    Kind.OVERBILLING: _overbilled,
    Kind.PADDING: _padded,
    Kind.RUNNING_TOTAL: _wrong_total,
    Kind.BROKEN_CHAIN: lambda fault: f"receipt {fault.receipts[-1].receipt.seq} does not name the one before it",
    Kind.WRONG_OFFER: _misnamed,
    Kind.OVERSOLD: lambda fault: (
        f"{len(fault.receipts)} sessions were answered at once, with {len(fault.receipts) - 1} slots on offer"
    ),
    Kind.LATE: _late,
}
