"""Runs a skill's code where it can do no harm: bubblewrap, and no code at all where that does not isolate.

Inside there is a Python interpreter with its standard library, the skill, and an empty /tmp, all read-only but the
last. No network (hosts that the card declares are reached through a proxy, see `egress`), no environment, no other
process to be seen, a user that owns nothing and makes no user namespace. Time, processor time, memory, processes, files
and output are bounded; where the machine lets us make control groups, memory and processes are also bounded together.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from penstock.errors import ConfigError
from penstock.skills._cgroups import Cgroup
from penstock.skills._seccomp import no_user_namespaces
from penstock.skills.egress import Egress
from penstock.skills.manifest import Run
from penstock.skills.package import write_files

_RUNNER = Path(__file__).with_name("_runner.py")
_LOG = 16 * 1024
"""Bytes kept of what a skill prints."""
_START_SECONDS = 60.0
"""Of wall time, for bubblewrap: nothing of the skill runs yet."""
_USERS = itertools.count(2_000_000_000 + os.getpid() % 100_000 * 1_000)
"""Users that nobody has, one for each run: so that what one run starts counts for it alone."""
_MIB = 1024 * 1024


class SkillFailed(Exception):
    """The skill did not answer. `code` says why: failed, timed_out, killed, output_too_large, garbage."""

    def __init__(self, code: str, message: str, log: str = "") -> None:
        self.code, self.log = code, log
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Result:
    output: Any
    log: str
    """What the skill printed, shortened."""


class Sandbox:
    """`check` comes first. Runs may go on side by side."""

    def __init__(self, *, bwrap: str = "bwrap", allow_private: bool = False) -> None:
        """`allow_private`: hosts that a card declares may be on this machine or a private network."""
        self._bwrap = bwrap
        self._allow_private = allow_private

    async def check(self) -> None:
        """ConfigError where skills would not be isolated here: nothing is run then."""
        if shutil.which(self._bwrap) is None:
            raise ConfigError(
                f"skills run isolated or not at all, and {self._bwrap} is not on this machine: install bubblewrap"
            )
        with tempfile.TemporaryDirectory(prefix="penstock-probe-") as folder:
            skill = Path(folder)
            write_files({"skill.py": _PROBE.encode()}, skill)
            try:
                seen = (
                    await self.run(skill, Run(seconds=_START_SECONDS), "probe", {"path": str(skill / "skill.py")})
                ).output
            except SkillFailed as error:
                raise ConfigError(
                    f"bubblewrap does not isolate here ({error}; {error.log.strip()[-300:]}): allow user namespaces "
                    "(sysctl kernel.unprivileged_userns_clone=1, or AppArmor's profile for bwrap), or run as root"
                ) from None
        wrong = [name for name, found in seen.items() if found]
        if wrong:
            raise ConfigError(f"the sandbox leaks ({', '.join(wrong)}): no skill is run on this machine")

    async def run(self, folder: Path, run: Run, operation: str, given: Any) -> Result:
        """Call a function of the skill in a folder. SkillFailed says why there is no answer."""
        with tempfile.TemporaryDirectory(prefix="penstock-run-") as scratch:
            if not run.network:
                return await self._run(folder, run, operation, given, None)
            place = Path(scratch) / "proxy"
            async with Egress(run.network, place, allow_private=self._allow_private):
                for path, mode in ((Path(scratch), 0o711), (place, 0o666)):
                    os.chmod(path, mode)  # whoever it runs as may knock, and nothing else is in there
                return await self._run(folder, run, operation, given, place)

    async def _run(self, folder: Path, run: Run, operation: str, given: Any, proxy: Path | None) -> Result:
        root = os.geteuid() == 0
        job = {
            "entry": run.entry,
            "operation": operation,
            "input": given,
            "user": next(_USERS) if root else 0,
            "proxy": "/proxy" if proxy else "",
            "limits": {
                "cpu": run.cpu_seconds,
                "memory": run.memory_mb * _MIB,
                "processes": run.processes,
                "scratch": run.scratch_mb * _MIB,
            },
        }
        limit = run.output_kb * 1024
        with Cgroup(memory=run.memory_mb * _MIB, processes=run.processes + 4) as group:
            async with self._process(folder, run, proxy, root, group) as process:
                try:
                    async with asyncio.timeout(run.seconds):
                        output, log = await _exchange(process, json.dumps(job).encode(), limit)
                        code = await process.wait()
                except TimeoutError:
                    raise SkillFailed("timed_out", f"the skill did not answer within {run.seconds:g} s") from None
        if len(output) > limit:
            raise SkillFailed("output_too_large", f"the skill answered with more than {run.output_kb} KiB", log)
        if not output:
            raise SkillFailed(
                "killed",
                f"the skill ended without an answer (status {code}): it crashed, or went over its {run.memory_mb} "
                f"MB or {run.cpu_seconds} s of processor time",
                log,
            )
        try:
            answer = msgspec.json.decode(output)
        except (msgspec.DecodeError, RecursionError):
            raise SkillFailed("garbage", "the skill's answer is no JSON", log) from None
        if not isinstance(answer, dict) or len(answer) != 1 or not answer.keys() <= {"output", "error"}:
            raise SkillFailed("garbage", "the skill wrote its answer by itself", log)
        if "error" in answer:
            raise SkillFailed("failed", f"the skill failed: {answer['error']}", log)
        return Result(answer["output"], log)

    @asynccontextmanager
    async def _process(
        self, folder: Path, run: Run, proxy: Path | None, root: bool, group: Cgroup
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        """bwrap with the runner in it. On the way out all of it is dead."""
        info, info_write = os.pipe()
        block_read, block = os.pipe()
        filter_read, filter_write = os.pipe()
        command = [self._bwrap, *_arguments(folder, run, proxy, root)]
        if rules := no_user_namespaces():
            os.write(filter_write, rules)
            command += ["--seccomp", str(filter_read)]
        os.close(filter_write)
        command += ["--info-fd", str(info_write), "--block-fd", str(block_read), "--", *_python(), "/runner.py"]
        child = 0
        process = None
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={},
                pass_fds=(info_write, block_read, filter_read),
                start_new_session=True,
            )
            os.close(info_write)
            os.close(block_read)
            os.close(filter_read)
            info_write = block_read = filter_read = -1
            child = await _first_process(info)
            if child:
                group.add(child)
            with suppress(BrokenPipeError):  # bwrap failed: it says why
                os.write(block, b"go")
            yield process
        finally:
            for descriptor in (info, info_write, block_read, block, filter_read):
                if descriptor >= 0:
                    os.close(descriptor)
            if process is not None:
                # The first process of the namespace takes all others with it.
                for number in (child, process.pid):
                    if number and process.returncode is None:
                        with suppress(ProcessLookupError):
                            os.kill(number, 9)
                await process.wait()
                process._transport.close()  # type: ignore[attr-defined]  # what was not read is not read any more


def _arguments(folder: Path, run: Run, proxy: Path | None, root: bool) -> list[str]:
    words = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    words += ["--die-with-parent", "--new-session", "--clearenv", "--hostname", "skill", "--cap-drop", "ALL"]
    if root:  # the runner gives these up with its user
        words += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        words += ["--unshare-user", "--disable-userns", "--uid", "65534", "--gid", "65534"]
    words += ["--ro-bind", "/usr", "/usr"]
    for name in ("lib", "lib64", "bin"):
        place = Path("/") / name
        if place.is_symlink():
            words += ["--symlink", os.readlink(place), str(place)]
        elif place.is_dir():
            words += ["--ro-bind", str(place), str(place)]
    if not _is_system(sys.base_prefix):
        words += ["--ro-bind", sys.base_prefix, "/python"]
    words += ["--proc", "/proc", "--dev", "/dev", "--ro-bind", str(_RUNNER), "/runner.py"]
    words += ["--ro-bind", str(folder), "/skill", "--size", str(run.scratch_mb * _MIB), "--perms", "1777"]
    words += ["--tmpfs", "/tmp"]
    if proxy is not None:
        words += ["--bind", str(proxy), "/proxy"]
        for certificates in ("/etc/ssl", "/etc/pki"):
            words += ["--ro-bind-try", certificates, certificates]
    return [*words, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/"]


def _python() -> list[str]:
    """The interpreter that runs us, as the sandbox sees it; without its site-packages."""
    binary = Path(sys._base_executable).resolve()  # type: ignore[attr-defined]
    if not _is_system(sys.base_prefix):
        binary = Path("/python") / binary.relative_to(Path(sys.base_prefix).resolve())
    return [str(binary), "-I", "-S", "-B"]


def _is_system(prefix: str) -> bool:
    return Path(prefix).resolve().is_relative_to("/usr")


async def _first_process(info: int) -> int:
    """The number of the namespace's first process, from bwrap's own word, which comes in pieces; 0 where it said none,
    because it failed."""
    loop, more, said = asyncio.get_running_loop(), asyncio.Event(), b""
    loop.add_reader(info, more.set)
    try:
        async with asyncio.timeout(_START_SECONDS):
            while True:
                await more.wait()
                more.clear()
                piece = os.read(info, 4096)
                said += piece
                with suppress(ValueError):
                    return int(json.loads(said)["child-pid"])
                if not piece:
                    return 0
    except TimeoutError:
        raise SkillFailed("failed", f"the sandbox did not start within {_START_SECONDS:g} s") from None
    finally:
        loop.remove_reader(info)


async def _exchange(process: asyncio.subprocess.Process, job: bytes, limit: int) -> tuple[bytes, str]:
    """Give it the job, read the answer and a little of what it prints. Reading ends where either is too long."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    with suppress(ConnectionError):
        process.stdin.write(job)
        await process.stdin.drain()
        process.stdin.close()
    log = asyncio.create_task(_drain(process.stderr, _LOG))
    output = await _read(process.stdout, limit + 1)
    if len(output) > limit:
        with suppress(ProcessLookupError):
            process.kill()
    return output, (await log).decode(errors="replace")


async def _read(stream: asyncio.StreamReader, limit: int) -> bytes:
    parts = bytearray()
    while len(parts) < limit and (part := await stream.read(65536)):
        parts += part
    return bytes(parts[:limit])


async def _drain(stream: asyncio.StreamReader, keep: int) -> bytes:
    """The first bytes; the rest is read and dropped, so that nobody waits for us."""
    kept = bytearray()
    while part := await stream.read(65536):
        kept += part[: keep - len(kept)]
    return bytes(kept)


_PROBE = """
import ctypes, os, socket

def _fails(call):
    try:
        call()
    except OSError:
        return False
    return True

def probe(path):
    interfaces = [name for _, name in socket.if_nameindex() if name != "lo"]
    return {
        "reads files": os.path.exists(path),
        "writes files": _fails(lambda: open("/usr/penstock", "w")) or _fails(lambda: open("/penstock", "w")),
        "has a network": bool(interfaces),
        "is root": os.getuid() == 0,
        "sees processes": len([name for name in os.listdir("/proc") if name.isdigit()]) > 3,
        "makes user namespaces": ctypes.CDLL(None).unshare(0x10000000) == 0,
        "has an environment": bool(set(os.environ) - {"PWD", "LC_CTYPE"}),
    }
"""
