"""The KL of a quantized teacher to the model it was made from: measured on validation text, or refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model

from stillroom.core.errors import RecipeError, StillroomError, TermsRefused
from stillroom.core.progress import Progress
from stillroom.corpus.sequences import IGNORED
from stillroom.evaluation.bench import bench_of
from stillroom.evaluation.heldout import HeldOut
from stillroom.evaluation.original import TOKENS, kl_to_originals, sample
from stillroom.models.forward import hidden_states, logits_from_hidden
from stillroom.models.load import load_teacher
from stillroom.packages.provenance import ancestors, dependencies
from stillroom.pipeline import finish, run
from stillroom.recipe.reading import dump_recipe, parse_recipe, recipe_of
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.teacher import HuggingFaceTeacher
from stillroom.runs.run import Run
from stillroom.runs.stages import STAGES, sections_of
from stillroom.teachers.endpoint.stage import require_possible
from stillroom.terms.gate import require_allowed, verdict_of_recipe

OWN = {"kind": "own", "decided_by": "A. Tester", "decided_at": "2026-11-26T00:00:00Z"}


@pytest.fixture
def settings(small_recipe: Any, fp8: Path, original: Path) -> dict[str, Any]:
    """A small run from an FP8 teacher whose original is named."""
    found: dict[str, Any] = small_recipe(
        fp8, student={"kind": "shrink", "intermediate_size": 64}, export={"gguf": []}, baseline=False
    )
    found["teacher"]["original"] = str(original)
    found["corpus"] |= {"train_tokens": 256, "validation_tokens": 512, "heldout_tokens": 128}
    found["evaluate"] |= {"measures": ["fidelity", "cost"]}
    found["terms"]["decisions"] = [OWN | {"subject": name} for name in ("teacher", "teacher.original")]
    return found


def changed(model: Path, folder: Path, **config: Any) -> Path:
    """A copy of a model with another config."""
    shutil.copytree(model, folder)
    said = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(said))
    return folder


def test_originals_that_are_none_are_refused_by_name(
    settings: dict[str, Any], original: Path, fp8: Path, tmp_path: Path
) -> None:
    require_possible(recipe_of(settings))
    for where, words in (
        (fp8, "is quantized itself (fp8, 8 bits, blocks of 32 x 32)"),
        (tiny_model("llama", tmp_path / "words", layers=2, vocabulary_size=400), "`vocab_size` is 400, not 512"),
        (tiny_model("llama", tmp_path / "unigram", layers=2, tokenizer="unigram"), "has another tokenizer"),
        (changed(original, tmp_path / "deeper", num_hidden_layers=3), "`num_hidden_layers` is 3, not 2"),
        (changed(original, tmp_path / "other", model_type="mistral"), "`model_type` is mistral, not llama"),
        (tmp_path / "nowhere", "no such model folder"),
    ):
        settings["teacher"]["original"] = str(where)
        with pytest.raises(StillroomError) as refused:
            require_possible(recipe_of(settings))
        assert words in str(refused.value)
    settings["teacher"] |= {"name": str(original), "original": str(original)}
    with pytest.raises(RecipeError, match=r"`teacher\.original`: the teacher is not quantized"):
        require_possible(recipe_of(settings))


def test_other_kinds_of_teacher_have_none(settings: dict[str, Any], original: Path) -> None:
    endpoint = {"base_url": "http://127.0.0.1:1", "model": "m", "tokenizer": str(original), "sends_text": True}
    for teacher, words in (
        ({"kind": "gguf", "path": "model.gguf"}, "GGUF file"),
        ({"kind": "endpoint", **endpoint}, "endpoint"),
    ):
        recipe_of(settings | {"teacher": teacher})
        with pytest.raises(RecipeError, match="`original` is for a quantized Hugging Face teacher") as refused:
            recipe_of(settings | {"teacher": teacher | {"original": str(original)}})
        assert words in str(refused.value)


def test_only_the_evaluation_depends_on_it(settings: dict[str, Any], tmp_path: Path) -> None:
    without = json.loads(json.dumps(settings))
    del without["teacher"]["original"]
    two = [Run(tmp_path / "runs", Recipe.model_validate(found)) for found in (settings, without)]
    other = [spec.name for spec in STAGES if sections_of(two[0], spec) != sections_of(two[1], spec)]
    assert other == ["evaluate"]


def test_a_relative_original_starts_at_the_recipes_folder(settings: dict[str, Any], original: Path) -> None:
    settings["teacher"]["original"] = original.name
    text = dump_recipe(Recipe.model_validate(settings))
    assert parse_recipe(text, "recipe", original.parent).originals["teacher"].name == str(original)


def test_its_terms_are_checked_as_a_teachers(settings: dict[str, Any]) -> None:
    verdict = verdict_of_recipe(recipe_of(settings))
    assert [entry["name"] for entry in verdict.teachers] == ["fp8", "first"]
    require_allowed(verdict)
    del settings["terms"]["decisions"][1]
    with pytest.raises(TermsRefused, match="first: its terms are not known") as refused:
        require_allowed(verdict_of_recipe(recipe_of(settings)))
    assert "subject: teacher.original" in str(refused.value)


def logprobs(folder: Path, row: Any) -> torch.Tensor:
    model = load_teacher(HuggingFaceTeacher(name=str(folder)), "cpu", torch.float32).model
    with torch.inference_mode():
        hidden = hidden_states(model, row.ids, row.positions)[0]
        return logits_from_hidden(model, hidden[row.targets[0] != IGNORED]).double().log_softmax(1)


@pytest.mark.longer
def test_a_run_says_how_far_its_teacher_is_from_its_original(
    settings: dict[str, Any], original: Path, fp8: Path, tmp_path: Path
) -> None:
    made: Run = run(Recipe.model_validate(settings), tmp_path, quiet=True)
    finish(made)
    summary = json.loads((made.path / "summary.json").read_text())
    found = summary["teacher"]["kl_to_original"]
    # By hand, over all of the validation text, which is less than what is sampled.
    text = HeldOut(made.path / "corpus" / "validation.safetensors")
    rows = sample(text)
    assert len(rows) == len(text) <= TOKENS // text.length
    kl = []
    for row in rows:
        first, second = (logprobs(folder, row) for folder in (original, fp8))
        kl.append((first.exp() * (first - second)).sum(1))
    assert found["value"] == pytest.approx(float(torch.cat(kl).mean()), rel=1e-3)
    assert found["value"] > 1e-4
    assert found["tokens"] == len(torch.cat(kl))
    low, high = found["interval"]
    assert 0 <= low < found["value"] < high
    assert found["original"]["name"] == "first"
    # Never on held-out text.
    assert found["documents"] == len(
        {int(number) for row in rows for number in row.documents[0][row.targets[0] != IGNORED]}
    )
    for page in ("report.html", "report.md"):
        shown = (made.path / page).read_text()
        assert f"KL(first ‖ this one) {found['value']:.3g} [" in shown
        assert f"{found['tokens']:,} tokens of validation text" in shown
        assert "not measured" not in shown[shown.index("KL(first") :][:200]
        assert str(original.parent) not in shown
    teacher, first, *_ = dependencies(made, summary)
    assert teacher["annotations"]["kl_to_original"]["value"] == found["value"]
    assert (first["name"], first["annotations"]["original_of"]) == ("original/first", "teacher")
    assert first["digest"] == {"sha256": found["original"]["digest"]}
    assert [(one.name, one.generation) for one in ancestors(made) if one.kind == "teacher"] == [
        ("fp8", 1),
        ("first", 2),
    ]
    # Another teacher's is measured in the same way.
    second = {"second": {"kind": "huggingface", "name": str(fp8), "original": str(original)}}
    sources = [settings["corpus"]["sources"][0] | {"teacher": {"teacher": 1, "second": 1}}]
    several = settings | {"teachers": second, "corpus": settings["corpus"] | {"sources": sources}}
    measured = kl_to_originals(
        Run(made.path, Recipe.model_validate(several)), bench_of(made, Progress(quiet=True), torch.device("cpu"))
    )
    assert measured == {"teacher": found, "second": found}
    # One whose tokenizer has the same ids and gives others for some text is measured too, and that is said.
    odd = changed(original, tmp_path / "odd")
    rules = json.loads((odd / "tokenizer.json").read_text()) | {"normalizer": {"type": "Lowercase"}}
    (odd / "tokenizer.json").write_text(json.dumps(rules))
    lower = Recipe.model_validate(settings | {"teacher": settings["teacher"] | {"original": str(odd)}})
    measured = kl_to_originals(Run(made.path, lower), bench_of(made, Progress(quiet=True), torch.device("cpu")))
    assert measured["teacher"]["value"] == found["value"]
    (words,) = measured["teacher"]["tokenizers_differ"]
    assert words.startswith("`teacher.original` has the ids of `teacher`")
    # Without the key, the evaluation alone is done again.
    del settings["teacher"]["original"]
    before = {name: made.stage(name).record for name in ("capture", "shrink", "distill")}
    made = run(Recipe.model_validate(settings), tmp_path, quiet=True)
    finish(made)
    assert {name: made.stage(name).record for name in before} == before
    assert json.loads((made.path / "summary.json").read_text())["teacher"]["kl_to_original"] is None
