"""Seccomp filters: which system calls a process may still make.

A :class:`Policy` names system calls and what happens to each; everything else gets its default. It is assembled to
classic BPF (seccomp(2)) for one architecture and installed in the calling process. It can deny what is named (default
:data:`ALLOW`) or allow what is named and deny the rest.

Children that give up everything import this module: it needs nothing but the standard library, and loads fast.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from collections.abc import Mapping
from typing import NamedTuple

from stillroom.core.sandbox.calls import CALLS

MACHINES = tuple(CALLS)
"""Architectures with a table of system calls, as :func:`os.uname` names them."""
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""The kernel's identifiers of these architectures (AUDIT_ARCH_*)."""

ALLOW = 0x7FFF0000
KILL = 0x80000000
X32 = 0x40000000
"""Numbers from here on are those of the x32 interface on x86_64: the same calls under other numbers."""

# Opcodes of classic BPF, and where struct seccomp_data has what they read.
LOAD, EQUAL, ANY_BIT, AT_LEAST, RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2


def refuse(error: int) -> int:
    """The action that makes a call fail with this error number."""
    return 0x00050000 | error


class Condition(NamedTuple):
    """A condition on the lower 32 bits of one argument of a call.

    Attributes:
        argument: Which one, from 0.
        opcode: :data:`EQUAL` or :data:`ANY_BIT`.
        value: What it is compared with.
        holds: Whether the comparison must be true, or false.
        others: Further values; it is enough that the comparison is true with one of them. Only where ``holds``.
    """

    argument: int
    opcode: int
    value: int
    holds: bool = True
    others: tuple[int, ...] = ()

    def steps(self, missed: bytes) -> list[bytes]:
        """Instructions that go on behind them where the condition is met, and end with ``missed`` where it is not."""
        values = (self.value, *self.others)
        found = [_step(LOAD, ARGUMENTS + 8 * self.argument)]
        if not self.holds:
            return [*found, _step(self.opcode, self.value, 0, 1), missed]
        # Each comparison that is true skips the ones that are left, and the action behind them.
        found += [_step(self.opcode, value, len(values) - at, 0) for at, value in enumerate(values)]
        return [*found, missed]


class Rule(NamedTuple):
    """What happens to a call: the action, where its conditions (if there are any) are met; else the policy's default."""

    verdict: int
    condition: Condition | None = None
    second: Condition | None = None


class Policy(NamedTuple):
    """Rules by the names of calls, and the action for all other calls.

    Calls that an architecture does not have are left out there; a name that no architecture has is an error.
    """

    rules: Mapping[str, Rule]
    default: int = ALLOW


def assemble(policy: Policy, machine: str) -> bytes:
    """The BPF program of a policy.

    A process that switches to another architecture's calls is killed; x32 calls do not exist for it.

    Raises:
        KeyError: ``machine`` is not one of :data:`MACHINES`, or a rule names an unknown call.
    """
    numbers = CALLS[machine]
    steps = [
        _step(LOAD, ARCHITECTURE),
        _step(EQUAL, AUDIT[machine], 1, 0),
        _step(RETURN, KILL),
        _step(LOAD, NUMBER),
        _step(AT_LEAST, X32, 0, 1),
        _step(RETURN, refuse(errno.ENOSYS)),
    ]
    for name, (verdict, *conditions) in policy.rules.items():
        if name not in numbers:
            if not any(name in table for table in CALLS.values()):
                raise KeyError(name)
            continue
        missed = _step(RETURN, policy.default)
        body = [step for condition in conditions if condition is not None for step in condition.steps(missed)]
        body.append(_step(RETURN, verdict))
        steps += [_step(EQUAL, numbers[name], 0, len(body)), *body]
    return b"".join([*steps, _step(RETURN, policy.default)])


def install(policy: Policy) -> None:
    """Put this process, its threads to come and its children under a policy, for good.

    Raises:
        OSError: The system refuses, or its architecture is not among :data:`MACHINES`; nothing is restricted then.
    """
    # A 32-bit Python on a 64-bit kernel makes calls of another architecture.
    machine = os.uname().machine if sys.platform == "linux" and struct.calcsize("P") == 8 else sys.platform
    if machine not in CALLS:
        raise OSError(errno.ENOSYS, f"no table of system calls for {machine}")
    code = assemble(policy, machine)
    buffer = ctypes.create_string_buffer(code)
    program = ctypes.c_char_p(struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")


def _step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    """One instruction, a struct sock_filter of 8 bytes; ``yes`` and ``no`` say how many to skip."""
    return struct.pack("HBBI", code, yes, no, value)
