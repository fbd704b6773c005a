"""One provider process, from its settings to its last payout."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from penstock import deployments
from penstock.chain.port import Account, Chain
from penstock.deployments import Deployment
from penstock.errors import ConfigError
from penstock.keys import load_account
from penstock.networks import network
from penstock.types import Address
from provider import market
from provider.app import create_app
from provider.asgi import App
from provider.engines import Engine
from provider.engines.embedded import EmbeddedEngine
from provider.engines.upstream import UpstreamEngine
from provider.market import Say
from provider.receipts import domain_of
from provider.settings import BUNDLED_MODEL, Settings
from provider.skills.licensing import open_licensing
from provider.store import Store

_LEAVE_SECONDS = 2
"""How long connections may linger after the answers have ended."""


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
    if not settings.account:
        raise ConfigError("no account is named: give --account (test:1 on a local chain, a keystore file elsewhere)")
    account = load_account(settings.account, deployment.chain_id)
    # Imported late: it takes a second that --help need not wait for.
    from penstock.chain.web3 import Web3Chain

    chain = await Web3Chain.connect(settings.rpc_url or known.rpc_url, deployment)
    try:
        yield Connection(chain, account, deployment)
    finally:
        await chain.close()


def make_engine(settings: Settings) -> Engine:
    """The one that the settings name."""
    if settings.engine_url:
        return UpstreamEngine(
            settings.engine_url,
            settings.engine_model or settings.model,
            api_key=settings.engine_key,
            start_seconds=settings.engine_start_seconds,
        )
    return EmbeddedEngine(
        Path(settings.gguf).expanduser() if settings.gguf else BUNDLED_MODEL,
        settings.model,
        slots=settings.slots,
        context_length=settings.context_length,
        threads=settings.engine_threads,
        start_seconds=settings.engine_start_seconds,
    )


def state_path(settings: Settings, chain_id: int, provider: Address) -> Path:
    if settings.state:
        return Path(settings.state).expanduser()
    return Path(settings.home).expanduser() / f"provider-{chain_id}-{provider}.sqlite"


def open_store(settings: Settings, chain: Chain, provider: Address) -> Store:
    owner = f"{chain.chain_id}:{chain.stream_pay}:{provider}"
    return Store.open(state_path(settings, chain.chain_id, provider), owner=owner)


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
            slashing = domain_of(deployment)
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
                )
                licensing = await stack.enter_async_context(opening)
            store = open_store(settings, chain, account.address)
            stack.push_async_callback(store.close)
            engine = make_engine(settings)
            stack.push_async_callback(engine.stop)
            await engine.start()
            say(f"engine answers: {engine.model} at {engine.base_url}")
            seller = await market.enter(
                chain,
                account,
                settings,
                wanted,
                endpoint=endpoint,
                first_block=deployment.first_block,
                say=say,
                signer=signer.address if slashing else None,
            )
            app = create_app(
                settings,
                chain=chain,
                engine=engine,
                store=store,
                clock=time.time,
                seller=seller,
                signer=signer,
                slashing=slashing,
                licensing=licensing,
            )

            async def leave() -> None:
                say("stopping: finishing what runs, settling what was earned")
                await app.provider.drain()

            active = tuple(offer.id for offer in seller.active)
            serving = Serving(endpoint, seller.provider.id, chain.chain_id, active)
            await run_server(app, listener, lambda: ready(serving), leave)


async def run_server(
    app: App, listener: socket.socket, ready: Callable[[], None], leave: Callable[[], Awaitable[None]]
) -> None:
    """Serve until SIGTERM or SIGINT, or until the server fails. `leave` comes before connections are closed."""
    server = Server(app)
    told = asyncio.Event()
    with _signals(told.set):
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


class Server(uvicorn.Server):
    """Says when it accepts, and leaves signals to its owner."""

    def __init__(self, app: App) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="httptools",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=_LEAVE_SECONDS,
            )
        )
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


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
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --port") from None
    listener.setblocking(False)
    return listener


def endpoint_of(settings: Settings, listener: socket.socket) -> str:
    """Where consumers reach it. ConfigError where nobody could know."""
    if settings.public_url:
        return settings.public_url
    if settings.host in ("0.0.0.0", "::"):
        raise ConfigError("say under which --public-url consumers reach this machine")
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{listener.getsockname()[1]}"


@contextlib.contextmanager
def _signals(call: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, call)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
