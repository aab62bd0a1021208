"""Models are compared one after the other: to the bit as when all are in memory, and only one of them is there."""

from __future__ import annotations

import dataclasses
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from students.tiny_families import tiny_sequences
from tiny_models import make_model, make_tokenizer

from benchmarks.faults import bench_with
from stillroom.core.memory import release_memory
from stillroom.core.progress import Task
from stillroom.evaluation import states
from stillroom.evaluation.bench import ORDER, Bench, Loaded, Subject
from stillroom.evaluation.fidelity import Contender, compare
from stillroom.evaluation.heldout import InMemory
from stillroom.evaluation.measures import do_measures
from stillroom.evaluation.states import keep_states, parts_of
from stillroom.evaluation.tally import Tally
from stillroom.models.load import load_student, save_model
from stillroom.signals.vocabulary_map import VocabularyMap

IDS = 96
QUIET = Task("", 1, "", quiet=True)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_kept_states_give_the_same_sums_to_the_bit(family: str, tmp_path: Path) -> None:
    """Also where the output layer has a soft cap, and where ids are said in two pieces."""
    teacher, other = (make_model(family, rows=IDS, layers=2, seed=seed) for seed in (1, 2))
    student = make_model("llama", rows=64, layers=2, seed=3)
    pieces = VocabularyMap.from_pieces([[i] if i < 60 else [i - 60, 59] for i in range(IDS)], 64, 60)
    whole = VocabularyMap.identity(IDS)
    heldout = InMemory(tiny_sequences(3, 24, ids=IDS))

    def sums(models: list[Any]) -> list[Tally]:
        tallies = [Tally({"all": 1}, 16) for _ in models]
        contenders = [
            Contender(name, model, vocabulary, tally)
            for name, model, vocabulary, tally in zip(
                ("student", "other"), models[1:], (pieces, whole), tallies[1:], strict=True
            )
        ]
        compare(models[0], tallies[0], contenders, heldout, np.zeros(0), QUIET)
        return tallies

    models = [(teacher, None), (student, pieces), (other, whole)]
    kept = [
        keep_states(model, vocabulary, heldout, range(3), tmp_path / str(number), QUIET)
        for number, (model, vocabulary) in enumerate(models)
    ]
    for mine, theirs in zip(sums(kept), sums([teacher, student, other]), strict=True):
        assert mine.as_dict() == theirs.as_dict()
        assert np.array_equal(mine.reliability, theirs.reliability)
    # Nothing of a model is kept but its output layer.
    assert kept[0].head.matrix.untyped_storage().nbytes() == IDS * kept[0].head.matrix.shape[1] * 4


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells which files are in memory")
def test_nothing_of_a_models_file_stays_in_memory(tmp_path: Path) -> None:
    """Weights are read from a file that is mapped into memory, and one of them would hold all of it."""
    folder = tmp_path / "model"
    save_model(make_model("llama", rows=512, layers=2, seed=1), make_tokenizer("bpe"), folder)
    model, _ = load_student(folder, torch.float32)
    heldout = InMemory(tiny_sequences(3, 24, ids=IDS))
    kept = keep_states(model, None, heldout, range(3), tmp_path / "states", QUIET)
    del model
    release_memory()
    assert str(folder) not in Path("/proc/self/maps").read_text(encoding="utf-8")
    assert kept.head.matrix.shape[0] == 512


class Watched:
    """Opens tiny models, and knows which of them are alive."""

    def __init__(self) -> None:
        self.tokenizer = make_tokenizer("bpe", 512)
        self.alive: weakref.WeakSet[Any] = weakref.WeakSet()
        self.most: dict[str, int] = {}
        self.opened: list[str] = []
        self.doing = ""

    def subject(self, name: str, seed: int) -> Subject:
        def opener() -> Loaded:
            model = make_model("llama", rows=len(self.tokenizer), layers=1, seed=seed)
            self.alive.add(model)
            self.opened.append(name)
            self.most[self.doing] = max(self.most.get(self.doing, 0), len(self.alive))
            return Loaded(model, self.tokenizer, VocabularyMap.identity(len(self.tokenizer)), 0)

        return Subject(name, f"{name} {seed}", opener)


def bench(folder: Path, watched: Watched) -> Bench:
    nothing: Any = None
    made = bench_with(InMemory(tiny_sequences(4, 48, ids=500)), folder, nothing, nothing)
    subjects = {name: watched.subject(name, seed) for seed, name in enumerate(ORDER)}
    return dataclasses.replace(made, subjects=subjects)


def test_only_one_model_is_in_memory(tmp_path: Path) -> None:
    watched = Watched()
    made = bench(tmp_path, watched)
    for name in ("fidelity", "languages", "memorisation", "samples", "behaviour", "safeguards", "cost", "drafter"):
        watched.doing = name
        do_measures(made, [name])
    # Speeds are compared in turns, and what a drafter proposes is judged by the teacher: both are there.
    assert {name for name, most in watched.most.items() if most > 1} <= {"cost", "drafter"}
    assert max(watched.most.values()) <= 2
    assert watched.most["fidelity"] == 1
    assert sorted(watched.opened[: len(ORDER)]) == sorted(ORDER)  # each once
    assert not list(made.folder.rglob("*.partial"))


def test_a_long_text_is_compared_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = do_measures(bench(tmp_path / "whole", Watched()), ["fidelity"])["fidelity"]
    monkeypatch.setattr(states, "TOKENS", 100)
    watched = Watched()
    made = bench(tmp_path / "parts", watched)
    assert [len(part) for part in parts_of(made.heldout)] == [2, 2]
    found = do_measures(made, ["fidelity"])["fidelity"]
    assert watched.most == {"": 1}
    # The documents of both parts are counted once, and sums are added in another order at most.
    assert found["documents"] == whole["documents"]
    assert found["positions"] == whole["positions"]
    for name in ORDER:
        for key, value in whole["models"][name].items():
            assert found["models"][name][key] == pytest.approx(value, rel=1e-9, abs=1e-12)
