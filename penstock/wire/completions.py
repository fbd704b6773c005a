"""What OpenAI's protocol calls completions: where they are asked for, and an answer put together from its pieces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
MAX_VECTORS = 64 * 2**20
"""Bytes of an answer with embeddings at most."""
NO_EMBEDDINGS = "no_embeddings"
"""The code by which a gateway says that the model's engine gives none."""


class Assembly:
    """The whole answer, for a client that wants no pieces."""

    def __init__(self, path: str, model: str) -> None:
        self._chat = path == CHAT
        self._model = model
        self._head: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._usage: Any = None

    def add(self, piece: Mapping[str, Any]) -> None:
        for name in ("id", "created", "system_fingerprint", "prompt_token_ids"):
            if name in piece:
                self._head.setdefault(name, piece[name])
        if isinstance(piece.get("usage"), dict):
            self._usage = piece["usage"]
        for choice in piece.get("choices") or ():
            self._add_choice(choice)

    def _add_choice(self, piece: Mapping[str, Any]) -> None:
        index = piece.get("index") or 0
        choice = self._choices.setdefault(index, {"index": index, "finish_reason": None, "logprobs": None})
        for name, value in piece.items():
            if name == "index" or value is None:
                continue
            if name == "delta":
                _merge(choice.setdefault("message", {}), value)
            elif name == "text":
                choice["text"] = choice.get("text", "") + value
            elif name == "token_ids":
                choice[name] = choice.get(name, []) + value
            elif name == "logprobs":
                choice["logprobs"] = choice["logprobs"] or {}
                for part, items in value.items():
                    known = choice["logprobs"].get(part)
                    choice["logprobs"][part] = known + items if isinstance(known, list) and items else known or items
            else:
                choice[name] = value

    def answer(self, usage: Mapping[str, Any]) -> dict[str, Any]:
        """As OpenAI shapes it; `usage` where the engine told none."""
        choices = [self._choices[index] for index in sorted(self._choices)]
        for choice in choices:
            if self._chat:
                message = choice.setdefault("message", {})
                message.setdefault("role", "assistant")
                message.setdefault("content", None if "tool_calls" in message else "")
            else:
                choice.setdefault("text", "")
        return {
            **self._head,
            "object": "chat.completion" if self._chat else "text_completion",
            "model": self._model,
            "choices": choices,
            "usage": self._usage or usage,
        }


_WHOLE = frozenset({"role", "id", "type", "index"})
"""Fields of a delta that come whole; other texts come in pieces."""


def _merge(message: dict[str, Any], delta: Mapping[str, Any]) -> None:
    for name, value in delta.items():
        known = message.get(name)
        if value is None:
            continue
        if name == "tool_calls":
            calls = message.setdefault("tool_calls", [])
            for call in value:
                place = call.get("index", len(calls))
                while len(calls) <= place:
                    calls.append({})
                _merge(calls[place], {k: v for k, v in call.items() if k != "index"})
        elif isinstance(value, dict):
            _merge(message.setdefault(name, {}), value)
        elif known is not None and type(value) is type(known) and isinstance(value, str | list) and name not in _WHOLE:
            message[name] = known + value
        else:
            message[name] = value
