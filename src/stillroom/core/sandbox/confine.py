"""Takes from a process what the model's process does not need.

Each measure is tried by itself, and what is in force is reported plainly: systems differ in what they let an ordinary
user take away. On Linux: a network namespace with nothing in it; Landlock (files, TCP, signals to others); a seccomp
filter (no connections, no sockets but local ones, no programs, no tracing); no new privileges; limits on resources.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

_NEWUSER, _NEWNET = 0x10000000, 0x40000000
_NO_NEW_PRIVS, _SECCOMP, _DUMPABLE = 38, 22, 4
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446

# Rights of Landlock, in the order of the kernel's bits.
_EXECUTE, _WRITE, _READ, _READ_FOLDER = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_FILE, _MAKE_FILE, _MAKE_SOCKET, _TRUNCATE = 1 << 5, 1 << 8, 1 << 9, 1 << 14
_RIGHTS_OF_VERSION = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_READ_ONLY = _READ | _READ_FOLDER

# What a model never does, by system call number.
_DENIED = {
    "x86_64": {
        "execve": 59, "execveat": 322, "fork": 57, "vfork": 58, "ptrace": 101, "process_vm_readv": 310,
        "process_vm_writev": 311, "kill": 62, "tkill": 200, "pidfd_send_signal": 424, "pidfd_open": 434,
        "pidfd_getfd": 438, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297, "mount": 165, "umount2": 166,
        "pivot_root": 155, "chroot": 161, "unshare": 272, "setns": 308, "bpf": 321, "keyctl": 250, "add_key": 248,
        "request_key": 249, "io_uring_setup": 425, "perf_event_open": 298, "userfaultfd": 323, "connect": 42,
        "init_module": 175, "finit_module": 313, "kexec_load": 246, "open_by_handle_at": 304,
    },
    "aarch64": {
        "execve": 221, "execveat": 281, "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "kill": 129,
        "tkill": 130, "pidfd_send_signal": 424, "pidfd_open": 434, "pidfd_getfd": 438, "rt_sigqueueinfo": 138,
        "rt_tgsigqueueinfo": 240, "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51, "unshare": 97,
        "setns": 268, "bpf": 280, "keyctl": 219, "add_key": 217, "request_key": 218, "io_uring_setup": 425,
        "perf_event_open": 241, "userfaultfd": 282, "connect": 203, "init_module": 105, "finit_module": 273,
        "kexec_load": 104, "open_by_handle_at": 265,
    },
}  # fmt: skip
_SOCKET = {"x86_64": 41, "aarch64": 198}
_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


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
    report["seccomp"] = _seccomp(libc)
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


def _seccomp(libc: ctypes.CDLL) -> str:
    machine = platform.machine()
    if machine not in _DENIED:
        return f"not written for {machine}"
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    allow, refuse = 0x7FFF0000, 0x00050000 | errno.EPERM
    steps = [
        (load, 0, 0, 4),  # the architecture
        (equal, 1, 0, _ARCHITECTURE[machine]),
        (give, 0, 0, refuse),
        (load, 0, 0, 0),  # the number of the call
        (at_least, 0, 1, 0x40000000),  # another numbering of the same calls
        (give, 0, 0, refuse),
        (equal, 0, 4, _SOCKET[machine]),
        (load, 0, 0, 16),  # the family of the socket
        (equal, 0, 1, 1),  # local
        (give, 0, 0, allow),
        (give, 0, 0, refuse),
    ]
    for number in _DENIED[machine].values():
        steps += [(equal, 0, 1, number), (give, 0, 0, refuse)]
    steps.append((give, 0, 0, allow))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code))
    return _attempt(lambda: libc.prctl(_SECCOMP, 2, program, 0, 0))
