"""The ledger: every request and every purchase that it took, in one SQLite file beside the journal.

A request is on disk before a provider hears of it, and a purchase before the end of its answer goes to the client, so
that whatever kills the process, what was asked and bought is known. What it cost on chain is in the journal, under the
purchase's session.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import time
from collections.abc import Iterable
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.errors import ConfigError

if TYPE_CHECKING:
    from agents.buyer import Purchase
    from penstock.types import Address

_SCHEMA = (
    """
CREATE TABLE IF NOT EXISTS requests (
    id            TEXT PRIMARY KEY,
    asked_at      INTEGER NOT NULL,
    finished_at   INTEGER NOT NULL DEFAULT 0,
    app           TEXT NOT NULL,
    client        TEXT NOT NULL,
    path          TEXT NOT NULL,
    wish          TEXT NOT NULL,
    source        TEXT NOT NULL DEFAULT '',
    model         TEXT NOT NULL DEFAULT '',
    outcome       TEXT NOT NULL DEFAULT 'begun',
    problem       TEXT NOT NULL DEFAULT '',
    process       TEXT NOT NULL
) STRICT
""",
    "CREATE INDEX IF NOT EXISTS requests_by_time ON requests (asked_at)",
    """
CREATE TABLE IF NOT EXISTS purchases (
    number            INTEGER PRIMARY KEY,
    request           TEXT NOT NULL REFERENCES requests (id),
    place             INTEGER NOT NULL,
    chain_id          INTEGER NOT NULL,
    payer             TEXT NOT NULL,
    session           TEXT NOT NULL,
    provider          TEXT NOT NULL,
    endpoint          TEXT NOT NULL,
    offer             TEXT NOT NULL,
    model             TEXT NOT NULL,
    basis             TEXT NOT NULL,
    token             TEXT NOT NULL,
    symbol            TEXT NOT NULL,
    decimals          INTEGER NOT NULL,
    why               TEXT NOT NULL,
    prompt_tokens     INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    cost              TEXT NOT NULL,
    receipt           TEXT NOT NULL,
    started_at        INTEGER NOT NULL,
    first_at          INTEGER NOT NULL,
    finished_at       INTEGER NOT NULL,
    outcome           TEXT NOT NULL,
    problem           TEXT NOT NULL,
    UNIQUE (request, place)
) STRICT
""",
    "CREATE INDEX IF NOT EXISTS purchases_by_session ON purchases (session)",
)


class Outcome(StrEnum):
    BEGUN = "begun"
    """Under way, or its process is gone."""
    DONE = "done"
    FAILED = "failed"
    LEFT = "left"
    """The client hung up."""
    LOST = "lost"
    """Its process was killed."""


@dataclass(frozen=True, slots=True)
class Bought:
    """A purchase on record. Times in milliseconds since 1970, amounts in base units of the token."""

    chain_id: int
    payer: str
    session: str
    """The id of its stream or channel."""
    provider: str
    endpoint: str
    offer: str
    model: str
    basis: str
    """second, token or both."""
    token: str
    symbol: str
    decimals: int
    why: str
    """This provider was chosen."""
    prompt_tokens: int
    completion_tokens: int
    cost: int
    """Of the session since its purchase before; what it came to in all is in the journal."""
    receipt: str
    """Its hash; empty where none came."""
    started_at: int
    first_at: int
    """0: no part of the answer came."""
    finished_at: int
    outcome: str
    problem: str
    """Why it did not do it all; empty where it did."""

    @classmethod
    def of(cls, purchase: Purchase, chain_id: int, payer: Address) -> Bought:
        token = purchase.token
        return cls(
            chain_id=chain_id,
            payer=payer,
            session=purchase.session,
            provider=purchase.provider,
            endpoint=purchase.endpoint,
            offer=purchase.offer,
            model=purchase.model,
            basis=purchase.basis,
            token=token.address,
            symbol=token.symbol,
            decimals=token.decimals,
            why=purchase.why,
            prompt_tokens=purchase.prompt_tokens,
            completion_tokens=purchase.completion_tokens,
            cost=purchase.cost,
            receipt=purchase.receipt,
            started_at=int(purchase.began_at * 1000),
            first_at=int((purchase.first_token_at or 0) * 1000),
            finished_at=int(purchase.ended_at * 1000),
            outcome=purchase.outcome,
            problem=purchase.problem,
        )


@dataclass(frozen=True, slots=True)
class Asked:
    """A request with what was bought for it. Times in milliseconds since 1970."""

    id: str
    asked_at: int
    finished_at: int
    app: str
    """serve, chat, ask or mcp."""
    client: str
    path: str
    wish: str
    """The model as the client named it."""
    source: str
    """market, local, or empty where it came to neither."""
    model: str
    outcome: Outcome
    problem: str
    purchases: tuple[Bought, ...] = ()


_BOUGHT = [one.name for one in fields(Bought)]
_ASKED = [one.name for one in fields(Asked) if one.name != "purchases"]


class Ledger:
    """Use as a context manager, or call `close`. What writes returns when the disk has it.

    ConfigError where the file is no ledger.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        self._process = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._db = sqlite3.connect(path, isolation_level=None, timeout=10)
        self._db.row_factory = sqlite3.Row
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            for statement in _SCHEMA:
                self._db.execute(statement)
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise ConfigError(
                f"the records {path} cannot be read ({error}); move the file away to begin new ones: money is in the "
                "journal, not there"
            ) from error

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    # --- writing -----------------------------------------------------------------------------------

    def begin(self, *, app: str, client: str, path: str, wish: str) -> str:
        """A request has come. Returns its id."""
        identifier = secrets.token_hex(8)
        self._db.execute(
            "INSERT INTO requests (id, asked_at, app, client, path, wish, process) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (identifier, _now(), app, client[:200], path, wish[:200], self._process),
        )
        return identifier

    def served_by(self, request: str, source: str, model: str) -> None:
        self._db.execute("UPDATE requests SET source = ?, model = ? WHERE id = ?", (source, model, request))

    def bought(self, request: str, purchases: Iterable[Bought]) -> None:
        """All of a request's so far, in order; the same again changes what has changed."""
        columns = ", ".join(_BOUGHT)
        changes = ", ".join(f"{name} = excluded.{name}" for name in _BOUGHT)
        marks = ", ".join("?" * (len(_BOUGHT) + 2))
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            for place, one in enumerate(purchases):
                values = [str(one.cost) if name == "cost" else getattr(one, name) for name in _BOUGHT]
                self._db.execute(
                    f"INSERT INTO purchases (request, place, {columns}) VALUES ({marks})"
                    f" ON CONFLICT (request, place) DO UPDATE SET {changes}",
                    (request, place, *values),
                )

    def finish(self, request: str, outcome: Outcome, problem: str = "") -> None:
        self._db.execute(
            "UPDATE requests SET outcome = ?, problem = ?, finished_at = ? WHERE id = ? AND outcome = 'begun'",
            (outcome, problem, _now(), request),
        )

    def lost(self) -> int:
        """Mark the requests under way of processes that are gone. Returns how many there were."""
        rows = self._db.execute("SELECT DISTINCT process FROM requests WHERE outcome = 'begun'").fetchall()
        gone = [name for (name,) in rows if name != self._process and not _runs(int(name.partition("-")[0]))]
        marks = ", ".join("?" * len(gone))
        return self._db.execute(
            f"UPDATE requests SET outcome = 'lost', problem = 'the process was killed' WHERE outcome = 'begun'"
            f" AND process IN ({marks})",
            gone,
        ).rowcount

    # --- reading -----------------------------------------------------------------------------------

    def requests(self, *, since: int = 0, until: int = 2**62) -> list[Asked]:
        """Those asked from `since` and before `until`, in milliseconds since 1970, oldest first."""
        rows = self._db.execute(
            f"SELECT {', '.join(_ASKED)} FROM requests WHERE asked_at >= ? AND asked_at < ? ORDER BY asked_at, rowid",
            (since, until),
        ).fetchall()
        found: dict[str, list[Bought]] = {}
        for row in self._db.execute(
            f"SELECT request, {', '.join(f'purchases.{name}' for name in _BOUGHT)} FROM purchases"
            " JOIN requests ON requests.id = purchases.request WHERE asked_at >= ? AND asked_at < ?"
            " ORDER BY purchases.request, place",
            (since, until),
        ):
            values = {name: row[name] for name in _BOUGHT} | {"cost": int(row["cost"])}
            found.setdefault(row["request"], []).append(Bought(**values))
        return [
            Asked(
                **{name: row[name] for name in _ASKED if name != "outcome"},
                outcome=Outcome(row["outcome"]),
                purchases=tuple(found.get(row["id"], ())),
            )
            for row in rows
        ]

    def by_session(self) -> dict[str, int]:
        """How many purchases each session has served."""
        return dict(self._db.execute("SELECT session, count(*) FROM purchases GROUP BY session").fetchall())


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _now() -> int:
    return int(time.time() * 1000)
