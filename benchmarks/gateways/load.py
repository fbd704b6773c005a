"""The load, in a process of its own so that it takes nothing from what it measures. Hardly any Python per byte.

    python -m benchmarks.gateways.load

Reads one job in JSON per line on stdin, and answers each with one line.
"""

from __future__ import annotations

import asyncio
import re
import resource
import sys
from statistics import fmean
from time import perf_counter
from typing import cast
from urllib.parse import urlsplit

import httptools
import msgspec

_PATH = "/v1/chat/completions"
_WORD = re.compile(rb'"content": ?"[^"]')
_USAGE = re.compile(rb'"completion_tokens": ?(\d+)')
_TAIL = 4096


class Job(msgspec.Struct):
    """`waves` times all streams start at once; a wave ends with its last stream."""

    url: str
    model: str
    tokens: int
    """Of each answer."""
    keys: list[str]
    """Bearer tokens: each stream uses one, in turn."""
    streams: int = 1
    waves: int = 1
    stream: bool = True
    """Whether answers come in pieces."""
    hold: float = 0
    """Seconds after which streams are dropped, wherever they are; 0: never."""


class Measured(msgspec.Struct):
    seconds: float
    """Of all waves together."""
    tokens: int
    """As the engine counted them."""
    requests: int
    ttft: list[float]
    """Seconds from the request to the first word, of each stream."""
    between: float
    """Mean seconds between two tokens of a stream."""
    cpu: float
    """This process's own CPU seconds."""
    errors: list[str]


class _Stream(asyncio.Protocol):
    """One connection, kept alive from wave to wave."""

    def __init__(self) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.error = ""
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's does not say so

    def ask(self, request: bytes, streamed: bool) -> None:
        self.streamed = streamed
        self.done = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self.tail, self.error, self.first = b"", "", 0.0
        self.began = perf_counter()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self.last = perf_counter()
        if not self.first and (not self.streamed or _WORD.search(body)):
            self.first = self.last
        self.tail = body if len(body) > _TAIL else (self.tail + body)[-_TAIL:]

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status != 200:
            self.error = f"{status} {self.tail[:200].decode(errors='replace')}"
        elif not self.first:
            self.error = f"no word came: {self.tail[-200:].decode(errors='replace')}"
        self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True  # between two answers anybody may
        if not self.done.done():
            self.error = self.error or f"the connection was lost: {exc}"
            self._finish()

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    @property
    def tokens(self) -> int:
        found = _USAGE.findall(self.tail)
        return int(found[-1]) if found else 0


async def run(job: Job) -> Measured:
    loop = asyncio.get_running_loop()
    place = urlsplit(job.url)
    requests = [_request(job, place.netloc, key) for key in job.keys]

    async def connect() -> _Stream:
        return (await loop.create_connection(_Stream, place.hostname, place.port))[1]

    streams = [await connect() for _ in range(job.streams)]
    seconds, tokens, ttft, between, errors = 0.0, 0, [], [], []
    before = _cpu()
    for _ in range(job.waves):
        streams = [await connect() if stream.closed else stream for stream in streams]
        began = perf_counter()
        for number, stream in enumerate(streams):
            stream.ask(requests[number % len(requests)], job.stream)
        await asyncio.wait([stream.done for stream in streams], timeout=job.hold or None)
        seconds += perf_counter() - began
        for stream in streams:
            if stream.error:
                errors.append(stream.error)
            elif stream.first:
                ttft.append(stream.first - stream.began)
            if stream.done.done() and not stream.error:
                tokens += stream.tokens
                if stream.tokens > 1:
                    between.append((stream.last - stream.first) / (stream.tokens - 1))
        if errors:
            break
    for stream in streams:
        stream.transport.abort()
    return Measured(
        seconds, tokens, job.streams * job.waves, ttft, fmean(between or [0.0]), _cpu() - before, errors[:3]
    )


def _request(job: Job, host: str, key: str) -> bytes:
    content = {
        "model": job.model,
        "messages": [{"role": "user", "content": "Why does water flow downhill, and what turns a turbine?"}],
        "max_tokens": job.tokens,
        "ignore_eos": True,
        "temperature": 0.7,
    }
    if job.stream:
        content |= {"stream": True, "stream_options": {"include_usage": True}}
    body = msgspec.json.encode(content)
    head = f"POST {_PATH} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def _main() -> None:
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.buffer.readline):
        found = await run(msgspec.json.decode(line, type=Job))
        sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    import uvloop

    uvloop.run(_main())
