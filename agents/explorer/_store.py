"""Where the explorer keeps what it knows: a SQLite file, or a PostgreSQL database.

Events, the rows folded from them and the block that they reach are written in one transaction, and only on top of the
block that the writer believes is the last: a process may be killed at any instant, and several may fill one store.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from sqlalchemy import Connection, Engine, create_engine, delete, event, insert, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from agents.explorer import _schema as schema
from agents.explorer._decode import Logged
from agents.explorer._fold import Fold, subject
from agents.explorer._rows import Rows, undo, upsert
from penstock.deployments import Deployment
from penstock.errors import ConfigError, NodeUnavailable, PenstockError
from penstock.types import Token, address

T = TypeVar("T")
_READERS = 5
"""Queries at the same time."""


class StoreUnavailable(PenstockError):
    """The database does not answer, or not as it should."""

    exit_code = 3


@dataclass(frozen=True, slots=True)
class Tip:
    """The last block whose events are in."""

    number: int
    hash: str
    timestamp: int

    def text(self) -> str:
        return f"{self.number} {self.hash} {self.timestamp}"

    @classmethod
    def parse(cls, text: str) -> Tip:
        number, block_hash, timestamp = text.split()
        return cls(int(number), block_hash, int(timestamp))


def store_name(deployment: Deployment) -> str:
    """What tells one deployment's data from another's."""
    return f"{deployment.chain_id}_{deployment.stream_pay[2:10].lower()}"


class Store:
    """Writes run one after another in a thread of their own; any number of reads run beside them."""

    def __init__(self, writer: Engine, reader: Engine, deployment: Deployment) -> None:
        self._writer, self._reader = writer, reader
        self._rows = Rows()
        self._rows_of: Tip | None = None
        """After which block the rows at hand are true; None: they are not."""
        self._fold = Fold(self._rows, address(deployment.contracts["Staking"].arguments["asset"]))
        self.noted = 0
        """Counts what this process has noted beside the chain."""
        self._thread = ThreadPoolExecutor(1, "explorer-store")
        self._readers = ThreadPoolExecutor(_READERS, "explorer-read")

    @classmethod
    def open(cls, url: str, deployment: Deployment) -> Self:
        """`url`: a file's path, or a database's URL. ConfigError where it cannot be used."""
        writer = _engine(url, deployment, writing=True)
        reader = _engine(url, deployment, writing=False)
        try:
            _prepare(writer, deployment)
        except SQLAlchemyError as error:
            raise ConfigError(f"cannot use the explorer's database {_shown(url)}: {_cause(error)}") from error
        return cls(writer, reader, deployment)

    def close(self) -> None:
        self._thread.shutdown()
        self._readers.shutdown()  # waits for queries whose askers have gone, so that no connection is left behind
        self._writer.dispose()
        self._reader.dispose()

    # --- reading ---

    async def read(self, query: Callable[[Connection], T]) -> T:
        """Run a query on one snapshot of the store."""

        def run() -> T:
            try:
                with self._reader.connect() as connection, connection.begin():
                    return query(connection)
            except SQLAlchemyError as error:
                raise _unavailable(error) from error

        return await asyncio.get_running_loop().run_in_executor(self._readers, run)

    async def tip(self) -> Tip | None:
        return await self.read(tip_of)

    async def recorded(self) -> list[tuple[int, str]]:
        """Blocks that may still be reorganised and were kept, youngest first: (number, hash)."""
        query = select(schema.blocks.c.number, schema.blocks.c.hash).order_by(schema.blocks.c.number.desc())
        return await self.read(lambda c: [(number, block_hash) for number, block_hash in c.execute(query)])

    async def wallets(self) -> list[str]:
        """Agents' wallets, which say what happens to them themselves."""
        return await self.read(lambda c: list(c.scalars(select(schema.wallets.c.id))))

    # --- writing ---

    async def append(
        self,
        before: Tip | None,
        events: Sequence[Logged],
        tip: Tip,
        *,
        undoable_from: int,
    ) -> bool:
        """Add the blocks from after `before` up to `tip`. False, and nothing is done, where `before` is not the last
        block that is in: another process was here. NodeUnavailable where the events do not follow from those before.
        """

        def write(connection: Connection) -> bool:
            if not _is_tip(connection, before):
                return False
            if self._rows_of is None or self._rows_of != before:
                self._rows.forget()
            self._rows_of = None
            if events:
                connection.execute(insert(schema.events), [_event_row(one) for one in events])
            self._rows.begin(connection, undoable_from)
            for one in events:
                self._fold.apply(one)
            self._rows.flush()
            found = {one.block: one.block_hash for one in events if one.block >= undoable_from} | {tip.number: tip.hash}
            upsert(connection, schema.blocks, [{"number": n, "hash": h} for n, h in found.items()])
            connection.execute(delete(schema.blocks).where(schema.blocks.c.number < undoable_from))
            connection.execute(delete(schema.undo).where(schema.undo.c.block < undoable_from))
            _set_tip(connection, tip)
            return True

        try:
            done = await self._write(write)
        except KeyError as error:
            raise NodeUnavailable(
                f"the node left out events ({error.args[0]}): ask again, or use another --rpc-url"
            ) from error
        if done:
            self._rows_of = tip
        return done

    async def rewind(self, before: Tip, ancestor: Tip | None) -> bool:
        """Forget all that came after the block `ancestor`, or everything. False as for `append`."""

        def write(connection: Connection) -> bool:
            self._rows.forget()
            self._rows_of = None
            if not _is_tip(connection, before):
                return False
            if ancestor is None:
                _empty(connection)
                return True
            undo(connection, ancestor.number)
            gone = schema.seq_of(ancestor.number + 1, 0)
            connection.execute(delete(schema.events).where(schema.events.c.seq >= gone))
            connection.execute(delete(schema.blocks).where(schema.blocks.c.number > ancestor.number))
            _set_tip(connection, ancestor)
            return True

        return await self._write(write)

    async def add_tokens(self, tokens: Sequence[Token]) -> None:
        rows = [{"address": t.address, "symbol": t.symbol, "decimals": t.decimals} for t in tokens]
        await self._write(lambda connection: upsert(connection, schema.tokens, rows))

    async def note(self, write: Callable[[Connection], None]) -> None:
        """Write what is not of the chain, in one transaction."""
        await self._write(write)
        self.noted += 1

    async def _write(self, write: Callable[[Connection], T]) -> T:
        def run() -> T:
            try:
                with self._writer.begin() as connection:
                    return write(connection)
            except SQLAlchemyError as error:
                raise _unavailable(error) from error

        return await asyncio.get_running_loop().run_in_executor(self._thread, run)


def _unavailable(error: SQLAlchemyError) -> StoreUnavailable:
    return StoreUnavailable(f"the explorer's database does not serve: {_cause(error)}")


def _cause(error: SQLAlchemyError) -> str:
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0]


def tip_of(connection: Connection) -> Tip | None:
    found = connection.scalar(select(schema.meta.c.value).where(schema.meta.c.name == "tip"))
    return Tip.parse(found) if found else None


def _is_tip(connection: Connection, expected: Tip | None) -> bool:
    """Locks the tip's row, so that writers stand in line."""
    found = connection.scalar(select(schema.meta.c.value).where(schema.meta.c.name == "tip").with_for_update())
    return (Tip.parse(found) if found else None) == expected


def _set_tip(connection: Connection, tip: Tip) -> None:
    upsert(connection, schema.meta, [{"name": "tip", "value": tip.text()}])


def _event_row(one: Logged) -> Mapping[str, Any]:
    return {
        "seq": one.seq,
        "timestamp": one.timestamp,
        "transaction": one.transaction,
        "contract": one.contract,
        "name": one.name,
        "subject": subject(one),
        "body": json.dumps(one.values, separators=(",", ":")),
    }


def _empty(connection: Connection) -> None:
    for table in (*schema.DERIVED, schema.events, schema.blocks, schema.undo):
        connection.execute(delete(table))
    upsert(connection, schema.meta, [{"name": "tip", "value": ""}])


# --- opening ---


def _engine(url: str, deployment: Deployment, *, writing: bool) -> Engine:
    if "://" not in url:
        path = Path(url).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        url = f"sqlite:///{path}"
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ConfigError(f"--db {_shown(url)} is neither a path nor a database's URL") from None
    if parsed.drivername in ("postgres", "postgresql"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername == "postgresql+psycopg":
        # A schema of the deployment's own, so that one database can hold several.
        options = f"-csearch_path=penstock_{store_name(deployment)}"
        level = "READ COMMITTED" if writing else "REPEATABLE READ"
        try:
            return create_engine(
                parsed,
                connect_args={"options": options, "connect_timeout": 10},
                isolation_level=level,
                pool_pre_ping=True,
            )
        except ModuleNotFoundError as error:
            raise ConfigError(f"PostgreSQL needs psycopg: install penstock[explorer] ({error})") from error
    if parsed.drivername != "sqlite":
        raise ConfigError(f"--db {_shown(url)}: SQLite and PostgreSQL are what the explorer can use")
    engine = create_engine(parsed)

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # we say ourselves when transactions begin
        connection.execute("PRAGMA busy_timeout = 30000")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # published receipts are kept once they are acknowledged
        if not writing:
            connection.execute("PRAGMA query_only = ON")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")

    return engine


def _prepare(engine: Engine, deployment: Deployment) -> None:
    """Make the tables where they are missing, and anew where they are of another version of this program."""
    mine = {"schema": schema.SCHEMA, "deployment": _identity(deployment)}
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(7361616)"))  # two that start at once
            connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS penstock_{store_name(deployment)}"))
        schema.meta.create(connection, checkfirst=True)
        found: dict[str, str] = dict(connection.execute(select(schema.meta)).all())
        if found.get("deployment", mine["deployment"]) != mine["deployment"]:
            raise ConfigError(
                "the explorer's database is of another deployment: name another --db, or another --deployment"
            )
        schema.heard.create_all(connection)
        if found.get("schema") != schema.SCHEMA:
            schema.metadata.drop_all(connection)
            schema.metadata.create_all(connection)
            upsert(connection, schema.meta, [{"name": n, "value": v} for n, v in {**mine, "tip": ""}.items()])


def _identity(deployment: Deployment) -> str:
    addresses = {name: contract.address for name, contract in sorted(deployment.contracts.items())}
    return json.dumps({"chain_id": deployment.chain_id, **addresses})


def _shown(url: str) -> str:
    """Without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True) if "://" in url else url
    except ArgumentError:
        return url.partition("://")[0] + "://..."
