"""The command line: `penstock-provider`, or `python -m provider`. Data goes to stdout, talk to stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.errors import PenstockError
from provider import operations, tokens
from provider.console import configure_log, emit, run, say
from provider.options import CHAIN, AccountName, Config, DeploymentFile, Json, Network, RpcUrl
from provider.skill_gateway import skills

if TYPE_CHECKING:
    from penstock.events import ChannelEvent, StreamEvent
    from penstock.types import Address, StreamId
    from provider.payouts import Due
    from provider.projection import LiveChannel, LiveStream
    from provider.service import Connection
    from provider.settings import Settings

cli = typer.Typer(
    name="penstock-provider",
    help="Sell LLM inference by the second or by the token. Without a command: start.",
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_PLACE, _GOODS, _ENGINE = "Where it is served", "What is sold", "The engine"
_ALONE = ("-h", "--help", "--version", "--install-completion", "--show-completion")
"""Options that are no command's."""

operations.add_to(cli)
for command in (tokens.sessions, tokens.revoke, skills):
    cli.command()(command)


def main() -> None:
    """Run the command that was asked for; `start` where none was."""
    arguments = sys.argv[1:]
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in _ALONE):
        arguments = ["start", *arguments]
    try:
        cli(arguments, prog_name="penstock-provider")
    except PenstockError as error:
        say(f"error: {error}")
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:
        # Whoever read our output has left.
        sys.stdout = open("/dev/null", "w")  # noqa: SIM115
        raise SystemExit(141) from None


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"penstock-provider {version('penstock')}")
        raise typer.Exit


