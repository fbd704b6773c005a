"""The benchmark of the gateway runs. What it measures on a busy machine means nothing, and is not looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.deployed import ROOT
from tests.harness import PATIENCE


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gateway", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=8 * PATIENCE, check=False)


def test_it_compares_the_bare_engine_with_ours(tmp_path: Path) -> None:
    found = run("--quick", "--json", str(tmp_path / "figures.json"))
    assert found.returncode == 0, found.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures.keys() == {"Bursts", "Short requests", "50 tokens/s for each stream"}
    for title, rows in figures.items():
        assert {row["target"] for row in rows} == {"the engine, bare", "Penstock"}, title
        assert all(row["tokens_per_second"] > 0 for row in rows), "every answer came, and was counted"
    assert "KiB per idle stream" in found.stdout
    assert "Traceback" not in found.stderr


def test_it_says_what_is_wrong() -> None:
    found = run("--streams", "one,two")
    assert found.returncode == 2
    assert "--streams" in found.stderr
    found = run("--quick", "--engine-url", "http://127.0.0.1:9")
    assert found.returncode != 0
    assert "--engine-model" in found.stderr
