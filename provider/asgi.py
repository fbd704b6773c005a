"""The few pieces of ASGI that the gateway and the other routes share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

import msgspec

from provider.errors import ApiError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


BODY_SECONDS = 30.0
"""How long a client may take over the body of a request."""
_DISCARDED = 16 * 2**20
_DISCARD_SECONDS = 2.0


def address_of(scope: Scope, behind_proxy: bool) -> str:
    """Of who asks, as far as that is known."""
    if behind_proxy and (told := header(scope, b"x-forwarded-for")):
        return told.decode("latin-1").rpartition(",")[2].strip()
    client = scope.get("client")
    return str(client[0]) if client else ""


class ClientLeft(Exception):
    """Before it had said all."""


CLIENT = "penstock.client"
"""Where a scope has its `Client`."""


class Client:
    """The other end of a request's connection, of which ASGI tells less, or by a task that waits for nothing else: that
    took a tenth of all that an answer cost."""

    def __init__(self, drop: Callable[[], None]) -> None:
        self.drop = drop
        """Hang up at once, whatever it has not read."""
        self.said_all = False
        """Whether its request is here, with the body."""
        self._left = False
        self._tell: Callable[[], None] | None = None

    def when_left(self, tell: Callable[[], None] | None) -> None:
        """Whom to tell that it has hung up: one at a time, or nobody."""
        self._tell = tell
        if self._left and tell is not None:
            tell()

    def left(self) -> None:
        self._left = True
        if self._tell is not None:
            self._tell()


def header(scope: Scope, name: bytes) -> bytes | None:
    """By its lower-case name."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """ApiError 413 at the first byte that tells that it is longer than `limit` bytes, 408 where it does not come."""
    client: Client = scope[CLIENT]
    if client.said_all:
        return await _read_body(scope, receive, limit)
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _read_body(scope, receive, limit)
    except TimeoutError:
        raise ApiError(408, "body_too_slow", f"the body did not come within {BODY_SECONDS:g} s") from None


async def _read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    length = header(scope, b"content-length")
    if length is not None and length.isdigit() and int(length) > limit:
        await _discard(receive)
        raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            if message.get("more_body", False):
                await _discard(receive)
            raise _too_large(limit)
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


async def send_json(send: Send, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
    body = msgspec.json.encode(content)
    raw = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    raw += [(name.encode("latin-1"), value.encode("latin-1")) for name, value in (headers or {}).items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def send_error(send: Send, error: ApiError) -> None:
    headers = dict(error.headers)
    if error.status in (408, 413):
        headers["connection"] = "close"  # the rest of the body is not read
    await send_json(send, error.status, error.body, headers)


async def _discard(receive: Receive) -> None:
    """Read on for a moment: a client that is still sending does not read why it should not."""
    left = _DISCARDED
    with suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_SECONDS):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b"")) + 1
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return


def _too_large(limit: int) -> ApiError:
    return ApiError(413, "body_too_large", f"the body is longer than {limit} bytes")
