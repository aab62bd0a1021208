"""Training on a made-up Ray whose machines die, hang and fail as a test says."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stillroom import pipeline
from stillroom.cluster import ray_capture, ray_train
from stillroom.cluster.cluster import Cluster, cluster_of
from stillroom.cluster.ray_machine import Part, Seen
from stillroom.cluster.ray_train import STARTS_AGAIN, _require, _Training
from stillroom.core.errors import (
    DiskFull,
    EnvironmentProblem,
    FloorMissed,
    Interrupted,
    SignalError,
    StillroomError,
    SwitchedOff,
    Terminated,
    UsageError,
)
from stillroom.core.progress import Progress
from stillroom.runs.run import Run
from stillroom.runs.stages import STAGES
from tests.cluster.cluster_material import recipe_in
from tests.cluster.made_up_ray import RayError, TaskFailed


class Hangs:
    """What an actor answers that answers nothing, of which Ray says nothing."""


@dataclass(eq=False)
class Reference:
    answer: Any


Answer = Seen | Exception | Hangs
RUNS, DONE, GONE = Seen(""), Seen("", 0), RayError("The actor died.")


class MadeUpRay:
    """Ray as the driver sees it.

    Args:
        starts: For each start, for each machine, what it answers when it is looked at; the last answer stays.
        clock: The time.
    """

    def __init__(self, starts: list[list[list[Answer]]], clock: Clock, machines: int = 2, gpus: int = 0) -> None:
        self.starts = starts
        self.clock = clock
        self.machines, self.gpus = machines, gpus
        self.exceptions = SimpleNamespace(RayError=RayError, RayTaskError=TaskFailed)
        self.util = SimpleNamespace(
            placement_group=self.group,
            remove_placement_group=lambda _: self.said.append("removed"),
            scheduling_strategies=SimpleNamespace(PlacementGroupSchedulingStrategy=lambda **values: values),
        )
        self.said: list[str] = []
        self.parts: list[Part] = []
        self.groups: list[Any] = []
        self.options: dict[str, Any] = {}
        self.cannot_start: Exception | None = None

    def nodes(self) -> list[dict[str, Any]]:
        resources = {"CPU": 8.0} | ({"GPU": float(self.gpus)} if self.gpus else {})
        return [{"Alive": True, "Resources": resources}] * self.machines + [{"Alive": False, "Resources": resources}]

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 8.0, "GPU": float(self.gpus)}

    def group(self, bundles: list[dict[str, int]], strategy: str) -> Any:
        self.groups.append((bundles, strategy))
        return SimpleNamespace(wait=self._wait_for_group)

    def _wait_for_group(self, seconds: float) -> bool:
        self.clock.now += seconds
        return self.machines >= 2

    def remote(self, **options: Any) -> Any:
        self.options = options
        return lambda _: SimpleNamespace(options=self._placed)

    def _placed(self, scheduling_strategy: dict[str, Any]) -> Any:
        rank = scheduling_strategy["placement_group_bundle_index"]
        answers = list(self.starts[len(self.groups) - 1][rank])

        def look() -> Answer:
            return answers.pop(0) if len(answers) > 1 else answers[0]

        def start(part: Part, _: str | None) -> str:
            self.parts.append(part)
            return f"host-{rank}"

        def say(word: str) -> Callable[[], None]:
            return lambda: self.said.append(f"{word} {rank}")

        methods: dict[str, Any] = {"place": lambda: self.cannot_start or ("10.0.0.1", 5000 + len(self.groups))}
        methods |= {"start": start, "look": look, "stop": say("stop"), "end": say("end")}
        remotes = {
            name: SimpleNamespace(remote=lambda *values, act=act: Reference(act(*values)))
            for name, act in methods.items()
        }
        return SimpleNamespace(remote=lambda: SimpleNamespace(rank=rank, **remotes))

    def wait(self, references: list[Any], timeout: float, **_: Any) -> tuple[list[Any], list[Any]]:
        ready = [each for each in references if not isinstance(each.answer, Hangs)]
        self.clock.now += timeout if len(ready) < len(references) else 0.0
        return ready, []

    def get(self, reference: Any) -> Any:
        if isinstance(reference.answer, Exception):
            raise reference.answer
        return reference.answer

    def kill(self, actor: Any) -> None:
        self.said.append(f"killed {actor.rank}")


class Clock:
    """A time that goes on where one waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(ray_train, "time", made)
    monkeypatch.setattr(ray_train.switch, "require_on", lambda: None)
    return made


