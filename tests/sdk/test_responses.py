"""The Responses protocol in chat's words: what is asked, what is told, and what cannot be."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent

from penstock.wire.responses import Responding, Unanswerable, to_chat

LOOK = {"type": "function", "name": "look", "description": "d", "parameters": {"type": "object"}, "strict": True}
KINDS = {get_args(kind.model_fields["type"].annotation)[0]: kind for kind in get_args(get_args(ResponseStreamEvent)[0])}
"""The official client's types of events, by their names."""
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def call(index: int, arguments: str, name: str | None = None, call_id: str | None = None) -> dict[str, Any]:
    head = {"id": call_id, "type": "function"} if call_id else {}
    return chunk(tool_calls=[{"index": index, **head, "function": {"name": name, "arguments": arguments}}])


def told(chunks: Iterable[dict[str, Any]], **asked: Any) -> list[dict[str, Any]]:
    """All events, each of which is one by the official client's types, in the order of their numbers."""
    responding = Responding({"input": "Hi"} | asked, "tiny")
    events = [event for one in chunks for event in responding.add(one)] + responding.end(USAGE)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    for event in events:
        KINDS[event["type"]].model_validate(event)
    return events


# --- the request ----------------------------------------------------------------------------------


def test_a_text_and_its_instructions_are_messages() -> None:
    asked = {"model": "m", "input": "Why?", "instructions": "Be short.", "max_output_tokens": 7, "store": True}
    assert to_chat(asked | {"temperature": 0, "top_p": None, "metadata": {"a": "b"}, "truncation": "auto"}) == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Why?"}],
        "max_tokens": 7,
        "temperature": 0,
    }


def test_a_conversation_goes_on_with_its_calls() -> None:
    called = {"type": "function_call", "arguments": "{}"}
    answered = {"type": "function_call_output"}
    items = [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": [{"type": "input_text", "text": "Look."}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "So", "annotations": []}]},
        called | {"call_id": "a", "name": "look"},
        called | {"call_id": "b", "name": "hear", "id": "fc_1", "status": "completed"},
        answered | {"call_id": "a", "output": "blue"},
        answered | {"call_id": "b", "output": [{"type": "input_text", "text": "loud"}]},
    ]
    function = {"type": "function"}
    assert to_chat({"model": "m", "input": items})["messages"] == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Look."},
        {
            "role": "assistant",
            "content": "So",
            "tool_calls": [
                function | {"id": "a", "function": {"name": "look", "arguments": "{}"}},
                function | {"id": "b", "function": {"name": "hear", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "a", "content": "blue"},
        {"role": "tool", "tool_call_id": "b", "content": "loud"},
    ]
    assert to_chat({"input": items[4:5]})["messages"][0]["content"] is None


def test_tools_formats_and_probabilities() -> None:
    schema = {"type": "json_schema", "name": "s", "schema": {"type": "object"}, "strict": True}
    chat = to_chat(
        {
            "input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:x", "detail": "low"}]}],
            "tools": [LOOK],
            "tool_choice": {"type": "function", "name": "look"},
            "text": {"format": schema, "verbosity": "low"},
            "reasoning": {"effort": "low"},
            "include": ["message.output_text.logprobs", "reasoning.encrypted_content"],
            "top_logprobs": 2,
        }
    )
    assert chat["tools"] == [{"type": "function", "function": {k: v for k, v in LOOK.items() if k != "type"}}]
    assert chat["tool_choice"] == {"type": "function", "function": {"name": "look"}}
    wanted = {"name": "s", "schema": {"type": "object"}, "strict": True}
    assert chat["response_format"] == {"type": "json_schema", "json_schema": wanted}
    assert (chat["reasoning_effort"], chat["logprobs"], chat["top_logprobs"]) == ("low", True, 2)
    image = {"type": "image_url", "image_url": {"url": "data:x", "detail": "low"}}
    assert chat["messages"] == [{"role": "user", "content": [image]}]
    assert "response_format" not in to_chat({"input": "x", "text": {"format": {"type": "text"}}})
    assert "tool_choice" not in to_chat({"input": "x", "tool_choice": "auto", "tools": []})


@pytest.mark.parametrize(
    ("param", "asked"),
    [
        ("previous_response_id", {"input": "x", "previous_response_id": "resp_1"}),
        ("conversation", {"input": "x", "conversation": {"id": "conv_1"}}),
        ("prompt", {"input": "x", "prompt": {"id": "p"}}),
        ("background", {"input": "x", "background": True}),
        ("input", {}),
        ("input", {"input": []}),
        ("input", {"input": 7}),
        ("input", {"input": ["x"]}),
        ("input", {"input": [{"type": "reasoning"}]}),
        ("input", {"input": [{"type": "item_reference", "id": "x"}]}),
        ("input", {"input": [{"role": "tool", "content": "x"}]}),
        ("input", {"input": [{"role": "user"}]}),
        ("input", {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]}),
        ("input", {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "x"}]}]}),
        ("input", {"input": [{"type": "function_call", "name": "x", "arguments": {}, "call_id": "y"}]}),
        ("instructions", {"input": "x", "instructions": ["y"]}),
        ("tools", {"input": "x", "tools": [{"type": "web_search"}]}),
        ("tools", {"input": "x", "tools": {"type": "function"}}),
        ("tool_choice", {"input": "x", "tools": [LOOK], "tool_choice": {"type": "web_search"}}),
        ("text", {"input": "x", "text": {"format": {"type": "xml"}}}),
        ("text", {"input": "x", "text": "json"}),
    ],
)
def test_what_cannot_be_told_as_a_chat_is_refused(param: str, asked: dict[str, Any]) -> None:
    with pytest.raises(Unanswerable) as caught:
        to_chat(asked)
    assert caught.value.param == param


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
fields = st.sampled_from("input instructions tools tool_choice text reasoning include background prompt".split())
items = st.fixed_dictionaries({}, optional=dict.fromkeys(("type", "role", "content", "output", "call_id"), json_values))


