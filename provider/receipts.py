"""What the provider signs: an accept for each request that it takes, a receipt for each answer.

Both are on the disk before they are signed, and a receipt's place in its session is taken in the transaction that
writes it. So a process that is killed at any instant never signs two receipts for one place, nor owes one that it
does not know of: an accept that is without a receipt at the start gets one that says what is known, no tokens.
Signing is deterministic (RFC 6979): the same receipt signed again is the same bytes.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import structlog
from sqlalchemy.exc import IntegrityError, OperationalError

from penstock.types import Address, StreamId, Terms, hex32
from penstock.wire.eip712 import Domain, KeySigner
from penstock.wire.receipts import (
    NOTHING,
    Accept,
    Receipt,
    SignedReceipt,
    pack_ids,
    request_hash,
)
from penstock.wire.words import keccak
from provider.market import Seller
from provider.store import Last, NotOurs, Session, SlotsTaken, Store, Stored, Usage

log = structlog.get_logger("provider.receipts")

_AHEAD_MS = 60_000
"""So far ahead of the clock on the wall ours may be, after that one was set back, before it is said."""


class ReceiptClock:
    """Milliseconds since 1970 that never run backwards, whatever is done to the clock on the wall."""

    def __init__(
        self, wall: Callable[[], float], last: int = 0, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """`last`: the latest time that was ever told."""
        self._wall, self._monotonic = wall, monotonic
        self._last, self._read_at = last, monotonic()
        if (ahead := last - int(wall() * 1000)) > _AHEAD_MS:
            log.warning("the clock was set back: receipts go on from the latest time they told", ahead_ms=ahead)

    def now(self, least: int = 0) -> int:
        """`least`: a time that was told from elsewhere, after which it is."""
        read_at = self._monotonic()
        passed = int((read_at - self._read_at) * 1000)
        now = max(int(self._wall() * 1000), self._last + passed, least)
        if now > self._last:
            self._last, self._read_at = now, read_at
        return now

    def unique(self) -> int:
        """As `now`, and later than whatever was told before."""
        before = self._last
        if self.now() <= before:
            self._last, self._read_at = before + 1, self._monotonic()
        return self._last


@dataclass(frozen=True, slots=True)
class Answered:
    """What became of a request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_token_at: int = 0
    """Milliseconds; 0: none came."""
    token_ids: bytes | None = None
    """Packed, of the choices in order; None where the engine told none."""

    @classmethod
    def of(
        cls, prompt_tokens: int, completion_tokens: int, first_token_at: int, choices: Sequence[Sequence[int]]
    ) -> Answered:
        """The choices' ids, where there are any, are the completion tokens."""
        count = sum(map(len, choices))
        if not count:
            return cls(prompt_tokens, completion_tokens, first_token_at if completion_tokens else 0)
        return cls(prompt_tokens, count, first_token_at, b"".join(map(pack_ids, choices)))


def following(accept: Accept, answered: Answered, finished_at: int, last: Last | None, terms: Terms | None) -> Receipt:
    """The receipt that comes after a session's last one. `terms`: of its offer; None: it prices no tokens."""
    prompt_tokens = answered.prompt_tokens + (last.prompt_tokens if last else 0)
    completion_tokens = answered.completion_tokens + (last.completion_tokens if last else 0)
    before = last.total if last else 0
    total = terms.owed(prompt_tokens, completion_tokens) if terms is not None and terms.by_token else before
    return Receipt(
        provider=accept.provider,
        offer_id=accept.offer_id,
        session_id=accept.session_id,
        start=accept.start,
        seq=last.seq + 1 if last else 0,
        request_hash=accept.request_hash,
        output_hash=_hash_of(answered.token_ids),
        prompt_tokens=answered.prompt_tokens,
        completion_tokens=answered.completion_tokens,
        accepted_at=accept.accepted_at,
        first_token_at=answered.first_token_at,
        finished_at=finished_at,
        amount=total - before,
        total=total,
        previous=last.hash if last else NOTHING,
    )


