"""Server-sent events, as much of them as LLM servers use: the `data` of each event."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable

from penstock.errors import GatewayGarbage

MAX_EVENT = 1024 * 1024
"""Bytes of one event at most."""


async def read_events(
    pieces: AsyncIterator[bytes], on_comment: Callable[[bytes], None] | None = None
) -> AsyncGenerator[bytes]:
    """The data of each event; other fields are passed over, and comments given to `on_comment`, without their colon.
    Lines end in LF, CRLF or CR.

    An event that the connection's end cuts off is dropped, as the standard says. GatewayGarbage where an event
    is longer than any should be.
    """
    rest = b""
    data: list[bytes] = []
    size = 0
    async for piece in pieces:
        buffer = rest + piece
        if b"\r" in buffer:
            # A CR at the very end may be half of a CRLF: keep it for the next piece.
            held = b"\r" if buffer.endswith(b"\r") else b""
            buffer = buffer[: len(buffer) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n") + held
        lines = buffer.split(b"\n")
        rest = lines.pop()
        for line in lines:
            if not line:
                if data:
                    yield b"\n".join(data)
                    data, size = [], 0
            elif line.startswith(b"data:"):
                value = line[6:] if line.startswith(b"data: ") else line[5:]
                data.append(value)
                size += len(value)
            elif line.startswith(b":") and on_comment is not None:
                on_comment(line[1:])
        if size + len(rest) > MAX_EVENT:
            raise GatewayGarbage(f"the provider sent an event of more than {MAX_EVENT} bytes; choose another provider")
    if rest == b"\r" and data:
        yield b"\n".join(data)
