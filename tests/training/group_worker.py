"""One process of a group that trains; `test_group.py` starts it. Arguments: folder, then what to do, as JSON."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from tiny_models import make_model

from stillroom.core.errors import UsageError
from stillroom.signals.cache.reader import TeacherCache
from stillroom.training.group import Group, end_process
from stillroom.training.shard import is_divided, whole
from tests.training.test_train_loop import CONFIG, ROWS, a_text, a_training


def texts() -> list[Any]:
    """Seventeen sequences for training, so that no number of processes has the same number each."""
    found = a_text(17, 0)
    found.loss_mask[3, 4:] = False  # unequal numbers of targets
    return [found, a_text(5, 1)]


def student(tied: bool) -> Any:
    return make_model("llama", rows=ROWS, layers=2, seed=9, tied=tied)


def train(root: Path, job: dict[str, Any], group: Group) -> dict[str, Any]:
    """Train as a job says; returns what every step measured, and the weights' file."""
    torch.manual_seed(0)
    taught = (texts(), {"threshold": TeacherCache.open(root / "cache"), "dense": TeacherCache.open(root / "dense")})
    config = CONFIG.model_copy(update=job.get("config", {}))
    log: list[dict[str, Any]] = []

    def event(**values: Any) -> None:
        if "loss" in values:
            log.append(values)
            if job.get("kill") == values["step"] and group.rank == group.world - 1:
                os.kill(os.getpid(), signal.SIGKILL)
            if job.get("term") == values["step"] and group.rank == group.world - 1:
                os.kill(os.getpid(), signal.SIGTERM)

    training = a_training(
        taught,
        root / job["name"],
        config,
        job.get("codec", "threshold"),
        model=student(job.get("tied", True)),
        event=event,
    )
    training.group = group
    state = training.run()
    parts = {
        name: value.to_local().numel() if is_divided(value) else value.numel()
        for name, value in training.model.named_parameters()
    }
    weights = {name: whole(value).detach().clone() for name, value in training.model.named_parameters()}
    return {"log": log, "weights": weights, "history": state.history, "parts": parts}


def main() -> None:
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    jobs = json.loads(sys.argv[2])
    group = Group.join()
    for job in jobs:
        mine = Group(group.rank, group.world, job.get("sharding", "replicate"))
        if job.get("refused"):
            try:
                train(root, job, mine)
            except UsageError as error:
                (root / f"{job['result']}-refused.txt").write_text(str(error))
                continue
            sys.exit("it was not refused")
        found = train(root, job, mine)
        if group.first:
            from safetensors.torch import save_file

            save_file(found["weights"], root / f"{job['result']}.safetensors")
            (root / f"{job['result']}-parts.json").write_text(json.dumps(found["parts"]))
            (root / f"{job['result']}.json").write_text(json.dumps([found["log"], found["history"]]))
    group.leave()
    end_process()


if __name__ == "__main__":
    main()
