"""What a keeper must not forget, in one SQLite file: the events it has followed, what it sent, what it was fed.

A transaction's row is on disk before the transaction leaves the process. Amounts are decimal text, since they pass
64 bits. One process at a time: the kernel holds the lock beside the file, however its holder dies.
"""

from __future__ import annotations

import fcntl
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from agents.keeper import _codec
from penstock.audit import Books
from penstock.errors import ConfigError
from penstock.events import Event
from penstock.types import Address, StreamId, Voucher
from penstock.wire.eip712 import Domain
from penstock.wire.keeper import (
    SignedOrder,
    StandingOrderLine,
    VoucherLine,
    decode_standing_order,
    decode_voucher,
    encode_line,
)

_VERSION = 1
_SNAPSHOTS = 4
_CHECKPOINTS = 1024
_SNAPSHOT_EVERY = 2_000
"""Events."""
_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE checkpoints (block INTEGER PRIMARY KEY, hash TEXT NOT NULL) STRICT;
CREATE TABLE events (
    block         INTEGER NOT NULL,
    log_index     INTEGER NOT NULL,
    body          TEXT NOT NULL,
    PRIMARY KEY (block, log_index)
) STRICT;
CREATE TABLE snapshots (block INTEGER PRIMARY KEY, body TEXT NOT NULL) STRICT;
CREATE TABLE jobs (
    id            INTEGER PRIMARY KEY,
    state         TEXT NOT NULL,
    nonce         INTEGER NOT NULL,
    kind          TEXT NOT NULL,
    token         TEXT NOT NULL,
    payee         TEXT NOT NULL,
    streams       TEXT NOT NULL,
    marks         TEXT NOT NULL,
    amounts       TEXT NOT NULL,
    reward        TEXT NOT NULL,
    block         INTEGER NOT NULL DEFAULT 0,
    succeeded     INTEGER NOT NULL DEFAULT 0,
    hash          TEXT NOT NULL DEFAULT '',
    fee           TEXT NOT NULL DEFAULT '0',
    earned        TEXT NOT NULL DEFAULT '0',
    moved         TEXT NOT NULL DEFAULT '0'
) STRICT;
CREATE INDEX jobs_by_state ON jobs (state, block);
CREATE TABLE attempts (
    hash          TEXT PRIMARY KEY,
    job           INTEGER NOT NULL REFERENCES jobs (id),
    fields        TEXT NOT NULL,
    raw           BLOB NOT NULL,
    sent_at       REAL NOT NULL
) STRICT;
CREATE INDEX attempts_by_job ON attempts (job);
CREATE TABLE vouchers (
    channel       TEXT NOT NULL,
    cumulative    TEXT NOT NULL,
    received_at   INTEGER NOT NULL,
    body          BLOB NOT NULL,
    PRIMARY KEY (channel, cumulative)
) STRICT;
CREATE TABLE orders (
    stream        TEXT NOT NULL,
    until         INTEGER NOT NULL,
    body          BLOB NOT NULL PRIMARY KEY
) STRICT;
"""


class JobState(StrEnum):
    SENT = "sent"
    """On disk, perhaps sent, in no block."""
    MINED = "mined"
    """In a block that a reorganisation may still take away."""
    FINAL = "final"
    DISPLACED = "displaced"
    """Its nonce went to a transaction that is not ours."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A block up to which all events were followed."""

    block: int
    hash: str


@dataclass(frozen=True, slots=True)
class Job:
    """Something that the keeper does in one transaction, whichever of its attempts is mined."""

    id: int
    state: JobState
    nonce: int
    kind: str
    token: Address
    payee: Address
    streams: tuple[StreamId, ...]
    marks: tuple[str, ...]
    amounts: tuple[int, ...]
    """Base units that it was to settle of each stream."""
    reward: int
    """Base units that it was to bring."""
    block: int = 0
    succeeded: bool = False
    hash: str = ""
    """Of the attempt that was mined."""
    fee: int = 0
    """Gas paid, in wei."""
    earned: int = 0
    """Base units of the token that the chain says the keeper was paid."""
    moved: int = 0
    """Base units that the chain says were settled."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One signed transaction of a job."""

    hash: str
    job: int
    fields: Mapping[str, Any]
    """As signed, integers as integers."""
    raw: bytes
    sent_at: float
    """Unix seconds."""

    @property
    def gas_price(self) -> int:
        return int(self.fields["gasPrice"])


