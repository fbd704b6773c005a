"""The gateway's HTTP: errors in each API's words, who is let in, what happens when a client leaves."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from agents.records.budgets import BudgetExceeded
from agents.records.ledger import Outcome
from penstock.errors import (
    AnswerCut,
    CapExceeded,
    ConfigError,
    GatewayRefused,
    GatewayUnreachable,
    InsufficientFunds,
    NodeUnavailable,
    NoOffer,
    PenstockError,
)
from tests.agents.gateway.rig import CHAT_BODY, Script, served, words
from tests.harness import PATIENCE


async def test_a_stream_is_openais_and_holds_what_was_asked_for(tmp_path: Path) -> None:
    async with served(tmp_path) as gateway:
        plain = await gateway.http.post("/v1/chat/completions", json=CHAT_BODY | {"stream": True})
        assert plain.headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("data: ") for line in plain.text.splitlines() if line.startswith("data: ")]
        assert events[-1] == "[DONE]"
        chunks = [json.loads(event) for event in events[:-1]]
        assert "".join(one["choices"][0]["delta"].get("content", "") for one in chunks) == "Hello you"
        assert not any("usage" in one or "token_ids" in one["choices"][0] for one in chunks)
        assert ": x-penstock-cost 0.00001 BNB" in plain.text

        asked = CHAT_BODY | {"stream": True, "stream_options": {"include_usage": True}, "return_token_ids": True}
        full = await gateway.http.post("/v1/chat/completions", json=asked)
        chunks = [json.loads(line[6:]) for line in full.text.splitlines() if line.startswith("data: {")]
        assert chunks[-1]["usage"]["completion_tokens"] == 2
        assert chunks[0]["choices"][0]["token_ids"] == [1]


async def test_responses_are_asked_as_chats(tmp_path: Path) -> None:
    asked = {"model": "tiny", "input": "Hi", "max_output_tokens": 5, "store": True, "return_token_ids": True}
    async with served(tmp_path) as gateway:
        whole = await gateway.http.post("/v1/responses", json=asked)
        assert whole.headers["x-penstock-cost"] == "0.00001 BNB"
        response = whole.json()
        assert response["output"][0]["content"][0]["text"] == "Hello you"
        assert (response["object"], response["status"], response["model"]) == ("response", "completed", "tiny")
        assert (response["usage"]["input_tokens"], response["usage"]["output_tokens"]) == (3, 2)
        streamed = await gateway.http.post("/v1/responses", json=asked | {"stream": True})
        events = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: ")]
        assert "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta") == "Hello you"
        assert events[-1]["type"] == "response.completed"
        assert events[-1]["response"]["usage"] == response["usage"]
        assert ": x-penstock-cost 0.00001 BNB" in streamed.text
        assert {job.path for job in gateway.script.jobs} == {"/v1/chat/completions"}
        message = {"role": "user", "content": "Hi"}
        assert [job.body for job in gateway.script.jobs] == [{"messages": [message], "max_tokens": 5}] * 2
        refused = await gateway.http.post("/v1/responses", json=asked | {"previous_response_id": "resp_1"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "previous_response_id")
        gateway.script.chunks = [words("Hel")[0], AnswerCut("stalled", "it stalled")]
        cut = await gateway.http.post("/v1/responses", json=asked | {"stream": True})
        last = json.loads([line for line in cut.text.splitlines() if line][-1].removeprefix("data: "))
        assert (last["type"], last["message"], last["error"]["code"]) == ("error", "it stalled", "answer_cut")
        whole = await gateway.http.post("/v1/responses", json=asked)
        assert (whole.status_code, whole.json()["error"]["code"]) == (502, "answer_cut")
        outcomes = [Outcome.DONE] * 2 + [Outcome.FAILED] * 2
        assert sorted(one.outcome for one in gateway.ledger.requests()) == sorted(outcomes)


async def test_what_the_client_sends_goes_on_and_what_is_ours_does_not(tmp_path: Path) -> None:
    asked = {"tools": [{"type": "function"}], "logprobs": True, "n": 2, "seed": 4, "x": None}
    async with served(tmp_path) as gateway:
        await gateway.http.post("/v1/chat/completions", json=CHAT_BODY | asked | {"model": "fastest/tiny@0xab"})
        (job,) = gateway.script.jobs
        assert job.body == {"messages": CHAT_BODY["messages"], **asked}
        assert (job.wish.policy, job.wish.model, job.wish.provider) == ("fastest", "tiny", "0xab")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (NoOffer("nobody offers tiny"), 404, "model_not_found"),
        (InsufficientFunds("no money"), 402, "insufficient_funds"),
        (BudgetExceeded("used up"), 402, "budget_exceeded"),
        (CapExceeded("day", "cap", contract=True), 402, "cap_exceeded"),
        (NodeUnavailable("no node"), 503, "node_unavailable"),
        (ConfigError("bad key"), 500, "wrong_settings"),
        (GatewayUnreachable("gone"), 502, "provider_failed"),
        (GatewayRefused(400, "invalid_request", "n is 1 to 4"), 400, "invalid_request"),
        (GatewayRefused(503, "engine_unavailable", "later"), 502, "provider_failed"),
    ],
)
async def test_errors_are_in_the_words_of_each_api(
    tmp_path: Path, error: PenstockError, status: int, code: str
) -> None:
    async with served(tmp_path, Script(refusal=error)) as gateway:
        openai = await gateway.http.post("/v1/chat/completions", json=CHAT_BODY)
        ollama = await gateway.http.post("/api/chat", json=CHAT_BODY)
        assert openai.status_code == ollama.status_code == status
        assert (openai.json()["error"]["code"], openai.json()["error"]["message"]) == (code, str(error))
        assert ollama.json() == {"error": str(error)}
        assert [(one.outcome, one.problem) for one in gateway.ledger.requests()] == [(Outcome.FAILED, str(error))] * 2


async def test_an_error_of_ours_is_told_and_not_explained(tmp_path: Path) -> None:
    script = Script(refusal=RuntimeError("secret"))  # type: ignore[arg-type]
    async with served(tmp_path, script) as gateway:
        answer = await gateway.http.post("/v1/chat/completions", json=CHAT_BODY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
        assert "secret" not in answer.text


async def test_an_error_in_mid_answer_is_the_last_thing_said(tmp_path: Path) -> None:
    script = Script(chunks=[words("Hel")[0], AnswerCut("stalled", "it stalled")])
    async with served(tmp_path, script) as gateway:
        openai = await gateway.http.post("/v1/chat/completions", json=CHAT_BODY | {"stream": True})
        events = [line for line in openai.text.splitlines() if line]
        assert json.loads(events[-1].removeprefix("data: "))["error"]["message"] == "it stalled"
        assert "[DONE]" not in openai.text
        ollama = await gateway.http.post("/api/chat", json=CHAT_BODY)
        assert [json.loads(line) for line in ollama.text.splitlines()][-1] == {"error": "it stalled"}
        whole = await gateway.http.post("/v1/chat/completions", json=CHAT_BODY)
        assert (whole.status_code, whole.json()["error"]["code"]) == (502, "answer_cut")
        assert {one.outcome for one in gateway.ledger.requests()} == {Outcome.FAILED}


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/v1/chat/completions", b"{", "not JSON"),
        ("/v1/chat/completions", b"[]", "not a JSON object"),
        ("/v1/chat/completions", b"{}", "model is missing"),
        ("/v1/chat/completions", b'{"model": "tiny"}', "messages is missing"),
        ("/v1/chat/completions", b'{"model": 5}', "model is not of the type str"),
        ("/v1/completions", b'{"model": "tiny"}', "prompt is missing"),
        ("/v1/embeddings", b'{"model": "tiny"}', "input is missing"),
        ("/v1/chat/completions", b'{"model": "tiny", "messages": [], "stream": "yes"}', "stream is not"),
        ("/api/generate", b'{"prompt": "Hi"}', "model is missing"),
    ],
)
async def test_requests_that_are_none(tmp_path: Path, path: str, body: bytes, said: str) -> None:
    async with served(tmp_path) as gateway:
        answer = await gateway.http.post(path, content=body)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert said in (error if isinstance(error, str) else error["message"])
        assert gateway.script.jobs == []


@pytest.mark.parametrize(
    "name", ["tiny@nobody", "auto/", "@0xab", "tiny@local"], ids=["no address", "no model", "no name", "no engine"]
)
async def test_names_that_mean_nothing(tmp_path: Path, name: str) -> None:
    async with served(tmp_path) as gateway:
        answer = await gateway.http.post("/v1/chat/completions", json=CHAT_BODY | {"model": name})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


async def test_unknown_paths_say_where_the_apis_are(tmp_path: Path) -> None:
    async with served(tmp_path) as gateway:
        assert "OpenAI is below /v1" in (await gateway.http.get("/v1/nothing")).json()["error"]["message"]
        assert "Ollama below /api" in (await gateway.http.get("/api/nothing")).json()["error"]
        assert (await gateway.http.get("/v1/chat/completions")).status_code == 405
        assert (await gateway.http.get("/v1/models/other")).status_code == 404
        gone = await gateway.http.post("/api/create", json={"model": "x"})
        assert (gone.status_code, "bought" in gone.json()["error"]) == (501, True)


# --- who may ---


async def test_pages_and_rebound_names_are_turned_away(tmp_path: Path) -> None:
    async with served(tmp_path, hosts=["box"], origins=["http://ui"]) as gateway:
        for header, value, status in (
            ("host", "evil.example", 403),
            ("host", "[::1]:80", 200),
            ("host", "localhost:1", 200),
            ("host", "BOX", 200),
            ("origin", "http://evil.example", 403),
            ("origin", "null", 403),
            ("origin", "http://ui", 200),
        ):
            answer = await gateway.http.post("/v1/chat/completions", json=CHAT_BODY, headers={header: value})
            assert answer.status_code == status, (header, value)
            assert "access-control-allow-origin" not in answer.headers
        assert len(gateway.script.jobs) == 4


async def test_a_key_is_asked_of_all(tmp_path: Path) -> None:
    async with served(tmp_path, key="abc", hosts=["*"]) as gateway:
        for given, status in (("", 401), ("Bearer abd", 401), ("Bearer abc", 200)):
            headers = {"authorization": given} if given else {}
            assert (await gateway.http.get("/api/tags", headers=headers)).status_code == status
            answer = await gateway.http.post("/v1/chat/completions", json=CHAT_BODY, headers=headers)
            assert answer.status_code == status
        away = {"host": "evil.example", "authorization": "Bearer abc"}
        assert (await gateway.http.get("/v1/models", headers=away)).status_code == 200


# --- leaving ---


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
async def test_a_client_that_hangs_up_stops_the_purchase(tmp_path: Path, path: str) -> None:
    script = Script(chunks=words(*["x"] * 5000), pace=0.01)
    async with served(tmp_path, script) as gateway:
        async with gateway.http.stream("POST", path, json=CHAT_BODY | {"stream": True}) as answer:
            async for _ in answer.aiter_lines():
                break
        async with asyncio.timeout(PATIENCE):
            await script.closed.wait()
        assert script.said < 5000
        (asked,) = gateway.ledger.requests()
        assert asked.outcome is Outcome.LEFT


async def test_so_does_one_that_waits_for_the_whole(tmp_path: Path) -> None:
    script = Script(chunks=words(*["x"] * 5000), pace=0.01)
    async with served(tmp_path, script) as gateway:
        asking = asyncio.create_task(gateway.http.post("/v1/chat/completions", json=CHAT_BODY))
        while not script.said:
            await asyncio.sleep(0.01)
        asking.cancel()
        async with asyncio.timeout(PATIENCE):
            await script.closed.wait()
        assert script.said < 5000


async def test_many_clients_at_once(tmp_path: Path) -> None:
    async with served(tmp_path, Script(chunks=words("a", "b"), pace=0.02)) as gateway:
        posts = [gateway.http.post("/api/chat", json=CHAT_BODY | {"stream": False}) for _ in range(20)]
        found = [answer.json() for answer in await asyncio.gather(*posts)]
        assert {one["message"]["content"] for one in found} == {"ab"}
        asked = gateway.ledger.requests()
        assert [(one.outcome, len(one.purchases)) for one in asked] == [(Outcome.DONE, 1)] * 20


# --- the rest of Ollama ---


async def test_ollamas_lists(tmp_path: Path) -> None:
    async with served(tmp_path) as gateway:
        names = [one["name"] for one in (await gateway.http.get("/api/tags")).json()["models"]]
        assert names == ["auto", "cheapest", "fastest", "tiny"]
        shown = (await gateway.http.post("/api/show", json={"model": "tiny"})).json()
        assert shown["model_info"]["penstock.context_length"] == 1024
        assert (await gateway.http.post("/api/show", json={"model": "big"})).status_code == 404
        assert (await gateway.http.get("/api/ps")).json() == {"models": []}
        await gateway.http.post("/api/chat", json=CHAT_BODY)
        (running,) = (await gateway.http.get("/api/ps")).json()["models"]
        assert running["name"] == "tiny"
        pulled = await gateway.http.post("/api/pull", json={"model": "tiny"})
        assert json.loads(pulled.text) == {"status": "success"}
        assert (await gateway.http.post("/api/pull", json={"model": "big"})).status_code == 404
        loaded = (await gateway.http.post("/api/generate", json={"model": "tiny"})).json()
        assert (loaded["done"], loaded["done_reason"]) == (True, "load")
        assert len(gateway.script.jobs) == 1
        assert (await gateway.http.get("/")).text == "Penstock is running"


async def test_embeddings_are_asked_of_the_market(tmp_path: Path) -> None:
    async with served(tmp_path) as gateway:
        for path, name in (("/v1/embeddings", "input"), ("/api/embed", "input"), ("/api/embeddings", "prompt")):
            gateway.script.refusal = NoOffer("nobody gives embeddings")
            answer = await gateway.http.post(path, json={"model": "tiny", name: "a"})
            assert answer.status_code == 404
            assert "nobody gives embeddings" in answer.text
        assert [(job.path, job.body) for job in gateway.script.jobs] == [("/v1/embeddings", {"input": "a"})] * 3
