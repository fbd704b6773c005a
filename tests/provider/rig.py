"""A provider under test: the real application on a real socket, over a real chain and a real engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import msgspec
import pytest

from penstock.chain.web3 import Web3Chain
from penstock.deployments import Deployment
from penstock.events import Opened, Receipt
from penstock.keys import LocalAccount, new_session_key
from penstock.types import NATIVE, Address, Offer, Order, Permit, PermitKind, StreamKey
from penstock.wire.eip712 import Domain, cancel_digest, order_digest, permit_digest
from penstock.wire.sessions import (
    SESSIONS_PATH,
    CancelBody,
    CloseRequest,
    Grant,
    GrantBody,
    OrderBody,
    SessionRequest,
    StreamKeyBody,
    new_grant,
)
from provider import market, sessions
from provider.app import ProviderApp
from provider.engines import Engine, Fleet
from provider.places import is_url
from provider.running import Provider
from provider.server import Server
from provider.service import listen, open_store
from provider.settings import BUNDLED_MODEL, Settings
from provider.skills.licensing import open_licensing
from provider.store import Store
from tests.harness import PATIENCE, Node

MODEL = "penstock-tiny"
COINS = 10**18
RATE = 10**18
"""1e12 wei a second, scaled."""
PROMPT = [{"role": "user", "content": "Why does water flow downhill?"}]
on_both = pytest.mark.parametrize("state", ["sqlite", "postgresql"], indirect=True)
"""Of a test that uses `state`: it runs on both databases."""
LONG_TOKENS = 15_000
LONG = {"messages": PROMPT, "model": MODEL, "max_tokens": LONG_TOKENS, "extra_body": {"ignore_eos": True}}
"""Goes on for many seconds."""


async def until(look: Callable[[], Any], seconds: float = PATIENCE, what: str = "the condition") -> Any:
    """The first true answer of `look`, which may be a coroutine function."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return found
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds:g} s"
        await asyncio.sleep(0.02)


async def at_best(measure: Callable[[], Awaitable[float]], bound: float, attempts: int = 5) -> None:
    """What takes no longer than `bound` by itself does so once in a few times on a machine that stalls now and then."""
    taken: list[float] = []
    while not taken or taken[-1] > bound:
        assert len(taken) < attempts, f"it took {taken} s, each time more than {bound:g} s"
        taken.append(await measure())


def stretched(target: Path, context: int = 16_384) -> Path:
    """The bundled model with a longer context than it was trained for, so that an answer can last."""
    raw = bytearray(BUNDLED_MODEL.read_bytes())
    key = b"llama.context_length"
    at = raw.index(key) + len(key)
    assert int.from_bytes(raw[at : at + 4], "little") == 4, "not a uint32"
    raw[at + 4 : at + 8] = context.to_bytes(4, "little")
    target.write_bytes(raw)
    return target


def told_by(target: Path, template: str) -> Path:
    """A model file with another chat template."""
    raw = bytearray(target.read_bytes())
    key = b"tokenizer.chat_template"
    at = raw.index(key) + len(key) + 4
    length = int.from_bytes(raw[at : at + 8], "little")
    new = template.encode()
    new += b" " * (-(len(new) - length) % 32)  # what follows stays aligned
    raw[at : at + 8 + length] = len(new).to_bytes(8, "little") + new
    target.write_bytes(raw)
    return target


@dataclass
class EngineProcess:
    """The embedded engine's own child process."""

    url: str
    key: str
    process: subprocess.Popen[str]

    async def _get(self, path: str) -> httpx.Response:
        async with httpx.AsyncClient(timeout=PATIENCE) as http:
            return await http.get(self.url + path, headers={"authorization": f"Bearer {self.key}"})

    async def busy(self) -> int:
        """Slots that are generating now."""
        return sum(slot["is_processing"] for slot in (await self._get("/slots")).json())

    async def idle(self) -> bool:
        return await self.busy() == 0

    @contextlib.asynccontextmanager
    async def cutting(self) -> AsyncIterator[None]:
        """Inside, a long answer is begun and cut: afterwards its slot comes free, and not because it was whole. A
        machine that stalls stalls both, so that it is tokens that tell, and no clock."""
        before = await self.predicted()
        yield
        await until(self.idle, what="the engine's slot")
        assert await self.predicted() - before < LONG_TOKENS, "it was generated to its end"

    async def at(self) -> int:
        """Tokens of the answers that are being generated, so far."""
        slots = (await self._get("/slots")).json()
        return sum(slot["next_token"][0]["n_decoded"] for slot in slots if slot["is_processing"])

    async def predicted(self) -> int:
        """Tokens of all answers that are over."""
        text = (await self._get("/metrics")).text
        return int(
            next(line.split()[1] for line in text.splitlines() if line.startswith("llamacpp:tokens_predicted_total"))
        )


