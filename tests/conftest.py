"""What all suites share: the profile of the randomised tests, and a line that says how much they did."""

from __future__ import annotations

import pytest

from tests.profiles import COUNTS, PROFILE


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for name, count in COUNTS.items():
        terminalreporter.write_line(f"{name}: {count:,} ({PROFILE.name})")
