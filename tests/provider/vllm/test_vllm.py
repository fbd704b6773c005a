"""The provider before a real vLLM that it starts itself: `make vllm-test`."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import psutil
import pytest

from penstock.wire.receipts import RECEIPT_HEADER, RECEIPTS_PATH, SignedReceipt
from provider.engines import Dialect
from provider.engines.vllm import VllmEngine
from tests.provider.rig import Rig, until
from tests.provider.vllm.conftest import BASE, LORA
from tests.provider.vllm.started import MARKS, buyer_of

pytestmark = MARKS


async def test_it_is_ready_on_a_socket_that_is_ours_alone(engine: VllmEngine, folder: Path) -> None:
    assert engine.trouble() is None
    assert engine.dialect is Dialect.VLLM
    assert os.stat(os.path.dirname(engine.socket)).st_mode & 0o077 == 0
    assert engine.pid is not None
    for child in psutil.Process(engine.pid).children(recursive=True):
        assert not [
            c for c in child.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr.ip != "127.0.0.1"
        ]
    assert "Application startup complete" in (folder / "text.log").read_text()


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
