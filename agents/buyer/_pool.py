"""Sessions that are open: shared by the requests that come, paid in small steps, closed when nobody uses them."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from agents.buyer._policy import Policy
from penstock.consumer import BothSession, ChannelSession, Consumer, Listing, Session
from penstock.errors import (
    AnswerCut,
    CapExceeded,
    InsufficientFunds,
    NodeUnavailable,
    PenstockError,
    StreamLeftOpen,
    TransactionLost,
)
from penstock.types import OfferId, StreamId

AnySession = Session | ChannelSession  # a BothSession is a ChannelSession
_T = TypeVar("_T")
_LOOK_SECONDS = 0.5
_TRIES = 2
_AGAIN_SECONDS = 30.0
"""Until what could not be closed is tried again."""


@dataclass(eq=False)
class Held:
    """An open session."""

    listing: Listing
    session: AnySession
    idle_since: float
    """On the event loop's clock."""
    users: int = 0
    served: int = 0
    """Answers that have begun."""
    attributed: int = 0
    """Of its cost, what purchases have been told: base units."""
    bad: PenstockError | None = None
    """Why nothing more is asked of it."""
    stuck: bool = False
    """Its stream could not be topped up: it is used to its end, and no longer."""
    topping_up: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def stream(self) -> Session | BothSession | None:
        """What pays for time, if anything does."""
        return self.session if isinstance(self.session, Session | BothSession) else None

    @property
    def channel(self) -> ChannelSession | None:
        """What pays for tokens, if anything does."""
        return self.session if isinstance(self.session, ChannelSession) else None

    @property
    def id(self) -> StreamId:
        return self.channel.channel if self.channel else self.session.stream  # type: ignore[union-attr]

    @property
    def start(self) -> int:
        """Of the stream, in Unix seconds of the chain; 0 without one."""
        return self.stream.start if isinstance(self.stream, Session) else self.session.start

    def spent(self) -> int:
        """So far: base units."""
        time = self.stream.spent() if self.stream else 0
        return time + (self.channel.owed if self.channel else 0)

    def attribute(self) -> int:
        """What it has cost since the last call: base units."""
        spent = max(self.spent(), self.attributed)
        cost, self.attributed = spent - self.attributed, spent
        return cost


