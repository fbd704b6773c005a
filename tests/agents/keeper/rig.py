"""Streams, channels and payees to keep, and a keeper whose clock and news a test holds in its hands."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from agents.keeper._follower import Progress
from agents.keeper._keeper import Keeper, KeeperPolicy, Observer
from agents.keeper._ledger import JobState, Ledger, Totals
from agents.keeper._planner import Action, Policy
from agents.keeper._sender import Landed, News, SenderPolicy, Sent
from penstock.accrual import flow
from penstock.chain.web3 import Web3Chain
from penstock.errors import ChainError
from penstock.events import KeeperPaid
from penstock.keys import LocalAccount, new_session_key
from penstock.types import ALL, NATIVE, Address, OfferId, StreamKey, Voucher
from penstock.wire.eip712 import voucher_digest
from tests.harness import Node
from tests.market import Market

MILLI = 10**15
"""A thousandth of a coin, in base units."""
RATE = 10 * MILLI * 10**6
"""0.01 coins a second: after ten seconds a reward is worth more than the gas."""
_numbers = itertools.count(1)


@dataclass
class Recorder(Observer):
    """All that a keeper said."""

    sent: list[Sent] = field(default_factory=list)
    landed: list[Landed] = field(default_factory=list)
    alone: list[tuple[Action, str]] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)
    outages: list[str] = field(default_factory=list)
    undone: int = 0
    forgot: bool = False
    looks: int = 0

    def started(self, progress: Progress, *, forgot: bool) -> None:
        self.forgot = forgot
        self.undone += progress.undone

    def looked(self, progress: Progress, *, pending: int, totals: Totals) -> None:
        self.looks += 1
        self.undone += progress.undone

    def news(self, news: News) -> None:
        (self.sent if isinstance(news, Sent) else self.landed).append(news)  # type: ignore[arg-type]

    def left_alone(self, action: Action, why: str, *, seconds: float) -> None:
        self.alone.append((action, why))

    def bad_line(self, where: str, why: str) -> None:
        self.bad.append((where, why))

    def outage(self, error: ChainError, *, pause: float) -> None:
        self.outages.append(str(error))

    def kinds(self) -> list[str]:
        return [str(one.job.kind) for one in self.sent if not one.replaces]


class Clock:
    """The keeper's, which stands still until a test moves it."""

    def __init__(self) -> None:
        self.began, self.ahead = time.time(), 0.0

    def __call__(self) -> float:
        return self.began + self.ahead


class Chain(Node):
    """A second passes with each block, and otherwise what a test lets pass: what is due depends on nothing else."""

    def start(self) -> None:
        super().start()
        self.rpc("anvil_setTime", self.now)  # of its last block, not that at which the process began
        self.rpc("anvil_setBlockTimestampInterval", 1)

    def advance(self, seconds: int) -> int:
        self.rpc("evm_setNextBlockTimestamp", self.now + seconds)
        self.mine()
        return self.now


class Rig:
    def __init__(self, market: Market, chain: Web3Chain, path: Path) -> None:
        self.market = market
        self.node = market.node
        self.chain: Any = chain
        self.path = path
        self.account = market.account()
        self.clock = Clock()
        self.seen = Recorder()
        self._ledger: Ledger | None = None

    @property
    def dollar(self) -> Address:
        return self.market.dollar

    def close(self) -> None:
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None

    @property
    def ledger(self) -> Ledger:
        assert self._ledger is not None
        return self._ledger

    async def keeper(
        self,
        *,
        planning: Policy | None = None,
        sending: SenderPolicy | None = None,
        copy: bool = False,
        **more: Any,
    ) -> Keeper:
        """A started one; the one before it is dead."""
        self.close()
        self.seen = Recorder()
        self._ledger = Ledger.copy_of(self.path) if copy else Ledger.open(self.path)
        policy = KeeperPolicy(planning or Policy(), sending or SenderPolicy(), poll=0.02, **more)
        keeper = Keeper(
            self.chain,
            self.account,
            self._ledger,
            policy,
            first_block=self.market.deployment.first_block,
            observer=self.seen,
            clock=self.clock,
        )
        await keeper.start()
        return keeper

    # --- the market's other people ---

    async def payee(self, *, opted_in: bool = True) -> LocalAccount:
        account = self.market.account()
        if opted_in:
            await self.chain.set_keeper_reward(account, True)
        return account

    def key(
        self, payer: LocalAccount, payee: Address, token: Address = NATIVE, session: Address | None = None
    ) -> StreamKey:
        offer = OfferId(f"0x{next(_numbers):064x}")
        return StreamKey(payer.address, payee, token, session or payer.address, offer)

    async def payer(self, token: Address = NATIVE) -> LocalAccount:
        payer = self.market.account(coins=1_000 * 10**18, dollars=10**15 if token != NATIVE else 0)
        if token != NATIVE:
            await self.chain.approve(payer, token, ALL)
        return payer

    async def stream(
        self,
        payee: Address,
        *,
        token: Address = NATIVE,
        rate: int = RATE,
        duration: int = 1_000,
        payer: LocalAccount | None = None,
    ) -> StreamKey:
        payer = payer or await self.payer(token)
        key = self.key(payer, payee, token)
        value = flow(rate, duration) if token == NATIVE else 0
        await self.chain.open(payer, key, rate=rate, duration=duration, value=value, from_vault=0)
        return key

    async def channel(
        self, payee: Address, *, deposit: int = 10**18, payer: LocalAccount | None = None
    ) -> tuple[StreamKey, LocalAccount]:
        """And its session key."""
        payer, session = payer or await self.payer(), new_session_key()
        key = self.key(payer, payee, session=session.address)
        await self.chain.open_channel(payer, key, deposit=deposit, value=deposit, from_vault=0)
        return key, session

    def voucher(self, key: StreamKey, session: LocalAccount, cumulative: int) -> Voucher:
        digest = voucher_digest(self.chain.stream_pay_domain, key.id, cumulative)
        return Voucher(key, cumulative, session.sign_digest(digest))

    # --- what the chain says ---

    async def rewards(self) -> dict[Address, int]:
        """Paid to the keeper, by token, as the events have it."""
        head = await self.chain.head()
        found: dict[Address, int] = {}
        for event in await self.chain.events(self.market.deployment.first_block, head.number):
            if isinstance(event, KeeperPaid) and event.keeper == self.account.address:
                found[event.token] = found.get(event.token, 0) + event.amount
        return found

    async def assert_figures(self, keeper: Keeper, *, coins: int = 10 * 10**18) -> None:
        """What the keeper says that it earned and spent is what the chain says, to the wei."""
        totals = keeper.totals()
        assert totals.earned == await self.rewards()
        for token, amount in totals.earned.items():
            assert await self.chain.vault_balance(token, self.account.address) == amount
        assert await self.chain.native_balance(self.account.address) == coins - totals.spent

    async def nonce(self) -> int:
        mined, _ = await self.chain.nonces(self.account.address)
        return int(mined)


def priced(token: Address, wei: str, **more: Any) -> Policy:
    return replace(Policy(prices={token: Fraction(wei)}), **more)


__all__ = ["MILLI", "RATE", "Chain", "Clock", "JobState", "Recorder", "Rig", "priced"]
