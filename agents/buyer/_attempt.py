"""One provider's part of an answer: a session, the pieces as they come, and in the end a purchase."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from agents.buyer._choice import Candidate
from agents.buyer._delivered import Chunk, Request
from agents.buyer._memory import Memory
from agents.buyer._policy import Policy
from agents.buyer._pool import Held, Pool
from agents.buyer._types import Purchase
from penstock.consumer import Answer, Listing, PaidAnswer, Usage
from penstock.consumer.requests import request_body
from penstock.errors import AnswerCut, GatewayRefused, OfferMismatch, PenstockError, ReceiptRefused
from penstock.wire.sessions import prompt_bound

LONGEST = 4096
"""Completion tokens for which a channel's deposit must be good where the client names no limit, within the context."""
_BUSY = frozenset({429, 503})
_STALE = frozenset({401, 402})
"""What a session is answered that ended, or that its provider has forgotten."""
_OURS = frozenset({"stream_ended", "stream_closed", "deposit_used_up", "deposit_too_low"})
"""Codes of what is no fault of the provider: what we paid for is used up."""
_ENOUGH = 8
"""Tokens from which on a speed can be told."""


class Attempt:
    """`begin` first, then `next` until it returns None or raises; `end` in any case, once or more."""

    def __init__(
        self, pool: Pool, memory: Memory, policy: Policy, candidate: Candidate, clock: Callable[[], float]
    ) -> None:
        self.candidate = candidate
        self._pool, self._memory, self._policy, self._clock = pool, memory, policy, clock
        self._held: Held | None = None
        self._answer: Answer | PaidAnswer | None = None
        self._began_at = clock()
        self._first_at: float | None = None
        self._ended = False
        self.purchase: Purchase | None = None
        """Once it has ended, if anything was asked."""

    @property
    def usage(self) -> Usage | None:
        """As the provider has counted."""
        return self._answer.claimed if self._answer is not None else None

    async def begin(self, request: Request) -> list[Chunk]:
        """Ask; the chunks up to the first one with a part of the answer."""
        try:
            return await self._begin(request)
        except GatewayRefused as error:
            if error.status not in _STALE or self._held is None or not self._held.served:
                raise
            self._give_back(error)
            return await self._begin(request)

    async def _begin(self, request: Request) -> list[Chunk]:
        listing = self.candidate.listing
        self._held = held = await self._pool.lease(listing, most_tokens(listing, request))
        self._began_at = self._clock()
        self._answer = held.session.ask(request.path, request.body)
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
        held.served += 1
        return found

    async def next(self) -> Chunk | None:
        """The next chunk; None at the end."""
        assert self._answer is not None
        try:
            async with asyncio.timeout(self._policy.stall):
                return await self._answer.chunk()
        except TimeoutError:
            raise self._stalled(self._policy.stall) from None

    async def end(self, error: BaseException | None = None, outcome: str = "") -> None:
        """Hang up where it is not over, remember how it went, and give the session back."""
        if self._ended:
            return
        self._ended = True
        if self._answer is not None:
            await self._answer.aclose()
        outcome = outcome or outcome_of(error)
        self._remember(error, outcome)
        if self._held is not None and self._answer is not None:
            self.purchase = self._bought(self._held, self._answer, error, outcome)
        self._give_back(error)

    # --- how it went ---

    def _remember(self, error: BaseException | None, outcome: str) -> None:
        listing, memory = self.candidate.listing, self._memory
        provider, model = listing.provider.id, listing.offer.terms.model
        if isinstance(error, PenstockError):
            if blames(error):
                memory.failed(provider, model, busy=is_busy(error))
        elif self._first_at is not None or outcome == "beaten":
            now = self._clock()
            ttft = (self._first_at or now) - self._began_at
            tokens = self.usage.completion_tokens if self.usage else 0
            took = now - self._first_at if self._first_at is not None else 0.0
            speed = (tokens - 1) / took if tokens >= _ENOUGH and took > 0 else None
            memory.succeeded(provider, model, ttft=ttft, speed=speed)

    def _bought(self, held: Held, answer: Answer | PaidAnswer, error: BaseException | None, outcome: str) -> Purchase:
        return Purchase.of(
            self.candidate.listing,
            answer,
            why=self.candidate.why,
            session=held.id,
            start=held.start,
            began_at=self._began_at,
            first_token_at=self._first_at,
            ended_at=self._clock(),
            cost=held.attribute(),
            outcome=outcome,
            problem=str(error) if isinstance(error, PenstockError) else "",
        )

    def _give_back(self, error: BaseException | None) -> None:
        """A session whose provider failed is asked nothing more."""
        if self._held is not None:
            spoilt = isinstance(error, PenstockError) and not is_busy(error) and not is_clients(error)
            self._pool.release(self._held, error if spoilt and isinstance(error, PenstockError) else None)
            self._held = None

    def _stalled(self, seconds: float) -> AnswerCut:
        endpoint = self.candidate.listing.provider.endpoint
        return AnswerCut("stalled", f"{endpoint} sent nothing for {seconds:g} s; try another provider")


def most_tokens(listing: Listing, request: Request) -> tuple[int, int]:
    """Prompt and completion tokens that the answer can have at most."""
    context = listing.offer.terms.context_length
    most = request.max_tokens if request.max_tokens is not None else min(context, LONGEST)
    sent = msgspec.json.encode(request_body(listing, request.path, request.body))
    return prompt_bound(sent, context), max(1, most) * max(1, request.choices)


def outcome_of(error: BaseException | None) -> str:
    """In a word or two."""
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


def is_busy(error: PenstockError) -> bool:
    """Whether the provider has no room now, and is else well."""
    return isinstance(error, GatewayRefused) and error.status in _BUSY


def is_clients(error: PenstockError) -> bool:
    """Whether the provider finds fault with the request itself."""
    return isinstance(error, GatewayRefused) and error.status in (400, 404, 413, 422)


def is_used_up(error: PenstockError) -> bool:
    """Whether what we had paid for has ended."""
    return isinstance(error, AnswerCut | GatewayRefused) and error.code in _OURS


def blames(error: PenstockError) -> bool:
    """Whether it says something about the provider. An offer that has just changed says nothing."""
    return not is_used_up(error) and not is_clients(error) and not isinstance(error, OfferMismatch)


def has_words(chunk: dict[str, Any]) -> bool:
    """Whether it carries part of the answer itself, or why there is none."""
    for choice in chunk.get("choices") or ():
        delta = choice.get("delta") or {}
        if choice.get("text") or choice.get("finish_reason") or any(v for k, v in delta.items() if k != "role"):
            return True
    return False
