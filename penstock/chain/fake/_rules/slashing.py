"""Slashing.vy."""

from __future__ import annotations

from dataclasses import replace

from eth_utils.crypto import keccak

from penstock.accrual import RATE_SCALE
from penstock.chain.fake._rules.registry import was_signer
from penstock.chain.fake._rules.transaction import Contracts, Rules, require
from penstock.errors import BadSignature
from penstock.events import (
    ChallengeAnswered,
    ChallengeOpened,
    ChallengeResolved,
    Committed,
    CreditWithdrawn,
    FaultProven,
)
from penstock.faults import (
    ANSWER_WINDOW,
    BURNED,
    CHALLENGE_AFTER,
    CHALLENGE_UNTIL,
    EVIDENCE_WINDOW,
    MAX_IDS,
    NON_DELIVERY,
    REPORTER_PERCENT,
    VICTIM_PERCENT,
    Fault,
    Kind,
)
from penstock.types import NATIVE, ZERO_ADDRESS, Address, Challenge, Offer, OfferId, StreamKey, hex32
from penstock.wire.eip712 import recover
from penstock.wire.receipts import NOTHING, Accept, SignedAccept, SignedReceipt
from penstock.wire.receipts import Receipt as Billed

BOND = 10**16
"""Wei."""


class SlashingRules(Rules):
    # --- faults ---

    def commit(self, commitment: bytes) -> None:
        require(commitment not in self.state.commitments, "slashing: already committed")
        self.state.commitments[commitment] = self.tx.block
        self.tx.judge(Committed, hex32(commitment), self.tx.sender)

    def prove(self, fault: Fault, salt: bytes) -> None:
        receipts = [signed.receipt for signed in fault.receipts]
        if fault.kind is Kind.OVERSOLD:
            self._require_oversold(receipts)
        else:
            getattr(self, f"_require_{fault.kind.name.lower()}")(fault, *receipts)
        for signed in fault.receipts:
            self._require_signed(signed)
        commitment = replace(fault, domain=self.tx.contracts.slashing_domain).commitment(self.tx.sender, salt)
        committed = self.state.commitments.get(commitment, 0)
        require(committed != 0, "slashing: not committed")
        require(self.tx.block > committed, "slashing: committed in this block")
        del self.state.commitments[commitment]
        convicted = receipts if fault.kind is Kind.OVERSOLD else receipts[-1:]
        for receipt in convicted:
            name = (int(fault.kind), receipt.provider, receipt.session_id, receipt.start, receipt.seq)
            require(name not in self.state.proven, "slashing: already proven")
            self.state.proven.add(name)
        victim = fault.session.payer if fault.session else ZERO_ADDRESS
        first = receipts[0] if fault.kind is Kind.OVERSOLD else receipts[-1]
        slashed = self._slash(first.provider, self._penalty(fault.kind))
        require(slashed > 0, "slashing: nothing is staked")
        until = max(receipt.finished_at for receipt in receipts)
        total = max(receipt.total for receipt in receipts)
        if fault.kind is not Kind.EQUIVOCATION:
            until, total = receipts[-1].finished_at, receipts[-1].total
        paid = self._paid(fault.session, first.start, total, until)
        shares = self._split(slashed, (first.provider, first.session_id, first.start), self.tx.sender, victim, paid)
        self.tx.judge(
            FaultProven,
            first.provider,
            int(fault.kind),
            first.session_id,
            first.start,
            first.seq,
            hex32(fault.evidence),
            self.tx.sender,
            victim,
            slashed,
            *shares,
        )

    def _require_equivocation(self, fault: Fault, a: Billed, b: Billed) -> None:
        one = (a.provider, a.session_id, a.start, a.seq) == (b.provider, b.session_id, b.start, b.seq)
        require(one, "slashing: not one place of one session")
        self._require_session(fault, a)
        require(a.hash != b.hash, "slashing: the same receipt twice")

    def _require_overbilling(self, fault: Fault, r: Billed) -> None:
        terms = self._offer_of(r).terms
        over = r.amount > terms.owed(r.prompt_tokens, r.completion_tokens)
        require(over, "slashing: no more than the offer's price")
        self._require_session(fault, r)

    def _require_padding(self, fault: Fault, r: Billed) -> None:
        require(hex32(keccak(fault.ids)) == r.output_hash, "slashing: not the ids of the output")
        require(len(fault.ids) < 4 * r.completion_tokens, "slashing: no more tokens than ids")
        self._require_session(fault, r)

    def _require_running_total(self, fault: Fault, a: Billed, b: Billed | None = None) -> None:
        if b is None:
            require(a.seq == 0, "slashing: not the first")
            require(a.total != a.amount, "slashing: the total is right")
        else:
            self._require_next(a, b)
            require(b.previous == a.hash, "slashing: not the one before")
            require(b.total != a.total + b.amount, "slashing: the total is right")
        self._require_session(fault, b or a)

    def _require_broken_chain(self, fault: Fault, a: Billed, b: Billed | None = None) -> None:
        if b is None:
            require(a.seq == 0, "slashing: not the first")
            require(a.previous != NOTHING, "slashing: the chain holds")
        else:
            self._require_next(a, b)
            require(b.previous != a.hash, "slashing: the chain holds")
        self._require_session(fault, b or a)

    def _require_wrong_offer(self, fault: Fault, r: Billed) -> None:
        session = self._session(fault)
        if session.offer_id == r.offer_id:
            offer = self.state.offers.get(r.offer_id)
            foreign = offer is None or offer.provider != r.provider
            require(foreign, "slashing: the session's own offer")
        require(session.id == r.session_id, "slashing: not the session")

    def _require_late(self, fault: Fault, r: Billed) -> None:
        bound = self._offer_of(r).terms.max_ttft_ms
        require(bound > 0, "slashing: the offer has no bound")
        require(r.completion_tokens > 0, "slashing: no token came")
        require(r.first_token_at > r.accepted_at + bound, "slashing: in time")
        self._require_session(fault, r)

    def _require_oversold(self, receipts: list[Billed]) -> None:
        offer = self._offer_of(receipts[0])
        require(len(receipts) == offer.terms.slots + 1, "slashing: not one more than the slots")
        one = all((r.provider, r.offer_id) == (receipts[0].provider, receipts[0].offer_id) for r in receipts)
        require(one, "slashing: not of one offer")
        ids = [r.session_id for r in receipts]
        require(ids == sorted(set(ids)), "slashing: sessions out of order")
        at_once = max(r.accepted_at for r in receipts) < min(r.finished_at for r in receipts)
        require(at_once, "slashing: not at one instant")

    # --- challenges ---

    def open_challenge(self, signed: SignedAccept, key: StreamKey, value: int) -> None:
        accept = signed.accept
        require(value == BOND, "slashing: the value is not the bond")
        require(replace(key, offer_id=accept.offer_id).id == accept.session_id, "slashing: not the session")
        accepted, now = accept.accepted_at // 1000, self.now
        require(now >= accepted + CHALLENGE_AFTER, "slashing: too early to challenge")
        require(now <= accepted + CHALLENGE_UNTIL, "slashing: too late to challenge")
        name = self._challenge_id(accept)
        require(name not in self.state.challenges, "slashing: already challenged")
        self._require_key(accept.provider, accept.digest(self.tx.contracts.slashing_domain), signed.signature, accepted)
        self.state.challenges[name] = Challenge(self.tx.sender, now, True)
        frozen = self._penalty(NON_DELIVERY)
        self.tx.judge(
            ChallengeOpened,
            name,
            accept.provider,
            self.tx.sender,
            accept.session_id,
            accept.start,
            accept.request_hash,
            accept.accepted_at,
            replace(key, offer_id=accept.offer_id),
            BOND,
            frozen,
        )

    def answer_challenge(self, signed: SignedReceipt, ids: bytes) -> None:
        r = signed.receipt
        accept = Accept(r.provider, r.offer_id, r.session_id, r.start, r.request_hash, r.accepted_at)
        name, challenge = self._open_challenge(accept)
        require(self.now < challenge.opened_at + ANSWER_WINDOW, "slashing: too late to answer")
        if r.output_hash != NOTHING and r.completion_tokens <= MAX_IDS:
            require(hex32(keccak(ids)) == r.output_hash, "slashing: not the ids of the output")
        else:
            require(ids == b"", "slashing: no ids are asked for")
        self._require_signed(signed)
        self.state.challenges[name] = replace(challenge, open=False)
        owner = self.state.providers[r.provider].owner
        self._credit(NATIVE, owner, BOND)
        self.tx.judge(ChallengeAnswered, name, r.provider, r.hash, owner, BOND)

    def resolve_challenge(self, accept: Accept, key: StreamKey) -> None:
        name, challenge = self._open_challenge(accept)
        require(self.now >= challenge.opened_at + ANSWER_WINDOW, "slashing: it may still be answered")
        session = replace(key, offer_id=accept.offer_id)
        require(session.id == accept.session_id, "slashing: not the session")
        self.state.challenges[name] = replace(challenge, open=False)
        self._credit(NATIVE, challenge.challenger, BOND)
        slashed = self._slash(accept.provider, self._penalty(NON_DELIVERY))
        paid = self._paid(session, accept.start, 0, accept.accepted_at)
        place = (accept.provider, accept.session_id, accept.start)
        shares = self._split(slashed, place, challenge.challenger, session.payer, paid)
        self.tx.judge(
            ChallengeResolved,
            name,
            accept.provider,
            challenge.challenger,
            session.payer,
            slashed,
            *shares,
            BOND,
        )

    def withdraw(self, token: Address, account: Address) -> None:
        amount = self.state.credits.pop((token, account), 0)
        require(amount > 0, "credits: nothing to withdraw")
        self.tx.judge(CreditWithdrawn, token, account, amount)
        self.state.coins[account] = self.state.coins.get(account, 0) + amount

    # --- helpers ---

    def _challenge_id(self, accept: Accept) -> str:
        return hex32(accept.digest(self.tx.contracts.slashing_domain))

    def _open_challenge(self, accept: Accept) -> tuple[str, Challenge]:
        name = self._challenge_id(accept)
        found = self.state.challenges.get(name)
        require(found is not None, "slashing: no such challenge")
        assert found is not None
        require(found.open, "slashing: the challenge is closed")
        return name, found

    def _session(self, fault: Fault) -> StreamKey:
        assert fault.session is not None
        return fault.session

    def _require_session(self, fault: Fault, receipt: Billed) -> None:
        key = replace(self._session(fault), offer_id=receipt.offer_id)
        require(key.id == receipt.session_id, "slashing: not the session")

    def _require_next(self, a: Billed, b: Billed) -> None:
        one = (a.provider, a.session_id, a.start, a.seq + 1) == (b.provider, b.session_id, b.start, b.seq)
        require(one, "slashing: not one after the other")

    def _require_signed(self, signed: SignedReceipt) -> None:
        receipt = signed.receipt
        finished = receipt.finished_at // 1000
        require(finished <= self.now, "slashing: dated in the future, wait")
        require(finished + EVIDENCE_WINDOW >= self.now, "slashing: the evidence has expired")
        self._require_key(
            receipt.provider, receipt.digest(self.tx.contracts.slashing_domain), signed.signature, finished
        )

    def _require_key(self, provider: Address, digest: bytes, signature: bytes, at: int) -> None:
        try:
            key = recover(digest, signature)
        except BadSignature:
            key = ZERO_ADDRESS
        require(key != ZERO_ADDRESS, "slashing: not a signature")
        require(was_signer(self.state, provider, key, at), "slashing: not signed by the provider")

    def _offer_of(self, receipt: Billed) -> Offer:
        offer = self.state.offers.get(OfferId(receipt.offer_id))
        require(offer is not None and offer.provider == receipt.provider, "slashing: not the provider's offer")
        assert offer is not None
        return offer

    def _paid(self, session: StreamKey | None, start: int, total: int, until: int) -> int:
        if session is None or session.token != NATIVE:
            return 0
        offer, seconds = self.state.offers.get(session.offer_id), until // 1000
        if offer is not None and 0 < start < seconds:
            total += offer.terms.rate * (seconds - start) // RATE_SCALE
        return total

    def _slash(self, provider: Address, amount: int) -> int:
        staked = self.state.stakes.get(provider, 0)
        slashed = min(amount, staked)
        self.state.stakes[provider] = staked - slashed
        return slashed

    def _split(
        self, slashed: int, place: tuple[Address, str, int], reporter: Address, victim: Address, paid: int
    ) -> tuple[int, int, int]:
        to_reporter = slashed * REPORTER_PERCENT // 100
        given = self.state.compensated.get(place, 0)
        to_victim = min(max(0, paid - given), slashed * VICTIM_PERCENT // 100)
        self.state.compensated[place] = given + to_victim
        burned = slashed - to_reporter - to_victim
        for account, amount in ((reporter, to_reporter), (victim, to_victim), (BURNED, burned)):
            self._credit(NATIVE, account, amount)
        return to_reporter, to_victim, burned

    def _credit(self, token: Address, account: Address, amount: int) -> None:
        if amount:
            self.state.credits[token, account] = self.state.credits.get((token, account), 0) + amount

    def _penalty(self, kind: int) -> int:
        return penalty(self.tx.contracts, kind)


def penalty(contracts: Contracts, kind: int) -> int:
    return contracts.cover_per_slot // 10 if kind >= Kind.LATE else contracts.cover_per_slot
