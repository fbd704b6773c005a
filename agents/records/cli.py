"""`penstock history`, `penstock sessions` and `penstock budgets`, as typed."""

from __future__ import annotations

from typing import Annotated

import typer

ByOption = Annotated[str | None, typer.Option("--by", help="Add up by day, model, provider or app.")]
TimeHelp = "such as 2026-11-21, '2026-11-21 14:00' (UTC), 24h or 7d."


def history(
    ctx: typer.Context,
    since: Annotated[str | None, typer.Option(help=f"Asked from then on, {TimeHelp}")] = None,
    until: Annotated[str | None, typer.Option(help=f"Asked before, {TimeHelp}")] = None,
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    provider: Annotated[str | None, typer.Option(help="Only this provider: its address or the start of it.")] = None,
    token: Annotated[str | None, typer.Option(help="Only what was paid in this token: its symbol.")] = None,
    app: Annotated[str | None, typer.Option(help="Only from serve, chat, ask or mcp.")] = None,
    outcome: Annotated[str | None, typer.Option(help="Only done, failed, left, lost or begun.")] = None,
    by: ByOption = None,
    csv: Annotated[str | None, typer.Option("--csv", help="Write all as CSV to this file; - for stdout.")] = None,
) -> None:
    """List what was asked and bought, why of whom, and what it cost."""
    from agents.cli import _context
    from agents.records.history import Filter
    from agents.records.history import history as run

    wanted = Filter(since, until, model, provider, token, app, outcome)
    _context(ctx).run(lambda context: run(context, wanted, by=by, export=csv))


def sessions(
    ctx: typer.Context,
    all_: Annotated[bool, typer.Option("--all", help="Those that are over, too.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Hold the books against the chain, to the last unit.")] = False,
) -> None:
    """List streams and channels together: what each has served, cost and still locks."""
    from agents.cli import _context
    from agents.records.sessions import sessions as run

    _context(ctx).run(lambda context: run(context, everything=all_, check=check))


def budgets(ctx: typer.Context) -> None:
    """Show how much of each budget in config.toml is used."""
    from agents.cli import _context
    from agents.records.standing import budgets as run

    _context(ctx).run(run)
