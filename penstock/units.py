"""Between integers and what people read and type: amounts and rates, of which this alone knows decimals, and times."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Decimal, localcontext

from penstock.errors import ConfigError

RATE_SCALE = 10**6
"""Rates are base units times this, per second."""
MILLION = 10**6


def parse_amount(text: str, decimals: int) -> int:
    """'1.5' of a token with 6 decimals is 1500000. ConfigError where it is no amount or has too many digits."""
    try:
        with localcontext(prec=120, Emax=200):  # so that nobody's exponent makes us count for ever
            scaled = Decimal(text) * (Decimal(10) ** decimals)
            whole = int(scaled)
            exact = scaled == whole
    except (ArithmeticError, ValueError):
        raise ConfigError(f"{text!r} is not an amount; write a decimal number such as 0.25") from None
    if whole < 0:
        raise ConfigError(f"{text!r} is negative")
    if not exact:
        raise ConfigError(f"{text!r} has more digits than the token's {decimals} decimals")
    return whole


def format_amount(amount: int, decimals: int, symbol: str = "") -> str:
    """1500000 of a token with 6 decimals and symbol TUSD is '1.5 TUSD'. Never rounds."""
    with localcontext(prec=120):
        value = Decimal(amount).scaleb(-decimals)
        text = f"{value:f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return f"{text} {symbol}" if symbol else text


def parse_rate(text: str, decimals: int) -> int:
    """'0.001' tokens per second as a scaled rate: base units x 1e6 per second, rounded up."""
    try:
        with localcontext(prec=120, Emax=200):  # so that nobody's exponent makes us count for ever
            scaled = Decimal(text) * (Decimal(10) ** decimals) * RATE_SCALE
            rate = int(scaled.to_integral_value(rounding=ROUND_CEILING))
    except (ArithmeticError, ValueError):
        raise ConfigError(f"{text!r} is not a rate; write a decimal number of tokens per second") from None
    if rate < 0:
        raise ConfigError(f"{text!r} is negative")
    return rate


def format_rate(rate: int, decimals: int, symbol: str = "") -> str:
    """A scaled rate as tokens per second, such as '0.001 BNB/s'."""
    with localcontext(prec=120):
        text = f"{(Decimal(rate) / RATE_SCALE).scaleb(-decimals):f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return f"{text} {symbol}/s" if symbol else f"{text}/s"


def parse_duration(text: str) -> int:
    """'90', '90s', '5m' or '1h' in seconds."""
    match = re.fullmatch(r"(\d{1,9})([smh]?)", text.strip())
    if match is None or int(match[1]) == 0:
        raise ConfigError(f"{text!r} is not a duration; write seconds, or such as 90s, 5m, 1h")
    return int(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def when(timestamp: int) -> str:
    """A Unix second for people."""
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
