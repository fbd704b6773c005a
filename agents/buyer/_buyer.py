"""The buyer: from a request to an answer, by way of the market."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from agents.buyer._answer import Answer
from agents.buyer._choice import Chooser
from agents.buyer._dispatch import Dispatcher
from agents.buyer._index import Index
from agents.buyer._memory import Memory
from agents.buyer._policy import Policy
from agents.buyer._pool import Pool
from agents.buyer._score import Entry
from agents.buyer._types import Job, Model, PriceRange, Purchase
from penstock.consumer import Consumer, Listing
from penstock.errors import (
    NoOffer,
)
from penstock.types import Token
from penstock.wire.completions import CHAT, EMBEDDINGS, TEXT


class Buyer:
    """Use as an async context manager. `folder` keeps what was measured and the market's index; None forgets both.
    `on_purchase` hears of each purchase when it is over, `on_warning` of what is amiss and not the client's business.
    """

    def __init__(
        self,
        consumer: Consumer,
        policy: Policy | None = None,
        *,
        folder: Path | None = None,
        on_purchase: Callable[[Purchase], None] = lambda _: None,
        on_warning: Callable[[str], None] = lambda _: None,
        dice: random.Random | None = None,
    ) -> None:
        policy = policy or Policy()
        chain, clock = consumer.chain, consumer.clock
        name = f"{chain.chain_id}-{chain.registry[2:10].lower()}"
        self._memory = Memory(
            folder / f"measured-{name}.db" if folder else None,
            half_life=policy.half_life,
            aside=policy.aside,
            longest_aside=policy.longest_aside,
            clock=clock,
        )
        self._index = Index(folder / f"market-{name}.db" if folder else None, chain)
        self._pool = Pool(consumer, policy, warn=on_warning, opened=self._opened)
        chooser = Chooser(self._index, self._memory, policy, is_open=self._pool.is_open, clock=clock, dice=dice)
        self._dispatcher = Dispatcher(self._pool, chooser, self._memory, policy, on_purchase=on_purchase, clock=clock)

    async def __aenter__(self) -> Buyer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Close every stream and channel. StreamLeftOpen where one could not be."""
        try:
            await self._pool.aclose()
        finally:
            self._index.close()
            self._memory.close()

    async def models(self) -> list[Model]:
        """What can be had now."""
        return [_model(name, entries) for name, entries in (await self._index.models()).items()]

    async def start(self, job: Job) -> Answer:
        """Buy an answer. PenstockErrors before its first part: AllFailed where nobody answers who fits, NoOffer where
        nobody fits, and what is ours, such as InsufficientFunds."""
        if job.path not in (CHAT, TEXT, EMBEDDINGS):
            raise NoOffer(
                f"nobody on this market serves {job.path}: ask for a completion, or use an engine of your own"
            )
        if job.path == EMBEDDINGS and job.wish.model is None:
            raise NoOffer("name the model for embeddings: those of two models cannot be compared with each other")
        answer = Answer(self._dispatcher, job)
        await answer.begin()
        return answer

    def _opened(self, listing: Listing, seconds: float) -> None:
        self._memory.opened(listing.provider.id, listing.offer.terms.model, seconds)


def _model(name: str, entries: list[Entry]) -> Model:
    listings = [entry.listing for entry in entries]
    tokens: dict[Token, list[Listing]] = {}
    for listing in listings:
        tokens.setdefault(listing.token, []).append(listing)
    return Model(
        name=name,
        offers=len(listings),
        providers=tuple(sorted({listing.provider.id for listing in listings})),
        context_length=max(listing.offer.terms.context_length for listing in listings),
        prices=tuple(_prices(token, row) for token, row in tokens.items()),
    )


def _prices(token: Token, listings: list[Listing]) -> PriceRange:
    def span(values: list[int]) -> tuple[int, int] | None:
        return (min(values), max(values)) if values else None

    terms = [listing.offer.terms for listing in listings]
    return PriceRange(
        token,
        span([one.rate for one in terms if one.by_second]),
        span([one.prompt_price for one in terms if one.by_token]),
        span([one.completion_price for one in terms if one.by_token]),
    )
