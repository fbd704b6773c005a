"""The indexer as a process, one block at a time, that tells how far it is: to be killed."""

from __future__ import annotations

from agents.explorer._feed import Feed
from agents.explorer._indexer import Indexer
from agents.explorer._store import Store
from penstock.chain._rpc import JsonRpc
from penstock.chain.web3 import Web3Chain
from penstock.deployments import load
from tests.harness import PATIENCE


async def main(database: str, url: str, deployment_path: str) -> None:
    deployment = load(deployment_path)
    store = Store.open(database, deployment)
    chain = await Web3Chain.connect(url, deployment, request_timeout=PATIENCE)
    feed = Feed(JsonRpc(url, timeout=PATIENCE), deployment)
    indexer = Indexer(feed, chain, store, first_block=deployment.first_block, span=1)
    await indexer.sync(lambda tip, target: print(tip.number, flush=True))
