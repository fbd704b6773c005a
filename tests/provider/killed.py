"""Processes that do nothing but sign receipts, and are killed in the midst of it.

    python -m tests.provider.killed STATE SEEN ROUNDS SEED

Each round forks a child, which has all modules loaded, over the same state, and kills it with SIGKILL once it has done
some work, much or little or none, or while it starts. STATE is a file, or the URL of a database, which each child takes
over as a gateway that is started again does. The children use the real store and the real signing code, with several
sessions at once, and append to SEEN what would have left the process: a line for each accept and each receipt, with
another newline before it, since a line may itself be cut by the kill.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from penstock.keys import LocalAccount
from penstock.types import NATIVE, Offer, Provider, Service, StreamId, Terms, address
from penstock.wire.receipts import slashing_domain
from provider.cluster import Cluster
from provider.market import Seller
from provider.receipts import Answered, Receipts
from provider.store import Session, Store, Usage

DOMAIN = slashing_domain(31337, address("0x00000000000000000000000000000000000051A5"))
ACCOUNT = LocalAccount(b"\x11" * 32)
ME = ACCOUNT.address
TERMS = Terms("m", NATIVE, 0, 7, 1_234_567, 64, 1024, 0, "", "")
OFFER = Offer(TERMS.offer_id(ME), ME, True, 1, 0, TERMS)
SELLER = Seller(
    ACCOUNT,
    Provider(ME, ME, ME, ME, ACCOUNT.address, Service.INFERENCE, 1, 1, 0, "0x" + "00" * 32, "http://x", ""),
    {OFFER.id: OFFER},
    0,
)
NAMES = [(StreamId(f"0x{number:064x}"), start) for number, start in ((1, 0), (1, 1_700_000_000), (2, 0))]
"""Of the sessions, which every child opens again."""
_WORK = 40_000
"""Bytes of SEEN: some forty accepts and receipts."""


def session(name: tuple[StreamId, int], number: int) -> Session:
    return Session(f"ses_{number}", os.urandom(32), *name, OFFER.id, 0.0, "")


@asynccontextmanager
async def opened(state: str) -> AsyncIterator[Receipts]:
    receipts = Receipts(Store.open(state, owner="test"), SELLER, ACCOUNT, DOMAIN, time.time)
    await receipts.load()
    cluster = None
    if receipts.store.shared:
        cluster = Cluster(
            receipts.store,
            "http://127.0.0.1:1",
            adopt=receipts.take_over,
            held=dict,
            silent=lambda: None,
            lost=lambda: None,
        )
        await cluster.start()
        for stream, _ in NAMES:
            assert not await cluster.where(stream), "it takes over from who was killed at once"
    try:
        yield receipts
    finally:
        if cluster is not None:
            await cluster.stop()
        await receipts.store.close()


async def answer(receipts: Receipts, name: tuple[StreamId, int], number: int, seen: int) -> None:
    chance = random.Random(os.urandom(8))
    while True:
        mine = session(name, number)
        job = receipts.begin(mine, os.urandom(16))
        os.write(seen, b"\naccept " + (await job.accepted()).encode() + b"\n")
        if chance.random() < 0.3:
            await asyncio.sleep(0.002 * chance.random())
        ids = [chance.randrange(2**32) for _ in range(chance.randrange(6))]
        if ids:
            job.token_came()
        answered = Answered.of(chance.randrange(50), len(ids), job.first_token_at, [ids])
        now = time.time()
        usage = Usage(job.accept.accepted_at, mine.id, now, now, now, answered.prompt_tokens, len(ids), True, "")
        os.write(seen, b"\nreceipt " + receipts.sign(await job.finish(answered, usage)).text().encode() + b"\n")


async def work(state: str, seen: int, up: int) -> None:
    async with opened(state) as receipts, asyncio.TaskGroup() as group:
        os.close(up)
        for number, name in enumerate([*NAMES, *NAMES]):
            group.create_task(answer(receipts, name, number, seen))
        while True:
            await asyncio.sleep(0.01)
            await receipts.flush()


def _size(path: str) -> int:
    return os.stat(path).st_size if os.path.exists(path) else 0


def main(state: str, seen: str, rounds: str, seed: str) -> None:
    chance = random.Random(int(seed))
    for _ in range(int(rounds)):
        ready, up = os.pipe()
        child = os.fork()
        if not child:
            asyncio.run(work(state, os.open(seen, os.O_WRONLY | os.O_APPEND | os.O_CREAT), up))
        os.close(up)
        if chance.random() < 0.9:
            os.read(ready, 1)  # until the child has closed its end; else it is killed while it starts
            enough = _size(seen) + chance.choice((0, chance.randrange(_WORK)))
            while _size(seen) < enough and not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                time.sleep(0.001)  # its work and not the clock, which also runs where the machine stalls
        os.close(ready)
        time.sleep(chance.uniform(0, 0.005))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL, "the child ended by itself"


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    main(*sys.argv[1:])