class Job:
    """One request from its accept to its receipt."""

    def __init__(self, receipts: Receipts, session: Session, body: bytes) -> None:
        self._receipts = receipts
        self._terms = receipts.terms_of(session)
        self._began = time.monotonic()
        self.accept = Accept(
            receipts.provider,
            session.offer_id,
            session.stream_id,
            session.start,
            request_hash(body),
            receipts.clock.unique(),
        )
        store, slots = receipts.store, self._terms.slots
        self._kept = asyncio.ensure_future(self._keep()) if store.shared else store.add_accept(self.accept, slots)
        self._kept.add_done_callback(self._sign_early)
        self._signed = ""
        self.first_token_at = 0

    async def _keep(self) -> None:
        while True:
            try:
                return await self._receipts.store.add_accept(self.accept, self._terms.slots)
            except IntegrityError:  # another gateway took the same moment
                self.accept = replace(self.accept, accepted_at=self._receipts.clock.unique())

    def _sign_early(self, kept: asyncio.Future[None]) -> None:
        """As soon as it is on the disk: the engine is still at the first token."""
        if kept.cancelled():
            return
        if isinstance(kept.exception(), OperationalError):
            self._receipts.doubt(self.accept, self._terms)
        elif kept.exception() is None:
            self._sign()

    def _sign(self) -> str:
        if not self._signed:
            self._signed = self.accept.sign(self._receipts.domain, self._receipts.signer).text()
        return self._signed

    async def written(self) -> None:
        """Return when the accept is on the disk."""
        if self._kept.done():
            self._kept.result()
        else:
            await asyncio.shield(self._kept)

    @property
    def refused(self) -> bool:
        """Whether others have the stream or the slots, and nothing was accepted: no receipt is owed. A disk that took
        nothing is no refusal: nothing may be served then."""
        done = self._kept.done() and not self._kept.cancelled()
        return done and isinstance(self._kept.exception(), (SlotsTaken, NotOurs))

    async def accepted(self) -> str:
        """The signed accept, once it is on the disk."""
        await self.written()
        return self._sign()

    def token_came(self) -> int:
        """The first one. Milliseconds since the accept, as the receipt will say."""
        passed = int((time.monotonic() - self._began) * 1000)
        self.first_token_at = self.accept.accepted_at + passed
        return passed

    def finish(self, answered: Answered, usage: Usage) -> asyncio.Future[Receipt]:
        """Once, before the slot is given back: the receipt, on the disk with the usage. It may be signed then, and is
        on its way there whether or not it is waited for."""
        if self._kept.done() and not self._kept.cancelled() and self._kept.exception() is None:
            return self._finish(answered, usage)
        return asyncio.ensure_future(self._finish_once_written(answered, usage))

    async def _finish_once_written(self, answered: Answered, usage: Usage) -> Receipt:
        await self.written()
        return await self._finish(answered, usage)

    def _finish(self, answered: Answered, usage: Usage) -> asyncio.Future[Receipt]:
        # Nothing is waited for between this moment and the place in the session that goes with it.
        finished_at = self._receipts.clock.now(self.first_token_at)
        return self._receipts.conclude(self.accept, answered, finished_at, self._terms, usage)


