"""Which offer to try first: what each is expected to cost and to do, held against the best of them.

The score is a weighted sum of seven features, each from 0 to 1 (docs/choice.md). Nothing here asks anybody anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from agents.buyer._memory import Measured, Traffic
from penstock.consumer import Listing
from penstock.types import Terms

FEATURES = ("price", "latency", "speed", "success", "reputation", "cover", "confidence")
GRACE = 0.2
"""Seconds of latency that nobody notices."""
SURE = 5.0
"""Answers after which half of the doubt about a provider is gone."""
AGE = 30 * 86_400
"""Seconds on the market for half a reputation."""
ENOUGH_COVER = 2.0
"""Times the stake that its slots need, beyond which more says nothing."""
DEFAULT_TTFT, DEFAULT_SPEED, DEFAULT_OPENING = 1.0, 30.0, 3.0
"""Seconds, tokens per second and seconds: where nobody was measured yet."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An offer as it is seen on the chain."""

    listing: Listing
    active_slots: int
    """Of all active offers of its provider."""
    faults: int
    """That were proven against its provider."""


@dataclass(frozen=True, slots=True)
class Need:
    """Of one request."""

    prompt_tokens: int
    completion_tokens: int
    """As expected."""
    gap: float
    """Seconds for which a session is expected to wait for the next request, at most until it is closed."""

    @classmethod
    def of(
        cls, prompt_bytes: int, max_tokens: int | None, traffic: Traffic, *, usual: int, idle_seconds: float
    ) -> Need:
        expected = int(traffic.mean_tokens or usual)
        tokens = expected if max_tokens is None else min(expected, max_tokens)
        return cls(max(1, prompt_bytes // 4), max(1, tokens), min(traffic.mean_gap or idle_seconds, idle_seconds))


@dataclass(frozen=True, slots=True)
class Usual:
    """What to expect of a provider that was not measured: what the others do."""

    ttft: float
    speed: float
    opening: float

    @classmethod
    def of(cls, known: Sequence[Measured]) -> Usual:
        def middle(values: Sequence[float | None], default: float) -> float:
            found = [value for value in values if value is not None]
            return median(found) if found else default

        return cls(
            middle([one.mean_ttft for one in known], DEFAULT_TTFT),
            middle([one.mean_speed for one in known], DEFAULT_SPEED),
            middle([one.mean_opening for one in known], DEFAULT_OPENING),
        )


@dataclass(frozen=True, slots=True)
class Seller:
    """What to expect of one provider with one model, whichever of its offers it is."""

    ttft: float
    """Seconds."""
    opening: float
    """Seconds until a session is open."""
    speed: float
    """Tokens per second."""
    success: float
    reputation: float
    cover: float
    confidence: float

    @classmethod
    def of(cls, entry: Entry, known: Measured, usual: Usual, *, cover_per_slot: int, now: float) -> Seller:
        age = max(0.0, now - entry.listing.provider.registered_at)
        covered = entry.listing.stake / max(1, cover_per_slot * entry.active_slots)
        return cls(
            ttft=usual.ttft if known.mean_ttft is None else known.mean_ttft,
            opening=usual.opening if known.mean_opening is None else known.mean_opening,
            speed=max(0.1, usual.speed if known.mean_speed is None else known.mean_speed),
            success=known.success,
            reputation=age / (age + AGE) * 0.5**entry.faults,
            cover=min(1.0, covered / ENOUGH_COVER),
            confidence=known.weight / (known.weight + SURE),
        )


@dataclass(slots=True)
class Expected:
    """Of one offer, for one request."""

    seller: Seller
    cost: float
    """Base units, failures included."""
    latency: float
    """Seconds to the first token, opening included."""


def expect(terms: Terms, seller: Seller, need: Need, *, is_open: bool) -> Expected:
    """By the second, the wait for the next request is paid for, too: that is what makes vouchers the cheaper way for
    sparse traffic, and a stream for dense."""
    cost = 0.0
    if terms.completion_price:
        cost = (need.prompt_tokens * terms.prompt_price + need.completion_tokens * terms.completion_price) / 1e6
    if terms.rate:
        cost += terms.rate * (seller.ttft + need.completion_tokens / seller.speed + need.gap) / 1e6
    latency = seller.ttft if is_open else seller.ttft + seller.opening
    return Expected(seller, max(cost, 1e-9) / seller.success, latency)


def scores(found: Sequence[Expected], weights: Mapping[str, float]) -> list[float]:
    """In order; 0 to 1. Price, latency and speed are held against the best among them."""
    if not found:
        return []
    cheapest = min(one.cost for one in found)
    soonest = min(one.latency for one in found) + GRACE
    fastest = max(one.seller.speed for one in found)
    total = sum(weights.values()) or 1.0
    price, latency, speed, success, reputation, cover, confidence = (
        weights.get(name, 0.0) / total for name in FEATURES
    )
    whole = {
        id(seller): speed * seller.speed / fastest
        + success * seller.success
        + reputation * seller.reputation
        + cover * seller.cover
        + confidence * seller.confidence
        for seller in {id(one.seller): one.seller for one in found}.values()
    }
    return [
        price * cheapest / one.cost + latency * soonest / (one.latency + GRACE) + whole[id(one.seller)] for one in found
    ]
