"""From a wish to a row of offers, the one to try first in front."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from dataclasses import dataclass

from agents.buyer._index import Index
from agents.buyer._memory import Memory
from agents.buyer._policy import PRESETS, Policy
from agents.buyer._score import Entry, Expected, Need, Seller, Usual, expect, scores
from agents.buyer._types import Filters, Wish
from penstock.consumer import Listing
from penstock.consumer.market import has_prefix, paid_in
from penstock.errors import NoOffer, NotFound, PriceTooHigh
from penstock.types import Address, OfferId, Token
from penstock.units import format_amount

NEW = 2.0
"""Answers below which little is known of a provider."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An offer, and why it was chosen."""

    listing: Listing
    why: str

    @property
    def provider(self) -> Address:
        return self.listing.provider.id


class Chooser:
    """`is_open` tells of an offer whether a session with room for one more answer is open."""

    def __init__(
        self,
        index: Index,
        memory: Memory,
        policy: Policy,
        *,
        is_open: Callable[[OfferId], bool],
        clock: Callable[[], float],
        dice: random.Random | None = None,
    ) -> None:
        self._index, self._memory, self._policy = index, memory, policy
        self._is_open, self._clock, self._dice = is_open, clock, dice or random.Random()

    async def candidates(
        self, wish: Wish, prompt_bytes: int, max_tokens: int | None, *, without: Collection[Address] = ()
    ) -> list[Candidate]:
        """One offer of each provider that fits, the best first; those that were put aside come last, the one whose
        time is up soonest first. Empty where only those in `without` fit.

        Raises NotFound, NoOffer or PriceTooHigh where nothing fits at all.
        """
        entries = fitting(await self._index.entries(wish.model), wish)
        entries = [entry for entry in entries if entry.listing.provider.id not in without]
        expected = self._expected(entries, prompt_bytes, max_tokens)
        weights = self._policy.weights if wish.policy == "auto" else PRESETS[wish.policy]
        row = list(zip(scores(expected, weights), entries, expected, strict=True))
        row.sort(key=lambda one: one[0], reverse=True)  # stable: among equals the oldest offer
        found, aside, new = [], [], []
        seen: set[Address] = set()
        for score, entry, what in row:
            listing = entry.listing
            if listing.provider.id in seen:
                continue
            seen.add(listing.provider.id)
            known = self._memory.of(listing.provider.id, listing.offer.terms.model)
            candidate = Candidate(listing, _why(wish, score, what, len(row), listing.token))
            if known.aside_until > self._clock():
                why = f"put aside after {known.failures} failures, and nobody else is left"
                aside.append((known.aside_until, Candidate(listing, why)))
                continue
            found.append(candidate)
            if known.weight < NEW:
                new.append(candidate)
        if new and len(found) > len(new) and self._dice.random() < self._policy.explore:
            chosen = self._dice.choice(new)
            found.remove(chosen)
            found.insert(0, Candidate(chosen.listing, f"little is known of it: explored; else {chosen.why}"))
        return found + [candidate for _, candidate in sorted(aside, key=lambda one: one[0])]

    def _expected(self, entries: list[Entry], prompt_bytes: int, max_tokens: int | None) -> list[Expected]:
        memory, policy, now = self._memory, self._policy, self._clock()
        one_of = {(one.listing.provider.id, one.listing.offer.terms.model): one for one in entries}
        known = {name: memory.of(*name) for name in one_of}
        usual, cover = Usual.of(list(known.values())), self._index.cover.per_slot
        sellers = {
            name: Seller.of(entry, known[name], usual, cover_per_slot=cover, now=now) for name, entry in one_of.items()
        }
        needs = {
            model: Need.of(
                prompt_bytes,
                max_tokens,
                memory.traffic(model),
                usual=policy.usual_answer,
                idle_seconds=policy.idle_seconds,
            )
            for _, model in one_of
        }
        found = []
        for entry in entries:
            listing = entry.listing
            terms = listing.offer.terms
            seller = sellers[listing.provider.id, terms.model]
            found.append(expect(terms, seller, needs[terms.model], is_open=self._is_open(listing.offer.id)))
        return found


def fitting(entries: list[Entry], wish: Wish) -> list[Entry]:
    """What passes the hard filters, in one token. NotFound, NoOffer or PriceTooHigh where nothing does."""
    filters = wish.filters
    if not entries:
        what = f"nobody offers {wish.model} now" if wish.model else "nobody offers inference on this chain now"
        raise NoOffer(f"{what}; `penstock offers` lists what there is")
    if wish.provider is not None:
        entries = [one for one in entries if has_prefix(one.listing.provider.id, wish.provider)]
        if not entries:
            raise NotFound(f"provider {wish.provider} offers no {wish.model or 'model'} now; see `penstock offers`")
    entries = [one for one in entries if _fits(one, filters)]
    if not entries:
        raise NoOffer(f"offers of {wish} exist, and none passes your filters; loosen [choice] in config.toml")
    token = filters.token or paid_in(one.listing for one in entries)
    entries = [one for one in entries if one.listing.offer.terms.token == token]
    found = [one for one in entries if _affords(one, filters)]
    if not found:
        if entries:
            best = min(
                entries, key=lambda one: (one.listing.offer.terms.rate, one.listing.offer.terms.completion_price)
            )
            raise PriceTooHigh(
                f"every offer of {wish} costs more than your limits, one of the cheapest {best.listing.rate}; raise "
                "them: `penstock ask` --max-rate, or [choice] of config.toml"
            )
        raise NoOffer(f"no offer of {wish} is paid in the token that you chose; change it in [choice] of config.toml")
    return found


def _fits(entry: Entry, filters: Filters) -> bool:
    terms, provider = entry.listing.offer.terms, entry.listing.provider.id
    return (
        entry.listing.stake >= filters.min_stake
        and terms.context_length >= filters.min_context
        and (not filters.regions or terms.region in filters.regions)
        and (not filters.quantizations or terms.quantization in filters.quantizations)
        and (not filters.allow or provider in filters.allow)
        and provider not in filters.deny
    )


def _affords(entry: Entry, filters: Filters) -> bool:
    terms = entry.listing.offer.terms
    return (
        (filters.max_rate is None or terms.rate <= filters.max_rate)
        and (filters.max_prompt_price is None or terms.prompt_price <= filters.max_prompt_price)
        and (filters.max_completion_price is None or terms.completion_price <= filters.max_completion_price)
    )


def _why(wish: Wish, score: float, what: Expected, among: int, token: Token) -> str:
    cost = format_amount(int(float(f"{what.cost:.3g}")), token.decimals, token.symbol)
    return (
        f"{wish.policy}: score {score:.3f} among {among} offer{'' if among == 1 else 's'}: about {cost}, "
        f"{what.latency:.2f} s to the first token, {what.seller.speed:.0f} tokens/s, {what.seller.success:.0%} good"
    )
