"""OpenAI's side of the gateway: chat, texts, responses, embeddings, models."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agents.desk import Desk, Reply
from agents.gateway._catalogue import Catalogue
from agents.gateway._http import (
    Refused,
    Streamed,
    answer,
    bad_request,
    field,
    read_object,
    refusal,
    text_field,
    while_there,
)
from penstock.wire.completions import CHAT, EMBEDDINGS, TEXT
from penstock.wire.responses import RESPONSES, Responding, Unanswerable, encode, to_chat

_NEEDED = {CHAT: "messages", TEXT: "prompt", EMBEDDINGS: "input"}
_OURS = ("model", "stream", "stream_options")
"""Fields that the gateway reads itself."""
_EXTRAS = ("token_ids", "prompt_token_ids")
"""What providers add for us: clients get it who asked for it."""


def routes(desk: Desk, catalogue: Catalogue) -> list[Route]:
    async def generate(request: Request) -> Response:
        body = await read_object(request)
        path = request.url.path
        name = text_field(body, "model")
        if body.get(_NEEDED[path]) is None:
            raise bad_request(f"{_NEEDED[path]} is missing", _NEEDED[path])
        streams = field(body, "stream", bool, False)
        options = field(body, "stream_options", dict, {})
        asked = {key: value for key, value in body.items() if key not in _OURS}
        reply = await while_there(request, desk.ask(path, name, asked, client=_client(request, body)))
        catalogue.used(name)
        show = _Show(usage=bool(options.get("include_usage")), ids=body.get("return_token_ids") is True)
        if streams and path != EMBEDDINGS:
            return Streamed(_events(reply, show), "text/event-stream")
        whole = await while_there(request, reply.whole())
        return answer(show.whole(whole), headers=reply.headers)

    async def respond(request: Request) -> Response:
        """By the other protocol: asked as a chat, of providers and of the local engine alike."""
        body = await read_object(request)
        name = text_field(body, "model")
        streams = field(body, "stream", bool, False)
        try:
            chat = to_chat(body)
        except Unanswerable as error:
            raise bad_request(str(error), error.param) from None
        asked = {key: value for key, value in chat.items() if key not in _OURS}
        reply = await while_there(request, desk.ask(CHAT, name, asked, client=_client(request, body)))
        catalogue.used(name)
        responding = Responding(body, reply.model)
        if streams:
            return Streamed(_response_events(reply, responding), "text/event-stream")
        return answer(await while_there(request, _response(reply, responding)), headers=reply.headers)

    async def _response(reply: Reply, responding: Responding) -> dict[str, Any]:
        usage: dict[str, Any] = {}
        async with aclosing(reply.chunks()) as chunks:
            async for chunk in chunks:
                usage = chunk.get("usage") or usage
                responding.add(chunk)
        return responding.answer(usage)

    async def _response_events(reply: Reply, responding: Responding) -> AsyncIterator[bytes]:
        usage: dict[str, Any] = {}
        try:
            async with aclosing(reply.chunks()) as chunks:
                async for chunk in chunks:
                    usage = chunk.get("usage") or usage
                    yield encode(responding.add(chunk))
        except Exception as error:
            yield encode(responding.broken(refusal(error).openai["error"]))
            return
        for name, value in reply.headers.items():
            yield f": {name} {value}\n\n".encode()
        yield encode(responding.end(usage))

    async def models(request: Request) -> Response:
        return answer({"object": "list", "data": [one.openai for one in await catalogue.entries()]})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        entry = await catalogue.find(name)
        if entry is None:
            what = f"nobody offers {name}: /v1/models lists what there is"
            raise Refused(404, "invalid_request_error", "model_not_found", what)
        return answer(entry.openai)

    async def _events(reply: Reply, show: _Show) -> AsyncIterator[bytes]:
        try:
            async with aclosing(reply.chunks()) as chunks:
                async for chunk in chunks:
                    if shown := show.chunk(chunk):
                        yield b"data: " + msgspec.json.encode(shown) + b"\n\n"
        except Exception as error:
            # The head is out: this is how OpenAI tells, too, and its clients raise it.
            yield b"data: " + msgspec.json.encode(refusal(error).openai) + b"\n\n"
            return
        for name, value in reply.headers.items():
            yield f": {name} {value}\n\n".encode()
        yield b"data: [DONE]\n\n"

    return [
        *(Route(path, generate, methods=["POST"]) for path in _NEEDED),
        Route(RESPONSES, respond, methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
    ]


class _Show:
    """What a client gets of an answer: what it asked for."""

    def __init__(self, *, usage: bool, ids: bool) -> None:
        self._usage, self._ids = usage, ids

    def chunk(self, chunk: dict[str, Any]) -> dict[str, Any] | None:
        if not self._usage:
            chunk = {name: value for name, value in chunk.items() if name != "usage"}
            if not chunk.get("choices"):
                return None
        return self.whole(chunk)

    def whole(self, body: dict[str, Any]) -> dict[str, Any]:
        if self._ids or not isinstance(body.get("choices"), list):
            return body
        choices = [{name: value for name, value in one.items() if name not in _EXTRAS} for one in body["choices"]]
        return {name: value for name, value in body.items() if name not in _EXTRAS} | {"choices": choices}


def _client(request: Request, body: dict[str, Any]) -> str:
    """Who asks, for the records."""
    user = body.get("user")
    return user if isinstance(user, str) and user else request.headers.get("user-agent", "")
