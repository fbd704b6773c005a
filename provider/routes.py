"""What is answered besides completions: sessions, vouchers, receipts, and how things stand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import structlog
from fastapi import FastAPI, Request
from fastapi.responses import Response
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from penstock.types import hex32
from penstock.wire.receipts import RECEIPTS_PATH, ReceiptAnswer, ReceiptBody, ReceiptsAnswer
from penstock.wire.sessions import (
    CLOSE_PATH,
    SESSIONS_PATH,
    VOUCHER_PATH,
    WELL_KNOWN_PATH,
    CloseRequest,
    SessionRequest,
    VoucherRequest,
)
from penstock.wire.skills import SKILLS_PATH
from provider.asgi import ClientLeft, address_of, read_body
from provider.errors import ApiError, unwritable
from provider.openapi import complete
from provider.places import reason
from provider.running import Provider
from provider.skills.app import add_routes

log = structlog.get_logger("provider")

CONTROL_BODY = 64 * 1024
"""Bytes of a request that is no completion, at most."""
_MOST_RECEIPTS = 1000
"""In one list."""


def routes(provider: Provider) -> FastAPI:
    """The provider starts and stops in the lifespan."""
    sessions, admission = provider.sessions, provider.admission

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await provider.start()
        try:
            yield
        finally:
            await provider.stop()

    app = FastAPI(title="Penstock provider", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)

    @app.get("/health", summary="Whether the process runs")
    async def health() -> Response:
        return _json(200, {"status": "ok"})

    @app.get("/ready", summary="Whether it can sell now")
    async def ready() -> Response:
        troubles = provider.ready()
        content = {
            "status": "not ready" if troubles else "ready",
            "troubles": troubles,
            "block": provider.projection.block,
            "sessions": admission.live_sessions(),
            "slots": provider.settings.slots,
            "running": admission.running,
            "draining": admission.draining,
        }
        return _json(503 if troubles else 200, content)

    @app.get(WELL_KNOWN_PATH, summary="Who answers here, and for what price")
    async def well_known() -> Response:
        return _json(200, sessions.well_known())

    @app.post(SESSIONS_PATH, summary="Trade a stream or a channel, and a grant, for a token", status_code=201)
    async def open_session(request: Request) -> Response:
        provider.buckets.take(address_of(request.scope, provider.settings.behind_proxy))
        asked = await _decode(request, SessionRequest)
        return _json(201, await sessions.open(asked))

    @app.get(SESSIONS_PATH + "/current", summary="The state of the token's session")
    async def current_session(request: Request) -> Response:
        return _json(200, sessions.current(admission.session(_authorization(request))))

    @app.delete(SESSIONS_PATH + "/current", summary="Revoke the token: its stream or channel goes on without it")
    async def revoke_session(request: Request) -> Response:
        session = admission.session(_authorization(request))
        await sessions.revoke(session)
        return _json(200, {"session_id": session.id, "revoked": True})

    @app.post(VOUCHER_PATH, summary="Pay for tokens: a voucher for all that the channel owes, and a little ahead")
    async def voucher(request: Request) -> Response:
        session = admission.session(_authorization(request))
        return _json(200, await provider.accounts.receive(session, await _decode(request, VoucherRequest)))

    @app.post(CLOSE_PATH, summary="End the token's session, its stream and its channel")
    async def close_session(request: Request) -> Response:
        authorization, asked = _authorization(request), await _decode(request, CloseRequest)
        by_grant = authorization is None and asked.grant is not None
        if by_grant:
            provider.buckets.take(address_of(request.scope, provider.settings.behind_proxy))
        session = await sessions.named(asked) if by_grant else admission.session(authorization)
        return _json(200, await sessions.close(session, asked))

    @app.get(RECEIPTS_PATH, summary="The receipts of the token's session, in order")
    async def receipts_of_session(request: Request) -> Response:
        session, receipts = admission.session(_authorization(request)), provider.receipts
        first, most = _number(request, "first", 0), min(_number(request, "most", _MOST_RECEIPTS), _MOST_RECEIPTS)
        found = await receipts.of_session(session.stream_id, session.start, first, most)
        return _json(200, ReceiptsAnswer([ReceiptBody.of(signed) for signed in found]))

    @app.get(RECEIPTS_PATH + "/{name}", summary="A receipt by its hash; to who shows its session's token, with the ids")
    async def receipt(request: Request, name: str) -> Response:
        found = await provider.receipts.get(name.lower())
        if found is None:
            raise ApiError(404, "receipt_unknown", f"no receipt {name[:80]} was signed here")
        signed, ids = found
        if request.query_params.get("token_ids") is None:
            return _json(200, ReceiptBody.of(signed))
        session = admission.session(_authorization(request))
        if (session.stream_id, session.start) != signed.receipt.session:
            raise ApiError(403, "not_yours", "the receipt is another session's: its answer is for who paid for it")
        return _json(200, ReceiptAnswer(ReceiptBody.of(signed), None if ids is None else hex32(ids)))

    @app.get("/v1/models", summary="The models on sale, in OpenAI's shape")
    async def models() -> Response:
        listed: dict[str, dict[str, Any]] = {}
        for offer in provider.seller.active:
            listed.setdefault(
                offer.terms.model,
                {
                    "id": offer.terms.model,
                    "object": "model",
                    "created": offer.created_at,
                    "owned_by": provider.seller.provider.id,
                    "max_model_len": offer.terms.context_length,
                },
            )
        return _json(200, {"object": "list", "data": list(listed.values())})

    if provider.licensing is not None and provider.licensing.service.served:
        add_routes(app, provider.licensing.service)

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        by_stream = error.status == 402 and not request.url.path.startswith(SKILLS_PATH)
        shown = sessions.payment_required(error, request.url.path) if by_stream else error
        return _json(shown.status, shown.body, shown.headers)

    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        what = ApiError(error.status_code, code, f"{request.method} {request.url.path}: {error.detail}")
        return _json(what.status, what.body, dict(error.headers or {}))

    async def unwritten(request: Request, error: Exception) -> Response:
        log.error("the state cannot be written", path=request.url.path, error=reason(error))
        what = unwritable()
        return _json(what.status, what.body, what.headers)

    async def failed(request: Request, error: Exception) -> Response:
        log.error("a request failed", path=request.url.path, exc_info=error)
        return _json(500, ApiError(500, "internal_error", "the gateway failed: try again, or go elsewhere").body)

    async def left(_: Request, __: Exception) -> Response:
        return Response(status_code=499)

    bare = app.openapi
    app.openapi = lambda: app.openapi_schema or complete(bare())  # type: ignore[method-assign]
    app.add_exception_handler(ApiError, refused)
    app.add_exception_handler(HTTPException, unknown)
    app.add_exception_handler(ClientLeft, left)
    app.add_exception_handler(OperationalError, unwritten)
    app.add_exception_handler(Exception, failed)
    return app


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ApiError(400, "invalid_request", f"{name} is a whole number", param=name)
    return int(text)


async def _decode(request: Request, kind: type[Any]) -> Any:
    raw = await read_body(request.scope, request.receive, CONTROL_BODY)
    try:
        return msgspec.json.decode(raw or b"{}", type=kind)
    except msgspec.DecodeError as error:
        code = "invalid_request" if isinstance(error, msgspec.ValidationError) else "invalid_json"
        raise ApiError(400, code, f"the body is no {kind.__name__}: {error}") from None


def _authorization(request: Request) -> bytes | None:
    text = request.headers.get("authorization")
    return text.encode("latin-1") if text is not None else None


def _json(status: int, content: Any, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")
