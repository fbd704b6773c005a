"""Requests for completions as the engine may see them, and what its pieces count."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from penstock.wire.completions import CHAT, EMBEDDINGS, TEXT, most_tokens, word_bytes
from penstock.wire.responses import RESPONSES, Responding, Unanswerable, to_chat
from provider.engines import Dialect
from provider.errors import ApiError
from provider.forms import AS_IT_IS, AsResponse, Form

_COMMON = frozenset(
    "max_tokens temperature top_p n stop seed presence_penalty frequency_penalty logit_bias logprobs "
    "top_k min_p repetition_penalty ignore_eos min_tokens response_format".split()
)
FIELDS = {
    CHAT: _COMMON
    | frozenset(
        "messages max_completion_tokens top_logprobs tools tool_choice parallel_tool_calls functions function_call "
        "reasoning_effort continue_final_message add_generation_prompt".split()
    ),
    TEXT: _COMMON | frozenset("prompt suffix echo".split()),
}
"""What goes on to the engine. The rest is dropped: among it are ways to jump its queue, to read others' caches and
to run templates."""


@dataclass(frozen=True, slots=True)
class Prepared:
    path: str
    """Where the engine is asked."""
    payload: bytes
    streams: bool
    """Whether the client wants pieces."""
    wants_usage: bool
    """Whether it asked for the piece with the usage."""
    wants_ids: bool = False
    """Whether it asked for token ids, by vLLM's name."""
    wants_logprobs: bool = False
    choices: int = 1
    form: Form = AS_IT_IS
    """What the client gets for the engine's pieces."""


_EMBED_FIELDS = frozenset("input encoding_format dimensions".split())


def prepare_embedding(raw: bytes, *, model: str, engine_model: str) -> Prepared:
    """The body for the engine. ApiError 400 or 404 where it is no request."""
    body = _decode(raw, model)
    given = body.get("input")
    if not (isinstance(given, str) or (isinstance(given, list) and given)):
        raise ApiError(400, "invalid_request", "input is a text, or a list of texts or token ids", param="input")
    sent = {name: value for name, value in body.items() if name in _EMBED_FIELDS and value is not None}
    payload = msgspec.json.encode(sent | {"model": engine_model})
    return Prepared(EMBEDDINGS, payload, streams=False, wants_usage=True)


