"""What an account has spent and locked, from the journal's own tables: caps that this software holds itself to.

They bind every process that uses the journal, and nobody who has the account's key and another program.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import NamedTuple

from penstock.accrual import flow
from penstock.caps import WINDOWS, Caps, Usage
from penstock.errors import CapExceeded
from penstock.journal._records import ChannelRecord, Record
from penstock.types import Address, Token
from penstock.units import format_amount

SCHEMA = (
    """
CREATE TABLE spending (
    kind          TEXT NOT NULL,
    id            TEXT NOT NULL,
    chain_id      INTEGER NOT NULL,
    stream_pay    TEXT NOT NULL,
    payer         TEXT NOT NULL,
    token         TEXT NOT NULL,
    amount        TEXT NOT NULL,
    at            INTEGER NOT NULL,
    PRIMARY KEY (kind, id)
) STRICT
""",
    "CREATE INDEX spending_by_time ON spending (payer, token, at)",
)
"""What each stream and channel that is over came to, and since when that is known; and each licence, from before its
purchase on."""


@dataclass(frozen=True, slots=True)
class Limit:
    """What may be spent of a token, as of `now`."""

    token: Token
    caps: Caps
    now: int


class Purse(NamedTuple):
    """Whose spending of which token counts together."""

    chain_id: int
    stream_pay: Address
    payer: Address
    token: Address

    @classmethod
    def of(cls, record: Record | ChannelRecord) -> Purse:
        return cls(record.chain_id, record.stream_pay, record.key.payer, record.key.token)


class Spending:
    """Reads and writes within a transaction of the journal's."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._db = database

    def require(self, limit: Limit | None, purse: Purse, amount: int) -> None:
        """CapExceeded where paying so much more from a purse would break a cap."""
        if limit is None:
            return
        usage = self.usage(purse, limit.now)
        cap = limit.caps.excess(amount, usage)
        if not cap:
            return
        token, most = limit.token, getattr(limit.caps, cap)
        asked, allowed = (format_amount(value, token.decimals, token.symbol) for value in (amount, most))
        counted = "" if cap == "payment" else f", of which {self._shown(usage.counted(cap), token)} is used or locked"
        cure = "buy less at once" if cap == "payment" else "wait, buy less"
        raise CapExceeded(
            cap,
            f"{asked} more would break the cap per {cap} of {allowed}{counted}: {cure}, or raise it in --caps. "
            "This cap is held by this software alone; `penstock wallet` makes one that a contract holds",
            contract=False,
        )

    def usage(self, purse: Purse, now: int) -> Usage:
        """What counts for a purse: what may be open in full, what was spent by its window."""
        rows = self._db.execute(
            "SELECT rate, duration, start, \"end\", reserved FROM streams WHERE state IN ('intended', 'open')"
            " AND chain_id = ? AND stream_pay = ? AND payer = ? AND token = ?",
            purse,
        )
        locked = 0
        for rate, duration, start, end, reserved in rows:
            locked += flow(int(rate), end - start if start else duration) + int(reserved)
        bodies = self._db.execute(
            "SELECT body FROM channels WHERE state IN ('intended', 'open') AND payer = ?", (purse.payer,)
        )
        for channel in (json.loads(body) for (body,) in bodies):
            if (channel["chain_id"], channel["stream_pay"], purse.payer, channel["key"]["token"]) == purse:
                locked += channel["deposit"] + channel["reserved"]
        longest = max(WINDOWS.values())
        spent = self._db.execute(
            "SELECT amount, at FROM spending WHERE chain_id = ? AND stream_pay = ? AND payer = ? AND token = ?"
            " AND at > ?",
            (*purse, now - longest),
        ).fetchall()
        within = (sum(int(amount) for amount, at in spent if at > now - seconds) for seconds in WINDOWS.values())
        return Usage(locked, *within)

    def spent(self, kind: str, id: str, purse: Purse, amount: int, at: int) -> None:
        """Once for each stream, channel and licence."""
        self._db.execute(
            "INSERT OR IGNORE INTO spending (kind, id, chain_id, stream_pay, payer, token, amount, at)"
            " VALUES (?,?,?,?,?,?,?,?)",
            (kind, id, *purse, str(amount), at),
        )

    def unspent(self, kind: str, id: str) -> None:
        """It was not paid after all."""
        self._db.execute("DELETE FROM spending WHERE kind = ? AND id = ?", (kind, id))

    @staticmethod
    def _shown(amount: int, token: Token) -> str:
        return format_amount(amount, token.decimals, token.symbol)
