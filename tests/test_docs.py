"""Each test that a document names exists, and each invariant of `docs/spec.md` names one; the numbers rise."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SPEC = (ROOT / "docs" / "spec.md").read_text()
INVARIANTS = re.findall(r"^I-(\d+)\. (.*?)(?=^I-|\Z)", SPEC, re.MULTILINE | re.DOTALL)


NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
KINDS = (ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def functions_of(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, KINDS)}


def test_invariants_are_numbered_in_order() -> None:
    numbers = [int(number) for number, _ in INVARIANTS]
    assert numbers == sorted(set(numbers))
    assert numbers[0] == 1
    assert len(INVARIANTS) >= 25


@pytest.mark.parametrize(("number", "text"), INVARIANTS, ids=[f"I-{number}" for number, _ in INVARIANTS])
def test_each_invariant_names_a_test(number: str, text: str) -> None:
    assert NAMED.search(text), f"I-{number} names no test"


@pytest.mark.parametrize("document", sorted((ROOT / "docs").rglob("*.md")), ids=lambda path: path.name)
def test_each_test_that_is_named_exists(document: Path) -> None:
    for path, name in NAMED.findall(document.read_text()):
        assert (ROOT / path).is_file(), f"no file {path}"
        assert name in functions_of(ROOT / path), f"no test {name} in {path}"
