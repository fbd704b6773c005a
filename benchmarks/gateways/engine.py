"""A synthetic engine, faster than any gateway: it answers like vLLM, and computes nothing.

    python -m benchmarks.gateways.engine

It says where it listens in one line of JSON. Each token is an event and a write of its own, as an engine gives them.
`POST /pace` with {"tokens_per_second": N} sets the speed of the answers that begin from then on; 0, as at the start: as
fast as the sockets take them, in turns.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from itertools import repeat
from typing import Any, cast

import httptools
import msgspec

MODEL = "penstock-synthetic"
_EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
_TOKENS = 1_000
"""The vocabulary."""
_MODELS = {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "vllm"}]}

_pace = 0.0


class _Connection(asyncio.Protocol):
    """One client. Requests are not pipelined."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not say so
        self._parser = httptools.HttpRequestParser(self)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.Handle | None = None

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def on_message_begin(self) -> None:
        self._url, self._body = b"", b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._url.endswith(b"/completions"):
            self._complete(msgspec.json.decode(self._body))
        elif self._url.endswith(b"/pace"):
            global _pace
            _pace = msgspec.json.decode(self._body)["tokens_per_second"]
            self._json({})
        else:
            self._json(_MODELS)

    def _complete(self, request: dict[str, Any]) -> None:
        if not request.get("stream"):
            self._json(_whole(request))
            return
        events = _events(request)
        self._transport.write(_EVENTS + _chunk(next(events)))
        self._step(events, self._loop.time())

    def _step(self, events: Iterator[bytes], due: float) -> None:
        """One event, and then it is the others' turn."""
        if self._transport.is_closing():
            return
        event = next(events, None)
        if event is None:
            self._transport.write(b"0\r\n\r\n")
            return
        self._transport.write(_chunk(event))
        if _pace:
            due += 1 / _pace
            self._timer = self._loop.call_at(due, self._step, events, due)
        else:
            self._timer = self._loop.call_soon(self._step, events, due)

    def _json(self, content: Any) -> None:
        body = msgspec.json.encode(content)
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        )


def _chunk(event: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(event), event)


_HEAD = (
    b'data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk","created":1790000000,'
    b'"model":"' + MODEL.encode() + b'","choices":['
)


def _piece(token: int, *, ids: bool) -> bytes:
    told = b',"token_ids":[%d]' % token if ids else b""
    return b'{"index":0,"delta":{"content":" word%d"},"logprobs":null,"finish_reason":null%b}]' % (token, told)


_PIECES = {ids: [_HEAD + _piece(token, ids=ids) for token in range(_TOKENS)] for ids in (False, True)}


def _events(request: dict[str, Any]) -> Iterator[bytes]:
    """As vLLM 0.32 writes them for a chat."""
    most = request.get("max_completion_tokens") or request.get("max_tokens") or 16
    ids = request.get("return_token_ids") is True
    options = request.get("stream_options") or {}
    prompt = 8
    counted = (
        b',"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d,"completion_tokens_details":null}}\n\n'
    )
    goes_on = options.get("continuous_usage_stats")
    first = b'{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
    told = b',"prompt_token_ids":[1,2,3,4,5,6,7,8]' if ids else b""
    yield _HEAD + first + told + (counted % (prompt, prompt, 0) if goes_on else b"}\n\n")
    pieces = _PIECES[ids]
    for made, _ in enumerate(repeat(None, most - 1), 1):
        yield pieces[made % _TOKENS] + (counted % (prompt, prompt + made, made) if goes_on else b"}\n\n")
    last = pieces[most % _TOKENS].replace(b'"finish_reason":null', b'"finish_reason":"length","stop_reason":null')
    yield last + (counted % (prompt, prompt + most, most) if goes_on else b"}\n\n")
    if options.get("include_usage"):
        yield _HEAD + b"]" + counted % (prompt, prompt + most, most)
    yield b"data: [DONE]\n\n"


def _whole(request: dict[str, Any]) -> dict[str, Any]:
    most = request.get("max_completion_tokens") or request.get("max_tokens") or 16
    message = {"role": "assistant", "content": "".join(f" word{n}" for n in range(1, most + 1))}
    return {
        "id": "chatcmpl-0123456789abcdef",
        "object": "chat.completion",
        "created": 1790000000,
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": "length", "logprobs": None}],
        "usage": {"prompt_tokens": 8, "completion_tokens": most, "total_tokens": 8 + most},
    }


async def _serve() -> None:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(4096)
    server = await asyncio.get_running_loop().create_server(_Connection, sock=listener)
    print(json.dumps({"url": f"http://127.0.0.1:{listener.getsockname()[1]}"}), flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    import uvloop

    uvloop.run(_serve())
