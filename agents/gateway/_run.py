"""`penstock serve`: the gateway as a process, until it is stopped."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import socket
from collections.abc import Iterator
from typing import Any

import msgspec
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from agents._context import Context
from agents._output import talk
from agents.gateway.app import create_app
from agents.opening import Opened, opened
from penstock.errors import ConfigError

_GRACE = 5
"""Seconds that answers under way may still take when the gateway is stopped."""
_IDLE = 75
"""Seconds that a connection is kept between requests: longer than clients keep theirs, so that none is closed in the
moment in which a client asks again."""


class ServeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[serve] in config.toml."""

    host: str = "127.0.0.1"
    port: int = 4020
    api_key: str = ""
    """Asked of clients; needed where others than this machine can connect."""
    allow_host: list[str] = msgspec.field(default_factory=list)
    """Names by which it may be called, besides localhost."""
    allow_origin: list[str] = msgspec.field(default_factory=list)
    """Pages that may use it, such as http://localhost:3000."""


class _Server(uvicorn.Server):
    """Leaves signals to us: they cancel the task, and what is open is closed on the way out."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _ending(app: ASGIApp) -> ASGIApp:
    """The same; what the end of the process cuts short breaks off without a word, for nothing has failed."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await app(scope, receive, send)

    return answer


async def serve(context: Context, options: dict[str, Any], local_options: dict[str, Any]) -> None:
    """Until a signal comes. Then answers under way get some seconds, and every stream and channel is closed."""
    settings = context.settings.section("serve", ServeSettings, options)
    if not settings.api_key and not _is_loopback(settings.host):
        raise ConfigError(
            f"--host {settings.host} lets other machines spend your money: set PENSTOCK_SERVE_API_KEY or --api-key, too"
        )
    with _listen(settings.host, settings.port) as listener:
        async with opened(context, "serve", local_options=local_options) as ready:
            await _serve(context, settings, listener, ready)


async def _serve(context: Context, settings: ServeSettings, listener: socket.socket, ready: Opened) -> None:
    app = create_app(
        ready.desk,
        idle=ready.policy.idle_seconds,
        key=settings.api_key,
        # With a key it does not matter by which name it is called.
        hosts=["*"] if settings.api_key else settings.allow_host,
        origins=settings.allow_origin,
    )
    config = uvicorn.Config(
        _ending(app),
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_IDLE,
        timeout_graceful_shutdown=_GRACE,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve([listener]))
    try:
        _tell(context, settings, listener, ready)  # who connects before it accepts waits in the backlog
        await asyncio.shield(serving)
    finally:
        server.should_exit = True
        await asyncio.wait({serving})


def _tell(context: Context, settings: ServeSettings, listener: socket.socket, ready: Opened) -> None:
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    if context.json:
        print(json.dumps({"event": "ready", "url": url, "openai": f"{url}/v1", "ollama": url}), flush=True)
        return
    talk(f"ready    {url}  paying from {ready.consumer.account.address}")
    key = "the API key" if settings.api_key else "any"
    talk(f"OpenAI   base_url {url}/v1, api_key {key}")
    talk(f"Ollama   OLLAMA_HOST={url}")
    if ready.local is not None:
        talk(f"local    {ready.local.settings.url}, {ready.local.settings.order} first")


def _listen(host: str, port: int) -> socket.socket:
    """ConfigError where the address is not to be had."""
    try:
        (family, kind, _, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        listener = socket.socket(family, kind)
    except OSError as error:
        raise ConfigError(f"--host {host} is no address of this machine: {error.strerror}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {host}:{port} ({error.strerror}); choose another --port, or stop what is there"
        ) from error
    return listener


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
