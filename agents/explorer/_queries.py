"""What the views ask of the store. Each is one function of a connection and gives plain rows, youngest first.

Lists are paged by a cursor: the place after which the next page begins.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, Select, Table, and_, func, or_, select

from agents.explorer import _schema as schema
from agents.explorer._fold import spread
from agents.explorer._store import Tip, tip_of
from penstock.accrual import StreamState

Row = dict[str, Any]
PAGE = 50
DAY = 86_400


@dataclass(frozen=True)
class Page:
    rows: list[Row]
    next: str | None
    """Give it as `after` for the next page; None: this is the last."""


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


def _rows(connection: Connection, query: Select[Any]) -> list[Row]:
    return [dict(row) for row in connection.execute(query).mappings()]


def _row(connection: Connection, query: Select[Any]) -> Row | None:
    found = connection.execute(query).mappings().first()
    return dict(found) if found else None


def _paged(connection: Connection, query: Select[Any], cursor: Column[Any], after: str | None, limit: int) -> Page:
    """By a column that orders uniquely, from the top down."""
    if after is not None:
        query = query.where(cursor < int(after))
    rows = _rows(connection, query.order_by(cursor.desc()).limit(limit + 1))
    more = len(rows) > limit
    return Page(rows[:limit], str(rows[limit - 1][cursor.name]) if more else None)


def _contains(column: ColumnElement[Any], text: str) -> ColumnElement[bool]:
    escaped = text.lower().replace("\\", "\\\\").replace("%", r"\%").replace("_", r"\_")
    return func.lower(column).like(f"%{escaped}%", escape="\\")


# --- the market ---


def tokens(connection: Connection) -> dict[str, Row]:
    """By address."""
    return {row["address"]: row for row in _rows(connection, select(schema.tokens))}


def overview(connection: Connection) -> Row:
    """The market in numbers, at the last block."""
    tip = tip_of(connection)
    now = tip.timestamp if tip else 0
    count = func.count()
    running = _rows(
        connection,
        select(schema.streams).where(schema.streams.c.status == "open").order_by(schema.streams.c.seq.desc()),
    )
    flowing: dict[str, int] = {}
    locked: dict[str, int] = {}
    for row in running:
        state = _state(row)
        if now < state.end:
            flowing[row["token"]] = flowing.get(row["token"], 0) + state.rate
        locked[row["token"]] = locked.get(row["token"], 0) + state.deposit - state.paid
    for row in _rows(connection, select(schema.channels).where(schema.channels.c.status != "closed")):
        locked[row["token"]] = locked.get(row["token"], 0) + row["deposit"] - row["settled"]
    return {
        "block": tip.number if tip else None,
        "block_hash": tip.hash if tip else None,
        "timestamp": now,
        "providers": connection.scalar(select(count).select_from(schema.providers)),
        "active_offers": connection.scalar(
            select(count).select_from(schema.offers).where(schema.offers.c.active.is_(True))
        ),
        "open_streams": sum(1 for row in running if now < row["end"]),
        "open_channels": connection.scalar(
            select(count).select_from(schema.channels).where(schema.channels.c.status != "closed")
        ),
        "sessions": (connection.scalar(select(count).select_from(schema.streams)) or 0)
        + (connection.scalar(select(count).select_from(schema.channels)) or 0),
        "faults": connection.scalar(select(count).select_from(schema.faults)),
        "staked": sum(connection.scalars(select(schema.providers.c.stake))),
        "flowing": flowing,
        "locked": locked,
        "volume_24h": volume(connection, now - DAY),
    }


def volume(connection: Connection, since: int, provider: str | None = None) -> dict[str, int]:
    """What was settled for work of the hours since then, by token: base units."""
    query = select(schema.hours).where(schema.hours.c.hour >= since - since % 3600)
    if provider is not None:
        query = query.where(schema.hours.c.provider == provider)
    found: dict[str, int] = {}
    for row in _rows(connection, query):
        found[row["token"]] = found.get(row["token"], 0) + row["flowed"] + row["by_token"]
    return {token: amount for token, amount in found.items() if amount}


def hours(connection: Connection, *, since: int, until: int, provider: str | None = None) -> list[Row]:
    """Volume hour by hour and token, oldest first. What open streams have cost since they were last settled is
    theirs too, as of `until`."""
    query = select(schema.hours).where(schema.hours.c.hour >= since - since % 3600)
    if provider is not None:
        query = query.where(schema.hours.c.provider == provider)
    found: dict[tuple[int, str], Row] = {}

    def at(hour: int, token: str) -> Row:
        zero = {"flowed": 0, "by_token": 0, "streams": 0, "channels": 0}
        return found.setdefault((hour, token), {"hour": hour, "token": token, **zero})

    for row in _rows(connection, query):
        total = at(row["hour"], row["token"])
        for name in ("flowed", "by_token", "streams", "channels"):
            total[name] += row[name]
    running = select(schema.streams).where(schema.streams.c.status == "open")
    if provider is not None:
        running = running.where(schema.streams.c.provider == provider)
    for row in _rows(connection, running):
        for moment, amount in spread(row["rate"], row["start"], row["last"], min(until, row["end"])):
            if moment >= since - since % 3600:
                at(moment - moment % 3600, row["token"])["flowed"] += amount
    return [found[key] for key in sorted(found)]


def rates(connection: Connection, *, now: int, model: str = "") -> list[Row]:
    """What a second of each model costs in each token: on offer now, and as bought in the last day."""
    offered = select(schema.offers).where(schema.offers.c.active.is_(True))
    if model:
        offered = offered.where(schema.offers.c.model == model)
    grouped: dict[tuple[str, str], Row] = {}
    for row in _rows(connection, offered):
        group = grouped.setdefault(
            (row["model"], row["token"]), {"rates": [], "prompt": [], "completion": [], "slots": 0, "providers": set()}
        )
        group["slots"] += row["slots"]
        group["providers"].add(row["provider"])
        if row["rate"]:
            group["rates"].append(row["rate"])
        if row["completion_price"]:
            group["prompt"].append(row["prompt_price"])
            group["completion"].append(row["completion_price"])
    bought = select(schema.trades).where(schema.trades.c.hour >= now - DAY - (now - DAY) % 3600)
    traded: dict[tuple[str, str], tuple[int, int]] = {}
    for row in _rows(connection, bought):
        count, total = traded.get((row["model"], row["token"]), (0, 0))
        traded[row["model"], row["token"]] = count + row["count"], total + row["total"]
    found = []
    for (name, token), group in sorted(grouped.items()):
        count, total = traded.get((name, token), (0, 0))
        by_rate = sorted(group["rates"])
        found.append(
            {
                "model": name,
                "token": token,
                "offers": max(len(by_rate), len(group["completion"])),
                "providers": len(group["providers"]),
                "slots": group["slots"],
                "lowest_rate": by_rate[0] if by_rate else None,
                "median_rate": by_rate[len(by_rate) // 2] if by_rate else None,
                "bought_rate_24h": total // count if count else None,
                "bought_24h": count,
                "lowest_prompt_price": min(group["prompt"], default=None),
                "lowest_completion_price": min(group["completion"], default=None),
            }
        )
    return found


def trades(connection: Connection, *, since: int, model: str = "", token: str = "") -> list[Row]:
    """Rates at which streams were opened, hour by hour, oldest first."""
    query = select(schema.trades).where(schema.trades.c.hour >= since - since % 3600)
    if model:
        query = query.where(schema.trades.c.model == model)
    if token:
        query = query.where(schema.trades.c.token == token)
    found = _rows(connection, query.order_by(schema.trades.c.hour, schema.trades.c.model, schema.trades.c.token))
    return [{**row, "average": row["total"] // row["count"]} for row in found]


# --- providers and offers ---


KeyHistory = list[tuple[str, int, int | None]]
"""Keys that a provider's receipts were signed with: key, first second, last second (None: still in force)."""


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
    for row in _rows(connection, query):
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
        query = query.where(or_(_contains(table.c.id, search), _contains(table.c.endpoint, search)))
    offset = int(after or 0)
    rows = _rows(connection, query.order_by(table.c.stake.desc(), table.c.id).offset(offset).limit(limit + 1))
    used = _in_use(connection, "provider")
    up = _uptime(connection, [row["id"] for row in rows[:limit]])
    found = [
        {**row, "success": success(row), "open_sessions": used.get(row["id"], 0), **up[row["id"]]}
        for row in rows[:limit]
    ]
    return Page(found, str(offset + limit) if len(rows) > limit else None)


