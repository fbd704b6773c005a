"""Answers: what the official client gets, what the engine is asked, and each request that gets none."""

from __future__ import annotations

import asyncio
import json

import httpx
import openai
import pytest

from penstock.wire.completions import CHAT, TEXT, Assembly
from provider.completions import prepare
from provider.engines import Dialect
from provider.errors import ApiError
from tests.harness import PATIENCE
from tests.provider.rig import LONG, LONG_TOKENS, MODEL, PROMPT, Buyer, EngineProcess, Rig, until


def code(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["code"])


async def test_the_official_client_gets_a_whole_answer(rig: Rig, buyer: Buyer) -> None:
    async with buyer.openai() as client:
        answer = await client.chat.completions.create(model=MODEL, messages=PROMPT, max_tokens=12, temperature=0)
    assert answer.object == "chat.completion"
    assert answer.model == MODEL
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert 0 < answer.usage.completion_tokens <= 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    await until(lambda: rig.provider.store.usage(), what="the usage on record")
    (row,) = await rig.provider.store.usage()
    counted = (row.prompt_tokens, row.completion_tokens, row.exact, row.outcome)
    assert counted == (answer.usage.prompt_tokens, answer.usage.completion_tokens, True, "done")


async def test_the_official_client_gets_pieces(buyer: Buyer) -> None:
    async with buyer.openai() as client:
        whole = await client.chat.completions.create(model=MODEL, messages=PROMPT, max_tokens=12, temperature=0)
        stream = await client.chat.completions.create(
            model=MODEL, messages=PROMPT, max_tokens=12, temperature=0, stream=True
        )
        pieces = [piece async for piece in stream]
    text = "".join(p.choices[0].delta.content or "" for p in pieces)
    assert text == whole.choices[0].message.content
    assert all(p.choices and p.usage is None for p in pieces), "nobody asked for the usage"
    assert all(p.model == MODEL for p in pieces)


async def test_usage_comes_last_where_it_is_asked_for(rig: Rig, buyer: Buyer) -> None:
    async with buyer.openai() as client:
        stream = await client.chat.completions.create(
            model=MODEL, messages=PROMPT, max_tokens=5, stream=True, stream_options={"include_usage": True}
        )
        pieces = [piece async for piece in stream]
    assert pieces[-1].choices == []
    assert 0 < pieces[-1].usage.completion_tokens <= 5
    (row,) = await until(lambda: rig.provider.store.usage(), what="the usage on record")
    assert row.completion_tokens == pieces[-1].usage.completion_tokens
    assert row.exact


async def test_text_completions(buyer: Buyer) -> None:
    async with buyer.openai() as client:
        answer = await client.completions.create(model=MODEL, prompt="Water", max_tokens=6, temperature=0)
        stream = await client.completions.create(model=MODEL, prompt="Water", max_tokens=6, temperature=0, stream=True)
        pieces = [piece async for piece in stream]
    assert answer.object == "text_completion"
    assert answer.choices[0].text == "".join(p.choices[0].text for p in pieces)
    assert answer.usage.completion_tokens > 0


async def test_logprobs_and_many_choices_come_whole(buyer: Buyer) -> None:
    async with buyer.openai() as client:
        answer = await client.chat.completions.create(
            model=MODEL, messages=PROMPT, max_tokens=5, n=2, logprobs=True, top_logprobs=2, seed=7
        )
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        said = "".join(entry.token for entry in choice.logprobs.content)
        assert said.startswith(choice.message.content)
        assert len(choice.logprobs.content[0].top_logprobs) == 2


async def test_an_answer_put_together_is_the_engines_own(buyer: Buyer, engine_child: EngineProcess) -> None:
    body = {"model": MODEL, "messages": PROMPT, "max_tokens": 20, "temperature": 0}
    async with httpx.AsyncClient(base_url=engine_child.url, timeout=PATIENCE) as http:
        own = await http.post(CHAT, json=body, headers={"authorization": f"Bearer {engine_child.key}"})
    ours = (await buyer.chat(**body)).json()
    theirs = own.json()
    assert ours["choices"][0]["message"] == theirs["choices"][0]["message"]
    assert ours["choices"][0]["finish_reason"] == theirs["choices"][0]["finish_reason"]
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert ours["usage"][name] == theirs["usage"][name]


