"""Accepts and receipts, with the usage that they bill. Those that come together share a transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Delete,
    Engine,
    Row,
    Update,
    bindparam,
    delete,
    func,
    insert,
    or_,
    select,
    text,
    true,
    update,
)
from sqlalchemy.exc import OperationalError

from penstock.types import Address, StreamId
from penstock.wire.receipts import Accept, Receipt
from provider.store._database import Database
from provider.store._records import Last, SlotsTaken, Stored, Usage
from provider.store._tables import META, RECEIPTS, SESSIONS

_GATHER_SECONDS = 0.001
"""Between two transactions, where many want one: most of what one costs does not depend on how much is in it."""


@dataclass(eq=False, slots=True)
class _Job:
    """An accept that is to be written, or with `make` the receipt for one."""

    accept: Accept
    make: Callable[[Last | None], Receipt] | None = None
    token_ids: bytes | None = None
    usage: Usage | None = None
    slots: int = 0
    """Of the accept's offer."""
    done: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    receipt: Receipt | None = None
    """Once it is made."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """Jobs that share a transaction."""

    jobs: list[_Job]
    lasts: dict[tuple[StreamId, int], Last]
    """Where sessions stand once it is written."""
    written: asyncio.Future[None]


class Receipts(Database):
    """Of `Store`: what was promised, what was delivered, and what came of it."""

    def __init__(self, engine: Engine, lock: int | None) -> None:
        super().__init__(engine, lock)
        self._waiting: list[_Job] = []
        self._writing: asyncio.Task[None] | None = None
        self.fence: Callable[[Connection, StreamId], None] | None = None
        """Where others use the place, too: raises NotOurs in a transaction about a stream that is not ours."""
        self._last: dict[tuple[StreamId, int], Last] = {}
        """Where the receipts of sessions stand, of those that finished one lately."""

    async def close(self) -> None:
        if self._writing is not None:
            await self._writing
        await super().close()

    # --- in batches ---

    def _together(self, job: _Job) -> asyncio.Future[Any]:
        """As `_begin`, in order, but all that comes while the disk is busy, and a moment longer where there is much, is
        written in one transaction, whether or not somebody still waits for it."""
        self._waiting.append(job)
        if self._writing is None:
            self._writing = asyncio.create_task(self._write(self._begin_batch(self._next_batch())))
        return job.done

    def _next_batch(self) -> list[_Job]:
        batch, self._waiting = self._waiting, []
        return batch

    async def _write(self, writing: _Batch) -> None:
        while True:
            try:
                await self._finish_batch(writing)
            except Exception as failure:  # each for itself, so that one fails alone
                for job in writing.jobs:
                    await self._write_alone(job, doubtful=isinstance(failure, OperationalError))
            if len(writing.jobs) > 1:
                await asyncio.sleep(_GATHER_SECONDS)
            if not self._waiting:
                break
            writing = self._begin_batch(self._next_batch())
        self._writing = None

    async def _write_alone(self, job: _Job, *, doubtful: bool) -> None:
        """`doubtful`: the database may have written it before it was gone, and could not say so."""
        try:
            if doubtful:
                accepted, receipt = await self.written(job.accept)
                if receipt is not None if job.make is not None else accepted:
                    if not job.done.cancelled():
                        job.done.set_result(receipt)
                    return
            await self._finish_batch(self._begin_batch([job]))
        except Exception as error:
            if not job.done.cancelled():
                job.done.set_exception(error)

    def _begin_batch(self, jobs: list[_Job]) -> _Batch:
        """Accepts before receipts, each kind in one statement: what a statement costs is shared by all of them."""
        accepts = [job for job in jobs if job.make is None]
        lasts: dict[tuple[StreamId, int], Last] = {}

        def work(c: Connection) -> None:
            if accepts:
                self._add_accepts(c, accepts)
            rows = []
            for job in jobs:
                if job.make is not None:
                    session = job.accept.session_id, job.accept.start
                    if self.fence is not None:
                        self.fence(c, job.accept.session_id)
                        self._last.pop(session, None)  # another gateway may have served it meanwhile
                    last = lasts.get(session) or self._last.get(session) or _last_of(c, *session)
                    job.receipt = job.make(last)
                    lasts[session] = Last.after(last, job.receipt)
                    rows.append(_row(job.receipt, lasts[session], job.token_ids, job.usage))
            if rows and c.execute(_ADD_RECEIPT, rows).rowcount != len(rows):
                raise RuntimeError("an accept is unknown, or has its receipt already")

        return _Batch(jobs, lasts, self._begin(work))

    async def _finish_batch(self, batch: _Batch) -> None:
        try:
            await batch.written
        except Exception:
            for session in batch.lasts:  # it may stand elsewhere
                self._last.pop(session, None)
            raise
        if len(self._last) > _LASTS_KEPT:
            self._last.clear()
        self._last |= batch.lasts
        for job in batch.jobs:
            if not job.done.cancelled():
                job.done.set_result(job.receipt)

    # --- accepts and receipts ---

    async def sign_under(self, contract: Address) -> None:
        """Signatures kept for another contract are worth nothing."""

        def work(c: Connection) -> None:
            row = self._insert(META).values(name="slashing", value=contract)
            known = c.execute(select(META.c.value).where(META.c.name == "slashing")).scalar()
            if known != contract:
                c.execute(update(RECEIPTS).values(signature=None))
                c.execute(row.on_conflict_do_update(index_elements=["name"], set_={"value": contract}))

        await self._do(work)

    async def last_moment(self) -> int:
        """The latest time in any accept or receipt: milliseconds."""
        latest = select(func.max(RECEIPTS.c.accepted_at)), select(func.max(RECEIPTS.c.finished_at))
        return await self._do(lambda c: max(c.execute(query).scalar() or 0 for query in latest))

    def add_accept(self, accept: Accept, slots: int) -> asyncio.Future[None]:
        """It names its moment, which no other may have: IntegrityError. Where others use the place, too: SlotsTaken
        where so many other sessions of the offer are being answered, NotOurs."""
        return self._together(_Job(accept, slots=slots))

    def _add_accepts(self, c: Connection, jobs: list[_Job]) -> None:
        rows = [{name: getattr(job.accept, name) for name in _ACCEPTED} for job in jobs]
        if self.fence is None:
            c.execute(_ADD_ACCEPT, rows)
            return
        r = RECEIPTS.c
        for job, row in sorted(zip(jobs, rows, strict=True), key=lambda each: each[0].accept.offer_id):
            # In this order everywhere, so that no two wait for each other.
            accept = job.accept
            c.execute(text("SELECT pg_advisory_xact_lock(hashtext(:offer))"), {"offer": accept.offer_id})
            self.fence(c, accept.session_id)
            other = or_(r.session_id != accept.session_id, r.start != accept.start)
            running = select(r.session_id, r.start).where(r.seq.is_(None) & (r.offer_id == accept.offer_id) & other)
            if len(c.execute(running.distinct()).all()) >= job.slots:
                raise SlotsTaken
            c.execute(_ADD_ACCEPT, row)

    async def unanswered(self, stream: StreamId | None = None) -> list[Accept]:
        """Accepts without a receipt, in their order, of one stream or all."""
        columns = [RECEIPTS.c[each.name] for each in fields(Accept)]
        which = true() if stream is None else RECEIPTS.c.session_id == stream
        query = select(*columns).where(RECEIPTS.c.seq.is_(None) & which).order_by(RECEIPTS.c.accepted_at)
        return [Accept(**row._mapping) for row in await self._do(lambda c: c.execute(query).all())]

    async def written(self, accept: Accept) -> tuple[bool, Receipt | None]:
        """Whether it is on the disk, and its receipt where that is."""
        row = await self._do(lambda c: _found(c, accept))
        return row is not None, _receipt_of(row) if row is not None and row.seq is not None else None

    def add_receipt(
        self, accept: Accept, make: Callable[[Last | None], Receipt], token_ids: bytes | None, usage: Usage | None
    ) -> asyncio.Future[Receipt]:
        """The next receipt of the accept's session, made from the last one in the transaction that writes it, and
        once for each accept; `usage` with it."""
        return self._together(_Job(accept, make, token_ids, usage))

    async def keep_signatures(self, signatures: Mapping[int, bytes]) -> None:
        """By the accepts' times."""
        if signatures:
            rows = [{"at": at, "signed": signature} for at, signature in signatures.items()]
            clause = update(RECEIPTS).where(RECEIPTS.c.accepted_at == bindparam("at"))
            await self._do(lambda c: c.execute(clause.values(signature=bindparam("signed")), rows) and None)

    async def receipt(self, name: str) -> Stored | None:
        """By its hash."""
        return next(iter(await self._stored(RECEIPTS.c.hash == name, 1)), None)

    async def receipt_for(self, accepted_at: int) -> Stored | None:
        """By its accept's time."""
        return next(iter(await self._stored(RECEIPTS.c.accepted_at == accepted_at, 1)), None)

    async def receipts_of(self, session: StreamId, start: int, first: int, most: int) -> list[Stored]:
        """Of one session from this place on, in order, so many at most."""
        r = RECEIPTS.c
        return await self._stored((r.session_id == session) & (r.start == start) & (r.seq >= first), most)

    async def _stored(self, which: ColumnElement[bool], most: int) -> list[Stored]:
        query = select(RECEIPTS).where(which & RECEIPTS.c.seq.is_not(None)).order_by(RECEIPTS.c.seq).limit(most)
        rows = await self._do(lambda c: c.execute(query).all())
        return [Stored(_receipt_of(row), row.token_ids, row.signature) for row in rows]

    async def prune(self, before: int) -> None:
        """Drop what was finished before this moment (milliseconds) and nobody can ask for any more: the ids of answers,
        and of sessions that are forgotten the receipts."""
        r = RECEIPTS.c
        old = r.finished_at < before
        known = select(SESSIONS.c.stream_id).where(
            (SESSIONS.c.stream_id == r.session_id) & (SESSIONS.c.start == r.start)
        )
        with_ids = select(r.accepted_at).where(old & r.token_ids.is_not(None)).limit(_PRUNED_AT_ONCE)
        over = select(r.accepted_at).where(old & ~known.exists()).limit(_PRUNED_AT_ONCE)
        await self._repeat(update(RECEIPTS).where(r.accepted_at.in_(with_ids)).values(token_ids=None))
        await self._repeat(delete(RECEIPTS).where(r.accepted_at.in_(over)))

    async def _repeat(self, some: Update | Delete) -> None:
        """Until it changes no more: requests that come meanwhile have their turn in between."""
        while await self._do(lambda c: c.execute(some).rowcount) == _PRUNED_AT_ONCE:
            pass

    async def usage(self) -> list[Usage]:
        query = select(RECEIPTS).where(RECEIPTS.c.outcome.is_not(None)).order_by(RECEIPTS.c.accepted_at)
        return [_usage_of(row) for row in await self._do(lambda c: c.execute(query).all())]


