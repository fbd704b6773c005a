"""The commands of `penstock`. Each gets a Context and writes data to stdout, talk to stderr."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from agents._context import Context
from agents._output import emit_json, emit_table, short, short_address, talk
from agents.buyer import Filters
from penstock.accrual import flow
from penstock.consumer import (
    ChannelSummary,
    Consumer,
    Listing,
    Summary,
    Wanted,
)
from penstock.consumer.market import choose, has_prefix, paid_in, rank, why_nothing
from penstock.errors import ConfigError, InsufficientFunds, JournalDamaged, NotFound, PenstockError, StreamLeftOpen
from penstock.journal import ChannelRecord, Record, State, find, set_aside
from penstock.types import NATIVE, ZERO_ADDRESS, Address, Receipt, Token, address
from penstock.units import format_amount, format_rate, parse_amount, parse_rate, when


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


def parse_duration(text: str) -> int:
    """'90', '90s', '5m' or '1h' in seconds."""
    match = re.fullmatch(r"(\d{1,9})([smh]?)", text.strip())
    if match is None or int(match[1]) == 0:
        raise ConfigError(f"{text!r} is not a duration; write seconds, or such as 90s, 5m, 1h")
    return int(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


# --- the market ----------------------------------------------------------------------------------


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
    from penstock.consumer import Market

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
    from dataclasses import replace

    return listings, replace(wanted, token=token.address, max_rate=parse_rate(wish.max_rate, token.decimals))


async def filters_of(context: Context, wish: Wish) -> Filters:
    """The wish's limits, for the buyer."""
    from agents.opening import choice_settings

    asset = await (await context.chain()).token(await (await context.chain()).stake_asset())
    named = wish.token or choice_settings(context).token or ("native" if wish.max_rate is not None else "")
    token = await context.token(named) if named else None
    stake = wish.min_stake
    return Filters(
        max_rate=parse_rate(wish.max_rate, token.decimals) if wish.max_rate is not None and token else None,
        min_stake=parse_amount(stake, asset.decimals) if stake else 0,
        regions=frozenset({wish.region} if wish.region is not None else ()),
        token=token.address if token else None,
    )


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


# --- what sessions came to -----------------------------------------------------------------------


async def tidy(consumer: Consumer) -> None:
    """Close what a process that died left open, before anything new."""
    found: list[Record | ChannelRecord] = [*await consumer.reconcile(), *await consumer.reconcile_channels()]
    for record in found:
        tell_summary(await _summary_of(consumer, record), consumer.account.address)


def tell_summary(summary: Summary | ChannelSummary, me: Address) -> None:
    token = summary.token
    kind = "stream" if isinstance(summary, Summary) else "channel"
    identifier = short(summary.stream if isinstance(summary, Summary) else summary.channel)

    def amount(value: int) -> str:
        return format_amount(value, token.decimals, token.symbol)

    if summary.state is State.VOID:
        talk(f"void     {kind} {identifier}  it never opened; nothing was paid")
    elif summary.state is State.CLOSED:
        where = ""
        if summary.refund:
            to = {ZERO_ADDRESS: "your vault balance", me: "your wallet"}.get(
                Address(summary.refund_to), summary.refund_to
            )
            where = f" to {to}"
        if isinstance(summary, Summary):
            used = f"{summary.seconds} s streamed"
        else:
            used = f"{summary.prompt_tokens} + {summary.completion_tokens} tokens"
        talk(
            f"closed   {kind} {identifier}  {used}, paid {amount(summary.paid)}, "
            f"refunded {amount(summary.refund)}{where}"
        )
    elif summary.problem:
        talk(f"pending  {kind} {identifier}  {summary.problem}")


def summary_json(summary: Summary | ChannelSummary) -> dict[str, Any]:
    data = asdict(summary) | {"state": str(summary.state), "token": summary.token.address}
    data |= {"symbol": summary.token.symbol, "decimals": summary.token.decimals}
    for name in ("deposit", "paid", "refund"):
        data[name] = str(data[name])
    if isinstance(summary, ChannelSummary):
        data |= {name: str(data[name]) for name in ("prompt_price", "completion_price")}
    data["transactions"] = [asdict(one) | {"fee": str(one.fee)} for one in summary.transactions]
    return data


# --- streams -------------------------------------------------------------------------------------


async def streams(context: Context, everything: bool) -> None:
    chain, journal = await context.chain(), context.journal()
    records = [
        record
        for record in (journal.all() if everything else journal.unfinished())
        if (record.chain_id, record.stream_pay) == (chain.chain_id, chain.stream_pay)
    ]
    tokens = {token: await chain.token(token) for token in {record.key.token for record in records}}
    summaries = [Summary.of(record, tokens[record.key.token]) for record in records]
    if context.json:
        emit_json([summary_json(summary) for summary in summaries])
        return
    if not summaries:
        talk("no streams" if everything else "no stream is open")
        return
    now = (await chain.head()).timestamp

    def paid(summary: Summary, record: Record) -> int:
        if summary.state is State.OPEN:
            return flow(record.rate, min(max(now - record.start, 1), record.end - record.start))
        return summary.paid

    emit_table(
        ["STREAM", "STATE", "STARTED", "MODEL", "PROVIDER", "PAID", "REFUNDED", "TOKEN"],
        [
            [
                short(summary.stream),
                summary.state,
                when(summary.start) if summary.start else "-",
                summary.model,
                short_address(summary.provider),
                format_amount(paid(summary, record), summary.token.decimals),
                format_amount(summary.refund, summary.token.decimals),
                summary.token.symbol,
            ]
            for summary, record in zip(summaries, records, strict=True)
        ],
        right=["PAID", "REFUNDED"],
    )


async def channels(context: Context, everything: bool) -> None:
    chain, journal = await context.chain(), context.journal()
    records = [
        record
        for record in (journal.channels() if everything else journal.unfinished_channels())
        if (record.chain_id, record.stream_pay) == (chain.chain_id, chain.stream_pay)
    ]
    tokens = {token: await chain.token(token) for token in {record.key.token for record in records}}
    summaries = [ChannelSummary.of(record, tokens[record.key.token]) for record in records]
    if context.json:
        emit_json([summary_json(summary) for summary in summaries])
        return
    if not summaries:
        talk("no channels" if everything else "no channel is open")
        return
    emit_table(
        ["CHANNEL", "STATE", "MODEL", "PROVIDER", "TOKENS", "PAID", "REFUNDED", "TOKEN"],
        [
            [
                short(summary.channel),
                summary.state,
                summary.model,
                short_address(summary.provider),
                f"{summary.prompt_tokens}+{summary.completion_tokens}",
                format_amount(summary.paid, summary.token.decimals),
                format_amount(summary.refund, summary.token.decimals),
                summary.token.symbol,
            ]
            for summary in summaries
        ],
        right=["TOKENS", "PAID", "REFUNDED"],
    )


async def stop(context: Context, prefix: str | None) -> None:
    consumer = await context.consumer()
    journal = consumer.journal
    if prefix is None:
        records, locked = consumer.mine(journal.unfinished()), consumer.mine(journal.unfinished_channels())
    else:
        records, locked = find(consumer.mine(journal.all()), prefix), find(consumer.mine(journal.channels()), prefix)
        # A stream and a channel of one session share their id.
        ids = {record.id for record in records} | {channel.id for channel in locked}
        if not ids:
            raise NotFound(
                f"no stream of this account starts with {prefix}, and no channel; `penstock streams --all` and "
                "`penstock channels --all` list them"
            )
        if len(ids) > 1:
            raise NotFound(f"{len(ids)} streams and channels start with {prefix}; give more digits")
    stopped: list[Record | ChannelRecord] = []
    failure: PenstockError | None = None
    wanted: list[Record | ChannelRecord] = [*records, *locked]
    for record in wanted:
        try:
            if isinstance(record, ChannelRecord):
                stopped.append(await consumer.stop_channel(record.id))
            else:
                stopped.append(await consumer.stop(record.id))
        except PenstockError as error:
            failure = failure or error  # which is raised when all were tried
    if stopped or failure is None:
        await _report(context, consumer, stopped)
    if failure is not None:
        raise failure


async def recover(context: Context, from_chain: bool) -> None:
    try:
        context.journal()
    except JournalDamaged:
        if not from_chain:
            raise
        moved = set_aside(context.settings.journal, int(time.time()))
        talk(f"the damaged journal is now {moved[0]}")
    consumer = await context.consumer()
    records: list[Record | ChannelRecord] = [*await consumer.reconcile(), *await consumer.reconcile_channels()]
    if from_chain:
        records += await consumer.recover_from_chain(context.deployment.first_block)
    await _report(context, consumer, records)
    for record in records:
        if record.state is not State.OPEN:
            continue
        if isinstance(record, ChannelRecord):
            locked, until = record.deposit - record.signed, record.reclaimable_at
        else:
            locked, until = flow(record.rate, record.duration), record.end
        raise StreamLeftOpen(record.id, record.problem, locked=locked, until=until)


async def _report(context: Context, consumer: Consumer, records: Sequence[Record | ChannelRecord]) -> None:
    summaries = [await _summary_of(consumer, record) for record in records]
    for summary in summaries:
        tell_summary(summary, consumer.account.address)
    if context.json:
        emit_json([summary_json(summary) for summary in summaries])
    elif not summaries:
        talk("no stream was open, and no channel")


