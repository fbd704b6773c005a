"""Receipts that consumers publish, and what they say of a provider's speed.

Whoever has a provider's signed receipt may publish it: its signature shows whose word it is. Of each the store keeps
what was measured and the key that signed. A receipt is the provider's own clock, so that the figures are what it says
of itself, signed. Whether one counts is judged anew at each look, by the sessions, offers and keys that the store has
from the chain then: a reorganisation takes sessions away and brings them back, and their receipts with them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, and_, delete, exists, insert, or_, select

from agents.explorer import _schema as schema
from agents.explorer._queries import KeyHistory, Row, key_history
from agents.explorer._store import Store, tip_of
from penstock.errors import WireError
from penstock.types import Address
from penstock.wire.eip712 import Domain, recover
from penstock.wire.evidence import decode_piece
from penstock.wire.receipts import Receipt

MAX_BODY = 1024 * 1024
"""Bytes that one request may bring."""
MAX_LINES = 500
KEPT = 10_000
"""Receipts of one provider, its youngest."""
_AHEAD = 3600
"""Seconds that a provider's clock may be ahead."""


@dataclass
class Verdict:
    taken: int = 0
    known: int = 0
    """That were here before."""
    refused: list[Row] = field(default_factory=list)
    """`line`, from 1, and `reason`."""

    def refuse(self, line: int, reason: str) -> None:
        self.refused.append({"line": line, "reason": reason})


async def take(store: Store, domain: Domain, lines: Sequence[tuple[int, bytes]]) -> Verdict:
    """Judge numbered lines as `penstock receipts --jsonl` prints them, and keep those that hold."""
    verdict = Verdict()
    read = await asyncio.to_thread(_read, domain, lines, verdict)
    if read:
        await store.note(lambda connection: _keep(connection, read, verdict))
    verdict.refused.sort(key=lambda one: one["line"])
    return verdict


def _read(domain: Domain, lines: Sequence[tuple[int, bytes]], verdict: Verdict) -> list[tuple[int, Receipt, Address]]:
    """With the keys that signed them."""
    read = []
    for number, line in lines:
        try:
            signed = decode_piece(line).signed
            read.append((number, signed.receipt, recover(signed.receipt.digest(domain), signed.signature)))
        except (WireError, RecursionError) as error:
            verdict.refuse(number, str(error)[:300])
    return read


def _keep(connection: Connection, read: Sequence[tuple[int, Receipt, Address]], verdict: Verdict) -> None:
    tip, table = tip_of(connection), schema.receipts
    latest = 1000 * (max(int(time.time()), tip.timestamp if tip else 0) + _AHEAD)
    providers = {receipt.provider for _, receipt, _ in read}
    keys = {one: key_history(connection, one) for one in providers}
    for number, receipt, signer in read:
        row = _row(receipt, signer)
        if reason := _fault(connection, receipt, row, keys[receipt.provider], latest):
            verdict.refuse(number, reason)
            continue
        place = and_(*(table.c[name] == row[name] for name in ("session_id", "start", "seq")))
        found = connection.scalar(select(table.c.hash).where(place))
        if found is None:
            connection.execute(insert(table).values(**row))
            verdict.taken += 1
        elif found == row["hash"]:
            verdict.known += 1
        else:
            verdict.refuse(number, "another receipt of this session has the same number: `penstock report` proves that")
    for provider in providers:
        _forget(connection, provider)


def _fault(connection: Connection, receipt: Receipt, row: Row, keys: KeyHistory, latest: int) -> str:
    """Why it does not count; empty: it does."""
    if not receipt.accepted_at <= (receipt.first_token_at or receipt.accepted_at) <= receipt.finished_at:
        return "its times are not in order"
    if receipt.finished_at > latest:
        return "it is of a time to come"
    if not keys:
        return f"there is no provider {receipt.provider} here"
    if not signed_by(keys, row):
        return f"{row['signer']} signed it, which was no key of {receipt.provider} then"
    offer = select(schema.offers.c.id).where(
        schema.offers.c.id == receipt.offer_id, schema.offers.c.provider == receipt.provider
    )
    if connection.scalar(offer) is None:
        return f"{receipt.provider} has no offer {receipt.offer_id}"
    if not connection.scalar(select(_paid_for(row))):
        return f"no session {receipt.session_id} that began at {receipt.start} pays for this offer"
    return ""