async def test_models_on_sale(rig: Rig) -> None:
    async with openai.AsyncOpenAI(base_url=f"{rig.url}/v1", api_key="none") as client:
        models = [model async for model in client.models.list()]
    assert [model.id for model in models] == [MODEL]


@pytest.mark.parametrize(
    ("content", "status", "expected"),
    [
        (b"{not json", 400, "invalid_json"),
        (b'"text"', 400, "invalid_request"),
        (b"{}", 400, "invalid_request"),
        (b'{"model": "gpt-4o", "messages": []}', 404, "model_not_found"),
        (b'{"model": "penstock-tiny"}', 400, "invalid_request"),
        (b'{"model": "penstock-tiny", "messages": 3}', 400, "invalid_request"),
        (b'{"model": "penstock-tiny", "messages": [], "stream": "yes"}', 400, "invalid_request"),
        (b'{"model": "penstock-tiny", "messages": [], "stream_options": 1}', 400, "invalid_request"),
        (b'{"model": "penstock-tiny", "messages": [], "n": 5}', 400, "invalid_request"),
        (b'{"model": "penstock-tiny", "messages": [], "n": 0}', 400, "invalid_request"),
    ],
)
async def test_requests_that_are_none(buyer: Buyer, content: bytes, status: int, expected: str) -> None:
    answer = await buyer.rig.http.post(CHAT, content=content, headers=buyer.bearer)
    assert (answer.status_code, code(answer)) == (status, expected), answer.text
    assert set(answer.json()["error"]) >= {"message", "type", "code", "param"}


async def test_oversized_body(buyer: Buyer) -> None:
    answer = await buyer.rig.http.post(CHAT, content=b" " * (5 * 2**20), headers=buyer.bearer)
    assert (answer.status_code, code(answer)) == (413, "body_too_large")


async def test_oversized_body_of_unknown_length(buyer: Buyer) -> None:
    async def pieces() -> object:
        for _ in range(6):
            yield b" " * 2**20

    answer = await buyer.rig.http.post(CHAT, content=pieces(), headers=buyer.bearer)
    assert (answer.status_code, code(answer)) == (413, "body_too_large")


async def test_no_token_bad_token_wrong_scheme(rig: Rig, buyer: Buyer) -> None:
    bare = await rig.http.post(CHAT, json={})
    assert (bare.status_code, code(bare)) == (402, "payment_required")
    for authorization in ("Bearer pst_nonsense", "Basic abc", "Bearer", f"Basic {buyer.token}"):
        answer = await rig.http.post(CHAT, json={}, headers={"authorization": authorization})
        assert (answer.status_code, code(answer)) == (401, "invalid_token")
        assert answer.headers["www-authenticate"] == "Bearer"


async def test_unknown_routes_and_methods(rig: Rig) -> None:
    for method, path, status in (("GET", "/v1/nothing", 404), ("GET", CHAT, 405), ("DELETE", "/v1/models", 405)):
        answer = await rig.http.request(method, path)
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "code", "param"}
    for path in ("/metrics", "/slots", "/v1/messages", "/tokenize"):
        assert (await rig.http.get(path)).status_code == 404, "the engine's own routes stay inside"


def test_fields_that_would_jump_the_queue_do_not_reach_the_engine() -> None:
    body = {
        "model": MODEL,
        "messages": PROMPT,
        "temperature": 0,
        "priority": -1,
        "prompt_logprobs": 1,
        "kv_transfer_params": {},
        "vllm_xargs": {},
        "chat_template": "{{ secret }}",
        "cache_salt": "x",
        "id_slot": 0,
    }
    prepared = prepare(
        json.dumps(body).encode(),
        CHAT,
        model=MODEL,
        engine_model="inside",
        max_choices=1,
        dialect=Dialect.VLLM,
    )
    assert json.loads(prepared.payload) == {
        "model": "inside",
        "messages": PROMPT,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "return_token_ids": True,
    }
    assert not prepared.streams


