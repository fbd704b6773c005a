"""Ollama's requests in OpenAI's words, and OpenAI's answers in Ollama's."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agents.gateway._http import Refused
from agents.gateway._ollama_shapes import Speaker, chat_body, embed_body, generate_body, joined, model_name

USER = {"role": "user", "content": "Hi"}


def test_options_are_given_on_by_openais_names() -> None:
    options = {
        "num_predict": 7,
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 3,
        "min_p": 0.1,
        "seed": 5,
        "stop": ["x"],
        "repeat_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "num_ctx": 4096,
        "num_gpu": 1,
    }
    assert chat_body({"messages": [USER], "options": options}) == {
        "messages": [USER],
        "max_tokens": 7,
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 3,
        "min_p": 0.1,
        "seed": 5,
        "stop": ["x"],
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
    }
    assert "max_tokens" not in chat_body({"messages": [USER], "options": {"num_predict": -1}})


def test_formats_are_response_formats() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert chat_body({"messages": [USER], "format": "json"})["response_format"] == {"type": "json_object"}
    found = chat_body({"messages": [USER], "format": schema})["response_format"]
    assert (found["type"], found["json_schema"]["schema"]) == ("json_schema", schema)
    assert "response_format" not in chat_body({"messages": [USER], "format": ""})


def test_a_conversation_with_tools_has_ids() -> None:
    call = {"function": {"name": "add", "arguments": {"a": 1}}}
    other = {"function": {"name": "mul", "arguments": {}}}
    messages = [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [call, other]},
        {"role": "tool", "tool_name": "mul", "content": "6"},
        {"role": "tool", "content": "2"},
    ]
    found = chat_body({"messages": messages, "tools": [{"type": "function", "function": {"name": "add"}}]})
    first, second = found["messages"][1]["tool_calls"]
    assert json.loads(first["function"]["arguments"]) == {"a": 1}
    assert [one["tool_call_id"] for one in found["messages"][2:]] == [second["id"], first["id"]]
    assert first["id"] != second["id"]
    assert found["tools"][0]["function"]["name"] == "add"


def test_pictures_are_parts_of_a_message() -> None:
    (message,) = chat_body({"messages": [USER | {"images": ["/9j/AAAA"]}]})["messages"]
    assert message["content"] == [
        {"type": "text", "text": "Hi"},
        {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,/9j/AAAA"}},
    ]


def test_generate_is_a_chat_unless_the_prompt_is_raw() -> None:
    path, body = generate_body({"prompt": "Hi", "system": "Be brief", "options": {"num_predict": 3}})
    assert path == "/v1/chat/completions"
    assert body == {"messages": [{"role": "system", "content": "Be brief"}, USER], "max_tokens": 3}
    assert generate_body({"prompt": "<s>Hi", "raw": True}) == ("/v1/completions", {"prompt": "<s>Hi"})
    assert generate_body({"prompt": "a", "suffix": "b"}) == ("/v1/completions", {"prompt": "a", "suffix": "b"})


@pytest.mark.parametrize(
    ("make", "body", "said"),
    [
        (chat_body, {"messages": "Hi"}, "messages is not"),
        (chat_body, {"messages": ["Hi"]}, "a role and a content"),
        (chat_body, {"messages": [USER], "format": "yaml"}, "JSON schema"),
        (chat_body, {"messages": [USER], "options": [1]}, "options is not"),
        (generate_body, {"prompt": "Hi", "template": "{{ .Prompt }}"}, "send all with raw"),
        (embed_body, {"input": 5}, "text or a list"),
        (model_name, {}, "model is missing"),
    ],
)
def test_what_cannot_be_meant_is_refused(make: Any, body: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused, match=said) as caught:
        make(body)
    assert caught.value.status == 400


def test_latest_is_how_some_write_a_name() -> None:
    assert model_name({"model": "tiny:latest"}) == "tiny"
    assert model_name({"name": "tiny:8b"}) == "tiny:8b"


def chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def test_an_answer_has_its_durations_in_nanoseconds() -> None:
    speaker = Speaker("tiny", 100, generates=False)
    speaker.loaded(300)
    assert speaker.say(chunk(role="assistant"), 500) is None
    first = speaker.say(chunk(content="A"), 1000)
    assert first is not None
    assert (first["message"], first["done"]) == ({"role": "assistant", "content": "A"}, False)
    speaker.say(chunk(content="B"), 1500)
    speaker.say(chunk("length"), 1600)
    assert speaker.say({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}, 1700) is None
    (last,) = speaker.end(2000)
    del last["created_at"]
    assert last == {
        "model": "tiny",
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "length",
        "total_duration": 1900,
        "load_duration": 200,
        "prompt_eval_count": 5,
        "prompt_eval_duration": 700,
        "eval_count": 2,
        "eval_duration": 1000,
    }


def test_calls_of_tools_come_whole_at_the_end() -> None:
    speaker = Speaker("tiny", 0, generates=False)
    pieces = [
        {"index": 0, "id": "x", "function": {"name": "add", "arguments": '{"a":'}},
        {"index": 0, "function": {"arguments": " 1}"}},
        {"index": 1, "id": "y", "function": {"name": "now", "arguments": ""}},
    ]
    assert [speaker.say(chunk(tool_calls=[one]), 1) for one in pieces] == [None] * 3
    calls, last = speaker.end(2)
    assert calls["message"]["tool_calls"] == [
        {"function": {"name": "add", "arguments": {"a": 1}}},
        {"function": {"name": "now", "arguments": {}}},
    ]
    assert (calls["done"], last["done"], last["done_reason"]) == (False, True, "stop")


def test_lines_join_to_the_whole() -> None:
    speaker = Speaker("tiny", 0, generates=False)
    lines = [speaker.say(chunk(reasoning_content="hm"), 1), speaker.say(chunk(content="A"), 2)]
    lines += [speaker.say(chunk(content="B"), 3)]
    whole = joined([line for line in lines if line] + speaker.end(4))
    assert whole["message"] == {"role": "assistant", "content": "AB", "thinking": "hm"}
    assert whole["done"] is True
    speaker = Speaker("tiny", 0, generates=True)
    spoken = [speaker.say({"choices": [{"index": 0, "text": text}]}, 1) for text in ("A", "B")]
    assert joined([line for line in spoken if line] + speaker.end(2))["response"] == "AB"