class Pool:
    """`opened` hears how many seconds each opening took."""

    def __init__(
        self,
        consumer: Consumer,
        policy: Policy,
        *,
        warn: Callable[[str], None],
        opened: Callable[[Listing, float], None],
    ) -> None:
        self._consumer, self._policy, self._warn, self._opened = consumer, policy, warn, opened
        self._held: dict[OfferId, list[Held]] = defaultdict(list)
        self._doors: dict[OfferId, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._left: dict[StreamId, tuple[bool, float]] = {}
        """Those that could not be closed: whether it is a channel, and when to try again."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._keeper: asyncio.Task[None] | None = None

    # --- what a request uses ---

    async def lease(self, listing: Listing, tokens: tuple[int, int]) -> Held:
        """A session for one answer of so many prompt and completion tokens at most; `release` must follow. Raises
        what `Consumer.session` does on entering. Cancelled, it still opens, for whoever comes next."""
        task = self._spawn(self._lease(listing, tokens))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(self._unwanted)
            raise

    def release(self, held: Held, bad: PenstockError | None = None) -> None:
        """The answer is over. `bad`: nothing more is asked of this session."""
        held.users -= 1
        held.idle_since = asyncio.get_running_loop().time()
        held.bad = held.bad or bad
        if held.bad is not None and not held.users:
            self._spawn(self._close(held))

    def is_open(self, offer: OfferId) -> bool:
        """Whether an answer can begin without anything being opened first."""
        return any(self._usable(held) for held in self._held.get(offer, ()))

    async def aclose(self) -> None:
        """Close all. StreamLeftOpen where one could not be."""
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
        while self._tasks:
            await asyncio.wait(self._tasks)
        await asyncio.gather(*(self._close(held) for row in list(self._held.values()) for held in list(row)))
        for id in list(self._left):
            await self._close_again(id)
        if self._left:
            id = next(iter(self._left))
            raise StreamLeftOpen(
                id,
                f"{len(self._left)} streams or channels could not be closed, {id[:10]} among them: `penstock recover` "
                "tries again",
                locked=0,
                until=0,
            )

    # --- opening ---

    async def _lease(self, listing: Listing, tokens: tuple[int, int]) -> Held:
        try:
            return await self._lease_as_it_is(listing, tokens)
        except (CapExceeded, InsufficientFunds):
            # What idle sessions hold counts in full: give it back, and try once more.
            idle = [held for row in self._held.values() for held in row if not held.users]
            if not idle:
                raise
            await asyncio.gather(*(self._close(held) for held in idle))
            return await self._lease_as_it_is(listing, tokens)

    async def _lease_as_it_is(self, listing: Listing, tokens: tuple[int, int]) -> Held:
        async with self._doors[listing.offer.id]:
            row = self._held[listing.offer.id]
            held = next((one for one in row if self._usable(one)), None)
            if held is None:
                held = await self._open(listing, tokens)
                row.append(held)
            held.users += 1
        try:
            await self._cover(held, tokens)
        except BaseException:
            self.release(held)
            raise
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep())
        return held

    def _usable(self, held: Held) -> bool:
        if held.bad is not None or held.users >= self._policy.answers_per_session:
            return False
        return not held.stream or held.stream.end - self._consumer.now() > self._policy.margin_seconds

    async def _open(self, listing: Listing, tokens: tuple[int, int]) -> Held:
        consumer, terms = self._consumer, listing.offer.terms
        began = asyncio.get_running_loop().time()
        coins = await consumer.chain.native_balance(consumer.sender)
        # Whoever has no gas cannot top up: then the sizes are those that the provider opens for us.
        small = coins >= consumer.gas_reserve
        seconds = self._policy.step_seconds if small else None
        deposit = self._deposit(listing, tokens) if small else None
        session: AnySession
        if terms.by_second and terms.by_token:
            session = consumer.both_session(listing, duration=seconds, deposit=deposit)
        elif terms.by_second:
            session = consumer.session(listing, duration=seconds)
        else:
            session = consumer.channel_session(listing, deposit=deposit)
        await session.__aenter__()
        now = asyncio.get_running_loop().time()
        self._opened(listing, now - began)
        return Held(listing, session, now)

    def _deposit(self, listing: Listing, tokens: tuple[int, int]) -> int:
        """For this answer and a few like it: base units."""
        return max(1, self._policy.step_answers * listing.offer.terms.owed(*tokens))

    async def _cover(self, held: Held, tokens: tuple[int, int]) -> None:
        """See that the channel's deposit pays for one more answer."""
        channel = held.channel
        if channel is None:
            return
        async with held.topping_up:
            if channel.left < held.users * held.listing.offer.terms.owed(*tokens):
                await channel.top_up(self._deposit(held.listing, tokens))

    def _unwanted(self, task: asyncio.Task[Held]) -> None:
        if not task.cancelled() and task.exception() is None:
            self.release(task.result())

    # --- keeping and closing ---

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            now = asyncio.get_running_loop().time()
            for held in [one for row in self._held.values() for one in row]:
                if held.users:
                    self._top_up(held)
                elif now - held.idle_since >= self._patience(held):
                    self._spawn(self._close(held))
            for id, (_, again_at) in list(self._left.items()):
                if now >= again_at:
                    self._left[id] = (self._left[id][0], now + _AGAIN_SECONDS)
                    self._spawn(self._close_again(id))

    def _patience(self, held: Held) -> float:
        """Seconds that nobody uses it."""
        return self._policy.idle_seconds if held.stream else self._policy.idle_channel_seconds

    def _top_up(self, held: Held) -> None:
        stream = held.stream
        if stream is None or held.stuck or held.bad is not None or held.topping_up.locked():
            return
        if stream.end - self._consumer.now() <= self._policy.margin_seconds:
            self._spawn(self._extend(held, stream))

    async def _extend(self, held: Held, stream: Session | BothSession) -> None:
        async with held.topping_up:
            if stream.end - self._consumer.now() > self._policy.margin_seconds:
                return
            try:
                await stream.extend(self._policy.step_seconds)
            except (NodeUnavailable, TransactionLost) as error:
                self._warn(f"stream {stream.stream[:10]} is not topped up, and will be tried again: {error}")
            except PenstockError as error:
                held.stuck = True
                self._warn(f"stream {stream.stream[:10]} is not topped up, and ends when it is used up: {error}")

    async def _close(self, held: Held) -> None:
        row = self._held[held.listing.offer.id]
        if held not in row:
            return
        row.remove(held)
        error = held.bad
        if isinstance(error, AnswerCut):
            await self._catch_up(held)
        try:
            await held.session.__aexit__(None if error is None else type(error), error, None)
        except StreamLeftOpen as problem:
            self._warn(str(problem))
        self._note_if_open(held)

    async def _catch_up(self, held: Held) -> None:
        """The receipt of what came before an answer broke off says whose part was whose: it is there when the provider
        has noticed."""
        for _ in range(_TRIES):
            with suppress(PenstockError):
                if await held.session.receipts.catch_up():
                    return
            await asyncio.sleep(_LOOK_SECONDS)

    def _note_if_open(self, held: Held) -> None:
        """Whatever the way out said, the journal knows."""
        again_at = asyncio.get_running_loop().time() + _AGAIN_SECONDS
        unfinished = {record.id for record in self._consumer.journal.unfinished()}
        channels = {record.id for record in self._consumer.journal.unfinished_channels()}
        if held.id in channels:
            self._left[held.id] = (True, again_at)
        elif held.id in unfinished:
            self._left[held.id] = (False, again_at)

    async def _close_again(self, id: StreamId) -> None:
        is_channel, _ = self._left[id]
        try:
            await (self._consumer.stop_channel(id) if is_channel else self._consumer.stop(id))
        except PenstockError as error:
            self._warn(str(error))
            return
        self._left.pop(id, None)

    def _spawn(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Work that is done before the pool is closed. Whoever waits for it hears of its errors, too."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()
