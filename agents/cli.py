"""`penstock`: buy inference from the market, from the command line.

A client of `penstock.consumer` and nothing more. Heavy imports wait until a command needs them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from agents import _program
from agents._program import (
    AmountArgument,
    AmountOrAllArgument,
    Group,
    ModelOption,
    ProviderOption,
    TokenArgument,
)
from agents.chat.cli import chat
from agents.explorer.cli import explorer, top
from agents.gateway.cli import serve
from agents.keeper.cli import keeper, standing_order
from agents.records.cli import budgets, challenge, history, receipts, report, rewards, sessions
from agents.skills.cli import app as skills
from agents.wallet.cli import app as wallet

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="The options above may stand before or after the command.",
)
config = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Where settings come from.")
app.add_typer(config, name="config")
app.add_typer(keeper, name="keeper")
app.add_typer(receipts, name="receipts")
app.add_typer(skills, name="skill")
app.add_typer(wallet, name="wallet")
app.add_typer(explorer, name="explorer")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"penstock {version('penstock')}")
        raise typer.Exit


@app.callback()
def _main(
    ctx: typer.Context,
    network: Annotated[
        str | None, typer.Option(help="local, bsc-testnet or bsc. [env: PENSTOCK_NETWORK; default: local]")
    ] = None,
    rpc_url: Annotated[
        str | None, typer.Option(help="The node to use, if not the network's. [env: PENSTOCK_RPC_URL]")
    ] = None,
    account: Annotated[
        str | None,
        typer.Option(help="Keystore file or alias, env, or test:N on local chains. [env: PENSTOCK_ACCOUNT]"),
    ] = None,
    wallet: Annotated[
        str | None,
        typer.Option(help="Pay from this agent wallet, of which the account is a key. [env: PENSTOCK_WALLET]"),
    ] = None,
    caps: Annotated[
        str | None,
        typer.Option(
            help="Spend no more with this program, such as 'TUSD:payment=0.5,day=10; BNB:day=0.1'. [env: PENSTOCK_CAPS]"
        ),
    ] = None,
    deployment: Annotated[
        str | None, typer.Option(help="Deployment file, if not the chain's own. [env: PENSTOCK_DEPLOYMENT]")
    ] = None,
    home: Annotated[
        str | None, typer.Option(help="Journal and config.toml. [env: PENSTOCK_HOME; default: ~/.penstock]")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Data as JSON on stdout.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Buy LLM inference on chain, paid by the second or by the token."""
    ctx.obj = {
        "options": {
            "network": network,
            "rpc_url": rpc_url,
            "account": account,
            "wallet": wallet,
            "caps": caps,
            "deployment": deployment,
            "home": home,
        },
        "json": json,
    }


TokenOption = Annotated[str | None, typer.Option(help="Pay in this token: symbol or address.")]
MaxRateOption = Annotated[str | None, typer.Option(help="At most so many tokens per second, such as 0.0001.")]
MinStakeOption = Annotated[
    str | None,
    typer.Option(help="Provider's stake at least, in the stake asset. [default: what covers all that it sells]"),
]
RegionOption = Annotated[str | None, typer.Option(help="Only this region.")]


@app.command()
def providers(ctx: typer.Context) -> None:
    """List the providers on the market."""
    from agents import _offers

    _program.run(ctx, _offers.providers)


@app.command()
def offers(
    ctx: typer.Context,
    model: ModelOption = None,
    provider: ProviderOption = None,
    token: TokenOption = None,
    max_rate: MaxRateOption = None,
    min_stake: MinStakeOption = None,
    region: RegionOption = None,
) -> None:
    """List what is on offer, cheapest first."""
    from agents import _offers

    wish = _offers.Wish(model, provider, token, max_rate, min_stake, region)
    _program.run(ctx, _offers.offers, wish)


