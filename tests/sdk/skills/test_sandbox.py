"""Skills that mean harm, in the real sandbox. Each attack is code that would succeed outside of it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import platform
import shutil
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from penstock.errors import ConfigError
from penstock.skills import sandbox as sandboxes
from penstock.skills._seccomp import no_user_namespaces
from penstock.skills.manifest import Run
from penstock.skills.sandbox import Sandbox, SkillFailed
from tests.harness import PATIENCE
from tests.skills import needs_sandbox

pytestmark = needs_sandbox

LIMITS = Run(seconds=2 * PATIENCE, cpu_seconds=2, memory_mb=96, processes=4, output_kb=16, scratch_mb=2)

CODE = """
import os, socket, sys, threading, time

def echo(value):
    print("said", value)
    return {"value": value}

def reads(path):
    return open(path).read()

def lists(path):
    return os.listdir(path)

def dials(port):
    socket.create_connection(("127.0.0.1", port), 1)

def resolves():
    return socket.gethostbyname("example.com")

def abstract(name):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(chr(0) + name)

def forks():
    made = 0
    try:
        while made < 500:
            if os.fork() == 0:
                time.sleep(60)
            made += 1
    except OSError:
        pass
    return made

def threads():
    made = 0
    try:
        while made < 500:
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
            made += 1
    except RuntimeError:
        pass
    return made

def leaves_a_child():
    if os.fork() == 0:
        os.setsid()
        time.sleep(60)
    return "left"

def fills():
    kept = []
    while True:
        kept.append(bytearray(1 << 20))

def fills_together():
    for _ in range(2):
        if os.fork() == 0:
            kept = [bytearray(os.urandom(1 << 20)) for _ in range(60)]
            time.sleep(600)
    return os.WTERMSIG(os.wait()[1])

def sleeps():
    time.sleep(60)

def spins():
    while True:
        pass

def writes(path):
    open(path, "w").write("x")

def fills_the_disk():
    for number in range(100):
        open(f"/tmp/{number}", "wb").write(bytes(1 << 20))

def environment():
    return dict(os.environ)

def processes():
    return [name for name in os.listdir("/proc") if name.isdigit()]

def user():
    return [os.getuid(), os.getgid(), os.getgroups()]

def floods():
    return "x" * 1_000_000

def floods_the_log():
    for _ in range(2000):
        print("x" * 1000)
    return "done"

def forges():
    for descriptor in range(1, 20):
        try:
            os.write(descriptor, b"{}{}")
        except OSError:
            pass
    os._exit(0)

def exits():
    sys.exit(3)

def mounts():
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.mount(b"none", b"/tmp", b"tmpfs", 0, None)
    return [done, ctypes.get_errno()]

def namespaces(clone):
    import ctypes
    libc, user, refused = ctypes.CDLL(None, use_errno=True), 0x10000000, []
    structure = (ctypes.c_uint64 * 11)(user, 0, 0, 0, 17)
    for call in (
        lambda: libc.unshare(user),
        lambda: libc.unshare(user | 0x20000),
        lambda: libc.syscall(clone, user | 17, 0, 0, 0, 0),
        lambda: libc.syscall(435, structure, ctypes.sizeof(structure)),
    ):
        refused.append(ctypes.get_errno() if call() == -1 else 0)
    return refused

def not_json():
    return object()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "skill"
    place.mkdir()
    (place / "skill.py").write_text(CODE)
    return place


async def call(folder: Path, operation: str, run: Run = LIMITS, **given: Any) -> Any:
    return (await Sandbox().run(folder, run, operation, given)).output


async def refusal(folder: Path, operation: str, run: Run = LIMITS, **given: Any) -> SkillFailed:
    with pytest.raises(SkillFailed) as found:
        await Sandbox().run(folder, run, operation, given)
    return found.value


async def test_a_skill_answers_and_what_it_prints_is_kept_apart(folder: Path) -> None:
    await Sandbox().check()
    result = await Sandbox().run(folder, LIMITS, "echo", {"value": [1, "ä", None]})
    assert result.output == {"value": [1, "ä", None]}
    assert result.log == "said [1, 'ä', None]\n"


async def test_no_file_of_the_host_is_there(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o644)
    for path in (str(secret), str(folder / "skill.py"), "/etc/passwd", f"/proc/{os.getpid()}/environ", "/sys/kernel"):
        assert "No such file" in str(await refusal(folder, "reads", path=path))
    assert sorted(await call(folder, "lists", path="/")) == sorted(
        {"bin", "dev", "lib", "lib64", "proc", "runner.py", "skill", "tmp", "usr", "python"}
        & set(await call(folder, "lists", path="/"))
    )
    assert await call(folder, "lists", path="/skill") == ["skill.py"]


async def test_there_is_no_network_not_even_to_this_machine(folder: Path) -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        assert "refused" in str(await refusal(folder, "dials", port=port))
    assert "gaierror" in str(await refusal(folder, "resolves"))
    name = f"penstock-test-{os.getpid()}"
    listener = await asyncio.start_unix_server(lambda _, writer: writer.close(), f"\0{name}")
    async with listener:
        assert "refused" in str(await refusal(folder, "abstract", name=name))


@pytest.mark.parametrize("path", ["/skill/skill.py", "/usr/x", "/x", "/dev/x", "/runner.py", "/proc/sys/kernel/core"])
async def test_nothing_can_be_written_but_its_own_scratch(folder: Path, path: str) -> None:
    assert "Error: [Errno" in str(await refusal(folder, "writes", path=path))


