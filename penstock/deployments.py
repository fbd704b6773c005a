"""Where Penstock's contracts are: one JSON file per chain, written by the deploy script, read by everything else.

    deployment = load(97)                    # penstock/deployments/97.json
    deployment = load("elsewhere/my.json")
    deployment.stream_pay

The file is meant for people too: addresses, blocks, constructor arguments by name, and the keccak of each
runtime code, so that anybody can check that what runs there is what the sources compile to.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from penstock.errors import ConfigError
from penstock.networks import by_chain_id
from penstock.types import Address, address

CONTRACTS = (
    "StreamPay",
    "Registry",
    "Staking",
    "Slashing",
    "Catalogue",
    "License",
    "AgentWallet",
    "AgentWalletFactory",
)
FOLDER = Path(__file__).parent / "deployments"


@dataclass(frozen=True, slots=True)
class DeployedContract:
    address: Address
    block: int
    transaction: str
    arguments: Mapping[str, str]
    """Constructor arguments by name; numbers in decimal."""
    code_hash: str
    """keccak256 of the runtime code on chain, immutables included."""


@dataclass(frozen=True, slots=True)
class Deployment:
    chain_id: int
    contracts: Mapping[str, DeployedContract]
    tokens: Mapping[str, Address] = field(default_factory=dict)
    """Tokens by symbol that people may name instead of typing an address; the native coin is not among them."""

    @property
    def stream_pay(self) -> Address:
        return self.contracts["StreamPay"].address

    @property
    def registry(self) -> Address:
        return self.contracts["Registry"].address

    @property
    def staking(self) -> Address:
        return self.contracts["Staking"].address

    @property
    def slashing(self) -> Address:
        return self.contracts["Slashing"].address

    @property
    def catalogue(self) -> Address:
        return self.contracts["Catalogue"].address

    @property
    def license(self) -> Address:
        return self.contracts["License"].address

    @property
    def wallet_factory(self) -> Address:
        return self.contracts["AgentWalletFactory"].address

    @property
    def first_block(self) -> int:
        """Before it there are no events of Penstock."""
        return min(contract.block for contract in self.contracts.values())

    def as_json(self) -> dict[str, Any]:
        """As the file has it."""
        plain: dict[str, Any] = msgspec.to_builtins(_File.of(self))
        return plain

    def save(self, path: str | os.PathLike[str] | None = None) -> Path:
        """Write it where `load` finds it, or to `path`; readers never see half of it. Returns the path."""
        target = default_path(self.chain_id) if path is None else Path(path)
        text = msgspec.json.format(msgspec.json.encode(self.as_json()), indent=2) + b"\n"
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(text)
            os.chmod(name, 0o644)
            os.replace(name, target)
        except BaseException:
            os.unlink(name)
            raise
        return target


def default_path(chain_id: int) -> Path:
    """Where the deployment on a chain is recorded, unless the user names another file."""
    return FOLDER / f"{chain_id}.json"


def load(source: int | str | os.PathLike[str]) -> Deployment:
    """By chain id or by path. ConfigError, which names the file and the cure, where it is missing or wrong."""
    path = default_path(source) if isinstance(source, int) else Path(source)
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        chain_id = source if isinstance(source, int) else 0
        raise ConfigError(f"no deployment is recorded at {path}: {_cure(chain_id)}") from None
    except OSError as error:
        raise ConfigError(f"cannot read the deployment {path}: {error.strerror}") from error
    try:
        deployment = msgspec.json.decode(raw, type=_File).value()
    except (msgspec.DecodeError, ValueError) as error:
        raise ConfigError(f"{path} is no deployment file ({error}): {_cure(0)}") from error
    if isinstance(source, int) and deployment.chain_id != source:
        raise ConfigError(f"{path} records chain {deployment.chain_id}, not {source}: {_cure(source)}")
    return deployment


def _cure(chain_id: int) -> str:
    network = by_chain_id(chain_id)
    name = network.ape if network else "<ecosystem:network:provider>"
    return f"run `ape run deploy --network {name}`, or name another file with --deployment"


class _Contract(msgspec.Struct, forbid_unknown_fields=True):
    address: str
    block: int
    transaction: str
    arguments: dict[str, str]
    code_hash: str


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """As the file has it; the order of the fields is the order in the file."""

    chain_id: int
    contracts: dict[str, _Contract]
    tokens: dict[str, str] = {}

    @classmethod
    def of(cls, deployment: Deployment) -> _File:
        contracts = {
            name: _Contract(c.address, c.block, c.transaction, dict(c.arguments), c.code_hash)
            for name, c in ((name, deployment.contracts[name]) for name in CONTRACTS)
        }
        return cls(deployment.chain_id, contracts, dict(sorted(deployment.tokens.items())))

    def value(self) -> Deployment:
        if missing := [name for name in CONTRACTS if name not in self.contracts]:
            raise ValueError(f"it lacks {', '.join(missing)}")
        contracts = {
            name: DeployedContract(address(c.address), c.block, c.transaction, c.arguments, c.code_hash)
            for name, c in self.contracts.items()
        }
        return Deployment(self.chain_id, contracts, {name: address(token) for name, token in self.tokens.items()})
