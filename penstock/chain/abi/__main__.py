"""Write or check the committed ABIs. Needs the sources and Vyper: a checkout with the `ape` extra."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from penstock.chain import abi


def compiled(name: str, contracts: Path) -> list[dict[str, Any]]:
    """What the source compiles to now."""
    command = [sys.executable, "-m", "vyper.cli.vyper_compile", "-f", "abi", str(contracts / f"{name}.vy")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}.vy does not compile:\n{done.stderr.strip()}")
    entries: list[dict[str, Any]] = json.loads(done.stdout)
    # In an order of our own, so that a function moved within its file changes nothing here.
    return sorted(entries, key=lambda entry: (entry["type"], entry.get("name", ""), len(entry.get("inputs", ()))))


def text(entries: list[dict[str, Any]]) -> str:
    """One entry a line: a change of an interface reads as such in a diff."""
    return "[\n" + ",\n".join(json.dumps(entry) for entry in entries) + "\n]\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m penstock.chain.abi", description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="write the ABIs anew")
    action.add_argument("--check", action="store_true", help="exit 1 where one differs from its source")
    parser.add_argument("--contracts", type=Path, default=Path(__file__).parents[3] / "contracts")
    arguments = parser.parse_args()
    stale = []
    for name in abi.CONTRACTS:
        now = text(compiled(name, arguments.contracts))
        target = abi.path(name)
        if target.exists() and target.read_text() == now:
            continue
        stale.append(name)
        if arguments.write:
            target.write_text(now)
            print(f"wrote {target}")
    if stale and arguments.check:
        print(f"stale: {', '.join(stale)}; run `python -m penstock.chain.abi --write`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
