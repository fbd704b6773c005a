"""`penstock history`, `sessions`, `budgets`, `receipts`, `report`, `challenge` and `rewards`, as typed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agents import _program
from agents._program import ModelOption, ProviderOption

receipts = typer.Typer(rich_markup_mode=None, invoke_without_command=True)

SessionOption = Annotated[str | None, typer.Option(help="Only this stream or channel: its id or the start of it.")]
ByOption = Annotated[str | None, typer.Option("--by", help="Add up by day, model, provider or app.")]
TimeHelp = "such as 2026-11-21, '2026-11-21 14:00' (UTC), 24h or 7d."


def history(
    ctx: typer.Context,
    since: Annotated[str | None, typer.Option(help=f"Asked from then on, {TimeHelp}")] = None,
    until: Annotated[str | None, typer.Option(help=f"Asked before, {TimeHelp}")] = None,
    model: ModelOption = None,
    provider: ProviderOption = None,
    token: Annotated[str | None, typer.Option(help="Only what was paid in this token: its symbol.")] = None,
    app: Annotated[str | None, typer.Option(help="Only from serve, chat, ask or mcp.")] = None,
    outcome: Annotated[str | None, typer.Option(help="Only done, failed, left, lost or begun.")] = None,
    by: ByOption = None,
    csv: Annotated[str | None, typer.Option("--csv", help="Write all as CSV to this file; - for stdout.")] = None,
) -> None:
    """List what was asked and bought, why of whom, and what it cost."""
    from agents.records.history import Filter
    from agents.records.history import history as run

    wanted = Filter(since, until, model, provider, token, app, outcome)
    _program.run(ctx, run, wanted, by=by, export=csv)


def sessions(
    ctx: typer.Context,
    all_: Annotated[bool, typer.Option("--all", help="Those that are over, too.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Hold the books against the chain, to the last unit.")] = False,
) -> None:
    """List streams and channels together: what each has served, cost and still locks."""
    from agents.records.sessions import sessions as run

    _program.run(ctx, run, everything=all_, check=check)


def budgets(ctx: typer.Context) -> None:
    """Show how much of each budget in config.toml is used."""
    from agents.records.standing import budgets as run

    _program.run(ctx, run)


@receipts.callback()
def receipts_list(
    ctx: typer.Context,
    provider: ProviderOption = None,
    session: SessionOption = None,
    refused: Annotated[bool, typer.Option("--refused", help="Only those that did not match their answers.")] = False,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="As JSON Lines, for `penstock report` elsewhere.")] = False,
    ids: Annotated[
        bool, typer.Option("--ids", help="With --jsonl: the answers' token ids too, which prove padding.")
    ] = False,
) -> None:
    """List what providers have signed for their answers; `verify` checks it all anew."""
    if ctx.invoked_subcommand is not None:
        return
    from agents.records.receipts import Filter
    from agents.records.receipts import receipts as run

    wanted = Filter(provider, session, refused)
    _program.run(ctx, run, wanted, lines=jsonl, with_ids=ids)


@receipts.command("verify")
def receipts_verify(ctx: typer.Context, provider: ProviderOption = None, session: SessionOption = None) -> None:
    """Check every receipt anew: keys, offers, counts, sums, and that each names the one before."""
    from agents.records.receipts import Filter
    from agents.records.verify import verify

    _program.run(ctx, verify, Filter(provider, session))


@receipts.command("publish")
def receipts_publish(
    ctx: typer.Context,
    to: Annotated[str, typer.Option(help="An explorer's URL, such as http://127.0.0.1:8750.")],
    provider: ProviderOption = None,
    session: SessionOption = None,
) -> None:
    """Give an explorer the receipts on record, without questions or answers, so that all see how fast providers are."""
    from agents.records.publish import publish
    from agents.records.receipts import Filter

    _program.run(ctx, publish, Filter(provider, session), to)


def report(
    ctx: typer.Context,
    files: Annotated[list[Path] | None, typer.Argument(help="JSON Lines of others' receipts.")] = None,
    provider: ProviderOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the faults and what they cost; prove none.")] = False,
) -> None:
    """Find faults in receipts, and prove them on chain for a tenth of what they cost the provider."""
    from agents.records import faults

    _program.run(ctx, faults.report, files or (), dry_run=dry_run, provider=provider)


def challenge(
    ctx: typer.Context,
    accept: Annotated[str | None, typer.Argument(help="The accept's hash or the start of it.")] = None,
) -> None:
    """List accepted requests without a receipt; ask for one on chain, and close what was not answered."""
    from agents.records import faults

    _program.run(ctx, faults.challenge, accept)


def rewards(
    ctx: typer.Context,
    withdraw: Annotated[bool, typer.Option("--withdraw", help="Fetch it.")] = False,
) -> None:
    """Show what reports and challenges have brought, and fetch it."""
    from agents.records import faults

    _program.run(ctx, faults.rewards, withdraw=withdraw)