def test_tool_calls_are_put_together() -> None:
    assembly = Assembly(CHAT, MODEL)
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"a"'}}
    rest = {"index": 0, "function": {"arguments": ": 1}"}}
    for delta in ({"role": "assistant", "content": None}, {"tool_calls": [call]}, {"tool_calls": [rest]}):
        assembly.add({"id": "x", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
    assembly.add({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    (choice,) = assembly.answer({})["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}],
    }


def test_text_logprobs_are_put_together() -> None:
    assembly = Assembly(TEXT, MODEL)
    for token in ("a", "b"):
        assembly.add({"choices": [{"index": 0, "text": token, "logprobs": {"tokens": [token], "text_offset": None}}]})
    (choice,) = assembly.answer({})["choices"]
    assert (choice["text"], choice["logprobs"]) == ("ab", {"tokens": ["a", "b"], "text_offset": None})


def test_a_request_for_too_many_choices_is_refused() -> None:
    with pytest.raises(ApiError, match="n is 1 to 4"):
        prepare(
            b'{"model": "m", "n": true, "prompt": ""}',
            TEXT,
            model="m",
            engine_model="m",
            max_choices=4,
            dialect=Dialect.PLAIN,
        )


async def test_a_session_has_so_many_answers_at_once(buyer: Buyer, engine_child: EngineProcess) -> None:
    async with buyer.openai() as client:
        streams = [await client.chat.completions.create(**LONG, stream=True) for _ in range(4)]
        fifth = await buyer.chat()
        assert (fifth.status_code, code(fifth)) == (429, "too_many_requests")
        assert fifth.headers["retry-after"] == "1"
        for stream in streams:
            await stream.close()

        async def admitted() -> bool:
            return (await buyer.chat()).status_code == 200

        await until(admitted, what="room for another answer")
    await until(engine_child.idle, what="the engine's slots")


async def test_a_client_that_leaves_frees_the_engine(rig: Rig, buyer: Buyer, engine_child: EngineProcess) -> None:
    for stream in (True, False):
        asking = asyncio.create_task(
            rig.http.post(
                CHAT,
                json={
                    "model": MODEL,
                    "messages": PROMPT,
                    "max_tokens": LONG_TOKENS,
                    "ignore_eos": True,
                    "stream": stream,
                },
                headers=buyer.bearer,
            )
        )

        async def generating() -> bool:
            return await engine_child.at() > 100

        await until(generating, what="the engine's work")
        asking.cancel()
        await until(engine_child.idle, what="the engine's slot")
        await until(lambda: rig.provider.admission.running == 0, what="the end of the run")
    rows = await until(lambda: _rows(rig, 2), what="both on record")
    assert {row.outcome for row in rows} == {"client_left"}
    assert all(0 < row.completion_tokens < LONG_TOKENS for row in rows), "it was stopped"


async def _rows(rig: Rig, count: int) -> list[object]:
    rows = await rig.provider.store.usage()
    return rows if len(rows) >= count else []


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}},
        {"type": "image_url", "image_url": "https://x/y.png"},
        {"type": "text", "text": "x", "image_url": {"url": "file:///etc/passwd"}},
        {"type": "video_url", "video_url": {"url": " data:x"}},
        {"type": "audio_url", "audio_url": {}},
        {"type": "image_embeds", "image_embeds": "gASV"},
        {"image_url": "http://x"},
        7,
    ],
)
def test_nothing_is_fetched_for_a_message(part: object) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "?"}, part]}]}
    with pytest.raises(ApiError) as caught:
        prepare(json.dumps(body).encode(), CHAT, model="m", engine_model="m", max_choices=1, dialect=Dialect.PLAIN)
    assert (caught.value.status, caught.value.param) == (400, "messages")


def test_what_a_message_carries_along_goes_on() -> None:
    parts = [
        "plain",
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    ]
    body = {"model": "m", "messages": [{"role": "user", "content": parts}]}
    prepared = prepare(
        json.dumps(body).encode(),
        CHAT,
        model="m",
        engine_model="m",
        max_choices=1,
        dialect=Dialect.PLAIN,
        cache_salt="s",
    )
    sent = json.loads(prepared.payload)
    assert sent["messages"][0]["content"] == parts
    assert sent["cache_salt"] == "s"
