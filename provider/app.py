"""The provider's HTTP application, and what runs behind it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
import structlog
from fastapi import FastAPI, Request
from fastapi.responses import Response
from prometheus_client import Metric
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from starlette.exceptions import HTTPException

from penstock.chain.port import Chain
from penstock.errors import ChainError, WireError
from penstock.types import StreamId, hex32
from penstock.wire.eip712 import KeySigner
from penstock.wire.receipts import RECEIPTS_PATH, ReceiptAnswer, ReceiptBody, ReceiptsAnswer
from penstock.wire.sessions import (
    CLOSE_PATH,
    SESSIONS_PATH,
    VOUCHER_PATH,
    WELL_KNOWN_PATH,
    CloseRequest,
    SessionRequest,
    StreamKeyBody,
    VoucherRequest,
)
from penstock.wire.skills import SKILLS_PATH
from provider.accounts import Accounts
from provider.admission import Admission, Refusal, hash_token
from provider.asgi import App, ClientLeft, Message, Receive, Scope, Send, address_of, header, read_body, send_error
from provider.challenges import Challenges
from provider.cluster import Cluster
from provider.engines import Fleet
from provider.errors import ApiError, unwritable
from provider.gateway import PATHS, Gateway
from provider.limits import Buckets
from provider.market import Seller
from provider.metrics import Metrics, gauge, gauges
from provider.openapi import complete
from provider.payouts import Payouts, due_of, vouchers_due
from provider.places import reason
from provider.projection import Clock, Projection
from provider.receipts import Receipts
from provider.sessions import Sessions
from provider.settings import Settings
from provider.skills.app import add_routes
from provider.skills.licensing import Licensing
from provider.store import DRAIN, Store
from provider.traces import OFF, Traces

log = structlog.get_logger("provider")

_CONTROL_BODY = 64 * 1024
_MOST_RECEIPTS = 1000
"""In one list."""
_FLUSH_SECONDS = 0.25
_HEED_SECONDS = 1.0
_CHALLENGE_SECONDS = 10.0
"""Between two looks for challenges, which have to be answered within 15 minutes."""
_FIRST_SYNC_SECONDS = 600.0
_SETTLE_SECONDS = 20.0
"""How long the last payout may keep the process from ending."""


class Provider:
    """The running parts, in the order in which they need each other."""

    def __init__(
        self,
        settings: Settings,
        *,
        chain: Chain,
        engines: Fleet,
        store: Store,
        clock: Clock,
        seller: Seller,
        signer: KeySigner | None = None,
        chain_store: Store | None = None,
        peer_url: str = "",
        lost: Callable[[], None] = lambda: None,
        licensing: Licensing | None = None,
        traces: Traces = OFF,
    ) -> None:
        """`signer`: whose key signs receipts; None: the account's. Where other gateways use `store`, too: `chain_store`
        is for what this one has read of the chain, `peer_url` where the others reach it, and `lost` is called when it
        may serve no more. `licensing`: None where nothing here has to do with licences."""
        self.licensing = licensing
        self.settings, self.chain, self.engines, self.store, self.seller = settings, chain, engines, store, seller
        self.metrics = Metrics(self._figures)
        self.buckets = Buckets(settings.address_rate)
        self.projection = Projection(
            chain,
            chain_store or store,
            clock,
            payee=seller.provider.payee,
            first_block=seller.first_block,
            confirmations=settings.confirmations,
            poll_seconds=self._until_next_look,
            outage_seconds=settings.outage_seconds,
            head_stuck_seconds=settings.head_stuck_seconds,
            max_skew_seconds=settings.max_skew_seconds,
        )
        self.admission = Admission(
            self.projection, seller, slots=settings.slots, concurrency=settings.session_concurrency
        )
        self.accounts = Accounts(
            store,
            seller,
            self.projection,
            chain.stream_pay_domain,
            credit_tokens=settings.credit_tokens,
            step_tokens=min(settings.step_tokens, settings.credit_tokens),
            grace_seconds=settings.voucher_seconds,
        )
        self.sessions = Sessions(settings, chain, store, seller, self.projection, self.admission, self.accounts, clock)
        self.sessions.licensing = licensing
        self._lost = lost
        cluster = None
        if store.shared:
            cluster = Cluster(
                store,
                peer_url,
                adopt=self._adopt,
                held=self.admission.holders,
                silent=self._hush,
                lost=self._leave,
            )
        self.cluster = self.sessions.cluster = cluster
        self.payouts = Payouts(
            chain,
            store,
            seller,
            self.projection,
            self.accounts,
            gas_multiple=settings.payout_gas_multiple,
            ours=lambda stream: cluster is None or cluster.ours(stream),
            leads=lambda: cluster is None or cluster.leads,
            told=self.metrics.paid_out,
        )
        self.receipts = Receipts(store, seller, signer or seller.account, chain.slashing_domain, clock)
        self.challenges = Challenges(
            chain, self.receipts, seller.account, first_block=seller.first_block, now=self.projection.now
        )
        self.gateway = Gateway(
            settings,
            engines,
            seller,
            self.admission,
            self.sessions,
            self.accounts,
            clock,
            self.receipts,
            self.metrics,
            traces,
        )
        self.traces = traces
        self._tasks: list[asyncio.Task[None]] = []

    def _until_next_look(self) -> float:
        """At the chain: seconds."""
        settings = self.settings
        return (
            min(settings.poll_seconds, settings.busy_poll_seconds) if self.admission.running else settings.poll_seconds
        )

    async def start(self) -> None:
        """Know all that happened before, then follow the chain."""
        await self.projection.load()
        if self.cluster is None:
            await self._admit(None)
        try:
            async with asyncio.timeout(_FIRST_SYNC_SECONDS):
                await self.projection.sync()
        except (ChainError, TimeoutError) as error:
            # What was known still holds up to its proven ends; new sessions wait for the node.
            log.warning("cannot read the chain yet", error=str(error))
        await self.receipts.load()
        if self.cluster is None:
            await self.accounts.load()
        else:
            await self.cluster.start()
        if self.licensing is not None:
            await self.licensing.start()
        await self._heed()
        every = self.settings.payout_seconds
        self._tasks = [
            asyncio.create_task(self.projection.run(), name="projection"),
            asyncio.create_task(_repeat(every, self._settle), name="payouts"),
            asyncio.create_task(_repeat(min(every, 5.0), self.sessions.finish_closings), name="closings"),
            asyncio.create_task(_repeat(_FLUSH_SECONDS, self._flush), name="receipts"),
            asyncio.create_task(_repeat(_HEED_SECONDS, self._heed), name="control"),
            asyncio.create_task(_repeat(_CHALLENGE_SECONDS, self._look), name="challenges"),
        ]

    async def _admit(self, stream: StreamId | None) -> None:
        """The sessions of one stream, or all, and what is to be closed."""
        for closing in await self.store.closings(stream):
            self.admission.close(closing)
        for session in await self.store.sessions(stream):
            if session.offer_id in self.seller.offers:
                self.admission.add(session)

    async def _adopt(self, stream: StreamId) -> None:
        """Know all about a stream that another gateway served before, or none."""
        await self.receipts.take_over(stream)
        await self.accounts.load(stream)
        await self._admit(stream)

    def _hush(self) -> None:
        """The database is away, and others may answer for what is served here: nothing goes on without it."""
        error = unwritable()
        self.admission.cut_all(Refusal(error.code, error.message))

    def _leave(self) -> None:
        """Others go on with all that is served here, in a moment."""
        self.admission.stopping = True
        self.admission.cut_all(Refusal("stopping", "this gateway has lost its place: ask again, another one answers"))
        self._lost()

    async def drain(self) -> None:
        """Take nothing new; give running answers a moment, then cut them."""
        self.admission.stopping = True
        with suppress(TimeoutError):
            async with asyncio.timeout(self.settings.stop_seconds):
                await self.admission.idle()
        self.admission.cut_all(Refusal("stopping", "the provider is stopping: cancel what is left, and go elsewhere"))

    async def stop(self) -> None:
        """Settle the earnings and leave. What is not worth its gas now waits on the chain."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task
        await self.gateway.stop()
        if self.licensing is not None:
            await self.licensing.stop()
        await self._flush()
        if self.cluster is not None:
            with suppress(SQLAlchemyError):
                await self.cluster.stop()
        try:
            async with asyncio.timeout(_SETTLE_SECONDS):
                await self.sessions.finish_closings()
                await self.payouts.run()
        except TimeoutError:
            log.warning("the chain is too slow to settle now: what is due waits there, and at the next start")

    def ready(self) -> dict[str, str]:
        """What is amiss, by part; empty: ready to sell."""
        found = {
            "engine": self.engines.trouble(),
            "chain": self.projection.trouble(),
            "state": self.store.trouble(),
        }
        if self.admission.draining:
            found["provider"] = "draining: no new sessions"
        if self.admission.stopping:
            found["provider"] = "stopping"
        return {part: trouble for part, trouble in found.items() if trouble}

    def _figures(self) -> Iterator[Metric]:
        """How things stand now, for the metrics."""
        projection, admission, engines = self.projection, self.admission, self.engines.engines
        yield gauge("penstock_ready", "1 while it can sell.", not self.ready())
        yield gauge("penstock_sessions", "Streams that hold a slot.", admission.live_sessions())
        yield gauge("penstock_slots", "Sessions at once, at most.", self.settings.slots)
        yield gauge("penstock_running", "Answers that are being generated.", admission.running)
        yield gauge("penstock_queue_waiting", "Requests that wait for a turn.", self.gateway.queue.waiting)
        yield gauge("penstock_draining", "1 while no new sessions are taken.", admission.draining)
        yield gauge("penstock_block", "The last block that is known.", projection.block)
        lag = projection.head.number - projection.block if projection.head else 0
        yield gauge("penstock_block_lag", "Blocks of the chain's head that are not read yet.", lag)
        yield gauge("penstock_chain_silence_seconds", "Since the node last answered.", projection.silence)
        yield gauge("penstock_clock_skew_seconds", "The chain's clock less this host's.", projection.skew)
        yield gauges(
            "penstock_engine_up",
            "1 while the engine answers.",
            "engine",
            [(e.name, e.trouble() is None) for e in engines],
        )
        yield gauges("penstock_engine_running", "Answers it is at.", "engine", [(e.name, e.running) for e in engines])
        due: dict[str, int] = {}
        for each in due_of(projection.streams.values(), int(projection.now())):
            due[each.token] = due.get(each.token, 0) + each.amount
        for each in vouchers_due(projection.channels.values(), self.accounts.highest):
            due[each.token] = due.get(each.token, 0) + each.amount
        yield gauges("penstock_due_base_units", "Earned and still in streams and channels.", "token", due.items())
        yield gauge("penstock_owed_base_units", "Served by the token and not paid by a voucher.", self.accounts.unpaid)

    async def _settle(self) -> None:
        await self.payouts.run()
        await self.sessions.forget()
        await self.store.prune(int((time.time() - self.settings.keep_days * 86_400) * 1000))

    async def _heed(self) -> None:
        """What the operator has said since."""
        draining = bool(await self.store.read_meta(DRAIN))
        if draining != self.admission.draining:
            log.warning("no new sessions are taken" if draining else "new sessions are taken again")
        self.admission.draining = draining
        await self.sessions.look_for_revoked()

    async def _look(self) -> None:
        if self.cluster is None or self.cluster.leads:
            await self.challenges.look()

    async def _flush(self) -> None:
        try:
            await self.receipts.flush()
        except OperationalError:
            return  # the store has said so, and it is tried again


