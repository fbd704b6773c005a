"""Derived rows at hand while events are folded into them, and what they were before.

Reads fall through to the database once; changes stay in memory until `flush`, which writes them all at once. For
blocks that may still be reorganised the first change of a row in each block notes what the row was before it: going
back is putting these back, youngest first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Table, and_, delete, func, insert, select
from sqlalchemy.dialects import postgresql, sqlite

from agents.explorer import _schema as schema

Row = dict[str, Any]
Key = tuple[Any, ...]

_TABLES = {table.name: table for table in schema.DERIVED}
_KEYS = {name: tuple(column.name for column in table.primary_key) for name, table in _TABLES.items()}
_KEPT = 200_000
"""Rows in memory between two batches."""


class Rows:
    def __init__(self) -> None:
        self._rows: dict[tuple[str, Key], Row | None] = {}
        self._dirty: set[tuple[str, Key]] = set()
        self._streams: dict[str, int] = {}
        self._noted: set[tuple[str, Key]] = set()
        self._undo: list[Row] = []
        self._block = -1
        self._undoable_from = 0
        self._connection: Connection | None = None

    def begin(self, connection: Connection, undoable_from: int) -> None:
        """Fold on this connection; changes of blocks from `undoable_from` on can be undone."""
        self._connection, self._undoable_from = connection, undoable_from

    def enter(self, block: int) -> None:
        """The changes that follow are of this block."""
        if block != self._block:
            self._block = block
            self._noted.clear()

    def find(self, table: Table, *key: Any) -> Row | None:
        """The row, to be read only; None where there is none."""
        name = (table.name, key)
        if name not in self._rows:
            assert self._connection is not None
            columns = [table.c[column] == value for column, value in zip(_KEYS[table.name], key, strict=True)]
            found = self._connection.execute(select(table).where(and_(*columns))).mappings().first()
            self._rows[name] = dict(found) if found else None
        return self._rows[name]

    def edit(self, table: Table, *key: Any) -> Row:
        """The row, to be changed before the next call. KeyError where there is none: an event came without the one
        that it follows, so that the deployment's first block is wrong."""
        row = self.find(table, *key)
        if row is None:
            raise KeyError(f"no {table.name} row {key}")
        self._note(table.name, key, row)
        return row

    def put(self, table: Table, row: Row, *, fresh: bool = False) -> Row:
        """A new row. `fresh`: its key was never there before, which spares a look."""
        key = tuple(row[column] for column in _KEYS[table.name])
        if fresh:
            self._rows[table.name, key] = None
        self._note(table.name, key, self.find(table, *key))
        self._rows[table.name, key] = row
        if table is schema.streams:
            self._streams[row["id"]] = row["seq"]
        return row

    def stream(self, stream: str) -> Row:
        """The youngest stream that was opened under this id, to be changed."""
        if stream not in self._streams:
            assert self._connection is not None
            seq = self._connection.scalar(select(func.max(schema.streams.c.seq)).where(schema.streams.c.id == stream))
            if seq is None:
                raise KeyError(f"no stream {stream}")
            self._streams[stream] = seq
        return self.edit(schema.streams, self._streams[stream])

    def _note(self, table: str, key: Key, before: Row | None) -> None:
        name = (table, key)
        self._dirty.add(name)
        if self._block < self._undoable_from or name in self._noted:
            return
        self._noted.add(name)
        self._undo.append(
            {
                "block": self._block,
                "number": len(self._undo),
                "table_name": table,
                "key": json.dumps(key),
                "before": None if before is None else json.dumps(before),
            }
        )

    def flush(self) -> None:
        """Write what has changed, within the connection's transaction."""
        connection = self._connection
        assert connection is not None
        changed: dict[str, list[Row]] = {}
        for name in self._dirty:
            row = self._rows[name]
            assert row is not None
            changed.setdefault(name[0], []).append(row)
        for table, rows in changed.items():
            upsert(connection, _TABLES[table], rows)
        if self._undo:
            connection.execute(insert(schema.undo), self._undo)
        self._dirty.clear()
        self._undo.clear()
        self._noted.clear()
        self._block = -1
        self._connection = None
        if len(self._rows) > _KEPT:
            self.forget()

    def forget(self) -> None:
        """Whatever is in memory may no longer be true."""
        self.__init__()  # type: ignore[misc]


def undo(connection: Connection, ancestor: int) -> None:
    """Make every derived row what it was after the block `ancestor`."""
    notes = connection.execute(
        select(schema.undo)
        .where(schema.undo.c.block > ancestor)
        .order_by(schema.undo.c.block.desc(), schema.undo.c.number.desc())
    ).all()
    # Of each row only the oldest note matters: it is the last one met.
    oldest = {(note.table_name, note.key): note.before for note in notes}
    back: dict[str, list[Row]] = {}
    for (table, key), before in oldest.items():
        if before is None:
            columns = zip(_KEYS[table], json.loads(key), strict=True)
            where = [_TABLES[table].c[column] == value for column, value in columns]
            connection.execute(delete(_TABLES[table]).where(and_(*where)))
        else:
            back.setdefault(table, []).append(json.loads(before))
    for table, rows in back.items():
        upsert(connection, _TABLES[table], rows)
    connection.execute(delete(schema.undo).where(schema.undo.c.block > ancestor))


def upsert(connection: Connection, table: Table, rows: Sequence[Row] | Iterable[Row]) -> None:
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table)
    keys = [column.name for column in table.primary_key]
    rest = {column.name: statement.excluded[column.name] for column in table.c if column.name not in keys}
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=rest), list(rows))
