"""Names that lead somewhere else from one look to the next: the connection goes to what was looked at, or nowhere."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from penstock.consumer import endpoint as endpoints
from penstock.consumer.connections import Connections
from penstock.consumer.gateway import Gateway
from penstock.errors import GatewayRefused, GatewayUnreachable, OfferMismatch
from scripts._ports import free_port
from tests.gateways import PATIENT
from tests.harness import PATIENCE

PUBLIC, INSIDE = "127.0.0.2", "127.0.0.1"
"""A real listener on each; tests take the first for an address of the internet."""
HOST = "gateway.example"


class Names:
    """The resolver of the whole process. What it says of HOST changes with each look."""

    def __init__(self, *answers: list[str]) -> None:
        self._answers, self.looks, self._real = list(answers), 0, socket.getaddrinfo

    def __call__(self, host: Any, port: Any, *args: Any, **options: Any) -> list[Any]:
        if host not in (HOST, HOST.encode()):
            return self._real(host, port, *args, **options)
        self.looks += 1
        found = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, int(port))) for one in found]


@asynccontextmanager
async def listeners(answer: str = "404 Not Found") -> AsyncIterator[tuple[int, dict[str, list[str]]]]:
    """One port on both addresses, and the hosts that were asked for there."""
    asked: dict[str, list[str]] = {PUBLIC: [], INSIDE: []}

    def serves(address: str) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked[address].append("connected")
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            asked[address].append(next(line for line in head.splitlines() if line.lower().startswith("host:")))
            writer.write(f"HTTP/1.1 {answer}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
            await writer.drain()
            writer.close()

        return serve

    port = free_port()  # one that the kernel gives on one address may be taken on the other
    first = await asyncio.start_server(serves(PUBLIC), PUBLIC, port)
    second = await asyncio.start_server(serves(INSIDE), INSIDE, port)
    async with first, second:
        yield port, asked


@pytest.fixture(autouse=True)
def internet(monkeypatch: pytest.MonkeyPatch) -> None:
    real = endpoints.is_private
    monkeypatch.setattr(endpoints, "is_private", lambda host: host != PUBLIC and real(host))


def gateway(http: httpx.AsyncClient, port: int) -> Gateway:
    return Gateway(f"http://{HOST}:{port}", http, PATIENT)


async def test_the_connection_goes_to_the_address_that_was_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names([PUBLIC], [INSIDE])
    monkeypatch.setattr(socket, "getaddrinfo", names)
    async with listeners() as (port, asked), Connections(allow_private=False, connect=PATIENCE) as http:
        one = gateway(http, port)
        with pytest.raises(GatewayRefused):
            await one.well_known()
        assert (names.looks, asked) == (1, {PUBLIC: ["connected", f"Host: {HOST}:{port}"], INSIDE: []})
        # Now the name leads inside.
        with pytest.raises(GatewayUnreachable, match=f"{HOST} leads to a private address"):
            await one.well_known()
        assert (names.looks, asked[INSIDE]) == (2, [])


async def test_a_client_that_looks_again_would_have_been_led_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """That the listeners and the resolver of these tests can tell the difference."""
    names = Names([PUBLIC], [INSIDE])
    monkeypatch.setattr(socket, "getaddrinfo", names)
    async with listeners() as (port, asked), httpx.AsyncClient(trust_env=False) as http:
        assert await endpoints.addresses(HOST, port, allow_private=False) == [PUBLIC]
        with pytest.raises(GatewayRefused):
            await gateway(http, port).well_known()
        assert asked[INSIDE] == ["connected", f"Host: {HOST}:{port}"]


@pytest.mark.parametrize("found", [[INSIDE], [PUBLIC, INSIDE], [PUBLIC, "10.0.0.1"]])
async def test_one_private_address_among_several_is_enough(monkeypatch: pytest.MonkeyPatch, found: list[str]) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", Names(found))
    async with listeners() as (port, asked), Connections(allow_private=False, connect=PATIENCE) as http:
        with pytest.raises(GatewayUnreachable, match="private address"):
            await gateway(http, port).well_known()
        assert asked == {PUBLIC: [], INSIDE: []}


async def test_the_next_address_is_tried_where_the_first_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", Names(["127.0.0.3", PUBLIC]))
    monkeypatch.setattr(endpoints, "is_private", lambda host: host == INSIDE)
    async with listeners() as (port, asked), Connections(allow_private=False, connect=PATIENCE) as http:
        with pytest.raises(GatewayRefused):
            await gateway(http, port).well_known()
        assert len(asked[PUBLIC]) == 2


async def test_an_address_is_looked_at_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listeners() as (port, asked):
        async with Connections(allow_private=False, connect=PATIENCE) as http:
            with pytest.raises(OfferMismatch):
                http.check(f"http://{INSIDE}:{port}")
            with pytest.raises(httpx.ConnectError, match="private address"):
                await http.get(f"http://{INSIDE}:{port}")
        assert asked[INSIDE] == []
        async with Connections(allow_private=True, connect=PATIENCE) as http:
            http.check(f"http://{INSIDE}:{port}")
            assert (await http.get(f"http://{INSIDE}:{port}")).status_code == 404


async def test_no_redirect_is_followed_and_no_proxy_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", Names([PUBLIC]))
    async with (
        listeners() as (elsewhere, missed),
        listeners(f"302 Found\r\nLocation: http://{PUBLIC}:{elsewhere}") as (
            port,
            asked,
        ),
    ):
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://{INSIDE}:{elsewhere}")
        async with Connections(allow_private=False, connect=PATIENCE) as http:
            with pytest.raises(GatewayRefused) as caught:
                await gateway(http, port).well_known()
        assert (caught.value.status, len(asked[PUBLIC])) == (302, 2)
        assert missed == {PUBLIC: [], INSIDE: []}


@pytest.mark.parametrize(("host", "why"), [(HOST, "Name or service not known"), ("a" * 64 + ".example", "host")])
async def test_a_name_that_leads_nowhere(monkeypatch: pytest.MonkeyPatch, host: str, why: str) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", Names([]))
    async with Connections(allow_private=False, connect=PATIENCE) as http:
        with pytest.raises(GatewayUnreachable, match=why):
            await Gateway(f"http://{host}:1", http, PATIENT).well_known()


async def test_a_resolver_that_does_not_answer_is_waited_for_as_long_as_a_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def never(*_: Any, **__: Any) -> list[str]:
        await asyncio.sleep(60)
        return []

    monkeypatch.setattr("penstock.consumer.connections.addresses", never)
    async with Connections(allow_private=False, connect=0.05) as http:
        with pytest.raises(GatewayUnreachable, match="did not connect"):
            await gateway(http, 1).well_known()
