"""The Responses API over vLLM: what chat gives, with the official client, and with the same receipt."""

from __future__ import annotations

import json
from typing import Any

from penstock.wire.receipts import output_hash
from penstock.wire.responses import RESPONSES
from tests.provider.rig import PROMPT, Rig
from tests.provider.test_receipts import checked, data_in, ids_of, receipt_in, stream
from tests.provider.vllm.conftest import BASE
from tests.provider.vllm.started import MARKS, buyer_of
from tests.provider.vllm.test_surface import PARAMETERS

pytestmark = MARKS

QUESTION = PROMPT[0]["content"]


async def test_a_response_is_the_chats_answer_and_so_is_its_receipt(rig: Rig) -> None:
    buyer = await buyer_of(rig, BASE)
    _, lines, _ = await stream(buyer, model=BASE, max_tokens=8, temperature=0, ignore_eos=True)
    chat = receipt_in(lines).receipt
    said = "".join(each["choices"][0]["delta"].get("content") or "" for each in data_in(lines) if each["choices"])
    body = {"model": BASE, "input": QUESTION, "max_output_tokens": 8, "temperature": 0, "ignore_eos": True}
    answer = await rig.http.post(RESPONSES, json=body | {"stream": True}, headers=buyer.bearer)
    lines = answer.text.split("\n")
    receipt = receipt_in(lines).receipt
    assert "".join(e["delta"] for e in data_in(lines) if e["type"] == "response.output_text.delta") == said
    assert (receipt.output_hash, receipt.prompt_tokens) == (chat.output_hash, chat.prompt_tokens)
    ids = await ids_of(buyer, receipt)
    assert ids is not None
    assert (len(ids), output_hash(ids)) == (receipt.completion_tokens, receipt.output_hash) == (8, chat.output_hash)
    whole = (await rig.http.post(RESPONSES, json=body, headers=buyer.bearer)).json()
    assert whole["output"] != []
    assert whole["output"][0]["content"][0]["text"] == said
    assert whole["usage"]["output_tokens"] == 8
    assert len(await checked(buyer)) == 3


async def test_tools_schemas_and_probabilities_come_by_responses_too(rig: Rig) -> None:
    buyer = await buyer_of(rig, BASE)
    tool = {"type": "function", "name": "weather", "strict": True, "parameters": PARAMETERS}
    asked: dict[str, Any] = {"model": BASE, "input": QUESTION, "temperature": 0, "max_output_tokens": 200}
    async with buyer.openai() as client:
        for choice in ("required", {"type": "function", "name": "weather"}):
            whole = await client.responses.create(**asked, tools=[tool], tool_choice=choice)
            async with client.responses.stream(**asked, tools=[tool], tool_choice=choice) as events:
                streamed = await events.get_final_response()
            for answer in (whole, streamed):
                (call,) = answer.output
                assert (call.type, call.name, answer.status) == ("function_call", "weather", "completed")
                assert json.loads(call.arguments)["city"] in ("Oslo", "Rome")
        form = {"type": "json_schema", "name": "forecast", "schema": PARAMETERS, "strict": True}
        shaped = await client.responses.create(**asked, text={"format": form})
        assert set(json.loads(shaped.output_text)) == {"city", "days"}
        told = await client.responses.create(
            **asked | {"max_output_tokens": 5},
            include=["message.output_text.logprobs"],
            top_logprobs=2,
            extra_body={"ignore_eos": True},
        )
        logprobs = told.output[0].content[0].logprobs
        assert len(logprobs) == 5
        assert all(len(each.top_logprobs) == 2 for each in logprobs)
