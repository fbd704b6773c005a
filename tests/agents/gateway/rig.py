"""The gateway on a real socket, in front of a seller whose answers a test writes down."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from agents.buyer import Job, Model, PriceRange, Purchase
from agents.desk import Desk, Scribe
from agents.gateway.app import create_app
from agents.local import LocalEngine
from agents.records.budgets import Budgets
from agents.records.ledger import Ledger
from penstock.errors import PenstockError
from penstock.types import NATIVE, Address, OfferId, StreamId, Token
from penstock.wire.completions import CHAT, Assembly

PROVIDER = Address("0x" + "ab" * 20)
COIN = Token(NATIVE, "BNB", 18)
MODEL = Model("tiny", 1, (PROVIDER,), 1024, (PriceRange(COIN, (10**19, 10**19), None, None),))


def words(*texts: str, finish: str = "stop") -> list[dict[str, Any]]:
    """A chat's chunks as a provider sends them to us: with usage and token ids."""
    frame = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "tiny"}
    chunks = [
        frame | {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None, "token_ids": [1]}]}
        for text in texts
    ]
    chunks.append(frame | {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    total = 3 + len(texts)
    usage = {"prompt_tokens": 3, "completion_tokens": len(texts), "total_tokens": total}
    return [*chunks, frame | {"choices": [], "usage": usage}]


@dataclass
class Script:
    """What the seller does with each request."""

    chunks: Sequence[dict[str, Any] | Exception] = field(default_factory=lambda: words("Hello", " you"))
    pace: float = 0
    """Seconds before each chunk."""
    refusal: PenstockError | None = None
    jobs: list[Job] = field(default_factory=list)
    said: int = 0
    """Chunks that were taken."""
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    on_purchase: Callable[[Purchase], None] = lambda _: None

    async def models(self) -> list[Model]:
        return [MODEL]

    async def start(self, job: Job) -> Scripted:
        self.jobs.append(job)
        if self.refusal is not None:
            raise self.refusal
        return Scripted(self, job.path)


class Scripted:
    def __init__(self, script: Script, path: str) -> None:
        self.model, self.purchases = "tiny", list[Purchase]()
        self._script, self._path = script, path

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        try:
            for chunk in self._script.chunks:
                await asyncio.sleep(self._script.pace)
                if isinstance(chunk, Exception):
                    raise chunk
                self._script.said += 1
                yield chunk
            self.purchases.append(purchase())
        finally:
            self._script.closed.set()

    async def whole(self) -> dict[str, Any]:
        assembly = Assembly(self._path, self.model)
        async for chunk in self.chunks():
            assembly.add(chunk)
        return assembly.answer({})

    async def aclose(self) -> None:
        self._script.closed.set()


def purchase(**changes: Any) -> Purchase:
    given: dict[str, Any] = {
        "provider": PROVIDER,
        "endpoint": "http://provider",
        "offer": OfferId("0x" + "01" * 32),
        "model": "tiny",
        "token": COIN,
        "basis": "second",
        "why": "the cheapest that fits",
        "session": StreamId("0x" + "02" * 32),
        "start": 1,
        "began_at": 100.0,
        "first_token_at": 100.25,
        "ended_at": 101.0,
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "cost": 10**13,
        "receipt": "0x" + "03" * 32,
        "outcome": "done",
    }
    return Purchase(**(given | changes))


@dataclass
class Served:
    url: str
    script: Script
    ledger: Ledger
    http: httpx.AsyncClient
    told: list[str]


@contextlib.asynccontextmanager
async def served(
    folder: Path, script: Script | None = None, *, local: LocalEngine | None = None, **options: Any
) -> AsyncIterator[Served]:
    script = script or Script()
    with Ledger(folder / "records.db") as ledger, socket.create_server(("127.0.0.1", 0)) as listener:
        scribe = Scribe(ledger, app="serve", chain_id=31337, payer=Address("0x" + "cd" * 20))
        script.on_purchase = scribe.heard
        told: list[str] = []
        budgets = Budgets([], list, now=lambda: 0, warn=told.append)
        desk = Desk(script, scribe, budgets, local=local, tell=told.append)
        app = create_app(desk, idle=15, **options)
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, timeout_graceful_shutdown=1))
        serving = asyncio.create_task(server._serve([listener]))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as http:
                yield Served(url, script, ledger, http, told)
        finally:
            server.should_exit = True
            await serving


CHAT_BODY = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
__all__ = ["CHAT", "CHAT_BODY", "MODEL", "Script", "Served", "purchase", "served", "words"]
