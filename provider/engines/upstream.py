"""An engine that somebody else runs: vLLM, Ollama, or any other that speaks OpenAI's protocol."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import aiohttp
import structlog

from provider.engines._base import Dialect, headers, probe

log = structlog.get_logger("provider.engine")

_CHECK_SECONDS = 5.0


class UpstreamEngine:
    def __init__(self, url: str, model: str, *, api_key: str, start_seconds: float) -> None:
        self.model = model
        self.dialect = Dialect.PLAIN
        self._base_url = url.removesuffix("/").removesuffix("/v1")
        self._api_key = api_key
        self._start_seconds = start_seconds
        self._trouble: str | None = "the engine has not started"
        self._watch: asyncio.Task[None] | None = None

    @property
    def base_url(self) -> str:
        return self._base_url

    @property
    def api_key(self) -> str:
        return self._api_key

    def trouble(self) -> str | None:
        return self._trouble

    async def start(self) -> None:
        async with aiohttp.ClientSession() as session:
            self.dialect = await probe(
                session, self._base_url, self._api_key, self.model, seconds=self._start_seconds, dead=lambda: None
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
        timeout = aiohttp.ClientTimeout(total=_CHECK_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout, headers=headers(self._api_key)) as session:
            while True:
                await asyncio.sleep(_CHECK_SECONDS)
                found = None
                try:
                    async with session.get(f"{self._base_url}/v1/models") as response:
                        if response.status != 200:
                            found = f"the engine answers {response.status}"
                except (aiohttp.ClientError, TimeoutError) as error:
                    found = f"the engine does not answer: {error or type(error).__name__}"
                if (found is None) != (self._trouble is None):
                    log.warning(found or "the engine answers again")
                self._trouble = found
