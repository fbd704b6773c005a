"""What the programs say of themselves: help for each command and option, data for scripts, completion for shells."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command

import agents.cli
import provider.cli

PROGRAMS = {"penstock": get_command(agents.cli.app), "penstock-provider": get_command(provider.cli.cli)}


def commands_of(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield name, command
    for inner in getattr(command, "commands", {}).values():
        yield from commands_of(f"{name} {inner.name}", inner)


COMMANDS = dict(found for name, program in PROGRAMS.items() for found in commands_of(name, program))


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_and_each_option_says_what_it_is_for(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    options = [param for param in command.params if param.param_type_name == "option"]
    assert [param.name for param in options if not param.help] == []


@pytest.mark.parametrize("name", [name for name in COMMANDS if name.startswith("penstock-provider ")])
def test_each_command_of_a_provider_gives_json(name: str) -> None:
    """`penstock` takes --json for all of its commands."""
    assert "json" in {param.name for param in COMMANDS[name].params}


@pytest.mark.parametrize(
    ("module", "name", "begun", "known"),
    [
        ("agents", "penstock", "re", {"recover", "report", "rewards", "receipts"}),
        ("provider", "penstock-provider", "st", {"start", "status"}),
    ],
)
def test_shells_complete_commands(module: str, name: str, begun: str, known: set[str]) -> None:
    variable = f"_{name.replace('-', '_').upper()}_COMPLETE"
    asked = {variable: "complete_bash", "COMP_WORDS": f"{name} {begun}", "COMP_CWORD": "1"}
    command = [sys.executable, "-m", module]
    done = subprocess.run(command, env=os.environ | asked, capture_output=True, text=True, timeout=60, check=False)
    assert set(done.stdout.split()) == known, done.stderr
