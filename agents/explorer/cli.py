"""`penstock explorer` and `penstock top`, to be added to the command line. Heavy imports wait until one is called."""

from __future__ import annotations

from typing import Annotated

import typer

from agents import _program

explorer = typer.Typer(
    rich_markup_mode=None, invoke_without_command=True, help="See the market: index the chain, serve pages and an API."
)

DbOption = Annotated[
    str | None,
    typer.Option(
        help="SQLite file, or a PostgreSQL URL. [env: PENSTOCK_EXPLORER_DB; default: a file of the deployment's own]"
    ),
]


@explorer.callback()
def serve(
    ctx: typer.Context,
    db: DbOption = None,
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 for other machines too.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8750,
    gateway: Annotated[
        str | None,
        typer.Option(
            help="OpenAI URL of a consumer gateway on this machine, for the chat panel. [env: PENSTOCK_GATEWAY]"
        ),
    ] = None,
    payer: Annotated[
        str | None, typer.Option(help="Address that the gateway buys with: the chat panel shows its cost.")
    ] = None,
    confirmations: Annotated[int, typer.Option(min=0, help="Blocks that must follow before a block is read.")] = 0,
    poll: Annotated[float, typer.Option(min=0.05, help="Seconds between two looks at the chain.")] = 1,
    rate_limit: Annotated[int, typer.Option(min=0, help="Requests a minute of each client; 0: any number.")] = 600,
    probe: Annotated[
        float, typer.Option(min=0, help="Seconds between two looks whether providers are up; 0: none.")
    ] = 60,
    demo: Annotated[
        bool, typer.Option("--demo", help="On a chain of its own, with an hour of made-up traffic to look at.")
    ] = False,
) -> None:
    """Follow the chain, and serve what it says, until stopped."""
    if ctx.invoked_subcommand is not None:
        ctx.obj["explorer_db"] = db
        return
    from agents.explorer import _commands

    options = _commands.Options(db, host, port, gateway, payer, confirmations, poll, rate_limit, probe)
    _program.run(ctx, _commands.demo if demo else _commands.serve, options)


@explorer.command()
def check(ctx: typer.Context, db: DbOption = None) -> None:
    """Read on to the head, recompute every balance from events, and compare all with the chain at that block."""
    from agents.explorer import _commands

    chosen = db or ctx.obj.get("explorer_db")
    _program.run(ctx, _commands.check, chosen)


def top(
    ctx: typer.Context,
    db: DbOption = None,
    poll: Annotated[float, typer.Option(min=0.05, help="Seconds between two looks at the chain.")] = 1,
) -> None:
    """See the market in the terminal: m market, s streams, p providers, l log, / commands, ? help, q quit."""
    from agents.explorer import _commands

    _program.run(ctx, _commands.top, db, poll)
