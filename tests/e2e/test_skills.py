"""A publisher and a buyer at their command lines, with a gateway that is killed in between."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deployed import Deployed
from tests.harness import PATIENCE, Node
from tests.skills import needs_sandbox

pytestmark = needs_sandbox


class Shell:
    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self._environment, self._folder = environment, folder

    def environment(self, who: int) -> dict[str, str]:
        home = str(self._folder / f"home-{who}")
        return self._environment | {"PENSTOCK_ACCOUNT": f"test:{who}", "PENSTOCK_HOME": home}

    def run(self, who: int, *words: str, code: int = 0) -> tuple[str, str]:
        """stdout and stderr of `penstock skill …`."""
        done = subprocess.run(
            [sys.executable, "-m", "agents", "skill", *words],
            env=self.environment(who),
            capture_output=True,
            text=True,
            timeout=4 * PATIENCE,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout, done.stderr

    def json(self, who: int, *words: str) -> Any:
        return json.loads(self.run(who, *words, "--json")[0])

    @contextlib.contextmanager
    def gateway(self, who: int) -> Iterator[subprocess.Popen[str]]:
        process = subprocess.Popen(
            [sys.executable, "-m", "provider", "skills", "--json", "--port", "0", "--payout-seconds", "3600"],
            env=self.environment(who),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout
        try:
            assert json.loads(process.stdout.readline())["event"] == "ready"
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait(timeout=PATIENCE)
            process.stdout.close()


@pytest.fixture
def shell(node: Node, deployed: Deployed, tmp_path: Path) -> Shell:
    return Shell(deployed.environment(node), tmp_path)


def test_publish_buy_run_review_and_what_a_killed_gateway_keeps(shell: Shell, tmp_path: Path) -> None:
    folder = tmp_path / "word-count"
    shell.run(1, "init", str(folder))
    product = shell.json(1, "publish", str(folder))["product"]
    (folder / "skill.py").write_text((folder / "skill.py").read_text() + "\nTOKEN = 'ghp_" + "a" * 36 + "'\n")
    said = shell.run(1, "publish", str(folder), code=2)[1]
    assert "skill.py:" in said
    assert "GitHub" in said
    given = ("--input", '{"text": "to be or not to be"}')
    licence = shell.json(2, "buy", str(product), "--max-price", "0.001")["licence"]
    with shell.gateway(1) as process:
        first = shell.json(2, "run", str(product), *given)
        assert first["output"] == {"words": 6, "different": 4}
        assert first["usage"]["state"]["served"] == 1
        process.kill()
    with shell.gateway(1):
        out, err = shell.run(2, "run", str(product), "count", *given)
        assert json.loads(out) == first["output"]
        assert "98 left" in err
    shell.run(2, "review", str(product), "4")
    assert "you have reviewed it" in shell.run(2, "review", str(product), "4", code=4)[1]
    found = shell.json(3, "search", "count", "--category", "utility")
    assert [(one["product"], one["stars"]) for one in found] == [(product, 4.0)]
    rows = shell.json(1, "stats")
    assert [(row["sales"], row["units"], row["earned"]) for row in rows] == [(1, 2, "975000000000000")]
    held = shell.json(2, "stats", "--bought")
    assert [(one["licence"], one["used"], one["bought"]) for one in held] == [(licence, 2, 100)]
    receipts = next((tmp_path / "home-2").glob("skill-receipts-*.jsonl")).read_text().splitlines()
    assert [json.loads(line)["seq"] for line in receipts] == [0, 1]
    shown = shell.run(1, "show", str(product))[0]
    assert re.search(r"calls +count", shown)
    assert "0.000025" in shown
