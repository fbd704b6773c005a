"""What OpenAI's protocol calls completions: where they are asked for, and an answer put together from its pieces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
MAX_VECTORS = 64 * 2**20
"""Bytes of an answer with embeddings at most."""
NO_EMBEDDINGS = "no_embeddings"
"""The code by which a gateway says that the model's engine gives none."""
UNSEEN_TOKENS = 16
"""Tokens of an answer that may leave neither id nor text, such as its end or the marks around a call of a tool."""
_CALLS = ("tool_calls", "function_call")


def word_bytes(choice: Mapping[str, Any]) -> int:
    """Bytes of a choice's own words in one piece of an answer; thoughts, which engines tell under either of two names,
    and calls of tools included."""
    delta = choice.get("delta")
    if not isinstance(delta, Mapping):
        delta = {}
    thoughts = delta.get("reasoning_content") or delta.get("reasoning")
    found = [choice.get("text"), delta.get("content"), thoughts, delta.get("refusal")]
    size = sum(len(text.encode("utf-8", "replace")) for text in found if isinstance(text, str))
    return size + sum(len(msgspec.json.encode(delta[name])) for name in _CALLS if delta.get(name))


def most_tokens(words: int) -> int:
    """Completion tokens at most that may be counted for so many bytes of an answer whose token ids are not told. It
    holds for both sides: a consumer takes more for a lie, and a provider counts no more, though its model said many
    tokens that leave no text. One that tells the ids is held to them alone."""
    return words + UNSEEN_TOKENS


def asked_tokens(body: Mapping[str, Any]) -> int | None:
    """Completion tokens that a request lets all its choices have; None where it sets no bound."""
    names = ("max_tokens", "max_completion_tokens") if "messages" in body else ("max_tokens",)
    given = [bound for name in names if type(bound := body.get(name)) is int]
    prompts, choices = body.get("prompt"), body.get("n")
    answers = choices if type(choices) is int else 1
    if isinstance(prompts, list) and prompts and not isinstance(prompts[0], int):
        answers *= len(prompts)
    return max(given) * answers if given else None


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
