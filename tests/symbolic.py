"""Prove the claims of `contracts/mocks/*Claims.vy` for every input, with halmos.

    python -m tests.symbolic

halmos (0.3.3; `pip install halmos` into an environment of its own) is taken from PATH, or from where the variable
HALMOS says. It expects Foundry's build output, so that what Vyper has compiled is written in that form, and a
`forge` that has nothing left to do. A claim that a symbolic execution breaks is shown with its counterexample.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from vyper.compiler import compile_from_file_input
from vyper.compiler.input_bundle import FilesystemInputBundle
from vyper.compiler.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
CLAIMS = ("AccrualClaims", "ChannelClaims")


def artifact(name: str) -> dict[str, object]:
    """The contract as Foundry would describe it, as far as halmos reads it."""
    bundle = FilesystemInputBundle([ROOT])
    compiled = compile_from_file_input(
        bundle.load_file(Path(f"contracts/mocks/{name}.vy")),
        input_bundle=bundle,
        output_formats=["abi", "bytecode", "bytecode_runtime", "method_identifiers"],
        settings=Settings(evm_version="cancun"),
    )
    source = f"{name}.sol"
    contract = {"nodeType": "ContractDefinition", "name": name, "contractKind": "contract", "nodes": [], "src": "0:0:0"}
    return {
        "abi": compiled["abi"],
        "bytecode": {"object": compiled["bytecode"], "linkReferences": {}},
        "deployedBytecode": {"object": compiled["bytecode_runtime"], "linkReferences": {}},
        "methodIdentifiers": {k: v[2:].rjust(8, "0") for k, v in compiled["method_identifiers"].items()},
        "metadata": {"compiler": {"version": "0"}, "output": {"devdoc": {}, "userdoc": {}}},
        "ast": {"nodeType": "SourceUnit", "absolutePath": source, "nodes": [contract], "src": "0:0:0", "id": 1},
        "id": 1,
    }


def main() -> int:
    halmos = os.environ.get("HALMOS") or shutil.which("halmos")
    if not halmos:
        print("halmos is not there: pip install halmos==0.3.3 into an environment of its own, and set HALMOS")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        for name in CLAIMS:
            place = Path(folder, "out", f"{name}.sol", f"{name}.json")
            place.parent.mkdir(parents=True)
            place.write_text(json.dumps(artifact(name)))
        Path(folder, "foundry.toml").write_text('[profile.default]\nsrc = "src"\nout = "out"\n')
        forge = Path(folder, "bin", "forge")
        forge.parent.mkdir()
        forge.write_text("#!/bin/sh\nexit 0\n")
        forge.chmod(0o755)
        command = [halmos, "--root", folder, "--solver-timeout-assertion", "120s"]
        solver = Path(halmos).resolve().with_name("yices-smt2")
        if solver.exists():  # it comes with halmos; else halmos looks for one itself
            command += ["--solver-command", str(solver)]
        environment = os.environ | {"PATH": f"{forge.parent}:{os.environ['PATH']}"}
        done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
        # Contracts with immutables are no known bytecode, and halmos prints all of it.
        print(re.sub(r"WARNING  unknown deployed bytecode:.*\n( .*\n)*", "", done.stdout), done.stderr)
        return done.returncode


if __name__ == "__main__":
    sys.exit(main())
