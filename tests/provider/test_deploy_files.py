"""What ships for operators fits the program: systemd's unit, the container file, Grafana's dashboard."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from provider import deploy
from provider.cli import cli
from provider.metrics import names
from provider.settings import PREFIX, Settings
from tests.provider.rig import Rig

FOLDER = Path(deploy.__path__[0])
UNIT, CONTAINER, DASHBOARD = (FOLDER / name for name in ("penstock-provider.service", "Containerfile", "grafana.json"))
COMMANDS = {command.name or getattr(command.callback, "__name__", "") for command in cli.registered_commands}
SHARED = {"PENSTOCK_HOME", "PENSTOCK_PASSPHRASE_FILE", "PENSTOCK_PROVIDER_CONFIG"}


def environment_of(text: str) -> Iterator[str]:
    yield from re.findall(r"\b(PENSTOCK_[A-Z_]+)=", text)


@pytest.mark.parametrize("path", [UNIT, CONTAINER], ids=lambda path: path.name)
def test_every_variable_is_a_setting(path: Path) -> None:
    found = set(environment_of(path.read_text()))
    assert found
    for name in found - SHARED:
        assert name.removeprefix(PREFIX).lower() in Settings.model_fields, name


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[method-assign, assignment]
    unit.read(UNIT)
    program, command = unit["Service"]["ExecStart"].split()
    assert program.endswith("/penstock-provider")
    assert command in COMMANDS
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze here")
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace(program, "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False)
    own = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert not own, done.stderr


def test_the_container_runs_what_there_is() -> None:
    text = CONTAINER.read_text()
    assert 'ENTRYPOINT ["penstock-provider"]' in text
    (command,) = re.findall(r'^CMD \["(\w+)"\]', text, re.MULTILINE)
    assert command in COMMANDS
    root = FOLDER.parents[1]
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        for name in source.split():
            assert (root / name).exists(), name
    assert "USER penstock" in text


async def test_the_dashboard_asks_for_metrics_that_exist(rig: Rig) -> None:
    board = json.loads(DASHBOARD.read_text())
    asked = {
        name
        for panel in board["panels"]
        for target in panel["targets"]
        for name in re.findall(r"\bpenstock_\w+", target["expr"])
    }
    known = set(names(rig.provider.metrics))
    assert asked <= known, asked - known
    shown = {name.removesuffix("_bucket").removesuffix("_total") for name in asked}
    families = {family.name for family in rig.provider.metrics.registry.collect()}
    assert families - shown <= {"penstock_block"}, "what is measured is shown"
