"""Several processes: does capture divide, does Ray survive kills, do two ranks train as one?

    .venv/bin/python -m benchmarks.cluster [--quick] [--only capture|driver|training|s3|kills] [--work FOLDER] [--json FILE]

On small random models: what is shown is the protocol, not the speed of a real one.

- ``capture``: units a second (first to last note, so that no start counts) of one process, of one Ray worker, and of two, with
  one thread each, units of 2,048 tokens and a teacher of 10 million parameters: ``capture_2_workers_over_1``, ``ray_overhead``
  (one Ray worker against one process). They need free cores.
- ``driver``: ``units_per_second_driver``: empty units through the queue to two actors.
- ``training``: a student trained by two processes (whole in each, and divided) against one: ``loss_difference_2_ranks``
  (largest, relative), ``weights_difference`` (relative norm); stopped by SIGTERM and gone on with two
  (``resume_same_world_bit_equal``) and with one (``resume_other_world_difference``, of the losses of the steps after).
- ``s3``: ``s3_signals_equal``: captured into the object store of ``benchmarks.s3_server``, to the bit.
- ``kills``: ``kills_survived`` of ``kills_tried`` (20; ``--quick`` 4) at random moments, in turn of a worker, of a node with a
  spare core, of a node without one, and of the driver, which is started again: every unit is there once, and all signals are
  those of one process, to the bit. All on one cluster: a head with one core and nodes with one core each.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks import report
from benchmarks.s3_server import s3_server

ROOT = Path(__file__).parents[1]
PARTS = ("capture", "driver", "training", "s3", "kills")
KINDS = ("worker", "node with a spare core", "node without", "driver")
TEACHER = {"layers": 8, "hidden": 384}
UNIT = 2048
"""With this teacher a unit takes 0.4 seconds of one core: a card that makes 10⁶ tokens per second needs one for 2²⁰."""
TRIES = 5
"""Captures in which a kill is tried that came too late."""
PATIENCE = 900.0
"""Seconds after which a capture counts as hung."""


def prepare_paths() -> None:
    """The folders of the tests, for this process and those that it starts."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT), str(ROOT / "tests")])
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("RAY_AUTH_TOKEN", "0" * 64)
    os.environ["RAY_AUTH_MODE"] = "token"
    # Ray gives workers a niceness of 15: beside anything else that runs they would be measured against a process of 0.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


class Trial:
    """A tiny teacher and text, and runs of one recipe whose corpus is done.

    Args:
        folder: An empty folder.
        documents: Documents of text; each is about a unit's quarter.
        teacher: Layers and hidden size, where it is not to be tiny.
    """

    def __init__(self, folder: Path, documents: int, **teacher: int) -> None:
        self.folder = folder
        material = importlib.import_module("tests.cluster.cluster_material")
        self.values: dict[str, Any] = material.recipe_in(folder, documents, **teacher)

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

    kept = report.Kept(folder / "rounds.json", {"quick": quick})
    names = [str(number) for number in range(1 if quick else 5)]
    with tempfile.TemporaryDirectory(prefix="sr-") as scratch:
        trial = Trial(Path(scratch), 60 if quick else 200, **TEACHER)

        def rates(number: str) -> dict[str, Any]:
            found = {}
            alone = trial.run(f"alone-{number}", unit_tokens=UNIT)
            capture_part(alone, Share(1, 1), Progress(quiet=True))
            found["one_process"] = rate(alone)
            for workers in (1, 2):
                run = trial.run(f"ray-{workers}-{number}", unit_tokens=UNIT)
                capture_on_ray(run, "local", workers, Progress(quiet=True))
                found[f"ray_{workers}"] = rate(run)
            return found | {"load": os.getloadavg()[0]}

        rounds = [kept.cell(number, functools.partial(rates, number)) for number in names]
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
        queue = ray_capture.Queue(
            ray, str(run.path), units, 2, 0, task, dict.fromkeys((unit.name for unit in units), 1), progress
        )
        queue.actor_class = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(Empty)
        counts = queue.work()
    # From the first to the last, so that the start of the actors does not count.
    return {"units_per_second_driver": (len(times) - 1) / (times[-1] - times[0]), "workers": len(counts.pids)}


