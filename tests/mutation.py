"""Do the tests notice when the money modules are wrong? Change them in one place at a time, and see.

    python -m tests.mutation [--module streams] [--limit 100] [--seed 1] [--workers 2] [--list] [--only streams-041]

Each mutant is StreamPay with one operator, constant, statement or pair of arguments changed in one of its
sources. It is compiled by Vyper directly and put in the place of StreamPay's bytecode in the unit tests, which
stop at the first failure: the mutant is killed. Mutants that do not compile, or compile to the same bytecode, do
not count. What survives is either in `equivalent_mutants.txt`, with the reason why no test can tell it from the
original, or shows a gap in the tests, and the run fails.

Mutants are tried in processes forked from one that has everything loaded, each on a node of its own; the tests
that killed the last mutants of the same module run first. Files are never touched.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tokenize
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONTRACT = "contracts/StreamPay.vy"
MODULES = ("accrual", "assets", "vault", "streams", "channels", "signatures", "guardianship")
SOURCES = {"StreamPay": CONTRACT} | {name: f"contracts/modules/{name}.vy" for name in MODULES}
TESTS = [
    *(f"tests/contracts/unit/{name}" for name in ("streampay", "channels")),
    "tests/contracts/unit/test_field_mistakes.py",
]
GAS_TESTS = ["tests/contracts/unit/streampay/test_batches.py::test_two_hundred_streams_fit_and_one_more_does_not"]
"""Left out: they count gas, which says nothing of unoptimized bytecode."""
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.txt")
TIMEOUT = 600
"""Seconds for one mutant; one that hangs the tests is noticed, too."""

OTHER_OPERATORS = {
    "<": ("<=",),
    "<=": ("<",),
    ">": (">=",),
    ">=": (">",),
    "==": ("!=",),
    "!=": ("==",),
    "+": ("-",),
    "-": ("+",),
    "*": ("//",),
    "//": ("*",),
    "+=": ("-=",),
    "-=": ("+=",),
    "|=": ("&=",),
    "&": ("|",),
    "|": ("&",),
    "<<": (">>",),
    ">>": ("<<",),
    "~": ("",),
}
OTHER_NAMES = {
    "and": ("or",),
    "or": ("and",),
    "not": ("",),
    "min": ("max",),
    "max": ("min",),
    "True": ("False",),
    "False": ("True",),
    "unsafe_add": ("unsafe_sub",),
    "unsafe_sub": ("unsafe_add",),
    "unsafe_mul": ("unsafe_div",),
    "unsafe_div": ("unsafe_mul",),
}
COMMUTATIVE = ("min", "max", "unsafe_add", "unsafe_mul")
# Blocks that declare, and lines that are no statements of a function.
DECLARATIONS = ("struct", "event", "interface", "flag")
NO_STATEMENTS = ("def", "@", "from", "import", "uses", "initializes", "implements", "exports")


@dataclass(frozen=True)
class Mutant:
    name: str
    """Module and number, e.g. `streams-041`: the same for as long as the source is."""
    source: str
    line: int
    before: str
    after: str
    start: int
    """Offset of `before` in the source."""
    key: str
    """What the list of equivalent mutants names it by, which does not depend on line numbers."""

    @property
    def where(self) -> str:
        return f"{SOURCES[self.source]}:{self.line}"

    def apply(self, text: str) -> str:
        assert text[self.start : self.start + len(self.before)] == self.before
        return text[: self.start] + self.after + text[self.start + len(self.before) :]


def squeeze(text: str) -> str:
    return " ".join(text.split())


Token = tokenize.TokenInfo


class Finder:
    """Finds what can be changed in one source, token by token: Vyper's tokens are Python's."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.text = (ROOT / SOURCES[source]).read_text()
        self.offsets = [0]
        for line in self.text.splitlines(keepends=True):
            self.offsets.append(self.offsets[-1] + len(line))

    def mutants(self) -> list[Mutant]:
        changes: dict[tuple[int, str, str], None] = {}
        for start, before, after in self._changes():
            if before != after:
                changes[start, before, after] = None
        found = []
        lines = self.text.splitlines()
        seen: Counter[str] = Counter()
        for start, before, after in sorted(changes):
            line = self.text.count("\n", 0, start) + 1
            key = f"{self.source}: {squeeze(lines[line - 1])}: {squeeze(before)} -> {squeeze(after) or 'nothing'}"
            seen[key] += 1
            if seen[key] > 1:
                key += f" ({seen[key]})"
            found.append(Mutant(f"{self.source}-{len(found):03}", self.source, line, before, after, start, key))
        return found

    def _changes(self) -> Iterator[tuple[int, str, str]]:
        for line in self._logical_lines():
            first = line[0].string
            if first in NO_STATEMENTS or first in DECLARATIONS or line[0].type == tokenize.STRING:
                continue
            if self._column(line[0]) == 0:  # a constant, or a declaration of storage
                if any(token.string == "constant" for token in line):
                    yield from self._tokens(line[[token.string for token in line].index("=") :])
                continue
            yield from self._tokens(line)
            yield from self._statement(line)
            yield from self._condition(line)
            yield from self._swaps(line)

    def _logical_lines(self) -> Iterator[list[Token]]:
        line: list[Token] = []
        block: int | None = None
        noise = (tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
        for token in tokenize.generate_tokens(io.StringIO(self.text).readline):
            if token.type in noise:
                continue
            if token.type != tokenize.NEWLINE:
                line.append(token)
                continue
            column = self._column(line[0])
            if block is not None and column <= block:
                block = None
            if block is None:
                if line[0].string in DECLARATIONS:
                    block = column
                else:
                    yield line
            line = []

    @staticmethod
    def _column(token: Token) -> int:
        return token.start[1]

    def _at(self, position: tuple[int, int]) -> int:
        return self.offsets[position[0] - 1] + position[1]

    def _span(self, tokens: Sequence[Token]) -> tuple[int, str]:
        start = self._at(tokens[0].start)
        return start, self.text[start : self._at(tokens[-1].end)]

    def _tokens(self, line: Sequence[Token]) -> Iterator[tuple[int, str, str]]:
        """Operators, names that have a counterpart, numbers."""
        for token in line:
            start, before = self._span([token])
            for after in OTHER_OPERATORS.get(before, ()) if token.type == tokenize.OP else ():
                yield start, before, after
            for after in OTHER_NAMES.get(before, ()) if token.type == tokenize.NAME else ():
                yield start, before, after
            if token.type == tokenize.NUMBER:
                base = 16 if before.startswith("0x") else 10
                number = int(before.replace("_", ""), base)
                other = number + 1
                yield start, before, f"0x{other:0{len(before) - 2}X}" if base == 16 else str(other)

    def _statement(self, line: Sequence[Token]) -> Iterator[tuple[int, str, str]]:
        """The statement left out, where nothing later needs a name that it declares."""
        first, second = line[0].string, line[1].string if len(line) > 1 else ""
        declares = second == ":" or first in ("if", "elif", "else", "for")
        if first == "pass" or declares or (first == "return" and len(line) > 1):
            return
        start, before = self._span(line)
        yield start, before, "pass"

    def _condition(self, line: Sequence[Token]) -> Iterator[tuple[int, str, str]]:
        """`if` and the conditional expression turned round."""
        strings = [token.string for token in line]
        for at in [i for i, string in enumerate(strings) if string in ("if", "elif")]:
            last = strings.index("else", at) if at and "else" in strings[at:] else len(strings) - 1
            start, before = self._span(line[at + 1 : last])
            yield start, before, f"not ({before})"

    def _swaps(self, line: Sequence[Token]) -> Iterator[tuple[int, str, str]]:
        """Two neighbouring arguments of a call, or values of its keywords, or of a tuple, exchanged."""
        for at, token in enumerate(line):
            if token.string == "(" and line[at - 1].string not in COMMUTATIVE:
                arguments = list(self._arguments(line, at))
                for left, right in pairwise(arguments):
                    start, before = self._span([*left, *right])
                    (first, one), (second, two) = self._span(left), self._span(right)
                    between = before[len(one) : second - first]
                    yield start, before, two + between + one

    @staticmethod
    def _arguments(line: Sequence[Token], opening: int) -> Iterator[list[Token]]:
        depth, current = 0, []
        for token in line[opening + 1 :]:
            if token.string in "([{":
                depth += 1
            elif token.string in ")]}":
                depth -= 1
            if depth < 0 or (depth == 0 and token.string == ","):
                value = [t for t in current if t.type not in (tokenize.NL, tokenize.COMMENT)]
                if len(value) > 2 and value[1].string == "=":
                    value = value[2:]
                if value:
                    yield value
                current = []
                if depth < 0:
                    return
            else:
                current.append(token)


# Trying one.


def compile_stream_pay(mutant: Mutant | None, *, optimize: bool) -> str:
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
        bundle.load_file(Path(CONTRACT)),
        input_bundle=bundle,
        output_formats=["bytecode"],
        settings=Settings(evm_version="cancun", optimize=level),
        no_bytecode_metadata=True,
    )
    return str(output["bytecode"])


