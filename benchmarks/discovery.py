"""Discovery among very many offers, on a real anvil with the real contracts: cold, warm, and after a change.

    python -m benchmarks.discovery [--offers 10000] [--providers 500]

All offers are of one model, which is the worst case: every one is looked at and scored for every request.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from agents.buyer._choice import Chooser
from agents.buyer._index import Index
from agents.buyer._memory import Memory
from agents.buyer._policy import Policy
from agents.buyer._types import Wish
from penstock.chain._codec import interface
from penstock.chain.web3 import Web3Chain
from penstock.types import NATIVE, Service, Terms, hex32
from tests.deployed import Deployed, deploy
from tests.harness import Node

COLD, WARM = 10.0, 0.1
"""Seconds that it may take."""
MODEL = "llama-3.1-8b-instruct"
BATCH = 500


def batch(node: Node, calls: Sequence[tuple[str, list[Any]]]) -> None:
    """Many requests in few bodies."""
    for at in range(0, len(calls), BATCH):
        part = calls[at : at + BATCH]
        body = [
            {"jsonrpc": "2.0", "id": n, "method": method, "params": params} for n, (method, params) in enumerate(part)
        ]
        request = urllib.request.Request(node.url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as response:
            for answer in json.load(response):
                assert "error" not in answer, answer["error"]


def fill(node: Node, deployed: Deployed, providers: int, offers: int, stake: int) -> None:
    """So many real registrations, stakes and offers, by real transactions from impersonated accounts."""
    registry, staking = interface("Registry"), interface("Staking")
    owners = [f"0x{0xB000000000000000000000000000000000000000 + n:040x}" for n in range(providers)]
    node.rpc("evm_setBlockGasLimit", hex(2**50))
    node.rpc("anvil_autoImpersonateAccount", True)
    node.rpc("evm_setAutomine", False)
    batch(node, [("anvil_setBalance", [owner, hex(10**21)]) for owner in owners])

    def send(sender: str, to: str, data: bytes, value: int = 0) -> tuple[str, list[Any]]:
        sent = {"from": sender, "to": to, "data": hex32(data), "value": hex(value), "gas": hex(2_000_000)}
        return "eth_sendTransaction", [sent]

    def terms(n: int) -> Terms:
        rate = (1000 + n * 7919 % 100_003) * 10**12
        if n % 2:
            return Terms(MODEL, NATIVE, rate, 0, 0, 1, 8192, 0, "fp8", "eu")
        return Terms(MODEL, NATIVE, 0, rate, 3 * rate, 1, 8192, 0, "fp8", "eu")

    steps = [
        [
            send(
                owner,
                deployed.deployment.registry,
                registry["register"].encode(
                    owner, owner, int(Service.INFERENCE), f"https://p{n}.example", "", bytes(32), 0
                ),
            )
            for n, owner in enumerate(owners)
        ],
        [send(owner, deployed.deployment.staking, staking["stake"].encode(owner, stake), stake) for owner in owners],
        [
            send(
                owners[n % providers],
                deployed.deployment.registry,
                registry["create_offer"].encode(owners[n % providers], terms(n).as_tuple()),
            )
            for n in range(offers)
        ],
    ]
    for step in steps:
        for at in range(0, len(step), 2000):
            batch(node, step[at : at + 2000])
            node.mine()
    node.rpc("evm_setAutomine", True)
    node.rpc("anvil_autoImpersonateAccount", False)


async def measure(node: Node, deployed: Deployed, folder: Path, offers: int, providers: int) -> dict[str, float]:
    """Seconds, by what was done."""
    took: dict[str, float] = {}

    async def timed(what: str, work: Callable[[], Awaitable[Any]]) -> Any:
        began = time.perf_counter()
        found = await work()
        took[what] = time.perf_counter() - began
        return found

    path, policy = folder / "market.db", Policy(explore=0)
    memory = Memory(None, half_life=3600, aside=1, longest_aside=1, clock=time.time)
    async with await Web3Chain.connect(node.url, deployed.deployment, request_timeout=120) as chain:

        async def opened() -> tuple[Index, Chooser]:
            index = Index(path, chain, refresh=0)
            return index, Chooser(index, memory, policy, is_open=lambda _: False, clock=time.time)

        index, chooser = await opened()
        entries = await timed("cold: nothing known, read from the chain", index.entries)
        assert len(entries) == offers, len(entries)
        first = await timed("warm, same process: follow the chain, filter, score", lambda: _choose(chooser))
        index.close()
        node.mine()

        async def again() -> list[Any]:
            nonlocal index, chooser
            index, chooser = await opened()
            return await index.entries()

        entries = await timed("warm, new process: from the file, follow the chain", again)
        assert len(entries) == offers
        cheapest = first[0].listing
        owner, offer = cheapest.provider.owner, cheapest.offer.id
        node.rpc("anvil_autoImpersonateAccount", True)
        node.transact(
            owner,
            deployed.deployment.registry,
            interface("Registry")["set_offer_active"].encode(bytes.fromhex(offer[2:]), False),
        )
        entries = await timed("one offer changed: follow the chain", index.entries)
        assert len(entries) == offers - 1
        second = await timed("choose once more", lambda: _choose(chooser))
        assert second[0].listing.offer.id != offer
        index.close()
    memory.close()
    return took


async def _choose(chooser: Chooser) -> list[Any]:
    return await chooser.candidates(Wish(model=MODEL, policy="cheapest"), 2000, 500)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--offers", type=int, default=10_000)
    parser.add_argument("--providers", type=int, default=500)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="penstock-discovery-") as folder:
        deployed = deploy(Path(folder))
        with Node(load_state=deployed.state) as node:
            began = time.perf_counter()
            fill(node, deployed, given.providers, given.offers, 10**20)
            print(
                f"{given.offers} offers of {given.providers} providers, made in {time.perf_counter() - began:.0f} s\n"
            )
            took = asyncio.run(measure(node, deployed, Path(folder), given.offers, given.providers))
    print("| what | seconds |\n|---|---|")
    for what, seconds in took.items():
        print(f"| {what} | {seconds:.3f} |")
    slow = [what for what, seconds in took.items() if seconds > (COLD if what.startswith("cold") else WARM)]
    if slow:
        raise SystemExit(f"too slow: {', '.join(slow)}")


if __name__ == "__main__":
    main()