def training(ray: MadeUpRay, asked: list[int] | None = None, until: str | None = "distill") -> _Training:
    run: Any = SimpleNamespace(path=Path("/runs/one"))
    return _Training(ray, run, 2, 3, "CPU", until, Progress(quiet=True), asked or [])


def ended(error: StillroomError) -> Seen:
    return Seen("", error.exit_code, (type(error).__name__, error.what, error.todo))


def test_a_run_that_ends_well(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    ray = MadeUpRay([[[Seen("step 1\n"), Seen("step 2\n\x1b[2J"), DONE], [Seen("other"), RUNS, RUNS, DONE]]], clock)
    training(ray).work()
    # What machine 0 prints is passed on, without what would move the terminal's cursor.
    assert capsys.readouterr().err.splitlines() == ["step 1", "step 2", "\\u001b[2J"]
    assert ray.groups == [([{"CPU": 3}, {"CPU": 3}], "STRICT_SPREAD")]
    assert ray.options == {"num_cpus": 3, "num_gpus": 0, "max_restarts": 0, "max_task_retries": 0}
    assert [(part.rank, part.count, part.workers, part.host, part.port) for part in ray.parts] == [
        (0, 2, 3, "10.0.0.1", 5001),
        (1, 2, 3, "10.0.0.1", 5001),
    ]
    assert {(part.run, part.until, part.quiet) for part in ray.parts} == {("/runs/one", "distill", True)}
    assert ray.said == ["end 0", "end 1", "killed 0", "killed 1", "removed"]
    assert clock.now < 10


@pytest.mark.parametrize(
    ("first", "other"),
    [
        ([RUNS], [RUNS, GONE]),
        ([RUNS, GONE], [RUNS]),
        # Killed by the system, which was short of memory.
        ([RUNS], [RUNS, Seen("", -9)]),
        # Ray says later than the processes that a machine is gone.
        ([RUNS, ended(EnvironmentProblem("Node 1 (b) was not heard of for 60 s."))], [*[RUNS] * 100, GONE]),
        ([*[RUNS] * 40, GONE], [ended(EnvironmentProblem("Node 0 at head:1 is gone."))]),
        ([RUNS], [RUNS, Hangs()]),
    ],
)
def test_a_machine_that_is_lost_has_all_started_again(
    clock: Clock, capsys: pytest.CaptureFixture[str], first: list[Answer], other: list[Answer]
) -> None:
    ray = MadeUpRay([[first, other], [[RUNS, DONE], [RUNS, DONE]]], clock)
    training(ray).work()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].endswith("starting again from the newest checkpoint (1 of 3)")
    assert len(ray.groups) == 2
    # What was left of the first start was ended before the second, which meets at another port.
    assert ray.said.index("removed") == ray.said.index("killed 1") + 1
    assert {part.port for part in ray.parts} == {5001, 5002}


def test_machines_that_are_lost_again_and_again_end_it(clock: Clock) -> None:
    ray = MadeUpRay([[[RUNS], [GONE]]] * (STARTS_AGAIN + 1), clock)
    with pytest.raises(EnvironmentProblem, match=r"machines were lost 4 times: node 1 \(host-1\) was lost \(The actor"):
        training(ray).work()
    assert len(ray.groups) == STARTS_AGAIN + 1


@pytest.mark.parametrize("seconds", [60, 1000])
def test_actors_that_the_cluster_cannot_start_are_tried_again_for_a_while(clock: Clock, seconds: int) -> None:
    ray = MadeUpRay([[[RUNS, DONE], [RUNS]]] * 100, clock)
    get = ray.get

    def failing(reference: Reference) -> Any:
        if clock.now < seconds:
            raise RayError("The actor never ran.")
        return get(reference)

    ray.get = failing  # type: ignore[method-assign]
    if seconds > ray_train.PATIENCE:
        with pytest.raises(EnvironmentProblem, match=r"cannot start.*: The actor never ran\n.*RAY_AUTH_MODE=token"):
            training(ray).work()
        assert clock.now < 150
    else:
        training(ray).work()
    assert len(ray.groups) > STARTS_AGAIN + 1


