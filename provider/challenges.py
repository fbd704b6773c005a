"""Answers on chain: whoever asks there for a receipt that an accept of ours promised gets it, in time.

A challenge costs stake unless it is answered within its window, so that nothing here gives up before that is over: the
chain is read again and again, and an answer is sent until it is taken. A challenge that was opened while the process
was down is found at its start. What is owed is on the disk since before the accept left (provider/receipts.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import structlog

from penstock.chain.port import Account
from penstock.errors import ChainError, Reverted
from penstock.events import Receipt as Mined
from penstock.faults import ANSWER_WINDOW, MAX_IDS
from penstock.types import Address, Block, Place
from penstock.wire.receipts import NOTHING, SignedReceipt
from provider.receipts import Receipts

log = structlog.get_logger("provider.challenges")

_SPAN = 2_000
"""Blocks read at once."""
_AGAIN = 64
"""Blocks that are read again each time, since the chain may have put others in their place."""


@runtime_checkable
class Opened(Protocol):
    """Slashing's ChallengeOpened, as far as it matters here."""

    place: Place
    id: str
    provider: Address
    challenger: Address
    accepted_at: int


@runtime_checkable
class Court(Protocol):
    """What is asked of the chain."""

    async def head(self) -> Block: ...

    async def block(self, number: int) -> Block | None: ...

    async def verdicts(self, first: int, last: int) -> Sequence[object]:
        """All that Slashing said in these blocks, both ends included, in order."""
        ...

    async def answer_challenge(self, sender: Account, signed: SignedReceipt, ids: bytes) -> Mined: ...


class Challenges:
    """`look` now and then: more often than the window is long by far."""

    def __init__(
        self, court: Court, receipts: Receipts, sender: Account, *, first_block: int, now: Callable[[], float]
    ) -> None:
        """`now`: the chain's time."""
        self._court, self._receipts, self._sender, self._now = court, receipts, sender, now
        self._first_block = first_block
        self._next: int | None = None
        """Block to read from."""
        self._open: dict[str, Opened] = {}
        self._over: set[str] = set()

    async def look(self) -> int:
        """Find what was asked since, and answer what is open. How many were answered."""
        try:
            await self._read()
        except ChainError as error:
            log.warning("cannot look for challenges", error=str(error))
        answered = 0
        for challenge in list(self._open.values()):
            answered += await self._answer(challenge)
        return answered

    async def _read(self) -> None:
        head = (await self._court.head()).number
        first = await self._oldest(head) if self._next is None else max(self._next - _AGAIN, self._first_block)
        while first <= head:
            last = min(first + _SPAN - 1, head)
            for event in await self._court.verdicts(first, last):
                kind = type(event).__name__
                if kind == "ChallengeOpened" and isinstance(event, Opened):
                    if event.provider == self._receipts.provider and event.id not in self._over:
                        self._open[event.id] = event
                elif kind in ("ChallengeAnswered", "ChallengeResolved"):
                    self._end(getattr(event, "id", ""))
            self._next = first = last + 1

    async def _oldest(self, head: int) -> int:
        """A block before which every challenge is over."""
        number = head
        while number > self._first_block:
            block = await self._court.block(number)
            if block is not None and block.timestamp + ANSWER_WINDOW <= self._now():
                break
            number -= _SPAN
        return max(number, self._first_block)

    def _end(self, challenge: str) -> None:
        self._over.add(challenge)
        self._open.pop(challenge, None)

    async def _answer(self, challenge: Opened) -> bool:
        """Whether it is over with this: answered by us."""
        if self._now() >= challenge.place.timestamp + ANSWER_WINDOW:
            log.error("a challenge was not answered in time", challenge=challenge.id)
            self._end(challenge.id)
            return False
        found = await self._receipts.owed_for(challenge.accepted_at)
        if found is None:  # its answer still runs, which it may for less than an hour after the accept
            log.error("no receipt to answer a challenge with: was the state file lost?", challenge=challenge.id)
            return False
        signed, ids = found
        receipt = signed.receipt
        shown = ids if receipt.output_hash != NOTHING and receipt.completion_tokens <= MAX_IDS else None
        try:
            mined = await self._court.answer_challenge(self._sender, signed, shown or b"")
        except Reverted as error:
            # Somebody else may have answered: the next look reads that.
            log.error("the answer to a challenge was refused", challenge=challenge.id, reason=error.reason)
            return False
        except ChainError as error:
            log.warning("a challenge could not be answered yet", challenge=challenge.id, error=str(error))
            return False
        log.info("answered a challenge", challenge=challenge.id, transaction=mined.transaction, gas=mined.gas_used)
        self._end(challenge.id)
        return True
