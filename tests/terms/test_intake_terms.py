"""The verdict, its reasons and what follows, for every row of the table, chains of students, and several teachers."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner

from attacks import _model
from stillroom.cli.app import app
from stillroom.core.errors import RecipeError, TermsRefused
from stillroom.pipeline import run as run_recipe
from stillroom.pipeline import run_stage
from stillroom.recipe.reading import load_recipe, parse_recipe
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.teacher import GgufTeacher, HuggingFaceTeacher
from stillroom.runs.run import Run
from stillroom.terms.gate import judge, pass_gate, require_allowed, require_packable, verdict_of_recipe
from stillroom.terms.statements import Decided, Statement, Subject
from stillroom.terms.subjects import model_subject
from stillroom.terms.table import PACKAGED, SCHEMA, packaged_table, read_table, schema
from stillroom.terms.texts import held_text, is_same
from stillroom.verification.obligations import unmet

TABLE = [packaged_table()]
ALLOWED, CONDITIONS, REFUSED = "allowed", "allowed_with_conditions", "refused"


def teacher(value: str, kind: Any = "licence", name: str = "the teacher", **more: Any) -> Subject:
    return Subject("teacher", name, (Statement(kind, value, "the model card"),), **more)


def verdict(*subjects: Subject, **options: Any) -> dict[str, Any]:
    return judge(list(subjects), [], TABLE, **options).as_dict()


# One line a row of the facts: statement, verdict, word of the reason, name's beginning, notice, licences, use policies.
LLAMA = "Built with Llama"
NOW = "2026-11-24T00:00:00+00:00"
ROWS: list[tuple[str, str, str, str, str | None, str | None, list[str], list[str]]] = [
    ("licence", "apache-2.0", ALLOWED, "No clause against", None, None, ["Apache-2.0"], []),
    ("licence", "mit", ALLOWED, "No clause against", None, None, ["MIT"], []),
    ("checkpoint", "deepseek-ai/DeepSeek-R1", ALLOWED, "distillation for training other", None, None, ["MIT"], []),
    (
        "checkpoint",
        "deepseek-ai/DeepSeek-V3",
        CONDITIONS,
        "Attachment A",
        None,
        None,
        ["DeepSeek-License"],
        ["DeepSeek-Attachment-A"],
    ),
    (
        "licence",
        "llama3.1",
        CONDITIONS,
        "1.b.i",
        "Llama",
        LLAMA,
        ["Llama-3.1-Community-License"],
        ["Llama-3.1-Acceptable-Use-Policy"],
    ),
    (
        "licence",
        "llama3.2",
        CONDITIONS,
        "1.b.i",
        "Llama",
        LLAMA,
        ["Llama-3.2-Community-License"],
        ["Llama-3.2-Acceptable-Use-Policy"],
    ),
    (
        "licence",
        "llama3.3",
        CONDITIONS,
        "1.b.i",
        "Llama",
        LLAMA,
        ["Llama-3.3-Community-License"],
        ["Llama-3.3-Acceptable-Use-Policy"],
    ),
    (
        "licence",
        "llama4",
        CONDITIONS,
        "1.b.i",
        "Llama",
        LLAMA,
        ["Llama-4-Community-License"],
        ["Llama-4-Acceptable-Use-Policy"],
    ),
    ("licence", "llama2", REFUSED, "1.b.v", None, None, [], []),
    ("licence", "llama3", REFUSED, "1.b.v", None, None, [], []),
    (
        "licence",
        "gemma",
        CONDITIONS,
        "Model Derivative",
        None,
        "Gemma is provided under",
        ["Gemma-Terms-of-Use"],
        ["Gemma-Prohibited-Use-Policy"],
    ),
    (
        "checkpoint",
        "Qwen/Qwen2.5-72B-Instruct",
        CONDITIONS,
        "Improved using Qwen",
        None,
        "Built with Qwen",
        ["Qwen-License-Agreement"],
        [],
    ),
    (
        "checkpoint",
        "Qwen/Qwen2.5-3B",
        REFUSED,
        "Non-commercial use only",
        None,
        "Built with Qwen",
        ["Qwen-Research-License-Agreement"],
        [],
    ),
    (
        "licence",
        "creativeml-openrail-m",
        CONDITIONS,
        "Attachment A",
        None,
        None,
        ["OpenRAIL"],
        ["OpenRAIL-Attachment-A"],
    ),
    (
        "checkpoint",
        "moonshotai/Kimi-K2-Instruct",
        CONDITIONS,
        "100 million users",
        None,
        None,
        ["Kimi-K2-Modified-MIT"],
        [],
    ),
    (
        "checkpoint",
        "MiniMaxAI/MiniMax-M2.7",
        REFUSED,
        "permission of MiniMax",
        None,
        None,
        ["MiniMax-M2.7-License"],
        [],
    ),
    ("licence", "tencent-hunyuan-community", REFUSED, "improve any other AI model", None, None, [], []),
    ("service", "gpt-4o", REFUSED, "competing models", None, None, [], []),
    ("service", "claude-opus-4", REFUSED, "D.4", None, None, [], []),
    ("service", "gemini-2.5-pro", REFUSED, "December 2024", None, None, [], []),
    ("service", "grok-4", REFUSED, "distilling is named", None, None, [], []),
    ("licence", "frontier-2", REFUSED, "which no table knows", None, None, [], []),
]


@pytest.mark.parametrize(("kind", "value", "expected", "words", "prefix", "notice", "licences", "policies"), ROWS)
def test_every_row(
    kind: str,
    value: str,
    expected: str,
    words: str,
    prefix: str | None,
    notice: str | None,
    licences: list[str],
    policies: list[str],
) -> None:
    found = verdict(teacher(value, kind))
    assert found["verdict"] == expected
    assert words in found["reasons"][0]
    owed = found["obligations"]
    assert owed["name_prefix"] == prefix
    assert [entry["name"] for entry in owed["licences"]] == licences
    assert [entry["name"] for entry in owed["use_policies"]] == policies
    if notice:
        assert any(sentence.startswith(notice) for sentence in owed["notices"])
    if expected != REFUSED:
        assert any(sentence.startswith("Distilled from the teacher (") for sentence in owed["notices"])
    rows = [row for row in TABLE[0].content.rows if row.id in found["teachers"][0]["rows"]]
    for row in rows:
        assert any(row.source in reason and f"read {row.read}" in reason for reason in found["reasons"])
        assert any(
            ("text read" if row.confidence == "primary" else "second-hand") in reason for reason in found["reasons"]
        )


def test_every_row_of_models_is_under_test() -> None:
    reached = {
        row for case in ROWS for entry in verdict(teacher(case[1], case[0]))["teachers"] for row in entry["rows"]
    }
    assert reached == {row.id for row in TABLE[0].content.rows if row.kind != "text"}


@pytest.mark.parametrize("value", ["qwen-research", "minimax-m2.7"])
def test_non_commercial_licences_are_for_non_commercial_students(value: str) -> None:
    found = verdict(teacher(value), purpose="non_commercial")
    assert found["verdict"] == CONDITIONS
    assert found["non_commercial"]
    assert "Non-commercial use only" in found["conditions"][0]


def chain(first: Subject, generations: int, **options: Any) -> dict[str, Any]:
    """The last of several students, each a student of the one before."""
    found = verdict(first, **options)
    for number in range(generations):
        found = verdict(Subject("teacher", f"student {number}", carried=json.loads(json.dumps(found))), **options)
    return found


def test_a_chain_from_llama_keeps_name_and_notice_for_five_generations() -> None:
    found = chain(teacher("llama3.1"), 5)
    assert found["verdict"] == CONDITIONS
    assert found["obligations"]["name_prefix"] == "Llama"
    assert LLAMA in found["obligations"]["notices"]
    assert [(entry["rows"], entry["generation"]) for entry in found["teachers"]] == [(["llama-3.1"], 6)]


def test_a_chain_from_a_non_commercial_teacher_stays_so() -> None:
    found = chain(teacher("qwen-research"), 2, purpose="non_commercial")
    assert found["non_commercial"]
    sold = verdict(Subject("teacher", "student", carried=found), purpose="commercial")
    assert sold["verdict"] == REFUSED
    assert "non-commercial" in sold["reasons"][0]


def test_a_chain_from_a_decided_teacher_names_who_decided() -> None:
    decided = Decided(
        "teacher",
        "licence",
        "Jane Doe",
        "2026-11-24T00:00:00+00:00",
        "Frontier 2",
        "The words.",
        "ab",
        notices=("By F2",),
    )
    first = verdict(teacher("frontier-2"), decisions=[decided])
    assert first["verdict"] == CONDITIONS
    second = verdict(Subject("teacher", "student", carried=json.loads(json.dumps(first))))
    assert second["verdict"] == CONDITIONS
    assert any("the decision of Jane Doe" in words for words in second["conditions"])
    assert {"name": "Frontier 2", "text": "The words."} in second["obligations"]["licences"]
    assert "By F2" in second["obligations"]["notices"]


def test_a_chain_is_judged_by_the_table_of_today() -> None:
    carried = verdict(teacher("apache-2.0"))
    carried["teachers"][0]["statements"].append(
        {"kind": "checkpoint", "value": "meta-llama/Llama-2-7b", "where": "its card"}
    )
    assert verdict(Subject("teacher", "student", carried=carried))["verdict"] == REFUSED


def test_two_teachers_owe_the_union() -> None:
    found = verdict(teacher("llama3.3", name="one"), teacher("gemma", name="two"))
    assert found["verdict"] == CONDITIONS
    owed = found["obligations"]
    assert owed["name_prefix"] == "Llama"
    assert {entry["name"] for entry in owed["licences"]} == {"Llama-3.3-Community-License", "Gemma-Terms-of-Use"}
    assert len(owed["use_policies"]) == 2
    assert {"Distilled from one (Llama 3.3 Community License).", LLAMA} <= set(owed["notices"])
    assert verdict(teacher("mit", name="one"), teacher("llama2", name="two"))["verdict"] == REFUSED


def test_two_owners_of_one_licence_keep_their_copyright_lines() -> None:
    texts = [str(held_text("MIT")).replace("<year> <copyright holders>", owner) for owner in ("2024 One", "2025 Two")]
    subjects = [
        Subject("teacher", name, (Statement("licence", "mit", "the model card"), Statement("text", text, "LICENSE")))
        for name, text in zip("ab", texts, strict=True)
    ]
    assert [entry["text"] for entry in verdict(*subjects)["obligations"]["licences"]] == texts


def test_names_that_cannot_both_be_kept_are_refused() -> None:
    decided = Decided("other", "licence", "Jane", "2026-11-24T00:00:00Z", "O", "The text.", "ab", name_prefix="Other")
    found = verdict(teacher("llama4"), teacher("o-licence", name="other"), decisions=[decided])
    assert found["verdict"] == REFUSED
    assert "begin with Llama and with Other" in found["reasons"][0]


@pytest.mark.parametrize(
    ("licence", "expected", "words"),
    [
        (None, CONDITIONS, "no licence is stated"),
        ("my-own-1.0", CONDITIONS, "which no table knows"),
        ("PSF-2.0", ALLOWED, ""),
        ("cc-by-sa-4.0", CONDITIONS, "same licence"),
        ("cc-by-nc-4.0", REFUSED, "non-commercial"),
        ("openai", REFUSED, "competing models"),
        ("llama2", REFUSED, "1.b.v"),
    ],
)
def test_texts_go_through_the_same_gate(licence: str | None, expected: str, words: str) -> None:
    stated = (Statement("licence", licence, "recipe"),) if licence else ()
    found = judge([teacher("apache-2.0")], [Subject("text", "the text", stated)], TABLE).as_dict()
    assert found["verdict"] == expected
    assert any(words in sentence for sentence in [*found["reasons"], *found["conditions"]])


def test_a_decision_may_be_bound_to_weights() -> None:
    decided = Decided("teacher", "own", "Jane", "2026-11-24T00:00:00Z", sha256="a" * 64)
    assert verdict(Subject("teacher", "m", digest="a" * 64), decisions=[decided])["verdict"] == ALLOWED
    assert verdict(Subject("teacher", "m", digest="b" * 64), decisions=[decided])["verdict"] == REFUSED


def test_a_decision_about_other_weights_is_named_where_it_would_be_needed() -> None:
    decided = Decided("teacher", "own", "Jane", "2026-11-24T00:00:00Z", sha256="a" * 64)
    (reason,) = verdict(Subject("teacher", "m", digest="b" * 64), decisions=[decided])["reasons"]
    assert f"Jane about it is for weights with the SHA-256 {'a' * 64}, and these have {'b' * 64}" in reason


def test_a_decision_restricts_where_the_table_knows_the_terms_too() -> None:
    decided = Decided(
        "teacher", "own", "Jane", "2026-11-24T00:00:00Z", name_prefix="Ours", notices=("Ask us.",), non_commercial=True
    )
    found = verdict(teacher("mit"), decisions=[decided], purpose="non_commercial")
    assert found["non_commercial"]
    assert found["obligations"]["name_prefix"] == "Ours"
    assert "Ask us." in found["obligations"]["notices"]
    assert [entry["decided_by"] for entry in found["decisions"]] == ["Jane"]
    assert verdict(teacher("mit"), decisions=[decided])["verdict"] == REFUSED
    text = Subject("text", "the text", (Statement("licence", "mit", "recipe"),))
    about = Decided("the text", "own", "Jane", "2026-11-24T00:00:00Z", non_commercial=True)
    assert judge([teacher("mit")], [text], TABLE, decisions=[about]).as_dict()["verdict"] == REFUSED


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"valid_until": "2025-01-01"}, "it was valid until 2025-01-01"),
        ({"purpose": "non_commercial"}, "it is for non-commercial use, and `terms.purpose` is not"),
    ],
)
def test_a_permission_that_does_not_hold_is_named(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = _model.permission(tmp_path, **changes)
    with pytest.raises(TermsRefused, match=re.escape(f"The permission {path.name} does not hold here: {words}.")):
        _model.gate(tmp_path, _model.llama_2(tmp_path), terms={"permissions": [str(path)]})


def test_the_table_is_dated_versioned_and_keeps_its_schema() -> None:
    import yaml

    assert SCHEMA.read_text() == json.dumps(schema(), indent=1) + "\n"
    content = yaml.safe_load(PACKAGED.read_text())
    content["date"] = str(content["date"])
    jsonschema.validate(content, json.loads(SCHEMA.read_text()))
    assert TABLE[0].content.date <= datetime.date.today()
    del content["rows"][0]["clause"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, json.loads(SCHEMA.read_text()))


def test_a_table_that_is_none_names_the_key(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("format: 1\nversion: '1'\ndate: 2026-11-24\nrows: [{id: a}]\n")
    with pytest.raises(RecipeError, match=r"t\.yaml: `rows\.0\.title`"):
        read_table(tmp_path / "t.yaml")


def test_texts_are_compared_word_by_word() -> None:
    apache, mit = str(held_text("Apache-2.0")), str(held_text("MIT"))
    assert is_same(
        "Apache-2.0", apache.replace("\n", "\r\n").replace("[yyyy] [name of copyright owner]", "2024 An Owner")
    )
    assert is_same("MIT", "MIT License\n\nCopyright (c) 2023 An Owner\n" + mit.partition("holders>")[2])
    assert not is_same("Apache-2.0", apache.replace("irrevocable", "revocable"))
    assert not is_same("MIT", mit + "\nThe outputs may not be used to train models.")
    assert not is_same("MIT", mit.replace("<copyright holders>", "An Owner. Only for use in the EU"))


# The gate in a run.


def settings(folder: Path, **sections: Any) -> dict[str, Any]:
    return {
        "name": "small",
        "corpus": {"sources": [{"kind": "python_docs"}]},
        "teacher": {"kind": "huggingface", "name": str(_model.llama_2(folder / "forbidden"))},
    } | sections


@pytest.mark.parametrize("stage", ["capture", "shrink", "distill", "baseline"])
def test_no_stage_that_learns_from_a_teacher_begins_without_the_terms(stage: str, tmp_path: Path) -> None:
    made = Run.create(Recipe.model_validate(settings(tmp_path)), tmp_path / "runs")
    with pytest.raises(TermsRefused, match="Llama 2 Community License"):
        run_stage(made.path, stage, quiet=True)
    assert not (made.path / stage).exists()
    assert not (made.path / "corpus").exists()
    assert json.loads((made.path / "terms.json").read_text())["verdict"] == REFUSED


def test_no_variable_and_no_option_gets_round_the_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "STILLROOM_TERMS",
        "STILLROOM_SKIP_TERMS",
        "STILLROOM_NO_TERMS",
        "STILLROOM_FORCE",
        "FORCE",
        "SKIP_TERMS",
    ):
        for value in ("0", "1", "off"):
            monkeypatch.setenv(name, value)
            with pytest.raises(TermsRefused):
                run_recipe(Recipe.model_validate(settings(tmp_path)), tmp_path / "runs", quiet=True)
    # Nothing of the gate reads the environment, and no command has an option that names it.
    package = PACKAGED.parent.parent
    sources = [path for name in ("terms", "inspection") for path in (package / name).glob("*.py")]
    reading = [path.name for path in sources if re.search(r"os.environ|getenv", path.read_text())]
    assert reading == ["template.py"]  # It passes PATH to its child.
    for command in ("run", "capture", "distill", "package"):
        shown = CliRunner().invoke(app, [command, "--help"]).stdout
        assert not re.search(r"--\S*(terms|gate|licen)", shown)
        assert "--force" not in shown
        assert "--skip" not in shown


def test_a_refusal_is_exit_code_1_and_says_what_to_do(tmp_path: Path, capsys: Any) -> None:
    import yaml

    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump(settings(tmp_path)))
    shown = CliRunner().invoke(app, ["terms", "check", str(recipe)])
    assert shown.exit_code == 1
    assert "Refused." in shown.stdout
    assert "written permission" in shown.stdout
    told = json.loads(CliRunner().invoke(app, ["terms", "check", str(recipe), "--json"]).stdout)
    assert told["verdict"] == REFUSED


def test_an_own_model_needs_one_decision_which_is_recorded(tmp_path: Path) -> None:
    bare = _model.model(tmp_path, README__md="# Mine")
    sections = {"teacher": {"kind": "huggingface", "name": str(bare)}, "terms": {"decisions": [_model.OWN]}}
    made = Run.create(Recipe.model_validate(settings(tmp_path, **sections)), tmp_path / "runs")
    assert pass_gate(made).verdict == ALLOWED
    record = json.loads((made.path / "terms.json").read_text())
    assert record["decisions"][0]["decided_by"] == "Mallory"
    assert record["decisions"][0]["decided_at"] == "2026-11-24T00:00:00+00:00"
    assert str(tmp_path) not in json.dumps(record)


def test_a_permission_is_recorded_with_its_digest_and_its_text(tmp_path: Path) -> None:
    path = _model.permission(tmp_path)
    found = _model.gate(tmp_path, _model.llama_2(tmp_path), terms={"permissions": [str(path)]}).as_dict()
    assert found["verdict"] == CONDITIONS
    assert found["permissions"][0]["words"].startswith("Dear operator")
    assert len(found["permissions"][0]["sha256"]) == 64


def test_packing_needs_name_and_texts(tmp_path: Path) -> None:
    found = _model.llama_3(tmp_path)
    require_packable(found, "Llama-handbook")
    with pytest.raises(TermsRefused, match="begin with `Llama`"):
        require_packable(found, "handbook")
    owed = found.as_dict()
    texts = {
        entry["name"]: entry["text"] for entry in owed["obligations"]["licences"] + owed["obligations"]["use_policies"]
    }
    notice = "\n".join(owed["obligations"]["notices"])
    assert unmet(owed, name="Llama-x", notice=notice, texts=texts) == []
    assert len(unmet(owed, name="x", notice="", texts={})) == 1 + len(owed["obligations"]["notices"]) + 2


def test_the_quickstart_is_allowed() -> None:
    pytest.importorskip("gguf")
    found = verdict_of_recipe(load_recipe("recipes/quickstart.yaml"))
    # With conditions: the answers in its text were written by a model whose licence was read and supplied.
    assert found.verdict in (ALLOWED, CONDITIONS)
    require_allowed(found)


def test_existing_students_and_generated_text_are_judged_too(tmp_path: Path) -> None:
    good = _model.model(tmp_path)
    sections = {"teacher": {"kind": "huggingface", "name": str(good)}}
    student = {"kind": "existing", "name": str(_model.llama_2(tmp_path / "student"))}
    recipe = Recipe.model_validate(settings(tmp_path, **sections, student=student))
    assert verdict_of_recipe(recipe).verdict == REFUSED
    generated = {"sources": [{"kind": "python_docs", "generated_by": "claude-3-opus"}]}
    recipe = Recipe.model_validate(
        settings(tmp_path, teacher={"kind": "huggingface", "name": str(_model.model(tmp_path))}, corpus=generated)
    )
    assert "Anthropic" in verdict_of_recipe(recipe).reasons[0]


def checked(folder: Path, **content: Any) -> dict[str, Any]:
    """The result for a model's folder; ``content`` as in ``_model.model``."""
    place = _model.model(folder, **content)
    subject = model_subject(HuggingFaceTeacher(name=str(place)), "teacher")
    return judge([subject], [], TABLE).as_dict()