@contextlib.contextmanager
def engine_process(gguf: Path, *words: str, slots: int = 4, context: int = 16_384) -> Iterator[EngineProcess]:
    key = secrets.token_hex(8)
    command = [sys.executable, "-m", "provider.engines.embedded", "--gguf", str(gguf), "--alias", MODEL]
    command += ["--slots", str(slots), "--context", str(context), "--threads", "1", *words]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(key + "\n")
        process.stdin.flush()
        yield EngineProcess(json.loads(process.stdout.readline())["listening"], key, process)
    finally:
        process.stdin.close()
        process.wait(timeout=PATIENCE)
        process.stdout.close()


def fresh_account(node: Node, coins: int = 100 * COINS) -> LocalAccount:
    """With money for gas, and nobody else's."""
    account = LocalAccount(secrets.token_bytes(32))
    if coins:
        node.set_balance(account.address, coins)
    return account


@dataclass
class Rig:
    """A running provider, and what a test needs to deal with it."""

    url: str
    node: Node
    chain: Web3Chain
    deployment: Deployment
    provider: Provider
    http: httpx.AsyncClient

    @property
    def me(self) -> Address:
        return self.provider.seller.provider.id

    @property
    def slashing(self) -> Domain:
        return self.chain.slashing_domain

    def offer(self, token: Address = NATIVE) -> Offer:
        return next(o for o in self.provider.seller.active if o.terms.token == token)

    async def buyer(self, *, coins: int = 100 * COINS, token: Address = NATIVE) -> Buyer:
        return Buyer(self, fresh_account(self.node, coins), self.offer(token))


