"""Ports for the processes that demonstrations and tests start."""

from __future__ import annotations

import random
import socket
from contextlib import suppress

_held: list[socket.socket] = []
"""Bound, and never listening: nobody else who asks gets the port, and a process that reuses addresses, as every
server does, may listen on it, again and again."""


def free_port() -> int:
    """A port of the loopback interface for a process that listens on it later. It is kept for the caller until the
    caller ends, and it is below those that the kernel gives to connections."""
    while True:
        holder = socket.socket()
        with suppress(OSError):
            holder.bind(("127.0.0.1", random.SystemRandom().randrange(10_000, 32_000)))
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _held.append(holder)
            return int(holder.getsockname()[1])
        holder.close()
