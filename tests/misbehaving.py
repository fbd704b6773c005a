"""Ways for a real provider to misbehave: layers around its application, for `tests.provider.rig.running(wrap=...)`.

What lies behind them is the whole provider, with its real engine, receipts and books: only its answers to requests for
completions and embeddings come late, cut, changed, or not at all. Made for one provider each; `asked` counts those.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from penstock.wire.completions import CHAT, EMBEDDINGS, TEXT
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
        self.over = asyncio.Event()
        """The test is: nobody waits any longer."""

    def __call__(self, app: App) -> App:
        return _Wrapped(self, app)

    async def pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.over.wait()

    async def anything(self, app: App, scope: Any, receive: Any, send: Send) -> None:
        """A request that is neither of these."""
        await app(scope, receive, send)

    async def completion(self, app: App, scope: Any, receive: Any, send: Send) -> None:
        """A request for a completion, or embeddings."""
        await self.anything(app, scope, receive, send)

    async def session(self, app: App, scope: Any, receive: Any, send: Send) -> None:
        """A handshake."""
        await self.anything(app, scope, receive, send)


class _Wrapped:
    """What the server runs: the application's own attributes, and the layer's answers."""

    def __init__(self, layer: Layer, app: Any) -> None:
        self._layer, self._app = layer, app

    def __getattr__(self, name: str) -> Any:
        return getattr(self._app, name)

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        layer, path = self._layer, scope.get("path", "")
        asks = scope["type"] == "http" and path in (CHAT, TEXT, EMBEDDINGS)
        layer.asked += asks
        handle = self._app
        if scope["type"] == "http" and layer.on:
            own = layer.completion if asks else layer.session if path == SESSIONS_PATH else layer.anything
            handle = functools.partial(own, self._app)
        await handle(scope, receive, send)


async def _by_events(
    app: App, scope: Any, receive: Any, send: Send, before: Callable[[bytes], Awaitable[None]]
) -> None:
    """What it says, one event at a time, however many come at once; each goes out after `before`."""

    async def one_by_one(message: Message) -> None:
        if message["type"] == "http.response.body":
            *events, rest = message.get("body", b"").split(b"\n\n")
            for event in events:
                await before(event)
                await send({**message, "body": event + b"\n\n", "more_body": True})
            message = {**message, "body": rest}
        await send(message)

    await app(scope, receive, one_by_one)


class Slow(Layer):
    """Takes its time before the answer, and before each event of it: seconds."""

    def __init__(self, first: float, each: float = 0.0) -> None:
        super().__init__()
        self._first, self._each = first, each

    async def completion(self, app: App, scope: Any, receive: Any, send: Send) -> None:
        await self.pause(self._first)
        await _by_events(app, scope, receive, send, lambda _: self.pause(self._each))


class _After(Layer):
    """Something happens after so many words of the answer."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self._words = words

    async def happens(self) -> None:
        raise NotImplementedError

    async def completion(self, app: App, scope: Any, receive: Any, send: Send) -> None:
        sent = 0

        async def count(event: bytes) -> None:
            nonlocal sent
            sent += event.count(b'"content":"')
            if sent > self._words:
                await self.happens()

        await _by_events(app, scope, receive, send, count)


class Stalls(_After):
    """Falls silent, and keeps the connection."""

    async def happens(self) -> None:
        await self.pause(3600)


class Dies(_After):
    """Hangs up."""

    async def happens(self) -> None:
        raise ConnectionError("died on purpose")


class Flaps(Dies):
    """Well for as many requests as it is ill for afterwards, again and again."""

    def __init__(self, words: int, period: int) -> None:
        super().__init__(words)
        self._period = period

    async def completion(self, app: App, scope: Any, receive: Any, send: Send) -> None:
        if self.asked // self._period % 2:
            await super().completion(app, scope, receive, send)
        else:
            await app(scope, receive, send)


class Vanishes(Layer):
    """After so many requests for completions it hangs up on everybody, for ever, whatever they want."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self._after = after

    async def anything(self, app: App, scope: Any, receive: Any, send: Send) -> None:
        if self.asked > self._after:
            raise ConnectionError("gone on purpose")
        await app(scope, receive, send)


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