async def test_scratch_is_small_and_gone_afterwards(folder: Path) -> None:
    assert await call(folder, "writes", path="/tmp/x") is None
    assert await call(folder, "lists", path="/tmp") == []
    assert "No space" in str(await refusal(folder, "fills_the_disk"))


@pytest.mark.parametrize("operation", ["forks", "threads"])
async def test_processes_and_threads_are_few(folder: Path, operation: str) -> None:
    assert await call(folder, operation) < LIMITS.processes


async def test_nothing_outlives_a_run(folder: Path) -> None:
    assert await call(folder, "leaves_a_child") == "left"
    async with asyncio.timeout(PATIENCE):
        while any(_sees(process, folder) for process in os.listdir("/proc") if process.isdigit()):
            await asyncio.sleep(0.01)


def _sees(process: str, folder: Path) -> bool:
    """Whether the folder is mounted for it."""
    try:
        with open(f"/proc/{process}/mountinfo") as file:
            return f"{folder} /skill " in file.read()
    except OSError:
        return False


async def test_memory_is_bounded(folder: Path) -> None:
    assert "MemoryError" in str(await refusal(folder, "fills"))


@pytest.mark.skipif(not os.access("/sys/fs/cgroup/memory", os.W_OK), reason="no control groups to make here")
async def test_memory_is_bounded_for_all_processes_together(folder: Path) -> None:
    """Each of two has room for 60 MB, and both together have not: they never hold it at once."""
    assert await call(folder, "fills_together") == signal.SIGKILL


async def test_time_is_bounded(folder: Path) -> None:
    assert (await refusal(folder, "sleeps", Run(seconds=0.5))).code == "timed_out"
    assert (await refusal(folder, "spins")).code == "killed"


async def test_it_sees_neither_environment_nor_processes_nor_rights(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_PRIVATE_KEY", "0x11")
    assert set(await call(folder, "environment")) <= {"PWD", "LC_CTYPE"}
    assert len(await call(folder, "processes")) <= 3
    user, group, groups = await call(folder, "user")
    assert user > 0
    assert group > 0
    assert set(groups) <= {65534}
    assert await call(folder, "mounts") == [-1, 1]  # EPERM


@pytest.mark.skipif(not no_user_namespaces(), reason="no filter of system calls for this machine")
async def test_it_makes_no_user_namespace(folder: Path) -> None:
    """In one of its own it would be root, and reach much more of the kernel."""
    clone = {"x86_64": 56, "aarch64": 220}[platform.machine()]
    refused = await call(folder, "namespaces", clone=clone)
    assert refused == [errno.EPERM, errno.EPERM, errno.EPERM, errno.ENOSYS]


async def test_output_is_bounded_and_must_be_an_answer(folder: Path) -> None:
    assert (await refusal(folder, "floods")).code == "output_too_large"
    assert (await refusal(folder, "forges")).code == "garbage"
    assert (await refusal(folder, "not_json")).code == "failed"
    assert "SystemExit" in str(await refusal(folder, "exits"))
    assert "no function nothing" in str(await refusal(folder, "nothing"))
    result = await Sandbox().run(folder, LIMITS, "floods_the_log", {})
    assert result.output == "done"
    assert len(result.log) <= 16 * 1024


async def test_a_declared_host_is_reached_and_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "skill"
    folder.mkdir()
    (folder / "skill.py").write_text(
        "import urllib.request\n\ndef fetch(url):\n    return urllib.request.urlopen(url, timeout=60).read().decode()\n"
    )

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        run = Run(network=(f"localhost:{port}",), processes=16, seconds=2 * PATIENCE)
        given = {"url": f"http://localhost:{port}/x"}
        assert (await Sandbox(allow_private=True).run(folder, run, "fetch", given)).output == "hello"
        with pytest.raises(SkillFailed, match="403"):  # a private address, which the operator did not allow
            await Sandbox().run(folder, run, "fetch", given)
        with pytest.raises(SkillFailed, match="403"):  # not declared
            await Sandbox(allow_private=True).run(folder, run, "fetch", {"url": f"http://127.0.0.1:{port}/x"})
        with pytest.raises(SkillFailed, match="URLError"):  # no network declared: no proxy either
            await Sandbox(allow_private=True).run(folder, msgspec.structs.replace(run, network=()), "fetch", given)


async def test_without_isolation_nothing_runs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="install bubblewrap"):
        await Sandbox(bwrap="no-such-bwrap").check()
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho no permissions to create a namespace >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(ConfigError, match="does not isolate here"):
        await Sandbox(bwrap=str(broken)).check()
    open_to_all = sandboxes._arguments

    def leaking(*given: Any) -> list[str]:
        words = open_to_all(*given)
        words.remove("--unshare-net")
        return words

    monkeypatch.setattr(sandboxes, "_arguments", leaking)
    if len(os.listdir("/sys/class/net")) > 1:
        with pytest.raises(ConfigError, match="has a network"):
            await Sandbox().check()
    monkeypatch.setattr(sandboxes, "_arguments", open_to_all)
    monkeypatch.setattr(sandboxes, "no_user_namespaces", lambda: b"")
    if os.geteuid() == 0:  # for others bwrap forbids it in its own way, too
        with pytest.raises(ConfigError, match="makes user namespaces"):
            await Sandbox().check()
    assert shutil.which("bwrap")
