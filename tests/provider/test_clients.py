"""Other people's clients at a provider, unchanged but for the URL and the key: tools and schemas by a real engine."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from penstock.chain.web3 import Web3Chain
from penstock.wire.receipts import NOTHING
from provider.engines.upstream import UpstreamEngine
from tests.clients import clients
from tests.deployed import Deployed
from tests.harness import PATIENCE, Node
from tests.provider.rig import MODEL, PROMPT, Buyer, EngineProcess, engine_process, running, stretched, told_by
from tests.provider.test_receipts import checked, data_in, stream

__all__ = ["clients"]

TEMPLATE = """{{- bos_token }}
{%- if tools %}
    {{- '<|system|>Call a function, as <{"name": NAME, "arguments": {...}}>, of these:' }}
    {%- for tool in tools %}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '<|end|>' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "assistant" %}
        {{- '<|assistant|>' }}
        {%- if message.content %}
            {{- message.content }}
        {%- endif %}
        {%- for call in message.tool_calls %}
            {%- if call.function is defined %}
                {%- set call = call.function %}
            {%- endif %}
            {{- '<{"name": "' + call.name + '", "arguments": ' }}
            {{- call.arguments | tojson }}
            {{- '}>' }}
        {%- endfor %}
        {{- '<|end|>' }}
    {%- elif message.role == "tool" %}
        {{- '<|user|>It says: ' + message.content + '<|end|>' }}
    {%- else %}
        {{- ('<|system|>' if message.role == "system" else '<|user|>') + message.content + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}
"""
"""The bundled model's, with tools: the engine reads from it how calls are written, and holds the model to that."""
PARAMETERS = {"type": "object", "properties": {"deep": {"type": "boolean"}}, "required": ["deep"]}
FUNCTION = {"name": "look", "description": "Look at the sea.", "parameters": PARAMETERS}
TOOLS = [{"type": "function", "function": FUNCTION}]
SCHEMA = PARAMETERS | {"additionalProperties": False}


@pytest.fixture(scope="module")
def tooled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    gguf = told_by(stretched(tmp_path_factory.mktemp("tooled") / "tooled.gguf"), TEMPLATE)
    with engine_process(gguf, slots=2) as child:
        yield child


@pytest.fixture(scope="module")
def willing(tooled: EngineProcess) -> dict[str, int]:
    """A bias by which so small a model begins a call at once, and ends its answer after it."""
    headers = {"authorization": f"Bearer {tooled.key}"}

    def token(text: str) -> str:
        asked = {"content": text, "parse_special": True}
        (found,) = httpx.post(f"{tooled.url}/tokenize", json=asked, headers=headers, timeout=PATIENCE).json()["tokens"]
        return str(found)

    return {token("<"): 100, token("<|end|>"): 200}


@pytest.fixture
async def buyer(
    tooled: EngineProcess, node: Node, chain: Web3Chain, deployed: Deployed, tmp_path: Path
) -> AsyncIterator[Buyer]:
    engine = UpstreamEngine(tooled.url, {MODEL: MODEL}, api_key=tooled.key, start_seconds=PATIENCE)
    await engine.start()
    async with running(node, chain, deployed.deployment, engine, tmp_path) as rig:
        yield await (await rig.buyer()).arrive()
    await engine.stop()


def is_call(name: str, arguments: str) -> bool:
    said = json.loads(arguments)
    return name == "look" and list(said) == ["deep"] and isinstance(said["deep"], bool)


async def test_the_openai_client_calls_tools(buyer: Buyer, willing: dict[str, int]) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": PROMPT, "tools": TOOLS, "tool_choice": "required"}
    asked |= {"parallel_tool_calls": False, "max_tokens": 300, "temperature": 0, "logit_bias": willing}
    async with buyer.openai() as client:
        whole = (await client.chat.completions.create(**asked)).choices[0]
        assert whole.finish_reason == "tool_calls"
        (call,) = whole.message.tool_calls
        assert is_call(call.function.name, call.function.arguments)
        pieces = [piece async for piece in await client.chat.completions.create(**asked, stream=True)]
        parts = [part for piece in pieces for part in piece.choices[0].delta.tool_calls or ()]
        assert [part.function.name for part in parts if part.function.name] == ["look"]
        assert "".join(part.function.arguments or "" for part in parts) == call.function.arguments
        answered = [*PROMPT, whole.message.model_dump(exclude_none=True)]
        answered += [{"role": "tool", "tool_call_id": call.id, "content": "It is deep."}]
        last = await client.chat.completions.create(model=MODEL, messages=answered, tools=TOOLS, max_tokens=5)
        assert last.choices[0].message.content
    # The engine tells no ids where there are tools: its count stands in the receipt, and no hash.
    _, lines, _ = await stream(buyer, **asked, stream_options={"include_usage": True})
    receipts = await checked(buyer)
    assert receipts[-1].completion_tokens == data_in(lines)[-1]["usage"]["completion_tokens"] > 10
    assert receipts[-1].output_hash == NOTHING
    rows = await buyer.rig.provider.store.usage()
    assert all(row.exact and row.outcome == "done" for row in rows)


async def test_the_openai_client_calls_tools_by_responses(buyer: Buyer, willing: dict[str, int]) -> None:
    asked: dict[str, Any] = {"model": MODEL, "tools": [{"type": "function", **FUNCTION}], "max_output_tokens": 300}
    forced = asked | {"tool_choice": "required", "parallel_tool_calls": False, "temperature": 0}
    forced["extra_body"] = {"logit_bias": willing}
    async with buyer.openai() as client:
        conversation: list[Any] = [{"role": "user", "content": "How deep is the sea?"}]
        whole = await client.responses.create(**forced, input=conversation)
        (call,) = whole.output
        assert (call.type, whole.status) == ("function_call", "completed")
        assert is_call(call.name, call.arguments)
        async with client.responses.stream(**forced, input=conversation) as events:
            kinds = [event.type async for event in events]
            last = await events.get_final_response()
        assert kinds.count("response.function_call_arguments.done") == 1
        assert last.output[0].arguments == call.arguments
        conversation += [call, {"type": "function_call_output", "call_id": call.call_id, "output": "Deep."}]
        answer = await client.responses.create(**asked | {"max_output_tokens": 5}, input=conversation)
        assert answer.output_text


async def test_the_openai_client_gets_json_by_a_schema(buyer: Buyer) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "depth", "schema": SCHEMA, "strict": True}}
    asked: dict[str, Any] = {"model": MODEL, "messages": PROMPT, "temperature": 0, "max_tokens": 100}
    async with buyer.openai() as client:
        for more in ({}, {"stream": True}):
            found = await client.chat.completions.create(**asked, response_format=form, **more)
            text = (
                "".join([piece.choices[0].delta.content or "" async for piece in found])
                if more
                else found.choices[0].message.content
            )
            said, _ = json.JSONDecoder().raw_decode(text)  # so small a model goes on with blanks
            assert list(said) == ["deep"]
            assert isinstance(said["deep"], bool)


