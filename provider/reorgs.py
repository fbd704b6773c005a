"""How far back the chain has changed since it was last read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from penstock.chain.port import Chain
from penstock.errors import NodeUnavailable
from penstock.types import Block

Recorded = Callable[[], Awaitable[list[tuple[int, str]]]]
"""Numbers and hashes of the blocks on record, the youngest first."""


async def common_block(
    chain: Chain, tip: tuple[int, str], head: Block, recorded: Recorded, *, first_block: int
) -> int | None:
    """The last block that is both on record and on the chain; the one before `first_block` where none is. None where
    the chain has `tip`, the youngest on record: nothing is to be forgotten."""
    number, block_hash = tip
    if (head.number, head.hash) == tip or (head.number, head.parent_hash) == (number + 1, block_hash):
        return None
    block = await chain.block(number)
    if block is not None and block.hash == block_hash:
        return None
    found = await recorded()
    if block is None and (head.number, head.hash) in found:
        # Another node behind the same address lags; it does not contradict us.
        raise NodeUnavailable(f"the node is at block {head.number}, {number} was seen before: waiting for it")
    for earlier, earlier_hash in found:
        block = await chain.block(earlier)
        if block is not None and block.hash == earlier_hash:
            return earlier
    return first_block - 1
