"""Fixtures of the provider's tests: one engine for all, a node for each module, a running provider for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from penstock.chain.web3 import Web3Chain
from provider.engines.upstream import UpstreamEngine
from tests.deployed import Deployed, chain, deployed, node
from tests.harness import PATIENCE, Node
from tests.postgres import database, postgres
from tests.provider.rig import MODEL, Buyer, EngineProcess, Rig, engine_process, running, stretched

__all__ = ["chain", "database", "deployed", "node", "postgres"]


@pytest.fixture(scope="session")
def engine_child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    """The real embedded engine, whose answers can go on for long."""
    gguf = stretched(tmp_path_factory.mktemp("model") / "stretched.gguf")
    with engine_process(gguf) as child:
        yield child


@pytest.fixture
async def engine(engine_child: EngineProcess) -> AsyncIterator[UpstreamEngine]:
    engine = UpstreamEngine(
        engine_child.url, {MODEL: MODEL}, api_key=engine_child.key, start_seconds=PATIENCE, check_seconds=PATIENCE
    )
    await engine.start()
    yield engine
    await engine.stop()


@pytest.fixture
def state(request: pytest.FixtureRequest) -> str:
    """What `--state` says: nothing, for a file at home; in a test that is `on_both` the URL of an empty database, too.
    What does not depend on the database runs on SQLite alone."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return ""
    url: str = request.getfixturevalue("database")
    return url


@pytest.fixture
async def rig(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path, state: str
) -> AsyncIterator[Rig]:
    """A provider with one offer in coins and one in dollars."""
    offers = ("native:0.000001", "TUSD:0.0001")
    async with running(node, chain, deployed.deployment, engine, tmp_path, offers=offers, state=state) as rig:
        yield rig


@pytest.fixture
async def buyer(rig: Rig) -> Buyer:
    """With an open stream and a session."""
    return await (await rig.buyer()).arrive()
