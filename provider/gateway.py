"""The hot route: a request for a completion, from the token to the last byte. Plain ASGI, no framework.

The engine is always asked for a stream. Its bytes go on as they came, whole events at a time, unparsed but for
the one that carries the usage. Three things can end an answer early, and each closes the connection to the
engine, which frees its slot: the money ends, the client leaves, the engine falls silent.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Any

import aiohttp
import msgspec
import structlog

from penstock.wire.sessions import OWED_HEADER, prompt_bound
from provider.accounts import VOUCHER_NEEDED, Accounts, Bill
from provider.admission import Admission, Refusal, Run
from provider.asgi import ClientLeft, Receive, Scope, Send, header, read_body, send_error, send_json
from provider.completions import CHAT, TEXT, Assembly, Counted, Prepared, prepare
from provider.engines import Engine
from provider.errors import ApiError
from provider.market import Seller
from provider.sessions import Sessions
from provider.settings import Settings
from provider.store import Session, Usage

log = structlog.get_logger("provider.gateway")

PATHS = frozenset({CHAT, TEXT})

_KEEP_ALIVE = 4.0
"""Seconds an idle connection to the engine is kept: less than the 5 of llama.cpp and vLLM."""
_LONGEST_EVENT = 4 * 2**20
_LONGEST_ERROR = 64 * 2**10
_USAGE_MARKS = (b'"usage":{', b'"usage": {')

LEFT = "client_left"
SILENT = "engine_silent"


class Gateway:
    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        seller: Seller,
        admission: Admission,
        sessions: Sessions,
        accounts: Accounts,
        record: Callable[[Usage], None],
        clock: Callable[[], float],
    ) -> None:
        self._settings, self._engine, self._seller = settings, engine, seller
        self._admission, self._sessions, self._accounts = admission, sessions, accounts
        self._record, self._clock = record, clock
        self._http: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._settings.engine_connect_seconds)
        self._http = aiohttp.ClientSession(
            connector=connector,
            timeout=timeout,
            auto_decompress=False,
            read_bufsize=2**18,
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def stop(self) -> None:
        if self._http is not None:
            await self._http.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._answer(scope, receive, send)
        except ApiError as error:
            shown = self._sessions.payment_required(error, scope["path"]) if error.status == 402 else error
            await send_error(send, shown)
        except ClientLeft:
            pass
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
        raw = await read_body(scope, receive, self._settings.max_body)
        terms = self._seller.offers[session.offer_id].terms
        bill = self._accounts.bill(session, prompt_bound(raw, terms.context_length))
        try:
            await self._serve(session, terms.model, raw, bill, path, receive, send)
        finally:
            if bill is not None:
                bill.close()

    async def _serve(
        self, session: Session, model: str, raw: bytes, bill: Bill | None, path: str, receive: Receive, send: Send
    ) -> None:
        prepared = prepare(
            raw,
            path,
            model=model,
            engine_model=self._engine.model,
            max_choices=self._settings.max_choices,
            hints=self._engine.dialect.hints,
            most_tokens=bill.most_tokens if bill is not None else None,
        )
        if (trouble := self._engine.trouble()) is not None:
            raise ApiError(503, "engine_unavailable", f"{trouble}: try again shortly", retry_after=2)
        run = self._admission.admit(session)
        exchange = _Exchange(run, path, model, self._engine.model, self._clock(), bill)
        leaving = asyncio.create_task(_left(receive))
        leaving.add_done_callback(lambda _: exchange.stop(LEFT))
        run.on_cut(lambda: exchange.stop(_refusal_code(run)))
        outcome = "failed"
        try:
            await self._open(exchange, prepared.payload)
            if prepared.streams:
                await self._stream(exchange, prepared, send)
            else:
                await self._whole(exchange, send)
            outcome = exchange.why or "done"
        except ApiError as error:
            outcome = error.code
            raise
        finally:
            leaving.cancel()
            exchange.close()
            self._admission.finish(run)
            self._record(exchange.usage(session, self._clock(), outcome))

    # --- the engine's side ---

    async def _open(self, exchange: _Exchange, payload: bytes) -> None:
        """Have the engine begin. ApiError where it refuses, is away, or is stopped before it began."""
        opening = asyncio.ensure_future(self._post(exchange.path, payload))
        exchange.on_stop(opening.cancel)
        try:
            async with asyncio.timeout(self._settings.engine_answer_seconds):
                response = await opening
        except asyncio.CancelledError:
            if exchange.why is None:
                raise
            raise exchange.error() from None
        except TimeoutError:
            seconds = self._settings.engine_answer_seconds
            raise ApiError(504, "engine_timeout", f"the engine did not begin to answer within {seconds:g} s") from None
        except aiohttp.ClientError as error:
            log.warning("the engine is not reached", error=str(error))
            raise ApiError(
                502, "engine_unreachable", "the engine is not reached: try again shortly", retry_after=2
            ) from None
        exchange.on_stop(response.close)
        exchange.response = response
        if exchange.why is not None:
            raise exchange.error()
        if response.status != 200:
            raise await self._refused(exchange, response)
        if response.content_type != "text/event-stream":
            log.error("the engine does not stream", content_type=response.content_type)
            raise ApiError(502, "engine_garbage", "the engine answered with something that is no stream of events")

    async def _post(self, path: str, payload: bytes) -> aiohttp.ClientResponse:
        assert self._http is not None
        headers = {"content-type": "application/json", "accept": "text/event-stream"}
        if self._engine.api_key:
            headers["authorization"] = f"Bearer {self._engine.api_key}"
        url = self._engine.base_url + path
        try:
            return await self._http.post(url, data=payload, headers=headers, allow_redirects=False)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            # An idle connection that the engine closed in the same moment: nothing was read, so once more.
            return await self._http.post(url, data=payload, headers=headers, allow_redirects=False)

    async def _refused(self, exchange: _Exchange, response: aiohttp.ClientResponse) -> ApiError:
        """What of the engine's refusal concerns the client."""
        raw = b""
        with suppress(aiohttp.ClientError, TimeoutError):
            async with asyncio.timeout(self._settings.engine_connect_seconds):
                raw = await response.content.read(_LONGEST_ERROR)
        said = _message(raw)
        status = response.status
        if exchange.why is not None:
            return exchange.error()
        if status in (400, 413, 415, 422):
            return ApiError(400, "invalid_request", said or "the engine finds the request invalid")
        if status in (429, 503):
            return ApiError(503, "engine_busy", "the engine is busy: try again shortly", retry_after=2)
        log.error("the engine failed", status=status, said=said[:500])
        return ApiError(502, "engine_error", f"the engine failed with status {status}: try again, or go elsewhere")

    # --- the client's side ---

    async def _stream(self, exchange: _Exchange, prepared: Prepared, send: Send) -> None:
        """Pass the events on. Once the answer has begun, its end is told in an event."""
        started = False
        try:
            async with aclosing(exchange.events(self._settings.engine_idle_seconds)) as source:
                async for events in source:
                    if exchange.bill is None and any(mark in events for mark in _USAGE_MARKS):
                        events = exchange.take_usage(events, keep=prepared.wants_usage)
                    if not started:
                        exchange.began(self._clock())
                        await send({"type": "http.response.start", "status": 200, "headers": _SSE_HEADERS})
                        started = True
                    async for paid in exchange.paid(events, keep=prepared.wants_usage):
                        await send({"type": "http.response.body", "body": paid, "more_body": True})
        except ApiError as error:
            if not started:
                raise
            exchange.why = exchange.why or error.code
            if error.code != LEFT:
                tail = b"data: " + msgspec.json.encode(error.body) + b"\n\n"
                await send({"type": "http.response.body", "body": tail, "more_body": False})
            return
        if not started:
            raise ApiError(502, "engine_garbage", "the engine ended without an answer")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _whole(self, exchange: _Exchange, send: Send) -> None:
        """Put the answer together and give it at once. Cut short, what there is goes into the error."""
        assembly = Assembly(exchange.path, exchange.model)
        try:
            async with aclosing(exchange.events(self._settings.engine_idle_seconds)) as source:
                async for events in source:
                    if exchange.first_at is None:
                        exchange.began(self._clock())
                    for piece in _pieces(events):
                        if "error" in piece:
                            log.error(
                                "the engine failed in mid-answer", said=_message(msgspec.json.encode(piece))[:500]
                            )
                            raise ApiError(502, "engine_error", "the engine failed in mid-answer: try again")
                        await exchange.count(piece)
                        assembly.add(piece)
        except ApiError as error:
            if error.status == 402:
                usage = exchange.served
                error.details |= {"usage": usage, "partial": assembly.answer(usage)}
            raise
        if exchange.first_at is None:
            raise ApiError(502, "engine_garbage", "the engine ended without an answer")
        headers = {OWED_HEADER: exchange.owed.decode()} if exchange.bill else {}
        await send_json(send, 200, assembly.answer(exchange.counted.usage), headers)


