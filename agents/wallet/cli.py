"""`penstock wallet`: a wallet that an agent spends from within caps, and cannot empty."""

from __future__ import annotations

from typing import Annotated

import typer

from agents import _program
from agents._program import AmountArgument, AmountOrAllArgument, TokenArgument

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="A wallet that programs spend from within caps that a contract holds, and that its owner alone can empty.",
)

ToOption = Annotated[str | None, typer.Option(help="Receiver. [default: the account]")]
ExpiresOption = Annotated[str, typer.Option(help="How long keys are good, such as 12h or 30d.")]
ScopeOption = Annotated[str, typer.Option(help="What keys may buy: all, or some of streams,channels,licenses.")]


@app.command()
def create(
    ctx: typer.Context,
    cap: Annotated[
        list[str] | None,
        typer.Option(help="Such as TUSD:payment=0.5,hour=2,day=10,week=40; once for each token."),
    ] = None,
    key: Annotated[list[str] | None, typer.Option(help="An address that may spend; as often as you like.")] = None,
    guardian: Annotated[str | None, typer.Option(help="Who may pause it and revoke keys. [default: nobody]")] = None,
    owner: Annotated[str | None, typer.Option(help="Whose it is. [default: the account]")] = None,
    expires: ExpiresOption = "30d",
    scope: ScopeOption = "all",
) -> None:
    """Make a wallet, with its caps and keys, in one transaction."""
    from agents.wallet import _commands

    salt = _commands.default_salt()
    _program.run(ctx, _commands.create, _commands.Start(owner, guardian, cap or (), key or (), expires, scope, salt))


@app.command()
def fund(ctx: typer.Context, amount: AmountArgument, token: TokenArgument) -> None:
    """Pay from the account into the wallet."""
    from agents.wallet import _commands

    _program.run(ctx, _commands.fund, amount, token)


@app.command()
def show(ctx: typer.Context) -> None:
    """Show whose it is, its keys, what it has, and what of its caps is used."""
    from agents.wallet import _commands

    _program.run(ctx, _commands.show)


@app.command()
def caps(
    ctx: typer.Context,
    token: TokenArgument,
    payment: Annotated[str | None, typer.Option(help="At most so much at a time; none: no limit.")] = None,
    hour: Annotated[str | None, typer.Option(help="Within any hour, what is open in full; none: no limit.")] = None,
    day: Annotated[str | None, typer.Option(help="Within any day.")] = None,
    week: Annotated[str | None, typer.Option(help="Within any week.")] = None,
) -> None:
    """Show a token's caps, or change those that are named. Owner only."""
    from agents.wallet import _commands

    _program.run(ctx, _commands.caps, token, {"payment": payment, "hour": hour, "day": day, "week": week})


@app.command()
def keys(
    ctx: typer.Context,
    add: Annotated[str | None, typer.Option(help="Let this address spend. Owner only.")] = None,
    revoke: Annotated[str | None, typer.Option(help="No longer let this address spend. Owner or guardian.")] = None,
    expires: ExpiresOption = "30d",
    scope: ScopeOption = "all",
) -> None:
    """List the keys that spend, give one, or revoke one."""
    from agents.wallet import _commands

    _program.run(ctx, _commands.keys, add, revoke, expires, scope)


@app.command()
def allow(
    ctx: typer.Context,
    payee: Annotated[list[str] | None, typer.Option(help="Put this payee on the list.")] = None,
    offer: Annotated[
        list[str] | None,
        typer.Option(help="Put this offer on the list: its id, the start of it, or a product's number."),
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take them off the list instead.")] = False,
    only_payees: Annotated[
        bool | None, typer.Option("--only-payees/--any-payee", help="Whether none but listed payees are paid.")
    ] = None,
    only_offers: Annotated[
        bool | None, typer.Option("--only-offers/--any-offer", help="Whether none but listed offers are bought.")
    ] = None,
) -> None:
    """Say whom keys may pay and for what. Owner only."""
    from agents.wallet import _commands

    _program.run(ctx, _commands.allow, _commands.Lists(payee or (), offer or (), remove, only_payees, only_offers))


@app.command()
def pause(ctx: typer.Context) -> None:
    """Stop all spending; stopping streams and taking money out go on. Owner or guardian."""
    from agents.wallet import _commands

    _program.run(ctx, _commands.pause)


@app.command()
def unpause(ctx: typer.Context) -> None:
    """Let keys spend again. Owner only."""
    from agents.wallet import _commands

    _program.run(ctx, _commands.unpause)


@app.command()
def withdraw(
    ctx: typer.Context,
    amount: AmountOrAllArgument,
    token: TokenArgument,
    to: ToOption = None,
) -> None:
    """Take money that is not locked out of the wallet. Owner only."""
    from agents.wallet import _commands

    _program.run(ctx, _commands.withdraw, amount, token, to)


@app.command("exit")
def exit_(ctx: typer.Context, to: ToOption = None) -> None:
    """Stop every stream, ask every channel to close, take everything out. Owner only."""
    from agents.wallet import _commands

    _program.run(ctx, _commands.exit_, to)


@app.command()
def release(ctx: typer.Context) -> None:
    """Stop counting against the caps what others have closed, or what ran to its end. Anyone may."""
    from agents.wallet import _commands

    _program.run(ctx, _commands.release)


@app.command()
def history(
    ctx: typer.Context, last: Annotated[int, typer.Option(min=0, help="So many entries at most; 0: all.")] = 0
) -> None:
    """List all that the wallet ever did, from the chain."""
    from agents.wallet import _commands

    _program.run(ctx, _commands.history, last)


@app.command()
def guardian(ctx: typer.Context, to: Annotated[str, typer.Argument(help="Its address, or none.")]) -> None:
    """Say who may pause the wallet and revoke keys. Owner only."""
    from agents.wallet import _commands

    _program.run(ctx, _commands.guardian, to)


@app.command()
def transfer(ctx: typer.Context, to: Annotated[str, typer.Argument(help="The new owner's address.")]) -> None:
    """Offer the wallet to another owner, who must accept. Owner only."""
    from agents.wallet import _commands

    _program.run(ctx, _commands.transfer, to)


@app.command()
def accept(ctx: typer.Context) -> None:
    """Take a wallet that was offered to the account."""
    from agents.wallet import _commands

    _program.run(ctx, _commands.accept)
