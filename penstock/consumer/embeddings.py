"""Answers with embeddings: they come whole, and have no completion tokens."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec


class _Vector(msgspec.Struct):
    index: int
    embedding: list[float] | str
    """A text where the request asked for base64."""


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int = 0


class _Vectors(msgspec.Struct):
    data: list[_Vector]
    usage: _Usage


class _Asked(msgspec.Struct):
    input: str | list[Any]

    @property
    def count(self) -> int:
        """A text or a list of token ids asks for one vector, a list of these for one each."""
        several = isinstance(self.input, list) and self.input and not isinstance(self.input[0], int)
        return len(self.input) if several else 1


class Chunks(Protocol):
    async def chunk(self) -> dict[str, Any] | None: ...


def check_vectors(asked: bytes, raw: bytes) -> tuple[int, int]:
    """Prompt and completion tokens as the answer counts them. ValueError where it is not what was asked for: a vector
    for each input, all of one length."""
    found = msgspec.json.decode(raw, type=_Vectors)
    wanted = msgspec.json.decode(asked, type=_Asked).count
    if sorted(one.index for one in found.data) != list(range(wanted)):
        raise ValueError(f"{len(found.data)} embeddings for {wanted} inputs, or numbered otherwise")
    if len({len(one.embedding) for one in found.data}) != 1 or not found.data[0].embedding:
        raise ValueError("embeddings that are empty, or of several lengths")
    return found.usage.prompt_tokens, found.usage.completion_tokens


async def vectors(answer: Chunks) -> list[list[float]]:
    """In the order of the inputs."""
    body = await answer.chunk()
    assert body is not None
    await answer.chunk()
    return [one["embedding"] for one in sorted(body["data"], key=lambda one: int(one["index"]))]