async def _summary_of(consumer: Consumer, record: Record | ChannelRecord) -> Summary | ChannelSummary:
    token = await consumer.chain.token(record.key.token)
    return ChannelSummary.of(record, token) if isinstance(record, ChannelRecord) else Summary.of(record, token)


# --- money ---------------------------------------------------------------------------------------


async def balances(context: Context) -> dict[str, Any]:
    """What the account has of each token: base units, as texts."""
    me, chain = context.payer().address, await context.chain()
    return {
        "account": me,
        "balances": [
            {
                "token": token.address,
                "symbol": token.symbol,
                "decimals": token.decimals,
                "wallet": str(await chain.token_balance(token.address, me)),
                "vault": str(await chain.vault_balance(token.address, me)),
            }
            for token in await context.known_tokens()
        ],
    }


async def balance(context: Context) -> None:
    found = await balances(context)
    if context.json:
        emit_json(found)
        return
    talk(found["account"])
    emit_table(
        ["TOKEN", "WALLET", "VAULT"],
        [
            [one["symbol"], *(format_amount(int(one[place]), one["decimals"]) for place in ("wallet", "vault"))]
            for one in found["balances"]
        ],
        right=["WALLET", "VAULT"],
    )


async def deposit(context: Context, amount: str, token_text: str) -> None:
    _require_no_wallet(context, "fund")
    account, chain, token = context.account(), await context.chain(), await context.token(token_text)
    value = positive(amount, token)
    held = await chain.token_balance(token.address, account.address)
    if held < value:
        raise InsufficientFunds(
            f"{account.address} has {format_amount(held, token.decimals, token.symbol)}, less than {amount}; "
            "deposit less or add funds"
        )
    receipts = []
    if token.address != NATIVE and await chain.allowance(token.address, account.address) < value:
        receipts.append(("approve", await chain.approve(account, token.address, value)))
    receipts.append(("deposit", await chain.deposit(account, token.address, value)))
    shown = format_amount(value, token.decimals, token.symbol)
    await moved(context, receipts, f"{shown} into the vault", {"token": token.address})


async def withdraw(context: Context, amount: str, token_text: str, to: str | None) -> None:
    _require_no_wallet(context, "withdraw")
    account, chain, token = context.account(), await context.chain(), await context.token(token_text)
    try:
        receiver = account.address if to is None else address(to)
    except ValueError:
        raise ConfigError(f"--to {to} is not an address; write 0x and 40 hex digits") from None
    held = await chain.vault_balance(token.address, account.address)
    value = held if amount.lower() == "all" else positive(amount, token)
    if value > held or not held:
        raise InsufficientFunds(
            f"the vault holds {format_amount(held, token.decimals, token.symbol)} of {account.address}; "
            "withdraw less, or `all`"
        )
    receipt = await chain.withdraw_vault(account, token.address, value, to=receiver)
    shown = format_amount(value, token.decimals, token.symbol)
    await moved(context, [("withdraw", receipt)], f"{shown} out of the vault to {receiver}", {"token": token.address})


def _require_no_wallet(context: Context, command: str) -> None:
    """These move the account's own money, and who has set a wallet means the wallet's."""
    if context.settings.wallet:
        raise ConfigError(f"a wallet is set: use `penstock wallet {command}`, or unset it with --wallet ''")


def positive(amount: str, token: Token) -> int:
    value = parse_amount(amount, token.decimals)
    if not value:
        raise ConfigError("the amount is zero; write how much")
    return value


async def moved(context: Context, receipts: Sequence[tuple[str, Receipt]], what: str, named: Mapping[str, Any]) -> None:
    """Say what was done by which transactions."""
    coin = await (await context.chain()).token(NATIVE)
    for name, receipt in receipts:
        talk(
            f"{name:8} {receipt.transaction}  {receipt.gas_used:,} gas, "
            f"{format_amount(receipt.fee, coin.decimals, coin.symbol)}"
        )
    if what:
        talk(what)
    if context.json:
        done = [
            {"what": name, "hash": one.transaction, "gas_used": one.gas_used, "fee": str(one.fee)}
            for name, one in receipts
        ]
        emit_json({**named, "transactions": done})


# --- settings ------------------------------------------------------------------------------------


def config_show(context: Context) -> None:
    settings = context.settings
    if context.json:
        emit_json(
            {name: {"value": one.value, "origin": one.origin} for name, one in settings.values.items()}
            | {"home": {"value": str(settings.home), "origin": ""}}
        )
        return
    rows = [[name, one.value or "-", one.origin] for name, one in settings.values.items()]
    emit_table(["SETTING", "VALUE", "FROM"], [*rows, ["home", str(settings.home), ""]])
