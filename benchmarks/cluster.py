"""Several processes: does capture divide, does Ray survive kills, do two ranks train as one?

    .venv/bin/python -m benchmarks.cluster [--quick] [--only capture|driver|training|s3|kills] [--json FILE]

On tiny random models: what is shown is the protocol, not the speed of a real one.

- ``capture``: units a second (first to last note, so that no start counts) of one process, of one Ray worker, and of two, with
  one thread each: ``capture_2_workers_over_1``, ``ray_overhead`` (one Ray worker against one process). They need free cores.
- ``driver``: ``units_per_second_driver``: empty units through the queue to two actors.
- ``training``: a student trained by two processes (whole in each, and divided) against one: ``loss_difference_2_ranks``
  (largest, relative), ``weights_difference`` (relative norm); stopped by SIGTERM and gone on with two
  (``resume_same_world_bit_equal``) and with one (``resume_other_world_difference``, of the losses of the steps after).
- ``s3``: ``s3_signals_equal``: captured into the object store of ``benchmarks.s3_server``, to the bit.
- ``kills``: ``kills_survived`` of ``kills_tried`` (20; ``--quick`` 4) at random moments, in turn of a worker, of a node with a
  spare core, of a node without one, and of the driver, which is started again: every unit is there once, and all signals are
  those of one process, to the bit.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil

from benchmarks import report
from benchmarks.s3_server import s3_server

ROOT = Path(__file__).parents[1]
PARTS = ("capture", "driver", "training", "s3", "kills")
KINDS = ("worker", "node with a spare core", "node without", "driver")
DRIVER = """
import sys
from stillroom.cluster.ray_capture import capture_on_ray
from stillroom.core.progress import Progress
from stillroom.runs.run import Run
counts = capture_on_ray(Run.open(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Progress(True))
print(counts.put_back)
"""
PATIENCE = 900.0
"""Seconds after which a capture counts as hung."""


def prepare_paths() -> None:
    """The folders of the tests, for this process and those that it starts."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT), str(ROOT / "tests")])
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("RAY_AUTH_TOKEN", "0" * 64)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


class Trial:
    """A tiny teacher and text, and runs of one recipe whose corpus is done.

    Args:
        folder: An empty folder.
        documents: Documents of text; each is about a unit's quarter.
    """

    def __init__(self, folder: Path, documents: int) -> None:
        self.folder = folder
        material = importlib.import_module("tests.cluster.cluster_material")
        self.values: dict[str, Any] = material.recipe_in(folder, documents)

    def run(self, name: str, stage: str = "corpus", **capture: Any) -> Any:
        """A run whose stage is done."""
        from stillroom import pipeline

        values = {"name": name, **self.values, "capture": self.values["capture"] | capture}
        return pipeline.run_stage(values, stage, self.folder / "runs", quiet=True)


def notes_of(run: Any) -> list[Path]:
    """Notes of a run's units, oldest first."""
    found = (run.path / "capture" / "cache" / "parts").glob("*.json")
    return sorted(found, key=lambda path: path.stat().st_mtime_ns)


def rate(run: Any) -> float:
    """Units a second, from the first note to the last."""
    times = [path.stat().st_mtime_ns / 1e9 for path in notes_of(run)]
    return (len(times) - 1) / max(1e-9, times[-1] - times[0])


def capture(folder: Path, quick: bool) -> dict[str, Any]:
    """How capture divides."""
    from stillroom.cluster.ray_capture import capture_on_ray
    from stillroom.core.progress import Progress
    from stillroom.teachers.units import Share, capture_part

    trial = Trial(folder, 60 if quick else 400)
    rounds = []
    for number in range(1 if quick else 5):
        rates = {}
        alone = trial.run(f"alone-{number}")
        capture_part(alone, Share(1, 1), Progress(quiet=True))
        rates["one_process"] = rate(alone)
        for workers in (1, 2):
            run = trial.run(f"ray-{workers}-{number}")
            capture_on_ray(run, "local", workers, Progress(quiet=True))
            rates[f"ray_{workers}"] = rate(run)
        rounds.append(rates | {"load": os.getloadavg()[0]})
    best = {key: max(entry[key] for entry in rounds) for key in ("one_process", "ray_1", "ray_2")}
    return {
        "capture_2_workers_over_1": best["ray_2"] / best["ray_1"],
        "ray_overhead": best["one_process"] / best["ray_1"] - 1,
        "rounds": rounds,
    }


class Empty:
    """A worker without a teacher."""

    def __init__(self, path: str) -> None:
        self.path = path

    def ready(self) -> int:
        """As of a real one."""
        return os.getpid()

    def make(self, name: str) -> tuple[int, bool]:
        """Nothing is made."""
        return os.getpid(), bool(name)


def driver(folder: Path, quick: bool) -> dict[str, Any]:
    """How many units the queue gives out."""
    from stillroom.cluster import ray_capture
    from stillroom.core.progress import Progress
    from stillroom.teachers.units import Unit

    run = Trial(folder, 10).run("driver")
    units = [Unit(f"{number:064x}", 0, number, number + 1) for number in range(500 if quick else 3000)]
    progress = Progress(quiet=True)
    times: list[float] = []
    task: Any = SimpleNamespace(advance=lambda _: times.append(time.perf_counter()))
    with ray_capture.connected("local", 2) as ray:
        queue = ray_capture._Queue(
            ray, run, units, 2, 0, task, dict.fromkeys((unit.name for unit in units), 1), progress
        )
        queue.actor_class = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(Empty)
        counts = queue.work()
    # From the first to the last, so that the start of the actors does not count.
    return {"units_per_second_driver": (len(times) - 1) / (times[-1] - times[0]), "workers": len(counts.pids)}


def training(folder: Path, quick: bool) -> dict[str, Any]:
    """Two ranks against one."""
    import shutil

    import torch
    from safetensors.torch import load_file

    from stillroom.training.group import ALONE

    test_group: Any = importlib.import_module("tests.training.test_group")
    train = importlib.import_module("tests.training.group_worker").train

    test_group.prepared(folder)
    jobs = [{"name": sharding, "sharding": sharding, "result": f"{sharding}-2"} for sharding in ("replicate", "full")]
    stopped = {"name": "stopped", "sharding": "full", "result": "stopped"}
    never = {"name": "never", "sharding": "full", "result": "never"}
    test_group.together(folder, 2, *jobs, never)
    one = train(folder, {"name": "one"}, ALONE)
    found = {job["name"]: test_group.differences(folder, one, job["result"]) for job in jobs}
    test_group.together(folder, 2, {**stopped, "term": 5}, check=False)
    shutil.copytree(folder / "stopped", folder / "elsewhere")
    test_group.together(folder, 2, stopped)
    a, b = load_file(folder / "stopped.safetensors"), load_file(folder / "never.safetensors")
    alone = train(folder, {"name": "elsewhere"}, ALONE)
    expected = {entry["step"]: entry["loss"] for entry in one["log"]}
    return {
        "loss_difference_2_ranks": max(loss for loss, _, _ in found.values()),
        "weights_difference": max(weights for _, _, weights in found.values()),
        "resume_same_world_bit_equal": all(torch.equal(a[key], b[key]) for key in a),
        "resume_other_world_difference": max(
            abs(entry["loss"] / expected[entry["step"]] - 1) for entry in alone["log"]
        ),
        "steps": len(one["log"]),
        "steps_after_resume": len(alone["log"]),
        "quick": quick,
    }


def s3(folder: Path, quick: bool) -> dict[str, Any]:
    """The signals of an object store."""
    from stillroom.signals.cache.reader import TeacherCache

    equal_to_the_bit = importlib.import_module("tests.teachers.test_units").equal_to_the_bit

    trial = Trial(folder, 30 if quick else 120)
    local = trial.run("local", "capture")
    with s3_server() as server:
        os.environ.update(server.environment)
        trial.run("s3", "capture", path="s3://bucket/cache")
        there = TeacherCache.open("s3://bucket/cache", folder / "copies")
        alone = TeacherCache.open(local.path / "capture" / "cache")
        return {"s3_signals_equal": equal_to_the_bit(alone, there), "sequences": len(there), "puts": server.puts}


def kills(folder: Path, quick: bool) -> dict[str, Any]:
    """Kills at random moments."""
    from stillroom.signals.cache.reader import TeacherCache

    trial = Trial(folder, 60)
    alone = TeacherCache.open(trial.run("alone", "capture").path / "capture" / "cache")
    chance = random.Random(0)
    tried = []
    for number in range(4 if quick else 20):
        kind = KINDS[number % len(KINDS)]
        run = trial.run(f"killed-{number}")
        begun = time.monotonic()
        try:
            found = _killed(run, kind, chance, alone)
        except Exception as error:
            found = {"survived": False, "error": f"{type(error).__name__}: {error}"[:500]}
        tried.append({"kind": kind, "seconds": time.monotonic() - begun, "load": os.getloadavg()[0], **found})
        sys.stderr.write(f"kill {number + 1}: {json.dumps(tried[-1])}\n")
    return {"kills_survived": sum(entry["survived"] for entry in tried), "kills_tried": len(tried), "tried": tried}


def _killed(run: Any, kind: str, chance: random.Random, alone: Any) -> dict[str, Any]:
    """One capture with a kill; whether everything is there once, as one process makes it."""
    from stillroom.core.store import LocalStore
    from stillroom.signals.cache import parts
    from stillroom.signals.cache.reader import TeacherCache

    equal_to_the_bit = importlib.import_module("tests.teachers.test_units").equal_to_the_bit

    cluster: Any = None
    node: Any = None
    address = "local"
    if kind.startswith("node"):
        cores = 2 if "spare" in kind else 1
        cluster = importlib.import_module("ray.cluster_utils").Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": cores, "include_dashboard": False, "object_store_memory": 100 << 20},
        )
        node = cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
        address = cluster.address
    try:
        process = _driver(run, address)
        wanted = chance.randint(1, 4)
        _until(lambda: len(notes_of(run)) >= wanted or process.poll() is not None)
        time.sleep(chance.random() / 4)
        at = len(notes_of(run))
        if kind == "driver":
            process.kill()
            process.wait()
            process = _driver(run, address)
        elif node is not None:
            for infos in node.all_processes.values():
                for info in infos:
                    _end(psutil.Process(info.process.pid))
        else:
            _until(lambda: bool(_capturers(process.pid)))
            chance.choice(_capturers(process.pid)).kill()
        output, errors = process.communicate(timeout=PATIENCE)
        if process.returncode:
            raise RuntimeError(errors[-400:])
    finally:
        if process.poll() is None:
            process.kill()
        if cluster is not None:
            cluster.shutdown()
    units = len(notes_of(run))
    sealed = parts.seal(LocalStore(run.path / "capture" / "cache"))
    there = TeacherCache.open(run.path / "capture" / "cache")
    once = sum(entry.sequences for entry in sealed.manifest.shards) == len(there)
    equal = equal_to_the_bit(alone, there)
    return {
        "survived": once and equal and not sealed.damages,
        "killed_after_units": at,
        "units": units,
        "put_back": int(output.split()[-1]),
    }


