"""Each invariant of `docs/spec.md` names tests that exist, and the numbers have no gap."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SPEC = (ROOT / "docs" / "spec.md").read_text()
INVARIANTS = re.findall(r"^I-(\d+)\. (.*?)(?=^I-|\Z)", SPEC, re.MULTILINE | re.DOTALL)


def functions_of(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_invariants_are_numbered_from_one() -> None:
    assert [int(number) for number, _ in INVARIANTS] == list(range(1, len(INVARIANTS) + 1))
    assert len(INVARIANTS) >= 25


@pytest.mark.parametrize(("number", "text"), INVARIANTS, ids=[f"I-{number}" for number, _ in INVARIANTS])
def test_each_invariant_names_tests_that_exist(number: str, text: str) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert named, f"I-{number} names no test"
    for path, name in named:
        assert (ROOT / path).is_file(), f"I-{number}: no file {path}"
        assert name in functions_of(ROOT / path), f"I-{number}: no test {name} in {path}"
