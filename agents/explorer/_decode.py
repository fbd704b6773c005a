"""Logs of Penstock's contracts, as a node gives them, to events by the names that the contracts use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from eth_abi.abi import decode
from eth_utils.crypto import keccak

from agents.explorer._schema import seq_of
from penstock.chain import abi
from penstock.chain._codec import canonical, checksum
from penstock.deployments import Deployment
from penstock.types import hex32, unhex

Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Logged:
    """An event where it happened."""

    seq: int
    block: int
    block_hash: str
    timestamp: int
    transaction: str
    contract: str
    """Its name, such as StreamPay."""
    name: str
    values: Values
    """Addresses checksummed, bytes as 0x and hex, structs as mappings."""


class Decoder:
    """For one deployment: which addresses to listen to, and how to read what they say. Whoever else is read is an
    agent's wallet: all of them run AgentWallet, and `wallet` among an event's values says which it was."""

    def __init__(self, deployment: Deployment) -> None:
        self.contracts = {contract.address: name for name, contract in deployment.contracts.items()}
        self._by_address = {address.lower(): name for address, name in self.contracts.items()}
        self._shapes = {
            name: {shape.topic: shape for e in abi.load(name) if e["type"] == "event" for shape in [_Shape.of(e)]}
            for name in self.contracts.values()
        }

    def read(self, log: Mapping[str, Any], timestamp: int) -> Logged:
        """ValueError where it is none of the known events: the committed ABIs are not those of the contracts."""
        contract = self._by_address.get(log["address"].lower(), "AgentWallet")
        shape = self._shapes[contract].get(log["topics"][0])
        if shape is None:
            raise ValueError(f"{contract} logged an event that its ABI does not have, in {log['transactionHash']}")
        block, index = int(log["blockNumber"], 16), int(log["logIndex"], 16)
        values = shape.decode(log["topics"], log["data"])
        if contract == "AgentWallet":
            values["wallet"] = checksum(log["address"])
        return Logged(
            seq_of(block, index),
            block,
            log["blockHash"],
            timestamp,
            log["transactionHash"],
            contract,
            shape.name,
            values,
        )


@dataclass(frozen=True, slots=True)
class _Shape:
    name: str
    topic: str
    indexed: tuple[tuple[str, Callable[[str], Any]], ...]
    plain: tuple[tuple[str, Callable[[str], Any]], ...] | None
    """None: not all of one word, so that eth_abi must look."""
    inputs: tuple[Mapping[str, Any], ...]

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> _Shape:
        inputs = entry["inputs"]
        topic = "0x" + keccak(text=f"{entry['name']}({','.join(canonical(i) for i in inputs)})").hex()
        unindexed = tuple(i for i in inputs if not i["indexed"])
        simple = all(i["type"] in _WORDS for i in unindexed)
        return cls(
            entry["name"],
            topic,
            tuple((i["name"], _WORDS[i["type"]]) for i in inputs if i["indexed"]),
            tuple((i["name"], _WORDS[i["type"]]) for i in unindexed) if simple else None,
            unindexed,
        )

    def decode(self, topics: list[str], data: str) -> Values:
        values: Values = {name: read(topic[2:]) for (name, read), topic in zip(self.indexed, topics[1:], strict=True)}
        if self.plain is not None:
            for place, (name, read) in enumerate(self.plain):
                values[name] = read(data[2 + 64 * place : 66 + 64 * place])
        else:
            found = decode([canonical(i) for i in self.inputs], unhex(data))
            values.update({i["name"]: _plain(i, value) for i, value in zip(self.inputs, found, strict=True)})
        return values


_WORDS: dict[str, Callable[[str], Any]] = {
    "address": lambda word: checksum("0x" + word[24:]),
    "bytes32": lambda word: "0x" + word,
    "bool": lambda word: int(word, 16) == 1,
    **{f"uint{bits}": lambda word: int(word, 16) for bits in range(8, 257, 8)},
}


def _plain(parameter: Mapping[str, Any], value: Any) -> Any:
    """A value as eth_abi gives it, as JSON can carry it."""
    if parameter["type"] == "tuple":
        return {part["name"]: _plain(part, one) for part, one in zip(parameter["components"], value, strict=True)}
    if parameter["type"].endswith("]"):
        inner = {**parameter, "type": parameter["type"].rpartition("[")[0]}
        return [_plain(inner, one) for one in value]
    if parameter["type"] == "address":
        return checksum(value)
    return hex32(value) if isinstance(value, bytes) else value
