"""What OpenAI's protocol offers beyond plain answers, with the official client through the provider: each asked for
whole and as a stream, which give the same."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio

from tests.provider.rig import PROMPT, Rig
from tests.provider.vllm.conftest import BASE
from tests.provider.vllm.started import MARKS, buyer_of

pytestmark = MARKS

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"enum": [1, 2]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "weather", "strict": True, "parameters": PARAMETERS}}]
CALL = {
    "type": "object",
    "properties": {"name": {"const": "weather"}, "arguments": PARAMETERS},
    "required": ["name", "arguments"],
    "additionalProperties": False,
}
TAGGED = {"type": "tag", "begin": "<tool_call>", "content": {"type": "json_schema", "json_schema": CALL}}
SPOKEN = {"type": "structural_tag", "format": TAGGED | {"end": "</tool_call>"}}
"""Has a model with random weights say what a trained one says when it calls a tool by itself."""


@pytest_asyncio.fixture(loop_scope="session")
async def client(rig: Rig) -> AsyncIterator[Any]:
    buyer = await buyer_of(rig, BASE)
    async with buyer.openai() as client:
        yield client


async def both(client: Any, **asked: Any) -> tuple[Any, Any]:
    """The same answer whole, and put together by the official client from a stream."""
    asked = {"model": BASE, "messages": PROMPT, "temperature": 0} | asked
    whole = await client.chat.completions.create(**asked)
    async with client.chat.completions.stream(**asked, stream_options={"include_usage": True}) as stream:
        async for _ in stream:
            pass
        streamed = stream.current_completion_snapshot
    assert whole.usage is not None
    assert streamed.usage is not None
    assert whole.usage.completion_tokens == streamed.usage.completion_tokens
    assert [c.finish_reason for c in whole.choices] == [c.finish_reason for c in streamed.choices]
    assert [c.message.content or "" for c in whole.choices] == [c.message.content or "" for c in streamed.choices]
    return whole, streamed


@pytest.mark.parametrize(
    "asked",
    [
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function", "function": {"name": "weather"}}},
        {"response_format": SPOKEN},
    ],
    ids=["required", "named", "by_itself"],
)
async def test_a_tool_is_called(client: Any, asked: dict[str, Any]) -> None:
    for answer in await both(client, tools=TOOLS, max_tokens=200, **asked):
        (call,) = answer.choices[0].message.tool_calls
        assert call.id
        assert (call.type, call.function.name) == ("function", "weather")
        found = json.loads(call.function.arguments)
        assert found["city"] in ("Oslo", "Rome")
        assert found["days"] in (1, 2)
        assert not answer.choices[0].message.content


async def test_a_tool_and_its_answer_go_on_to_the_model(client: Any) -> None:
    function = {"name": "weather", "arguments": '{"city": "Oslo", "days": 1}'}
    call = {"id": "call-1", "type": "function", "function": function}
    told = {"role": "tool", "tool_call_id": "call-1", "content": "snow"}
    messages = [*PROMPT, {"role": "assistant", "content": "", "tool_calls": [call]}, told]
    loose = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]
    whole, _ = await both(client, messages=messages, tools=loose, tool_choice="none", max_tokens=4)
    assert whole.choices[0].message.tool_calls is None
    bare, _ = await both(client, max_tokens=4)
    assert whole.usage.prompt_tokens > bare.usage.prompt_tokens


async def test_an_answer_has_the_shape_of_its_schema(client: Any) -> None:
    shaped = {"type": "json_schema", "json_schema": {"name": "forecast", "schema": PARAMETERS, "strict": True}}
    for answer in await both(client, response_format=shaped, max_tokens=100):
        assert answer.choices[0].finish_reason == "stop"
        assert set(json.loads(answer.choices[0].message.content)) == {"city", "days"}


async def test_probabilities_come_with_each_token(client: Any) -> None:
    whole, streamed = await both(client, logprobs=True, top_logprobs=2, max_tokens=5, extra_body={"ignore_eos": True})
    tokens = whole.choices[0].logprobs.content
    assert len(tokens) == len(streamed.choices[0].logprobs.content) == 5
    for token, again in zip(tokens, streamed.choices[0].logprobs.content, strict=True):
        assert (token.token, token.logprob) == (again.token, pytest.approx(again.logprob, abs=1e-3))
        assert len(token.top_logprobs) == 2
        assert token.top_logprobs[0].token == token.token, "the likeliest was taken"


async def test_an_answer_ends_before_its_stop(client: Any) -> None:
    full, _ = await both(client, max_tokens=30, extra_body={"ignore_eos": True})
    text = full.choices[0].message.content
    stop = text[len(text) // 2 :][:4]
    for answer in await both(client, max_tokens=30, stop=[stop], extra_body={"ignore_eos": True}):
        assert answer.choices[0].finish_reason == "stop"
        assert answer.choices[0].message.content == text[: text.index(stop)]
        assert answer.usage.completion_tokens < full.usage.completion_tokens


async def test_several_choices_and_a_seed_that_gives_them_again(client: Any) -> None:
    asked: dict[str, Any] = {"n": 3, "temperature": 1, "max_tokens": 6, "extra_body": {"ignore_eos": True}}
    whole, _ = await both(client, seed=7, **asked)
    assert len({choice.message.content for choice in whole.choices}) == 3
    assert whole.usage.completion_tokens == 18
    other, _ = await both(client, seed=8, **asked)
    assert [c.message.content for c in other.choices] != [c.message.content for c in whole.choices]


async def test_text_is_completed_whole_and_streamed(client: Any) -> None:
    asked: dict[str, Any] = {"model": BASE, "prompt": "Water flows", "max_tokens": 6, "temperature": 0, "logprobs": 1}
    asked |= {"extra_body": {"ignore_eos": True}}
    whole = (await client.completions.create(**asked)).choices[0]
    pieces = [piece async for piece in await client.completions.create(**asked, stream=True)]
    assert "".join(piece.choices[0].text for piece in pieces) == whole.text
    streamed = [token for piece in pieces for token in (piece.choices[0].logprobs or whole.logprobs).tokens]
    assert whole.logprobs is not None
    assert streamed == whole.logprobs.tokens
    assert len(streamed) == 6


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_logprobs": 999, "logprobs": True}, "logprobs"),
        ({"max_tokens": 10**6}, "max"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no"}}}},
            "schema",
        ),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "none"}}}, "tool"),
    ],
)
async def test_what_the_engine_refuses_is_a_bad_request_in_its_words(
    client: Any, wrong: dict[str, Any], said: str
) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(**{"model": BASE, "messages": PROMPT, "stream": stream} | wrong)
        assert said in caught.value.message, caught.value.message
