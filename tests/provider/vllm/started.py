"""A real vLLM that the provider starts itself, with a tiny model. Skipped where that is not installed: `make vllm`."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from penstock.chain.web3 import Web3Chain
from provider.engines import Engine, Fleet
from provider.engines._base import session_for
from provider.engines.vllm import VllmEngine
from tests.deployed import ROOT, Deployed
from tests.harness import Node
from tests.provider.rig import Buyer, Rig, running

VLLM = ROOT / ".engines" / "vllm"
CONTEXT = 32_768
"""Tokens, so that an answer can last for half a minute and more."""
RUNNING, GENERATED = "vllm:num_requests_running", "vllm:generation_tokens_total"

MARKS = [
    pytest.mark.skipif(not (VLLM / "bin" / "python").exists(), reason="no vLLM here: `make vllm` installs it"),
    pytest.mark.asyncio(loop_scope="session"),
]
"""Of every module here. One loop for all, so that they share engines that take half a minute to start."""


def vllm(
    folder: Path,
    kind: str,
    models: Mapping[str, str],
    *more: str,
    context_length: int = CONTEXT,
    adapters: Mapping[str, str] | None = None,
    log: str = "",
) -> VllmEngine:
    """Of one of the models in `folder`; to be started and stopped."""
    os.environ |= {"VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    return VllmEngine(
        str(VLLM),
        str(folder / kind),
        models,
        context_length=context_length,
        adapters=adapters or {},
        arguments=[*"--dtype bfloat16 --enforce-eager --max-num-seqs 8".split(), *more],
        log_file=folder / f"{log or kind}.log",
        start_seconds=400,
        drain_seconds=20,
        check_seconds=30,  # on a machine that others keep busy, a look can last
    )


@asynccontextmanager
async def started(*engines: VllmEngine) -> AsyncIterator[Fleet]:
    fleet = Fleet(engines)
    try:
        await fleet.start()
        yield fleet
    finally:
        await fleet.stop()


@asynccontextmanager
async def providing(
    node: Node, deployed: Deployed, engine: Engine | Fleet, folder: Path, *offers: str, **changes: Any
) -> AsyncIterator[Rig]:
    """A provider that sells what the engine has."""
    given: dict[str, Any] = {"offers": offers, "context_length": CONTEXT} | changes
    async with await Web3Chain.connect(node.url, deployed.deployment) as chain:
        async with running(node, chain, deployed.deployment, engine, folder, **given) as rig:
            yield rig


async def buyer_of(rig: Rig, model: str, duration: int = 600) -> Buyer:
    buyer = await rig.buyer()
    buyer.offer = next(o for o in rig.provider.seller.active if o.terms.model == model)
    return await buyer.arrive(duration)


async def figure(engine: Engine, name: str) -> float:
    """One of vLLM's own metrics, summed over its labels."""
    async with session_for(engine.socket) as http, http.get(f"{engine.base_url}/metrics") as response:
        lines = (await response.text()).splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))
