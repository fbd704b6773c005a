"""HTTP/1.1 towards an engine, and no more of it than that takes: one POST at a time on each connection, answers as
they come. aiohttp's client does the same for three times the CPU, which was a quarter of all that an answer cost here.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping
from functools import cache
from typing import cast
from urllib.parse import urlsplit

import httptools

from provider.engines._base import Engine

_KEEP_ALIVE = 4.0
"""Seconds an idle connection is kept: less than the 5 of llama.cpp and vLLM."""
_UNREAD = 2**18
"""Bytes of an answer that may wait for their reader before the engine has to."""
_LONGEST_HEAD = 64 * 2**10


class Unreachable(Exception):
    """Nothing listens there: no engine has seen the request."""


class BrokeOff(Exception):
    """The engine, or we, hung up before the end."""


class Answer:
    """One response, of which more may be to come."""

    def __init__(self, connection: _Connection) -> None:
        self.status = 0
        """0: not told yet."""
        self.content_type = ""
        """Without parameters."""
        self._connection = connection
        self._parts: list[bytes] = []
        self._unread = 0
        self._over = False
        self._failure: str | None = None
        self._waiting: asyncio.Future[None] | None = None

    async def head(self) -> None:
        """Return when `status` and `content_type` are known. BrokeOff."""
        while not self.status:
            await self._more()

    async def read(self) -> bytes:
        """What has come since; empty at the end. BrokeOff, once all that came has been read."""
        while not self._parts:
            if self._over:
                return b""
            await self._more()
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._unread = 0
        if not self._over:
            self._connection.go_on()
        return data

    def close(self) -> None:
        """No more is wanted: an engine that is not at the end sees the connection close, and stops generating."""
        if not self._over:
            self.fail("it was stopped")
            self._connection.hang_up()

    @property
    def stale(self) -> bool:
        """Whether it failed on a connection that had been idle, before a byte of it came: the engine closed that in the
        same moment, and has not read the request."""
        return self._failure is not None and self._connection.used > 1 and not self._connection.heard

    async def _more(self) -> None:
        if self._failure is not None:
            raise BrokeOff(self._failure)
        self._waiting = asyncio.get_running_loop().create_future()
        try:
            await self._waiting
        finally:
            self._waiting = None

    # --- told by the connection ---

    def add(self, part: bytes) -> bool:
        """Whether that is all that may wait."""
        self._parts.append(part)
        self._unread += len(part)
        return self._unread > _UNREAD

    def end(self) -> None:
        self._over = True

    def fail(self, why: str) -> None:
        if not self._over and self._failure is None:
            self._failure = why
            self.wake()

    def wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


class Connections:
    """To one engine, as many as there are answers."""

    def __init__(self, engine: Engine, *, connect_seconds: float) -> None:
        self._engine, self._connect_seconds = engine, connect_seconds
        self._idle: list[_Connection] = []
        self._place: tuple[str, str, str] | None = None
        self._url = urlsplit("")
        self._heads: dict[str, bytes] = {}

    async def post(self, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> Answer:
        """Send it; the answer's head is still to come. Unreachable."""
        self._look()
        head = self._heads.get(path) or self._head(path)
        more = "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode() if headers else b""
        request = b"%b%bcontent-length: %d\r\n\r\n%b" % (head, more, len(body), body)
        connection = self._kept() or await self._connect()
        return connection.send(request)

    def close(self) -> None:
        """Those that nobody uses."""
        for connection in self._idle[:]:
            connection.hang_up()
        self._idle.clear()

    def keep(self, connection: _Connection) -> None:
        self._idle.append(connection)

    def drop(self, connection: _Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)

    def _look(self) -> None:
        """An engine that was started anew may be somewhere else."""
        place = self._engine.base_url, self._engine.socket, self._engine.api_key
        if place != self._place:
            self.close()
            self._heads.clear()
            self._place, self._url = place, urlsplit(place[0])

    def _head(self, path: str) -> bytes:
        lines = [
            f"POST {self._url.path}{path} HTTP/1.1",
            f"host: {self._url.netloc.rpartition('@')[2]}",
            "content-type: application/json",
            "accept: text/event-stream",
        ]
        if self._engine.api_key:
            lines.append(f"authorization: Bearer {self._engine.api_key}")
        head = self._heads[path] = "".join(f"{line}\r\n" for line in lines).encode()
        return head

    def _kept(self) -> _Connection | None:
        """The one that was used last."""
        if not self._idle:
            return None
        connection = self._idle.pop()
        if time.monotonic() - connection.idle_since < _KEEP_ALIVE:
            return connection
        connection.hang_up()
        self.close()  # the others have been idle for longer
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_seconds):
                if self._engine.socket:
                    _, made = await loop.create_unix_connection(lambda: _Connection(self), self._engine.socket)
                else:
                    tls = self._url.scheme == "https"
                    host, port = self._url.hostname or "", self._url.port or (443 if tls else 80)
                    _, made = await loop.create_connection(
                        lambda: _Connection(self), host, port, ssl=_tls() if tls else None
                    )
        except TimeoutError:
            raise Unreachable(f"{self._engine.name} does not answer within {self._connect_seconds:g} s") from None
        except OSError as error:
            raise Unreachable(str(error)) from None
        return made


