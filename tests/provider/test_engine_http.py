"""The HTTP client towards engines, against a server that says exactly what a test wants said."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from provider.engines._base import BaseEngine
from provider.engines.http import Answer, BrokeOff, Connections, Unreachable
from tests.harness import PATIENCE
from tests.provider.rig import until

OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"

Talk = Callable[["Wire"], Awaitable[None]]


class Wire:
    """One connection, from the server's side."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer

    async def request(self) -> tuple[list[str], bytes]:
        """The next one's head and body. IncompleteReadError where the other side has hung up."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
        length = next(int(line[15:]) for line in head if line.startswith("content-length:"))
        return head, await self._reader.readexactly(length)

    async def say(self, *parts: bytes) -> None:
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()
            await asyncio.sleep(0)

    async def hung_up(self) -> None:
        """Return when the other side has."""
        try:
            while await self._reader.read(2**16):
                pass
        except ConnectionError:
            pass


class Place(BaseEngine):
    """An engine as far as a client has to know it."""

    def __init__(self, url: str = "", socket: str = "", key: str = "") -> None:
        super().__init__("bench", {}, start_seconds=1)
        self.url, self.path, self.key = url, socket, key

    @property
    def base_url(self) -> str:
        return self.url

    @property
    def socket(self) -> str:
        return self.path

    @property
    def api_key(self) -> str:
        return self.key

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


class Server:
    def __init__(self) -> None:
        self.talks: list[Talk] = []
        """One for each connection; the last one goes on."""
        self.connections = 0
        self.done: list[asyncio.Task[None]] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = self.talks[min(self.connections, len(self.talks) - 1)]
        self.connections += 1
        try:
            await talk(Wire(reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def server() -> AsyncIterator[tuple[Server, Connections, Place]]:
    talker = Server()
    listening = await asyncio.start_server(talker, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    place = Place(f"http://127.0.0.1:{port}/engine", key="secret")
    connections = Connections(place, connect_seconds=PATIENCE)
    yield talker, connections, place
    connections.close()
    listening.close()


async def whole(answer: Answer) -> bytes:
    await answer.head()
    found = b""
    while part := await answer.read():
        found += part
    return found


async def test_a_request_is_one_post_with_what_the_engine_needs(server: tuple[Server, Connections, Place]) -> None:
    talker, connections, _ = server
    asked: list[tuple[list[str], bytes]] = []

    async def talk(wire: Wire) -> None:
        while True:
            asked.append(await wire.request())
            await wire.say(OK + b"content-length: 4\r\n\r\ngood")

    talker.talks = [talk]
    answer = await connections.post("/v1/chat/completions", b'{"a": 1}', {"traceparent": "00-1-2-01"})
    assert await whole(answer) == b"good"
    assert (answer.status, answer.content_type) == (200, "text/event-stream")
    assert await whole(await connections.post("/v1/embeddings", b"{}")) == b"good"
    assert talker.connections == 1, "kept"
    (head, body), (second, _) = asked
    assert (head[0], body) == ("POST /engine/v1/chat/completions HTTP/1.1", b'{"a": 1}')
    assert {"authorization: Bearer secret", "content-type: application/json", "traceparent: 00-1-2-01"} <= set(head)
    assert second[0] == "POST /engine/v1/embeddings HTTP/1.1"
    assert not any(line.startswith("traceparent") for line in second)


async def test_chunks_come_as_they_are_said(server: tuple[Server, Connections, Place]) -> None:
    talker, connections, _ = server
    go_on = asyncio.Event()

    async def talk(wire: Wire) -> None:
        await wire.request()
        await wire.say(b"HTTP/1.1 100 Continue\r\n\r\n", CHUNKED[:20], CHUNKED[20:], b"3\r\none\r\n")
        await go_on.wait()
        await wire.say(b"3\r\n", b"tw", b"o\r\n5\r\nthree\r\n", END)
        await wire.request()

    talker.talks = [talk]
    answer = await connections.post("/", b"")
    await answer.head()
    assert await answer.read() == b"one"
    go_on.set()
    assert await whole(answer) == b"twothree"
    assert await answer.read() == b"", "and stays at the end"


async def test_an_answer_may_end_with_its_connection(server: tuple[Server, Connections, Place]) -> None:
    talker, connections, _ = server

    async def talk(wire: Wire) -> None:
        await wire.request()
        await wire.say(OK + b"\r\nall that ", b"there is")

    talker.talks = [talk]
    assert await whole(await connections.post("/", b"")) == b"all that there is"
    assert await whole(await connections.post("/", b"")) == b"all that there is"
    assert talker.connections == 2


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"HTTP/1.1 200",
        CHUNKED + b"3\r\none\r\n",
        OK + b"content-length: 10\r\n\r\none",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        OK + b"x: " + b"a" * 70_000 + b"\r\n\r\n",
        CHUNKED + b"zz\r\n",
    ],
)
async def test_what_is_no_whole_answer_broke_off(server: tuple[Server, Connections, Place], said: bytes) -> None:
    talker, connections, _ = server

    async def talk(wire: Wire) -> None:
        await wire.request()
        await wire.say(said)

    talker.talks = [talk]
    answer = await connections.post("/", b"")
    with pytest.raises(BrokeOff):
        await whole(answer)
    assert not answer.stale, "it was the first on its connection"


async def test_a_connection_that_is_closed_with_the_next_request_was_stale(
    server: tuple[Server, Connections, Place],
) -> None:
    talker, connections, _ = server

    async def once(wire: Wire) -> None:
        await wire.request()
        await wire.say(OK + b"content-length: 0\r\n\r\n")
        await wire.request()

    talker.talks = [once]
    assert await whole(await connections.post("/", b"")) == b""
    answer = await connections.post("/", b"")
    with pytest.raises(BrokeOff):
        await answer.head()
    assert answer.stale


async def test_one_that_was_closed_before_is_not_used(server: tuple[Server, Connections, Place]) -> None:
    talker, connections, _ = server

    async def once(wire: Wire) -> None:
        await wire.request()
        await wire.say(OK + b"content-length: 2\r\n\r\nok")

    talker.talks = [once]
    for _ in range(2):
        assert await whole(await connections.post("/", b"")) == b"ok"
        await until(lambda: not connections._idle, what="the sight of its end")
    assert talker.connections == 2


async def test_closing_an_answer_tells_the_engine_and_the_reader(server: tuple[Server, Connections, Place]) -> None:
    talker, connections, _ = server
    over = asyncio.Event()

    async def talk(wire: Wire) -> None:
        await wire.request()
        await wire.say(CHUNKED + b"3\r\none\r\n")
        await wire.hung_up()
        over.set()

    talker.talks = [talk]
    answer = await connections.post("/", b"")
    await answer.head()
    assert await answer.read() == b"one"
    reading = asyncio.create_task(answer.read())
    await asyncio.sleep(0)  # it waits for more
    answer.close()
    with pytest.raises(BrokeOff, match="stopped"):
        await reading
    await asyncio.wait_for(over.wait(), PATIENCE)


async def test_an_engine_waits_for_a_slow_reader(server: tuple[Server, Connections, Place]) -> None:
    talker, connections, _ = server
    size, said = 2**16, 0

    async def talk(wire: Wire) -> None:
        nonlocal said
        await wire.request()
        await wire.say(CHUNKED)
        for _ in range(400):
            await wire.say(b"%x\r\n" % size + b"x" * size + b"\r\n")
            said += size
        await wire.say(END)

    talker.talks = [talk]
    answer = await connections.post("/", b"")
    await answer.head()
    before = -1
    while said != before:  # until nothing more goes
        before = said
        await asyncio.sleep(0.2)
    assert said < 200 * size, "26 MB are not kept here"
    assert len(await whole(answer)) == 400 * size


async def test_whatever_nobody_asked_for_ends_the_connection(server: tuple[Server, Connections, Place]) -> None:
    talker, connections, _ = server
    over = asyncio.Event()

    async def talk(wire: Wire) -> None:
        await wire.request()
        await wire.say(OK + b"content-length: 2\r\n\r\nok")
        await asyncio.sleep(0.05)
        await wire.say(OK + b"content-length: 5\r\n\r\nbogus")
        await wire.hung_up()
        over.set()

    talker.talks = [talk]
    assert await whole(await connections.post("/", b"")) == b"ok"
    await asyncio.wait_for(over.wait(), PATIENCE)


async def test_an_engine_that_moved_is_followed(server: tuple[Server, Connections, Place], tmp_path: Path) -> None:
    talker, connections, place = server

    async def talk(wire: Wire) -> None:
        while True:
            await wire.request()
            await wire.say(OK + b"content-length: 3\r\n\r\none")

    async def elsewhere(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = Wire(reader, writer)
        await wire.request()
        await wire.say(OK + b"connection: close\r\ncontent-length: 3\r\n\r\ntwo")
        writer.close()

    talker.talks = [talk]
    assert await whole(await connections.post("/", b"")) == b"one"
    path = tmp_path / "engine.sock"
    async with await asyncio.start_unix_server(elsewhere, path):
        place.path = str(path)
        assert await whole(await connections.post("/", b"")) == b"two"
    with pytest.raises(Unreachable):
        await connections.post("/", b"")
    place.path, place.url = "", "http://127.0.0.1:1"
    with pytest.raises(Unreachable, match="127.0.0.1"):
        await connections.post("/", b"")
