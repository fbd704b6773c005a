"""The hot route: a request for a completion, from the token to the last byte. Plain ASGI, no framework.

The engine is always asked for a stream, and whole events go on as they come: looked into where a receipt or a bill
states what they hold, else unparsed but for the one that carries the usage. What ends an answer early closes the
connection to the engine, which frees its slot: the money ends, the client leaves, the engine falls silent, the
first token comes later than the offer promises, the answer takes too long. Each gets its receipt, which is on the disk
before the slot is given back.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from functools import lru_cache
from typing import Any

import msgspec
import structlog
from sqlalchemy.exc import OperationalError

from penstock.types import Terms
from penstock.wire.completions import CHAT, EMBEDDINGS, MAX_VECTORS, NO_EMBEDDINGS, TEXT
from penstock.wire.receipts import ACCEPT_HEADER, RECEIPT_HEADER, Receipt, SignedReceipt
from penstock.wire.responses import RESPONSES
from penstock.wire.sessions import OWED_HEADER, prompt_bound
from provider import plain
from provider.accounts import VOUCHER_NEEDED, Accounts, Bill
from provider.admission import REVOKED, Admission, Refusal, Run
from provider.asgi import CLIENT, Client, ClientLeft, Receive, Scope, Send, header, read_body, send_error, send_json
from provider.completions import Counted, Prepared, TokenIds, has_words, prepare, prepare_embedding
from provider.engines import Dialect, Engine, Fleet
from provider.engines.http import Answer, BrokeOff, Connections, Unreachable
from provider.errors import ApiError, unwritable
from provider.forms import piece_of
from provider.limits import Buckets, Queue
from provider.market import Seller
from provider.metrics import Metrics
from provider.places import reason
from provider.receipts import Answered, Job, Receipts
from provider.sessions import Sessions
from provider.settings import Settings
from provider.store import NotOurs, Session, SlotsTaken, Usage
from provider.traces import OFF, Traces

log = structlog.get_logger("provider.gateway")

PATHS = frozenset({CHAT, TEXT, EMBEDDINGS, RESPONSES})

_SALTS = 10_000
"""Payers whose salts are kept; they can be made again."""
_LONGEST_EVENT = 4 * 2**20
_LONGEST_ERROR = 64 * 2**10

_CLIENTS_FAULT = (400, 413, 415, 422)
"""An engine's statuses for a request that is wrong."""

_STUCK_SECONDS = 5.0
"""How long a client that does not read may hold an answer that was stopped."""

LEFT = "client_left"
SILENT = "engine_silent"
LATE = "first_token_late"
LONG = "answer_too_long"