class Receipts:
    """All accepts and receipts of one provider. `load` comes first."""

    def __init__(
        self, store: Store, seller: Seller, signer: KeySigner, domain: Domain, wall: Callable[[], float]
    ) -> None:
        self.store, self.signer, self.domain = store, signer, domain
        self._seller, self._wall = seller, wall
        self.clock = ReceiptClock(wall)
        self._late: deque[tuple[Accept, Callable[[], asyncio.Future[Receipt]]]] = deque()
        """Receipts that are owed, or may be, and could not be written."""
        self._unwritten: dict[int, bytes] = {}
        """Signatures that are not on the disk, by the accept's time."""

    @property
    def provider(self) -> Address:
        return self._seller.provider.id

    def terms_of(self, session: Session) -> Terms:
        return self._seller.offers[session.offer_id].terms

    async def load(self) -> None:
        """Go on where the process before ended: its clock, and what it owed."""
        await self.store.sign_under(self.domain.contract)
        self.clock = ReceiptClock(self._wall, await self.store.last_moment())
        if not self.store.shared:
            await self.take_over(None)

    async def take_over(self, stream: StreamId | None) -> None:
        """Answer for what the process before accepted and did not live to conclude, of one stream or all."""
        self.clock.now(await self.store.last_moment())
        for accept in await self.store.unanswered(stream):
            offer = self._seller.offers.get(accept.offer_id)
            self.sign(await self.conclude(accept, Answered(), self.clock.now(), offer.terms if offer else None, None))
            log.info("an answer ended with the process: its receipt says so", session=accept.session_id)

    def begin(self, session: Session, body: bytes) -> Job:
        """The slot is taken: now."""
        return Job(self, session, body)

    def conclude(
        self, accept: Accept, answered: Answered, finished_at: int, terms: Terms | None, usage: Usage | None
    ) -> asyncio.Future[Receipt]:
        """OperationalError where it cannot be written now: that is tried again, and until then nothing is signed."""

        def write() -> asyncio.Future[Receipt]:
            return self.store.add_receipt(
                accept, lambda last: following(accept, answered, finished_at, last, terms), answered.token_ids, usage
            )

        def look(done: asyncio.Future[Receipt]) -> None:
            if not done.cancelled() and isinstance(done.exception(), OperationalError):
                self._late.append((accept, write))

        written = write()
        written.add_done_callback(look)
        return written

    def doubt(self, accept: Accept, terms: Terms) -> None:
        """It was refused because it could not be written, and may be on the disk nevertheless: then it has to have its
        receipt, for nothing."""

        def write() -> asyncio.Future[Receipt]:
            return self.store.add_receipt(
                accept, lambda last: following(accept, Answered(), self.clock.now(), last, terms), None, None
            )

        self._late.append((accept, write))

    async def flush(self) -> None:
        """Write what could not be written before. Keep the signatures made since: after the key has changed they could
        not be made again."""
        while self._late:
            accept, write = self._late[0]
            accepted, receipt = await self.store.written(accept)
            if accepted:  # else there is nothing to answer for
                try:
                    self.sign(receipt or await write())
                except NotOurs:
                    log.warning("another gateway has answered for a request meanwhile", session=accept.session_id)
            self._late.popleft()
        rows = dict(self._unwritten)
        await self.store.keep_signatures(rows)
        for at in rows:
            self._unwritten.pop(at, None)

    # --- what was signed before ---

    async def get(self, name: str) -> tuple[SignedReceipt, bytes | None] | None:
        """By its hash, with the packed token ids."""
        return self._restored(await self.store.receipt(name))

    async def owed_for(self, accepted_at: int) -> tuple[SignedReceipt, bytes | None] | None:
        """The receipt for an accept, named by its time, which no two share."""
        return self._restored(await self.store.receipt_for(accepted_at))

    async def of_session(self, session: StreamId, start: int, first: int, most: int) -> list[SignedReceipt]:
        """From this place on, in order."""
        return [self._signed(stored) for stored in await self.store.receipts_of(session, start, first, most)]

    def _restored(self, stored: Stored | None) -> tuple[SignedReceipt, bytes | None] | None:
        return (self._signed(stored), stored.token_ids) if stored else None

    def _signed(self, stored: Stored) -> SignedReceipt:
        signature = stored.signature or self._unwritten.get(stored.receipt.accepted_at)
        return SignedReceipt(stored.receipt, signature) if signature else self.sign(stored.receipt)

    def sign(self, receipt: Receipt) -> SignedReceipt:
        """One that is on the disk."""
        signed = receipt.sign(self.domain, self.signer)
        self._unwritten[receipt.accepted_at] = signed.signature
        return signed


def _hash_of(packed: bytes | None) -> str:
    return NOTHING if packed is None else hex32(keccak(packed))
