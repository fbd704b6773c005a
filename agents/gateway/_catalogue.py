"""What a client of the gateway may name as a model: what is on the market, what the local engine has, and policies."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from agents.buyer import Model, PriceRange
from agents.buyer._types import POLICIES
from agents.desk import LOCAL, Desk
from agents.local import size_of
from penstock.errors import PenstockError
from penstock.units import format_amount, format_rate

_LISTED_FOR = 2.0
"""Seconds for which a list is good: clients ask for it before each request."""


@dataclass(frozen=True, slots=True)
class Entry:
    name: str
    source: str
    """market, local or policy."""
    context_length: int = 0
    """Tokens; 0: not known."""
    size: float | None = None
    """Billions of parameters, where the name tells."""
    market: Model | None = None

    @property
    def openai(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "id": self.name,
            "object": "model",
            "created": 0,
            "owned_by": "penstock",
            "source": self.source,
        }
        if self.context_length:
            found["max_model_len"] = self.context_length
        if self.market is not None:
            found["offers"] = self.market.offers
            found["providers"] = list(self.market.providers)
            found["prices"] = [price_json(one) for one in self.market.prices]
        return found


class Catalogue:
    """`idle`: seconds for which a session stays open after an answer."""

    def __init__(self, desk: Desk, *, idle: float) -> None:
        self._desk, self._idle = desk, idle
        self._listed: tuple[float, list[Entry]] | None = None
        self._looking = asyncio.Lock()
        self._used: dict[str, float] = {}

    async def entries(self) -> list[Entry]:
        async with self._looking:
            now = time.monotonic()
            if self._listed is None or now - self._listed[0] > _LISTED_FOR:
                self._listed = now, await self._look()
            return self._listed[1]

    async def find(self, name: str) -> Entry | None:
        """By any name that may be asked for: `MODEL@PROVIDER` and `POLICY/MODEL`, too."""
        entries = {entry.name: entry for entry in await self.entries()}
        bare, _, provider = name.rpartition("@") if "@" in name else (name, "", "")
        policy, slash, rest = bare.partition("/")
        found = entries.get(name) or entries.get(bare) or (entries.get(rest) if slash and policy in POLICIES else None)
        if found is not None and found.market is not None and provider and provider != LOCAL:
            digits = provider.lower().removeprefix("0x")
            if not any(one.lower().removeprefix("0x").startswith(digits) for one in found.market.providers):
                return None
        return found

    def used(self, name: str) -> None:
        self._used[name] = time.time()

    async def in_use(self) -> list[tuple[Entry, float]]:
        """Those that were asked lately, and until when their sessions stay open: Unix seconds."""
        now = time.time()
        self._used = {name: at for name, at in self._used.items() if at + self._idle > now}
        found = [(await self.find(name), at) for name, at in self._used.items()]
        return [(entry, at + self._idle) for entry, at in found if entry is not None]

    async def _look(self) -> list[Entry]:
        local = await self._desk.local_models()
        try:
            market = await self._desk.models()
        except PenstockError:
            if not local:
                raise
            market = []  # the node is away; what runs here does not need it
        found = [Entry(one.name, "market", one.context_length, size_of(one.name), one) for one in market]
        known = {entry.name for entry in found}
        found += [Entry(one.name, "local", size=one.size) for one in local if one.name not in known]
        found += [Entry(f"{one.name}@{LOCAL}", "local", size=one.size) for one in local]
        return [Entry(policy, "policy") for policy in POLICIES] + found if found else []


def price_json(price: PriceRange) -> dict[str, Any]:
    """In tokens, as texts: the lowest and the highest."""
    token = price.token
    found: dict[str, Any] = {"token": token.symbol}
    if price.rate is not None:
        found["per_second"] = [format_rate(one, token.decimals).removesuffix("/s") for one in price.rate]
    for name, prices in (
        ("per_million_prompt", price.prompt_price),
        ("per_million_completion", price.completion_price),
    ):
        if prices is not None:
            found[name] = [format_amount(one, token.decimals) for one in prices]
    return found
