"""The seccomp filters deny exactly what their policies name, on every architecture that has a table."""

from __future__ import annotations

import errno
import itertools
import os
import platform
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stillroom.core.sandbox import policies, seccomp
from stillroom.core.sandbox.calls import CALLS
from stillroom.core.sandbox.child import isolated
from stillroom.core.sandbox.policies import CLONE_THREAD, ENGINE, NO_EFFECTS, REFUSED
from stillroom.core.sandbox.seccomp import ALLOW, AUDIT, EQUAL, KILL, Condition, Policy, Rule, assemble, refuse

ALLOW_LIST = Policy({"read": Rule(ALLOW), "socket": Rule(ALLOW, Condition(0, EQUAL, 1))}, default=KILL)
POLICIES = {"engine": ENGINE, "no effects": NO_EFFECTS, "allow-list": ALLOW_LIST}
HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")

# What Stillroom 0.1.0 denied by number; a filter may only become stricter.
ENGINE_0_1_0 = {
    "x86_64": (
        *(59, 322, 57, 58, 101, 310, 311, 62, 200, 424, 434, 438, 129, 297, 165, 166, 155, 161, 272, 308, 321, 250),
        *(248, 249, 425, 298, 323, 42, 175, 313, 246, 304),
    ),
    "aarch64": (
        *(221, 281, 117, 270, 271, 129, 130, 424, 434, 438, 138, 240, 40, 39, 41, 51, 97, 268, 280, 219, 217, 218, 425),
        *(241, 282, 203, 105, 273, 104, 265),
    ),
}
PROGRAMS_0_1_0 = {
    "x86_64": (
        *range(41, 56),
        *(288, 299, 307, 57, 58, 59, 322, 62, 200, 234, 424, 76, 77, 82, 83, 84, 85, 86, 87, 88, 90, 91, 92, 93, 94),
        *(132, 133, 235, 101, 165, 166, 155, 161, 170, 171, 272, 308, 258, 259, 260, 261, 263, 264, 265, 266, 268, 280),
        *(316, 310, 311, 248, 249, 250, 321, 425, 426, 427, 298, 323, 319, 29, 30, 68, 69, 188, 189, 190, 197, 198),
        *(199, 160, 302, 304, 428, 429, 430, 431, 432, 433, 434, 438, 440, 442, 452, 285, 175, 313, 176, 246, 320),
        *(435, 437),
    ),
    "aarch64": (
        *range(198, 213),
        *(242, 243, 269, 221, 281, 129, 130, 131, 424, 45, 46, 38, 276, 34, 35, 36, 37, 52, 53, 54, 55, 33, 88, 117),
        *(40, 39, 41, 51, 161, 162, 97, 268, 270, 271, 217, 218, 219, 280, 425, 426, 427, 241, 282, 279, 194, 195),
        *(186, 187, 5, 6, 7, 14, 15, 16, 164, 261, 265, 428, 429, 430, 431, 432, 433, 434, 438, 440, 442, 452, 47),
        *(105, 273, 106, 104, 294, 435, 437),
    ),
}


def verdict(program: bytes, machine: str, number: int, arguments: tuple[int, ...] = (), audit: int = 0) -> int:
    """Run a filter as the kernel does, on one call."""
    data = struct.pack("<IIQ6Q", number, audit or AUDIT[machine], 0, *arguments, *([0] * (6 - len(arguments))))
    steps = list(struct.iter_unpack("<HBBI", program))
    at, value = 0, 0
    while True:
        code, yes, no, operand = steps[at]
        at += 1
        if code == seccomp.RETURN:
            return int(operand)
        if code == seccomp.LOAD:
            (value,) = struct.unpack_from("<I", data, operand)
            continue
        met = {
            seccomp.EQUAL: value == operand,
            seccomp.AT_LEAST: value >= operand,
            seccomp.ANY_BIT: bool(value & operand),
        }[code]
        at += yes if met else no


