"""An explorer's store on both databases, and a chain with a market's history on it."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agents.explorer._feed import Feed
from agents.explorer._indexer import Indexer
from agents.explorer._store import Store
from agents.explorer._traffic import Traffic, play
from penstock.chain._rpc import JsonRpc
from penstock.chain.web3 import Web3Chain
from penstock.deployments import Deployment
from tests.deployed import Deployed, deployed
from tests.harness import Node

__all__ = ["deployed"]

POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
"""Where Debian keeps it, off PATH."""


class Rig:
    """One store on one chain, and an indexer between them."""

    def __init__(self, node: Node, deployment: Deployment, chain: Web3Chain, rpc: JsonRpc, store: Store) -> None:
        self.node, self.deployment, self.chain, self.rpc, self.store = node, deployment, chain, rpc, store
        self.feed = Feed(rpc, deployment)
        self.indexer = self.another()

    async def live(self, *, sessions: int = 5, seconds: int = 100) -> None:
        """More of the market, in blocks that can be reorganised: anvil cannot go behind what it was started with."""
        traffic = Traffic(self.chain, self.rpc, self.deployment.tokens["TUSD"], seed=self.node.height)
        await traffic.prepare(consumers=2)
        await traffic.run(seconds, sessions=sessions)

    def another(self, store: Store | None = None, **options: int) -> Indexer:
        """An indexer as a new process would have it."""
        store, first = store or self.store, self.deployment.first_block
        return Indexer(self.feed, self.chain, store, first_block=first, **options)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL of this run's own, in a temporary folder, on a socket: its URL, to be given a database's name."""
    found = str(POSTGRES[-1]) if POSTGRES else shutil.which("initdb")
    if found is None:
        assert os.environ.get("CI") != "true", "CI must test on PostgreSQL: apt-get install postgresql"
        pytest.skip("PostgreSQL is not installed here: its half of the explorer's tests is left out")
    folder = Path(f"/tmp/penstock-postgres-{secrets.token_hex(4)}")  # a socket's path may not be long
    folder.mkdir(mode=0o755)
    as_user: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        shutil.chown(folder, "nobody", "nogroup")
        as_user = ["setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups"]
    data, programs = folder / "data", Path(found).parent
    try:
        quick = ["-c", "fsync=off", "-c", "full_page_writes=off", "-c", f"unix_socket_directories={folder}"]
        initdb = [found, "-D", str(data), "-U", "penstock", "-A", "trust", "-N", "--locale=C", "-E", "UTF8"]
        subprocess.run([*as_user, *initdb], check=True, capture_output=True, cwd=folder)
        command = [str(programs / "postgres"), "-D", str(data), "-c", "listen_addresses=", *quick]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen([*as_user, *command], stdout=log, stderr=log, cwd=folder)
        try:
            ready = [str(programs / "pg_isready"), "-h", str(folder), "-t", "30"]
            for _ in range(300):
                if subprocess.run(ready, capture_output=True).returncode == 0:
                    break
                assert server.poll() is None, (folder / "log").read_text()
            yield f"postgresql://penstock@/NAME?host={folder}"
        finally:
            server.terminate()
            server.wait(timeout=30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database's URL, as `--db` takes it: every test that uses it runs on both."""
    if request.param == "sqlite":
        return str(tmp_path / "explorer.db")
    url: str = request.getfixturevalue("postgres")
    import psycopg

    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(url.replace("NAME", "postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return url.replace("NAME", name)


@pytest.fixture(scope="session")
def eventful(deployed: Deployed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """anvil's state after a quarter of an hour on the market; made once a run."""
    path = tmp_path_factory.mktemp("eventful") / "state.json"

    async def history(node: Node) -> None:
        rpc = JsonRpc(node.url, timeout=10)
        async with await Web3Chain.connect(node.url, deployed.deployment) as chain:
            await play(chain, rpc, deployed.deployment.tokens["TUSD"], sessions=25)
        await rpc.close()

    with Node(load_state=deployed.state) as node:
        asyncio.run(history(node))
        node.dump(path)
    return path


@pytest.fixture
def node(eventful: Path) -> Iterator[Node]:
    """A chain of the test's own, with a history."""
    with Node(load_state=eventful) as node:
        yield node


@pytest.fixture
async def rig(node: Node, deployed: Deployed, database: str) -> AsyncIterator[Rig]:
    rpc = JsonRpc(node.url, timeout=2)
    store = Store.open(database, deployed.deployment)
    async with await Web3Chain.connect(node.url, deployed.deployment, request_timeout=2) as chain:
        yield Rig(node, deployed.deployment, chain, rpc, store)
    store.close()
    await rpc.close()
