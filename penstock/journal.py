"""The consumer's write-ahead journal: every stream that it ever meant to open, in one SQLite file.

A stream's row is on disk before its transaction (or signed order) leaves the process, so that whatever
happens afterwards, the next start knows what may be open and with which parties. It holds the session keys,
which speak for one stream at one gateway and move no money; the file is readable by its owner alone.

Several processes may share a journal. Each holds a lock file while it lives; the kernel lets go of the lock
when the process dies, however it dies, and only then may another process adopt its streams.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from penstock._spending import SCHEMA as _SPENDING
from penstock._spending import Limit as Limit
from penstock._spending import Purse as Purse
from penstock._spending import Spending
from penstock.accrual import flow
from penstock.errors import JournalDamaged
from penstock.evidence import SCHEMA as _EVIDENCE
from penstock.evidence import Evidence
from penstock.types import Address, OfferId, StreamId, StreamKey

_VERSION = 1
_SCHEMA = """
CREATE TABLE streams (
    id            TEXT PRIMARY KEY,
    state         TEXT NOT NULL,
    holder        TEXT NOT NULL,
    chain_id      INTEGER NOT NULL,
    stream_pay    TEXT NOT NULL,
    provider      TEXT NOT NULL,
    endpoint      TEXT NOT NULL,
    model         TEXT NOT NULL,
    payer         TEXT NOT NULL,
    payee         TEXT NOT NULL,
    token         TEXT NOT NULL,
    session_key   TEXT NOT NULL,
    offer_id      TEXT NOT NULL,
    secret        BLOB NOT NULL,
    rate          TEXT NOT NULL,
    duration      INTEGER NOT NULL,
    void_after    INTEGER NOT NULL,
    first_block   INTEGER NOT NULL,
    created_at    INTEGER NOT NULL,
    start         INTEGER NOT NULL DEFAULT 0,
    "end"         INTEGER NOT NULL DEFAULT 0,
    stop          INTEGER NOT NULL DEFAULT 0,
    paid          TEXT NOT NULL DEFAULT '0',
    refund        TEXT NOT NULL DEFAULT '0',
    refund_to     TEXT NOT NULL DEFAULT '',
    problem       TEXT NOT NULL DEFAULT '',
    reserved      TEXT NOT NULL DEFAULT '0'
) STRICT;
CREATE INDEX streams_by_state ON streams (state);
CREATE TABLE transactions (
    stream        TEXT NOT NULL REFERENCES streams (id),
    number        INTEGER NOT NULL,
    what          TEXT NOT NULL,
    hash          TEXT NOT NULL,
    gas_used      INTEGER NOT NULL,
    fee           TEXT NOT NULL,
    relayed       INTEGER NOT NULL,
    PRIMARY KEY (stream, number),
    UNIQUE (stream, hash)
) STRICT;
"""

_CHANNELS = """
CREATE TABLE IF NOT EXISTS channels (
    id            TEXT PRIMARY KEY,
    state         TEXT NOT NULL,
    holder        TEXT NOT NULL,
    payer         TEXT NOT NULL,
    signed        TEXT NOT NULL,
    created_at    INTEGER NOT NULL,
    body          TEXT NOT NULL
) STRICT
"""
"""`body` is the whole record; the columns are what is looked for, and what grows by itself."""


class State(StrEnum):
    """How far a stream has come, as far as this side knows."""

    INTENDED = "intended"
    """About to be opened, or opened without our knowing."""
    OPEN = "open"
    CLOSED = "closed"
    """Over: cancelled, closed by the payee, or run to its end."""
    VOID = "void"
    """Never opened, and cannot be any more."""


@dataclass(frozen=True, slots=True)
class Transaction:
    """One transaction of a stream or channel. Where the provider sent it (`relayed`), the fee was its own."""

    what: str
    """"approve", "open", "top up" or "close"; of a channel also "request", "reclaim" or "withdraw"."""
    hash: str
    gas_used: int
    fee: int
    """Wei."""
    relayed: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """A stream in the journal. Amounts in base units of the key's token, times in Unix seconds."""

    key: StreamKey
    chain_id: int
    stream_pay: Address
    provider: Address
    endpoint: str
    model: str
    secret: bytes
    """The session key's private part."""
    rate: int
    duration: int
    void_after: int
    """For a signed order, its deadline: until then somebody may open the stream. 0: opened by ourselves."""
    first_block: int
    """The stream cannot have been opened before this block."""
    created_at: int
    state: State = State.INTENDED
    start: int = 0
    end: int = 0
    stop: int = 0
    paid: int = 0
    refund: int = 0
    refund_to: str = ""
    """The refund's receiver; zero address: the payer's vault balance; empty: not known."""
    problem: str = ""
    transactions: tuple[Transaction, ...] = ()

    @property
    def id(self) -> StreamId:
        return self.key.id

    @property
    def gasless(self) -> bool:
        return self.void_after > 0