class Gateway:
    def __init__(
        self,
        settings: Settings,
        engines: Fleet,
        seller: Seller,
        admission: Admission,
        sessions: Sessions,
        accounts: Accounts,
        clock: Callable[[], float],
        receipts: Receipts,
        metrics: Metrics,
        traces: Traces = OFF,
    ) -> None:
        self._settings, self._engines, self._seller = settings, engines, seller
        self._receipts, self._metrics, self._traces = receipts, metrics, traces
        self.queue = Queue(settings.max_running, settings.queue_length, settings.queue_seconds)
        self._buckets = Buckets(settings.session_rate)
        self._admission, self._sessions, self._accounts = admission, sessions, accounts
        self._clock = clock
        self._connections: dict[Engine, Connections] = {}
        salt = secrets.token_bytes(32)
        self._salt_of = lru_cache(_SALTS)(lambda payer: hmac.digest(salt, payer.encode(), "sha256").hex())
        """Keeps one payer's prompts out of what another can learn from the engine's cache by its speed."""

    async def stop(self) -> None:
        for connections in self._connections.values():
            connections.close()
        self._connections.clear()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._answer(scope, receive, send)
        except ApiError as error:
            self._metrics.refused(error.code)
            self._traces.refused(error.code)
            shown = self._sessions.payment_required(error, scope["path"]) if error.status == 402 else error
            await send_error(send, shown)
        except ClientLeft:
            pass
        except OperationalError as error:
            log.error("the state cannot be written", path=scope["path"], error=reason(error))
            with suppress(RuntimeError):
                await send_error(send, unwritable())
        except Exception:
            log.exception("a request failed", path=scope["path"])
            with suppress(RuntimeError):  # the answer may have begun
                await send_error(
                    send, ApiError(500, "internal_error", "the gateway failed: try again, or go elsewhere")
                )

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if scope["method"] != "POST":
            raise ApiError(405, "method_not_allowed", f"{path} takes POST", headers={"allow": "POST"})
        authorization = header(scope, b"authorization")
        if authorization is None:
            raise ApiError(402, "payment_required", "open a stream and a session, and send its token: see `accepts`")
        session = self._admission.session(authorization)
        self._admission.require(session)
        self._sessions.require_licence(session)
        self._buckets.take(session.id)
        raw = await read_body(scope, receive, self._settings.max_body)
        terms = self._seller.offers[session.offer_id].terms
        bill = self._accounts.bill(session, prompt_bound(raw, terms.context_length))
        try:
            self._metrics.queued(await self.queue.enter(first=bool(session.start)))
            try:
                await self._serve(session, terms, raw, bill, scope, send)
            finally:
                self.queue.leave()
        finally:
            if bill is not None:
                bill.close()

    async def _serve(
        self, session: Session, terms: Terms, raw: bytes, bill: Bill | None, scope: Scope, send: Send
    ) -> None:
        path = scope["path"]
        engine = self._choose(terms.model)
        vllm = engine.dialect is Dialect.VLLM
        prepared = (
            prepare_embedding(raw, model=terms.model, engine_model=engine.models[terms.model])
            if path == EMBEDDINGS
            else prepare(
                raw,
                path,
                model=terms.model,
                engine_model=engine.models[terms.model],
                max_choices=self._settings.max_choices,
                dialect=engine.dialect,
                affordable=bill.most_tokens if bill is not None else None,
                cache_salt=self._salt_of(self._sessions.payer(session)) if vllm else None,
            )
        )
        run = self._admission.admit(session)
        job = self._receipts.begin(session, raw)
        exchange = _Exchange(run, terms, engine, self._clock, bill, job, prepared)
        engine.running += 1
        client: Client = scope[CLIENT]
        client.when_left(lambda: exchange.stop(LEFT))
        run.on_cut(lambda: exchange.stop(_refusal_code(run)))
        loop = asyncio.get_running_loop()
        timers = [loop.call_later(self._settings.answer_seconds, exchange.stop, LONG)]
        exchange.when_stopped(lambda: timers.append(loop.call_later(_STUCK_SECONDS, _drop, client, session)))
        if terms.max_ttft_ms:
            timers.append(loop.call_later((terms.max_ttft_ms + 1) / 1000, exchange.stop_unless_begun))
        outcome = "failed"
        try:
            if self._receipts.store.shared:
                await self._agree(job)
            exchange.silence.begin(self._settings.engine_answer_seconds)
            await self._open(exchange, prepared.payload)
            if path == EMBEDDINGS:
                await self._vectors(exchange, send)
            elif prepared.streams:
                await self._stream(exchange, send)
            else:
                await self._whole(exchange, send)
            outcome = exchange.why or "done"
        except ApiError as error:
            outcome = error.code
            await self._conclude(exchange, outcome)
            error.headers.update(await exchange.headers())
            raise
        finally:
            exchange.when_stopped(None)
            client.when_left(None)
            for timer in timers:
                timer.cancel()
            try:
                await self._conclude(exchange, outcome)
            finally:
                exchange.engine.running -= 1
                self._admission.finish(run)

    async def _agree(self, job: Job) -> None:
        """That no other gateway answers for the stream, nor all together for more sessions than there are slots."""
        try:
            await job.written()
        except SlotsTaken:
            raise ApiError(503, "no_free_slot", "all slots are taken: try again shortly", retry_after=1) from None
        except NotOurs:
            raise ApiError(503, "moving", "the session is moving to another gateway: again", retry_after=1) from None

    def _choose(self, model: str) -> Engine:
        """The least busy one. ApiError 503 where none answers now."""
        able = self._engines.of(model)
        if not able:
            trouble = self._engines.trouble(model)
            raise ApiError(503, "engine_unavailable", f"{trouble}: try again shortly", retry_after=2)
        return able[0]

    async def _conclude(self, exchange: _Exchange, outcome: str) -> None:
        """No more comes: stop the engine, and write down what was served. What was written first stays."""
        exchange.close()
        if exchange.job.refused:
            return
        if exchange.concluding is None:
            usage = exchange.usage(self._clock(), outcome)
            self._metrics.answered(usage, exchange.model)
            self._traces.served(usage, exchange.model, exchange.run.session.offer_id)
            exchange.concluding = exchange.conclude(usage)
        if not exchange.concluding.done():
            await asyncio.shield(exchange.concluding)
        if exchange.receipt is None:
            exchange.receipt = self._receipts.sign(exchange.concluding.result())

    # --- the engine's side ---

    async def _open(self, exchange: _Exchange, payload: bytes) -> None:
        """Have the engine begin. ApiError where it refuses, is away, or is stopped before it began."""
        try:
            answer = await self._post(exchange, payload)
        except (Unreachable, BrokeOff) as error:
            if exchange.why is not None:
                raise exchange.error() from None
            log.warning("the engine is not reached", error=str(error))
            raise ApiError(
                502, "engine_unreachable", "the engine is not reached: try again shortly", retry_after=2
            ) from None
        if answer.status != 200:
            raise await self._refused(exchange, answer)
        if answer.content_type != ("application/json" if exchange.path == EMBEDDINGS else "text/event-stream"):
            log.error("the engine does not stream", content_type=answer.content_type)
            raise ApiError(502, "engine_garbage", "the engine answered with something that is no stream of events")

    async def _post(self, exchange: _Exchange, payload: bytes) -> Answer:
        """To the engine; where nothing listens there, to another one like it."""
        while True:
            engine = exchange.engine
            try:
                answer = await self._connections_to(engine).post(exchange.path, payload, self._traces.onward())
            except Unreachable as error:
                engine.failed(f"the engine is not reached: {error}")
                log.warning("the engine is not reached", engine=engine.name, error=str(error))
                other = next((e for e in self._engines.of(exchange.model) if _alike(e, engine, exchange.model)), None)
                if other is None:
                    raise
                engine.running -= 1
                other.running += 1
                exchange.engine = other
                continue
            exchange.reads(answer)
            try:
                await answer.head()
            except BrokeOff:
                if not answer.stale or exchange.why is not None:
                    raise
            else:
                return answer

    def _connections_to(self, engine: Engine) -> Connections:
        found = self._connections.get(engine)
        if found is None:
            found = Connections(engine, connect_seconds=self._settings.engine_connect_seconds)
            self._connections[engine] = found
        return found

    async def _refused(self, exchange: _Exchange, answer: Answer) -> ApiError:
        """What of the engine's refusal concerns the client."""
        raw = b""
        with suppress(BrokeOff, TimeoutError):
            async with asyncio.timeout(self._settings.engine_connect_seconds):
                while (part := await answer.read()) and len(raw) < _LONGEST_ERROR:
                    raw += part
        said = _message(raw)
        status = answer.status
        if exchange.why is not None:
            return exchange.error()
        if exchange.path == EMBEDDINGS and status in (404, 405, 501):
            message = f"{exchange.model} gives no embeddings here: ask for another model, or go elsewhere"
            return ApiError(404, NO_EMBEDDINGS, message, param="model")
        if exchange.path != EMBEDDINGS and (status in (405, 501) or (status == 404 and not said)):
            message = f"{exchange.model} gives no such completions here: ask for embeddings, or for another model"
            return ApiError(404, "no_completions", message, param="model")
        # llama.cpp calls a text that is too long for one batch a failure of its own.
        if status in _CLIENTS_FAULT or (exchange.path == EMBEDDINGS and "too large to process" in said):
            return ApiError(400, "invalid_request", said or "the engine finds the request invalid")
        if status in (429, 503):
            return ApiError(503, "engine_busy", "the engine is busy: try again shortly", retry_after=2)
        log.error("the engine failed", status=status, said=said[:500])
        return ApiError(502, "engine_error", f"the engine failed with status {status}: try again, or go elsewhere")

    # --- the client's side ---

    async def _stream(self, exchange: _Exchange, send: Send) -> None:
        """Pass the events on. Once the answer has begun, its end is told in an event."""
        started = False
        try:
            async with aclosing(exchange.events(self._settings.engine_idle_seconds)) as source:
                async for events in source:
                    async for paid in exchange.paid(events):
                        if not started:
                            await self._start(exchange, send)
                            started = True
                        await send({"type": "http.response.body", "body": exchange.form.part(paid), "more_body": True})
            await exchange.settle()
        except ApiError as error:
            if not started:
                raise
            exchange.why = exchange.why or error.code
            with suppress(OperationalError):  # its receipt is written as soon as that can be
                await self._conclude(exchange, exchange.why)
            if error.code != LEFT:
                tail = exchange.rest + exchange.receipt_comment + exchange.form.broken(error.body)
                await send({"type": "http.response.body", "body": tail, "more_body": False})
            return
        if not exchange.heard:
            raise ApiError(502, "engine_garbage", "the engine ended without an answer")
        try:
            await self._conclude(exchange, "done")
        except OperationalError:
            if not started:
                raise
            tail = exchange.rest + exchange.form.broken(unwritable().body)
            await send({"type": "http.response.body", "body": tail, "more_body": False})
            return
        if not started:
            await self._start(exchange, send)
        await send({"type": "http.response.body", "body": exchange.tail, "more_body": False})

    async def _start(self, exchange: _Exchange, send: Send) -> None:
        headers = [(name.encode(), value.encode()) for name, value in (await exchange.headers()).items()]
        await send({"type": "http.response.start", "status": 200, "headers": _SSE_HEADERS + headers})

    async def _whole(self, exchange: _Exchange, send: Send) -> None:
        """Put the answer together and give it at once. Cut short, what there is goes into the error."""
        assembly = exchange.form.whole(exchange.path, exchange.model)
        try:
            async with aclosing(exchange.events(self._settings.engine_idle_seconds)) as source:
                async for events in source:
                    for piece in _pieces(events):
                        await exchange.count(piece)
                        assembly.add(piece)
            await exchange.settle()
        except ApiError as error:
            if error.status == 402:
                usage = exchange.served
                error.details |= {"usage": usage, "partial": assembly.answer(usage)}
            raise
        if not exchange.heard:
            raise ApiError(502, "engine_garbage", "the engine ended without an answer")
        await self._conclude(exchange, exchange.why or "done")
        headers = await exchange.headers()
        if exchange.bill:
            headers[OWED_HEADER] = exchange.owed.decode()
        await send_json(send, 200, assembly.answer(exchange.counted.usage), headers)

    async def _vectors(self, exchange: _Exchange, send: Send) -> None:
        """An answer that has no tokens: its prompt is counted and paid for before it is passed on."""
        answer = exchange.answer
        assert answer is not None
        parts, size = [], 0
        try:
            while part := await answer.read():
                parts.append(part)
                size += len(part)
                if size > MAX_VECTORS:
                    raise ApiError(502, "engine_garbage", "the engine's answer is too long")
            body = msgspec.json.decode(b"".join(parts))
            exchange.counted.take({"usage": body["usage"]})
        except BrokeOff as error:
            if exchange.why is None:
                log.warning("the engine broke off", error=str(error))
                raise ApiError(502, "engine_error", "the engine broke off: try again, or go elsewhere") from None
        except (msgspec.DecodeError, KeyError, TypeError):
            if exchange.why is None:
                raise ApiError(502, "engine_garbage", "the engine's answer is no list of embeddings") from None
        if exchange.why is not None:
            raise exchange.error()
        await exchange.settle()
        await self._conclude(exchange, "done")
        headers = await exchange.headers()
        if exchange.bill:
            headers[OWED_HEADER] = exchange.owed.decode()
        await send_json(send, 200, body | {"model": exchange.model}, headers)


