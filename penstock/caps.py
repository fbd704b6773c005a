"""Caps on what may be spent of one token, and what counts against them: the Python twin of `spending.vy`.

What is open counts in full; what was paid by what ended counts on for each window. So the sum bounds what can have left
within any hour, day or week, and only a new commitment makes it larger. Values are immutable.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

NO_LIMIT = 2**96 - 1
WINDOWS = {"hour": 3_600, "day": 86_400, "week": 604_800}
"""Seconds."""
BUCKETS = 4
"""Of a third of a window each: what is spent is forgotten after the window, and a third of it later at the latest."""


@dataclass(frozen=True, slots=True)
class Caps:
    """Base units. Zero is nothing at all."""

    payment: int = NO_LIMIT
    hour: int = NO_LIMIT
    day: int = NO_LIMIT
    week: int = NO_LIMIT

    def as_tuple(self) -> tuple[int, int, int, int]:
        return self.payment, self.hour, self.day, self.week

    def excess(self, amount: int, usage: Usage) -> str:
        """Which cap one more payment of so much would break: "payment", "hour", "day", "week", or none: empty."""
        if amount > self.payment:
            return "payment"
        return next((name for name in WINDOWS if usage.counted(name) + amount > getattr(self, name)), "")

    def available(self, usage: Usage) -> int:
        """The most that may be committed at once."""
        left: list[int] = [max(0, getattr(self, name) - usage.counted(name)) for name in WINDOWS]
        return min(self.payment, *left)


@dataclass(frozen=True, slots=True)
class Usage:
    """What counts now, in base units: all that is open, and what was paid within each window by what is over."""

    open: int
    hour: int
    day: int
    week: int

    def counted(self, window: str) -> int:
        paid: int = getattr(self, window)
        return self.open + paid


@dataclass(frozen=True, slots=True)
class Window:
    """One window's buckets, the youngest first."""

    seconds: int
    number: int = 0
    amounts: tuple[int, ...] = (0,) * BUCKETS

    def at(self, now: int) -> Window:
        """The same, with the youngest bucket being that of now."""
        number = now // (self.seconds // 3)
        age = min(number - self.number, BUCKETS)
        return Window(self.seconds, number, ((0,) * age + self.amounts)[:BUCKETS])

    def spent(self, now: int) -> int:
        return sum(self.at(now).amounts)

    def spend(self, amount: int, now: int) -> Window:
        moved = self.at(now)
        youngest, *older = moved.amounts
        return replace(moved, amounts=(min(youngest + amount, NO_LIMIT), *older))


@dataclass(frozen=True, slots=True)
class Ledger:
    """One token of one wallet."""

    caps: Caps = Caps(0, 0, 0, 0)
    open: int = 0
    windows: tuple[Window, ...] = tuple(Window(seconds) for seconds in WINDOWS.values())

    def usage(self, now: int) -> Usage:
        return Usage(self.open, *(window.spent(now) for window in self.windows))

    def commit(self, amount: int) -> Ledger:
        """Once `caps.excess` has found nothing."""
        return replace(self, open=self.open + amount)

    def release(self, committed: int, spent: int, now: int) -> Ledger:
        windows = tuple(window.spend(spent, now) if spent else window for window in self.windows)
        return replace(self, open=self.open - committed, windows=windows)
