"""Numbers, ids and charts as the pages show them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from typing import Any

from markupsafe import Markup, escape

from penstock.accrual import RATE_SCALE
from penstock.caps import NO_LIMIT
from penstock.types import NATIVE
from penstock.units import format_amount

_UNKNOWN = {"symbol": "?", "decimals": 0}
FAULTS = {
    1: "equivocation",
    2: "over-billing",
    3: "padding",
    4: "running total",
    5: "broken chain",
    6: "wrong offer",
    7: "oversold",
    8: "late",
    9: "non-delivery",
}
SERVICES = {1: "inference", 2: "audit", 4: "data"}


class Show:
    """Formats by the tokens that the store knows."""

    def __init__(self, tokens: Mapping[str, Mapping[str, Any]], native: str) -> None:
        self._tokens = {NATIVE: {"symbol": native, "decimals": 18}, **tokens}

    def symbol(self, token: str) -> str:
        return str(self._tokens.get(token, {**_UNKNOWN, "symbol": short(token)})["symbol"])

    def decimals(self, token: str) -> int:
        return int(self._tokens.get(token, _UNKNOWN)["decimals"])

    def plain(self, amount: int, token: str, digits: int = 6) -> str:
        """With so many significant digits at most, and the symbol."""
        return f"{significant(Decimal(amount).scaleb(-self.decimals(token)), digits)} {self.symbol(token)}"

    def amount(self, amount: int, token: str, digits: int = 6) -> Markup:
        """The same, the exact figure in its title."""
        exact = format_amount(amount, self.decimals(token), self.symbol(token))
        number, _, unit = self.plain(amount, token, digits).partition(" ")
        return Markup('<span title="{}">{} <span class="unit">{}</span></span>').format(exact, number, unit)

    def cap(self, amount: int, token: str) -> Markup:
        """The most that a wallet's keys may spend."""
        return Markup("no limit") if amount == NO_LIMIT else self.amount(amount, token)

    def rate(self, rate: int, token: str) -> Markup:
        """What a second costs."""
        value = (Decimal(rate) / RATE_SCALE).scaleb(-self.decimals(token))
        unit = f"{self.symbol(token)}/s"
        return Markup('<span title="{} an hour">{} <span class="unit">{}</span></span>').format(
            f"{significant(value * 3600)} {self.symbol(token)}", significant(value, 4), unit
        )

    def many(self, amounts: Mapping[str, int]) -> Markup:
        """Amounts of several tokens."""
        if not amounts:
            return Markup("0")
        return Markup("<br>").join(self.amount(amount, token, 5) for token, amount in sorted(amounts.items()))


def significant(value: Decimal, digits: int = 6) -> str:
    """'0.0000021', '12,345.6': never in powers of ten."""
    if not value:
        return "0"
    with localcontext(prec=120):
        places = max(0, digits - 1 - value.adjusted())
        text = f"{value.quantize(Decimal(1).scaleb(-places), rounding=ROUND_HALF_EVEN):,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def short(identifier: str) -> str:
    return f"{identifier[:8]}…{identifier[-4:]}" if len(identifier) > 14 else identifier


def moment(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def span(seconds: int) -> str:
    for unit, size, small, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= size:
            rest = seconds % size // part
            return f"{seconds // size} {unit} {rest} {small}" if rest else f"{seconds // size} {unit}"
    return f"{seconds} s"


# --- charts: drawn here, so that a page is whole without scripts ---

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 640, 190, 6, 20


@dataclass(frozen=True)
class Point:
    label: str
    """Under it."""
    value: Decimal
    said: str
    """Its exact words, for a pointer and a screen reader."""


def bars(points: Sequence[Point], title: str, *, second: bool = False) -> Markup:
    """One bar each; labels where there is room."""
    top = max((point.value for point in points), default=Decimal(0)) or Decimal(1)
    width = (_WIDTH - 2 * _LEFT) / max(1, len(points))
    parts = [_frame(title)]
    every = max(1, len(points) // 6)
    for number, point in enumerate(points):
        height = float(point.value / top) * (_HEIGHT - _BOTTOM - 16)
        height = max(height, 1.5) if point.value else 0
        x, y = _LEFT + number * width, _HEIGHT - _BOTTOM - height
        kind = "bar second" if second else "bar"
        parts.append(
            f'<rect class="{kind}" x="{x + width * 0.1:.1f}" y="{y:.1f}" width="{width * 0.8:.1f}" '
            f'height="{height:.1f}" rx="2"><title>{escape(point.said)}</title></rect>'
        )
        if number % every == 0:
            parts.append(f'<text x="{x + width / 2:.1f}" y="{_HEIGHT - 5}" text-anchor="middle">{point.label}</text>')
    return Markup("".join([*parts, "</svg>"]))


def line(points: Sequence[Point], title: str) -> Markup:
    """A line through the points, from zero up."""
    top = (max((point.value for point in points), default=Decimal(0)) or Decimal(1)) * Decimal("1.1")
    step = (_WIDTH - 60) / max(1, len(points) - 1)
    places = [
        (30 + number * step, _HEIGHT - _BOTTOM - float(point.value / top) * (_HEIGHT - _BOTTOM - 16))
        for number, point in enumerate(points)
    ]
    parts = [_frame(title)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts.append(f'<polyline class="line" points="{path}"/>')
    every = max(1, len(points) // 6)
    for number, ((x, y), point) in enumerate(zip(places, points, strict=True)):
        parts.append(
            f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3.5"><title>{escape(point.said)}</title></circle>'
        )
        if number % every == 0:
            parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - 5}" text-anchor="middle">{point.label}</text>')
    return Markup("".join([*parts, "</svg>"]))


def _frame(title: str) -> str:
    base = _HEIGHT - _BOTTOM
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'
        f'<line class="axis" x1="{_LEFT}" y1="{base}" x2="{_WIDTH - _LEFT}" y2="{base}"/>'
    )
