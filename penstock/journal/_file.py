"""The journal's file: opened, shared, let go of.

Several processes may share a journal. Each holds a lock file while it lives; the kernel lets go of the lock
when the process dies, however it dies, and only then may another process adopt its streams.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from penstock.errors import JournalDamaged
from penstock.journal._records import State
from penstock.journal._spending import Spending

_VERSION = 1


class JournalFile:
    """What the tables have in common."""

    def __init__(self, path: Path, schema: Sequence[str]) -> None:
        self.path = path
        self._locks = path.with_name(path.name + ".locks")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._locks.mkdir(mode=0o700, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        path.chmod(0o600)
        self.holder = f"{os.getpid()}-{secrets.token_hex(8)}"
        self._held = _try_lock(self._locks / self.holder)
        self._db = sqlite3.connect(path, isolation_level=None, timeout=10)
        self._db.row_factory = sqlite3.Row
        self._spending = Spending(self._db)
        try:
            self._prepare(schema)
        except sqlite3.DatabaseError as error:
            self.close()
            raise self._damaged(error) from error

    def _prepare(self, schema: Sequence[str]) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")
        found = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise sqlite3.DatabaseError(found)
        with self._transaction():
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                for statement in schema:
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {_VERSION}")
            elif version != _VERSION:
                raise sqlite3.DatabaseError(f"its version is {version}, this program's {_VERSION}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file. Streams of this process that are not over become adoptable."""
        self._db.close()
        if self._held is not None:
            (self._locks / self.holder).unlink(missing_ok=True)
            os.close(self._held)
            self._held = None

    @contextlib.contextmanager
    def _adopting(self, table: str) -> Iterator[list[str]]:
        locks: list[tuple[Path, int]] = []
        try:
            rows = self._db.execute(
                f"SELECT DISTINCT holder FROM {table} WHERE state IN (?, ?)", (State.INTENDED, State.OPEN)
            ).fetchall()
            holders = [self.holder]
            for (holder,) in rows:
                if holder == self.holder:
                    continue
                lock = _try_lock(self._locks / holder)
                if lock is not None:
                    locks.append((self._locks / holder, lock))
                    holders.append(holder)
            yield holders
        finally:
            for path, lock in locks:
                path.unlink(missing_ok=True)
                os.close(lock)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _damaged(self, error: Exception) -> JournalDamaged:
        return JournalDamaged(
            f"the journal {self.path} is damaged ({error}); `penstock recover --from-chain` sets it aside and finds "
            "your streams on the chain"
        )


def set_aside(path: Path, now: int) -> list[Path]:
    """Move a damaged journal out of the way, its WAL with it. Returns where the files are now."""
    moved = []
    for suffix in ("", "-wal", "-shm"):
        source = path.with_name(path.name + suffix)
        if source.exists():
            target = path.with_name(f"{path.name}.damaged-{now}{suffix}")
            source.rename(target)
            moved.append(target)
    return moved


def _try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock, or None where a living process does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
