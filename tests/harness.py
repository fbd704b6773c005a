"""A local chain under a test's control: anvil as a process, its clock, its money, its faults.

    with Node() as node:                       # mines as transactions come
    with Node(block_time=1) as node:           # mines by the clock, like BSC
    with Node(load_state=path) as node:        # continues where a dumped state ended

Everything is synchronous and takes milliseconds: tests call it between awaits.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from eth_abi.abi import encode
from eth_utils.crypto import keccak

from penstock.keys import well_known_account
from penstock.networks import LOCAL_CHAIN_ID
from penstock.types import Address, hex32
from scripts._ports import free_port

GAS_PRICE = 10**9
"""Wei; what BSC asks, or more."""
PATIENCE = 60.0
"""Seconds that anything may take on a busy machine; only a test that fails waits so long."""
_MINT = keccak(text="mint(address,uint256)")[:4]
_MINTER = 9
"""The test account that mints tokens: no test uses it for anything else, so that its nonce disturbs nobody."""

Found = TypeVar("Found")


class NodeError(Exception):
    """anvil said no."""


def wait_until(look: Callable[[], Found], seconds: float = PATIENCE, what: str = "the condition") -> Found:
    """The first true answer of `look`. AssertionError after the deadline."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds:g} s"
        time.sleep(0.01)
    return found


class Node:
    """An anvil process with BSC's terms: 1 gwei, no base fee, chain id 31337. It stops with its `with`."""

    def __init__(
        self,
        *,
        block_time: float | None = None,
        load_state: Path | None = None,
        chain_id: int = LOCAL_CHAIN_ID,
        port: int = 0,
    ) -> None:
        """`block_time` in seconds; None: a block for each transaction. `port` 0: any free one."""
        self._options = ["--chain-id", str(chain_id), "--base-fee", "0", "--gas-price", str(GAS_PRICE)]
        self._options += ["--order", "fifo", "--hardfork", "cancun"]
        if block_time is not None:
            self._options += ["--block-time", str(block_time)]
        if load_state is not None:
            self._options += ["--load-state", str(load_state)]
        self._port = port or free_port()  # the same after an outage
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = ""
        self.url = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Ready when this returns. After a stop, at the same URL."""
        assert self._process is None, "it runs already"
        self._folder = tempfile.mkdtemp(prefix="penstock-node-")
        log = Path(self._folder) / "log"
        command = ["anvil", "--host", "127.0.0.1", "--port", str(self._port), *self._options]
        with log.open("wb") as out:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
        try:
            self._port = wait_until(lambda: self._listening(log), what="anvil's start")
        except BaseException:
            self.stop()
            raise
        self.url = f"http://127.0.0.1:{self._port}"

    def _listening(self, log: Path) -> int:
        said = log.read_text(errors="replace")
        assert self._process is not None
        assert self._process.poll() is None, f"anvil ended:\n{said[-2000:]}"
        _, found, rest = said.partition("Listening on 127.0.0.1:")
        return int(rest.split()[0]) if found and "\n" in rest else 0

    def stop(self) -> None:
        """Kill it; its state is gone unless it was dumped."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=PATIENCE)
            self._process = None
        shutil.rmtree(self._folder, ignore_errors=True)

    # --- asking it ---

    def rpc(self, method: str, *params: Any) -> Any:
        """NodeError where it says no; OSError where it does not answer."""
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
        request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            found = json.load(response)
        if "error" in found:
            raise NodeError(f"{method}: {found['error'].get('message')}")
        return found["result"]

    @property
    def height(self) -> int:
        return int(self.rpc("eth_blockNumber"), 16)

    @property
    def now(self) -> int:
        """The last block's timestamp."""
        return int(self.rpc("eth_getBlockByNumber", "latest", False)["timestamp"], 16)

    def transact(self, sender: str, to: str | None, data: bytes = b"", value: int = 0) -> dict[str, Any]:
        """From one of anvil's own accounts; its receipt, once it is mined."""
        sent = {"from": sender, "data": hex32(data), "value": hex(value), "gas": hex(10_000_000)}
        name = self.rpc("eth_sendTransaction", sent | ({"to": to} if to else {}))
        receipt: dict[str, Any] = wait_until(
            lambda: self.rpc("eth_getTransactionReceipt", name), what="the transaction's block"
        )
        assert receipt["status"] == "0x1", receipt
        return receipt

    # --- money ---

    def set_balance(self, account: str, amount: int) -> None:
        """Coins: base units."""
        self.rpc("anvil_setBalance", account, hex(amount))

    def mint(self, token: Address, to: str, amount: int) -> None:
        """Of a token that lets anyone mint, such as TestUSD: base units."""
        data = _MINT + encode(["address", "uint256"], [to, amount])
        self.transact(well_known_account(_MINTER).address, token, data)

    # --- time and blocks ---

    def mine(self, blocks: int = 1) -> None:
        self.rpc("anvil_mine", hex(blocks))

    def advance(self, seconds: int) -> int:
        """Let so much time pass, and mine a block. Its timestamp."""
        self.rpc("evm_increaseTime", seconds)
        self.mine()
        return self.now

    def mine_at(self, timestamp: int) -> None:
        """A block of this second, whatever time has passed meanwhile."""
        self.rpc("evm_setNextBlockTimestamp", timestamp)
        self.mine()

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """Inside, transactions are taken and wait; at the end one block mines them all."""
        self.rpc("evm_setAutomine", False)
        try:
            yield
        finally:
            self.mine()
            self.rpc("evm_setAutomine", True)

    # --- faults ---

    def reorg(self, depth: int) -> None:
        """Replace the last `depth` blocks by as many empty ones; their transactions are gone."""
        self.rpc("anvil_reorg", depth, [])

    @contextlib.contextmanager
    def outage(self) -> Iterator[None]:
        """Inside, nothing listens at its URL; afterwards it is back with all that it knew."""
        with tempfile.TemporaryDirectory(prefix="penstock-state-") as folder:
            state = self.dump(Path(folder) / "state.json")
            self.stop()
            try:
                yield
            finally:
                options, self._options = self._options, [*self._without_state(), "--load-state", str(state)]
                self.start()
                self._options = options

    def _without_state(self) -> list[str]:
        if "--load-state" not in self._options:
            return self._options
        at = self._options.index("--load-state")
        return self._options[:at] + self._options[at + 2 :]

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Inside, it accepts connections and answers nothing."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)
        try:
            yield
        finally:
            os.kill(self._process.pid, signal.SIGCONT)

    # --- state ---

    def dump(self, path: Path) -> Path:
        """Write its state, blocks and transactions included, for `load_state`."""
        raw = bytes.fromhex(self.rpc("anvil_dumpState").removeprefix("0x"))
        path.write_bytes(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
        return path
