"""Options that commands of `penstock-provider` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

CHAIN = "The chain"
"""The part of a command's help that these are in."""

Config = Annotated[
    Path | None, typer.Option(help="TOML file with any of the settings.", envvar="PENSTOCK_PROVIDER_CONFIG")
]
Network = Annotated[str | None, typer.Option(help="local, bsc-testnet or bsc.", rich_help_panel=CHAIN)]
RpcUrl = Annotated[
    str | None, typer.Option(help="JSON-RPC endpoint; several, with commas between.", rich_help_panel=CHAIN)
]
DeploymentFile = Annotated[str | None, typer.Option("--deployment", help="Deployment file.", rich_help_panel=CHAIN)]
AccountName = Annotated[
    str | None, typer.Option("--account", help="test:N, keystore file or alias, or env.", rich_help_panel=CHAIN)
]
Json = Annotated[bool, typer.Option("--json", help="One JSON value a line on stdout.")]
