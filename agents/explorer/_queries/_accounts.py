"""Accounts, wallets, and the search through everything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, or_, select

from agents.explorer import _schema as schema
from agents.explorer._queries._providers import provider
from agents.explorer._queries._rows import Row, contains, fetch


def account(connection: Connection, address: str) -> Row:
    """What an account holds, pays and earns; all empty where it was never seen."""
    held = fetch(
        connection,
        select(schema.balances).where(schema.balances.c.account == address, schema.balances.c.amount > 0),
    )
    spent: dict[str, int] = {}
    for row in fetch(connection, select(schema.streams).where(schema.streams.c.payer == address)):
        spent[row["token"]] = spent.get(row["token"], 0) + row["paid"]
    for row in fetch(connection, select(schema.channels).where(schema.channels.c.payer == address)):
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
    found = fetch(connection, select(w).where(condition).order_by(w.c.created_at, w.c.id))
    of = select(t).where(t.c.wallet.in_([row["id"] for row in found])).order_by(t.c.token)
    tokens = fetch(connection, of)
    return [{**row, "tokens": [one for one in tokens if one["wallet"] == row["id"]]} for row in found]


def search(connection: Connection, text: str, limit: int = 20) -> list[Row]:
    """Providers, offers, streams and channels that this is the start of, or that are named so."""
    found: list[Row] = []
    text = text.strip()
    if len(text) < 2:
        return found

    def add(kind: str, query: Select[Any], label: Sequence[str]) -> None:
        for row in fetch(connection, query.limit(limit - len(found))):
            found.append({"kind": kind, "id": row["id"], "label": " · ".join(str(row[name]) for name in label)})

    starts = text.lower().startswith("0x") or all(c in "0123456789abcdef" for c in text.lower())
    prefix = text.lower() if text.lower().startswith("0x") else f"0x{text.lower()}"
    p, o = schema.providers, schema.offers
    add("provider", select(p).where(or_(contains(p.c.endpoint, text), contains(p.c.id, text))), ["endpoint"])
    add("offer", select(o).where(or_(contains(o.c.model, text), o.c.id.like(f"{prefix}%"))), ["model", "region"])
    if starts and len(found) < limit:
        for kind, table in (("stream", schema.streams), ("channel", schema.channels)):
            like = table.c.id.like(f"{prefix}%")
            order = table.c.seq if kind == "stream" else table.c.opened_seq
            add(kind, select(table).where(like).order_by(order.desc()), ["model", "status"])
    return found[:limit]
