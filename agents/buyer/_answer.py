"""One answer, as the client gets it, whoever gave which part of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any

from agents.buyer._attempt import Attempt, Chunk
from agents.buyer._types import Job, Purchase
from penstock.errors import PenstockError
from penstock.wire.completions import Assembly


class Answer:
    """Take its `chunks`, or the `whole`. As a context manager it hangs up when left."""

    def __init__(self, job: Job, attempt: Attempt, first: list[Chunk], bought: Callable[[Purchase], None]) -> None:
        self.purchases: list[Purchase] = []
        """One for each provider that took part; complete at the end."""
        self._job, self._attempt, self._first, self._bought = job, attempt, first, bought

    @property
    def model(self) -> str:
        return self._attempt.candidate.listing.offer.terms.model

    async def chunks(self) -> AsyncIterator[Chunk]:
        """OpenAI's chunks of a stream; the last one has the usage, and no choices. PenstockErrors where the answer
        ends early and nobody could go on with it."""
        try:
            for chunk in self._first:
                yield chunk
            while (chunk := await self._attempt.next()) is not None:  # type: ignore[assignment]
                yield chunk
            await self._end(None)
        except PenstockError as error:
            await self._end(error)
            raise
        finally:
            await self._end(None, "stopped")

    async def whole(self) -> dict[str, Any]:
        """In OpenAI's shape of an answer that does not stream."""
        assembly = Assembly(self._job.path, self.model)
        async for chunk in self.chunks():
            assembly.add(chunk)
        return assembly.answer({})

    async def aclose(self) -> None:
        await self._end(None, "stopped")

    async def __aenter__(self) -> Answer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _end(self, error: BaseException | None, outcome: str = "") -> None:
        if self._attempt.purchase is None and (purchase := await self._attempt.end(error, outcome)) is not None:
            self.purchases.append(purchase)
            self._bought(purchase)
