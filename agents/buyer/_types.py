"""What a client asks for, and what was bought for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from penstock.consumer import Answer, Listing, PaidAnswer
from penstock.errors import ConfigError
from penstock.types import Address, OfferId, StreamId, Token

POLICIES = ("auto", "cheapest", "fastest")


@dataclass(frozen=True, slots=True)
class Filters:
    """What an offer must be, whatever its score. Empty and 0: it does not matter."""

    max_rate: int | None = None
    """Base units x 1e6 per second."""
    max_prompt_price: int | None = None
    """Base units per million tokens."""
    max_completion_price: int | None = None
    min_stake: int = 0
    """Base units of the stake's asset; the chain's own minimum counts in any case."""
    min_context: int = 0
    """Tokens."""
    regions: frozenset[str] = frozenset()
    quantizations: frozenset[str] = frozenset()
    allow: frozenset[Address] = frozenset()
    """Providers; none: all."""
    deny: frozenset[Address] = frozenset()
    token: Address | None = None
    """What is paid in; None: what all that fits is in, or else the native coin."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a client's model name asks for."""

    model: str | None = None
    """None: any."""
    provider: str | None = None
    """An address, or its first digits."""
    policy: str = "auto"
    filters: Filters = field(default=Filters())

    @classmethod
    def parse(cls, name: str, filters: Filters | None = None) -> Wish:
        """`MODEL`, `MODEL@PROVIDER`, a policy (`auto`, `cheapest`, `fastest`), or `POLICY/MODEL`, which may be of one
        provider, too. ConfigError where it is none of these."""
        filters = filters or Filters()
        rest, at, provider = name.strip().rpartition("@")
        if not at:
            rest, provider = provider, ""
        digits = provider.lower().removeprefix("0x")
        if at and (not rest or not digits or any(c not in "0123456789abcdef" for c in digits)):
            raise ConfigError(f"{name!r} names no provider: write MODEL@ADDRESS, or the address' first digits")
        policy, slash, model = rest.partition("/")
        if policy not in POLICIES:
            policy, model = "auto", rest
        elif slash and not model:
            raise ConfigError(f"{name!r} names no model: write {policy}, or {policy}/MODEL")
        if policy == "auto" and not slash and rest != "auto" and not model:
            raise ConfigError("name a model, or auto, cheapest or fastest")
        return cls(model or None, provider or None, policy, filters)

    def __str__(self) -> str:
        shown = self.model or self.policy if self.policy == "auto" or not self.model else f"{self.policy}/{self.model}"
        return f"{shown}@{self.provider}" if self.provider else shown


@dataclass(frozen=True, slots=True)
class Job:
    """One request of a client."""

    path: str
    body: Mapping[str, Any]
    """In OpenAI's shape, without `model` and `stream`."""
    wish: Wish


@dataclass(frozen=True, slots=True)
class PriceRange:
    """Of one model in one token. Rates in base units x 1e6 per second, prices in base units per million tokens; None
    where nothing is sold so."""

    token: Token
    rate: tuple[int, int] | None
    prompt_price: tuple[int, int] | None
    completion_price: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Model:
    """What can be had now."""

    name: str
    offers: int
    providers: tuple[Address, ...]
    context_length: int
    """The longest."""
    prices: tuple[PriceRange, ...]


@dataclass(frozen=True, slots=True)
class Purchase:
    """One provider's part in an answer. Amounts in base units of `token`, times in Unix seconds."""

    provider: Address
    endpoint: str
    offer: OfferId
    model: str
    token: Token
    basis: str
    """"second", "token" or "both"."""
    why: str
    """It was chosen."""
    session: StreamId
    """Of its stream, and of its channel."""
    start: int
    """Of the stream; 0 without one."""
    began_at: float
    first_token_at: float | None
    ended_at: float
    prompt_tokens: int
    completion_tokens: int
    cost: int
    """What the session has cost since the purchase before: tokens, and the time of a stream, idle time included."""
    receipt: str
    """Its hash; empty where none came that matched."""
    outcome: str
    """"done", "stopped" by the client, "beaten" by another provider that was faster, or why it failed: "stalled", an
    error's code, or its type."""
    problem: str = ""
    """The same for people; empty where all went well."""

    @classmethod
    def of(
        cls,
        listing: Listing,
        answer: Answer | PaidAnswer | None,
        *,
        why: str,
        session: StreamId,
        start: int,
        began_at: float,
        first_token_at: float | None,
        ended_at: float,
        cost: int,
        outcome: str,
        problem: str,
    ) -> Purchase:
        """Of an answer as its provider has counted it."""
        terms, usage = listing.offer.terms, answer.claimed if answer else None
        receipt = answer.receipt if answer else None
        return cls(
            provider=listing.provider.id,
            endpoint=listing.provider.endpoint,
            offer=listing.offer.id,
            model=terms.model,
            token=listing.token,
            basis=terms.paid_by,
            why=why,
            session=session,
            start=start,
            began_at=began_at,
            first_token_at=first_token_at,
            ended_at=ended_at,
            prompt_tokens=usage.prompt_tokens if usage else 0,
            completion_tokens=usage.completion_tokens if usage else 0,
            cost=cost,
            receipt=receipt.hash if receipt else "",
            outcome=outcome,
            problem=problem,
        )
