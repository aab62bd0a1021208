"""Freed memory is given back when a loop grows, and not at every step."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from stillroom.core import memory
from stillroom.core.memory import Trimmer


def test_memory_is_given_back_when_a_loop_has_grown() -> None:
    held = iter([100, 110, 105, 112, 116, 127, 100, 112, 113])
    released = []
    trim = Trimmer(lambda: next(held), lambda: released.append(1))
    assert [trim() for _ in range(5)] == [False, False, False, False, True]
    assert [trim(), trim()] == [False, False]


def test_a_loop_that_needs_more_gets_more() -> None:
    """What is needed at every step is not given back at every step."""
    given = []
    trim = Trimmer(iter([100] * 3 + [140] * 100).__next__, lambda: given.append(1))
    for _ in range(103):
        trim()
    assert len(given) == 1


@pytest.mark.parametrize(("seconds", "apart"), [(0.1, Trimmer.APART), (4.0, 5)])
def test_holes_never_add_up(seconds: float, apart: int) -> None:
    """A loop that leaves 4 % of holes at every step, for however long it goes on. Giving them back takes 0.3 seconds."""
    held, most, times, now = 100, 0, 0, 0.0

    def release() -> None:
        nonlocal held, now
        held, now = 100, now + 0.3

    trim = Trimmer(lambda: held, release, lambda: now)
    for _ in range(500):
        held, now = held + 4, now + seconds
        times += trim()
        most = max(most, held)
    assert most <= 100 + 4 * (apart + 1)
    assert times <= 500 / apart
    assert times * 0.3 <= Trimmer.SHARE * now + 500 / Trimmer.APART * 0.3


def test_a_gpu_s_memory_is_given_back_to_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """What PyTorch keeps for itself would count as taken where the next stage asks how much is free."""
    import torch

    emptied: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(1))
    memory.release_memory()
    assert emptied == [1]


def test_products_are_kept_for_a_pass_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in memory.CACHES:
        monkeypatch.setenv(name, "1")  # so that the old state comes back
    monkeypatch.delenv(memory.CACHES[0])
    memory.keep_few_kernels(1024, 2)
    assert [os.environ[name] for name in memory.CACHES] == ["202", "1"]  # what the user says stays
    assert memory.kernels_kept(1 << 20, 64) == memory.MOST_KERNELS
    assert memory.kernels_kept(1, 64) == memory.FEWEST_KERNELS


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is held")
def test_training_on_ever_new_shapes_holds_no_more() -> None:
    """PyTorch and oneDNN still read the two variables, also when they are set after PyTorch was loaded."""
    code = """
import sys, torch
from stillroom.core import memory
if sys.argv[1] == "few":
    memory.keep_few_kernels(64, 1)
torch.set_num_threads(1)
states, weights = torch.ones(400, 64, dtype=torch.bfloat16), torch.ones(64, 64, dtype=torch.bfloat16)
torch.mm(states, weights)
memory.release_memory()
before = memory.resident()
for count in range(1, 401):
    torch.mm(states[:count], weights)
memory.release_memory()
print(memory.resident() - before)
"""
    environment = {name: value for name, value in os.environ.items() if name not in memory.CACHES}
    grown = {
        kind: int(
            subprocess.run([sys.executable, "-c", code, kind], env=environment, capture_output=True, check=True).stdout
        )
        for kind in ("few", "all")
    }
    if grown["all"] < 60 << 20:
        pytest.skip("this CPU has no bfloat16, or its products are not kept")
    assert grown["few"] < 0.7 * grown["all"]


def test_what_settles_is_left_out_of_the_search_and_found_again_at_the_end() -> None:
    program = """
import gc
from stillroom.core.memory import settling
kept = [[] for _ in range(1000)]
class Cycle: pass
def cycle():
    made = Cycle()
    made.itself = made
try:
    with settling() as settle:
        assert gc.get_freeze_count() == 0
        settle()
        frozen = gc.get_freeze_count()
        assert frozen > 1000
        cycle()
        assert gc.collect() > 0, "what is made later is looked through"
        raise KeyboardInterrupt
except KeyboardInterrupt:
    assert gc.get_freeze_count() == 0
gc.freeze()
with settling() as settle:
    before = gc.get_freeze_count()
    kept.append([[] for _ in range(10)])
    settle()
    assert gc.get_freeze_count() == before
assert gc.get_freeze_count() == before, "what the caller left out stays left out"
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
