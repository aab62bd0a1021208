"""The child of the sandbox: gives up its rights, then runs the program on its standard input. Run as a script.

Imports nothing of Stillroom. The filter is classic BPF over the number and arguments of system calls (seccomp(2)): a list
of calls is refused with EPERM, opening for writing and new processes by their flags.
"""

import ctypes
import os
import platform
import resource
import struct
import sys
from typing import Any

EPERM, ENOSYS = 1, 38
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000, 0x80000000
LOAD, EQUAL, BITS, RETURN, ATLEAST = 0x20, 0x15, 0x45, 0x06, 0x35
WRITING = 0o1 | 0o2 | 0o100 | 0o1000 | 0o20000000
NEW_THREAD = 0x10000
NUMBERS: dict[str, dict[str, Any]] = {
    "x86_64": {
        "audit": 0xC000003E,
        "open": 2,
        "openat": 257,
        "clone": 56,
        "absent": (435, 437),  # clone3, openat2: glibc goes on with the older ones
        # socket to getpeername, socketpair; fork, vfork, execve, execveat; kill, tkill, tgkill, pidfd_send_signal; truncate,
        # ftruncate, rename, mkdir, rmdir, creat, link, unlink, symlink, chmod, fchmod, chown, fchown, lchown, utime, mknod;
        # ptrace, mount, umount, pivot_root, chroot, sethostname, unshare, setns; the same with “at”; process_vm_*, keys,
        # bpf, io_uring, perf, userfaultfd, memfd_create, shmget, msgget, xattr, setrlimit and prlimit
        "refused": (
            *range(41, 56),
            288,
            299,
            307,
            57,
            58,
            59,
            322,
            62,
            200,
            234,
            424,
            76,
            77,
            82,
            83,
            84,
            85,
            86,
            87,
            88,
            90,
            91,
            92,
            93,
            94,
            132,
            133,
            235,
            101,
            165,
            166,
            155,
            161,
            170,
            171,
            272,
            308,
            258,
            259,
            260,
            261,
            263,
            264,
            265,
            266,
            268,
            280,
            316,
            310,
            311,
            248,
            249,
            250,
            321,
            425,
            426,
            427,
            298,
            323,
            319,
            29,
            30,
            68,
            69,
            188,
            189,
            190,
            197,
            198,
            199,
            160,
            302,
            304,
            428,
            429,
            430,
            431,
            432,
            433,
            434,
            438,
            440,
            442,
            452,
            285,
            175,
            313,
            176,
            246,
            320,
        ),
    },
    "aarch64": {
        "audit": 0xC00000B7,
        "open": None,
        "openat": 56,
        "clone": 220,
        "absent": (435, 437),
        "refused": (
            *range(198, 213),
            242,
            243,
            269,
            221,
            281,
            129,
            130,
            131,
            424,
            45,
            46,
            38,
            276,
            34,
            35,
            36,
            37,
            52,
            53,
            54,
            55,
            33,
            88,
            117,
            40,
            39,
            41,
            51,
            161,
            162,
            97,
            268,
            270,
            271,
            217,
            218,
            219,
            280,
            425,
            426,
            427,
            241,
            282,
            279,
            194,
            195,
            186,
            187,
            5,
            6,
            7,
            14,
            15,
            16,
            164,
            261,
            265,
            428,
            429,
            430,
            431,
            432,
            433,
            434,
            438,
            440,
            442,
            452,
            47,
            105,
            273,
            106,
            104,
            294,
        ),
    },
}


def close() -> None:
    """Give up every right that a program under test has no use for; what cannot be given up raises OSError."""
    known = NUMBERS[platform.machine()]
    steps = []

    def add(code: int, value: int, yes: int = 0, no: int = 0) -> None:
        steps.append(struct.pack("HBBI", code, yes, no, value))

    add(LOAD, 4)
    add(EQUAL, known["audit"], 1, 0)
    add(RETURN, KILL)
    add(LOAD, 0)
    add(ATLEAST, 0x40000000, 0, 1)  # the x32 interface has other numbers
    add(RETURN, REFUSE | ENOSYS)
    for number in known["absent"]:
        add(EQUAL, number, 0, 1)
        add(RETURN, REFUSE | ENOSYS)
    for number in known["refused"]:
        add(EQUAL, number, 0, 1)
        add(RETURN, REFUSE | EPERM)
    for name, argument in (("open", 1), ("openat", 2)):
        if known[name] is not None:
            add(EQUAL, known[name], 0, 4)
            add(LOAD, 16 + 8 * argument)
            add(BITS, WRITING, 0, 1)
            add(RETURN, REFUSE | EPERM)
            add(RETURN, ALLOW)
    add(EQUAL, known["clone"], 0, 4)
    add(LOAD, 16)
    add(BITS, NEW_THREAD, 1, 0)
    add(RETURN, REFUSE | EPERM)
    add(RETURN, ALLOW)
    add(RETURN, ALLOW)
    rules = ctypes.create_string_buffer(b"".join(steps))
    program = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(rules))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.c_char_p(program), 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")


def main() -> None:
    """Read, give up rights, run, and say the word."""
    seconds, memory = float(sys.argv[1]), int(sys.argv[2])
    word, _, source = sys.stdin.buffer.read().decode().partition("\n")
    whole = max(1, int(seconds + 0.999))
    for kind, limit in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, whole),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))
    # The program speaks to nobody; the word goes out on a descriptor that it does not know.
    out = os.dup(1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    sys.setrecursionlimit(5000)
    try:
        close()
    except OSError:
        os.write(out, b"the sandbox could not be closed")
        os._exit(1)
    try:
        exec(compile(source, "program", "exec"), {"__name__": "__main__"})  # noqa: S102 - that is what it is for
    except BaseException:
        os._exit(1)
    os.write(out, word.encode())
    os._exit(0)


if __name__ == "__main__":
    main()