@dataclass(slots=True)
class Totals:
    """What became of all jobs."""

    earned: dict[Address, int] = field(default_factory=dict)
    """Rewards by token, base units."""
    moved: dict[tuple[str, Address], int] = field(default_factory=dict)
    """By kind of job and token, base units."""
    spent: int = 0
    """Gas, in wei, failed transactions included."""
    settled: int = 0
    """Streams and channels in batches that were mined."""
    done: int = 0
    failed: int = 0

    def add(self, job: Job) -> None:
        self.spent += job.fee
        if not job.succeeded:
            self.failed += 1
            return
        self.done += 1
        self.settled += len(job.streams) if job.kind in ("collect", "settle") and job.moved else 0
        if job.earned:
            self.earned[job.token] = self.earned.get(job.token, 0) + job.earned
        if job.moved:
            self.moved[job.kind, job.token] = self.moved.get((job.kind, job.token), 0) + job.moved

    def since(self, before: Totals) -> Totals:
        """What was added to an earlier state of the same totals."""
        earned = {token: amount - before.earned.get(token, 0) for token, amount in self.earned.items()}
        moved = {name: amount - before.moved.get(name, 0) for name, amount in self.moved.items()}
        return Totals(
            {token: amount for token, amount in earned.items() if amount},
            {name: amount for name, amount in moved.items() if amount},
            self.spent - before.spent,
            self.settled - before.settled,
            self.done - before.done,
            self.failed - before.failed,
        )


