"""Who has to wait, and how often anybody may ask: a queue in front of the engines, and buckets of requests."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable

from provider.errors import ApiError

_BUCKETS_KEPT = 10_000


class Queue:
    """So many answers run at once; the rest waits its turn, those that pay for their time first."""

    def __init__(self, most: int, length: int, seconds: float) -> None:
        """`most` running at once, 0: any number. `length` waiting at most, each for so many `seconds` at most."""
        self._most, self._length, self._seconds = most, length, seconds
        self._running = 0
        self._waiting: tuple[deque[asyncio.Future[None]], ...] = (deque(), deque())

    @property
    def waiting(self) -> int:
        return sum(not turn.done() for line in self._waiting for turn in line)

    async def enter(self, first: bool) -> float:
        """Wait for a turn; `leave` must follow. `first`: before those that are not. How long that took; ApiError 503
        where the queue is full or the wait too long."""
        if not self._most or (self._running < self._most and not self.waiting):
            self._running += 1
            return 0.0
        if self.waiting >= self._length:
            raise ApiError(503, "queue_full", "too many requests wait already: try again shortly", retry_after=2)
        began = time.monotonic()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[not first].append(turn)
        try:
            async with asyncio.timeout(self._seconds):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self.leave()  # it was given in the same moment
            else:
                self._waiting[not first].remove(turn)
            if isinstance(error, TimeoutError):
                message = f"no turn at the engine within {self._seconds:g} s: try again, or go elsewhere"
                raise ApiError(503, "queue_timeout", message, retry_after=5) from None
            raise
        return time.monotonic() - began

    def leave(self) -> None:
        """The turn goes to the next."""
        for line in self._waiting:
            while line:
                turn = line.popleft()
                if not turn.done():
                    turn.set_result(None)
                    return
        self._running -= 1


class Buckets:
    """So many requests a minute for each name, and as many at once; names that were long silent are forgotten."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        """0: any number."""
        self._per_minute, self._clock = per_minute, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str) -> None:
        """ApiError 429 where there were too many."""
        if not self._per_minute:
            return
        now = self._clock()
        left, at = self._left.pop(name, (float(self._per_minute), now))
        left = min(self._per_minute, left + (now - at) * self._per_minute / 60)
        enough = left >= 1
        self._left[name] = (left - 1 if enough else left, now)
        if len(self._left) > _BUCKETS_KEPT:
            self._left.popitem(last=False)
        if not enough:
            raise ApiError(
                429,
                "rate_limited",
                f"more than {self._per_minute} requests a minute: slow down",
                retry_after=max(1, round(60 / self._per_minute)),
            )