@cli.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@cli.command()
def start(
    config: Config = None,
    network: Network = None,
    rpc_url: RpcUrl = None,
    deployment: DeploymentFile = None,
    account: AccountName = None,
    signer: Annotated[
        str | None,
        typer.Option(help="Whose key signs receipts, if not the account's; named like it.", rich_help_panel=CHAIN),
    ] = None,
    payee: Annotated[
        str | None, typer.Option(help="Whom streams pay; decided at registration.", rich_help_panel=CHAIN)
    ] = None,
    confirmations: Annotated[
        int | None, typer.Option(help="Blocks on top of an event before it counts.", rich_help_panel=CHAIN)
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", rich_help_panel=_PLACE)] = None,
    port: Annotated[int | None, typer.Option(help="0: any free one.", rich_help_panel=_PLACE)] = None,
    public_url: Annotated[
        str | None, typer.Option(help="What the registry says, if not http://HOST:PORT.", rich_help_panel=_PLACE)
    ] = None,
    peer_url: Annotated[
        str | None,
        typer.Option(help="Where other gateways on the same state reach this one.", rich_help_panel=_PLACE),
    ] = None,
    state: Annotated[str | None, typer.Option(help="SQLite file, or PostgreSQL URL.", rich_help_panel=_PLACE)] = None,
    model: Annotated[str | None, typer.Option(help="The model's name on the market.", rich_help_panel=_GOODS)] = None,
    offer: Annotated[
        list[str] | None,
        typer.Option(
            help="TOKEN:PRICE, or MODEL=TOKEN:PRICE; repeatable. PRICE is an amount per second (native:0.00001), per "
            "million prompt and completion tokens (native:0.1/0.3), or both (native:0.00001+0.1/0.3).",
            rich_help_panel=_GOODS,
        ),
    ] = None,
    slots: Annotated[int | None, typer.Option(help="Sessions at once.", rich_help_panel=_GOODS)] = None,
    context_length: Annotated[int | None, typer.Option(help="Tokens.", rich_help_panel=_GOODS)] = None,
    region: Annotated[str | None, typer.Option(help="Such as eu-central.", rich_help_panel=_GOODS)] = None,
    quantization: Annotated[str | None, typer.Option(help="Such as fp8.", rich_help_panel=_GOODS)] = None,
    engine_url: Annotated[
        list[str] | None,
        typer.Option(
            help="OpenAI-compatible server, or MODEL=URL; repeatable. None, and no --vllm: the embedded engine.",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    engine_model: Annotated[
        list[str] | None,
        typer.Option(help="What engines call the model, or MODEL=NAME; repeatable.", rich_help_panel=_ENGINE),
    ] = None,
    vllm: Annotated[
        str | None,
        typer.Option(help="Start this vLLM: the folder of its environment, or its command.", rich_help_panel=_ENGINE),
    ] = None,
    vllm_source: Annotated[
        str | None, typer.Option(help="What it loads, if not the model's name.", rich_help_panel=_ENGINE)
    ] = None,
    vllm_arg: Annotated[
        list[str] | None, typer.Option(help="Goes to vLLM as it is; repeatable.", rich_help_panel=_ENGINE)
    ] = None,
    lora: Annotated[
        list[str] | None, typer.Option(help="MODEL=FOLDER of an adapter; repeatable.", rich_help_panel=_ENGINE)
    ] = None,
    engine_key: Annotated[
        str | None,
        typer.Option(help="The engine's API key.", envvar="PENSTOCK_PROVIDER_ENGINE_KEY", rich_help_panel=_ENGINE),
    ] = None,
    gguf: Annotated[
        str | None, typer.Option(help="Model file of the embedded engine.", rich_help_panel=_ENGINE)
    ] = None,
    embeddings: Annotated[
        str | None,
        typer.Option(
            help="Let the embedded engine give embeddings, too: pooled by mean, cls or last, as its model was trained.",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    engine_threads: Annotated[int | None, typer.Option(help="Of the embedded engine.", rich_help_panel=_ENGINE)] = None,
    min_relayed_duration: Annotated[
        int | None, typer.Option(help="Seconds that a stream has, if the provider pays the gas to open it.")
    ] = None,
    payout_seconds: Annotated[float | None, typer.Option(help="Time between two withdrawals.")] = None,
    skill: Annotated[list[int] | None, typer.Option(help="Execute this product of yours, too; repeatable.")] = None,
    require_licence: Annotated[
        int | None, typer.Option(help="Product of which payers must hold a licence.", rich_help_panel=_GOODS)
    ] = None,
    model_licence: Annotated[
        int | None, typer.Option(help="Product under whose licence the model is served.", rich_help_panel=_GOODS)
    ] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Serve /metrics there, to this machine; 0: not.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    log_json: Annotated[bool | None, typer.Option("--log-json", help="Logs as JSON lines.")] = None,
    json: Json = False,
) -> None:
    """Register, stake, list the offers, and serve until told to stop."""
    lists = {
        "offer": "offers",
        "skill": "skills",
        "engine_url": "engine_urls",
        "engine_model": "engine_models",
        "vllm_arg": "vllm_args",
    }
    given = {name: value for name, value in locals().items() if name not in ("config", "json", "lists")}
    from provider.settings import load

    several = {lists.get(name, name): tuple(value) for name, value in given.items() if isinstance(value, list)}
    settings = load({name: value for name, value in given.items() if name not in lists} | several, config)
    configure_log(settings)
    from provider.service import Serving, serve

    def ready(serving: Serving) -> None:
        if json:
            emit(
                {
                    "event": "ready",
                    "endpoint": serving.endpoint,
                    "provider": serving.provider,
                    "chain_id": serving.chain_id,
                    "offers": list(serving.offers),
                }
            )
        else:
            print(f"ready: {serving.endpoint} provider {serving.provider}", flush=True)

    run(serve(settings, say=say, ready=ready))


@cli.command()
def status(
    config: Config = None,
    network: Network = None,
    rpc_url: RpcUrl = None,
    deployment: DeploymentFile = None,
    account: AccountName = None,
    json: Json = False,
) -> None:
    """How this provider stands on the market, and whether its gateway answers."""
    settings = _settings(config, network=network, rpc_url=rpc_url, deployment=deployment, account=account)
    run(_with_chain(settings, lambda c: _status(c, json)))


@cli.command()
def offers(
    config: Config = None,
    network: Network = None,
    rpc_url: RpcUrl = None,
    deployment: DeploymentFile = None,
    account: AccountName = None,
    enable: Annotated[str | None, typer.Option(help="Put this offer back on the market.")] = None,
    disable: Annotated[str | None, typer.Option(help="Take this offer off the market.")] = None,
    json: Json = False,
) -> None:
    """List this provider's offers, or change whether one is on the market."""
    settings = _settings(config, network=network, rpc_url=rpc_url, deployment=deployment, account=account)
    run(_with_chain(settings, lambda c: _offers(c, enable, disable, json)))


@cli.command()
def earnings(
    config: Config = None,
    network: Network = None,
    rpc_url: RpcUrl = None,
    deployment: DeploymentFile = None,
    account: AccountName = None,
    json: Json = False,
) -> None:
    """What was earned, what is due now, and what lies in the vault; from the chain's events, and for what is due also
    from the vouchers in this provider's state file."""
    settings = _settings(config, network=network, rpc_url=rpc_url, deployment=deployment, account=account)
    run(_with_chain(settings, lambda c: _earnings(c, settings, json)))


@cli.command()
def withdraw(
    config: Config = None,
    network: Network = None,
    rpc_url: RpcUrl = None,
    deployment: DeploymentFile = None,
    account: AccountName = None,
    json: Json = False,
) -> None:
    """Take out all that is due now, whatever the gas. A provider that runs does it by itself on a schedule."""
    settings = _settings(config, network=network, rpc_url=rpc_url, deployment=deployment, account=account)
    configure_log(settings)
    run(_with_chain(settings, lambda c: _withdraw(c, settings, json)))


# --- what the commands do ------------------------------------------------------------------------


async def _status(connection: Connection, as_json: bool) -> None:
    import aiohttp

    from penstock.types import NATIVE
    from penstock.units import format_amount
    from provider.market import needed_stake, registered

    chain, me = connection.chain, connection.account.address
    provider = await registered(chain, connection.account)
    slots = sum(offer.terms.slots for offer in await chain.offers_of(me) if offer.active)
    stake, (needed, why) = await chain.stake_of(me), await needed_stake(chain, slots)
    try:
        timeout = aiohttp.ClientTimeout(total=5)
        async with aiohttp.ClientSession(timeout=timeout) as http, http.get(f"{provider.endpoint}/ready") as answer:
            gateway = await answer.json()
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        said = f"{error or type(error).__name__}: start it; `doctor` looks closer"
        gateway = {"status": "unreachable", "troubles": {"gateway": said}}
    found = {
        "provider": me,
        "endpoint": provider.endpoint,
        "payee": provider.payee,
        "stake": str(stake),
        "needed_stake": str(needed),
        "active_offers": provider.active_offers,
        "gas_money": str(await chain.native_balance(me)),
        "gateway": gateway,
    }
    if as_json:
        emit(found)
        return
    native = (await chain.token(NATIVE)).symbol
    print(f"provider   {me}")
    print(f"endpoint   {provider.endpoint} ({gateway['status']})")
    for part, trouble in gateway.get("troubles", {}).items():
        print(f"           {part}: {trouble}")
    if "slots" in gateway:
        print(f"sessions   {gateway['sessions']} of {gateway['slots']}, {gateway['running']} answers running")
    print(f"payee      {provider.payee}")
    print(f"stake      {format_amount(stake, 18, native)} (needed {format_amount(needed, 18, native)}: {why})")
    print(f"gas money  {format_amount(int(found['gas_money']), 18, native)}")
    print(f"offers     {provider.active_offers} on the market")


async def _offers(connection: Connection, enable: str | None, disable: str | None, as_json: bool) -> None:
    from penstock.errors import NotFound
    from provider.market import format_price

    chain, account = connection.chain, connection.account
    for name, active in ((enable, True), (disable, False)):
        if name is None:
            continue
        match = [o for o in await chain.offers_of(account.address) if name.startswith("0x") and o.id.startswith(name)]
        if len(match) != 1:
            raise NotFound(f"{len(match)} offers begin with {name}: `offers` lists them")
        if match[0].active != active:
            await chain.set_offer_active(account, match[0].id, active)
            say(f"{match[0].id[:10]} is now {'on' if active else 'off'} the market")
    for offer in await chain.offers_of(account.address):
        terms = offer.terms
        token = await chain.token(terms.token)
        if as_json:
            emit(
                {
                    "id": offer.id,
                    "active": offer.active,
                    "model": terms.model,
                    "token": terms.token,
                    "rate": str(terms.rate),
                    "prompt_price": str(terms.prompt_price),
                    "completion_price": str(terms.completion_price),
                    "slots": terms.slots,
                }
            )
        else:
            shown = format_price(terms, token.decimals, token.symbol)
            print(f"{offer.id}  {'on ' if offer.active else 'off'}  {terms.model}  {shown}  {terms.slots} slots")


async def _earnings(connection: Connection, settings: Settings, as_json: bool) -> None:
    from penstock.events import Closed, Withdrawn
    from penstock.units import format_amount

    chain = connection.chain
    payee = await _payee(connection)
    history = await _history(connection, payee)
    due = _due(connection, settings, history)
    for token in history.tokens:
        kind = await chain.token(token)
        ours = {stream.id for stream in history.streams.values() if stream.key.token == token}
        paid = sum(e.amount for e in history.events if isinstance(e, Withdrawn) and e.id in ours)
        paid += sum(e.paid for e in history.events if isinstance(e, Closed) and e.id in ours)
        paid += sum(one.state.settled for one in history.channels.values() if one.key.token == token)
        owed = sum(one.amount for one in due if one.token == token)
        vault = await chain.vault_balance(token, payee)
        if as_json:
            emit(
                {
                    "token": token,
                    "symbol": kind.symbol,
                    "decimals": kind.decimals,
                    "paid": str(paid),
                    "due": str(owed),
                    "vault": str(vault),
                }
            )
        else:
            shown = [format_amount(value, kind.decimals, kind.symbol) for value in (paid, owed, vault)]
            print(f"paid {shown[0]}, due now {shown[1]}, in the vault {shown[2]}")
    if not history.tokens and not as_json:
        print("nothing earned yet")


async def _withdraw(connection: Connection, settings: Settings, as_json: bool) -> None:
    from penstock.units import format_amount
    from provider.payouts import pay, vault_of

    chain, account = connection.chain, connection.account
    payee = await _payee(connection)
    history = await _history(connection, payee)
    wanted = _due(connection, settings, history)
    done, looked = 0, False
    while wanted or not looked:
        if not wanted:  # what vouchers have filled is taken out last
            looked = True
            wanted = await vault_of(chain, payee, history.tokens) if account.address == payee else []
            continue
        due, done = wanted.pop(0), done + 1
        payout, _ = await pay(chain, account, payee, due)
        kind = await chain.token(due.token)
        if as_json:
            emit(
                {
                    "kind": payout.kind,
                    "token": due.token,
                    "amount": str(payout.amount),
                    "transaction": payout.transaction,
                    "fee": str(payout.fee),
                }
            )
        else:
            print(f"{payout.kind:8}  {format_amount(payout.amount, kind.decimals, kind.symbol)}  {payout.transaction}")
    if not done and not as_json:
        print("nothing is due")


# --- what they share -----------------------------------------------------------------------------


async def _payee(connection: Connection) -> Address:
    from provider.market import registered

    return (await registered(connection.chain, connection.account)).payee


@dataclass
class History:
    """All streams and channels that ever paid a payee, their events, and the head's time."""

    streams: dict[StreamId, LiveStream]
    channels: dict[StreamId, LiveChannel]
    events: list[StreamEvent | ChannelEvent]
    now: int

    @property
    def tokens(self) -> list[Address]:
        streams = {stream.key.token for stream in self.streams.values()}
        return sorted(streams | {channel.key.token for channel in self.channels.values()})


async def _history(connection: Connection, payee: Address) -> History:
    from penstock.events import ChannelEvent, ChannelOpened, Opened, StreamEvent
    from provider.projection import fold, fold_channel

    head = await connection.chain.head()
    found = History({}, {}, [], head.timestamp)
    for event in await connection.chain.events(connection.deployment.first_block, head.number):
        if isinstance(event, StreamEvent):
            if event.id in found.streams or (isinstance(event, Opened) and event.key.payee == payee):
                fold(found.streams, event)
                found.events.append(event)
        elif isinstance(event, ChannelEvent) and (
            event.id in found.channels or (isinstance(event, ChannelOpened) and event.key.payee == payee)
        ):
            fold_channel(found.channels, event)
            found.events.append(event)
    return found


def _due(connection: Connection, settings: Settings, history: History) -> list[Due]:
    """What could be taken out now, vouchers first: what they bring is in the vault then."""
    from penstock.types import Voucher
    from provider.payouts import due_of, vouchers_due
    from provider.service import state_place
    from provider.store import vouchers_kept

    known = vouchers_kept(state_place(settings, connection.chain.chain_id, connection.account.address))

    def highest(channel: LiveChannel) -> Voucher:
        return Voucher(channel.key, *known.get(channel.id, (0, b"")))

    return vouchers_due(history.channels.values(), highest) + due_of(history.streams.values(), history.now)


def _settings(config: Path | None, **given: str | None) -> Settings:
    from provider.settings import load

    return load(given, config)


async def _with_chain(settings: Settings, work: Callable[[Connection], Coroutine[Any, Any, None]]) -> None:
    from provider.service import connect

    async with connect(settings) as connection:
        await work(connection)
