"""What of an answer its client has, and how another provider is asked for the rest.

A client sees one answer: one id, one role, one usage at the end, and nothing that it did not ask for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agents.buyer._types import Job
from penstock.consumer import Usage
from penstock.wire.completions import CHAT, EMBEDDINGS, TEXT

Chunk = dict[str, Any]
_LIMITS = ("max_tokens", "max_completion_tokens")


@dataclass(frozen=True, slots=True)
class Request:
    """What a provider is asked."""

    path: str
    body: Mapping[str, Any]

    @property
    def max_tokens(self) -> int | None:
        """The most that the client lets each choice have; None where it does not say. Embeddings have none."""
        if self.path == EMBEDDINGS:
            return 0
        found = [value for name in _LIMITS if type(value := self.body.get(name)) is int]
        return min(found) if found else None

    @property
    def choices(self) -> int:
        n = self.body.get("n")
        return n if type(n) is int else 1


class Delivered:
    def __init__(self, job: Job) -> None:
        self._job = job
        self._request = Request(job.path, job.body)
        self._head: dict[str, Any] = {}
        self._open = set(range(self._request.choices))
        """Choices that have not ended."""
        self._role_told = False
        self._before = Usage(0, 0, 0)
        """Of the parts that are over."""
        self.text = ""
        self._ids: list[int] = []
        self._prompt_ids: list[int] | None = None
        self._ids_lost = False
        """There is text whose ids were not told."""
        self._withheld = False
        """The latest ids are of a character that has not come yet."""
        self._other = False
        """Whether it has more than text: calls of tools, or reasoning."""

    @property
    def finished(self) -> bool:
        """Whether the client has all of it."""
        return not self._open

    def take(self, chunk: Chunk) -> Chunk | None:
        """A chunk as the client gets it; None where it gets nothing."""
        if not chunk.get("choices"):
            return None  # the usage; ours comes last
        self._learn(chunk)
        for name in ("id", "created"):
            if name in chunk:
                chunk[name] = self._head.setdefault(name, chunk[name])
        chunk["object"] = "chat.completion.chunk" if self._job.path == CHAT else "text_completion"
        chunk.pop("usage", None)
        if not self._job.body.get("timings_per_token"):
            chunk.pop("timings", None)
        if self._job.body.get("return_token_ids") is not True:
            chunk.pop("prompt_token_ids", None)
            for choice in chunk["choices"]:
                choice.pop("token_ids", None)
                choice.pop("prompt_token_ids", None)
        return chunk

    def part_ended(self, usage: Usage | None) -> None:
        """A provider's part is over; as it counted."""
        if usage is not None:
            # The rest's prompt is the first prompt and what was delivered: to the client it is still the first.
            prompt = self._before.prompt_tokens or usage.prompt_tokens
            completion = self._before.completion_tokens + usage.completion_tokens
            self._before = Usage(prompt, completion, prompt + completion)

    def last(self, model: str) -> Chunk:
        """The chunk with the usage of all parts together."""
        name = "chat.completion.chunk" if self._job.path == CHAT else "text_completion"
        used = self._before
        usage = {
            "prompt_tokens": used.prompt_tokens,
            "completion_tokens": used.completion_tokens,
            "total_tokens": used.total_tokens,
        }
        return {**self._head, "object": name, "model": model, "choices": [], "usage": usage}

    def cut_short(self, model: str) -> Chunk:
        """The chunk that ends an answer which has all the tokens that it may have."""
        self._open.clear()
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
        if self._job.path == CHAT:
            choice["delta"] = {}
        else:
            choice["text"] = ""
        name = "chat.completion.chunk" if self._job.path == CHAT else "text_completion"
        return {**self._head, "object": name, "model": model, "choices": [choice]}

    @property
    def exhausted(self) -> bool:
        """Whether it has all the tokens that the client lets it have."""
        most = self._request.max_tokens
        return most is not None and self._before.completion_tokens >= most

    def rest(self) -> Request | None:
        """What the next provider is asked, so that its answer is the rest of this one; all, where the client has
        nothing yet. None where the rest cannot be asked for: several choices, tools, reasoning, constrained output."""
        if not self.text and not self._other:
            return self._request
        body = dict(self._job.body)
        constrained = body.get("response_format") not in (None, {"type": "text"})
        if self._other or self._request.choices != 1 or constrained or body.get("echo") or body.get("suffix"):
            return None
        for name in (*_LIMITS, "min_tokens"):
            if type(body.get(name)) is int:
                body[name] = max(0 if name == "min_tokens" else 1, body[name] - self._before.completion_tokens)
        return self._rest_of_chat(body) if self._job.path == CHAT else self._rest_of_text(body)

    def _rest_of_chat(self, body: dict[str, Any]) -> Request:
        if self._knows_ids and not body.get("tools") and not body.get("logprobs"):
            assert self._prompt_ids is not None
            body.pop("messages", None)
            return Request(TEXT, body | {"prompt": self._prompt_ids + self._ids})
        messages = list(body["messages"])
        said = self.text
        if messages and messages[-1].get("role") == "assistant" and isinstance(messages[-1].get("content"), str):
            said = messages.pop()["content"] + said
        body["messages"] = [*messages, {"role": "assistant", "content": said}]
        return Request(CHAT, body | {"continue_final_message": True, "add_generation_prompt": False})

    def _rest_of_text(self, body: dict[str, Any]) -> Request | None:
        if self._knows_ids:
            assert self._prompt_ids is not None
            return Request(TEXT, body | {"prompt": self._prompt_ids + self._ids})
        prompt = body.get("prompt")
        return Request(TEXT, body | {"prompt": prompt + self.text}) if isinstance(prompt, str) else None

    @property
    def _knows_ids(self) -> bool:
        """Whether the very tokens can be named: every offer of a model has its tokenizer."""
        return self._prompt_ids is not None and bool(self._ids) and not self._ids_lost and not self._withheld

    def _learn(self, chunk: Chunk) -> None:
        if isinstance(ids := chunk.get("prompt_token_ids"), list) and self._prompt_ids is None and not self._ids:
            self._prompt_ids = ids
        for choice in chunk["choices"]:
            if self._job.path == CHAT and "delta" not in choice:  # the rest was asked for by token ids
                choice["delta"] = {"content": choice.pop("text", "")}
            delta = choice.get("delta") or {}
            if "role" in delta and self._role_told:
                del delta["role"]
            self._role_told |= "role" in delta
            text = choice.get("text") or delta.get("content") or ""
            if (choice.get("index") or 0) == 0:
                self.text += text
            self._other |= any(value for name, value in delta.items() if name not in ("role", "content"))
            if isinstance(ids := choice.get("prompt_token_ids"), list) and self._prompt_ids is None and not self._ids:
                self._prompt_ids = ids
            ids = choice.get("token_ids") or []
            self._ids += ids
            self._ids_lost |= bool(text and not ids)
            if ids:
                self._withheld = not text
            if choice.get("finish_reason") is not None:
                self._open.discard(choice.get("index") or 0)
