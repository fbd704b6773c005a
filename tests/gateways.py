"""Providers for tests: small real HTTP servers that are registered on chain and keep the protocol, or break it.

    async with selling(chain, account, terms, chat=hangs) as gateway:
        ...

Each of the four routes can be replaced by a handler that misbehaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, fields

import msgspec
from aiohttp import web

from penstock.chain.port import Account, Chain
from penstock.consumer.gateway import Waits
from penstock.errors import NotFound, PenstockError
from penstock.events import Closed
from penstock.types import Offer, Service, StreamKey, Terms
from penstock.wire.payment import body as payment_body
from penstock.wire.sessions import (
    SESSIONS_PATH,
    WELL_KNOWN_PATH,
    CloseAnswer,
    CloseRequest,
    Contracts,
    Grant,
    SessionAnswer,
    SessionRequest,
    WellKnown,
    closing_audience,
)
from tests.harness import PATIENCE

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
WORDS = ("A ", "penstock ", "is ", "a ", "gate.")
PATIENT = Waits(**dict.fromkeys((field.name for field in fields(Waits)), PATIENCE))
"""Of a consumer to which nothing is to seem silent: a machine that stalls is no gateway's fault."""


@dataclass
class Gateway:
    """What a running gateway has seen."""

    chain: Chain
    account: Account
    endpoint: str = ""
    offer: Offer | None = None
    words: tuple[str, ...] = WORDS
    pace: float = 0
    """Seconds between words."""
    min_relayed_duration: int = 0
    sessions: dict[str, tuple[StreamKey, int]] = field(default_factory=dict)
    """Stream and start by bearer token."""
    calls: list[str] = field(default_factory=list)
    asked: list[dict[str, object]] = field(default_factory=list)
    said_first: asyncio.Event = field(default_factory=asyncio.Event)

    async def begun(self) -> None:
        """Once a first word has been sent."""
        async with asyncio.timeout(2 * PATIENCE):
            await self.said_first.wait()

    async def greet(self, request: web.Request) -> web.StreamResponse:
        chain = self.chain
        contracts = Contracts(chain.stream_pay, chain.registry, chain.staking, chain.slashing)
        me = self.account.address
        return answer(WellKnown(1, me, self.endpoint, chain.chain_id, contracts, me, me, [], self.min_relayed_duration))

    async def open_session(self, request: web.Request) -> web.StreamResponse:
        asked = msgspec.json.decode(await request.read(), type=SessionRequest)
        key = asked.stream.value()
        self._check(*asked.grant.value(), key, self.endpoint)
        transaction, gas_used = "", 0
        if asked.order is not None:
            order, order_signature, permit = asked.order.value(key)
            receipt = await self.chain.open_for(self.account, order, order_signature, permit)
            transaction, gas_used = receipt.transaction, receipt.gas_used
        (state,) = await self.chain.streams([key.id])
        if state is None:
            return refuse(402, "stream_unknown", "the chain does not have this stream")
        token = secrets.token_urlsafe(16)
        self.sessions[token] = (key, state.start)
        assert self.offer is not None
        return answer(
            SessionAnswer(
                session_id=token[:4],
                token=token,
                stream_id=key.id,
                start=state.start,
                end=state.end,
                rate=str(state.rate),
                offer_id=key.offer_id,
                model=self.offer.terms.model,
                expires_at=state.end,
                transaction=transaction,
                gas_used=gas_used,
            ),
            201,
        )

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(await request.json())
        self._session(request)
        response = await event_stream(request)
        for word in self.words:
            await response.write(event({"choices": [{"index": 0, "delta": {"content": word}}]}))
            self.said_first.set()
            await asyncio.sleep(self.pace)
        await response.write(event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
        usage = {"prompt_tokens": 3, "completion_tokens": len(self.words), "total_tokens": 3 + len(self.words)}
        await response.write(event({"choices": [], "usage": usage}))
        await response.write(b"data: [DONE]\n\n")
        return response

    async def close(self, request: web.Request) -> web.StreamResponse:
        asked = msgspec.json.decode(await request.read(), type=CloseRequest)
        if asked.stream is not None and asked.grant is not None:
            key = asked.stream.value()
            self._check(*asked.grant.value(), key, closing_audience(self.endpoint))
        else:
            key, _ = self._session(request)
        if asked.cancel is None:
            receipt = await self.chain.close_stream(self.account, key, stop_at=int(time.time()))
        else:
            cancel = asked.cancel
            signature = bytes.fromhex(cancel.signature.removeprefix("0x"))
            receipt = await self.chain.cancel_for(
                self.account, key, to=cancel.to, deadline=cancel.deadline, signature=signature
            )
        closed = next(one for one in receipt.events if isinstance(one, Closed))
        gas = receipt.gas_used
        return answer(CloseAnswer(key.id, receipt.transaction, closed.stop, str(closed.paid), str(closed.refund), gas))

    def _check(self, grant: Grant, signature: bytes, key: StreamKey, audience: str) -> None:
        grant.check(
            self.chain.session_domain,
            signature,
            session_key=key.session_key,
            provider=self.account.address,
            audience=audience,
            now=int(time.time()),
        )

    def _session(self, request: web.Request) -> tuple[StreamKey, int]:
        return self.sessions[request.headers["authorization"].removeprefix("Bearer ")]


@contextlib.asynccontextmanager
async def selling(
    chain: Chain,
    account: Account,
    terms: Terms,
    *,
    greet: Handler | None = None,
    open_session: Handler | None = None,
    chat: Handler | None = None,
    close: Handler | None = None,
    words: tuple[str, ...] = WORDS,
    pace: float = 0,
    min_relayed_duration: int = 0,
) -> AsyncIterator[Gateway]:
    """A provider on the market. It serves until the block ends; its registration and offer stay."""
    gateway = Gateway(chain, account, words=words, pace=pace, min_relayed_duration=min_relayed_duration)

    def noted(name: str, handler: Handler) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            gateway.calls.append(name)
            try:
                return await handler(request)
            except PenstockError as error:
                return refuse(400, "refused", str(error))

        return handle

    app = web.Application()
    app.router.add_get(WELL_KNOWN_PATH, noted("greet", greet or gateway.greet))
    app.router.add_post(SESSIONS_PATH, noted("open", open_session or gateway.open_session))
    app.router.add_post(f"{SESSIONS_PATH}/close", noted("close", close or gateway.close))
    app.router.add_post("/v1/chat/completions", noted("chat", chat or gateway.chat))
    runner = web.AppRunner(app, shutdown_timeout=0.01)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        gateway.endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"
        gateway.offer = await list_offer(chain, account, gateway.endpoint, terms)
        yield gateway
    finally:
        await runner.cleanup()


async def list_offer(chain: Chain, account: Account, endpoint: str, terms: Terms) -> Offer:
    """Register (or move) the provider, stake what its slots need, list the offer."""
    me = account.address
    try:
        await chain.provider(me)
        await chain.set_endpoint(account, me, endpoint)
    except NotFound:
        await chain.register(account, payee=me, signer=me, service=Service.INFERENCE, endpoint=endpoint)
    offer = terms.offer_id(me)
    slots = terms.slots + sum(o.terms.slots for o in await chain.offers_of(me) if o.active and o.id != offer)
    needed = max(await chain.minimum_stake(), slots * await chain.cover_per_slot())
    if (lacking := needed - await chain.stake_of(me)) > 0:
        await chain.stake(account, me, lacking)
    try:
        if not (await chain.offer(offer)).active:
            await chain.set_offer_active(account, offer, True)
    except NotFound:
        await chain.create_offer(account, me, terms)
    return await chain.offer(offer)


# --- answers, and ways to misbehave --------------------------------------------------------------


def answer(value: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


def refuse(status: int, code: str, message: str) -> web.Response:
    if status == 402:
        return web.json_response(payment_body(code, message, "/", []), status=402)
    return web.json_response({"error": {"message": message, "type": "error", "code": code}}, status=status)


def event(data: object) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


async def event_stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    return response


async def says_402(request: web.Request) -> web.StreamResponse:
    return refuse(402, "payment_required", "pay more")


async def says_500(request: web.Request) -> web.StreamResponse:
    return web.Response(status=500, text="<h1>Internal Server Error</h1>")


async def says_garbage(request: web.Request) -> web.StreamResponse:
    return web.Response(text="\u2603 not what you asked for", content_type="text/plain")


async def says_nothing(request: web.Request) -> web.StreamResponse:
    """Hangs up without a byte."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def hangs(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(3600)
    return web.Response()


async def dies_in_mid_answer(request: web.Request) -> web.StreamResponse:
    response = await event_stream(request)
    await response.write(event({"choices": [{"index": 0, "delta": {"content": "A "}}]}))
    assert request.transport is not None
    request.transport.abort()
    return response


async def cuts_the_answer(request: web.Request) -> web.StreamResponse:
    response = await event_stream(request)
    await response.write(event({"choices": [{"index": 0, "delta": {"content": "A "}}]}))
    await response.write(event({"error": {"message": "the stream has ended", "code": "stream_ended"}}))
    return response


async def stalls_in_mid_answer(request: web.Request) -> web.StreamResponse:
    response = await event_stream(request)
    await response.write(event({"choices": [{"index": 0, "delta": {"content": "A "}}]}))
    await asyncio.sleep(3600)
    return response
