"""The commands. Heavy imports wait until one of them runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agents import _program

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Skills: write, check, publish, buy and run them.")

FolderArgument = Annotated[Path, typer.Argument(help="The skill's folder.")]
ProductArgument = Annotated[int, typer.Argument(help="The product's number.")]
LicenceArgument = Annotated[int, typer.Argument(help="The licence's number.")]
IpfsOption = Annotated[
    str, typer.Option(help="HTTP API of an IPFS node, such as http://127.0.0.1:5001.", envvar="PENSTOCK_IPFS_URL")
]


@app.command()
def init(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(help="A new folder; its name is the skill's.")],
    kind: Annotated[str, typer.Option(help="python, http, workflow or model.")] = "python",
) -> None:
    """Write a skill that works, to be changed."""
    from agents.skills import _commands

    _commands.init(folder, kind, json=ctx.obj["json"])


@app.command()
def check(ctx: typer.Context, folder: FolderArgument) -> None:
    """Validate a skill, look for secrets and missing dependencies, run its examples in the sandbox."""
    from agents.skills import _commands

    _program.run(ctx, _commands.check, folder)


@app.command()
def publish(ctx: typer.Context, folder: FolderArgument, ipfs_url: IpfsOption = "") -> None:
    """Check a skill and put it on the market; again: its next version, or another price.

    The account is the publisher, also where --wallet names a wallet.
    """
    from agents.skills import _commands

    _program.run(ctx, _commands.publish, folder, ipfs_url)


@app.command()
def search(
    ctx: typer.Context,
    words: Annotated[list[str] | None, typer.Argument(help="In the name or the description.")] = None,
    category: Annotated[str | None, typer.Option(help="Only this category.")] = None,
    item: Annotated[str | None, typer.Option(help="skill, model or data.")] = None,
    free: Annotated[bool, typer.Option("--free", help="Only what costs nothing.")] = False,
    ipfs_url: IpfsOption = "",
) -> None:
    """List what is for sale, the best rated first."""
    from agents.skills import _commands

    wish = _commands.Wish(tuple(words or ()), category, item, free)
    _program.run(ctx, _commands.search, wish, ipfs_url)


@app.command()
def show(ctx: typer.Context, product: ProductArgument, ipfs_url: IpfsOption = "") -> None:
    """A product: prices, operations, limits, who gets what of a sale, reviews, what goes with it."""
    from agents.skills import _commands

    _program.run(ctx, _commands.show, product, ipfs_url)


@app.command()
def buy(
    ctx: typer.Context,
    product: ProductArgument,
    tier: Annotated[str, typer.Option(help="personal, commercial or enterprise.")] = "personal",
    quantity: Annotated[int, typer.Option(help="Periods or packs.", min=1)] = 1,
    renew: Annotated[int | None, typer.Option(help="Add to this licence instead of buying another.")] = None,
    max_price: Annotated[str | None, typer.Option(help="Pay at most so many tokens in all.")] = None,
) -> None:
    """Buy a licence, or renew one; from the wallet where --wallet names one."""
    from agents.skills import _commands

    _program.run(ctx, _commands.buy, product, tier, quantity, renew, max_price)


@app.command()
def refund(ctx: typer.Context, licence: LicenceArgument) -> None:
    """Give a licence back within its refund window; its price goes to who paid."""
    from agents.skills import _licences

    _program.run(ctx, _licences.refund, licence)


@app.command()
def complete(ctx: typer.Context, licence: LicenceArgument) -> None:
    """Keep a licence for good: waive what is left of its refund window, so that it can be renewed and reviewed.

    Its sellers are paid. After the window anyone may; publishers' gateways do it by themselves.
    """
    from agents.skills import _licences

    _program.run(ctx, _licences.complete, licence)


@app.command()
def rekey(ctx: typer.Context, licence: LicenceArgument) -> None:
    """Use a licence with this account's key, where another one was named or a wallet's program has a new key.

    At most once a day, for which what the earlier key signed still counts.
    """
    from agents.skills import _licences

    _program.run(ctx, _licences.rekey, licence)


@app.command()
def run(
    ctx: typer.Context,
    product: ProductArgument,
    operation: Annotated[str, typer.Argument(help="May be left out where there is one.")] = "",
    input: Annotated[str, typer.Option("--input", "-i", help="JSON, @FILE, or - for stdin.")] = "{}",
    licence: Annotated[int | None, typer.Option(help="Which licence. [default: the one that lasts longest]")] = None,
    ipfs_url: IpfsOption = "",
) -> None:
    """Call an operation at the publisher's gateway. The output alone goes to stdout."""
    from agents.skills import _commands

    _program.run(ctx, _commands.run, product, operation, input, licence, ipfs_url)


@app.command()
def review(
    ctx: typer.Context,
    product: ProductArgument,
    stars: Annotated[int, typer.Argument(min=1, max=5)],
    licence: Annotated[int | None, typer.Option(help="Which licence. [default: one not used for a review]")] = None,
) -> None:
    """Rate a product that you hold a licence of; it weighs what you paid."""
    from agents.skills import _commands

    _program.run(ctx, _commands.review, product, stars, licence)


@app.command()
def stats(
    ctx: typer.Context,
    bought: Annotated[bool, typer.Option("--bought", help="What you bought, instead of what you sold.")] = False,
) -> None:
    """Sales, usage and revenue by day; or your licences."""
    from agents.skills import _commands

    _program.run(ctx, _commands.licences if bought else _commands.stats)


@app.command()
def licensed(
    ctx: typer.Context,
    provider: Annotated[str, typer.Argument(help="The provider's address.")],
    product: ProductArgument,
) -> None:
    """Whether a provider holds a licence of a model that is good now; exit code 4 where not."""
    from agents.skills import _commands

    _program.run(ctx, _commands.licensed, provider, product)
