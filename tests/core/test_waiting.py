"""Waiting for open files."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import stillroom
from stillroom.core.waiting import readable
from stillroom.serving.apart import run_apart


@pytest.fixture
def many() -> Iterator[None]:
    """More open files than ``select`` can count, as a busy server has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1300:
        pytest.skip("this system allows too few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1300), hard))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    yield
    for each in held:
        os.close(each)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many")
def test_files_of_any_number_are_waited_for() -> None:
    reading, writing = os.pipe()
    assert reading > 1023
    begun = time.monotonic()
    assert not readable(reading, 0.05)
    assert time.monotonic() - begun >= 0.04
    os.write(writing, b"x")
    assert readable(reading, 5)
    os.read(reading, 1)
    assert not readable(reading, -1)
    os.close(writing)
    assert readable(reading, 5), "the end of a pipe can be read, too"
    os.close(reading)


@pytest.mark.usefixtures("many")
def test_a_server_with_many_connections_turns_off_in_a_fork_as_well() -> None:
    assert run_apart(lambda: {"pid": os.getpid()})["pid"] != os.getpid() or os.uname().sysname != "Linux"


def test_nothing_waits_by_a_call_that_fails_with_many_open_files() -> None:
    package = Path(stillroom.__file__).parent
    assert [path for path in package.rglob("*.py") if "select.select(" in path.read_text()] == []
