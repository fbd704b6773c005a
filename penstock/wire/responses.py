"""OpenAI's Responses protocol, told in the words of chat completions: one way to generate, two ways to ask for it.

A request becomes one for a chat completion, whose pieces become the typed events of a response. So whatever holds for
chat holds here, on every engine: token ids, exact counts, what is paid before it is passed on. Nothing is stored: a
conversation is sent whole with each request.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

import msgspec

from penstock.errors import WireError

RESPONSES = "/v1/responses"
_LOGPROBS = "message.output_text.logprobs"
"""What `include` has, where probabilities are asked for."""
_SAME = frozenset(
    "model stream temperature top_p parallel_tool_calls presence_penalty frequency_penalty seed stop top_k min_p "
    "repetition_penalty logit_bias ignore_eos min_tokens user".split()
)
"""Fields that chat calls the same, and that mean the same there."""
_ECHOED: dict[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "reasoning": {"effort": None, "summary": None},
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": None,
    "user": None,
}
"""Fields of a request that its response repeats, with what stands there where they were not sent."""
_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
_STATELESS = {
    "previous_response_id": "no response is stored here: send the whole conversation as input",
    "conversation": "no conversation is stored here: send all of it as input",
    "prompt": "no prompt templates are stored here: send the text as input and instructions",
    "background": "nothing is answered in the background here: stay for the answer, with stream for its parts",
}


class Unanswerable(WireError):
    """A request that cannot be told as a chat. `param` names the field."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


# --- the request ---------------------------------------------------------------------------------


def to_chat(body: Mapping[str, Any]) -> dict[str, Any]:
    """The same request as one for a chat completion. Unanswerable where it needs what is kept between requests, or a
    tool that somebody else would have to run."""
    for name, why in _STATELESS.items():
        if body.get(name):
            raise Unanswerable(name, f"{name}: {why}")
    chat = {name: value for name, value in body.items() if name in _SAME and value is not None}
    chat["messages"] = _messages(body)
    if body.get("max_output_tokens") is not None:
        chat["max_tokens"] = body["max_output_tokens"]
    if tools := _of(body, "tools", list):
        chat["tools"] = [_tool(tool) for tool in tools]
        if (choice := body.get("tool_choice")) is not None:
            chat["tool_choice"] = _tool_choice(choice)
    if (form := _of(body, "text", dict).get("format")) is not None:
        chat |= _format(form)
    if (effort := _of(body, "reasoning", dict).get("effort")) is not None:
        chat["reasoning_effort"] = effort
    if _LOGPROBS in _of(body, "include", list):
        chat |= {"logprobs": True, "top_logprobs": body.get("top_logprobs") or 0}
    return chat


def _of(body: Mapping[str, Any], name: str, kind: type[Any]) -> Any:
    """A field of a kind, empty where it was not sent."""
    value = body.get(name)
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise Unanswerable(name, f"{name} is {'a list' if kind is list else 'an object'}")
    return value


def _messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    asked, instructions = body.get("input"), body.get("instructions")
    if not isinstance(asked, str | list) or not asked:
        raise Unanswerable("input", "input is a text, or a list of items")
    if not isinstance(instructions, str | None):
        raise Unanswerable("instructions", "instructions are a text")
    messages: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions else []
    if isinstance(asked, str):
        return [*messages, {"role": "user", "content": asked}]
    for item in asked:
        if not isinstance(item, dict):
            raise Unanswerable("input", "an item of the input is an object")
        _add(messages, item)
    if not messages:
        raise Unanswerable("input", "the input says nothing")
    return messages


def _add(messages: list[dict[str, Any]], item: dict[str, Any]) -> None:
    kind = item.get("type") or "message"
    if kind == "message":
        role = _ROLES.get(str(item.get("role")))
        if role is None:
            raise Unanswerable("input", f"the role of a message is one of {', '.join(_ROLES)}")
        messages.append({"role": role, "content": _content(item.get("content"))})
    elif kind == "function_call":
        call = {
            "id": _text(item, "call_id"),
            "type": "function",
            "function": {"name": _text(item, "name"), "arguments": _text(item, "arguments")},
        }
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": None})
        messages[-1].setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        content = _content(item.get("output"))
        messages.append({"role": "tool", "tool_call_id": _text(item, "call_id"), "content": content})
    elif kind != "reasoning":  # what a model thought before, it thinks anew
        what = "message, function_call, function_call_output or reasoning"
        raise Unanswerable("input", f"an item's type is {what}, not {str(kind)[:40]}: nothing is stored here")


