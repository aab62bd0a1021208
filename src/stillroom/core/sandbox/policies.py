"""What each kind of child process may not do: every seccomp policy of Stillroom, on one page."""

from __future__ import annotations

import errno

from stillroom.core.sandbox.seccomp import ANY_BIT, EQUAL, Condition, Policy, Rule, refuse

REFUSED = refuse(errno.EPERM)
ABSENT = refuse(errno.ENOSYS)
"""As on an older kernel: the C library goes on with the older calls."""

PROGRAMS = ("execve", "execveat", "fork", "vfork")
SIGNALS = (
    "kill", "tkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_send_signal", "pidfd_open", "pidfd_getfd",
)  # fmt: skip
TRACING = (
    "ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "perf_event_open", "userfaultfd", "bpf",
)  # fmt: skip
NAMESPACES = (
    "unshare", "setns", "chroot", "pivot_root", "mount", "umount2", "mount_setattr", "move_mount", "open_tree",
    "open_tree_attr", "fsopen", "fsconfig", "fsmount", "fspick", "open_by_handle_at", "sethostname", "setdomainname",
)  # fmt: skip
KERNEL = (
    "init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "reboot", "swapon", "swapoff",
    "keyctl", "add_key", "request_key", "io_uring_setup", "io_uring_enter", "io_uring_register",
)  # fmt: skip
NETWORK = (
    "socket", "socketpair", "bind", "connect", "listen", "accept", "accept4", "shutdown", "sendto", "recvfrom",
    "sendmsg", "recvmsg", "sendmmsg", "recvmmsg", "getsockname", "getpeername", "getsockopt", "setsockopt",
)  # fmt: skip
CHANGING_FILES = (
    "creat", "mknod", "mknodat", "mkdir", "mkdirat", "rmdir", "link", "linkat", "symlink", "symlinkat", "unlink",
    "unlinkat", "rename", "renameat", "renameat2", "truncate", "ftruncate", "fallocate", "chmod", "fchmod", "fchmodat",
    "fchmodat2", "chown", "fchown", "lchown", "fchownat", "utime", "utimes", "futimesat", "utimensat", "setxattr",
    "lsetxattr", "fsetxattr", "setxattrat", "removexattr", "lremovexattr", "fremovexattr", "removexattrat",
    "file_setattr",
)  # fmt: skip
SHARED_MEMORY = (
    "memfd_create", "memfd_secret", "shmget", "shmat", "shmctl", "semget", "semctl", "semop", "msgget", "msgsnd",
    "msgrcv", "msgctl", "mq_open", "mq_unlink",
)  # fmt: skip
LIMITS = ("setrlimit", "prlimit64")

AF_UNIX = 1
CLONE_THREAD = 0x10000
OPEN_TO_WRITE = 0o1 | 0o2 | 0o100 | 0o1000 | 0o20000000
"""O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, and the bit of O_TMPFILE; the same on both architectures."""


def _refused(*groups: tuple[str, ...]) -> dict[str, Rule]:
    return {name: Rule(REFUSED) for group in groups for name in group}


ENGINE = Policy(
    {
        **_refused(PROGRAMS, SIGNALS, TRACING, NAMESPACES, KERNEL, ("connect",)),
        "socket": Rule(REFUSED, Condition(0, EQUAL, AF_UNIX, holds=False)),
    }
)
"""A process that runs a model: it listens on a local socket and connects to nothing; no programs, no tracing."""

NO_EFFECTS = Policy(
    {
        **_refused(PROGRAMS, SIGNALS, TRACING, NAMESPACES, KERNEL, NETWORK, CHANGING_FILES, SHARED_MEMORY, LIMITS),
        "tgkill": Rule(REFUSED),
        "open": Rule(REFUSED, Condition(1, ANY_BIT, OPEN_TO_WRITE)),
        "openat": Rule(REFUSED, Condition(2, ANY_BIT, OPEN_TO_WRITE)),
        "openat2": Rule(ABSENT),
        "clone": Rule(REFUSED, Condition(0, ANY_BIT, CLONE_THREAD, holds=False)),
        "clone3": Rule(ABSENT),
    }
)
"""A process that runs a program from elsewhere (a model's answer, a chat template): it computes, reads files, uses the
descriptors it has, and starts threads."""
