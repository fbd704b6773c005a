"""The ABIs of the deployed contracts, committed, so that nothing that runs needs a compiler.

python -m penstock.chain.abi --write   after a change of a contract's interface
python -m penstock.chain.abi --check   fails where a committed ABI differs from what the source compiles to
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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


def path(name: str) -> Path:
    return Path(__file__).with_name(f"{name}.json")


def load(name: str) -> list[dict[str, Any]]:
    """The ABI of one of `CONTRACTS`, as JSON has it."""
    entries: list[dict[str, Any]] = json.loads(path(name).read_bytes())
    return entries
