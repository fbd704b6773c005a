"""The Ape scripts `deploy` and `manage`, run as a person runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock import deployments
from penstock.chain._codec import interface
from penstock.chain.web3 import Web3Chain
from penstock.keys import well_known_account
from penstock.types import ZERO_ADDRESS
from scripts._ports import free_port
from tests.deployed import DEPLOY_WITHIN, ROOT, Deployed, ape, data_folder
from tests.harness import PATIENCE, Node

LOCAL = ("--network", "bsc:local:foundry")
GUARDIAN = well_known_account(0).address


@pytest.fixture(scope="module")
def clock_node() -> Iterator[Node]:
    """A node that mines by the clock, as `make node` does."""
    with Node(block_time=1) as node:
        yield node


@pytest.fixture(scope="module")
def record(clock_node: Node, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Deployed there with options of our own."""
    path = tmp_path_factory.mktemp("deploy") / "31337.json"
    words = (
        "--guardian",
        "none",
        "--minimum-stake",
        "2.5",
        "--cover-per-slot",
        "0.5",
        "--account",
        "test:7",
        "--treasury",
        GUARDIAN,
        "--json",
    )
    done = ape("run", "deploy", *LOCAL, "--deployment", str(path), *words, node=clock_node)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said.pop("new") is True
    assert said.pop("path") == str(path)
    assert said == deployments.load(path).as_json()
    return path


async def test_it_deploys_what_it_was_told(clock_node: Node, record: Path) -> None:
    found = deployments.load(record)
    assert found.contracts["StreamPay"].arguments == {"guardian": ZERO_ADDRESS, "permit2": ZERO_ADDRESS}
    assert found.contracts["License"].arguments["treasury"] == GUARDIAN
    assert found.contracts["Staking"].arguments["minimum_stake"] == str(25 * 10**17)
    assert found.contracts["Staking"].arguments["cover_per_slot"] == str(5 * 10**17)
    async with await Web3Chain.connect(clock_node.url, found, request_timeout=PATIENCE) as chain:
        assert await chain.minimum_stake() == 25 * 10**17
        assert await chain.cover_per_slot() == 5 * 10**17
        assert await chain._view(chain.stream_pay, interface("StreamPay")["guardian"]) == ZERO_ADDRESS
        assert (await chain.token(found.tokens["TUSD"])).symbol == "TUSD"


def test_it_keeps_what_is_there(clock_node: Node, record: Path) -> None:
    before = record.read_bytes()
    height = clock_node.rpc("eth_getTransactionCount", well_known_account(7).address, "latest")
    # No APE_FOUNDRY_HOST: the node is found where PENSTOCK_RPC_URL says.
    done = ape("run", "deploy", *LOCAL, "--deployment", str(record), node=None, PENSTOCK_RPC_URL=clock_node.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Already deployed")
    assert record.read_bytes() == before
    done = ape("run", "deploy", *LOCAL, "--deployment", str(record), "--minimum-stake", "3", node=clock_node)
    assert done.returncode == 2
    assert "records a deployment whose minimum stake is 2500000000000000000" in done.stderr
    assert clock_node.rpc("eth_getTransactionCount", well_known_account(7).address, "latest") == height


def test_a_record_of_a_chain_that_is_gone_is_replaced(record: Path, tmp_path: Path) -> None:
    path = tmp_path / "31337.json"
    path.write_bytes(record.read_bytes())
    with Node() as node:
        done = ape("run", "deploy", *LOCAL, "--deployment", str(path), node=node)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Deployed on chain 31337")
    found = deployments.load(path).contracts
    assert found["StreamPay"].arguments["guardian"] == GUARDIAN
    assert found["Staking"].arguments["cover_per_slot"] == str(10**16)  # a tenth of the minimum


def test_without_a_node_nothing_is_recorded(tmp_path: Path) -> None:
    path = tmp_path / "31337.json"
    nowhere = f"http://127.0.0.1:{free_port()}"
    done = ape("run", "deploy", *LOCAL, "--deployment", str(path), node=None, PENSTOCK_RPC_URL=nowhere)
    assert done.returncode == 2
    assert "no local node runs" in done.stderr
    assert not path.exists()


def test_the_guardian_pauses_and_hands_over(node: Node, deployed: Deployed) -> None:
    heir = well_known_account(5).address
    told = manage(
        node,
        deployed,
        ["status", "--json"],
        ["pause", "--account", "test:5"],
        ["pause", "--account", "test:0"],
        ["status", "--json"],
        ["status"],
        ["unpause", "--account", "test:0"],
        ["guardian", "transfer", heir, "--account", "test:0"],
        ["guardian", "transfer", "0x12", "--account", "test:0"],
        ["guardian", "accept", "--account", "test:5"],
        ["treasury", "accept", "--account", "test:5"],
        ["treasury", "transfer", heir, "--account", "test:0"],
        ["status"],
        ["treasury", "accept", "--account", "test:5"],
        ["status", "--json"],
    )
    assert [code for code, _ in told] == [0, 3, 0, 0, 0, 0, 0, 2, 0, 3, 0, 0, 0, 0]
    first, refused, _, paused, shown, _, _, no_address, _, too_early, _, offered, _, last = (said for _, said in told)
    assert "accepting the treasury's role: the contract refused: license: not the pending treasury" in too_early
    assert f"treasury       {GUARDIAN}\noffered to     {heir}\n" in offered
    assert json.loads(first)["guardian"] == GUARDIAN
    assert refused == "Error: pausing: the contract refused: guardian: not the guardian\n"
    assert json.loads(paused)["paused"] is True
    assert "paused         yes: only exits are open" in shown
    assert "'0x12' is not an address" in no_address
    now = json.loads(last)
    assert (now["guardian"], now["pending_guardian"], now["paused"]) == (heir, ZERO_ADDRESS, False)
    assert (now["treasury"], now["pending_treasury"]) == (heir, ZERO_ADDRESS)
    done = ape("run", "manage", "status", *LOCAL, "--deployment", str(deployed.path), node=node)
    assert done.stdout.startswith(f"guardian       {heir}\n")


def manage(node: Node, deployed: Deployed, *commands: list[str]) -> list[tuple[int, str]]:
    """The script's commands one after the other in one process, because Ape takes seconds to load: code and output."""
    words = [[*command, *LOCAL, "--deployment", str(deployed.path)] for command in commands]
    with data_folder(os.environ) as folder:
        done = subprocess.run(
            [sys.executable, "-c", MANAGE],
            cwd=ROOT,
            env=os.environ | {"APE_FOUNDRY_HOST": node.url, "PYTHONPATH": str(ROOT), "APE_DATA_FOLDER": folder},
            input=json.dumps(words),
            capture_output=True,
            text=True,
            timeout=DEPLOY_WITHIN,
            check=True,
        )
    return [(code, said) for code, said in json.loads(done.stdout.splitlines()[-1])]


MANAGE = """
import json, sys
from click.testing import CliRunner
sys.path.insert(0, "scripts")
from manage import cli
results = [CliRunner().invoke(cli, words) for words in json.load(sys.stdin)]
print(json.dumps([(result.exit_code, result.output) for result in results]))
"""
