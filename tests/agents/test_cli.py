"""The command line without a chain: options, settings, what is printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agents._output import answer_text, printable
from agents._program import hoist
from agents._settings import settings
from penstock import deployments
from penstock.errors import ConfigError
from tests.harness import PATIENCE


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    command = [sys.executable, "-m", "agents", *words]
    return subprocess.run(
        command, env=kept | environment, capture_output=True, text=True, timeout=2 * PATIENCE, check=False
    )


@pytest.mark.parametrize(
    ("typed", "parsed"),
    [
        (["ask", "hi", "--network", "bsc"], ["--network", "bsc", "ask", "hi"]),
        (["ask", "--json", "hi", "--rpc-url=http://x"], ["--json", "--rpc-url=http://x", "ask", "hi"]),
        (["withdraw", "all", "BNB", "--to", "0x1"], ["withdraw", "all", "BNB", "--to", "0x1"]),
        (["ask", "--", "--json"], ["ask", "--", "--json"]),
        (["ask", "hi", "--account"], ["--account", "ask", "hi"]),
        (["ask", "--json=1"], ["ask", "--json=1"]),
    ],
)
def test_global_options_stand_anywhere(typed: list[str], parsed: list[str]) -> None:
    assert hoist(typed) == parsed


def test_the_command_line_beats_the_environment_beats_the_file_beats_defaults(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(
        'network = "bsc"\naccount = "mine"\nrpc_url = "http://f"\nallow_private = true\n'
    )
    environ = {"PENSTOCK_HOME": str(tmp_path), "PENSTOCK_ACCOUNT": "env", "PENSTOCK_RPC_URL": "http://e"}
    found = settings({"rpc_url": "http://o", "network": None}, environ)
    assert (found.rpc_url, found.account, found.network, found.deployment) == ("http://o", "env", "bsc", "")
    assert found.allow_private is True
    assert [found.values[name].origin for name in ("rpc_url", "account", "deployment")] == [
        "--rpc-url",
        "PENSTOCK_ACCOUNT",
        "default",
    ]
    assert settings({"home": "/elsewhere"}, environ).journal == Path("/elsewhere/journal.db")


@pytest.mark.parametrize(
    ("text", "said"),
    [("network = ", "not valid TOML"), ('color = "red"', "unknown settings: color"), ("network = 5", "is not a text")],
)
def test_a_config_file_that_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        settings({}, {"PENSTOCK_HOME": str(tmp_path)})


def test_what_strangers_wrote_cannot_steer_a_terminal() -> None:
    assert printable("a\x1b[2Jb\nc") == "a [2Jb c"
    assert answer_text("a\x1b[2Jb\n\tc\u202e", terminal=True) == "a[2Jb\n\tc"
    assert answer_text("a\x1b[2Jb", terminal=False) == "a\x1b[2Jb"


def test_help_is_quick_and_lists_the_commands() -> None:
    took = []
    for _ in range(5):
        began = os.times()
        done = run("--help")
        ended = os.times()
        took.append(ended.children_user + ended.children_system - began.children_user - began.children_system)
    assert done.returncode == 0
    for command in "ask balance config deposit offers providers recover stop streams withdraw".split():
        assert f"  {command} " in done.stdout
    assert min(took) < 0.4, "seconds of processor time; is something heavy imported at start?"


def test_version_and_completion() -> None:
    assert run("--version").stdout.startswith("penstock ")
    shown = run("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "_PENSTOCK_COMPLETE" in shown.stdout, shown.stderr


@pytest.mark.parametrize(
    ("words", "environment", "said"),
    [
        (["balance"], {}, "no account is set"),
        (["balance", "--account", "test:77"], {}, "test:0 to test:9"),
        (["balance", "--account", "nobody"], {}, "no account 'nobody'"),
        (["offers", "--network", "mars"], {}, "no network 'mars'"),
        (["offers", "--deployment", "/nowhere.json"], {}, "ape run deploy"),
        (["ask", "hi", "--duration", "soon"], {}, "is not a duration"),
        (["ask", "  ", "--account", "test:1"], {}, "the prompt is empty"),
    ],
)
def test_settings_that_are_wrong(tmp_path: Path, words: list[str], environment: dict[str, str], said: str) -> None:
    deployment = tmp_path / "deployment.json"
    entry = {"address": "0x" + "01" * 20, "block": 1, "transaction": "0x", "arguments": {}, "code_hash": "0x"}
    contracts = dict.fromkeys(deployments.CONTRACTS, entry)
    deployment.write_text(json.dumps({"chain_id": 31337, "contracts": contracts, "tokens": {}}))
    given = {"PENSTOCK_HOME": str(tmp_path), "PENSTOCK_RPC_URL": "http://127.0.0.1:9"}
    if "--network" not in words:
        given["PENSTOCK_DEPLOYMENT"] = str(deployment)
    done = run(*words, **given, **environment)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("penstock: ")
    assert said in line


def test_debug_shows_where(tmp_path: Path) -> None:
    done = run("balance", "--debug", "--deployment", "/nowhere.json", PENSTOCK_HOME=str(tmp_path))
    assert "Traceback" in done.stderr
    assert done.returncode == 2


def test_config_show_tells_value_and_origin(tmp_path: Path) -> None:
    done = run("config", "show", "--json", PENSTOCK_HOME=str(tmp_path), PENSTOCK_NETWORK="bsc")
    assert '"value": "bsc",\n    "origin": "PENSTOCK_NETWORK"' in done.stdout


def test_agents_is_our_package() -> None:
    """Another distribution on the index installs a package of the same name."""
    import agents

    assert agents.__file__ is not None
    assert Path(agents.__file__).parents[1] == Path(__file__).parents[2]
