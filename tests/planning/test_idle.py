"""A key that nothing reads beside the others of its recipe is named by the plan."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from stillroom.planning.idle import RULES, idle_keys
from stillroom.planning.plan import make_plan
from stillroom.recipe.recipe import Recipe

PLAIN: dict[str, Any] = {
    "name": "tiny",
    "corpus": {"sources": [{"kind": "python_docs"}]},
    "teacher": {"kind": "huggingface", "name": "owner/model"},
}
ENDPOINT = {
    "kind": "endpoint",
    "base_url": "http://127.0.0.1:8080",
    "model": "m",
    "tokenizer": "owner/model",
    "sends_text": True,
}
FRESH = {"kind": "fresh", "config": {"num_hidden_layers": 2}}
EXISTING = {"kind": "existing", "name": "owner/small"}
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("distill.decay_share", {"distill.decay_share": 0.4}, {"distill.schedule": "wsd"}),
    (
        "distill.final_learning_rate_share",
        {"distill.final_learning_rate_share": 0.2, "distill.schedule": "constant"},
        {"distill.schedule": "linear"},
    ),
    ("distill.chunk_weight", {"distill.chunk_weight": 2.0}, {"student": EXISTING | {"tokenizer": "own"}}),
    ("distill.chunk_temperature", {"distill.chunk_temperature": 9.0}, {"student": EXISTING | {"tokenizer": "own"}}),
    (
        "distill.objective",
        {"distill.objective": "reverse_kl", "distill.cross_entropy_weight": 1.0},
        {"distill.cross_entropy_weight": 0.5},
    ),
    (
        "student.vocabulary.size",
        {"student": {"kind": "shrink", "layers": 2, "drafter": True, "vocabulary": {"size": 4096}}},
        {"student": {"kind": "shrink", "layers": 2, "vocabulary": {"size": 4096}}},
    ),
    (
        "student.vocabulary.multiple_of",
        {"student": FRESH | {"vocabulary": {"keep": "all", "multiple_of": 128}}},
        {"student": FRESH | {"vocabulary": {"multiple_of": 128}}},
    ),
    (
        "student.importance.path",
        {"student": {"kind": "dense", "importance": {"path": "kept.safetensors"}}},
        {"student": {"kind": "shrink", "importance": {"path": "kept.safetensors"}}},
    ),
    (
        "student.target.quantisation",
        {"student": {"kind": "shrink", "target": {"parameters": 9000, "quantisation": "Q4_0"}}},
        {"student": {"kind": "shrink", "target": {"file_bytes": 9000, "quantisation": "Q4_0"}}},
    ),
    (
        "student.target.context",
        {"student": {"kind": "shrink", "target": {"file_bytes": 9000, "context": 64}}},
        {"student": {"kind": "shrink", "target": {"memory_bytes": 9000, "context": 64}}},
    ),
    (
        "student.target.profiles",
        {"student": {"kind": "shrink", "target": {"file_bytes": 9000, "profiles": "own.yaml"}}},
        {"student": {"kind": "shrink", "target": {"device": "mine", "profiles": "own.yaml"}}},
    ),
    (
        "student.target.axes",
        {"student": {"kind": "shrink", "hidden_size": 64, "target": {"parameters": 9, "axes": ["hidden_size"]}}},
        {"student": {"kind": "shrink", "layers": 2, "target": {"parameters": 9, "axes": ["hidden_size"]}}},
    ),
    (
        "capture.batch_tokens",
        {"capture.batch_tokens": 512, "teacher": ENDPOINT},
        {"teacher": PLAIN["teacher"]},
    ),
    (
        "capture.seed",
        {"capture.seed": 1, "capture.codec": {"kind": "hidden"}},
        {"capture.codec": {"kind": "threshold"}},
    ),
    (
        "capture.shard_tokens",
        {"capture.shard_tokens": 64, "capture.path": "s3://bucket/cache"},
        {"capture.path": "cache"},
    ),
    (
        "write.support",
        {"write": {"forms": ["rephrase"], "support": 0.9}},
        {"write": {"forms": ["rephrase", "open_book"], "support": 0.9}},
    ),
    (
        "export.choose.profiles",
        {"export.choose": {"file_bytes": 9000, "profiles": "own.yaml"}},
        {"export.choose": {"device": "mine", "profiles": "own.yaml"}},
    ),
    ("export.recover", {"export.recover": {"steps": 4}}, {"export.gguf": ["Q4_K_M"]}),
    (
        "export.importance_tokens",
        {"export.importance_tokens": 64},
        {"export.choose": {"file_bytes": 9000, "among": ["F16", "Q4_0"]}},
    ),
    ("export.check_tokens", {"export.check_tokens": 64, "export.gguf": []}, {"export.onnx": True}),
    ("export.max_kl.Q4_0", {"export.max_kl": {"Q4_0": 0.1, "F16": 0.1}}, {"export.gguf": ["F16", "Q4_0"]}),
    ("chat.prompt", {"chat.prompt": "Why?", "export.gguf": []}, {"export.choose": {"file_bytes": 9000}}),
    ("chat.max_tokens", {"chat.prompt": None, "chat.max_tokens": 9}, {"chat.prompt": "Why?"}),
    (
        "evaluate.tasks",
        {"evaluate.tasks": {"names": ["humaneval"]}},
        {"evaluate.measures": ["fidelity", "cost", "tasks"]},
    ),
    (
        "evaluate.samples",
        {"evaluate.samples": {"prompts": 3}, "evaluate.measures": ["fidelity", "cost"]},
        {"evaluate.measures": ["fidelity", "cost", "samples"]},
    ),
]


def recipe_with(*changes: dict[str, Any]) -> Recipe:
    tree = copy.deepcopy(PLAIN)
    for change in changes:
        for key, value in change.items():
            at = tree
            *above, last = key.split(".")
            for part in above:
                at = at.setdefault(part, {})
            at[last] = value
    return Recipe.model_validate(tree)


@pytest.mark.parametrize(("key", "idle", "read"), CASES, ids=[case[0] for case in CASES])
def test_a_key_that_nothing_reads_is_named(key: str, idle: dict[str, Any], read: dict[str, Any]) -> None:
    found = idle_keys(recipe_with(idle))
    assert [line for line in found if f"`{key}`" in line.partition(" nothing: ")[0]], found
    assert not [line for line in idle_keys(recipe_with(idle, read)) if f"`{key}`" in line.partition(" nothing: ")[0]]


def test_every_rule_has_a_case() -> None:
    assert {key for rule in RULES for key in rule.keys} <= {case[0] for case in CASES}


def test_defaults_are_not_named() -> None:
    assert idle_keys(recipe_with()) == []
    assert (
        idle_keys(recipe_with({"export.gguf": [], "student": FRESH, "evaluate.measures": ["fidelity", "cost"]})) == []
    )


def test_a_commit_of_a_folder_here_is_none(tmp_path: Path) -> None:
    given = {"kind": "huggingface", "name": str(tmp_path), "revision": "abc"}
    (line,) = idle_keys(recipe_with({"teacher": given}))
    assert line.startswith("`teacher.revision` does nothing: ")
    assert idle_keys(recipe_with({"teacher": given | {"name": "owner/model"}})) == []


def test_a_pattern_beside_one_file_chooses_nothing(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("x")
    source = {"kind": "text", "path": str(file), "pattern": ["*.md"]}
    (line,) = idle_keys(recipe_with({"corpus.sources": [source]}))
    assert line.startswith("`corpus.sources.0.pattern` does nothing: ")
    assert idle_keys(recipe_with({"corpus.sources": [source | {"path": str(tmp_path)}]})) == []


def test_the_plan_says_it(every_stage: dict[str, Any], tmp_path: Path) -> None:
    every_stage["export"] |= {"recover": {"steps": 4}}
    notes = make_plan(Recipe.model_validate(every_stage), tmp_path)["notes"]
    assert any(note.startswith("`export.recover` does nothing") for note in notes)
