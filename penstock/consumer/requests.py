"""Requests as a session sends them, in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from penstock.consumer.market import Listing
from penstock.wire.completions import EMBEDDINGS

Message = Mapping[str, Any]


def chat_body(
    prompt: str | Sequence[Message], *, system: str | None, max_tokens: int | None, temperature: float | None
) -> dict[str, Any]:
    """A chat request in OpenAI's shape, as far as these say."""
    messages: list[Message] = [{"role": "system", "content": system}] if system is not None else []
    messages += [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    given = {"messages": messages, "max_tokens": max_tokens, "temperature": temperature}
    return {name: value for name, value in given.items() if value is not None}


def embedding_body(texts: str | Sequence[str], dimensions: int | None) -> dict[str, Any]:
    """The same for embeddings."""
    asked: dict[str, Any] = {"input": texts}
    return asked if dimensions is None else asked | {"dimensions": dimensions}


def request_body(listing: Listing, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """A request as a session sends it: a completion is streamed, so that it can be paid and watched as it comes, and
    has all that the receipt will be checked against."""
    if path == EMBEDDINGS:
        return {**body, "model": listing.offer.terms.model}
    return {
        **body,
        "model": listing.offer.terms.model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }
