"""Runs checks one after the other, each in a process of its own with a time limit, and writes what they find as they find it.

What a check notes is on disk at once, and the file of the part is written after each check, so that an error, a crash of
the driver or a time that is up loses no more than the check that it happened to. A child is forked before CUDA is touched,
so that imports are paid once. It ends with the driver, however that ends: no check goes on using the device.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from stillroom.cluster.ray_machine import end_with

FULL, TINY = "full", "tiny"


@dataclass(frozen=True)
class Setting:
    """Where a check runs.

    Attributes:
        device: The device.
        tiny: Whether sizes are those of a dry run: everything is computed, and no time or rate is held against a bar.
        notes: Where findings go, one JSON object a line.
        keep: Where the teacher was joined.
    """

    device: torch.device
    tiny: bool
    notes: Path
    keep: Path

    @classmethod
    def here(cls, out: Path) -> Setting:
        """As the environment says: STILLROOM_GPU_DEVICE (cuda), STILLROOM_GPU_SIZE (full) and STILLROOM_GPU_KEEP."""
        device = torch.device(os.environ.get("STILLROOM_GPU_DEVICE", "cuda"))
        size = os.environ.get("STILLROOM_GPU_SIZE", FULL)
        if size not in (FULL, TINY):
            raise SystemExit(f"STILLROOM_GPU_SIZE is `{size}`: it is `{FULL}` or `{TINY}`.")
        keep = Path(os.environ.get("STILLROOM_GPU_KEEP", "/var/empty"))
        return cls(device, size == TINY, out / "notes", keep)

    @property
    def cuda(self) -> bool:
        """Whether the device is an NVIDIA card."""
        return self.device.type == "cuda"

    def note(
        self, name: str, value: Any, *, least: float | None = None, most: float | None = None, speed: bool = False
    ) -> None:
        """Write a finding down.

        Args:
            name: What it is, with its unit.
            value: A number, or anything JSON takes.
            least: The bar from below; a number that is not finite does not reach it.
            most: The bar from above.
            speed: Whether it depends on the clock or on the card's memory; then a dry run does not judge it.
        """
        found: dict[str, Any] = {"name": name, "value": value}
        if least is not None or most is not None:
            found |= {"least": least, "most": most}
            if not (speed and (self.tiny or not self.cuda)):
                found["ok"] = (least is None or value >= least) and (most is None or value <= most)
        with self.notes.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found, default=str) + "\n")

    def wait(self) -> None:
        """Until the device has done everything."""
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object], repeats: int = 5, warm: int = 2) -> float:
        """Median of some repetitions."""
        if self.tiny:
            repeats, warm = 1, 0
        for _ in range(warm):
            work()
        spent = []
        for _ in range(repeats):
            self.wait()
            begun = time.perf_counter()
            work()
            self.wait()
            spent.append(time.perf_counter() - begun)
        return statistics.median(spent)

    def memory(self) -> int:
        """Bytes that tensors take now; the peak begins here. 0 where there is no card."""
        if not self.cuda:
            return 0
        self.wait()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    def peak(self) -> int:
        """Most bytes since :meth:`memory`."""
        if not self.cuda:
            return 0
        self.wait()
        return torch.cuda.max_memory_allocated()


@dataclass(frozen=True)
class Check:
    """One thing to prove.

    Attributes:
        name: In files and on the page.
        run: Notes what it finds.
        limit: Seconds after which it is ended.
    """

    name: str
    run: Callable[[Setting], None]
    limit: float


def run_checks(part: str, checks: Sequence[Check], out: Path) -> int:
    """Run checks and write `OUT/PART.json` after each.

    Returns:
        Checks that failed or found something below its bar.
    """
    before = signal.signal(signal.SIGTERM, _end)
    try:
        return _run_checks(part, checks, out)
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(number: int, _where: FrameType | None) -> None:
    """End by an error, so that the check that runs is ended, too."""
    sys.exit(128 + number)


def _run_checks(part: str, checks: Sequence[Check], out: Path) -> int:
    out.mkdir(parents=True, exist_ok=True)
    here = Setting.here(out)
    asked = os.environ.get("STILLROOM_GPU_ONLY", "").split()
    found: dict[str, Any] = {"part": part, "tiny": here.tiny, "device": here.device.type, "machine": None, "checks": {}}
    bad = 0
    for check in (Check("machine", _machine, 60.0), *checks):
        if asked and check.name not in ("machine", *asked):
            continue
        notes = out / f"{part}.{check.name}.jsonl"
        notes.unlink(missing_ok=True)
        setting = Setting(here.device, here.tiny, notes, here.keep)
        begun = time.monotonic()
        ended = _in_a_child(check, setting)
        findings = []
        for line in notes.read_text(encoding="utf-8").splitlines() if notes.is_file() else []:
            try:
                findings.append(json.loads(line))
            except ValueError:  # the child was ended while it wrote
                continue
        errors = [one["value"] for one in findings if one["name"] == "error"]
        row: dict[str, Any] = {
            "ended": ended,
            "seconds": round(time.monotonic() - begun, 1),
            "findings": [one for one in findings if one["name"] != "error"],
        }
        if errors:
            row["error"] = errors[0]
        if check.name == "machine":
            found["machine"] = {one["name"]: one["value"] for one in row["findings"]}
        failed = ended != "whole" or any(one.get("ok") is False for one in findings)
        bad += failed
        found["checks"][check.name] = row | {"ok": not failed}
        partial = out / f"{part}.json.partial"
        partial.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        partial.replace(out / f"{part}.json")
        sys.stdout.write(f"{check.name}: {'ok' if not failed else ended if ended != 'whole' else 'below a bar'}\n")
        for one in row["findings"]:
            sys.stdout.write(f"  {one['name']}: {one['value']}{' FAILED' if one.get('ok') is False else ''}\n")
        if errors:
            sys.stdout.write(f"  {errors[0]}\n")
        sys.stdout.flush()
    return bad


def _in_a_child(check: Check, setting: Setting) -> str:
    """How it ended: `whole`, or what happened."""
    sys.stdout.flush()
    driver = os.getpid()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            end_with(driver)
            os.setsid()
            check.run(setting)
            code = 0
        except BaseException as error:
            words = f"{type(error).__name__}: {str(error)[:600]}"
            where = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)[-4:]]
            setting.note("error", f"{words} ({', '.join(where)})")
        finally:
            sys.stdout.flush()
            os._exit(code)
    end = time.monotonic() + check.limit
    done = 0
    try:
        while time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                if os.WIFSIGNALED(status):
                    return f"killed by signal {os.WTERMSIG(status)}"
                return "whole" if os.WEXITSTATUS(status) == 0 else "error"
            time.sleep(0.02)
        return f"not done after {check.limit:.0f} s"
    finally:
        # With all that it started; it has a session of its own, which no Ctrl-C reaches.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        if not done:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _machine(at: Setting) -> None:
    import transformers

    at.note("torch", torch.__version__)
    at.note("transformers", transformers.__version__)
    at.note("python", platform.python_version())
    if at.cuda:
        properties = torch.cuda.get_device_properties(at.device)
        at.note("card", properties.name)
        at.note("memory GiB", round(properties.total_memory / 2**30, 1))
        at.note("capability", f"{properties.major}.{properties.minor}")