@dataclass(frozen=True, slots=True)
class ChannelRecord:
    """A channel in the journal. Amounts in base units of the key's token, times in Unix seconds."""

    key: StreamKey
    chain_id: int
    stream_pay: Address
    provider: Address
    endpoint: str
    model: str
    secret: bytes
    """The session key's private part."""
    prompt_price: int
    completion_price: int
    deposit: int
    first_block: int
    """The channel cannot have been opened before this block."""
    created_at: int
    void_after: int = 0
    """For a signed order, its deadline: until then somebody may open the channel. 0: opened by ourselves."""
    state: State = State.INTENDED
    signed: int = 0
    """The highest voucher that may have left the process."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reclaimable_at: int = 0
    """Asked to close: from then on the rest can be taken back."""
    paid: int = 0
    refund: int = 0
    refund_to: str = ""
    reserved: int = 0
    """More deposit that is on its way."""
    problem: str = ""
    transactions: tuple[Transaction, ...] = ()

    @property
    def id(self) -> StreamId:
        return self.key.id

    @property
    def gasless(self) -> bool:
        return self.void_after > 0


_R = TypeVar("_R", Record, ChannelRecord)


class Journal:
    """Use as a context manager, or call `close`. Every method that writes returns when the disk has it.

    Raises JournalDamaged where the file cannot be read as a journal.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._locks = path.with_name(path.name + ".locks")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._locks.mkdir(mode=0o700, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        path.chmod(0o600)
        self.holder = f"{os.getpid()}-{secrets.token_hex(8)}"
        self._held = _try_lock(self._locks / self.holder)
        self._db = sqlite3.connect(path, isolation_level=None, timeout=10)
        self._db.row_factory = sqlite3.Row
        self.evidence = Evidence(self._db)
        """What providers have signed."""
        self._spending = Spending(self._db)
        try:
            self._prepare()
        except sqlite3.DatabaseError as error:
            self.close()
            raise JournalDamaged(
                f"the journal {path} is damaged ({error}); `penstock recover --from-chain` sets it aside and finds "
                "your streams on the chain"
            ) from error

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")
        found = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise sqlite3.DatabaseError(found)
        with self._transaction():
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {_VERSION}")
            elif version != _VERSION:
                raise sqlite3.DatabaseError(f"its version is {version}, this program's {_VERSION}")
            for statement in (_CHANNELS, *_EVIDENCE, *_SPENDING):
                self._db.execute(statement)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file. Streams of this process that are not over become adoptable."""
        self._db.close()
        if self._held is not None:
            (self._locks / self.holder).unlink(missing_ok=True)
            os.close(self._held)
            self._held = None

    # --- writing -----------------------------------------------------------------------------------

    def intend(self, record: Record, limit: Limit | None = None) -> None:
        """Put a stream on record; call this before anything that may open it leaves the process. CapExceeded where the
        limit forbids it: nothing is recorded then."""
        key = record.key
        with self._transaction():
            self._spending.require(limit, Purse.of(record), flow(record.rate, record.duration))
            self._db.execute(
                "INSERT INTO streams (id, state, holder, chain_id, stream_pay, provider, endpoint, model, payer, payee,"
                " token, session_key, offer_id, secret, rate, duration, void_after, first_block, created_at, start,"
                ' "end") VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)',
                (
                    record.id,
                    record.state,
                    self.holder,
                    record.chain_id,
                    record.stream_pay,
                    record.provider,
                    record.endpoint,
                    record.model,
                    key.payer,
                    key.payee,
                    key.token,
                    key.session_key,
                    key.offer_id,
                    record.secret,
                    str(record.rate),
                    record.duration,
                    record.void_after,
                    record.first_block,
                    record.created_at,
                    record.start,
                    record.end,
                ),
            )

    def opened(self, stream: StreamId, *, start: int, end: int) -> None:
        """The chain has the stream. Also after a top-up, with the new end."""
        self._set(stream, state=State.OPEN, start=start, end=end, reserved="0")

    def reserve(self, stream: StreamId, amount: int, limit: Limit | None) -> None:
        """So much more is about to be paid into the stream; call this before. CapExceeded. Less than nothing: it was
        not paid after all."""
        with self._transaction():
            record = self._select("WHERE id = ?", stream)[0]
            self._spending.require(limit, Purse.of(record), amount)
            (before,) = self._db.execute("SELECT reserved FROM streams WHERE id = ?", (stream,)).fetchone()
            reserved = str(int(before) + amount)
            self._db.execute("UPDATE streams SET reserved = ? WHERE id = ?", (reserved, stream))

    def closed(
        self, stream: StreamId, *, start: int, end: int, stop: int, paid: int, refund: int, refund_to: str, at: int
    ) -> None:
        """The stream is over; `paid` is all that the payee ever got for it, as is known since `at`."""
        self._over(
            stream,
            at=at,
            state=State.CLOSED,
            start=start,
            end=end,
            stop=stop,
            paid=str(paid),
            refund=str(refund),
            refund_to=refund_to,
            problem="",
        )

    def void(self, stream: StreamId) -> None:
        self._set(stream, state=State.VOID, problem="")

    def note(self, stream: StreamId, problem: str) -> None:
        """Why it could not be closed."""
        self._set(stream, problem=problem)

    def add_transaction(self, stream: StreamId, transaction: Transaction) -> None:
        """Once per hash: what is known already stays as it is."""
        with self._transaction():
            self._db.execute(
                "INSERT OR IGNORE INTO transactions (stream, number, what, hash, gas_used, fee, relayed)"
                " SELECT ?, count(*), ?, ?, ?, ?, ? FROM transactions WHERE stream = ?",
                (
                    stream,
                    transaction.what,
                    transaction.hash,
                    transaction.gas_used,
                    str(transaction.fee),
                    transaction.relayed,
                    stream,
                ),
            )

    def _over(self, stream: StreamId, *, at: int, **values: str | int) -> None:
        with self._transaction():
            self._update(stream, **values)
            record = self._select("WHERE id = ?", stream)[0]
            self._spending.spent("stream", record.id, Purse.of(record), record.paid, at)

    def _set(self, stream: StreamId, **values: str | int) -> None:
        with self._transaction():
            self._update(stream, **values)

    def _update(self, stream: StreamId, **values: str | int) -> None:
        columns = ", ".join(f'"{name}" = ?' for name in values)
        self._db.execute(f"UPDATE streams SET {columns} WHERE id = ?", (*values.values(), stream))

    # --- licences ----------------------------------------------------------------------------------

    def pay(self, payment: str, purse: Purse, amount: int, limit: Limit | None, at: int) -> None:
        """So much is about to be paid at once, for a licence; call this before. CapExceeded. `payment`: a new name."""
        with self._transaction():
            self._spending.require(limit, purse, amount)
            self._spending.spent("licence", payment, purse, amount, at)

    def unpaid(self, payment: str) -> None:
        """The chain refused it: nothing was paid."""
        with self._transaction():
            self._spending.unspent("licence", payment)

    # --- channels ----------------------------------------------------------------------------------

    def intend_channel(self, record: ChannelRecord, limit: Limit | None = None) -> None:
        """As `intend`."""
        with self._transaction():
            self._spending.require(limit, Purse.of(record), record.deposit)
            self._db.execute(
                "INSERT INTO channels (id, state, holder, payer, signed, created_at, body) VALUES (?,?,?,?,?,?,?)",
                (record.id, record.state, self.holder, record.key.payer, "0", record.created_at, _encode(record)),
            )

    def signed(self, channel: StreamId, cumulative: int) -> None:
        """A voucher for so much is about to leave the process."""
        with self._transaction():
            self._db.execute("UPDATE channels SET signed = ? WHERE id = ?", (str(cumulative), channel))

    def set_channel(self, channel: StreamId, **values: Any) -> None:
        """Change fields of a channel's record."""
        with self._transaction():
            self._update_channel(channel, **values)

    def reserve_channel(self, channel: StreamId, amount: int, limit: Limit | None) -> None:
        """As `reserve`, for a channel."""
        with self._transaction():
            record = self._channels("WHERE id = ?", channel)[0]
            self._spending.require(limit, Purse.of(record), amount)
            self._update_channel(channel, reserved=record.reserved + amount)

    def channel_closed(
        self, channel: StreamId, *, deposit: int, paid: int, refund: int, refund_to: str, at: int
    ) -> None:
        """The channel is over, as is known since `at`."""
        over = {"state": State.CLOSED, "deposit": deposit, "paid": paid, "refund": refund, "refund_to": refund_to}
        over |= {"problem": "", "reserved": 0}
        with self._transaction():
            record = self._update_channel(channel, **over)
            self._spending.spent("channel", record.id, Purse.of(record), paid, at)

    def _update_channel(self, channel: StreamId, **values: Any) -> ChannelRecord:
        record = replace(self._channels("WHERE id = ?", channel)[0], **values)
        self._db.execute(
            "UPDATE channels SET state = ?, body = ? WHERE id = ?", (record.state, _encode(record), channel)
        )
        return record

    def channel(self, channel: StreamId) -> ChannelRecord | None:
        found = self._channels("WHERE id = ?", channel)
        return found[0] if found else None

    def channels(self) -> list[ChannelRecord]:
        """Every channel on record, oldest first."""
        return self._channels("")

    def unfinished_channels(self) -> list[ChannelRecord]:
        """Those that may be open, whoever holds them, oldest first."""
        return self._channels("WHERE state IN (?, ?)", State.INTENDED, State.OPEN)

    @contextlib.contextmanager
    def adopt_channels(self) -> Iterator[list[ChannelRecord]]:
        """As `adopt`, for channels."""
        with self._adopting("channels") as holders:
            marks = ",".join("?" * len(holders))
            where = f"WHERE state IN (?, ?) AND holder IN ({marks})"
            yield self._channels(where, State.INTENDED, State.OPEN, *holders)

    def _channels(self, where: str, *values: str) -> list[ChannelRecord]:
        try:
            rows = self._db.execute(f"SELECT signed, body FROM channels {where} ORDER BY created_at, rowid", values)
            return [_decode(body, int(signed)) for signed, body in rows.fetchall()]
        except (sqlite3.DatabaseError, ValueError, KeyError, TypeError) as error:
            raise JournalDamaged(
                f"the journal {self.path} is damaged ({error}); `penstock recover --from-chain` sets it aside"
            ) from error

    # --- reading -----------------------------------------------------------------------------------

    def get(self, stream: StreamId) -> Record | None:
        found = self._select("WHERE id = ?", stream)
        return found[0] if found else None

    def all(self) -> list[Record]:
        """Every stream on record, oldest first."""
        return self._select("")

    def unfinished(self) -> list[Record]:
        """Those that may be open, whoever holds them, oldest first."""
        return self._select("WHERE state IN (?, ?)", State.INTENDED, State.OPEN)

    @contextlib.contextmanager
    def adopt(self) -> Iterator[list[Record]]:
        """The unfinished streams whose process is gone, and this process' own. Nobody else gets them meanwhile."""
        with self._adopting("streams") as holders:
            marks = ",".join("?" * len(holders))
            yield self._select(f"WHERE state IN (?, ?) AND holder IN ({marks})", State.INTENDED, State.OPEN, *holders)

    @contextlib.contextmanager
    def _adopting(self, table: str) -> Iterator[list[str]]:
        locks: list[tuple[Path, int]] = []
        try:
            rows = self._db.execute(
                f"SELECT DISTINCT holder FROM {table} WHERE state IN (?, ?)", (State.INTENDED, State.OPEN)
            ).fetchall()
            holders = [self.holder]
            for (holder,) in rows:
                if holder == self.holder:
                    continue
                lock = _try_lock(self._locks / holder)
                if lock is not None:
                    locks.append((self._locks / holder, lock))
                    holders.append(holder)
            yield holders
        finally:
            for path, lock in locks:
                path.unlink(missing_ok=True)
                os.close(lock)

    def _select(self, where: str, *values: str) -> list[Record]:
        try:
            rows = self._db.execute(f"SELECT * FROM streams {where} ORDER BY created_at, rowid", values).fetchall()
            return [self._record(row) for row in rows]
        except (sqlite3.DatabaseError, ValueError) as error:
            raise JournalDamaged(
                f"the journal {self.path} is damaged ({error}); `penstock recover --from-chain` sets it aside and "
                "finds your streams on the chain"
            ) from error

    def _record(self, row: sqlite3.Row) -> Record:
        transactions = self._db.execute(
            "SELECT what, hash, gas_used, fee, relayed FROM transactions WHERE stream = ? ORDER BY number", (row["id"],)
        )
        return Record(
            key=StreamKey(
                Address(row["payer"]),
                Address(row["payee"]),
                Address(row["token"]),
                Address(row["session_key"]),
                OfferId(row["offer_id"]),
            ),
            chain_id=row["chain_id"],
            stream_pay=Address(row["stream_pay"]),
            provider=Address(row["provider"]),
            endpoint=row["endpoint"],
            model=row["model"],
            secret=row["secret"],
            rate=int(row["rate"]),
            duration=row["duration"],
            void_after=row["void_after"],
            first_block=row["first_block"],
            created_at=row["created_at"],
            state=State(row["state"]),
            start=row["start"],
            end=row["end"],
            stop=row["stop"],
            paid=int(row["paid"]),
            refund=int(row["refund"]),
            refund_to=row["refund_to"],
            problem=row["problem"],
            transactions=tuple(
                Transaction(what, hash_, gas_used, int(fee), bool(relayed))
                for what, hash_, gas_used, fee, relayed in transactions
            ),
        )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


def set_aside(path: Path, now: int) -> list[Path]:
    """Move a damaged journal out of the way, its WAL with it. Returns where the files are now."""
    moved = []
    for suffix in ("", "-wal", "-shm"):
        source = path.with_name(path.name + suffix)
        if source.exists():
            target = path.with_name(f"{path.name}.damaged-{now}{suffix}")
            source.rename(target)
            moved.append(target)
    return moved


def find(records: Sequence[_R], prefix: str) -> list[_R]:
    """Those whose id starts so, with or without 0x."""
    wanted = prefix.lower().removeprefix("0x")
    return [record for record in records if record.id.removeprefix("0x").startswith(wanted)]


def _encode(record: ChannelRecord) -> str:
    return json.dumps(asdict(record) | {"secret": record.secret.hex()})


def _decode(body: str, signed: int) -> ChannelRecord:
    fields = json.loads(body)
    fields |= {
        "key": StreamKey(**fields["key"]),
        "secret": bytes.fromhex(fields["secret"]),
        "state": State(fields["state"]),
        "signed": signed,
        "transactions": tuple(Transaction(**one) for one in fields["transactions"]),
    }
    return ChannelRecord(**fields)


def _try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock, or None where a living process does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
