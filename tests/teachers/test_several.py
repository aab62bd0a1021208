"""Several teachers: routing by source, mixtures of one vocabulary, and what they owe together."""

from __future__ import annotations

import json
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from typer.testing import CliRunner

from stillroom.cli.app import app
from stillroom.core import files
from stillroom.core.errors import CorpusError, RecipeError, TermsRefused
from stillroom.corpus.sequences import Sequences
from stillroom.evaluation import fidelity
from stillroom.evaluation.heldout import HeldOut
from stillroom.evaluation.routed import RoutedTeachers
from stillroom.models.load import load_teacher
from stillroom.pipeline import run
from stillroom.planning.plan import make_plan
from stillroom.recipe.reading import dump_recipe, parse_recipe, recipe_of
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.routes import routes_of
from stillroom.recipe.teacher import HuggingFaceTeacher
from stillroom.recipe.terms import Decision
from stillroom.runs.run import Run
from stillroom.teachers.several import mean_logprobs, open_signals, route_of_pieces
from stillroom.terms.gate import verdict_of_recipe
from stillroom.terms.statements import Subject

OWN = {"kind": "own", "decided_by": "A. Tester", "decided_at": "2026-11-26T00:00:00Z"}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("teachers")
    return {
        "teacher": tiny_model("llama", folder / "first", layers=2, hidden=32, padding_rows=5),
        "code": tiny_model("llama", folder / "second", layers=1, hidden=32, seed=1),
        "other": tiny_model("llama", folder / "other", layers=1, hidden=32, vocabulary_size=400),
    }


@pytest.fixture
def settings(small_recipe: Any, teachers: dict[str, Path], text: Path, tmp_path: Path) -> dict[str, Any]:
    """Three sources: of the recipe's own teacher, of another, and of a mixture."""
    sources = []
    for index, asked in enumerate((None, "code", {"code": 1, "teacher": 3})):
        folder = tmp_path / f"source{index}"
        folder.mkdir()
        for number, file in enumerate(sorted(text.iterdir())):
            if number % 3 == index:
                (folder / file.name).write_bytes(file.read_bytes())
        sources.append(
            {"kind": "text", "path": str(folder), "licence": "PSF-2.0"} | ({"teacher": asked} if asked else {})
        )
    decisions = [OWN | {"subject": name} for name in ("teacher", "student", "first", "second")]
    made: dict[str, Any] = small_recipe(
        teachers["teacher"],
        teacher={"kind": "huggingface", "name": str(teachers["teacher"]), "dtype": "float32"},
        teachers={"code": {"kind": "huggingface", "name": str(teachers["code"]), "dtype": "float32"}},
        capture={"codec": {"kind": "dense"}},
        student={"kind": "fresh", "config": {"num_hidden_layers": 1}},
        terms={"decisions": decisions},
        baseline=False,
    )
    made["corpus"] = made["corpus"] | {"sources": sources}
    return made


def exact(folder: Path, row: Sequences, places: torch.Tensor) -> torch.Tensor:
    """Log-probs of a model, on one piece."""
    model = load_teacher(HuggingFaceTeacher(name=str(folder)), "cpu", torch.float32).model
    with torch.inference_mode():
        return model(row.ids).logits[0][places].log_softmax(1)


def test_routes_are_kept_in_order_and_weights_sum_to_one() -> None:
    routes = routes_of([None, "code", {"teacher": 3, "code": 1}, {"teacher": 1}, {"code": 2, "teacher": 6}])
    assert [route.sources for route in routes] == [(0, 3), (1,), (2, 4)]
    assert routes[2].weights == (("code", 0.25), ("teacher", 0.75))
    assert routes[2].label == "0.25 code + 0.75 teacher"


