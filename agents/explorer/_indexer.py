"""Follows the chain: reads ranges of blocks, adds them to the store, and goes back where the chain was reorganised.

A range ends at a block whose hash is the same before and after its events were read. When the chain no longer has the
last block that is in, the youngest block that both know is looked for, and what came after it is undone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from agents.explorer._feed import Feed, Header
from agents.explorer._store import Store, StoreUnavailable, Tip
from penstock.chain.port import Chain
from penstock.errors import ChainError, NodeUnavailable
from penstock.types import Address, Token

SPAN = 5_000
"""Blocks read at once while catching up."""
DEPTH = 1_024
"""So many blocks may be reorganised and are put right by going back; after a deeper one all is read again."""
_OUTAGE = 15.0
"""Seconds without an answer after which the node counts as silent."""

log = structlog.get_logger("explorer.indexer")


class Indexer:
    def __init__(
        self,
        feed: Feed,
        chain: Chain,
        store: Store,
        *,
        first_block: int,
        confirmations: int = 0,
        poll: float = 1.0,
        span: int = SPAN,
        depth: int = DEPTH,
    ) -> None:
        self._feed, self._chain, self._store = feed, chain, store
        self._first_block = first_block
        self._confirmations = confirmations
        self._poll = poll
        self._span, self._depth = span, depth
        self._known: set[str] = set()
        self._answered_at = time.monotonic()
        self._listeners: list[Callable[[], None]] = []
        self.head: Header | None = None
        self.clock_ahead = 0.0
        """Seconds by which the chain's time is ahead of ours, when its head was last seen."""

    def listen(self, listener: Callable[[], None]) -> None:
        """Call it after each change of the store."""
        self._listeners.append(listener)

    def trouble(self) -> str:
        """Why the store may be out of date; empty where it is not."""
        return "the node does not answer" if time.monotonic() - self._answered_at > _OUTAGE else ""

    async def run(self) -> None:
        """Follow the chain until cancelled; outages of the node are waited for."""
        failing = ""
        while True:
            try:
                await self.sync()
                if failing:
                    log.info("going on")
                failing = ""
            except (ChainError, StoreUnavailable) as error:
                if str(error) != failing:
                    log.warning("cannot go on", error=str(error))
                failing = str(error)
            await asyncio.sleep(self._poll)

    async def sync(self, progress: Callable[[Tip, int], None] = lambda tip, target: None) -> Tip | None:
        """Read on to the head, less the confirmations; the last block that is in then. ChainError where the node does
        not let us."""
        head = await self._feed.head()
        if self.head is None or head.hash != self.head.hash:
            self.clock_ahead = head.timestamp - time.time()
        self.head = head
        tip = await self._rewind(await self._store.tip(), head)
        target = head.number - self._confirmations
        while (number := tip.number if tip else self._first_block - 1) < target:
            last = min(number + self._span, target)
            before = await self._header(last, head)
            events = await self._feed.events(number + 1, last, await self._store.wallets())
            if (await self._header(last, None)).hash != before.hash:
                break  # the chain moved under us: the next round looks again
            reached = Tip(last, before.hash, before.timestamp)
            if not await self._store.append(tip, events, reached, undoable_from=head.number - self._depth):
                tip = await self._store.tip()  # another process fills the same store
                continue
            tip = reached
            await self._learn_tokens({str(e.values["token"]) for e in events if "token" in e.values})
            await self._learn_tokens({str(e.values["terms"]["token"]) for e in events if "terms" in e.values})
            progress(reached, target)
            if events:
                self._tell()
        self._answered_at = time.monotonic()
        return tip

    async def _header(self, number: int, head: Header | None) -> Header:
        if head is not None and head.number == number:
            return head
        found = await self._feed.block(number)
        if found is None:
            raise NodeUnavailable(f"the node no longer has block {number}: asking again")
        return found

    async def _rewind(self, tip: Tip | None, head: Header) -> Tip | None:
        """Undo the blocks that the chain no longer has. The last block that is in then."""
        if tip is None or (head.number, head.hash) == (tip.number, tip.hash):
            return tip
        if (head.number, head.parent_hash) == (tip.number + 1, tip.hash):
            return tip
        (found,) = await self._feed.hashes([tip.number])
        if found == tip.hash:
            return tip
        ancestor = await self._ancestor(head)
        if ancestor is not None and found is None and ancestor.number == await self._youngest(head.number):
            # Another node behind the same address lags; it does not contradict us.
            raise NodeUnavailable(f"the node is at block {head.number}, {tip.number} was seen before: waiting for it")
        if not await self._store.rewind(tip, ancestor):
            return await self._store.tip()
        log.warning(
            "the chain was reorganised", from_block=tip.number, back_to=ancestor.number if ancestor else "the start"
        )
        self._tell()
        return ancestor

    async def _ancestor(self, head: Header) -> Tip | None:
        """The youngest recorded block that the chain still has."""
        recorded = [one for one in await self._store.recorded() if one[0] <= head.number]
        for at in range(0, len(recorded), 100):
            part = recorded[at : at + 100]
            hashes = await self._feed.hashes([number for number, _ in part])
            for (number, block_hash), now in zip(part, hashes, strict=True):
                if now == block_hash:
                    block = await self._feed.block(number)
                    if block is not None and block.hash == block_hash:
                        return Tip(number, block_hash, block.timestamp)
        return None

    async def _youngest(self, below: int) -> int | None:
        return next((number for number, _ in await self._store.recorded() if number <= below), None)

    async def _learn_tokens(self, addresses: set[str]) -> None:
        """Ask tokens that were not met before for their symbols and decimals, once a process."""
        for one in sorted(addresses - self._known):
            try:
                found = await self._chain.token(Address(one))
            except NodeUnavailable:
                continue  # asked again when it is met again
            except ChainError:
                found = Token(Address(one), f"{one[:8]}…", 0)
            shown = "".join(c for c in found.symbol if c.isprintable())[:12] or f"{one[:8]}…"
            await self._store.add_tokens([Token(found.address, shown, found.decimals)])
            self._known.add(one)

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()