@pytest.mark.parametrize(
    "base",
    [
        "meta-llama/Llama-3.1-8B",
        "https://huggingface.co/meta-llama/Llama-3.1-8B/tree/main",
        "hf.co/meta-llama/Llama-3.1-8B",
        "meta-llama/Llama-3.1-8B@main",
        "\n- name: meta-llama/Llama-3.1-8B\n  revision: main",
        "\n- HuggingFaceTB/SmolLM2-135M\n- {id: meta-llama/Llama-3.1-8B}",
        "\n  repo_id: meta-llama/Llama-3.1-8B",
    ],
)
def test_a_base_model_counts_however_it_is_written(base: str, tmp_path: Path) -> None:
    card = f"---\nlicense: mit\nbase_model: {base}\n---\n"
    found = checked(tmp_path, README__md=card)
    assert found["verdict"] == CONDITIONS
    assert found["obligations"]["name_prefix"] == "Llama"
    (tmp_path / "model" / "README.md").rename(tmp_path / "model" / "Readme.md")
    again = judge([model_subject(HuggingFaceTeacher(name=str(tmp_path / "model")), "teacher")], [], TABLE)
    assert again.as_dict() == found


@pytest.mark.parametrize(
    "base", ["Llama-3.1-8B", "our own model", "https://example.org/llama", "\n- {weights: x}", "[[a]]", "7"]
)
def test_a_base_model_that_is_not_understood_is_not_decided(base: str, tmp_path: Path) -> None:
    found = checked(tmp_path, README__md=f"---\nlicense: mit\nbase_model: {base}\n---\n")
    assert found["verdict"] == REFUSED
    assert "`base_model` says" in found["reasons"][0]


