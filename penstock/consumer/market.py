"""What is for sale, joined from the registry and the stakes; and the choice of one offer."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from penstock.chain.port import Chain
from penstock.consumer.endpoint import check_endpoint
from penstock.errors import NoContract, NoOffer, NotFound, OfferMismatch, PriceTooHigh, Reverted
from penstock.types import NATIVE, Address, Offer, OfferId, Provider, Service, Token
from penstock.units import format_amount, format_rate


@dataclass(frozen=True, slots=True)
class Listing:
    """An offer with who makes it and what it is paid in."""

    offer: Offer
    provider: Provider
    stake: int
    """The provider's bonded stake, in base units of the stake asset."""
    token: Token
    covered: bool = True
    """Whether the stake covers all that the provider has on the market, as the contract wants it to. Slashing may
    have taken too much of it; anyone may take such an offer off the market."""

    @property
    def rate(self) -> str:
        """The price, for people: by the second, by the million prompt and completion tokens, or both."""
        terms, token = self.offer.terms, self.token
        parts = []
        if terms.by_second:
            parts.append(format_rate(terms.rate, token.decimals, token.symbol))
        if terms.by_token:
            prompt, completion = (
                format_amount(p, token.decimals) for p in (terms.prompt_price, terms.completion_price)
            )
            parts.append(f"{prompt}/{completion} {token.symbol} per million tokens")
        return " + ".join(parts)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a consumer asks of an offer; what is left out does not matter to it."""

    model: str | None = None
    token: Address | None = None
    provider: Address | None = None
    offer: str | None = None
    """The id, or its first digits."""
    max_rate: int | None = None
    """Base units x 1e6 per second of the token."""
    min_stake: int | None = None
    """On top of what the chain asks of providers: that the stake covers their slots."""
    region: str | None = None
    min_context: int = 0
    by_second: bool | None = None
    """Whether time is paid for, by a stream."""
    by_token: bool | None = None
    """Whether tokens are paid for, by vouchers. Both left out: time alone where there is such an offer."""

    def affords(self, listing: Listing) -> bool:
        """Whether the price is within the limit; a limit by the second rules out offers that also, or only, charge
        for tokens, unless those are asked for."""
        terms = listing.offer.terms
        bounded = terms.by_second and (not terms.by_token or self.by_token is True)
        return self.max_rate is None or (bounded and terms.rate <= self.max_rate)

    def fits(self, listing: Listing) -> bool:
        """Everything but the price."""
        terms, provider = listing.offer.terms, listing.provider
        return (
            listing.covered
            and (self.model is None or terms.model == self.model)
            and (self.token is None or terms.token == self.token)
            and (self.provider is None or provider.id == self.provider)
            and (self.offer is None or has_prefix(listing.offer.id, self.offer))
            and (self.min_stake is None or listing.stake >= self.min_stake)
            and (self.region is None or terms.region == self.region)
            and terms.context_length >= self.min_context
            and (self.by_second is None or terms.by_second == self.by_second)
            and (self.by_token is None or terms.by_token == self.by_token)
        )

    def __str__(self) -> str:
        parts = [
            f"{name} {value}"
            for name, value in (
                ("model", self.model),
                ("token", self.token),
                ("provider", self.provider),
                ("offer", self.offer),
                ("region", self.region),
                ("base units of stake, at least", self.min_stake),
                ("context of at least", self.min_context or None),
                ("paid", _paid(self.by_second, self.by_token)),
            )
            if value is not None
        ]
        return ", ".join(parts) or "anything"


@dataclass(frozen=True, slots=True)
class Cover:
    """What the chain asks of a provider's stake, for good: base units."""

    minimum: int
    per_slot: int

    @classmethod
    async def of(cls, chain: Chain) -> Cover:
        return cls(*await asyncio.gather(chain.minimum_stake(), chain.cover_per_slot()))

    def holds(self, stake: int, slots: int) -> bool:
        """As `Chain.covers`, of a stake and slots that are known."""
        return stake >= max(self.minimum, slots * self.per_slot)


def _paid(by_second: bool | None, by_token: bool | None) -> str | None:
    kinds = [kind for kind, asked in (("by the second", by_second), ("by the token", by_token)) if asked]
    return " and ".join(kinds) or None


