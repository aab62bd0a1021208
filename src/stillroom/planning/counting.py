"""The text and the student of a recipe, counted before anything is made: no weights are read."""

from __future__ import annotations

import copy
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.core.errors import RecipeError
from stillroom.core.files import read_json
from stillroom.core.progress import Progress
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.student import DenseStudent, ExistingStudent, FreshStudent, ShrinkStudent, VocabularyConfig
from stillroom.recipe.teacher import EndpointTeacher
from stillroom.runs.run import Run

if TYPE_CHECKING:
    from stillroom.corpus.sequences import Sequences
    from stillroom.models.types import CausalModel, ModelConfig, Tokenizer
    from stillroom.signals.vocabulary_map import VocabularyMap
    from stillroom.students.shape import Anatomy, Shape


POSITION_TABLES = ("wpe", "embed_positions", "position_embeddings", "position_embedding")
"""What transformers calls a table with an entry for each position."""


@dataclass(frozen=True)
class Text:
    """The corpus, counted.

    Attributes:
        train: The training split.
        tokens: Tokens of text of each split.
        row_tokens: Tokens of the rows that they are packed into, with what pieces repeat and with padding.
        tokenizer: The teacher's tokenizer.
        seconds: Seconds that reading the text took.
        without_context: Targets of each split with neither their document's beginning nor enough text before them in sight.
        chats: Whether it has chats.
        told: What was dropped, passed over and left out of its sources, a sentence each.
    """

    train: Sequences
    tokens: dict[str, int]
    row_tokens: dict[str, int]
    tokenizer: Tokenizer
    seconds: float
    without_context: dict[str, int]
    chats: bool
    told: tuple[str, ...]


@dataclass(frozen=True)
class Planned:
    """The student, without weights.

    Attributes:
        teacher_parameters: Parameters of the teacher.
        teacher_shape: The teacher's shape.
        shape: The student's shape; None for one that is not pruned from the teacher.
        parameters: Parameters of the student.
        untrimmed_parameters: Parameters of the student if it had the teacher's vocabulary.
        exact: Whether they are exact; with a target, or where the teacher's layers differ and some go, they are the most.
        config: A Hugging Face config of the student.
        vocabulary: From the teacher's ids to the student's.
        expansion: Student tokens per teacher token of the training text.
        files: Bytes of each GGUF file, by its type.
        note: What should be known of the student before anything is spent; empty where there is nothing.
    """

    teacher_parameters: int
    teacher_shape: Shape
    shape: Shape | None
    parameters: int
    untrimmed_parameters: int
    exact: bool
    config: ModelConfig
    vocabulary: VocabularyMap
    expansion: float
    files: dict[str, int]
    note: str = ""
    alignment: dict[str, Any] | None = None
    """Of a student with another tokenizer: what it learns from what (:func:`stillroom.signals.alignment.describe`)."""
    adapters: dict[str, Any] | None = None
    """With ``distill.lora``: its layers and parameters (``targets``, ``modules``, ``trained_parameters``)."""


def count_text(recipe: Recipe, runs: Path, progress: Progress) -> Text:
    """The corpus of the run, if it is done; otherwise the text is read now."""
    from stillroom.corpus.build import build_corpus, has_chats
    from stillroom.corpus.context import context_of
    from stillroom.corpus.sequences import Sequences
    from stillroom.corpus.split import SPLITS
    from stillroom.corpus.told import dropped, told
    from stillroom.models.load import load_tokenizer
    from stillroom.runs.stages import STAGES, inputs_of

    tokenizer = load_tokenizer(recipe.teacher)
    run = Run(runs / recipe.name, recipe)
    stage = run.stage("corpus")
    record = stage.record
    if record is not None and stage.holds(inputs_of(run, next(spec for spec in STAGES if spec.name == "corpus"))):
        splits = {name: Sequences.load(stage.path / f"{name}.safetensors") for name in SPLITS}
        context = {name: split.missing for name, split in context_of(stage.path).items()}
        seconds, chats = record["seconds"], has_chats(stage.path)
        ledger = read_json(stage.path / "ledger.json")
    else:
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            corpus = build_corpus(recipe.corpus, tokenizer, recipe.public_seed, progress, scratch=Path(folder))
        splits = corpus.splits
        context = {name: pieces.targets_without_context for name, pieces in corpus.pieces.items()}
        ledger = corpus.ledger
        seconds, chats = time.perf_counter() - begun, bool(ledger["chats"])
    tokens = {name: split.tokens for name, split in splits.items()}
    rows = {name: len(split) * split.length for name, split in splits.items()}
    fewer = (dropped(ledger),) if ledger["duplicates"] or ledger["empty"] else ()
    notes = (*fewer, *told(ledger, recipe.corpus))
    return Text(splits["train"], tokens, rows, tokenizer, seconds, context, chats, notes)


