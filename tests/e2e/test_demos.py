"""The demonstrations that the README names, as a user runs them, on a node of their own.

Its blocks come four times as fast as BSC's: nearly all that a demonstration does is to wait for them.
"""

from __future__ import annotations

import pytest

from tests.deployed import ape
from tests.harness import Node
from tests.skills import needs_sandbox


@pytest.mark.parametrize(
    ("demo", "said"),
    [
        ("demo", ["StreamPay owes 0 BNB by its events and holds 0 BNB: equal", "0 TUSD: equal"]),
        ("slash_demo", ["non-delivery", "fire: equal", "35 proofs tried, 35 refused; its stake, before and after"]),
        pytest.param(
            "skill_demo",
            ["were paid: equal", "it was held to its limits", "License holds 0"],
            marks=needs_sandbox,
        ),
    ],
)
def test_it_runs_to_its_end_and_the_sums_are_right(demo: str, said: list[str]) -> None:
    with Node(block_time=1) as node:
        done = ape("run", demo, "--network", "bsc:local:foundry", node=node)
    assert done.returncode == 0, done.stdout + done.stderr
    for words in said:
        assert words in done.stdout
