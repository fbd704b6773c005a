"""What the commands do: clients of `penstock.skills`, which talk on stderr and give data on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from agents._context import Context
from agents._output import emit_json, emit_table, short_address, talk
from agents.skills import _templates
from penstock.consumer import funds
from penstock.consumer.connections import Connections
from penstock.errors import ConfigError, NotFound, PenstockError
from penstock.events import Receipt
from penstock.keys import licence_key
from penstock.licences import ENDLESS, NEVER, Item, Kind, Licence, LicenceId, Product, ProductId, Tier, split
from penstock.networks import LOCAL_CHAIN_ID, network
from penstock.skills import publishing
from penstock.skills.analytics import bought_together, by_day
from penstock.skills.client import Catalogue, Skills, domain_of
from penstock.skills.content import open_content
from penstock.skills.manifest import Card, category_of
from penstock.skills.sandbox import Sandbox
from penstock.types import Token, address
from penstock.units import format_amount, parse_amount


@dataclass(frozen=True, slots=True)
class Wish:
    words: tuple[str, ...]
    category: str | None
    item: str | None
    free: bool


@asynccontextmanager
async def _skills(context: Context, ipfs_url: str = "") -> AsyncIterator[Skills]:
    chain, account, home = await context.chain(), context.payer(), context.settings.home
    async with Connections(allow_private=_private(context)) as http:
        receipts = home / f"skill-receipts-{chain.chain_id}-{account.address}.jsonl"
        content = open_content(home, ipfs_url)
        yield Skills(chain, account, http, content, receipts)


def _private(context: Context) -> bool:
    """Whether gateways and hosts may be on this machine: on local chains, if nothing else is said."""
    said = context.settings.allow_private
    return network(context.settings.network).chain_id == LOCAL_CHAIN_ID if said is None else said


def init(folder: Path, kind: str, *, json: bool) -> None:
    name = folder.resolve().name
    try:
        files = _templates.files(name, kind)
    except KeyError:
        raise ConfigError(f"no kind {kind!r}: choose python, http, workflow or model") from None
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty: name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (folder / file).write_text(text)
    if json:
        emit_json({"folder": str(folder), "files": sorted(files)})
    else:
        talk(f"wrote {', '.join(sorted(files))} to {folder}; next: penstock skill check {folder}")


async def check(context: Context, folder: Path) -> None:
    found = await publishing.check(folder, _sandbox(context))
    _emit_checked(context, found)
    if not found.good:
        raise ConfigError(f"{folder} is not ready to be published: see above")


def _sandbox(context: Context) -> Sandbox:
    return Sandbox(allow_private=_private(context))


def _emit_checked(context: Context, found: publishing.Checked) -> None:
    skill = found.skill
    if context.json:
        emit_json(
            {
                "name": skill.card.name,
                "version": skill.card.version,
                "kind": skill.card.kind,
                "card": skill.card.hash,
                "package": skill.card.package,
                "good": found.good,
                "findings": [asdict(one) for one in found.findings],
                "examples": [asdict(one) for one in found.trials],
            }
        )
        return
    talk(f"{skill.card.name} {skill.card.version} ({skill.card.kind}), {len(skill.package)} bytes of code")
    talk(f"  card     {skill.card.hash}")
    if skill.card.package:
        talk(f"  package  {skill.card.package}")
    for trial in found.trials:
        talk(f"  example  {trial.operation}: {trial.trouble or 'good'} ({trial.milliseconds} ms)")
    for finding in found.findings:
        talk(f"  {finding}")


async def publish(context: Context, folder: Path, ipfs_url: str) -> None:
    chain, account = await context.chain(), context.account()
    domain_of(chain)
    if context.settings.wallet:
        talk(f"the publisher is the account {account.address}: a wallet publishes nothing, and pays nothing of this")
    found = await publishing.check(folder, _sandbox(context))
    if not context.json or not found.good:
        _emit_checked(context, found)
    if not found.good:
        raise ConfigError(f"{folder} is not ready to be published: see above")
    token = await context.token(found.skill.manifest.licence.token)
    content = open_content(context.settings.home, ipfs_url)
    done = await publishing.publish(chain, account, content, found.skill, token.address, uris=bool(ipfs_url))
    if context.json:
        emit_json({"product": done.product, "release": done.release, "card": done.card, "package": done.package})
    elif done.receipts:
        await say_fees(context, f"product {done.product}, release {done.release}", done.receipts)
        talk(f"next: serve it (penstock-provider skills --account …), and penstock skill show {done.product}")
    else:
        talk(f"product {done.product} is as it was: nothing has changed")


async def search(context: Context, wish: Wish, ipfs_url: str) -> None:
    chain = await context.chain()
    domain_of(chain)
    products = await chain.products_in(category_of(wish.category)) if wish.category else await chain.products()
    rows = []
    for product in products:
        if not product.active or (wish.free and product.listing.kind is not Kind.FREE):
            continue
        if wish.item and product.listing.item.name.lower() != wish.item.lower():
            continue
        description = await _description(context, product, ipfs_url)
        text = f"{product.listing.name} {description}".lower()
        if all(word.lower() in text for word in wish.words):
            rows.append((product, await chain.rating(product.id), description))
    rows.sort(key=lambda row: (-(row[1].stars or 0), -row[1].weight, row[0].id))
    if context.json:
        emit_json(
            [
                {"product": p.id, "name": p.listing.name, "description": text, "stars": r.stars, "reviews": r.count}
                | _priced(p)
                for p, r, text in rows
            ]
        )
        return
    if not rows:
        talk("no product fits; `penstock skill search` without words and options lists all")
        return
    table = [
        [
            str(product.id),
            product.listing.name,
            product.listing.category.name.lower(),
            await _price(context, product),
            f"{rating.stars:.1f} ({rating.count})" if rating.stars else "-",
            short_address(product.publisher),
            description[:60],
        ]
        for product, rating, description in rows
    ]
    emit_table(["PRODUCT", "NAME", "CATEGORY", "PRICE", "STARS", "PUBLISHER", "WHAT"], table, right=["PRODUCT"])


async def _description(context: Context, product: Product, ipfs_url: str) -> str:
    """From the card where that is at hand; a publisher who does not answer is no reason to wait for it."""
    content = open_content(context.settings.home, ipfs_url)
    release = await (await context.chain()).release(product.id, product.releases)
    try:
        return str(msgspec.json.decode(await content.get(release.content_hash)).get("description", ""))
    except (PenstockError, msgspec.DecodeError, AttributeError):
        return ""


async def show(context: Context, number: int, ipfs_url: str) -> None:
    chain = await context.chain()
    domain_of(chain)
    product = await chain.product(ProductId(number))
    products = {one.id: one for one in await chain.products()}
    rating, release = await chain.rating(product.id), await chain.release(product.id, product.releases)
    events = await chain.licence_events(context.deployment.first_block, (await chain.head()).number)
    together = bought_together(events, products, product.id)
    price = next((price for price in product.prices if price), 0)
    shares = split(price, product, products.__getitem__, await chain.treasury())
    async with Connections(allow_private=_private(context)) as http:
        content = open_content(context.settings.home, ipfs_url)
        card: Card | None = None
        try:
            card = await Catalogue(chain, http, content).card(product)
        except PenstockError as error:
            talk(f"warning  {error}")
    operations = {} if card is None or card.kind == "model" else card.interface().operations
    if context.json:
        emit_json(
            {
                "product": product.id,
                "name": product.listing.name,
                "publisher": product.publisher,
                "active": product.active,
                "version": str(release.version),
                "card": release.content_hash,
                "stars": rating.stars,
                "reviews": rating.count,
                "shares": [
                    {"product": one.product, "account": one.account, "amount": str(one.amount)} for one in shares
                ],
                "operations": list(operations),
                "limits": None if card is None else msgspec.to_builtins(card.run),
                "together": [asdict(one) for one in together],
            }
            | _priced(product)
        )
        return
    token = await context.token(product.listing.token)
    print(f"{product.listing.name} {release.version}, product {product.id}, by {product.publisher}")
    if card is not None:
        print(f"  {card.description}")
    print(f"  price    {await _price(context, product)}{'' if product.active else '  (not for sale)'}")
    if rating.stars:
        print(f"  stars    {rating.stars:.2f} of {rating.count}, weighted by what they paid")
    for name, operation in operations.items():
        print(f"  calls    {name}  {operation.summary}")
    if card is not None and card.kind == "python":
        hosts = ", ".join(card.run.network) or "none"
        print(f"  limits   {card.run.seconds:g} s, {card.run.memory_mb} MB, network: {hosts}")
    if price:
        for share in shares:
            who = f"product {share.product}" if share.product else "treasury"
            amount = format_amount(share.amount, token.decimals, token.symbol)
            print(f"  of {format_amount(price, token.decimals, token.symbol)}  {amount} to {share.account} ({who})")
    for one in together[:5]:
        name = products[one.product].listing.name
        print(f"  together {one.both} of its buyers also have {name} (product {one.product})")


async def buy(
    context: Context, number: int, tier: str, quantity: int, renew: int | None, max_price: str | None
) -> None:
    consumer = await context.consumer()
    chain, account = consumer.chain, consumer.account
    domain = domain_of(chain)
    product = await chain.product(ProductId(number))
    token = await context.token(product.listing.token)
    chosen = _tier(tier)
    cost = product.cost(chosen, quantity)
    if cost is None:
        prices = await _price(context, product)
        raise ConfigError(
            f"product {number} is not sold like that (tier {tier}, quantity {quantity}): it costs {prices}"
        )
    if max_price is not None and cost > parse_amount(max_price, token.decimals):
        raise ConfigError(f"it costs {format_amount(cost, token.decimals, token.symbol)}, more than --max-price")
    if renew is not None:
        held = await chain.licence(LicenceId(renew))
        if held.product != product.id or held.tier is not chosen:
            raise ConfigError(f"licence {renew} is of product {held.product}, tier {held.tier.name.lower()}")
    await funds.check_price(consumer, token, cost, cure="a product that costs less")
    with funds.paying(consumer, token, cost):
        if renew is not None:
            licence = LicenceId(renew)
            receipts = await publishing.renew(chain, account, product, licence, quantity=quantity, max_cost=cost)
        else:
            key = licence_key(account, domain).address
            licence, cost, receipts = await publishing.buy(
                chain, account, product, session_key=key, tier=chosen, quantity=quantity, max_cost=cost
            )
    paid = format_amount(cost, token.decimals, token.symbol)
    if context.json:
        emit_json(
            {
                "licence": licence,
                "product": product.id,
                "cost": str(cost),
                "token": token.address,
                "payer": account.address,
            }
        )
    else:
        payer = f", paid from wallet {account.address}" if context.settings.wallet else ""
        await say_fees(context, f"licence {licence} of {product.listing.name} for {paid}{payer}", receipts)
        talk(f"next: penstock skill run {product.id}")


async def run(context: Context, number: int, operation: str, given: str, licence: int | None, ipfs_url: str) -> None:
    value = _json_of(given)
    async with _skills(context, ipfs_url) as skills:
        if licence is None:
            session = await skills.session_for(ProductId(number))
        else:
            held = await skills.chain.licence(LicenceId(licence))
            if held.product != number:
                raise ConfigError(f"licence {licence} is of product {held.product}, not {number}")
            session = await skills.session(held)
        answer = await session.call(operation, value)
    if context.json:
        emit_json(
            {
                "output": answer.output,
                "usage": msgspec.to_builtins(answer.usage),
                "receipt": answer.receipt.hash,
            }
        )
        return
    print(json.dumps(answer.output, indent=2, ensure_ascii=False))
    token = await context.token(answer.usage.token)
    cost = format_amount(int(answer.usage.cost), token.decimals, token.symbol)
    left, took = answer.usage.state.remaining, answer.usage.milliseconds
    talk(f"{answer.usage.units} units ({cost}), {left} left, {took} ms, receipt {answer.receipt.hash[:10]}")


async def review(context: Context, number: int, stars: int, licence: int | None) -> None:
    chain, account = await context.chain(), context.account()
    domain_of(chain)
    if context.settings.wallet:
        raise ConfigError(
            "a wallet reviews nothing: only an account can, for the licences that it holds; leave --wallet"
        )
    mine = [one for one in await chain.licences_of(account.address) if one.product == number]
    if licence is not None:
        mine = [one for one in mine if one.id == licence]
    good = [one for one in mine if not one.reviewed]
    if not good:
        why = "you have reviewed it" if mine else "you hold no licence of it"
        raise NotFound(f"product {number} is not yours to review: {why}")
    receipt = await chain.review(account, max(good, key=lambda one: one.paid).id, stars)
    await say_fees(context, f"{stars} stars for product {number}", [receipt])
    if context.json:
        rating = await chain.rating(ProductId(number))
        emit_json({"product": number, "stars": rating.stars, "reviews": rating.count})


async def stats(context: Context) -> None:
    chain, account = await context.chain(), context.account()
    domain_of(chain)
    products = {one.id: one for one in await chain.products()}
    events = await chain.licence_events(context.deployment.first_block, (await chain.head()).number)
    days = by_day(events, products, account.address, await chain.treasury())
    if context.json:
        emit_json([asdict(one) | {"earned": str(one.earned)} for one in days])
        return
    if not days:
        talk("nothing was sold yet")
        return
    rows = []
    for one in days:
        token = await context.token(one.token)
        earned = format_amount(one.earned, token.decimals, token.symbol)
        name = products[one.product].listing.name
        numbers = (one.sales, one.renewals, one.refunds, one.units)
        rows.append([one.day, f"{name} ({one.product})", *map(str, numbers), earned])
    head = ["DAY", "PRODUCT", "SALES", "RENEWALS", "REFUNDS", "UNITS", "EARNED"]
    emit_table(head, rows, right=head[2:])


async def licences(context: Context) -> None:
    chain, account = await context.chain(), context.payer()
    domain_of(chain)
    held, now = await chain.licences_of(account.address), (await chain.head()).timestamp
    products = {one.id: one for one in await chain.products()}
    if context.json:
        emit_json([_licence(one, now) for one in held])
        return
    if not held:
        talk("no licences; `penstock skill search` lists what can be bought")
        return
    rows = []
    for one in held:
        product = products[one.product]
        token = await context.token(product.listing.token)
        paid = format_amount(one.paid, token.decimals, token.symbol)
        name, tier, status = product.listing.name, one.tier.name.lower(), one.status.name.lower()
        if one.refundable_until >= now:
            status = f"refundable until {_moment(one.refundable_until)}"
        rows.append([str(one.id), f"{name} ({product.id})", tier, status, _left(one, now), paid])
    emit_table(["LICENCE", "PRODUCT", "TIER", "STATUS", "LEFT", "PAID"], rows, right=["LICENCE", "PAID"])


async def licensed(context: Context, provider: str, number: int) -> None:
    chain = await context.chain()
    domain_of(chain)
    try:
        who = address(provider)
    except ValueError:
        raise ConfigError(f"{provider!r} is no address") from None
    product, now = await chain.product(ProductId(number)), (await chain.head()).timestamp
    if product.listing.item is not Item.MODEL:
        raise ConfigError(f"product {number} ({product.listing.name}) is no model")
    held = [one for one in await chain.licences_of(who) if one.product == number and one.is_valid(now)]
    if not held:
        raise NotFound(f"{who} holds no licence of product {number} ({product.listing.name}) that is good now")
    if context.json:
        emit_json([_licence(one, now) for one in held])
    else:
        talk(f"{who} holds licence {held[0].id} of {product.listing.name}: {_left(held[0], now)} left")


# --- helpers ---


def _tier(text: str) -> Tier:
    try:
        return Tier[text.upper()]
    except KeyError:
        raise ConfigError(f"no tier {text!r}: choose personal, commercial or enterprise") from None


def _json_of(text: str) -> Any:
    try:
        if text == "-":
            return json.loads(sys.stdin.read())
        if text.startswith("@"):
            return json.loads(Path(text[1:]).read_bytes())
        return json.loads(text)
    except OSError as error:
        raise ConfigError(f"cannot read {text[1:]}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f'the input is no JSON ({error}): write --input \'{{"text": "…"}}\'') from None


async def _price(context: Context, product: Product) -> str:
    """Such as "0.001 BNB for 100 units"."""
    listing = product.listing
    if listing.kind is Kind.FREE:
        return "free"
    token: Token = await context.token(listing.token)
    what = {Kind.PERPETUAL: "", Kind.USAGE: f" for {listing.unit} units"}
    period = what.get(listing.kind, f" for {listing.unit // 86400} days")
    parts = []
    for tier in Tier:
        if price := product.prices[tier.place]:
            name = "" if tier is Tier.PERSONAL else f"{tier.name.lower()} "
            parts.append(f"{name}{format_amount(price, token.decimals, token.symbol)}{period}")
    return ", ".join(parts)


def _priced(product: Product) -> dict[str, Any]:
    listing = product.listing
    return {
        "kind": listing.kind.name.lower(),
        "category": listing.category.name.lower(),
        "token": listing.token,
        "prices": [str(price) for price in product.prices],
        "unit": listing.unit,
    }


def _licence(one: Licence, now: int) -> dict[str, Any]:
    return {
        "licence": one.id,
        "product": one.product,
        "tier": one.tier.name.lower(),
        "status": one.status.name.lower(),
        "valid": one.is_valid(now),
        "expires_at": None if one.expires_at == NEVER else one.expires_at,
        "bought": one.bought,
        "used": one.used,
        "paid": str(one.paid),
        "refundable_until": one.refundable_until or None,
    }


def _left(one: Licence, now: int) -> str:
    left = one.remaining(now)
    if one.bought:
        return f"{left} units"
    if left == ENDLESS:
        return "for ever"
    return f"until {_moment(one.expires_at)}" if left else "over"


def _moment(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


async def say_fees(context: Context, what: str, receipts: list[Receipt] | tuple[Receipt, ...]) -> None:
    coin = await context.token("native")
    fee = format_amount(sum(one.fee for one in receipts), coin.decimals, coin.symbol)
    talk(f"{what}  {receipts[-1].transaction}  {sum(one.gas_used for one in receipts):,} gas, {fee}")
