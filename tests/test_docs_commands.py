"""What the documents tell people to type exists: commands with their options, make's targets, files that are linked."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import agents.cli
import provider.cli

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "benchmarks").glob("*.md")),
    ROOT / "agents" / "skill" / "SKILL.md",
]
COMMAND = re.compile(r"(?:^|&& |\| )(?:[A-Z_]+=\S+ )*(penstock(?:-provider)? [^|\n]*)")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")
OF_TYPER = {"--help", "--install-completion", "--show-completion"}


@cache
def programs() -> dict[str, Any]:
    return {"penstock": get_command(agents.cli.app), "penstock-provider": get_command(provider.cli.cli)}


def options_of(command: Any) -> set[str]:
    return OF_TYPER | {name for param in command.params for name in (*param.opts, *param.secondary_opts)}


def code_in(document: Path) -> list[str]:
    """Lines of blocks, and what stands between backticks."""
    text = document.read_text().replace("\\\n", " ")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"^ {4}(\S.*)$", text, re.MULTILINE)
    prose = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return lines + re.findall(r"`([^`\n]+)`", prose)


def wrong_with(line: str) -> str:
    """The first word that no such program knows; empty where all is well. A command's own arguments are passed over."""
    program, *words = re.sub(r"[\[\]]", " ", line.split(" #")[0]).split()
    command = programs()[program]
    known, named = options_of(command), False
    for word in words:
        inner = getattr(command, "commands", {})
        if word.startswith("--"):
            option = word.split("=")[0]
            if option not in known:
                return option
        elif word in inner:
            command, named = inner[word], True
            known |= options_of(command)
        elif not named and word == words[0] and re.fullmatch(r"[a-z-]+", word):
            return word
    return ""


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_each_command_and_option_exists(document: Path) -> None:
    typed = [line for code in code_in(document) for line in COMMAND.findall(code)]
    wrong = {line: word for line in typed if (word := wrong_with(line))}
    assert not wrong, f"not known: {wrong}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_each_target_of_make_exists(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {target for code in code_in(document) for target in re.findall(r"^make ([a-z-]+)", code)}
    assert named <= targets, f"no such target: {named - targets}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_each_file_that_is_linked_exists(document: Path) -> None:
    missing = [target for target in LINK.findall(document.read_text()) if not (document.parent / target).exists()]
    assert not missing, f"broken links: {missing}"


def test_a_word_that_nobody_knows_is_found() -> None:
    assert wrong_with("penstock ask --no-such-thing") == "--no-such-thing"
    assert wrong_with("penstock sell") == "sell"
    assert wrong_with("penstock --wallet 0x1 ask 'Why?' --json") == ""
    assert 'penstock ask "Why is the sea salty?"' in code_in(ROOT / "README.md")
