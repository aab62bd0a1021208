"""`stillroom cluster check`: what is wrong with a machine is found before money is spent, and what is right is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from benchmarks.s3_server import S3Server, s3_server
from stillroom.cli.app import app
from stillroom.cluster import check as checks
from stillroom.cluster.check import Checked, Facts, Seen, check_here, findings, table
from stillroom.cluster.check_srun import tasks_of
from stillroom.core.errors import EnvironmentProblem
from tests.cluster.cluster_material import recipe_in

VERSIONS: dict[str, str | None] = {
    "python": "3.12.4",
    "stillroom": "0.2.0",
    "torch": "2.13.0+cu130",
    "transformers": "5.23.0",
}


def seen(node: str = "a", ahead: float = 0.0, **changes: Any) -> Seen:
    """A machine as it should be, but for the changes."""
    values = {
        "node": node,
        "versions": VERSIONS,
        "clock": 1000.0 + ahead,
        "disk_bytes": 10**12,
        "memory_bytes": 64 * 10**9,
        "gpus": 1,
        "places": {"/shared": "", "s3://bucket/x": ""},
        "token": True,
    }
    return Seen(Facts.model_validate(values | changes), 999.0, 1003.0)


def said(*machines: Seen, memory_bytes: int = 0) -> list[str]:
    return [f"{finding.node}: {finding.what}" for finding in findings(machines, memory_bytes)]


def test_machines_as_they_should_be_have_no_findings() -> None:
    other = VERSIONS | {"python": "3.12.9", "torch": "2.13.0+cpu"}
    assert said(seen(), seen("b", versions=other), seen("c", ahead=25)) == []
    assert said(seen(), seen("b", token=None), memory_bytes=10**12) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"versions": VERSIONS | {"torch": "2.12.1"}}, "torch is 2.12.1, and 2.13.0+cu130 on a"),
        ({"versions": VERSIONS | {"stillroom": "0.1.0"}}, "stillroom is 0.1.0, and 0.2.0 on a"),
        ({"versions": VERSIONS | {"python": "3.11.4"}}, "python is 3.11.4"),
        ({"versions": VERSIONS | {"transformers": None}}, "transformers is not installed"),
        ({"ahead": 400.0}, "its clock is at least 397 s ahead"),
        ({"ahead": -400.0}, "its clock is at least 399 s behind"),
        ({"disk_bytes": 5 << 20}, "only 5 MiB are free"),
        ({"memory_bytes": 10**8}, "0.1 GB of memory are available, and 1.1 GB are needed"),
        ({"memory_bytes": 15 * 10**9, "gpus": 0}, "15.0 GB of memory are available, and 16.0 GB are needed"),
        ({"places": {"/shared": "there is no such folder", "s3://bucket/x": ""}}, "/shared: there is no such folder"),
        ({"token": False}, "token authentication is off"),
    ],
)
def test_what_is_wrong_is_named_with_its_machine(changes: dict[str, Any], words: str) -> None:
    found = said(seen(), seen("b", **changes), memory_bytes=16 * 10**9)
    assert len(found) == 1
    assert found[0].startswith("b: ")
    assert words in found[0]


def test_the_table_has_every_machine_and_what_is_wrong() -> None:
    machines = [seen(), seen("b", token=False, places={"/shared": "no", "s3://bucket/x": ""})]
    lines = table(Checked(machines, findings(machines)))
    assert lines[0].split()[:4] == ["node", "python", "stillroom", "torch"]
    assert "OFF" in lines[2]
    assert lines[2].count("WRONG") == 1
    assert lines[3:] == [
        "b: /shared: no",
        "b: Ray's token authentication is off: anyone who reaches its ports could run code there",
    ]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with s3_server() as found:
        for name, value in found.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("SLURM_PROCID", raising=False)
        yield found


def test_this_machine_alone_is_checked_and_left_as_it_was(tmp_path: Path, server: S3Server) -> None:
    places = [str(tmp_path / "new" / "runs"), "s3://bucket/cache"]
    checked = check_here(places)
    assert checked.findings == []
    assert checked.nodes[0].facts.places == dict.fromkeys(places, "")
    assert abs(checked.nodes[0].facts.clock - time.time()) < 60
    assert not server.objects
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_used_is_found(
    tmp_path: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    found = check_here([str(tmp_path / "file" / "runs"), "s3://bucket/cache"]).findings
    assert len(found) == 2
    assert "there is no such folder" in found[0].what
    assert "s3://bucket/cache" in found[1].what


def test_a_folder_of_the_same_name_on_another_disk_is_no_shared_one(tmp_path: Path) -> None:
    assert "another place of the same name" in checks.trial(str(tmp_path), "cluster-check-of-another")


def test_the_command_takes_what_a_recipe_shares_and_ends_with_an_error_where_something_is_wrong(
    tmp_path: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = recipe_in(tmp_path, documents=1)
    values["capture"] |= {"path": "s3://bucket/cache"}
    values["distill"] |= {"checkpoint_copy": "s3://bucket/checkpoints"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"name": "x", **values}))
    command = ["cluster", "check", str(tmp_path / "recipe.yaml"), "--at", str(tmp_path), "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    (node,) = json.loads(result.stdout)["nodes"]
    expected = [str(tmp_path / "runs"), "s3://bucket/cache", "s3://bucket/checkpoints", str(tmp_path)]
    assert node["places"] == dict.fromkeys(expected, "")
    monkeypatch.setattr(checks, "SPARE_BYTES", 10**18)
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, EnvironmentProblem)
    assert result.exception.exit_code != 0
    assert len(json.loads(result.stdout)["findings"]) == 2


def test_a_job_step_of_one_process_and_none_are_one_machine() -> None:
    assert tasks_of({}) is None
    assert tasks_of({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}) is None
    step = {"SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "1"}
    assert tasks_of(step) == (2, 4, "7.1")


def job_step(folders: list[Path], seconds: float = 60.0) -> list[subprocess.CompletedProcess[str]]:
    """A job step with a process for each folder, which is its shared place."""
    program = (
        "import sys; from stillroom.cluster import check_srun; check_srun.ANSWER_SECONDS = float(sys.argv.pop(1)); "
        "from stillroom.cli.app import main; main()"
    )
    environment = os.environ | {"SLURM_NTASKS": str(len(folders)), "SLURM_JOB_ID": "9", "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(seconds), "cluster", "check", "--at", str(folder)],
            env=environment | {"SLURM_PROCID": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, folder in enumerate(folders)
    ]
    found = []
    for process in started:
        out, err = process.communicate(timeout=120)
        found.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    return found


@pytest.mark.longer
def test_processes_of_srun_meet_in_the_shared_folder(tmp_path: Path) -> None:
    first, *others = job_step([tmp_path, tmp_path, tmp_path])
    assert [each.returncode for each in (first, *others)] == [0, 0, 0], first.stderr + others[0].stderr
    assert all(f"(process {rank})" in first.stdout for rank in range(3))
    assert [each.stdout for each in others] == ["", ""]
    assert not list(tmp_path.iterdir())


@pytest.mark.longer
def test_a_process_of_srun_in_another_folder_is_missed(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    first, other = job_step([tmp_path / "a", tmp_path / "b"], seconds=6.0)
    assert first.returncode != 0
    assert "process 1: nothing was heard of it within 6 s" in first.stdout
    assert other.returncode != 0
    assert "another place of the same name" in other.stderr
    assert "Traceback" not in first.stderr + other.stderr