class _Exchange:
    """One answer on its way from the engine to the client."""

    def __init__(self, run: Run, path: str, model: str, engine_model: str, now: float, bill: Bill | None) -> None:
        self.run, self.path, self.model, self.bill = run, path, model, bill
        self.counted = Counted()
        self.why: str | None = None
        """Why it was stopped, if it was."""
        self.response: aiohttp.ClientResponse | None = None
        self.started_at = now
        self.first_at: float | None = None
        self._stop: Callable[[], Any] | None = None
        self._renames = []
        if engine_model != model:
            old, new = (msgspec.json.encode(name) for name in (engine_model, model))
            self._renames = [(b'"model":' + old, b'"model":' + new), (b'"model": ' + old, b'"model": ' + new)]

    def on_stop(self, stop: Callable[[], Any]) -> None:
        """How it is stopped from now on."""
        self._stop = stop

    def stop(self, why: str) -> None:
        if self.why is None:
            self.why = why
            if self._stop is not None:
                self._stop()

    def close(self) -> None:
        self._stop = None
        if self.response is not None:
            # Not read to its end, the connection is closed, and the engine stops generating.
            self.response.close() if not self.response.content.at_eof() else self.response.release()

    def began(self, now: float) -> None:
        self.first_at = now

    def error(self) -> ApiError:
        """What stopped it, as the client is told."""
        if self.why == LEFT:
            return ApiError(499, LEFT, "the client has left")
        if self.why == SILENT:
            return ApiError(504, "engine_timeout", "the engine stopped answering: try again, or go elsewhere")
        refusal = self.run.refusal or Refusal("cut", "the answer was cut")
        status = 503 if refusal.code == "stopping" else 402
        return ApiError(status, refusal.code, refusal.message)

    async def events(self, idle_seconds: float) -> AsyncGenerator[bytes, None]:
        """Whole events as they come. ApiError where they end before [DONE]."""
        response = self.response
        assert response is not None
        rest = b""
        done = False
        silence = _Silence(idle_seconds, lambda: self.stop(SILENT))
        try:
            async for chunk in response.content.iter_any():
                silence.broken()
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
                    if not self.counted.exact and self.bill is None:
                        self.counted.completion_tokens += data.count(b"data: {")
                    done = done or b"data: [DONE]" in data[-32:]
                    yield data
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            if self.why is None:
                log.warning("the engine broke off", error=str(error))
        finally:
            silence.end()
        if self.why is not None:
            raise self.error()
        if not done:
            raise ApiError(502, "engine_error", "the engine broke off in mid-answer: try again, or go elsewhere")

    async def paid(self, events: bytes, *, keep: bool) -> AsyncGenerator[bytes, None]:
        """The same events, in one or more parts, as they are paid for. ApiError 402 where a voucher does not come.
        Without `keep`, the event that carries nothing but the usage is counted and left out."""
        if self.bill is None:
            if events:
                yield events
            return
        ready: list[bytes] = []
        for event in events.split(b"\n\n"):
            piece = _piece(event)
            if piece is not None:
                self._tally(piece)
                if ready and not self.bill.fits(self.counted.prompt_tokens, self.counted.completion_tokens):
                    yield b"\n\n".join([*ready, b""])
                    ready = []
                await self._pay()
                if not keep and not piece.get("choices") and "usage" in piece:
                    continue
            elif event.startswith(b"data:") and event[5:].strip() == b"[DONE]":
                ready.append(b": penstock " + self.owed)
            if event:
                ready.append(event)
        if ready:
            yield b"\n\n".join([*ready, b""])

    async def count(self, piece: dict[str, Any]) -> None:
        """One piece of an answer that is given whole. ApiError 402 where it is not paid for."""
        if self.bill is None:
            self.counted.take(piece)
        else:
            self._tally(piece)
            await self._pay()

    def _tally(self, piece: dict[str, Any]) -> None:
        if piece.get("choices") and not self.counted.exact:
            self.counted.completion_tokens += 1
        self.counted.take(piece)

    async def _pay(self) -> None:
        assert self.bill is not None
        prompt_tokens, completion_tokens = self.counted.prompt_tokens, self.counted.completion_tokens
        if not await self.bill.take(prompt_tokens, completion_tokens):
            account, needed = self.bill.account, self.bill.needed(prompt_tokens, completion_tokens)
            raise ApiError(
                402,
                VOUCHER_NEEDED if needed <= account.deposit - account.credit else "deposit_used_up",
                f"the answer was cut, because no voucher came: {account.owed} are owed, {account.cumulative} of a "
                f"deposit of {account.deposit} are paid (base units)",
                details=account.details(needed),
            )
        if self.why is not None:
            raise self.error()

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

    def take_usage(self, events: bytes, *, keep: bool) -> bytes:
        """Note the usage; without `keep`, take out the event that carries nothing else."""
        kept = []
        for event in events.split(b"\n\n"):
            if any(mark in event for mark in _USAGE_MARKS):
                piece = _piece(event)
                if piece is not None:
                    self.counted.take(piece)
                    if not keep and not piece.get("choices"):
                        continue
            kept.append(event)
        return b"\n\n".join(kept)

    def usage(self, session: Session, now: float, outcome: str) -> Usage:
        counted = self.counted
        if self.bill is not None:
            counted = Counted(self.bill.prompt_tokens, self.bill.completion_tokens, counted.exact)
        return Usage(
            id="req_" + secrets.token_hex(12),
            session_id=session.id,
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

    def __init__(self, seconds: float, call: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._seconds, self._call = seconds, call
        self._heard = self._loop.time()
        self._timer = self._loop.call_later(seconds, self._look)

    def broken(self) -> None:
        self._heard = self._loop.time()

    def end(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        left = self._heard + self._seconds - self._loop.time()
        if left <= 0:
            self._call()
        else:
            self._timer = self._loop.call_later(left, self._look)


_SSE_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _refusal_code(run: Run) -> str:
    return run.refusal.code if run.refusal else "cut"


def _pieces(events: bytes) -> list[dict[str, Any]]:
    found = []
    for event in events.split(b"\n\n"):
        piece = _piece(event)
        if piece is not None:
            found.append(piece)
        elif event.startswith(b"data:") and event[5:].strip() != b"[DONE]":
            raise ApiError(502, "engine_garbage", "the engine's events are not JSON")
    return found


def _piece(event: bytes) -> dict[str, Any] | None:
    """The JSON object of one event; None where it has none."""
    lines = [line[5:] for line in event.split(b"\n") if line.startswith(b"data:")]
    try:
        piece = msgspec.json.decode(b"\n".join(lines))
    except msgspec.DecodeError:
        return None
    return piece if isinstance(piece, dict) else None


def _message(raw: bytes) -> str:
    """The text of an engine's error, in the shapes that engines give it."""
    try:
        body = msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return ""
    error = body.get("error", body) if isinstance(body, dict) else body
    said = error.get("message") if isinstance(error, dict) else error
    return said if isinstance(said, str) else ""
