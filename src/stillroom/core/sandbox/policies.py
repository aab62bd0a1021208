"""What each kind of child process may not do: every seccomp policy of Stillroom, on one page."""

from __future__ import annotations

import errno

from stillroom.core.sandbox.seccomp import ALLOW, ANY_BIT, EQUAL, Condition, Policy, Rule, refuse

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
SHARED_MEMORY = (
    "memfd_create", "memfd_secret", "shmget", "shmat", "shmctl", "semget", "semctl", "semop", "msgget", "msgsnd",
    "msgrcv", "msgctl", "mq_open", "mq_unlink",
)  # fmt: skip

ELSEWHERE = (
    "setpriority", "sched_setparam", "sched_setscheduler", "sched_setattr", "sched_setaffinity", "ioprio_set",
    "migrate_pages", "move_pages", "kcmp", "process_mrelease", "fanotify_init", "acct", "quotactl", "settimeofday",
    "clock_settime", "adjtimex", "clock_adjtime", "setuid", "setgid", "setreuid", "setresuid", "setsid", "setpgid",
)  # fmt: skip
"""What reaches other processes of the user, or the machine, without a signal: refused because it is not among what is allowed,
and named here so that a test asks for each."""

# What a Python that computes needs: memory, threads, time, its own descriptors and signals, and looking at files.
MEMORY = ("mmap", "munmap", "mprotect", "mremap", "brk", "madvise", "membarrier")
THREADS = (
    "futex", "futex_waitv", "futex_wait", "futex_wake", "futex_requeue", "set_robust_list", "get_robust_list", "rseq",
    "set_tid_address", "sched_yield", "sched_getaffinity", "sched_getparam", "sched_getscheduler",
    "sched_get_priority_max", "sched_get_priority_min", "getcpu", "gettid", "exit", "exit_group", "restart_syscall",
)  # fmt: skip
TIME = (
    "clock_gettime", "clock_getres", "clock_nanosleep", "nanosleep", "gettimeofday", "time", "times", "getrusage",
    "getitimer", "setitimer", "alarm", "pause",
)  # fmt: skip
OWN_SIGNALS = (
    "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "rt_sigpending", "rt_sigsuspend", "rt_sigtimedwait", "sigaltstack",
)  # fmt: skip
DESCRIPTORS = (
    "read", "write", "readv", "writev", "pread64", "pwrite64", "preadv", "pwritev", "preadv2", "pwritev2", "lseek",
    "close", "close_range", "dup", "dup2", "dup3", "pipe", "pipe2", "poll", "ppoll", "select", "pselect6",
    "epoll_create", "epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "epoll_pwait2", "eventfd", "eventfd2",
    "timerfd_create", "timerfd_settime", "timerfd_gettime", "fadvise64", "readahead",
)  # fmt: skip
LOOKING = (
    "stat", "lstat", "fstat", "newfstatat", "statx", "statfs", "fstatfs", "access", "faccessat", "faccessat2", "readlink",
    "readlinkat", "getdents", "getdents64", "getcwd", "chdir", "fchdir", "umask",
)  # fmt: skip
ABOUT_ITSELF = (
    "getpid", "getppid", "getuid", "geteuid", "getgid", "getegid", "getresuid", "getresgid", "getgroups", "getpgid",
    "getpgrp", "getsid", "getpriority", "getrlimit", "capget", "uname", "sysinfo", "getrandom", "wait4", "waitid",
)  # fmt: skip

AF_UNIX = 1
SOCK_STREAM = 1
SOCK_FLAGS = (0o4000, 0o2000000, 0o2004000)
"""SOCK_NONBLOCK, SOCK_CLOEXEC, and both."""
CLONE_THREAD = 0x10000
OPEN_TO_WRITE = 0o1 | 0o2 | 0o100 | 0o1000 | 0o20000000
"""O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, and the bit of O_TMPFILE; the same on both architectures."""
FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032)
"""F_DUPFD to F_SETLKW, F_OFD_*, F_DUPFD_CLOEXEC, F_GETPIPE_SZ. Not F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETLEASE and F_NOTIFY:
through them the kernel sends signals to others."""
IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX. Not FIOSETOWN and SIOCSPGRP (as F_SETOWN), nor TIOCSTI."""
PRCTL = (15, 16)
"""PR_SET_NAME, PR_GET_NAME."""


def _allowed(*groups: tuple[str, ...]) -> dict[str, Rule]:
    return {name: Rule(ALLOW) for group in groups for name in group}


def _among(argument: int, values: tuple[int, ...]) -> Rule:
    return Rule(ALLOW, Condition(argument, EQUAL, values[0], others=values[1:]))


_COMPUTING = {
    **_allowed(DESCRIPTORS, THREADS, MEMORY, TIME, OWN_SIGNALS, LOOKING, ABOUT_ITSELF),
    "fcntl": _among(1, FCNTL),
    "ioctl": _among(1, IOCTL),
    "prctl": _among(0, PRCTL),
    "clone": Rule(ALLOW, Condition(0, ANY_BIT, CLONE_THREAD)),
    # Their arguments are in memory, where no filter sees them.
    "clone3": Rule(ABSENT),
    "openat2": Rule(ABSENT),
}
"""Both lists name what is allowed, and the rest is refused: a call that a later kernel brings is refused as well."""

ENGINE = Policy(
    {
        **_COMPUTING,
        **_allowed(("open", "openat", "ftruncate", "flock", "fsync", "fdatasync", "unlink", "unlinkat", "arch_prctl")),
        "prlimit64": Rule(ALLOW, Condition(0, EQUAL, 0)),
        # Streams only: a datagram goes to any address without a connection.
        "socket": Rule(
            ALLOW,
            Condition(0, EQUAL, AF_UNIX),
            Condition(1, EQUAL, SOCK_STREAM, others=tuple(SOCK_STREAM | flags for flags in SOCK_FLAGS)),
        ),
        **_allowed(
            (
                "bind", "listen", "accept", "accept4", "shutdown", "sendto", "recvfrom", "getsockname", "getpeername",
                "getsockopt", "setsockopt",
            )
        ),
    },
    default=REFUSED,
)  # fmt: skip
"""A process that runs a model: it listens on a local stream socket and connects to nothing; it starts no process, and reaches
no other one. Which files it may open is Landlock's part (:mod:`.confine`)."""

NO_EFFECTS = Policy(
    {
        **_COMPUTING,
        "open": Rule(ALLOW, Condition(1, ANY_BIT, OPEN_TO_WRITE, holds=False)),
        "openat": Rule(ALLOW, Condition(2, ANY_BIT, OPEN_TO_WRITE, holds=False)),
    },
    default=REFUSED,
)
"""A process that runs a program from elsewhere (a model's answer, a chat template): it computes, reads files, uses the
descriptors it has, and starts threads."""
