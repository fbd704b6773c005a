"""What was measured of each provider, on disk, and fading: yesterday's speed says little about today's."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from penstock.types import Address

_SCHEMA = """
CREATE TABLE IF NOT EXISTS measured (
    provider      TEXT NOT NULL,
    model         TEXT NOT NULL,
    weight        REAL NOT NULL,
    good          REAL NOT NULL,
    ttft          REAL NOT NULL,
    ttft_weight   REAL NOT NULL,
    speed         REAL NOT NULL,
    speed_weight  REAL NOT NULL,
    opening       REAL NOT NULL,
    opening_weight REAL NOT NULL,
    failures      INTEGER NOT NULL,
    aside_until   REAL NOT NULL,
    updated_at    REAL NOT NULL,
    PRIMARY KEY (provider, model)
) STRICT;
CREATE TABLE IF NOT EXISTS traffic (
    model         TEXT NOT NULL,
    weight        REAL NOT NULL,
    tokens        REAL NOT NULL,
    gaps          REAL NOT NULL,
    gaps_weight   REAL NOT NULL,
    updated_at    REAL NOT NULL,
    PRIMARY KEY (model)
) STRICT;
"""

_BUSY = 1.0
"""Seconds for which a provider is left alone that has no free slot, at first."""


@dataclass(slots=True)
class Measured:
    """Of one provider and model: sums that fade, and their weights."""

    weight: float = 0.0
    """Answers asked for, failed ones included."""
    good: float = 0.0
    ttft: float = 0.0
    """Seconds to the first token."""
    ttft_weight: float = 0.0
    speed: float = 0.0
    """Tokens per second after it."""
    speed_weight: float = 0.0
    opening: float = 0.0
    """Seconds until a session was open."""
    opening_weight: float = 0.0
    failures: int = 0
    """In a row."""
    aside_until: float = 0.0
    """Unix seconds."""
    updated_at: float = 0.0

    def faded(self, now: float, half_life: float) -> Measured:
        left = 0.5 ** (max(0.0, now - self.updated_at) / half_life)
        return replace(
            self, **{one: getattr(self, one) * left for one in _FADING}, updated_at=max(now, self.updated_at)
        )

    @property
    def success(self) -> float:
        """0 to 1: the share of good answers, with one good and no bad one beforehand."""
        return (self.good + 1) / (self.weight + 1)

    @property
    def mean_ttft(self) -> float | None:
        return self.ttft / self.ttft_weight if self.ttft_weight > 0.01 else None

    @property
    def mean_speed(self) -> float | None:
        return self.speed / self.speed_weight if self.speed_weight > 0.01 else None

    @property
    def mean_opening(self) -> float | None:
        return self.opening / self.opening_weight if self.opening_weight > 0.01 else None


_FADING = [one.name for one in fields(Measured) if one.name not in ("failures", "aside_until", "updated_at")]


@dataclass(slots=True)
class Traffic:
    """Of one model, at this buyer: sums that fade."""

    weight: float = 0.0
    tokens: float = 0.0
    """Completion tokens."""
    gaps: float = 0.0
    """Seconds from one answer's end to the next one's, each at most as long as a session is kept open."""
    gaps_weight: float = 0.0
    updated_at: float = 0.0

    @property
    def mean_tokens(self) -> float | None:
        return self.tokens / self.weight if self.weight > 0.01 else None

    @property
    def mean_gap(self) -> float | None:
        return self.gaps / self.gaps_weight if self.gaps_weight > 0.01 else None


class Memory:
    """`path`: None forgets at the end. Every method that learns returns when the file has it."""

    def __init__(
        self,
        path: Path | None,
        *,
        half_life: float,
        aside: float,
        longest_aside: float,
        clock: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._half_life, self._aside, self._longest_aside = half_life, aside, longest_aside
        if path is not None:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._db = sqlite3.connect(path or ":memory:", isolation_level=None, timeout=10)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.executescript(_SCHEMA)
        rows = self._db.execute("SELECT * FROM measured")
        self._known = {(Address(row[0]), str(row[1])): Measured(*row[2:]) for row in rows}
        self._traffic = {str(row[0]): Traffic(*row[1:]) for row in self._db.execute("SELECT * FROM traffic")}

    def close(self) -> None:
        self._db.close()

    def of(self, provider: Address, model: str) -> Measured:
        """As of now; with weight 0 where nothing is known."""
        return self._known.get((provider, model), Measured()).faded(self._clock(), self._half_life)

    def traffic(self, model: str) -> Traffic:
        return self._traffic.get(model, Traffic())

    def opened(self, provider: Address, model: str, seconds: float) -> None:
        """A session was opened."""
        known = self.of(provider, model)
        known.opening, known.opening_weight = known.opening + seconds, known.opening_weight + 1
        self._keep(provider, model, known)

    def succeeded(self, provider: Address, model: str, *, ttft: float | None, speed: float | None) -> None:
        """An answer came, in seconds and tokens per second as far as they could be measured."""
        known = self.of(provider, model)
        known.weight, known.good, known.failures, known.aside_until = known.weight + 1, known.good + 1, 0, 0.0
        if ttft is not None:
            known.ttft, known.ttft_weight = known.ttft + ttft, known.ttft_weight + 1
        if speed is not None:
            known.speed, known.speed_weight = known.speed + speed, known.speed_weight + 1
        self._keep(provider, model, known)

    def failed(self, provider: Address, model: str, *, busy: bool = False) -> None:
        """It is left alone for a while, and longer with each failure in a row; where it was only `busy` the while is
        short at first, and says nothing about how good it is."""
        known = self.of(provider, model)
        pause = (_BUSY if busy else self._aside) * 2.0 ** min(known.failures, 30)
        known.failures, known.aside_until = known.failures + 1, self._clock() + min(pause, self._longest_aside)
        known.weight += not busy
        self._keep(provider, model, known)

    def answered(self, model: str, completion_tokens: int, *, longest_gap: float) -> None:
        """A request of this model was answered. `longest_gap`: seconds beyond which it does not matter how long ago the
        one before it was."""
        now, seen = self._clock(), self.traffic(model)
        since = max(0.0, now - seen.updated_at)
        left = 0.5 ** (since / self._half_life)
        gap, counts = (min(since, longest_gap), 1) if seen.weight else (0.0, 0)
        seen = Traffic(
            weight=seen.weight * left + 1,
            tokens=seen.tokens * left + completion_tokens,
            gaps=seen.gaps * left + gap,
            gaps_weight=seen.gaps_weight * left + counts,
            updated_at=now,
        )
        self._traffic[model] = seen
        values = (model, *asdict(seen).values())
        self._db.execute(f"INSERT OR REPLACE INTO traffic VALUES ({','.join('?' * len(values))})", values)

    def _keep(self, provider: Address, model: str, known: Measured) -> None:
        self._known[provider, model] = known
        values = (provider, model, *asdict(known).values())
        self._db.execute(f"INSERT OR REPLACE INTO measured VALUES ({','.join('?' * len(values))})", values)
