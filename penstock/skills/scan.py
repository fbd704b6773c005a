"""Reads a skill's files before anybody else does: what they import that is not there, and secrets left in them."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

_NETWORK = {"socket", "ssl", "urllib", "http", "ftplib", "smtplib", "imaplib", "poplib", "xmlrpc", "socketserver"}
_UNUSUAL = {"ctypes", "subprocess", "multiprocessing", "pty", "mmap", "signal"}
_REQUIREMENTS = {"requirements.txt", "Pipfile", "poetry.lock", "uv.lock", "setup.py", "setup.cfg"}
_SECRETS = {
    "a private key": re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "an AWS access key": re.compile(rb"\b(AKIA|ASIA)[A-Z0-9]{16}\b"),
    "a GitHub token": re.compile(rb"\b(gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{60,})\b"),
    "an API key": re.compile(rb"\b(sk|rk|pk)[-_](live[-_]|test[-_]|ant[-_]|proj[-_])?[A-Za-z0-9_-]{20,}\b"),
    "a Slack token": re.compile(rb"\bxox[abprs]-[A-Za-z0-9-]{10,}"),
    "a key of an account": re.compile(rb"(?i)(private|secret|mnemonic)\w*[\"']?\s*[:=]\s*[\"']?0x[0-9a-f]{64}\b"),
    "a password or key": re.compile(
        rb"(?i)\b\w*(api_?key|secret|passw(or)?d|auth_?token|access_?token)\w*[\"']?\s*[:=]\s*[\"'][^\"'\s{}$<>]{12,}[\"']"
    ),
}


@dataclass(frozen=True, slots=True)
class Finding:
    is_error: bool
    where: str
    what: str

    def __str__(self) -> str:
        return f"{'error' if self.is_error else 'note'}  {self.where}: {self.what}"


def scan(files: Mapping[str, bytes], *, network: bool) -> list[Finding]:
    """Of a package's files and whatever else becomes public. `network`: the card declares hosts."""
    return [*_secrets(files), *_imports(files, network)]


def _secrets(files: Mapping[str, bytes]) -> Iterator[Finding]:
    for name, content in files.items():
        for number, line in enumerate(content.splitlines(), 1):
            for what, pattern in _SECRETS.items():
                if pattern.search(line):
                    yield Finding(True, f"{name}:{number}", f"looks like {what}: what is published is public")
                    break


def _imports(files: Mapping[str, bytes], network: bool) -> Iterator[Finding]:
    own = {PurePosixPath(name).parts[0].removesuffix(".py") for name in files}
    for name, content in files.items():
        if PurePosixPath(name).name in _REQUIREMENTS:
            yield Finding(
                True, name, "nothing is installed for a skill: put what it needs into the package, or drop it"
            )
        if not name.endswith(".py"):
            continue
        try:
            tree = ast.parse(content)
        except (SyntaxError, ValueError) as error:
            yield Finding(True, name, f"is no Python: {error}")
            continue
        for line, module in _modules(tree):
            where = f"{name}:{line}"
            if module not in sys.stdlib_module_names and module not in own:
                yield Finding(
                    True, where, f"imports {module}, which is neither in the standard library nor in the package"
                )
            elif module in _NETWORK - own and not network:
                yield Finding(False, where, f"imports {module}, and run.network declares no host: it will reach none")
            elif module in _UNUSUAL - own:
                yield Finding(False, where, f"imports {module}: reviewers will ask why")


def _modules(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module.split(".")[0]
