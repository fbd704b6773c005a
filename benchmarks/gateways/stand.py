"""Starts what is measured, each as processes of its own, and reads the CPU time and the memory that they take."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import psutil

from benchmarks.gateways.load import Job, Measured

ROOT = Path(__file__).parents[2]
_READY_SECONDS = 120.0
_PEER_KEY = "sk-benchmark"


@dataclass(frozen=True)
class Target:
    """Something that answers chat completions."""

    name: str
    url: str
    model: str
    keys: list[str]
    process: psutil.Process | None
    """What is measured, with its children; None: the engine itself."""

    def cpu(self) -> float:
        """CPU seconds so far."""
        return sum(sum(each.cpu_times()[:2]) for each in self._processes())

    def memory(self) -> int:
        """Resident bytes."""
        return sum(each.memory_info().rss for each in self._processes())

    def _processes(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)] if self.process else []


class Load:
    """The process that makes the load."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._url = ""

    def run(self, job: Job) -> Measured:
        """Begins and ends with one. SystemExit where an answer fails: its time would mean nothing."""
        self.begin(job)
        return self.end()

    def begin(self, job: Job) -> None:
        self._url = job.url
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(msgspec.json.encode(job) + b"\n")
        stdin.flush()

    def end(self) -> Measured:
        assert self._process.stdout is not None
        found = msgspec.json.decode(self._process.stdout.readline(), type=Measured)
        if found.errors:
            raise SystemExit(f"an answer of {self._url} failed: {found.errors[0]}")
        return found


@contextmanager
def load() -> Iterator[Load]:
    with _python("benchmarks.gateways.load", stdin=True) as process:
        yield Load(process)


@contextmanager
def synthetic_engine() -> Iterator[str]:
    """Its URL."""
    with _python("benchmarks.gateways.engine") as process:
        yield str(_said(process, "the synthetic engine")["url"])


def set_pace(url: str, tokens_per_second: float) -> None:
    """Of the synthetic engine's answers from now on; 0: as fast as it can."""
    body = json.dumps({"tokens_per_second": tokens_per_second}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{url}/pace", data=body), timeout=10) as answer:
        answer.read()


@contextmanager
def ours(engine_url: str, model: str, sessions: int, folder: Path) -> Iterator[Target]:
    words = ["--engine-url", engine_url, "--engine-model", model, "--sessions", str(sessions), "--state", str(folder)]
    with _python("benchmarks.gateways.ours", *words) as process:
        said = _said(process, "our gateway")
        yield Target("Penstock", said["url"], model, said["keys"], psutil.Process(process.pid))


@contextmanager
def litellm(binaries: Path, engine_url: str, model: str, folder: Path) -> Iterator[Target]:
    """LiteLLM's proxy with one worker, no database and no logging."""
    config = {
        "model_list": [
            {
                "model_name": model,
                "litellm_params": {"model": f"hosted_vllm/{model}", "api_base": f"{engine_url}/v1", "api_key": "none"},
            }
        ],
        "general_settings": {"master_key": _PEER_KEY},
    }
    path = folder / "litellm.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    port = _free_port()
    words = ["--config", str(path), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "NO_DOCS": "True"}
    with _peer([str(binaries / "litellm"), *words, "--telemetry", "False"], quiet, folder / "litellm.log") as process:
        _wait(f"http://127.0.0.1:{port}/health/liveliness", process, folder / "litellm.log")
        yield Target("LiteLLM", f"http://127.0.0.1:{port}", model, [_PEER_KEY], psutil.Process(process.pid))


@contextmanager
def router(binaries: Path, engine_url: str, model: str, folder: Path) -> Iterator[Target]:
    """vLLM's router, which is written in Rust. It checks no keys."""
    port = _free_port()
    words = ["--worker-urls", engine_url, "--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin"]
    words += ["--prometheus-port", str(_free_port()), "--log-level", "error"]
    with _peer([str(binaries / "vllm-router"), *words], {}, folder / "router.log") as process:
        _wait(f"http://127.0.0.1:{port}/health", process, folder / "router.log")
        yield Target("vLLM router", f"http://127.0.0.1:{port}", model, ["none"], psutil.Process(process.pid))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _python(module: str, *words: str, stdin: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", module, *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe if stdin else None, stdout=pipe)
    with _ended(process):
        yield process


@contextmanager
def _peer(command: list[str], more: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=kept | more, stdout=file, stderr=file)
        with _ended(process):
            yield process


@contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Afterwards nothing of it is left."""
    try:
        yield
    finally:
        children: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(process.pid).children(recursive=True)
        if process.stdin is not None:
            process.stdin.close()
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        if process.stdout is not None:
            process.stdout.close()


def _said(process: subprocess.Popen[bytes], name: str) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{name} did not start: see above")
    said: dict[str, Any] = json.loads(line)
    return said


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with (
            suppress(urllib.error.URLError, ConnectionError, TimeoutError),
            urllib.request.urlopen(url, timeout=5) as answer,
        ):
            if answer.status == 200:
                return
        time.sleep(0.1)
    raise SystemExit(f"{url} does not answer: {log.read_text(errors='replace')[-2000:]}")
