"""Takes from a process what the model's process does not need.

Each measure is tried by itself, and what is in force is reported plainly: systems differ in what they let an ordinary
user take away. On Linux: a network namespace with nothing in it; Landlock (files, TCP, signals to others); a seccomp
filter (no connections, no sockets but local ones, no programs, no tracing); no new privileges; limits on resources.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

from stillroom.core.sandbox.policies import ENGINE
from stillroom.core.sandbox.seccomp import MACHINES, install

_NEWUSER, _NEWNET = 0x10000000, 0x40000000
_NO_NEW_PRIVS, _DUMPABLE = 38, 4
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446

# Rights of Landlock, in the order of the kernel's bits.
_EXECUTE, _WRITE, _READ, _READ_FOLDER = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_FILE, _MAKE_FILE, _MAKE_SOCKET, _TRUNCATE = 1 << 5, 1 << 8, 1 << 9, 1 << 14
_RIGHTS_OF_VERSION = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_READ_ONLY = _READ | _READ_FOLDER


def confine(readable: Iterable[Path], writable: Path, memory: int, files: int = 256) -> dict[str, str]:
    """Give up what is not needed. Call it before there is a second thread.

    Args:
        readable: Files and folders that stay readable; everything else is closed where the system can.
        writable: The one folder where files and local sockets may be made.
        memory: Bytes of private memory.
        files: Files that may be open at once.

    Returns:
        A word for each measure: "in force", or why it is not.
    """
    report = {"resource limits": _limits(memory, files)}
    if not sys.platform.startswith("linux"):
        report["network"] = report["files"] = f"not available on {platform.system()}"
        return report
    libc = ctypes.CDLL(None, use_errno=True)
    report["network namespace"] = _attempt(lambda: libc.unshare(_NEWUSER | _NEWNET))
    report["no new privileges"] = _attempt(lambda: libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0))
    report["not traceable"] = _attempt(lambda: libc.prctl(_DUMPABLE, 0, 0, 0, 0))
    report["landlock"] = _landlock(libc, [path for path in readable if path.exists()], writable)
    report["seccomp"] = _seccomp()
    return report


def _attempt(call: object) -> str:
    assert callable(call)
    return "in force" if call() == 0 else _reason()


def _reason() -> str:
    return f"refused by the system: {os.strerror(ctypes.get_errno())}"


def _limits(memory: int, files: int) -> str:
    try:
        import resource
    except ImportError:  # pragma: no cover - Windows
        return "not available here"
    wanted = {"RLIMIT_CORE": 0, "RLIMIT_NOFILE": files, "RLIMIT_DATA": memory}
    for name, value in wanted.items():
        which = getattr(resource, name)
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(which, (value, value))
            continue
        return f"{name} could not be set"
    return "in force"


def _landlock(libc: ctypes.CDLL, readable: list[Path], writable: Path) -> str:
    version = libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
    if version < 1:
        return _reason()
    handled = (1 << _RIGHTS_OF_VERSION.get(version, 16)) - 1
    network = 0b11 if version >= 4 else 0
    scopes = 0b11 if version >= 6 else 0
    attributes = struct.pack("QQQ", handled, network, scopes)[: 8 if version < 4 else 16 if version < 6 else 24]
    rules = libc.syscall(_LANDLOCK_CREATE, attributes, len(attributes), 0)
    if rules < 0:
        return _reason()
    try:
        made = _READ | _WRITE | _READ_FOLDER | _REMOVE_FILE | _MAKE_FILE | _MAKE_SOCKET | _TRUNCATE
        for path, rights in [*((path, _READ_ONLY) for path in readable), (writable, made)]:
            if not path.is_dir():
                rights &= _EXECUTE | _WRITE | _READ | _TRUNCATE
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                rule = struct.pack("=Qi", rights & handled, handle)
                if libc.syscall(_LANDLOCK_ADD, rules, 1, rule, 0) != 0:
                    return _reason()
            finally:
                os.close(handle)
        if libc.syscall(_LANDLOCK_RESTRICT, rules, 0) != 0:
            return _reason()
    finally:
        os.close(rules)
    said = ["files", *(["TCP"] if network else []), *(["signals"] if scopes else [])]
    return f"in force (version {version}: {', '.join(said)})"


def _seccomp() -> str:
    if platform.machine() not in MACHINES:
        return f"not written for {platform.machine()}"
    try:
        install(ENGINE)
    except OSError as error:
        return f"refused by the system: {os.strerror(error.errno or 0)}"
    return "in force"
