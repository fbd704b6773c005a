"""One answer out of several providers' parts, and what each is asked for."""

from __future__ import annotations

from typing import Any

import pytest

from agents.buyer import Job, Wish
from agents.buyer._delivered import Delivered
from penstock.consumer import Usage
from penstock.wire.completions import CHAT, TEXT

ASKED = [{"role": "user", "content": "Why?"}]


def delivered(path: str = CHAT, **body: Any) -> Delivered:
    body.setdefault(*(("messages", ASKED) if path == CHAT else ("prompt", "Why? ")))
    return Delivered(Job(path, body, Wish()))


def delta(text: str | None = None, *, id: str = "a", ids: list[int] | None = None, **more: Any) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "delta": {"content": text} if text is not None else {}, "finish_reason": None}
    choice["delta"] |= {name: more.pop(name) for name in ("role", "tool_calls", "reasoning_content") if name in more}
    if ids is not None:
        choice["token_ids"] = ids
    return {"id": id, "created": 1, "object": "chat.completion.chunk", "choices": [choice | more]}


def piece(text: str, ids: list[int] | None = None) -> dict[str, Any]:
    return {"id": "a", "choices": [{"index": 0, "text": text, **({"token_ids": ids} if ids is not None else {})}]}


def test_the_rest_of_a_chat_is_asked_for_with_what_was_said() -> None:
    one = delivered(max_tokens=10, temperature=0)
    one.take(delta("Because", role="assistant"))
    one.take(delta(" of"))
    one.part_ended(Usage(5, 2, 7))
    rest = one.rest()
    assert rest is not None
    assert rest.path == CHAT
    assert rest.body == {
        "messages": [*ASKED, {"role": "assistant", "content": "Because of"}],
        "max_tokens": 8,
        "temperature": 0,
        "continue_final_message": True,
        "add_generation_prompt": False,
    }


def test_what_the_client_had_put_into_the_assistants_mouth_stays_there() -> None:
    one = delivered(messages=[*ASKED, {"role": "assistant", "content": "Well, "}])
    one.take(delta("because"))
    rest = one.rest()
    assert rest is not None
    assert rest.body["messages"] == [*ASKED, {"role": "assistant", "content": "Well, because"}]


def test_known_tokens_are_named_and_nothing_is_tokenized_anew() -> None:
    one = delivered(max_tokens=10)
    first = delta("Because", ids=[7]) | {"prompt_token_ids": [1, 2, 3]}
    assert "prompt_token_ids" not in (one.take(first) or {})
    one.take(delta(" of", ids=[8]))
    one.part_ended(Usage(3, 2, 5))
    rest = one.rest()
    assert rest is not None
    assert (rest.path, rest.body) == (TEXT, {"prompt": [1, 2, 3, 7, 8], "max_tokens": 8})
    told = one.take(piece(" water", [9]))
    assert told is not None
    assert told["choices"][0]["delta"] == {"content": " water"}
    assert told["object"] == "chat.completion.chunk"


@pytest.mark.parametrize(
    "last", [delta("", ids=[9]), delta("x")], ids=["half a character is on its way", "an id was not told"]
)
def test_tokens_that_are_not_the_text_are_not_named(last: dict[str, Any]) -> None:
    one = delivered()
    one.take(delta("Because", ids=[7]) | {"prompt_token_ids": [1]})
    one.take(last)
    rest = one.rest()
    assert rest is not None
    assert rest.path == CHAT


def test_the_rest_of_a_text_follows_the_prompt() -> None:
    one = delivered(TEXT)
    one.take(piece("because"))
    rest = one.rest()
    assert rest is not None
    assert (rest.path, rest.body) == (TEXT, {"prompt": "Why? because"})
    one = delivered(TEXT, prompt=[1, 2])
    one.take(piece("because"))
    assert one.rest() is None, "its tokens are not known"


def test_before_the_first_word_all_is_asked_for_again() -> None:
    one = delivered(n=2, tools=[{}], max_tokens=10)
    one.take(delta(role="assistant"))
    rest = one.rest()
    assert rest is not None
    assert rest.body == {"messages": ASKED, "n": 2, "tools": [{}], "max_tokens": 10}


@pytest.mark.parametrize(
    ("body", "chunk"),
    [
        ({"n": 2}, delta("x")),
        ({}, delta(tool_calls=[{"index": 0}])),
        ({}, delta(reasoning_content="hm")),
        ({"response_format": {"type": "json_object"}}, delta("{")),
    ],
    ids=["several choices", "a call of a tool", "reasoning", "constrained output"],
)
def test_what_is_more_than_text_is_not_continued(body: dict[str, Any], chunk: dict[str, Any]) -> None:
    one = delivered(**body)
    one.take(chunk)
    assert one.rest() is None


def test_the_client_sees_one_answer() -> None:
    one = delivered()
    told = [one.take(delta("a", role="assistant", ids=[1])), one.take(delta("b", timings={"predicted_n": 2}))]
    one.part_ended(Usage(5, 2, 7))
    told += [one.take(delta("c", id="b", role="assistant")), one.take({"choices": [], "usage": {}})]
    assert not one.finished
    told.append(one.take(delta(finish_reason="stop", id="b")))
    one.part_ended(Usage(7, 1, 8))
    assert one.finished
    assert told[3] is None
    shown = [chunk for chunk in told if chunk is not None]
    assert {chunk["id"] for chunk in shown} == {"a"}
    assert ["role" in chunk["choices"][0]["delta"] for chunk in shown] == [True, False, False, False]
    assert not any("token_ids" in chunk["choices"][0] or "timings" in chunk for chunk in shown)
    assert one.last("m") == {
        "id": "a",
        "created": 1,
        "object": "chat.completion.chunk",
        "model": "m",
        "choices": [],
        "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
    }


def test_who_asked_for_token_ids_gets_them() -> None:
    one = delivered(return_token_ids=True)
    told = one.take(delta("a", ids=[1]) | {"prompt_token_ids": [5]})
    assert told is not None
    assert (told["choices"][0]["token_ids"], told["prompt_token_ids"]) == ([1], [5])


def test_an_answer_that_has_all_its_tokens_ends() -> None:
    one = delivered(max_tokens=2)
    one.take(delta("a"))
    one.part_ended(Usage(5, 1, 6))
    assert not one.exhausted
    one.take(delta("b"))
    one.part_ended(Usage(6, 1, 7))
    assert one.exhausted
    assert one.cut_short("m")["choices"] == [{"index": 0, "finish_reason": "length", "delta": {}}]
    assert one.finished
