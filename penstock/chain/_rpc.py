"""JSON-RPC over one keep-alive HTTP session, with batches, to one node or to the first of several that answers."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec

from penstock.errors import ConfigError, NodeUnavailable

BATCH = 100
"""Requests in one HTTP body at most: what public nodes take."""
_BUSY = (429, 502, 503, 504)
_PAUSES = (0.0, 0.25, 1.0)
"""Seconds before each further try. The first is at once: a kept-alive connection that the node has closed."""

_IMPATIENT = 6.0
"""Seconds that a request may take where another node could be asked."""
_STALLED = 0.25
"""Seconds by which a request's end is late where it was us who stood still, and no node had its time."""

Request = tuple[str, Sequence[Any]]


class RpcError(Exception):
    """The node answered a request with an error of its own."""

    def __init__(self, method: str, code: int, message: str, data: str = "0x") -> None:
        self.method, self.code, self.message, self.data = method, code, message, data
        super().__init__(f"{method}: {message}")

    @property
    def is_revert(self) -> bool:
        return self.code == 3 or "revert" in self.message.lower()


class JsonRpc:
    """Every request may be repeated without harm, a signed transaction included, so that all are retried."""

    def __init__(self, urls: str, *, timeout: float) -> None:
        """`urls`: one, or several with commas between. Where one fails, the next is asked, and asked from then on.
        ConfigError where one is no URL."""
        self._urls = [url.strip() for url in urls.split(",")]
        for url in self._urls:
            if not re.match(r"https?://[^/]", url):
                raise ConfigError(f"{url!r} is no URL of a node; write such as --rpc-url http://127.0.0.1:8545")
        self._at = 0
        self._chain_id: int | None = None
        self._checked: set[int] = set()
        """Nodes that are known to be on the chain."""
        if len(self._urls) > 1:
            timeout = min(timeout, _IMPATIENT)
        self._timeout = timeout
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None), headers={"Content-Type": "application/json"}
        )
        self._sent = 0

    @property
    def shown(self) -> str:
        """The node as messages name it: paths and credentials are often secrets."""
        parts = urlsplit(self._urls[self._at])
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"

    def expect(self, chain_id: int) -> None:
        """The present node is on this chain. No other one is used that is not."""
        self._chain_id = chain_id
        self._checked.add(self._at)

    async def close(self) -> None:
        await self._session.close()

    async def call(self, method: str, *params: Any) -> Any:
        """RpcError where the node says no; NodeUnavailable where it does not answer, or not as a node."""
        answer = await self._post(self._request(method, params))
        return _unwrap(method, answer)

    async def batch(self, requests: Sequence[Request]) -> list[Any]:
        """Answers in order, each a result or an RpcError; any number of requests."""
        parts = [requests[at : at + BATCH] for at in range(0, len(requests), BATCH)]
        found: list[Any] = []
        for part in parts:
            found += await self._one_batch(part)
        return found

    async def _one_batch(self, requests: Sequence[Request]) -> list[Any]:
        bodies = [self._request(method, params) for method, params in requests]
        answer = await self._post(bodies)
        if not isinstance(answer, list) or len(answer) != len(bodies):
            if len(requests) == 1:
                raise NodeUnavailable(f"{self.shown} does not answer JSON-RPC batches: use another node")
            # A node may take smaller batches than ours.
            half = len(requests) // 2
            return await self._one_batch(requests[:half]) + await self._one_batch(requests[half:])
        by_id = {item.get("id"): item for item in answer if isinstance(item, dict)}
        found: list[Any] = []
        for body in bodies:
            try:
                found.append(_unwrap(body["method"], by_id.get(body["id"])))
            except RpcError as error:
                found.append(error)
        return found

    def _request(self, method: str, params: Sequence[Any]) -> dict[str, Any]:
        self._sent += 1
        return {"jsonrpc": "2.0", "id": self._sent, "method": method, "params": params}

    async def _post(self, payload: object) -> Any:
        body = msgspec.json.encode(payload)
        failures: list[NodeUnavailable] = []
        for _ in self._urls:
            at = self._at
            try:
                if self._chain_id is not None and at not in self._checked:
                    await self._check(at)
                return await self._post_to(at, body)
            except NodeUnavailable as error:
                failures.append(error)
                if self._at == at:  # nobody else has moved on
                    self._at = (at + 1) % len(self._urls)
        if len(failures) == 1:
            raise failures[0]
        raise NodeUnavailable("; ".join(map(str, failures)))

    async def _check(self, at: int) -> None:
        answer = await self._post_to(at, msgspec.json.encode(self._request("eth_chainId", ())))
        found = int(_unwrap("eth_chainId", answer), 16)
        if found != self._chain_id:
            raise NodeUnavailable(f"{self.shown} is on chain {found}, not {self._chain_id}: it is not used")
        self._checked.add(at)

    async def _post_to(self, at: int, body: bytes) -> Any:
        trouble = ""
        # With another node at hand one repetition is enough.
        for pause in (None, *(_PAUSES if len(self._urls) == 1 else _PAUSES[:1])):
            if pause is not None:
                await asyncio.sleep(pause)
            began, timeout = time.monotonic(), self._timeout
            try:
                async with asyncio.timeout(timeout), self._session.post(self._urls[at], data=body) as response:
                    raw = await response.read()
            except TimeoutError:
                trouble = "no answer in time"
                if time.monotonic() - began > timeout + _STALLED:
                    continue
                raise NodeUnavailable(
                    f"the node {self.shown} does not answer: check --rpc-url and the network"
                ) from None
            except aiohttp.ClientConnectorError:  # nothing listens there, and nothing will in a second
                raise NodeUnavailable(f"no node answers at {self.shown}: start it, or check --rpc-url") from None
            except aiohttp.ClientError as error:
                trouble = str(error) or type(error).__name__
                continue
            if response.status in _BUSY:
                trouble = f"HTTP {response.status}"
                continue
            try:
                return msgspec.json.decode(raw)
            except msgspec.DecodeError:
                raise NodeUnavailable(
                    f"{self.shown} is no JSON-RPC node: it answered HTTP {response.status} and no JSON"
                ) from None
        raise NodeUnavailable(
            f"the node {self.shown} does not serve requests ({trouble}): try later, or another --rpc-url"
        )


def _unwrap(method: str, answer: Any) -> Any:
    if not isinstance(answer, dict) or not ({"result", "error"} & answer.keys()):
        raise NodeUnavailable(f"{method}: the answer is not JSON-RPC's; is --rpc-url a node?")
    error = answer.get("error")
    if error is None:
        return answer["result"]
    if not isinstance(error, dict):
        raise RpcError(method, 0, str(error))
    data = error.get("data")
    if not isinstance(data, str) or not re.fullmatch(r"0x([0-9a-fA-F]{2})*", data):
        data = "0x"
    code = error.get("code")
    raise RpcError(method, code if isinstance(code, int) else 0, str(error.get("message", error)), data)