def attempt(
    session: pytest.Session, mutant: Mutant | None, first: Sequence[str], original: str, answer: Answer
) -> None:
    """Try one mutant (or none) with the tests that the session has collected, and leave the process."""
    from vyper.exceptions import VyperException, VyperInternalException

    try:
        bytecode = compile_stream_pay(mutant, optimize=False)
    except (VyperException, VyperInternalException, SyntaxError):
        answer.give("invalid")
    artifact = answer.folder / "bytecode"
    artifact.write_text(bytecode)
    os.environ["PENSTOCK_ARTIFACT"] = str(artifact)
    near = {"channels": "/channels/", "signatures": "_for.py", "guardianship": "guardian"}
    place = near.get(mutant.source, "/streampay/") if mutant else ""
    ranks = {name: rank for rank, name in enumerate(first)}
    openers = {item.path: item.nodeid for item in reversed(session.items)}  # the first test of a file shows most

    def rank(item: pytest.Item) -> tuple[int, bool, bool]:
        return ranks.get(item.nodeid, len(ranks)), item.nodeid not in openers.values(), place not in item.nodeid

    items = sorted(session.items, key=rank)
    session.config.pluginmanager.unregister(name="terminalreporter")
    session.config.pluginmanager.register(answer)
    for item, following in zip(items, [*items[1:], None], strict=True):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
    same = mutant is not None and compile_stream_pay(mutant, optimize=True) == original
    answer.give("same" if same else "survived")


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
    def start(cls, session: pytest.Session, mutant: Mutant | None, first: Sequence[str], original: str) -> Trial:
        node, folder = Node(), tempfile.TemporaryDirectory()
        if process := os.fork():
            return cls(mutant, node, folder, time.monotonic(), process)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.alarm(TIMEOUT)
        try:
            os.environ |= {"PENSTOCK_NODE": node.uri}
            attempt(session, mutant, first, original, Answer(folder.name))
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