def provider(connection: Connection, id: str) -> Row | None:
    """With what a judge of its reputation would want to know."""
    row = _row(connection, select(schema.providers).where(schema.providers.c.id == id))
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
            conditions.append(_contains(table.c[name], value))
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
        every = [row for row in map(_with_success, _rows(connection, query)) if row["success"] >= wanted.min_success]
        rows = every[offset : offset + limit + 1]
    else:
        rows = [_with_success(row) for row in _rows(connection, query.offset(offset).limit(limit + 1))]
    used = _in_use(connection, "offer_id")
    found = [{**row, "open_sessions": used.get(row["id"], 0)} for row in rows[:limit]]
    return Page(found, str(offset + limit) if len(rows) > limit else None)


def _with_success(row: Row) -> Row:
    return {**row, "success": success({**row, "sessions": row["provider_sessions"]})}


def offer(connection: Connection, id: str) -> Row | None:
    row = _row(connection, select(schema.offers).where(schema.offers.c.id == id))
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


# --- streams, channels, events ---


def _state(row: Mapping[str, Any]) -> StreamState:
    return StreamState(row["start"], row["last"], row["end"], row["rate"])


def measured(row: Row, now: int) -> Row:
    """A stream with what it has cost by `now`, and what is left."""
    state = _state(row)
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
    return _paged(connection, wanted.of(schema.streams), schema.streams.c.seq, after, limit)


