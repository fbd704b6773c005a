"""What the fork is a fork of: the user's BSC endpoint, or a node that stands in for BSC where none is named.

The stand-in is an anvil with BSC's chain id and rhythm of blocks and, at their real addresses, Permit2 and tokens that
behave as WBNB, USDT and USDC do.
"""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlparse

from eth_utils.crypto import keccak

from tests.contracts.fork.chain import CHAIN_ID, BscChain
from tests.fastchain import Contract
from tests.harness import Node

ENDPOINT = "PENSTOCK_BSC_RPC_URL"
"""The variable that names an RPC endpoint of BSC, for tests with the real tokens. It must serve states that are minutes
old, as archive nodes do."""

WBNB = "0xbb4CdB9CBd36B01bD1cBaEBF2De08d9173bc095c"
USDT = "0x55d398326f99059fF775485246999027B3197955"
USDC = "0x8AC76a51cc950d9822D68b83fE1Ad97B32Cd580d"
PERMIT2 = "0x000000000022D473030F116dDEE9F6B43aC78BA3"

IMPLEMENTATION_SLOT = f"{int.from_bytes(keccak(text='eip1967.proxy.implementation')) - 1:064x}"
PROXY = f"0x363d3d373d3d363d7f{IMPLEMENTATION_SLOT}545af43d6000803e6038573d6000fd5b3d6000f3"
"""Code that passes all calls on to what the slot names."""
SUPPLY = 10**28
"""Base units of USDT and USDC that their owner mints."""

Artifacts = Callable[[str], tuple[str, list[dict[str, Any]]]]
"""Bytecode and ABI of compiled contracts, by name."""


class Unfit(Exception):
    """The user's endpoint cannot be forked."""


@contextmanager
def upstream(artifacts: Artifacts) -> Iterator[str]:
    """The URL to fork, good as long as the context lasts. Unfit says why the user's own is not."""
    if named := os.environ.get(ENDPOINT):
        _check(named)
        yield named
    else:
        with Node(chain_id=CHAIN_ID) as node:
            _seed(node.url, artifacts)
            yield node.url


def _check(url: str) -> None:
    """Endpoints often carry a key: only their host is shown."""
    host = urlparse(url).hostname
    body = b'{"jsonrpc":"2.0","id":1,"method":"eth_chainId","params":[]}'
    headers = {"Content-Type": "application/json", "User-Agent": "penstock"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=15) as answer:
            chain_id = int(json.loads(answer.read())["result"], 16)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise Unfit(f"{ENDPOINT}: {host} does not answer as a node does ({error})") from error
    if chain_id != CHAIN_ID:
        raise Unfit(f"{ENDPOINT}: {host} is on chain {chain_id}, not on BSC's {CHAIN_ID}")


def _seed(url: str, artifacts: Artifacts) -> None:
    chain = BscChain(url)
    owner = chain.accounts[0]

    def put(name: str, address: str | None = None) -> Contract:
        """At an address of our choice, where one is given. None of these has a constructor."""
        bytecode, abi = artifacts(name)
        made = chain.deploy(bytecode, abi)
        if address is None:
            return made
        chain.rpc("anvil_setCode", address, chain.rpc("eth_getCode", made.address, "latest"))
        return chain.at(address, abi)

    put("MockPermit2", PERMIT2)
    put("WrappedBNB", WBNB).deposit(sender=owner, value=10**21)
    usdt = put("BEP20Token", USDT)
    implementation = put("BEP20Token")
    chain.rpc("anvil_setCode", USDC, PROXY)
    named = "0x" + implementation.address[2:].rjust(64, "0")
    chain.rpc("anvil_setStorageAt", USDC, "0x" + IMPLEMENTATION_SLOT, named)
    usdc = chain.at(USDC, implementation.abi)
    for token, name, symbol in ((usdt, "Tether USD", "USDT"), (usdc, "USD Coin", "USDC")):
        token.initialize(name, symbol, owner, sender=owner)
        token.mint(SUPPLY, sender=owner)
    # Two blocks a second. The fork sees states as of a block: what a cheat did, from the next one on. What it reads,
    # anvil keeps on disk by number and second of that block, so that these must be of now.
    for number in range(4):
        chain.sleep(number % 2)
        chain.mine()
    chain.close()
