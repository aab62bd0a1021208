"""On-policy distillation in rounds: what the student writes, what the teacher predicts on it, kills, repeats, and refusals."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_model

from stillroom import pipeline
from stillroom.cluster.cluster import Cluster
from stillroom.core import files
from stillroom.core.errors import CorpusError, RecipeError, UsageError
from stillroom.corpus.joined import JoinedSequences
from stillroom.corpus.mapped import MappedSequences, open_split
from stillroom.corpus.pieces import PieceFile
from stillroom.models.load import load_student, load_teacher, load_tokenizer
from stillroom.planning.plan import make_plan
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.teacher import HuggingFaceTeacher
from stillroom.recipe.training import RoundsConfig
from stillroom.runs.run import Run
from stillroom.runs.stages import recipe_digest, stages_of
from stillroom.signals.cache.reader import TeacherCache
from stillroom.signals.cache.writer import CacheWriter
from stillroom.signals.signal import DenseSignal
from stillroom.signals.vocabulary_map import VocabularyMap
from stillroom.training import rounds as rounds_module
from stillroom.training.losses.registry import require_fit
from stillroom.training.own_text import REASONS, OwnWriter, Prompt, beginnings, control_ids, require_beginnings
from stillroom.training.refusals import require_rounds
from stillroom.training.rounds import OWN_CACHE, Division, Rounds

ROUNDS = {"count": 3, "own_share": 0.5, "prompt_tokens": 8, "new_tokens": 12}


class Killed(BaseException):
    """A kill, at a point of a test's choosing."""