_SAID = [each.name for each in fields(Receipt) if each.name not in {each.name for each in fields(Accept)}]
"""What a receipt adds to its accept."""
_ACCEPTED = [each.name for each in fields(Accept)]
_BESIDE = ["prompt_sum", "completion_sum", "token_ids", "used_by", "exact", "outcome"]
"""What is kept with it, and not said by it."""
_ADD_ACCEPT = insert(RECEIPTS)
_ADD_RECEIPT = (
    update(RECEIPTS)
    .where((RECEIPTS.c.accepted_at == bindparam("at")) & RECEIPTS.c.seq.is_(None))
    .values({name: bindparam(name) for name in [*_SAID, "hash", *_BESIDE]})
)
_LASTS_KEPT = 10_000
_PRUNED_AT_ONCE = 1000


def _found(c: Connection, accept: Accept) -> Row[Any] | None:
    """The row of this very accept, which has its receipt where `seq` is told."""
    row = c.execute(select(RECEIPTS).where(RECEIPTS.c.accepted_at == accept.accepted_at)).first()
    if row is None or Accept(**{name: row._mapping[name] for name in _ACCEPTED}) != accept:
        return None
    return row


def _receipt_of(row: Row[Any]) -> Receipt:
    said = {each.name: row._mapping[each.name] for each in fields(Receipt)}
    return Receipt(**said | {"amount": int(row.amount), "total": int(row.total)})