def holds(condition: Condition, argument: int) -> bool:
    """What a condition says of an argument, in Python."""
    low = argument & 0xFFFFFFFF
    if condition.opcode == EQUAL:
        return (low in (condition.value, *condition.others)) == condition.holds
    return any(low & value for value in (condition.value, *condition.others)) == condition.holds


def arguments_to_try(rule: Rule) -> Iterator[tuple[int, ...]]:
    """Values near those that a rule asks for, for each of the arguments that it looks at."""
    asked = [condition for condition in (rule.condition, rule.second) if condition is not None]
    near = [
        {0, 1, 2, 3, 0o101, 0xFFFFFFFF, 1 << 40, *condition.others, condition.value, condition.value << 1}
        for condition in asked
    ]
    for chosen in itertools.product(*near):
        values = [0xFFFF] * 6
        for condition, value in zip(asked, chosen, strict=True):
            values[condition.argument] = value
        yield tuple(values)


@pytest.mark.parametrize("machine", seccomp.MACHINES)
@pytest.mark.parametrize("name", POLICIES)
def test_a_filter_denies_exactly_what_its_policy_names(name: str, machine: str) -> None:
    policy = POLICIES[name]
    program = assemble(policy, machine)
    assert len(program) // 8 <= 4096, "the kernel takes no longer one"
    names = {number: call for call, number in CALLS[machine].items()}
    for number in range(600):
        rule = policy.rules.get(names.get(number, ""))
        if rule is None:
            assert verdict(program, machine, number) == policy.default, (number, names.get(number))
        elif rule.condition is None:
            assert verdict(program, machine, number) == rule.verdict, names[number]
        else:
            for values in arguments_to_try(rule):
                met = all(
                    holds(condition, values[condition.argument])
                    for condition in (rule.condition, rule.second)
                    if condition is not None
                )
                expected = rule.verdict if met else policy.default
                assert verdict(program, machine, number, values) == expected, (names[number], values)
    assert verdict(program, machine, CALLS[machine]["read"], audit=0x40000003) == KILL
    assert verdict(program, machine, seccomp.X32 | CALLS[machine]["read"]) == refuse(errno.ENOSYS)


@pytest.mark.parametrize("machine", seccomp.MACHINES)
@pytest.mark.parametrize(("policy", "earlier"), [(ENGINE, ENGINE_0_1_0), (NO_EFFECTS, PROGRAMS_0_1_0)])
def test_nothing_that_was_denied_is_allowed(policy: Policy, earlier: dict[str, tuple[int, ...]], machine: str) -> None:
    program = assemble(policy, machine)
    assert [number for number in earlier[machine] if verdict(program, machine, number) == ALLOW] == []


@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_what_the_flags_of_a_call_decide(machine: str) -> None:
    engine, closed = assemble(ENGINE, machine), assemble(NO_EFFECTS, machine)
    calls = CALLS[machine]
    assert verdict(engine, machine, calls["socket"], (1, 1)) == ALLOW
    assert verdict(engine, machine, calls["socket"], (1, 1 | 0o2000000)) == ALLOW
    assert verdict(engine, machine, calls["socket"], (1, 2)) == REFUSED, "datagrams reach any address"
    assert verdict(engine, machine, calls["socket"], (2, 1)) == REFUSED
    assert verdict(engine, machine, calls["prlimit64"], (0, 7)) == ALLOW
    assert verdict(engine, machine, calls["prlimit64"], (4711, 7)) == REFUSED
    assert verdict(closed, machine, calls["socket"], (1,)) == REFUSED
    assert verdict(closed, machine, calls["openat"], (0, 0, os.O_RDONLY)) == ALLOW
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC):
        assert verdict(closed, machine, calls["openat"], (0, 0, flags)) == REFUSED
    for program in (engine, closed):
        assert verdict(program, machine, calls["clone"], (CLONE_THREAD | 0x100,)) == ALLOW
        assert verdict(program, machine, calls["clone"], (17,)) == REFUSED
        assert verdict(program, machine, calls["clone3"]) == policies.ABSENT
        for command in (8, 10, 15, 1024, 1026):
            assert verdict(program, machine, calls["fcntl"], (3, command)) == REFUSED, "signals through a descriptor"
        for command in (0x5412, 0x8901, 0x8902):
            assert verdict(program, machine, calls["ioctl"], (3, command)) == REFUSED