def _row(receipt: Receipt, signer: Address) -> Row:
    measured = {column.name: getattr(receipt, column.name) for column in schema.receipts.c if column.name != "signer"}
    return {**measured, "signer": signer}


def _paid_for(row: Any) -> Any:
    """Whether the store knows the session, and the offer binds its payment. `row`: values, or the table's columns."""
    s, c = schema.streams, schema.channels
    stream = (s.c.id == row["session_id"], s.c.start == row["start"])
    channel = (c.c.id == row["session_id"], row["start"] == 0)
    return or_(
        exists().where(*stream, s.c.provider == row["provider"], s.c.offer_id == row["offer_id"]),
        exists().where(*channel, c.c.provider == row["provider"], c.c.offer_id == row["offer_id"]),
    )


def _forget(connection: Connection, provider: str) -> None:
    """All but the youngest."""
    table = schema.receipts
    mine = table.c.provider == provider
    order = (table.c.finished_at.desc(), table.c.hash)
    for old in connection.scalars(select(table.c.hash).where(mine).order_by(*order).offset(KEPT)).all():
        connection.execute(delete(table).where(table.c.hash == old))


def signed_by(keys: KeyHistory, row: Any) -> bool:
    """Whether the receipt's key was its provider's in the second in which it was finished, as Slashing asks. In the
    second of a rotation both are."""
    at = row["finished_at"] // 1000
    return any(key == row["signer"] and since <= at and (until is None or at <= until) for key, since, until in keys)


# --- what they say ---


def measured(connection: Connection, provider: str) -> list[Row]:
    """Figures of all of a provider's published receipts that count now (`offer_id` None), and of each offer's; empty
    where there are none."""
    table = schema.receipts
    query = select(table).where(table.c.provider == provider, _paid_for(table.c))
    keys = key_history(connection, provider)
    counted = [dict(row) for row in connection.execute(query).mappings() if signed_by(keys, row)]
    if not counted:
        return []
    models = dict(
        connection.execute(
            select(schema.offers.c.id, schema.offers.c.model).where(schema.offers.c.provider == provider)
        )
        .tuples()
        .all()
    )
    groups: dict[str | None, list[Row]] = {None: counted}
    for row in counted:
        if row["offer_id"] in models:
            groups.setdefault(row["offer_id"], []).append(row)
    return [{"offer_id": id, "model": models.get(id or ""), **_figures(group)} for id, group in groups.items()]


def _figures(rows: Sequence[Row]) -> Row:
    waits = sorted(row["first_token_at"] - row["accepted_at"] for row in rows if row["first_token_at"])
    speeds = sorted(
        1000 * (row["completion_tokens"] - 1) / (row["finished_at"] - row["first_token_at"])
        for row in rows
        if row["completion_tokens"] > 1 and row["finished_at"] > row["first_token_at"] > 0
    )
    return {
        "answers": len(rows),
        "prompt_tokens": sum(row["prompt_tokens"] for row in rows),
        "completion_tokens": sum(row["completion_tokens"] for row in rows),
        "ttft_p50_ms": _percentile(waits, 50),
        "ttft_p95_ms": _percentile(waits, 95),
        "tokens_per_second_p50": _percentile(speeds, 50),
        "last_at": max(row["finished_at"] for row in rows) // 1000,
    }


def _percentile(ordered: Sequence[Any], percent: int) -> Any:
    """The least value that so many percent do not exceed; None of none."""
    return ordered[-(-len(ordered) * percent // 100) - 1] if ordered else None
