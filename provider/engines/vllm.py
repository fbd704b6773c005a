"""vLLM as our child: in its own environment, on a Unix socket that nobody else can open, watched and started again.

It is never reachable from outside: it has routes that no key protects. A guard (`guard.py`) runs it, so that no worker
of it outlives us and keeps the GPU's memory.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path

from provider.engines._base import EngineFailed
from provider.engines.child import ChildEngine, without_secrets

_GUARD = Path(__file__).with_name("guard.py")
_GUARD_SECONDS = 10.0
_LOG_BYTES, _LOGS_KEPT = 10 * 2**20, 3


def find(place: str) -> Path:
    """The Python of vLLM's environment, named by its folder or by the `vllm` command in it. EngineFailed where there is
    none."""
    path = Path(place).expanduser()
    command = None if path.is_dir() else shutil.which(str(path))
    folder = path / "bin" if command is None else Path(command).resolve().parent
    python = folder / "python"
    if not python.exists() or not list(folder.parent.glob("lib/python*/site-packages/vllm/version.py")):
        raise EngineFailed(
            f"there is no vLLM at {place}: give --vllm the folder of the Python environment in which it is installed "
            "(python3 -m venv ~/vllm && ~/vllm/bin/pip install vllm)"
        )
    return python.absolute()


class VllmEngine(ChildEngine):
    def __init__(
        self,
        place: str,
        source: str,
        models: Mapping[str, str],
        *,
        context_length: int,
        adapters: Mapping[str, str],
        arguments: Sequence[str],
        log_file: Path,
        start_seconds: float,
        drain_seconds: float,
        check_seconds: float = 5,
    ) -> None:
        """`place`: of vLLM. `source`: a Hugging Face id or a folder with the model. `adapters`: LoRA, by the model's
        name that each makes. `arguments` go to vLLM as they are."""
        super().__init__(
            "vllm",
            models,
            start_seconds=start_seconds,
            stop_seconds=drain_seconds + _GUARD_SECONDS,
            drain_seconds=drain_seconds,
            check_seconds=check_seconds,
        )
        self._place, self._source, self._context, self._arguments = place, source, context_length, list(arguments)
        self._adapters = dict(adapters)
        self._log_file = log_file
        self._log: RotatingFileHandler | None = None
        self._folder = ""
        self._group = 0

    @property
    def base_url(self) -> str:
        return "http://vllm"

    @property
    def socket(self) -> str:
        return f"{self._folder}/vllm" if self._folder else ""

    def command(self) -> list[str]:
        own = [name for name in self.models.values() if name not in self._adapters] or [self._source]
        words = [str(find(self._place)), "-m", "vllm.entrypoints.openai.api_server", "--model", self._source]
        words += ["--served-model-name", *own, "--uds", self.socket]
        words += ["--max-model-len", str(self._context), "--shutdown-timeout", str(int(self._drain_seconds))]
        words += ["--disable-uvicorn-access-log"]
        if self._adapters:
            words += ["--enable-lora", "--lora-modules", *(f"{name}={path}" for name, path in self._adapters.items())]
        return words + self._arguments

    async def _spawn(self) -> asyncio.subprocess.Process:
        if not self._folder:
            self._folder = tempfile.mkdtemp(prefix="penstock-")  # readable by us alone
        with suppress(FileNotFoundError):
            os.unlink(self.socket)
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        if self._log is None:
            self._log = RotatingFileHandler(self._log_file, maxBytes=_LOG_BYTES, backupCount=_LOGS_KEPT)
        pipe = asyncio.subprocess.PIPE
        ours = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
        told = {name: value for name, value in without_secrets().items() if name not in ours}
        # A longer idle time than the gateway's, and no word to anybody about what is run here.
        told |= {"VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "600", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", str(_GUARD), str(self._drain_seconds + _GUARD_SECONDS / 2), *self.command()),
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            start_new_session=True,
            env=told,
            limit=2**20,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        self._reader = asyncio.create_task(self._read_log(process.stderr), name="engine-log")
        line = await process.stdout.readline()
        self._group = int(line) if line.strip() else 0
        return process

    async def _tell_to_end(self, process: asyncio.subprocess.Process) -> None:
        if process.stdin is not None and process.returncode is None:
            process.stdin.write(b"stop\n")
            with suppress(ConnectionError):
                await process.stdin.drain()

    async def _kill(self, process: asyncio.subprocess.Process) -> None:
        await super()._kill(process)
        await self._clean_up()

    async def _clean_up(self) -> None:
        if self._group:  # a guard that was killed itself cannot do it
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._group, signal.SIGKILL)
            self._group = 0

    async def stop(self) -> None:
        await super().stop()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
        if self._log is not None:
            self._log.close()

    def _heard(self, line: str) -> None:
        if self._log is not None:
            self._log.emit(logging.makeLogRecord({"msg": line}))
