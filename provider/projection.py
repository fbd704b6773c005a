"""What the chain says about the streams and channels that pay us, kept at hand: no request waits for a node.

Events are read in ranges that end at a block whose hash is checked before and after, and stored with it.
When the chain no longer has the last block that was read, the projection walks back to the youngest block
both know, forgets what came after, and reads on. `f` is pure, so that events and a clock tell all there is
to know; while the node is silent the known end of each stream remains a bound that has been paid for.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace

import structlog

from penstock.accrual import StreamState
from penstock.chain.port import Chain
from penstock.channels import CLOSE_DELAY, ChannelState
from penstock.errors import ChainError
from penstock.events import (
    ChannelClosed,
    ChannelCloseRequested,
    ChannelEvent,
    ChannelOpened,
    ChannelSettled,
    ChannelToppedUp,
    Closed,
    Opened,
    StreamEvent,
    ToppedUp,
    Withdrawn,
)
from penstock.types import Address, Block, StreamId, StreamKey
from provider.reorgs import common_block
from provider.store import ChainEvent, Store

Clock = Callable[[], float]
"""Unix seconds by the local clock."""

log = structlog.get_logger("provider.projection")

_SPAN = 5_000
"""Blocks read at once while catching up."""
_SAMPLES = 16
"""Heads from which the offset between the chain's time and ours is taken."""


@dataclass(frozen=True, slots=True)
class LiveStream:
    """The youngest stream that was opened under an id."""

    id: StreamId
    key: StreamKey
    state: StreamState
    closed: Closed | None = None
    """How it was ended, if it was, before its deposit was used up."""
    block: int = 0
    """In which its money was last added."""

    @property
    def start(self) -> int:
        return self.state.start

    @property
    def end(self) -> int:
        """Where the money ends: block time, seconds."""
        return self.state.end if self.closed is None else self.closed.stop


@dataclass(frozen=True, slots=True)
class LiveChannel:
    """The channel of an id; there is never a second one."""

    id: StreamId
    key: StreamKey
    state: ChannelState
    closed: ChannelClosed | None = None
    block: int = 0
    """In which its money was last added."""


