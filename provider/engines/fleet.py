"""All engines of a provider: which one is asked for the next answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import structlog

from provider.engines._base import Engine, EngineFailed

log = structlog.get_logger("provider.engine")

_AGAIN_SECONDS = 5.0


class Fleet:
    """Engines that answer for the models on sale, alike or not; several for one model share its requests."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self.engines = tuple(engines)
        self._late: list[asyncio.Task[None]] = []

    @property
    def models(self) -> set[str]:
        """By their names on the market."""
        return {model for engine in self.engines for model in engine.models}

    def of(self, model: str) -> list[Engine]:
        """Those that can answer for a model now, the least busy first."""
        able = [engine for engine in self.engines if model in engine.models and engine.trouble() is None]
        return sorted(able, key=lambda engine: engine.running)

    def trouble(self, model: str | None = None) -> str | None:
        """Why a model, or any of those on sale, cannot be answered for now; None: all can."""
        for wanted in sorted(self.models) if model is None else [model]:
            if self.of(wanted):
                continue
            said = [engine.trouble() for engine in self.engines if wanted in engine.models]
            return next((text for text in said if text), f"no engine has {wanted}")
        return None

    async def start(self) -> None:
        """Return when each model has an engine that answers; the rest are tried on. EngineFailed where one has none."""
        failures = await asyncio.gather(*(engine.start() for engine in self.engines), return_exceptions=True)
        failed = {}
        for engine, failure in zip(self.engines, failures, strict=True):
            if isinstance(failure, EngineFailed):
                failed[engine] = failure
            elif failure is not None:
                raise failure
        for model in sorted(self.models):
            if not self.of(model):
                raise next(failure for engine, failure in failed.items() if model in engine.models)
        for engine, failure in failed.items():
            log.warning("an engine is left out for now", engine=engine.name, error=str(failure))
            self._late.append(asyncio.create_task(self._keep_trying(engine), name="engine-late"))

    async def restart(self) -> None:
        """One after the other, so that a model with several is answered for all the time."""
        for engine in self.engines:
            await engine.restart()
            with suppress(TimeoutError):
                async with asyncio.timeout(600):
                    while engine.trouble() is not None:  # noqa: ASYNC110 - others tell it
                        await asyncio.sleep(0.1)

    async def stop(self) -> None:
        for task in self._late:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await asyncio.gather(*(engine.stop() for engine in self.engines))

    async def _keep_trying(self, engine: Engine) -> None:
        while True:
            await asyncio.sleep(_AGAIN_SECONDS)
            try:
                await engine.start()
            except EngineFailed:
                continue
            log.info("the engine has come", engine=engine.name)
            return