def training(folder: Path, quick: bool) -> dict[str, Any]:
    """Two ranks against one."""
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
    """Kills at random moments, on one cluster. A kill that is done is kept in the folder."""
    from stillroom.signals.cache.reader import TeacherCache

    count = 4 if quick else 20
    kept = report.Kept(folder / "kills.json", {"quick": quick})
    missing = [number for number in range(count) if str(number) not in kept.cells]
    if missing:
        ray_nodes = importlib.import_module("tests.cluster.ray_nodes")
        os.environ.update(ray_nodes.TOKEN)
        # Material and runs of a process that was interrupted are not gone on with.
        with tempfile.TemporaryDirectory(prefix="sr-") as scratch:
            trial = Trial(Path(scratch), 60)
            alone = TeacherCache.open(trial.run("alone", "capture").path / "capture" / "cache")
            nodes = ray_nodes.Nodes()
            try:
                for number in missing:
                    kept.cell(str(number), functools.partial(_survived, trial, number, alone, nodes))
            finally:
                nodes.close()
    tried = [kept.cells[str(number)] for number in range(count)]
    return {"kills_survived": sum(entry["survived"] for entry in tried), "kills_tried": len(tried), "tried": tried}


def _survived(trial: Trial, number: int, alone: Any, nodes: Any) -> dict[str, Any]:
    """One kill, and what is told of it."""
    kind = KINDS[number % len(KINDS)]
    begun = time.monotonic()
    chance = random.Random(number)
    try:
        for again in range(TRIES):
            found = _killed(trial.run(f"killed-{number}-{again}"), kind, chance, alone, nodes)
            if found["killed_after_units"] < found["units"]:
                break  # one that comes when everything is done kills nothing
    except Exception as error:
        found = {"survived": False, "error": f"{type(error).__name__}: {error}"[-800:]}
    return {"kind": kind, "seconds": time.monotonic() - begun, "load": os.getloadavg()[0], **found}


def _killed(run: Any, kind: str, chance: random.Random, alone: Any, nodes: Any) -> dict[str, Any]:
    """One capture with a kill; whether everything is there once, as one process makes it."""
    from stillroom.core.store import LocalStore
    from stillroom.signals.cache import parts
    from stillroom.signals.cache.reader import TeacherCache

    ray_nodes = importlib.import_module("tests.cluster.ray_nodes")
    equal_to_the_bit = importlib.import_module("tests.teachers.test_units").equal_to_the_bit

    # Each node has one core, and there are two workers. What is over is a spare core.
    while len(nodes.nodes) < (2 if "spare" in kind else 1):
        nodes.add()
    process = ray_nodes.driver(run.path, nodes.address)
    try:
        if kind.startswith("node"):
            ray_nodes.until(lambda: process.poll() is not None or bool(nodes.busy()), PATIENCE)
        wanted = chance.randint(1, 4)
        ray_nodes.until(lambda: process.poll() is not None or len(notes_of(run)) >= wanted, PATIENCE)
        time.sleep(chance.random() / 4)
        at = len(notes_of(run))
        if kind == "driver":
            process.kill()
            process.communicate()
            process = ray_nodes.driver(run.path, nodes.address)
        elif kind == "worker":
            chance.choice(nodes.capturers()).kill()
        else:
            nodes.kill(nodes.busy()[0])
            for node in nodes.nodes if kind == "node without" else ():
                nodes.kill(node)
        output, errors = process.communicate(timeout=PATIENCE)
        if process.returncode:
            raise RuntimeError(errors)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    units = len(notes_of(run))
    sealed = parts.seal(LocalStore(run.path / "capture" / "cache"))
    there = TeacherCache.open(run.path / "capture" / "cache")
    once = sum(entry.sequences for entry in sealed.manifest.shards) == len(there)
    equal = equal_to_the_bit(alone, there)
    return {
        "survived": once and equal and not sealed.damages and at < units,
        "killed_after_units": at,
        "units": units,
        "put_back": int(output.split()[-1]),
    }


def measure(only: str | None, quick: bool, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each part's figures."""
    functions = {"capture": capture, "driver": driver, "training": training, "s3": s3, "kills": kills}
    kept = report.Kept(folder / "parts.json", {"quick": quick})
    for name, function in functions.items():
        if only not in (None, name):
            continue
        if name not in kept.cells:
            if name not in ("capture", "kills"):
                # What an interrupted process has left is not gone on with, but for rounds and kills that it has kept.
                shutil.rmtree(folder / name, ignore_errors=True)
            (folder / name).mkdir(exist_ok=True)
            load = os.getloadavg()
            kept.add(name, function(folder / name, quick) | {"load_before": load})
        yield name, kept.cells[name]


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
    parser.add_argument("--work", type=Path, help="keeps what is done, so that an interrupted benchmark goes on")
    options = parser.parse_args()
    prepare_paths()
    import torch

    # One thread here as in every worker: torch was imported before the variable was set.
    torch.set_num_threads(1)
    details: dict[str, Any] = {"quick": options.quick}
    with tempfile.TemporaryDirectory(prefix="sr-") as folder:
        work = options.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        figures = report.gather(measure(options.only, options.quick, work.absolute()), FIGURES, details)
    report.write(figures, details, options.json)


if __name__ == "__main__":
    main()
