"""`penstock serve`, as typed."""

from __future__ import annotations

from typing import Annotated

import typer

from agents import _program


def serve(
    ctx: typer.Context,
    host: Annotated[str | None, typer.Option(help="Listen there. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="0: any free one. [default: 4020]")] = None,
    api_key: Annotated[
        str | None, typer.Option(help="Ask it of clients; better set as PENSTOCK_SERVE_API_KEY. [default: none]")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name by which it may be called, besides localhost; repeatable.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="A page that may use it, such as http://localhost:3000; repeatable.")
    ] = None,
    local_url: Annotated[
        str | None, typer.Option(help="Ask this engine first: Ollama, or any that speaks OpenAI. [default: none]")
    ] = None,
    local_order: Annotated[str | None, typer.Option(help="local, market or race. [default: local]")] = None,
) -> None:
    """Serve the market on localhost to any client of OpenAI or Ollama, until stopped."""
    from agents.gateway._run import serve as run

    options = {
        "host": host,
        "port": port,
        "api_key": api_key,
        "allow_host": allow_host or None,
        "allow_origin": allow_origin or None,
    }
    local = {"url": local_url, "order": local_order}
    _program.run(ctx, run, options, local)
