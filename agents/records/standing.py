"""`penstock budgets`, and the budgets that config.toml sets."""

from __future__ import annotations

import time

import msgspec

from agents._context import Context
from agents._output import emit_json, emit_table, talk
from agents.records.budgets import Budget, Budgets, BudgetSettings
from penstock.errors import ConfigError
from penstock.journal import ChannelRecord, Record
from penstock.units import format_amount, parse_amount


async def budgets(context: Context) -> None:
    found = (await budgets_of(context)).standings()
    if context.json:
        emit_json([one.json for one in found])
    elif not found:
        talk('no budget is set; write [budgets.TUSD] with day = "5" or month = "50" in config.toml')
    else:
        emit_table(
            ["TOKEN", "PERIOD", "SPENT", "LIMIT", "USED", "AT 100 %"],
            [
                [
                    one.budget.token.symbol,
                    one.key,
                    format_amount(one.spent, one.budget.token.decimals),
                    format_amount(one.limit, one.budget.token.decimals),
                    f"{one.percent} %",
                    "stops" if one.budget.stop else "warns",
                ]
                for one in found
            ],
            right=["SPENT", "LIMIT", "USED"],
        )


async def budgets_of(context: Context) -> Budgets:
    """From [budgets.TOKEN] of config.toml. ConfigError where one cannot be meant."""
    tables = context.settings.tables.get("budgets", {})
    found = []
    for symbol, table in tables.items() if isinstance(tables, dict) else ():
        where = f"[budgets.{symbol}] in {context.settings.home / 'config.toml'}"
        try:
            given = msgspec.convert(table, BudgetSettings)
        except msgspec.ValidationError as error:
            raise ConfigError(f'{where}: {error}; write such as day = "5", month = "50", stop = true') from error
        token = await context.token(symbol)

        def amount(text: str, decimals: int = token.decimals) -> int | None:
            return parse_amount(text, decimals) if text else None

        found.append(Budget(token, amount(given.day), amount(given.month), given.stop))

    chain, journal, payer = await context.chain(), context.journal(), context.payer().address

    def records() -> list[Record | ChannelRecord]:
        here = chain.chain_id, chain.stream_pay, payer
        found: list[Record | ChannelRecord] = [*journal.all(), *journal.channels()]
        return [one for one in found if (one.chain_id, one.stream_pay, one.key.payer) == here]

    return Budgets(found, records, now=lambda: int(time.time()), warn=lambda text: talk(f"budget   {text}"))
