"""Where a demonstration's processes run, and when a provider among them is ready."""

import contextlib
import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import click

READY_SECONDS = 60


@dataclass(frozen=True)
class Stage:
    """Where the parties' processes run."""

    folder: Path
    rpc_url: str
    deployment: Path

    def environment(self, role: str, account: str, **more: str) -> dict[str, str]:
        return os.environ | {
            "PENSTOCK_NETWORK": "local",
            "PENSTOCK_RPC_URL": self.rpc_url,
            "PENSTOCK_DEPLOYMENT": str(self.deployment),
            "PENSTOCK_HOME": str(self.folder / role),
            "PENSTOCK_ACCOUNT": account,
            **more,
        }


def say(text: str) -> None:
    click.secho(text, bold=True)


def ready(process: subprocess.Popen[str], output: IO[str], log: Path) -> str:
    """Wait for the provider's line that says where it serves."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        line = output.readline()
        if not line:
            break
        with contextlib.suppress(json.JSONDecodeError):
            if endpoint := json.loads(line).get("endpoint"):
                return str(endpoint)
    process.kill()
    raise click.ClickException(f"the provider did not get ready:\n{log.read_text()}")
