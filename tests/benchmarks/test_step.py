"""What the benchmark of the training step starts ends with it."""

import subprocess
import sys

from benchmarks.step import BUSY


def test_the_busy_core_ends_when_its_parent_is_gone() -> None:
    busy = subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE)
    try:
        assert busy.stdin is not None
        busy.stdin.close()
        assert busy.wait(20) == 0
    finally:
        busy.kill()