class Campaign:
    """A pytest plugin: once the tests are collected, it runs them again and again, once for each mutant."""

    def __init__(self, mutants: Sequence[Mutant], workers: int, seed: int, kept: Path | None) -> None:
        self.mutants = mutants
        self.workers = workers
        self.kept = kept
        self.results: dict[str, dict[str, Any]] = {}
        if kept and kept.exists():
            self.results = json.loads(kept.read_text())
        self.waiting = [m for m in mutants if m.key not in self.results]
        random.Random(seed).shuffle(self.waiting)
        self.killers: dict[str, Counter[str]] = {source: Counter() for source in SOURCES}
        for key, found in self.results.items():
            if found["result"] == "killed":
                self.killers[key.partition(":")[0]][found["by"]] += 1
        self.running: dict[int, Trial] = {}

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            raise session.Interrupted("the tests cannot be collected")
        original = compile_stream_pay(None, optimize=True)
        compile_stream_pay(None, optimize=False)  # so that all it imports is there
        gc.collect()
        gc.freeze()
        gc.disable()  # in the children, which share this memory and live for seconds
        with session.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            healthy = Trial.start(session, None, (), original)
            os.waitpid(healthy.process, 0)
            found = healthy.finish()
            if found["result"] != "survived":
                raise session.Interrupted(f"the tests fail without any mutant: {found['by']} {found['why']}")
            print(f"{len(session.items)} tests, {found['seconds']:.0f} s; {len(self.waiting)} mutants", flush=True)
            began = time.monotonic()
            try:
                self._try_all(session, original)
            finally:
                for trial in self.running.values():
                    trial.stop()
            print(f"{time.monotonic() - began:.0f} s")
        return True

    def _try_all(self, session: pytest.Session, original: str) -> None:
        while self.waiting or self.running:
            while self.waiting and len(self.running) < self.workers:
                mutant = self.waiting.pop()
                first = [name for name, _ in self.killers[mutant.source].most_common(40)]
                trial = Trial.start(session, mutant, first, original)
                self.running[trial.process] = trial
            process, _ = os.wait()
            if process in self.running:
                self._note(self.running.pop(process))

    def _note(self, trial: Trial) -> None:
        assert trial.mutant
        found = self.results[trial.mutant.key] = trial.finish()
        if found["result"] == "killed":
            self.killers[trial.mutant.source][found["by"]] += 1
        if found["result"] not in ("invalid", "killed"):
            print(f"{found['result']}  {trial.mutant.name}  {trial.mutant.where}  {trial.mutant.key}", flush=True)
        if self.kept:
            self.kept.write_text(json.dumps(self.results))