class _Exchange:
    """One answer on its way from the engine to the client."""

    def __init__(
        self,
        run: Run,
        terms: Terms,
        engine: Engine,
        clock: Callable[[], float],
        bill: Bill | None,
        job: Job,
        prepared: Prepared,
    ) -> None:
        self.run, self.path, self.model, self.bill, self.job = run, prepared.path, terms.model, bill, job
        self.form = prepared.form
        self.engine = engine
        self.counted = Counted()
        self.why: str | None = None
        """Why it was stopped, if it was."""
        self.answer: Answer | None = None
        """The engine's."""
        self.heard = False
        """Whether the engine has said anything."""
        self.first_at: float | None = None
        self.receipt: SignedReceipt | None = None
        self.concluding: asyncio.Future[Receipt] | None = None
        self._clock, self.started_at = clock, clock()
        self._bound = terms.max_ttft_ms
        self._prepared = prepared
        self._ids = TokenIds(prepared, shows_counts=bill is not None)
        self._one_choice = prepared.choices == 1
        self._ready: list[bytes] = []
        """Events that have not been passed on: nothing is before the first token."""
        self.silence = _Silence(lambda: self.stop(SILENT))
        """Of the engine."""
        self._tell: Callable[[], None] | None = None
        self._renames = []
        engine_model = engine.models[self.model]
        if engine_model != self.model:
            old, new = (msgspec.json.encode(name) for name in (engine_model, self.model))
            self._renames = [(b'"model":' + old, b'"model":' + new), (b'"model": ' + old, b'"model": ' + new)]

    def reads(self, answer: Answer) -> None:
        """From now on what stops it closes this."""
        self.answer = answer
        if self.why is not None:
            answer.close()

    def when_stopped(self, tell: Callable[[], None] | None) -> None:
        """Whom to tell, once, or nobody."""
        self._tell = tell

    def stop(self, why: str) -> None:
        if self.why is None and self.concluding is None:
            self.why = why
            if self.answer is not None:
                self.answer.close()
        if self._tell is not None:
            tell, self._tell = self._tell, None
            tell()

    def stop_unless_begun(self) -> None:
        """The offer's time for the first token is over."""
        if self.first_at is None:
            self.stop(LATE)

    def close(self) -> None:
        self.silence.cancel()
        if self.answer is not None:
            self.answer.close()

    def begin(self) -> None:
        """The first token is here. ApiError 504 where, by the receipt's stamps, that is later than the offer says."""
        passed = self.job.token_came()
        if self._bound and passed > self._bound:
            self.counted = Counted()  # nothing of it is passed on
            self.stop(LATE)
            raise self.error()
        self.first_at = self._clock()

    def conclude(self, usage: Usage) -> asyncio.Future[Receipt]:
        first_at = self.job.first_token_at if self.first_at is not None else 0
        answered = Answered.of(usage.prompt_tokens, usage.completion_tokens, first_at, self._ids.choices)
        return self.job.finish(answered, usage)

    async def headers(self) -> dict[str, str]:
        """The accept, and once there is one the receipt."""
        if self.job.refused:
            return {}
        found = {ACCEPT_HEADER: await self.job.accepted()}
        return found | ({RECEIPT_HEADER: self.receipt.text()} if self.receipt else {})

    @property
    def rest(self) -> bytes:
        """Events that are counted, and not passed on yet."""
        return self.form.part(b"".join(event + b"\n\n" for event in self._ready))

    @property
    def receipt_comment(self) -> bytes:
        """The receipt, where strict clients do not see it."""
        return f": {RECEIPT_HEADER} {self.receipt.text()}\n\n".encode() if self.receipt else b""

    @property
    def tail(self) -> bytes:
        """What ends a stream of events that is whole."""
        owed = b": penstock " + self.owed + b"\n\n" if self.bill is not None else b""
        return self.rest + owed + self.receipt_comment + self.form.end(self.served)

    def error(self) -> ApiError:
        """What stopped it, as the client is told."""
        if self.why == LEFT:
            return ApiError(499, LEFT, "the client has left")
        if self.why == SILENT:
            what = "stopped answering" if self.answer and self.answer.status else "did not begin to answer in time"
            return ApiError(504, "engine_timeout", f"the engine {what}: try again, or go elsewhere")
        if self.why == LATE:
            message = f"no token came within the {self._bound} ms that the offer promises: try again, or go elsewhere"
            return ApiError(504, LATE, message)
        if self.why == LONG:
            return ApiError(504, LONG, "the answer took longer than any may: ask for fewer tokens")
        refusal = self.run.refusal or Refusal("cut", "the answer was cut")
        status = {"stopping": 503, "state_unavailable": 503, REVOKED: 401}.get(refusal.code, 402)
        return ApiError(status, refusal.code, refusal.message)

    async def events(self, idle_seconds: float) -> AsyncGenerator[bytes, None]:
        """Whole events as they come, without the [DONE] at their end. ApiError where that does not come."""
        answer = self.answer
        assert answer is not None
        rest = b""
        done = False
        self.silence.begin(idle_seconds)
        try:
            while chunk := await answer.read():
                self.silence.begin(idle_seconds)
                if self.why is not None:
                    break
                data = rest + chunk if rest else chunk
                if b"\r" in data:
                    data = data.replace(b"\r\n", b"\n")
                if data.endswith(b"\n\n"):
                    rest = b""
                else:
                    cut = data.rfind(b"\n\n") + 2
                    data, rest = (data[:cut], data[cut:]) if cut > 1 else (b"", data)
                    if len(rest) > _LONGEST_EVENT:
                        raise ApiError(502, "engine_garbage", "the engine's answer is no stream of events")
                if data:
                    if not data.startswith((b"data:", b":", b"event:", b"id:")):
                        raise ApiError(502, "engine_garbage", "the engine's answer is no stream of events")
                    for old, new in self._renames:
                        data = data.replace(old, new)
                    if (at := data.rfind(b"data: [DONE]", -32)) >= 0:
                        done, data = True, data[:at]
                    self.heard = True
                    if data:
                        yield data
        except BrokeOff as error:
            if self.why is None:
                log.warning("the engine broke off", error=str(error))
        if self.why is not None:
            raise self.error()
        if not done:
            raise ApiError(502, "engine_error", "the engine broke off in mid-answer: try again, or go elsewhere")

    async def paid(self, events: bytes) -> AsyncGenerator[bytes, None]:
        """The same events, in one or more parts, as they are paid for, from the first token on. ApiError 402 where a
        voucher does not come, 504 where the first token is late. What was not asked for is left out: the event that
        carries nothing but the usage, and token ids."""
        while events and self.first_at is None:
            event, _, events = events.partition(b"\n\n")
            if event:
                async for part in self._parsed(event):
                    yield part
        if events and self._one_choice:
            part, events = self._plain(events)
            if part:
                yield part
        for event in events.split(b"\n\n"):
            if event:
                async for part in self._parsed(event):
                    yield part
        if self._ready and self.first_at is not None:
            yield self._passed_on()

    def _plain(self, events: bytes) -> tuple[bytes, bytes]:
        """Count those that need no parsing: what the client gets for them, and the events that are left."""
        some, left = plain.cut(events)
        found = plain.read(some, shows_ids=self._prepared.wants_ids, shows_counts=self.bill is not None)
        if found is None:
            return b"", events
        prompt_tokens = self.counted.prompt_tokens if found.prompt_tokens is None else found.prompt_tokens
        completion_tokens = self.counted.ids + len(found.ids)
        if self.bill is not None:
            if self.why is not None:
                raise self.error()
            if not self.bill.fits(prompt_tokens, completion_tokens):
                return b"", events  # one by one, as they are paid for
            self.bill.charge(prompt_tokens, completion_tokens)
        self.counted = Counted(prompt_tokens, completion_tokens, True, completion_tokens)
        self._ids.keep([(0, found.ids)])
        return self._passed_on() + found.events, left

    async def _parsed(self, event: bytes) -> AsyncGenerator[bytes, None]:
        """One event. It waits in `_ready`, and is yielded where a payment has to be waited for."""
        piece = piece_of(event)
        if piece is not None:
            found, changed = self._ids.take(piece)
            changed |= self._look(piece, found)
            if self._ready and self.first_at is not None and not self._fits():
                yield self._passed_on()
            if self.first_at is not None:
                await self._pay(found)
            if not self._prepared.wants_usage and not piece.get("choices") and "usage" in piece:
                return
            if changed:
                event = b"data: " + msgspec.json.encode(piece)
        self._ready.append(event)

    def _fits(self) -> bool:
        """Whether it is paid for already."""
        return self.bill is None or self.bill.fits(self.counted.prompt_tokens, self.counted.completion_tokens)

    def _passed_on(self) -> bytes:
        ready, self._ready = self._ready, []
        return b"\n\n".join([*ready, b""]) if ready else b""

    async def count(self, piece: dict[str, Any]) -> None:
        """One piece of an answer that is given whole. ApiError as in `paid`."""
        found, _ = self._ids.take(piece)
        self._look(piece, found)
        if self.first_at is not None:
            await self._pay(found)

    def _look(self, piece: dict[str, Any], found: list[tuple[int, list[int]]]) -> bool:
        """Count what a piece carries. Whether it had to be changed, so that it says the same. ApiError where it is an
        error."""
        if piece.get("error"):
            raise _failure(piece)
        token = bool(found) or has_words(piece)
        if token and not self.counted.exact:
            self.counted.completion_tokens += 1
        self.counted.take(piece, sum(len(ids) for _, ids in found))
        if self.first_at is None and self.counted.completion_tokens:
            self.begin()
        changed = self._ids.hide_counts(piece)
        usage = piece.get("usage")
        if isinstance(usage, dict) and usage.get("completion_tokens") != self.counted.completion_tokens:
            usage |= self.counted.usage
            return True
        return changed

    async def settle(self) -> None:
        """At the end: an answer without a single token has its prompt."""
        if self.first_at is None:
            await self._pay([])

    async def _pay(self, found: list[tuple[int, list[int]]]) -> None:
        """Before it is passed on. What was paid for is passed on, and its ids are the receipt's."""
        if self.bill is None:
            self._ids.keep(found)
            return
        if self.why is not None:
            raise self.error()
        prompt_tokens, completion_tokens = self.counted.prompt_tokens, self.counted.completion_tokens
        if not await self.bill.take(prompt_tokens, completion_tokens):
            if self.why is not None:
                raise self.error()
            account, needed = self.bill.account, self.bill.needed(prompt_tokens, completion_tokens)
            raise ApiError(
                402,
                VOUCHER_NEEDED if needed <= account.deposit - account.credit else "deposit_used_up",
                f"the answer was cut, because no voucher came: {account.owed} are owed, {account.cumulative} of a "
                f"deposit of {account.deposit} are paid (base units)",
                details=account.details(needed),
            )
        self._ids.keep(found)

    @property
    def owed(self) -> bytes:
        """What the channel owes, for the client to read."""
        assert self.bill is not None
        return b"owed=%d, cumulative=%d" % (self.bill.account.owed, self.bill.account.cumulative)

    @property
    def served(self) -> dict[str, Any]:
        """The usage of what the client got: of an answer that is paid by the token, what was paid for."""
        if self.bill is None:
            return self.counted.usage
        return Counted(self.bill.prompt_tokens, self.bill.completion_tokens, self.counted.exact).usage

    def usage(self, now: float, outcome: str) -> Usage:
        counted = self.counted
        if self.bill is not None:
            counted = Counted(self.bill.prompt_tokens, self.bill.completion_tokens, counted.exact)
        return Usage(
            accepted_at=self.job.accept.accepted_at,
            session_id=self.run.session.id,
            started_at=self.started_at,
            first_token_at=self.first_at,
            finished_at=now,
            prompt_tokens=counted.prompt_tokens,
            completion_tokens=counted.completion_tokens,
            exact=counted.exact,
            outcome=outcome,
        )


