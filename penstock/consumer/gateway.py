"""The client's side of a provider's gateway: handshake, chat, close. Whatever answers there is not trusted.

Bodies are read up to a bound, redirects are not followed, every wait ends, and what goes wrong is a GatewayError.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import httpx
import msgspec

from penstock.consumer.chunks import Chunk, Delta, Usage, told_ids
from penstock.consumer.embeddings import check_vectors
from penstock.consumer.receipts import Witness
from penstock.consumer.sse import read_events
from penstock.errors import AnswerCut, GatewayGarbage, GatewayRefused, GatewayUnreachable, PaymentRequired, WireError
from penstock.wire.completions import EMBEDDINGS, MAX_VECTORS, most_tokens, word_bytes
from penstock.wire.receipts import RECEIPTS_PATH, Receipt, ReceiptBody, ReceiptsAnswer, SignedReceipt
from penstock.wire.sessions import (
    CLOSE_PATH,
    SESSIONS_PATH,
    VOUCHER_PATH,
    WELL_KNOWN_PATH,
    CloseAnswer,
    CloseRequest,
    SessionAnswer,
    SessionRequest,
    VoucherAnswer,
    VoucherRequest,
    WellKnown,
)

MAX_BODY = 256 * 1024
"""Bytes of an answer that is read whole."""
MAX_MESSAGE = 300
"""Characters of a gateway's own words that are passed on."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Waits:
    """How long a gateway may take, in seconds."""

    connect: float = 5
    greeting: float = 10
    """For its well-known document."""
    handshake: float = 15
    """From the session request to the token."""
    sight: float = 60
    """Until a gateway sees a stream that we opened: it may ask for confirmations."""
    relay: float = 75
    """The handshake where the gateway opens the stream itself, blocks to wait for included."""
    stall: float = 60
    """Between two events of an answer, the first included."""
    receipt: float = 2
    """After an answer that was cut, for the receipt of what came."""
    close: float = 20
    settle: float = 15
    """Until our own node shows what a gateway has sent."""


