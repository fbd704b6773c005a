"""Who answers: one provider after another is asked, until one begins."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from agents.buyer._attempt import Attempt, is_clients
from agents.buyer._choice import Candidate, Chooser
from agents.buyer._delivered import Chunk, Request
from agents.buyer._memory import Memory
from agents.buyer._policy import Policy
from agents.buyer._pool import Pool
from agents.buyer._types import Purchase, Wish
from penstock.errors import (
    AllFailed,
    ConfigError,
    GatewayError,
    GatewayRefused,
    NoOffer,
    NotFound,
    OfferMismatch,
    PenstockError,
    StreamLeftOpen,
)
from penstock.types import Address
from penstock.wire.completions import EMBEDDINGS, NO_EMBEDDINGS

THEIRS = (GatewayError, OfferMismatch, NotFound, ConfigError, StreamLeftOpen)
"""What goes wrong with one provider, and another may do better. All else is ours: money, caps, the node."""
_SAME_FAULT = 2
"""Providers that must find fault with a request before its client is told that it is wrong."""


class Dispatcher:
    """Begins answers, and hears of their ends. `on_purchase` hears of each purchase when it is over."""

    def __init__(
        self,
        pool: Pool,
        chooser: Chooser,
        memory: Memory,
        policy: Policy,
        *,
        on_purchase: Callable[[Purchase], None],
        clock: Callable[[], float],
    ) -> None:
        self._pool, self._chooser, self._memory, self._policy = pool, chooser, memory, policy
        self._on_purchase, self._clock = on_purchase, clock
        self._no_embeddings: dict[tuple[Address, str], float] = {}
        """Who was asked for embeddings and has none, by provider and model; when to ask again, in Unix seconds."""

    async def begin(
        self, wish: Wish, request: Request, failed: set[Address], purchases: list[Purchase], *, goes_on: bool
    ) -> tuple[Attempt, list[Chunk]]:
        """Have the first provider that answers begin; those that fail join `failed`. `goes_on`: it is the rest of an
        answer, and who finds fault with it finds fault with us."""
        size = len(msgspec.json.encode(request.body))
        row = await self._chooser.candidates(wish, size, request.max_tokens, without=failed)
        if request.path == EMBEDDINGS and not (row := [one for one in row if self._may_embed(one)]):
            raise _nobody_embeds(wish.model)
        race = _Race(self, row, request, failed, purchases, hedge=self._policy.hedge, goes_on=goes_on)
        return await race.run()

    def _may_embed(self, candidate: Candidate) -> bool:
        name = candidate.provider, candidate.listing.offer.terms.model
        return self._no_embeddings.get(name, 0.0) <= self._clock()

    def gives_no_embeddings(self, candidate: Candidate) -> None:
        """Known for a while: an operator may change the engine."""
        until = self._clock() + self._policy.longest_aside
        self._no_embeddings[candidate.provider, candidate.listing.offer.terms.model] = until

    def attempt(self, candidate: Candidate) -> Attempt:
        return Attempt(self._pool, self._memory, self._policy, candidate, self._clock)

    async def end(self, attempt: Attempt, error: BaseException | None, outcome: str, purchases: list[Purchase]) -> None:
        """An attempt is over; its purchase is told once."""
        told = attempt.purchase is not None
        await attempt.end(error, outcome)
        if attempt.purchase is not None and not told:
            purchases.append(attempt.purchase)
            self._on_purchase(attempt.purchase)

    def answered(self, model: str, completion_tokens: int) -> None:
        """A request has been answered in full."""
        self._memory.answered(model, completion_tokens, longest_gap=self._policy.idle_seconds)


class _Race:
    """One candidate after another, each when the one before has failed; with a hedge, also when it is slow."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        row: list[Candidate],
        request: Request,
        failed: set[Address],
        purchases: list[Purchase],
        *,
        hedge: float,
        goes_on: bool,
    ) -> None:
        self._dispatcher, self._row, self._request = dispatcher, row, request
        self._failed, self._purchases, self._hedge, self._goes_on = failed, purchases, hedge, goes_on
        self._running: dict[asyncio.Task[list[Chunk]], Attempt] = {}
        self._why: dict[str, PenstockError] = {}
        self._faults: list[PenstockError] = []
        self._won = False

    async def run(self) -> tuple[Attempt, list[Chunk]]:
        waiting = iter(self._row)
        try:
            while True:
                candidate = next(waiting, None)
                if candidate is not None:
                    attempt = self._dispatcher.attempt(candidate)
                    self._running[asyncio.create_task(attempt.begin(self._request))] = attempt
                if not self._running:
                    raise self._all_failed()
                more = candidate is not None and self._hedge > 0 and len(self._running) == 1
                done, _ = await asyncio.wait(
                    self._running, timeout=self._hedge if more else None, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    attempt = self._running.pop(task)
                    error = task.exception()
                    if error is None:
                        self._won = True
                        return attempt, task.result()
                    await self._lost(attempt, error)
        finally:
            await self._call_off()

    async def _lost(self, attempt: Attempt, error: BaseException) -> None:
        await self._dispatcher.end(attempt, error, "", self._purchases)
        if not isinstance(error, THEIRS):
            raise error
        self._failed.add(attempt.candidate.provider)
        self._why[attempt.candidate.provider] = error
        if _gives_none(error):
            self._dispatcher.gives_no_embeddings(attempt.candidate)
        elif is_clients(error) and not self._goes_on:
            self._faults.append(error)
            if len(self._faults) == _SAME_FAULT:
                raise self._faults[0]

    def _all_failed(self) -> PenstockError:
        if self._why and all(map(_gives_none, self._why.values())):
            return _nobody_embeds(self._row[0].listing.offer.terms.model)
        if len(self._faults) == len(self._why) and self._faults:
            return self._faults[0]
        if len(self._why) == 1:
            return next(iter(self._why.values()))
        shown = "; ".join(str(error) for error in list(self._why.values())[:3])
        return AllFailed(f"none of {len(self._why)} providers answered ({shown}): try again later", self._why)

    async def _call_off(self) -> None:
        """Those that were slower, or all where the client has left."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        for attempt in self._running.values():
            await self._dispatcher.end(attempt, None, "beaten" if self._won else "stopped", self._purchases)


def _gives_none(error: BaseException) -> bool:
    return isinstance(error, GatewayRefused) and error.code == NO_EMBEDDINGS


def _nobody_embeds(model: str | None) -> NoOffer:
    return NoOffer(f"nobody who offers {model} now gives embeddings: name a model that is made for them")
