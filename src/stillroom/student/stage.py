"""The stage `shrink`: a student, cut from the teacher, existing or fresh. Knows nothing of training."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from stillroom import files
from stillroom.compute import prepare
from stillroom.corpus.sequences import Sequences
from stillroom.errors import UnsupportedModel, VocabularyMismatch
from stillroom.progress import Progress
from stillroom.run import Run, Stage
from stillroom.student.adapters import adapter_of
from stillroom.student.config import ExistingStudent, FreshStudent, ShrinkStudent, VocabularyConfig
from stillroom.student.depth import cut_depth
from stillroom.student.embeddings import keep_rows, renumber_config
from stillroom.student.importance import Sample
from stillroom.student.trim import trim, whole
from stillroom.student.vocabulary import VocabularyMap
from stillroom.teacher.load import LoadedTeacher, count_parameters, load_student, load_teacher, model_folder, save_model


def run_stage(run: Run, stage: Stage, progress: Progress) -> None:
    """Make the student and write ``model/``, ``vocabulary.safetensors`` and ``shrink.json``."""
    recipe = run.recipe
    device = prepare(recipe.compute, recipe.seed)
    train = Sequences.load(run.stage("corpus").path / "train.safetensors")
    progress.say("  loading the teacher")
    teacher = load_teacher(recipe.teacher, device, torch.float32)
    student = recipe.student
    if isinstance(student, ShrinkStudent):
        model, tokenizer, vocabulary, facts = _shrink(student, teacher, train, progress)
    elif isinstance(student, FreshStudent):
        model, tokenizer, vocabulary, facts = _fresh(student, teacher, train)
    else:
        model, tokenizer, vocabulary, facts = _existing(student, teacher)
    facts |= {
        "kind": student.kind,
        "teacher_parameters": teacher.parameters,
        "parameters": count_parameters(model),
        "vocabulary": {
            "teacher": vocabulary.teacher_size,
            "kept": vocabulary.student_used,
            "rows": vocabulary.student_size,
            "pieces_a_training_token": round(_pieces(vocabulary, train), 5),
        },
    }
    save_model(model, tokenizer, stage.path / "model")
    vocabulary.save(stage.path / "vocabulary.safetensors")
    files.write_json(stage.path / "shrink.json", facts)
    stage.notes.update(parameters=facts["parameters"], vocabulary=facts["vocabulary"])
    share = facts["parameters"] / teacher.parameters
    progress.say(f"  student: {facts['parameters']:,} parameters, {share:.0%} of the teacher's {teacher.parameters:,}")


def _shrink(
    config: ShrinkStudent, teacher: LoadedTeacher, train: Sequences, progress: Progress
) -> tuple[Any, Any, VocabularyMap, dict[str, Any]]:
    adapter = adapter_of(teacher.model)
    count = len(adapter.layers(teacher.model))
    sample = Sample.of(train, config.importance.tokens)
    progress.say(f"  measuring {count} layers on {sample.fit.tokens + sample.judge.tokens:,} tokens")
    cut = cut_depth(teacher.model, adapter, config.layers or count, sample, config.heal)
    model = cut.model
    tokenizer, vocabulary, kept = _vocabulary(config.vocabulary, teacher, train)
    if kept is not None:
        keep_rows(model, kept, vocabulary.student_size)
        renumber_config(model, kept)
    removed = [index for index in range(count) if index not in cut.chosen.kept]
    progress.say(
        f"  removed layers {', '.join(map(str, removed)) or 'none'} ({cut.chosen.name}); "
        f"KL to the teacher {cut.chosen.kl:.2f}"
        + (f", repaired in closed form {cut.chosen.healed_kl:.2f}" if cut.healed else "")
    )
    facts = {
        "layers": {
            "teacher": count,
            "kept": cut.chosen.kept,
            "removed": removed,
            "chosen_by": cut.chosen.name,
            "healed": cut.healed,
            "block_influence": cut.influence,
            "candidates": [vars(candidate) for candidate in cut.candidates],
        }
    }
    return model, tokenizer, vocabulary, facts


def _fresh(
    config: FreshStudent, teacher: LoadedTeacher, train: Sequences
) -> tuple[Any, Any, VocabularyMap, dict[str, Any]]:
    import copy

    from transformers import AutoModelForCausalLM

    changed = copy.deepcopy(teacher.model.config)
    unknown = [key for key in config.config if not hasattr(changed, key)]
    if unknown:
        raise UnsupportedModel(
            f"`student.config.{unknown[0]}` is not a key of the family `{teacher.family}`.",
            "Use keys of its Hugging Face config, such as num_hidden_layers, hidden_size, intermediate_size.",
        )
    if "num_hidden_layers" in config.config:
        for key in ("layer_types", "no_rope_layers"):
            value = getattr(changed, key, None)
            if isinstance(value, list) and key not in config.config:
                repeated = value * (1 + config.config["num_hidden_layers"] // max(1, len(value)))
                setattr(changed, key, repeated[: config.config["num_hidden_layers"]])
    tokenizer, vocabulary, kept = _vocabulary(config.vocabulary, teacher, train)
    try:
        for key, value in config.config.items():
            setattr(changed, key, value)
        changed.vocab_size = vocabulary.student_size
        model = AutoModelForCausalLM.from_config(changed, dtype=torch.float32)
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise UnsupportedModel(
            f"The family `{teacher.family}` cannot be built from `student.config`: {str(error).splitlines()[0]}",
            "Mind that heads divide the width, and key/value heads divide the heads.",
        ) from None
    if kept is not None:
        renumber_config(model, kept)
    return model, tokenizer, vocabulary, {"config": config.config}


def _existing(config: ExistingStudent, teacher: LoadedTeacher) -> tuple[Any, Any, VocabularyMap, dict[str, Any]]:
    model, tokenizer = load_student(model_folder(config.name, config.revision), torch.float32)
    mine, theirs = tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    if mine != theirs:
        different = next((token for token in theirs if mine.get(token) != theirs[token]), None)
        example = (
            f"the token {different!r} is {theirs[different]} there and {mine.get(different, 'missing')} here"
            if different is not None
            else f"it has {len(mine) - len(theirs)} tokens that the teacher lacks"
        )
        raise VocabularyMismatch(
            f"The student {config.name} and the teacher have different vocabularies: {example}.",
            "Use a student with the teacher's tokenizer, or `student: {kind: shrink}`.",
        )
    teacher_rows = teacher.model.get_output_embeddings().weight.shape[0]
    rows = model.get_output_embeddings().weight.shape[0]
    # Rows behind the tokenizer's ids are padding, and models of one family are padded differently.
    used = max(theirs.values()) + 1
    pieces = [[index] if index < used else [] for index in range(teacher_rows)]
    return model, tokenizer, VocabularyMap.from_pieces(pieces, rows, used), {"name": config.name}


def _vocabulary(
    config: VocabularyConfig, teacher: LoadedTeacher, train: Sequences
) -> tuple[Any, VocabularyMap, list[int] | None]:
    rows = teacher.model.get_output_embeddings().weight.shape[0]
    if config.keep == "all":
        return teacher.tokenizer, whole(teacher.tokenizer, rows), None
    counts = Counter(train.ids[train.segments >= 0].tolist())
    trimmed = trim(teacher.tokenizer, counts, config.size, rows, config.multiple_of)
    return trimmed.tokenizer, trimmed.vocabulary, trimmed.kept


def _pieces(vocabulary: VocabularyMap, train: Sequences) -> float:
    """Student tokens a teacher token of the training text."""
    lengths = vocabulary.lengths[train.ids[train.segments >= 0]]
    return float(lengths.double().mean())
