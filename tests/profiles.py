"""Profiles of the randomised tests, chosen by `PENSTOCK_PROFILE`: quick (default), ci (default where CI=true), deep."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass

from hypothesis import HealthCheck, Phase, settings


@dataclass(frozen=True)
class Profile:
    """How much the randomised tests try."""

    name: str
    examples: int
    """Runs of each state machine."""
    steps: int
    """Rules in one run."""
    cases: int
    """Cases of each numeric comparison."""


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("quick", examples=8, steps=60, cases=20_000),
        Profile("ci", examples=115, steps=200, cases=1_000_000),
        Profile("deep", examples=4_000, steps=300, cases=10_000_000),
    )
}
PROFILE = PROFILES[os.environ.get("PENSTOCK_PROFILE") or ("ci" if os.environ.get("CI") == "true" else "quick")]

for each in PROFILES.values():
    settings.register_profile(
        each.name,
        max_examples=each.examples,
        stateful_step_count=each.steps,
        deadline=None,
        print_blob=True,
        derandomize=each.name == "ci",
        # Shrinking a run of two hundred transactions takes minutes; what failed is printed step by step.
        phases=[phase for phase in Phase if phase is not Phase.shrink or each.name == "deep"],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
settings.load_profile(PROFILE.name)

COUNTS: Counter[str] = Counter()
"""What randomised tests did, by name: printed once, at the end."""
