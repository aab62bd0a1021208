"""A run that is killed at any moment completes with the same command, and its weights are those of one never killed."""

from __future__ import annotations

import gc
import json
import multiprocessing
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_models import tiny_model

from stillroom.core import files

STAGES = ("corpus", "capture", "shrink", "distill", "baseline", "export", "evaluate")
WEIGHTS = ("shrink/model/model.safetensors", "distill/model/model.safetensors", "baseline/model/model.safetensors")


def whole_run(settings: dict[str, Any], root: str) -> None:
    """What the command does, in a child of its own."""
    from stillroom.pipeline import run
    from stillroom.recipe.recipe import Recipe

    gc.freeze()
    run(Recipe.model_validate(settings), root, quiet=True)


def digests(folder: Path) -> dict[str, str]:
    return {name: files.digest_file(folder / name) for name in WEIGHTS}


@pytest.fixture(scope="module")
def children() -> Any:
    """Children that begin with everything imported, so that a kill meets the work and not the imports."""
    context = multiprocessing.get_context("forkserver")
    stages = [f"stillroom.{package}.stage" for package in ("students", "training", "formats", "evaluation")]
    # `transformers` alone imports none of what a model takes.
    models = [
        f"transformers.models.{name}"
        for name in ("auto.modeling_auto", "auto.tokenization_auto", "llama.modeling_llama")
    ]
    context.set_forkserver_preload(["stillroom.pipeline", *stages, *models])
    return context


BRIEF = ("capture", "distill", "export")
"""Those of `make test`: by shards, by checkpoints, and by whole files; `test_stopped.py` stops every stage with Ctrl-C."""
QUICK = {"measures": ["fidelity", "cost"], "speed_tokens": 0, "bootstrap_samples": 100}
"""Of the stage `evaluate`, where it is not the one that is killed."""


@pytest.mark.parametrize("stages", [BRIEF, pytest.param(3 * STAGES, marks=pytest.mark.longer)], ids=len)
def test_killed_at_random_moments(stages: tuple[str, ...], small_recipe: Any, tmp_path: Path, children: Any) -> None:
    teacher = tiny_model("llama", tmp_path / "teacher", layers=4)
    settings = small_recipe(teacher, export={"gguf": ["Q8_0"], "check_tokens": 32})
    settings["distill"] |= {"checkpoint_seconds": 0, "batch_tokens": 128, "evaluate_every": 4}
    settings["capture"] = {"shard_tokens": 256}
    if stages is BRIEF:
        settings["evaluate"] = QUICK

    def start(root: Path) -> Any:
        process = children.Process(target=whole_run, args=(settings, str(root)))
        process.start()
        return process

    if stages is not BRIEF:
        # For moments that are spread evenly: the first run takes longer.
        start(tmp_path / "warm").join()
    never = start(tmp_path / "never")
    never.join()
    assert never.exitcode == 0
    lasted = {
        stage: json.loads((tmp_path / "never" / "small" / stage / "stage.json").read_text())["seconds"]
        for stage in STAGES
    }
    expected = digests(tmp_path / "never" / "small")
    chance = random.Random(len(stages))
    cut_off: list[str] = []
    for trial, stage in enumerate(stages):
        root = tmp_path / f"trial-{trial}"
        process = start(root)
        while process.is_alive() and not list((root / "small" / stage).glob("*.json")):
            time.sleep(0.002)
        process.join(chance.random() * lasted[stage])
        process.kill()
        process.join()
        folder = root / "small"
        begun_stages = [path.parent.name for path in folder.glob("*/begun.json")]
        cut_off += begun_stages
        again = start(root)
        again.join()
        assert again.exitcode == 0, (trial, begun_stages)
        assert digests(folder) == expected, (trial, begun_stages)
        assert not list(folder.rglob("*.partial"))
        assert json.loads((folder / "summary.json").read_text())["student"]["parameters"] > 0
    # The moments were spread over the run, not all before or after it.
    assert len(set(cut_off)) >= (2 if stages is BRIEF else 3), cut_off


def test_the_command_goes_on_where_a_killed_one_stopped(small_recipe: Any, tmp_path: Path) -> None:
    teacher = tiny_model("llama", tmp_path / "teacher", layers=3)
    settings = small_recipe(teacher, baseline=False, export={"gguf": []}, evaluate=QUICK)
    settings["distill"] |= {"checkpoint_seconds": 0, "batch_tokens": 64}
    recipe = tmp_path / "small.yaml"
    recipe.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "stillroom", "run", str(recipe), "--runs", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoints = tmp_path / "small" / "distill" / "checkpoints"
    while process.poll() is None and not list(checkpoints.glob("step-*[3-9]/state.json")):
        time.sleep(0.005)
    assert process.poll() is None
    process.kill()
    process.wait()
    steps = [event["step"] for event in events(tmp_path / "small") if "loss" in event]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "corpus: done before" in finished.stderr
    later = [event["step"] for event in events(tmp_path / "small") if "loss" in event][len(steps) :]
    assert later[0] > 1
    record = json.loads((tmp_path / "small" / "distill" / "stage.json").read_text())
    assert later[-1] == record["notes"]["steps"] >= 32


def events(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["stage"] == "distill"]