@app.command()
def ask(
    ctx: typer.Context,
    prompt: Annotated[str, typer.Argument(help="What to ask; - reads it from stdin.")],
    file: Annotated[
        list[str] | None, typer.Option("--file", "-f", help="A text or picture to ask about; - for stdin; repeatable.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Only this model; MODEL@PROVIDER; auto, cheapest or fastest; MODEL@local. [default: auto]"),
    ] = None,
    provider: ProviderOption = None,
    offer: Annotated[str | None, typer.Option(help="Only this offer: its id or the start of it.")] = None,
    by: Annotated[
        str | None,
        typer.Option(
            help="second: a stream pays for time; token: vouchers pay for tokens; both: offers that charge for both."
        ),
    ] = None,
    deposit: Annotated[
        str | None,
        typer.Option(help="Where tokens are paid for: lock so much of the offer's token at most; the rest returns."),
    ] = None,
    token: TokenOption = None,
    max_rate: MaxRateOption = None,
    min_stake: MinStakeOption = None,
    region: RegionOption = None,
    duration: Annotated[
        str | None,
        typer.Option(
            help="Pay in advance for so long at most, such as 90, 90s or 5m; the rest returns. [default: 60s]"
        ),
    ] = None,
    gasless: Annotated[
        bool | None,
        typer.Option(
            "--gasless/--no-gasless",
            help="Have the provider send and pay for the transactions. [default: where the account has no gas]",
            show_default=False,
        ),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Length of the answer at most, in tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="0: always the likeliest word.")] = None,
    schema: Annotated[
        Path | None, typer.Option(help="A JSON schema; the answer is JSON that satisfies it, or an error.")
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            min=1, help="Seconds to wait for the next token. [default: 60; where another may take over, [choice] stall]"
        ),
    ] = None,
) -> None:
    """Ask one question: choose an offer, open a stream, print the answer as it comes, get the rest back.

    Who fails in mid-answer is followed by another provider, unless --provider, --offer, --by or how to pay is given.
    """
    from agents import _ask, _offers
    from penstock.units import parse_duration

    if prompt == "-":
        prompt = sys.stdin.read()
    wish = _offers.Wish(model, provider, token, max_rate, min_stake, region, offer, by)
    question = _ask.Question(prompt, system, max_tokens, temperature, file or (), schema)
    terms = _ask.StreamTerms(
        parse_duration(duration) if duration is not None else None,
        "auto" if gasless is None else gasless,
        timeout,
        deposit,
    )
    _program.run(ctx, _ask.ask, wish, question, terms)


@app.command()
def streams(
    ctx: typer.Context,
    all_: Annotated[bool, typer.Option("--all", help="Those that are over, too.")] = False,
) -> None:
    """List streams that may be open."""
    from agents import _streams

    _program.run(ctx, _streams.streams, all_)


@app.command()
def channels(
    ctx: typer.Context,
    all_: Annotated[bool, typer.Option("--all", help="Those that are over, too.")] = False,
) -> None:
    """List channels that may be open: what was bought by the token."""
    from agents import _streams

    _program.run(ctx, _streams.channels, all_)


@app.command()
def stop(
    ctx: typer.Context,
    stream: Annotated[str | None, typer.Argument(help="The id of a stream or channel, or the start of it.")] = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Every stream and channel that may be open, other processes' too.")
    ] = False,
) -> None:
    """Close streams and channels now; what was not used comes back."""
    from agents import _streams

    if (stream is None) is not all_:
        raise typer.BadParameter("name one stream or channel, or --all", ctx=ctx)
    _program.run(ctx, _streams.stop, stream)


@app.command()
def balance(ctx: typer.Context) -> None:
    """Show what the account has, in its wallet and in the vault."""
    from agents import _money

    _program.run(ctx, _money.balance)


@app.command()
def deposit(
    ctx: typer.Context,
    amount: AmountArgument,
    token: TokenArgument,
) -> None:
    """Pay from the wallet into the vault."""
    from agents import _money

    _program.run(ctx, _money.deposit, amount, token)


@app.command()
def withdraw(
    ctx: typer.Context,
    amount: AmountOrAllArgument,
    token: TokenArgument,
    to: Annotated[str | None, typer.Option(help="Receiver. [default: the account itself]")] = None,
) -> None:
    """Take out of the vault."""
    from agents import _money

    _program.run(ctx, _money.withdraw, amount, token, to)


@app.command()
def recover(
    ctx: typer.Context,
    from_chain: Annotated[
        bool, typer.Option("--from-chain", help="Also look on the chain for what the journal has lost.")
    ] = False,
) -> None:
    """Close the streams and channels that processes which died left open."""
    from agents import _streams

    _program.run(ctx, _streams.recover, from_chain)


@config.command("show")
def config_show(ctx: typer.Context) -> None:
    """Show every setting and where it comes from."""
    from agents import _settings

    _settings.show(_settings.settings(ctx.obj["options"]), json=ctx.obj["json"])


@app.command()
def mcp(ctx: typer.Context) -> None:
    """Be an MCP server on stdin and stdout: list models, infer, balance, caps, history."""
    from agents import mcp_server

    _program.run(ctx, mcp_server.serve)


for command in (serve, chat, history, sessions, budgets, report, challenge, rewards, standing_order, top):
    app.command()(command)


def main() -> None:
    app(prog_name="penstock")
