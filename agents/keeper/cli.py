"""`penstock keeper` and `penstock standing-order`, as typed."""

from __future__ import annotations

from typing import Annotated

import typer

from agents import _program

keeper = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Settle what others have earned, for a reward.")


def standing_order(
    ctx: typer.Context,
    stream: Annotated[str, typer.Argument(help="The stream's id or the start of it.")],
    ahead: Annotated[str, typer.Option(help="Keep the stream's end at most so far from now, such as 10m.")] = "10m",
    until: Annotated[str, typer.Option(help="And for so long in all, such as 2h.")] = "2h",
) -> None:
    """Print a signed order that lets a keeper extend one of your streams, as a line of JSON."""
    from agents.keeper import _commands

    _program.run(ctx, _commands.standing_order, stream, ahead, until)


@keeper.command("run")
def keeper_run(
    ctx: typer.Context,
    vouchers: Annotated[str | None, typer.Option(help="Folder of *.jsonl files with vouchers to settle.")] = None,
    orders: Annotated[str | None, typer.Option(help="Folder of *.jsonl files with standing orders to follow.")] = None,
    receipts: Annotated[
        str | None, typer.Option(help="Folder of *.jsonl files with providers' receipts, to report their faults.")
    ] = None,
    price: Annotated[
        list[str] | None,
        typer.Option(help="What a token is worth in the chain's coin, such as TUSD=0.0016; once for each token."),
    ] = None,
    margin: Annotated[str, typer.Option(help="Settle where the reward is more than so many times the gas.")] = "1.5",
    collect_unpriced: Annotated[
        bool, typer.Option("--collect-unpriced", help="Settle tokens without a --price, too, at any cost of gas.")
    ] = False,
    every: Annotated[
        str, typer.Option(help="How often to settle the account's own streams, and tokens without a price.")
    ] = "1h",
    extend_below: Annotated[str, typer.Option(help="Extend a stream when it has less time left.")] = "60s",
    min_ahead: Annotated[str, typer.Option(help="Refuse standing orders that look less far ahead.")] = "60s",
    confirmations: Annotated[
        int | None, typer.Option(min=0, help="Blocks that must follow before a block counts. [default: 5; local: 0]")
    ] = None,
    poll: Annotated[float, typer.Option(min=0.05, help="Seconds between two looks at the chain.")] = 1,
    replace_after: Annotated[
        str, typer.Option(help="Send a transaction that is not mined by then again, at a higher price.")
    ] = "30s",
    max_gas_price: Annotated[str, typer.Option(help="Never pay more for gas, in gwei.")] = "100",
    once: Annotated[bool, typer.Option("--once", help="Do what there is to do now, and end.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done now and what it would bring; send nothing.")
    ] = False,
    metrics_host: Annotated[str, typer.Option(help="Where metrics are served.")] = "127.0.0.1",
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Serve Prometheus metrics here; 0: any free port.")
    ] = None,
) -> None:
    """Run a keeper until it is stopped: collect, settle, extend, reclaim."""
    from agents.keeper import _commands

    options = _commands.Options(
        vouchers=vouchers,
        orders=orders,
        receipts=receipts,
        prices=price or (),
        margin=margin,
        collect_unpriced=collect_unpriced,
        every=every,
        extend_below=extend_below,
        min_ahead=min_ahead,
        confirmations=confirmations,
        poll=poll,
        replace_after=replace_after,
        max_gas_price=max_gas_price,
        once=once,
        dry_run=dry_run,
        metrics_host=metrics_host,
        metrics_port=metrics_port,
    )
    _program.run(ctx, _commands.run, options)
