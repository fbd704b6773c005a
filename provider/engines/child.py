"""An engine that runs as our child: started, watched, started again when it ends, ended with us."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Mapping
from contextlib import suppress

import aiohttp
import structlog

from provider.engines._base import BaseEngine, EngineFailed, headers, probe, session_for

log = structlog.get_logger("provider.engine")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
"""Seconds between a crash and the next start; doubled at each crash."""
_STEADY_SECONDS = 60.0
"""After so long without a crash the pause is the first one again."""
_LINES_KEPT = 40
_CHECKS_FAILED = 3
"""After so many looks in a row that found nothing the engine hangs, and is started anew."""


class ChildEngine(BaseEngine):
    """What kinds of engine add: `_spawn`, `_tell_to_end`, and where it listens."""

    def __init__(
        self,
        name: str,
        models: Mapping[str, str],
        *,
        start_seconds: float,
        stop_seconds: float,
        drain_seconds: float = 30,
        check_seconds: float = 5,
    ) -> None:
        """`stop_seconds`: how long it may take to end. `drain_seconds`: how long a restart waits for what runs."""
        super().__init__(name, models, start_seconds=start_seconds)
        self._stop_seconds, self._drain_seconds, self._check_seconds = stop_seconds, drain_seconds, check_seconds
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._lines: deque[str] = deque(maxlen=_LINES_KEPT)
        self._restarting = False

    @property
    def base_url(self) -> str:
        raise NotImplementedError

    @property
    def api_key(self) -> str:
        return ""

    @property
    def pid(self) -> int | None:
        """Of the child, while there is one."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self) -> None:
        try:
            await self._launch()
        except BaseException:
            await self._end()
            raise
        self._keeper = asyncio.create_task(self._keep(), name="engine-keeper")

    async def restart(self) -> None:
        self._restarting = True
        self._trouble = "the engine is being restarted"
        with suppress(TimeoutError):
            async with asyncio.timeout(self._drain_seconds):
                while self.running:  # noqa: ASYNC110 - others count it
                    await asyncio.sleep(0.05)
        log.info("the engine is restarted", engine=self.name, cut=self.running)
        if self._process is not None:
            await self._ask_to_end(self._process)  # the keeper starts it again

    async def stop(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
        await self._end()
        self._trouble = "the engine has been stopped"

    # --- what a kind of engine is ---

    async def _spawn(self) -> asyncio.subprocess.Process:
        """A process that is about to listen. EngineFailed says why it will not."""
        raise NotImplementedError

    async def _tell_to_end(self, process: asyncio.subprocess.Process) -> None:
        """It ends by itself when its stdin does."""
        if process.stdin is not None:
            process.stdin.close()

    async def _clean_up(self) -> None:
        """After it has ended."""

    # --- its life ---

    async def _launch(self) -> None:
        self._lines.clear()
        self._process = process = await self._spawn()
        async with session_for(self.socket) as session:
            self.dialect = await probe(
                session,
                self.base_url,
                self.api_key,
                self.models,
                seconds=self._start_seconds,
                dead=lambda: None if process.returncode is None else f"the engine ended: {self._last_words()}",
            )
        self._trouble = None
        self._restarting = False

    async def _keep(self) -> None:
        """Start it again whenever it ends, or hangs."""
        pause = _FIRST_PAUSE
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            if self._process is not None:
                await self._watch(self._process)
                if not self._restarting:
                    status = self._process.returncode
                    log.error("the engine ended", engine=self.name, status=status, said=self._last_words())
            self._trouble = self._trouble if self._restarting else "the engine is restarting"
            if loop.time() - began > _STEADY_SECONDS:
                pause = _FIRST_PAUSE
            if not self._restarting:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            await self._end()
            try:
                await self._launch()
                log.info("the engine is back", engine=self.name, pid=self.pid)
            except (EngineFailed, OSError) as error:
                log.error("the engine does not start", engine=self.name, error=str(error))
                await self._end()
                self._process, self._restarting = None, False

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """Until it ends. One that is alive and does not answer is ended."""
        ended = asyncio.ensure_future(process.wait())
        failed = 0
        async with session_for(self.socket, seconds=self._check_seconds) as session:
            while not (await asyncio.wait({ended}, timeout=self._check_seconds))[0]:
                try:
                    url = f"{self.base_url}/health"
                    async with session.get(url, headers=headers(self.api_key)) as response:
                        why = None if response.status == 200 else f"the engine's health is HTTP {response.status}"
                except (aiohttp.ClientError, TimeoutError) as error:
                    why = f"the engine does not answer: {error or type(error).__name__}"
                failed = failed + 1 if why else 0
                if not self._restarting:
                    self._trouble = why
                if failed >= _CHECKS_FAILED and not self._restarting:
                    log.error("the engine hangs, and is ended", engine=self.name, why=why)
                    await self._kill(process)

    async def _end(self) -> None:
        process = self._process
        if process is None:
            return
        await self._ask_to_end(process)
        if self._reader is not None:
            await asyncio.wait({self._reader}, timeout=1)
            self._reader.cancel()
        await self._clean_up()

    async def _ask_to_end(self, process: asyncio.subprocess.Process) -> None:
        await self._tell_to_end(process)
        try:
            async with asyncio.timeout(self._stop_seconds):
                await process.wait()
        except TimeoutError:
            await self._kill(process)

    async def _kill(self, process: asyncio.subprocess.Process) -> None:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()

    async def _read_log(self, stream: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await stream.readline()
            except ValueError:  # longer than the reader's limit: dropped
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            self._lines.append(text)
            self._heard(text)

    def _heard(self, line: str) -> None:
        """One line of its log."""
        log.debug("engine", line=line)

    def _last_words(self) -> str:
        told = [line for line in self._lines if " E " in line or "rror" in line] or list(self._lines)
        return " / ".join(told[-2:]) or "it said nothing"


def without_secrets() -> dict[str, str]:
    """Our environment, for a child: it needs no keys and passphrases."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
