"""Plans for many machines: arithmetic that adds up, prices that are known, and a page that says what the functions say."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from stillroom.cli.app import app
from stillroom.planning import cluster
from stillroom.planning.cluster import (
    STUDENT_4B,
    TEACHER_8B,
    Job,
    Rates,
    cluster_plan,
    estimate,
    paper_job,
    show_cluster,
)

PAGE = Path(__file__).parents[2] / "docs" / "concepts" / "scale.md"


@pytest.mark.parametrize("name", ["paper_table", "structures_table"])
def test_the_page_has_the_numbers_of_the_function(name: str) -> None:
    found = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- end -->", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    assert found[1] == getattr(cluster, name)()


def test_the_numbers_are_those_of_the_sums() -> None:
    rates = Rates.of_card("h100", TEACHER_8B, STUDENT_4B)
    # Half of 798e12 over 15.7e9 operations, and 0.4 of it over three times 8.65e9.
    assert rates.capture[1] == pytest.approx(25_400, rel=0.01)
    assert rates.train[1] == pytest.approx(12_300, rel=0.01)
    found = estimate(paper_job(1e12), rates, 64, 2.5)
    assert found["capture_hours"][1] == pytest.approx(12_200, rel=0.01)
    assert found["train_hours"][1] == pytest.approx(25_100, rel=0.01)
    assert found["cache_bytes"] == pytest.approx(20.7e12)
    assert found["store_month_dollars"] == pytest.approx(476.1)
    assert found["egress_dollars"] == pytest.approx(1863)
    assert found["nodes"] == 8
    assert found["units"] == -(-(10**12) // 2**20)


@pytest.mark.parametrize("workers", [1, 7, 64, 100_000])
def test_an_interval_is_in_order_and_more_workers_change_the_wall_time_alone(workers: int) -> None:
    job, rates = Job(5e8, 1.5e9, 18.0, 2**20), Rates.of_pilot(1000.0, 400.0)
    one, many = estimate(job, rates, 1, 3.0), estimate(job, rates, workers, 3.0)
    for key in ("capture_hours", "train_hours", "hours", "dollars"):
        assert many[key] == sorted(many[key])
    assert many["dollars"] == one["dollars"]
    assert all(a >= b for a, b in zip(one["hours"], many["hours"], strict=True))
    # No more workers than units capture.
    assert many["hours"][1] >= many["capture_hours"][1] / many["units"]
    assert one["hours"][1] == pytest.approx(one["capture_hours"][1] + one["train_hours"][1])
    assert many["egress_bytes"] == 3 * many["cache_bytes"]


@pytest.mark.parametrize("worker", ["this", "h100"])
def test_a_recipe_on_a_cluster(worker: Any, capsys: pytest.CaptureFixture[str]) -> None:
    counts = SimpleNamespace(
        train_tokens=1_000_000, validation_tokens=50_000, sequence_length=1024, teacher_parameters=135_000_000,
        student_parameters=60_000_000, student_layers=15,
        teacher_shape=SimpleNamespace(layers=30, hidden=576), student_shape=SimpleNamespace(layers=15, hidden=576),
    )  # fmt: skip
    recipe = SimpleNamespace(distill=SimpleNamespace(epochs=2), capture=SimpleNamespace(unit_tokens=2**18))
    plan = {"stages": {"capture": {"seconds": 1050.0}, "distill": {"seconds": 4000.0}}, "bytes_per_position": 20.0}
    found = cluster_plan(recipe, counts, plan, worker, None, None, 0.09)  # type: ignore[arg-type]
    assert [size["workers"] for size in found["sizes"]] == [8, 64, 512]
    assert found["sizes"][0]["units"] == 5
    if worker == "this":
        assert found["tokens_per_second"]["capture"][1] == pytest.approx(1000)
        assert found["tokens_per_second"]["train"][1] == pytest.approx(500)
        assert found["price_per_hour"] == 0
    show_cluster(found)
    said = capsys.readouterr().err
    assert "8 on 1 node:" in said
    assert "13 objects" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--worker", "h200"], "no such worker"), (["--cluster-workers", "3"], "Give --cluster too")],
)
def test_options_that_do_not_fit_are_refused_before_the_recipe_is_read(options: list[str], words: str) -> None:
    answer = CliRunner().invoke(app, ["plan", "nothing.yaml", *options])
    assert answer.exit_code != 0
    assert words in str(answer.exception) + answer.output
