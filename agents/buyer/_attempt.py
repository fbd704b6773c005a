"""One provider's part of an answer: a session, the pieces as they come, and in the end a purchase."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agents.buyer._policy import Policy
from agents.buyer._pool import Held, Pool
from agents.buyer._types import Purchase
from penstock.consumer import Answer, Listing, PaidAnswer, Usage
from penstock.errors import AnswerCut, GatewayRefused, PenstockError, ReceiptRefused
from penstock.wire.completions import CHAT

Chunk = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Candidate:
    """An offer, and why it was chosen."""

    listing: Listing
    why: str


class Attempt:
    """`begin` first, then `next` until it returns None or raises; `end` in any case, which may be called twice."""

    def __init__(self, pool: Pool, policy: Policy, clock: Any, candidate: Candidate) -> None:
        self.candidate = candidate
        self._pool, self._policy, self._clock = pool, policy, clock
        self._held: Held | None = None
        self._answer: Answer | PaidAnswer | None = None
        self._began_at = clock()
        self._first_at: float | None = None
        self.purchase: Purchase | None = None

    @property
    def usage(self) -> Usage | None:
        """As the provider counts so far."""
        return self._answer.claimed if self._answer is not None else None

    async def begin(self, path: str, body: Mapping[str, Any], tokens: tuple[int, int]) -> list[Chunk]:
        """Ask; the chunks up to the first with a part of the answer."""
        self._held = held = await self._pool.lease(self.candidate.listing, tokens)
        self._began_at = self._clock()
        self._answer = held.session.ask(path, body)
        found: list[Chunk] = []
        try:
            async with asyncio.timeout(self._policy.first_token):
                while (chunk := await self._answer.chunk()) is not None:
                    found.append(chunk)
                    if has_words(chunk):
                        break
        except TimeoutError:
            raise self._stalled(self._policy.first_token) from None
        self._first_at = self._clock()
        return found

    async def next(self) -> Chunk | None:
        """The next chunk; None at the end."""
        assert self._answer is not None
        try:
            async with asyncio.timeout(self._policy.stall):
                return await self._answer.chunk()
        except TimeoutError:
            raise self._stalled(self._policy.stall) from None

    async def end(self, error: BaseException | None = None, outcome: str = "") -> Purchase | None:
        """Hang up where it is not over, and give the session back. None where nothing was asked."""
        if self._answer is None or self._held is None:
            return None
        if self.purchase is None:
            held, answer, self_listing = self._held, self._answer, self.candidate.listing
            await answer.aclose()
            usage = answer.claimed or Usage(0, 0, 0)
            terms, receipt = self_listing.offer.terms, answer.receipt
            self.purchase = Purchase(
                provider=self_listing.provider.id,
                endpoint=self_listing.provider.endpoint,
                offer=self_listing.offer.id,
                model=terms.model,
                token=self_listing.token,
                basis="both" if terms.by_second and terms.by_token else "token" if terms.by_token else "second",
                why=self.candidate.why,
                session=held.id,
                start=held.stream.start if held.stream else 0,
                began_at=self._began_at,
                first_token_at=self._first_at,
                ended_at=self._clock(),
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
                cost=held.attribute(),
                receipt=receipt.hash if receipt else "",
                outcome=outcome or outcome_of(error),
                problem=str(error) if isinstance(error, PenstockError) else "",
            )
            self._pool.release(held, error if isinstance(error, PenstockError) else None)
        return self.purchase

    def _stalled(self, seconds: float) -> AnswerCut:
        endpoint = self.candidate.listing.provider.endpoint
        return AnswerCut("stalled", f"{endpoint} sent nothing for {seconds:g} s")


def outcome_of(error: BaseException | None) -> str:
    match error:
        case None:
            return "done"
        case AnswerCut() | GatewayRefused():
            return error.code
        case ReceiptRefused():
            return f"receipt_{error.what}"
        case PenstockError():
            return type(error).__name__
    return "stopped"


def has_words(chunk: Chunk) -> bool:
    """Whether it carries part of the answer itself, or why there is none."""
    for choice in chunk.get("choices") or ():
        delta = choice.get("delta") or {}
        if choice.get("text") or choice.get("finish_reason") or any(v for k, v in delta.items() if k != "role"):
            return True
    return False


def is_chat(path: str) -> bool:
    return path == CHAT
