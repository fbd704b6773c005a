"""What `penstock explorer` and `penstock top` do."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import structlog
import typer

from agents._context import Context
from agents._output import emit_json, talk
from agents.explorer._check import check as check_store
from agents.explorer._feed import Feed
from agents.explorer._indexer import Indexer
from agents.explorer._probe import Prober
from agents.explorer._store import Store, Tip, store_name
from penstock.chain._rpc import JsonRpc
from penstock.chain.web3 import Web3Chain
from penstock.deployments import Deployment
from penstock.errors import ConfigError
from penstock.networks import network
from penstock.types import address

_TOLD_EVERY = 20_000
"""Blocks of a back-fill between two lines about it."""


@dataclass(frozen=True, slots=True)
class Options:
    """As typed."""

    db: str | None
    host: str
    port: int
    gateway: str | None
    payer: str | None
    confirmations: int
    poll: float
    rate_limit: int
    probe: float


@dataclass(frozen=True, slots=True)
class Parts:
    """What every command of the explorer works with."""

    deployment: Deployment
    chain: Web3Chain
    rpc: JsonRpc
    feed: Feed
    store: Store


def database(context: Context, db: str | None, deployment: Deployment) -> str:
    """The option, the variable, or a file of the deployment's own."""
    chosen = db or os.environ.get("PENSTOCK_EXPLORER_DB")
    return chosen or str(context.settings.home / "explorer" / f"{store_name(deployment)}.db")


@asynccontextmanager
async def opened(context: Context, db: str | None) -> AsyncIterator[Parts]:
    """Chain, node and store, checked; closed at the end."""
    deployment = context.deployment
    url = context.settings.rpc_url or network(context.settings.network).rpc_url
    async with contextlib.AsyncExitStack() as stack:
        chain = await stack.enter_async_context(await Web3Chain.connect(url, deployment))
        rpc = JsonRpc(url, timeout=30)
        stack.push_async_callback(rpc.close)
        store = Store.open(database(context, db, deployment), deployment)
        stack.callback(store.close)
        yield Parts(deployment, chain, rpc, Feed(rpc, deployment), store)


async def serve(context: Context, options: Options) -> None:
    _quiet(context)
    async with opened(context, options.db) as parts:
        await _serve(context, parts, options)


async def _serve(context: Context, parts: Parts, options: Options) -> None:
    from agents.explorer._app import Server, app
    from agents.explorer._pages import ChatSettings

    chat = ChatSettings(options.gateway or os.environ.get("PENSTOCK_GATEWAY", ""), _payer(context, options))
    with _listening(options.host, options.port) as listener:
        indexer = _indexer(parts, confirmations=options.confirmations, poll=options.poll)
        await indexer.sync(_progress())
        listener.listen(128)  # who reads the line that follows may ask at once
        port = listener.getsockname()[1]
        shown = "127.0.0.1" if options.host in ("0.0.0.0", "::") else options.host
        url = f"http://{shown}:{port}"
        if context.json:
            emit_json({"url": url, "block": (await parts.store.tip() or Tip(0, "", 0)).number})
        talk(f"the market is at {url}; Ctrl-C stops the explorer")
        prober = Prober(parts.store, parts.deployment, every=options.probe) if options.probe else None
        web = app(parts.deployment, parts.store, indexer, prober=prober, per_minute=options.rate_limit, chat=chat)
        server = Server(web)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await asyncio.shield(serving)
        finally:
            server.should_exit = True
            await serving


def _indexer(parts: Parts, **options: Any) -> Indexer:
    return Indexer(parts.feed, parts.chain, parts.store, first_block=parts.deployment.first_block, **options)


def _payer(context: Context, options: Options) -> str:
    if options.payer:
        try:
            return address(options.payer)
        except ValueError:
            raise ConfigError(f"--payer {options.payer!r} is no address: 0x and 40 hex digits") from None
    return context.account().address if context.settings.account else ""


@contextlib.contextmanager
def _listening(host: str, port: int) -> Any:
    """A socket, bound before the chain is read: a taken port is told of at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"cannot listen at {host}:{port}: {error.strerror}; choose another --port (0: any free one)"
            ) from error
        yield listener


def _progress() -> Any:
    last = 0

    def told(tip: Tip, target: int) -> None:
        nonlocal last
        if target - tip.number > 0 and tip.number - last >= _TOLD_EVERY:
            last = tip.number
            talk(f"read up to block {tip.number:,} of {target:,}")

    return told


def _quiet(context: Context) -> None:
    """Warnings of ours as lines on stderr; nothing of libraries'."""
    logging.getLogger("aiohttp").setLevel(logging.CRITICAL)
    structlog.configure(
        processors=[structlog.processors.add_log_level, _line],
        logger_factory=structlog.PrintLoggerFactory(open(os.devnull, "w")),  # noqa: SIM115  for the process's life
        cache_logger_on_first_use=False,
    )


def _line(_: Any, level: str, event: MutableMapping[str, Any]) -> str:
    said = event.pop("event")
    event.pop("level", None)
    talk(f"{level}  {said}" + "".join(f"  {name}={value}" for name, value in event.items()))
    raise structlog.DropEvent


async def check(context: Context, db: str | None) -> None:
    _quiet(context)
    async with opened(context, db) as parts:
        await _indexer(parts).sync(_progress())
        report = await check_store(parts.store, parts.feed, parts.deployment)
    if context.json:
        emit_json(
            {
                "block": report.block,
                "block_hash": report.block_hash,
                "compared": report.compared,
                "differences": report.differences,
                "surplus": {token: str(amount) for token, amount in report.surplus.items()},
            }
        )
    else:
        print(f"block {report.block} {report.block_hash}")
        for kind, count in sorted(report.compared.items()):
            wrong = sum(1 for one in report.differences if one.startswith(f"{kind} "))
            print(f"{kind:<12} {count:>7} compared  {'equal' if not wrong else f'{wrong} DIFFERENT'}")
        for token, amount in report.surplus.items():
            print(f"StreamPay holds {amount} more of {token} than it owes: sent there past its functions")
        for one in report.differences:
            print(one)
    if report.differences:
        talk("the store is not what the chain says: delete the database, and it is read anew")
        raise typer.Exit(1)


async def top(context: Context, db: str | None, poll: float) -> None:
    from agents.explorer._top import Top

    if context.json:
        raise ConfigError("penstock top draws on a terminal: the explorer's API has the same as JSON")
    async with opened(context, db) as parts:
        indexer = _indexer(parts, poll=poll)
        await indexer.sync(_progress())
        _silent()
        await Top(parts.deployment, parts.store, indexer).run_async()


def _silent() -> None:
    """The screen is the terminal view's: what goes wrong is shown in it."""

    def drop(*_: Any) -> str:
        raise structlog.DropEvent

    structlog.configure(processors=[drop], cache_logger_on_first_use=False)


async def demo(context: Context, options: Options) -> None:
    from agents.explorer._demo import staged

    _quiet(context)
    if options.db:
        raise ConfigError("--demo has a chain and a database of its own: leave --db out")
    async with staged(talk) as stage, contextlib.AsyncExitStack() as stack:
        store = Store.open(str(stage.folder / "explorer.db"), stage.deployment)
        stack.callback(store.close)
        parts = Parts(stage.deployment, stage.chain, stage.rpc, Feed(stage.rpc, stage.deployment), store)
        playing = asyncio.create_task(stage.traffic.live())
        try:
            await _serve(context, parts, replace(options, probe=0))  # nobody stands behind the play's endpoints
        finally:
            playing.cancel()
            await asyncio.gather(playing, return_exceptions=True)
