"""What form an answer takes for its client: the engine always streams chat's pieces, or a text's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from penstock.wire.completions import Assembly
from penstock.wire.responses import Responding, encode


class Whole(Protocol):
    """An answer that is put together from its pieces."""

    def add(self, piece: Mapping[str, Any]) -> object: ...

    def answer(self, usage: Mapping[str, Any]) -> dict[str, Any]: ...


class Form(Protocol):
    def part(self, events: bytes) -> bytes:
        """Whole events of the engine, counted and paid for, as the client gets them."""
        ...

    def end(self, usage: Mapping[str, Any]) -> bytes:
        """What ends a stream that is whole."""
        ...

    def broken(self, body: Mapping[str, Any]) -> bytes:
        """What ends one that is not: an error's body."""
        ...

    def whole(self, path: str, model: str) -> Whole:
        """For a client that wants no pieces."""
        ...


class AsItIs:
    """Chat and texts."""

    def part(self, events: bytes) -> bytes:
        return events

    def end(self, usage: Mapping[str, Any]) -> bytes:
        return b"data: [DONE]\n\n"

    def broken(self, body: Mapping[str, Any]) -> bytes:
        return b"data: " + msgspec.json.encode(body) + b"\n\n"

    def whole(self, path: str, model: str) -> Whole:
        return Assembly(path, model)


AS_IT_IS = AsItIs()


class AsResponse:
    """Chat, told as a response."""

    def __init__(self, responding: Responding) -> None:
        self._responding = responding

    def part(self, events: bytes) -> bytes:
        told = []
        for event in filter(None, events.split(b"\n\n")):
            told += self._responding.add(piece_of(event) or {})
        return encode(told)

    def end(self, usage: Mapping[str, Any]) -> bytes:
        return encode(self._responding.end(usage))

    def broken(self, body: Mapping[str, Any]) -> bytes:
        return encode(self._responding.broken(body["error"]))

    def whole(self, path: str, model: str) -> Whole:
        return self._responding


def piece_of(event: bytes) -> dict[str, Any] | None:
    """The JSON object of one event; None where it has none."""
    if event.startswith(b"data: ") and b"\n" not in event:
        data = event[6:]
    else:
        data = b"\n".join(line[5:] for line in event.split(b"\n") if line.startswith(b"data:"))
    try:
        piece = _decode(data)
    except msgspec.DecodeError:
        return None
    return piece if isinstance(piece, dict) else None


_decode = msgspec.json.Decoder().decode
