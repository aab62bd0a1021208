"""Tokenizers with the same ids that tokenize or render otherwise are named, and those that do not are not."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import make_tokenizer, tiny_model
from transformers import AutoTokenizer

from stillroom.core import files
from stillroom.corpus.build import has_chats
from stillroom.pipeline import run
from stillroom.recipe.recipe import Recipe
from stillroom.teachers.tokenizers import PROBES, differences

REFUSING = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
OTHER_CHATS = "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}{{ eos_token }}{% endfor %}"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("models") / "teacher", layers=2, hidden=32)


@pytest.fixture
def compared(small_recipe: Any, teacher: Path) -> Callable[..., list[str]]:
    """What is said of another tokenizer; the teacher's own with other ``rules`` of ``tokenizer.json`` and other attributes."""
    recipe = Recipe.model_validate(small_recipe(teacher))

    def compare(rules: dict[str, Any] | None = None, *, chats: bool = False, **attributes: Any) -> list[str]:
        other = make_tokenizer("bpe")
        if rules:
            whole = json.loads(other.backend_tokenizer.to_str())
            whole["model"] |= rules.pop("model", {})
            other._tokenizer = type(other.backend_tokenizer).from_str(json.dumps(whole | rules))
        for name, value in attributes.items():
            setattr(other, name, value)
        assert other.get_vocab() == make_tokenizer("bpe").get_vocab(), "the ids alone tell nothing"
        return differences(recipe, {"teachers.code": other}, chats=chats)

    return compare


