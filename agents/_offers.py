"""`penstock providers` and `penstock offers`: who is on the market, and what can be had."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from typing import Any

from agents._context import Context
from agents._output import emit_json, emit_table, short, short_address, talk
from penstock.consumer import Listing, Market, Wanted
from penstock.consumer.market import choose, has_prefix, paid_in, rank, why_nothing
from penstock.errors import ConfigError, NotFound
from penstock.types import Address, address
from penstock.units import format_amount, format_rate, parse_amount, parse_rate


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user asked of an offer, as typed."""

    model: str | None = None
    provider: str | None = None
    token: str | None = None
    max_rate: str | None = None
    min_stake: str | None = None
    region: str | None = None
    offer: str | None = None
    by: str | None = None
    """"second", "token" or "both"."""


async def providers(context: Context) -> None:
    chain = await context.chain()
    found = await chain.providers()
    stakes = await chain.stakes_of([provider.id for provider in found])
    asset = await chain.token(await chain.stake_asset())
    if context.json:
        emit_json(
            [
                asdict(provider) | {"service": str(provider.service.name).lower(), "stake": str(stake)}
                for provider, stake in zip(found, stakes, strict=True)
            ]
        )
        return
    if not found:
        talk("no provider has registered on this chain yet")
        return
    emit_table(
        ["PROVIDER", "SERVICE", "OFFERS", f"STAKE ({asset.symbol})", "ENDPOINT"],
        [
            [
                provider.id,
                str(provider.service.name).lower(),
                str(provider.active_offers),
                format_amount(stake, asset.decimals),
                provider.endpoint,
            ]
            for provider, stake in zip(found, stakes, strict=True)
        ],
        right=["OFFERS", f"STAKE ({asset.symbol})"],
    )


async def offers(context: Context, wish: Wish) -> None:
    listings, wanted = await look(context, wish)
    found = [listing for listing in listings if wanted.fits(listing) and wanted.affords(listing)]
    found.sort(key=lambda one: (one.offer.terms.token, *rank(one)))
    chain = await context.chain()
    asset = await chain.token(await chain.stake_asset())
    if context.json:
        emit_json([listing_json(listing) for listing in found])
        return
    if not found:
        talk(why_nothing(listings, wanted))
        return
    emit_table(
        ["OFFER", "PROVIDER", "MODEL", "PRICE/S", "PER M TOKENS", "TOKEN", "SLOTS", f"STAKE ({asset.symbol})"],
        [
            [
                short(listing.offer.id),
                short_address(listing.provider.id),
                listing.offer.terms.model,
                _by_second(listing),
                _by_token(listing),
                listing.token.symbol,
                str(listing.offer.terms.slots),
                format_amount(listing.stake, asset.decimals),
            ]
            for listing in found
        ],
        right=["PRICE/S", "PER M TOKENS", "SLOTS", f"STAKE ({asset.symbol})"],
    )


def _by_second(listing: Listing) -> str:
    terms = listing.offer.terms
    return format_rate(terms.rate, listing.token.decimals).removesuffix("/s") if terms.by_second else "-"


def _by_token(listing: Listing) -> str:
    """Prompt and completion tokens."""
    terms, decimals = listing.offer.terms, listing.token.decimals
    if not terms.by_token:
        return "-"
    return f"{format_amount(terms.prompt_price, decimals)}/{format_amount(terms.completion_price, decimals)}"


async def look(context: Context, wish: Wish) -> tuple[list[Listing], Wanted]:
    """All listings, and the wish in the SDK's terms. A limit on the rate needs to know the token."""
    chain = await context.chain()
    token = await context.token(wish.token) if wish.token is not None else None
    provider = await _provider(context, wish.provider) if wish.provider is not None else None
    asset = await chain.token(await chain.stake_asset())
    listings = await Market(chain).listings()
    wanted = Wanted(
        model=wish.model,
        token=token.address if token else None,
        provider=provider,
        offer=wish.offer,
        min_stake=parse_amount(wish.min_stake, asset.decimals) if wish.min_stake is not None else None,
        region=wish.region,
        by_second=None if wish.by is None else wish.by != "token",
        by_token=None if wish.by is None else wish.by != "second",
    )
    if wish.by not in (None, "second", "token", "both"):
        raise ConfigError(f"--by {wish.by} is neither second, token nor both")
    if wish.max_rate is None:
        return listings, wanted
    if token is None:
        fitting = [listing for listing in listings if wanted.fits(listing)]
        if not fitting:
            choose(listings, wanted)
        chosen = paid_in(fitting)
        token = next(listing.token for listing in fitting if listing.offer.terms.token == chosen)
    return listings, replace(wanted, token=token.address, max_rate=parse_rate(wish.max_rate, token.decimals))


async def _provider(context: Context, text: str) -> Address:
    """By address, or by the start of one."""
    chain = await context.chain()
    if re.fullmatch(r"0x[0-9a-fA-F]{40}", text):
        return (await chain.provider(address(text))).id
    found = [provider.id for provider in await chain.providers() if has_prefix(provider.id, text)]
    if len(found) == 1:
        return found[0]
    if found:
        raise NotFound(f"{len(found)} providers start with {text}; give more digits")
    raise NotFound(f"no provider starts with {text}; `penstock providers` lists them")


def listing_json(listing: Listing) -> dict[str, Any]:
    terms = listing.offer.terms
    return {
        "id": listing.offer.id,
        "provider": listing.provider.id,
        "payee": listing.provider.payee,
        "endpoint": listing.provider.endpoint,
        "model": terms.model,
        "token": terms.token,
        "symbol": listing.token.symbol,
        "decimals": listing.token.decimals,
        "rate": str(terms.rate),
        "price_per_second": format_rate(terms.rate, listing.token.decimals).removesuffix("/s"),
        "prompt_price": str(terms.prompt_price),
        "completion_price": str(terms.completion_price),
        "slots": terms.slots,
        "context_length": terms.context_length,
        "quantization": terms.quantization,
        "region": terms.region,
        "stake": str(listing.stake),
    }
