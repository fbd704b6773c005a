"""A fast lane to an anvil node: one keep-alive connection, ABI codecs, no middleware.

Ape starts and owns the node; the suites that make thousands of calls talk to it through this. A
transaction is first tried by `eth_call`, which gives the reason of a revert, then sent and mined in a
block of its own. Time stands still unless a test moves it: every block, and every view, carries the
timestamp `Chain.now`, so that tests compute what is due to the wei.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import urlparse

from eth_abi import decode, encode
from eth_utils import keccak, to_checksum_address

GAS = 15_000_000


class Reverted(Exception):
    """A call reverted; `reason` is its string, or its raw data where it gave none ("0x": no data at all)."""

    def __init__(self, data: str) -> None:
        self.data = data
        raw = bytes.fromhex(data.removeprefix("0x"))
        is_reason = raw[:4] == bytes.fromhex("08c379a0")
        self.reason: str = decode(["string"], raw[4:])[0] if is_reason else data
        super().__init__(self.reason)


class OutOfGas(Exception):
    """A call used all the gas it had."""


class Rpc:
    """JSON-RPC over one connection. A request is one packet: `http.client` would make two of it."""

    def __init__(self, uri: str) -> None:
        url = urlparse(uri)
        assert url.hostname
        self.uri = uri
        self._head = f"POST / HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: application/json\r\nContent-Length: "
        self._socket = socket.create_connection((url.hostname, url.port or 80), timeout=300)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._answers = self._socket.makefile("rb")
        self._sent = 0

    def close(self) -> None:
        self._answers.close()
        self._socket.close()

    def _post(self, payload: object) -> Any:
        body = json.dumps(payload)
        self._socket.sendall(f"{self._head}{len(body)}\r\n\r\n{body}".encode())
        size = None
        while (line := self._answers.readline()) != b"\r\n":
            assert line, "the node hung up"
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                size = int(value)
        assert size is not None, "an answer without its length"
        return json.loads(self._answers.read(size))

    def _request(self, method: str, params: tuple[Any, ...]) -> dict[str, Any]:
        self._sent += 1
        return {"jsonrpc": "2.0", "id": self._sent, "method": method, "params": params}

    @staticmethod
    def _result(answer: dict[str, Any]) -> Any:
        if error := answer.get("error"):
            if error.get("code") == 3:
                raise Reverted(error.get("data") or "0x")
            if "OutOfGas" in error.get("message", ""):
                raise OutOfGas(error["message"])
            raise RuntimeError(error)
        return answer["result"]

    def __call__(self, method: str, *params: Any) -> Any:
        return self._result(self._post(self._request(method, params)))

    def batch(self, calls: list[tuple[str, tuple[Any, ...]]]) -> list[Any]:
        """Many requests in one; answers in order, the first error raises. For views: no order of execution."""
        answers = self._post([self._request(method, params) for method, params in calls])
        return [self._result(answer) for answer in sorted(answers, key=lambda answer: answer["id"])]


def canonical(parameter: Mapping[str, Any]) -> str:
    """The type of an ABI parameter as signatures spell it, tuples written out."""
    kind: str = parameter["type"]
    if not kind.startswith("tuple"):
        return kind
    inner = ",".join(canonical(part) for part in parameter["components"])
    return f"({inner}){kind.removeprefix('tuple')}"


checksum = lru_cache(maxsize=65_536)(to_checksum_address)


def tidy(kind: str, value: Any) -> Any:
    """Decoded values as tests compare them: addresses with their checksum."""
    if kind == "address":
        return checksum(value)
    if kind == "address[]":
        return [checksum(item) for item in value]
    return value


@dataclass(frozen=True)
class Function:
    """One function of an ABI and its codec."""

    name: str
    selector: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    is_view: bool

    @classmethod
    def of(cls, item: Mapping[str, Any]) -> Function:
        inputs = tuple(canonical(i) for i in item["inputs"])
        return cls(
            item["name"],
            keccak(text=f"{item['name']}({','.join(inputs)})")[:4],
            inputs,
            tuple(canonical(i) for i in item["outputs"]),
            item["stateMutability"] in ("view", "pure"),
        )

    def encode(self, args: Sequence[Any]) -> bytes:
        return self.selector + encode(self.inputs, args)

    def decode(self, raw: bytes) -> Any:
        values = [tidy(k, v) for k, v in zip(self.outputs, decode(self.outputs, raw), strict=True)]
        return values[0] if len(values) == 1 else tuple(values)


@dataclass(frozen=True)
class Log:
    name: str
    address: str
    args: dict[str, Any]


@dataclass(frozen=True)
class Receipt:
    hash: str
    gas_used: int
    block: int
    timestamp: int
    logs: list[Log]
    raw_logs: list[dict[str, Any]]
    """As the node gives them."""
    result: Any = None
    """What the function returned."""

    def log(self, name: str) -> dict[str, Any]:
        """The arguments of the one log of this name."""
        found = [log.args for log in self.logs if log.name == name]
        assert len(found) == 1, f"{len(found)} logs {name} among {[log.name for log in self.logs]}"
        return found[0]


class Contract:
    """`c.deposit(token, 5, sender=a, value=5)` sends and returns a Receipt; `c.balance_of(token, a)` calls."""

    def __init__(self, chain: Chain, address: str, abi: list[dict[str, Any]]) -> None:
        self.chain, self.address, self.abi = chain, checksum(address), abi
        self.functions: dict[str, Function] = {}
        self.events = {}
        for item in abi:
            if item["type"] == "function":
                function = self.functions[item["name"]] = Function.of(item)
                setattr(self, item["name"], self._method(function))
            elif item["type"] == "event":
                topic = keccak(text=f"{item['name']}({','.join(canonical(i) for i in item['inputs'])})")
                self.events[topic] = item
        chain.contracts[self.address] = self

    def __getattr__(self, name: str) -> Any:  # methods are set in __init__
        raise AttributeError(f"no function {name} in the ABI of {self.address}")

    def encode(self, name: str, *args: Any) -> bytes:
        """The calldata of a call, for someone else to make."""
        return self.functions[name].encode(args)

    def _method(self, function: Function) -> Callable[..., Any]:
        def view(*args: Any, sender: str | None = None) -> Any:
            return function.decode(self.chain.call(self.address, function.encode(args), sender=sender))

        def send(*args: Any, sender: str, value: int = 0) -> Receipt:
            return self.chain.send(self.address, function.encode(args), sender=sender, value=value, function=function)

        return view if function.is_view else send

    def parse(self, raw: dict[str, Any]) -> Log | None:
        topics = [bytes.fromhex(topic[2:]) for topic in raw["topics"]]
        item = self.events.get(topics[0]) if topics else None
        if item is None:
            return None
        indexed = [i for i in item["inputs"] if i["indexed"]]
        plain = [i for i in item["inputs"] if not i["indexed"]]
        args = {i["name"]: decode([canonical(i)], topic)[0] for i, topic in zip(indexed, topics[1:], strict=True)}
        data = decode([canonical(i) for i in plain], bytes.fromhex(raw["data"][2:]))
        args |= {i["name"]: value for i, value in zip(plain, data, strict=True)}
        return Log(item["name"], self.address, {i["name"]: tidy(i["type"], args[i["name"]]) for i in item["inputs"]})


class Chain:
    """An anvil node whose blocks and clock this object drives: one transaction a block."""

    def __init__(self, uri: str) -> None:
        self.rpc = Rpc(uri)
        self.contracts: dict[str, Contract] = {}
        self.calls = 0
        """Calls made so far, those that reverted included; views are not counted."""
        self.rpc("evm_setAutomine", False)
        self.rpc("anvil_autoImpersonateAccount", True)
        self.accounts: list[str] = [checksum(a) for a in self.rpc("eth_accounts")]
        latest = self.rpc("eth_getBlockByNumber", "latest", False)
        self.now = int(latest["timestamp"], 16)
        """The timestamp that the next block, and every view, carries. It may equal the last block's."""
        self._base_fee: str = latest.get("baseFeePerGas", "0x0")

    def close(self) -> None:
        """Give the node back as Ape expects it."""
        self.rpc("evm_setAutomine", True)
        self.rpc.close()

    def at(self, address: str, abi: list[dict[str, Any]]) -> Contract:
        return Contract(self, address, abi)

    def deploy(self, bytecode: str, abi: list[dict[str, Any]], *args: Any, sender: str | None = None) -> Contract:
        constructor = next((i for i in abi if i["type"] == "constructor"), {"inputs": []})
        data = bytes.fromhex(bytecode.removeprefix("0x"))
        data += encode([canonical(i) for i in constructor["inputs"]], args)
        receipt = self._transact({"from": sender or self.accounts[0], "data": "0x" + data.hex()})
        return self.at(receipt["contractAddress"], abi)

    def call(self, to: str, data: bytes, *, sender: str | None = None, value: int = 0, gas: int = GAS) -> bytes:
        """What the call would return now; it changes nothing."""
        tx = {"to": to, "data": "0x" + data.hex(), "gas": hex(gas)}
        if sender:
            tx |= {"from": sender, "value": hex(value)}
        return bytes.fromhex(self.rpc("eth_call", tx, "latest", {}, {"time": hex(self.now)})[2:])

    def call_many(self, calls: Sequence[tuple[str, bytes]]) -> list[bytes]:
        """What many calls, `(to, data)` each, would return now: one request, one moment."""
        time = {"time": hex(self.now)}
        requests: list[tuple[str, tuple[Any, ...]]] = []
        for to, data in calls:
            requests.append(("eth_call", ({"to": to, "data": "0x" + data.hex(), "gas": hex(GAS)}, "latest", {}, time)))
        return [bytes.fromhex(answer[2:]) for answer in self.rpc.batch(requests)] if requests else []

    def read(self, *views: tuple[Any, ...]) -> list[Any]:
        """What many views, `(contract, name, *args)` each, return now."""
        functions = [contract.functions[name] for contract, name, *_ in views]
        calls = [(view[0].address, f.encode(view[2:])) for f, view in zip(functions, views, strict=True)]
        return [f.decode(answer) for f, answer in zip(functions, self.call_many(calls), strict=True)]

    def send(self, to: str, data: bytes, *, sender: str, value: int = 0, function: Function | None = None) -> Receipt:
        self.calls += 1
        answer = self.call(to, data, sender=sender, value=value)  # raises Reverted with the reason
        raw = self._transact({"from": sender, "to": to, "data": "0x" + data.hex(), "value": hex(value)})
        logs = []
        for item in raw["logs"]:
            contract = self.contracts.get(checksum(item["address"]))
            if contract and (log := contract.parse(item)):
                logs.append(log)
        return Receipt(
            raw["transactionHash"],
            int(raw["gasUsed"], 16),
            int(raw["blockNumber"], 16),
            self.now,
            logs,
            raw["logs"],
            function.decode(answer) if function and function.outputs else None,
        )

    def _transact(self, tx: dict[str, str]) -> dict[str, Any]:
        tx = {"gas": hex(GAS), "gasPrice": self._base_fee, **tx}
        self.rpc("evm_setNextBlockTimestamp", self.now)
        sent = self.rpc("eth_sendTransaction", tx)
        (block,) = self.rpc("evm_mine_detailed")
        self._base_fee = block.get("baseFeePerGas", "0x0")
        assert int(block["timestamp"], 16) == self.now, "the block carries another timestamp"
        receipt: dict[str, Any] | None = self.rpc("eth_getTransactionReceipt", sent)
        assert receipt is not None, "the transaction was not mined"
        assert receipt["status"] == "0x1", f"the transaction failed: {receipt}"
        return receipt

    # Time.

    @property
    def timestamp(self) -> int:
        """Another word for `now`."""
        return self.now

    def at_time(self, timestamp: int) -> None:
        """From now on it is this second, until somebody moves the clock again."""
        assert timestamp >= self.now, "time does not run backwards"
        self.now = timestamp

    def sleep(self, seconds: int) -> None:
        self.at_time(self.now + seconds)

    # State.

    def balance(self, account: str) -> int:
        return int(self.rpc("eth_getBalance", account, "latest"), 16)

    def set_balance(self, account: str, amount: int) -> None:
        self.rpc("anvil_setBalance", account, hex(amount))

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Whatever happens inside is undone, the clock included."""
        mark, now, base_fee = self.rpc("evm_snapshot"), self.now, self._base_fee
        try:
            yield
        finally:
            assert self.rpc("evm_revert", mark)
            self.now, self._base_fee = now, base_fee
