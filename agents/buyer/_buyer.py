"""The buyer: from a request to an answer, by way of the market."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from agents.buyer._answer import Answer
from agents.buyer._attempt import Attempt, Candidate
from agents.buyer._policy import Policy
from agents.buyer._pool import Pool
from agents.buyer._types import Job, Model, PriceRange, Purchase, Wish
from penstock.consumer import Consumer, Listing, Wanted
from penstock.consumer.market import choose
from penstock.types import Token


class Buyer:
    """Use as an async context manager. `on_purchase` hears of each purchase when it is over, `on_warning` of what is
    amiss and not the client's business."""

    def __init__(
        self,
        consumer: Consumer,
        policy: Policy | None = None,
        *,
        on_purchase: Callable[[Purchase], None] = lambda _: None,
        on_warning: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._consumer, self._policy = consumer, policy or Policy()
        self._on_purchase, self._warn = on_purchase, on_warning
        self._pool = Pool(consumer, self._policy, warn=on_warning, opened=lambda listing, seconds: None)

    async def __aenter__(self) -> Buyer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Close every stream and channel. StreamLeftOpen where one could not be."""
        await self._pool.aclose()

    async def models(self) -> list[Model]:
        """What can be had now."""
        listings = await self._consumer.market.find(Wanted())
        rows: dict[str, list[Listing]] = {}
        for listing in listings:
            rows.setdefault(listing.offer.terms.model, []).append(listing)
        return [_model(name, rows[name]) for name in sorted(rows)]

    async def start(self, job: Job) -> Answer:
        """Buy an answer. PenstockErrors before its first part; none of them leaves anything open."""
        listing = await self._choose(job.wish)
        attempt = Attempt(self._pool, self._policy, self._consumer.clock, Candidate(listing, "the cheapest that fits"))
        tokens = (len(str(job.body)), int(job.body.get("max_tokens") or self._policy.usual_answer))
        try:
            first = await attempt.begin(job.path, job.body, tokens)
        except BaseException as error:
            if (purchase := await attempt.end(error)) is not None:
                self._on_purchase(purchase)
            raise
        return Answer(job, attempt, first, self._on_purchase)

    async def _choose(self, wish: Wish) -> Listing:
        listings = await self._consumer.market.find(Wanted(model=wish.model))
        if wish.provider is not None:
            listings = [one for one in listings if one.provider.id.lower().startswith(wish.provider.lower())]
        return choose(listings, Wanted(model=wish.model))


def _model(name: str, listings: list[Listing]) -> Model:
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
