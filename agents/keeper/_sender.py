"""Transactions, each nonce given away once and followed until its block is deep enough.

A transaction is on disk before it leaves; one that is not mined in time is sent again at a higher price with the same
nonce; one whose block disappears is waited for again. Which of a job's attempts was mined, only the chain says.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from eth_utils.crypto import keccak

from agents.keeper._ledger import Attempt, Job, JobState, Ledger
from agents.keeper._planner import Action, Kind
from penstock.chain.calls import Call, Mined, Prepared
from penstock.chain.port import Account, Chain
from penstock.events import ChannelClosed, ChannelSettled, FaultProven, KeeperPaid, Withdrawn
from penstock.types import ZERO_ADDRESS, Address, hex32

MAX_IN_FLIGHT = 16
"""Transactions under way at once: some nodes take no more of one account."""
_REBROADCAST = 5.0
"""Seconds."""
_SIMPLE_GAS = 21_000
"""What a transfer to oneself takes, which is how a nonce is used up."""
_DISPLACED_AFTER = 3
"""Looks at which a nonce is taken and none of our transactions took it: a node may lag behind itself."""


class SendingChain(Chain, Protocol):
    """A chain over which transactions are sent by hand: `penstock.chain.web3.Web3Chain`."""

    async def prepare(self, sender: Address, call: Call) -> Prepared: ...

    async def gas_price(self) -> int: ...

    async def nonces(self, account: Address) -> tuple[int, int]: ...

    async def refusal(self, sender: Address, transaction: Mapping[str, Any]) -> str: ...

    async def transmit(self, raw: bytes) -> str: ...

    async def mined(self, transaction: str) -> Mined | None: ...


@dataclass(frozen=True, slots=True)
class SenderPolicy:
    replace_after: float = 30.0
    """Seconds until a transaction that is not mined is sent again at a higher price."""
    max_gas_price: int = 100 * 10**9
    """Wei; nothing is ever sent at a higher one."""
    confirmations: int = 0
    """Blocks on top of a transaction's own after which it is no longer looked at."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A job got a transaction, its first or a replacement."""

    job: Job
    attempt: Attempt
    replaces: bool = False
    voided: str = ""
    """Why the nonce is only used up: the contract would refuse now what it would have done then."""


@dataclass(frozen=True, slots=True)
class Landed:
    """A job is in a block, in none any more, or can never be (`job.state` says which)."""

    job: Job


News = Sent | Landed


