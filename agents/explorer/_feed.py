"""What a node says of the contracts: blocks, and all their events in ranges of blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from agents.explorer._decode import Decoder, Logged
from penstock.chain._codec import Function
from penstock.chain._rpc import JsonRpc, RpcError
from penstock.deployments import Deployment
from penstock.errors import NodeUnavailable, WrongChain
from penstock.types import hex32, unhex

_ASKED = 500
"""Wallets that one request names."""


@dataclass(frozen=True, slots=True)
class Header:
    number: int
    hash: str
    parent_hash: str
    timestamp: int


@dataclass(frozen=True, slots=True)
class ViewCall:
    target: str
    function: Function
    arguments: tuple[Any, ...] = ()


class Feed:
    def __init__(self, rpc: JsonRpc, deployment: Deployment) -> None:
        self._rpc = rpc
        self._chain_id = deployment.chain_id
        self._decoder = Decoder(deployment)
        self._addresses = list(self._decoder.contracts)

    async def require_chain(self) -> None:
        """WrongChain where the node is on another chain than the deployment."""
        found = int(await self._ask("eth_chainId"), 16)
        if found != self._chain_id:
            raise WrongChain(
                f"{self._rpc.shown} is on chain {found}, the deployment on chain {self._chain_id}: "
                "give the --network, --rpc-url and --deployment that belong together"
            )

    async def head(self) -> Header:
        return _header(await self._ask("eth_getBlockByNumber", "latest", False))

    async def block(self, number: int) -> Header | None:
        found = await self._ask("eth_getBlockByNumber", hex(number), False)
        return None if found is None else _header(found)

    async def hashes(self, numbers: Sequence[int]) -> list[str | None]:
        """Of the blocks that the chain has now under these numbers; None where it has none."""
        answers = await self._rpc.batch([("eth_getBlockByNumber", (hex(number), False)) for number in numbers])
        for answer in answers:
            if isinstance(answer, RpcError):
                raise NodeUnavailable(f"the node {self._rpc.shown} refused {answer}")
        return [None if answer is None else answer["hash"] for answer in answers]

    async def events(self, first: int, last: int, wallets: Iterable[str] = ()) -> list[Logged]:
        """In the order of the chain, those of agents' `wallets` and of wallets that are made in these blocks among
        them. NodeUnavailable where the node does not tell."""
        found = await self._read(await self._logs(first, last, self._addresses))
        made = {str(one.values["wallet"]) for one in found if one.name == "Created"}
        addresses = sorted(made | set(wallets))
        for at in range(0, len(addresses), _ASKED):
            found += await self._read(await self._logs(first, last, addresses[at : at + _ASKED]))
        return sorted(found, key=lambda one: one.seq)

    async def _read(self, logs: list[dict[str, Any]]) -> list[Logged]:
        times = await self._timestamps(logs)
        return [self._decoder.read(log, times[log["blockHash"]]) for log in logs]

    async def views(self, block_hash: str, calls: Sequence[ViewCall]) -> list[Any]:
        """What the contracts' views said after this very block. NodeUnavailable where the node no longer knows."""
        at = {"blockHash": block_hash}
        requests = [("eth_call", ({"to": c.target, "data": hex32(c.function.encode(*c.arguments))}, at)) for c in calls]
        found = []
        for call, answer in zip(calls, await self._rpc.batch(requests), strict=True):
            if isinstance(answer, RpcError):
                raise NodeUnavailable(f"the node {self._rpc.shown} refused {call.function.name}: {answer}")
            found.append(call.function.decode(unhex(answer)))
        return found

    async def coins(self, block_hash: str, account: str) -> int:
        return int(await self._ask("eth_getBalance", account, {"blockHash": block_hash}), 16)

    async def _logs(self, first: int, last: int, addresses: Sequence[str]) -> list[dict[str, Any]]:
        wanted = {"address": addresses, "fromBlock": hex(first), "toBlock": hex(last)}
        try:
            found: list[dict[str, Any]] = await self._rpc.call("eth_getLogs", wanted)
            return found
        except RpcError as error:
            if first < last:  # too many blocks or too many logs for this node
                middle = (first + last) // 2
                return [*await self._logs(first, middle, addresses), *await self._logs(middle + 1, last, addresses)]
            raise NodeUnavailable(f"the node {self._rpc.shown} refused {error}; use another --rpc-url") from error

    async def _timestamps(self, logs: Iterable[dict[str, Any]]) -> dict[str, int]:
        """By block's hash; asked for where the node does not put it into the log."""
        times = {log["blockHash"]: int(log.get("blockTimestamp") or "0x0", 16) for log in logs}
        missing = [block for block, time in times.items() if not time]
        answers = await self._rpc.batch([("eth_getBlockByHash", (block, False)) for block in missing])
        for block, answer in zip(missing, answers, strict=True):
            if isinstance(answer, RpcError) or answer is None:
                raise NodeUnavailable(f"the node {self._rpc.shown} no longer has block {block}: ask again")
            times[block] = int(answer["timestamp"], 16)
        return times

    async def _ask(self, method: str, *params: Any) -> Any:
        try:
            return await self._rpc.call(method, *params)
        except RpcError as error:
            raise NodeUnavailable(f"the node {self._rpc.shown} refused {error}") from error


def _header(found: dict[str, Any]) -> Header:
    return Header(int(found["number"], 16), found["hash"], found["parentHash"], int(found["timestamp"], 16))
