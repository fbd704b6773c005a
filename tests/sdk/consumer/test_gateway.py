"""The gateway client against real servers that misbehave: every fault is its own typed error."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import httpx
import pytest
from aiohttp import web

from penstock.consumer.chunks import Delta, Usage
from penstock.consumer.gateway import MAX_BODY, Gateway, Waits
from penstock.errors import AnswerCut, GatewayGarbage, GatewayRefused, GatewayUnreachable, PaymentRequired
from penstock.wire.completions import CHAT
from scripts._ports import free_port
from tests.gateways import PATIENT
from tests.harness import PATIENCE

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
QUICK = replace(PATIENT, greeting=0.3, stall=0.3)
"""For gateways that fall silent."""


@contextlib.asynccontextmanager
async def serve(handler: Handler, waits: Waits = PATIENT) -> AsyncIterator[Gateway]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.01)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with httpx.AsyncClient(timeout=httpx.Timeout(None, connect=waits.connect), trust_env=False) as http:
            yield Gateway(f"http://127.0.0.1:{port}/", http, waits)
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def serve_raw(reply: bytes) -> AsyncIterator[Gateway]:
    """Answers any connection with these bytes, HTTP or not, and hangs up."""

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1024)
        writer.write(reply)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(on_connection, "127.0.0.1", 0)
    async with server, httpx.AsyncClient(timeout=None, trust_env=False) as http:
        yield Gateway(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", http, PATIENT)


def events(*data: object, done: bool = True, then: Callable[[], Awaitable[None]] | None = None) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        for one in data:
            text = one if isinstance(one, str) else json.dumps(one)
            await response.write(f"data: {text}\n\n".encode())
        if then is not None:
            await then()
        if done:
            await response.write(b"data: [DONE]\n\n")
        return response

    return handler


def chunk(text: str, finish: str | None = None) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}


async def chat(gateway: Gateway) -> list[Delta]:
    async with gateway.ask(CHAT, "token", {"messages": []}) as answer:
        return [delta async for delta in answer]


async def test_streams_text_finish_reason_and_usage() -> None:
    usage = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}
    async with serve(events(chunk("He"), chunk("llo"), chunk("", "stop"), usage)) as gateway:
        answer = gateway.ask(CHAT, "token", {"messages": []})
        found = [delta async for delta in answer]
    assert found == [Delta("He"), Delta("llo"), Delta("", "stop"), Delta(usage=Usage(3, 2, 5))]
    assert (answer.text, answer.finish_reason, answer.usage) == ("Hello", "stop", Usage(3, 2, 5))


async def test_yields_each_delta_as_it_arrives() -> None:
    seen = asyncio.Event()
    async with serve(events(chunk("now"), done=False, then=lambda: seen.wait())) as gateway:
        async with gateway.ask(CHAT, "token", {}) as answer:
            assert await anext(answer) == Delta("now")
        seen.set()


async def test_sends_the_token_and_asks_for_a_stream() -> None:
    heard: dict[str, str] = {}

    async def handler(request: web.Request) -> web.StreamResponse:
        heard.update({name.lower(): value for name, value in request.headers.items()}, path=request.path)
        heard["body"] = await request.text()
        return await events(chunk("x", "stop"))(request)

    async with serve(handler) as gateway:
        await gateway.ask(CHAT, "secret", {"model": "m"}).read()
    assert heard["authorization"] == "Bearer secret"
    assert (heard["path"], heard["accept"], heard["accept-encoding"]) == (
        "/v1/chat/completions",
        "text/event-stream",
        "identity",
    )
    assert json.loads(heard["body"]) == {"model": "m"}


async def test_402_is_payment_required_with_its_body() -> None:
    async def handler(request: web.Request) -> web.Response:
        body = {"error": {"message": "no \x1b[31mstream", "code": "stream_ended"}, "accepts": [1]}
        return web.json_response(body, status=402)

    async with serve(handler) as gateway:
        with pytest.raises(PaymentRequired) as refused:
            await chat(gateway)
    assert (refused.value.status, refused.value.code, refused.value.body["accepts"]) == (402, "stream_ended", [1])
    assert "\x1b" not in str(refused.value)


@pytest.mark.parametrize("body", ["", "<html>oops", '{"error": "down"}', '{"detail": "down"}', "[1]", '{"error": {}}'])
async def test_500_in_any_shape_is_a_refusal(body: str) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=500, text=body)

    async with serve(handler) as gateway:
        with pytest.raises(GatewayRefused, match="answered 500") as refused:
            await chat(gateway)
        assert refused.value.code == "http_500"
        with pytest.raises(GatewayRefused, match="answered 500"):
            await gateway.well_known()


async def test_a_redirect_is_not_followed() -> None:
    followed = False

    async def handler(request: web.Request) -> web.Response:
        nonlocal followed
        if request.path == "/elsewhere":
            followed = True
        raise web.HTTPTemporaryRedirect("/elsewhere")

    async with serve(handler) as gateway:
        with pytest.raises(GatewayRefused, match="answered 307"):
            await gateway.well_known()
    assert not followed


@pytest.mark.parametrize("body", ["", "hello", "{}", '{"version": "one"}', "\ufffd\u0000"])
async def test_a_200_that_is_not_the_protocol_is_garbage(body: str) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(text=body)

    async with serve(handler) as gateway:
        with pytest.raises(GatewayGarbage):
            await gateway.well_known()
        with pytest.raises(GatewayGarbage, match="with text/plain, not text/event-stream"):
            await chat(gateway)


@pytest.mark.parametrize("event", ["{", '"text"', '{"choices": 5}', '{"choices": [{"delta": {"content": 7}}]}'])
async def test_an_event_that_is_not_a_chunk_is_garbage(event: str) -> None:
    async with serve(events(event)) as gateway:
        with pytest.raises(GatewayGarbage):
            await chat(gateway)


async def test_a_body_without_end_is_garbage_and_not_read_on() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(64):
            await response.write(b" " * (MAX_BODY // 8))
        return response

    async with serve(handler) as gateway:
        with pytest.raises(GatewayGarbage, match="more than"):
            await gateway.well_known()


async def test_something_other_than_http_is_garbage() -> None:
    async with serve_raw(b"\x00\xff\xfe garbage\r\n\r\n") as gateway:
        with pytest.raises(GatewayGarbage):
            await gateway.well_known()
        with pytest.raises(GatewayGarbage):
            await chat(gateway)


async def test_hanging_up_without_a_word_is_unreachable() -> None:
    async with serve_raw(b"") as gateway:
        with pytest.raises(GatewayUnreachable, match="hung up without an answer"):
            await gateway.well_known()
        with pytest.raises(GatewayUnreachable, match="hung up without an answer"):
            await chat(gateway)


async def test_a_short_body_is_unreachable() -> None:
    async with serve_raw(b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{") as gateway:
        with pytest.raises(GatewayUnreachable, match="middle of its answer"):
            await gateway.well_known()


async def test_nobody_there_is_unreachable() -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        gateway = Gateway(f"http://127.0.0.1:{free_port()}", http, PATIENT)
        with pytest.raises(GatewayUnreachable, match="nothing answers at"):
            await gateway.well_known()
        with pytest.raises(GatewayUnreachable, match="nothing answers at"):
            await chat(gateway)


async def silence() -> None:
    await asyncio.sleep(3600)


async def test_silence_ends_the_wait() -> None:
    async def handler(request: web.Request) -> web.Response:
        await silence()
        return web.Response()

    async with serve(handler, QUICK) as gateway, asyncio.timeout(PATIENCE):
        with pytest.raises(GatewayUnreachable, match="did not answer within"):
            await gateway.well_known()
        with pytest.raises(AnswerCut) as cut:
            await chat(gateway)
        assert cut.value.code == "stalled"


async def test_a_stall_in_mid_answer_is_a_cut() -> None:
    async with serve(events(chunk("He"), then=silence), QUICK) as gateway, asyncio.timeout(PATIENCE):
        text = ""
        while not text:  # a machine that stalls may be too late for the first word
            answer = gateway.ask(CHAT, "token", {})
            with pytest.raises(AnswerCut) as cut:
                await answer.read()
            assert cut.value.code == "stalled"
            text = answer.text
    assert text == "He"


async def test_paid_time_bounds_an_answer_that_drips() -> None:
    async with serve(events(chunk("He"), then=silence)) as gateway:
        end = asyncio.get_running_loop().time() + 0.3
        with pytest.raises(AnswerCut) as cut:
            await gateway.ask(CHAT, "token", {}, until=lambda: end).read()
    assert cut.value.code == "stream_ended"


async def test_the_gateways_own_reason_for_a_cut_is_passed_on() -> None:
    error = {"error": {"message": "the stream was cancelled", "code": "stream_cancelled"}}
    async with serve(events(chunk("He"), error)) as gateway:
        answer = gateway.ask(CHAT, "token", {})
        with pytest.raises(AnswerCut, match="the stream was cancelled") as cut:
            await answer.read()
    assert (cut.value.code, answer.text) == ("stream_cancelled", "He")


async def test_a_lost_connection_is_a_cut() -> None:
    async with serve(events(chunk("He"), done=False)) as gateway:
        with pytest.raises(AnswerCut) as cut:
            await chat(gateway)
    assert cut.value.code == "connection_lost"
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    async with serve_raw(head + b"10\r\ndata: ") as gateway:
        with pytest.raises(AnswerCut) as cut:
            await chat(gateway)
    assert cut.value.code == "connection_lost"


async def test_done_without_a_finish_reason_is_a_cut() -> None:
    async with serve(events(chunk("He"))) as gateway:
        with pytest.raises(AnswerCut) as cut:
            await chat(gateway)
    assert cut.value.code == "incomplete"


async def test_leaving_hangs_up_on_the_provider() -> None:
    left = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        try:
            while True:
                await response.write(f"data: {json.dumps(chunk('x'))}\n\n".encode())
                await asyncio.sleep(0.01)
        except (ConnectionError, asyncio.CancelledError):
            left.set()
            raise

    async with serve(handler) as gateway:
        async with gateway.ask(CHAT, "token", {}) as answer:
            await anext(answer)
        async with asyncio.timeout(PATIENCE):
            await left.wait()


async def test_closing_works_while_another_task_reads() -> None:
    async with serve(events(chunk("x"), then=silence)) as gateway:
        answer = gateway.ask(CHAT, "token", {})
        assert await anext(answer) == Delta("x")
        reader = asyncio.create_task(answer.read())
        await asyncio.sleep(0)
        await answer.aclose()
        with pytest.raises((AnswerCut, httpx.StreamError)):
            async with asyncio.timeout(PATIENCE):
                await reader
