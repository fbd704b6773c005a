"""What the chain says about the licences of some products, kept at hand: no call of a skill waits for a node.

Follows events as `provider.projection` does: ranges that end at a block whose hash is checked before and after, and
back to the youngest block that both know where the chain was reorganised.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress

import structlog

from penstock.chain.port import Chain
from penstock.errors import ChainError
from penstock.licence_books import LicenceBooks
from penstock.licences import (
    AutoChargeChanged,
    Licence,
    LicenceEvent,
    LicenceId,
    Licensed,
    ProductEvent,
    ProductId,
    SessionKeyChanged,
)
from penstock.types import Address, Block
from provider.reorgs import common_block
from provider.skills.store import SkillStore

log = structlog.get_logger("provider.licences")

_SPAN = 5_000
_SAMPLES = 16


class Licences:
    """All licences of some products. `load` and one `sync` come first; `run` keeps it true."""

    def __init__(
        self,
        chain: Chain,
        store: SkillStore,
        products: Iterable[ProductId],
        clock: Callable[[], float],
        *,
        first_block: int,
        confirmations: int,
        poll_seconds: float,
        outage_seconds: float,
    ) -> None:
        self._chain, self._store, self._clock = chain, store, clock
        self.products = frozenset(products)
        self._first_block, self._confirmations = first_block, confirmations
        self._poll_seconds, self._outage_seconds = poll_seconds, outage_seconds
        self.books = LicenceBooks()
        self._tip: tuple[int, str] | None = None
        self._head: Block | None = None
        self._offsets: deque[float] = deque(maxlen=_SAMPLES)
        self._offset_is_guess = True
        self._answered_at = float("-inf")
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()

    # --- what it tells ---

    @property
    def known(self) -> dict[LicenceId, Licence]:
        """Of our products."""
        return self.books.licences

    def now(self) -> int:
        """The chain's time, estimated; never before its head's."""
        estimate = self._clock() + max(self._offsets, default=0.0)
        return int(max(estimate, self._head.timestamp) if self._head else estimate)

    def held(self, licensee: Address, product: ProductId) -> Licence | None:
        """The licence of an account that is good now; None where there is none."""
        return self.books.held(licensee, product, self.now())

    def trouble(self) -> str | None:
        """Why this may be out of date, or None."""
        if time.monotonic() - self._answered_at > self._outage_seconds:
            return "the node does not answer"
        return None

    @property
    def block(self) -> int:
        """The last block whose events are in."""
        return self._tip[0] if self._tip else self._first_block - 1

    # --- how it follows the chain ---

    async def load(self) -> None:
        """What was known when the process ended."""
        await self._store.watch(self.products)
        blocks = await self._store.blocks()
        self._tip = blocks[0] if blocks else None
        self._apply(await self._store.events())

    async def run(self) -> None:
        """Follow the chain until cancelled."""
        failing = False
        while True:
            try:
                await self.sync()
                failing = False
            except ChainError as error:
                if not failing:
                    log.warning("cannot follow the licences", error=str(error))
                failing = True
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll_seconds):
                    await self._wake.wait()
            self._wake.clear()

    async def sync(self) -> None:
        """Read all blocks up to the head, less the confirmations. ChainError where the node does not let us."""
        async with self._lock:
            head = await self._chain.head()
            await self._rewind(head)
            self._measure(head)
            target = head.number - self._confirmations
            while self.block < target:
                last = min(self.block + _SPAN, target)
                before = head if last == head.number else await self._chain.block(last)
                events = await self._chain.licence_events(self.block + 1, last)
                after = await self._chain.block(last)
                if before is None or after is None or after.hash != before.hash:
                    break  # the chain moved under us: the next round looks again
                ours = self._ours(events)
                await self._store.append_events(ours, last, before.hash)
                self._apply(ours)
                self._tip = (last, before.hash)
            self._answered_at = time.monotonic()

    def _measure(self, head: Block) -> None:
        """Compare the clocks at a head not seen before. How old the first one is nobody knows: until the next one the
        chain's time is at least ours."""
        if self._head is not None and self._head.hash == head.hash:
            return
        sample = head.timestamp - self._clock()
        if self._offset_is_guess and self._offsets:
            self._offsets.clear()
            self._offset_is_guess = False
        self._offsets.append(max(sample, 0.0) if self._offset_is_guess else sample)
        self._head = head

    async def _rewind(self, head: Block) -> None:
        """Forget the blocks that the chain no longer has."""
        if self._tip is None:
            return
        ancestor = await common_block(self._chain, self._tip, head, self._store.blocks, first_block=self._first_block)
        if ancestor is None:
            return
        number, _ = self._tip
        await self._store.rewind(ancestor)
        blocks, events = await self._store.blocks(), await self._store.events()
        self._tip = blocks[0] if blocks else None
        self.books = LicenceBooks()
        self._apply(events)
        self._offsets.clear()
        self._offset_is_guess = True
        log.warning("the chain was reorganised", back_to=ancestor, from_block=number)

    def _ours(self, events: Iterable[LicenceEvent]) -> list[LicenceEvent]:
        """All about products, which are made of each other; of licences those to ours."""
        licences = set(self.known)
        found = []
        for event in events:
            if isinstance(event, ProductEvent):
                ours = True
            elif isinstance(event, SessionKeyChanged | AutoChargeChanged):
                ours = event.licence in licences
            else:
                ours = event.product in self.products
                if ours and isinstance(event, Licensed):
                    licences.add(event.licence)
            if ours:
                found.append(event)
        return found

    def _apply(self, events: Iterable[LicenceEvent]) -> None:
        for event in events:
            self.books.apply(event)
