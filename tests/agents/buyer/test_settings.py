"""`[choice]` as a person writes it, and what is said where it makes no sense."""

from __future__ import annotations

import msgspec
import pytest

from agents.buyer import ChoiceSettings, Filters, Policy
from agents.buyer._policy import PRESETS
from penstock.errors import ConfigError
from penstock.keys import well_known_account
from penstock.types import NATIVE, Token

SOMEBODY = well_known_account(1).address


async def token(text: str) -> Token:
    return Token(NATIVE, text, 18)


def test_nothing_said_is_the_default() -> None:
    assert ChoiceSettings().policy() == Policy()


def test_every_setting_of_the_policy_arrives() -> None:
    given = msgspec.convert({"preset": "auction", "stall": 3, "hedge": 1.5, "step_seconds": 60}, ChoiceSettings)
    assert given.policy() == Policy(weights=PRESETS["auction"], stall=3, hedge=1.5, step_seconds=60)
    own = ChoiceSettings(weights={"price": 2, "speed": 1}).policy()
    assert own.weights == {"price": 2, "speed": 1}


async def test_filters_are_in_base_units() -> None:
    given = ChoiceSettings(
        token="BNB",
        max_rate="0.001",
        max_prompt_price="0.1",
        max_completion_price="0.3",
        min_stake="2",
        min_context=4096,
        regions=["eu"],
        quantizations=["fp8"],
        allow=[SOMEBODY.lower()],
        deny=[SOMEBODY],
    )
    assert await given.filters(token) == Filters(
        max_rate=10**21,
        max_prompt_price=10**17,
        max_completion_price=3 * 10**17,
        min_stake=2 * 10**18,
        min_context=4096,
        regions=frozenset({"eu"}),
        quantizations=frozenset({"fp8"}),
        allow=frozenset({SOMEBODY}),
        deny=frozenset({SOMEBODY}),
        token=NATIVE,
    )
    assert await ChoiceSettings().filters(token) == Filters()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"preset": "best"}, "choose balanced, auction"),
        ({"weights": {"beauty": 1}}, "weighs beauty; there are price"),
        ({"weights": {"price": 0}}, "not all 0"),
        ({"weights": {"price": 1, "speed": -1}}, "0 or more"),
        ({"margin_seconds": 30}, "less than step_seconds"),
        ({"max_rate": "0.1"}, "names no token"),
        ({"token": "BNB", "max_rate": "cheap"}, "is not a rate"),
        ({"allow": ["me"]}, "no provider's address"),
    ],
)
async def test_what_makes_no_sense_is_said(given: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        settings = ChoiceSettings(**given)  # type: ignore[arg-type]
        settings.policy()
        await settings.filters(token)
