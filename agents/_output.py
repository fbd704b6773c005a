"""What people and scripts see: data on stdout, as a table or as JSON; talk on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any


def emit_json(data: Any) -> None:
    print(json.dumps(data, indent=2, ensure_ascii=False), flush=True)


def emit_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """Aligned columns; those named in `right` are flushed right."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in [head, *rows]:
        cells = [
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(head, row, widths, strict=True)
        ]
        print("  ".join(cells).rstrip())


def talk(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """One line without control characters: much of what is shown was written by strangers."""
    return "".join(c if c.isprintable() else " " for c in text)


def answer_text(text: str, *, terminal: bool) -> str:
    """A piece of an answer as it may be written: to a terminal without escape sequences, elsewhere as it is."""
    if not terminal:
        return text
    return "".join(c for c in text if c.isprintable() or c in "\n\t")


def short(identifier: str) -> str:
    """The first digits of an id, enough to type."""
    return identifier[:10]


def short_address(address: str) -> str:
    return f"{address[:8]}…{address[-4:]}"
