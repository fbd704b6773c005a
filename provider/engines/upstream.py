"""An engine that somebody else runs: vLLM, Ollama, or any other that speaks OpenAI's protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import urlsplit

import aiohttp
import structlog

from provider.engines._base import BaseEngine, Dialect, headers, probe, session_for

log = structlog.get_logger("provider.engine")


class UpstreamEngine(BaseEngine):
    def __init__(
        self, url: str, models: Mapping[str, str], *, api_key: str, start_seconds: float, check_seconds: float = 5
    ) -> None:
        base_url = url.removesuffix("/").removesuffix("/v1")
        super().__init__(urlsplit(base_url).netloc.rpartition("@")[2], models, start_seconds=start_seconds)
        self._base_url, self._api_key = base_url, api_key
        self._check_seconds = check_seconds
        self._watch: asyncio.Task[None] | None = None

    @property
    def base_url(self) -> str:
        return self._base_url

    @property
    def api_key(self) -> str:
        return self._api_key

    async def start(self) -> None:
        async with session_for("") as session:
            self.dialect = await probe(
                session, self._base_url, self._api_key, self.models, seconds=self._start_seconds, dead=lambda: None
            )
        self._trouble = None
        self._watch = asyncio.create_task(self._keep_looking(), name="engine-watch")

    async def stop(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            with suppress(asyncio.CancelledError):
                await self._watch

    async def _keep_looking(self) -> None:
        """Sessions are not sold while the engine is away."""
        # vLLM lists its models even when what computes is dead.
        path = "/v1/models" if self.dialect is Dialect.PLAIN else "/health"
        async with session_for("", seconds=self._check_seconds) as session:
            while True:
                await asyncio.sleep(self._check_seconds)
                found = None
                try:
                    async with session.get(self._base_url + path, headers=headers(self._api_key)) as response:
                        if response.status != 200:
                            found = f"the engine answers {response.status}"
                except (aiohttp.ClientError, TimeoutError) as error:
                    found = f"the engine does not answer: {error or type(error).__name__}"
                if (found is None) != (self._trouble is None):
                    log.warning(found or "the engine answers again", engine=self.name)
                self._trouble = found
