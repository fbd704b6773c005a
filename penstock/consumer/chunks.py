"""What the events of an answer hold, as far as a consumer looks into them. The rest is the client's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

MAX_TOKEN = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer: some text, or why it ended, or what it took."""

    text: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None


class Choice(msgspec.Struct):
    delta: dict[str, Any] | None = None
    text: str | None = None
    finish_reason: str | None = None
    index: int = 0
    token_ids: Any = None


class UsageBody(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class Timings(msgspec.Struct):
    """llama.cpp's count so far."""

    prompt_n: int = 0
    cache_n: int = 0
    predicted_n: int = 0


class Chunk(msgspec.Struct):
    choices: Sequence[Choice] = ()
    usage: UsageBody | None = None
    timings: Timings | None = None
    error: Any = None


def told_ids(found: object) -> list[int] | None:
    """The token ids that a piece carries; None where they are no such."""
    if not isinstance(found, list) or not all(type(one) is int and 0 <= one <= MAX_TOKEN for one in found):
        return None
    return found
