#!/usr/bin/env python3
"""Set up everything the project needs inside its own folder, from locked versions.

    python3 scripts/_bootstrap.py [--clients]

Makes `.venv` (Python packages, by hash) and `.toolchain` (uv, anvil, solc, OpenZeppelin). Running it
again costs milliseconds: a step runs only when its lock has changed. It uses the standard library
alone, because nothing else is there yet.
"""

import base64
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".toolchain"
VENV = ROOT / ".venv"
LOCKS = ROOT / "requirements"
SUPPORTED = ((3, 11), (3, 13))  # from, below: newer Pythons build Ape's old pins from source
ANVIL_AT_LEAST = (1, 5)
FORGET = "--max-persisted-states 0"


class SetupError(Exception):
    """A step failed; the text says what to do."""


def say(text: str) -> None:
    print(f"setup: {text}", file=sys.stderr, flush=True)


def run(*command: object, env: dict[str, str] | None = None, cwd: Path = ROOT) -> None:
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SetupError(f"`{' '.join(words)}` failed:\n{done.stdout}{done.stderr}")


def digest(*parts: Path | str) -> str:
    """One hash over files' contents and plain words."""
    state = hashlib.sha256()
    for part in parts:
        state.update(part.read_bytes() if isinstance(part, Path) else part.encode())
    return state.hexdigest()


def fresh(name: str, want: str) -> bool:
    """True where the step `name` has already run with this lock."""
    stamp = TOOLS / "stamps" / name
    return stamp.exists() and stamp.read_text() == want


def mark(name: str, want: str) -> None:
    stamp = TOOLS / "stamps" / name
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(want)


def venv_bin(venv: Path, name: str) -> Path:
    return venv / ("Scripts" if os.name == "nt" else "bin") / name


def uv() -> Path:
    """The pinned uv, in an environment of its own."""
    home = TOOLS / "uv"
    binary = venv_bin(home, "uv")
    want = digest(LOCKS / "uv.txt")
    if not (fresh("uv", want) and binary.exists()):
        say("installing uv")
        try:
            run(sys.executable, "-m", "venv", "--clear", home)
        except SetupError as error:
            raise SetupError(f"{error}\nOn Debian and Ubuntu: apt-get install python3-venv") from None
        run(venv_bin(home, "python"), "-m", "pip", "install", "-q", "--require-hashes", "-r", LOCKS / "uv.txt")
        mark("uv", want)
    return binary


def python_packages() -> None:
    lock = LOCKS / "dev.txt"
    want = digest(lock, ROOT / "pyproject.toml", str(ROOT))
    if fresh("venv", want) and venv_bin(VENV, "python").exists():
        return
    tool = uv()
    low, high = SUPPORTED
    # A user's own interpreter where it fits; else uv finds one, or downloads it.
    wanted = sys.executable if low <= sys.version_info[:2] < high else ">=3.11,<3.13"
    say("installing the Python packages (about 130, by hash)")
    run(tool, "venv", "-q", "--clear", "--python", wanted, VENV)
    python = venv_bin(VENV, "python")
    run(tool, "pip", "sync", "-q", "--require-hashes", "--python", python, lock)
    run(tool, "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--python", python, "-e", ROOT)
    mark("venv", want)


def clients() -> Path:
    """Other people's clients of the gateway, for its tests: their pins conflict with ours, so that they live apart."""
    home, lock = TOOLS / "clients", LOCKS / "clients.txt"
    want = digest(lock)
    if not (fresh("clients", want) and venv_bin(home, "python").exists()):
        say("installing clients of the gateway")
        run(uv(), "venv", "-q", "--clear", "--python", venv_bin(VENV, "python"), home)
        run(uv(), "pip", "sync", "-q", "--require-hashes", "--python", venv_bin(home, "python"), lock)
        mark("clients", want)
    return home


def npm() -> Path:
    """npm from PATH, or the one inside the PyPI package that carries node."""
    found = shutil.which("npm")
    if found:
        return Path(found)
    home = TOOLS / "node"
    want = digest(LOCKS / "node.txt")
    if not fresh("node", want):
        say("installing node (for npm)")
        run(uv(), "venv", "-q", "--clear", "--python", venv_bin(VENV, "python"), home)
        python = venv_bin(home, "python")
        run(uv(), "pip", "install", "-q", "--require-hashes", "--python", python, "-r", LOCKS / "node.txt")
        mark("node", want)
    return venv_bin(home, "npm")


