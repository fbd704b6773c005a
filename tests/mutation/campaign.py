"""A run of the tests for each mutant, and what came of it."""

from __future__ import annotations

import gc
import json
import os
import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.mutation.mutants import Mutant
from tests.mutation.targets import SOURCES, Target
from tests.mutation.trial import Trial, compile_contract

EQUIVALENT = Path(__file__).with_name("equivalent.txt")


class Campaign:
    """A pytest plugin: once the tests are collected, it runs them again and again, once for each mutant."""

    def __init__(self, target: Target, mutants: Sequence[Mutant], workers: int, seed: int, kept: Path | None) -> None:
        self.target = target
        self.mutants = mutants
        self.workers = workers
        self.kept = kept
        self.results: dict[str, dict[str, Any]] = {}
        if kept and kept.exists():
            self.results = json.loads(kept.read_text())
        self.waiting = [m for m in mutants if m.key not in self.results]
        random.Random(seed).shuffle(self.waiting)
        self.killers: dict[str, Counter[str]] = {source: Counter() for source in target.sources}
        for key, found in self.results.items():
            if found["result"] == "killed" and (source := key.partition(":")[0]) in self.killers:
                self.killers[source][found["by"]] += 1
        self.running: dict[int, Trial] = {}

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            raise session.Interrupted("the tests cannot be collected")
        path = SOURCES[self.target.name]
        original = compile_contract(path, None, optimize=True)
        compile_contract(path, None, optimize=False)  # so that all it imports is there
        gc.collect()
        gc.freeze()
        gc.disable()  # in the children, which share this memory and live for seconds
        with session.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            healthy = Trial.start(session, self.target, None, (), original)
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
                trial = Trial.start(session, self.target, mutant, first, original)
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


def report(
    target: Target, mutants: Sequence[Mutant], results: dict[str, dict[str, Any]], reasons: dict[str, str]
) -> bool:
    """Print the table and the survivors; whether every survivor is explained."""
    print(f"\n{'module':<14}{'mutants':>8}{'invalid':>9}{'same':>6}{'killed':>8}{'equivalent':>12}{'survived':>10}")
    totals: Counter[str] = Counter()
    survivors = []
    for source in target.sources:
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
