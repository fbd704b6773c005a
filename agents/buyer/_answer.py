"""One answer, as the client gets it, whoever gave which part of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from types import TracebackType
from typing import Any

from agents.buyer._attempt import Attempt, is_used_up
from agents.buyer._delivered import Chunk, Delivered
from agents.buyer._dispatch import Dispatcher
from agents.buyer._types import Job, Purchase
from penstock.errors import AnswerCut, GatewayError, NoOffer, NotFound, PenstockError
from penstock.types import Address
from penstock.wire.completions import EMBEDDINGS, Assembly

NOT_CONTINUED = "not_continued"
"""The code of an answer that broke off, and whose rest cannot be asked for."""


class Answer:
    """Take its `chunks`, or the `whole`, once. As a context manager it hangs up when left."""

    def __init__(self, dispatcher: Dispatcher, job: Job) -> None:
        self.purchases: list[Purchase] = []
        """One for each provider that took part; complete at the end."""
        self._dispatcher, self._job = dispatcher, job
        self._attempt: Attempt | None = None
        self._first: list[Chunk] = []
        self._delivered = Delivered(job)
        self._failed: set[Address] = set()
        self._resumed: set[Address] = set()
        self._model = job.wish.model or ""

    @property
    def model(self) -> str:
        return self._model

    async def begin(self) -> None:
        """The first part; what `Buyer.start` raises."""
        await self._ask()

    async def chunks(self) -> AsyncIterator[Chunk]:
        """OpenAI's chunks of a stream; the last one has the usage, and no choices. AnswerCut where the answer ends
        early and nobody could go on with it: what went before is good."""
        try:
            while True:
                attempt = self._attempt
                assert attempt is not None
                error: GatewayError | None = None
                for chunk in self._first:
                    if (told := self._delivered.take(chunk)) is not None:
                        yield told
                try:
                    while (found := await attempt.next()) is not None:
                        if (told := self._delivered.take(found)) is not None:
                            yield told
                except GatewayError as problem:
                    error = problem
                self._delivered.part_ended(attempt.usage)
                await self._end(error)
                if error is None or self._delivered.finished:
                    break
                if self._delivered.exhausted:
                    yield self._delivered.cut_short(self._model)
                    break
                await self._go_on(attempt, error)
            last = self._delivered.last(self._model)
            self._dispatcher.answered(self._model, last["usage"]["completion_tokens"])
            yield last
        finally:
            await self._end(None, "stopped")

    async def whole(self) -> dict[str, Any]:
        """In OpenAI's shape of an answer that does not stream. Since the client has nothing of it before it has all,
        one that cannot be continued is begun anew by another provider."""
        if self._job.path == EMBEDDINGS:
            return await self._vectors()
        while True:
            assembly = Assembly(self._job.path, self.model)
            try:
                async for chunk in self.chunks():
                    assembly.add(chunk)
                return assembly.answer({})
            except AnswerCut as cut:
                if cut.code != NOT_CONTINUED:
                    raise
            self._delivered = Delivered(self._job)
            await self._ask()

    async def aclose(self) -> None:
        """Hang up."""
        await self._end(None, "stopped")

    async def __aenter__(self) -> Answer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _vectors(self) -> Chunk:
        """Embeddings came whole, in the first part."""
        (found,) = self._first
        self._dispatcher.answered(self._model, 0)
        await self._end(None)
        return found

    async def _go_on(self, attempt: Attempt, error: GatewayError) -> None:
        """With another provider of the same model, from where the answer broke off."""
        provider = attempt.candidate.provider
        # Once more where it was our money that ended; nobody who fails twice is asked a third time.
        if not is_used_up(error) or provider in self._resumed:
            self._failed.add(provider)
        self._resumed.add(provider)
        if self._delivered.rest() is None:
            raise AnswerCut(
                NOT_CONTINUED,
                f"{error}; this answer cannot be continued by another provider (tools, reasoning, several choices or "
                "constrained output): ask again",
            ) from error
        try:
            await self._ask()
        except (GatewayError, NoOffer, NotFound) as problem:
            raise AnswerCut("nobody_continues", f"{error}; and nobody could go on with it: {problem}") from problem

    async def _ask(self) -> None:
        request = self._delivered.rest()
        assert request is not None
        # The rest is for the same model, whatever was wished.
        wish = replace(self._job.wish, model=self._model or None)
        goes_on = bool(self._delivered.text)
        self._attempt, self._first = await self._dispatcher.begin(
            wish, request, self._failed, self.purchases, goes_on=goes_on
        )
        self._model = self._attempt.candidate.listing.offer.terms.model

    async def _end(self, error: PenstockError | None, outcome: str = "") -> None:
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            await self._dispatcher.end(attempt, error, outcome, self.purchases)
