"""The Responses API: the official client gets all of it, and it is counted, paid, cut and signed for as chat is."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import openai
import pytest

from penstock.chain.web3 import Web3Chain
from penstock.wire.receipts import output_hash, request_hash
from penstock.wire.responses import RESPONSES
from tests.deployed import Deployed
from tests.harness import Node
from tests.provider.rig import MODEL, Buyer, EngineProcess, Rig, until
from tests.provider.test_engines import BadEngine, bad, failing, piece
from tests.provider.test_plain import DONE, LAST, ROLE, counted, event, words
from tests.provider.test_receipts import checked, data_in, ids_of, paying, receipt_in, says, with_bad
from tests.provider.test_vouchers import CREDIT_TOKENS, OFFERS

__all__ = ["bad"]

QUESTION = "Why does water flow downhill?"
BODY: dict[str, Any] = {"model": MODEL, "input": QUESTION, "max_output_tokens": 6, "temperature": 0}
PICTURE = {"type": "input_image", "image_url": "http://10.0.0.1/"}


async def lines_of(buyer: Buyer, **changes: Any) -> list[str]:
    """Of a streamed response."""
    body = BODY | {"stream": True} | changes
    answer = await buyer.rig.http.post(RESPONSES, json=body, headers=buyer.bearer)
    assert answer.status_code == 200, answer.text
    return answer.text.split("\n")


async def test_the_official_client_gets_a_response_whole_and_in_events(rig: Rig, buyer: Buyer) -> None:
    async with buyer.openai() as client:
        chat = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": QUESTION}], max_tokens=12, temperature=0
        )
        asked = {"model": MODEL, "input": QUESTION, "max_output_tokens": 12, "temperature": 0}
        whole = await client.responses.create(**asked, store=True)
        async with client.responses.stream(**asked, extra_body={"stop": [" pulls"]}) as stream:
            events = [event async for event in stream]
            last = await stream.get_final_response()
    assert whole.output_text == chat.choices[0].message.content
    assert whole.output_text.startswith(last.output_text + " pulls")
    assert (whole.object, whole.model, whole.store) == ("response", MODEL, False)
    assert (whole.status, last.status) == ("incomplete", "completed")
    assert whole.incomplete_details is not None
    assert whole.incomplete_details.reason == "max_output_tokens"
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == last.output_text
    assert whole.usage is not None
    assert last.usage is not None
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (chat.usage.prompt_tokens, 12)
    rows = await rig.provider.store.usage()
    assert [(row.completion_tokens, row.exact, row.outcome) for row in rows] == [
        (count, True, "done") for count in (12, 12, last.usage.output_tokens)
    ]


async def test_the_receipt_has_the_token_ids_and_comes_before_the_last_event(buyer: Buyer) -> None:
    body = BODY | {"stream": True}
    raw = json.dumps(body).encode()
    answer = await buyer.rig.http.post(RESPONSES, content=raw, headers=buyer.bearer)
    lines = answer.text.split("\n")
    receipt = receipt_in(lines).receipt
    assert receipt.request_hash == request_hash(raw)
    ids = await ids_of(buyer, receipt)
    assert ids is not None
    assert (len(ids), output_hash(ids)) == (6, receipt.output_hash)
    events = data_in(lines)
    usage = events[-1]["response"]["usage"]
    assert (usage["input_tokens"], usage["output_tokens"]) == (receipt.prompt_tokens, receipt.completion_tokens)
    at = next(number for number, line in enumerate(lines) if line.startswith(": penstock-receipt"))
    assert at < max(number for number, line in enumerate(lines) if line.startswith("event: response.incomplete"))
    assert not any(word in answer.text for word in ("token_ids", "timings", "post_sampling", "[DONE]"))
    assert await checked(buyer) == [receipt]


async def test_a_conversation_and_a_schema(buyer: Buyer) -> None:
    properties = {"wet": {"type": "boolean"}}
    schema = {"type": "object", "properties": properties, "required": ["wet"], "additionalProperties": False}
    async with buyer.openai() as client:
        answer = await client.responses.create(
            model=MODEL,
            instructions="Answer in JSON.",
            input=[
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Yes?"},
                {"role": "user", "content": "Wet?"},
            ],
            text={
                "format": {"type": "json_schema", "name": "answer", "schema": schema | {"additionalProperties": False}}
            },
            extra_body={"logit_bias": {}},
            max_output_tokens=200,
        )
    said, _ = json.JSONDecoder().raw_decode(answer.output_text)
    assert isinstance(said["wet"], bool)
    assert list(said) == ["wet"]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"input": None}, "input"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://10.0.0.1/"}]}]},
            "messages",
        ),
        ({"stream": "yes"}, "stream"),
    ],
)
async def test_what_is_not_answered_says_why(buyer: Buyer, changes: dict[str, Any], param: str) -> None:
    answer = await buyer.rig.http.post(RESPONSES, json=BODY | changes, headers=buyer.bearer)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    if param == "previous_response_id":
        assert "nothing" in error["message"] or "no response is stored" in error["message"]


async def test_without_money_it_is_not_begun_and_with_its_end_it_is_cut(
    rig: Rig, buyer: Buyer, engine_child: EngineProcess
) -> None:
    bare = await rig.http.post(RESPONSES, json=BODY)
    assert (bare.status_code, bare.json()["error"]["code"]) == (402, "payment_required")
    asked = {"model": MODEL, "input": QUESTION, "max_output_tokens": 15_000, "extra_body": {"ignore_eos": True}}
    async with buyer.openai() as client:
        stream = await client.responses.create(**asked, stream=True)
        heard = 0
        with pytest.raises(openai.APIError) as caught:
            async for found in stream:
                heard += found.type == "response.output_text.delta"
                if heard == 5:
                    cutting = asyncio.create_task(buyer.cancel())
        await cutting
    assert caught.value.body["code"] == "stream_closed"  # type: ignore[index]
    await until(engine_child.idle, what="the engine's slot")
    (row,) = await until(lambda: rig.provider.store.usage(), what="the usage on record")
    assert (row.outcome, row.completion_tokens >= heard) == ("stream_closed", True)
    after = await rig.http.post(RESPONSES, json=BODY, headers=buyer.bearer)
    assert (after.status_code, after.json()["error"]["code"]) == (402, "stream_closed")


async def test_no_words_are_passed_on_that_no_voucher_pays_for(
    bad: tuple[BadEngine, str], node: Node, chain: Web3Chain, deployed: Deployed, tmp_path: Path
) -> None:
    many = b"".join(event(words(f"w{at} ", at, made=at)) for at in range(1, 2 * CREDIT_TOKENS))
    async with with_bad(bad, node, chain, deployed, tmp_path, offers=OFFERS, voucher_seconds=0.1) as rig:
        one = await paying(rig)
        bad[0].act = says(event(ROLE), event(words("first ", 0, made=1)), 0.05, many)
        lines = await lines_of(one, max_output_tokens=5000)
        events, receipt = data_in(lines), receipt_in(lines).receipt
        assert bad[0].asked[-1]["max_tokens"] == 5000
        text = "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")
        assert CREDIT_TOKENS // 2 < receipt.completion_tokens <= CREDIT_TOKENS
        assert len(text.split()) == receipt.completion_tokens, "what was passed on is what is billed"
        assert events[-1]["type"] == "error"
        assert events[-1]["error"]["code"] == "voucher_needed"
        whole = await rig.http.post(RESPONSES, json=BODY, headers=one.bearer)
        assert (whole.status_code, whole.json()["error"]["code"]) == (402, "voucher_needed")
        assert await checked(one) == [receipt]


async def test_what_the_engine_says_amiss_is_told_as_an_error(
    bad: tuple[BadEngine, str], node: Node, chain: Web3Chain, deployed: Deployed, tmp_path: Path
) -> None:
    async with with_bad(bad, node, chain, deployed, tmp_path) as rig:
        buyer = await (await rig.buyer()).arrive()
        seen, lines = asyncio.Event(), list[str]()
        bad[0].act = failing(500, piece("first "), once=seen)
        async with rig.http.stream("POST", RESPONSES, json=BODY | {"stream": True}, headers=buyer.bearer) as answer:
            async for line in answer.aiter_lines():
                lines.append(line)
                if '"delta":"first "' in line:
                    seen.set()
        events = data_in(lines)
        assert [e["delta"] for e in events if e["type"] == "response.output_text.delta"] == ["first "]
        assert (events[-1]["type"], events[-1]["code"]) == ("error", "engine_error")
        bad[0].act = says(piece("Hel"), b"data: no json\n\n", piece("lo"), event(LAST | counted(2)), DONE)
        events = data_in(await lines_of(buyer))
        assert "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta") == "Hello"
        bad[0].act = says(piece("Hel"))
        events = data_in(await lines_of(buyer))
        assert (events[-1]["type"], events[-1]["code"]) == ("error", "engine_error")
