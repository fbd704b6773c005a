"""The routes of skills: part of a provider's application, or an application of their own where nothing else is sold."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import structlog
from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from penstock.wire.sessions import WELL_KNOWN_PATH
from penstock.wire.skills import (
    SKILL_RECEIPTS_PATH,
    SKILL_SESSIONS_PATH,
    SKILLS_PATH,
    LicenceGrantBody,
    SkillReceiptsAnswer,
    SkillsAnswer,
)
from provider.asgi import ClientLeft, read_body
from provider.errors import ApiError
from provider.skills.licensing import Licensing
from provider.skills.service import SkillService

log = structlog.get_logger("provider.skills")

_MAX_INPUT = 2**20
_MOST_RECEIPTS = 1000


def add_routes(app: FastAPI, service: SkillService) -> None:
    @app.get(SKILLS_PATH, summary="The skills that are executed here")
    async def skills() -> Response:
        return _json(200, SkillsAnswer(service.provider, service.endpoint, service.catalogue()))

    @app.post(SKILL_SESSIONS_PATH, summary="Trade a licence's grant for a token", status_code=201)
    async def open_session(request: Request) -> Response:
        raw = await read_body(request.scope, request.receive, 64 * 1024)
        try:
            body = msgspec.json.decode(raw, type=LicenceGrantBody)
        except msgspec.DecodeError as error:
            raise ApiError(400, "invalid_request", f"the body is no LicenceGrantBody: {error}") from None
        return _json(201, await service.open(body))

    @app.get(SKILL_RECEIPTS_PATH, summary="The receipts of the token's licence, in order")
    async def receipts(request: Request) -> Response:
        licence = service.licence_of(request.headers.get("authorization"))
        first = request.query_params.get("first", "0")
        if not (first.isascii() and first.isdigit() and len(first) < 10):
            raise ApiError(400, "invalid_request", "first is a whole number", param="first")
        return _json(200, SkillReceiptsAnswer(await service.receipts(licence, int(first), _MOST_RECEIPTS)))

    @app.get(SKILLS_PATH + "/{product}/card", summary="A skill's card, as its hash on the chain says")
    async def card(product: str) -> Response:
        return Response(service.skill(product).raw, media_type="application/json")

    @app.post(SKILLS_PATH + "/{product}/execute", summary="Call an operation of a skill, with a licence's token")
    async def execute(product: str, request: Request) -> Response:
        skill = service.skill(product)
        licence = service.licence_of(request.headers.get("authorization"))
        raw = await read_body(request.scope, request.receive, _MAX_INPUT)
        return _json(200, await service.execute(skill, licence, raw))


def create_skills_app(licensing: Licensing) -> FastAPI:
    """For a provider of skills alone."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await licensing.start()
        try:
            yield
        finally:
            await licensing.stop()

    app = FastAPI(title="Penstock skills", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
    service = licensing.service

    @app.get("/health", summary="Whether the process runs")
    async def health() -> Response:
        return _json(200, {"status": "ok"})

    @app.get("/ready", summary="Whether it can serve now")
    async def ready() -> Response:
        trouble = licensing.licences.trouble()
        content = {"status": "not ready" if trouble else "ready", "troubles": {"chain": trouble} if trouble else {}}
        return _json(503 if trouble else 200, content | {"block": licensing.licences.block})

    @app.get(WELL_KNOWN_PATH, summary="Who answers here")
    async def well_known() -> Response:
        content = {"version": 1, "provider": service.provider, "endpoint": service.endpoint, "offers": []}
        return _json(200, content | {"skills": service.catalogue()})

    add_routes(app, service)

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return _json(error.status, error.body, error.headers)

    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = ApiError(error.status_code, "not_found", f"{request.method} {request.url.path}: {error.detail}")
        return _json(what.status, what.body)

    async def failed(request: Request, error: Exception) -> Response:
        log.error("a request failed", path=request.url.path, exc_info=error)
        return _json(500, ApiError(500, "internal_error", "the gateway failed: try again, or go elsewhere").body)

    async def left(_: Request, __: Exception) -> Response:
        return Response(status_code=499)

    app.add_exception_handler(ApiError, refused)
    app.add_exception_handler(HTTPException, unknown)
    app.add_exception_handler(ClientLeft, left)
    app.add_exception_handler(Exception, failed)
    return app


def _json(status: int, content: Any, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")
