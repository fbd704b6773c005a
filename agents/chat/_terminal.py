"""Where a conversation is typed and shown: a terminal, or pipes."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from agents._output import printable


class Terminal:
    """A person: lines are edited and remembered in `history`; the last row shows the cost."""

    def __init__(self, history: Path) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import FileHistory

        history.touch(mode=0o600)
        self._prompt: PromptSession[str] = PromptSession(history=FileHistory(str(history)))

    async def lines(self) -> AsyncIterator[str]:
        """Until Ctrl-D. Ctrl-C drops the line."""
        while True:
            try:
                yield await self._prompt.prompt_async("> ", handle_sigint=False)
            except KeyboardInterrupt:
                continue
            except EOFError:
                return

    @contextlib.asynccontextmanager
    async def status(self, text: Callable[[], str], every: float = 0.5) -> AsyncIterator[None]:
        """Show a text in the last row while the block runs; what is written scrolls above it."""
        columns, rows = shutil.get_terminal_size()
        if rows < 4:
            yield
            return

        def show() -> None:
            line = printable(text())[: columns - 1]
            sys.stdout.write(f"\x1b7\x1b[{rows};1H\x1b[2K\x1b[2m{line}\x1b[0m\x1b8")
            sys.stdout.flush()

        async def keep() -> None:
            while True:
                show()
                await asyncio.sleep(every)

        # A line break first, so that the cursor is not in the row that is taken from the text.
        sys.stdout.write(f"\n\x1b[1A\x1b7\x1b[1;{rows - 1}r\x1b8")
        showing = asyncio.create_task(keep())
        try:
            yield
        finally:
            showing.cancel()
            sys.stdout.write(f"\x1b7\x1b[r\x1b[{rows};1H\x1b[2K\x1b8")
            sys.stdout.flush()


class Pipe:
    """A script: a line is a question or a command."""

    async def lines(self) -> AsyncIterator[str]:
        loop = asyncio.get_running_loop()
        found: asyncio.Queue[str] = asyncio.Queue()

        def read() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is over
                for line in sys.stdin:
                    loop.call_soon_threadsafe(found.put_nowait, line)
                loop.call_soon_threadsafe(found.put_nowait, "")

        # A thread that nobody waits for: a signal must end the program while it reads.
        threading.Thread(target=read, daemon=True).start()
        while line := await found.get():
            yield line.rstrip("\n")

    @contextlib.asynccontextmanager
    async def status(self, text: Callable[[], str], every: float = 0.5) -> AsyncIterator[None]:
        yield
