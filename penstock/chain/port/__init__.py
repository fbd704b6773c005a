"""The port: all that Penstock asks of a chain.

`penstock.chain.web3.Web3Chain` implements it over JSON-RPC, `penstock.chain.fake.FakeChain` in memory with the
contracts' rules; each of the three packages has one file a contract. Methods raise the `ChainError`s of
`penstock.errors`; a method that sends returns only when its transaction is mined and successful. Amounts are base
units; the zero address as token is the native coin.
"""

from __future__ import annotations

from typing import Protocol

from penstock.chain.port._channels import Channels
from penstock.chain.port._licences import Licences
from penstock.chain.port._node import Node
from penstock.chain.port._node import Noted as Noted
from penstock.chain.port._registry import Registry
from penstock.chain.port._slashing import Slashing
from penstock.chain.port._staking import Staking
from penstock.chain.port._streams import Streams
from penstock.chain.port._vault import Vault
from penstock.chain.port._wallets import Wallets
from penstock.keys import Account as Account


class Chain(Node, Registry, Staking, Slashing, Vault, Streams, Channels, Licences, Wallets, Protocol):
    """One chain with one deployment of Penstock on it."""
