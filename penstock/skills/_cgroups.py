"""A control group for one run of a skill, where the machine lets us make one: bounds that hold for all its processes
together, on top of the limits that each has for itself."""

from __future__ import annotations

import itertools
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

_ROOT = Path("/sys/fs/cgroup")
_NUMBERS = itertools.count()
_left: list[Path] = []
"""Groups that could not be removed yet."""


class Cgroup:
    """Without rights or without controllers it is nothing, and says so: `bounds` is empty."""

    def __init__(self, *, memory: int, processes: int) -> None:
        self._memory, self._processes = memory, processes
        self._folders: list[Path] = []
        self.bounds: set[str] = set()

    def __enter__(self) -> Self:
        name = f"penstock-{os.getpid()}-{next(_NUMBERS)}"
        if (_ROOT / "cgroup.controllers").exists():
            values = {"memory.max": self._memory, "memory.swap.max": 0, "pids.max": self._processes}
            self._make(_own() / name, values)
        else:
            self._make(_ROOT / "memory" / name, {"memory.limit_in_bytes": self._memory})
            self._make(_ROOT / "pids" / name, {"pids.max": self._processes})
        return self

    def add(self, process: int) -> None:
        """By its number, which is not 0: that would be ourselves."""
        assert process > 0
        for folder in self._folders:
            with suppress(OSError):
                (folder / "cgroup.procs").write_text(str(process))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A process that has just been killed may not be buried yet: its group goes with a later one.
        _left.extend(self._folders)
        for folder in list(_left):
            with suppress(OSError):
                folder.rmdir()
                _left.remove(folder)

    def _make(self, folder: Path, values: dict[str, int]) -> None:
        try:
            folder.mkdir()
        except OSError:
            return
        self._folders.append(folder)
        for name, value in values.items():
            with suppress(OSError):
                (folder / name).write_text(str(value))
                self.bounds.add(name.partition(".")[0])


def _own() -> Path:
    """The group that we are in (cgroup v2): below it we may have been given rights."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                return _ROOT / line[3:].strip("/")
    return _ROOT