def channels(
    connection: Connection, wanted: SessionFilter = ANY, *, after: str | None = None, limit: int = PAGE
) -> Page:
    return _paged(connection, wanted.of(schema.channels), schema.channels.c.opened_seq, after, limit)


def stream(connection: Connection, id: str, start: int | None = None) -> Row | None:
    """The youngest of this id, or the one that began then."""
    query = select(schema.streams).where(schema.streams.c.id == id)
    if start is not None:
        query = query.where(schema.streams.c.start == start)
    return _row(connection, query.order_by(schema.streams.c.seq.desc()).limit(1))


def channel(connection: Connection, id: str) -> Row | None:
    return _row(connection, select(schema.channels).where(schema.channels.c.id == id))


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
    page = _paged(connection, query, schema.events.c.seq, after, limit)
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
    return _told(connection, _rows(connection, query))


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
    return _paged(connection, query, schema.faults.c.seq, after, limit)


def challenges(connection: Connection, *, provider: str = "", after: str | None = None, limit: int = PAGE) -> Page:
    query = select(schema.challenges)
    if provider:
        query = query.where(schema.challenges.c.provider == provider)
    return _paged(connection, query, schema.challenges.c.seq, after, limit)


# --- products and licences ---


def products(
    connection: Connection,
    *,
    search: str = "",
    publisher: str = "",
    active: bool | None = True,
    after: str | None = None,
    limit: int = PAGE,
) -> Page:
    query = select(schema.products)
    if search:
        query = query.where(_contains(schema.products.c.name, search))
    if publisher:
        query = query.where(schema.products.c.publisher == publisher)
    if active is not None:
        query = query.where(schema.products.c.active.is_(active))
    page = _paged(connection, query, schema.products.c.id, after, limit)
    return Page([_product(row) for row in page.rows], page.next)


