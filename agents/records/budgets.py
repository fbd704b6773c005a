"""Budgets: so much of a token a day and a month. Warnings at 50, 80 and 100 %, and a stop there if so configured.

What was spent is read from the journal, which has every stream and channel before it is opened: a stream costs by the
second, so that a day has what flowed in it; a channel counts on the day it was opened, with what was signed. A budget
is this program's word alone. What no key and no process can exceed are the caps of a wallet (`penstock wallet`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from penstock.accrual import flow
from penstock.errors import PenstockError
from penstock.journal import ChannelRecord, Record, State
from penstock.types import Address, Token
from penstock.units import format_amount

STEPS = (50, 80, 100)
"""Per cent at which is warned."""


class BudgetExceeded(PenstockError):
    """`http`: status, type and code for clients of the gateway."""

    exit_code = 3
    http = (402, "insufficient_quota", "budget_exceeded")


class BudgetSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[budgets.TUSD] in config.toml."""

    day: str = ""
    """Tokens, such as "5"; empty: no limit."""
    month: str = ""
    stop: bool = False
    """Whether nothing more is bought once it is used up."""


@dataclass(frozen=True, slots=True)
class Budget:
    token: Token
    day: int | None
    """Base units; None: no limit."""
    month: int | None
    stop: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """How much of a budget is used."""

    budget: Budget
    period: str
    """day or month."""
    key: str
    """Which one, such as 2026-11-21."""
    limit: int
    spent: int

    @property
    def percent(self) -> int:
        return 100 * self.spent // self.limit if self.limit else 100

    @property
    def json(self) -> dict[str, Any]:
        return {
            "token": self.budget.token.symbol,
            "decimals": self.budget.token.decimals,
            "period": self.period,
            "of": self.key,
            "limit": str(self.limit),
            "spent": str(self.spent),
            "percent": self.percent,
            "stops": self.budget.stop,
        }

    def __str__(self) -> str:
        token = self.budget.token
        amounts = f"{format_amount(self.spent, token.decimals)} of {format_amount(self.limit, token.decimals)}"
        return f"{self.percent} % of the budget for the {self.period} is used: {amounts} {token.symbol}"


def spent(record: Record | ChannelRecord, since: int, until: int, now: int) -> int:
    """What a stream or channel cost between two Unix seconds: base units of its token."""
    if isinstance(record, ChannelRecord):
        cost = record.paid if record.state is State.CLOSED else record.signed
        return cost if since <= record.created_at < until else 0
    if not record.start:
        return 0
    stop = record.stop if record.state is State.CLOSED else min(max(now, record.start + 1), record.end)
    first, last = (min(max(second, record.start), stop) - record.start for second in (since, until))
    return flow(record.rate, last) - flow(record.rate, first)


def periods(now: int) -> dict[str, tuple[str, int, int]]:
    """The day and the month of a Unix second, in UTC: name, first second, first of the next."""
    day = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    month = day.replace(day=1)
    after = (month + timedelta(days=32)).replace(day=1)
    return {
        "day": (f"{day:%Y-%m-%d}", int(day.timestamp()), int((day + timedelta(days=1)).timestamp())),
        "month": (f"{month:%Y-%m}", int(month.timestamp()), int(after.timestamp())),
    }


class Budgets:
    """`records`: all streams and channels of the payer. `warn` hears once of each step that is passed."""

    def __init__(
        self,
        budgets: Iterable[Budget],
        records: Callable[[], Iterable[Record | ChannelRecord]],
        *,
        now: Callable[[], int],
        warn: Callable[[str], None],
    ) -> None:
        self._budgets, self._records, self._now, self._warn = list(budgets), records, now, warn
        self._warned: dict[tuple[Address, str, str], int] = {}

    def standings(self) -> list[Standing]:
        now = self._now()
        found = []
        records = list(self._records()) if self._budgets else []
        for budget in self._budgets:
            mine = [record for record in records if record.key.token == budget.token.address]
            for period, (key, since, until) in periods(now).items():
                limit = getattr(budget, period)
                if limit is not None:
                    total = sum(spent(record, since, until, now) for record in mine)
                    found.append(Standing(budget, period, key, limit, total))
        return found

    def check(self) -> None:
        """Before something is bought, and after. BudgetExceeded where a budget that stops is used up."""
        for standing in self.standings():
            name = standing.budget.token.address, standing.period, standing.key
            step = max((step for step in STEPS if standing.percent >= step), default=0)
            if step > self._warned.get(name, 0):
                self._warned[name] = step
                self._warn(str(standing))
            if step == 100 and standing.budget.stop:
                raise BudgetExceeded(
                    f"{standing}; raise [budgets.{standing.budget.token.symbol}] {standing.period} in config.toml, or "
                    f"wait for the next {standing.period}"
                )
