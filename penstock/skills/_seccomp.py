"""A filter of system calls: what runs under it makes no user namespace, in which it would be root and reach more of the
kernel."""

from __future__ import annotations

import errno
import platform
import struct

_NEW_USER = 0x1000_0000
_CLONE3 = 435
_X32 = 0x4000_0000
"""From here on, on x86-64, the calls have another numbering."""
_CALLS = {"x86_64": (0xC000_003E, 56, 272), "aarch64": (0xC000_00B7, 220, 97)}
"""By machine: its name to the kernel, and the numbers of clone and unshare, whose flags are the first argument."""

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _MACHINE, _FLAGS = 0, 4, 16
"""Where they are in what the kernel shows."""
_ALLOW, _FAIL = 0x7FFF_0000, 0x0005_0000


def no_user_namespaces(machine: str = "") -> bytes:
    """The filter in classic BPF, for bwrap's --seccomp; empty for a machine that is not known. The flags of clone3 lie
    in memory where no filter sees them: it is said not to exist, and libraries take clone instead."""
    known = _CALLS.get(machine or platform.machine())
    if known is None:
        return b""
    name, clone, unshare = known
    refuse, missing = 11, 12
    lines = [
        (_LOAD, 0, 0, _MACHINE),
        (_EQUAL, 0, missing - 2, name),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, missing - 4, 0, _X32),
        (_EQUAL, missing - 5, 0, _CLONE3),
        (_EQUAL, 2, 0, clone),
        (_EQUAL, 1, 0, unshare),
        (_RETURN, 0, 0, _ALLOW),
        (_LOAD, 0, 0, _FLAGS),
        (_ANY_BIT, refuse - 10, 0, _NEW_USER),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _FAIL | errno.EPERM),
        (_RETURN, 0, 0, _FAIL | errno.ENOSYS),
    ]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)