def product(connection: Connection, id: int) -> Row | None:
    row = _row(connection, select(schema.products).where(schema.products.c.id == id))
    return row and _product(row)


def _product(row: Row) -> Row:
    """With its version and parts to be read, and the mean of its reviews, by what each reviewer paid."""
    version = row["version"]
    return {
        **row,
        "version": f"{version >> 64}.{version >> 32 & 0xFFFFFFFF}.{version & 0xFFFFFFFF}",
        "parts": json.loads(row["parts"]),
        "rating": row["stars"] / row["weight"] if row["weight"] else None,
    }


def licences(
    connection: Connection,
    *,
    licensee: str = "",
    product: int | None = None,
    after: str | None = None,
    limit: int = PAGE,
) -> Page:
    table = schema.licences
    query = select(table, schema.products.c.name, schema.products.c.token, schema.products.c.kind).join(
        schema.products, schema.products.c.id == table.c.product
    )
    if licensee:
        query = query.where(table.c.licensee == licensee)
    if product is not None:
        query = query.where(table.c.product == product)
    return _paged(connection, query, table.c.id, after, limit)


# --- accounts ---


def account(connection: Connection, address: str) -> Row:
    """What an account holds, pays and earns; all empty where it was never seen."""
    held = _rows(
        connection,
        select(schema.balances).where(schema.balances.c.account == address, schema.balances.c.amount > 0),
    )
    spent: dict[str, int] = {}
    for row in _rows(connection, select(schema.streams).where(schema.streams.c.payer == address)):
        spent[row["token"]] = spent.get(row["token"], 0) + row["paid"]
    for row in _rows(connection, select(schema.channels).where(schema.channels.c.payer == address)):
        spent[row["token"]] = spent.get(row["token"], 0) + row["settled"]
    return {
        "address": address,
        "balances": held,
        "spent": {token: amount for token, amount in spent.items() if amount},
        "provider": provider(connection, address),
        "wallet": next(iter(_wallets(connection, schema.wallets.c.id == address)), None),
        "wallets": _wallets(connection, schema.wallets.c.owner == address),
    }


def _wallets(connection: Connection, condition: ColumnElement[bool]) -> list[Row]:
    """Agents' wallets, oldest first, with their caps and what was spent of each token."""
    w, t = schema.wallets, schema.wallet_tokens
    found = _rows(connection, select(w).where(condition).order_by(w.c.created_at, w.c.id))
    of = select(t).where(t.c.wallet.in_([row["id"] for row in found])).order_by(t.c.token)
    tokens = _rows(connection, of)
    return [{**row, "tokens": [one for one in tokens if one["wallet"] == row["id"]]} for row in found]


def search(connection: Connection, text: str, limit: int = 20) -> list[Row]:
    """Providers, offers, streams and channels that this is the start of, or that are named so."""
    found: list[Row] = []
    text = text.strip()
    if len(text) < 2:
        return found

    def add(kind: str, query: Select[Any], label: Sequence[str]) -> None:
        for row in _rows(connection, query.limit(limit - len(found))):
            found.append({"kind": kind, "id": row["id"], "label": " · ".join(str(row[name]) for name in label)})

    starts = text.lower().startswith("0x") or all(c in "0123456789abcdef" for c in text.lower())
    prefix = text.lower() if text.lower().startswith("0x") else f"0x{text.lower()}"
    p, o = schema.providers, schema.offers
    add("provider", select(p).where(or_(_contains(p.c.endpoint, text), _contains(p.c.id, text))), ["endpoint"])
    add("offer", select(o).where(or_(_contains(o.c.model, text), o.c.id.like(f"{prefix}%"))), ["model", "region"])
    if starts and len(found) < limit:
        for kind, table in (("stream", schema.streams), ("channel", schema.channels)):
            like = table.c.id.like(f"{prefix}%")
            order = table.c.seq if kind == "stream" else table.c.opened_seq
            add(kind, select(table).where(like).order_by(order.desc()), ["model", "status"])
    return found[:limit]
