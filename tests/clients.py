"""Other people's clients, in an environment of their own: their pins conflict with ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.deployed import ROOT
from tests.harness import PATIENCE


@pytest.fixture(scope="module")
def clients() -> Path:
    """Its folder with executables."""
    subprocess.run([sys.executable, ROOT / "scripts" / "_bootstrap.py", "--clients"], check=True, timeout=8 * PATIENCE)
    return ROOT / ".toolchain" / "clients" / "bin"