@pytest.fixture(scope="module")
def settings_of(small_recipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    teacher = tiny_model("llama", tmp_path_factory.mktemp("rounds-teacher") / "teacher", layers=3)

    def make(**changed: Any) -> dict[str, Any]:
        made: dict[str, Any] = small_recipe(
            teacher,
            student={"kind": "shrink", "layers": 2, "vocabulary": {"size": 400}},
            capture={"codec": {"kind": "dense"}, "shard_tokens": 64},
            teacher={"kind": "huggingface", "name": str(teacher), "dtype": "float32"},
            distill={
                "batch_tokens": 256,
                "learning_rate": 3e-3,
                "precision": "float32",
                "epochs": 2,
                "checkpoint_seconds": 0,
                "rounds": ROUNDS,
            },
            baseline=False,
        )
        made["distill"] |= changed.pop("distill", {})
        return made | changed

    return make


@pytest.fixture(scope="module")
def started(settings_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run before its training."""
    root = tmp_path_factory.mktemp("started")
    pipeline.run(Recipe.model_validate(settings_of()), root, quiet=True, until="capture")
    return pipeline.run(Recipe.model_validate(settings_of()), root, quiet=True, until="shrink").path


@pytest.fixture(scope="module")
def whole(settings_of: Any, started: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same run, trained without a stop."""
    return trained(settings_of(), started, tmp_path_factory.mktemp("whole"))


def trained(settings: dict[str, Any], started: Path, root: Path) -> Run:
    if not (root / started.name).exists():
        shutil.copytree(started, root / started.name)
    return pipeline.run(Recipe.model_validate(settings), root, quiet=True, until="distill")


def weights(run: Run) -> str:
    return files.digest_file(run.path / "distill" / "model" / "model.safetensors")


def stopped_after(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, calls: int) -> None:
    """Kill the process, as it were, after a function has been called so often."""
    real, seen = getattr(owner, name), [0]

    def counted(*args: Any, **more: Any) -> Any:
        found = real(*args, **more)
        seen[0] += 1
        if seen[0] == calls:
            raise Killed
        return found

    monkeypatch.setattr(owner, name, counted)


# --- the division into rounds ---


@given(st.integers(2, 8), st.floats(0.01, 1), st.lists(st.integers(1, 5), min_size=8, max_size=40), st.integers(1, 3))
def test_rounds_divide_the_steps_and_keep_the_share(count: int, share: float, sizes: list[int], rows: int) -> None:
    order = [list(range(size)) for size in sizes]
    division = Division.of(order, rows, RoundsConfig(count=count, own_share=share))
    assert division.bounds[-1] == len(order)
    assert len(division.slots) == len(division.bounds) == count
    assert division.slots[0] == [], "the first round has the corpus alone"
    for number in range(1, count):
        begin, end = division.bounds[number - 1 : number + 1]
        there = sum(map(len, order[begin:end]))
        assert len(division.slots[number]) == int(share * there + 1e-9)
        assert len(set(division.slots[number])) == len(division.slots[number])
        assert all(begin <= step < end and place < len(order[step]) for step, place in division.slots[number])


# --- the path ---


def test_the_student_learns_from_its_own_text_and_everything_is_counted(whole: Run, settings_of: Any) -> None:
    notes = whole.stage("distill").record["notes"]
    assert notes["passes"] in ("by hand", "packed")  # by the number of threads
    found = notes["rounds"]
    assert [entry["round"] for entry in found["rounds"]] == [2, 3]
    assert [entry["after_step"] for entry in found["rounds"]] == Division.of(
        [[0]] * notes["steps"], 1, RoundsConfig(count=3)
    ).bounds[:-1]
    for entry in found["rounds"]:
        assert entry["texts"] == entry["kept"] + sum(entry["left_out"].values())
        assert 0 < entry["learned_texts"] <= entry["kept"]
        assert entry["written_tokens"] <= entry["texts"] * ROUNDS["new_tokens"]
        assert entry["scored_tokens"] > 0
    assert found["written_tokens"] == sum(entry["written_tokens"] for entry in found["rounds"])
    assert found["learned"]["own"] > 0
    assert found["learned_own_share"] == round(found["learned"]["own"] / sum(found["learned"].values()), 4)
    events = [event for event in whole.events("distill") if event.get("event") == "round"]
    assert [event["round"] for event in events] == [2, 3]
    history = json.loads((whole.path / "distill" / "history.json").read_text())["validations"]
    assert min(entry["kl"] for entry in history) < history[0]["kl"]
    # Nothing of what it wrote stays behind.
    assert not list(whole.path.rglob("own-*"))


def test_a_run_is_repeated_to_the_bit(whole: Run, settings_of: Any, started: Path, tmp_path: Path) -> None:
    again = trained(settings_of(), started, tmp_path)
    assert weights(again) == weights(whole)
    assert again.stage("distill").output_digest == whole.stage("distill").output_digest


POINTS = {
    "while the student writes": (OwnWriter, "write", 2),
    "between writing and scoring": (Rounds, "_write", 1),
    "while the teacher is captured": (CacheWriter, "flush", 3),
    "in the middle of the last round": (rounds_module.Training, "_save", 16),
}


@pytest.mark.parametrize("point", POINTS)
def test_killed_and_gone_on_with_it_ends_with_the_same_weights_and_does_nothing_twice(
    point: str,
    whole: Run,
    settings_of: Any,
    started: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patched:
        stopped_after(patched, *POINTS[point])
        with pytest.raises(Killed):
            trained(settings_of(), started, tmp_path)
    scratch = tmp_path / started.name / "distill" / "checkpoints"
    cache = scratch / OWN_CACHE
    held = set(TeacherCache.open(cache).digests) if (cache / "manifest.json").is_file() else set()
    groups = {path.name: len(path.read_text().splitlines()) for path in scratch.glob("own-*.jsonl")}
    written: Counter[str] = Counter()
    scored: list[str] = []
    write, add = OwnWriter.write, CacheWriter.add
    monkeypatch.setattr(OwnWriter, "write", lambda *args: (written.update(["groups"]), write(*args))[1])
    monkeypatch.setattr(
        CacheWriter, "add", lambda self, address, scores: (scored.append(address), add(self, address, scores))[1]
    )
    run = trained(settings_of(), started, tmp_path)
    assert weights(run) == weights(whole)
    assert not held.intersection(scored), "what the cache holds is not scored again"
    assert len(scored) == len(set(scored))
    if point == "while the student writes":
        assert groups == {"own-2.jsonl": 1}, "the group that was written before is kept"
        texts = [entry["texts"] for entry in whole.stage("distill").record["notes"]["rounds"]["rounds"]]
        assert written["groups"] == sum(-(-count // 16) for count in texts) - 1, "and not written again"
    found, expected = (made.stage("distill").record["notes"]["rounds"] for made in (run, whole))
    for entry, other in zip(found["rounds"], expected["rounds"], strict=True):
        assert {key: entry[key] for key in ("texts", "written_tokens", "kept", "left_out")} == {
            key: other[key] for key in ("texts", "written_tokens", "kept", "left_out")
        }


def test_signals_on_the_students_text_are_the_teachers_own(
    settings_of: Any, started: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_after(monkeypatch, Rounds, "_score", 1)
    settings = settings_of()
    with pytest.raises(Killed):
        trained(settings, started, tmp_path)
    scratch = tmp_path / started.name / "distill" / "checkpoints"
    own = PieceFile(scratch / "own-2.safetensors").read()
    cache = TeacherCache.open(scratch / OWN_CACHE)
    assert sorted(cache.digests) == sorted(set(own.addresses))
    teacher = load_teacher(HuggingFaceTeacher(name=settings["teacher"]["name"]), "cpu", torch.float32)
    corpus = open_split(tmp_path / started.name / "corpus" / "train.safetensors").take(10**6)
    starts = {
        tuple(row[segments == number][:8].tolist())
        for row, segments in zip(corpus.ids, corpus.segments, strict=True)
        for number in range(int(segments.max()) + 1)
    }
    for index in range(min(5, len(own))):
        begin, end = own.offsets[index : index + 2]
        ids, learned = own.ids[begin:end].astype(np.int64), own.learned[begin:end]
        given = int(np.flatnonzero(learned)[0])
        assert learned.tolist() == [False] * given + [True] * (len(ids) - given), "the beginning is not learned"
        assert tuple(ids[:given].tolist()) in {start[:given] for start in starts}, (
            "it begins as a training document does"
        )
        signal, _ = cache.read([own.addresses[index]])
        assert isinstance(signal, DenseSignal)
        with torch.no_grad():
            logits = teacher.model(torch.from_numpy(ids)[None]).logits[0, given - 1 : -1]
        torch.testing.assert_close(signal.logprobs, logits.log_softmax(1), atol=1e-4, rtol=1e-4)


# --- the writer ---


@pytest.fixture(scope="module")
def writer(started: Path, settings_of: Any) -> OwnWriter:
    model, tokenizer = load_student(started / "shrink" / "model", torch.float32)
    vocabulary = VocabularyMap.load(started / "shrink" / "vocabulary.safetensors")
    teacher = load_tokenizer(HuggingFaceTeacher(name=settings_of()["teacher"]["name"]))
    return OwnWriter(model.eval(), tokenizer, vocabulary, teacher, RoundsConfig(**ROUNDS), 64)


def test_a_text_is_the_same_for_teacher_and_student(writer: OwnWriter) -> None:
    prompt = writer.prompt(np.asarray(writer.teacher("The module defines", add_special_tokens=False)["input_ids"]))
    assert prompt is not None
    tail = writer.tokenizer(" a function.", add_special_tokens=False)["input_ids"]
    end = sorted(writer.ends)[0]
    piece, same = writer.piece(prompt, [*tail, end])
    assert not isinstance(piece, str)
    assert same
    assert writer.teacher.decode(piece.ids[:-1]) == "The module defines a function."
    assert int(piece.ids[-1]) in control_ids(writer.teacher), "that it ended is learned, too"
    assert piece.learned.sum() == len(piece.ids) - len(prompt.ids)
    # Written in other sub-tokens than a tokenizer would take, it is the same text, in the tokenizer's.
    odd = [writer.tokenizer(part, add_special_tokens=False)["input_ids"] for part in " a function."]
    again, same = writer.piece(prompt, [*(token for part in odd for token in part), end])
    assert not same
    assert not isinstance(again, str)
    assert np.array_equal(again.ids, piece.ids)


def test_what_is_no_text_is_left_out_by_name(writer: OwnWriter) -> None:
    prompt = writer.prompt(np.asarray(writer.teacher("The module", add_special_tokens=False)["input_ids"]))
    assert prompt is not None
    assert writer.piece(prompt, []) == (REASONS[0], False)
    half = writer.tokenizer("é", add_special_tokens=False)["input_ids"]
    assert len(half) == 2, "two bytes"
    assert writer.piece(prompt, half[:1]) == (REASONS[1], False)
    tail = writer.tokenizer(" is", add_special_tokens=False)["input_ids"]
    cut, _ = writer.piece(prompt, [*tail, half[0]])
    assert not isinstance(cut, str)
    assert writer.teacher.decode(cut.ids) == "The module is"
    spelt = writer.tokenizer.convert_tokens_to_ids(list("<|im_end|>"))
    if all(token is not None and token not in writer.suppressed for token in spelt):
        assert writer.piece(prompt, spelt) == (REASONS[2], False)


def test_special_tokens_are_never_written_and_a_seed_decides(writer: OwnWriter) -> None:
    prompts = [Prompt(np.arange(3) + 50, writer.vocabulary.expand(torch.arange(3) + 50)[0].tolist())] * 8
    rows = writer.write(prompts, 7)
    assert rows == writer.write(prompts, 7)
    assert rows != writer.write(prompts, 8)
    assert len({tuple(row) for row in rows}) > 1
    for row in rows:
        assert not set(row).intersection(writer.suppressed)
        assert not any(token in writer.ends for token in row[:-1])
        assert 1 <= len(row) <= ROUNDS["new_tokens"]


def test_a_chat_is_continued_where_an_answer_begins(started: Path) -> None:
    corpus = open_split(started / "corpus" / "train.safetensors").take(4)
    mask = corpus.loss_mask.clone()
    mask[:, :20] = False
    mask[:, 30:40] = False
    chats = type(corpus)(
        corpus.ids,
        torch.zeros_like(corpus.segments),
        mask,
        corpus.documents,
        corpus.token_bytes,
        corpus.document_sources,
    )
    config = RoundsConfig(prompt_tokens=4, new_tokens=12)
    taken = list(beginnings(chats, config, np.random.default_rng(0), Counter()))
    assert {len(ids) for ids in taken} <= {20, 40}
    passed: Counter[str] = Counter()
    assert not list(beginnings(chats, RoundsConfig(new_tokens=60), np.random.default_rng(0), passed))
    assert sum(passed.values()) == 4
    require_beginnings(chats, config)
    with pytest.raises(CorpusError, match=r"no training document .* leaves no space to write: 4"):
        require_beginnings(chats, RoundsConfig(new_tokens=60))


def test_rows_of_several_splits_are_counted_through(started: Path) -> None:
    corpus = open_split(started / "corpus" / "train.safetensors")
    held = open_split(started / "corpus" / "heldout.safetensors")
    assert isinstance(corpus, MappedSequences)
    both = JoinedSequences([corpus, held])
    assert len(both) == len(corpus) + len(held)
    assert both.row_tokens == corpus.row_tokens + held.row_tokens
    assert both.addresses_of(len(corpus)) == held.addresses_of(0)
    assert both.addresses == corpus.addresses + held.addresses
    assert torch.equal(both.part([len(corpus) + 1]).ids, held.part([1]).ids)
    assert torch.equal(both.part(slice(1, 3)).ids, corpus.part([1, 2]).ids)
    with pytest.raises(ValueError, match="one split"):
        both.part([0, len(corpus)])
    with pytest.raises(IndexError):
        both.part([len(both)])


# --- what is refused, and what a plan says ---


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "LoRA": ({"distill": {"lora": {}}}, r"distill.lora"),
    "another tokenizer": (
        {"student": {"kind": "existing", "name": "/nowhere", "tokenizer": "own"}},
        r"student.tokenizer: own",
    ),
    "long texts": (
        {"distill": {"rounds": ROUNDS | {"new_tokens": 60}}},
        r"corpus.sequence_length(.|\n)*prompt_tokens: 8` and `new_tokens: 56`",
    ),
    "long prompts": (
        {"distill": {"rounds": ROUNDS | {"prompt_tokens": 4000}}},
        r"corpus.sequence_length(.|\n)*prompt_tokens: 32` and `new_tokens: 12`",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_combined_is_refused_by_name(case: str, settings_of: Any, tmp_path: Path) -> None:
    changed, words = REFUSED[case]
    recipe = Recipe.model_validate(settings_of(**{key: dict(value) for key, value in changed.items()}))
    with pytest.raises(RecipeError, match=words):
        require_rounds(recipe)
    with pytest.raises(RecipeError, match=words):
        pipeline.run(recipe, tmp_path, quiet=True)
    assert not any(tmp_path.iterdir()), "nothing was spent"


def test_several_teachers_and_endpoints_are_refused(settings_of: Any, tmp_path: Path) -> None:
    settings = settings_of()
    settings["teachers"] = {"other": settings["teacher"]}
    settings["corpus"] = settings["corpus"] | {
        "sources": [*settings["corpus"]["sources"], settings["corpus"]["sources"][0] | {"teacher": "other"}]
    }
    with pytest.raises(RecipeError, match="2 teachers"):
        require_rounds(Recipe.model_validate(settings))
    served = settings_of(
        teacher={
            "kind": "endpoint",
            "server": "llamacpp",
            "base_url": "http://127.0.0.1:1",
            "model": "m",
            "tokenizer": "t",
            "sends_text": True,
        },
    )
    with pytest.raises(RecipeError, match="behind an endpoint"):
        require_rounds(Recipe.model_validate(served))


def test_more_rounds_than_steps_and_several_processes_are_refused(settings_of: Any, tmp_path: Path) -> None:
    many = Recipe.model_validate(settings_of(distill={"rounds": ROUNDS | {"count": 64}}))
    with pytest.raises(RecipeError, match=r"distill.rounds.count"):
        make_plan(many, tmp_path)
    recipe = Recipe.model_validate(settings_of())
    with pytest.raises(UsageError, match=r"distill.rounds"):
        pipeline.run(recipe, tmp_path, quiet=True, cluster=Cluster(workers=2))
    # Reverse KL wants exact signals, with rounds as without.
    sampled = Recipe.model_validate(settings_of(capture={}, distill={"objective": "reverse_kl"}))
    with pytest.raises(RecipeError, match="reverse_kl"):
        require_fit(sampled.distill, sampled.capture, sampled.student)


def test_a_plan_counts_what_is_written_and_read(settings_of: Any, tmp_path: Path, capsys: Any) -> None:
    found = make_plan(Recipe.model_validate(settings_of()), tmp_path)
    own = found["rounds"]
    assert own["count"] == 3
    assert 0 < own["written_tokens"] < own["scored_tokens"]
    assert own["scored_tokens"] == pytest.approx(own["learned_rows"] * 64, rel=0.1)
    assert found["stages"]["distill"]["seconds"] > own["seconds"] > 0
    from stillroom.planning.plan import show_plan

    show_plan(found)
    assert f"the student writes about {own['written_tokens']:,} tokens" in capsys.readouterr().err


def test_the_baseline_is_the_same_with_and_without_rounds(settings_of: Any, tmp_path: Path) -> None:
    digests = {}
    for name, rounds in (("with", ROUNDS), ("without", None)):
        made = Run.create(
            Recipe.model_validate(settings_of(name=name, baseline=True, distill={"rounds": rounds})), tmp_path
        )
        specs = {spec.name: spec for spec in stages_of(made.recipe)}
        digests[name] = {stage: recipe_digest(made, specs[stage]) for stage in ("distill", "baseline")}
    assert digests["with"]["baseline"] == digests["without"]["baseline"]
    assert digests["with"]["distill"] != digests["without"]["distill"]
