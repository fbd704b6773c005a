"""`penstock serve` as a process, a real provider behind it, real clients before it, unchanged."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import openai
import pytest

from penstock.chain.web3 import Web3Chain
from penstock.keys import LocalAccount
from provider.engines.upstream import UpstreamEngine
from tests.clients import clients
from tests.deployed import Deployed
from tests.harness import PATIENCE, Node
from tests.market import COIN, MODEL, Market, finish, until
from tests.misbehaving import Slow
from tests.provider.rig import running
from tests.served import QUESTION, Serving, providing, serving

__all__ = ["clients"]

LONG = {"messages": QUESTION, "max_tokens": 900, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def provider(market: Market) -> Iterator[str]:
    with providing(market, words=("--embeddings", "mean")) as address:
        yield address


@pytest.fixture(scope="module")
def gateway(market: Market, provider: str) -> Iterator[Serving]:
    with serving(market, market.account(dollars=10**9)) as found:
        yield found


# --- clients --------------------------------------------------------------------------------------


def test_the_openai_client(gateway: Serving) -> None:
    with gateway.openai() as client:
        assert {"auto", "cheapest", "fastest", "penstock-tiny"} <= {one.id for one in client.models.list()}
        assert client.models.retrieve("penstock-tiny").id == "penstock-tiny"
        whole = client.chat.completions.create(model="auto", messages=QUESTION, max_tokens=12)
        assert whole.choices[0].message.content
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 12
        stream = client.chat.completions.create(
            model="penstock-tiny",
            messages=QUESTION,
            max_tokens=12,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            logprobs=True,
            top_logprobs=2,
        )
        chunks = list(stream)
        assert "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 12
        told = [one.choices[0].logprobs for one in chunks if one.choices and one.choices[0].logprobs]
        assert told
        assert len((told[0].content or ())[0].top_logprobs) == 2
        text = client.completions.create(model="auto", prompt="The sea is", max_tokens=5)
        assert text.choices[0].text
        response = client.responses.create(model="auto", input="The sea is", max_output_tokens=6, temperature=0)
        with client.responses.stream(model="auto", input="The sea is", max_output_tokens=6, temperature=0) as events:
            told = "".join(one.delta for one in events if one.type == "response.output_text.delta")
        assert response.output_text == told != ""
        assert response.usage is not None
        assert response.usage.output_tokens == 6
        with pytest.raises(openai.NotFoundError, match="no provider|nobody offers"):
            client.chat.completions.create(model="gpt-9", messages=QUESTION)


def test_the_openai_client_asks_one_provider(gateway: Serving, provider: str) -> None:
    with gateway.openai() as client:
        found = client.chat.completions.with_raw_response.create(
            model=f"penstock-tiny@{provider[:10]}", messages=QUESTION, max_tokens=3, n=2
        )
        assert found.headers["x-penstock-provider"] == provider
        assert len(found.parse().choices) == 2
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="penstock-tiny@0xdead", messages=QUESTION)
        with pytest.raises(openai.BadRequestError, match="n is 1 to"):
            client.chat.completions.create(model="auto", messages=QUESTION, n=500)


def test_the_ollama_client(gateway: Serving) -> None:
    with gateway.ollama() as client:
        assert "penstock-tiny" in {one.model for one in client.list().models}
        assert "completion" in (client.show("penstock-tiny").capabilities or ())
        options = {"num_predict": 8, "temperature": 0}
        whole = client.chat(model="penstock-tiny:latest", messages=QUESTION, options=options)
        assert whole.message.content
        assert (whole.done, whole.done_reason, whole.eval_count) == (True, "length", 8)
        assert whole.total_duration >= whole.eval_duration > 0
        pieces = list(client.chat(model="auto", messages=QUESTION, options=options, stream=True))
        assert "".join(one.message.content or "" for one in pieces) == whole.message.content
        assert [one.done for one in pieces] == [False] * (len(pieces) - 1) + [True]
        assert pieces[0].created_at
        generated = client.generate(model="auto", prompt="Why?", system="Be brief.", options=options)
        assert generated.response
        assert client.generate(model="auto", prompt="The sea", raw=True, options=options).response
        assert {one.model for one in client.ps().models} >= {"penstock-tiny", "auto"}
        schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
        shaped = client.chat(
            model="auto", messages=QUESTION, format=schema, options={"num_predict": 40, "temperature": 0}
        )
        assert (shaped.message.content or "").lstrip().startswith("{")
        with pytest.raises(ollama.ResponseError, match="nobody offers"):
            client.show("llama9")
        with pytest.raises(ollama.ResponseError) as caught:
            client.chat(model="llama9", messages=QUESTION)
        assert caught.value.status_code == 404


def test_embeddings_of_the_openai_client(gateway: Serving, provider: str) -> None:
    with gateway.openai() as client:
        raw = client.embeddings.with_raw_response.create(model="penstock-tiny", input=["The sea is salty.", "A gate."])
        assert raw.headers["x-penstock-provider"] == provider
        found = raw.parse()
        assert (found.model, [one.index for one in found.data]) == ("penstock-tiny", [0, 1])
        sea, gate = (one.embedding for one in found.data)
        assert len(sea) == len(gate) > 8
        assert sea != gate
        assert found.usage.prompt_tokens > 4
        (again,) = client.embeddings.create(model="penstock-tiny", input="A gate.", encoding_format="float").data
        assert again.embedding == pytest.approx(gate, abs=1e-3)
        with pytest.raises(openai.NotFoundError, match="name the model"):
            client.embeddings.create(model="auto", input="x")
        with pytest.raises(openai.BadRequestError, match="too large|larger"):
            client.embeddings.create(model="penstock-tiny", input="sea " * 3000)


def test_embeddings_of_the_ollama_client(gateway: Serving) -> None:
    with gateway.ollama() as client:
        whole = client.embed(model="penstock-tiny", input=["The sea is salty.", "A gate."])
        assert len(whole.embeddings) == 2
        assert whole.prompt_eval_count
        older = client.embeddings(model="penstock-tiny", prompt="A gate.")
        assert older.embedding == pytest.approx(whole.embeddings[1], abs=1e-3)


LITELLM = """
import json, sys, litellm
url, messages = sys.argv[1], [{"role": "user", "content": "Why is the sea salty?"}]
found = {}
answer = litellm.completion(model="openai/auto", api_base=url + "/v1", api_key="any", messages=messages, max_tokens=6)
found["openai"] = answer.choices[0].message.content
stream = litellm.completion(
    model="openai/penstock-tiny", api_base=url + "/v1", api_key="any", messages=messages, max_tokens=6, stream=True
)
found["stream"] = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
answer = litellm.completion(model="ollama_chat/penstock-tiny", api_base=url, messages=messages, max_tokens=6)
found["ollama"], found["usage"] = answer.choices[0].message.content, answer.usage.completion_tokens
try:
    litellm.completion(model="openai/gpt-9", api_base=url + "/v1", api_key="any", messages=messages, num_retries=0)
