"""A skill's code as one archive: the same files always make the same bytes, and nothing else is accepted.

A zip file whose entries are sorted, stored and without dates. A reader packs what it found again and compares: so
there is no room for paths that lead elsewhere, links, duplicates, entries that overlap or expand, or hidden data.
"""

from __future__ import annotations

import io
import os
import re
import zipfile
from pathlib import Path

from penstock.errors import ConfigError

MAX_PACKAGE = 1024 * 1024
"""Bytes: what IPFS keeps in one block, so that the hash of the archive is its address."""
MAX_FILES = 200
_EPOCH = (1980, 1, 1, 0, 0, 0)
_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_SKIPPED = {"__pycache__"}


def pack(folder: Path) -> bytes:
    """All files of a folder but hidden ones and `skill.toml`, whose prices may change. ConfigError where it has links,
    odd names or too much."""
    files: dict[str, bytes] = {}
    size = 0
    for path in _walk(folder):
        if path.is_symlink() or not path.is_file():
            raise ConfigError(f"{path.relative_to(folder)} is no plain file: a package holds no links or devices")
        size += path.stat().st_size
        if size > MAX_PACKAGE:
            raise ConfigError(f"the folder holds more than {MAX_PACKAGE} bytes: leave out what the code does not need")
        files[path.relative_to(folder).as_posix()] = path.read_bytes()
    return pack_files(files)


def pack_files(files: dict[str, bytes]) -> bytes:
    """ConfigError where a name or the size is not allowed."""
    if not 0 < len(files) <= MAX_FILES:
        raise ConfigError(f"a package holds 1 to {MAX_FILES} files")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as target:
        for name in sorted(files):
            _check_name(name)
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system, entry.external_attr = 3, 0o100644 << 16
            target.writestr(entry, files[name])
    raw = archive.getvalue()
    if len(raw) > MAX_PACKAGE:
        raise ConfigError(f"the package has {len(raw)} bytes, more than {MAX_PACKAGE}")
    return raw


def unpack(raw: bytes) -> dict[str, bytes]:
    """The files of an archive from anywhere. ConfigError where `pack_files` would not have made it."""
    if len(raw) > MAX_PACKAGE:
        raise ConfigError(f"the package has {len(raw)} bytes, more than {MAX_PACKAGE}")
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as source:
            entries = source.infolist()
            # Before anything is read: stored entries cannot expand, and together they fit into the archive.
            if len(entries) > MAX_FILES or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ConfigError(f"a package holds {MAX_FILES} files at most, none of them compressed")
            if sum(entry.file_size for entry in entries) > len(raw):
                raise ConfigError("the package's entries overlap")
            for entry in entries:
                _check_name(entry.filename)
            files = {entry.filename: source.read(entry) for entry in entries}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise ConfigError(f"this is no package: {error}") from None
    if pack_files(files) != raw:
        raise ConfigError("the package is not in the canonical form: it holds links, duplicates or hidden data")
    return files


def write_files(files: dict[str, bytes], folder: Path) -> None:
    """Into an empty folder that all may read. Names were checked."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        path.write_bytes(content)
        path.chmod(0o644)
    for path in [folder, *(p for p in folder.rglob("*") if p.is_dir())]:
        path.chmod(0o755)


def _walk(folder: Path) -> list[Path]:
    found = []
    for at, names, files in os.walk(folder):
        names[:] = sorted(name for name in names if not name.startswith(".") and name not in _SKIPPED)
        links = [name for name in names if (Path(at) / name).is_symlink()]
        found += [Path(at) / name for name in [*links, *files] if not name.startswith(".")]
        if len(found) > MAX_FILES:
            raise ConfigError(f"the folder holds more than {MAX_FILES} files")
    return sorted(path for path in found if path != folder / "skill.toml")


def _check_name(name: str) -> None:
    segments = name.split("/")
    if len(name) > 200 or len(segments) > 8 or not all(_SEGMENT.fullmatch(segment) for segment in segments):
        raise ConfigError(f"the file name {name!r} is not allowed: letters, digits, '.', '_' and '-', no '..'")
