"""Fixtures of the tests on a real node."""

from tests.deployed import chain, deployed, node
from tests.market import market

__all__ = ["chain", "deployed", "market", "node"]
