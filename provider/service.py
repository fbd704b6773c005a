"""One provider process, from its settings to its last payout."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from penstock import deployments
from penstock.chain.port import Account, Chain
from penstock.deployments import Deployment
from penstock.errors import ConfigError
from penstock.keys import load_account
from penstock.networks import network
from penstock.types import Address
from provider import market
from provider.app import ProviderApp
from provider.asgi import App
from provider.engines import Engine, Fleet
from provider.engines.embedded import EmbeddedEngine
from provider.engines.upstream import UpstreamEngine
from provider.engines.vllm import VllmEngine
from provider.market import Say
from provider.metrics import serving as serving_metrics
from provider.places import is_url
from provider.running import Provider
from provider.server import Server
from provider.settings import BUNDLED_MODEL, Settings, named
from provider.skills.licensing import open_licensing
from provider.store import Store
from provider.traces import tracing


@dataclass(frozen=True, slots=True)
class Connection:
    chain: Chain
    account: Account
    deployment: Deployment


@contextlib.asynccontextmanager
async def connect(settings: Settings) -> AsyncIterator[Connection]:
    """The chain, checked, and the key. ConfigError or ChainError say what is amiss."""
    known = network(settings.network)
    deployment = deployments.load(settings.deployment or known.chain_id)
    if settings.network != "local" and deployment.chain_id != known.chain_id:
        raise ConfigError(
            f"--network {settings.network} is chain {known.chain_id}, the deployment {settings.deployment} is of chain "
            f"{deployment.chain_id}: name those that belong together"
        )
    if not settings.account:
        raise ConfigError("no account is named: give --account (test:1 on a local chain, a keystore file elsewhere)")
    account = load_account(settings.account, deployment.chain_id)
    # Imported late: it takes a second that --help need not wait for.
    from penstock.chain.web3 import Web3Chain

    chain = await Web3Chain.connect(settings.rpc_url or ",".join(known.rpc_urls), deployment)
    try:
        yield Connection(chain, account, deployment)
    finally:
        await chain.close()


def make_engines(settings: Settings) -> Fleet:
    """Those that the settings name. ConfigError where a model that is sold has none."""
    own = {model: model for model in settings.models}
    for text in settings.engine_models:
        model, name = named(text)
        if not model and len(own) > 1:
            raise ConfigError(f"several models are sold: say of which {name!r} is, as --engine-model MODEL={name}")
        own[model or settings.models[0]] = name
    adapters = dict(named(text) for text in settings.lora)
    found: list[Engine] = []
    for text in settings.engine_urls:
        model, url = named(text)
        if model and model not in own:
            raise ConfigError(f"the engine at {url} is for {model!r}, of which nothing is sold: see --offer")
        found.append(
            UpstreamEngine(
                url,
                {model: own[model]} if model else own,
                api_key=settings.engine_key,
                start_seconds=settings.engine_start_seconds,
            )
        )
    elsewhere = {model for engine in found for model in engine.models}
    here = {model: name for model, name in own.items() if model not in elsewhere}
    if settings.vllm:
        base = [model for model in here if model not in adapters]
        if len(base) > 1:
            raise ConfigError(
                f"one vLLM is started here, for one model and adapters, not for {', '.join(base)}: give "
                "the others' --engine-url"
            )
        source = settings.vllm_source or next((here[model] for model in base), "")
        if not source:
            raise ConfigError("say what vLLM loads beside the adapters: --vllm-source")
        home = Path(settings.home).expanduser()
        found.append(
            VllmEngine(
                settings.vllm,
                source,
                here,
                context_length=settings.context_length,
                adapters={own.get(model, model): folder for model, folder in adapters.items()},
                arguments=settings.vllm_args,
                log_file=home / "vllm.log",
                start_seconds=settings.vllm_start_seconds,
                drain_seconds=settings.drain_seconds,
            )
        )
    elif not found:
        if len(own) > 1:
            raise ConfigError("the embedded engine has one model: give --vllm or --engine-url for several")
        found.append(
            EmbeddedEngine(
                Path(settings.gguf).expanduser() if settings.gguf else BUNDLED_MODEL,
                settings.models[0],
                slots=settings.slots,
                context_length=settings.context_length,
                threads=settings.engine_threads,
                start_seconds=settings.engine_start_seconds,
                embeddings=settings.embeddings,
            )
        )
    elif here:
        raise ConfigError(f"no engine is named for {', '.join(here)}: give --engine-url MODEL=URL")
    return Fleet(found)


def state_place(settings: Settings, chain_id: int, provider: Address) -> str:
    """A PostgreSQL URL, or a file's path."""
    if settings.state:
        return settings.state if is_url(settings.state) else str(Path(settings.state).expanduser())
    return str(Path(settings.home).expanduser() / f"provider-{chain_id}-{provider}.sqlite")


def chain_place(settings: Settings, chain_id: int, provider: Address, port: int) -> Path:
    """Where one gateway of several keeps what it has read of the chain."""
    return Path(settings.home).expanduser() / f"chain-{chain_id}-{provider}-{port}.sqlite"


def owner_of(chain: Chain, provider: Address) -> str:
    """Whose state it is, for `Store.open`."""
    return f"{chain.chain_id}:{chain.stream_pay}:{provider}"


def open_store(settings: Settings, chain: Chain, provider: Address) -> Store:
    return Store.open(state_place(settings, chain.chain_id, provider), owner=owner_of(chain, provider))