class Market:
    """The registry as a consumer sees it. Only inference, sold by the second, by the token, or by both at once.
    Nothing here sends a transaction."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain

    async def listings(self, *, inactive: bool = False) -> list[Listing]:
        """All offers, in order of creation."""
        offers, providers = await asyncio.gather(self._chain.offers(), self._chain.providers())
        slots = Counter[Address]()
        for offer in offers:
            slots[offer.provider] += offer.terms.slots if offer.active else 0
        sellers = {provider.id: provider for provider in providers if provider.service & Service.INFERENCE}
        offers = [
            offer
            for offer in offers
            if (offer.terms.by_second or offer.terms.by_token)
            and offer.provider in sellers
            and (inactive or offer.active)
        ]
        return await self._join(offers, sellers, slots)

    async def find(self, wanted: Wanted) -> list[Listing]:
        """What fits, price included, best first: by token, then as `choose` ranks."""
        found = [listing for listing in await self.listings() if wanted.fits(listing) and wanted.affords(listing)]
        return sorted(found, key=lambda listing: (listing.offer.terms.token, *rank(listing)))

    async def choose(self, wanted: Wanted) -> Listing:
        """The cheapest that fits; among equals the highest stake, then the oldest.

        Prices in different tokens do not compare: where `token` is left out, it is the only one in which
        something fits, or else the native coin.

        Raises NotFound for a provider or offer that does not exist, PriceTooHigh where only the price stands
        in the way, NoOffer where nothing fits.
        """
        if wanted.provider is not None:
            await self._chain.provider(wanted.provider)
        return choose(await self.listings(), wanted)

    async def verify(self, listing: Listing, *, allow_private: bool) -> Listing:
        """The listing as the registry has it now. Call it right before money moves.

        Raises OfferMismatch where the offer is no longer active or its payee, endpoint, token or rate differ,
        ConfigError where the endpoint is not one to connect to.
        """
        offer, provider = await asyncio.gather(
            self._chain.offer(listing.offer.id), self._chain.provider(listing.offer.provider)
        )
        short = listing.offer.id[:10]
        if offer.terms.offer_id(offer.provider) != offer.id or offer.id != listing.offer.id:
            raise OfferMismatch(f"the terms of offer {short} do not hash to its id: the registry or the node is wrong")
        if offer.terms != listing.offer.terms or offer.provider != listing.offer.provider:
            raise OfferMismatch(f"offer {short} has other terms than expected; look again with `penstock offers`")
        if not offer.active:
            raise OfferMismatch(
                f"offer {short} was taken off the market, perhaps for one at another price; "
                "look again with `penstock offers`"
            )
        if provider.payee != listing.provider.payee or provider.endpoint != listing.provider.endpoint:
            raise OfferMismatch(
                f"provider {provider.id} has just changed its payee or endpoint; look again with `penstock offers`"
            )
        check_endpoint(provider.endpoint, allow_private=allow_private)
        return replace(listing, offer=offer, provider=provider)

    async def listing(self, offer: OfferId) -> Listing:
        """One offer by its id, active or not. NotFound where there is none."""
        found = await self._chain.offer(offer)
        provider, slots = await asyncio.gather(
            self._chain.provider(found.provider), self._chain.active_slots_of(found.provider)
        )
        return (await self._join([found], {provider.id: provider}, {provider.id: slots}))[0]

    async def _join(
        self, offers: Sequence[Offer], sellers: Mapping[Address, Provider], slots: Mapping[Address, int]
    ) -> list[Listing]:
        """`slots`: of each provider's active offers together."""
        ids = sorted({offer.provider for offer in offers})
        addresses = sorted({offer.terms.token for offer in offers})
        stakes, cover, tokens = await asyncio.gather(
            self._chain.stakes_of(ids),
            Cover.of(self._chain),
            asyncio.gather(*(self._token(token) for token in addresses)),
        )
        stake = dict(zip(ids, stakes, strict=True))
        token = dict(zip(addresses, tokens, strict=True))
        return [
            Listing(offer, sellers[id], stake[id], known, cover.holds(stake[id], slots[id]))
            for offer in offers
            if (known := token[offer.terms.token]) is not None and (id := offer.provider)
        ]

    async def _token(self, token: Address) -> Token | None:
        """None for an address that is no token: an offer in it cannot be paid, and must not hide the others."""
        try:
            return await self._chain.token(token)
        except (NoContract, Reverted):
            return None


def choose(listings: Iterable[Listing], wanted: Wanted) -> Listing:
    """`Market.choose` among listings at hand."""
    listings = list(listings)
    fitting = [listing for listing in listings if wanted.fits(listing)]
    if not fitting:
        raise _nothing(listings, wanted)
    token = wanted.token if wanted.token is not None else paid_in(fitting)
    fitting = [listing for listing in fitting if listing.offer.terms.token == token]
    affordable = [listing for listing in fitting if wanted.affords(listing)]
    if affordable:
        return min(affordable, key=rank)
    best = min(fitting, key=rank)
    raise PriceTooHigh(f"the cheapest offer that fits costs {best.rate}, more than your limit; raise --max-rate")


def paid_in(listings: Iterable[Listing]) -> Address:
    """The token to pay in where none was asked for. NoOffer where that would be a guess."""
    tokens = {listing.offer.terms.token: listing.token.symbol for listing in listings}
    if len(tokens) == 1:
        return next(iter(tokens))
    if NATIVE in tokens:
        return NATIVE
    raise NoOffer(f"the offers that fit are in several tokens; choose one with --token: {', '.join(tokens.values())}")


def has_prefix(identifier: str, prefix: str) -> bool:
    return identifier.lower().removeprefix("0x").startswith(prefix.lower().removeprefix("0x"))


def rank(listing: Listing) -> tuple[int, int, int, int, int]:
    """By which the best comes first: time before tokens before both, then the price."""
    terms = listing.offer.terms
    kind = terms.by_token + (terms.by_second and terms.by_token)
    return kind, terms.rate, terms.completion_price, -listing.stake, listing.offer.number


def why_nothing(listings: Sequence[Listing], wanted: Wanted) -> str:
    """For people, of listings none of which fits at an affordable price."""
    try:
        choose(listings, wanted)
    except (NoOffer, NotFound) as error:
        return str(error)
    raise ValueError("something fits")


def _nothing(listings: Sequence[Listing], wanted: Wanted) -> NotFound | NoOffer:
    if wanted.offer is not None and not any(has_prefix(listing.offer.id, wanted.offer) for listing in listings):
        return NotFound(f"no active offer has the id {wanted.offer}; `penstock offers` lists them")
    if not listings:
        return NoOffer("nobody offers inference on this chain yet; try later or another --network")
    models = sorted({listing.offer.terms.model for listing in listings})
    if wanted.model is not None and wanted.model not in models:
        return NoOffer(f"nobody offers {wanted.model}; on offer: {', '.join(models[:8])}")
    if any(wanted.fits(replace(listing, covered=True)) for listing in listings):
        return NoOffer("what fits is sold by providers whose stake no longer covers all their slots; choose another")
    return NoOffer(f"no offer fits ({wanted}); `penstock offers` without options lists what there is")
