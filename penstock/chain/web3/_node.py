"""A node, as all parts of `Web3Chain` ask it: views in batches, logs in ranges, the times of blocks."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from typing import Any

from eth_abi.exceptions import DecodingError

from penstock.chain._codec import Function, revert_reason
from penstock.chain._rpc import JsonRpc, RpcError
from penstock.deployments import Deployment
from penstock.errors import NoContract, NodeUnavailable, Reverted
from penstock.networks import by_chain_id
from penstock.types import NATIVE, Address, Block, Token, unhex

PAGE = 100
"""Ids in one answer of the page views."""
LOG_RANGE = 5_000
"""Blocks in one `eth_getLogs` at first; halved where the node finds that too much."""
_KNOWN_TIMES = 20_000


class Node:
    """One node on a chain with one deployment."""

    def __init__(self, rpc: JsonRpc, deployment: Deployment, *, receipt_timeout: float) -> None:
        self.chain_id = deployment.chain_id
        self.stream_pay = deployment.stream_pay
        self.registry = deployment.registry
        self.staking = deployment.staking
        self.slashing = deployment.slashing
        self.catalogue = deployment.catalogue
        self.license = deployment.license
        self.wallet_factory = deployment.wallet_factory
        self._known_wallets: set[Address] = set()
        self._rpc = rpc
        self._receipt_timeout = receipt_timeout
        network = by_chain_id(deployment.chain_id)
        self._native = Token(NATIVE, network.native_symbol if network else "coins", 18)
        self._tokens: dict[Address, Token] = {NATIVE: self._native}
        self._locks: dict[Address, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._in_flight: dict[Address, set[int]] = defaultdict(set)
        self._times: OrderedDict[str, int] = OrderedDict()

    # --- the chain itself ---

    async def head(self) -> Block:
        return _block(await self._ask("eth_getBlockByNumber", "latest", False))

    async def block(self, number: int) -> Block | None:
        found = await self._ask("eth_getBlockByNumber", hex(number), False)
        return None if found is None else _block(found)

    async def native_balance(self, account: Address) -> int:
        return int(await self._ask("eth_getBalance", account, "latest"), 16)

    # --- how reads travel ---

    async def _ask(self, method: str, *params: Any) -> Any:
        try:
            return await self._rpc.call(method, *params)
        except RpcError as error:
            raise NodeUnavailable(f"the node {self._rpc.shown} refused {error}") from error

    def _eth_call(self, to: Address, data: bytes) -> tuple[str, tuple[Any, ...]]:
        return "eth_call", ({"to": to, "data": "0x" + data.hex()}, "latest")

    async def _view(self, to: Address, function: Function, *args: Any) -> Any:
        (found,) = await self._views(to, function, [args])
        return found

    async def _views(self, to: Address, function: Function, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The same view with many arguments, in as few requests as the node takes."""
        answers = await self._rpc.batch([self._eth_call(to, function.encode(*args)) for args in calls])
        try:
            return [function.decode(raw(answer)) for answer in answers]
        except DecodingError:
            raise NoContract(f"{to} does not answer {function.name} as a contract of Penstock does") from None
        except RpcError as error:
            if error.is_revert:
                raise Reverted(revert_reason(error.data, error.message), doing=f"reading {function.name}") from error
            raise NodeUnavailable(f"the node {self._rpc.shown} refused {error}") from error

    async def _all_pages(self, to: Address, function: Function, fixed: tuple[Any, ...]) -> list[Any]:
        """Of a list whose length no view tells: until a page is not full."""
        found: list[Any] = []
        while True:
            page = await self._view(to, function, *fixed, len(found), PAGE)
            found += page
            if len(page) < PAGE:
                return found

    # --- how events travel ---

    async def _logs_of(
        self, first: int, last: int, topics: list[str], source: Address | list[Address]
    ) -> list[tuple[dict[str, Any], int]]:
        """Each log with its block's timestamp."""
        logs = await self._logs_in(first, last, topics, source)
        return list(zip(logs, await self._timestamps(logs), strict=True))

    async def _logs_in(
        self, first: int, last: int, topics: list[str], source: Address | list[Address]
    ) -> list[dict[str, Any]]:
        logs: list[dict[str, Any]] = []
        for start in range(first, last + 1, LOG_RANGE):
            logs += await self._logs(start, min(start + LOG_RANGE - 1, last), topics, source)
        return logs

    async def _logs(
        self, first: int, last: int, topics: list[str], source: Address | list[Address]
    ) -> list[dict[str, Any]]:
        wanted = {
            "address": source,
            "fromBlock": hex(first),
            "toBlock": hex(last),
            "topics": [topics],
        }
        try:
            logs: list[dict[str, Any]] = await self._rpc.call("eth_getLogs", wanted)
        except RpcError as error:
            if first < last:  # too many blocks or too many logs for this node
                middle = (first + last) // 2
                upper = await self._logs(middle + 1, last, topics, source)
                return await self._logs(first, middle, topics, source) + upper
            if first > (await self.head()).number:
                return []
            raise NodeUnavailable(
                f"the node {self._rpc.shown} gives no logs ({error.message}): use one that answers eth_getLogs"
            ) from error
        # A node that is reorganising may still name logs that are gone.
        return [log for log in logs if not log.get("removed")]

    async def _timestamps(self, logs: Sequence[dict[str, Any]]) -> list[int]:
        """Of each log's block; asked for once per block where the node does not put it into the log."""
        for log in logs:
            if log.get("blockTimestamp"):
                self._remember_time(log["blockHash"], int(log["blockTimestamp"], 16))
        missing = list(dict.fromkeys(log["blockHash"] for log in logs if log["blockHash"] not in self._times))
        found = {block: self._times[block] for block in {log["blockHash"] for log in logs} - set(missing)}
        answers = await self._rpc.batch([("eth_getBlockByHash", (block, False)) for block in missing])
        for block, answer in zip(missing, answers, strict=True):
            if isinstance(answer, RpcError) or answer is None:
                raise NodeUnavailable(f"the node {self._rpc.shown} no longer has block {block}: ask again")
            found[block] = int(answer["timestamp"], 16)
            self._remember_time(block, found[block])
        return [found[log["blockHash"]] for log in logs]

    def _remember_time(self, block: str, timestamp: int) -> None:
        self._times[block] = timestamp
        if len(self._times) > _KNOWN_TIMES:
            self._times.popitem(last=False)


def raw(answer: Any) -> bytes:
    """Of an `eth_call` in a batch; raises the RpcError that it may be."""
    if isinstance(answer, RpcError):
        raise answer
    return unhex(answer)


def _block(raw: dict[str, Any]) -> Block:
    return Block(int(raw["number"], 16), raw["hash"], raw["parentHash"], int(raw["timestamp"], 16))
