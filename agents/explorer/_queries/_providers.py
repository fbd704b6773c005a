"""Providers and their offers."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, or_, select

from agents.explorer import _schema as schema
from agents.explorer._queries._market import volume
from agents.explorer._queries._rows import DAY, PAGE, Page, Row, contains, fetch, fetch_one
from agents.explorer._store import tip_of

KeyHistory = list[tuple[str, int, int | None]]
"""Keys that a provider's receipts were signed with: key, first second, last second (None: still in force)."""


@dataclass(frozen=True)
class OfferFilter:
    model: str = ""
    token: str = ""
    region: str = ""
    quantization: str = ""
    provider: str = ""
    basis: str = ""
    """second or token; empty: either."""
    max_rate: int | None = None
    """Base units x 1e6 per second."""
    min_stake: int = 0
    min_success: float = 0
    """Share of sessions without a fault or a lost challenge, 0 to 1."""
    active: bool | None = True
    sort: str = "price"


def key_history(connection: Connection, provider: str) -> KeyHistory:
    """Oldest first; empty where there is no such provider. In the second of a rotation both keys hold."""
    e = schema.events
    query = select(e.c.timestamp, e.c.body).where(
        e.c.subject == provider, e.c.contract == "Registry", e.c.name.in_(("ProviderRegistered", "SignerChanged"))
    )
    found = connection.execute(query.order_by(e.c.seq)).all()
    until = [*(row.timestamp for row in found[1:]), None]
    return [(json.loads(row.body)["signer"], row.timestamp, end) for row, end in zip(found, until, strict=False)]


def _uptime(connection: Connection, providers: Sequence[str]) -> dict[str, Row]:
    """By provider, the share of probes that it answered in the last day and week, in whole hours; None where it was
    not asked."""
    table, now = schema.uptime, int(time.time())
    query = select(table).where(table.c.provider.in_(providers), table.c.hour > now - 7 * DAY)
    counts = {provider: {DAY: [0, 0], 7 * DAY: [0, 0]} for provider in providers}
    for row in fetch(connection, query):
        for seconds, count in counts[row["provider"]].items():
            if row["hour"] > now - seconds:
                count[0] += row["up"]
                count[1] += row["asked"]
    names = {DAY: "uptime_24h", 7 * DAY: "uptime_7d"}
    return {
        provider: {names[seconds]: up / asked if asked else None for seconds, (up, asked) in found.items()}
        for provider, found in counts.items()
    }


def _in_use(connection: Connection, column: str) -> dict[str, int]:
    """Sessions that money flows in at the last block, by `offer_id` or `provider`."""
    tip = tip_of(connection)
    s, c = schema.streams, schema.channels
    running = select(s.c[column], func.count()).where(
        s.c.status == "open", s.c.end > (tip.timestamp if tip else 0), s.c.provider.is_not(None)
    )
    open_channels = select(c.c[column], func.count()).where(c.c.status != "closed", c.c.provider.is_not(None))
    found: dict[str, int] = {}
    for query, by in ((running, s.c[column]), (open_channels, c.c[column])):
        for key, count in connection.execute(query.group_by(by)):
            found[key] = found.get(key, 0) + count
    return found


def success(row: Mapping[str, Any]) -> float:
    """Share of a provider's sessions that no fault or lost challenge stands against; 1 where it had none."""
    bad = row["faults"] + row["challenges_lost"]
    return 1.0 if not row["sessions"] else max(0.0, 1 - bad / row["sessions"])


def providers(
    connection: Connection, *, search: str = "", min_stake: int = 0, after: str | None = None, limit: int = PAGE
) -> Page:
    """Those with the most stake first."""
    table = schema.providers
    query = select(table).where(table.c.stake >= min_stake)
    if search:
        query = query.where(or_(contains(table.c.id, search), contains(table.c.endpoint, search)))
    offset = int(after or 0)
    rows = fetch(connection, query.order_by(table.c.stake.desc(), table.c.id).offset(offset).limit(limit + 1))
    used = _in_use(connection, "provider")
    up = _uptime(connection, [row["id"] for row in rows[:limit]])
    found = [
        {**row, "success": success(row), "open_sessions": used.get(row["id"], 0), **up[row["id"]]}
        for row in rows[:limit]
    ]
    return Page(found, str(offset + limit) if len(rows) > limit else None)


