"""A desk from the settings: consumer, buyer, local engine, records, budgets, in the order in which they close."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

from agents._context import Context
from agents._output import talk
from agents._streams import tidy
from agents.buyer import Buyer, ChoiceSettings, Filters, Policy
from agents.desk import Desk, Scribe
from agents.local import LocalEngine, LocalSettings
from agents.records.ledger import Ledger
from agents.records.standing import budgets_of
from penstock.consumer import Consumer


@dataclass(frozen=True, slots=True)
class Opened:
    desk: Desk
    consumer: Consumer
    policy: Policy
    local: LocalEngine | None


@asynccontextmanager
async def opened(
    context: Context,
    app: str,
    *,
    filters: Filters | None = None,
    local_options: dict[str, Any] | None = None,
    use_local: bool = True,
    stall: float | None = None,
) -> AsyncIterator[Opened]:
    """What a process that is gone left open is closed first; on leaving, everything that was opened here is.
    StreamLeftOpen where something could not be. `filters`: in place of what [choice] says, where they say something."""
    settings = local_settings(context, local_options) if use_local else LocalSettings()
    choice = choice_settings(context)
    chosen = choice.policy() if stall is None else replace(choice.policy(), stall=stall, first_token=stall)
    consumer = await context.consumer(stall=stall)
    asset = await consumer.chain.token(await consumer.chain.stake_asset())
    filters = _over(await choice.filters(context.token, stake_decimals=asset.decimals), filters)
    with Ledger(context.settings.records) as ledger:
        await tidy(consumer)
        ledger.lost()
        scribe = Scribe(ledger, app=app, chain_id=consumer.chain.chain_id, payer=consumer.account.address)
        books = await budgets_of(context)

        def warn(text: str) -> None:
            talk(f"warning  {text}")

        home = context.settings.home
        async with Buyer(consumer, chosen, folder=home, on_purchase=scribe.heard, on_warning=warn) as buyer:
            if not settings.url:
                yield Opened(Desk(buyer, scribe, books, filters=filters, tell=talk), consumer, chosen, None)
                return
            async with LocalEngine(settings) as engine:
                desk = Desk(buyer, scribe, books, local=engine, filters=filters, tell=talk)
                yield Opened(desk, consumer, chosen, engine)


def choice_settings(context: Context) -> ChoiceSettings:
    return context.settings.section("choice", ChoiceSettings)


def _over(base: Filters, given: Filters | None) -> Filters:
    """The base, changed where something else is given."""
    default = Filters()
    named = {one.name: getattr(given or default, one.name) for one in fields(Filters)}
    return replace(base, **{name: value for name, value in named.items() if value != getattr(default, name)})


def local_settings(context: Context, options: dict[str, Any] | None = None) -> LocalSettings:
    found = context.settings.section("local", LocalSettings, options)
    found.check()
    return found
