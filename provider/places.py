"""Where a process keeps its state: a SQLite file of its own, or a PostgreSQL database that several share."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, Table, create_engine, event, make_url
from sqlalchemy.dialects import postgresql, sqlite

from penstock.errors import ConfigError


def is_url(place: str | Path) -> bool:
    return isinstance(place, str) and place.startswith(("postgresql://", "postgres://"))


def show_place(place: str | Path) -> str:
    """Without its password."""
    return make_url(str(place)).render_as_string(hide_password=True) if is_url(place) else str(place)


def connect_to(place: str | Path, patience: float | None = None) -> Engine:
    """ConfigError where the driver is missing or the URL is none. `patience`: seconds for which a server's silence is
    borne, where it is not for requests that wait."""
    if not is_url(place):
        engine = create_engine(URL.create("sqlite", database=str(place)))
        event.listen(engine, "connect", _configure)
        return engine
    try:
        url = make_url(str(place)).set(drivername="postgresql+psycopg")
        from provider import postgres

        engine = create_engine(url, pool_pre_ping=True, pool_size=1, max_overflow=0)
        postgres.Line(engine, patience or postgres.PATIENCE)
        return engine
    except ModuleNotFoundError:
        raise ConfigError("PostgreSQL needs its driver: pip install 'penstock[provider,postgres]'") from None
    except ValueError:
        raise ConfigError("--state is no PostgreSQL URL: postgresql://USER:PASSWORD@HOST/DATABASE") from None


def inserts(engine: Engine) -> Callable[[Table], Any]:
    """`insert` with `on_conflict_...`, which the two databases have alike."""
    return postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert


def own(path: Path, option: str = "--state") -> int:
    """A lock that goes with the process, so that no two write one file. ConfigError where another one has it; `option`
    names another file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"cannot write the state file {path}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise ConfigError(f"another provider process uses {path}: stop it, or name another {option}") from None
    return lock


def reason(error: Exception) -> str:
    """In one line, without the statement and its values: what a log may say."""
    said = str(getattr(error, "orig", None) or error).strip().splitlines()
    return said[0] if said else type(error).__name__


def _configure(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
