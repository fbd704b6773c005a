"""What a stream owes at any second: the Python twin of `contracts/modules/accrual.vy` and `streams.vy`.

With `f(s) = ceil(rate * s / 1e6)` a stream has cost `f(t - start)` by the second `t`; what is due between two
seconds is the difference of two such values. Everything is an integer: amounts in base units of the token,
rates in base units x 1e6 per second, times in seconds since 1970 as blocks carry them.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MAX_RATE", "MAX_TIME", "MIN_SECONDS", "RATE_SCALE", "StreamState", "between", "flow", "pack", "unpack"]

RATE_SCALE = 10**6
"""A rate of `RATE_SCALE` is one base unit per second."""

MIN_SECONDS = 1
"""Seconds that are always due once a stream has opened, because several blocks may share a timestamp."""

MAX_TIME = 2**40 - 1
"""The last second at which a stream may end."""

MAX_RATE = 2**96 - 1
"""The highest rate, in base units x 1e6 per second."""


def flow(rate: int, elapsed: int) -> int:
    """What a stream costs in its first `elapsed` seconds: base units, rounded up."""
    return (rate * elapsed + RATE_SCALE - 1) // RATE_SCALE


def pack(start: int, last: int, end: int, rate: int) -> int:
    """The storage word of a stream; times in seconds, each field within its bits."""
    if not all(0 <= time <= MAX_TIME for time in (start, last, end)):
        raise ValueError("a time does not fit 40 bits")
    if not 0 <= rate <= MAX_RATE:
        raise ValueError("the rate does not fit 96 bits")
    return start | last << 40 | end << 80 | rate << 120


def unpack(word: int) -> tuple[int, int, int, int]:
    """`(start, last, end, rate)` of a storage word."""
    return word & MAX_TIME, word >> 40 & MAX_TIME, word >> 80 & MAX_TIME, word >> 120 & MAX_RATE


def between(word: int, since: int, until: int) -> int:
    """What the stream in `word` costs between two seconds, `start <= since <= until`: base units."""
    start, _, _, rate = unpack(word)
    return flow(rate, until - start) - flow(rate, since - start)


@dataclass(frozen=True, slots=True)
class StreamState:
    """A stream as the chain holds it. All zero: there is no such stream, and nothing is owed either way."""

    start: int
    """Second of the open."""
    last: int
    """Second up to which the payee has been paid."""
    end: int
    """Second up to which the deposit lasts."""
    rate: int
    """Base units x 1e6 per second."""

    @classmethod
    def from_word(cls, word: int) -> StreamState:
        """The stream that a storage word describes."""
        return cls(*unpack(word))

    @property
    def word(self) -> int:
        """The storage word that describes this stream."""
        return pack(self.start, self.last, self.end, self.rate)

    @property
    def deposit(self) -> int:
        """All that was ever paid in for the stream: base units."""
        return self.cost(self.end)

    @property
    def paid(self) -> int:
        """What the payee has received so far: base units."""
        return self.cost(self.last)

    def cost(self, at: int) -> int:
        """What the stream has cost by the second `at`, `start <= at <= end`: base units."""
        return flow(self.rate, at - self.start)

    def ended(self, now: int) -> bool:
        """Whether the deposit is used up, or the stream is gone."""
        return now >= self.end

    def stop(self, now: int) -> int:
        """The second up to which the payer is charged if the stream is stopped now."""
        return min(max(now, self.start + MIN_SECONDS), self.end)

    def withdrawable(self, now: int) -> int:
        """What the payee may take now: base units. A clock that lags behind `last` gives zero."""
        return self.cost(min(max(now, self.last), self.end)) - self.paid

    def refundable(self, now: int) -> int:
        """What the payer gets back if it stops now: base units."""
        if not self.rate:
            return 0
        return self.deposit - self.cost(self.stop(now))
