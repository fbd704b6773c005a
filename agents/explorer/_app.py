"""The web process: API, pages, the chat panel's way to the gateway, and what fills the store beside them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import Response
from starlette.types import ASGIApp

from agents.explorer import _api, _transactions
from agents.explorer._asgi import RateLimit, Validators
from agents.explorer._indexer import Indexer
from agents.explorer._live import Live
from agents.explorer._pages import STATIC, ChatSettings, Pages
from agents.explorer._probe import Prober
from agents.explorer._schema import SCHEMA
from agents.explorer._store import Store, StoreUnavailable
from penstock.deployments import Deployment

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_ASKED_AT_MOST = 64 * 1024
"""Bytes of a question."""


def app(
    deployment: Deployment,
    store: Store,
    indexer: Indexer | None,
    *,
    prober: Prober | None = None,
    per_minute: int = 600,
    chat: ChatSettings = ChatSettings(),  # noqa: B008  immutable
) -> tuple[ASGIApp, Live]:
    """What answers requests, and what tells news: to be hung up before a server waits for its connections.

    `indexer` None: another process fills the store; `prober` None: this one does not ask whether providers are up.
    `per_minute`: requests of each client; 0: any number.
    """
    live = Live(store)
    if indexer is not None:
        indexer.listen(live.poke)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await live.look()
        tasks = [asyncio.create_task(live.run())]
        if indexer is not None:
            tasks.append(asyncio.create_task(indexer.run()))
        if prober is not None:
            tasks.append(asyncio.create_task(prober.run()))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    web = FastAPI(
        title="Penstock explorer",
        version="1",
        description="The market, recomputed from the contracts' events, and what consumers publish of it.",
        openapi_url="/api/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    pages = Pages(deployment, store, live, lambda: indexer, chat)
    web.include_router(_api.router(deployment, store, live, lambda: indexer, per_minute))
    web.include_router(_transactions.router(deployment, store))
    web.include_router(pages.router())
    web.mount("/static", StaticFiles(directory=STATIC))
    if chat.gateway:
        _add_chat(web, chat.gateway)

    @web.exception_handler(StoreUnavailable)
    async def unavailable(request: Request, error: StoreUnavailable) -> Response:
        return JSONResponse({"detail": str(error)}, 503, headers={"retry-after": "5"})

    @web.exception_handler(StarletteHTTPException)
    async def wrong(request: Request, error: StarletteHTTPException) -> Response:
        if error.status_code == 404 and not request.url.path.startswith(("/api/", "/static/", "/chat/")):
            return await pages.missing(request, "page of this name")
        return JSONResponse({"detail": error.detail}, error.status_code, headers=error.headers)

    def tag() -> str:
        return f"{SCHEMA}-{live.tip.hash[2:18] if live.tip else 'none'}-{store.noted}"

    return RateLimit(Validators(web, tag), per_minute), live


class Server(uvicorn.Server):
    """Ends at once: those who listen for news are let go before their connections are waited for."""

    def __init__(self, served: tuple[ASGIApp, Live], **options: Any) -> None:
        web, self._live = served
        quiet = {"access_log": False, "timeout_graceful_shutdown": 2, "lifespan": "on", "ws": "none"}
        super().__init__(uvicorn.Config(web, **{"log_level": "warning", **quiet, **options}))

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the command's."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._live.hang_up()
        await super().shutdown(sockets)


def _add_chat(web: FastAPI, gateway: str) -> None:
    """The panel's requests to the gateway, which spends money: only of pages of ours, in a browser on this machine."""
    base = gateway.rstrip("/")

    @web.post("/chat/completions", include_in_schema=False)
    async def completions(request: Request) -> Response:
        client = request.client.host if request.client else ""
        host = urlsplit(f"//{request.headers.get('host', '')}").hostname
        origin = urlsplit(request.headers.get("origin", "")).netloc
        ours = request.headers.get("x-penstock-explorer") == "chat" and origin in ("", request.headers.get("host"))
        if client not in _LOOPBACK or host not in _LOOPBACK or not ours:
            return _refused(403, "the chat panel works only from the machine that the explorer runs on")
        body = await request.body()
        if len(body) > _ASKED_AT_MOST:
            return _refused(413, f"a question of more than {_ASKED_AT_MOST} bytes")
        session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=120))
        try:
            answer = await session.post(
                f"{base}/chat/completions", data=body, headers={"content-type": "application/json"}
            )
        except (aiohttp.ClientError, TimeoutError):
            await session.close()
            return _refused(502, f"no gateway answers at {base}: start it, or name another with --gateway")

        async def passed() -> AsyncIterator[bytes]:
            # A browser that goes away ends this, and with it the request to the gateway, which stops the stream.
            try:
                async for piece in answer.content.iter_any():
                    yield piece
            except aiohttp.ClientError:
                yield b'data: {"error": {"message": "the gateway broke off"}}\n\n'
            finally:
                answer.close()
                await session.close()

        kind = answer.headers.get("content-type", "application/json")
        return StreamingResponse(passed(), answer.status, {"content-type": kind, "cache-control": "no-store"})


def _refused(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message}}, status)
