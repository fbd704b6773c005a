"""The books, kept up with the chain: forward by events, backward where the chain took blocks back."""

from __future__ import annotations

from dataclasses import dataclass

from agents.keeper._ledger import Checkpoint, Ledger
from penstock.chain.port import Chain
from penstock.errors import NodeUnavailable
from penstock.types import Block

BATCH = 5_000
"""Blocks of events asked for at once."""
_TRIES = 5


@dataclass(frozen=True, slots=True)
class Progress:
    head: Block
    """The chain's."""
    followed: int
    """The block up to which the books are."""
    current: bool
    """Whether that is as far as it goes: the head less the confirmations."""
    undone: int = 0
    """Blocks that the chain took back since the last look."""


class Follower:
    """`start` before anything else. The books are those of the block `followed`."""

    def __init__(self, chain: Chain, ledger: Ledger, *, first_block: int, confirmations: int) -> None:
        self._chain = chain
        self._ledger = ledger
        self._first = first_block
        self._confirmations = confirmations
        self.books = ledger.books()
        self.followed = next(ledger.checkpoints(), Checkpoint(first_block - 1, ""))

    async def start(self) -> bool:
        """False where the ledger was of another chain and was emptied: a local one that is started anew has the
        same chain id and the same addresses."""
        born = await self._chain.block(self._first)
        if born is None:
            raise NodeUnavailable(f"the node does not have block {self._first} yet, in which Penstock was deployed")
        known = self._ledger.get("born")
        if known == born.hash:
            return True
        if known:
            self._ledger.forget()
        self._ledger.put("born", born.hash)
        self._reset()
        return not known

    async def advance(self) -> Progress:
        """Follow the chain as far as it goes. NodeUnavailable where the node is away, or contradicts itself."""
        undone = 0
        for _ in range(_TRIES):
            head = await self._chain.head()
            undone += await self._agree(head)
            target = head.number - self._confirmations
            while self.followed.block < target:
                if not await self._step(min(self.followed.block + BATCH, target)):
                    break
            else:
                self._ledger.thin()
                current = target <= self.followed.block <= head.number
                return Progress(head, self.followed.block, current, undone)
        raise NodeUnavailable("the node's chain changes faster than it can be followed: ask again")

    async def _agree(self, head: Block) -> int:
        """Walk back to the last block that the chain still has; how many blocks that took."""
        before = self.followed.block
        contradicted = False
        for point in self._ledger.checkpoints():
            # A node that lags has not contradicted what it does not have yet.
            if not self._first <= point.block <= head.number:
                continue
            found = head if point.block == head.number else await self._chain.block(point.block)
            if found is None:
                continue
            if found.hash != point.hash or not self._ledger.can_rebuild(point.block):
                contradicted = True
            elif contradicted:
                self.books = self._ledger.roll_back(point)
                self.followed = point
                return before - point.block
            else:
                return 0
        if contradicted:
            self._reset()
        return before - self.followed.block

    def _reset(self) -> None:
        self.followed = Checkpoint(self._first - 1, "")
        self.books = self._ledger.roll_back(self.followed)

    async def _step(self, last: int) -> bool:
        """One batch of events. False where the chain changed meanwhile."""
        first = self.followed.block + 1
        end = await self._chain.block(last)
        if end is None:
            return False
        events = await self._chain.events(first, last)
        again = await self._chain.block(last)
        parent = await self._chain.block(first - 1) if self.followed.hash else None
        if again is None or again.hash != end.hash or (parent is not None and parent.hash != self.followed.hash):
            return False
        if any(event.place.block == last and event.place.block_hash != end.hash for event in events):
            return False
        try:
            for event in events:
                self.books.apply(event)
        except KeyError as error:
            self.books = self._ledger.books()
            raise NodeUnavailable(
                f"the node leaves out events: between blocks {first} and {last} something happens to {error}, "
                "which was never opened; use a node that answers eth_getLogs in full"
            ) from error
        self.followed = Checkpoint(last, end.hash)
        self._ledger.follow(events, self.followed, self.books)
        return True
