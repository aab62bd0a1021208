"""Several processes train as one: the same losses and weights, for both ways to share the student, and go on in any number."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from teachers.teacher_material import local_teacher
from tiny_models import make_model

from stillroom.core.errors import Terminated, UsageError
from stillroom.recipe.capture import DenseCodec, ThresholdCodec
from stillroom.recipe.recipe import Recipe
from stillroom.signals.batches import Batch
from stillroom.signals.cache.writer import CacheWriter
from stillroom.training import loop
from stillroom.training.checkpoint import newest
from stillroom.training.group import ALONE, Group
from stillroom.training.refusals import require_group
from stillroom.training.sharded_checkpoint import begin
from tests.signals.cache_material import identity
from tests.training.group_worker import texts, train
from tests.training.test_train_loop import LENGTH, ROWS, a_text, a_training

ROOT = Path(__file__).parents[2]


def together(
    folder: Path, world: int, *jobs: dict[str, Any], check: bool = True, local: tuple[int, ...] = ()
) -> list[int]:
    """Do jobs in a group of processes; their exit codes. ``local`` is the number of processes of each machine, else all are
    on one.
    """
    sizes = [size for size in local or (world,) for _ in range(size)]
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    environment = os.environ | {
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "src")]),
    }
    command = [sys.executable, "-m", "tests.training.group_worker", str(folder), json.dumps(jobs)]
    processes = [
        subprocess.Popen(
            command,
            env=environment
            | {"RANK": str(rank), "LOCAL_RANK": str(rank % sizes[rank]), "LOCAL_WORLD_SIZE": str(sizes[rank])},
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        errors = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()  # where one takes too long, or this process is ended meanwhile
    codes = [process.returncode for process in processes]
    assert not check or codes == [0] * world, "\n".join(errors)[-4000:]
    return codes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("group"))


def prepared(root: Path) -> Path:
    """The folder, with a tiny teacher's signals."""
    teacher = local_teacher(make_model("llama", rows=ROWS, layers=2, seed=5))
    for name, codec in (("cache", ThresholdCodec(tau=1 / 16)), ("dense", DenseCodec())):
        writer = CacheWriter.open(root / name, identity(codec, ROWS))
        for text in texts():
            for index, scores in teacher.score(text, range(len(text))):
                if text.digests[index] not in writer:
                    writer.add(text.digests[index], scores)
        writer.flush()
    return root


MICRO = {"micro_batch_tokens": 2 * LENGTH}
JOBS = [
    {"name": "replicate", "sharding": "replicate"},
    {"name": "full", "sharding": "full", "config": MICRO},
    {"name": "untied", "sharding": "full", "tied": False},
    {"name": "bf16", "sharding": "full", "config": {"precision": "bfloat16"}, "codec": "dense"},
    {"name": "bf16r", "sharding": "replicate", "config": {"precision": "bfloat16"}},
    {"name": "swept", "sharding": "replicate", "config": {"learning_rate": "auto"}},
]
"""What two processes do, all in one start, because a start takes seconds."""


@pytest.fixture(scope="module")
def two(folder: Path) -> Path:
    together(folder, 2, *({**job, "result": f"{job['name']}-2"} for job in JOBS))
    return folder


