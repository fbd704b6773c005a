"""Which endpoints a consumer connects to: what the registry says was written by a stranger."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from urllib.parse import urlsplit

from penstock.errors import GatewayUnreachable, OfferMismatch


def check_endpoint(endpoint: str, *, allow_private: bool) -> None:
    """OfferMismatch unless it is a plain http(s) base URL and, if not `allow_private`, of a public host."""
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, None
    if (
        parts is None
        or not host
        or port == 0
        or parts.scheme not in ("http", "https")
        or "@" in parts.netloc
        or parts.query
        or parts.fragment
        or not endpoint.isprintable()
        or any(character.isspace() or character == "\\" for character in endpoint)
    ):
        raise OfferMismatch(f"the provider's endpoint {endpoint!r} is not an http(s) URL; choose another provider")
    if not allow_private and is_private(host):
        raise OfferMismatch(
            f"the provider's endpoint {endpoint} is on this machine or a private network; choose another provider"
        )


async def check_resolved(endpoint: str) -> None:
    """As `check_endpoint` without private hosts, for every address that the host's name stands for now."""
    parts = urlsplit(endpoint)
    assert parts.hostname is not None
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            parts.hostname, parts.port or parts.scheme, type=socket.SOCK_STREAM
        )
    except OSError as error:
        raise GatewayUnreachable(
            f"the provider's host {parts.hostname} does not resolve ({error.strerror}); choose another provider"
        ) from error
    for *_, address in found:
        if is_private(str(address[0])):
            raise OfferMismatch(
                f"the provider's endpoint {endpoint} leads to a private address; choose another provider"
            )


def is_private(host: str) -> bool:
    if host.rstrip(".").lower() == "localhost" or host.rstrip(".").lower().endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        # Names are resolved later; "127.1" and "2130706433" are addresses to a resolver, too.
        return host.replace(".", "").isdigit() or host.lower().startswith("0x")
    mapped = getattr(address, "ipv4_mapped", None)
    return not (mapped or address).is_global
