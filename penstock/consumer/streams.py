"""A session's stream: put on record, opened, extended."""

from __future__ import annotations

import asyncio

from penstock.accrual import flow
from penstock.consumer.core import ConsumerCore
from penstock.consumer.funds import means
from penstock.consumer.gateway import Gateway
from penstock.consumer.market import Listing
from penstock.errors import ConfigError, GatewayGarbage, NodeUnavailable, PenstockError, TransactionLost
from penstock.events import Opened, ToppedUp
from penstock.journal import Record
from penstock.types import NATIVE, StreamKey
from penstock.wire.sessions import SessionAnswer, WellKnown

DEFAULT_DURATION = 60
"""Seconds to pay for in advance where nothing else is said. What is not used comes back."""


async def intend(
    consumer: ConsumerCore, listing: Listing, key: StreamKey, secret: bytes, *, duration: int, void_after: int
) -> Record:
    """Put a stream on record, before anything that may open it leaves the process."""
    record = Record(
        key=key,
        chain_id=consumer.chain.chain_id,
        stream_pay=consumer.chain.stream_pay,
        provider=listing.provider.id,
        endpoint=listing.provider.endpoint,
        model=listing.offer.terms.model,
        secret=secret,
        rate=listing.offer.terms.rate,
        duration=duration,
        void_after=void_after,
        first_block=(await consumer.chain.head()).number,
        created_at=consumer.now(),
    )
    consumer.journal.intend(record, consumer.limit(listing.token))
    consumer.tell("intended", record)
    return record


async def send_open(consumer: ConsumerCore, record: Record, from_vault: int) -> None:
    """Open a stream on record by a transaction of our own."""
    key, journal = record.key, consumer.journal
    try:
        receipt = await consumer.chain.open(
            consumer.account,
            key,
            rate=record.rate,
            duration=record.duration,
            value=flow(record.rate, record.duration) - from_vault if key.token == NATIVE else 0,
            from_vault=from_vault,
        )
    except (NodeUnavailable, TransactionLost):
        raise  # it may have opened, or may yet: closing finds out
    except PenstockError:
        journal.void(record.id)
        raise
    opened = next(event for event in receipt.events if isinstance(event, Opened) and event.id == record.id)
    journal.opened(record.id, start=opened.start, end=opened.end)
    consumer.keep(record, "open", receipt)


def spent(record: Record, now: int) -> int:
    """What an open stream has cost by a time: base units. A second at least, and its deposit at most."""
    until = min(max(now, record.start + 1), record.end)
    return flow(record.rate, until - record.start)


async def top_up(consumer: ConsumerCore, record: Record, seconds: int) -> int:
    """Pay for more time of an open stream, from the vault balance, then the wallet. Its new end."""
    async with consumer.purse:
        return await _top_up(consumer, record, seconds)


async def _top_up(consumer: ConsumerCore, record: Record, seconds: int) -> int:
    chain, account, token = consumer.chain, consumer.account, record.key.token
    cost = flow(record.rate, record.end + seconds - record.start) - flow(record.rate, record.end - record.start)
    kind = await chain.token(token)
    from_vault = min((await means(consumer, kind)).vault, cost)
    short = cost - from_vault
    consumer.journal.reserve(record.id, cost, consumer.limit(kind))
    try:
        if token != NATIVE and short and await chain.allowance(token, account.address) < short:
            consumer.keep(record, "approve", await chain.approve(account, token, short))
        receipt = await chain.top_up(
            account, record.key, duration=seconds, value=short if token == NATIVE else 0, from_vault=from_vault
        )
    except (NodeUnavailable, TransactionLost):
        raise  # it may have been paid, or may yet: what is reserved counts until the stream is over
    except PenstockError:
        consumer.journal.reserve(record.id, -cost, None)
        raise
    end = next(event.end for event in receipt.events if isinstance(event, ToppedUp) and event.id == record.id)
    consumer.journal.opened(record.id, start=record.start, end=end)
    consumer.keep(record, "top up", receipt)
    return end


def relayed_seconds(duration: int | None, greeting: WellKnown, *, gasless: bool) -> int:
    """How long to pay for in advance. ConfigError where it makes no sense, or the provider does not open it."""
    least = greeting.min_relayed_duration if gasless else 1
    seconds = max(DEFAULT_DURATION, least) if duration is None else duration
    if seconds < 1:
        raise ConfigError("a stream lasts at least 1 second; raise --duration")
    if seconds < least:
        raise ConfigError(
            f"the provider opens streams by signature from {least} seconds on: use --duration {least}, "
            "or an account with gas and --no-gasless"
        )
    return seconds


async def seen_open(consumer: ConsumerCore, record: Record) -> bool:
    """Whether the chain has the stream that a provider was to open; the journal knows of it then."""
    state = await consumer.wait_for_open(record)
    if state is not None:
        consumer.journal.opened(record.id, start=state.start, end=state.end)
    return state is not None


async def keep_relayed_open(consumer: ConsumerCore, gateway: Gateway, record: Record, answer: SessionAnswer) -> None:
    """What a provider says that it opened. GatewayGarbage where the chain does not have it."""
    if not await seen_open(consumer, record):
        raise GatewayGarbage(
            f"{gateway.endpoint} says that it opened the stream, and the chain does not have it; "
            "choose another provider"
        )
    if answer.transaction:
        consumer.keep_relayed(record, "open", answer.transaction, answer.gas_used)


def until(consumer: ConsumerCore, record: Record) -> float:
    """When an answer must be there, on the event loop's clock: a little after the stream's end, top-ups included. The
    provider's own word on why it stopped comes first."""
    left = record.end - consumer.now() + 5
    return asyncio.get_running_loop().time() + max(left, 1)
