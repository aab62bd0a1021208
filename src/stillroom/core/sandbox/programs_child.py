"""The child of the sandbox: gives up its rights, then runs the program on its standard input.

It is started by :func:`stillroom.core.sandbox.child.isolated`, and imports nothing of Stillroom but the policy.
"""

from __future__ import annotations

import os
import resource
import sys

from stillroom.core.sandbox.confine import confine, standard_library
from stillroom.core.sandbox.policies import NO_EFFECTS


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
    report = confine(standard_library(), None, None, 64, policy=NO_EFFECTS, namespace=False)
    if report["seccomp"] != "in force":
        os.write(out, b"the sandbox could not be closed")
        os._exit(1)
    # The program finds what any program finds: the standard library.
    for name in [name for name in sys.modules if name.partition(".")[0] == "stillroom"]:
        del sys.modules[name]
    try:
        exec(compile(source, "program", "exec"), {"__name__": "__main__"})  # noqa: S102 - that is what it is for
    except BaseException:
        os._exit(1)
    os.write(out, word.encode())
    os._exit(0)
