"""Rows and pages of them, by a cursor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, Select, func

Row = dict[str, Any]
PAGE = 50
DAY = 86_400


@dataclass(frozen=True)
class Page:
    rows: list[Row]
    next: str | None
    """Give it as `after` for the next page; None: this is the last."""


def fetch(connection: Connection, query: Select[Any]) -> list[Row]:
    return [dict(row) for row in connection.execute(query).mappings()]


def fetch_one(connection: Connection, query: Select[Any]) -> Row | None:
    found = connection.execute(query).mappings().first()
    return dict(found) if found else None


def paged(connection: Connection, query: Select[Any], cursor: Column[Any], after: str | None, limit: int) -> Page:
    """By a column that orders uniquely, from the top down."""
    if after is not None:
        query = query.where(cursor < int(after))
    rows = fetch(connection, query.order_by(cursor.desc()).limit(limit + 1))
    more = len(rows) > limit
    return Page(rows[:limit], str(rows[limit - 1][cursor.name]) if more else None)


def contains(column: ColumnElement[Any], text: str) -> ColumnElement[bool]:
    escaped = text.lower().replace("\\", "\\\\").replace("%", r"\%").replace("_", r"\_")
    return func.lower(column).like(f"%{escaped}%", escape="\\")
