"""How to choose and how to pay: every knob of the buyer, with what it is where nothing is said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

PRESETS: Mapping[str, Mapping[str, float]] = {
    "balanced": {"price": 0.35, "latency": 0.15, "speed": 0.15, "success": 0.25, "reputation": 0.05, "cover": 0.05},
    "auction": {"price": 0.40, "reputation": 0.30, "latency": 0.10, "confidence": 0.20},
    "cheapest": {"price": 0.80, "success": 0.20},
    "fastest": {"latency": 0.40, "speed": 0.40, "success": 0.20},
}


@dataclass(frozen=True, slots=True)
class Policy:
    """Times in seconds."""

    weights: Mapping[str, float] = field(default_factory=lambda: PRESETS["balanced"])
    """What `auto` is scored by; by feature."""
    explore: float = 0.1
    """How often a provider is tried of which little is known."""
    half_life: float = 3600.0
    """In which a measurement loses half its weight."""
    aside: float = 10.0
    """For which a provider is left alone after a failure; doubled by each further one."""
    longest_aside: float = 3600.0
    first_token: float = 30.0
    """A provider may take to begin."""
    stall: float = 10.0
    """Between two parts of an answer."""
    hedge: float = 0.0
    """Without a first token after this, a second provider is asked, too; 0: never."""
    step_seconds: int = 30
    """A stream is opened for, and topped up by."""
    margin_seconds: int = 8
    """Before its end at which it is topped up, and not used for anything new."""
    step_answers: int = 4
    """A channel's deposit pays for, each at its longest."""
    idle_seconds: float = 15.0
    """After which a stream that nobody uses is closed: it costs all the while."""
    idle_channel_seconds: float = 300.0
    """The same for a channel, which only locks money."""
    answers_per_session: int = 4
    """At once."""
    usual_answer: int = 512
    """Completion tokens to expect where nothing is known."""