def check_student(recipe: Recipe) -> None:
    """Refuse a student that no text could make possible, before the text is read: sizes that the teacher does not have.

    Raises:
        VocabularyMismatch: It exists, and has another vocabulary than the teacher.
        RecipeError: A size is larger than the teacher's, or one that transformers or llama.cpp would not load; or the device
            that a file is chosen for is not known.
        UnsupportedModel: The teacher's architecture cannot be pruned, or none can be built from a fresh student's config.
        TeacherError: There is no such teacher.
    """
    import torch

    from stillroom.formats.choose import device_of
    from stillroom.models.families.registry import family_of
    from stillroom.models.load import load_tokenizer, model_folder, teacher_config, without_weights
    from stillroom.models.tokenizer import open_tokenizer
    from stillroom.students.given import fresh_model, require_forward, require_vocabulary
    from stillroom.students.planning import given_sizes, kept_layers
    from stillroom.students.shape import Anatomy

    if recipe.export.choose is not None:
        device_of(recipe.export.choose)
    student = recipe.student
    teacher = None
    if isinstance(student, ShrinkStudent) or not isinstance(recipe.teacher, EndpointTeacher):
        teacher = without_weights(recipe.teacher)
        _require_positions(teacher, recipe.corpus.sequence_length)
    if isinstance(student, FreshStudent):
        config = teacher_config(recipe.teacher)
        with torch.device("meta"):
            fresh = fresh_model(student, config, int(config.vocab_size))
        if teacher is not None:
            require_forward(student, fresh, teacher)
        _require_length(student, recipe.corpus.sequence_length)
    if isinstance(student, ExistingStudent):
        own = open_tokenizer(model_folder(student.name, student.revision))
        require_vocabulary(student, load_tokenizer(recipe.teacher), own)
    if not isinstance(student, ShrinkStudent) or teacher is None:
        return
    anatomy = Anatomy.of(teacher, family_of(teacher), exported=recipe.export.writes_gguf)
    anatomy.require_no_more(given_sizes(student))
    kept_layers(student, anatomy.teacher.layers)
    if student.target is None:
        anatomy.require_possible(replace(anatomy.teacher, **given_sizes(student)))
    else:
        anatomy.require_counted()


def _require_positions(teacher: CausalModel, length: int) -> None:
    """Refuse sequences that a model with a table of positions has no entry for."""
    from torch import nn

    most = getattr(teacher.config.get_text_config(), "max_position_embeddings", None)
    tables = any(
        isinstance(module, nn.Embedding) and name.rpartition(".")[2] in POSITION_TABLES
        for name, module in teacher.named_modules()
    )
    if tables and isinstance(most, int) and length > most:
        raise RecipeError(
            f"`corpus.sequence_length` is {length:,}, and the teacher knows {most:,} positions.",
            f"Write `corpus.sequence_length: {most}` or less.",
        )


def _require_length(student: FreshStudent, length: int) -> None:
    """Refuse a fresh student that the recipe gives fewer positions than a sequence has tokens."""
    from stillroom.students.given import LENGTHS

    for key in LENGTHS:
        most = student.config.get(key, length)
        if most < length:
            raise RecipeError(
                f"`corpus.sequence_length` is {length:,}, and `student.config.{key}` is {most:,}: the student would be trained "
                "on positions that it does not have.",
                f"Write `corpus.sequence_length: {most}` or less, or give the student at least {length:,} positions.",
            )