def _decode(raw: bytes, model: str) -> dict[str, Any]:
    """A request's object, for the model that the session pays for."""
    try:
        body = msgspec.json.decode(raw)
    except msgspec.DecodeError as error:
        raise ApiError(400, "invalid_json", f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise ApiError(400, "invalid_request", "the body is not a JSON object")
    asked = body.get("model")
    if not isinstance(asked, str):
        raise ApiError(400, "invalid_request", f"name the model: this session's is {model!r}", param="model")
    if asked != model:
        message = f"this session pays for {model!r}, not for {asked!r}: see /v1/models"
        raise ApiError(404, "model_not_found", message, param="model")
    return body


def prepare(
    raw: bytes,
    path: str,
    *,
    model: str,
    engine_model: str,
    max_choices: int,
    dialect: Dialect,
    affordable: int | None = None,
    cache_salt: str | None = None,
) -> Prepared:
    """The body for the engine: always a stream, always with usage. ApiError 400 or 404 where it is no request.

    The engine is asked to count as it goes and to tell the ids of its tokens, since a receipt states them, in its
    `dialect`. `affordable`: what a deposit pays for; the engine is asked for no more. `cache_salt`: requests with
    another one share no prefix cache with this one.
    """
    body = _decode(raw, model)
    form: Form = AS_IT_IS
    if path == RESPONSES:
        path, body, form = _as_chat(body, model)
    streams = body.get("stream") or False
    if not isinstance(streams, bool):
        raise ApiError(400, "invalid_request", "stream is true or false", param="stream")
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise ApiError(400, "invalid_request", "stream_options is an object", param="stream_options")
    choices = body.get("n")
    if choices is not None and not (type(choices) is int and 1 <= choices <= max_choices):
        raise ApiError(400, "invalid_request", f"n is 1 to {max_choices}", param="n")
    needed = "messages" if path == CHAT else "prompt"
    if needed not in body:
        raise ApiError(400, "invalid_request", f"{needed} is missing", param=needed)
    if path == CHAT:
        check_parts(body["messages"])
    allowed = FIELDS[path]
    sent = {name: value for name, value in body.items() if name in allowed and value is not None}
    sent["model"] = engine_model
    sent["stream"] = True
    sent["stream_options"] = {"include_usage": True}
    if "max_completion_tokens" in sent:  # which not every engine knows; the consumer holds the answer to it
        sent.setdefault("max_tokens", sent["max_completion_tokens"])
    if affordable is not None:
        _limit(sent, affordable // (choices or 1))
    for name, value in dialect.hints.items():
        sent[name] = {**sent[name], **value} if isinstance(value, dict) and name in sent else value
    if cache_salt is not None:
        sent["cache_salt"] = cache_salt
    wants_logprobs = sent.get("logprobs") not in (None, False)
    wants_ids = body.get("return_token_ids") is True
    dialect.ask_ids(sent)
    wants_usage, payload = bool(options.get("include_usage")), msgspec.json.encode(sent)
    return Prepared(path, payload, streams, wants_usage, wants_ids, wants_logprobs, choices or 1, form)


def _as_chat(body: dict[str, Any], model: str) -> tuple[str, dict[str, Any], Form]:
    """A request for a response, told as one for a chat; where that is asked, and how its answer is told back."""
    try:
        return CHAT, to_chat(body), AsResponse(Responding(body, model))
    except Unanswerable as error:
        raise ApiError(400, "invalid_request", str(error), param=error.param) from None


_PARTS = frozenset("text refusal image_url input_audio audio_url video_url".split())
_DATA_PARTS = ("image_url", "audio_url", "video_url")


def check_parts(messages: Any) -> None:
    """ApiError 400 where a message would make the engine fetch something, or unpickle it. Images and the like come as
    data: URLs, which name no place in anybody's network."""
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, str):
                continue
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in _PARTS:
                known = ", ".join(sorted(_PARTS))
                raise ApiError(400, "invalid_request", f"a part of a message has a type of {known}", param="messages")
            for name in _DATA_PARTS:
                if name not in part:
                    continue
                source = part[name].get("url") if isinstance(part[name], dict) else part[name]
                if not isinstance(source, str) or not source[:5].lower() == "data:":
                    raise ApiError(
                        400,
                        "url_not_fetched",
                        f"{name} is not fetched from elsewhere: send what it shows as a data: URL",
                        param="messages",
                    )


def _limit(sent: dict[str, Any], most: int) -> None:
    """Ask for so many tokens at most, by the names that the client used."""
    if most < 1:
        raise ApiError(
            402, "deposit_too_low", "the channel's deposit does not pay for one token of each choice: top up"
        )
    names = [name for name in ("max_tokens", "max_completion_tokens") if name in sent]
    for name in names:
        if type(sent[name]) is not int or sent[name] < 1:
            raise ApiError(400, "invalid_request", f"{name} is a whole number from 1 on", param=name)
    for name in names or ["max_tokens"]:
        sent[name] = min(sent.get(name, most), most)


@dataclass(slots=True)
class Counted:
    """Tokens of one answer so far."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    exact: bool = False
    """False: as many as there were pieces, which is a lower bound."""
    ids: int = 0
    """Token ids that were told. Where there are any, they and nothing else are the completion tokens."""
    words: int = 0
    """Bytes of the answer. Without ids, they bound what a consumer believes, and so what is counted."""

    def take(self, piece: dict[str, Any], ids: int = 0) -> None:
        """From a piece that carries the engine's own count, or so many ids."""
        self._take(piece)
        self.ids += ids
        if self.ids:
            self.completion_tokens, self.exact = self.ids, True
            return
        self.words += sum(word_bytes(choice) for choice in piece.get("choices") or ())
        self.completion_tokens = min(self.completion_tokens, most_tokens(self.words))

    def _take(self, piece: dict[str, Any]) -> None:
        usage, timings = piece.get("usage"), piece.get("timings")
        if isinstance(usage, dict):
            self.prompt_tokens = _count(usage.get("prompt_tokens"))
            self.completion_tokens = _count(usage.get("completion_tokens"))
            self.exact = True
        elif isinstance(timings, dict):  # llama.cpp
            self.prompt_tokens = _count(timings.get("prompt_n")) + _count(timings.get("cache_n"))
            self.completion_tokens = _count(timings.get("predicted_n"))
            self.exact = True

    @property
    def usage(self) -> dict[str, Any]:
        """In OpenAI's shape."""
        total = self.prompt_tokens + self.completion_tokens
        found = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
        }
        return found if self.exact else found | {"estimated": True}


