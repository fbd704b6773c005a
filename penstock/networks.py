"""The chains that Penstock knows by name. Any other EVM chain works by its RPC URL and deployment file."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.errors import ConfigError
from penstock.types import ZERO_ADDRESS, Address

LOCAL_CHAIN_ID = 31337
"""anvil's. Test accounts, whose keys everybody knows, are good on this chain alone."""

_PERMIT2 = Address("0x000000000022D473030F116dDEE9F6B43aC78BA3")


@dataclass(frozen=True, slots=True)
class Network:
    name: str
    chain_id: int
    rpc_urls: tuple[str, ...]
    """The first is the default. Those for BSC are public and answer `eth_getLogs`, which many refuse."""
    explorer: str
    """Base URL of a block explorer, without a trailing slash; empty: none."""
    native_symbol: str
    ape: str
    """What `ape run ... --network` calls it."""
    permit2: Address
    """Uniswap's Permit2; zero: not there."""

    @property
    def rpc_url(self) -> str:
        return self.rpc_urls[0]

    def transaction_url(self, transaction: str) -> str:
        """Where a person can look at a transaction; empty where there is no explorer."""
        return f"{self.explorer}/tx/{transaction}" if self.explorer else ""


NETWORKS: dict[str, Network] = {
    network.name: network
    for network in (
        Network(
            name="local",
            chain_id=LOCAL_CHAIN_ID,
            rpc_urls=("http://127.0.0.1:8545",),
            explorer="",
            native_symbol="BNB",
            ape="bsc:local:foundry",
            permit2=ZERO_ADDRESS,
        ),
        Network(
            name="bsc-testnet",
            chain_id=97,
            rpc_urls=("https://bsc-testnet-rpc.publicnode.com", "https://bsc-testnet-dataseed.bnbchain.org"),
            explorer="https://testnet.bscscan.com",
            native_symbol="tBNB",
            ape="bsc:testnet",
            permit2=_PERMIT2,
        ),
        Network(
            name="bsc",
            chain_id=56,
            rpc_urls=("https://bsc-rpc.publicnode.com",),
            explorer="https://bscscan.com",
            native_symbol="BNB",
            ape="bsc:mainnet",
            permit2=_PERMIT2,
        ),
    )
}


def network(name: str) -> Network:
    """ConfigError where there is none of this name."""
    try:
        return NETWORKS[name]
    except KeyError:
        raise ConfigError(f"no network {name!r}: choose one of {', '.join(NETWORKS)}") from None


def by_chain_id(chain_id: int) -> Network | None:
    return next((network for network in NETWORKS.values() if network.chain_id == chain_id), None)
