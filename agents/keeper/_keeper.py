"""The loop: follow, decide, act, wait; for ever, or once."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from agents.keeper._feeds import Feeds
from agents.keeper._follower import Follower, Progress
from agents.keeper._ledger import JobState, Ledger, Totals
from agents.keeper._planner import Action, Policy, plan
from agents.keeper._reports import Reports
from agents.keeper._sender import Landed, News, Sender, SenderPolicy, SendingChain
from penstock.chain.calls import Prepared
from penstock.chain.port import Account
from penstock.errors import ChainError, InsufficientFunds, NoContract, NodeUnavailable, Reverted
from penstock.types import NATIVE, Address, Token

_AT_ONCE = 50
"""Payees asked about at the same time."""
_REST = 30.0
"""Seconds for which something is left alone that does not pay yet, or was refused; what is refused again, twice as
long each time, up to `_LONGEST_REST`: a third of the time that a payee has when a channel's payer leaves."""
_LONGEST_REST = 300.0
_SOON = 0.1
"""Seconds between two looks at what is under way, where nothing else is to be done."""
_OUTAGE_PAUSES = (0.5, 30.0)
"""Seconds between two tries to reach a node: at first, and at most."""


@dataclass(frozen=True, slots=True)
class KeeperPolicy:
    planning: Policy = field(default_factory=Policy)
    sending: SenderPolicy = field(default_factory=SenderPolicy)
    poll: float = 1.0
    """Seconds between two looks at the chain."""
    min_ahead: int = 60
    """Standing orders that look fewer seconds ahead are refused."""
    vouchers: Path | None = None
    orders: Path | None = None
    receipts: Path | None = None


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a trial said of an action."""

    action: Action
    cost: int
    """Of its gas, in wei."""
    problem: str
    """Why it is not done; empty where it is."""
    prepared: Prepared | None = None

    @property
    def profit(self) -> int | None:
        """In wei; None where the token has no price."""
        return None if self.action.gain is None else self.action.gain - self.cost


class Observer(Protocol):
    """Who shows what the keeper does."""

    def started(self, progress: Progress, *, forgot: bool) -> None: ...

    def looked(self, progress: Progress, *, pending: int, totals: Totals) -> None: ...

    def news(self, news: News) -> None: ...

    def left_alone(self, action: Action, why: str, *, seconds: float) -> None: ...

    def bad_line(self, where: str, why: str) -> None: ...

    def outage(self, error: ChainError, *, pause: float) -> None: ...


class Keeper:
    """One account on one chain. `start` first, then `once` or `run`; `look` plans and sends nothing."""

    def __init__(
        self,
        chain: SendingChain,
        account: Account,
        ledger: Ledger,
        policy: KeeperPolicy,
        *,
        first_block: int,
        observer: Observer,
        tokens: dict[Address, Token] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._chain = chain
        self._me = account.address
        self._ledger = ledger
        self._policy = policy
        self._observer = observer
        self._clock = clock
        self._follower = Follower(chain, ledger, first_block=first_block, confirmations=policy.sending.confirmations)
        self._sender = Sender(chain, account, ledger, policy.sending, clock=clock, on_news=self._heard)
        self._feeds = Feeds(
            ledger,
            chain.stream_pay_domain,
            vouchers=policy.vouchers,
            orders=policy.orders,
            min_ahead=policy.min_ahead,
            on_bad=observer.bad_line,
        )
        self._reports = (
            Reports(chain, account, policy.receipts, policy.planning, on_bad=observer.bad_line)
            if policy.receipts
            else None
        )
        self._rests: dict[str, tuple[float, float]] = {}
        self._planned: tuple[str, int] = "", -1
        self.tokens: dict[Address, Token] = {} if tokens is None else tokens
        """Those that it had to do with."""

    @property
    def pending(self) -> int:
        """Transactions that are on their way."""
        return len(self._sender.under_way())

    def totals(self) -> Totals:
        """Of all runs with this ledger."""
        return self._ledger.totals()

    async def start(self) -> None:
        """Catch up with the chain."""
        forgot = not await self._follower.start()
        totals = self.totals()
        for token in {NATIVE, *totals.earned, *(token for _, token in totals.moved)}:
            await self._know(token)
        self._observer.started(await self._follower.advance(), forgot=forgot)

    async def look(self) -> list[Outlook]:
        """What there is to do now, in the order in which it would be done, each tried and none sent."""
        progress = await self._follower.advance()
        await self._read_feeds(progress)
        actions = await self._plan(progress)
        for action in actions:
            await self._know(action.token)
        return [await self._tried(action) for action in actions]

    async def once(self, stop: asyncio.Event, *, patience: float = 120.0) -> None:
        """Do what there is to do now, and wait until all of it is in blocks, `patience` seconds at most."""
        until = self._clock() + patience
        while True:
            sent = await self._round(stop, until)
            while self.pending and self._clock() < until and not stop.is_set():
                await _wait(stop, _SOON)
                await self._sender.check()
            # What was announced is proven in another round.
            if not sent or self._reports is None or self.pending or stop.is_set():
                break
        await self._follower.advance()

    async def run(self, stop: asyncio.Event) -> None:
        """Until told to stop; what is being sent then is sent to its end."""
        failures = 0
        while not stop.is_set():
            try:
                await self._round(stop)
            except NodeUnavailable as error:
                shortest, longest = _OUTAGE_PAUSES
                pause = min(longest, shortest * 2 ** min(failures, 10)) * random.uniform(0.75, 1)
                failures += 1
                self._observer.outage(error, pause=pause)
            else:
                pause, failures = self._policy.poll, 0
            await _wait(stop, pause)

    async def _round(self, stop: asyncio.Event, until: float = 0.0) -> bool:
        """Follow, decide, act; whether anything was sent. What is more than may be under way at once is waited for
        until then, or left."""
        progress = await self._follower.advance()
        fed = await self._read_feeds(progress)
        await self._sender.check()
        self._observer.looked(progress, pending=self.pending, totals=self.totals())
        if not progress.current or (self._planned == (progress.head.hash, self.pending) and not fed):
            return False
        sent = False
        for action in await self._plan(progress):
            while self._sender.full and self._clock() < until and not stop.is_set():
                await _wait(stop, _SOON)
                await self._sender.check()
            if self._sender.full or stop.is_set():
                break
            sent = await self._act(action) or sent
        self._planned = progress.head.hash, self.pending
        return sent

    async def _read_feeds(self, progress: Progress) -> bool:
        fed = await asyncio.to_thread(self._feeds.read, progress.head.timestamp)
        if self._reports is not None:
            fed = await asyncio.to_thread(self._reports.read, progress.head.timestamp) or fed
        return fed

    async def _plan(self, progress: Progress) -> list[Action]:
        """Twice: first as if every payee had agreed to a reward, to learn whom to ask."""
        now, gas_price = progress.head.timestamp, await self._chain.gas_price()
        busy = self._sender.marks(progress.followed) | self._resting()
        feed = self._feeds.feed(self._follower.books, now)
        asked: set[Address] = set()

        def note(payee: Address) -> bool:
            asked.add(payee)
            return False

        def planned(opted_in: Callable[[Address], bool]) -> list[Action]:
            return plan(
                self._follower.books,
                self._policy.planning,
                now=now,
                gas_price=gas_price,
                keeper=self._me,
                opted_in=opted_in,
                feed=feed,
                busy=busy,
            )

        actions = planned(note)
        if asked and (agreed := await _filtered(sorted(asked), self._chain.rewards_keepers)):
            actions = planned(agreed.__contains__)
        if self._reports is not None:
            actions += await self._reports.plan(now=now, gas_price=gas_price, busy=busy)
        return actions

    async def _act(self, action: Action) -> bool:
        """Try it, and send it where it still pays."""
        outlook = await self._tried(action)
        if outlook.problem or outlook.prepared is None:
            seconds = self._rest(action.tries, longer=outlook.prepared is None)
            self._observer.left_alone(action, outlook.problem, seconds=seconds)
            return False
        await self._know(action.token)
        await self._sender.submit(action, outlook.prepared)
        return True

    async def _tried(self, action: Action) -> Outlook:
        try:
            prepared = await self._chain.prepare(self._me, action.call)
        except (Reverted, InsufficientFunds) as error:
            return Outlook(action, action.cost, str(error))
        price = int(prepared.transaction["gasPrice"])
        cost, problem = prepared.estimate * price, ""
        if price > self._policy.sending.max_gas_price:
            problem = f"gas costs {price} wei, more than is allowed ({self._policy.sending.max_gas_price})"
        elif not action.forced and not self._policy.planning.pays(action.gain or 0, cost):
            problem = f"it brings {action.gain} wei, and its gas costs {cost} wei"
        return Outlook(action, cost, problem, prepared)

    def _rest(self, names: Sequence[str], *, longer: bool) -> float:
        """Leave something alone for a while, longer than the last time or not. For how long, in seconds."""
        _, last = self._rests.get(names[0], (0.0, 0.0))
        seconds = min(_LONGEST_REST, last * 2) if longer and last else _REST
        for name in names:
            self._rests[name] = self._clock() + seconds, seconds
        return seconds

    def _heard(self, news: News) -> None:
        if isinstance(news, Landed) and self._reports is not None:
            self._reports.landed()
        if isinstance(news, Landed) and news.job.state in (JobState.MINED, JobState.FINAL) and not news.job.succeeded:
            self._rest(news.job.marks, longer=True)
        self._observer.news(news)

    async def _know(self, token: Address) -> None:
        """Its name, for whoever shows amounts of it."""
        if token not in self.tokens:
            try:
                self.tokens[token] = await self._chain.token(token)
            except (NoContract, Reverted):
                self.tokens[token] = Token(token, token, 0)

    def _resting(self) -> set[str]:
        now = self._clock()
        # Forgotten a while after they may be tried again: whatever fails at once again rests longer.
        self._rests = {name: (at, rest) for name, (at, rest) in self._rests.items() if at + _LONGEST_REST > now}
        return {name for name, (at, _) in self._rests.items() if at > now}


async def _filtered(payees: Iterable[Address], asks: Callable[[Address], Awaitable[bool]]) -> set[Address]:
    found: set[Address] = set()
    waiting = list(payees)
    for at in range(0, len(waiting), _AT_ONCE):
        part = waiting[at : at + _AT_ONCE]
        answers = await asyncio.gather(*(asks(payee) for payee in part))
        found |= {payee for payee, answer in zip(part, answers, strict=True) if answer}
    return found


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return
