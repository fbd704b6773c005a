"""Ways for a real provider to misbehave: layers around its application, for `tests.provider.rig.running(wrap=...)`.

What lies behind them is the whole provider, with its real engine, receipts and books: only its answers to requests for
completions come late, cut, changed, or not at all. Made for one provider each; `asked` counts the requests.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from penstock.wire.sessions import SESSIONS_PATH

Message = MutableMapping[str, Any]
App = Callable[..., Awaitable[None]]
Send = Callable[[Message], Awaitable[None]]
_USAGE = re.compile(rb'"(completion_tokens|predicted_n)":\s*(\d+)')


class Layer:
    """An application that passes all on. `on`: whether it misbehaves now."""

    def __init__(self) -> None:
        self.on = True
        self.asked = 0
        self._app: App | None = None

    def __call__(self, app: App) -> Layer:
        self._app = app
        return _Wrapped(self, app)  # type: ignore[return-value]

    async def completion(self, app: App, scope: Any, receive: Any, send: Send) -> None:
        """A request for a completion."""
        await app(scope, receive, send)

    async def session(self, app: App, scope: Any, receive: Any, send: Send) -> None:
        """A handshake."""
        await app(scope, receive, send)


class _Wrapped:
    """What the server runs: the application's own attributes, and the layer's answers."""

    def __init__(self, layer: Layer, app: Any) -> None:
        self._layer, self._app = layer, app

    def __getattr__(self, name: str) -> Any:
        return getattr(self._app, name)

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        layer, path = self._layer, scope.get("path", "")
        if scope["type"] == "http" and path.endswith("/completions"):
            layer.asked += 1
            if layer.on:
                return await layer.completion(self._app, scope, receive, send)
        if scope["type"] == "http" and path == SESSIONS_PATH and layer.on:
            return await layer.session(self._app, scope, receive, send)
        await self._app(scope, receive, send)
        return None


class Slow(Layer):
    """Takes its time before the first part, and before each further one: seconds."""

    def __init__(self, first: float, each: float = 0.0) -> None:
        super().__init__()
        self._first, self._each = first, each

    async def completion(self, app: App, scope: Any, receive: Any, send: Send) -> None:
        await asyncio.sleep(self._first)

        async def slowly(message: Message) -> None:
            if message["type"] == "http.response.body" and message.get("more_body"):
                await asyncio.sleep(self._each)
            await send(message)

        await app(scope, receive, slowly)


class _After(Layer):
    """Something happens after so many bytes of the answer's words."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self._words = words

    async def happens(self) -> None:
        raise NotImplementedError

    async def completion(self, app: App, scope: Any, receive: Any, send: Send) -> None:
        sent = 0

        async def until_then(message: Message) -> None:
            nonlocal sent
            if message["type"] == "http.response.body":
                sent += message.get("body", b"").count(b'"content":"')
                if sent > self._words:
                    await self.happens()
            await send(message)

        await app(scope, receive, until_then)


class Stalls(_After):
    """Falls silent, and keeps the connection."""

    async def happens(self) -> None:
        await asyncio.sleep(3600)


class Dies(_After):
    """Hangs up."""

    async def happens(self) -> None:
        raise ConnectionError("died on purpose")


class Says402(Layer):
    async def completion(self, app: App, scope: Any, receive: Any, send: Send) -> None:
        body = json.dumps({"error": {"code": "payment_required", "message": "pay more"}}).encode()
        await _answer(send, 402, b"application/json", body)


class Garbage(Layer):
    async def completion(self, app: App, scope: Any, receive: Any, send: Send) -> None:
        await _answer(send, 200, b"text/event-stream", b"data: \xe2\x98\x83 not what you asked for\n\n")


class Overclaims(Layer):
    """Counts ten times the tokens that it gives."""

    async def completion(self, app: App, scope: Any, receive: Any, send: Send) -> None:
        async def lying(message: Message) -> None:
            if message["type"] == "http.response.body":
                body = message.get("body", b"")
                more = _USAGE.sub(lambda found: b'"%s":%d' % (found[1], 40 + 10 * int(found[2])), body)
                message = {**message, "body": more}
            await send(message)

        await app(scope, receive, lying)


class OtherPrices(Layer):
    """Names other prices in the handshake than its offer has."""

    async def session(self, app: App, scope: Any, receive: Any, send: Send) -> None:
        parts: list[bytes] = []

        async def lying(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [(name, value) for name, value in message["headers"] if name != b"content-length"]
                message = {**message, "headers": headers}
            else:
                parts.append(message.get("body", b""))
                if message.get("more_body"):
                    return
                body = re.sub(rb'"completion_price":"(\d+)"', rb'"completion_price":"9\1"', b"".join(parts))
                message = {**message, "body": body}
            await send(message)

        await app(scope, receive, lying)


async def _answer(send: Send, status: int, kind: bytes, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
    await send({"type": "http.response.body", "body": body})