@given(st.dictionaries(fields, json_values | st.lists(items, max_size=3)))
def test_whatever_is_sent_is_told_or_refused(asked: dict[str, Any]) -> None:
    try:
        chat = to_chat(asked)
    except Unanswerable:
        return
    assert chat["messages"]


# --- the answer -----------------------------------------------------------------------------------


def test_words_come_as_an_item_with_one_part() -> None:
    events = told([chunk(role="assistant", content=""), chunk(content="Hel"), chunk(content="lo"), chunk("stop")])
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    response = Response.model_validate(events[-1]["response"])
    assert (response.output_text, response.status, response.model) == ("Hello", "completed", "tiny")
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (3, 2, 5)
    assert response.output[0].status == "completed"
    assert events[2]["item"]["content"] == [], "what was told before does not change"
    assert response.model_dump()["store"] is False


def test_what_is_asked_is_repeated() -> None:
    asked = {"instructions": "Short.", "metadata": {"a": "b"}, "tools": [LOOK], "temperature": 0.5, "store": True}
    last = told([chunk("stop", content="x")], **asked)[-1]["response"]
    assert {name: last[name] for name in asked} == asked | {"store": False}


def test_thoughts_words_and_calls_are_items_of_their_own() -> None:
    pieces = [
        chunk(reasoning_content="Hm"),
        chunk(reasoning="m."),
        chunk(content="I look."),
        call(0, "", "look", "a"),
        call(1, '{"b"', "hear", "b"),
        call(0, '{"x": 1}'),
        call(1, ": 2}"),
        chunk("tool_calls"),
    ]
    events = told(pieces, tools=[LOOK])
    response = Response.model_validate(events[-1]["response"])
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call", "function_call"]
    thought, said, first, second = events[-1]["response"]["output"]
    assert thought["content"][0] == {"type": "reasoning_text", "text": "Hmm."}
    assert said["content"][0]["text"] == "I look."
    assert (first["name"], first["call_id"], first["arguments"]) == ("look", "a", '{"x": 1}')
    assert (second["name"], second["call_id"], second["arguments"]) == ("hear", "b", '{"b": 2}')
    grown: dict[str, str] = {}
    for event in events:
        if event["type"].endswith(".delta"):
            grown[event["item_id"]] = grown.get(event["item_id"], "") + event["delta"]
    assert list(grown.values()) == ["Hmm.", "I look.", '{"b": 2}', '{"x": 1}']
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == [thought, said, first, second]
    assert {item["status"] for item in done} == {"completed"}


@pytest.mark.parametrize(("finish", "why"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
def test_an_answer_that_was_cut_short_is_incomplete(finish: str, why: str) -> None:
    last = told([chunk(content="Hel"), chunk(finish)])[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": why}
    assert last["response"]["output"][0]["status"] == "incomplete"


def test_an_answer_that_broke_off_is_no_complete_one() -> None:
    responding = Responding({}, "tiny")
    responding.add(chunk(content="Hel"))
    (event,) = responding.broken({"code": "stream_ended", "message": "over", "type": "payment_required"})
    assert KINDS["error"].model_validate(event)
    assert (event["code"], event["error"]["type"]) == ("stream_ended", "payment_required")
    partial = responding.answer(USAGE)
    assert (partial["status"], partial["incomplete_details"]) == ("incomplete", None)


def test_an_empty_answer_is_one() -> None:
    events = told([chunk("stop")])
    assert [event["type"] for event in events] == ["response.created", "response.in_progress", "response.completed"]


def test_probabilities_come_with_their_words() -> None:
    entry = {
        "id": 5,
        "token": "a",
        "logprob": -0.1,
        "bytes": [97],
        "top_logprobs": [{"id": 6, "token": "b", "logprob": -2.5}],
    }
    piece = chunk("stop", content="a")
    piece["choices"][0]["logprobs"] = {"content": [entry]}
    events = told([piece])
    expected = [
        {
            "token": "a",
            "logprob": -0.1,
            "bytes": [97],
            "top_logprobs": [{"token": "b", "logprob": -2.5, "bytes": []}],
        }
    ]
    assert next(e for e in events if e["type"].endswith("text.delta"))["logprobs"] == expected
    assert events[-1]["response"]["output"][0]["content"][0]["logprobs"] == expected
