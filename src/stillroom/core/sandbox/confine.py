"""Takes from a process what it does not need: the process of a model, of a chat template, of a program under evaluation.

Each measure is tried by itself, and what is active is reported plainly: systems differ in what they let an ordinary
user take away. On Linux: a network namespace with nothing in it; Landlock (files, TCP, signals to others); a seccomp
filter that lists what is allowed (:mod:`.policies`); no new privileges; limits on resources. :func:`missing` says in words
what a report lacks.
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
from stillroom.core.sandbox.seccomp import MACHINES, Policy, install

_NEWUSER, _NEWNET = 0x10000000, 0x40000000
_NO_NEW_PRIVS, _DUMPABLE = 38, 4
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446

# Rights of Landlock, in the order of the kernel's bits.
_EXECUTE, _WRITE, _READ, _READ_FOLDER = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_FILE, _MAKE_FILE, _MAKE_SOCKET, _TRUNCATE = 1 << 5, 1 << 8, 1 << 9, 1 << 14
_RIGHTS_OF_VERSION = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_READ_ONLY = _READ | _READ_FOLDER


def confine(
    readable: Iterable[Path],
    writable: Path | None,
    memory: int | None,
    files: int = 256,
    *,
    policy: Policy = ENGINE,
    namespace: bool = True,
) -> dict[str, str]:
    """Give up what is not needed. Call it before there is a second thread.

    Args:
        readable: Files and folders that stay readable; everything else is closed where the system can.
        writable: The one folder where files and local sockets may be made; None is none.
        memory: Bytes of private memory; None sets no limit of its own.
        files: Files that may be open at once.
        policy: The calls that stay allowed.
        namespace: Take a network namespace too. Not needed where the policy allows no socket at all.

    Returns:
        A word for each restriction: "active", or why it is not.
    """
    report = {"resource limits": _limits(memory, files)}
    if not sys.platform.startswith("linux"):
        report["network"] = report["files"] = f"not available on {platform.system()}"
        return report
    libc = ctypes.CDLL(None, use_errno=True)
    if namespace:
        report["network namespace"] = _attempt(lambda: libc.unshare(_NEWUSER | _NEWNET))
    report["no new privileges"] = _attempt(lambda: libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0))
    report["not traceable"] = _attempt(lambda: libc.prctl(_DUMPABLE, 0, 0, 0, 0))
    report["landlock"] = _landlock(libc, [path for path in readable if path.exists()], writable)
    report["seccomp"] = _seccomp(policy)
    return report


LACKS = {
    "resource limits": "nothing bounds the memory that a model's process takes",
    "network": "a model's process may open connections",
    "files": "a model's process may read and write whatever you can",
    "network namespace": "a model's process sees this machine's network devices (its calls to use them are refused by seccomp)",
    "no new privileges": "a program that it started could gain rights",
    "not traceable": "other processes of yours may read a model's memory",
    "landlock": "a model's process may read and write whatever you can, the switch's own files as well",
    "seccomp": "a model's process may start processes, which `off` does not know, send signals to yours, and open sockets",
}
"""What follows where a restriction is not active."""
LACKS_OF_VERSION = {
    3: "truncate files that it cannot open (Landlock before version 3)",
    4: "bind and connect TCP where seccomp is not active either (Landlock before version 4)",
    6: "send signals where seccomp is not active either (Landlock before version 6)",
}


def missing(report: dict[str, str]) -> list[str]:
    """What a report of :func:`confine` lacks, a sentence each; empty where everything is active.

    A system that lacks a restriction is not refused: the owner is told what a model's process may do there.
    """
    found = [
        f"{measure}: {word}: {LACKS.get(measure, 'it does not hold')}"
        for measure, word in report.items()
        if not word.startswith("active")
    ]
    version = report.get("landlock", "").partition("(version ")[2].partition(":")[0]
    if version.isdigit():
        found += [
            f"landlock: version {version}: a model's process may {word}"
            for least, word in LACKS_OF_VERSION.items()
            if int(version) < least
        ]
    return found


def standard_library() -> list[Path]:
    """What a Python that computes may still have to read: its own modules, time zones, the devices that say nothing."""
    import sysconfig

    paths = sysconfig.get_paths()
    found = [Path(paths["stdlib"]), Path(paths["platstdlib"]), Path("/etc/localtime"), Path("/usr/share/zoneinfo")]
    return [*found, Path("/dev/null"), Path("/dev/urandom"), Path("/dev/zero")]


def _attempt(call: object) -> str:
    assert callable(call)
    return "active" if call() == 0 else _reason()


def _reason() -> str:
    return f"refused by the system: {os.strerror(ctypes.get_errno())}"


def _limits(memory: int | None, files: int) -> str:
    try:
        import resource
    except ImportError:  # pragma: no cover - Windows
        return "not available here"
    wanted = {"RLIMIT_CORE": 0, "RLIMIT_NOFILE": files} | ({"RLIMIT_DATA": memory} if memory is not None else {})
    for name, value in wanted.items():
        which = getattr(resource, name)
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(which, (value, value))
            continue
        return f"{name} could not be set"
    return "active"


def _landlock(libc: ctypes.CDLL, readable: list[Path], writable: Path | None) -> str:
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
        own = [(writable, made)] if writable is not None else []
        for path, rights in [*((path, _READ_ONLY) for path in readable), *own]:
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
    return f"active (version {version}: {', '.join(said)})"


def _seccomp(policy: Policy) -> str:
    if platform.machine() not in MACHINES:
        return f"not written for {platform.machine()}"
    try:
        install(policy)
    except OSError as error:
        return f"refused by the system: {os.strerror(error.errno or 0)}"
    return "active"