def _text(item: Mapping[str, Any], name: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise Unanswerable("input", f"the {name} of a {item.get('type')} is a text")
    return value


def _content(given: Any) -> str | list[dict[str, Any]]:
    """Of a message: a text where that is all it has, else chat's parts."""
    if isinstance(given, str):
        return given
    if not isinstance(given, list):
        raise Unanswerable("input", "the content of an item is a text, or a list of parts")
    parts = [_part(part) for part in given]
    if len(parts) == 1 and parts[0]["type"] == "text":
        return str(parts[0]["text"])
    return parts


def _part(part: Any) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("input_text", "output_text", "text", "refusal"):
        words = part.get("refusal" if kind == "refusal" else "text")
        if isinstance(words, str):
            return {"type": "text", "text": words}
    elif kind == "input_image" and isinstance(part.get("image_url"), str):
        image = {"url": part["image_url"]} | ({"detail": part["detail"]} if "detail" in part else {})
        return {"type": "image_url", "image_url": image}
    elif kind == "input_audio" and isinstance(part.get("input_audio"), dict):
        return {"type": "input_audio", "input_audio": part["input_audio"]}
    raise Unanswerable(
        "input", "a part of the content is an input_text, output_text, refusal, input_audio or input_image with a URL"
    )


def _tool(tool: Any) -> dict[str, Any]:
    if not isinstance(tool, dict) or tool.get("type") != "function" or not isinstance(tool.get("name"), str):
        raise Unanswerable("tools", "a tool here is a function with a name: nobody would run any other")
    told = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {name: tool[name] for name in told if tool.get(name) is not None}}


def _tool_choice(choice: Any) -> Any:
    if isinstance(choice, str):
        return choice
    if isinstance(choice, dict) and choice.get("type") == "function" and isinstance(choice.get("name"), str):
        return {"type": "function", "function": {"name": choice["name"]}}
    raise Unanswerable("tool_choice", "tool_choice is none, auto, required, or a function by its name")


def _format(form: Any) -> dict[str, Any]:
    kind = form.get("type") if isinstance(form, dict) else None
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"response_format": {"type": kind}}
    if kind == "json_schema" and isinstance(form.get("schema"), dict):
        schema = {name: value for name, value in form.items() if name != "type" and value is not None}
        return {"response_format": {"type": kind, "json_schema": schema}}
    raise Unanswerable("text", "text.format is text, json_object, or a json_schema with its schema")


# --- the answer ----------------------------------------------------------------------------------