@pytest.mark.parametrize(
    ("first", "other", "error"),
    [
        ([ended(DiskFull("/runs: the disk is full."))], [ended(EnvironmentProblem("Node 0: full"))], DiskFull),
        ([ended(SignalError("Node 1: wrong."))], [ended(SignalError("wrong."))], SignalError),
        # A machine that cannot even begin, for which machine 0 would wait for ten minutes.
        ([RUNS], [Seen("No module named stillroom\n", 1)], EnvironmentProblem),
        ([RUNS], [ended(UsageError("another folder"))], UsageError),
        ([ended(FloorMissed("too low"))], [ended(EnvironmentProblem("Node 0: too low"))], FloorMissed),
    ],
)
def test_an_error_of_ours_is_told_and_not_tried_again(
    clock: Clock, first: list[Answer], other: list[Answer], error: type[StillroomError]
) -> None:
    ray = MadeUpRay([[first, other]], clock)
    with pytest.raises(StillroomError) as raised:
        training(ray).work()
    assert type(raised.value) is error
    assert len(ray.groups) == 1
    assert ray.said[-1] == "removed"
    if error is EnvironmentProblem:
        assert raised.value.what == "Node 1 (host-1) ended with code 1: No module named stillroom"


def test_an_actor_that_cannot_be_made_says_why(clock: Clock) -> None:
    ray = MadeUpRay([[[RUNS], [RUNS]]], clock)
    ray.cannot_start = TaskFailed(SignalError("broken", ""))
    with pytest.raises(SignalError, match="broken"):
        training(ray).work()
    assert len(ray.groups) == 1


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGTERM, Terminated), (signal.SIGINT, Interrupted)])
def test_a_signal_has_all_save_and_end(clock: Clock, number: int, kind: type[Interrupted]) -> None:
    asked: list[int] = []
    saved = ended(Terminated("Stopped by SIGTERM after step 7.", "A checkpoint was written."))
    ray = MadeUpRay([[[RUNS, RUNS, saved], [RUNS, RUNS, RUNS, RUNS, saved]]], clock)
    made = training(ray, asked)
    look = made._look

    def looking() -> None:
        look()
        asked.append(number)

    made.asked = asked
    made._look = looking  # type: ignore[method-assign]
    with pytest.raises(Interrupted) as raised:
        made.work()
    assert type(raised.value) is kind
    assert raised.value.todo == "A checkpoint was written."
    assert ray.said[:2] == ["stop 0", "stop 1"]
    assert len(ray.groups) == 1


def test_a_signal_before_anything_runs_ends_it_at_once(clock: Clock) -> None:
    ray = MadeUpRay([], clock, machines=1)
    with pytest.raises(Terminated):
        training(ray, [signal.SIGTERM]).work()
    assert ray.said == ["removed"]


def test_processes_that_do_not_end_after_a_signal_are_killed(clock: Clock) -> None:
    ray = MadeUpRay([[[RUNS], [RUNS]]], clock)
    made = training(ray)
    made._go_on = lambda: None  # type: ignore[method-assign]
    made.asked = [signal.SIGTERM]
    with pytest.raises(Terminated, match="The same command goes on"):
        made.work()
    assert ray_train.SAVE_SECONDS < clock.now < ray_train.SAVE_SECONDS + 60
    assert ray.said[2:4] == ["end 0", "end 1"]