except litellm.NotFoundError as error:
    found["missing"] = str(error)
print(json.dumps(found))
"""


def test_litellm(gateway: Serving, clients: Path) -> None:
    done = subprocess.run(
        [clients / "python", "-c", LITELLM, gateway.url],
        env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert all(found[name] for name in ("openai", "stream", "ollama", "missing")), found
    assert found["usage"] == 6


def test_the_llm_tool(gateway: Serving, clients: Path, tmp_path: Path) -> None:
    asking = []
    # A folder each: llm makes its database there at its first start.
    for name, more in (("stream", ()), ("whole", ("--no-stream",))):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "extra-openai-models.yaml").write_text(
            f"- model_id: market\n  model_name: auto\n  api_base: {gateway.url}/v1\n  api_key_name: market\n"
        )
        (folder / "keys.json").write_text('{"market": "any"}')
        environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "LLM_USER_PATH": str(folder)}
        command = [str(clients / "llm"), "-m", "market", "Why is the sea salty?", "-n", *more, "-o", "max_tokens", "6"]
        asking.append(
            subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        )
    for process in asking:
        said, _ = process.communicate(timeout=4 * PATIENCE)
        assert (process.returncode, bool(said.strip())) == (0, True)


# --- ways out -------------------------------------------------------------------------------------


@pytest.fixture
async def lasting(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path
) -> AsyncIterator[dict[str, Any]]:
    """A question to a provider whose answer outlasts whatever a test does meanwhile."""
    more: dict[str, Any] = {"offers": ("native:0.00001",), "wrap": Slow(0, 0.1)}
    async with running(node, chain, deployed.deployment, engine, tmp_path, **more) as rig:
        yield LONG | {"model": f"{MODEL}@{rig.me}"}


@contextlib.asynccontextmanager
async def gateway_of(market: Market, payer: LocalAccount) -> AsyncIterator[Serving]:
    """A gateway's process, beside a provider in this one that must answer while it starts and ends."""
    starting = serving(market, payer)
    gateway = await asyncio.to_thread(starting.__enter__)
    try:
        yield gateway
    finally:
        await asyncio.to_thread(starting.__exit__, None, None, None)


