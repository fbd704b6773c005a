"""What the provider must not forget: sessions, grants used, the chain's events, receipts, usage, payouts; in SQLite, or
in PostgreSQL where several gateways share the work.

Whatever a method writes is on the disk when the method returns (SQLite: WAL, full sync). Calls run one after
another in one thread of their own, so that the event loop never waits for a disk; accepts and receipts that
come together share a transaction.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_args

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Engine,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
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
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError

from penstock.errors import ConfigError
from penstock.types import (
    Address,
    ChannelEvent,
    OfferId,
    Place,
    StreamEvent,
    StreamId,
    StreamKey,
)
from penstock.wire.receipts import Accept, Receipt
from provider.places import connect_to, inserts, is_url, own, reason, show_place

SCHEMA = "1"
DRAIN = "drain"
"""Of `write_control`: no new sessions, where it is not empty."""
_LOCK = 0x50454E53
"""Of PostgreSQL's advisory locks: ours."""
BLOCKS_KEPT = 1024
"""So many of the blocks that were read stay on record, to find where a reorganisation forked off."""

T = TypeVar("T")
ChainEvent = StreamEvent | ChannelEvent
"""What is kept of the chain."""

_metadata = MetaData()
_Whole = BigInteger().with_variant(Integer, "sqlite")
"""64 bits in both."""

_meta = Table("meta", _metadata, Column("name", String, primary_key=True), Column("value", Text, nullable=False))

_blocks = Table("blocks", _metadata, Column("number", _Whole, primary_key=True), Column("hash", String, nullable=False))

