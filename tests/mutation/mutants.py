"""What can be changed in a source: the generated mutants, and the words that describe one."""

from __future__ import annotations

import io
import tokenize
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tests.mutation.targets import ROOT, SOURCES

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
