"""docs/contributing/metric.md, followed: its metric as another package's, and as one file in Stillroom."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_model

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "contributing" / "metric.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    """The page's first block of code in a language."""
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return found[1]


def stillroom(folder: Path, path: list[Path], *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line, in a process that finds packages in the folders of ``path`` first."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
    command = [sys.executable, "-m", "stillroom", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of installed packages with the page's."""
    folder = tmp_path / "site"
    about = folder / "entropy_metric-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: entropy-metric\nVersion: 1.0\n")
    # An installer writes the table of pyproject.toml down so.
    groups = tomllib.loads(block("toml"))["project"]["entry-points"]
    lines = [
        line for group, points in groups.items() for line in (f"[{group}]", *(f"{k} = {v}" for k, v in points.items()))
    ]
    (about / "entry_points.txt").write_text("\n".join(lines) + "\n")
    (folder / "entropy_metric.py").write_text(block("python"), encoding="utf-8")
    return folder


def test_the_page_s_metric_in_one_file(site: Path, tmp_path: Path, small_recipe: Any) -> None:
    teacher = tiny_model("llama", tmp_path / "teacher", layers=2)
    asked = {"measures": ["fidelity", "cost", "entropy"], "speed_tokens": 0, "bootstrap_samples": 100}
    asked |= {"floors": {"entropy.nats": 0.0}, "ceilings": {"entropy.nats": 0.001}}
    recipe = small_recipe(
        teacher, student={"kind": "shrink", "layers": 1}, baseline=False, export={"gguf": []}, evaluate=asked
    )
    recipe["corpus"] |= {"train_tokens": 256, "heldout_tokens": 128}
    (tmp_path / "small.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    run = tmp_path / "small"

    # Without the package, the name is refused before anything is spent.
    refused = stillroom(tmp_path, [], "run", "small.yaml", "--runs", ".", "-q")
    assert refused.returncode == 2
    assert "`evaluate.measures`: there is no metric `entropy`" in refused.stderr
    assert "fidelity" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not list(run.glob("*/stage.json"))

    # As another package's: everything is written, and its ceiling is missed.
    done = stillroom(tmp_path, [site], "run", "small.yaml", "--runs", ".", "-q")
    assert done.returncode == 1, done.stderr
    assert "entropy.nats is" in done.stderr
    result = json.loads((run / "measures" / "entropy.json").read_text())["result"]
    value, low, high = result["bounds"]["nats"]
    # No distribution over so many tokens has more, and intervals hold their value.
    assert 0 < low <= value <= high
    assert set(result["models"]) == {"teacher", "student"}
    summary = json.loads((run / "summary.json").read_text())
    assert summary["measures"]["entropy"] == {"models": result["models"]}
    assert [(bound["name"], bound["kind"], bound["met"]) for bound in summary["bounds"]] == [
        ("entropy.nats", "floor", True),
        ("entropy.nats", "ceiling", False),
    ]
    # The last cell of a row of the metric's own table; that of a gate has its rating after it.
    cell = f"{value:.3f}<small>[{low:.3f}, {high:.3f}]</small></td></tr>"
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count('<h2 id="entropy">How sure it is</h2>') == 1
    assert cell in page
    gates = [line for line in page.splitlines() if line.startswith('<tr><th scope="row">entropy.nats')]
    assert [("minimum 0," in gate, "maximum 0.001," in gate) for gate in gates] == [(True, False), (False, True)]
    assert all(f'<td class="n">{value:.4g}<small>' in gate for gate in gates)
    assert ["✗ missed" in gate for gate in gates] == [False, True]
    assert f"| student | {value:.3f} [{low:.3f}, {high:.3f}] |" in (run / "report.md").read_text(encoding="utf-8")

    # The report of a run whose metric was uninstalled is still written, and says so.
    alone = stillroom(tmp_path, [], "report", "small")
    assert alone.returncode == 0, alone.stderr
    page = (run / "report.html").read_text(encoding="utf-8")
    assert cell not in page
    assert "measures/entropy.json" in page
    assert json.loads((run / "summary.json").read_text())["measures"] == summary["measures"]

    # As a file of Stillroom: one, and no other is touched. It finds the same numbers.
    copied = tmp_path / "src"
    shutil.copytree(ROOT / "src" / "stillroom", copied / "stillroom", ignore=shutil.ignore_patterns("__pycache__"))
    (copied / "stillroom" / "evaluation" / "metrics" / "entropy.py").write_text(block("python"), encoding="utf-8")
    (run / "measures" / "entropy.json").unlink()
    inside = stillroom(tmp_path, [copied], "evaluate", "small", "--only", "entropy", "-q")
    assert inside.returncode == 0, inside.stderr
    assert json.loads((run / "measures" / "entropy.json").read_text())["result"] == result
    row = next(line for line in inside.stdout.splitlines() if "entropy.nats" in line)
    assert f"{result['models']['teacher']['nats']['value']:,.4g}" in row
    assert f"{value:,.4g}" in row
    assert cell in (run / "report.html").read_text(encoding="utf-8")

    # Both at once are refused by name.
    both = stillroom(tmp_path, [copied, site], "evaluate", "small", "--only", "entropy")
    assert both.returncode == 3
    assert "Two metrics are called `entropy`" in both.stderr
