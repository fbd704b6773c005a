"""Ollama's words in OpenAI's and back. Pure functions: no chain, no HTTP.

https://github.com/ollama/ollama/blob/main/docs/api.md has the one side.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from agents.gateway._http import bad_request, field

_OPTIONS = {
    "num_predict": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "seed": "seed",
    "stop": "stop",
    "repeat_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}
"""Options that an engine takes with a request. The others are about loading a model, which is the provider's affair."""


def model_name(body: Mapping[str, Any]) -> str:
    """`name:latest` is how some clients write `name`."""
    name = body.get("model") or body.get("name")
    if not isinstance(name, str):
        raise bad_request("model is missing: /api/tags lists what there is", "model")
    return name.removesuffix(":latest")


def chat_body(body: dict[str, Any]) -> dict[str, Any]:
    """/api/chat as /v1/chat/completions."""
    messages = field(body, "messages", list, [])
    ids = _Calls()
    return {"messages": [_message(one, ids) for one in messages], **_common(body)} | _tools(body)


def generate_body(body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """/api/generate as a path and a body: a chat, or with `raw` or `suffix` a completion."""
    prompt = field(body, "prompt", str, "")
    if body.get("template"):
        raise bad_request("template is the provider's affair: leave it out, or send all with raw", "template")
    if body.get("raw") or body.get("suffix"):
        suffix = {"suffix": body["suffix"]} if body.get("suffix") else {}
        common = _common(body)
        if "top_logprobs" in common:  # completions have one number for both
            common["logprobs"] = common.pop("top_logprobs")
        return "/v1/completions", {"prompt": prompt, **suffix, **common}
    system = field(body, "system", str, "")
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    user = {"role": "user", "content": prompt, "images": body.get("images")}
    return "/v1/chat/completions", {"messages": [*messages, _message(user, _Calls())], **_common(body)}


def embed_body(body: dict[str, Any]) -> dict[str, Any]:
    """/api/embed as /v1/embeddings."""
    if not isinstance(body.get("input"), str | list):
        raise bad_request("input is a text or a list of texts", "input")
    found = {"input": body["input"]}
    if body.get("dimensions") is not None:
        found["dimensions"] = body["dimensions"]
    return found


def _common(body: dict[str, Any]) -> dict[str, Any]:
    options = field(body, "options", dict, {})
    found = {ours: options[name] for name, ours in _OPTIONS.items() if options.get(name) is not None}
    most = found.get("max_tokens")
    if isinstance(most, int) and most < 0:  # Ollama's "without end"
        del found["max_tokens"]
    match body.get("format"):
        case None | "":
            pass
        case "json":
            found["response_format"] = {"type": "json_object"}
        case dict() as schema:
            found["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
        case _:
            raise bad_request('format is "json" or a JSON schema', "format")
    if isinstance(body.get("think"), str):
        found["reasoning_effort"] = body["think"]
    if body.get("logprobs"):
        found["logprobs"] = True
        if body.get("top_logprobs"):
            found["top_logprobs"] = body["top_logprobs"]
    return found


def _tools(body: dict[str, Any]) -> dict[str, Any]:
    tools = field(body, "tools", list, [])
    return {"tools": tools} if tools else {}


class _Calls:
    """Ids of calls of tools: OpenAI wants each answered by its id, Ollama goes by order and name."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._open: list[tuple[str, str]] = []

    def call(self, name: str) -> str:
        identifier = f"call_{next(self._numbers)}"
        self._open.append((identifier, name))
        return identifier

    def answered(self, name: str | None) -> str:
        for place, (identifier, called) in enumerate(self._open):
            if name in (None, "", called):
                del self._open[place]
                return identifier
        return f"call_{next(self._numbers)}"


def _message(message: Any, ids: _Calls) -> dict[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise bad_request("each message is an object with a role and a content", "messages")
    role, content = message["role"], message.get("content") or ""
    found: dict[str, Any] = {"role": role, "content": content}
    if message.get("images"):
        pictures = [{"type": "image_url", "image_url": {"url": _picture(one)}} for one in message["images"]]
        found["content"] = [{"type": "text", "text": content}, *pictures]
    if message.get("thinking"):
        found["reasoning_content"] = message["thinking"]
    if message.get("tool_calls"):
        found["tool_calls"] = [_call(one, ids) for one in message["tool_calls"]]
    if role == "tool":
        found["tool_call_id"] = message.get("tool_call_id") or ids.answered(message.get("tool_name"))
    return found


def _call(call: Any, ids: _Calls) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise bad_request("each of tool_calls has a function with a name and arguments", "messages")
    arguments = function.get("arguments") or {}
    written = arguments if isinstance(arguments, str) else json.dumps(arguments)
    name = function["name"]
    return {"id": ids.call(name), "type": "function", "function": {"name": name, "arguments": written}}


_MAGIC = (("/9j/", "jpeg"), ("iVBOR", "png"), ("R0lGOD", "gif"), ("UklGR", "webp"))
"""How base64 of a picture begins."""


def _picture(data: Any) -> str:
    if not isinstance(data, str):
        raise bad_request("images are texts in base64", "images")
    kind = next((kind for start, kind in _MAGIC if data.startswith(start)), "png")
    return f"data:image/{kind};base64,{data}"


# --- answers -------------------------------------------------------------------------------------


class Speaker:
    """Turns the chunks of one answer into Ollama's. `generates`: for /api/generate.

    Times are on a clock in nanoseconds. Only the first choice counts: Ollama knows no other.
    """

    def __init__(self, model: str, began: int, *, generates: bool) -> None:
        self.model = model
        self._began, self._generates = began, generates
        self._loaded = self._first = 0
        self._calls: dict[int, dict[str, Any]] = {}
        self._reason = "stop"
        self._usage: dict[str, Any] = {}

    def loaded(self, now: int) -> None:
        """A provider has been found and paid."""
        self._loaded = now

    def say(self, chunk: dict[str, Any], now: int) -> dict[str, Any] | None:
        """A line for a chunk; None where it holds no part of the answer."""
        if isinstance(chunk.get("usage"), dict):
            self._usage = chunk["usage"]
        choice = next((one for one in chunk.get("choices") or () if not one.get("index")), None)
        if choice is None:
            return None
        self._reason = choice.get("finish_reason") or self._reason
        delta = choice.get("delta") or {"content": choice.get("text")}
        for call in delta.get("tool_calls") or ():
            self._take(call)
        text = delta.get("content") or ""
        thinking = delta.get("reasoning_content") or delta.get("reasoning") or ""
        if (text or thinking or self._calls) and not self._first:
            self._first = now
        if not text and not thinking:
            return None
        return self._line(text, thinking, logprobs=_logprobs(choice))

    def end(self, now: int) -> list[dict[str, Any]]:
        """The last lines: what tools are called, and what it all took."""
        lines = []
        if self._calls:
            line = self._line("", "")
            line["message"]["tool_calls"] = [_called(self._calls[index]) for index in sorted(self._calls)]
            lines.append(line)
        last = self._line("", "")
        reason = {"length": "length", "content_filter": "stop"}.get(self._reason, "stop")
        loaded = self._loaded or now
        first = self._first or now
        last |= {
            "done": True,
            "done_reason": reason,
            "total_duration": now - self._began,
            "load_duration": loaded - self._began,
            "prompt_eval_count": self._usage.get("prompt_tokens", 0),
            "prompt_eval_duration": max(first - loaded, 0),
            "eval_count": self._usage.get("completion_tokens", 0),
            "eval_duration": max(now - first, 0),
        }
        return [*lines, last]

    def _take(self, call: dict[str, Any]) -> None:
        known = self._calls.setdefault(call.get("index") or 0, {"name": "", "arguments": ""})
        function = call.get("function") or {}
        known["name"] += function.get("name") or ""
        known["arguments"] += function.get("arguments") or ""

    def _line(self, text: str, thinking: str, *, logprobs: Sequence[Any] = ()) -> dict[str, Any]:
        line: dict[str, Any] = {"model": self.model, "created_at": timestamp()}
        if self._generates:
            line["response"] = text
            if thinking:
                line["thinking"] = thinking
        else:
            line["message"] = {"role": "assistant", "content": text}
            if thinking:
                line["message"]["thinking"] = thinking
        if logprobs:
            line["logprobs"] = logprobs
        return line | {"done": False}


def joined(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All lines of an answer as the one that a client gets that wants no stream."""
    last = lines[-1]
    parts = [line.get("message", line) for line in lines]
    whole = {
        name: "".join(part.get(name) or "" for part in parts)
        for name in ("content", "response", "thinking")
        if any(name in part for part in parts)
    }
    calls: dict[str, Any] = {name: part[name] for part in parts for name in ("tool_calls",) if name in part}
    logprobs = [one for line in lines for one in line.get("logprobs", ())]
    found = dict(last) | ({"logprobs": logprobs} if logprobs else {})
    return found | ({"message": last["message"] | whole | calls} if "message" in last else whole)


def _called(call: dict[str, Any]) -> dict[str, Any]:
    try:
        arguments = json.loads(call["arguments"] or "{}")
    except ValueError:
        arguments = {"arguments": call["arguments"]}
    if not isinstance(arguments, dict):
        arguments = {"arguments": arguments}
    return {"function": {"name": call["name"], "arguments": arguments}}


def _logprobs(choice: dict[str, Any]) -> list[Any]:
    found = choice.get("logprobs")
    content = found.get("content") if isinstance(found, dict) else None
    return [
        {
            "token": one.get("token", ""),
            "logprob": one.get("logprob", 0.0),
            **(
                {"top_logprobs": [{"token": t["token"], "logprob": t["logprob"]} for t in one["top_logprobs"]]}
                if one.get("top_logprobs")
                else {}
            ),
        }
        for one in content or ()
    ]


def timestamp(seconds: float | None = None) -> str:
    """As Ollama writes times; now where none is given."""
    when = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return when.isoformat(timespec="microseconds").replace("+00:00", "Z")