def measured(folder: Path, name: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    log, history = json.loads((folder / f"{name}.json").read_text())
    return log, history


def differences(folder: Path, one: dict[str, Any], name: str) -> tuple[float, float, float]:
    """Largest relative difference of losses and of validations, and the relative difference of the weights."""
    log, history = measured(folder, name)
    assert [entry["step"] for entry in log] == [entry["step"] for entry in one["log"]]
    # The cross-entropy of a distillation is measured and not trained for: it moves more.
    loss = max(abs(a[key] - b[key]) / b["loss"] for a, b in zip(log, one["log"], strict=True) for key in ("loss", "kl"))
    assert max(abs(a["cross_entropy"] / b["cross_entropy"] - 1) for a, b in zip(log, one["log"], strict=True)) < 2e-2
    held = max(abs(a["kl"] - b["kl"]) / abs(b["kl"]) for a, b in zip(history, one["history"], strict=True))
    found = load_file(folder / f"{name}.safetensors")
    square = sum(float((found[key] - value).square().sum()) for key, value in one["weights"].items())
    return loss, held, (square / sum(float(value.square().sum()) for value in one["weights"].values())) ** 0.5


@pytest.mark.parametrize("job", JOBS, ids=[job["name"] for job in JOBS])
def test_two_processes_train_as_one(two: Path, job: dict[str, Any]) -> None:
    one = train(two, {**job, "name": f"{job['name']}-1"}, ALONE)
    loss, held, weights = differences(two, one, f"{job['name']}-2")
    if job["name"] == "bf16":
        # Passes in another dtype: FSDP2 rounds weights where the working copy does, and sums apart.
        assert loss < 2e-2
        assert weights < 2e-2
    elif job["name"] == "bf16r":
        assert loss < 2e-3
        assert weights < 5e-3
    else:
        assert loss <= 1e-6
        assert held <= 5e-6
        assert weights <= 5e-6


def test_the_signal_stays_float32_under_mixed_precision(two: Path) -> None:
    # A dense signal that were cast to bfloat16 would be wrong in the third digit from the first validation on, and silently.
    one = train(two, {"name": "plain", "codec": "dense"}, ALONE)
    _, history = measured(two, "bf16-2")
    assert history[0]["kl"] == pytest.approx(one["history"][0]["kl"], rel=2e-3)


def test_checkpoints_are_safetensors_and_one_process_goes_on_without_pickle(
    two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = newest(two / "full")
    assert folder is not None
    names = sorted(path.name for path in folder.iterdir())
    assert "state.json" in names
    assert len([name for name in names if name.endswith(".safetensors")]) == 2
    assert not [name for name in names if name == ".metadata" or name.endswith((".pt", ".distcp"))]

    def poisoned(*_: Any, **__: Any) -> None:
        raise AssertionError("pickle was read")

    monkeypatch.setattr(pickle, "load", poisoned)
    monkeypatch.setattr(pickle, "loads", poisoned)
    monkeypatch.setattr(torch, "load", poisoned)
    done = train(two, {"name": "full", "config": MICRO}, ALONE)
    assert done["log"] == []
    found = load_file(two / "full-2.safetensors")
    assert all(torch.equal(found[key], value) for key, value in done["weights"].items())


def test_a_checkpoint_that_is_cut_off_at_any_of_its_files_is_not_taken(two: Path, tmp_path: Path) -> None:
    whole = newest(two / "full")
    assert whole is not None
    names = sorted(path.name for path in whole.iterdir())
    for name in names:
        for damage in ("cut", "missing"):
            copy = tmp_path / f"{name}-{damage}" / whole.name
            shutil.copytree(whole, copy)
            assert newest(copy.parent) == copy
            if damage == "cut":
                os.truncate(copy / name, (copy / name).stat().st_size // 2)
            else:
                (copy / name).unlink()
            # A state that is cut off is told of where it is read; a checkpoint without sizes is an old one.
            if name not in ("state.json", "sizes.json"):
                assert newest(copy.parent) is None, (name, damage)
    assert len(names) >= 4


def test_shares_are_the_batch_for_any_number_of_processes() -> None:
    rows = list(range(23))
    for world in (1, 2, 3, 4, 8):
        shares = [Group(rank, world).share(rows) for rank in range(world)]
        assert sorted(row for share in shares for row in share) == rows


def test_an_optimizer_s_state_begins_where_the_weights_are() -> None:
    """A resumed group's fused AdamW reads the number of steps in a kernel of the GPU."""
    parameter = torch.nn.Parameter(torch.zeros(3, device="meta"))
    optimizer = torch.optim.AdamW([parameter])
    begin(optimizer)
    assert {value.device.type for value in optimizer.state[parameter].values()} == {"meta"}


def test_a_thread_that_pins_batches_has_its_process_s_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[int, bool]] = []
    main = threading.main_thread()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", lambda card: found.append((card, threading.current_thread() is main)))
    monkeypatch.setattr(Batch, "pinned", Batch.located)
    text = a_text(2, 0)
    training = a_training(([text, text], {"none": None}), tmp_path, codec="none", distill=False)
    training.device, training.group = torch.device("cuda:3"), Group(3, 4)
    assert len(list(training._stream([[0], [1]]))) == 2
    assert found == [(3, False)] * 2


class Held(torch.Tensor):
    """Counts how often its numbers are asked for."""

    reads: ClassVar[int] = 0

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("__float__", "item", "tolist", "cpu"):
            Held.reads += 1
        return super().__torch_function__(func, types, args, kwargs or {})


def test_a_group_reads_a_step_s_losses_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three micro-batches, on a device that is waited for at each read."""
    text = a_text(3, 0)
    training = a_training(([text, text], {"none": None}), tmp_path, codec="none", distill=False)
    training.device = torch.device("cuda:0")
    batches = [training.train.batch([index]) for index in range(3)]
    parameter = torch.nn.Parameter(torch.zeros(()))

    class Network:
        def __call__(self, batch: Batch, _loss: Any, denominator: float) -> Any:
            value = (parameter + len(batch.targets) / denominator).as_subclass(Held)
            each = torch.ones(len(batch.targets)).as_subclass(Held)
            return SimpleNamespace(value=value, distances=each, cross_entropies=each)

        def collect(self) -> None:
            pass

        refresh = collect

    monkeypatch.setattr(Batch, "to", lambda self, _: self)
    monkeypatch.setattr(loop, "clip_gradients", lambda *_: 1.0)
    step = loop._Stepper(training, torch.optim.AdamW([parameter]), Network(), training._loss())  # type: ignore[arg-type]
    Held.reads = 0
    done = step._together(batches, 1e-3, 0, (False, False))
    assert Held.reads == 1
    assert done.loss == pytest.approx(1.0)
    assert done.cross_entropy == pytest.approx(1.0)


def test_what_several_processes_cannot_do_is_refused_before_anything_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    def recipe(device: str = "cpu", **distill: Any) -> Recipe:
        return Recipe.model_validate(
            {
                "name": "x",
                "corpus": {"sources": [{"kind": "text", "path": "nowhere", "licence": "CC0-1.0"}]},
                "teacher": {"kind": "huggingface", "name": "nobody/nothing"},
                "student": {"kind": "shrink", "target": {"parameters": 1000}},
                "compute": {"device": device},
                "distill": distill,
            }
        )

    for key, value in (("state", 8), ("gradient_checkpointing", "on")):
        require_group(recipe(**{key: value}), 1)
        with pytest.raises(UsageError, match=f"distill.{key}: {value}.*--workers 2"):
            require_group(recipe(**{key: value}), 2)
        with pytest.raises(UsageError, match=f"distill.{key}: {value}.*--nodes 3"):
            require_group(recipe(**{key: value}), 1, 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    require_group(recipe("auto"), 2)
    require_group(recipe("cpu"), 3)
    with pytest.raises(UsageError, match="--workers 3: each process trains on a GPU of its own, and there are 2"):
        require_group(recipe("auto"), 3)
    # What the machine of the command has does not matter where others train.
    require_group(recipe("auto"), 3, 2, here=False)
    with pytest.raises(UsageError, match=r"distill\.state"):
        require_group(recipe(state=8), 1, 2, here=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(UsageError, match="a Mac has one"):
        require_group(recipe("auto"), 2)


@pytest.mark.cluster
@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2), (2, 2), (2, 3), (2, 4)])
@pytest.mark.parametrize("sharding", ["replicate", "full"])
def test_a_run_goes_on_in_another_number_of_processes(folder: Path, first: int, then: int, sharding: str) -> None:
    name = f"go-{first}-{then}-{sharding}"
    step = 5
    job = {"name": name, "sharding": sharding, "result": name, "config": {"checkpoint_seconds": 0}}
    if first == 1:
        with pytest.raises(Terminated):
            train(folder, {**job, "term": step}, ALONE)
    else:
        codes = together(folder, first, {**job, "term": step}, check=False)
        assert all(code != 0 for code in codes)
    checkpoint = newest(folder / name)
    assert checkpoint is not None
    assert step <= int(checkpoint.name.removeprefix("step-")) <= step + 1
    one = train(folder, {"name": f"{name}-whole"}, ALONE)
    if then == 1:
        again = train(folder, job, ALONE)
        square = sum(float((again["weights"][key] - value).square().sum()) for key, value in one["weights"].items())
        assert square**0.5 <= 5e-6 * sum(float(v.square().sum()) for v in one["weights"].values()) ** 0.5
    else:
        together(folder, then, job)
        log, _ = measured(folder, name)
        expected = {entry["step"]: entry["loss"] for entry in one["log"]}
        assert all(abs(entry["loss"] - expected[entry["step"]]) <= 1e-6 * expected[entry["step"]] for entry in log)
        if first == then:
            whole = {**job, "name": f"{name}-never", "result": f"{name}-never"}
            together(folder, then, whole)
            a, b = load_file(folder / f"{name}.safetensors"), load_file(folder / f"{name}-never.safetensors")
            assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("state", [8, 12])
def test_one_process_goes_on_in_any_format_from_a_lean_checkpoint(folder: Path, state: int) -> None:
    """Where `state: auto` chooses otherwise on another card. In float32 throughout it is AdamW, as with `state: 16`."""
    job = {"name": f"lean-{state}", "config": {"state": state, "checkpoint_seconds": 0}}
    with pytest.raises(Terminated):
        train(folder, {**job, "term": 5}, ALONE)
    losses = {}
    for other in ("auto", 16, state):
        name = f"lean-{state}-{other}"
        shutil.copytree(folder / job["name"], folder / name)
        losses[other] = [
            entry["loss"] for entry in train(folder, {"name": name, "config": {"state": other}}, ALONE)["log"]
        ]
    assert losses["auto"] == pytest.approx(losses[16], rel=1e-5)
    assert losses["auto"] == pytest.approx(losses[state], rel=1e-2)


@pytest.mark.cluster
@pytest.mark.parametrize("state", [8, 12])
def test_a_group_goes_on_from_a_lean_checkpoint(folder: Path, state: int) -> None:
    job = {"name": f"from-{state}", "config": {"state": state, "checkpoint_seconds": 0}}
    with pytest.raises(Terminated):
        train(folder, {**job, "term": 5}, ALONE)
    names = {sharding: f"from-{state}-{sharding}" for sharding in ("one", "replicate", "full")}
    for name in names.values():
        shutil.copytree(folder / job["name"], folder / name)
    one = train(folder, {"name": names["one"]}, ALONE)
    together(
        folder,
        2,
        *({"name": names[key], "sharding": key, "result": names[key]} for key in ("replicate", "full")),
    )
    for sharding in ("replicate", "full"):
        log, _ = measured(folder, names[sharding])
        assert [entry["step"] for entry in log] == [entry["step"] for entry in one["log"]]
        assert log[0]["step"] == 6
        assert [entry["loss"] for entry in log] == pytest.approx([entry["loss"] for entry in one["log"]], rel=1e-6)


HYBRID = [
    {"name": "hybrid", "sharding": "hybrid", "config": MICRO},
    {"name": "hybrid-untied", "sharding": "hybrid", "tied": False, "config": {"gradient_clip": 0.05}},
]


@pytest.fixture(scope="module")
def four(folder: Path) -> Path:
    together(folder, 4, *({**job, "result": f"{job['name']}-4"} for job in HYBRID), local=(2, 2))
    return folder


@pytest.mark.cluster
@pytest.mark.parametrize("job", HYBRID, ids=[job["name"] for job in HYBRID])
def test_two_machines_of_two_processes_train_as_one(four: Path, job: dict[str, Any]) -> None:
    one = train(four, {**job, "name": f"{job['name']}-1"}, ALONE)
    loss, held, weights = differences(four, one, f"{job['name']}-4")
    assert loss <= 1e-6
    assert held <= 5e-6
    assert weights <= 5e-6
    log, _ = measured(four, f"{job['name']}-4")
    norms = [(a["gradient_norm"], b["gradient_norm"]) for a, b in zip(log, one["log"], strict=True)]
    assert all(abs(a - b) <= 2e-5 * b for a, b in norms)
    if "gradient_clip" in job["config"]:
        assert all(b > job["config"]["gradient_clip"] for _, b in norms)


@pytest.mark.cluster
def test_hybrid_divides_within_a_machine_and_stores_each_part_once(four: Path) -> None:
    sizes = json.loads((four / "hybrid-4-parts.json").read_text())
    whole = {name: value.numel() for name, value in load_file(four / "hybrid-4.safetensors").items()}
    assert all(abs(size / whole[name] - 1 / 2) < 0.1 for name, size in sizes.items() if whole[name] > 100)
    assert set(sizes) == set(whole)
    stored: dict[str, int] = {}
    checkpoint = newest(four / "hybrid")
    assert checkpoint is not None
    for path in checkpoint.glob("*.safetensors"):
        for name, value in load_file(path).items():
            stored[name] = stored.get(name, 0) + value.numel()
    assert {name: stored[f"model.{name}"] for name in whole} == whole


@pytest.mark.cluster
def test_machines_with_unequal_numbers_of_processes_are_refused_by_name(folder: Path) -> None:
    job = {"name": "unequal", "sharding": "hybrid", "result": "unequal"}
    codes = together(folder, 3, {**job, "refused": True}, local=(2, 1))
    assert codes == [0, 0, 0]
    said = (folder / "unequal-refused.txt").read_text()
    assert "Sharding `hybrid` needs the same number of processes on each machine: of 3 in all" in said
    assert "have 1, 2 (LOCAL_WORLD_SIZE)" in said


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("first", "then"),
    [("hybrid", "replicate"), ("hybrid", "full"), ("full", "hybrid"), ("replicate", "hybrid")],
)
def test_a_run_goes_on_with_another_sharding(folder: Path, first: str, then: str) -> None:
    """Of four processes on two machines in two on one, and the reverse."""
    name = f"mesh-{first}-{then}"
    places = {"hybrid": (4, (2, 2)), "full": (2, (2,)), "replicate": (2, (2,))}
    job = {"name": name, "result": name, "config": {"checkpoint_seconds": 0}}
    world, local = places[first]
    codes = together(folder, world, {**job, "sharding": first, "term": 5}, check=False, local=local)
    assert all(code != 0 for code in codes)
    assert newest(folder / name) is not None
    one = train(folder, {"name": f"{name}-whole"}, ALONE)
    world, local = places[then]
    together(folder, world, {**job, "sharding": then}, local=local)
    log, _ = measured(folder, name)
    assert log[0]["step"] > 5
    expected = {entry["step"]: entry["loss"] for entry in one["log"]}
    assert all(abs(entry["loss"] - expected[entry["step"]]) <= 1e-6 * expected[entry["step"]] for entry in log)
    found = load_file(folder / f"{name}.safetensors")
    square = sum(float((found[key] - value).square().sum()) for key, value in one["weights"].items())
    assert square**0.5 <= 5e-6 * sum(float(v.square().sum()) for v in one["weights"].values()) ** 0.5


@pytest.mark.cluster
def test_a_hybrid_training_goes_on_as_hybrid_to_the_bit(folder: Path) -> None:
    """Of two machines of two processes each, stopped and started again on as many."""
    job = {"name": "again", "sharding": "hybrid", "result": "again", "config": {"checkpoint_seconds": 0}}
    codes = together(folder, 4, {**job, "term": 5}, check=False, local=(2, 2))
    assert all(code != 0 for code in codes)
    checkpoint = newest(folder / "again")
    assert checkpoint is not None
    stopped = int(checkpoint.name.removeprefix("step-"))
    assert 5 <= stopped <= 6
    never = {**job, "name": "again-never", "result": "again-never"}
    together(folder, 4, job, never, local=(2, 2))
    log, _ = measured(folder, "again")
    whole, _ = measured(folder, "again-never")
    assert log[0]["step"] == stopped + 1
    assert [entry["loss"] for entry in log] == [entry["loss"] for entry in whole if entry["step"] > stopped]
    a, b = load_file(folder / "again.safetensors"), load_file(folder / "again-never.safetensors")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    # It is divided within each machine still.
    parts = json.loads((folder / "again-parts.json").read_text())
    assert all(abs(size / a[name].numel() - 1 / 2) < 0.1 for name, size in parts.items() if a[name].numel() > 100)


@pytest.mark.cluster
@pytest.mark.parametrize("sharding", ["replicate", "full"])
def test_a_rank_that_is_killed_ends_the_group_and_the_next_one_goes_on_to_the_bit(folder: Path, sharding: str) -> None:
    job = {"name": f"shot-{sharding}", "sharding": sharding, "result": f"shot-{sharding}"}
    codes = together(folder, 2, {**job, "kill": 6}, check=False)
    assert codes[1] == -signal.SIGKILL
    assert codes[0] != 0
    assert newest(folder / job["name"]) is not None
    never = {**job, "name": f"whole-{sharding}", "result": f"whole-{sharding}"}
    together(folder, 2, job, never)
    log, _ = measured(folder, job["result"])
    assert log[0]["step"] > 1
    a, b = load_file(folder / f"{job['result']}.safetensors"), load_file(folder / f"{never['result']}.safetensors")
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_sigterm_saves_and_the_run_goes_on_to_the_bit(folder: Path) -> None:
    one = train(folder, {"name": "untouched"}, ALONE)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated, match="after step 5") as caught:
        train(folder, {"name": "stopped", "term": 5}, ALONE)
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    again = train(folder, {"name": "stopped"}, ALONE)
    assert again["log"][0]["step"] == 6
    assert all(torch.equal(again["weights"][key], value) for key, value in one["weights"].items())
