"""Mutants that somebody thought of, in `by_hand.txt`."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import groupby
from pathlib import Path

from tests.mutation.mutants import Mutant, squeeze
from tests.mutation.targets import ROOT, SOURCES

CHANGES = Path(__file__).with_name("by_hand.txt")


def by_hand(sources: Collection[str]) -> list[Mutant]:
    """Those of these sources, named by source and number."""
    found: list[Mutant] = []
    for source, before, after in _changes():
        if source not in sources:
            continue
        text = (ROOT / SOURCES[source]).read_text()
        if (times := text.count(before)) != 1:
            raise ValueError(f"{SOURCES[source]} has this {times} times, not once: {before}")
        start = text.index(before)
        line = text.count("\n", 0, start) + 1
        number = sum(mutant.source == source for mutant in found)
        key = f"{source}: by hand: {squeeze(before)} -> {squeeze(after) or 'nothing'}"
        found.append(Mutant(f"{source}-hand-{number:02}", source, line, before, after, start, key))
    return found


def _changes() -> Iterator[tuple[str, str, str]]:
    """Source, before, after."""
    source = ""
    for is_change, lines in groupby(CHANGES.read_text().splitlines(), lambda line: line[:1] in ("-", "+")):
        if is_change:
            block = list(lines)
            before, after = ("\n".join(line[1:] for line in block if line[0] == sign) for sign in "-+")
            yield source, before, after
        else:
            source = next((line[2:] for line in lines if line.startswith("= ")), source)