class TokenIds:
    """The ids of an answer's tokens, taken out of the pieces that an engine gives."""

    def __init__(self, prepared: Prepared, *, shows_counts: bool) -> None:
        """`shows_counts`: the client gets what the engine counts as it goes, too."""
        self._prepared, self._shows_counts = prepared, shows_counts
        self._choices: dict[int, array[int]] = {}

    def take(self, piece: dict[str, Any]) -> tuple[list[tuple[int, list[int]]], bool]:
        """Ids by choice, and whether the piece was changed: what its client did not ask for is gone from it, and what
        it asked for has vLLM's names. ApiError 502 where an id is none."""
        found: list[tuple[int, list[int]]] = []
        wanted = self._prepared.wants_ids
        changed = not wanted and piece.pop("prompt_token_ids", None) is not None
        for choice in piece.get("choices") or ():
            changed |= not wanted and choice.pop("prompt_token_ids", None) is not None
            ids = choice.get("token_ids")
            if "token_ids" in choice and not wanted:
                del choice["token_ids"]
                changed = True
            logprobs = choice.get("logprobs")
            if logprobs:
                content = logprobs.get("content") if isinstance(logprobs, dict) else None
                if ids is None and content and isinstance(content, list) and "id" in content[0]:  # llama.cpp
                    ids = [entry.get("id") for entry in content]
                    if wanted:
                        choice["token_ids"] = ids
                    changed = True
                if not self._prepared.wants_logprobs:
                    choice["logprobs"] = None
                    changed = True
            if ids:
                if not all(type(token) is int and 0 <= token < 2**32 for token in ids):
                    raise ApiError(502, "engine_garbage", "the engine's token ids are no such")
                found.append((choice.get("index") or 0, ids))
        return found, changed

    def hide_counts(self, piece: dict[str, Any]) -> bool:
        """Once they are read. Whether the piece was changed."""
        if self._shows_counts or not piece.get("choices"):
            return False
        hidden = [piece.pop("timings", None)]
        if not (self._prepared.wants_usage and any(choice.get("finish_reason") for choice in piece["choices"])):
            hidden.append(piece.pop("usage", None))
        return any(each is not None for each in hidden)

    def keep(self, found: Iterable[tuple[int, Iterable[int]]]) -> None:
        """They have been passed on."""
        for index, ids in found:
            self._choices.setdefault(index, array("I")).extend(ids)

    @property
    def choices(self) -> list[array[int]]:
        """In order of index."""
        return [self._choices[index] for index in sorted(self._choices)]


def has_words(piece: dict[str, Any]) -> bool:
    """Whether it carries part of the answer itself, and not only its frame."""
    for choice in piece.get("choices") or ():
        if choice.get("text"):
            return True
        delta = choice.get("delta")
        if isinstance(delta, dict) and any(value for name, value in delta.items() if name != "role"):
            return True
    return False


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0
