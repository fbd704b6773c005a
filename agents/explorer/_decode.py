"""Logs of Penstock's contracts, as a node gives them, to events by the names that the contracts use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agents.explorer._schema import seq_of
from penstock.chain import abi
from penstock.chain._codec import EventShape, checksum
from penstock.deployments import Deployment
from penstock.types import hex32

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
            name: {shape.topic: shape for e in abi.load(name) if e["type"] == "event" for shape in [EventShape.of(e)]}
            for name in self.contracts.values()
        }

    def read(self, log: Mapping[str, Any], timestamp: int) -> Logged:
        """ValueError where it is none of the known events: the committed ABIs are not those of the contracts."""
        contract = self._by_address.get(log["address"].lower(), "AgentWallet")
        shape = self._shapes[contract].get(log["topics"][0])
        if shape is None:
            raise ValueError(f"{contract} logged an event that its ABI does not have, in {log['transactionHash']}")
        block, index = int(log["blockNumber"], 16), int(log["logIndex"], 16)
        values = _values(shape, log)
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


def _values(shape: EventShape, log: Mapping[str, Any]) -> Values:
    values = shape.decode(log["topics"], log["data"])
    if shape.plain is None:
        values |= {one["name"]: _plain(one, values[one["name"]]) for one in shape.unindexed}
    return values


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
