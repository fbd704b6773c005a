"""What both APIs of the gateway need of HTTP: bodies up to a bound, streams that end when the client leaves, errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing, suppress
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from agents.desk import Reply
from penstock.errors import (
    AnswerCut,
    CapExceeded,
    ChainError,
    ConfigError,
    GatewayError,
    GatewayRefused,
    InsufficientFunds,
    NodeUnavailable,
    NoOffer,
    NotFound,
    PaymentRequired,
    PenstockError,
    PriceTooHigh,
)

MAX_BODY = 32 * 1024 * 1024
"""Bytes of a request: room for a few pictures."""

_T = TypeVar("_T")


class Refused(Exception):
    """A request that is not served, and why. `kind` and `code` are OpenAI's `type` and `code`."""

    def __init__(self, status: int, kind: str, code: str, message: str, param: str | None = None) -> None:
        self.status, self.kind, self.code, self.message, self.param = status, kind, code, message, param
        super().__init__(message)

    @property
    def openai(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def ollama(self) -> dict[str, Any]:
        return {"error": self.message}


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


def bad_request(message: str, param: str | None = None) -> Refused:
    return Refused(400, "invalid_request_error", "invalid_request", message, param)


_BY_KIND: tuple[tuple[type[PenstockError], int, str, str], ...] = (
    (PriceTooHigh, 404, "invalid_request_error", "price_too_high"),
    (NoOffer, 404, "invalid_request_error", "model_not_found"),
    (NotFound, 404, "invalid_request_error", "model_not_found"),
    (InsufficientFunds, 402, "insufficient_quota", "insufficient_funds"),
    (CapExceeded, 402, "insufficient_quota", "cap_exceeded"),
    (NodeUnavailable, 503, "server_error", "node_unavailable"),
    (ChainError, 502, "server_error", "chain_error"),
    (ConfigError, 500, "server_error", "wrong_settings"),
    (PaymentRequired, 502, "server_error", "provider_wants_more"),
    (AnswerCut, 502, "server_error", "answer_cut"),
    (GatewayError, 502, "server_error", "provider_failed"),
)


def refusal(error: Exception) -> Refused:
    """What a client is told of it. What is no error of ours is not explained to strangers."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, GatewayRefused) and error.status in (400, 404, 413, 422):
        # The provider's word on the request itself: another one would say the same.
        return Refused(error.status, "invalid_request_error", error.code, str(error))
    if isinstance(error, PenstockError):
        limit = getattr(error, "http", None)  # a limit that the user has set
        if isinstance(limit, tuple):
            status, name, code = limit
            return Refused(status, name, code, str(error))
        for kind, status, name, code in _BY_KIND:
            if isinstance(error, kind):
                return Refused(status, name, code, str(error))
        return Refused(502, "server_error", "failed", str(error))
    return Refused(500, "server_error", "internal_error", "the gateway failed: its log says how; try again")


async def read_object(request: Request) -> dict[str, Any]:
    """The body as a JSON object. Refused where it is none, or too large."""
    raw = bytearray()
    async for piece in request.stream():
        raw += piece
        if len(raw) > MAX_BODY:
            raise Refused(
                413,
                "invalid_request_error",
                "too_large",
                f"the request has more than {MAX_BODY // 2**20} MiB: send less at once",
            )
    try:
        body = msgspec.json.decode(bytes(raw))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise bad_request(f"the body is not JSON ({error}): send a JSON object") from None
    if not isinstance(body, dict):
        raise bad_request("the body is not a JSON object")
    return body


def field(body: dict[str, Any], name: str, kind: type[_T] | tuple[type[Any], ...], default: _T) -> _T:
    """A field of a body, of a kind. null is as if it were left out."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, kind) or (isinstance(value, bool) and kind in (int, float)):
        names = " or ".join(one.__name__ for one in kind) if isinstance(kind, tuple) else kind.__name__
        raise bad_request(f"{name} is not of the type {names}", name)
    return value


def text_field(body: dict[str, Any], name: str) -> str:
    """Asked for. Refused where it is missing."""
    value = field(body, name, str, "")
    if not value:
        raise bad_request(f"{name} is missing", name)
    return value


def answer(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")


async def while_there(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """The work's result. It is cancelled when the client hangs up: ClientLeft then."""
    return await _race(request.receive, work)


class Streamed(Response):
    """A body that comes in pieces, and whose making is stopped when the client leaves."""

    def __init__(self, pieces: AsyncIterator[bytes], media_type: str) -> None:
        super().__init__(media_type=media_type, headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        with suppress(ClientLeft, OSError):
            await _race(receive, self._send(send))
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send) -> None:
        async with aclosing(self._pieces) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})


async def _race(receive: Receive, work: Coroutine[Any, Any, _T]) -> _T:
    async def left() -> None:
        message: Message = {"type": ""}
        while message["type"] != "http.disconnect":
            message = await receive()

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeft
        return working.result()
    finally:
        unseen = not working.done()
        for task in (working, leaving):
            task.cancel()
        # What the work closes on its way out, it closes before this returns.
        await asyncio.wait({working, leaving})
        if unseen and not working.cancelled() and isinstance(found := working.exception() or working.result(), Reply):
            await found.aclose()  # it was ready in the very moment
