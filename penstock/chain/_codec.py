"""Calldata and logs, from the committed ABIs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from eth_abi.abi import decode, encode
from eth_abi.exceptions import DecodingError
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from penstock.chain import abi
from penstock.types import Address, Place, hex32, unhex


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
    """An event. Its indexed parameters are all one word long, which all of ours are."""

    name: str
    topic: str
    indexed: tuple[tuple[str, Callable[[str], Any]], ...]
    plain: tuple[tuple[str, Callable[[str], Any]], ...] | None
    """None: not all of one word, so that eth_abi must look."""
    unindexed: tuple[Mapping[str, Any], ...]
    """As the ABI has them."""

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> EventShape:
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

    def decode(self, topics: Sequence[str], data: str) -> dict[str, Any]:
        """The parameters by name: addresses checksummed, bytes32 as 0x and hex; structs and arrays as eth_abi gives
        them. ValueError where the log is not of this shape."""
        fits = self.plain is None or len(data) == 2 + 64 * len(self.plain)
        if len(topics) != len(self.indexed) + 1 or not fits:
            raise ValueError(f"no log of {self.name}")
        values = {name: read(topic[2:]) for (name, read), topic in zip(self.indexed, topics[1:], strict=True)}
        if self.plain is not None:
            for place, (name, read) in enumerate(self.plain):
                values[name] = read(data[2 + 64 * place : 66 + 64 * place])
            return values
        try:
            found = decode([canonical(i) for i in self.unindexed], unhex(data))
        except DecodingError as error:
            raise ValueError(f"no log of {self.name}: {error}") from error
        for parameter, value in zip(self.unindexed, found, strict=True):
            read_value = _VALUES.get(parameter["type"])
            values[parameter["name"]] = value if read_value is None else read_value(value)
        return values


_WORDS: dict[str, Callable[[str], Any]] = {
    "address": lambda word: checksum("0x" + word[24:]),
    "bytes32": lambda word: "0x" + word,
    "bool": lambda word: int(word, 16) == 1,
    **{f"uint{bits}": lambda word: int(word, 16) for bits in range(8, 257, 8)},
}
_VALUES: dict[str, Callable[[Any], Any]] = {"address": checksum, "bytes32": hex32}


def place_of(log: Mapping[str, Any], timestamp: int) -> Place:
    """Where a log was written; `timestamp`: of its block."""
    return Place(
        int(log["blockNumber"], 16), log["blockHash"], timestamp, log["transactionHash"], int(log["logIndex"], 16)
    )


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
