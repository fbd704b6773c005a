"""What the skill gateway must not forget, in a SQLite file of its own: licence events, tickets, receipts, sessions.

Whatever a method writes is on the disk when it returns (WAL, full sync). Calls run one after another in one thread.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, get_args

import msgspec
from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    delete,
    func,
    select,
)
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from penstock.errors import ConfigError
from penstock.licences import LicenceEvent, LicenceId, Ticket
from penstock.wire.receipts import NOTHING
from penstock.wire.skills import SkillReceipt
from provider.places import connect_to, own, reason
from provider.store import BLOCKS_KEPT, Replayed

T = TypeVar("T")

_metadata = MetaData()
_meta = Table("meta", _metadata, Column("name", String, primary_key=True), Column("value", Text, nullable=False))
_blocks = Table(
    "blocks", _metadata, Column("number", Integer, primary_key=True), Column("hash", String, nullable=False)
)
_events = Table(
    "licence_events",
    _metadata,
    Column("block", Integer, primary_key=True),
    Column("log_index", Integer, primary_key=True),
    Column("kind", String, nullable=False),
    Column("body", Text, nullable=False),
)
_sessions = Table(
    "sessions",
    _metadata,
    Column("token_hash", LargeBinary, primary_key=True),
    Column("licence", Integer, nullable=False),
    Column("expires_at", Integer, nullable=False),
)
_nonces = Table(
    "nonces", _metadata, Column("nonce", String, primary_key=True), Column("expires_at", Integer, nullable=False)
)
_tickets = Table(
    "tickets",
    _metadata,
    Column("licence", Integer, primary_key=True),
    Column("used", Integer, nullable=False),
    Column("signature", LargeBinary, nullable=False),
)
_receipts = Table(
    "receipts",
    _metadata,
    Column("licence", Integer, primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("provider", String, nullable=False),
    Column("product", Integer, nullable=False),
    Column("request_hash", String, nullable=False),
    Column("output_hash", String, nullable=False),
    Column("units", Integer, nullable=False),
    Column("total", Integer, nullable=False),
    Column("accepted_at", Integer, nullable=False),
    Column("finished_at", Integer, nullable=False),
    Column("previous", String, nullable=False),
    Column("hash", String, nullable=False, unique=True),
    Column("outcome", String, nullable=False),
    Column("output", Text),  # of a licence's last call that succeeded, for who did not get the answer
)


@dataclass(frozen=True, slots=True)
class LastCall:
    """A licence's last call that succeeded."""

    receipt: SkillReceipt
    output: str
    """JSON."""