@dataclass
class Buyer:
    """A consumer: a wallet, a session key, at most one stream at a time."""

    rig: Rig
    wallet: LocalAccount
    offer: Offer
    session_key: LocalAccount = field(default_factory=new_session_key)
    start: int = 0
    token: str = ""

    @property
    def key(self) -> StreamKey:
        seller = self.rig.provider.seller.provider
        terms = self.offer.terms
        return StreamKey(self.wallet.address, seller.payee, terms.token, self.session_key.address, self.offer.id)

    async def open(self, duration: int = 600, *, key: StreamKey | None = None, rate: int | None = None) -> Receipt:
        """A stream on chain, paid in coins."""
        rate = rate or self.offer.terms.rate
        value = -(-rate * duration // 10**6)
        receipt = await self.rig.chain.open(
            self.wallet, key or self.key, rate=rate, duration=duration, value=value, from_vault=0
        )
        self.start = next(e for e in receipt.events if isinstance(e, Opened)).start
        return receipt

    def grant(self, **changes: Any) -> Grant:
        now = changes.pop("now", int(time.time()))
        grant = new_grant(self.key.id, self.start, self.rig.me, self.rig.url, now)
        return replace(grant, **changes)

    def request(
        self,
        *,
        grant: Grant | None = None,
        key: StreamKey | None = None,
        signer: LocalAccount | None = None,
        domain: Domain | None = None,
        order: OrderBody | None = None,
    ) -> SessionRequest:
        grant = grant or self.grant()
        signature = grant.sign(domain or self.rig.chain.session_domain, signer or self.session_key)
        return SessionRequest(StreamKeyBody.of(key or self.key), GrantBody.of(grant, signature), order)

    async def post(self, request: SessionRequest) -> httpx.Response:
        return await self.rig.http.post(SESSIONS_PATH, content=msgspec.json.encode(request))

    async def session(self, **changes: Any) -> dict[str, Any]:
        """Shake hands; the answer of a success."""
        answer = await self.post(self.request(**changes))
        assert answer.status_code == 201, answer.text
        found: dict[str, Any] = answer.json()
        self.token, self.start = found["token"], found["start"]
        return found

    async def arrive(self, duration: int = 600) -> Buyer:
        """Open and shake hands."""
        await self.open(duration)
        await self.session()
        return self

    async def order(self, duration: int = 600, *, rate: int | None = None, permit: bool = True) -> OrderBody:
        """A signed order with a permit for the tokens; no gas needed."""
        chain = self.rig.chain
        rate = rate or self.offer.terms.rate
        deadline = int(self.rig.provider.projection.now()) + 300
        order = Order(self.key, rate, duration, 0, secrets.randbits(200), deadline)
        allowed = Permit()
        if permit:
            domain = await chain.permit_domain(self.key.token, self.wallet.address)
            assert domain is not None
            amount = -(-rate * duration // 10**6)
            digest = permit_digest(domain[0], self.wallet.address, chain.stream_pay, amount, domain[1], deadline)
            allowed = Permit(PermitKind.ERC2612, amount, 0, deadline, self.wallet.sign_digest(digest))
        signature = self.wallet.sign_digest(order_digest(chain.stream_pay_domain, order))
        return OrderBody.of(order, signature, allowed)

    def cancel_body(self, signer: LocalAccount | None = None) -> CancelBody:
        deadline = int(self.rig.provider.projection.now()) + 300
        digest = cancel_digest(self.rig.chain.stream_pay_domain, self.key.id, self.start, self.wallet.address, deadline)
        signature = (signer or self.wallet).sign_digest(digest)
        return CancelBody(self.wallet.address, deadline, "0x" + signature.hex())

    async def cancel(self) -> Receipt:
        return await self.rig.chain.cancel(self.wallet, self.key, to=self.wallet.address)

    @property
    def bearer(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"}

    async def close(self, cancel: CancelBody | None = None) -> httpx.Response:
        content = msgspec.json.encode(CloseRequest(cancel))
        return await self.rig.http.post(f"{SESSIONS_PATH}/close", content=content, headers=self.bearer)

    async def chat(self, **changes: Any) -> httpx.Response:
        body = {"model": MODEL, "messages": PROMPT, "max_tokens": 4} | changes
        return await self.rig.http.post("/v1/chat/completions", json=body, headers=self.bearer)

    def openai(self) -> Any:
        import openai

        return openai.AsyncOpenAI(
            base_url=f"{self.rig.url}/v1",
            api_key=self.token,
            max_retries=0,
            http_client=httpx.AsyncClient(timeout=2 * PATIENCE),
        )


def settings(**changes: Any) -> Settings:
    """Short waits where tests wait for them, and long ones where a machine that stalls would end them: a test that
    means one of these says so. The environment of the test run does not count."""
    given = {
        "offers": ("native:0.000001",),
        "poll_seconds": 0.05,
        "payout_seconds": 3600,
        "slots": 4,
        "context_length": 16_384,
        "stop_seconds": 0.2,
        "outage_seconds": PATIENCE,
        "queue_seconds": PATIENCE,
        "engine_connect_seconds": PATIENCE,
        "voucher_seconds": PATIENCE,
    }
    return Settings.model_validate(given | changes)


class Clock:
    """The host's, until a test takes it in hand: what happens then takes as long as the test says."""

    def __init__(self) -> None:
        self._at: float | None = None

    def __call__(self) -> float:
        return time.time() if self._at is None else self._at

    def stop(self) -> None:
        self._at = self()

    def advance(self, seconds: float) -> None:
        self.stop()
        assert self._at is not None
        self._at += seconds


@contextlib.asynccontextmanager
async def running(
    node: Node,
    chain: Web3Chain,
    deployment: Deployment,
    engine: Engine | Fleet,
    folder: Path,
    *,
    account: LocalAccount | None = None,
    clock: Callable[[], float] = time.time,
    wrap: Callable[[Any], Any] = lambda app: app,
    endpoint: str = "",
    **changes: Any,
) -> AsyncIterator[Rig]:
    """A provider that has entered the market and serves. `endpoint`: of
    another gateway of the same provider, in place of its own."""
    chosen = settings(home=str(folder), **changes)
    account = account or fresh_account(node)
    # A handshake waits for the sight of what the chain has, however long that takes here.
    patience = mock.patch.object(sessions, "_LOOK_SECONDS", PATIENCE)
    with patience, listen("127.0.0.1", 0) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        seller = await market.enter(
            chain,
            account,
            chosen,
            await market.terms_of(chosen, chain, deployment.tokens),
            endpoint=endpoint or url,
            first_block=deployment.first_block,
            say=lambda text: None,
        )
        seller = replace(seller, large=await market.large_deposits(chosen, chain, deployment.tokens))
        opening = open_licensing(
            chosen,
            chain,
            account,
            account,
            seller.provider.id,
            url,
            first_block=deployment.first_block,
            clock=clock,
            products=chosen.skills or None,
            shared=is_url(chosen.state),
        )
        licensing = await opening.__aenter__() if chosen.licensed else None
        store = open_store(chosen, chain, seller.provider.id)
        chain_store = Store.open(folder / "chain.sqlite", owner="test") if store.shared else None
        provider = Provider(
            chosen,
            chain=chain,
            engines=engine if isinstance(engine, Fleet) else Fleet([engine]),
            store=store,
            clock=clock,
            seller=seller,
            chain_store=chain_store,
            peer_url=url,
            licensing=licensing,
        )
        server = Server(wrap(ProviderApp(provider)))
        serving = asyncio.create_task(server.serve([listener]))
        try:
            await asyncio.wait({serving, asyncio.ensure_future(server.up.wait())}, return_when=asyncio.FIRST_COMPLETED)
            assert not serving.done(), "the application did not start"
            async with httpx.AsyncClient(base_url=url, timeout=2 * PATIENCE) as http:
                yield Rig(url, node, chain, deployment, provider, http)
        finally:
            await provider.drain()
            server.should_exit = True
            await serving
            if licensing is not None:
                await opening.__aexit__(None, None, None)
            await store.close()
            if chain_store is not None:
                await chain_store.close()
