"""The only way out of the sandbox: an HTTP proxy that knows the hosts a card declares, and no private address.

Also who resolves the names of HTTP backends: a name may lead to a public address only, and the connection goes to the
address that was looked at, so that a name which changes its mind in between gains nothing.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from penstock.consumer.endpoint import addresses, is_private

_HEAD = 16 * 1024
_CONNECT_SECONDS = 10.0


class PublicResolver(AbstractResolver):
    """For aiohttp: refuses names that lead to this machine or a private network."""

    def __init__(self) -> None:
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        if any(is_private(one["host"]) for one in found):
            raise OSError(f"{host} leads to a private address")
        return found

    async def close(self) -> None:
        await self._resolver.close()


class Egress:
    """Listens on a Unix socket while it is entered."""

    def __init__(self, hosts: tuple[str, ...], path: Path, *, allow_private: bool) -> None:
        """`hosts`: `host` or `host:port`; 443 where no port is named."""
        self._allowed = {_pair(host, 443) for host in hosts}
        self._path, self._allow_private = path, allow_private
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._accept, str(self._path), limit=_HEAD)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            method, target, *_ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
            host, port = _pair(target, 443) if method == "CONNECT" else _target(target)
            if (host, port) not in self._allowed:
                return await _refuse(writer, f"the skill's card does not declare {host}:{port}")
            try:
                address, *_ = await addresses(host, port, allow_private=self._allow_private)
            except OSError:
                return await _refuse(writer, f"{host} leads to a private address, or nowhere")
            async with asyncio.timeout(_CONNECT_SECONDS):
                far_reader, far_writer = await asyncio.open_connection(address, port)
            try:
                if method == "CONNECT":
                    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                else:
                    # One request for each connection: a second one could name another host.
                    _, rest = head.split(b"\r\n", 1)
                    parts = urlsplit(target)
                    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
                    far_writer.write(f"{method} {path} HTTP/1.1\r\n".encode("latin-1") + _closing(rest))
                await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
            finally:
                far_writer.close()
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError):
            with suppress(OSError):
                await _refuse(writer, "not reached")
        finally:
            writer.close()


def _pair(text: str, port: int) -> tuple[str, int]:
    host, _, number = text.rpartition(":")
    return (host.lower(), int(number)) if host else (text.lower(), port)


def _target(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(url)
    return parts.hostname.lower(), parts.port or 80


def _closing(headers: bytes) -> bytes:
    lines = [line for line in headers.split(b"\r\n") if line]
    kept = [line for line in lines if not line.lower().startswith((b"connection:", b"proxy-"))]
    return b"\r\n".join([*kept, b"Connection: close", b"", b""])


async def _refuse(writer: asyncio.StreamWriter, why: str) -> None:
    writer.write(f"HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: {len(why)}\r\n\r\n{why}".encode())
    await writer.drain()


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
        if target.can_write_eof():
            target.write_eof()
