"""What is new in the store, told to whoever listens, as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from agents.explorer import _queries as queries
from agents.explorer._store import Store, StoreUnavailable, Tip

LISTENERS = 200
"""At the same time."""
_BEHIND = 1_000
"""News that a listener may leave unread; then it is let go, and may come again and ask for the rest."""


@dataclass(frozen=True, slots=True)
class News:
    kind: str
    """block, event, or reorg: what was told of later blocks is no longer so, ask again."""
    seq: int
    """The last event's that was told."""
    data: dict[str, Any]


class TooMany(Exception):
    """Of those who listen."""


class Live:
    """`run` it beside whatever fills the store, in this process or another."""

    def __init__(self, store: Store, *, poll: float = 0.5) -> None:
        self._store, self._poll = store, poll
        self._queues: set[asyncio.Queue[News | None]] = set()
        self._wake = asyncio.Event()
        self.tip: Tip | None = None
        self.seq = 0

    def poke(self) -> None:
        """Look now: the store has changed."""
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.look()
            except StoreUnavailable:
                await asyncio.sleep(1)  # whoever fills the store complains
            try:
                async with asyncio.timeout(self._poll):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()

    async def look(self) -> None:
        """Tell what is new since the last look."""
        before = self.tip
        (tip, seq), gone = await self._store.read(
            lambda c: (queries.newest(c), before is not None and queries.is_gone(c, before))
        )
        if tip == before:
            return
        if before is None:
            self.seq = seq
        elif gone or tip is None or tip.number <= before.number or seq < self.seq:
            self.seq = seq
            self._tell(News("reorg", seq, {"block": tip.number if tip else None}))
        self.tip = tip
        while self.seq < seq:
            rows = await self._store.read(partial(queries.events_since, seq=self.seq))
            if not rows:
                break
            for row in rows:
                self.seq = row["seq"]
                self._tell(News("event", row["seq"], row))
        if tip is not None:
            self._tell(News("block", self.seq, {"block": tip.number, "hash": tip.hash, "timestamp": tip.timestamp}))

    def _tell(self, news: News) -> None:
        for queue in list(self._queues):
            if queue.qsize() >= _BEHIND:
                self._queues.discard(queue)
                queue.put_nowait(None)
            else:
                queue.put_nowait(news)

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[asyncio.Queue[News | None]]:
        """A queue of news; None in it is the last. TooMany where others listen already."""
        if len(self._queues) >= LISTENERS:
            raise TooMany
        queue: asyncio.Queue[News | None] = asyncio.Queue()
        self._queues.add(queue)
        try:
            yield queue
        finally:
            self._queues.discard(queue)

    def hang_up(self) -> None:
        """Let all listeners go: the process ends."""
        for queue in self._queues:
            queue.put_nowait(None)
        self._queues.clear()
