"""One mutant, tried in a process and on a node of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.mutation.mutants import Mutant
from tests.mutation.targets import ROOT, SOURCES, Target

TIMEOUT = 600
"""Seconds for one mutant; one that hangs the tests is noticed, too."""


def compile_contract(path: str, mutant: Mutant | None, *, optimize: bool) -> str:
    """Bytecode, without metadata. Without the optimizer it takes a third of the time, and says the same."""
    from vyper.compiler import compile_from_file_input
    from vyper.compiler.input_bundle import FilesystemInputBundle
    from vyper.compiler.settings import OptimizationLevel, Settings

    class Bundle(FilesystemInputBundle):
        """The sources as they are, but for the mutant's."""

        def _load_from_path(self, resolved_path: Any, original_path: Any) -> Any:
            found = super()._load_from_path(resolved_path, original_path)
            if mutant and Path(resolved_path).resolve() == ROOT / SOURCES[mutant.source]:
                found = replace(found, contents=mutant.apply(found.contents))
            return found

    bundle = Bundle([ROOT])
    level = OptimizationLevel.GAS if optimize else OptimizationLevel.NONE
    output = compile_from_file_input(
        bundle.load_file(Path(path)),
        input_bundle=bundle,
        output_formats=["bytecode"],
        settings=Settings(evm_version="cancun", optimize=level),
        no_bytecode_metadata=True,
    )
    return str(output["bytecode"])


def attempt(
    session: pytest.Session, target: Target, mutant: Mutant | None, first: Sequence[str], original: str, answer: Answer
) -> NoReturn:
    """Try one mutant (or none) with the tests that the session has collected, and leave the process."""
    from vyper.exceptions import VyperException, VyperInternalException

    path = SOURCES[target.name]
    try:
        (answer.folder / target.name).write_text(compile_contract(path, mutant, optimize=False))
        for module, mock in target.mocks:
            if mutant and mutant.source == module:
                bytecode = compile_contract(f"contracts/mocks/{mock}.vy", mutant, optimize=False)
                (answer.folder / mock).write_text(bytecode)
    except (VyperException, VyperInternalException, SyntaxError):
        answer.give("invalid")
    os.environ["PENSTOCK_ARTIFACTS"] = str(answer.folder)
    session.config.pluginmanager.unregister(name="terminalreporter")
    session.config.pluginmanager.register(answer)
    items = in_order(session.items, mutant, first)
    for item, following in zip(items, [*items[1:], None], strict=True):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
    same = mutant is not None and compile_contract(path, mutant, optimize=True) == original
    answer.give("same" if same else "survived")


def in_order(items: Sequence[pytest.Item], mutant: Mutant | None, first: Sequence[str]) -> list[pytest.Item]:
    """Those first that are likely to notice the mutant, and cost little."""
    near = {"channels": "/channels/", "signatures": "_for.py", "guardianship": "guardian", "licences": "test_terms"}
    place = near.get(mutant.source, f"/{mutant.source.lower()}/") if mutant else ""
    ranks = {name: rank for rank, name in enumerate(first)}
    openers = {item.path: item.nodeid for item in reversed(items)}  # the first test of a file shows most

    def rank(item: pytest.Item) -> tuple[bool, int, bool, bool]:
        killed = ranks.get(item.nodeid, len(ranks))
        return "/stateful/" in item.nodeid, killed, item.nodeid not in openers.values(), place not in item.nodeid

    return sorted(items, key=rank)


class Answer:
    """What became of a mutant, left in a file: `invalid`, `same`, `killed` (by which test) or `survived`."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def give(self, result: str, by: str = "", why: str = "") -> NoReturn:
        (self.folder / "result").write_text(json.dumps({"result": result, "by": by, "why": why[-500:]}))
        os._exit(0)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.give("killed", report.nodeid, report.longreprtext)


class Node:
    """An anvil of one mutant's own, without the limit on code: unoptimized bytecode is large."""

    def __init__(self) -> None:
        for _ in range(5):  # somebody may be faster and take the port
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            command = ["anvil", "--silent", "--port", str(port), "--chain-id", "31337", "--accounts", "20"]
            command += ["--base-fee", "0", "--gas-price", "0", "--disable-code-size-limit"]
            self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline and self.process.poll() is None:
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    self.uri = f"http://127.0.0.1:{port}"
                    return
                time.sleep(0.02)
            self.stop()
        raise RuntimeError("anvil did not start: is it on PATH?")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@dataclass
class Trial:
    """A process that tries one mutant, on a node of its own."""

    mutant: Mutant | None
    node: Node
    folder: tempfile.TemporaryDirectory[str]
    began: float
    process: int

    @classmethod
    def start(
        cls, session: pytest.Session, target: Target, mutant: Mutant | None, first: Sequence[str], original: str
    ) -> Trial:
        node, folder = Node(), tempfile.TemporaryDirectory()
        if process := os.fork():
            return cls(mutant, node, folder, time.monotonic(), process)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.alarm(TIMEOUT)
        try:
            os.environ |= {"PENSTOCK_NODE": node.uri}
            attempt(session, target, mutant, first, original, Answer(folder.name))
        except BaseException:
            Path(folder.name, "error").write_text(traceback.format_exc())
        finally:
            os._exit(0)

    def finish(self) -> dict[str, Any]:
        """After the process has ended."""
        self.node.stop()
        result, error = Path(self.folder.name, "result"), Path(self.folder.name, "error")
        if result.exists():
            found: dict[str, Any] = json.loads(result.read_text())
        elif error.exists():
            found = {"result": "error", "by": error.read_text()}
        else:
            found = {"result": "killed", "by": "the time limit"}
        self.folder.cleanup()
        return found | {"seconds": time.monotonic() - self.began}

    def stop(self) -> None:
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        self.node.stop()
        self.folder.cleanup()
