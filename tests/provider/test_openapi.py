"""The gateway against its own OpenAPI document: whatever is sent, it never fails by itself."""

from __future__ import annotations

import asyncio
import json
import shutil

import hypothesis
import pytest
import schemathesis
from hypothesis import strategies as st
from schemathesis.specs.openapi.schemas import OpenApiSchema

from tests.harness import PATIENCE
from tests.profiles import PROFILE
from tests.provider.rig import MODEL, PROMPT, Buyer, Rig

CASES = {"quick": 6, "ci": 10, "deep": 400}[PROFILE.name]


async def test_the_document_names_every_route(rig: Rig) -> None:
    document = (await rig.http.get("/openapi.json")).json()
    named = {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/penstock/sessions", "/v1/models"}
    assert named <= set(document["paths"])
    again = (await rig.http.get("/openapi.json")).json()
    assert again == document
    assert "SessionRequest" in document["components"]["schemas"]


@pytest.mark.parametrize(
    ("path", "asked", "end"),
    [
        ("chat/completions", {"messages": PROMPT, "max_tokens": 4}, b"data: [DONE]\n\n"),
        ("responses", {"input": "Hi", "max_output_tokens": 4}, b"}}\n\n"),
    ],
    ids=["chat", "responses"],
)
async def test_curl_is_a_client(rig: Rig, buyer: Buyer, path: str, asked: dict[str, object], end: bytes) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("no curl here")
    body = json.dumps({"model": MODEL, "stream": True} | asked)
    words = ("-sSN", f"{rig.url}/v1/{path}", "-H", f"Authorization: Bearer {buyer.token}", "-d", body)
    process = await asyncio.create_subprocess_exec(curl, *words, stdout=asyncio.subprocess.PIPE)
    said, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode == 0
    assert said.endswith(end)
    assert said.count(b'"delta"') >= 4


async def test_nothing_that_is_sent_makes_it_fail(rig: Rig, buyer: Buyer) -> None:
    seen: list[int] = []
    spare = await (await rig.buyer()).arrive()  # whose token is revoked on the way

    def work() -> None:
        schema = schemathesis.openapi.from_url(f"{rig.url}/openapi.json")
        assert isinstance(schema, OpenApiSchema)
        for found in schema.get_all_operations():
            operation = found.ok()
            cases = operation.as_strategy() | operation.as_strategy(
                generation_mode=schemathesis.GenerationMode.NEGATIVE
            )

            @hypothesis.settings(
                max_examples=CASES, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
            )
            @hypothesis.given(case=cases, paid=st.booleans())
            def attempt(case: schemathesis.Case, paid: bool) -> None:
                headers = (spare if case.method == "DELETE" else buyer).bearer if paid else {}
                answer = case.call(base_url=rig.url, headers=headers, timeout=PATIENCE)
                seen.append(answer.status_code)
                assert answer.status_code < 500, (case.as_curl_command(), answer.status_code, answer.text)

            attempt()

    await asyncio.to_thread(work)
    assert len(set(seen)) >= 4, "it is not refused everything for one reason"
    assert (await buyer.chat()).status_code in (200, 402), "it still answers"
