"""HTTP connections to endpoints that strangers wrote."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import httpcore
import httpx

from penstock.consumer.endpoint import addresses, check_endpoint

_TRIED = 4
"""Addresses of a name that are tried at most."""


class Connections(httpx.AsyncClient):
    """Connects to the very addresses that it has looked at: a name is looked up once for each connection, which goes
    nowhere if the name leads to a private address and they are not allowed. What a name says a moment later makes no
    difference.

    No redirect is followed, and no proxy of the environment is used, since it would look the names up by itself.
    """

    def __init__(self, *, allow_private: bool, connect: float = 5, at_once: int = 100) -> None:
        """`connect`: seconds for a connection; `at_once`: how many there are at most."""
        self.allow_private = allow_private
        super().__init__(
            transport=_Transport(_Checked(allow_private), httpx.Limits(max_connections=at_once)),
            timeout=httpx.Timeout(None, connect=connect),
            trust_env=False,
            follow_redirects=False,
            headers={"user-agent": "penstock"},
        )

    def check(self, endpoint: str) -> None:
        """OfferMismatch where it is no endpoint to connect to, by its looks. What its name leads to is looked at when
        it is connected to."""
        check_endpoint(endpoint, allow_private=self.allow_private)


class _Transport(httpx.AsyncHTTPTransport):
    def __init__(self, backend: httpcore.AsyncNetworkBackend, limits: httpx.Limits) -> None:
        context = httpx.create_ssl_context()
        super().__init__(verify=context, limits=limits)
        # httpx has no parameter for this. The pool goes by names, and TLS too: both would be wrong for URLs in which
        # addresses have taken the names' place.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=backend,
        )


class _Checked(httpcore.AsyncNetworkBackend):
    def __init__(self, allow_private: bool) -> None:
        self._allow_private, self._plain = allow_private, httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                found = (await addresses(host, port, allow_private=self._allow_private))[:_TRIED]
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(f"{host} does not resolve") from error
        except UnicodeError as error:  # a label of more than 63 characters
            raise httpcore.ConnectError(f"{host} is no name of a host") from error
        except OSError as error:
            raise httpcore.ConnectError(error.strerror or str(error)) from error
        share = None if timeout is None else timeout / len(found)
        for left, address in zip(reversed(range(len(found))), found, strict=True):
            try:
                return await self._plain.connect_tcp(address, port, share, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if not left:
                    raise
        raise AssertionError("a name that stands for nothing is an OSError")

    async def sleep(self, seconds: float) -> None:
        await self._plain.sleep(seconds)
