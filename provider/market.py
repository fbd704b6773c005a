"""The provider's place on the market: registered, staked, its offers listed. Doing it twice changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from penstock.chain.port import Account, Chain
from penstock.errors import ConfigError, InsufficientFunds, NotFound
from penstock.events import Receipt
from penstock.types import NATIVE, Address, Offer, OfferId, Provider, Service, Terms, address
from penstock.units import format_amount, format_rate, parse_amount, parse_rate
from provider.settings import Settings, named

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Seller:
    """Who sells here: the key that acts, what the registry says of it, and all its offers."""

    account: Account
    provider: Provider
    offers: Mapping[OfferId, Offer]
    """Inactive ones included: sessions that began under them go on."""
    first_block: int
    """Where the contracts' history begins."""
    large: Mapping[Address, int] = field(default_factory=dict)
    """By token, the deposit from which on more confirmations are waited for: base units."""

    @property
    def is_payee(self) -> bool:
        """Whether the key may withdraw and close by itself."""
        return self.account.address == self.provider.payee

    @property
    def active(self) -> list[Offer]:
        return [offer for offer in self.offers.values() if offer.active]


async def registered(chain: Chain, account: Account) -> Provider:
    """What the registry says of an account. NotFound says how it comes to be there."""
    try:
        return await chain.provider(account.address)
    except NotFound as error:
        raise NotFound(f"{error}: `penstock-provider init` registers it; or name its --account and --network") from None


async def large_deposits(settings: Settings, chain: Chain, tokens: Mapping[str, Address]) -> dict[Address, int]:
    """Those of the settings, in base units. ConfigError where one makes no sense."""
    found = {}
    for text in settings.large_deposits:
        name, colon, amount = text.rpartition(":")
        if not colon:
            raise ConfigError(f"the large deposit {text!r} is not TOKEN:AMOUNT, such as native:0.5")
        token = await chain.token(resolve_token(name, tokens))
        found[token.address] = parse_amount(amount, token.decimals)
    return found


async def terms_of(settings: Settings, chain: Chain, tokens: Mapping[str, Address]) -> list[Terms]:
    """The offers that the settings ask for. ConfigError where one makes no sense."""
    found = []
    for text in settings.offers:
        model, priced = named(text)
        name, colon, price = priced.rpartition(":")
        if not colon:
            raise ConfigError(
                f"the offer {text!r} is not TOKEN:PRICE, such as native:0.00001 (a second) or native:0.1/0.3 "
                "(a million prompt and completion tokens)"
            )
        token = await chain.token(resolve_token(name, tokens))
        rate, prompt_price, completion_price = parse_price(price, token.decimals)
        if not (rate or completion_price) or max(rate, prompt_price, completion_price) >= 2**96:
            raise ConfigError(f"the offer {text!r} has a price that is zero or out of range")
        terms = Terms(
            model=model or settings.model,
            token=token.address,
            rate=rate,
            prompt_price=prompt_price,
            completion_price=completion_price,
            slots=settings.slots,
            context_length=settings.context_length,
            max_ttft_ms=settings.max_ttft_ms,
            quantization=settings.quantization,
            region=settings.region,
        )
        if terms in found:
            raise ConfigError(f"the offer {text!r} is given twice")
        found.append(terms)
    return found


def parse_price(text: str, decimals: int) -> tuple[int, int, int]:
    """'0.00001' a second, '0.1/0.3' a million prompt and completion tokens, '0.00001+0.1/0.3' both: the scaled rate
    and the token prices in base units per million. ConfigError where it is none of these."""
    seconds, plus, tokens = text.rpartition("+")
    if not plus and "/" not in text:
        return parse_rate(text, decimals), 0, 0
    prompt, slash, completion = tokens.partition("/")
    if not slash or (plus and not seconds):
        raise ConfigError(f"{text!r} is no price: write 0.00001, 0.1/0.3 or 0.00001+0.1/0.3")
    rate = parse_rate(seconds, decimals) if plus else 0
    prices = parse_amount(prompt, decimals), parse_amount(completion, decimals)
    if not prices[1] or (plus and not rate):
        raise ConfigError(f"{text!r} has a price of zero where one is needed: only prompt tokens may be free")
    return rate, *prices


def format_price(terms: Terms, decimals: int, symbol: str) -> str:
    """What an offer costs, for people."""
    parts = []
    if terms.by_second:
        parts.append(format_rate(terms.rate, decimals, symbol))
    if terms.by_token:
        prompt, completion = (format_amount(p, decimals) for p in (terms.prompt_price, terms.completion_price))
        parts.append(f"{prompt}/{completion} {symbol} per million tokens")
    return " + ".join(parts)


def resolve_token(name: str, tokens: Mapping[str, Address]) -> Address:
    """`native`, a symbol of the deployment, or an address."""
    if name.lower() == "native":
        return NATIVE
    if name in tokens:
        return tokens[name]
    try:
        return address(name)
    except ValueError:
        known = ", ".join(["native", *tokens])
        raise ConfigError(f"no token {name!r}: name one of {known}, or give its address") from None


