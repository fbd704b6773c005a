"""Streams and channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, Table, or_, select

from agents.explorer import _schema as schema
from agents.explorer._queries._rows import PAGE, Page, Row, fetch_one, paged
from penstock.accrual import StreamState


def state_of(row: Mapping[str, Any]) -> StreamState:
    return StreamState(row["start"], row["last"], row["end"], row["rate"])


def measured(row: Row, now: int) -> Row:
    """A stream with what it has cost by `now`, and what is left."""
    state = state_of(row)
    until = row["stop"] if row["stop"] is not None else min(max(now, state.start), state.end)
    return {**row, "deposit": state.deposit, "cost": state.cost(until)}


@dataclass(frozen=True)
class SessionFilter:
    """Of streams or channels; empty: any."""

    status: str = ""
    running_at: int | None = None
    """Of streams: money flows in them at this second, or later."""
    payer: str = ""
    payee: str = ""
    party: str = ""
    """Payer or payee."""
    provider: str = ""
    model: str = ""
    offer_id: str = ""

    def of(self, table: Table) -> Select[Any]:
        names = ("status", "payer", "payee", "provider", "model", "offer_id")
        query = select(table).where(*(table.c[name] == getattr(self, name) for name in names if getattr(self, name)))
        if self.running_at is not None:
            query = query.where(table.c.status == "open", table.c.end > self.running_at)
        return query.where(or_(table.c.payer == self.party, table.c.payee == self.party)) if self.party else query


ANY = SessionFilter()


def streams(
    connection: Connection, wanted: SessionFilter = ANY, *, after: str | None = None, limit: int = PAGE
) -> Page:
    return paged(connection, wanted.of(schema.streams), schema.streams.c.seq, after, limit)


def channels(
    connection: Connection, wanted: SessionFilter = ANY, *, after: str | None = None, limit: int = PAGE
) -> Page:
    return paged(connection, wanted.of(schema.channels), schema.channels.c.opened_seq, after, limit)


def stream(connection: Connection, id: str, start: int | None = None) -> Row | None:
    """The youngest of this id, or the one that began then."""
    query = select(schema.streams).where(schema.streams.c.id == id)
    if start is not None:
        query = query.where(schema.streams.c.start == start)
    return fetch_one(connection, query.order_by(schema.streams.c.seq.desc()).limit(1))


def channel(connection: Connection, id: str) -> Row | None:
    return fetch_one(connection, select(schema.channels).where(schema.channels.c.id == id))
