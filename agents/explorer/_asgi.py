"""What stands before every request: a limit for each client, validators for caches, and safe headers."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_CLIENTS = 10_000
"""Of which the limit remembers how much they asked."""

CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


class Buckets:
    """One for each client: `per_minute` a minute, a quarter of them at once; 0: any number."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = per_minute / 60, clock
        self._burst = max(1.0, per_minute / 4)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> float:
        """Seconds to wait; 0: go ahead."""
        if not self._rate:
            return 0.0
        now = self._clock()
        left, since = self._buckets.pop(client, (self._burst, now))
        left = min(self._burst, left + (now - since) * self._rate)
        allowed = left >= 1
        self._buckets[client] = (left - 1 if allowed else left, now)
        if len(self._buckets) > _CLIENTS:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - left) / self._rate


class RateLimit:
    """So many requests a minute of each client. Static files are free."""

    def __init__(self, app: ASGIApp, per_minute: int) -> None:
        self._app, self._buckets = app, Buckets(per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/static/"):
            await self._app(scope, receive, send)
            return
        client = (scope.get("client") or ("",))[0]
        wait = self._buckets.take(client)
        if wait <= 0:
            await self._app(scope, receive, send)
            return
        seconds = str(int(wait) + 1)
        body = b'{"detail": "too many requests: wait as long as Retry-After says"}'
        headers = [(b"content-type", b"application/json"), (b"retry-after", seconds.encode())]
        await send({"type": "http.response.start", "status": 429, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Validators:
    """Answers about the store change with its last block and with what is noted beside the chain: a cache that has the
    answer of both need not ask again, and who asks with its tag gets no body."""

    def __init__(self, app: ASGIApp, tag: Callable[[], str]) -> None:
        self._app, self._tag = app, tag

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        tag = f'W/"{self._tag()}"'
        fresh = scope["path"].startswith("/api/") and tag in Headers(scope=scope).get("if-none-match", "")
        suppressed = False

        async def answer(message: Message) -> None:
            nonlocal suppressed
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-content-type-options"] = "nosniff"
                if scope["path"].startswith("/static/"):
                    headers["cache-control"] = "public, max-age=3600"
                elif message["status"] == 200 and "cache-control" not in headers:
                    headers["etag"] = tag
                    headers["cache-control"] = "public, max-age=1"
                    if fresh:
                        suppressed = True
                        kept = [(k, v) for k, v in message["headers"] if k in (b"etag", b"cache-control")]
                        message = {"type": "http.response.start", "status": 304, "headers": kept}
                if headers.get("content-type", "").startswith("text/html"):
                    headers["content-security-policy"] = CONTENT_POLICY
                    headers["referrer-policy"] = "no-referrer"
            elif suppressed:
                message = {"type": "http.response.body", "body": b"", "more_body": message.get("more_body", False)}
            await send(message)

        await self._app(scope, receive, answer)
