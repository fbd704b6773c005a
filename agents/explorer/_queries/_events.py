"""What the contracts have said: events, faults, challenges."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Connection, Select, func, select

from agents.explorer import _schema as schema
from agents.explorer._queries._rows import PAGE, Page, Row, fetch, paged
from agents.explorer._store import Tip, tip_of


def timeline(connection: Connection, subject: str, since: int = 0, until: int | None = None) -> list[Row]:
    """Events about an id, oldest first; `since` and `until` are values of `seq`."""
    query = select(schema.events).where(schema.events.c.subject == subject, schema.events.c.seq >= since)
    if until is not None:
        query = query.where(schema.events.c.seq <= until)
    return _events(connection, query.order_by(schema.events.c.seq).limit(500))


def events(
    connection: Connection,
    *,
    name: str = "",
    contract: str = "",
    subject: str = "",
    after: str | None = None,
    limit: int = PAGE,
) -> Page:
    wanted = {"name": name, "contract": contract, "subject": subject}
    query = select(schema.events).where(*(schema.events.c[key] == value for key, value in wanted.items() if value))
    page = paged(connection, query, schema.events.c.seq, after, limit)
    return Page(_told(connection, page.rows), page.next)


def events_since(connection: Connection, seq: int, limit: int = 200) -> list[Row]:
    """What came after, oldest first."""
    query = select(schema.events).where(schema.events.c.seq > seq).order_by(schema.events.c.seq).limit(limit)
    return _events(connection, query)


def newest(connection: Connection) -> tuple[Tip | None, int]:
    """The last block, and the last event's `seq`."""
    return tip_of(connection), connection.scalar(select(func.max(schema.events.c.seq))) or 0


def is_gone(connection: Connection, block: Tip) -> bool:
    """Whether a block that was the last once has been reorganised since. False of one too deep to be."""
    blocks = schema.blocks.c
    now = connection.scalar(select(blocks.hash).where(blocks.number == block.number))
    kept_from = connection.scalar(select(func.min(blocks.number)))
    return now != block.hash and kept_from is not None and kept_from <= block.number


def _events(connection: Connection, query: Select[Any]) -> list[Row]:
    return _told(connection, fetch(connection, query))


def _told(connection: Connection, rows: list[Row]) -> list[Row]:
    """Events with their values, and with the token that theirs are amounts of, where another event said it."""
    subjects = {row["subject"] for row in rows if row["contract"] == "StreamPay"}
    found: dict[str, str] = {}
    for table in (schema.streams, schema.channels):
        query = select(table.c.id, table.c.token).where(table.c.id.in_(subjects))
        found |= dict(connection.execute(query).tuples().all())
    told = []
    for row in rows:
        body = json.loads(row.pop("body"))
        told.append({**row, "block": schema.block_of(row["seq"]), "values": body, "token": found.get(row["subject"])})
    return told


def faults(connection: Connection, *, provider: str = "", after: str | None = None, limit: int = PAGE) -> Page:
    query = select(schema.faults)
    if provider:
        query = query.where(schema.faults.c.provider == provider)
    return paged(connection, query, schema.faults.c.seq, after, limit)


def challenges(connection: Connection, *, provider: str = "", after: str | None = None, limit: int = PAGE) -> Page:
    query = select(schema.challenges)
    if provider:
        query = query.where(schema.challenges.c.provider == provider)
    return paged(connection, query, schema.challenges.c.seq, after, limit)