@pytest.mark.parametrize("machine", seccomp.MACHINES)
@pytest.mark.parametrize("policy", [ENGINE, NO_EFFECTS])
def test_nothing_reaches_another_process_or_the_machine(policy: Policy, machine: str) -> None:
    program = assemble(policy, machine)
    groups = ("PROGRAMS", "SIGNALS", "TRACING", "NAMESPACES", "KERNEL", "SHARED_MEMORY", "ELSEWHERE")
    named = [name for group in groups for name in getattr(policies, group)]
    named += ["tgkill", "connect", "sendmsg", "sendmmsg", "socketpair", "rename", "link", "chmod", "timer_create"]
    calls = CALLS[machine]
    assert [name for name in named if name in calls and verdict(program, machine, calls[name], (1, 1)) == ALLOW] == []
    # A call that the table does not know yet is refused too.
    assert verdict(program, machine, 599) == REFUSED


def test_a_misspelled_call_is_an_error() -> None:
    with pytest.raises(KeyError, match="exceve"):
        assemble(Policy({"exceve": Rule(REFUSED)}), "x86_64")


@pytest.mark.skipif(not HEADER.exists(), reason="this system has no kernel headers")
def test_the_numbers_are_the_kernels() -> None:
    theirs = dict(re.findall(r"^#define __NR_(\w+) (\d+)$", HEADER.read_text(), re.MULTILINE))
    assert {name: CALLS["x86_64"].get(name) for name in theirs} == {name: int(n) for name, n in theirs.items()}


@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_every_number_has_one_name(machine: str) -> None:
    assert len(set(CALLS[machine].values())) == len(CALLS[machine])


LINUX = sys.platform == "linux" and platform.machine() in seccomp.MACHINES
TRIES = """
import os, signal, socket, subprocess, threading
def attempt(work):
    try:
        work()
    except OSError as error:
        return error.errno
    return 0
print(
    attempt(lambda: socket.socket(socket.AF_UNIX)),
    attempt(lambda: open("made", "w")),
    attempt(lambda: os.mkdir("made")),
    attempt(os.fork),
    attempt(lambda: subprocess.run(["true"])),
    attempt(lambda: os.kill(os.getppid(), 0)),
    attempt(lambda: open("/dev/null").read()),
    attempt(lambda: [(t := threading.Thread(target=int)).start(), t.join()]),
)
"""


@pytest.mark.skipif(not LINUX, reason="seccomp is Linux's")
def test_the_kernel_takes_the_filter(tmp_path: Path) -> None:
    code = f"from stillroom.core.sandbox import policies, seccomp\nseccomp.install(policies.NO_EFFECTS)\n{TRIES}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout.split() == ["1"] * 6 + ["0"] * 2, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_isolated_child_finds_its_module_and_nothing_of_the_folder_it_is_in(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('taken from the working folder')")
    command = isolated("stillroom.core.sandbox.programs_child", "5", str(512 << 20))
    source = (
        "import json, sys\n"
        "assert not [name for name in sys.modules if name.startswith('stillroom')]\n"
        "try:\n    import stillroom\nexcept ImportError:\n    pass\nelse:\n    raise SystemExit\n"
        "try:\n    import numpy\nexcept ImportError:\n    pass\nelse:\n    raise SystemExit\n"
    )
    environment = {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        command, input=f"word\n{source}", capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    if LINUX:
        assert done.stdout == "word", done.stderr
