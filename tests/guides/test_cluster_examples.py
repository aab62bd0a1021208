"""The example files for clusters: they parse, and every command in them is one of ours with options that it has."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from stillroom.cli.app import app

FOLDER = Path(__file__).parents[2] / "docs" / "clusters"


def commands_in(text: str) -> list[list[str]]:
    """Words of every call of `stillroom` in a script, variables as they stand."""
    found = []
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            continue
        for call in re.findall(r"(?:^|\s|\"exec )stillroom (?!\[)([^\n;]+)", line):
            plain = re.sub(r"\$\(\([^)]*\)\)|\\?\$\{?\w+\}?", "1", call)
            plain = plain.rstrip().removesuffix('"') if plain.count('"') % 2 else plain.removesuffix(")")
            found.append(shlex.split(plain.rstrip('")')) if plain.count('"') % 2 else shlex.split(plain))
    return found


def accepted(words: list[str]) -> None:
    """Parse a command as the program does; `--help` is answered only where every option is known."""
    answer = CliRunner().invoke(app, [*words, "--help"])
    assert answer.exit_code == 0, answer.output


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("slurm.sh", ["corpus", "capture", "run", "run"]),
        ("kuberay.yaml", ["run"]),
        ("skypilot.yaml", ["corpus", "capture", "run"]),
    ],
)
def test_commands_are_ours(name: str, expected: list[str]) -> None:
    found = commands_in((FOLDER / name).read_text())
    assert [words[0] for words in found] == expected
    for words in found:
        accepted(words)


@pytest.mark.parametrize("words", [["run", "recipe.yaml", "--machines", "8"], ["caption", "recipe.yaml"]])
def test_what_is_not_there_would_be_found(words: list[str]) -> None:
    with pytest.raises(AssertionError):
        accepted(words)


def test_slurm_submits_what_it_says(tmp_path: Path) -> None:
    sbatch = tmp_path / "sbatch"
    sbatch.write_text('#!/bin/sh\nprintf "%s\\n" "$@" >> "$LOG"\necho 42\n')
    sbatch.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(tmp_path / "log")}
    subprocess.run(["bash", "-n", str(FOLDER / "slurm.sh")], check=True)
    subprocess.run(
        ["bash", str(FOLDER / "slurm.sh"), "/data/my recipe.yaml", "5", "4", "2"], env=environment, check=True
    )
    said = (tmp_path / "log").read_text().splitlines()
    jobs = [line.removeprefix("exec ") for line in said if line.startswith("exec ")]
    jobs = [job.removeprefix("srun --kill-on-bad-exit=0 ") for job in jobs]
    assert jobs == [
        "stillroom corpus '/data/my recipe.yaml' --quiet",
        "stillroom capture '/data/my recipe.yaml' --part $SLURM_ARRAY_TASK_ID/5 --quiet",
        "stillroom run '/data/my recipe.yaml' --until shrink --quiet",
        "stillroom run '/data/my recipe.yaml' --workers 4 --nodes auto --quiet",
    ]
    assert "--array=1-5" in said
    assert "--dependency=afterok:42" in said
    assert {"--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=4"} <= set(said)
    for job in jobs:
        accepted(shlex.split(job.replace("$SLURM_ARRAY_TASK_ID", "3"))[1:])


def test_kuberay_says_who_may_come_in_and_asks_for_a_ray_that_we_take() -> None:
    job = yaml.safe_load((FOLDER / "kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert tuple(map(int, cluster["rayVersion"].split("."))) >= (2, 60)
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"] == {"RAY_USAGE_STATS_ENABLED": "0"}
    # Each machine that trains has the GPU of a pod to itself.
    words = job["spec"]["entrypoint"].split()
    assert int(words[words.index("--nodes") + 1]) <= sum(group["replicas"] for group in cluster["workerGroupSpecs"])
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in group["template"]["spec"]["volumes"]}


def test_skypilot_parts_are_counted_from_one() -> None:
    task = yaml.safe_load((FOLDER / "skypilot.yaml").read_text())
    assert set(task) == {"name", "num_nodes", "workdir", "envs", "resources", "setup", "run"}
    subprocess.run(["bash", "-n"], input=task["setup"] + task["run"], text=True, check=True)
    # Each node has a folder of its own, in which nothing can be captured before there is a corpus.
    corpus, first = task["run"].splitlines()[1:3]
    assert corpus.startswith('stillroom corpus "$RECIPE"')
    for rank in (0, 7):
        script = "stillroom() { printf '%s\\n' \"$@\"; }\n" + first
        environment = os.environ | {"RECIPE": "r.yaml", "SKYPILOT_NODE_RANK": str(rank), "SKYPILOT_NUM_NODES": "8"}
        said = subprocess.run(
            ["bash", "-c", script], env=environment, capture_output=True, text=True, check=True
        ).stdout
        assert f"{rank + 1}/8" in said.splitlines()
