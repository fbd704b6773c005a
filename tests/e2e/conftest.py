"""Fixtures of the tests on a real node."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from provider.engines.upstream import UpstreamEngine
from tests.deployed import chain, deployed, node
from tests.harness import PATIENCE
from tests.market import market
from tests.provider.rig import MODEL, engine_process, stretched

__all__ = ["chain", "deployed", "market", "node"]


@pytest.fixture(scope="session")
def child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The real embedded engine: its URL and key."""
    with engine_process(stretched(tmp_path_factory.mktemp("model") / "stretched.gguf")) as child:
        yield child.url, child.key


@pytest.fixture
async def engine(child: tuple[str, str]) -> AsyncIterator[UpstreamEngine]:
    engine = UpstreamEngine(child[0], {MODEL: MODEL}, api_key=child[1], start_seconds=PATIENCE, check_seconds=PATIENCE)
    await engine.start()
    yield engine
    await engine.stop()
