"""Connections to a PostgreSQL server that may hang: nobody waits for it for longer than a few seconds.

A server that is stopped, or a network that drops packets, says nothing at all, and a socket that says nothing can be
waited for without end. So each wait has an end here, whatever the socket is. What was under way is doubtful then: the
server may do it when it goes on, even a commit that it had not read yet. Therefore each place has one connection at a
time in the server's eyes, too: the next one begins when the session of the one before is over, and what is looked up
in it stays true.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Generator
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from sqlalchemy import Engine, ExceptionContext, event
from sqlalchemy.exc import DBAPIError, OperationalError

PATIENCE = 4.0
"""Seconds of silence that are waited for. Less than a client that does not read is given, and enough for any server
that a provider can sell with."""
_REST = 1.0
"""Seconds after a silence in which nothing is tried: who waited meanwhile is told at once."""
_SERVER_GIVES_UP = 0.75
"""Of the patience: that a statement which waits for another's lock ends before, and its connection goes on."""

R = TypeVar("R")


class Line:
    """All connections of one engine, one after the other."""

    def __init__(self, engine: Engine, patience: float) -> None:
        self.patience = patience
        self._name = secrets.randbits(63)
        """Of the lock that a session holds as long as it lives."""
        self._rests_until, self._why = -math.inf, ""
        event.listen(engine, "do_connect", self._connect)
        event.listen(engine, "handle_error", _as_outage, retval=True)

    def silent(self, why: str = "the server does not answer") -> psycopg.OperationalError:
        """What to raise, now and while nothing is tried."""
        self._rests_until, self._why = time.monotonic() + _REST, why
        return psycopg.OperationalError(why)

    def _connect(self, _dialect: Any, _record: Any, arguments: Any, parameters: Any) -> _Connection:
        if time.monotonic() < self._rests_until:
            raise psycopg.OperationalError(self._why)
        given = parameters | {"connect_timeout": math.ceil(min(self.patience, PATIENCE)), "autocommit": True}
        connection = None
        try:
            connection = _Connection.connect(*arguments, **given)
            connection.line = self
            self._begin(connection)
            connection.autocommit = False
        except psycopg.errors.ConnectionTimeout:
            raise self.silent() from None
        except psycopg.OperationalError as error:
            if connection is not None:
                connection.close()
            raise self.silent(str(error)) from None
        return connection

    def _begin(self, connection: _Connection) -> None:
        """A session of ours: what is told to be written is on the disk, whatever else the server's other users are
        content with; what waits for a lock ends; and one that has left its client's sight ends soon."""
        off = "current_setting('synchronous_commit') = 'off'"
        connection.execute(f"SELECT set_config('synchronous_commit', 'on', false) WHERE {off}")
        for name, share in (("statement_timeout", _SERVER_GIVES_UP), ("idle_in_transaction_session_timeout", 1.0)):
            connection.execute(f"SET {name} = {int(1000 * share * self.patience)}")
        connection.execute(_END_THE_ONE_BEFORE, [self._name >> 32, self._name & 0xFFFFFFFF])
        connection.execute("SELECT pg_advisory_lock(%s)", [self._name])


class _Connection(psycopg.Connection[Any]):
    """Whose every wait has an end."""

    line: Line

    def wait(self, gen: PQGen[R], *args: Any, **kwargs: Any) -> R:
        return super().wait(self._bounded(gen), *args, **kwargs)

    def _bounded(self, gen: PQGen[R]) -> Generator[Any, Any, R]:
        """The same steps. Between them comes, every now and then, that nothing was heard."""
        heard = time.monotonic()
        try:
            step = next(gen)
            while True:
                ready = yield step
                now = time.monotonic()
                if ready:
                    heard = now
                elif now - heard > self.line.patience:
                    self.pgconn.finish()
                    raise self.line.silent()
                step = gen.send(ready)
        except StopIteration as end:
            found: R = end.value
            return found


def _as_outage(context: ExceptionContext) -> BaseException | None:
    """A connection that is gone is an outage, however that was told."""
    error = context.sqlalchemy_exception
    if context.is_disconnect and isinstance(error, DBAPIError) and not isinstance(error, OperationalError):
        return OperationalError(error.statement, error.params, context.original_exception, connection_invalidated=True)
    return None


_END_THE_ONE_BEFORE = """
    SELECT pg_terminate_backend(pid) FROM pg_locks
    WHERE locktype = 'advisory' AND classid = %s AND objid = %s AND objsubid = 1
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