def test_the_switch_kills_them(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = MadeUpRay([[[RUNS], [RUNS]]], clock)

    def require() -> None:
        if clock.now > 5:
            raise SwitchedOff("The switch is off", "")

    monkeypatch.setattr(ray_train.switch, "require_on", require)
    with pytest.raises(SwitchedOff):
        training(ray).work()
    assert ray.said == ["end 0", "end 1", "killed 0", "killed 1", "removed"]
    assert clock.now < 7


def test_it_is_waited_for_machines_and_not_for_ever(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    ray = MadeUpRay([], clock, machines=1)
    with pytest.raises(EnvironmentProblem, match="has had 1 such machines for 15 minutes"):
        training(ray).work()
    assert "waits for 2 machines of the Ray cluster, which has 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("machines", "gpus", "workers", "said"),
    [
        (1, 0, 2, "that have 2 cores or more, one for each process: 1 of 1"),
        (3, 0, 9, "9 cores or more, one for each process: 0 of 3"),
        (3, 4, 5, "5 GPUs or more, one for each process: 0 of 3"),
    ],
)
def test_too_small_a_cluster_is_refused(clock: Clock, machines: int, gpus: int, workers: int, said: str) -> None:
    with pytest.raises(EnvironmentProblem, match=said):
        _require(MadeUpRay([], clock, machines, gpus), "auto", 2, workers)
    assert _require(MadeUpRay([], clock, 2, 4), "auto", 2, 4) == "GPU"
    assert _require(MadeUpRay([], clock, 2, 0), "auto", 2, 8) == "CPU"


def test_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillroom.core.extras.require", lambda *_: None)
    assert cluster_of(2, "auto", 3, "4") == Cluster(2, "auto", 3, None, 4)
    assert cluster_of(2, "auto", None) == Cluster(2, "auto")
    for values, said in (
        ((2, "auto", None, "2", 1), "--node-rank and --rendezvous are for machines that are each given the command"),
        ((2, "auto", None, "2", None, "head:1"), "--node-rank and --rendezvous"),
        ((2, "auto", None, None, 0), "--node-rank and --rendezvous"),
        ((2, "auto", None, "auto"), "--nodes auto: with --ray it is a number"),
        ((2, "auto", None, "0"), "--nodes 0: with --ray"),
        ((2, "local", None, "2"), "--nodes 2 --ray local: the cluster that is started here is this machine alone"),
    ):
        with pytest.raises(UsageError, match=said):
            cluster_of(*values)  # type: ignore[arg-type]


def test_the_stages_that_are_done_here_end_with_the_capture() -> None:
    cluster = Cluster(1, "auto", None, None, 2)
    names = [spec.name for spec in cluster.here(list(STAGES))]
    assert names == ["write", "corpus", "capture"]
    assert (cluster.machines, cluster.trains_here) == (2, False)
    # Nothing trains: all is done here.
    assert [spec.name for spec in cluster.here(list(STAGES[:4]))] == ["write", "corpus", "capture", "shrink"]
    assert cluster.here([]) == []
    assert Cluster(2, "auto").here(list(STAGES)) == list(STAGES)


def test_signals_mean_afterwards_what_they_did() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with ray_train._asked_to_stop() as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked == [signal.SIGTERM] * 2
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_run_is_done_here_up_to_the_capture_and_then_handed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {"name": "handed", **recipe_in(tmp_path, documents=12)}
    calls: list[Any] = []

    def train(made: Run, *values: Any) -> None:
        # Machine 0 takes the lock.
        with made.locked():
            calls.append((made.stage("capture").record is not None, (made.path / "shrink").exists(), *values[:-1]))

    def few(*_: Any) -> None:
        raise EnvironmentProblem("too few")

    monkeypatch.setattr(ray_train, "train_on_ray", train)
    monkeypatch.setattr(ray_capture, "capture_on_ray", lambda *values: calls.append(values[1:3]))
    monkeypatch.setattr(ray_train, "require_machines", few)
    cluster = Cluster(3, "auto", 4, None, 2)
    with pytest.raises(EnvironmentProblem, match="too few"):
        pipeline.run(recipe, tmp_path / "runs", quiet=True, cluster=cluster)
    # Nothing was spent.
    assert not calls
    assert not (tmp_path / "runs" / "handed").exists()
    monkeypatch.setattr(ray_train, "require_machines", lambda *values: calls.append(values))
    made = pipeline.run(recipe, tmp_path / "runs", quiet=True, cluster=cluster)
    assert calls == [("auto", 2, 3), ("auto", 4), (True, False, "auto", 2, 3, None)]
    assert not (made.path / "summary.json").exists()
    calls.clear()
    pipeline.run(made, until="capture", quiet=True, cluster=cluster)
    assert calls == [("auto", 2, 3)]