def _last_of(c: Connection, session: StreamId, start: int) -> Last | None:
    """Where the receipts of a session stand, by what is written."""
    r = RECEIPTS.c
    columns = r.seq, r.hash, r.prompt_sum, r.completion_sum, r.total
    of_session = (r.session_id == session) & (r.start == start) & r.seq.is_not(None)
    found = c.execute(select(*columns).where(of_session).order_by(r.seq.desc()).limit(1)).first()
    return Last(found[0], found[1], found[2], found[3], int(found[4])) if found else None


def _usage_of(row: Row[Any]) -> Usage:
    return Usage(
        accepted_at=row.accepted_at,
        session_id=row.used_by,
        started_at=row.accepted_at / 1000,
        first_token_at=row.first_token_at / 1000 if row.first_token_at else None,
        finished_at=row.finished_at / 1000,
        prompt_tokens=row.prompt_tokens,
        completion_tokens=row.completion_tokens,
        exact=row.exact,
        outcome=row.outcome,
    )


def _row(receipt: Receipt, following: Last, token_ids: bytes | None, usage: Usage | None) -> dict[str, Any]:
    """What a receipt adds to its accept's row."""
    row = {name: getattr(receipt, name) for name in _SAID}
    return row | {
        "at": receipt.accepted_at,
        "amount": str(receipt.amount),
        "total": str(receipt.total),
        "hash": receipt.hash,
        "prompt_sum": following.prompt_tokens,
        "completion_sum": following.completion_tokens,
        "token_ids": token_ids,
        "used_by": usage.session_id if usage else None,
        "exact": usage.exact if usage else None,
        "outcome": usage.outcome if usage else None,
    }
