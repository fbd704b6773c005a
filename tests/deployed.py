"""Fixtures: the contracts on a local chain, deployed once a run by the real `ape run deploy`.

A folder's conftest takes them by name:

    from tests.deployed import chain, deployed, node

`deployed` runs the script against a node and keeps the state; `node` gives each test module an anvil of its own that
continues from there, within a fraction of a second. Both work under pytest-xdist: the first worker deploys.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from penstock import deployments
from penstock.chain.web3 import Web3Chain
from penstock.deployments import Deployment
from tests.harness import PATIENCE, Node

ROOT = Path(__file__).parents[1]
DEPLOY_WITHIN = 540
"""Seconds; a first run compiles the contracts, and demonstrations start dozens of processes on a busy machine."""


@dataclass(frozen=True)
class Deployed:
    """Penstock on a local chain, to be loaded into any number of nodes."""

    deployment: Deployment
    path: Path
    """The deployment file."""
    state: Path
    """anvil's state: `Node(load_state=...)`."""

    def environment(self, node: Node) -> dict[str, str]:
        """For a provider's or consumer's process that is to use this node."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
        return kept | {
            "PENSTOCK_NETWORK": "local",
            "PENSTOCK_RPC_URL": node.url,
            "PENSTOCK_DEPLOYMENT": str(self.path),
            "PYTHONPATH": str(ROOT),
        }


def ape(*words: str, node: Node | None, **more: str) -> subprocess.CompletedProcess[str]:
    """Run an Ape command of this project, against a node or whatever the environment says; any exit code."""
    names = ("APE_FOUNDRY_HOST", "PENSTOCK_ACCOUNT", "PENSTOCK_DEPLOYMENT", "PENSTOCK_RPC_URL")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {"PYTHONPATH": str(ROOT)} | ({"APE_FOUNDRY_HOST": node.url} if node else {}) | more
    command = [str(Path(sys.executable).with_name("ape")), *words]
    with data_folder(environment) as environment["APE_DATA_FOLDER"]:
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=DEPLOY_WITHIN, check=False
        )


@contextmanager
def data_folder(environment: Mapping[str, str]) -> Iterator[str]:
    """Ape's, but for the list of its nodes: a process deletes that file and writes it anew while another reads it."""
    shared = Path(environment.get("APE_DATA_FOLDER") or Path.home() / ".ape")
    with tempfile.TemporaryDirectory(prefix="penstock-ape-") as own:
        for entry in shared.glob("*"):
            if entry.name != "processes":
                Path(own, entry.name).symlink_to(entry.resolve())
        yield own


def deploy(folder: Path) -> Deployed:
    """Run the script against a node of its own, and keep what it did in `folder`."""
    path = folder / "deployment.json"
    with Node() as node:
        done = ape("run", "deploy", "--network", "bsc:local:foundry", "--deployment", str(path), node=node)
        assert done.returncode == 0, f"`ape run deploy` failed:\n{done.stdout}\n{done.stderr}"
        state = node.dump(folder / "state.json")
    return Deployed(deployments.load(path), path, state)


@pytest.fixture(scope="session")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    """Penstock deployed, once for all workers of the run."""
    folder = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        folder = folder.parent  # each worker has a folder in the run's
    folder = folder / "deployed"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path, state = folder / "deployment.json", folder / "state.json"
        if state.exists():
            return Deployed(deployments.load(path), path, state)
        return deploy(folder)


@pytest.fixture(scope="module")
def node(deployed: Deployed) -> Iterator[Node]:
    """An anvil of the module's own with the contracts on it; a block for each transaction."""
    with Node(load_state=deployed.state) as node:
        yield node


@pytest.fixture
async def chain(node: Node, deployed: Deployed) -> AsyncIterator[Web3Chain]:
    """The SDK's view of the module's node."""
    waits = {"request_timeout": PATIENCE, "receipt_timeout": 2 * PATIENCE}
    async with await Web3Chain.connect(node.url, deployed.deployment, **waits) as chain:
        yield chain
