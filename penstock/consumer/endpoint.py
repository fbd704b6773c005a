"""Which endpoints a consumer connects to: what the registry says was written by a stranger."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from urllib.parse import urlsplit

from penstock.errors import OfferMismatch

_LAST_32_BITS = ipaddress.IPv6Network("::/96"), ipaddress.IPv6Network("64:ff9b::/96")
"""IPv6 networks whose addresses end in an IPv4 address: compatible (`::` and `::1` among them), and NAT64's."""


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


async def addresses(host: str, port: int, *, allow_private: bool) -> list[str]:
    """What a host's name stands for now, best first. Connect to these, and look no name up again: the next answer may
    be another. OSError where it stands for nothing or, if not `allow_private`, for any private address."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    known = list(dict.fromkeys(str(address[0]) for *_, address in found))
    if not allow_private and any(map(is_private, known)):
        raise OSError(f"{host} leads to a private address")
    return known


def is_private(host: str) -> bool:
    """Whether a URL's host, by its looks, or an address is not of the public internet."""
    if host.rstrip(".").lower() == "localhost" or host.rstrip(".").lower().endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        # Names are resolved later; "127.1" and "2130706433" are addresses to a resolver, too.
        return host.replace(".", "").isdigit() or host.lower().startswith("0x")
    if isinstance(address, ipaddress.IPv6Address):
        if address.is_site_local:
            return True
        if (inner := _inner(address)) is not None:
            address = inner
    return address.is_multicast or not address.is_global


def _inner(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address to which an IPv6 address leads: mapped, compatible, by 6to4, or by NAT64."""
    if any(address in prefix for prefix in _LAST_32_BITS):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour
