"""`penstock`: buy inference from the market, from the command line.

A client of `penstock.consumer` and nothing more. Heavy imports wait until a command needs them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from agents.chat.cli import chat
from agents.explorer.cli import explorer, top
from agents.gateway.cli import serve
from agents.records.cli import budgets, history, sessions
from agents.skills.cli import app as skills
from agents.wallet import app as wallet

if TYPE_CHECKING:
    from agents._context import Context

# Options of the whole program, which may also stand after the command: name -> whether it takes a value.
_GLOBAL = {
    "--network": True,
    "--rpc-url": True,
    "--account": True,
    "--wallet": True,
    "--caps": True,
    "--deployment": True,
    "--home": True,
    "--json": False,
    "--debug": False,
}


class _Group(TyperGroup):
    """Takes global options anywhere, and turns errors into one line and an exit code."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, hoist(args))

    def invoke(self, ctx: Any) -> Any:
        from penstock.errors import PenstockError

        try:
            return super().invoke(ctx)
        except PenstockError as error:
            if ctx.params.get("debug"):
                import traceback

                traceback.print_exc()
            _fail(str(error))
            ctx.exit(error.exit_code)
        except BrokenPipeError:
            # Whoever read our output has left; what was open is closed by now.
            sys.stdout = open("/dev/null", "w")  # noqa: SIM115
            ctx.exit(141)
        except KeyboardInterrupt:
            ctx.exit(130)
        except OSError as error:
            if ctx.params.get("debug"):
                raise
            where = f": {error.filename}" if error.filename else ""
            _fail(f"{error.strerror or error}{where}; check the path and its rights")
            ctx.exit(1)


def hoist(args: list[str]) -> list[str]:
    """Global options first, wherever they stood; nothing after `--` is one."""
    front: list[str] = []
    rest: list[str] = []
    pending = list(args)
    while pending:
        word = pending.pop(0)
        if word == "--":
            return [*front, *rest, word, *pending]
        name, equals, _ = word.partition("=")
        if name not in _GLOBAL or (equals and not _GLOBAL[name]):
            rest.append(word)
        elif _GLOBAL[name] and not equals:
            front += [word, *pending[:1]]
            del pending[:1]
        else:
            front.append(word)
    return front + rest


def _fail(message: str) -> None:
    from agents._output import talk

    talk(f"penstock: {' '.join(message.split())}")


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="The options above may stand before or after the command.",
)
config = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Where settings come from.")
app.add_typer(config, name="config")
keeper = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Settle what others have earned, for a reward.")
app.add_typer(keeper, name="keeper")
receipts = typer.Typer(rich_markup_mode=None, invoke_without_command=True)
app.add_typer(receipts, name="receipts")
app.add_typer(skills, name="skill")
app.add_typer(wallet, name="wallet")
app.add_typer(explorer, name="explorer")
app.command()(top)


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


def _context(ctx: typer.Context) -> Context:
    from agents._context import Context
    from agents._settings import settings

    return Context(settings(ctx.obj["options"]), json=ctx.obj["json"])


ModelOption = Annotated[str | None, typer.Option(help="Only this model.")]
ProviderOption = Annotated[str | None, typer.Option(help="Only this provider: its address or the start of it.")]
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
    from agents import _commands

    _context(ctx).run(_commands.providers)


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
    from agents import _commands

    wish = _commands.Wish(model, provider, token, max_rate, min_stake, region)
    _context(ctx).run(lambda context: _commands.offers(context, wish))


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
    from agents import _ask, _commands

    if prompt == "-":
        prompt = sys.stdin.read()
    wish = _commands.Wish(model, provider, token, max_rate, min_stake, region, offer, by)
    question = _ask.Question(prompt, system, max_tokens, temperature, file or (), schema)
    terms = _ask.StreamTerms(
        _commands.parse_duration(duration) if duration is not None else None,
        "auto" if gasless is None else gasless,
        timeout,
        deposit,
    )
    _context(ctx).run(lambda context: _ask.ask(context, wish, question, terms))


@app.command()
def streams(
    ctx: typer.Context,
    all_: Annotated[bool, typer.Option("--all", help="Those that are over, too.")] = False,
) -> None:
    """List streams that may be open."""
    from agents import _commands

    _context(ctx).run(lambda context: _commands.streams(context, all_))


@app.command()
def channels(
    ctx: typer.Context,
    all_: Annotated[bool, typer.Option("--all", help="Those that are over, too.")] = False,
) -> None:
    """List channels that may be open: what was bought by the token."""
    from agents import _commands

    _context(ctx).run(lambda context: _commands.channels(context, all_))


@app.command()
def stop(
    ctx: typer.Context,
    stream: Annotated[str | None, typer.Argument(help="The id of a stream or channel, or the start of it.")] = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Every stream and channel that may be open, other processes' too.")
    ] = False,
) -> None:
    """Close streams and channels now; what was not used comes back."""
    from agents import _commands

    if (stream is None) is not all_:
        raise typer.BadParameter("name one stream or channel, or --all", ctx=ctx)
    _context(ctx).run(lambda context: _commands.stop(context, stream))


@app.command()
def balance(ctx: typer.Context) -> None:
    """Show what the account has, in its wallet and in the vault."""
    from agents import _commands

    _context(ctx).run(_commands.balance)


@app.command()
def deposit(
    ctx: typer.Context,
    amount: Annotated[str, typer.Argument(help="Such as 0.5")],
    token: Annotated[str, typer.Argument(help="Symbol or address.")],
) -> None:
    """Pay from the wallet into the vault."""
    from agents import _commands

    _context(ctx).run(lambda context: _commands.deposit(context, amount, token))


@app.command()
def withdraw(
    ctx: typer.Context,
    amount: Annotated[str, typer.Argument(help="Such as 0.5, or all")],
    token: Annotated[str, typer.Argument(help="Symbol or address.")],
    to: Annotated[str | None, typer.Option(help="Receiver. [default: the account itself]")] = None,
) -> None:
    """Take out of the vault."""
    from agents import _commands

    _context(ctx).run(lambda context: _commands.withdraw(context, amount, token, to))


@app.command()
def recover(
    ctx: typer.Context,
    from_chain: Annotated[
        bool, typer.Option("--from-chain", help="Also look on the chain for what the journal has lost.")
    ] = False,
) -> None:
    """Close the streams and channels that processes which died left open."""
    from agents import _commands

    _context(ctx).run(lambda context: _commands.recover(context, from_chain))


SessionOption = Annotated[str | None, typer.Option(help="Only this stream or channel: its id or the start of it.")]


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
    from agents import _receipts

    wanted = _receipts.Filter(provider, session, refused)
    _context(ctx).run(lambda context: _receipts.receipts(context, wanted, lines=jsonl, with_ids=ids))


@receipts.command("verify")
def receipts_verify(ctx: typer.Context, provider: ProviderOption = None, session: SessionOption = None) -> None:
    """Check every receipt anew: keys, offers, counts, sums, and that each names the one before."""
    from agents._receipts import Filter
    from agents.records.verify import verify

    _context(ctx).run(lambda context: verify(context, Filter(provider, session)))


@receipts.command("publish")
def receipts_publish(
    ctx: typer.Context,
    to: Annotated[str, typer.Option(help="An explorer's URL, such as http://127.0.0.1:8750.")],
    provider: ProviderOption = None,
    session: SessionOption = None,
) -> None:
    """Give an explorer the receipts on record, without questions or answers, so that all see how fast providers are."""
    from agents._receipts import Filter
    from agents.records.publish import publish

    _context(ctx).run(lambda context: publish(context, Filter(provider, session), to))


@app.command()
def report(
    ctx: typer.Context,
    files: Annotated[list[Path] | None, typer.Argument(help="JSON Lines of others' receipts.")] = None,
    provider: Annotated[str | None, typer.Option(help="Only this provider: its address or the start of it.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the faults and what they cost; prove none.")] = False,
) -> None:
    """Find faults in receipts, and prove them on chain for a tenth of what they cost the provider."""
    from agents import _receipts

    _context(ctx).run(
        lambda context: _receipts.report(context, files or (), dry_run=dry_run, provider=provider),
    )


@app.command()
def challenge(
    ctx: typer.Context,
    accept: Annotated[str | None, typer.Argument(help="The accept's hash or the start of it.")] = None,
) -> None:
    """List accepted requests without a receipt; ask for one on chain, and close what was not answered."""
    from agents import _receipts

    _context(ctx).run(lambda context: _receipts.challenge(context, accept))


@app.command()
def rewards(
    ctx: typer.Context,
    withdraw: Annotated[bool, typer.Option("--withdraw", help="Fetch it.")] = False,
) -> None:
    """Show what reports and challenges have brought, and fetch it."""
    from agents import _receipts

    _context(ctx).run(lambda context: _receipts.rewards(context, withdraw=withdraw))


@app.command("standing-order")
def standing_order(
    ctx: typer.Context,
    stream: Annotated[str, typer.Argument(help="The stream's id or the start of it.")],
    ahead: Annotated[str, typer.Option(help="Keep the stream's end at most so far from now, such as 10m.")] = "10m",
    until: Annotated[str, typer.Option(help="And for so long in all, such as 2h.")] = "2h",
) -> None:
    """Print a signed order that lets a keeper extend one of your streams, as a line of JSON."""
    from agents.keeper import _commands

    _context(ctx).run(lambda context: _commands.standing_order(context, stream, ahead, until))


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
    _context(ctx).run(lambda context: _commands.run(context, options))


@config.command("show")
def config_show(ctx: typer.Context) -> None:
    """Show every setting and where it comes from."""
    from agents import _commands

    _commands.config_show(_context(ctx))


@app.command()
def mcp(ctx: typer.Context) -> None:
    """Be an MCP server on stdin and stdout: list models, infer, balance, caps, history."""
    from agents import mcp_server

    _context(ctx).run(mcp_server.serve)


for command in (serve, chat, history, sessions, budgets):
    app.command()(command)


def main() -> None:
    app(prog_name="penstock")