def _driver(run: Any, address: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(run.path), address, "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _until(true: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true() and time.monotonic() < deadline:
        time.sleep(0.02)


def _capturers(pid: int) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        try:
            if any("Capturer" in part for part in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _end(process: psutil.Process) -> None:
    """Kill a process and all that it started."""
    try:
        family = [*process.children(recursive=True), process]
    except psutil.Error:
        return
    for member in family:
        try:
            member.kill()
        except psutil.Error:
            continue


def measure(only: str | None, quick: bool, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each part's figures."""
    functions = {"capture": capture, "driver": driver, "training": training, "s3": s3, "kills": kills}
    for name, function in functions.items():
        if only in (None, name):
            (folder / name).mkdir()
            load = os.getloadavg()
            yield name, function(folder / name, quick) | {"load_before": load}


FIGURES = (
    "capture_2_workers_over_1", "ray_overhead", "units_per_second_driver", "loss_difference_2_ranks", "weights_difference",
    "resume_same_world_bit_equal", "resume_other_world_difference", "s3_signals_equal", "kills_survived", "kills_tried",
)  # fmt: skip


def main() -> None:
    """Read the options, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    prepare_paths()
    details: dict[str, Any] = {"quick": options.quick}
    with tempfile.TemporaryDirectory(prefix="sr-") as folder:
        figures = report.gather(measure(options.only, options.quick, Path(folder)), FIGURES, details)
    report.write(figures, details, options.json)


if __name__ == "__main__":
    main()
