"""The engine that comes along: llama.cpp's own OpenAI server, in a child process that never outlives us.

    python -m provider.engines.embedded --gguf FILE --alias NAME --slots N --context TOKENS --threads N

The child reads its API key from the first line of stdin, says where it listens in one line of JSON on stdout,
and ends when stdin does: a parent that is killed takes its engine along.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import structlog

from provider.engines._base import Dialect, EngineFailed, probe

log = structlog.get_logger("provider.engine")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
"""Seconds between a crash and the next start; doubled at each crash."""
_STEADY_SECONDS = 60.0
"""After so long without a crash the pause is the first one again."""
_STOP_SECONDS = 3.0
_LINES_KEPT = 40
_LISTEN_SECONDS = 60.0


class EmbeddedEngine:
    def __init__(
        self, gguf: Path, model: str, *, slots: int, context_length: int, threads: int, start_seconds: float
    ) -> None:
        self.model = model
        self.dialect = Dialect.LLAMA_CPP
        self._gguf, self._slots, self._context, self._threads = gguf, slots, context_length, threads
        self._start_seconds = start_seconds
        self._api_key = secrets.token_urlsafe(24)
        self._base_url = ""
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._lines: deque[str] = deque(maxlen=_LINES_KEPT)
        self._trouble: str | None = "the engine has not started"

    @property
    def base_url(self) -> str:
        return self._base_url

    @property
    def api_key(self) -> str:
        return self._api_key

    @property
    def pid(self) -> int | None:
        """Of the child, while there is one."""
        return self._process.pid if self._process and self._process.returncode is None else None

    def trouble(self) -> str | None:
        return self._trouble

    async def start(self) -> None:
        if not self._gguf.is_file():
            raise EngineFailed(f"there is no model file {self._gguf}: name one with --gguf, or an --engine-url")
        try:
            await self._launch()
        except BaseException:
            await self._end()
            raise
        self._keeper = asyncio.create_task(self._keep(), name="engine-keeper")

    async def stop(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
        await self._end()
        self._trouble = "the engine has been stopped"

    async def _launch(self) -> None:
        self._lines.clear()
        command = [sys.executable, "-m", "provider.engines.embedded", "--gguf", str(self._gguf)]
        command += ["--alias", self.model, "--slots", str(self._slots), "--context", str(self._context)]
        command += ["--threads", str(self._threads)]
        pipe = asyncio.subprocess.PIPE
        # A group of its own, so that Ctrl-C in a terminal reaches us alone and answers can be finished.
        self._process = process = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._reader = asyncio.create_task(self._read_log(process.stderr), name="engine-log")
        process.stdin.write(self._api_key.encode() + b"\n")
        with suppress(ConnectionError):
            await process.stdin.drain()
        try:
            async with asyncio.timeout(min(_LISTEN_SECONDS, self._start_seconds)):
                line = await process.stdout.readline()
        except TimeoutError:
            raise EngineFailed(f"the engine does not load {self._gguf} in time: {self._last_words()}") from None
        if not line:
            await process.wait()
            await asyncio.wait({self._reader}, timeout=1)
            raise EngineFailed(f"the engine ended while loading {self._gguf}: {self._last_words()}")
        self._base_url = json.loads(line)["listening"]
        async with aiohttp.ClientSession() as session:
            self.dialect = await probe(
                session,
                self._base_url,
                self._api_key,
                self.model,
                seconds=self._start_seconds,
                dead=lambda: None if process.returncode is None else f"the engine ended: {self._last_words()}",
            )
        self._trouble = None

    async def _keep(self) -> None:
        """Start it again whenever it ends."""
        pause = _FIRST_PAUSE
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            if self._process is not None:
                await self._process.wait()
                log.error("the engine ended", status=self._process.returncode, said=self._last_words())
            self._trouble = "the engine is restarting"
            if loop.time() - began > _STEADY_SECONDS:
                pause = _FIRST_PAUSE
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            await self._end()
            try:
                await self._launch()
                log.info("the engine is back", pid=self.pid)
            except (EngineFailed, OSError) as error:
                log.error("the engine does not start", error=str(error))
                await self._end()
                self._process = None

    async def _end(self) -> None:
        process = self._process
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()  # it ends by itself
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if self._reader is not None:
            await asyncio.wait({self._reader}, timeout=1)
            self._reader.cancel()

    async def _read_log(self, stream: asyncio.StreamReader) -> None:
        while line := await stream.readline():
            text = line.decode(errors="replace").rstrip()
            self._lines.append(text)
            log.debug("engine", line=text)

    def _last_words(self) -> str:
        told = [line for line in self._lines if " E " in line or "rror" in line] or list(self._lines)
        return " / ".join(told[-2:]) or "it said nothing"


# --- the child -----------------------------------------------------------------------------------


def _die_with_parent() -> None:
    """On Linux the kernel kills us with the parent; everywhere, the end of stdin ends us."""
    parent = os.getppid()
    if sys.platform == "linux":
        import ctypes
        import signal

        set_parent_death_signal = 1
        ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)

    def wait_for_end() -> None:
        while sys.stdin.buffer.readline():
            pass
        os._exit(0)

    threading.Thread(target=wait_for_end, daemon=True).start()


def _serve(arguments: list[str] | None = None) -> None:
    import argparse

    parser = argparse.ArgumentParser(description="Serve a GGUF model over OpenAI's protocol on 127.0.0.1.")
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--alias", required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--context", type=int, required=True, help="tokens per slot")
    parser.add_argument("--threads", type=int, required=True)
    given = parser.parse_args(arguments)
    api_key = sys.stdin.buffer.readline().decode().strip()
    _die_with_parent()

    import xllamacpp

    params: Any = xllamacpp.CommonParams()
    params.model.path = given.gguf
    params.model_alias = {given.alias}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [api_key]
    params.n_parallel = given.slots
    params.n_ctx = given.context * given.slots
    params.fit_params = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = given.threads
    params.n_threads_http = 2 * given.slots + 4  # each running answer holds one; health and metrics need some too
    params.endpoint_metrics = params.endpoint_slots = True
    params.cors_origins = ""
    params.ui = False
    params.sse_ping_interval = -1
    server = xllamacpp.Server(params)
    print(json.dumps({"listening": server.listening_address}), flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    _serve()
