"""An explorer's store on both databases, and a chain with a market's history on it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agents.explorer._feed import Feed
from agents.explorer._indexer import Indexer
from agents.explorer._store import Store
from agents.explorer._traffic import Traffic
from penstock.chain._rpc import JsonRpc
from penstock.chain.web3 import Web3Chain
from penstock.deployments import Deployment
from tests.deployed import Deployed, deployed
from tests.harness import PATIENCE, Node
from tests.postgres import Cluster, postgres

__all__ = ["deployed", "postgres"]


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


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database's URL, as `--db` takes it: every test that uses it runs on both."""
    if request.param == "sqlite":
        return str(tmp_path / "explorer.db")
    cluster: Cluster = request.getfixturevalue("postgres")
    name = f"test_{secrets.token_hex(6)}"
    cluster.sql(f"CREATE DATABASE {name}")
    return cluster.url(name)


on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
"""Of what does not depend on the database: its SQL is run on both elsewhere."""


@pytest.fixture(scope="session")
def eventful(deployed: Deployed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """anvil's state after a quarter of an hour on the market; made once a run."""
    path = tmp_path_factory.mktemp("eventful") / "state.json"

    async def history(node: Node) -> None:
        rpc = JsonRpc(node.url, timeout=PATIENCE)
        async with await Web3Chain.connect(node.url, deployed.deployment, request_timeout=PATIENCE) as chain:
            said: list[str] = []
            traffic = Traffic(chain, rpc, deployed.deployment.tokens["TUSD"], seed=1, say=said.append)
            await traffic.prepare(consumers=4)
            await traffic.run(900, sessions=25)
            assert not [line for line in said if line.startswith("refused: ")], said
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
    rpc = JsonRpc(node.url, timeout=PATIENCE)
    store = Store.open(database, deployed.deployment)
    async with await Web3Chain.connect(node.url, deployed.deployment, request_timeout=PATIENCE) as chain:
        yield Rig(node, deployed.deployment, chain, rpc, store)
    store.close()
    await rpc.close()