_events = Table(
    "events",
    _metadata,
    Column("block", _Whole, primary_key=True),
    Column("log_index", _Whole, primary_key=True),
    Column("stream_id", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("body", Text, nullable=False),
    Index("events_by_stream", "stream_id", "block", "log_index"),
)

_sessions = Table(
    "sessions",
    _metadata,
    Column("id", String, primary_key=True),
    Column("token_hash", LargeBinary, nullable=False, unique=True),
    Column("stream_id", String, nullable=False),
    Column("start", _Whole, nullable=False),
    Column("offer_id", String, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("open_transaction", String, nullable=False),
    Column("open_gas", _Whole, nullable=False),
)

_nonces = Table(
    "grant_nonces",
    _metadata,
    Column("nonce", String, primary_key=True),
    Column("expires_at", _Whole, nullable=False),
)

_closings = Table(
    "closings",
    _metadata,
    Column("stream_id", String, primary_key=True),
    Column("start", _Whole, primary_key=True),
    Column("stop_at", _Whole, nullable=False),
    Column("cancel_to", String),
    Column("cancel_deadline", _Whole),
    Column("cancel_signature", LargeBinary),
    Column("done", Boolean, nullable=False),
)

_vouchers = Table(
    "vouchers",
    _metadata,
    Column("channel_id", String, primary_key=True),
    Column("cumulative", String, nullable=False),
    Column("signature", LargeBinary, nullable=False),
)

_channel_opens = Table(
    "channel_opens",
    _metadata,
    Column("session_id", String, primary_key=True),
    Column("open_transaction", String, nullable=False),
    Column("open_gas", _Whole, nullable=False),
)

_receipts = Table(
    "receipts",
    _metadata,
    Column("accepted_at", _Whole, primary_key=True, autoincrement=False),
    Column("provider", String, nullable=False),
    Column("offer_id", String, nullable=False),
    Column("session_id", String, nullable=False),
    Column("start", _Whole, nullable=False),
    Column("request_hash", String, nullable=False),
    # What follows is NULL until the answer has ended.
    Column("seq", _Whole),
    Column("output_hash", String),
    Column("prompt_tokens", _Whole),
    Column("completion_tokens", _Whole),
    Column("first_token_at", _Whole),
    Column("finished_at", _Whole, index=True),
    Column("amount", String),
    Column("total", String),
    Column("previous", String),
    Column("hash", String, unique=True),
    Column("prompt_sum", _Whole),  # of the session so far
    Column("completion_sum", _Whole),
    Column("token_ids", LargeBinary),
    Column("signature", LargeBinary),
    Index("receipts_by_session", "session_id", "start", "seq", unique=True),
)
_open = _receipts.c.seq.is_(None)
Index("receipts_owed", _receipts.c.accepted_at, sqlite_where=_open, postgresql_where=_open)

_usage = Table(
    "usage",
    _metadata,
    Column("id", String, primary_key=True),
    Column("session_id", String, nullable=False, index=True),
    Column("started_at", Float, nullable=False),
    Column("first_token_at", Float),
    Column("finished_at", Float, nullable=False),
    Column("prompt_tokens", _Whole, nullable=False),
    Column("completion_tokens", _Whole, nullable=False),
    Column("exact", Boolean, nullable=False),
    Column("outcome", String, nullable=False),
)

_payouts = Table(
    "payouts",
    _metadata,
    Column("transaction", String, primary_key=True),
    Column("at", _Whole, nullable=False),
    Column("kind", String, nullable=False),
    Column("token", String, nullable=False),
    Column("amount", String, nullable=False),
    Column("streams", _Whole, nullable=False),
    Column("fee", String, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Session:
    """A consumer's right to use one stream, (id, start), for one offer. Start 0: there is no stream, but the channel
    with that id alone."""

    id: str
    token_hash: bytes
    """SHA-256 of the bearer token; the token itself is nowhere."""
    stream_id: StreamId
    start: int
    offer_id: OfferId
    created_at: float
    transaction: str
    """Of the open, where the provider submitted it; else empty."""
    gas_used: int = 0
    """By that transaction."""
    channel_transaction: str = ""
    """Of the channel's open, where the provider submitted it; else empty."""
    channel_gas: int = 0


@dataclass(frozen=True, slots=True)
class Closing:
    """A stream, or with start 0 a channel, that its consumer asked to end: nothing is served from then on, and it
    must be closed."""

    stream_id: StreamId
    start: int
    stop_at: int
    """Chain time of the request: the second up to which the payer is charged at most."""
    cancel: tuple[Address, int, bytes] | None = None
    """Receiver, deadline and signature of a CancelStream."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What one request used. Times are Unix seconds."""

    id: str
    session_id: str
    started_at: float
    first_token_at: float | None
    finished_at: float
    prompt_tokens: int
    completion_tokens: int
    exact: bool
    """Whether the engine counted; an answer that was cut may have no count of its own."""
    outcome: str
    """"done", or why it ended before."""


@dataclass(frozen=True, slots=True)
class Last:
    """Where the receipts of a session stand."""

    seq: int
    hash: str
    prompt_tokens: int
    """Of all receipts so far."""
    completion_tokens: int
    total: int

    @classmethod
    def after(cls, last: Last | None, receipt: Receipt) -> Last:
        return cls(
            receipt.seq,
            receipt.hash,
            receipt.prompt_tokens + (last.prompt_tokens if last else 0),
            receipt.completion_tokens + (last.completion_tokens if last else 0),
            receipt.total,
        )


@dataclass(frozen=True, slots=True)
class Stored:
    receipt: Receipt
    token_ids: bytes | None
    signature: bytes | None
    """None: not written down; it can be made again."""


@dataclass(frozen=True, slots=True)
class Payout:
    transaction: str
    at: int
    kind: str
    """"withdraw", "collect", "settle", "close" or "vault"."""
    token: Address
    amount: int
    streams: int
    fee: int
    """Wei paid for gas."""


class Replayed(Exception):
    """This grant's nonce was used before."""


class NotOurs(Exception):
    """Another gateway has taken the stream over: nothing is written about it here."""


class SlotsTaken(Exception):
    """As many sessions of the offer are being answered as it has slots."""


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


class Store:
    """Open with `Store.open`. One process owns a file at a time; a PostgreSQL database is shared."""

    def __init__(self, engine: Engine, lock: int | None) -> None:
        self.engine = engine
        self._lock = lock
        self._insert = inserts(engine)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._waiting: list[_Job] = []
        self._writing: asyncio.Task[None] | None = None
        self._trouble: str | None = None
        self.fence: Callable[[Connection, StreamId], None] | None = None
        """Where others use the place, too: raises NotOurs in a transaction about a stream that is not ours."""
        self._last: dict[tuple[StreamId, int], Last] = {}
        """Where the receipts of sessions stand, of those that finished one lately."""

    @classmethod
    def open(cls, place: str | Path, *, owner: str) -> Store:
        """`place`: a file, or a PostgreSQL URL. `owner` says whose state it is (chain, contract, provider). ConfigError
        where it is another's, is in use, or cannot be written."""
        shown = show_place(place)
        lock = None if is_url(place) else own(Path(place))
        engine = None
        try:
            engine = connect_to(place)
            insert = inserts(engine)
            with engine.begin() as connection:
                if engine.dialect.name == "postgresql":  # tables cannot be made by two at once
                    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
                _metadata.create_all(connection)
                for name, value in (("schema", SCHEMA), ("owner", owner)):
                    connection.execute(insert(_meta).values(name=name, value=value).on_conflict_do_nothing())
                    found = connection.execute(select(_meta.c.value).where(_meta.c.name == name)).scalar_one()
                    if found != value:
                        raise ConfigError(f"{shown} has {name} {found}, not {value}: name another --state")
        except (ConfigError, SQLAlchemyError) as error:
            if engine is not None:
                engine.dispose()
            if lock is not None:
                os.close(lock)
            if isinstance(error, SQLAlchemyError):
                cure = "check the URL and the server" if is_url(place) else "move it away"
                raise ConfigError(f"{shown} is no usable state ({reason(error)}): {cure}") from None
            raise
        return cls(engine, lock)

    async def close(self) -> None:
        if self._writing is not None:
            await self._writing
        await asyncio.to_thread(self._thread.shutdown)
        self.engine.dispose()
        if self._lock is not None:
            os.close(self._lock)

    @property
    def shared(self) -> bool:
        """Whether other gateways may use it, too."""
        return self._lock is None

    def trouble(self) -> str | None:
        """Why the last access failed, such as a disk that is full; None where it did not."""
        return self._trouble

    async def _do(self, work: Callable[[Connection], T]) -> T:
        """OperationalError where the disk is full, the database locked or away: nothing was written then."""
        # Shielded: a caller that is cancelled must not leave it unknown whether something was written.
        return await asyncio.shield(self._begin(work))

    def _begin(self, work: Callable[[Connection], T]) -> asyncio.Future[T]:
        """As `_do`; it is on its way when this returns."""

        def run() -> T:
            try:
                with self.engine.begin() as connection:
                    found = work(connection)
            except OperationalError as error:
                self._trouble = f"the state cannot be written: {reason(error)}"
                raise
            self._trouble = None
            return found

        return asyncio.get_running_loop().run_in_executor(self._thread, run)

    run = _do
    """For what is kept elsewhere in the same place: in one transaction."""

    def _together(self, job: _Job) -> asyncio.Future[Any]:
        """As `_begin`, in order, but all that comes while the disk is busy is written in one transaction, whether or
        not somebody still waits for it."""
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
            except Exception:  # nothing was written: each for itself, so that one fails alone
                for job in writing.jobs:
                    try:
                        await self._finish_batch(self._begin_batch([job]))
                    except Exception as error:
                        if not job.done.cancelled():
                            job.done.set_exception(error)
            if not self._waiting:
                break
            writing = self._begin_batch(self._next_batch())
        self._writing = None

    def _begin_batch(self, jobs: list[_Job]) -> _Batch:
        """Accepts before receipts, each kind in one statement: what a statement costs is shared by all of them."""
        accepts = [job for job in jobs if job.make is None]
        usage = [{name: getattr(job.usage, name) for name in _USED} for job in jobs if job.usage is not None]
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
                    rows.append(_row(job.receipt, lasts[session], job.token_ids))
            if rows and c.execute(_ADD_RECEIPT, rows).rowcount != len(rows):
                raise RuntimeError("an accept is unknown, or has its receipt already")
            if usage:
                c.execute(_ADD_USAGE, usage)

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

    # --- meta ---

    async def read_meta(self, name: str) -> str | None:
        query = select(_meta.c.value).where(_meta.c.name == name)
        return await self._do(lambda c: c.execute(query).scalar_one_or_none())

    async def write_meta(self, name: str, value: str) -> None:
        row = self._insert(_meta).values(name=name, value=value)
        await self._do(lambda c: c.execute(row.on_conflict_do_update(index_elements=["name"], set_={"value": value})))

    # --- the chain's events ---

    async def last_block(self) -> tuple[int, str] | None:
        """Number and hash of the last block that was read."""
        query = select(_blocks.c.number, _blocks.c.hash).order_by(_blocks.c.number.desc()).limit(1)
        row = await self._do(lambda c: c.execute(query).first())
        return (row.number, row.hash) if row else None

    async def blocks(self) -> list[tuple[int, str]]:
        """Blocks on record, the youngest first."""
        query = select(_blocks.c.number, _blocks.c.hash).order_by(_blocks.c.number.desc())
        return [(row.number, row.hash) for row in await self._do(lambda c: c.execute(query).all())]

    async def append_events(self, events: Sequence[ChainEvent], number: int, block_hash: str) -> None:
        """Events of blocks up to this one, which they complete."""
        seen = {e.place.block: e.place.block_hash for e in events} | {number: block_hash}
        rows = [
            {
                "block": e.place.block,
                "log_index": e.place.log_index,
                "stream_id": e.id,
                "kind": type(e).__name__,
                "body": json.dumps(asdict(e)),
            }
            for e in events
        ]

        def work(c: Connection) -> None:
            if rows:
                c.execute(self._insert(_events).on_conflict_do_nothing(), rows)
            c.execute(
                self._insert(_blocks).on_conflict_do_nothing(),
                [{"number": n, "hash": h} for n, h in sorted(seen.items())],
            )
            keep = select(_blocks.c.number).order_by(_blocks.c.number.desc()).limit(1).offset(BLOCKS_KEPT)
            c.execute(delete(_blocks).where(_blocks.c.number <= keep.scalar_subquery()))

        await self._do(work)

    async def rewind(self, number: int) -> set[StreamId]:
        """Forget what came after this block. Returns the streams that it touches."""

        def work(c: Connection) -> set[StreamId]:
            late = _events.c.block > number
            touched = {StreamId(s) for s in c.execute(select(_events.c.stream_id).where(late).distinct()).scalars()}
            c.execute(delete(_events).where(late))
            c.execute(delete(_blocks).where(_blocks.c.number > number))
            return touched

        return await self._do(work)

    async def events(self, streams: Iterable[StreamId] | None = None) -> list[ChainEvent]:
        """In the chain's order, of these streams or of all."""
        query = select(_events.c.kind, _events.c.body).order_by(_events.c.block, _events.c.log_index)
        if streams is not None:
            query = query.where(_events.c.stream_id.in_(list(streams)))
        return [_event(row.kind, row.body) for row in await self._do(lambda c: c.execute(query).all())]

    # --- sessions ---

    async def add_session(self, session: Session, nonce: str, expires_at: int) -> None:
        """Burn the grant's nonce and remember the session, both or neither. Replayed where it is burnt already."""
        row = {name: getattr(session, name) for name in ("id", "token_hash", "stream_id", "start", "offer_id")}
        row |= {"created_at": session.created_at, "open_transaction": session.transaction, "open_gas": session.gas_used}

        relayed: dict[str, str | int] = {"session_id": session.id, "open_transaction": session.channel_transaction}
        relayed |= {"open_gas": session.channel_gas}

        def work(c: Connection) -> None:
            c.execute(self._insert(_nonces).values(nonce=nonce, expires_at=expires_at))
            c.execute(self._insert(_sessions).values(row))
            if session.channel_transaction:
                c.execute(self._insert(_channel_opens).values(relayed))

        try:
            await self._do(work)
        except IntegrityError:
            raise Replayed from None

    async def is_nonce_used(self, nonce: str) -> bool:
        query = select(_nonces.c.nonce).where(_nonces.c.nonce == nonce)
        return await self._do(lambda c: c.execute(query).first()) is not None

    async def forget_nonces(self, expired_before: int) -> None:
        """An expired grant is refused for that alone."""
        await self._do(lambda c: c.execute(delete(_nonces).where(_nonces.c.expires_at < expired_before)))

    async def session_of(self, token_hash: bytes) -> Session | None:
        return next(iter(await self._sessions(_sessions.c.token_hash == token_hash)), None)

    async def sessions(self, stream: StreamId | None = None) -> list[Session]:
        """Of one stream, or all."""
        return await self._sessions(_of(_sessions, stream))

    async def _sessions(self, which: ColumnElement[bool]) -> list[Session]:
        def read(c: Connection) -> list[Session]:
            relayed = {r.session_id: (r.open_transaction, r.open_gas) for r in c.execute(select(_channel_opens))}
            return [
                Session(
                    r.id,
                    r.token_hash,
                    StreamId(r.stream_id),
                    r.start,
                    OfferId(r.offer_id),
                    r.created_at,
                    r.open_transaction,
                    r.open_gas,
                    *relayed.get(r.id, ("", 0)),
                )
                for r in c.execute(select(_sessions).where(which).order_by(_sessions.c.created_at))
            ]

        return await self._do(read)

    async def forget_sessions(self, ids: Sequence[str]) -> None:
        """Their tokens are unknown from now on."""
        if ids:
            await self._do(lambda c: c.execute(delete(_sessions).where(_sessions.c.id.in_(ids))))

    # --- vouchers ---

    async def keep_voucher(self, channel: StreamId, cumulative: int, signature: bytes) -> None:
        """In place of a lower one; a higher one stays."""
        values = {"cumulative": str(cumulative), "signature": signature}

        def work(c: Connection) -> None:
            known = c.execute(select(_vouchers.c.cumulative).where(_vouchers.c.channel_id == channel)).scalar()
            if known is None or int(known) < cumulative:
                row = self._insert(_vouchers).values(channel_id=channel, **values)
                c.execute(row.on_conflict_do_update(index_elements=["channel_id"], set_=values))

        await self._do(work)

    async def vouchers(self, channel: StreamId | None = None) -> dict[StreamId, tuple[int, bytes]]:
        """The highest of each channel, or of one: its sum and signature."""
        which = true() if channel is None else _vouchers.c.channel_id == channel

        def read(c: Connection) -> dict[StreamId, tuple[int, bytes]]:
            rows = c.execute(select(_vouchers).where(which))
            return {StreamId(r.channel_id): (int(r.cumulative), r.signature) for r in rows}

        return await self._do(read)

    async def tokens_used(self, stream: StreamId | None = None) -> list[tuple[Session, int, int]]:
        """Of each session, or each of one stream, the prompt and completion tokens so far."""
        sessions = await self.sessions(stream)
        query = select(_usage.c.session_id, func.sum(_usage.c.prompt_tokens), func.sum(_usage.c.completion_tokens))
        if stream is not None:
            query = query.where(_usage.c.session_id.in_([session.id for session in sessions]))
        rows = await self._do(lambda c: c.execute(query.group_by(_usage.c.session_id)).all())
        used = {row[0]: (int(row[1]), int(row[2])) for row in rows}
        return [(session, *used[session.id]) for session in sessions if session.id in used]

    # --- streams and channels to be closed ---

    async def add_closing(self, closing: Closing) -> None:
        """The first request's second counts; a signed cancel that comes later is kept with it."""
        to, deadline, signature = closing.cancel or (None, None, None)
        cancel = {"cancel_to": to, "cancel_deadline": deadline, "cancel_signature": signature}
        row = self._insert(_closings).values(
            stream_id=closing.stream_id, start=closing.start, stop_at=closing.stop_at, done=False, **cancel
        )
        keys = ["stream_id", "start"]
        clause = (
            row.on_conflict_do_nothing() if to is None else row.on_conflict_do_update(index_elements=keys, set_=cancel)
        )
        await self._do(lambda c: c.execute(clause))

    async def finish_closing(self, stream: StreamId, start: int) -> None:
        match = (_closings.c.stream_id == stream) & (_closings.c.start == start)
        await self._do(lambda c: c.execute(update(_closings).where(match).values(done=True)))

    async def drop_closing(self, stream: StreamId, start: int) -> None:
        """The request was void: its signed cancel was refused."""
        match = (_closings.c.stream_id == stream) & (_closings.c.start == start)
        await self._do(lambda c: c.execute(delete(_closings).where(match)))

    async def closings(self, stream: StreamId | None = None) -> list[Closing]:
        """Those not done, of one stream or all."""
        which = _closings.c.done.is_(False) & _of(_closings, stream)

        def read(c: Connection) -> list[Closing]:
            return [
                Closing(
                    StreamId(r.stream_id),
                    r.start,
                    r.stop_at,
                    (Address(r.cancel_to), r.cancel_deadline, r.cancel_signature) if r.cancel_to else None,
                )
                for r in c.execute(select(_closings).where(which))
            ]

        return await self._do(read)

    # --- accepts and receipts ---

    async def sign_under(self, contract: Address) -> None:
        """Signatures kept for another contract are worth nothing."""

        def work(c: Connection) -> None:
            row = self._insert(_meta).values(name="slashing", value=contract)
            known = c.execute(select(_meta.c.value).where(_meta.c.name == "slashing")).scalar()
            if known != contract:
                c.execute(update(_receipts).values(signature=None))
                c.execute(row.on_conflict_do_update(index_elements=["name"], set_={"value": contract}))

        await self._do(work)

    async def last_moment(self) -> int:
        """The latest time in any accept or receipt: milliseconds."""
        latest = select(func.max(_receipts.c.accepted_at)), select(func.max(_receipts.c.finished_at))
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
        r = _receipts.c
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
        columns = [_receipts.c[each.name] for each in fields(Accept)]
        which = true() if stream is None else _receipts.c.session_id == stream
        query = select(*columns).where(_receipts.c.seq.is_(None) & which).order_by(_receipts.c.accepted_at)
        return [Accept(**row._mapping) for row in await self._do(lambda c: c.execute(query).all())]

    async def add_receipt(
        self, accept: Accept, make: Callable[[Last | None], Receipt], token_ids: bytes | None, usage: Usage | None
    ) -> Receipt:
        """The next receipt of the accept's session, made from the last one in the transaction that writes it, and
        once for each accept; `usage` with it."""
        found: Receipt = await self._together(_Job(accept, make, token_ids, usage))
        return found

    async def keep_signatures(self, signatures: Mapping[int, bytes]) -> None:
        """By the accepts' times."""
        if signatures:
            rows = [{"at": at, "signed": signature} for at, signature in signatures.items()]
            clause = update(_receipts).where(_receipts.c.accepted_at == bindparam("at"))
            await self._do(lambda c: c.execute(clause.values(signature=bindparam("signed")), rows) and None)

    async def receipt(self, name: str) -> Stored | None:
        """By its hash."""
        return next(iter(await self._stored(_receipts.c.hash == name, 1)), None)

    async def receipt_for(self, accepted_at: int) -> Stored | None:
        """By its accept's time."""
        return next(iter(await self._stored(_receipts.c.accepted_at == accepted_at, 1)), None)

    async def receipts_of(self, session: StreamId, start: int, first: int, most: int) -> list[Stored]:
        """Of one session from this place on, in order, so many at most."""
        r = _receipts.c
        return await self._stored((r.session_id == session) & (r.start == start) & (r.seq >= first), most)

    async def _stored(self, which: ColumnElement[bool], most: int) -> list[Stored]:
        query = select(_receipts).where(which & _receipts.c.seq.is_not(None)).order_by(_receipts.c.seq).limit(most)
        found = []
        for row in await self._do(lambda c: c.execute(query).all()):
            said = {each.name: row._mapping[each.name] for each in fields(Receipt)}
            said |= {"amount": int(row.amount), "total": int(row.total)}
            found.append(Stored(Receipt(**said), row.token_ids, row.signature))
        return found

    async def prune(self, before: int) -> None:
        """Drop what was finished before this moment (milliseconds) and nobody can ask for any more: the ids of answers,
        and of sessions that are forgotten the receipts and the usage."""
        r = _receipts.c
        old = r.finished_at < before
        known = select(_sessions.c.stream_id).where(
            (_sessions.c.stream_id == r.session_id) & (_sessions.c.start == r.start)
        )
        ended = select(_sessions.c.id).where(_sessions.c.id == _usage.c.session_id)

        def work(c: Connection) -> None:
            c.execute(update(_receipts).where(old & r.token_ids.is_not(None)).values(token_ids=None))
            c.execute(delete(_receipts).where(old & ~known.exists()))
            c.execute(delete(_usage).where((_usage.c.finished_at < before / 1000) & ~ended.exists()))

        await self._do(work)

    # --- usage and payouts ---

    async def usage(self) -> list[Usage]:
        query = select(_usage).order_by(_usage.c.started_at)
        return [Usage(**row._mapping) for row in await self._do(lambda c: c.execute(query).all())]

    async def add_payout(self, payout: Payout) -> None:
        row = asdict(payout) | {"amount": str(payout.amount), "fee": str(payout.fee)}
        await self._do(lambda c: c.execute(self._insert(_payouts).values(row).on_conflict_do_nothing()))

    async def payouts(self) -> list[Payout]:
        query = select(_payouts).order_by(_payouts.c.at)
        rows = await self._do(lambda c: c.execute(query).all())
        return [Payout(**dict(r._mapping) | {"amount": int(r.amount), "fee": int(r.fee)}) for r in rows]


def _of(table: Table, stream: StreamId | None) -> ColumnElement[bool]:
    """Rows of one stream, or all."""
    return true() if stream is None else table.c.stream_id == stream


def vouchers_kept(place: str) -> dict[StreamId, tuple[int, bytes]]:
    """What `Store.vouchers` tells, of a place that a provider may be using meanwhile. Nothing where there is none.
    ConfigError where it cannot be read."""
    if not is_url(place) and not Path(place).exists():
        return {}
    engine = connect_to(place)
    try:
        with engine.connect() as connection:
            rows = connection.execute(select(_vouchers)).all()
    except SQLAlchemyError as error:
        shown = show_place(place)
        raise ConfigError(
            f"the vouchers in {shown} cannot be read ({reason(error)}): check it and its rights"
        ) from None
    finally:
        engine.dispose()
    return {StreamId(row.channel_id): (int(row.cumulative), row.signature) for row in rows}


def write_control(place: str, name: str, value: str) -> None:
    """A word to the gateways that use this place, which look for it each second. ConfigError where there is none."""
    if not is_url(place) and not Path(place).exists():
        raise ConfigError(f"there is no state file {place}: no provider ran with these settings")
    engine = connect_to(place)
    try:
        row = inserts(engine)(_meta).values(name=name, value=value)
        with engine.begin() as connection:
            connection.execute(row.on_conflict_do_update(index_elements=["name"], set_={"value": value}))
    except SQLAlchemyError as error:
        raise ConfigError(f"{show_place(place)} cannot be written ({reason(error)})") from None
    finally:
        engine.dispose()


_SAID = [each.name for each in fields(Receipt) if each.name not in {each.name for each in fields(Accept)}]
"""What a receipt adds to its accept."""
_ACCEPTED = [each.name for each in fields(Accept)]
_ADD_ACCEPT = insert(_receipts)
_ADD_RECEIPT = (
    update(_receipts)
    .where((_receipts.c.accepted_at == bindparam("at")) & _receipts.c.seq.is_(None))
    .values({name: bindparam(name) for name in [*_SAID, "hash", "prompt_sum", "completion_sum", "token_ids"]})
)
_USED = [each.name for each in fields(Usage)]
_ADD_USAGE = insert(_usage)
_LASTS_KEPT = 10_000
_KINDS: dict[str, type[ChainEvent]] = {cls.__name__: cls for cls in get_args(ChainEvent)}


def _last_of(c: Connection, session: StreamId, start: int) -> Last | None:
    """Where the receipts of a session stand, by what is written."""
    r = _receipts.c
    columns = r.seq, r.hash, r.prompt_sum, r.completion_sum, r.total
    of_session = (r.session_id == session) & (r.start == start) & r.seq.is_not(None)
    found = c.execute(select(*columns).where(of_session).order_by(r.seq.desc()).limit(1)).first()
    return Last(found[0], found[1], found[2], found[3], int(found[4])) if found else None


def _row(receipt: Receipt, following: Last, token_ids: bytes | None) -> dict[str, Any]:
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
    }


def _event(kind: str, body: str) -> ChainEvent:
    fields = json.loads(body)
    fields["place"] = Place(**fields["place"])
    if "key" in fields:
        fields["key"] = StreamKey(**fields["key"])
    return _KINDS[kind](**fields)