def explained() -> dict[str, str]:
    """Reasons by key: a line with the key, then indented lines with the reason."""
    found: dict[str, str] = {}
    key = ""
    for line in EQUIVALENT.read_text().splitlines() if EQUIVALENT.exists() else []:
        if line.startswith(" "):
            found[key] = (found[key] + " " + line.strip()).strip()
        elif line and not line.startswith("#"):
            key = line.strip()
            found[key] = ""
    return found


def report(mutants: Sequence[Mutant], results: dict[str, dict[str, Any]], reasons: dict[str, str]) -> bool:
    """Print the table and the survivors; whether every survivor is explained."""
    print(f"\n{'module':<14}{'mutants':>8}{'invalid':>9}{'same':>6}{'killed':>8}{'equivalent':>12}{'survived':>10}")
    totals: Counter[str] = Counter()
    survivors = []
    for source in SOURCES:
        row: Counter[str] = Counter()
        for mutant in mutants:
            if mutant.source != source or mutant.key not in results:
                continue
            result = results[mutant.key]["result"]
            if result == "survived" and mutant.key in reasons:
                result = "equivalent"
            elif result == "survived":
                survivors.append(mutant)
            row["all"] += 1
            row[result] += 1
        if row:
            totals += row
            columns = (row["all"], row["invalid"], row["same"], row["killed"], row["equivalent"], row["survived"])
            print(f"{source:<14}" + "".join(f"{n:>{w}}" for n, w in zip(columns, (8, 9, 6, 8, 12, 10), strict=True)))
    counted = totals["killed"] + totals["equivalent"] + totals["survived"]
    if counted:
        real = counted - totals["equivalent"]
        print(f"\nkilled {totals['killed']} of {counted} that differ: {totals['killed'] / counted:.1%}", end="")
        print(f"; of those that are not explained, {totals['killed'] / max(real, 1):.1%}")
    for mutant in survivors:
        print(f"survived  {mutant.name}  {mutant.where}\n    {mutant.key}")
    for mutant in mutants:
        if results.get(mutant.key, {}).get("result") == "error":
            print(f"error  {mutant.name}  {mutant.where}\n{results[mutant.key]['by']}")
    return not survivors and not totals["error"]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--module", choices=SOURCES, action="append", help="only this source; may be repeated")
    parser.add_argument("--limit", type=int, help="only so many mutants, drawn at random")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", action="append", help="only this mutant; may be repeated")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    parser.add_argument("--results", type=Path, help="a file to keep results in: what it has is not tried again")
    options = parser.parse_args(arguments)

    mutants = [m for source in options.module or SOURCES for m in Finder(source).mutants()]
    if options.only:
        mutants = [m for m in mutants if m.name in options.only]
    if options.limit is not None and options.limit < len(mutants):
        drawn = set(random.Random(options.seed).sample(range(len(mutants)), options.limit))
        mutants = [m for i, m in enumerate(mutants) if i in drawn]
    if options.list:
        for mutant in mutants:
            print(f"{mutant.name}  {mutant.where}  {mutant.key}")
        return 0

    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that no node is left behind
    os.chdir(ROOT)
    os.environ["PENSTOCK_PROFILE"] = "quick"
    campaign = Campaign(mutants, options.workers, options.seed, options.results)
    settings = ["-p", "no:ape_test", "-p", "no:cacheprovider", "--tb=line", "-qq"]
    settings += [part for test in GAS_TESTS for part in ("--deselect", test)]
    code = pytest.main([*settings, *TESTS], plugins=[campaign])
    return 0 if report(mutants, campaign.results, explained()) and code == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
