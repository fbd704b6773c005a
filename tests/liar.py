"""A registered provider that signs whatever a test tells it to: receipts that are right unless the test says else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from penstock.chain.port import Chain
from penstock.keys import LocalAccount, new_session_key
from penstock.types import NATIVE, Address, Offer, StreamKey, Terms
from penstock.wire.evidence import Piece
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
from tests.gateways import list_offer

TERMS = Terms("penstock-tiny", NATIVE, 10**6, 10**12, 2 * 10**12, 2, 4096, 2_000, "", "")
IDS = (7, 8, 9)


@dataclass
class Liar:
    chain: Chain
    account: LocalAccount
    offer: Offer
    now: int
    """Unix seconds, of the chain."""
    last: dict[str, Receipt] = field(default_factory=dict)
    """By session."""
    count: int = 0

    @classmethod
    async def register(
        cls, chain: Chain, account: LocalAccount, advance: Callable[[int], int], terms: Terms = TERMS
    ) -> Liar:
        """Some time ago: its key was its own when it signed."""
        offer = await list_offer(chain, account, "http://127.0.0.1:1", terms)
        return cls(chain, account, offer, advance(100_000))

    def session(self, payer: Address) -> StreamKey:
        provider = self.account.address
        return StreamKey(payer, provider, self.offer.terms.token, new_session_key().address, self.offer.id)

    def receipt(self, key: StreamKey, *, ids: tuple[int, ...] = IDS, **lies: Any) -> Piece:
        """The session's next one; what is signed as a lie is not what the next is built on."""
        before, terms = self.last.get(key.id), self.offer.terms
        self.count += 1
        started = (self.now - 100) * 1000 + 10 * self.count
        amount = terms.owed(5, len(ids))
        honest = Receipt(
            self.account.address, key.offer_id, key.id, 0, before.seq + 1 if before else 0,
            request_hash(str(self.count).encode()), output_hash(ids), 5, len(ids), started, started + 5, started + 9,
            amount, amount + (before.total if before else 0), before.hash if before else NOTHING,
        )  # fmt: skip
        self.last[key.id] = honest
        return Piece(self.sign(replace(honest, **lies)), key, pack_ids(ids))

    def sign(self, receipt: Receipt) -> SignedReceipt:
        domain = self.chain.slashing_domain
        assert domain is not None
        return receipt.sign(domain, self.account)

    def again(self, piece: Piece, **lies: Any) -> Piece:
        """The same receipt, but for the lies."""
        return replace(piece, signed=self.sign(replace(piece.signed.receipt, **lies)))

    def accept(self, key: StreamKey, *, age: int) -> SignedAccept:
        """Of so many seconds ago."""
        domain = self.chain.slashing_domain
        assert domain is not None
        self.count += 1
        at = (self.now - age) * 1000 + self.count
        request = request_hash(str(self.count).encode())
        return Accept(self.account.address, key.offer_id, key.id, 0, request, at).sign(domain, self.account)

    def lies(self, payer: Address) -> dict[str, list[Piece]]:
        """One pile for each kind of fault, each of sessions of its own."""
        found: dict[str, list[Piece]] = {}
        key = self.session(payer)
        first = self.receipt(key)
        found["equivocation"] = [first, self.again(first, prompt_tokens=6)]
        found["overbilling"] = [self.receipt(self.session(payer), amount=10**9, total=10**9)]
        amount = self.offer.terms.owed(5, 4)
        found["padding"] = [self.receipt(self.session(payer), completion_tokens=4, amount=amount, total=amount)]
        key = self.session(payer)
        found["running total"] = [self.receipt(key), self.receipt(key, total=1)]
        key = self.session(payer)
        found["broken chain"] = [self.receipt(key), self.receipt(key, previous=NOTHING)]
        found["wrong offer"] = [self.receipt(self.session(payer), offer_id="0x" + "11" * 32)]
        at = (self.now - 50) * 1000
        sold = [
            self.receipt(self.session(payer), accepted_at=at, first_token_at=at + 1, finished_at=at + 2)
            for _ in range(self.offer.terms.slots + 1)
        ]
        found["oversold"] = sold
        late = {"accepted_at": at, "first_token_at": at + 3_000, "finished_at": at + 4_000}
        found["late"] = [self.receipt(self.session(payer), **late)]
        key = self.session(payer)
        found["running total, first"] = [self.receipt(key, total=1)]
        found["broken chain, first"] = [self.receipt(self.session(payer), previous="0x" + "22" * 32)]
        return found
