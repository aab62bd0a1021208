"""Processes of a benchmark end with it."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from benchmarks import jobs


def test_calls_return_in_order() -> None:
    assert jobs.together([partial(divmod, 7, 2), partial(len, "abc")], 1) == [(3, 1), 3]


def test_when_one_fails_the_others_are_ended() -> None:
    begun = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        jobs.together([partial(divmod, 1, 0), partial(time.sleep, 60)], 1)
    assert time.monotonic() - begun < 30
    assert multiprocessing.active_children() == []


def test_a_worker_ends_when_its_parent_was_killed(tmp_path: Path) -> None:
    code = (
        "import time; from functools import partial; from benchmarks.jobs import together\n"
        "if __name__ == '__main__': together([partial(time.sleep, 60)], 1)\n"
    )
    script = tmp_path / "begins.py"
    script.write_text(code)
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, str(script)], env=os.environ | {"PYTHONPATH": str(root)})
    try:
        parent, until = psutil.Process(process.pid), time.monotonic() + 30
        # The worker and the tracker of resources: the worker sleeps.
        while not (workers := [one for one in parent.children() if "spawn_main" in " ".join(one.cmdline())]):
            assert time.monotonic() < until
            time.sleep(0.05)
        time.sleep(1)
        process.send_signal(signal.SIGKILL)
        process.wait()
        _, alive = psutil.wait_procs(workers, timeout=20)
        for one in alive:
            one.kill()
        assert alive == []
    finally:
        process.kill()
        process.wait()