class _Silence:
    """Calls when nothing was heard for so long. Costs one clock reading per piece."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._call = call
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, seconds: float) -> None:
        """Now something was heard; the next within so many seconds."""
        self._due = self._loop.time() + seconds
        if self._timer is None or self._due < self._timer.when():
            self.cancel()
            self._timer = self._loop.call_at(self._due, self._look)

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if self._loop.time() >= self._due:
            self._call()
        else:
            self._timer = self._loop.call_at(self._due, self._look)


_SSE_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


def _alike(one: Engine, other: Engine, model: str) -> bool:
    """Whether both take the same request for a model."""
    return (one.dialect, one.models[model]) == (other.dialect, other.models.get(model))


def _drop(client: Client, session: Session) -> None:
    """An answer has ended for a while, and its client does not read the rest: nothing else waits so long."""
    log.info("a client does not read: its answer was dropped", session=session.id)
    client.drop()


def _refusal_code(run: Run) -> str:
    return run.refusal.code if run.refusal else "cut"


def _pieces(events: bytes) -> list[dict[str, Any]]:
    found = []
    for event in events.split(b"\n\n"):
        piece = piece_of(event)
        if piece is not None:
            found.append(piece)
        elif event.startswith(b"data:") and event[5:].strip() != b"[DONE]":
            raise ApiError(502, "engine_garbage", "the engine's events are not JSON")
    return found


def _failure(piece: dict[str, Any]) -> ApiError:
    """What an error among an engine's events tells the client. vLLM finds some requests wrong when it has begun."""
    error, said = piece["error"], _message(msgspec.json.encode(piece))
    if isinstance(error, dict) and error.get("code") in _CLIENTS_FAULT:
        return ApiError(400, "invalid_request", said or "the engine finds the request invalid")
    log.error("the engine failed in mid-answer", said=said[:500])
    return ApiError(502, "engine_error", "the engine failed in mid-answer: try again")


def _message(raw: bytes) -> str:
    """The text of an engine's error, in the shapes that engines give it."""
    try:
        body = msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return ""
    error = body.get("error", body) if isinstance(body, dict) else body
    said = error.get("message") if isinstance(error, dict) else error
    return said if isinstance(said, str) else ""