class Ledger:
    """Open it with `open` or, to look without leaving a trace, `copy_of`."""

    def __init__(self, database: sqlite3.Connection, path: Path, lock: Any = None) -> None:
        self._database = database
        self._path = path
        self._lock = lock
        self._unsnapped = 0
        self._final = Totals()
        self._final_read = False

    @classmethod
    def open(cls, path: Path) -> Self:
        """ConfigError where another process has it open, or where it is damaged."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = open(path.with_suffix(".lock"), "w")  # noqa: SIM115
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigError(
                    f"another keeper of this account runs already ({path}): stop it, or use another account"
                ) from None
            database = _connect(path, str(path))
            try:
                database.execute("PRAGMA journal_mode = WAL")
                # A nonce that was given away must survive a power cut.
                database.execute("PRAGMA synchronous = FULL")
                return cls(_ready(database, path), path, lock)
            except BaseException:
                database.close()
                raise
        except BaseException:
            lock.close()
            raise

    @classmethod
    def copy_of(cls, path: Path) -> Self:
        """A copy in memory, empty where there is none yet."""
        database = _connect(path, ":memory:")
        if path.exists():
            source = _connect(path, f"file:{path}?mode=ro", uri=True)
            try:
                source.backup(database)
            except sqlite3.DatabaseError as error:
                raise _damaged(path, error) from error
            finally:
                source.close()
        return cls(_ready(database, path), path)

    def close(self) -> None:
        self._database.close()
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def forget(self) -> None:
        """Empty it: it is of a chain that is gone."""
        with self._writing():
            for table in ("meta", "checkpoints", "events", "snapshots", "attempts", "jobs", "vouchers", "orders"):
                self._database.execute(f"DELETE FROM {table}")
        self._final_read = False

    # --- meta ---

    def get(self, name: str) -> str:
        found = self._database.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return found[0] if found else ""

    def put(self, name: str, value: str) -> None:
        with self._writing():
            self._database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    # --- what was followed ---

    def checkpoints(self) -> Iterator[Checkpoint]:
        """The latest first."""
        rows = self._database.execute("SELECT block, hash FROM checkpoints ORDER BY block DESC").fetchall()
        return (Checkpoint(*row) for row in rows)

    def follow(self, events: Sequence[Event], upto: Checkpoint, books: Books) -> None:
        """All events up to a block, and what the books say there."""
        self._unsnapped += len(events)
        with self._writing():
            self._database.executemany(
                "INSERT INTO events VALUES (?, ?, ?)",
                [(event.place.block, event.place.log_index, _codec.encode_event(event)) for event in events],
            )
            self._database.execute("INSERT OR REPLACE INTO checkpoints VALUES (?, ?)", (upto.block, upto.hash))
            if self._unsnapped >= _SNAPSHOT_EVERY:
                self._snap(upto, books)

    def _snap(self, upto: Checkpoint, books: Books) -> None:
        self._unsnapped = 0
        body = _codec.encode_books(books)
        self._database.execute("INSERT OR REPLACE INTO snapshots VALUES (?, ?)", (upto.block, body))
        kept = self._database.execute("SELECT block FROM snapshots ORDER BY block DESC LIMIT ?", (_SNAPSHOTS,))
        oldest = min(block for (block,) in kept.fetchall())
        self._database.execute("DELETE FROM snapshots WHERE block < ?", (oldest,))
        # Without a snapshot below, the events from the deployment on are what the books are made of.
        if self._database.execute("SELECT count(*) FROM snapshots").fetchone()[0] == _SNAPSHOTS:
            self._database.execute("DELETE FROM events WHERE block <= ?", (oldest,))
            self._database.execute("DELETE FROM checkpoints WHERE block < ?", (oldest,))

    def thin(self) -> None:
        """Keep the latest checkpoints, those of snapshots, and the first."""
        with self._writing():
            self._database.execute(
                "DELETE FROM checkpoints WHERE block NOT IN (SELECT block FROM snapshots) "
                "AND block > (SELECT min(block) FROM checkpoints) "
                "AND block NOT IN (SELECT block FROM checkpoints ORDER BY block DESC LIMIT ?)",
                (_CHECKPOINTS,),
            )

    def roll_back(self, to: Checkpoint) -> Books:
        """Forget what came after a block, and rebuild the books up to it. Jobs that were mined later may not be."""
        with self._writing():
            for table in ("checkpoints", "events", "snapshots"):
                self._database.execute(f"DELETE FROM {table} WHERE block > ?", (to.block,))
            self._database.execute("INSERT OR REPLACE INTO checkpoints VALUES (?, ?)", (to.block, to.hash))
            self._database.execute(
                "UPDATE jobs SET state = ? WHERE state = ? AND block > ?", (JobState.MINED, JobState.FINAL, to.block)
            )
        self._final_read = False
        return self.books()

    def books(self) -> Books:
        """From the last snapshot and the events since."""
        found = self._database.execute("SELECT block, body FROM snapshots ORDER BY block DESC LIMIT 1").fetchone()
        since, books = (found[0], _codec.decode_books(found[1])) if found else (-1, Books())
        rows = self._database.execute(
            "SELECT body FROM events WHERE block > ? ORDER BY block, log_index", (since,)
        ).fetchall()
        for (body,) in rows:
            books.apply(_codec.decode_event(body))
        self._unsnapped = len(rows)
        return books

    def can_rebuild(self, block: int) -> bool:
        """Whether the books of a block can be rebuilt: from a snapshot, or because no event was ever dropped."""
        oldest, count = self._database.execute("SELECT min(block), count(*) FROM snapshots").fetchone()
        return bool(count < _SNAPSHOTS or oldest <= block)

    # --- what was sent ---

    def add_job(self, job: Job, attempt: Attempt) -> Job:
        """Before the attempt leaves the process. The job with its id."""
        with self._writing():
            cursor = self._database.execute(
                "INSERT INTO jobs (state, nonce, kind, token, payee, streams, marks, amounts, reward) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    job.state,
                    job.nonce,
                    job.kind,
                    job.token,
                    job.payee,
                    json.dumps(job.streams),
                    json.dumps(job.marks),
                    json.dumps(job.amounts),
                    str(job.reward),
                ),
            )
            assert cursor.lastrowid is not None
            self._add_attempt(attempt, cursor.lastrowid)
        return self.job(cursor.lastrowid)

    def add_attempt(self, attempt: Attempt) -> None:
        """Before it leaves the process."""
        with self._writing():
            self._add_attempt(attempt, attempt.job)

    def _add_attempt(self, attempt: Attempt, job: int) -> None:
        self._database.execute(
            "INSERT INTO attempts VALUES (?, ?, ?, ?, ?)",
            (attempt.hash, job, json.dumps(dict(attempt.fields)), attempt.raw, attempt.sent_at),
        )

    def attempts(self, job: Job) -> list[Attempt]:
        """The latest first."""
        rows = self._database.execute("SELECT * FROM attempts WHERE job = ? ORDER BY rowid DESC", (job.id,)).fetchall()
        return [Attempt(hash, number, json.loads(fields), raw, at) for hash, number, fields, raw, at in rows]

    def job(self, id: int) -> Job:
        return _job(self._database.execute("SELECT * FROM jobs WHERE id = ?", (id,)).fetchone())

    def jobs(self, *states: JobState, above: int = -1) -> list[Job]:
        """Those in one of these states, by nonce; with `above`, only those mined in a later block than that."""
        marks = ", ".join("?" * len(states))
        rows = self._database.execute(
            f"SELECT * FROM jobs WHERE state IN ({marks}) AND block > ? ORDER BY nonce, id", (*states, above)
        ).fetchall()
        return [_job(row) for row in rows]

    def update(self, job: Job) -> None:
        """How it stands: state, block, and what the chain says about it."""
        with self._writing():
            self._database.execute(
                "UPDATE jobs SET state = ?, block = ?, succeeded = ?, hash = ?, fee = ?, earned = ?, moved = ? "
                "WHERE id = ?",
                (
                    job.state,
                    job.block,
                    job.succeeded,
                    job.hash,
                    str(job.fee),
                    str(job.earned),
                    str(job.moved),
                    job.id,
                ),
            )
        if job.state is JobState.FINAL and self._final_read:
            self._final.add(job)

    def totals(self) -> Totals:
        """Of all that is in a block now."""
        if not self._final_read:
            self._final = Totals()
            for job in self.jobs(JobState.FINAL):
                self._final.add(job)
            self._final_read = True
        found = Totals(**{name: _copy(getattr(self._final, name)) for name in Totals.__slots__})
        for job in self.jobs(JobState.MINED):
            found.add(job)
        return found

    # --- what it was fed ---

    def add_fed(self, vouchers: Iterable[Voucher], orders: Iterable[SignedOrder], now: int) -> None:
        with self._writing():
            self._database.executemany(
                "INSERT OR IGNORE INTO vouchers VALUES (?, ?, ?, ?)",
                [(one.key.id, str(one.cumulative), now, encode_line(VoucherLine.of(one))) for one in vouchers],
            )
            self._database.executemany(
                "INSERT OR IGNORE INTO orders VALUES (?, ?, ?)",
                [(one.key.id, one.order.until, encode_line(StandingOrderLine.of(one))) for one in orders],
            )

    def drop_vouchers(self, dropped: Iterable[Voucher]) -> None:
        with self._writing():
            self._database.executemany(
                "DELETE FROM vouchers WHERE channel = ? AND cumulative = ?",
                [(voucher.key.id, str(voucher.cumulative)) for voucher in dropped],
            )

    def vouchers(self, domain: Domain) -> list[tuple[Voucher, int]]:
        """With the second at which each came."""
        rows = self._database.execute("SELECT body, received_at FROM vouchers").fetchall()
        return [(decode_voucher(body, domain), at) for body, at in rows]

    def drop_orders(self, now: int) -> None:
        """Those whose time is over."""
        with self._writing():
            self._database.execute("DELETE FROM orders WHERE until <= ?", (now,))

    def orders(self) -> list[SignedOrder]:
        return [decode_standing_order(body) for (body,) in self._database.execute("SELECT body FROM orders").fetchall()]

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with self._database:
                yield
        except sqlite3.DatabaseError as error:
            raise ConfigError(f"cannot write the keeper's ledger {self._path}: {error}") from error


def _connect(path: Path, database: str, *, uri: bool = False) -> sqlite3.Connection:
    try:
        return sqlite3.connect(database, uri=uri, check_same_thread=False)
    except sqlite3.Error as error:
        raise ConfigError(f"cannot open the keeper's ledger {path}: {error}") from error


def _ready(database: sqlite3.Connection, path: Path) -> sqlite3.Connection:
    try:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version == 0:
            with database:
                database.executescript(f"BEGIN; {_SCHEMA}; PRAGMA user_version = {_VERSION}; COMMIT;")
        elif version != _VERSION:
            raise ConfigError(f"the keeper's ledger {path} is of version {version}, this program's is {_VERSION}")
    except sqlite3.DatabaseError as error:
        raise _damaged(path, error) from error
    return database


def _damaged(path: Path, error: Exception) -> ConfigError:
    return ConfigError(
        f"the keeper's ledger {path} cannot be read ({error}): move it away; a new one is rebuilt from the chain, "
        "only transactions that are under way are lost sight of"
    )


def _job(row: Sequence[Any]) -> Job:
    id, state, nonce, kind, token, payee, streams, marks, amounts, reward, block, succeeded, hash, *figures = row
    fee, earned, moved = map(int, figures)
    return Job(
        id,
        JobState(state),
        nonce,
        kind,
        token,
        payee,
        tuple(json.loads(streams)),
        tuple(json.loads(marks)),
        tuple(json.loads(amounts)),
        int(reward),
        block,
        bool(succeeded),
        hash,
        fee,
        earned,
        moved,
    )


def _copy(value: Any) -> Any:
    return dict(value) if isinstance(value, dict) else value
