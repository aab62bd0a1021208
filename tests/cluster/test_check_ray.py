"""`stillroom cluster check --ray` on a real Ray on this machine: every node answers, and one that cannot is named."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stillroom.cli.app import app
from stillroom.cluster import check_ray as checks
from tests.cluster.ray_nodes import TOKEN, Nodes

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    patch = pytest.MonkeyPatch()
    for name, value in TOKEN.items():
        patch.setenv(name, value)
    patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    found = Nodes()
    try:
        found.add()
        yield found
    finally:
        found.close()
        patch.undo()


def test_every_node_of_a_cluster_answers(nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = str(tmp_path / "shared")
    checked = checks.check_ray(nodes.address, [shared], 0)
    assert checked.findings == []
    assert len(checked.nodes) == 3
    assert [seen.facts.token for seen in checked.nodes] == [None, True, True]
    assert all(seen.facts.places == {shared: ""} for seen in checked.nodes)
    assert len({seen.facts.node for seen in checked.nodes}) == 3
    # Both clocks are this machine's.
    assert all(seen.clock_off[0] <= 0 <= seen.clock_off[1] for seen in checked.nodes)
    assert not list(tmp_path.iterdir())
    result = CliRunner().invoke(app, ["cluster", "check", "--at", shared, "--ray", nodes.address])
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 4
    monkeypatch.setattr(checks, "ANSWER_SECONDS", 0.0)
    late = checks.check_ray(nodes.address, [shared], 0)
    assert [finding.what for finding in late.findings] == ["no worker answered there within 0 s"] * 2


def test_a_cluster_without_authentication_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TOKEN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    found = Nodes()
    try:
        # Ray reads its mode once in a process.
        command = [sys.executable, "-m", "stillroom", "cluster", "check", "--at", str(tmp_path), "--ray", found.address]
        ended = subprocess.run(
            command, env=os.environ | {"RAY_AUTH_MODE": "token"}, capture_output=True, text=True, timeout=250
        )
    finally:
        found.close()
    assert ended.returncode != 0
    assert "RAY_AUTH_MODE=token" in ended.stdout or "token authentication is off" in ended.stdout
    assert "Traceback" not in ended.stderr
