"""`penstock chat`, as typed."""

from __future__ import annotations

from typing import Annotated

import typer

from agents import _program


def chat(
    ctx: typer.Context,
    model: Annotated[str, typer.Option(help="A model, MODEL@PROVIDER, auto, cheapest, fastest, MODEL@local.")] = "auto",
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    load: Annotated[str | None, typer.Option(help="Go on with a conversation that /save wrote.")] = None,
) -> None:
    """Talk with a model; /help lists commands. What it costs is shown while it flows."""
    from agents.chat._run import chat as run

    _program.run(ctx, run, model, system, load)
