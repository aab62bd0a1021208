"""Which machine this is: the options `--nodes`, `--node-rank` and `--rendezvous`, and SLURM's variables."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stillroom.cli.app import app
from stillroom.cluster.cluster import cluster_of
from stillroom.cluster.launch import sharding_of
from stillroom.cluster.node import Node, first_host, node_of
from stillroom.core.errors import UsageError

STEP = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_JOB_NUM_NODES": "4",
    "SLURM_JOB_NODELIST": "gpu-[03-05,9]",
    "SLURM_NODEID": "2",
    "SLURM_STEP_NUM_TASKS": "4",
}
"""What a process of `srun --ntasks-per-node=1` on four nodes sees."""


def test_options_say_all() -> None:
    assert node_of("2", 1, "head:29500", 8, {}) == Node(1, 2, "head", 29_500, 8)
    for host in ("fe80::1", "::1", "fe80::1%eth0", "10.0.0.7", "gpu_3", "n.site.example", "n.site.example.", "3com"):
        place = f"[{host}]:29500" if ":" in host else f"{host}:29500"
        assert node_of("2", 0, place, 1, {}) == Node(0, 2, host, 29_500, 1)
    # Where nothing is left out, SLURM is not asked: an interactive job of one node may start them by hand.
    assert node_of("2", 1, "head:29500", 1, {**STEP, "SLURM_JOB_NUM_NODES": "1"}) == Node(1, 2, "head", 29_500, 1)


def test_one_machine_is_none() -> None:
    assert node_of(None, None, None, 2, STEP) is None
    assert node_of("1", None, None, 2, {}) is None
    assert node_of("1", 0, "head:29500", 2, {}) is None
    assert cluster_of(None, None, None, "1") is None


@pytest.mark.parametrize("nodes", ["4", "auto"])
def test_slurm_says_what_is_left_out(nodes: str) -> None:
    assert node_of(nodes, None, None, 8, STEP) == Node(2, 4, "gpu-03", 24_567, 8)
    assert node_of(nodes, None, "other:1", 8, STEP) == Node(2, 4, "other", 1, 8)
    assert node_of(nodes, 3, None, 8, STEP) == Node(3, 4, "gpu-03", 24_567, 8)


def test_a_step_on_some_of_the_job_s_nodes_counts_itself() -> None:
    step = {**STEP, "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "gpu-[05,9]", "SLURM_STEP_NUM_TASKS": "2"}
    assert node_of("auto", None, None, 1, {**step, "SLURM_NODEID": "1"}) == Node(1, 2, "gpu-05", 24_567, 1)


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("gpu1", "gpu1"),
        ("gpu1,gpu2", "gpu1"),
        ("gpu-[01-04,07],big3", "gpu-01"),
        ("a[7]", "a7"),
        ("rack[2-3]n[10-12]-ib", "rack2n10-ib"),
        ("n.site.example", "n.site.example"),
    ],
)
def test_first_host_of_a_list(hosts: str, first: str) -> None:
    assert first_host(hosts) == first


@pytest.mark.parametrize(
    ("nodes", "rank", "rendezvous", "environment", "said"),
    [
        (None, 1, None, {}, "--node-rank and --rendezvous are for several machines"),
        (None, None, "head:1", {}, "--node-rank and --rendezvous are for several machines"),
        ("0", None, None, {}, "--nodes 0 is neither a number from 1 on nor `auto`"),
        ("many", None, None, {}, "--nodes many is neither"),
        ("-2", None, None, {}, "--nodes -2 is neither"),
        ("auto", None, None, {}, "--nodes auto: which node this is"),
        ("auto", 0, "head:1", {}, "--nodes auto: which node this is"),
        ("2", None, "head:1", {}, "--nodes 2: which node this is"),
        ("2", 0, None, {}, "--nodes 2: which node this is"),
        ("2", 2, "head:1", {}, "--node-rank 2: the numbers of 2 nodes are 0 to 1"),
        ("1", 1, "head:1", {}, "--node-rank 1: the numbers of 1 nodes"),
        ("2", -1, "head:1", {}, "--node-rank -1"),
        ("2", 0, "head", {}, "--rendezvous head is not HOST:PORT"),
        ("2", 0, "head:0", {}, "is not HOST:PORT"),
        ("2", 0, "head:70000", {}, "is not HOST:PORT"),
        ("2", 0, ":29500", {}, "is not HOST:PORT"),
        ("2", 0, "head:²", {}, "is not HOST:PORT"),
        ("2", 0, "[::1", {}, r"--rendezvous \[::1 is not HOST:PORT"),
        ("2", 0, "[::1]", {}, "is not HOST:PORT"),
        ("2", 0, "::1]:29500", {}, "is not HOST:PORT"),
        ("2", 0, "[[::1]]:29500", {}, "is not HOST:PORT"),
        ("2", 0, "[]:29500", {}, "is not HOST:PORT"),
        ("2", 0, "[head]:29500", {}, "is not HOST:PORT"),
        ("2", 0, "::1:29500", {}, r"is not HOST:PORT\.\n.*in brackets"),
        ("2", 0, "fe80::1", {}, r"is not HOST:PORT\.\n.*in brackets"),
        ("2", 0, "the head:29500", {}, "is not HOST:PORT"),
        ("2", 0, " head:29500", {}, "is not HOST:PORT"),
        ("2", 0, "tcp://head:29500", {}, "is not HOST:PORT"),
        ("2", 0, "me@head:29500", {}, "is not HOST:PORT"),
        ("2", 0, "head:29500:29501", {}, "is not HOST:PORT"),
        ("2", 0, "300.1.1.1:29500", {}, "is not HOST:PORT"),
        ("2", 0, "-head:29500", {}, "is not HOST:PORT"),
        ("3", None, None, STEP, "--nodes 3: SLURM started this step on 4"),
        ("4", None, None, {**STEP, "SLURM_STEP_NUM_TASKS": "8"}, "srun started 8 tasks on 4 nodes"),
    ],
)
def test_what_does_not_fit_is_refused(
    nodes: str | None, rank: int | None, rendezvous: str | None, environment: dict[str, str], said: str
) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        node_of(nodes, rank, rendezvous, 1, environment)
    assert refused.value.todo


def test_the_command_refuses_before_it_reads_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for words, said in (
        (["--nodes", "2", "--ray", "local"], "the cluster that is started here is this machine alone"),
        (["--nodes", "2", "--ray", "auto", "--node-rank", "0"], "with --ray, Ray gives machines"),
        (["--nodes", "2"], "which node this is"),
        (["--rendezvous", "head:1"], "Give --nodes too"),
    ):
        answer = CliRunner().invoke(app, ["run", str(tmp_path / "none.yaml"), *words])
        assert isinstance(answer.exception, UsageError) or answer.exit_code == 2
        assert said in f"{answer.exception} {answer.output}"


@pytest.mark.parametrize(
    ("large", "workers", "nodes", "sharding"),
    [
        (False, 8, 4, "replicate"),
        (False, 1, 2, "replicate"),
        (True, 8, 1, "full"),
        (True, 8, 4, "hybrid"),
        (True, 1, 4, "full"),
    ],
)
def test_how_a_student_is_shared(large: bool, workers: int, nodes: int, sharding: str) -> None:
    assert sharding_of(large, workers, nodes) == sharding