class Gateway:
    """One provider's gateway. `endpoint` has passed `check_endpoint`."""

    unpaid = "; it does not accept the stream, choose another provider"
    """What to do about a 402, for people."""
    unwilling = "; try again or choose another provider"
    """About any other refusal."""

    def __init__(self, endpoint: str, http: httpx.AsyncClient, waits: Waits) -> None:
        self.endpoint = endpoint.rstrip("/")
        self._http = http
        self._waits = waits

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes as its base URL."""
        return f"{self.endpoint}/v1"

    async def well_known(self) -> WellKnown:
        return await self._call("GET", WELL_KNOWN_PATH, WellKnown, wait=self._waits.greeting)

    async def open_session(self, request: SessionRequest, *, wait: float | None = None) -> SessionAnswer:
        """Trade a grant, with or without an order, for a token."""
        wait = self._waits.handshake if wait is None else wait
        return await self._call("POST", SESSIONS_PATH, SessionAnswer, body=request, wait=wait)

    async def session(self, token: str) -> SessionAnswer:
        """How the token's session stands."""
        return await self._call(
            "GET", f"{SESSIONS_PATH}/current", SessionAnswer, token=token, wait=self._waits.handshake
        )

    async def close_session(self, token: str, request: CloseRequest) -> CloseAnswer:
        """End a session, its stream and its channel; the gateway submits the request's cancel and pays for it. An
        empty token: the request's grant says who asks."""
        return await self._call("POST", CLOSE_PATH, CloseAnswer, token=token, body=request, wait=self._waits.close)

    async def send_voucher(self, token: str, request: VoucherRequest) -> VoucherAnswer:
        """Pay; the same voucher again is answered the same."""
        return await self._call("POST", VOUCHER_PATH, VoucherAnswer, token=token, body=request, wait=self._waits.close)

    async def receipt(self, token: str, name: str) -> SignedReceipt:
        """One that it signed before, by its hash."""
        found = await self._call("GET", f"{RECEIPTS_PATH}/{name}", ReceiptBody, token=token, wait=self._waits.greeting)
        try:
            return SignedReceipt(*found.value())
        except WireError as error:
            raise self._garbage(str(error)) from error

    async def receipts(self, token: str, first: int) -> list[SignedReceipt]:
        """Those of the token's session from a place on, in order."""
        path = f"{RECEIPTS_PATH}?first={first}"
        found = await self._call("GET", path, ReceiptsAnswer, token=token, wait=self._waits.receipt)
        try:
            return [SignedReceipt(*body.value()) for body in found.receipts]
        except WireError as error:
            raise self._garbage(str(error)) from error

    def ask(
        self,
        path: str,
        token: str,
        body: Mapping[str, Any],
        *,
        until: Callable[[], float] = lambda: math.inf,
        witness: Witness | None = None,
    ) -> Answer:
        """Send a request for a completion, chat or plain, whose answer streams, or for embeddings, whose answer is one
        chunk. `until` tells when all of it must be there, on the event loop's clock, and may move on. A `witness` holds
        the provider's receipt against what comes."""
        request = self._request("POST", path, token, body)
        kind = "application/json" if path == EMBEDDINGS else "text/event-stream"
        request.headers["accept"] = kind
        return Answer(self, request, until, witness, kind)

    def _request(self, method: str, path: str, token: str, body: object) -> httpx.Request:
        # Uncompressed, so that a small answer cannot become a large one.
        headers = {"accept": "application/json", "accept-encoding": "identity"}
        if token:
            headers["authorization"] = f"Bearer {token}"
        content = None
        if body is not None:
            content = msgspec.json.encode(body)
            headers["content-type"] = "application/json"
        try:
            return self._http.build_request(method, self.endpoint + path, headers=headers, content=content)
        except (httpx.InvalidURL, ValueError) as error:
            raise GatewayUnreachable(f"{self.endpoint} is no usable URL ({error}); choose another provider") from error

    async def _call(
        self, method: str, path: str, kind: type[_T], *, wait: float, token: str = "", body: object = None
    ) -> _T:
        request = self._request(method, path, token, body)
        try:
            async with asyncio.timeout(wait):
                response = await self._send(request)
                try:
                    raw = await self._read(response)
                finally:
                    await response.aclose()
        except TimeoutError:
            raise GatewayUnreachable(
                f"{self.endpoint} did not answer within {wait:g} seconds; try again or choose another provider"
            ) from None
        if response.status_code not in (200, 201):
            raise self._refusal(response, raw)
        try:
            return msgspec.json.decode(raw, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._garbage(f"{path} answered {_words(str(error))}") from error

    async def _send(self, request: httpx.Request) -> httpx.Response:
        """The response's head, or a GatewayError."""
        try:
            return await self._http.send(request, stream=True, follow_redirects=False)
        except httpx.HTTPError as error:
            raise self._transport_error(error) from error

    async def _read(self, response: httpx.Response, most: int = MAX_BODY) -> bytes:
        raw = bytearray()
        try:
            async with aclosing(_bytes(response)) as pieces:
                async for piece in pieces:
                    raw += piece
                    if len(raw) > most:
                        raise self._garbage(f"it sent more than {most} bytes")
        except httpx.HTTPError as error:
            raise self._transport_error(error) from error
        return bytes(raw)

    def _transport_error(self, error: httpx.HTTPError) -> GatewayUnreachable | GatewayGarbage:
        choose = "try again or choose another provider"
        match error:
            case httpx.ReadTimeout() | httpx.WriteTimeout():
                return GatewayUnreachable(f"{self.endpoint} connected but does not answer; {choose}")
            case httpx.ConnectTimeout():
                return GatewayUnreachable(f"{self.endpoint} did not connect in {self._waits.connect:g} s; {choose}")
            case httpx.ReadError() | httpx.WriteError():
                return GatewayUnreachable(f"{self.endpoint} hung up without an answer; {choose}")
            case httpx.RemoteProtocolError() if "without sending a response" in str(error):
                return GatewayUnreachable(f"{self.endpoint} hung up without an answer; {choose}")
            case httpx.RemoteProtocolError() if "incomplete" in str(error) or "closed" in str(error):
                return GatewayUnreachable(f"{self.endpoint} hung up in the middle of its answer; {choose}")
            case httpx.RemoteProtocolError() | httpx.DecodingError():
                return self._garbage(_words(str(error)))
        return GatewayUnreachable(
            f"nothing answers at {self.endpoint} ({_words(str(error)) or type(error).__name__}); {choose}"
        )

    def _garbage(self, what: str) -> GatewayGarbage:
        return GatewayGarbage(f"{self.endpoint} does not speak Penstock ({what}); choose another provider")

    def _refusal(self, response: httpx.Response, raw: bytes) -> GatewayRefused:
        """The gateway's own error, in whichever of the usual shapes."""
        status, code, message = response.status_code, f"http_{response.status_code}", ""
        body: dict[str, Any] = {}
        try:
            found = msgspec.json.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError):
            found = None
        if isinstance(found, dict):
            body = found
            error = body.get("error", body.get("detail"))
            if isinstance(error, dict):
                code = _words(str(error.get("code") or code))
                message = _words(str(error.get("message") or ""))
            elif isinstance(error, str):
                message = _words(error)
        said = f"{self.endpoint} answered {status}" + (f": {message}" if message else "")
        if status == 402:
            return PaymentRequired(status, code, f"{said}{self.unpaid}", body)
        return GatewayRefused(status, code, f"{said}{self.unwilling}", body)