def test_equal_tokenizers_say_nothing(compared: Callable[..., list[str]]) -> None:
    assert compared() == []
    assert compared(chats=True) == []
    # Padding and truncation change nothing that a corpus has, and neither does another text of the same template.
    assert (
        compared({"truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}}) == []
    )
    template = make_tokenizer("bpe").chat_template
    assert compared(chats=True, chat_template="{# the same #}" + template) == []


def test_text_that_becomes_other_ids_is_counted_and_the_first_is_named(compared: Callable[..., list[str]]) -> None:
    (lower,) = compared({"normalizer": {"type": "Lowercase"}})
    assert "`teachers.code` has the ids of `teacher`" in lower
    assert "the first of them upper case ('THE QUICK" in lower
    # What is changed by composing alone is counted by hand.
    (composed,) = compared({"normalizer": {"type": "NFC"}})
    count = sum(unicodedata.normalize("NFC", text) != text for text in PROBES.values())
    assert 0 < count < len(PROBES)
    assert f"{count} of {len(PROBES) + 1} short texts, the first of them decomposed accents" in composed
    merges = json.loads(make_tokenizer("bpe").backend_tokenizer.to_str())["model"]["merges"]
    assert len(compared({"model": {"merges": merges[::-1]}})) == 1
    (plain,) = compared({"added_tokens": []})
    assert "1 of " in plain
    assert "special tokens" in plain
    space = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    assert len(compared({"pre_tokenizer": space})) == 1


def test_other_tokens_around_a_text_are_named(compared: Callable[..., list[str]]) -> None:
    (around,) = compared(eos_token="<|endoftext|>")
    assert "around a text than `teacher`: `… <|endoftext|>`, and the corpus has `… <|im_end|>`" in around


def test_chat_templates_matter_where_there_are_chats(compared: Callable[..., list[str]]) -> None:
    template = make_tokenizer("bpe").chat_template
    for other, words in (
        (OTHER_CHATS, "`teachers.code` renders chats otherwise than `teacher`"),
        (REFUSING + template, "renders chats otherwise"),
        ("{{ raise_exception('never') }}", "renders chats otherwise"),
        ("{{ no.such.thing }}", "renders chats otherwise"),
        (None, "has no chat template, and `teacher` has one"),
    ):
        assert compared(chat_template=other) == []
        (found,) = compared(chats=True, chat_template=other)
        assert words in found


def lower_cased(folder: Path, **options: Any) -> Path:
    """A tiny model whose tokenizer lower-cases and whose chats are another's."""
    tiny_model("llama", folder, layers=1, hidden=32, seed=3, **options)
    rules = json.loads((folder / "tokenizer.json").read_text()) | {"normalizer": {"type": "Lowercase"}}
    (folder / "tokenizer.json").write_text(json.dumps(rules))
    (folder / "chat_template.jinja").write_text(OTHER_CHATS)
    return folder


def chats_of(text: Path, folder: Path) -> dict[str, Any]:
    """The documents as answers to one question each."""
    lines = [
        {"messages": [{"role": "user", "content": path.name}, {"role": "assistant", "content": path.read_text()}]}
        for path in sorted(text.iterdir())
    ]
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return {"kind": "jsonl", "path": str(folder / "chats.jsonl"), "licence": "PSF-2.0"}


def template_of(run_folder: Path) -> str | None:
    """The chat template of a run's start."""
    found: str | None = AutoTokenizer.from_pretrained(run_folder / "shrink" / "model").chat_template
    return found


def test_plan_and_stage_say_it_of_an_existing_student(
    small_recipe: Any, teacher: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = small_recipe(teacher, export={"gguf": []}, baseline=False)
    settings["student"] = {"kind": "existing", "name": str(lower_cased(tmp_path / "student"))}
    settings["corpus"] |= {"sources": [chats_of(text, tmp_path)], "train_tokens": 512}
    made = run(Recipe.model_validate(settings), tmp_path / "runs", until="shrink")
    tokenized, rendered = files.read_json(made.path / "plan.json")["notes"]
    assert tokenized.startswith("`student` has the ids of `teacher`")
    assert rendered.startswith("`student` renders chats otherwise")
    assert rendered.endswith("and takes the chat template of `teacher`")
    assert template_of(made.path) == make_tokenizer("bpe").chat_template
    assert has_chats(made.path / "corpus")
    assert files.read_json(made.path / "shrink" / "shrink.json")["tokenizers_differ"] == [tokenized, rendered]
    shown = capsys.readouterr().err
    assert shown.count(tokenized) == shown.count(rendered) == 2, "in the plan, and by the stage"


@pytest.mark.parametrize(("chats", "own"), [(True, OTHER_CHATS), (True, None), (False, OTHER_CHATS)])
def test_a_student_with_another_tokenizer_is_asked_as_it_was_taught(
    small_recipe: Any, teacher: Path, text: Path, tmp_path: Path, chats: bool, own: str | None
) -> None:
    """Its own chat template stays where the corpus has no chats."""
    settings = small_recipe(teacher, capture={"codec": {"kind": "hidden"}}, export={"gguf": []}, baseline=False)
    student = tiny_model("llama", tmp_path / "student", layers=1, hidden=32, vocabulary_size=400)
    tokenizer = AutoTokenizer.from_pretrained(student)
    tokenizer.chat_template = own
    tokenizer.save_pretrained(student)
    if own is None:
        (student / "chat_template.jinja").unlink(missing_ok=True)
    settings["student"] = {"kind": "existing", "name": str(student), "tokenizer": "own"}
    settings["corpus"] |= {"train_tokens": 512} | ({"sources": [chats_of(text, tmp_path)]} if chats else {})
    made = run(Recipe.model_validate(settings), tmp_path / "runs", until="shrink")
    template = make_tokenizer("bpe").chat_template
    assert template_of(made.path) == (template if chats else own)
    said = [note for note in files.read_json(made.path / "plan.json")["notes"] if "takes the chat template" in note]
    assert len(said) == chats
    assert files.read_json(made.path / "shrink" / "shrink.json").get("tokenizers_differ", []) == said


def test_the_capture_of_several_teachers_says_it(
    small_recipe: Any, teacher: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = small_recipe(teacher, student={"kind": "fresh", "config": {"num_hidden_layers": 1}}, baseline=False)
    other = lower_cased(tmp_path / "other")
    settings["teachers"] = {"code": {"kind": "huggingface", "name": str(other)}}
    settings["corpus"]["sources"][0]["teacher"] = {"code": 1, "teacher": 1}
    settings["corpus"] |= {"train_tokens": 512}
    decision = settings["terms"]["decisions"][0]
    settings["terms"] = {"decisions": [decision | {"subject": name} for name in ("teacher", "student", "code")]}
    made = run(Recipe.model_validate(settings), tmp_path / "runs", until="capture")
    assert not has_chats(made.path / "corpus")
    record = made.stage("capture").record
    assert record is not None
    (tokenized,) = record["notes"]["tokenizers_differ"]
    assert tokenized.startswith("`teachers.code` has the ids of `teacher`")
    assert capsys.readouterr().err.count(tokenized) == 2
