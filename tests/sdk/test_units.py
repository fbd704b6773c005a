"""Amounts and rates, between integers and what people read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ConfigError
from penstock.units import format_amount, format_rate, parse_amount, parse_duration, parse_rate


@pytest.mark.parametrize(
    ("text", "decimals", "amount"),
    [("1.5", 6, 1_500_000), ("0", 18, 0), ("1e-6", 6, 1), ("1000000000000", 18, 10**30), (".25", 2, 25), ("7", 0, 7)],
)
def test_amounts_are_exact(text: str, decimals: int, amount: int) -> None:
    assert parse_amount(text, decimals) == amount


@pytest.mark.parametrize("text", ["", "x", "1,5", "-1", "1.0000001", "NaN", "Infinity", "1e400000000"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_amount(text, 6)


@given(st.integers(0, 2**128), st.integers(0, 30))
def test_amounts_survive_being_shown(amount: int, decimals: int) -> None:
    shown = format_amount(amount, decimals)
    assert "e" not in shown.lower()
    assert parse_amount(shown, decimals) == amount


def test_amounts_are_shown_without_idle_zeros() -> None:
    assert format_amount(1_500_000, 6, "TUSD") == "1.5 TUSD"
    assert format_amount(10 * 10**18, 18, "BNB") == "10 BNB"
    assert format_amount(100, 0) == "100"
    assert format_amount(1, 18) == "0.000000000000000001"


@given(st.integers(0, 2**96 - 1), st.integers(0, 18))
def test_rates_survive_being_shown(rate: int, decimals: int) -> None:
    assert parse_rate(format_rate(rate, decimals).removesuffix("/s"), decimals) == rate


def test_rates_are_rounded_up_for_the_provider() -> None:
    assert parse_rate("0.001", 18) == 10**21
    assert parse_rate("0.0000000000001", 6) == 1  # a tenth of the smallest rate
    assert format_rate(10**21, 18, "BNB") == "0.001 BNB/s"
    for text in ("", "-0.1", "cheap", "NaN"):
        with pytest.raises(ConfigError):
            parse_rate(text, 6)


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("5m", 300), (" 2h ", 7200)])
def test_durations(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-5", "1.5", "5d", "m", "9" * 12])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a duration"):
        parse_duration(text)
