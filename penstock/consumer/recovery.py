"""What a lost journal forgot, from the chain's events."""

from __future__ import annotations

from contextlib import suppress

from penstock.channels import ChannelState
from penstock.consumer.closing_channels import ChannelCloser
from penstock.consumer.closing_streams import StreamCloser
from penstock.consumer.core import ConsumerCore
from penstock.errors import NotFound, StreamLeftOpen
from penstock.events import ChannelOpened, Opened
from penstock.journal import ChannelRecord, Record, State
from penstock.types import Address, StreamId, StreamKey


async def recover(consumer: ConsumerCore, first_block: int) -> list[Record | ChannelRecord]:
    """Put on record, and stop, every running stream and channel that the chain says this account opened. The
    vouchers that were signed are their provider's to show.

    For a journal that was lost. Reads all events from `first_block` on.
    """
    me, chain = consumer.account.address, consumer.chain
    streams: dict[StreamId, Opened] = {}
    channels: dict[StreamId, ChannelOpened] = {}
    for event in await chain.events(first_block, (await chain.head()).number):
        if isinstance(event, Opened) and event.key.payer == me and consumer.journal.get(event.id) is None:
            streams[event.id] = event
        if isinstance(event, ChannelOpened) and event.key.payer == me and consumer.journal.channel(event.id) is None:
            channels[event.id] = event
    running = [id for id, state in zip(streams, await chain.streams(list(streams)), strict=True) if state]
    locked = {
        id: state
        for id, state in zip(channels, await chain.channels(list(channels)), strict=True)
        if state is not None and state.running
    }
    for stream in running:
        await _adopt(consumer, streams[stream])
    for channel, state in locked.items():
        await _adopt_channel(consumer, channels[channel], state)
    # Those of one session may be closed by one request: what is stopped first says how both ended.
    found: list[Record | ChannelRecord] = []
    for stream in running:
        with suppress(StreamLeftOpen):  # it is in the record
            await StreamCloser(consumer).stop(stream)
        found.append(consumer.record(stream))
    for channel in locked:
        with suppress(StreamLeftOpen):
            await ChannelCloser(consumer).stop(channel)
        found.append(consumer.channel_record(channel))
    return found


async def _adopt(consumer: ConsumerCore, event: Opened) -> None:
    """Put a stream on record that only the chain knows of. Its session key is lost: we can only close it."""
    provider, endpoint, model, _ = await _seller(consumer, event.key)
    consumer.journal.intend(
        Record(
            key=event.key,
            chain_id=consumer.chain.chain_id,
            stream_pay=consumer.chain.stream_pay,
            provider=provider,
            endpoint=endpoint,
            model=model,
            secret=b"",
            rate=event.rate,
            duration=event.end - event.start,
            void_after=0,
            first_block=event.place.block,
            created_at=event.start,
        )
    )
    consumer.journal.opened(event.id, start=event.start, end=event.end)


async def _adopt_channel(consumer: ConsumerCore, event: ChannelOpened, state: ChannelState) -> None:
    """As `_adopt`."""
    provider, endpoint, model, prices = await _seller(consumer, event.key)
    consumer.journal.intend_channel(
        ChannelRecord(
            key=event.key,
            chain_id=consumer.chain.chain_id,
            stream_pay=consumer.chain.stream_pay,
            provider=provider,
            endpoint=endpoint,
            model=model,
            secret=b"",
            prompt_price=prices[0],
            completion_price=prices[1],
            deposit=state.deposit,
            first_block=event.place.block,
            created_at=event.place.timestamp,
            state=State.OPEN,
        )
    )
    consumer.journal.signed(event.id, state.settled)


async def _seller(consumer: ConsumerCore, key: StreamKey) -> tuple[Address, str, str, tuple[int, int]]:
    """Provider, endpoint, model and token prices of an offer that was bought; blank where the registry has none."""
    try:
        listing = await consumer.market.listing(key.offer_id)
    except NotFound:
        return key.payee, "", "", (0, 0)
    terms = listing.offer.terms
    prices = terms.prompt_price, terms.completion_price
    return listing.provider.id, listing.provider.endpoint, terms.model, prices