async def enter(
    chain: Chain,
    account: Account,
    settings: Settings,
    wanted: Sequence[Terms],
    *,
    endpoint: str,
    first_block: int,
    say: Say,
    signer: Address | None = None,
) -> Seller:
    """Register, stake what covers the offers' slots, and list, whatever is not so yet. Active offers that are no
    longer wanted are taken off the market; where none is wanted the listed ones stay. InsufficientFunds where the
    account cannot pay the stake."""
    provider = await register(chain, account, settings, endpoint, signer, say)
    for offer in await chain.offers_of(provider.id):
        if wanted and offer.active and offer.terms not in wanted:
            await chain.set_offer_active(account, offer.id, False)
            say(f"took offer {offer.id[:10]} off the market")
    listed = {offer.id: offer for offer in await chain.offers_of(provider.id)}
    sold = wanted or [offer.terms for offer in listed.values() if offer.active]
    await _stake(chain, account, provider.id, sum(terms.slots for terms in sold), say)
    for terms in wanted:
        offer_id = terms.offer_id(provider.id)
        token = await chain.token(terms.token)
        shown = f"{terms.model} at {format_price(terms, token.decimals, token.symbol)}"
        if offer_id not in listed:
            _said(say, await chain.create_offer(account, provider.id, terms), f"listed {shown} as {offer_id[:10]}")
        elif not listed[offer_id].active:
            _said(say, await chain.set_offer_active(account, offer_id, True), f"put {shown} back on the market")
    return await read(chain, account, provider.id, first_block, settings.models)


async def read(chain: Chain, account: Account, provider: Address, first_block: int, models: Sequence[str]) -> Seller:
    """ConfigError where nothing of these models is on the market."""
    offers = {offer.id: offer for offer in await chain.offers_of(provider)}
    seller = Seller(account, await chain.provider(provider), offers, first_block)
    sold = {o.terms.model for o in seller.active if o.terms.by_second or o.terms.by_token}
    for model in models:
        if model not in sold:
            raise ConfigError(f"no offer of {model} is listed: give --offer native:0.00001 or the like")
    return seller


async def register(
    chain: Chain,
    account: Account,
    settings: Settings,
    endpoint: str,
    signer: Address | None,
    say: Say,
    service: Service = Service.INFERENCE,
) -> Provider:
    """In the registry, with this endpoint. ConfigError where it is registered as something else."""
    me = account.address
    try:
        provider = await chain.provider(me)
    except NotFound:
        payee = _address_setting(settings.payee, "payee") if settings.payee else me
        receipt = await chain.register(account, payee=payee, signer=signer or me, service=service, endpoint=endpoint)
        _said(say, receipt, f"registered {me}")
        return await chain.provider(me)
    if provider.owner != me:
        raise ConfigError(f"{me} has given its provider away to {provider.owner}: use that account")
    if settings.payee and provider.payee != _address_setting(settings.payee, "payee"):
        raise ConfigError(f"{me} is registered with payee {provider.payee}, not {settings.payee}")
    if signer is not None and provider.signer != signer:
        raise ConfigError(
            f"the registry says that {provider.signer} signs the receipts of {me}, and here {signer} would: name that "
            "key with --signer, or have the owner call the registry's set_signer"
        )
    if provider.endpoint != endpoint:
        _said(say, await chain.set_endpoint(account, me, endpoint), f"moved the endpoint to {endpoint}")
        return await chain.provider(me)
    return provider


async def needed_stake(chain: Chain, slots: int) -> tuple[int, str]:
    """What a provider must have staked to offer so many slots, all its offers together: base units, and why."""
    minimum, each = await chain.minimum_stake(), await chain.cover_per_slot()
    if slots * each <= minimum:
        return minimum, "the minimum"
    return slots * each, f"{slots} slots on offer, {format_amount(each, 18)} for each"


async def _stake(chain: Chain, account: Account, provider: Address, slots: int, say: Say) -> None:
    needed, why = await needed_stake(chain, slots)
    lacking = needed - await chain.stake_of(provider)
    if lacking <= 0:
        return
    has = await chain.native_balance(account.address)
    if has < lacking:
        raise InsufficientFunds(
            f"the offers need a stake of {format_amount(needed, 18)} ({why}), and {account.address} has "
            f"{format_amount(has, 18)} of the {format_amount(lacking, 18)} that are lacking: send it coins, or sell "
            "fewer --slots or offers"
        )
    said = f"staked {format_amount(lacking, 18)}, now {format_amount(needed, 18)}: {why}"
    _said(say, await chain.stake(account, provider, lacking), said)


def _address_setting(text: str, name: str) -> Address:
    try:
        return address(text)
    except ValueError:
        raise ConfigError(f"{name} {text!r} is not an address") from None


def _said(say: Say, receipt: Receipt, what: str) -> None:
    say(f"{what} ({receipt.transaction[:10]}, {receipt.gas_used} gas)")