def unpack(package: str, sha512: str | None, target: Path) -> None:
    """Fetch one npm package, check its hash against ours, unpack it to `target`."""
    want = digest(package, str(sha512))
    stamp = re.sub(r"\W+", "-", package).strip("-")
    if fresh(stamp, want) and target.exists():
        return
    say(f"fetching {package}")
    with tempfile.TemporaryDirectory() as folder:
        client = npm()
        env = dict(os.environ, PATH=f"{client.parent}{os.pathsep}{os.environ.get('PATH', '')}")
        run(client, "pack", package, "--silent", "--pack-destination", folder, env=env, cwd=Path(folder))
        archive = next(Path(folder).glob("*.tgz"))
        got = "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if sha512 is not None and got != sha512:
            raise SetupError(f"{package}: its hash is {got}, locked is {sha512}. Nothing was installed.")
        shutil.rmtree(target, ignore_errors=True)
        with tarfile.open(archive) as tar:
            # Python before 3.11.4, as on Debian 12, has no filter: there the archive's hash alone vouches for it.
            tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
            tar.extractall(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(str(Path(folder) / "package"), target)
    mark(stamp, want)


def anvil_version(binary: str) -> tuple[int, ...]:
    try:
        out = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ()
    found = re.search(r"(\d+)\.(\d+)\.(\d+)", out)
    return tuple(map(int, found.groups())) if found else ()


def anvil(packages: dict[str, str | None]) -> None:
    """Make `.toolchain/bin/anvil` run the user's own anvil, or the one from npm.

    A script and not a link: by default anvil writes the state of every block that it no longer keeps in memory to
    the home folder, and one that is killed leaves it there; tests that mine by the ten thousand fill a disk so.
    """
    command = TOOLS / "bin" / "anvil"
    if command.exists() and anvil_version(str(command)) >= ANVIL_AT_LEAST:
        return
    own = shutil.which("anvil")
    if own and anvil_version(own) >= ANVIL_AT_LEAST:
        with open(own, "rb") as file:  # it may be this script of another clone
            bounded = FORGET.encode() in file.read(1024)
        write_command(command, f'"{own}"' if bounded else f'"{own}" {FORGET}')
        return
    known = {"x86_64": "amd64", "amd64": "amd64", "arm64": "arm64", "aarch64": "arm64"}
    prefix = f"@foundry-rs/anvil-{platform.system().lower()}-{known.get(platform.machine().lower())}@"
    package = next((name for name in packages if name.startswith(prefix)), None)
    if package is None:
        raise SetupError(f"no anvil for {platform.system()} {platform.machine()}: install Foundry and run this again")
    unpack(package, packages[package], TOOLS / "anvil")
    write_command(command, f'"{TOOLS / "anvil" / "bin" / "anvil"}" {FORGET}')
    if not anvil_version(str(command)):
        raise SetupError("the fetched anvil does not start (it needs glibc 2.35): install Foundry and run this again")


def write_command(path: Path, runs: str) -> None:
    """A shell script that becomes another program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(f'#!/bin/sh\nexec {runs} "$@"\n')
    path.chmod(0o755)


def solidity(packages: dict[str, str | None]) -> None:
    """solc (compiled to JavaScript, run by our shim) and OpenZeppelin's contracts, for test tokens."""
    for package, target in (
        ("solc@", TOOLS / "npm" / "solc"),
        ("@openzeppelin/contracts@", TOOLS / "npm" / "@openzeppelin" / "contracts"),
    ):
        name = next(name for name in packages if name.startswith(package))
        unpack(name, packages[name], target)
    version = next(name for name in packages if name.startswith("solc@")).split("@")[1]
    write_command(
        TOOLS / "solcx" / f"solc-v{version}", f'"{venv_bin(VENV, "python")}" "{ROOT / "scripts" / "_solc.py"}"'
    )


def main() -> int:
    if sys.version_info < SUPPORTED[0]:
        print(f"setup: Python 3.11 or newer is needed, this is {platform.python_version()}", file=sys.stderr)
        return 1
    packages = json.loads((LOCKS / "npm.json").read_text())["packages"]
    try:
        if "--clients" in sys.argv[1:]:  # a test asks for them, from the environment that else would be made anew
            clients()
            return 0
        python_packages()
        anvil(packages)
        solidity(packages)
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
