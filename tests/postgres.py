"""PostgreSQL for tests: a cluster of their own in a temporary folder, and an empty database for each test.

    from tests.postgres import database, postgres

It needs Debian's `postgresql` package or the like, no running server, and no rights: as root it runs the server as
`nobody`. Where there is none, tests that want it are skipped; with CI set they fail.
"""

from __future__ import annotations

import glob
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness import PATIENCE

_USER = "penstock"
_OPTIONS = ("listen_addresses=", "fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=50")


@dataclass(frozen=True)
class Cluster:
    """A server in a folder of its own."""

    folder: Path
    binaries: Path
    run_as: dict[str, int]

    def url(self, name: str) -> str:
        return f"postgresql://{_USER}@/{name}?host={self.folder}"

    def sql(self, statement: str, name: str = "postgres") -> str:
        """Run it; what it prints."""
        command = [self.binaries / "psql", "-h", self.folder, "-U", _USER, "-d", name, "-qAtc", statement]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def control(self, *words: str) -> None:
        """`pg_ctl`: start, stop, restart. Returns when that is done."""
        log = self.folder / "log"
        options = " ".join(f"-c {option}" for option in (*_OPTIONS, f"unix_socket_directories={self.folder}"))
        words = (*words, "-o", options) if words[0] == "start" else words
        command = [self.binaries / "pg_ctl", "-D", self.folder / "data", "-l", log, "-t", f"{PATIENCE:g}", "-s", *words]
        with (self.folder / "pg_ctl.log").open("w+") as said:  # a pipe would be kept open by the server
            done = subprocess.run(command, stdout=said, stderr=said, check=False, cwd=self.folder, **self.run_as)
            said.seek(0)
            assert done.returncode == 0, said.read() + log.read_text()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Inside, the server hangs: connections stay, and nothing is said on them."""
        stopped = self.freeze()
        try:
            yield
        finally:
            self.thaw(*stopped)

    def freeze(self) -> list[int]:
        """Stop all of its processes where they are. `thaw` lets them go on."""
        server = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        os.kill(server, signal.SIGSTOP)  # first: then it makes no more of them
        found = [server]
        for stat in glob.glob("/proc/[0-9]*/stat"):
            with suppress(OSError):
                pid, _, rest = Path(stat).read_text().partition(" ")
                if int(rest.rpartition(")")[2].split()[1]) == server:
                    os.kill(int(pid), signal.SIGSTOP)
                    found.append(int(pid))
        return found

    def thaw(self, *processes: int) -> None:
        for process in processes:
            os.kill(process, signal.SIGCONT)


def binaries() -> Path | None:
    """Where `initdb` and `postgres` are."""
    places = [Path(found).resolve().parent for found in [shutil.which("initdb")] if found]
    places += [Path(place) for place in sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)]
    return next((place for place in places if (place / "initdb").exists() and (place / "postgres").exists()), None)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    found = binaries()
    if found is None:
        assert not os.environ.get("CI"), "no PostgreSQL here: apt-get install postgresql"
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="penstock-pg-", dir="/tmp"))
    run_as: dict[str, int] = {}
    if os.geteuid() == 0:  # the server refuses to run as root
        nobody = pwd.getpwnam("nobody")
        run_as = {"user": nobody.pw_uid, "group": nobody.pw_gid}
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    try:
        cluster = Cluster(folder, found, run_as)
        command = [found / "initdb", "-D", folder / "data", "-U", _USER, "-A", "trust", "-E", "UTF8", "--no-sync"]
        done = subprocess.run(
            [*command, "--locale=C"], capture_output=True, text=True, check=False, cwd=folder, **run_as
        )
        assert done.returncode == 0, done.stderr
        cluster.control("start")
        try:
            yield cluster
        finally:
            cluster.control("stop", "-m", "immediate")  # waits for nobody
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def database(postgres: Cluster) -> Iterator[str]:
    """The URL of an empty database."""
    name = "test_" + secrets.token_hex(6)
    postgres.sql(f"CREATE DATABASE {name}")
    yield postgres.url(name)
    postgres.sql(f"DROP DATABASE {name} WITH (FORCE)")
