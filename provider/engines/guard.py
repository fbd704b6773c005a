"""Runs one command for a parent that may die: `python guard.py GRACE_SECONDS COMMAND...`, the standard library alone.

The command gets a process group of its own. When stdin says `stop` it is asked to end (SIGTERM) and given the grace;
when stdin ends without a word, because the parent was killed, the whole group is killed at once. Whatever the command
leaves behind in its group when it ends is killed too: an engine's workers hold a GPU's memory for as long as they live.
The first line on stdout is the group's id. The exit status is the command's.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading


def die_with_parent() -> None:
    """Between fork and exec: the kernel kills the command with us, should we be killed. On Linux alone."""
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def main() -> int:
    grace, command = float(sys.argv[1]), sys.argv[2:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # what a terminal sends to all: the parent decides

    def begin() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        die_with_parent()

    try:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True, preexec_fn=begin
        )
    except OSError as error:
        print(f"error: cannot run {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        return 127
    print(child.pid, flush=True)

    def kill() -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)

    def listen() -> None:
        if sys.stdin.readline().strip() == "stop":
            child.terminate()
            threading.Event().wait(grace)
        kill()

    threading.Thread(target=listen, daemon=True).start()
    status = child.wait()
    kill()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
