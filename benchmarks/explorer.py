"""How long the explorer takes to read a chain of 100,000 events, and to check what it read.

    python -m benchmarks.explorer [--events 100000] [--db URL]

Starts an anvil, deploys, and makes the events with real transactions: streams opened and cancelled one by one, and
collected 200 at a time. Then fills an empty store, and prints the table of `benchmarks/explorer.md`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import tempfile
import time
from pathlib import Path

from agents.explorer._check import check
from agents.explorer._feed import Feed
from agents.explorer._indexer import Indexer
from agents.explorer._store import Store
from penstock.chain._codec import interface
from penstock.chain._rpc import JsonRpc, RpcError
from penstock.chain.web3 import Web3Chain
from penstock.deployments import Deployment
from penstock.keys import well_known_account
from penstock.types import NATIVE, Address, OfferId, StreamKey, hex32, unhex
from tests.deployed import deploy
from tests.harness import Node

RATE = 10**18
AT_ONCE = 200
PAYEE = well_known_account(1).address
PAYERS = [well_known_account(number).address for number in range(2, 8)]


async def send(rpc: JsonRpc, calls: list[tuple[Address, bytes, int]], to: Address) -> None:
    """From unlocked accounts, a hundred in a batch, a block for each batch."""
    for at in range(0, len(calls), 100):
        part = calls[at : at + 100]
        answers = await rpc.batch(
            [
                (
                    "eth_sendTransaction",
                    ({"from": s, "to": to, "data": hex32(d), "value": hex(v), "gas": hex(8_000_000)},),
                )
                for s, d, v in part
            ]
        )
        for answer in answers:
            if isinstance(answer, RpcError):
                raise answer
        await rpc.call("evm_increaseTime", 1)
        await rpc.call("evm_mine")


def key(number: int, offer: str = "0x" + "11" * 32) -> StreamKey:
    session = Address("0x" + f"{number + 1:040x}")
    return StreamKey(PAYERS[number % len(PAYERS)], PAYEE, NATIVE, session, OfferId(offer))


async def make(rpc: JsonRpc, deployment: Deployment, events: int) -> None:
    """A tenth are opens and cancels, the rest withdrawals; a long chain of small blocks."""
    functions = interface("StreamPay")
    short = events // 20
    words = {number: key(number) for number in range(short)}
    opens, cancels = [], []
    for k in words.values():
        parts = (k.payee, k.token, k.session_key, unhex(k.offer_id))
        deposit = 10 * RATE // 10**6
        opens.append((k.payer, functions["open"].encode(*parts, RATE, 10, 0), deposit))
        cancels.append((k.payer, functions["cancel"].encode(*parts, k.payer), 0))
    await rpc.call("evm_setAutomine", False)
    await send(rpc, opens, deployment.stream_pay)
    await send(rpc, cancels, deployment.stream_pay)
    lasting = [key(number, "0x" + "22" * 32) for number in range(AT_ONCE)]
    duration = 10**6
    opens = []
    for k in lasting:
        parts = (k.payee, k.token, k.session_key, unhex(k.offer_id))
        opens.append((k.payer, functions["open"].encode(*parts, RATE, duration, 0), duration * RATE // 10**6))
    await send(rpc, opens, deployment.stream_pay)
    sources = [(k.payer, k.session_key, unhex(k.offer_id)) for k in lasting]
    collect = functions["collect"].encode(NATIVE, PAYEE, sources)
    for _ in range((events - 2 * short - AT_ONCE) // AT_ONCE):
        await send(rpc, [(PAYERS[0], collect, 0)], deployment.stream_pay)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--db", help="an empty database's URL; default: a SQLite file in a temporary folder")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        deployed = deploy(folder)
        with Node(load_state=deployed.state) as node:
            rpc = JsonRpc(node.url, timeout=120)
            for payer in PAYERS:
                node.set_balance(payer, 10**30)
            began = time.monotonic()
            await make(rpc, deployed.deployment, words.events)
            print(f"made in {time.monotonic() - began:.1f} s, {node.height} blocks")
            async with await Web3Chain.connect(node.url, deployed.deployment, request_timeout=120) as chain:
                await measure(words.db or str(folder / "explorer.db"), deployed.deployment, chain, rpc)
            await rpc.close()


async def measure(url: str, deployment: Deployment, chain: Web3Chain, rpc: JsonRpc) -> None:
    store = Store.open(url, deployment)
    feed = Feed(rpc, deployment)
    began = time.monotonic()
    head = await feed.head()
    events = await feed.events(deployment.first_block, head.number)
    print(f"| read and decoded, not stored | {len(events):,} | {time.monotonic() - began:.1f} s |")
    indexer = Indexer(feed, chain, store, first_block=deployment.first_block)
    began, cpu = time.monotonic(), time.process_time()
    await indexer.sync()
    seconds = time.monotonic() - began
    print(f"| back-filled | {len(events):,} | {seconds:.1f} s ({time.process_time() - cpu:.1f} s of CPU) |")
    began = time.monotonic()
    report = await check(store, feed, deployment)
    print(f"| checked | {sum(report.compared.values()):,} figures | {time.monotonic() - began:.1f} s |")
    assert not report.differences, report.differences[:3]
    print(
        f"memory at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB; load {os.getloadavg()[0]}"
    )
    store.close()


if __name__ == "__main__":
    asyncio.run(main())
