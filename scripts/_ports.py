"""Ports for the processes that demonstrations and tests start."""

from __future__ import annotations

import random
import socket


def free_port() -> int:
    """A port of the loopback interface for a process that listens on it later, again and again. It is kept for the
    caller until the caller ends, and it is below those that the kernel gives to connections."""
    while True:
        holder = socket.socket()
        port = random.SystemRandom().randrange(10_000, 32_000)
        try:
            holder.bind(("127.0.0.1", port))
        except OSError:
            holder.close()
            continue
        # Bound, and never listening: nobody else who asks here gets it, and whoever reuses addresses, as every server
        # does, may listen on it.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.detach()  # open to the end
        return port
