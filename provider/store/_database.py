"""A database and the one thread that all work on it goes through, one piece after another."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Self, TypeVar

from sqlalchemy import Connection, Engine, select, text
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from penstock.errors import ConfigError
from provider.places import connect_to, inserts, is_url, own, reason, show_place
from provider.store._tables import META, METADATA

SCHEMA = "3"
DRAIN = "drain"
"""Of `write_control`: no new sessions, where it is not empty."""
_LOCK = 0x50454E53
"""Of PostgreSQL's advisory locks: ours."""
_VISIT_PATIENCE = 60.0
"""Seconds: a command may look at all that is kept."""
T = TypeVar("T")


class Database:
    """What every part of the store needs of it."""

    def __init__(self, engine: Engine, lock: int | None) -> None:
        self.engine = engine
        self._lock = lock
        self._insert = inserts(engine)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._trouble: str | None = None

    @classmethod
    def open(cls, place: str | Path, *, owner: str) -> Self:
        """`place`: a file, or a PostgreSQL URL. `owner` says whose state it is (chain, contract, provider). ConfigError
        where it is another's, is in use, or cannot be written."""
        shown = show_place(place)
        lock = None if is_url(place) else own(Path(place))
        engine = None
        try:
            engine = connect_to(place)
            insert = inserts(engine)
            with engine.begin() as connection:
                if engine.dialect.name == "postgresql":  # tables cannot be made by two at once
                    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
                METADATA.create_all(connection)
                for name, value in (("schema", SCHEMA), ("owner", owner)):
                    connection.execute(insert(META).values(name=name, value=value).on_conflict_do_nothing())
                    found = connection.execute(select(META.c.value).where(META.c.name == name)).scalar_one()
                    if found != value:
                        raise ConfigError(f"{shown} has {name} {found}, not {value}: name another --state")
        except (ConfigError, SQLAlchemyError) as error:
            if engine is not None:
                engine.dispose()
            if lock is not None:
                os.close(lock)
            if isinstance(error, SQLAlchemyError):
                cure = (
                    "check the URL and the server"
                    if is_url(place)
                    else "see to its disk and its rights, or move it away"
                )
                raise ConfigError(f"{shown} is no usable state ({reason(error)}): {cure}") from None
            raise
        return cls(engine, lock)

    async def close(self) -> None:
        await asyncio.to_thread(self._thread.shutdown)
        self.engine.dispose()
        if self._lock is not None:
            os.close(self._lock)

    @property
    def shared(self) -> bool:
        """Whether other gateways may use it, too."""
        return self._lock is None

    def trouble(self) -> str | None:
        """Why it cannot be written, such as a disk that is full; None once something was written again."""
        return self._trouble

    async def _do(self, work: Callable[[Connection], T]) -> T:
        """OperationalError where the disk is full, the database locked or away: nothing was written then."""
        # Shielded: a caller that is cancelled must not leave it unknown whether something was written.
        return await asyncio.shield(self._begin(work))

    def _begin(self, work: Callable[[Connection], T]) -> asyncio.Future[T]:
        """As `_do`; it is on its way when this returns."""

        def run() -> T:
            try:
                with self.engine.begin() as connection:
                    found = work(connection)
                    healed = self._trouble is not None and _wrote(connection)
            except OperationalError as error:
                self._trouble = f"the state cannot be written: {reason(error)}"
                raise
            if healed:
                self._trouble = None
            return found

        return asyncio.get_running_loop().run_in_executor(self._thread, run)

    run = _do
    """For what is kept elsewhere in the same place: in one transaction."""

    async def read_meta(self, name: str) -> str | None:
        query = select(META.c.value).where(META.c.name == name)
        return await self._do(lambda c: c.execute(query).scalar_one_or_none())

    async def write_meta(self, name: str, value: str) -> None:
        row = self._insert(META).values(name=name, value=value)
        await self._do(lambda c: c.execute(row.on_conflict_do_update(index_elements=["name"], set_={"value": value})))


def _wrote(connection: Connection) -> bool:
    """Whether this transaction has written so far: that something could be read shows nothing of the disk."""
    if connection.dialect.name == "postgresql":
        return bool(connection.execute(text("SELECT pg_current_xact_id_if_assigned() IS NOT NULL")).scalar_one())
    raw: sqlite3.Connection = connection.connection.driver_connection  # type: ignore[assignment]
    return raw.in_transaction  # sqlite3 begins one with the first thing to write


@contextmanager
def visiting(place: str) -> Iterator[Connection]:
    """In one transaction, a place that a provider may be using meanwhile. ConfigError where there is none, or it cannot
    be used."""
    if not is_url(place) and not Path(place).exists():
        raise ConfigError(f"there is no state file {place}: no provider ran with these settings")
    engine = connect_to(place, patience=_VISIT_PATIENCE)
    try:
        with engine.begin() as connection:
            yield connection
    except SQLAlchemyError as error:
        raise ConfigError(f"{show_place(place)} cannot be used ({reason(error)}): check it and its rights") from None
    finally:
        engine.dispose()


def write_control(place: str, name: str, value: str) -> None:
    """A word to the gateways that use this place, which look for it each second."""
    with visiting(place) as connection:
        row = inserts(connection.engine)(META).values(name=name, value=value)
        connection.execute(row.on_conflict_do_update(index_elements=["name"], set_={"value": value}))