class Responding:
    """A response as it grows, out of the pieces of a chat completion."""

    def __init__(self, body: Mapping[str, Any], model: str) -> None:
        """`body`: what was asked, in the Responses protocol."""
        self._id, self._created = _name("resp"), int(time.time())
        echoed = {name: default if body.get(name) is None else body[name] for name, default in _ECHOED.items()}
        self._asked = echoed | {"model": model}
        self._output: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None
        """The item with words that goes on, the last of the output."""
        self._calls: dict[int, tuple[int, dict[str, Any]]] = {}
        """Calls of tools by chat's index, with their place in the output."""
        self._number = 0
        self._finish: str | None = None

    def add(self, piece: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The events that a piece comes to."""
        told = self._begun()
        for choice in piece.get("choices") or ():
            if choice.get("index"):
                continue
            delta = choice.get("delta") or {}
            told += self._say("reasoning", delta.get("reasoning_content") or delta.get("reasoning"), ())
            logprobs = (choice.get("logprobs") or {}).get("content") or ()
            told += self._say("message", delta.get("content"), logprobs)
            for call in delta.get("tool_calls") or ():
                told += self._call(call)
            self._finish = choice.get("finish_reason") or self._finish
        return told

    def end(self, usage: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The last events, once all is there. `usage` in chat's words."""
        status = "incomplete" if self._finish in _CUT else "completed"
        told = self._begun() + self._close(status)
        for place, call in self._calls.values():
            call["status"] = status
            named = {"item_id": call["id"], "output_index": place}
            done = {"arguments": call["arguments"], "name": call["name"]}
            told.append(self._event("response.function_call_arguments.done", **named, **done))
            told.append(self._event("response.output_item.done", output_index=place, item=deepcopy(call)))
        response = self._response(status)
        response["incomplete_details"] = {"reason": _CUT[self._finish]} if _CUT.get(self._finish) else None
        response["usage"] = _usage(usage)
        return [*told, self._event(f"response.{status}", response=response)]

    def broken(self, error: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What is told in place of the end. The official client raises it."""
        told = {name: error.get(name) for name in ("code", "message", "param")}
        return [*self._begun(), self._event("error", **told, error=dict(error))]

    def answer(self, usage: Mapping[str, Any]) -> dict[str, Any]:
        """The response as far as it is there: incomplete where the engine did not end it by itself."""
        found: dict[str, Any] = self.end(usage)[-1]["response"]
        return found

    # --- items ---

    def _say(self, kind: str, words: Any, logprobs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """More of a text: of the answer, or of what the model thinks before."""
        if not words or not isinstance(words, str):
            return []
        told = []
        if self._open is None or self._open["type"] != kind:
            told += self._close()
            more: dict[str, Any] = {"role": "assistant"} if kind == "message" else {"summary": []}
            self._open = {"id": _name(_NAMES[kind]), "type": kind, "status": "in_progress", "content": []} | more
            self._output.append(self._open)
            shown = {**self._open, "content": []}
            told.append(self._event("response.output_item.added", output_index=self._last, item=shown))
            part = {"type": _PARTS[kind], "text": ""}
            self._open["content"].append(part | ({"annotations": [], "logprobs": []} if kind == "message" else {}))
            told.append(self._part("added"))
        part = self._open["content"][0]
        part["text"] += words
        found = {}
        if kind == "message":
            found = {"logprobs": [_logprob(each) for each in logprobs]}
            part["logprobs"] += found["logprobs"]
        name = f"response.{_PARTS[kind]}.delta"
        return [*told, self._event(name, **self._place, delta=words, **found)]

    def _close(self, status: str = "completed") -> list[dict[str, Any]]:
        """The item with words, if one goes on."""
        if self._open is None:
            return []
        item, part = self._open, self._open["content"][0]
        item["status"] = status
        found = {"logprobs": part["logprobs"]} if "logprobs" in part else {}
        told = [
            self._event(f"response.{part['type']}.done", **self._place, text=part["text"], **found),
            self._part("done"),
            self._event("response.output_item.done", output_index=self._last, item=deepcopy(item)),
        ]
        self._open = None
        return told

    def _call(self, piece: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Part of a call. Calls may come by turns: all of them end with the answer."""
        index, function = piece.get("index") or 0, piece.get("function") or {}
        told = []
        if index not in self._calls:
            told += self._close()
            item = {"id": _name("fc"), "type": "function_call", "status": "in_progress", "arguments": ""}
            item |= {"call_id": piece.get("id") or _name("call"), "name": function.get("name") or ""}
            self._output.append(item)
            self._calls[index] = self._last, item
            told.append(self._event("response.output_item.added", output_index=self._last, item=deepcopy(item)))
        place, item = self._calls[index]
        if more := function.get("arguments"):
            item["arguments"] += more
            name = "response.function_call_arguments.delta"
            told.append(self._event(name, item_id=item["id"], output_index=place, delta=more))
        return told

    # --- frames ---

    def _begun(self) -> list[dict[str, Any]]:
        if self._number:
            return []
        shown = self._response("in_progress")
        return [self._event(f"response.{name}", response=shown) for name in ("created", "in_progress")]

    def _response(self, status: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            **self._asked,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "output": deepcopy(self._output),  # what was told does not grow
            "previous_response_id": None,
            "service_tier": "default",
            "store": False,
            "truncation": "disabled",
            "usage": None,
        }

    @property
    def _last(self) -> int:
        return len(self._output) - 1

    @property
    def _place(self) -> dict[str, Any]:
        assert self._open is not None
        return {"item_id": self._open["id"], "output_index": self._last, "content_index": 0}

    def _part(self, what: str) -> dict[str, Any]:
        assert self._open is not None
        return self._event(f"response.content_part.{what}", **self._place, part=deepcopy(self._open["content"][0]))

    def _event(self, kind: str, **more: Any) -> dict[str, Any]:
        event = {"type": kind, "sequence_number": self._number, **more}
        self._number += 1
        return event


_PARTS = {"message": "output_text", "reasoning": "reasoning_text"}
_NAMES = {"message": "msg", "reasoning": "rs"}
_CUT = {None: None, "length": "max_output_tokens", "content_filter": "content_filter"}
"""Why an answer that is not complete ended, as chat and as a response says it."""


def encode(events: Iterable[Mapping[str, Any]]) -> bytes:
    """As a stream of events has them."""
    return b"".join(b"event: %s\ndata: %s\n\n" % (e["type"].encode(), msgspec.json.encode(e)) for e in events)


def _name(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(16)}"


def _usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    """In a response's words."""
    cached = _detail(usage, "prompt_tokens_details", "cached_tokens")
    reasoning = _detail(usage, "completion_tokens_details", "reasoning_tokens")
    return {
        "input_tokens": usage.get("prompt_tokens", 0),
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": usage.get("completion_tokens", 0),
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": usage.get("total_tokens", 0),
    }


def _detail(usage: Mapping[str, Any], part: str, name: str) -> int:
    details = usage.get(part)
    value = details.get(name) if isinstance(details, dict) else None
    return value if isinstance(value, int) else 0


def _logprob(entry: Mapping[str, Any]) -> dict[str, Any]:
    """One token's: without the id that llama.cpp adds."""
    told = {"token": entry.get("token"), "logprob": entry.get("logprob"), "bytes": entry.get("bytes") or []}
    if "top_logprobs" in entry:
        told["top_logprobs"] = [_logprob(each) for each in entry["top_logprobs"]]
    return told
