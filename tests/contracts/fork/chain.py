"""BSC's rules for the fast lane: every transaction is of the legacy kind and pays the least gas price that validators
take, and what it cost is written down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.fastchain import Chain, checksum

CHAIN_ID = 56
GAS_PRICE = 50_000_000
"""Wei: what BSC's validators ask at least, to the block's maker. There is no base fee."""
LEGACY = "0x0"


class BscChain(Chain):
    """A node with BSC's chain id."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.fees: Counter[str] = Counter()
        """Wei, by sender: what its transactions have cost it besides what they sent."""

    def _transact(self, tx: dict[str, str]) -> dict[str, Any]:
        receipt = super()._transact({"gasPrice": hex(GAS_PRICE), **tx})
        assert receipt["type"] == LEGACY
        assert int(receipt["effectiveGasPrice"], 16) == GAS_PRICE
        self.fees[checksum(receipt["from"])] += int(receipt["gasUsed"], 16) * GAS_PRICE
        return receipt

    def mine(self) -> None:
        """An empty block, at this second."""
        self.rpc("evm_setNextBlockTimestamp", self.now)
        self.rpc("evm_mine")

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        fees = self.fees.copy()
        with super().snapshot():
            yield
        self.fees = fees
