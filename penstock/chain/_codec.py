"""Calldata and logs, from the committed ABIs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from eth_abi.abi import decode, encode
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from penstock.chain import abi
from penstock.types import Address


@lru_cache(maxsize=65_536)
def checksum(text: str) -> Address:
    return Address(to_checksum_address(text))


def canonical(parameter: Mapping[str, Any]) -> str:
    """The type of an ABI parameter as signatures spell it, tuples written out."""
    kind: str = parameter["type"]
    if not kind.startswith("tuple"):
        return kind
    inner = ",".join(canonical(part) for part in parameter["components"])
    return f"({inner}){kind.removeprefix('tuple')}"


@dataclass(frozen=True, slots=True)
class Function:
    name: str
    selector: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @classmethod
    def of(cls, name: str, inputs: Sequence[str], outputs: Sequence[str]) -> Function:
        return cls(name, keccak(text=f"{name}({','.join(inputs)})")[:4], tuple(inputs), tuple(outputs))

    def encode(self, *args: Any) -> bytes:
        return self.selector + encode(self.inputs, args)

    def decode(self, raw: bytes) -> Any:
        """The one value, or a tuple of several. ValueError where the answer is not of this shape."""
        values = decode(self.outputs, raw)
        return values[0] if len(values) == 1 else values


@dataclass(frozen=True, slots=True)
class EventShape:
    """An event whose parameters are all one word long, which all of StreamPay's are."""

    name: str
    topic: str
    indexed: tuple[tuple[str, Callable[[str], Any]], ...]
    plain: tuple[tuple[str, Callable[[str], Any]], ...]

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> EventShape:
        inputs = entry["inputs"]
        topic = "0x" + keccak(text=f"{entry['name']}({','.join(canonical(i) for i in inputs)})").hex()
        indexed = tuple((i["name"], _WORDS[i["type"]]) for i in inputs if i["indexed"])
        plain = tuple((i["name"], _WORDS[i["type"]]) for i in inputs if not i["indexed"])
        return cls(entry["name"], topic, indexed, plain)

    def decode(self, topics: Sequence[str], data: str) -> dict[str, Any]:
        """The parameters by name. ValueError where the log is not of this shape."""
        if len(topics) != len(self.indexed) + 1 or len(data) != 2 + 64 * len(self.plain):
            raise ValueError(f"no log of {self.name}")
        values = {name: read(topic[2:]) for (name, read), topic in zip(self.indexed, topics[1:], strict=True)}
        for place, (name, read) in enumerate(self.plain):
            values[name] = read(data[2 + 64 * place : 66 + 64 * place])
        return values


_WORDS: dict[str, Callable[[str], Any]] = {
    "address": lambda word: checksum("0x" + word[24:]),
    "bytes32": lambda word: "0x" + word,
    "uint256": lambda word: int(word, 16),
    "bool": lambda word: int(word, 16) == 1,
}


@dataclass(frozen=True)
class Interface:
    """The functions of one contract by name."""

    functions: Mapping[str, Function]

    def __getitem__(self, name: str) -> Function:
        return self.functions[name]


@cache
def interface(contract: str) -> Interface:
    """Of one of the committed ABIs."""
    functions = {}
    for entry in abi.load(contract):
        if entry["type"] == "function":
            inputs = [canonical(i) for i in entry["inputs"]]
            functions[entry["name"]] = Function.of(entry["name"], inputs, [canonical(o) for o in entry["outputs"]])
    return Interface(functions)


@cache
def event_shapes(contract: str, names: tuple[str, ...]) -> dict[str, EventShape]:
    """By topic."""
    shapes = [EventShape.of(e) for e in abi.load(contract) if e["type"] == "event" and e["name"] in names]
    return {shape.topic: shape for shape in shapes}


ERC20 = Interface(
    {
        function.name: function
        for function in (
            Function.of("symbol", [], ["string"]),
            Function.of("decimals", [], ["uint8"]),
            Function.of("balanceOf", ["address"], ["uint256"]),
            Function.of("allowance", ["address", "address"], ["uint256"]),
            Function.of("approve", ["address", "uint256"], ["bool"]),
            Function.of("DOMAIN_SEPARATOR", [], ["bytes32"]),
            Function.of("nonces", ["address"], ["uint256"]),
        )
    }
)


def revert_reason(data: str, message: str) -> str:
    """What a revert says: its string, a panic, or its raw data where it is neither."""
    raw = bytes.fromhex(data.removeprefix("0x"))
    try:
        if raw[:4] == bytes.fromhex("08c379a0"):  # Error(string)
            return str(decode(["string"], raw[4:])[0])
        if raw[:4] == bytes.fromhex("4e487b71"):  # Panic(uint256)
            return f"panic 0x{decode(['uint256'], raw[4:])[0]:02x}"
    except Exception:  # eth_abi raises its own kinds; what cannot be read is shown as it is
        return data
    if raw:
        return data
    said = message.partition("reverted")[2].lstrip(": ").strip()
    return said or "no reason given"