class Answer:
    """An answer as it arrives: iterate over its deltas, or take its chunks as they came. As a context manager it
    hangs up when left.

    Raises GatewayRefused and its kin before the first delta, AnswerCut where the answer stops early, and after the
    last delta ReceiptRefused where the provider's receipt does not match. Embeddings are one chunk and no delta, and
    their receipt is looked at first.
    """

    def __init__(
        self,
        gateway: Gateway,
        request: httpx.Request,
        until: Callable[[], float],
        witness: Witness | None = None,
        kind: str = "text/event-stream",
    ) -> None:
        self._gateway = gateway
        self._witness = witness
        self._kind = kind
        self._events = self._stream(request, until)
        self._deltas: deque[Delta] = deque()
        self._response: httpx.Response | None = None
        self.text = ""
        """All text so far."""
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self.pieces = 0
        """Events with a part of the answer."""
        self.received = 0
        """Bytes of the answer's own words, calls of tools included."""
        self.ids = 0
        """Token ids that were told."""
        self.claimed: Usage | None = None
        """The latest count that the gateway gave, at the end or on the way."""

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> Delta:
        while not self._deltas:
            _, deltas = await anext(self._events)
            self._deltas.extend(deltas)
        return self._deltas.popleft()

    async def chunk(self) -> dict[str, Any] | None:
        """The next event as the provider's engine made it, tool calls, log probabilities and all; None at the end."""
        try:
            event, _ = await anext(self._events)
        except StopAsyncIteration:
            return None
        found: dict[str, Any] = msgspec.json.decode(event)
        return found

    @property
    def most_tokens(self) -> int:
        """Completion tokens that what came can have at most: ids count for themselves, text by its bytes."""
        return most_tokens(max(self.received, self.ids)) if self._kind == "text/event-stream" else 0

    @property
    def receipt(self) -> Receipt | None:
        """The provider's, once it came and matched."""
        return self._witness.receipt if self._witness is not None else None

    async def __aenter__(self) -> Answer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Hang up, which stops the provider's work on it. Also while another task is reading."""
        try:
            await self._events.aclose()
        except RuntimeError:
            if self._response is not None:
                await self._response.aclose()

    async def read(self) -> str:
        """The whole text."""
        async for _ in self:
            pass
        return self.text

    async def _stream(
        self, request: httpx.Request, until: Callable[[], float]
    ) -> AsyncGenerator[tuple[bytes, list[Delta]]]:
        gateway, stall = self._gateway, self._gateway._waits.stall
        loop = asyncio.get_running_loop()

        def patience() -> float:
            """When the next event must have come."""
            return min(loop.time() + stall, until())

        def out_of_time() -> AnswerCut:
            if loop.time() >= until():
                return AnswerCut(
                    "stream_ended", "the paid time ended before the answer; ask again with more --duration"
                )
            return AnswerCut("stalled", f"{gateway.endpoint} sent nothing for {stall:g} s; try another provider")

        witness = self._witness
        if witness is not None:
            witness.sends(request.content)
        try:
            async with asyncio.timeout_at(patience()):
                response = await gateway._send(request)
        except TimeoutError:
            raise out_of_time() from None
        self._response = response
        try:
            if witness is not None:
                await witness.head(response.headers)
            if response.status_code != 200:
                async with asyncio.timeout(stall):
                    raw = await gateway._read(response)
                await self._account(complete=False)
                raise gateway._refusal(response, raw)
            kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != self._kind:
                raise gateway._garbage(f"it answered with {_words(kind) or 'no content type'}, not {self._kind}")
            if kind == "application/json":
                try:
                    async with asyncio.timeout_at(patience()):
                        raw = await gateway._read(response, MAX_VECTORS)
                except TimeoutError:
                    raise out_of_time() from None
                self._take_vectors(request.content, raw)
                await self._account(complete=True)
                yield raw, []
                return
            events = read_events(_bytes(response), witness.comment if witness is not None else None)
            async with aclosing(events):
                while True:
                    try:
                        async with asyncio.timeout_at(patience()):
                            event = await anext(events)
                    except TimeoutError:
                        raise out_of_time() from None
                    except (StopAsyncIteration, httpx.HTTPError):
                        raise AnswerCut(
                            "connection_lost", f"{gateway.endpoint} hung up in the middle of its answer; try again"
                        ) from None
                    if event == b"[DONE]":
                        if self.finish_reason is None:
                            raise AnswerCut("incomplete", f"{gateway.endpoint} ended its answer early; try again")
                        await self._account(complete=True)
                        return
                    try:
                        deltas = self._parse(event)
                    except AnswerCut:
                        await self._rest(events)
                        await self._account(complete=False)
                        raise
                    yield event, deltas
        except (GeneratorExit, asyncio.CancelledError):
            if witness is not None:
                witness.left()
            raise
        finally:
            await response.aclose()

    async def _rest(self, events: AsyncGenerator[bytes]) -> None:
        """After a cut, wait a moment for the receipt of what came."""
        try:
            async with asyncio.timeout(self._gateway._waits.receipt):
                while self._witness is not None and not self._witness.satisfied:
                    await anext(events)
        except (TimeoutError, StopAsyncIteration, httpx.HTTPError, GatewayGarbage):
            return

    async def _account(self, *, complete: bool) -> None:
        if self._witness is not None:
            await self._witness.done(words=self.received, usage=self.usage, complete=complete)

    def _take_vectors(self, asked: bytes, raw: bytes) -> None:
        try:
            prompt, completion = check_vectors(asked, raw)
        except (msgspec.DecodeError, ValueError) as error:
            raise self._gateway._garbage(f"it answered {_words(str(error))}") from error
        self.usage = self.claimed = Usage(prompt, completion, prompt + completion)

    def _parse(self, event: bytes) -> list[Delta]:
        try:
            chunk = msgspec.json.decode(event, type=Chunk)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._gateway._garbage(f"an event of its answer: {_words(str(error))}") from error
        if chunk.error is not None:
            error_body = chunk.error if isinstance(chunk.error, dict) else {"message": str(chunk.error)}
            code = _words(str(error_body.get("code") or error_body.get("type") or "error"))
            message = _words(str(error_body.get("message") or "")) or "no reason given"
            cure = (
                "ask again with more --duration" if code == "stream_ended" else "try again or choose another provider"
            )
            raise AnswerCut(code, f"{self._gateway.endpoint} cut the answer: {message}; {cure}")
        found = []
        if chunk.timings is not None:
            prompt = chunk.timings.prompt_n + chunk.timings.cache_n
            self.claimed = Usage(prompt, chunk.timings.predicted_n, prompt + chunk.timings.predicted_n)
        for choice in chunk.choices:
            said = (choice.delta or {}).get("content")
            if not isinstance(said, str | None):
                raise self._gateway._garbage("an event of its answer: a content that is no text")
            text = choice.text or said or ""
            words = word_bytes({"text": choice.text, "delta": choice.delta})
            self.received += words
            self.pieces += bool(words)
            self.ids += len(told_ids(choice.token_ids) or ())
            if self._witness is not None and (words or choice.token_ids):
                self._witness.piece(choice.index, choice.token_ids)
            if choice.index != 0:
                continue
            if text or choice.finish_reason:
                self.text += text
                self.finish_reason = choice.finish_reason or self.finish_reason
                found.append(Delta(text, choice.finish_reason))
        if chunk.usage is not None:
            usage = chunk.usage
            self.usage = Usage(usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)
            self.claimed = self.usage
            found.append(Delta(usage=self.usage))
        return found


async def _bytes(response: httpx.Response) -> AsyncGenerator[bytes]:
    async for piece in response.aiter_raw():
        yield piece


def _words(text: str) -> str:
    """A stranger's text as one printable line: no control characters reach the user's terminal."""
    line = " ".join("".join(c if c.isprintable() or c.isspace() else " " for c in text).split())
    return line if len(line) <= MAX_MESSAGE else line[: MAX_MESSAGE - 1] + "…"