def test_the_mean_of_distributions_is_a_distribution() -> None:
    torch.manual_seed(0)
    one, two = torch.randn(4, 7).log_softmax(1), torch.randn(4, 5).log_softmax(1)
    found = mean_logprobs([one, two], [torch.tensor(0.3).log().item(), torch.tensor(0.7).log().item()], 7).exp()
    expected = 0.3 * one.exp()
    expected[:, :5] += 0.7 * two.exp()
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(found.sum(1), torch.ones(4), atol=1e-5)


def test_a_teacher_with_fewer_rows_is_as_close_to_itself_as_any() -> None:
    torch.manual_seed(0)
    said = fidelity._Said(mean_logprobs([torch.randn(4, 5).log_softmax(1)], [0.0], 7))
    assert said.logprobs[:, 5:].isneginf().all()
    assert said.from_itself().tolist() == [0.0] * 4


def test_the_whole_path_with_routing_and_a_mixture(
    settings: dict[str, Any], teachers: dict[str, Path], tmp_path: Path
) -> None:
    recipe = Recipe.model_validate(settings)
    assert parse_recipe(dump_recipe(recipe)) == recipe
    made = run(recipe, tmp_path, quiet=True)
    # Each piece's signal is its own teacher's, or the mean of both.
    train = Sequences.load(made.path / "corpus" / "train.safetensors")
    routes = route_of_pieces(recipe.routes, [train])
    signals = open_signals(Run.open(made.path))
    seen = set()
    for address, route in routes.items():
        if route in seen:
            continue
        seen.add(route)
        row = train.only({address})
        row = row.part(slice(None), row.width)
        places = (row.targets[0] >= 0).nonzero().squeeze(1)
        first, second = (exact(teachers[name], row, places) for name in ("teacher", "code"))
        wanted = torch.zeros_like(first)
        own, theirs = ((1.0, 0.0), (0.0, 1.0), (0.75, 0.25))[route]
        wanted += own * first.exp()
        wanted[:, : second.shape[1]] += theirs * second.exp()
        found = signals.read([address])[0]
        assert torch.allclose(found.logprobs.exp(), wanted, atol=1e-5)  # type: ignore[union-attr]
    assert seen == {0, 1, 2}
    mixed = sorted(routes)[:7]
    together, counts = signals.read(mixed)
    apart = torch.cat([signals.read([address])[0].logprobs for address in mixed])  # type: ignore[union-attr]
    assert torch.equal(together.logprobs, apart)  # type: ignore[union-attr]
    assert len(together) == sum(counts)
    # Held-out text is compared with the teacher of its source, too.
    heldout = HeldOut(made.path / "corpus" / "heldout.safetensors")
    asked = RoutedTeachers(recipe, torch.device("cpu"))
    compared = set()
    for index in range(len(heldout)):
        row = heldout.row(index)
        places = (row.targets[0] >= 0).nonzero().squeeze(1)
        with torch.inference_mode():
            said = asked.at(row, places)(slice(0, len(places))).exp()
        first, second = (exact(teachers[name], row, places).exp() for name in ("teacher", "code"))
        for place, source in enumerate(heldout.document_sources[row.documents[0][places].long()].tolist()):
            own, theirs = ((1.0, 0.0), (0.0, 1.0), (0.75, 0.25))[source]
            expected = own * first[place]
            expected[: second.shape[1]] += theirs * second[place]
            assert torch.allclose(said[place], expected, atol=1e-5)
            compared.add(source)
    assert len(compared) > 1
    # Everybody who taught is named, and what all owe is carried.
    records = files.read_json(made.path / "capture" / "teachers.json")
    assert [record["called"] for record in records] == ["teacher", "code"]
    assert [record["sources"] for record in records] == [[0, 2], [1, 2]]
    summary = json.loads((made.path / "summary.json").read_text())
    assert [entry["name"] for entry in summary["teachers"]] == ["first", "second"]
    assert summary["teacher"]["name"] == "first"
    assert summary["teacher"]["kl_to_teacher"] == 0
    terms = json.loads((made.path / "terms.json").read_text())
    assert {teacher["name"] for teacher in terms["teachers"]} >= {"first", "second"}
    assert "second" in (made.path / "report.html").read_text(encoding="utf-8")
    from stillroom.packages.provenance import ancestors, dependencies

    assert {entry.name for entry in ancestors(made) if entry.kind == "teacher"} == {"first", "second"}
    assert {"teacher/first", "teacher/second"} <= {entry["name"] for entry in dependencies(made, summary)}
    # Its cache is looked at with those of the others below it.
    cache = made.path / "capture" / "cache"
    held = CliRunner().invoke(app, ["cache", "info", str(cache), "--json"], catch_exceptions=False)
    below = json.loads(held.stdout)["below"]
    assert len(below) == 2
    assert {facts["positions"] for facts in below.values()} <= {found.positions for found in signals.caches}  # type: ignore[union-attr]
    copy = tmp_path / "copy"
    shutil.copytree(cache, copy)
    assert CliRunner().invoke(app, ["cache", "verify", str(copy)]).exit_code == 0
    name = sorted(below)[0]
    damaged = next((copy / name).glob("shard-*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    checked = CliRunner().invoke(app, ["cache", "verify", str(copy), "--json"])
    assert [entry["shard"] for entry in json.loads(checked.stdout)["damaged"]] == [f"{name}/{damaged.name}"]
    assert checked.exit_code != 0
    # Nothing is done again; another routing asks only for what was not asked before.
    before = {name: made.stage(name).record for name in summary["stages"]}
    again = run(recipe, tmp_path, quiet=True)
    assert {name: again.stage(name).record for name in before} == before
    sources = [source | {"teacher": "code"} for source in settings["corpus"]["sources"][:2]]
    sources.append(settings["corpus"]["sources"][2])
    changed = run(
        Recipe.model_validate(settings | {"corpus": settings["corpus"] | {"sources": sources}}),
        tmp_path,
        quiet=True,
        until="capture",
    )
    asked = {entry["label"]: entry for entry in changed.stage("capture").record["notes"]["routes"]}  # type: ignore[index]
    assert asked["0.25 code + 0.75 teacher"]["reused"] == asked["0.25 code + 0.75 teacher"]["pieces"]
    assert 0 < asked["code"]["reused"] < asked["code"]["pieces"]


def test_a_plan_names_them_all(settings: dict[str, Any], tmp_path: Path) -> None:
    plan = make_plan(Recipe.model_validate(settings), tmp_path)
    assert [(entry["called"], entry["learned_from_on"]) for entry in plan["teachers"]] == [
        ("teacher", [0, 2]),
        ("code", [1, 2]),
    ]
    assert all(entry["parameters"] > 0 for entry in plan["teachers"])


@pytest.mark.parametrize("asked", ["code", {"code": 1, "teacher": 3}])
def test_a_teacher_whose_text_is_all_in_an_earlier_source_is_refused(
    asked: str | dict[str, int], settings: dict[str, Any], tmp_path: Path
) -> None:
    first = settings["corpus"]["sources"][0]
    settings["corpus"]["sources"] = [first, first | {"teacher": asked}]
    recipe = Recipe.model_validate(settings)
    label = asked if isinstance(asked, str) else "0.25 code + 0.75 teacher"
    for verb in (make_plan, run):
        with pytest.raises(CorpusError, match=rf"Nothing is left to train on for the teacher `{re.escape(label)}`"):
            verb(recipe, tmp_path)
    assert not (tmp_path / "small" / "capture").exists()
    # The same teacher twice is one that teaches; what is in the text is told all the same.
    settings["corpus"]["sources"] = [
        first,
        first,
        settings["corpus"]["sources"][1] | {"path": str(tmp_path / "source1")},
    ]
    assert f"{first['path']}: nothing of its" in " ".join(
        make_plan(Recipe.model_validate(settings), tmp_path)["text_notes"]
    )


def test_another_vocabulary_is_refused_by_name(
    settings: dict[str, Any], teachers: dict[str, Path], tmp_path: Path
) -> None:
    settings["teachers"]["code"]["name"] = str(teachers["other"])
    with pytest.raises(RecipeError, match=r"`teachers.code` has another tokenizer than `teacher`"):
        make_plan(Recipe.model_validate(settings), tmp_path)
    # And so is one with more rows than the recipe's own.
    wide = settings | {
        "teacher": {"kind": "huggingface", "name": str(teachers["code"])},
        "teachers": {"code": {"kind": "huggingface", "name": str(teachers["teacher"])}},
    }
    with pytest.raises(RecipeError, match=r"`teachers.code` has \d+ rows"):
        make_plan(Recipe.model_validate(wide), tmp_path)
    hidden = settings | {"capture": {"codec": {"kind": "hidden"}}}
    with pytest.raises(RecipeError, match="is a mixture"):
        make_plan(Recipe.model_validate(hidden), tmp_path)


def test_an_endpoint_of_the_recipe_s_own_that_is_asked_for_nothing_is_refused(
    settings: dict[str, Any], teachers: dict[str, Path], tmp_path: Path
) -> None:
    served = {"kind": "endpoint", "base_url": "http://127.0.0.1:9", "model": "m", "sends_text": True}
    settings |= {
        "teacher": served | {"server": "llamacpp", "tokenizer": str(teachers["teacher"])},
        "capture": {"codec": {"kind": "observed", "k": 20}},
    }
    settings["corpus"]["sources"] = [source | {"teacher": "code"} for source in settings["corpus"]["sources"]]
    with pytest.raises(RecipeError, match="no source is learned from it"):
        make_plan(Recipe.model_validate(settings), tmp_path)


def test_one_that_is_forbidden_forbids_all(settings: dict[str, Any], tmp_path: Path) -> None:
    # A decision about `teacher` is about the recipe's own alone.
    settings["terms"]["decisions"] = [OWN | {"subject": "teacher"}, OWN | {"subject": "student"}]
    with pytest.raises(TermsRefused, match="second: its terms are not known") as refused:
        run(Recipe.model_validate(settings), tmp_path, quiet=True, until="capture")
    assert "subject: code" in refused.value.todo
    settings["terms"]["decisions"].append(OWN | {"subject": "code"})
    assert verdict_of_recipe(Recipe.model_validate(settings)).verdict != "refused"
    # A licence that forbids it is not outweighed by one that does not.
    settings["teachers"]["code"]["licence"] = "cc-by-nc-nd-4.0"
    settings["teacher"]["licence"] = "apache-2.0"
    strict = verdict_of_recipe(Recipe.model_validate(settings | {"terms": {"decisions": []}}))
    assert strict.verdict == "refused"
    assert any(reason.startswith("second:") for reason in strict.reasons)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teachers": {"teacher": {"kind": "huggingface", "name": "x"}}}, "no name for a teacher"),
        ({"teachers": {"student": {"kind": "huggingface", "name": "x"}}}, "no name for a teacher"),
        (
            {"teachers": {"idle": {"kind": "huggingface", "name": "x"}, "code": {"kind": "huggingface", "name": "x"}}},
            "idle",
        ),
        ({"teachers": {}}, "names 'code'"),
    ],
)
def test_names_have_to_fit(settings: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe_of(settings | change)


def test_a_decision_about_the_own_teacher_is_not_about_one_in_a_folder_of_that_name() -> None:
    own = Subject("teacher", "teacher")
    other = Subject("teacher", "teacher", called="b")
    text = Subject("text", "student")
    assert own.decided_as == ("teacher",)
    assert other.decided_as == ("b",)
    assert text.decided_as == ("text",)
    # A name of one letter can be decided about.
    assert (
        Decision(subject="b", kind="own", decided_by="Jo", decided_at=datetime(2026, 11, 24, tzinfo=UTC)).subject == "b"
    )
