"""A process that pays out, and is killed at an instant of one's choice.

    python -m tests.provider.killed_payouts RPC_URL DEPLOYMENT STATE     (the key in PENSTOCK_PRIVATE_KEY)

For each line of its input it forks a child, which has all modules loaded, opens what a provider has, and pays out
what is due. At the instant that the line names it kills itself with SIGKILL: "due", before a payout is on record;
"noted", before its transaction leaves; "sent", when that has left; "mined", before what became of it is on record;
"none", never. The line comes back when the child is gone.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from penstock import deployments
from penstock.chain.web3 import Web3Chain
from penstock.keys import LocalAccount
from provider.accounts import Accounts
from provider.market import Seller
from provider.payouts import Payouts
from provider.projection import Projection
from provider.store import Store


def killing(call: Callable[..., Any], *, after: bool = False, when: Callable[..., bool] = lambda *_: True) -> Any:
    """In place of `call`: the end of the process."""

    async def instead(*args: Any, **named: Any) -> Any:
        if not when(*args):
            return await call(*args, **named)
        if after:
            await call(*args, **named)
        return os.kill(os.getpid(), signal.SIGKILL)

    return instead


async def work(url: str, path: str, state: str, account: LocalAccount, instant: str) -> None:
    deployment = deployments.load(Path(path))
    async with await Web3Chain.connect(url, deployment) as chain:
        store: Any = Store.open(state, owner="test")
        sending: Any = chain._rpc
        leaving = {"when": lambda method, *_: method == "eth_sendRawTransaction"}
        match instant:
            case "due":
                store.send_payout = killing(store.send_payout)
            case "noted":
                sending.call = killing(sending.call, **leaving)
            case "sent":
                sending.call = killing(sending.call, after=True, **leaving)
            case "mined":
                store.add_payout = killing(store.add_payout)
        me = await chain.provider(account.address)
        offers = {offer.id: offer for offer in await chain.offers_of(me.id)}
        seller = Seller(account, me, offers, deployment.first_block)
        projection = Projection(
            chain,
            store,
            time.time,
            payee=me.payee,
            first_block=deployment.first_block,
            confirmations=0,
            poll_seconds=lambda: 1.0,
            outage_seconds=30,
            head_stuck_seconds=0,
        )
        await projection.load()
        await projection.sync()
        accounts = Accounts(
            store, seller, projection, chain.stream_pay_domain, credit_tokens=1, step_tokens=1, grace_seconds=1
        )
        await accounts.load()
        payouts = Payouts(
            chain,
            store,
            seller,
            projection,
            accounts,
            gas_multiple=0,
            ours=lambda _: True,
            leads=lambda: True,
            told=lambda _: None,
        )
        await payouts.run()
        await store.close()


def main(url: str, path: str, state: str) -> None:
    account = LocalAccount.from_hex(os.environ["PENSTOCK_PRIVATE_KEY"])
    for line in sys.stdin:
        child = os.fork()
        if not child:
            asyncio.run(work(url, path, state, account, line.strip()))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert status == (0 if line.strip() == "none" else signal.SIGKILL), f"{line.strip()}: it ended by itself"
        print(line, end="", flush=True)


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    main(*sys.argv[1:])
