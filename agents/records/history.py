"""`penstock history`: what was asked and bought, listed, added up, given out."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from agents._context import Context
from agents._output import emit_json, emit_table, short_address, talk
from agents.records.ledger import Asked, Bought, Ledger
from penstock.consumer.market import has_prefix
from penstock.errors import ConfigError
from penstock.journal import ChannelRecord, Record, Transaction
from penstock.units import format_amount

DAY = 86_400_000
GROUPS = ("day", "model", "provider", "app")


@dataclass(frozen=True, slots=True)
class Filter:
    """As typed; None: it does not matter."""

    since: str | None = None
    until: str | None = None
    model: str | None = None
    provider: str | None = None
    token: str | None = None
    app: str | None = None
    outcome: str | None = None

    def takes(self, asked: Asked) -> bool:
        return (
            (self.model is None or self.model in (asked.model, asked.wish))
            and (self.app is None or self.app == asked.app)
            and (self.outcome is None or self.outcome == asked.outcome)
            and (self.provider is None or any(has_prefix(one.provider, self.provider) for one in asked.purchases))
            and (self.token is None or any(self.token.lower() == one.symbol.lower() for one in asked.purchases))
        )


def parse_time(text: str, now: datetime) -> int:
    """ "2026-11-21", "2026-11-21 14:00", or so long ago as "90m", "24h", "7d": milliseconds since 1970."""
    ago = re.fullmatch(r"(\d{1,6})([mhd])", text.strip())
    if ago is not None:
        unit = {"m": "minutes", "h": "hours", "d": "days"}[ago[2]]
        return int((now - timedelta(**{unit: int(ago[1])})).timestamp() * 1000)
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ConfigError(f"{text!r} is no time; write 2026-11-21, '2026-11-21 14:00' (UTC), 24h or 7d") from None
    return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1000)


def load(path: Path, wanted: Filter) -> list[Asked]:
    """What is on record and fits, oldest first."""
    now = datetime.now(UTC)
    since = parse_time(wanted.since, now) if wanted.since else 0
    until = parse_time(wanted.until, now) if wanted.until else 2**62
    with Ledger(path) as ledger:
        return [asked for asked in ledger.requests(since=since, until=until) if wanted.takes(asked)]


async def history(context: Context, wanted: Filter, *, by: str | None, export: str | None) -> None:
    if by is not None and by not in GROUPS:
        raise ConfigError(f"--by {by} is none of {', '.join(GROUPS)}")
    found = load(context.settings.records, wanted)
    if export is not None:
        _export(found, export)
    elif by is not None:
        _show_totals(context, totals(found, by), by)
    elif context.json:
        journal = context.journal()
        transactions: dict[str, list[Transaction]] = {}
        records: list[Record | ChannelRecord] = [*journal.all(), *journal.channels()]
        for record in records:  # a stream and its channel have the same id
            transactions.setdefault(record.id, []).extend(record.transactions)

        emit_json({"requests": [request_json(asked, transactions) for asked in found]})
    elif not found:
        talk("nothing on record" + (" that fits" if wanted != Filter() else ""))
    else:
        _show(found)


def request_json(asked: Asked, transactions: Mapping[str, Sequence[Transaction]] | None = None) -> dict[str, Any]:
    """With its purchases; with their transactions, where these are given by session."""

    def bought(one: Bought) -> dict[str, Any]:
        data = asdict(one) | {"cost": str(one.cost)}
        if transactions is not None:
            data["transactions"] = [asdict(sent) | {"fee": str(sent.fee)} for sent in transactions.get(one.session, ())]
        return data

    return asdict(asked) | {"purchases": [bought(one) for one in asked.purchases]}


def _show(found: Sequence[Asked]) -> None:
    emit_table(
        ["ASKED", "APP", "MODEL", "OUTCOME", "PROVIDER", "TOKENS", "FIRST", "TOTAL", "COST", "WHY"],
        [
            [
                f"{_when(asked.asked_at):%Y-%m-%d %H:%M:%S}",
                asked.app,
                asked.model or asked.wish,
                asked.outcome if place == 0 else one.outcome if one else "",
                short_address(one.provider) if one else asked.source or "-",
                f"{one.prompt_tokens}+{one.completion_tokens}" if one else "-",
                _seconds(one.started_at, one.first_at) if one else "-",
                _seconds(asked.asked_at, asked.finished_at),
                format_amount(one.cost, one.decimals, one.symbol) if one else "-",
                one.problem or one.why if one else asked.problem,
            ]
            for asked in found
            for place, one in enumerate(asked.purchases or (None,))
        ],
        right=["TOKENS", "FIRST", "TOTAL", "COST"],
    )


@dataclass(slots=True)
class Total:
    """Of a group in one token; `token` is empty for what cost nothing."""

    group: str
    token: str
    decimals: int
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: int = 0


def totals(found: Iterable[Asked], by: str) -> list[Total]:
    """By group and token, in order. A request that two providers served counts for each of them."""
    rows: dict[tuple[str, str], Total] = {}
    for asked in found:
        seen = set()
        for one in asked.purchases or (None,):
            group = _group(asked, one, by)
            symbol, decimals = (one.symbol, one.decimals) if one else ("", 0)
            row = rows.setdefault((group, symbol), Total(group, symbol, decimals))
            if (group, symbol) not in seen:
                seen.add((group, symbol))
                row.requests += 1
            if one is not None:
                row.prompt_tokens += one.prompt_tokens
                row.completion_tokens += one.completion_tokens
                row.cost += one.cost
    return [rows[key] for key in sorted(rows)]


def _group(asked: Asked, one: Bought | None, by: str) -> str:
    match by:
        case "day":
            return f"{_when(asked.asked_at):%Y-%m-%d}"
        case "model":
            return (one.model if one else asked.model) or asked.wish
        case "provider":
            return one.provider if one else asked.source or "nobody"
    return asked.app


def _show_totals(context: Context, rows: Sequence[Total], by: str) -> None:
    if context.json:
        emit_json([asdict(row) | {"cost": str(row.cost)} for row in rows])
        return
    if not rows:
        talk("nothing on record")
        return
    emit_table(
        [by.upper(), "REQUESTS", "PROMPT", "COMPLETION", "COST", "TOKEN"],
        [
            [
                row.group,
                str(row.requests),
                str(row.prompt_tokens),
                str(row.completion_tokens),
                format_amount(row.cost, row.decimals) if row.token else "-",
                row.token or "-",
            ]
            for row in rows
        ],
        right=["REQUESTS", "PROMPT", "COMPLETION", "COST"],
    )


_COLUMNS = (
    "request asked_at finished_at app client path wish source outcome model provider endpoint offer basis why session "
    "token symbol prompt_tokens completion_tokens cost receipt started_at first_at ended_at problem"
).split()


def _export(found: Iterable[Asked], target: str) -> None:
    """A row for each purchase, and for each request that took none. Costs in tokens, times in UTC."""
    with open(target, "w", newline="") if target != "-" else _Stdout() as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        for asked in found:
            for one in asked.purchases or (None,):
                writer.writerow({name: _safe(value) for name, value in _row(asked, one).items()})
    if target != "-":
        talk(f"written  {target}")


def _row(asked: Asked, one: Bought | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "request": asked.id,
        "asked_at": _iso(asked.asked_at),
        "finished_at": _iso(asked.finished_at),
        "app": asked.app,
        "client": asked.client,
        "path": asked.path,
        "wish": asked.wish,
        "source": asked.source,
        "outcome": asked.outcome,
        "model": asked.model,
        "problem": asked.problem,
    }
    if one is None:
        return row
    known = {name: value for name, value in asdict(one).items() if name in _COLUMNS and name != "finished_at"}
    return (
        row
        | known
        | {
            "cost": format_amount(one.cost, one.decimals),
            "outcome": one.outcome,
            "started_at": _iso(one.started_at),
            "first_at": _iso(one.first_at),
            "ended_at": _iso(one.finished_at),
            "problem": one.problem or asked.problem,
        }
    )


def _safe(value: Any) -> Any:
    """Strangers' words must not be a formula where the table is opened."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value


class _Stdout:
    def __enter__(self) -> Any:
        return sys.stdout

    def __exit__(self, *_: object) -> None:
        sys.stdout.flush()


def _when(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _iso(milliseconds: int) -> str:
    return _when(milliseconds).isoformat(timespec="milliseconds") if milliseconds else ""


def _seconds(first: int, last: int) -> str:
    return f"{(last - first) / 1000:.1f} s" if last >= first > 0 else "-"