async def open_streams(market: Market, chain: Web3Chain, payer: LocalAccount) -> list[Any]:
    books = await market.books(chain)
    return [key for key, _ in books.streams.values() if key.payer == payer.address]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=["SIGTERM", "Ctrl-C", "kill -9"])
async def test_whatever_ends_it_in_mid_answer_nothing_stays_open(
    market: Market, chain: Web3Chain, lasting: dict[str, Any], how: signal.Signals
) -> None:
    payer = market.account()
    async with gateway_of(market, payer) as gateway:
        async with httpx.AsyncClient(timeout=PATIENCE) as http:
            with pytest.raises(httpx.HTTPError):
                async with http.stream("POST", f"{gateway.url}/v1/chat/completions", json=lasting) as answer:
                    lines = answer.aiter_lines()
                    await anext(lines)
                    gateway.process.send_signal(how)
                    async for _ in lines:
                        pass
                    raise httpx.HTTPError("it ended")
        await asyncio.to_thread(gateway.process.wait, 2 * PATIENCE)
        left = await open_streams(market, chain, payer)
        if how is not signal.SIGKILL:
            assert left == []
    if how is signal.SIGKILL:
        assert len(left) == 1
        async with gateway_of(market, payer):
            assert await open_streams(market, chain, payer) == []
        (asked,) = (await market.penstock(payer, "history", "--json")).json["requests"]
        assert asked["outcome"] == "lost"
    await market.assert_nothing_locked(chain, payer.address)


async def test_a_client_that_hangs_up_frees_the_providers_slot(
    gateway: Serving, market: Market, lasting: dict[str, Any]
) -> None:
    async with httpx.AsyncClient(base_url=gateway.url, timeout=PATIENCE) as http:
        async with http.stream("POST", "/v1/chat/completions", json=lasting) as answer:
            name = answer.headers.get("x-penstock-request")
            async for _ in answer.aiter_lines():
                break
    assert name is None  # the head goes out before anything is bought, and says nothing of it

    async def left() -> bool:
        found = (await market.penstock(gateway.payer, "history", "--json", "--outcome", "left")).json
        return len(found["requests"]) == 1

    await until(left)


async def test_after_all_that_the_books_are_right(market: Market, chain: Web3Chain, provider: str) -> None:
    """Sessions of one gateway, by second and by token: what the records say is what the chain says, to the wei."""
    payer = market.account(dollars=10**9)
    with serving(market, payer) as gateway, gateway.openai() as client:
        for _ in range(3):
            client.chat.completions.create(model="auto", messages=QUESTION, max_tokens=8)
    await market.assert_nothing_locked(chain, payer.address)
    checked = await market.penstock(payer, "sessions", "--all", "--check", "--json")
    assert checked.code == 0, checked.err
    (session,) = checked.json
    assert (session["purchases"], session["state"], session["agrees"]) == (3, "closed", True)
    spent = 10 * COIN - await chain.native_balance(payer.address)
    assert spent == int(session["paid"]) + int(session["fees"])


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--host", "0.0.0.0"), "PENSTOCK_SERVE_API_KEY"),
        (("--host", "203.0.113.1"), "cannot listen on 203.0.113.1"),
        (("--local-url", "ftp://x"), "write such as http://127.0.0.1:11434"),
        (("--local-url", "http://x", "--local-order", "maybe"), "Invalid enum value"),
    ],
)
async def test_settings_that_cannot_be(market: Market, words: tuple[str, ...], said: str) -> None:
    key = {"PENSTOCK_SERVE_API_KEY": "k"} if "203.0.113.1" in words else {}
    done = await finish(await market.start(market.account(), "serve", "--port", "0", *words, **key))
    assert (done.code, said in done.error) == (2, True), done.err
