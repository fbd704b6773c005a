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


_DISCARDED = 16 * 2**20
_DISCARD_SECONDS = 2.0


class ClientLeft(Exception):
    """Before it had said all."""


def header(scope: Scope, name: bytes) -> bytes | None:
    """By its lower-case name."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """ApiError 413 where it is longer than `limit` bytes, at the first byte that tells so."""
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
    if error.status == 413:
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
