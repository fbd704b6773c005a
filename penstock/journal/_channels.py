"""The journal's channels."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from penstock.journal._file import JournalFile
from penstock.journal._records import ChannelRecord, State, Transaction
from penstock.journal._spending import Limit, Purse
from penstock.types import StreamId, StreamKey

SCHEMA = (
    """
CREATE TABLE channels (
    id            TEXT PRIMARY KEY,
    state         TEXT NOT NULL,
    holder        TEXT NOT NULL,
    payer         TEXT NOT NULL,
    signed        TEXT NOT NULL,
    created_at    INTEGER NOT NULL,
    body          TEXT NOT NULL
) STRICT
""",
)
"""`body` is the whole record; the columns are what is looked for, and what grows by itself."""


class Channels(JournalFile):
    """As `Streams`."""

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
            raise self._damaged(error) from error


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