class Projection:
    """All streams and channels of one payee. `load` and one `sync` come first; `run` keeps it true."""

    def __init__(
        self,
        chain: Chain,
        store: Store,
        clock: Clock,
        *,
        payee: Address,
        first_block: int,
        confirmations: int,
        poll_seconds: Callable[[], float],
        outage_seconds: float,
        head_stuck_seconds: float,
        max_skew_seconds: float = 0,
    ) -> None:
        """`poll_seconds`: until the next look, asked after each."""
        self._chain, self._store, self._clock = chain, store, clock
        self._payee = payee
        self._first_block = first_block
        self._confirmations = confirmations
        self._poll_seconds = poll_seconds
        self._outage_seconds = outage_seconds
        self._head_stuck_seconds = head_stuck_seconds
        self._max_skew_seconds = max_skew_seconds
        self.streams: dict[StreamId, LiveStream] = {}
        self.channels: dict[StreamId, LiveChannel] = {}
        self.head: Block | None = None
        self._tip: tuple[int, str] | None = None
        """The last block that was read."""
        self._offsets: deque[float] = deque(maxlen=_SAMPLES)
        self._offset_is_guess = True
        self._answered_at = float("-inf")
        self._head_moved_at = float("-inf")
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._advanced = asyncio.Event()
        self._listeners: list[Callable[[set[StreamId]], None]] = []
        self._untold: set[StreamId] = set()
        """What has changed since they were told: also by a round that the node did not let come to its end."""

    # --- what it tells ---

    def now(self) -> float:
        """The chain's time, estimated: what a block that is mined now would carry. Never before the head's."""
        estimate = self._clock() + self.skew
        return max(estimate, self.head.timestamp) if self.head else estimate

    @property
    def block(self) -> int:
        """The last block whose events are in; `first_block - 1` before any."""
        return self._tip[0] if self._tip else self._first_block - 1

    def trouble(self) -> str | None:
        """Why the projection may be out of date, or None."""
        now = time.monotonic()
        if now - self._answered_at > self._outage_seconds:
            return "the node does not answer"
        if self._head_stuck_seconds and now - self._head_moved_at > self._head_stuck_seconds:
            return "the chain's head does not move"
        if self._max_skew_seconds and abs(self.skew) > self._max_skew_seconds:
            way = "ahead of" if self.skew > 0 else "behind"
            return f"the chain's clock is {abs(self.skew):.0f} s {way} this host's: set the host's by NTP"
        return None

    @property
    def silence(self) -> float:
        """Seconds since the node last answered; endless where it never did."""
        return time.monotonic() - self._answered_at

    @property
    def skew(self) -> float:
        """By how much the chain's clock is ahead of ours, as the youngest heads tell: seconds. A block is stamped
        before it is seen, so that a small negative figure is the rule."""
        return max(self._offsets, default=0.0)

    def depth(self, block: int) -> int:
        """Blocks of the chain on top of this one."""
        return max(0, self.head.number - block) if self.head else 0

    def listen(self, listener: Callable[[set[StreamId]], None]) -> None:
        """Call it with the streams that changed after each change; with all after the chain's time jumped."""
        self._listeners.append(listener)

    def poke(self) -> None:
        """Look at the chain now rather than at the next tick."""
        self._wake.set()

    async def reach(self, block: int, seconds: float) -> bool:
        """Wait until this block is in, confirmations and all. False where that takes longer."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.block < block:
                    advanced = self._advanced
                    self.poke()
                    await advanced.wait()
        return self.block >= block

    # --- how it follows the chain ---

    async def load(self) -> None:
        """What was known when the process ended."""
        self._tip = await self._store.last_block()
        self._apply(await self._store.events())

    async def run(self) -> None:
        """Follow the chain until cancelled."""
        failing = False
        while True:
            try:
                await self.sync()
                if failing:
                    log.info("the node answers again", block=self.block)
                failing = False
            except ChainError as error:
                if not failing:
                    log.warning("cannot follow the chain", error=str(error))
                failing = True
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll_seconds()):
                    await self._wake.wait()
            self._wake.clear()

    async def sync(self) -> None:
        """Read all blocks up to the head, less the confirmations. ChainError where the node does not let us."""
        async with self._lock:
            head = await self._chain.head()
            self._untold |= await self._rewind(head)
            if self._measure(head):
                self._untold |= self.streams.keys() | self.channels.keys()
            target = head.number - self._confirmations
            while self.block < target:
                last = min(self.block + _SPAN, target)
                found = await self._read(self.block + 1, last, head)
                if found is None:  # the chain moved under us: the next round looks again
                    break
                events, block_hash = found
                await self._store.append_events(events, last, block_hash)
                self._untold |= self._apply(events)
                self._tip = (last, block_hash)
            self._answered_at = time.monotonic()
        advanced, self._advanced = self._advanced, asyncio.Event()
        advanced.set()
        if self._untold:
            changed, self._untold = self._untold, set()
            for listener in self._listeners:
                listener(changed)

    async def _read(self, first: int, last: int, head: Block) -> tuple[list[ChainEvent], str] | None:
        """Events of these blocks and the last one's hash; None where the chain changed in between."""
        before = head if last == head.number else await self._chain.block(last)
        if before is None:
            return None
        events = await self._chain.events(first, last)
        after = await self._chain.block(last)
        if after is None or after.hash != before.hash:
            return None
        streams, channels = set(self.streams), set(self.channels)
        ours: list[ChainEvent] = []
        for event in events:
            if isinstance(event, Opened | ChannelOpened) and event.key.payee == self._payee:
                (streams if isinstance(event, Opened) else channels).add(event.id)
            if isinstance(event, StreamEvent):
                if event.id in streams:
                    ours.append(event)
            elif isinstance(event, ChannelEvent) and event.id in channels:
                ours.append(event)
        return ours, before.hash

    async def _rewind(self, head: Block) -> set[StreamId]:
        """Forget the blocks that the chain no longer has. Returns the streams that changed."""
        if self._tip is None:
            return set()
        ancestor = await common_block(self._chain, self._tip, head, self._store.blocks, first_block=self._first_block)
        if ancestor is None:
            return set()
        number, _ = self._tip
        touched = await self._store.rewind(ancestor)
        self._tip = await self._store.last_block()
        kept = await self._store.events(touched)
        for stream in touched:  # in one go: who asks meanwhile must not find nothing
            self.streams.pop(stream, None)
            self.channels.pop(stream, None)
        self._apply(kept)
        self._offsets.clear()
        self._offset_is_guess = True
        log.warning("the chain was reorganised", back_to=ancestor, from_block=number, streams=len(touched))
        return touched

    def _measure(self, head: Block) -> bool:
        """Compare the clocks at a head not seen before. True where the chain's time jumped."""
        if self.head is not None and self.head.hash == head.hash:
            return False
        before = self.now()
        sample = head.timestamp - self._clock()
        if not self._offsets:
            # Nobody knows how old this head is: until the next one the chain's time is at least ours.
            self._offsets.append(max(sample, 0.0))
        else:
            if self._offset_is_guess:
                self._offsets.clear()
                self._offset_is_guess = False
            self._offsets.append(sample)
        self.head = head
        self._head_moved_at = time.monotonic()
        return abs(self.now() - before) > 0.25

    def _apply(self, events: Iterable[ChainEvent]) -> set[StreamId]:
        changed = set()
        for event in events:
            if isinstance(event, ChannelEvent):
                fold_channel(self.channels, event)
            else:
                fold(self.streams, event)
            changed.add(event.id)
        return changed


def fold(streams: dict[StreamId, LiveStream], event: StreamEvent) -> None:
    """Bring the streams up to date with the next event of one of them."""
    if isinstance(event, Opened):
        state = StreamState(event.start, event.start, event.end, event.rate)
        streams[event.id] = LiveStream(event.id, event.key, state, block=event.place.block)
        return
    stream = streams[event.id]
    if isinstance(event, ToppedUp):
        stream = replace(stream, state=replace(stream.state, end=event.end))
    elif isinstance(event, Withdrawn):
        last = min(event.place.timestamp, stream.state.end)
        stream = replace(stream, state=replace(stream.state, last=last))
    else:
        stream = replace(stream, closed=event)
    streams[event.id] = stream


def fold_channel(channels: dict[StreamId, LiveChannel], event: ChannelEvent) -> None:
    """The same for channels."""
    if isinstance(event, ChannelOpened):
        opened = ChannelState(event.deposit, 0, 0, False)
        channels[event.id] = LiveChannel(event.id, event.key, opened, block=event.place.block)
        return
    channel = channels[event.id]
    state = channel.state
    match event:
        case ChannelToppedUp():
            channel = replace(channel, state=state.topped_up(event.amount))
        case ChannelSettled():
            channel = replace(channel, state=state.settled_to(event.cumulative))
        case ChannelCloseRequested():
            channel = replace(channel, state=state.requested(event.reclaimable_at - CLOSE_DELAY))
        case ChannelClosed():
            channel = replace(channel, state=state.closed(event.cumulative), closed=event)
    channels[event.id] = channel