@pytest.mark.parametrize("base", ["", "null", "[]", "HuggingFaceTB/SmolLM2-135M", "gpt2"])
def test_a_base_model_without_a_row_of_its_own_changes_nothing(base: str, tmp_path: Path) -> None:
    assert checked(tmp_path, README__md=f"---\nlicense: mit\nbase_model: {base}\n---\n")["verdict"] == ALLOWED


def test_the_path_in_a_config_may_name_the_model(tmp_path: Path) -> None:
    config = {"model_type": "llama", "_name_or_path": "/data/meta-llama/Llama-3.1-8B"}
    assert checked(tmp_path / "named", config__json=config)["verdict"] == CONDITIONS
    config["_name_or_path"] = "/data/out/checkpoint-500"
    assert checked(tmp_path / "other", config__json=config)["verdict"] == ALLOWED


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"name": "Llama 3.1 8B", "organization": "Meta Llama"}, CONDITIONS),
        ({"name": "Mine", "repo_url": "https://hf.co/meta-llama/Llama-3.1-8B"}, CONDITIONS),
        ({"name": "A model"}, REFUSED),
        ({"name": "A model", "repo_url": "https://example.org/x"}, REFUSED),
        ({}, ALLOWED),
    ],
)
def test_the_base_of_a_gguf_file_counts(facts: dict[str, str], expected: str, tmp_path: Path) -> None:
    said = {f"general.base_model.0.{key}": value for key, value in facts.items()}
    keys = [_model.key(key, _model.STRING, _model.text(value)) for key, value in said.items()]
    path = tmp_path / "model.gguf"
    path.write_bytes(_model.gguf([*_model.plain_keys(), *keys]))
    subject = model_subject(GgufTeacher(path=str(path)), "teacher")
    assert judge([subject], [], TABLE).as_dict()["verdict"] == expected


