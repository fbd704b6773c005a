"""Work that must not be left half done when its task is cancelled, and signals that cancel a task."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

_T = TypeVar("_T")


async def to_the_end(work: Coroutine[Any, Any, _T]) -> _T:
    """The work's result. Cancelling the caller does not stop the work: it is raised when the work is done."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
        except BaseException:
            break
    if cancelled is not None and not task.cancelled():
        task.exception()
        raise cancelled
    return task.result()


@dataclass(slots=True)
class Stop:
    """Which signal asked to stop; 0: none yet."""

    signal: int = 0
    instead: Callable[[], object] | None = None
    """What Ctrl-C does while this is set, and nothing else."""


@contextlib.contextmanager
def stopping_on_signals(
    signals: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
    notice: Callable[[Stop], None] | None = None,
) -> Iterator[Stop]:
    """Within the block, the first of these signals cancels the current task; later ones only call `notice` again,
    so that an impatient Ctrl-C does not leave a stream open. Main thread only.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    stop = Stop()

    def on_signal(number: signal.Signals) -> None:
        if number == signal.SIGINT and stop.instead is not None:
            stop.instead()
            return
        first = not stop.signal
        stop.signal = stop.signal or number
        if first:
            task.cancel()
        if notice is not None:
            with contextlib.suppress(OSError):  # a terminal that is gone takes no words
                notice(stop)

    for number in signals:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield stop
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