class _Connection(asyncio.Protocol):
    def __init__(self, pool: Connections) -> None:
        self.idle_since = 0.0
        self.heard = False
        """Whether anything of the present answer has come."""
        self.used = 0
        """For so many answers."""
        self._pool = pool
        self._answer: Answer | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._paused = False
        self._head_size = 0
        self._measured = False
        """Whether the answer says where it ends; else that is with the connection."""

    def send(self, request: bytes) -> Answer:
        self.used += 1
        self.heard = False
        self._answer = answer = Answer(self)
        if self._transport.is_closing():
            answer.fail("the connection is closed")
        else:
            self._transport.write(request)
        return answer

    def hang_up(self) -> None:
        self._transport.abort()

    def go_on(self) -> None:
        if self._paused:
            self._paused = False
            self._transport.resume_reading()

    # --- told by the transport ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not say so

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        if answer is None:
            self.hang_up()  # nobody asked
            return
        self.heard = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            answer.fail(f"what the engine says is no HTTP: {error}")
            self.hang_up()
        except httptools.HttpParserUpgrade:
            answer.fail("the engine switches protocols")
            self.hang_up()
        answer.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.drop(self)
        answer, self._answer = self._answer, None
        if answer is None:
            return
        if answer.status and not self._measured and exc is None:
            answer.end()
            answer.wake()
        else:
            answer.fail(f"the engine closed the connection{f': {exc}' if exc else ''}")

    # --- told by the parser ---

    def on_message_begin(self) -> None:
        self._head_size = 0
        self._measured = False

    def on_header(self, name: bytes, value: bytes) -> None:
        assert self._answer is not None
        self._head_size += len(name) + len(value)
        if self._head_size > _LONGEST_HEAD:
            self._answer.fail("the engine's headers are too long")
            self.hang_up()
        name = name.lower()
        if name in (b"content-length", b"transfer-encoding"):
            self._measured = True
        elif name == b"content-type":
            self._answer.content_type = value.partition(b";")[0].strip().lower().decode("latin-1")

    def on_headers_complete(self) -> None:
        assert self._answer is not None
        status = self._parser.get_status_code()
        if status >= 200:  # those before only announce it
            self._answer.status = status

    def on_body(self, body: bytes) -> None:
        assert self._answer is not None
        if self._answer.add(body) and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        answer = self._answer
        assert answer is not None
        if not answer.status:
            return
        answer.end()
        self._answer = None
        self.go_on()
        if self._parser.should_keep_alive() and not self._transport.is_closing():
            self.idle_since = time.monotonic()
            self._pool.keep(self)
        else:
            self._transport.close()


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()
