"""The chain's events, and the blocks that they were read from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import get_args

from sqlalchemy import Connection, delete, select

from penstock.events import ChannelEvent, StreamEvent
from penstock.types import Place, StreamId, StreamKey
from provider.store._database import Database
from provider.store._tables import BLOCKS, EVENTS

BLOCKS_KEPT = 1024
"""So many of the blocks that were read stay on record, to find where a reorganisation forked off."""
ChainEvent = StreamEvent | ChannelEvent
"""What is kept of the chain."""


class Events(Database):
    """Of `Store`: what was read of the chain, and can be read again."""

    async def last_block(self) -> tuple[int, str] | None:
        """Number and hash of the last block that was read."""
        query = select(BLOCKS.c.number, BLOCKS.c.hash).order_by(BLOCKS.c.number.desc()).limit(1)
        row = await self._do(lambda c: c.execute(query).first())
        return (row.number, row.hash) if row else None

    async def blocks(self) -> list[tuple[int, str]]:
        """Blocks on record, the youngest first."""
        query = select(BLOCKS.c.number, BLOCKS.c.hash).order_by(BLOCKS.c.number.desc())
        return [(row.number, row.hash) for row in await self._do(lambda c: c.execute(query).all())]

    async def append_events(self, events: Sequence[ChainEvent], number: int, block_hash: str) -> None:
        """Events of blocks up to this one, which they complete."""
        seen = {e.place.block: e.place.block_hash for e in events} | {number: block_hash}
        rows = [
            {
                "block": e.place.block,
                "log_index": e.place.log_index,
                "stream_id": e.id,
                "kind": type(e).__name__,
                "body": json.dumps(asdict(e)),
            }
            for e in events
        ]

        def work(c: Connection) -> None:
            if rows:
                c.execute(self._insert(EVENTS).on_conflict_do_nothing(), rows)
            c.execute(
                self._insert(BLOCKS).on_conflict_do_nothing(),
                [{"number": n, "hash": h} for n, h in sorted(seen.items())],
            )
            keep = select(BLOCKS.c.number).order_by(BLOCKS.c.number.desc()).limit(1).offset(BLOCKS_KEPT)
            c.execute(delete(BLOCKS).where(BLOCKS.c.number <= keep.scalar_subquery()))

        await self._do(work)

    async def rewind(self, number: int) -> set[StreamId]:
        """Forget what came after this block. Returns the streams that it touches."""

        def work(c: Connection) -> set[StreamId]:
            late = EVENTS.c.block > number
            touched = {StreamId(s) for s in c.execute(select(EVENTS.c.stream_id).where(late).distinct()).scalars()}
            c.execute(delete(EVENTS).where(late))
            c.execute(delete(BLOCKS).where(BLOCKS.c.number > number))
            return touched

        return await self._do(work)

    async def events(self, streams: Iterable[StreamId] | None = None) -> list[ChainEvent]:
        """In the chain's order, of these streams or of all."""
        query = select(EVENTS.c.kind, EVENTS.c.body).order_by(EVENTS.c.block, EVENTS.c.log_index)
        if streams is not None:
            query = query.where(EVENTS.c.stream_id.in_(list(streams)))
        return [_event(row.kind, row.body) for row in await self._do(lambda c: c.execute(query).all())]


_KINDS: dict[str, type[ChainEvent]] = {cls.__name__: cls for cls in get_args(ChainEvent)}


def _event(kind: str, body: str) -> ChainEvent:
    fields = json.loads(body)
    fields["place"] = Place(**fields["place"])
    if "key" in fields:
        fields["key"] = StreamKey(**fields["key"])
    return _KINDS[kind](**fields)
