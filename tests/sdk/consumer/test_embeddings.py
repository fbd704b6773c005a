"""The client's side of embeddings against real servers: one bounded JSON answer, and nothing else is taken for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from penstock.consumer import gateway as client
from penstock.consumer.chunks import Usage
from penstock.consumer.embeddings import vectors
from penstock.consumer.gateway import Answer, Gateway
from penstock.errors import AnswerCut, GatewayGarbage, GatewayRefused, GatewayUnreachable
from penstock.wire.completions import EMBEDDINGS
from tests.sdk.consumer.test_gateway import QUICK, Handler, serve

TWO = ["a", "b"]


def listed(*found: Any, **more: Any) -> dict[str, Any]:
    data = [{"index": index, "embedding": vector} for index, vector in enumerate(found)]
    return {"object": "list", "data": data, "usage": {"prompt_tokens": 5, "total_tokens": 5}} | more


def says(body: object, status: int = 200) -> Handler:
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.json_response(body, status=status)

    return handler


def ask(gateway: Gateway, given: object = TWO, until: Callable[[], float] = lambda: float("inf")) -> Answer:
    return gateway.ask(EMBEDDINGS, "token", {"input": given}, until=until)


async def test_vectors_come_in_order_with_their_usage() -> None:
    heads = []

    async def handler(request: web.Request) -> web.StreamResponse:
        heads.append(request.headers["accept"])
        body = listed([1.0, 2.0], [3.0, 4.0])
        return web.json_response(body | {"data": body["data"][::-1]})

    async with serve(handler) as gateway:
        answer = ask(gateway)
        assert await vectors(answer) == [[1.0, 2.0], [3.0, 4.0]]
        assert (answer.usage, answer.claimed, answer.most_tokens) == (Usage(5, 0, 5), Usage(5, 0, 5), 0)
        assert await answer.chunk() is None
        assert [delta async for delta in ask(gateway)] == []
    assert heads == ["application/json"] * 2


@pytest.mark.parametrize(
    ("given", "found"),
    [("a", ["AAAA"]), ([1, 2, 3], [[0.5]]), ([[1, 2], [3]], [[0.5], [0.25]]), (["a"], [[0.5]])],
    ids=["base64", "ids", "lists of ids", "list of one"],
)
async def test_what_may_be_asked_for(given: object, found: list[Any]) -> None:
    async with serve(says(listed(*found))) as gateway:
        assert await vectors(ask(gateway, given)) == found


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (listed([1.0]), "1 embeddings for 2 inputs"),
        (listed([1.0], [1.0], [1.0]), "3 embeddings for 2 inputs"),
        (listed([1.0], [1.0, 2.0]), "several lengths"),
        (listed([], []), "empty"),
        (listed([1.0], ["x"]), "float"),
        (listed([1.0], [2.0], data=[{"index": 0, "embedding": [1.0]}] * 2), "numbered otherwise"),
        (listed([1.0], [2.0], usage=None), "usage"),
        ({"choices": []}, "data"),
        ([], "object"),
    ],
)
async def test_what_was_not_asked_for_is_garbage(body: object, said: str) -> None:
    async with serve(says(body)) as gateway:
        with pytest.raises(GatewayGarbage, match=said):
            await vectors(ask(gateway))


async def test_an_answer_that_is_too_long_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_VECTORS", 1000)
    async with serve(says(listed([1.0] * 1000, [1.0] * 1000))) as gateway:
        with pytest.raises(GatewayGarbage, match="more than 1000 bytes"):
            await vectors(ask(gateway))


async def test_a_stream_of_events_is_none() -> None:
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.Response(text="data: [DONE]\n\n", content_type="text/event-stream")

    async with serve(handler) as gateway:
        with pytest.raises(GatewayGarbage, match="text/event-stream, not application/json"):
            await vectors(ask(gateway))


async def test_a_refusal_is_told() -> None:
    async with serve(says({"error": {"code": "no_embeddings", "message": "none here"}}, 404)) as gateway:
        with pytest.raises(GatewayRefused, match="none here") as caught:
            await vectors(ask(gateway))
        assert caught.value.code == "no_embeddings"


@pytest.mark.parametrize("begins", [True, False])
async def test_waits_end(begins: bool) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "application/json"})
        if begins:
            await response.prepare(request)
            await response.write(b"{")
        await asyncio.sleep(3600)
        return response

    async with serve(handler, QUICK) as gateway:
        with pytest.raises(AnswerCut, match="sent nothing"):
            await vectors(ask(gateway))
        end = asyncio.get_running_loop().time() + 0.1
        with pytest.raises(AnswerCut, match="paid time ended"):
            await vectors(ask(gateway, until=lambda: end))


async def test_a_connection_that_breaks() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "application/json", "content-length": "100"})
        await response.prepare(request)
        await response.write(b"{")
        assert request.transport is not None
        request.transport.abort()
        return response

    async with serve(handler) as gateway:
        with pytest.raises(GatewayUnreachable):
            await vectors(ask(gateway))
