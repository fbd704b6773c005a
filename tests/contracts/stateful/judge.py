"""The Python twin of Slashing and of the stake that it judges, and a provider that keeps the rules."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from penstock.errors import BadSignature
from penstock.types import Address, OfferId, StreamId, hex32
from penstock.wire.eip712 import Domain, recover
from penstock.wire.receipts import (
    NOTHING,
    Accept,
    Receipt,
    SignedAccept,
    SignedReceipt,
    output_hash,
    pack_ids,
    request_hash,
)
from tests.contracts.court import (
    ANSWER,
    BURNED,
    DAY,
    EQUIVOCATION,
    HOUR,
    NON_DELIVERY,
    OVERSOLD,
    RUNNING_TOTAL,
    WINDOW,
    WRONG_OFFER,
    Parties,
    Proof,
    commitment,
    key_of,
    penalty,
    shares,
)
from tests.contracts.harness import Actor
from tests.contracts.market import OfferTerms


class Refused(Exception):
    """The twin refuses, with the contract's reason."""


def require(condition: bool, reason: str) -> None:
    if not condition:
        raise Refused(reason)


@dataclass
class Stake:
    bonded: int = 0
    queue: list[tuple[int, int]] = field(default_factory=list)
    """Amount and release, oldest first."""
    frozen: int = 0

    @property
    def total(self) -> int:
        return self.bonded + sum(amount for amount, _ in self.queue)

    def slash(self, amount: int) -> int:
        taken = min(amount, self.bonded)
        self.bonded -= taken
        while taken < amount and self.queue:
            last, release = self.queue.pop()
            cut = min(amount - taken, last)
            taken += cut
            if cut < last:
                self.queue.append((last - cut, release))
        return taken