@dataclass(frozen=True, slots=True)
class Serving:
    endpoint: str
    provider: Address
    chain_id: int
    offers: tuple[str, ...]


async def serve(settings: Settings, *, say: Say, ready: Callable[[Serving], None]) -> None:
    """Go on the market and stay there until SIGTERM or SIGINT, then settle."""
    with listen(settings.host, settings.port) as listener:
        endpoint = endpoint_of(settings, listener)
        async with contextlib.AsyncExitStack() as stack:
            connection = await stack.enter_async_context(connect(settings))
            chain, account, deployment = connection.chain, connection.account, connection.deployment
            head = await chain.head()
            say(f"chain {chain.chain_id}, block {head.number}, account {account.address}")
            signer = load_account(settings.signer, deployment.chain_id) if settings.signer else account
            wanted = await market.terms_of(settings, chain, deployment.tokens)
            licensing = None
            if settings.licensed:
                opening = open_licensing(
                    settings,
                    chain,
                    account,
                    signer,
                    account.address,
                    endpoint,
                    first_block=deployment.first_block,
                    clock=time.time,
                    products=settings.skills or None,
                    shared=is_url(settings.state),
                )
                licensing = await stack.enter_async_context(opening)
            store = open_store(settings, chain, account.address)
            stack.push_async_callback(store.close)
            engines = make_engines(settings)
            stack.push_async_callback(engines.stop)
            if settings.vllm:
                say(f"vLLM starts, the first time for minutes: what it says is in {settings.home}/vllm.log")
            await engines.start()
            for engine in engines.engines:
                if engine.trouble() is None:
                    say(f"engine answers: {', '.join(engine.models)} at {engine.name}")
            large = await market.large_deposits(settings, chain, deployment.tokens)
            seller = await market.enter(
                chain,
                account,
                settings,
                wanted,
                endpoint=endpoint,
                first_block=deployment.first_block,
                say=say,
                signer=signer.address,
            )
            seller = replace(seller, large=large)
            told = asyncio.Event()
            chain_store, peer_url = None, ""
            if store.shared:
                peer_url = settings.peer_url or _endpoint(settings, listener, "--peer-url other gateways")
                place = chain_place(settings, chain.chain_id, account.address, listener.getsockname()[1])
                chain_store = Store.open(place, owner=owner_of(chain, account.address))
                stack.push_async_callback(chain_store.close)
            provider = Provider(
                settings,
                chain=chain,
                engines=engines,
                store=store,
                clock=time.time,
                seller=seller,
                signer=signer,
                chain_store=chain_store,
                peer_url=peer_url,
                lost=told.set,
                licensing=licensing,
                traces=await stack.enter_async_context(tracing()),
            )
            if settings.metrics_port:
                told_at = await stack.enter_async_context(
                    serving_metrics(settings.metrics_host, settings.metrics_port, provider.metrics, engines.engines)
                )
                say(f"metrics at http://{settings.metrics_host}:{told_at}/metrics")

            async def leave() -> None:
                say("stopping: finishing what runs, settling what was earned")
                await provider.drain()

            active = tuple(offer.id for offer in seller.active)
            serving = Serving(endpoint, seller.provider.id, chain.chain_id, active)
            await run_server(ProviderApp(provider), listener, told, lambda: ready(serving), leave, engines.restart)


async def run_server(
    app: App,
    listener: socket.socket,
    told: asyncio.Event,
    ready: Callable[[], None],
    leave: Callable[[], Awaitable[None]],
    restart: Callable[[], Coroutine[Any, Any, None]] | None = None,
) -> None:
    """Serve until SIGTERM, SIGINT or `told`, or until the server fails. `leave` comes before connections are closed,
    `restart` at SIGHUP."""
    server, restarts = Server(app), set[asyncio.Task[None]]()

    def again() -> None:
        if restart is not None:
            restarts.add(asyncio.create_task(restart()))

    with _signals(told.set, again):
        serving = asyncio.create_task(server.serve([listener]))
        try:
            up = asyncio.create_task(server.up.wait())
            await asyncio.wait({serving, up}, return_when=asyncio.FIRST_COMPLETED)
            up.cancel()
            if serving.done():
                serving.result()
                raise ConfigError("the server did not start: see the log above")
            ready()
            waiting = asyncio.create_task(told.wait())
            await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            await leave()
        finally:
            server.should_exit = True
            await serving


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0: any free one. ConfigError where that is not possible."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror or error}: choose another --port or --host"
        ) from None
    listener.setblocking(False)
    return listener


def endpoint_of(settings: Settings, listener: socket.socket) -> str:
    """Where consumers reach it. ConfigError where nobody could know."""
    return settings.public_url or _endpoint(settings, listener, "--public-url consumers")


def _endpoint(settings: Settings, listener: socket.socket, who: str) -> str:
    if settings.host in ("0.0.0.0", "::"):
        raise ConfigError(f"say under which {who} reach this machine")
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{listener.getsockname()[1]}"


@contextlib.contextmanager
def _signals(stop: Callable[[], None], restart: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and SIGINT end it; SIGHUP restarts the engines that are ours, when what they are at is done."""
    loop = asyncio.get_running_loop()
    heard = {signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGHUP: restart}
    for number, call in heard.items():
        loop.add_signal_handler(number, call)
    try:
        yield
    finally:
        for number in heard:
            loop.remove_signal_handler(number)