NOT_COMMERCIAL = "Creative Commons Attribution-NonCommercial 4.0 International\n\nSection 1 and so on."
LLAMA_TEXT = "LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\nLlama 3.1 Version Release Date: July 23, 2024"


@pytest.mark.parametrize(
    ("name", "text", "expected", "words"),
    [
        ("LICENSE.rst", NOT_COMMERCIAL, REFUSED, ""),
        ("Licence.txt", NOT_COMMERCIAL, REFUSED, ""),
        ("LICENSE-3.1", LLAMA_TEXT, CONDITIONS, "Llama 3.1"),
        ("LICENSE.llama3", LLAMA_TEXT, CONDITIONS, "Llama 3.1"),
        ("MODEL_LICENSE", LLAMA_TEXT, CONDITIONS, "Llama 3.1"),
        ("Copying", NOT_COMMERCIAL, REFUSED, ""),
        ("License.pdf", b"%PDF-1.4 \xff\xfe", REFUSED, "License.pdf cannot be read as the text of a licence"),
        ("license", "x", REFUSED, "license cannot be read as the text of a licence"),
    ],
)
def test_every_licence_file_counts(name: str, text: str | bytes, expected: str, words: str, tmp_path: Path) -> None:
    found = checked(tmp_path, **{name: text})
    assert found["verdict"] == expected
    assert words in " ".join(found["reasons"])
    if expected == CONDITIONS:
        (owed,) = [entry for entry in found["obligations"]["licences"] if "Llama" in entry["name"]]
        assert owed["text"] == text


