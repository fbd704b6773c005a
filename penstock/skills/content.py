"""Bytes kept under their own keccak256: in a folder by default, in IPFS where one is named. Readers verify.

An IPFS address (CID) of such a block is made of the hash alone: version 1, raw, keccak-256. So the hash on the chain
is all that anybody needs to find it.
"""

from __future__ import annotations

import asyncio
import base64
import os
import tempfile
from pathlib import Path
from typing import Protocol

import httpx
from eth_utils.crypto import keccak

from penstock.errors import ConfigError, NotFound
from penstock.types import hex32, unhex

MAX_CONTENT = 1024 * 1024 + 64 * 1024
"""Bytes of one piece."""
_SECONDS = 30.0


class Content(Protocol):
    async def put(self, raw: bytes) -> str:
        """Keep it for good. Returns its hash."""
        ...

    async def get(self, hash: str) -> bytes:
        """NotFound where it is not there; ConfigError where something else is."""
        ...


def content_hash(raw: bytes) -> str:
    return hex32(keccak(raw))


def verified(raw: bytes, hash: str, where: str) -> bytes:
    """ConfigError where it is not what the hash stands for."""
    if (found := content_hash(raw)) != hash:
        raise ConfigError(f"{where} gave something whose hash is {found}, not {hash}: it was changed, or is not this")
    return raw


def cid(hash: str) -> str:
    """The IPFS address of what has this hash."""
    raw = bytes([0x01, 0x55, 0x1B, 0x20]) + unhex(hash)
    return "b" + base64.b32encode(raw).decode().lower().rstrip("=")


class LocalContent:
    """Files named by their hash."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def put(self, raw: bytes) -> str:
        if len(raw) > MAX_CONTENT:
            raise ConfigError(f"{len(raw)} bytes are more than the {MAX_CONTENT} of one piece of content")
        hash = content_hash(raw)
        await asyncio.to_thread(self._write, self.path(hash), raw)
        return hash

    async def get(self, hash: str) -> bytes:
        try:
            raw = self.path(hash).read_bytes()
        except FileNotFoundError:
            raise NotFound(f"{hash} is not in {self._folder}") from None
        return verified(raw, hash, str(self.path(hash)))

    def _write(self, path: Path, raw: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)  # whole or not at all
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def path(self, hash: str) -> Path:
        """Where it is, or would be."""
        digits = unhex(hash).hex()
        return self._folder / digits[:2] / digits


class IpfsContent:
    """An IPFS node's HTTP API (Kubo's /api/v0)."""

    def __init__(self, url: str) -> None:
        """`url`: such as http://127.0.0.1:5001."""
        self._url = url.rstrip("/") + "/api/v0"

    async def put(self, raw: bytes) -> str:
        hash = content_hash(raw)
        query = {"cid-codec": "raw", "mhtype": "keccak-256", "mhlen": "-1", "pin": "true"}
        answer = await self._post("block/put", query, files={"data": ("data", raw, "application/octet-stream")})
        found = str(answer.json().get("Key", ""))
        if found != cid(hash):
            raise ConfigError(
                f"the IPFS node put it under {found or 'nothing'}, not {cid(hash)}: is it Kubo 0.14 or later?"
            )
        return hash

    async def get(self, hash: str) -> bytes:
        answer = await self._post("block/get", {"arg": cid(hash)})
        return verified(answer.content, hash, f"the IPFS node {self._url}")

    async def _post(self, path: str, query: dict[str, str], **more: object) -> httpx.Response:
        try:
            async with httpx.AsyncClient(timeout=_SECONDS) as http:
                async with http.stream("POST", f"{self._url}/{path}", params=query, **more) as answer:  # type: ignore[arg-type]
                    raw = bytearray()
                    async for part in answer.aiter_bytes():
                        raw += part
                        if len(raw) > MAX_CONTENT:
                            raise ConfigError(f"the IPFS node {self._url} sends more than {MAX_CONTENT} bytes")
                found = httpx.Response(answer.status_code, content=bytes(raw))
        except httpx.HTTPError as error:
            raise NotFound(f"the IPFS node {self._url} does not answer ({error!r}): start it, or unset it") from None
        if found.status_code != 200:
            raise NotFound(f"the IPFS node {self._url} refused {path} with {found.status_code}: {found.text[:200]}")
        return found


class Both:
    """A folder first, then IPFS: what is read is kept, what is written goes to both."""

    def __init__(self, local: LocalContent, ipfs: IpfsContent) -> None:
        self._local, self._ipfs = local, ipfs

    async def put(self, raw: bytes) -> str:
        await self._local.put(raw)
        return await self._ipfs.put(raw)

    async def get(self, hash: str) -> bytes:
        try:
            return await self._local.get(hash)
        except NotFound:
            raw = await self._ipfs.get(hash)
            await self._local.put(raw)
            return raw


def open_content(home: Path, ipfs_url: str) -> Content:
    """The store of one user. `ipfs_url` empty: this machine's folder alone."""
    local = LocalContent(home / "content")
    return Both(local, IpfsContent(ipfs_url)) if ipfs_url else local