LITELLM = """
import json, sys, litellm
url, key, model, bias, tools = *sys.argv[1:4], json.loads(sys.argv[4]), json.loads(sys.argv[5])
there = {"model": "openai/" + model, "api_base": url + "/v1", "api_key": key}
messages = [{"role": "user", "content": "Why is the sea salty?"}]
found = {}
answer = litellm.completion(**there, messages=messages, max_tokens=6, temperature=0)
found["whole"], found["usage"] = answer.choices[0].message.content, answer.usage.completion_tokens
pieces = litellm.completion(**there, messages=messages, max_tokens=6, stream=True)
found["stream"] = "".join(piece.choices[0].delta.content or "" for piece in pieces)
answer = litellm.completion(
    **there, messages=messages, max_tokens=300, tools=tools, tool_choice="required", parallel_tool_calls=False,
    logit_bias=bias,
)
call = answer.choices[0].message.tool_calls[0].function
found["call"] = [call.name, call.arguments]
found["text"] = litellm.text_completion(
    model="text-completion-openai/" + model, api_base=url + "/v1", api_key=key, prompt="The sea", max_tokens=3
).choices[0].text
answer = litellm.responses(**there, input="Why is the sea salty?", max_output_tokens=6)
found["response"] = answer.output[0].content[0].text
events = litellm.responses(**there, input="Why is the sea salty?", max_output_tokens=6, stream=True)
found["events"] = "".join(each.delta for each in events if each.type == "response.output_text.delta")
for name, change in (("token", {"api_key": "pst_wrong"}), ("model", {"model": "openai/gpt-9"})):
    try:
        litellm.completion(**there | change, messages=messages, num_retries=0)
    except (litellm.AuthenticationError, litellm.NotFoundError) as error:
        found[name] = type(error).__name__
print(json.dumps(found))
"""


async def test_litellm(buyer: Buyer, clients: Path, willing: dict[str, int]) -> None:
    words = (buyer.rig.url, buyer.token, MODEL, json.dumps(willing), json.dumps(TOOLS))
    known = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        clients / "python", "-c", LITELLM, *words, env=known, stdout=pipe, stderr=pipe
    )
    told, why = await asyncio.wait_for(process.communicate(), 4 * PATIENCE)
    assert process.returncode == 0, why.decode()
    found = json.loads(told.splitlines()[-1])
    assert is_call(*found.pop("call"))
    assert (found.pop("usage"), found.pop("token"), found.pop("model")) == (6, "AuthenticationError", "NotFoundError")
    assert set(found) == {"whole", "stream", "text", "response", "events"}
    assert all(found.values()), found
