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
from contextlib import suppress
from pathlib import Path
from typing import Any

from provider.engines._base import Dialect, EngineFailed
from provider.engines.child import ChildEngine, without_secrets

_STOP_SECONDS = 3.0
_LISTEN_SECONDS = 60.0
_LONGEST_TEXT = 2048
"""Tokens of a text to embed: it is taken in one batch, whose memory is there from the start."""


class EmbeddedEngine(ChildEngine):
    def __init__(
        self,
        gguf: Path,
        model: str,
        *,
        slots: int,
        context_length: int,
        threads: int,
        start_seconds: float,
        embeddings: str = "",
    ) -> None:
        """`embeddings`: how they are pooled, "mean", "cls" or "last"; empty: there are none."""
        super().__init__("embedded", {model: model}, start_seconds=start_seconds, stop_seconds=_STOP_SECONDS)
        self.dialect = Dialect.LLAMA_CPP
        self._model, self._gguf, self._slots, self._context, self._threads = model, gguf, slots, context_length, threads
        self._embeddings = embeddings
        self._api_key = secrets.token_urlsafe(24)
        self._base_url = ""

    @property
    def base_url(self) -> str:
        return self._base_url

    @property
    def api_key(self) -> str:
        return self._api_key

    async def start(self) -> None:
        if not self._gguf.is_file():
            raise EngineFailed(f"there is no model file {self._gguf}: name one with --gguf, or an --engine-url")
        await super().start()

    async def _spawn(self) -> asyncio.subprocess.Process:
        command = [sys.executable, "-m", "provider.engines.embedded", "--gguf", str(self._gguf)]
        command += ["--alias", self._model, "--slots", str(self._slots), "--context", str(self._context)]
        command += ["--threads", str(self._threads)]
        if self._embeddings:
            command += ["--embeddings", self._embeddings]
        pipe = asyncio.subprocess.PIPE
        # A group of its own, so that Ctrl-C in a terminal reaches us alone and answers can be finished.
        process = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True, env=without_secrets()
        )
        self._process = process
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
        return process


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
    parser.add_argument("--embeddings", choices=("mean", "cls", "last"), help="serve them, too, pooled like this")
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
    if given.embeddings:
        params.embedding = True
        params.pooling_type = getattr(xllamacpp.llama_pooling_type, f"LLAMA_POOLING_TYPE_{given.embeddings.upper()}")
        params.n_ubatch = params.n_batch = max(params.n_ubatch, min(given.context, _LONGEST_TEXT))
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