class Sender:
    """The only one who sends from its account, which the ledger's lock guarantees on one machine."""

    def __init__(
        self,
        chain: SendingChain,
        account: Account,
        ledger: Ledger,
        policy: SenderPolicy,
        *,
        clock: Callable[[], float],
        on_news: Callable[[News], None],
    ) -> None:
        """`clock` is in Unix seconds."""
        self._chain = chain
        self._account = account
        self._ledger = ledger
        self._policy = policy
        self._clock = clock
        self._on_news = on_news
        self._lock = asyncio.Lock()
        self._told: dict[int, float] = {}
        self._since: dict[int, float] = {}
        self._taken: dict[int, int] = defaultdict(int)

    @property
    def full(self) -> bool:
        return len(self._ledger.jobs(JobState.SENT)) >= MAX_IN_FLIGHT

    def under_way(self) -> list[Job]:
        """Sent and in no block yet."""
        return self._ledger.jobs(JobState.SENT)

    def marks(self, followed: int) -> set[str]:
        """What is being done, or was in blocks that the books have not reached."""
        unseen = self._ledger.jobs(JobState.MINED, JobState.FINAL, above=followed)
        return {mark for job in (*self.under_way(), *unseen) for mark in job.marks}

    async def submit(self, action: Action, prepared: Prepared) -> Job:
        """Sign, write down, send. It may be cancelled at any point: what is written down is sent by the next look."""
        async with self._lock:
            mined, heard = await self._chain.nonces(self._account.address)
            ours = [job.nonce + 1 for job in self._ledger.jobs(JobState.SENT, JobState.MINED)]
            nonce = max([mined, heard, *ours])
            fields = {**prepared.transaction, "nonce": nonce}
            attempt = self._signed(fields)
            job = self._ledger.add_job(
                Job(
                    id=0,
                    state=JobState.SENT,
                    nonce=nonce,
                    kind=action.kind,
                    token=action.token,
                    payee=action.payee,
                    streams=action.ids,
                    marks=action.marks,
                    amounts=action.amounts,
                    reward=action.reward,
                ),
                attempt,
            )
            self._since[job.id] = attempt.sent_at
            self._on_news(Sent(job, attempt))
            await self._transmit(job, attempt)
            return job

    async def check(self) -> None:
        """Look at everything that is not final, and send again what has to be."""
        async with self._lock:
            jobs = self._ledger.jobs(JobState.SENT, JobState.MINED)
            if not jobs:
                return
            head = await self._chain.head()
            mined, _ = await self._chain.nonces(self._account.address)
            for job in jobs:
                await self._check(job, mined, head.number)

    async def _check(self, job: Job, mined_nonces: int, head: int) -> None:
        attempts = self._ledger.attempts(job)
        for attempt in attempts:
            found = await self._chain.mined(attempt.hash)
            if found is not None:
                self._land(job, found, head)
                return
        if job.state is JobState.MINED:
            job = replace(job, state=JobState.SENT, block=0, succeeded=False, hash="", fee=0, earned=0, moved=0)
            self._ledger.update(job)
            self._since[job.id] = self._clock()
            self._on_news(Landed(job))
        if mined_nonces > job.nonce:
            self._taken[job.id] += 1
            if self._taken[job.id] >= _DISPLACED_AFTER:
                job = replace(job, state=JobState.DISPLACED)
                self._ledger.update(job)
                self._on_news(Landed(job))
            return
        self._taken.pop(job.id, None)
        await self._press(job, attempts[0])

    def _land(self, job: Job, found: Mined, head: int) -> None:
        receipt = found.receipt
        final = head - receipt.block >= self._policy.confirmations
        landed = replace(
            job,
            state=JobState.FINAL if final else JobState.MINED,
            block=receipt.block,
            succeeded=found.succeeded,
            hash=receipt.transaction,
            fee=receipt.fee,
            earned=_earned(found, self._account.address),
            moved=_moved(job, found),
        )
        if landed != job:
            self._ledger.update(landed)
        if (landed.block, landed.hash) != (job.block, job.hash):
            self._on_news(Landed(landed))
        self._taken.pop(job.id, None)
        self._told.pop(job.id, None)
        self._since.pop(job.id, None)

    async def _press(self, job: Job, latest: Attempt) -> None:
        """A transaction that is in no block: told to the node again, at a higher price when its time is over."""
        now = self._clock()
        # One that comes from an earlier process, or whose block is gone, gets its full time again.
        since = max(latest.sent_at, self._since.setdefault(job.id, now))
        if now - since < self._policy.replace_after:
            await self._remind(job, latest)
            return
        # Nodes ask for a tenth more; an eighth is what others ask for.
        price = max(latest.gas_price * 9 // 8 + 1, await self._chain.gas_price())
        if price > self._policy.max_gas_price:
            await self._remind(job, latest)
            return
        fields = {**latest.fields, "gasPrice": price}
        reason = ""
        if fields["data"] != "0x":
            reason = await self._chain.refusal(self._account.address, fields)
            if reason:
                fields |= {"to": self._account.address, "value": 0, "data": "0x", "gas": _SIMPLE_GAS}
        attempt = self._signed(fields, job.id)
        self._ledger.add_attempt(attempt)
        self._on_news(Sent(job, attempt, replaces=True, voided=reason))
        await self._transmit(job, attempt)

    async def _remind(self, job: Job, attempt: Attempt) -> None:
        if self._clock() - self._told.get(job.id, 0) >= _REBROADCAST:
            await self._transmit(job, attempt)

    def _signed(self, fields: Mapping[str, Any], job: int = 0) -> Attempt:
        raw = self._account.sign_transaction(dict(fields))
        return Attempt(hex32(keccak(raw)), job, fields, raw, self._clock())

    async def _transmit(self, job: Job, attempt: Attempt) -> None:
        # What the node says of it is not the last word: it refuses what it knows, too.
        await self._chain.transmit(attempt.raw)
        self._told[job.id] = self._clock()


def _earned(found: Mined, keeper: Address) -> int:
    """Base units that the transaction brought: in the vault, or as a credit at Slashing."""
    paid = [one.amount for one in found.receipt.events if isinstance(one, KeeperPaid) and one.keeper == keeper]
    shares = [one for one in found.receipt.verdicts if isinstance(one, FaultProven) and one.reporter == keeper]
    return sum(paid) + sum(one.to_reporter for one in shares)


def _moved(job: Job, found: Mined) -> int:
    """Base units that the transaction settled, or took back. Of a voucher, what it added when this was planned: if
    somebody settled a lower one of the same channel meanwhile, it was that much less."""
    if not found.succeeded:
        return 0
    events = found.receipt.events
    match job.kind:
        case Kind.COLLECT:
            return sum(one.amount for one in events if isinstance(one, Withdrawn) and one.to == ZERO_ADDRESS)
        case Kind.SETTLE:
            planned = dict(zip(job.streams, job.amounts, strict=True))
            return sum(planned.get(one.id, 0) for one in events if isinstance(one, ChannelSettled))
        case Kind.PROVE:
            return sum(one.slashed for one in found.receipt.verdicts if isinstance(one, FaultProven))
        case Kind.RECLAIM:
            return sum(one.refund for one in events if isinstance(one, ChannelClosed))
        case _:
            return 0
