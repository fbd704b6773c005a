"""Measure gas and write `benchmarks/gas.json`; with --check, compare instead, as CI does.

ape run gas --network bsc:local:foundry
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click
from ape import networks, project
from ape.api.providers import SubprocessProvider
from ape.cli import ConnectedProviderCommand

from penstock.keys import load_account

# Other packages install folders named `benchmarks` and `tests`: ours come first.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import gas
from scripts._ports import free_port
from tests.fastchain import Chain, Contract


class OwnNodeCommand(ConnectedProviderCommand):
    """Ape starts a node for this command, on a port that is free: its own choice, a random one, may be one that a
    finished connection still holds."""

    def invoke(self, ctx: click.Context) -> Any:
        os.environ.setdefault("APE_FOUNDRY_HOST", f"http://127.0.0.1:{free_port()}")
        SubprocessProvider.start.__defaults__ = (120,)  # seconds; Ape's 20 may be over where a machine stands still
        return super().invoke(ctx)


@click.command(cls=OwnNodeCommand)
@click.option("--check", is_flag=True, help="Fail where a figure differs from the snapshot; write nothing.")
def cli(check: bool) -> None:
    """Measure the gas of every operation."""
    chain = Chain(str(networks.provider.http_uri))

    def deploy(name: str, *arguments: Any) -> Contract:
        kind = getattr(project, name).contract_type
        abi = [item.model_dump(mode="json", by_alias=True) for item in kind.abi]
        return chain.deploy(str(kind.deployment_bytecode.bytecode), abi, *arguments)

    found = gas.measure(chain, deploy, load_account("test:4", 31337))
    sizes = {name: code_size(name) for name in gas.CONTRACTS}
    chain.close()
    for name, amount in (*sorted(found.items()), *((f"{name} (bytes)", size) for name, size in sizes.items())):
        click.echo(f"{name:<28} {amount:>10,}")
    if not check:
        gas.write(found, sizes)
    elif changed := gas.differences(found, sizes):
        text = "\n".join(changed)
        raise click.ClickException(f"gas differs from benchmarks/gas.json; if it is meant, run `make gas`:\n{text}")


def code_size(name: str) -> int:
    code = str(getattr(project, name).contract_type.runtime_bytecode.bytecode)
    return len(code.removeprefix("0x")) // 2
