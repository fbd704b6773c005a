"""The HTTP server: tells when it accepts, leaves signals to its owner, and waits for nobody's headers for long."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from provider.asgi import CLIENT, Client

_LEAVE_SECONDS = 2
"""How long connections may linger after the answers have ended."""
HEADER_SECONDS = 10.0
"""How long a client may take over the head of a request, or say nothing on a new connection."""
_IDLE_SECONDS = 75
"""How long a connection is kept between requests: longer than clients keep theirs, so that none is closed in the moment
in which a client asks again."""


class Protocol(HttpToolsProtocol):
    """Hangs up on clients that do not come to the point."""

    _impatience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._client = Client(transport.abort)
        self._wait()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._client.said_all = False
        self.scope[CLIENT] = self._client  # type: ignore[literal-required]
        self._wait()

    def on_headers_complete(self) -> None:
        self._rest()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._client.said_all = True
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._rest()
        self._client.left()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._impatience is None:
            self._impatience = self.loop.call_later(HEADER_SECONDS, self._hang_up)

    def _rest(self) -> None:
        if self._impatience is not None:
            self._impatience.cancel()
            self._impatience = None

    def _hang_up(self) -> None:
        self._impatience = None
        self.transport.abort()


class Server(uvicorn.Server):
    def __init__(self, app: Any) -> None:
        """`app`: an ASGI application."""
        super().__init__(
            uvicorn.Config(
                app,
                http=Protocol,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=_IDLE_SECONDS,
                timeout_graceful_shutdown=_LEAVE_SECONDS,
            )
        )
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # All that was imported is here to stay: else each full collection looks through it, and every answer waits for
        # a tenth of a second.
        gc.collect()
        gc.freeze()
        self.up.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