@pytest.mark.parametrize("name", ["THIRD_PARTY_LICENSES.txt", "third-party-licenses.md", "license_plates.json"])
def test_what_is_no_licence_of_the_model_changes_nothing(name: str, tmp_path: Path) -> None:
    alone, beside = (checked(tmp_path / side, LICENSE=str(held_text("Apache-2.0")), **more) for side, more in
                     (("a", {}), ("b", {name: '"Parts are under other terms."'})))  # fmt: skip
    assert alone["verdict"] == beside["verdict"] != REFUSED


def test_of_several_texts_each_licence_has_its_own(tmp_path: Path) -> None:
    found = checked(tmp_path, LICENSE=str(held_text("Apache-2.0")), **{"LICENSE.llama3": LLAMA_TEXT})
    texts = {entry["name"]: entry["text"] for entry in found["obligations"]["licences"]}
    assert texts["Llama-3.1-Community-License"] == LLAMA_TEXT
    assert texts["Apache-2.0"] == held_text("Apache-2.0")


def test_recipes_round_trip_with_terms(tmp_path: Path) -> None:
    text = (
        "name: x\ncorpus: {sources: [{kind: python_docs}]}\nteacher: {kind: gguf, path: a.gguf}\n"
        "terms: {purpose: non_commercial, tables: [mine.yaml], licence_texts: {Llama-4-Community-License: l.txt}}\n"
    )
    recipe = parse_recipe(text, "r.yaml", tmp_path)
    assert recipe.terms.tables == (tmp_path / "mine.yaml",)
    assert recipe.terms.licence_texts == {"Llama-4-Community-License": tmp_path / "l.txt"}


def test_what_to_do_for_a_model_of_unknown_terms_is_ready_to_paste(tmp_path: Path) -> None:
    import yaml

    bare = _model.model(tmp_path, README__md="# Mine")
    teacher = {"kind": "huggingface", "name": str(bare)}
    with pytest.raises(TermsRefused) as caught:
        pass_gate(Run.create(Recipe.model_validate(settings(tmp_path, teacher=teacher)), tmp_path / "runs"))
    _, terms, rest = caught.value.todo.partition("    terms:")
    lines = (terms + rest).splitlines()[:3]
    told = yaml.safe_load("\n".join(lines).replace("YOUR NAME", "Mallory").replace("YYYY-MM-DD", "2026-11-24"))
    allowed = Recipe.model_validate(settings(tmp_path, teacher=teacher, **told))
    assert pass_gate(Run.create(allowed, tmp_path / "other")).verdict == ALLOWED
