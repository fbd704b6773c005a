"""One folder of tiny models, and one vLLM with text and an adapter, for all modules."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from provider.engines.vllm import VllmEngine
from tests.deployed import ROOT, Deployed
from tests.harness import Node
from tests.provider.rig import Rig
from tests.provider.vllm.started import VLLM, providing, started, vllm

BASE, LORA = "base-model", "with-adapter"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of tiny models and an adapter."""
    folder = tmp_path_factory.mktemp("vllm")
    maker, corpus = Path(__file__).with_name("tiny.py"), ROOT / "provider" / "model" / "topics.txt"
    subprocess.run([VLLM / "bin" / "python", maker, folder, corpus], check=True, capture_output=True)
    return folder


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engine(folder: Path) -> AsyncIterator[VllmEngine]:
    engine = vllm(
        folder,
        "text",
        {BASE: "inner", LORA: "adapter"},
        *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
        *("--structured-outputs-config", json.dumps({"backend": "xgrammar", "disable_any_whitespace": True})),
        adapters={"adapter": str(folder / "lora")},
    )
    async with started(engine):
        yield engine


@pytest_asyncio.fixture(loop_scope="session")
async def rig(node: Node, deployed: Deployed, engine: VllmEngine, tmp_path: Path) -> AsyncIterator[Rig]:
    """Two models, one price each."""
    offers = (f"{BASE}=native:0.000001", f"{LORA}=native:0.000002")
    async with providing(node, deployed, engine, tmp_path, *offers) as rig:
        yield rig
