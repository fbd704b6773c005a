"""The market as a whole: tokens, totals, hours, prices."""

from __future__ import annotations

from sqlalchemy import Connection, func, select

from agents.explorer import _schema as schema
from agents.explorer._fold import spread
from agents.explorer._queries._rows import DAY, Row, fetch
from agents.explorer._queries._sessions import state_of
from agents.explorer._store import tip_of


def tokens(connection: Connection) -> dict[str, Row]:
    """By address."""
    return {row["address"]: row for row in fetch(connection, select(schema.tokens))}


def overview(connection: Connection) -> Row:
    """The market in numbers, at the last block."""
    tip = tip_of(connection)
    now = tip.timestamp if tip else 0
    count = func.count()
    running = fetch(
        connection,
        select(schema.streams).where(schema.streams.c.status == "open").order_by(schema.streams.c.seq.desc()),
    )
    flowing: dict[str, int] = {}
    locked: dict[str, int] = {}
    for row in running:
        state = state_of(row)
        if now < state.end:
            flowing[row["token"]] = flowing.get(row["token"], 0) + state.rate
        locked[row["token"]] = locked.get(row["token"], 0) + state.deposit - state.paid
    for row in fetch(connection, select(schema.channels).where(schema.channels.c.status != "closed")):
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
    for row in fetch(connection, query):
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

    for row in fetch(connection, query):
        total = at(row["hour"], row["token"])
        for name in ("flowed", "by_token", "streams", "channels"):
            total[name] += row[name]
    running = select(schema.streams).where(schema.streams.c.status == "open")
    if provider is not None:
        running = running.where(schema.streams.c.provider == provider)
    for row in fetch(connection, running):
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
    for row in fetch(connection, offered):
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
    for row in fetch(connection, bought):
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
    found = fetch(connection, query.order_by(schema.trades.c.hour, schema.trades.c.model, schema.trades.c.token))
    return [{**row, "average": row["total"] // row["count"]} for row in found]
