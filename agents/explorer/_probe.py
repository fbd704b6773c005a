"""Whether providers answer: each one's well-known document is asked for now and then, and how often it came is kept by
hour. It is what this explorer saw from where it stands; an outage of its own network counts against everybody.

Endpoints were written by strangers: the consumer's rules hold for them. Nothing private is asked on a public chain, no
redirect is followed, and time and size of an answer are bounded.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import structlog
from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from agents.explorer import _schema as schema
from agents.explorer._store import Store, StoreUnavailable
from penstock.consumer.connections import Connections
from penstock.consumer.gateway import Gateway, Waits
from penstock.deployments import Deployment
from penstock.errors import PenstockError
from penstock.networks import LOCAL_CHAIN_ID

_AT_ONCE = 8
_WITHIN = 10.0
"""Seconds for a name's addresses and the answer."""
_KEPT = 8 * 86_400
"""Seconds that samples are kept."""
_HOUR = 3600

log = structlog.get_logger("explorer.probe")


class Prober:
    """`run` it beside the indexer. `every`: seconds between two rounds."""

    def __init__(self, store: Store, deployment: Deployment, *, every: float) -> None:
        self._store, self._chain_id, self._every = store, deployment.chain_id, every
        self._waits = replace(Waits(), greeting=_WITHIN)

    async def run(self) -> None:
        """Until cancelled."""
        async with self.connections() as http:
            while True:
                try:
                    await self.round(http)
                except StoreUnavailable as error:
                    log.warning("no round of probes", error=str(error))
                await asyncio.sleep(self._every)

    def connections(self) -> Connections:
        return Connections(
            allow_private=self._chain_id == LOCAL_CHAIN_ID, connect=self._waits.connect, at_once=_AT_ONCE
        )

    async def round(self, http: Connections) -> None:
        """Ask every provider that offers something, and keep who answered."""
        providers = await self._store.read(_active)
        free = asyncio.Semaphore(_AT_ONCE)

        async def ask(provider: str, endpoint: str) -> bool:
            async with free:
                return await self._answers(http, provider, endpoint)

        answers = await asyncio.gather(*(ask(provider, endpoint) for provider, endpoint in providers))
        hour = int(time.time()) // _HOUR * _HOUR
        samples = [
            {"provider": provider, "hour": hour, "asked": 1, "up": int(up)}
            for (provider, _), up in zip(providers, answers, strict=True)
        ]
        if samples:
            await self._store.note(lambda connection: _add(connection, samples))

    async def _answers(self, http: Connections, provider: str, endpoint: str) -> bool:
        """Whether the provider itself answers there, for this chain."""
        try:
            async with asyncio.timeout(_WITHIN):
                http.check(endpoint)
                found = await Gateway(endpoint, http, self._waits).well_known()
        except (PenstockError, TimeoutError, OSError, ValueError):  # a name that is none is a ValueError
            return False
        return found.provider.lower() == provider.lower() and found.chain_id == self._chain_id


def _active(connection: Connection) -> list[tuple[str, str]]:
    table = schema.providers
    query = select(table.c.id, table.c.endpoint).where(table.c.active_offers > 0).order_by(table.c.id)
    return [(id, endpoint) for id, endpoint in connection.execute(query)]


def _add(connection: Connection, samples: list[dict[str, Any]]) -> None:
    table = schema.uptime
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table)
    more = {name: table.c[name] + statement.excluded[name] for name in ("asked", "up")}
    connection.execute(statement.on_conflict_do_update(index_elements=["provider", "hour"], set_=more), samples)
    connection.execute(delete(table).where(table.c.hour < int(time.time()) - _KEPT))
