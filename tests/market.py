"""A market for tests: anvil with the real contracts, accounts with money, the CLI as a process, and the audit.

One node serves a test module. Tests do not disturb each other because each makes accounts of its own.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from penstock.audit import Books
from penstock.chain.web3 import Web3Chain
from penstock.consumer import Waits
from penstock.deployments import Deployment
from penstock.keys import LocalAccount, new_session_key
from penstock.types import NATIVE, Address, Terms
from tests.deployed import Deployed
from tests.harness import PATIENCE, Node

MODEL = "penstock-tiny"
COIN = 10**18
DOLLAR = 10**6
PRICES = {"native": 10**13 * 10**6, "dollar": 2000 * 10**6}
"""Base units x 1e6 per second: 0.00001 BNB, 0.002 TUSD."""
WAITS = Waits(
    connect=PATIENCE,
    greeting=PATIENCE,
    handshake=PATIENCE,
    sight=PATIENCE,
    relay=PATIENCE,
    stall=PATIENCE,
    receipt=PATIENCE,
    close=PATIENCE,
    settle=1,  # only waited for in vain: what there is, the one node shows at once
)
"""Of a consumer that gives nobody up because the machine stalls; a test that wants somebody given up says so."""


@dataclass(frozen=True)
class Done:
    """A finished `penstock` process."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line that says what went wrong and what to do."""
        lines = [line for line in self.err.splitlines() if line.startswith("penstock: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0].removeprefix("penstock: ")


@dataclass
class Market:
    node: Node
    deployed: Deployed
    folder: Path

    @property
    def deployment(self) -> Deployment:
        return self.deployed.deployment

    @property
    def dollar(self) -> Address:
        return self.deployment.tokens["TUSD"]

    def account(self, *, coins: int = 10 * COIN, dollars: int = 0) -> LocalAccount:
        """A new account with so much of each, in base units."""
        account = new_session_key()
        if coins:
            self.node.set_balance(account.address, coins)
        if dollars:
            self.node.mint(self.dollar, account.address, dollars)
        return account

    def terms(self, token: Address = NATIVE, **changes: Any) -> Terms:
        given = {
            "model": MODEL,
            "token": token,
            "rate": PRICES["native" if token == NATIVE else "dollar"],
            "prompt_price": 0,
            "completion_price": 0,
            "slots": 4,
            "context_length": 1024,
            "max_ttft_ms": 0,
            "quantization": "f16",
            "region": "eu",
        }
        return Terms(**(given | changes))

    async def connect(self) -> Web3Chain:
        return await Web3Chain.connect(self.node.url, self.deployment, request_timeout=PATIENCE)

    # --- the CLI ---

    def home(self, account: LocalAccount) -> Path:
        return self.folder / account.address

    def environment(self, account: LocalAccount, **more: str) -> dict[str, str]:
        return self.deployed.environment(self.node) | {
            "PENSTOCK_HOME": str(self.home(account)),
            "PENSTOCK_ACCOUNT": "env",
            "PENSTOCK_PRIVATE_KEY": account.secret.hex(),
            "PYTHONUNBUFFERED": "1",
            **more,
        }

    async def start(self, account: LocalAccount, *words: str, **more: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "agents",
            *words,
            env=self.environment(account, **more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    async def penstock(self, account: LocalAccount, *words: str, seconds: float = 4 * PATIENCE, **more: str) -> Done:
        """Run `penstock` to its end."""
        return await finish(await self.start(account, *words, **more), seconds)

    # --- the audit ---

    async def books(self, chain: Web3Chain) -> Books:
        """What StreamPay owes, from its events alone; checked against what it holds, to the wei."""
        while True:
            books, head = Books(), await chain.head()
            for event in await chain.events(self.deployment.first_block, head.number):
                books.apply(event)
            held = {token: await chain.token_balance(token, chain.stream_pay) for token in books.tokens()}
            if await chain.head() == head:  # else a provider has moved money meanwhile
                assert held == {token: books.liabilities(token) for token in books.tokens()}
                return books

    async def assert_nothing_locked(self, chain: Web3Chain, payer: Address) -> None:
        """No stream and no channel of this payer is open, and the contract holds what it owes."""
        books = await self.books(chain)
        assert [key for key, _ in books.streams.values() if key.payer == payer] == []
        assert [key for key, state in books.channels.values() if key.payer == payer and state.running] == []


async def finish(process: asyncio.subprocess.Process, seconds: float = 4 * PATIENCE) -> Done:
    try:
        async with asyncio.timeout(seconds):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        out, err = await process.communicate()
        raise AssertionError(f"still running after {seconds} s:\n{out!r}\n{err!r}") from None
    assert process.returncode is not None
    return Done(process.returncode, (out or b"").decode(), (err or b"").decode())


async def until(look: Any, seconds: float = PATIENCE) -> Any:
    """Wait for a condition: the first true result of `look`, which may be a coroutine function."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        assert time.monotonic() < deadline, "it did not come true in time"
        await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def market(node: Node, deployed: Deployed, tmp_path_factory: pytest.TempPathFactory) -> Market:
    """The module's node as a market, blocks mined as transactions come."""
    return Market(node, deployed, tmp_path_factory.mktemp("market"))


SIGNALS: Mapping[str, signal.Signals] = {"Ctrl-C": signal.SIGINT, "SIGTERM": signal.SIGTERM}
