"""`penstock budgets`."""

from __future__ import annotations

from agents._context import Context
from agents._output import emit_json, emit_table, talk
from agents.opening import budgets_of
from penstock.units import format_amount


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
