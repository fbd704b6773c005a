"""The gateway as an ASGI application: both APIs, and who may use them."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from agents.desk import Desk
from agents.gateway import _ollama_api, _openai_api
from agents.gateway._catalogue import Catalogue
from agents.gateway._http import ClientLeft, Refused, answer, refusal
from penstock.errors import PenstockError

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Door:
    """Lets in who may use the gateway; pure ASGI, so that streams pass through untouched.

    A page of some website that the user has open can send requests to localhost. It cannot hide its Origin, and one
    that had its own name point here (DNS rebinding) cannot hide that name: both are turned away, and no answer says
    to a browser that others may read it.
    """

    def __init__(self, app: ASGIApp, *, key: str, hosts: Sequence[str], origins: Sequence[str]) -> None:
        """`hosts`: names by which it may be called, besides localhost; `*`: any. `origins`: pages that may use it."""
        self._app, self._key = app, key.encode()
        self._hosts = {name.lower() for name in (*_LOOPBACK, *hosts)}
        self._origins = set(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            request = Request(scope)
            if (refused := self._refuse(request)) is not None:
                return await shown(request, refused)(scope, receive, send)
        return await self._app(scope, receive, send)

    def _refuse(self, request: Request) -> Refused | None:
        kind = "invalid_request_error"
        try:
            name = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
        except ValueError:
            name = ""
        if name not in self._hosts and "*" not in self._hosts:
            what = f"this gateway is not {name or 'without a name'}: call it localhost, or allow that by --allow-host"
            return Refused(403, kind, "wrong_host", what)
        origin = request.headers.get("origin")
        if origin is not None and origin not in self._origins:
            what = f"pages of {origin} may not use this gateway; --allow-origin {origin} lets them"
            return Refused(403, kind, "wrong_origin", what)
        if self._key:
            given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
            if not hmac.compare_digest(given, self._key):
                return Refused(
                    401, kind, "invalid_api_key", "give the gateway's API key, as `Authorization: Bearer KEY`"
                )
        return None


def create_app(
    desk: Desk,
    *,
    idle: float,
    key: str = "",
    hosts: Sequence[str] = (),
    origins: Sequence[str] = (),
) -> ASGIApp:
    """`idle`: seconds for which sessions stay open unused."""
    catalogue = Catalogue(desk, idle=idle)

    async def refused(request: Request, error: Exception) -> Response:
        return shown(request, refusal(error))

    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = f"{request.method} {request.url.path}: {error.detail.lower()}; OpenAI is below /v1, Ollama below /api"
        return shown(request, Refused(error.status_code, "invalid_request_error", "unknown_url", what))

    async def left(request: Request, error: Exception) -> Response:
        return Response(status_code=499)

    async def health(request: Request) -> Response:
        return answer({"status": "ok"})

    app = Starlette(
        routes=[*_openai_api.routes(desk, catalogue), *_ollama_api.routes(desk, catalogue)],
        exception_handlers={
            ClientLeft: left,
            HTTPException: unknown,
            Refused: refused,
            PenstockError: refused,
            Exception: refused,  # the server logs it, too
        },
    )
    app.add_route("/health", health)
    return Door(app, key=key, hosts=hosts, origins=origins)


def shown(request: Request, refused: Refused) -> Response:
    """An error in the words of the API that was asked."""
    if not request.url.path.startswith("/v1"):
        return answer(refused.ollama, refused.status)
    return answer(refused.openai, refused.status)
