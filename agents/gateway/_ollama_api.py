"""Ollama's side of the gateway: /api/chat, /api/generate, /api/embed, /api/tags, /api/show, /api/ps, /api/version."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from agents.desk import Desk, Reply
from agents.gateway._catalogue import Catalogue, Entry
from agents.gateway._http import Refused, Streamed, answer, field, read_object, refusal, text_field, while_there
from agents.gateway._ollama_shapes import Speaker, chat_body, embed_body, generate_body, joined, model_name, timestamp
from penstock.wire.completions import CHAT, EMBEDDINGS

VERSION = "0.12.6"
"""Of Ollama's API that is spoken here: clients ask before they use what is new."""
_NOT_HERE = ("/api/push", "/api/create", "/api/copy", "/api/delete", "/api/blobs/{digest}")


def routes(desk: Desk, catalogue: Catalogue) -> list[Route]:
    async def chat(request: Request) -> Response:
        body = await read_object(request)
        if not body.get("messages"):
            return await loaded(body, {"message": {"role": "assistant", "content": ""}})
        return await ask(request, body, CHAT, chat_body(body), generates=False)

    async def generate(request: Request) -> Response:
        body = await read_object(request)
        if not body.get("prompt") and not body.get("images"):
            return await loaded(body, {"response": ""})
        path, asked = generate_body(body)
        return await ask(request, body, path, asked, generates=True)

    async def ask(
        request: Request, body: dict[str, Any], path: str, asked: dict[str, Any], *, generates: bool
    ) -> Response:
        name = model_name(body)
        speaker = Speaker(body.get("model") or name, time.monotonic_ns(), generates=generates)
        reply = await while_there(request, desk.ask(path, name, asked, client=_client(request)))
        catalogue.used(name)
        speaker.loaded(time.monotonic_ns())
        if field(body, "stream", bool, True):
            return Streamed(_lines(reply, speaker), "application/x-ndjson")
        return answer(joined(await while_there(request, collect(reply, speaker))), headers=reply.headers)

    async def _lines(reply: Reply, speaker: Speaker) -> AsyncIterator[bytes]:
        try:
            async with aclosing(reply.chunks()) as chunks:
                async for chunk in chunks:
                    if line := speaker.say(chunk, time.monotonic_ns()):
                        yield msgspec.json.encode(line) + b"\n"
            for line in speaker.end(time.monotonic_ns()):
                yield msgspec.json.encode(line) + b"\n"
        except Exception as error:
            # The head is out: this is how Ollama tells, too, and its clients raise it.
            yield msgspec.json.encode(refusal(error).ollama) + b"\n"

    async def collect(reply: Reply, speaker: Speaker) -> list[dict[str, Any]]:
        async with aclosing(reply.chunks()) as chunks:
            lines = [line async for chunk in chunks if (line := speaker.say(chunk, time.monotonic_ns()))]
        return lines + speaker.end(time.monotonic_ns())

    async def loaded(body: dict[str, Any], empty: dict[str, Any]) -> Response:
        """Nothing is asked: a client wants the model to be ready, and what is on the market is."""
        await find(model_name(body))
        return answer({"model": body["model"], "created_at": timestamp(), **empty, "done": True, "done_reason": "load"})

    async def embed(request: Request) -> Response:
        body = await read_object(request)
        began = time.monotonic_ns()
        reply = await while_there(
            request, desk.ask(EMBEDDINGS, model_name(body), embed_body(body), client=_client(request))
        )
        loaded_at = time.monotonic_ns()
        found = await while_there(request, reply.whole())
        shown = {
            "model": body["model"],
            "embeddings": [one["embedding"] for one in found["data"]],
            "total_duration": time.monotonic_ns() - began,
            "load_duration": loaded_at - began,
            "prompt_eval_count": (found.get("usage") or {}).get("prompt_tokens", 0),
        }
        return answer(shown, headers=reply.headers)

    async def embeddings(request: Request) -> Response:
        body = await read_object(request)
        asked = {"input": text_field(body, "prompt")}
        reply = await while_there(request, desk.ask(EMBEDDINGS, model_name(body), asked, client=_client(request)))
        found = await while_there(request, reply.whole())
        return answer({"embedding": found["data"][0]["embedding"]}, headers=reply.headers)

    async def tags(request: Request) -> Response:
        return answer({"models": [_tag(one) for one in await catalogue.entries()]})

    async def show(request: Request) -> Response:
        entry = await find(model_name(await read_object(request)))
        return answer(
            {
                "modelfile": f"# {entry.name} is bought from the market\nFROM {entry.name}\n",
                "parameters": "",
                "template": "",
                "modified_at": timestamp(),
                "details": _details(entry),
                "model_info": {"general.architecture": "penstock", "penstock.context_length": entry.context_length},
                "capabilities": ["completion", "tools"],
            }
        )

    async def ps(request: Request) -> Response:
        return answer(
            {
                "models": [
                    _tag(one) | {"expires_at": timestamp(until), "size_vram": 0, "context_length": one.context_length}
                    for one, until in await catalogue.in_use()
                ]
            }
        )

    async def pull(request: Request) -> Response:
        """What is on the market needs no download: clients that pull first may go on."""
        body = await read_object(request)
        await find(model_name(body))
        done = {"status": "success"}
        if not field(body, "stream", bool, True):
            return answer(done)
        return Response(msgspec.json.encode(done) + b"\n", media_type="application/x-ndjson")

    async def version(request: Request) -> Response:
        return answer({"version": VERSION})

    async def not_here(request: Request) -> Response:
        what = f"{request.url.path}: models are bought here and not kept; /api/tags lists what is on the market"
        raise Refused(501, "invalid_request_error", "not_here", what)

    async def root(request: Request) -> Response:
        return PlainTextResponse("Penstock is running")

    async def find(name: str) -> Entry:
        entry = await catalogue.find(name)
        if entry is None:
            what = f"model {name!r} not found: nobody offers it; /api/tags lists what there is"
            raise Refused(404, "invalid_request_error", "model_not_found", what)
        return entry

    return [
        Route("/", root),
        Route("/api/chat", chat, methods=["POST"]),
        Route("/api/generate", generate, methods=["POST"]),
        Route("/api/embed", embed, methods=["POST"]),
        Route("/api/embeddings", embeddings, methods=["POST"]),
        Route("/api/tags", tags),
        Route("/api/show", show, methods=["POST"]),
        Route("/api/ps", ps),
        Route("/api/pull", pull, methods=["POST"]),
        Route("/api/version", version),
        *(Route(path, not_here, methods=["GET", "HEAD", "POST", "DELETE"]) for path in _NOT_HERE),
    ]


def _client(request: Request) -> str:
    return request.headers.get("user-agent", "")


def _tag(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "model": entry.name,
        "modified_at": timestamp(),
        "size": 0,
        "digest": hashlib.sha256(entry.name.encode()).hexdigest(),
        "details": _details(entry),
    }


def _details(entry: Entry) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "penstock",
        "family": "penstock",
        "families": ["penstock"],
        "parameter_size": f"{entry.size:g}B" if entry.size else "",
        "quantization_level": "",
    }
