"""Commands around a provider's life on a machine: `init`, `doctor`, `drain`."""

from __future__ import annotations

import asyncio
import json as jsonlib
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.errors import ConfigError, PenstockError
from provider.console import emit, run, say
from provider.options import AccountName, Config, DeploymentFile, Json, Network, RpcUrl

if TYPE_CHECKING:
    from provider.checks import Finding
    from provider.service import Connection
    from provider.settings import Settings

_LOOK_SECONDS = 0.5
_EMPTY = Path(os.devnull)
"""The configuration while a new one is made: what the old one said does not count."""


class NotReady(PenstockError):
    """A check failed, or something did not come to its end in time."""

    exit_code = 1


def init(
    config: Config = None,
    network: Network = None,
    rpc_url: RpcUrl = None,
    deployment: DeploymentFile = None,
    account: AccountName = None,
    payee: Annotated[str | None, typer.Option(help="Address that is paid; the account itself if not given.")] = None,
    model: Annotated[str | None, typer.Option(help="The model's name on the market.")] = None,
    price: Annotated[
        list[str] | None, typer.Option(help="TOKEN:PRICE, as `start --offer` takes it; repeatable.")
    ] = None,
    slots: Annotated[int | None, typer.Option(help="Sessions at once.")] = None,
    context_length: Annotated[int | None, typer.Option(help="Tokens.")] = None,
    public_url: Annotated[str | None, typer.Option(help="Under which consumers reach this machine.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    engine_url: Annotated[list[str] | None, typer.Option(help="OpenAI-compatible server, or MODEL=URL.")] = None,
    vllm: Annotated[str | None, typer.Option(help="Folder of vLLM's Python environment, to be started here.")] = None,
    home: Annotated[str | None, typer.Option(help="Folder of what is kept.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a configuration that is there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and write the file; send nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing; go on in spite of warnings.")] = False,
    json: Json = False,
) -> None:
    """Set this machine up: ask or take what is needed, check, write the configuration, register, stake, list."""
    given = dict(locals())
    from provider.settings import default_config, load

    asks = sys.stdin.isatty() and not yes
    for flag, name in (("price", "offers"), ("engine_url", "engine_urls")):
        given[name] = tuple(given.pop(flag) or ()) or None
    apart = ("config", "force", "dry_run", "yes", "json")
    answers = {name: value for name, value in given.items() if value is not None and name not in apart}
    if vllm and Path(vllm).is_dir():
        answers["vllm"] = str(Path(vllm).absolute())  # it may be started from another folder
    target = config or default_config()
    if target.exists() and not force:
        raise ConfigError(f"{target} is there already: --force replaces it, `penstock-provider start` uses it")
    for name, question, default in _QUESTIONS:
        if name in answers or load(answers, _EMPTY).model_dump().get(name):
            continue
        if not asks:
            if default is None:
                flag = {"offers": "price"}.get(name, name).replace("_", "-")
                raise ConfigError(f"--{flag} is needed: {question}")
            continue
        said = typer.prompt(question, default=default or "", err=True, show_default=bool(default)).strip()
        if said:
            answers[name] = tuple(said.split()) if name == "offers" else said
    settings = load(answers, _EMPTY)
    if settings.network != "local" and "max_skew_seconds" not in answers:
        answers |= {"max_skew_seconds": 30, "head_stuck_seconds": 60, "confirmations": max(settings.confirmations, 3)}
        settings = load(answers, _EMPTY)
    run(_init(settings, target, answers, dry_run=dry_run, asks=asks, as_json=json))


_QUESTIONS = (
    ("account", "Account that registers and earns: a keystore file or alias, or env", None),
    ("model", "Model's name on the market", "penstock-tiny"),
    ("offers", "Price, as TOKEN:PRICE a second (native:0.00001) or a million tokens (native:0.1/0.3)", None),
    ("public_url", "URL under which consumers reach this machine (empty: this machine alone)", ""),
)


def doctor(
    config: Config = None,
    network: Network = None,
    rpc_url: RpcUrl = None,
    deployment: DeploymentFile = None,
    account: AccountName = None,
    json: Json = False,
) -> None:
    """Check the machine, the chain, the account's standing and the endpoint. Exit status 1 where something fails."""
    from provider.settings import load

    given = {"network": network, "rpc_url": rpc_url, "deployment": deployment, "account": account}
    run(_doctor(load(given, config), json))


def drain(
    config: Config = None,
    network: Network = None,
    rpc_url: RpcUrl = None,
    deployment: DeploymentFile = None,
    account: AccountName = None,
    off: Annotated[bool, typer.Option("--off", help="Sell again.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the last session; 0: not at all.")] = 3600,
    json: Json = False,
) -> None:
    """Take no new sessions, and wait until the last one is over: then the machine can be stopped and nobody notices.
    It holds over restarts, until `--off`."""
    from provider.settings import load

    given = {"network": network, "rpc_url": rpc_url, "deployment": deployment, "account": account}
    run(_drain(load(given, config), off=off, seconds=timeout, as_json=json))


def add_to(cli: typer.Typer) -> None:
    for command in (init, doctor, drain):
        cli.command()(command)


# --- what they do --------------------------------------------------------------------------------


async def _init(
    settings: Settings, target: Path, answers: Mapping[str, Any], *, dry_run: bool, asks: bool, as_json: bool
) -> None:
    from provider import checks, market
    from provider.service import connect, make_engines

    make_engines(settings)  # that each model has one
    found = await checks.machine(settings)
    found += await checks.engines(settings)
    found += await checks.guarded("endpoint", lambda: checks.reachable(settings))
    async with connect(settings) as connection:
        wanted = await market.terms_of(settings, connection.chain, connection.deployment.tokens)
        found += await checks.chain(connection, settings)
        _show(found, as_json)
        lacking = [each for each in found if each.level is checks.Level.FAIL and each.what != "stake"]
        if lacking:
            raise NotReady(f"nothing was written: {', '.join(each.what for each in lacking)} must be right first")
        _write(target, answers)
        say(f"wrote {target}")
        if dry_run:
            return
        if asks and not typer.confirm("Register, stake and list now, from this account?", err=True, default=True):
            say("`penstock-provider start` does it, too")
            return
        endpoint = settings.public_url or f"http://{settings.host}:{settings.port}"
        seller = await market.enter(
            connection.chain,
            connection.account,
            settings,
            wanted,
            endpoint=endpoint,
            first_block=connection.deployment.first_block,
            say=say,
            signer=connection.account.address,
        )
        if as_json:
            emit({"config": str(target), "provider": seller.provider.id, "offers": [o.id for o in seller.active]})
        else:
            print(f"ready to start: penstock-provider start --config {target}")


async def _doctor(settings: Settings, as_json: bool) -> None:
    from provider import checks
    from provider.service import connect, state_place

    found = await checks.machine(settings)
    found += await checks.engines(settings)

    async def on_chain() -> list[Finding]:
        async with connect(settings) as connection:
            seen = await checks.chain(connection, settings)
            place = state_place(settings, connection.chain.chain_id, connection.account.address)
            return [*seen, await asyncio.to_thread(checks.state, place), *await _way_in(connection)]

    found += await checks.guarded("chain", on_chain)
    _show(found, as_json)
    failed = [each.what for each in found if each.level is checks.Level.FAIL]
    if failed:
        raise NotReady(f"not right: {', '.join(failed)}")


async def _way_in(connection: Connection) -> list[Finding]:
    from penstock.errors import NotFound
    from provider import checks

    try:
        provider = await connection.chain.provider(connection.account.address)
    except NotFound:
        return []
    return [await checks.endpoint(provider.endpoint, provider.id)]


async def _drain(settings: Settings, *, off: bool, seconds: float, as_json: bool) -> None:
    import aiohttp

    from provider.market import registered
    from provider.service import connect, state_place
    from provider.store import DRAIN, write_control

    async with connect(settings) as connection:
        me = connection.account.address
        url = (await registered(connection.chain, connection.account)).endpoint
        write_control(state_place(settings, connection.chain.chain_id, me), DRAIN, "" if off else "1")
    if off:
        emit({"draining": False}) if as_json else say("new sessions are taken again")
        return
    say("no new sessions are taken; `drain --off` ends that")
    loop = asyncio.get_running_loop()
    deadline, seen = loop.time() + seconds, None
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as http:
        while True:
            try:
                async with http.get(f"{url}/ready") as response:
                    state = await response.json()
            except (aiohttp.ClientError, TimeoutError, ValueError):
                say(f"no gateway answers at {url}: nothing runs")
                sessions = 0
            else:
                sessions = state["sessions"] + state["running"] if state.get("draining") else -1
            if sessions == 0 or not seconds:
                emit({"draining": True, "sessions": max(0, sessions)}) if as_json else print("drained")
                return
            if sessions != seen and sessions > 0:
                say(f"{sessions} to go")
            seen = sessions
            if loop.time() >= deadline:
                raise NotReady(f"not drained within {seconds:g} s: {max(0, sessions)} to go, and still draining")
            await asyncio.sleep(_LOOK_SECONDS)


# --- what they share -----------------------------------------------------------------------------


def _write(target: Path, answers: Mapping[str, Any]) -> None:
    lines = ["# Settings of penstock-provider; docs/provider.md explains them. No secrets belong here."]
    for name, value in answers.items():
        lines.append(f"{name} = {jsonlib.dumps(list(value) if isinstance(value, tuple | list) else value)}")
    scratch = target.with_name(target.name + ".new")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch.touch(0o600)
        scratch.write_text("\n".join(lines) + "\n")
        scratch.replace(target)
    except OSError as error:
        raise ConfigError(f"cannot write {target}: {error.strerror}: name another --config") from None


def _show(found: Iterable[Finding], as_json: bool) -> None:
    for each in found:
        if as_json:
            emit(each.body)
        else:
            print(f"{each.level.value:5} {each.what:18} {each.said}", file=sys.stderr)
            if each.cure and each.level.value != "ok":
                print(f"{'':24} -> {each.cure}", file=sys.stderr)