@dataclass
class Judge:
    """What Slashing, Registry (as far as it is asked) and Staking know."""

    domain: Domain
    asset: str
    offers: dict[str, tuple[str, OfferTerms]]
    """By id: whose, and its terms."""
    keys: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    """By provider: since when, which key; oldest first."""
    stakes: dict[str, Stake] = field(default_factory=lambda: defaultdict(Stake))
    commitments: dict[bytes, int] = field(default_factory=dict)
    proven: set[tuple[int, str, str, int, int]] = field(default_factory=set)
    compensated: dict[tuple[str, str, int], int] = field(default_factory=lambda: defaultdict(int))
    credits: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    bonds: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Credits in wei for bonds."""
    challenges: dict[bytes, list[object]] = field(default_factory=dict)
    """By id: challenger, opened at, whether it is open."""

    # --- proofs ---

    def prove(self, proof: Proof, reporter: str, salt: bytes, now: int, block: int) -> tuple[int, int, int]:
        """What reporter, victim and burner get. Raises Refused, and then nothing has changed."""
        receipts = [message.receipt for message in proof.messages]
        paid, victim = 0, ""
        at = 0 if proof.kind in (EQUIVOCATION, OVERSOLD) else -1
        accused = receipts[at] if receipts else None
        if proof.kind == OVERSOLD:
            marks = self._oversold(proof, now)
        else:
            assert accused is not None
            parties, offer_id = self._contents(proof, receipts)
            for message in proof.messages:
                self._signed(message, now)
            marks = [(proof.kind, accused.provider, accused.session_id, accused.start, accused.seq)]
            total, until = accused.total, accused.finished_at
            if proof.kind == EQUIVOCATION:
                total, until = max(r.total for r in receipts), max(r.finished_at for r in receipts)
            paid, victim = self._paid(parties, offer_id, accused.start, total, until), parties[0]
        made = commitment(reporter, salt, proof.evidence(self.domain))
        require(made in self.commitments, "slashing: not committed")
        require(block > self.commitments[made], "slashing: committed in this block")
        require(not any(mark in self.proven for mark in marks), "slashing: already proven")
        assert accused is not None
        require(self.stakes[accused.provider].total > 0, "slashing: nothing is staked")
        del self.commitments[made]
        self.proven |= set(marks)
        taken = self.stakes[accused.provider].slash(penalty(proof.kind))
        return self._share(taken, accused.provider, accused.session_id, accused.start, reporter, victim, paid)

    def _contents(self, proof: Proof, receipts: Sequence[Receipt]) -> tuple[tuple[str, ...], str]:
        """What a proof says, signatures aside; the parties and the offer that its session was opened with."""
        a, b = receipts[0], receipts[-1]
        session = proof.rest[-1] if proof.kind != WRONG_OFFER else proof.rest[0]
        offer_id: str = b.offer_id
        match proof.kind:
            case 1:
                require(
                    a.session == b.session and (a.provider, a.seq) == (b.provider, b.seq),
                    "slashing: not one place of one session",
                )
                self._session(a.session_id, session, a.offer_id)
                require(a.hash != b.hash, "slashing: the same receipt twice")
                return session, a.offer_id
            case 2:
                price = self._offer(b).terms_owed(b)
                require(b.amount > price, "slashing: no more than the offer's price")
            case 3:
                require(hash_of(proof.rest[0]) == b.output_hash, "slashing: not the ids of the output")
                require(len(proof.rest[0]) < 4 * b.completion_tokens, "slashing: no more tokens than ids")
            case 4 | 5 if len(receipts) == 1:
                require(b.seq == 0, "slashing: not the first")
                if proof.kind == RUNNING_TOTAL:
                    require(b.total != b.amount, "slashing: the total is right")
                else:
                    require(b.previous != NOTHING, "slashing: the chain holds")
            case 4 | 5:
                follows = a.session == b.session and (a.provider, a.seq + 1) == (b.provider, b.seq)
                require(follows, "slashing: not one after the other")
                if proof.kind == RUNNING_TOTAL:
                    require(b.previous == a.hash, "slashing: not the one before")
                    require(b.total != a.total + b.amount, "slashing: the total is right")
                else:
                    require(b.previous != a.hash, "slashing: the chain holds")
            case 6:
                offer_id = hex32(proof.rest[1])
                own = self.offers.get(offer_id, ("", None))[0] == b.provider
                require(offer_id != b.offer_id or not own, "slashing: the session's own offer")
            case 8:
                bound = self._offer(b).terms.max_ttft_ms
                require(bound > 0, "slashing: the offer has no bound")
                require(b.completion_tokens > 0, "slashing: no token came")
                require(b.first_token_at > b.accepted_at + bound, "slashing: in time")
        self._session(b.session_id, session, offer_id)
        return session, offer_id

    def _oversold(self, proof: Proof, now: int) -> list[tuple[int, str, str, int, int]]:
        receipts = [message.receipt for message in proof.messages]
        require(len(receipts) > 1, "slashing: not a signature for each")
        first = receipts[0]
        require(len(receipts) == self._offer(first).terms.slots + 1, "slashing: not one more than the slots")
        marks, last = [], ""
        for message in proof.messages:
            r = message.receipt
            require((r.provider, r.offer_id) == (first.provider, first.offer_id), "slashing: not of one offer")
            require(r.session_id > last, "slashing: sessions out of order")
            last = r.session_id
            self._signed(message, now)
            mark = (OVERSOLD, r.provider, r.session_id, r.start, r.seq)
            require(mark not in self.proven, "slashing: already proven")
            marks.append(mark)
        together = max(r.accepted_at for r in receipts) < min(r.finished_at for r in receipts)
        require(together, "slashing: not at one instant")
        return marks

    # --- challenges ---

    def open_challenge(self, signed: SignedAccept, parties: Parties, challenger: str, now: int) -> None:
        accept = signed.accept
        self._session(accept.session_id, parties.struct, accept.offer_id)
        require(now >= accept.accepted_at // 1000 + HOUR, "slashing: too early to challenge")
        require(now <= accept.accepted_at // 1000 + DAY, "slashing: too late to challenge")
        id = accept.digest(self.domain)
        require(id not in self.challenges, "slashing: already challenged")
        self._key(accept.provider, id, signed.signature, accept.accepted_at // 1000)
        self.challenges[id] = [challenger, now, True]
        self.stakes[accept.provider].frozen += penalty(NON_DELIVERY)

    def answer(self, signed: SignedReceipt, ids: bytes, bond: int, now: int) -> None:
        r = signed.receipt
        fields = (r.provider, r.offer_id, r.session_id, r.start, r.request_hash, r.accepted_at)
        challenge = self._open(Accept(*fields).digest(self.domain))
        require(now < int(str(challenge[1])) + ANSWER, "slashing: too late to answer")
        if r.output_hash != NOTHING and r.completion_tokens <= 8_192:
            require(hash_of(ids) == r.output_hash, "slashing: not the ids of the output")
        else:
            require(not ids, "slashing: no ids are asked for")
        self._signed(signed, now)
        challenge[2] = False
        self.bonds[r.provider] += bond
        self.stakes[r.provider].frozen -= penalty(NON_DELIVERY)

    def resolve(self, accept: Accept, parties: Parties, bond: int, now: int) -> tuple[int, int, int]:
        challenge = self._open(accept.digest(self.domain))
        require(now >= int(str(challenge[1])) + ANSWER, "slashing: it may still be answered")
        self._session(accept.session_id, parties.struct, accept.offer_id)
        challenge[2] = False
        challenger = str(challenge[0])
        self.bonds[challenger] += bond
        stake = self.stakes[accept.provider]
        stake.frozen -= penalty(NON_DELIVERY)
        taken = stake.slash(penalty(NON_DELIVERY))
        paid = self._paid(parties.struct, accept.offer_id, accept.start, 0, accept.accepted_at)
        return self._share(taken, accept.provider, accept.session_id, accept.start, challenger, parties.payer, paid)

    def _open(self, id: bytes) -> list[object]:
        require(id in self.challenges, "slashing: no such challenge")
        require(bool(self.challenges[id][2]), "slashing: the challenge is closed")
        return self.challenges[id]

    # --- parts ---

    def was_signer(self, provider: str, key: str, second: int) -> bool:
        periods = self.keys.get(provider, [])
        ends = [since for since, _ in periods[1:]] + [2**64]
        return any(k == key and since <= second <= end for (since, k), end in zip(periods, ends, strict=True))

    def _signed(self, message: SignedReceipt, now: int) -> None:
        second = message.receipt.finished_at // 1000
        require(second <= now, "slashing: dated in the future, wait")
        require(second + WINDOW >= now, "slashing: the evidence has expired")
        self._key(message.receipt.provider, message.receipt.digest(self.domain), message.signature, second)

    def _key(self, provider: str, digest: bytes, signature: bytes, second: int) -> None:
        try:
            key = recover(digest, signature)
        except BadSignature:
            raise Refused("slashing: not a signature") from None
        require(self.was_signer(provider, key, second), "slashing: not signed by the provider")

    def _session(self, id: str, session: Sequence[str], offer_id: str) -> None:
        require(Parties(*session).id(bytes.fromhex(offer_id[2:])) == id, "slashing: not the session")

    def _offer(self, r: Receipt) -> Named:
        provider, terms = self.offers.get(r.offer_id, ("", None))
        require(terms is not None and provider == r.provider, "slashing: not the provider's offer")
        assert terms is not None
        return Named(terms)

    def _paid(self, session: Sequence[str], offer_id: str, start: int, total: int, until: int) -> int:
        if session[2] != self.asset:
            return 0
        seconds = max(0, until // 1000 - start) if start else 0
        _, terms = self.offers.get(offer_id, ("", None))
        return total + (terms.rate if terms else 0) * seconds // 10**6

    def _share(
        self, taken: int, provider: str, session_id: str, start: int, reporter: str, victim: str, paid: int
    ) -> tuple[int, int, int]:
        name = (provider, session_id, start)
        to_reporter, to_victim, burned = shares(taken, paid, self.compensated[name])
        self.compensated[name] += to_victim
        for account, amount in ((reporter, to_reporter), (victim, to_victim), (BURNED, burned)):
            self.credits[account] += amount
        return to_reporter, to_victim, burned


@dataclass(frozen=True)
class Named:
    terms: OfferTerms

    def terms_owed(self, r: Receipt) -> int:
        return owed(self.terms, r.prompt_tokens, r.completion_tokens)


def owed(terms: OfferTerms, prompt: int, completion: int) -> int:
    return -(-(prompt * terms.prompt_price + completion * terms.completion_price) // 10**6)


def hash_of(raw: bytes) -> str:
    return request_hash(raw)


# --- a provider that keeps the rules -------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """A request that was taken and not yet answered."""

    accept: SignedAccept
    parties: Parties
    terms: OfferTerms
    prompt: int


@dataclass
class HonestProvider:
    """Signs as docs/spec.md says, whatever its consumers ask of it."""

    id: str
    domain: Domain
    signer: str
    second: Callable[[], int]
    working: list[Work] = field(default_factory=list)
    receipts: list[SignedReceipt] = field(default_factory=list)
    accepts: dict[str, tuple[SignedAccept, Parties]] = field(default_factory=dict)
    answers: dict[str, tuple[SignedReceipt, bytes]] = field(default_factory=dict)
    """By the accept's hash."""
    last: dict[tuple[str, int], tuple[Receipt, int, int]] = field(default_factory=dict)
    """By session: its last receipt, and all its tokens."""
    clock: int = 0

    def tick(self) -> int:
        """ms; each is later than the one before, also where the world's clock stands still."""
        self.clock = max(self.clock + 1, self.second() * 1000)
        return self.clock

    def holders(self, offer_id: str) -> set[tuple[str, int]]:
        """Sessions that hold a slot of the offer."""
        return {
            (w.accept.accept.session_id, w.accept.accept.start)
            for w in self.working
            if w.accept.accept.offer_id == offer_id
        }

    def take(self, parties: Parties, terms: OfferTerms, start: int, body: bytes, prompt: int) -> bool:
        """Accept a request, if a slot is free or the session holds one."""
        offer_id = terms.id(self.id)
        session = (parties.id(offer_id), start)
        holding = self.holders(hex32(offer_id))
        if session not in holding and len(holding) >= terms.slots:
            return False
        accept = Accept(
            Address(self.id), OfferId(hex32(offer_id)), StreamId(session[0]), start, request_hash(body), self.tick()
        )
        signed = accept.sign(self.domain, key_of(Actor(self.signer)))
        self.accepts[accept.hash] = (signed, parties)
        self.working.append(Work(signed, parties, terms, prompt))
        return True

    def finish(self, number: int, ids: Sequence[int], *, tells_ids: bool = True) -> SignedReceipt:
        """Answer one of the requests under way. Its slot is free only after the receipt."""
        work = self.working[number % len(self.working)]
        accept, terms = work.accept.accept, work.terms
        before, prompts, completions = self.last.get((accept.session_id, accept.start), (None, 0, 0))
        prompts, completions = prompts + work.prompt, completions + len(ids)
        total = owed(terms, prompts, completions)
        finished = self.tick()
        # What the bound does not allow is not given: then the answer is empty.
        first = min(finished, accept.accepted_at + terms.max_ttft_ms) if ids else 0
        receipt = Receipt(
            accept.provider,
            accept.offer_id,
            accept.session_id,
            accept.start,
            before.seq + 1 if before else 0,
            accept.request_hash,
            output_hash(ids) if tells_ids else NOTHING,
            work.prompt,
            len(ids),
            accept.accepted_at,
            first,
            finished,
            total - (before.total if before else 0),
            total,
            before.hash if before else NOTHING,
        )
        signed = receipt.sign(self.domain, key_of(Actor(self.signer)))
        self.last[accept.session_id, accept.start] = (receipt, prompts, completions)
        self.receipts.append(signed)
        self.answers[accept.hash] = (signed, pack_ids(ids) if tells_ids else b"")
        self.working.remove(work)
        return signed