def provider(connection: Connection, id: str) -> Row | None:
    """With what a judge of its reputation would want to know."""
    row = fetch_one(connection, select(schema.providers).where(schema.providers.c.id == id))
    if row is None:
        return None
    ended = (
        select(func.count(), func.count(func.distinct(schema.streams.c.payer)))
        .select_from(schema.streams)
        .where(schema.streams.c.provider == id)
    )
    streams_count, payers = connection.execute(ended).one()
    seconds = connection.scalar(
        select(func.sum(schema.streams.c.last - schema.streams.c.start)).where(schema.streams.c.provider == id)
    )
    return {
        **row,
        "success": success(row),
        "open_sessions": _in_use(connection, "provider").get(id, 0),
        **_uptime(connection, [id])[id],
        "streams": streams_count,
        "payers": payers,
        "seconds_served": int(seconds or 0),
        "earned": volume(connection, 0, id),
    }


def offers(connection: Connection, wanted: OfferFilter, *, after: str | None = None, limit: int = PAGE) -> Page:
    """With their providers' stake and record. Cheapest first within a token, or by `sort`: price, stake, newest."""
    table, owner = schema.offers, schema.providers
    columns = [owner.c[name] for name in ("endpoint", "stake", "faults", "challenges_lost")]
    query = select(table, *columns, owner.c.sessions.label("provider_sessions")).join(
        owner, owner.c.id == table.c.provider
    )
    exact = {"token": wanted.token, "provider": wanted.provider}
    conditions: list[ColumnElement[bool]] = [table.c[name] == value for name, value in exact.items() if value]
    for name in ("model", "region", "quantization"):
        if value := getattr(wanted, name):
            conditions.append(contains(table.c[name], value))
    if wanted.active is not None:
        conditions.append(table.c.active.is_(wanted.active))
    if wanted.basis == "second":
        conditions.append(table.c.rate > 0)
    elif wanted.basis == "token":
        conditions.append(table.c.completion_price > 0)
    if wanted.max_rate is not None:
        conditions.append(and_(table.c.rate > 0, table.c.rate <= wanted.max_rate))
    if wanted.min_stake:
        conditions.append(owner.c.stake >= wanted.min_stake)
    orders: dict[str, list[ColumnElement[Any]]] = {
        "price": [table.c.token, table.c.rate, table.c.completion_price, table.c.number],
        "stake": [owner.c.stake.desc(), table.c.number],
        "newest": [table.c.number.desc()],
    }
    query = query.where(*conditions).order_by(*orders[wanted.sort])
    offset = int(after or 0)
    if wanted.min_success:
        every = [row for row in map(_with_success, fetch(connection, query)) if row["success"] >= wanted.min_success]
        rows = every[offset : offset + limit + 1]
    else:
        rows = [_with_success(row) for row in fetch(connection, query.offset(offset).limit(limit + 1))]
    used = _in_use(connection, "offer_id")
    found = [{**row, "open_sessions": used.get(row["id"], 0)} for row in rows[:limit]]
    return Page(found, str(offset + limit) if len(rows) > limit else None)


def _with_success(row: Row) -> Row:
    return {**row, "success": success({**row, "sessions": row["provider_sessions"]})}


def offer(connection: Connection, id: str) -> Row | None:
    row = fetch_one(connection, select(schema.offers).where(schema.offers.c.id == id))
    return row and {**row, "open_sessions": _in_use(connection, "offer_id").get(id, 0)}


def facets(connection: Connection) -> dict[str, list[str]]:
    """What there is to filter offers by."""
    found = {}
    for name in ("model", "region", "quantization", "token"):
        column = schema.offers.c[name]
        found[name] = sorted(connection.scalars(select(column).where(schema.offers.c.active.is_(True)).distinct()))
    return found


def hosts(connection: Connection) -> dict[str, str]:
    """Endpoints of all providers, by id."""
    return dict(connection.execute(select(schema.providers.c.id, schema.providers.c.endpoint)).tuples().all())