def create_app(
    settings: Settings,
    *,
    chain: Chain,
    engines: Fleet,
    store: Store,
    clock: Clock,
    seller: Seller,
    signer: KeySigner | None = None,
    chain_store: Store | None = None,
    peer_url: str = "",
    lost: Callable[[], None] = lambda: None,
    licensing: Licensing | None = None,
    traces: Traces = OFF,
) -> ProviderApp:
    """An ASGI application. It starts and stops what runs behind it in its lifespan; chain, engines and store are the
    caller's to open and close. The rest as `Provider` takes them."""
    provider = Provider(
        settings,
        chain=chain,
        engines=engines,
        store=store,
        clock=clock,
        seller=seller,
        signer=signer,
        licensing=licensing,
        chain_store=chain_store,
        peer_url=peer_url,
        lost=lost,
        traces=traces,
    )
    return ProviderApp(provider)


class ProviderApp:
    """The hot routes go straight to the gateway, all others through FastAPI."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self._gateway: App = provider.traces.around(provider.gateway)
        self._rest: App = _routes(provider)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.provider.cluster is not None:
            try:
                elsewhere, receive = await self._owner(self.provider.cluster, scope, receive)
                if elsewhere:
                    await self.provider.cluster.forward(elsewhere, scope, receive, send)
                    return
            except ClientLeft:
                return
            except ApiError as error:
                await send_error(send, error)
                return
            except OperationalError as error:
                log.error("the state cannot be read", path=scope["path"], error=reason(error))
                await send_error(send, unwritable())
                return
        if scope["type"] == "http" and scope["path"] in PATHS:
            await self._gateway(scope, receive, send)
        else:
            await self._rest(scope, receive, send)

    async def _owner(self, cluster: Cluster, scope: Scope, receive: Receive) -> tuple[str, Receive]:
        """The URL of the gateway that answers a request; empty: this one. With what of it is still to be read."""
        authorization = header(scope, b"authorization")
        if authorization is not None:
            token_hash = hash_token(authorization.partition(b" ")[2].strip())
            if self.provider.admission.knows(token_hash):
                return "", receive
            self.provider.buckets.take(address_of(scope, self.provider.settings.behind_proxy))
            session = await self.provider.store.session_of(token_hash)
            return (await cluster.where(session.stream_id) if session else ""), receive
        if scope["method"] != "POST" or scope["path"] not in (SESSIONS_PATH, CLOSE_PATH):
            return "", receive
        body = await read_body(scope, receive, _CONTROL_BODY)
        try:
            asked = msgspec.json.decode(body, type=_Named)
            stream = asked.stream.value().id if asked.stream else None
        except (msgspec.DecodeError, WireError):
            stream = None  # refused where it is read in full
        return (await cluster.where(stream) if stream else ""), _again(body, receive)


class _Named(msgspec.Struct):
    """Of a handshake or a close, the stream that it is about."""

    stream: StreamKeyBody | None = None


def _again(body: bytes, receive: Receive) -> Receive:
    """Tells a body that has been read once more, then what comes."""
    told = False

    async def replay() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _routes(provider: Provider) -> FastAPI:
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


async def _repeat(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    """Until cancelled. One failure must not end the schedule."""
    while True:
        await asyncio.sleep(seconds)
        try:
            await work()
        except OperationalError as error:
            log.warning("a scheduled task waits for the state", task=work.__name__, error=reason(error))
        except Exception:
            log.exception("a scheduled task failed")


async def _decode(request: Request, kind: type[Any]) -> Any:
    raw = await read_body(request.scope, request.receive, _CONTROL_BODY)
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


__all__ = ["Provider", "ProviderApp", "create_app"]
