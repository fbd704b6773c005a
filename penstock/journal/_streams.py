"""The journal's streams."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator

from penstock.accrual import flow
from penstock.journal._file import JournalFile
from penstock.journal._records import Record, State, Transaction
from penstock.journal._spending import Limit, Purse
from penstock.types import Address, OfferId, StreamId, StreamKey

SCHEMA = (
    """
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
) STRICT
""",
    "CREATE INDEX streams_by_state ON streams (state)",
    """
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
) STRICT
""",
)


class Streams(JournalFile):
    """Each method that writes returns when the disk has it."""

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

    # --- reading ---

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

    def _select(self, where: str, *values: str) -> list[Record]:
        try:
            rows = self._db.execute(f"SELECT * FROM streams {where} ORDER BY created_at, rowid", values).fetchall()
            return [self._record(row) for row in rows]
        except (sqlite3.DatabaseError, ValueError) as error:
            raise self._damaged(error) from error

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