def count_student(recipe: Recipe, text: Text) -> Planned:
    """The student's shape, parameters and files, from configs alone."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from stillroom.models.families.registry import family_of
    from stillroom.models.load import count_parameters, model_folder, teacher_config
    from stillroom.models.tokenizer import open_tokenizer, quietly
    from stillroom.signals.alignment import Alignment, describe, words_of
    from stillroom.students.given import fresh_model
    from stillroom.students.shape import Anatomy, Shape, shaped_config, tokenizer_bytes
    from stillroom.students.stage import choose_vocabulary, pieces_a_token

    config = teacher_config(recipe.teacher)
    with torch.device("meta"):
        teacher: CausalModel = AutoModelForCausalLM.from_config(config)
    teacher.tie_weights()
    rows = teacher.get_output_embeddings().weight.shape[0]
    student = recipe.student
    shape = None
    exact = True
    note = ""
    asked = VocabularyConfig(keep="all") if isinstance(student, ExistingStudent) else student.vocabulary
    tokenizer, vocabulary, _ = choose_vocabulary(asked, text.tokenizer, rows, text.train)
    channels, groups = (getattr(config, key, None) or 0 for key in ("intermediate_size", "num_key_value_heads"))
    whole = Shape(config.num_hidden_layers, channels, groups, config.hidden_size, rows)
    if isinstance(student, ShrinkStudent):
        family = family_of(teacher)
        anatomy = Anatomy.of(teacher, family, tokenizer_bytes(tokenizer), recipe.export.writes_gguf)
        whole = anatomy.teacher
        shape, exact, note = _shape(student, anatomy, vocabulary.student_size)
        note = " ".join(filter(None, (note, _notes(student, anatomy, shape, text.tokens["train"]))))
        parameters = anatomy.parameters(shape)
        untrimmed = anatomy.parameters(replace(shape, vocabulary=rows))
        changed = shaped_config(config, family, shape)
    else:
        if isinstance(student, DenseStudent):
            changed, note = _dense(student, config, vocabulary.student_size, text.tokens["train"])
        elif isinstance(student, FreshStudent):
            with torch.device("meta"):
                changed = fresh_model(student, config, vocabulary.student_size).config
        else:
            assert isinstance(student, ExistingStudent)
            with quietly():
                changed = AutoConfig.from_pretrained(model_folder(student.name, student.revision))
        with torch.device("meta"):
            fresh: CausalModel = AutoModelForCausalLM.from_config(changed)
        fresh.tie_weights()
        parameters = untrimmed = count_parameters(fresh)
        if isinstance(student, DenseStudent):
            tables = 1 if fresh.config.tie_word_embeddings else 2
            untrimmed += tables * (rows - vocabulary.student_size) * int(config.hidden_size)
    aligned = None
    expansion = None
    own = recipe.student_with_own_tokenizer
    if own is not None:
        tokenizer = open_tokenizer(model_folder(own.name, own.revision))
        vocabulary = Alignment.of(text.tokenizer, tokenizer, rows, int(changed.vocab_size))
        aligned = describe(vocabulary, text.train)
        note, expansion = words_of(aligned), aligned["student_tokens_per_teacher_token"]
    files = _file_bytes(recipe, changed, tokenizer, vocabulary.student_used)
    return Planned(
        count_parameters(teacher),
        whole,
        shape,
        parameters,
        untrimmed,
        exact,
        changed,
        vocabulary,
        pieces_a_token(vocabulary, text.train) if expansion is None else expansion,
        files,
        note,
        aligned,
        _adapters(recipe, changed),
    )


def _adapters(recipe: Recipe, config: ModelConfig) -> dict[str, Any] | None:
    """What is trained of a student with adapters, by its config.

    Raises:
        RecipeError: A target of the recipe is not in the student.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from stillroom.training.adapters import adapter_parameters, targets_of

    lora = recipe.distill.lora
    if lora is None:
        return None
    with torch.device("meta"):
        student: CausalModel = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    student.tie_weights()
    targets = targets_of(student, lora)
    return {
        "rank": lora.rank,
        "targets": sorted({name.rpartition(".")[2] for name in targets}),
        "modules": len(targets),
        "trained_parameters": adapter_parameters(student, lora),
    }


