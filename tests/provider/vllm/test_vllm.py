"""The provider before a real vLLM that it starts itself: `make vllm-test`. Skipped where that is not installed."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from penstock.chain.web3 import Web3Chain
from penstock.wire.receipts import RECEIPT_HEADER, RECEIPTS_PATH, SignedReceipt
from provider.engines import Dialect
from provider.engines._base import session_for
from provider.engines.vllm import VllmEngine
from tests.deployed import ROOT, Deployed
from tests.harness import Node
from tests.provider.rig import Buyer, Rig, running, until

VLLM = ROOT / ".engines" / "vllm"
BASE, LORA = "base-model", "with-adapter"

pytestmark = [
    pytest.mark.skipif(not (VLLM / "bin" / "python").exists(), reason="no vLLM here: `make vllm` installs it"),
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a tiny model and an adapter."""
    folder = tmp_path_factory.mktemp("vllm")
    maker, corpus = Path(__file__).with_name("tiny.py"), ROOT / "provider" / "model" / "topics.txt"
    subprocess.run([VLLM / "bin" / "python", maker, folder, corpus], check=True, capture_output=True)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(folder: Path) -> AsyncIterator[VllmEngine]:
    os.environ |= {"VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    engine = VllmEngine(
        str(VLLM),
        str(folder / "model"),
        {BASE: "inner", LORA: "adapter"},
        context_length=4096,
        adapters={"adapter": str(folder / "lora")},
        arguments="--dtype bfloat16 --enforce-eager --max-num-seqs 8".split(),
        log_file=folder / "vllm.log",
        start_seconds=400,
        drain_seconds=20,
    )
    await engine.start()
    yield engine
    await engine.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def rig(node: Node, deployed: Deployed, engine: VllmEngine, tmp_path: Path) -> AsyncIterator[Rig]:
    """Two models, one price each."""
    offers = (f"{BASE}=native:0.000001", f"{LORA}=native:0.000002")
    async with await Web3Chain.connect(node.url, deployed.deployment) as chain:
        async with running(node, chain, deployed.deployment, engine, tmp_path, offers=offers, context_length=4096) as r:
            yield r


async def buyer_of(rig: Rig, model: str) -> Buyer:
    buyer = await rig.buyer()
    buyer.offer = next(o for o in rig.provider.seller.active if o.terms.model == model)
    return await buyer.arrive()


async def figures(engine: VllmEngine) -> dict[str, float]:
    async with session_for(engine.socket) as http, http.get(f"{engine.base_url}/metrics") as response:
        lines = (await response.text()).splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


async def generated(engine: VllmEngine) -> float:
    """Tokens so far."""
    return sum(v for name, v in (await figures(engine)).items() if name.startswith("vllm:generation_tokens_total"))


async def test_it_is_ready_on_a_socket_that_is_ours_alone(engine: VllmEngine, folder: Path) -> None:
    assert engine.trouble() is None
    assert engine.dialect is Dialect.VLLM
    assert os.stat(os.path.dirname(engine.socket)).st_mode & 0o077 == 0
    assert engine.pid is not None
    for child in psutil.Process(engine.pid).children(recursive=True):
        assert not [
            c for c in child.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr.ip != "127.0.0.1"
        ]
    assert "Application startup complete" in (folder / "vllm.log").read_text()


@pytest.mark.parametrize("model", [BASE, LORA])
async def test_each_model_is_sold_for_itself_with_ids_in_its_receipts(rig: Rig, model: str) -> None:
    buyer = await buyer_of(rig, model)
    answer = await buyer.chat(model=model, max_tokens=12, ignore_eos=True, return_token_ids=True)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    ids = body["choices"][0]["token_ids"]
    assert body["model"] == model
    assert len(ids) == body["usage"]["completion_tokens"] == 12
    receipt = SignedReceipt.parse(answer.headers[RECEIPT_HEADER]).receipt
    assert receipt.completion_tokens == 12
    found = await rig.http.get(f"{RECEIPTS_PATH}/{receipt.hash}?token_ids=1", headers=buyer.bearer)
    assert found.status_code == 200, found.text
    packed = bytes.fromhex(found.json()["token_ids"][2:])
    assert [int.from_bytes(packed[at : at + 4]) for at in range(0, len(packed), 4)] == ids
    other = LORA if model == BASE else BASE
    assert (await buyer.chat(model=other)).status_code == 404, "the session pays for one model"


async def test_what_would_cost_others_does_not_reach_it(rig: Rig) -> None:
    buyer = await buyer_of(rig, BASE)
    forbidden: dict[str, Any] = {"prompt_logprobs": 5, "chat_template": "{{ 1/0 }}", "priority": -9, "echo": True}
    answer = await buyer.chat(model=BASE, max_tokens=2, vllm_xargs={"a": 1}, kv_transfer_params={}, **forbidden)
    assert answer.status_code == 200, answer.text
    assert not answer.json().get("prompt_logprobs")
    image = [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}}]
    refused = await buyer.chat(model=BASE, messages=[{"role": "user", "content": image}])
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "url_not_fetched")


async def test_schema_logprobs_stop_n_and_seed(rig: Rig) -> None:
    buyer = await buyer_of(rig, BASE)
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    shaped = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = await buyer.chat(model=BASE, max_tokens=40, response_format=shaped, temperature=0)
    assert answer.json()["choices"][0]["message"]["content"].lstrip().startswith("{"), answer.text
    several = (await buyer.chat(model=BASE, max_tokens=3, n=2, logprobs=True, top_logprobs=2, seed=7)).json()
    assert len(several["choices"]) == 2
    assert len(several["choices"][0]["logprobs"]["content"]) == 3
    again = (await buyer.chat(model=BASE, max_tokens=3, n=2, logprobs=True, top_logprobs=2, seed=7)).json()
    assert [c["message"] for c in several["choices"]] == [c["message"] for c in again["choices"]]


async def test_an_answer_that_is_cut_frees_the_slot(rig: Rig, engine: VllmEngine) -> None:
    buyer = await buyer_of(rig, BASE)
    asked = asyncio.ensure_future(buyer.chat(model=BASE, max_tokens=4000, ignore_eos=True))
    await until(lambda: engine.running, what="generation")
    await buyer.cancel()
    answer = await asked
    assert (answer.status_code, answer.json()["error"]["code"]) == (402, "stream_closed")
    assert engine.running == 0

    async def silent() -> bool:
        before = await generated(engine)
        await asyncio.sleep(0.3)
        return await generated(engine) == before

    await until(silent, 5, "the abort")


async def test_a_restart_lets_what_runs_finish(rig: Rig, engine: VllmEngine) -> None:
    buyer = await buyer_of(rig, BASE)
    asked = asyncio.ensure_future(buyer.chat(model=BASE, max_tokens=2000, ignore_eos=True))
    await until(lambda: engine.running, what="generation")
    before = engine.pid
    restart = asyncio.ensure_future(engine.restart())
    await until(engine.trouble, what="the drain")
    refused = await buyer.chat(model=BASE)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
    answer = await asked
    assert (answer.status_code, answer.json()["usage"]["completion_tokens"]) == (200, 2000)
    assert before is not None
    workers = psutil.Process(before).children(recursive=True)
    await restart
    await until(lambda: engine.trouble() is None and engine.pid != before, 400, "the return")
    assert not [w for w in workers if w.is_running() and w.status() != psutil.STATUS_ZOMBIE]
    assert (await buyer.chat(model=BASE)).status_code == 200