class SkillStore:
    """Open with `SkillStore.open`. One process owns a file at a time: two would each serve the same units."""

    def __init__(self, engine: Engine, lock: int) -> None:
        self._engine, self._lock = engine, lock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="skills")

    @classmethod
    def open(cls, path: Path, *, owner: str) -> SkillStore:
        """`owner` says whose state it is. ConfigError where the file is another's, is in use, or cannot be used."""
        lock = own(path, "--home")
        engine = connect_to(path)
        try:
            _metadata.create_all(engine)
            with engine.begin() as connection:
                connection.execute(insert(_meta).values(name="owner", value=owner).on_conflict_do_nothing())
                found = connection.execute(select(_meta.c.value).where(_meta.c.name == "owner")).scalar_one()
            if found != owner:
                raise ConfigError(f"{path} belongs to {found}, not {owner}: name another --home")
        except (ConfigError, SQLAlchemyError) as error:
            engine.dispose()
            os.close(lock)
            if isinstance(error, SQLAlchemyError):
                raise ConfigError(f"{path} is no usable state file ({reason(error)}): move it away") from None
            raise
        return cls(engine, lock)

    async def close(self) -> None:
        await asyncio.to_thread(self._thread.shutdown)
        self._engine.dispose()
        os.close(self._lock)

    async def _do(self, work: Callable[[Connection], T]) -> T:
        def run() -> T:
            with self._engine.begin() as connection:
                return work(connection)

        # Shielded: a caller that is cancelled must not leave it unknown whether something was written.
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, run))

    # --- the chain's events ---

    async def watch(self, products: Iterable[int]) -> None:
        """Events of other products than before were not kept: then all are read again."""
        wanted = set(products)

        def work(c: Connection) -> None:
            known = c.execute(select(_meta.c.value).where(_meta.c.name == "products")).scalar_one_or_none()
            if known is None or not wanted <= set(json.loads(known)):
                c.execute(delete(_events))
                c.execute(delete(_blocks))
                row = insert(_meta).values(name="products", value=json.dumps(sorted(wanted)))
                c.execute(row.on_conflict_do_update(index_elements=["name"], set_={"value": row.excluded.value}))

        await self._do(work)

    async def blocks(self) -> list[tuple[int, str]]:
        """Blocks on record, the youngest first."""
        query = select(_blocks.c.number, _blocks.c.hash).order_by(_blocks.c.number.desc())
        return [(row.number, row.hash) for row in await self._do(lambda c: c.execute(query).all())]

    async def append_events(self, events: Sequence[LicenceEvent], number: int, block_hash: str) -> None:
        """Events of blocks up to this one, which they complete."""
        seen = {one.place.block: one.place.block_hash for one in events} | {number: block_hash}
        rows = [
            {
                "block": one.place.block,
                "log_index": one.place.log_index,
                "kind": type(one).__name__,
                "body": json.dumps(asdict(one)),
            }
            for one in events
        ]

        def work(c: Connection) -> None:
            if rows:
                c.execute(insert(_events).on_conflict_do_nothing(), rows)
            blocks = [{"number": n, "hash": h} for n, h in sorted(seen.items())]
            c.execute(insert(_blocks).on_conflict_do_nothing(), blocks)
            keep = select(_blocks.c.number).order_by(_blocks.c.number.desc()).limit(1).offset(BLOCKS_KEPT)
            c.execute(delete(_blocks).where(_blocks.c.number <= keep.scalar_subquery()))

        await self._do(work)

    async def rewind(self, number: int) -> None:
        """Forget what came after this block."""

        def work(c: Connection) -> None:
            c.execute(delete(_events).where(_events.c.block > number))
            c.execute(delete(_blocks).where(_blocks.c.number > number))

        await self._do(work)

    async def events(self) -> list[LicenceEvent]:
        """In the chain's order."""
        query = select(_events.c.kind, _events.c.body).order_by(_events.c.block, _events.c.log_index)
        kinds = {kind.__name__: kind for kind in get_args(LicenceEvent)}
        return [
            msgspec.convert(json.loads(row.body), kinds[row.kind])
            for row in await self._do(lambda c: c.execute(query).all())
        ]

    # --- sessions ---

    async def add_session(self, token_hash: bytes, licence: LicenceId, expires_at: int, nonce: str, until: int) -> None:
        """Replayed where the grant's nonce was used before."""

        def work(c: Connection) -> None:
            c.execute(insert(_nonces).values(nonce=nonce, expires_at=until))
            c.execute(insert(_sessions).values(token_hash=token_hash, licence=licence, expires_at=expires_at))

        try:
            await self._do(work)
        except IntegrityError:
            raise Replayed from None

    async def sessions(self) -> list[tuple[bytes, LicenceId, int]]:
        rows = await self._do(lambda c: c.execute(select(_sessions)).all())
        return [(row.token_hash, LicenceId(row.licence), row.expires_at) for row in rows]

    async def forget(self, now: int) -> None:
        """Sessions and nonces that are over."""

        def work(c: Connection) -> None:
            c.execute(delete(_sessions).where(_sessions.c.expires_at < now))
            c.execute(delete(_nonces).where(_nonces.c.expires_at < now))

        await self._do(work)

    # --- tickets ---

    async def keep_ticket(self, ticket: Ticket) -> None:
        """If it is the highest."""
        row = insert(_tickets).values(licence=ticket.licence, used=ticket.used, signature=ticket.signature)
        row = row.on_conflict_do_update(
            index_elements=["licence"],
            set_={"used": row.excluded.used, "signature": row.excluded.signature},
            where=_tickets.c.used < row.excluded.used,
        )
        await self._do(lambda c: c.execute(row))

    async def tickets(self) -> list[Ticket]:
        rows = await self._do(lambda c: c.execute(select(_tickets)).all())
        return [Ticket(LicenceId(row.licence), row.used, row.signature) for row in rows]

    # --- receipts ---

    async def add_receipt(
        self, made: Callable[[int, int, str], SkillReceipt], licence: LicenceId, outcome: str, output: str | None
    ) -> SkillReceipt:
        """`made` gets the place, the total so far and the hash before, and is called in the transaction that takes
        the place."""

        def work(c: Connection) -> SkillReceipt:
            query = select(_receipts.c.seq, _receipts.c.total, _receipts.c.hash)
            last = c.execute(query.where(_receipts.c.licence == licence).order_by(_receipts.c.seq.desc())).first()
            receipt = made(last.seq + 1, last.total, last.hash) if last else made(0, 0, NOTHING)
            values = {field.name: getattr(receipt, field.name) for field in fields(receipt)}
            if output is not None:
                c.execute(_receipts.update().where(_receipts.c.licence == licence).values(output=None))
            c.execute(insert(_receipts).values(**values, hash=receipt.hash, outcome=outcome, output=output))
            return receipt

        return await self._do(work)

    async def totals(self) -> dict[LicenceId, int]:
        """Units served, by licence."""
        query = select(_receipts.c.licence, func.max(_receipts.c.total)).group_by(_receipts.c.licence)
        return {LicenceId(row[0]): row[1] for row in await self._do(lambda c: c.execute(query).all())}

    async def last_call(self, licence: LicenceId) -> LastCall | None:
        query = select(_receipts).where(_receipts.c.licence == licence, _receipts.c.output.is_not(None))
        row = await self._do(lambda c: c.execute(query).first())
        return LastCall(_receipt(row), row.output) if row else None

    async def receipts(self, licence: LicenceId, first: int, most: int) -> list[SkillReceipt]:
        """From this place on, in order."""
        query = select(_receipts).where(_receipts.c.licence == licence, _receipts.c.seq >= first)
        rows = await self._do(lambda c: c.execute(query.order_by(_receipts.c.seq).limit(most)).all())
        return [_receipt(row) for row in rows]


def _receipt(row: Any) -> SkillReceipt:
    return SkillReceipt(**{field.name: getattr(row, field.name) for field in fields(SkillReceipt)})