def _notes(student: ShrinkStudent, anatomy: Anatomy, shape: Shape, tokens: int) -> str:
    """What is known before anything is measured: of experts that go, and of a repair that does not apply."""
    from stillroom.students.experts import expert_note, repair_note

    assert anatomy.family is not None
    family, whole = anatomy.family, anatomy.teacher
    found = []
    if shape.experts < whole.experts:
        chosen = int(getattr(anatomy.config, family.chosen_key, None) or 1)
        found.append(expert_note(student, tokens, whole.experts, chosen, shape.experts))
    narrower = any(getattr(shape, axis) < getattr(whole, axis) for axis in ("channels", "groups", "hidden"))
    if shape.layers < whole.layers or shape.experts < whole.experts or narrower:
        found.append(repair_note(family, student, shape.layers < whole.layers))
    return " ".join(filter(None, found))


def _dense(student: DenseStudent, config: ModelConfig, vocabulary: int, tokens: int) -> tuple[ModelConfig, str]:
    """The config of a dense student of a mixture, and what is known of it before anything is measured.

    Raises:
        RecipeError: The intermediate size is impossible.
        UnsupportedModel: The teacher is no mixture with a dense family.
    """
    from stillroom.models.families.siblings import dense_config
    from stillroom.students.dense import Parts
    from stillroom.students.experts import expert_note

    parts = Parts.of(config)
    count, size = parts.kept(student.intermediate_size)
    changed = dense_config(config, size)
    changed.vocab_size = vocabulary
    joined = f"A `{changed.model_type}` with an intermediate size of {size:,}"
    if parts.shared:
        joined += f", {parts.shared:,} of it the shared experts'"
    return changed, f"{joined}. {expert_note(student, tokens, parts.experts, parts.chosen, count)}"


def _shape(student: ShrinkStudent, anatomy: Anatomy, vocabulary: int) -> tuple[Shape, bool, str]:
    """The shape as given; with a target the largest that fits, for which one it will be is measured later. And a note.

    Raises:
        RecipeError: The shape is impossible, nothing fits, or there is nothing to prune.
    """
    from stillroom.students.limits import limits_of
    from stillroom.students.planning import AXIS_NAMES, given_sizes
    from stillroom.students.solver import Choice, LossModel, grid, require_pruned, solve

    whole = anatomy.teacher
    fixed = given_sizes(student)
    if student.target is None:
        asked = replace(whole, vocabulary=vocabulary, **fixed)
        anatomy.require_possible(asked)
        return asked, anatomy.exact(asked), require_pruned(whole, Choice(asked, {}, 0.0))
    anatomy.require_no_more(fixed)
    anatomy.require_counted()
    axes = [AXIS_NAMES[axis] for axis in student.target.axes if AXIS_NAMES[axis] not in fixed]
    limits = limits_of(student.target)
    shapes = grid(whole, fixed, axes, vocabulary)
    # Says what binds where nothing fits, and where the whole teacher does.
    note = require_pruned(whole, solve(anatomy, limits, LossModel(whole, {}), shapes).chosen, limits)
    fitting = [
        shape for shape in shapes if anatomy.possible(shape) and not limits.broken(limits.measure(anatomy, shape))
    ]
    return max(fitting, key=anatomy.parameters), False, note


def _file_bytes(recipe: Recipe, config: ModelConfig, tokenizer: Tokenizer, rows: int) -> dict[str, int]:
    """Bytes of each file that is exported, exactly: its header is written, its tensors are counted."""
    from stillroom.core.gguf_types import GGUF_TYPES
    from stillroom.formats.gguf_file import planned_bytes
    from stillroom.models.load import stated_licence

    licence = stated_licence(recipe.teacher)
    weighed = recipe.export.importance_tokens > 0
    return {
        kind: planned_bytes(
            config,
            tokenizer,
            kind,
            name=recipe.name,
            licence=licence,
            rows=rows,
            importance=weighed and GGUF_TYPES[kind].importance,
        )
        for kind in recipe.export.gguf
    }
