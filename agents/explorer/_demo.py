"""The demonstration's stage: an anvil of its own, the contracts, and an hour of traffic that goes on by the clock."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from agents.explorer._traffic import Traffic
from penstock import deployments
from penstock.chain._rpc import JsonRpc
from penstock.chain.web3 import Web3Chain
from penstock.deployments import Deployment
from penstock.errors import ConfigError
from penstock.networks import LOCAL_CHAIN_ID

HOUR = 3600
SESSIONS = 170
_ROOT = Path(__file__).resolve().parents[2]
_SLACK = 90
"""Seconds that deploying and preparing may take of the chain's time before the hour begins."""


@dataclass(frozen=True)
class Stage:
    folder: Path
    deployment: Deployment
    chain: Web3Chain
    rpc: JsonRpc
    traffic: Traffic


@asynccontextmanager
async def staged(say: Callable[[str], None]) -> AsyncIterator[Stage]:
    """Ready to be looked at; all of it is gone at the end."""
    anvil, ape = shutil.which("anvil"), Path(sys.executable).with_name("ape")
    if anvil is None or not ape.exists() or not (_ROOT / "ape-config.yaml").exists():
        raise ConfigError(
            "the demonstration deploys the contracts on a chain of its own, and needs the project's folder: "
            "run `make setup` in it, and put .toolchain/bin and .venv/bin on PATH as the README says"
        )
    with tempfile.TemporaryDirectory(prefix="penstock-explorer-") as name:
        folder = Path(name)
        began = int(time.time()) - HOUR - _SLACK
        node = await _anvil(anvil, folder, began)
        try:
            async with AsyncExitStack() as stack:
                url = await _listening(node, folder)
                say(f"a chain of its own at {url}; deploying the contracts")
                deployment = await _deploy(ape, url, folder / "31337.json")
                chain = await stack.enter_async_context(await Web3Chain.connect(url, deployment))
                rpc = JsonRpc(url, timeout=30)
                stack.push_async_callback(rpc.close)
                traffic = Traffic(chain, rpc, deployment.tokens["TUSD"], say=say)
                await traffic.prepare()
                begin = (await chain.head()).timestamp
                await traffic.run(max(60, int(time.time()) - begin), sessions=SESSIONS)
                # From here on the chain's clock is ours, and a block comes each second.
                await rpc.call("anvil_setTime", hex(int(time.time())))
                await rpc.call("evm_setIntervalMining", 1)
                say(f"to look at it from elsewhere: --rpc-url {url} --deployment {folder / '31337.json'}")
                yield Stage(folder, deployment, chain, rpc, traffic)
        finally:
            node.terminate()
            await node.wait()


async def _anvil(anvil: str, folder: Path, timestamp: int) -> asyncio.subprocess.Process:
    words = ["--port", "0", "--chain-id", str(LOCAL_CHAIN_ID), "--timestamp", str(timestamp), "--order", "fifo"]
    words += ["--base-fee", "0", "--gas-price", "50000000", "--hardfork", "cancun"]
    with (folder / "anvil.log").open("wb") as log:
        # A session of its own: Ctrl-C is for us, who end it when all is closed.
        return await asyncio.create_subprocess_exec(
            anvil, *words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )


async def _listening(node: asyncio.subprocess.Process, folder: Path) -> str:
    """Its URL, once it says so."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and node.returncode is None:
        _, found, rest = (folder / "anvil.log").read_text(errors="replace").partition("Listening on 127.0.0.1:")
        if found and "\n" in rest:
            return f"http://127.0.0.1:{rest.split()[0]}"
        await asyncio.sleep(0.05)
    raise ConfigError(f"anvil did not start:\n{(folder / 'anvil.log').read_text(errors='replace')[-800:]}")


async def _deploy(ape: Path, url: str, path: Path) -> Deployment:
    """By the real script, with Ape, which this process must not import."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    words = ("run", "deploy", "--network", "bsc:local:foundry", "--deployment", str(path))
    process = await asyncio.create_subprocess_exec(
        str(ape),
        *words,
        cwd=_ROOT,
        env=kept | {"APE_FOUNDRY_HOST": url, "PYTHONPATH": str(_ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    if process.returncode:
        raise ConfigError(f"`ape run deploy` failed:\n{said.decode(errors='replace')[-800:]}")
    return deployments.load(path)
