"""Skills for tests: folders written as a publisher writes them, a market in memory, a gateway that really serves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from agents.skills._templates import document
from penstock.chain.fake import FakeChain
from penstock.chain.port import Account
from penstock.consumer.connections import Connections
from penstock.keys import LocalAccount, licence_key, new_session_key
from penstock.licences import Licence, LicenceId, Product, ProductId, Tier
from penstock.skills.client import Skills, SkillSession, domain_of
from penstock.skills.content import LocalContent
from penstock.skills.manifest import load_skill
from penstock.skills.publishing import buy, publish
from penstock.types import NATIVE, Service
from provider import market
from provider.server import Server
from provider.service import listen
from provider.settings import Settings, load
from provider.skills.app import create_skills_app
from provider.skills.licensing import Licensing, open_licensing
from tests.harness import PATIENCE

COIN = 10**18
needs_sandbox = pytest.mark.skipif(
    shutil.which("bwrap") is None and not os.environ.get("CI"), reason="bubblewrap is not installed"
)
"""Where it is missing skills are not run; CI has it."""
ANY: dict[str, Any] = {}
"""A schema that admits everything."""
TEXT = {
    "type": "object",
    "properties": {"text": {"type": "string", "maxLength": 10_000}},
    "required": ["text"],
    "additionalProperties": False,
}
COUNTS = {
    "type": "object",
    "properties": {"words": {"type": "integer"}},
    "required": ["words"],
    "additionalProperties": False,
}
COUNT = 'def count(text):\n    return {"words": len(text.split())}\n'


def write_skill(
    folder: Path,
    *,
    code: str = COUNT,
    operations: dict[str, tuple[dict[str, Any], dict[str, Any]]] | None = None,
    licence: str = 'kind = "usage"\nprice = "0.01"\npack = 10',
    run: str = "",
    more: str = "",
    kind: str = "python",
    name: str = "word-count",
    version: str = "1.0.0",
) -> Path:
    """A folder to publish. `operations`: name -> the schemas of input and output."""
    folder.mkdir(parents=True, exist_ok=True)
    if "seconds" not in run:
        run += f"\nseconds = {PATIENCE:g}"  # a machine that stalls is no fault of the skill's
    found = document(name, "x", ANY, ANY, version)
    found["paths"] = {}
    for operation, (given, answer) in (operations or {"count": (TEXT, COUNTS)}).items():
        found["paths"] |= document(name, operation, given, answer, version)["paths"]
    (folder / "openapi.json").write_text(json.dumps(found))
    (folder / "skill.toml").write_text(
        f'name = "{name}"\nversion = "{version}"\ncategory = "analysis"\ndescription = "For tests."\nkind = "{kind}"\n'
        f"{more if more.startswith('output') else ''}\n[licence]\n{licence}\n\n[run]\n{run}\n"
        f"{'' if more.startswith('output') else more}\n"
    )
    if kind == "python":
        (folder / "skill.py").write_text(code)
    return folder


@dataclass
class SkillMarket:
    """A publisher, its gateway, and buyers, on a chain in memory."""

    folder: Path
    publisher: LocalAccount = field(default_factory=new_session_key)
    endpoint: str = ""
    clock: Callable[[], float] = time.time
    """What the chain's time is made of."""

    def __post_init__(self) -> None:
        self._ahead = 0
        self.chain = FakeChain(clock=lambda: int(self.clock()) + self._ahead)
        self.chain.set_balance(self.publisher.address, 100 * COIN)
        self.content = LocalContent(self.folder / "home" / "content")

    def advance(self, seconds: int) -> None:
        """By the chain's time."""
        self._ahead += seconds
        self.chain.mine()

    def account(self) -> LocalAccount:
        account = new_session_key()
        self.chain.set_balance(account.address, 100 * COIN)
        return account

    async def publish(self, folder: Path, account: Account | None = None) -> ProductId:
        return (await publish(self.chain, account or self.publisher, self.content, load_skill(folder), NATIVE)).product

    async def product(self, number: ProductId) -> Product:
        return await self.chain.product(number)

    async def buy(self, account: LocalAccount, number: ProductId, quantity: int = 1) -> LicenceId:
        key = licence_key(account, domain_of(self.chain)).address
        product = await self.chain.product(number)
        bought = await buy(self.chain, account, product, session_key=key, tier=Tier.PERSONAL, quantity=quantity)
        return bought[0]

    async def licence(self, number: LicenceId) -> Licence:
        return await self.chain.licence(number)

    def settings(self, **more: Any) -> Settings:
        given = {"home": str(self.folder / "home"), "poll_seconds": 0.02, "skill_private_backends": True}
        return load(given | more)

    @contextlib.asynccontextmanager
    async def gateway(self, account: LocalAccount | None = None, **more: Any) -> AsyncIterator[Licensing]:
        """A real server on a real socket."""
        account, settings = account or self.publisher, self.settings(**more)
        with listen("127.0.0.1", 0) as listener:
            endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
            async with open_licensing(
                settings,
                self.chain,
                account,
                account,
                account.address,
                endpoint,
                first_block=0,
                clock=time.time,
                products=settings.skills,
            ) as licensing:
                await market.register(self.chain, account, settings, endpoint, account.address, _quiet, Service.DATA)
                server = Server(create_skills_app(licensing))
                serving = asyncio.create_task(server.serve([listener]))
                up = asyncio.create_task(server.up.wait())
                try:
                    await asyncio.wait({serving, up}, return_when=asyncio.FIRST_COMPLETED)
                    if serving.done():
                        serving.result()
                    self.endpoint = endpoint
                    yield licensing
                finally:
                    up.cancel()
                    server.should_exit = True
                    await serving

    @contextlib.asynccontextmanager
    async def skills(self, account: LocalAccount) -> AsyncIterator[Skills]:
        """What an account uses; its content is its own."""
        home = self.folder / account.address
        async with Connections(allow_private=True, connect=PATIENCE) as http:
            content = LocalContent(home / "content")
            yield Skills(self.chain, account, http, content, home / "receipts.jsonl")


async def execute(market: SkillMarket, session: SkillSession, body: Any, token: str | None = None) -> httpx.Response:
    """A call as a client of one's own would send it: an ExecuteRequest, or any bytes."""
    async with httpx.AsyncClient(timeout=PATIENCE) as http:
        return await http.post(
            f"{market.endpoint}/v1/skills/{session.product.id}/execute",
            content=body if isinstance(body, bytes) else msgspec.json.encode(body),
            headers={"authorization": f"Bearer {session.token if token is None else token}"},
        )


def _quiet(_: str) -> None:
    pass


async def until(look: Callable[[], Any], seconds: float = PATIENCE) -> None:
    """Until it is true."""
    async with asyncio.timeout(seconds):
        while not look():
            await asyncio.sleep(0.01)
