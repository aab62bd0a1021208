"""The stage `shrink`: a student, pruned from the teacher, existing or fresh."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from stillroom.core import files
from stillroom.core.errors import RecipeError
from stillroom.core.progress import Progress
from stillroom.core.secret import Secret, library_seed
from stillroom.corpus.build import has_chats
from stillroom.corpus.sequences import Sequences
from stillroom.models.at_hand import Keep
from stillroom.models.compute import prepare
from stillroom.models.families.family import Family
from stillroom.models.families.registry import family_of
from stillroom.models.load import (
    LoadedTeacher,
    config_parameters,
    count_parameters,
    load_student,
    load_tokenizer,
    model_folder,
    save_model,
    teacher_config,
)
from stillroom.recipe.student import DenseStudent, ExistingStudent, FreshStudent, ShrinkStudent, VocabularyConfig
from stillroom.recipe.teacher import EndpointTeacher
from stillroom.runs.run import Run, Stage
from stillroom.signals.alignment import Alignment, describe, words_of
from stillroom.signals.vocabulary_map import VocabularyMap
from stillroom.students.dense import densify
from stillroom.students.embeddings import keep_rows, lost_words, renumber_config, words_of_lost
from stillroom.students.experts import expected_loss, repair_note
from stillroom.students.given import fresh_model, require_vocabulary, student_tokenizer
from stillroom.students.importance import Sample, cut_short, few_tokens
from stillroom.students.languages import as_record, language_costs, language_counts, require_languages
from stillroom.students.measured import Measured
from stillroom.students.order import order_channels
from stillroom.students.planning import given_sizes, kept_layers, plan_shape
from stillroom.students.shape import Anatomy, Shape, tokenizer_bytes
from stillroom.students.shrink import shrink
from stillroom.students.solver import Choice, require_pruned
from stillroom.students.trim import trim, whole
from stillroom.students.widths import choose_widths
from stillroom.teachers.registry import open_teacher
from stillroom.teachers.teacher import weights_of
from stillroom.teachers.tokenizers import differences, renders_alike

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel, ModelConfig, Tokenizer


def run_stage(run: Run, stage: Stage, progress: Progress) -> None:
    """Make the student and write ``model/``, ``vocabulary.safetensors`` and ``shrink.json``.

    Where a repair was kept, ``cut/`` holds the student before it, so that both can be measured.
    """
    recipe = run.recipe
    # Only the initial weights of a fresh student are the run's own secret.
    randomness = run.randomness if isinstance(recipe.student, FreshStudent) else recipe.public_seed
    device = prepare(recipe.compute, library_seed(randomness, "initial weights"))
    train = Sequences.load(run.stage("corpus").path / "train.safetensors")
    student = recipe.student
    if isinstance(recipe.teacher, EndpointTeacher):
        tokenizer, config = load_tokenizer(recipe.teacher), teacher_config(recipe.teacher)
        basis = _Basis(
            tokenizer, config, max(len(tokenizer), int(config.vocab_size)), config_parameters(recipe.teacher)
        )
    else:
        progress.say("  loading the teacher")
        # On a GPU in 16 bits where that loses nothing, and only the layer at hand in float32.
        keep: Keep = "half" if device.type != "cpu" and isinstance(student, ShrinkStudent) else "device"
        teacher = weights_of(open_teacher(recipe.teacher, device, torch.float32, keep), "The stage `shrink`")
        rows = teacher.model.get_output_embeddings().weight.shape[0]
        basis = _Basis(teacher.tokenizer, teacher.model.config, rows, teacher.parameters)
    if isinstance(student, (ShrinkStudent, DenseStudent)) and isinstance(recipe.teacher, EndpointTeacher):
        raise RecipeError(
            f"`student: {{kind: {student.kind}}}` takes the teacher's weights, and a teacher behind an endpoint has none "
            "here.",
            "Use `student: {kind: existing}` or `{kind: fresh}`, or a teacher on this machine.",
        )
    if isinstance(student, DenseStudent):
        model, tokenizer, vocabulary, facts = _dense(student, teacher, train, stage, progress)
    elif isinstance(student, ShrinkStudent):
        exported = recipe.export.writes_gguf
        model, tokenizer, vocabulary, facts = _shrink(student, teacher, train, stage, progress, exported)
    elif isinstance(student, FreshStudent):
        model, tokenizer, vocabulary, facts = _fresh(student, basis, train, progress)
        if isinstance(randomness, Secret):
            order_channels(model, family_of(model), randomness)
    else:
        model, tokenizer, vocabulary, facts = _existing(student, basis)
        chats = has_chats(run.stage("corpus").path)
        unlike = differences(recipe, student_tokenizer(student), chats=chats)
        if chats and basis.tokenizer.chat_template is not None and not renders_alike(basis.tokenizer, tokenizer):
            # A prompt has the form that the student was taught.
            tokenizer.chat_template = basis.tokenizer.chat_template
        if unlike:
            facts["tokenizers_differ"] = unlike
        progress.say_each(unlike)
        if isinstance(vocabulary, Alignment):
            facts["alignment"] = _aligned(run, vocabulary, train)
            progress.say(f"  {words_of(facts['alignment'])}")
    facts |= {
        "kind": student.kind,
        "teacher_parameters": basis.parameters,
        "parameters": count_parameters(model),
        "vocabulary": {
            "teacher": vocabulary.teacher_size,
            "kept": vocabulary.student_used,
            "rows": vocabulary.student_size,
            "pieces_a_training_token": facts["alignment"]["student_tokens_per_teacher_token"]
            if "alignment" in facts
            else round(pieces_a_token(vocabulary, train), 5),
        },
    }
    save_model(model, tokenizer, stage.path / "model")
    vocabulary.save(stage.path / "vocabulary.safetensors")
    files.write_json(stage.path / "shrink.json", facts)
    stage.notes.update(parameters=facts["parameters"], vocabulary=facts["vocabulary"])
    share = facts["parameters"] / basis.parameters
    progress.say(f"  student: {facts['parameters']:,} parameters, {share:.0%} of the teacher's {basis.parameters:,}")


@dataclass(frozen=True)
class _Basis:
    """What a student that is not pruned takes from its teacher: tokenizer, family's config, rows of the output layer."""

    tokenizer: Tokenizer
    config: ModelConfig
    rows: int
    parameters: int


def _shrink(
    config: ShrinkStudent,
    teacher: LoadedTeacher,
    train: Sequences,
    stage: Stage,
    progress: Progress,
    exported: bool,
) -> tuple[CausalModel, Tokenizer, VocabularyMap, dict[str, Any]]:
    family = family_of(teacher.model)
    count = len(family.layers(teacher.model))
    tokenizer, vocabulary, kept = choose_vocabulary(
        config.vocabulary, teacher.tokenizer, teacher.model.get_output_embeddings().weight.shape[0], train
    )
    _say_lost(teacher.model, kept, progress)
    anatomy = Anatomy.of(teacher.model, family, tokenizer_bytes(tokenizer), exported)
    if config.target is None:
        asked = replace(anatomy.teacher, vocabulary=vocabulary.student_size, **given_sizes(config))
        anatomy.require_possible(asked)
        note = require_pruned(anatomy.teacher, Choice(asked, {}, 0.0))
        if note:
            progress.say(f"  {note}")
    given = kept_layers(config, count)
    sample = Sample.of(train, config.importance.tokens, config.importance.repair_tokens)
    progress.say_each(cut_short(config.importance, train.tokens))
    progress.say(f"  measuring {count} layers on {sample.fit.tokens + sample.judge.tokens:,} tokens")
    measured = Measured.of(
        teacher.model,
        family,
        sample,
        leave_one_out=config.importance.leave_one_out and config.layers != count and given is None,
        file=config.importance.path or stage.run.path / "importance.safetensors",
        digest=teacher.digest,
    )
    shape, planned = _shape(config, teacher, family, anatomy, vocabulary, measured, progress, given)
    progress.say(f"  pruning to {shape.words()}")
    if few := few_tokens(config, train.tokens, anatomy.teacher, shape):
        progress.say(f"  {few}")
    with progress.task("repairing", total=shape.layers, unit="layers") as task:
        cut = shrink(teacher.model, family, shape, measured, config.heal, given=given, moved=lambda: task.advance(1))
    model = cut.model
    for version in filter(None, (model, cut.unrepaired)):
        if kept is not None:
            keep_rows(version, kept, vocabulary.student_size)
            renumber_config(version, kept)
    if cut.unrepaired is not None:
        save_model(cut.unrepaired, tokenizer, stage.path / "cut")
    removed = [index for index in range(count) if index not in cut.kept]
    progress.say(
        f"  removed layers {', '.join(map(str, removed)) or 'none'} ({cut.chosen_by}); KL to the teacher {cut.kl:.2f}"
        + repaired_words(cut.healed_kl, cut.healed)
    )
    note = repair_note(family, config, bool(removed))
    if note:
        progress.say(f"  {note}")
    facts: dict[str, Any] = {
        "shape": vars(shape),
        "layers": {
            "teacher": count,
            "kept": cut.kept,
            "removed": removed,
            "chosen_by": cut.chosen_by,
            "healed": cut.healed,
            "kl": cut.kl,
            "healed_kl": cut.healed_kl,
            "repair_tokens": sample.repair.tokens if cut.healed_kl is not None else 0,
            "note": note,
            "block_influence": measured.influence,
            "leave_one_out_kl": measured.leave_one_out,
            "candidates": [vars(candidate) for candidate in cut.candidates],
        },
        "lost_energy": cut.lost,
        "planned": planned,
    }
    if measured.widths.experts.numel():
        facts["experts"] = _expert_facts(measured, teacher.model.config, cut.kept, anatomy, shape, progress)
    if config.vocabulary.languages:
        costs = language_costs(teacher.tokenizer, tokenizer, config.vocabulary.languages)
        facts["languages"] = as_record(costs)
        for cost in costs:
            progress.say(
                f"  {cost.name}: {cost.before:.3f} tokens per byte, now {cost.after:.3f} ({cost.ratio:.2f} times)"
            )
    return model, tokenizer, vocabulary, facts


def _say_lost(model: CausalModel, kept: list[int] | None, progress: Progress) -> None:
    """Say what the config will lose with the trimmed vocabulary, before anything is measured."""
    if lost := lost_words(model, kept):
        progress.say(f"  {lost}")


def repaired_words(kl: float | None, kept: bool) -> str:
    """What the least-squares repair did, after the KL before it; ``kl`` is after it, None where there was no repair."""
    if kl is None:
        return ""
    if kept:
        return f", repaired by least squares {kl:.2f}"
    return f"; a least-squares repair made it {kl:.2f} on text that it was not fitted on, and is not kept"


def _dense(
    config: DenseStudent, teacher: LoadedTeacher, train: Sequences, stage: Stage, progress: Progress
) -> tuple[CausalModel, Tokenizer, VocabularyMap, dict[str, Any]]:
    layers = int(teacher.model.config.num_hidden_layers)
    rows = teacher.model.get_output_embeddings().weight.shape[0]
    tokenizer, vocabulary, kept = choose_vocabulary(config.vocabulary, teacher.tokenizer, rows, train)
    _say_lost(teacher.model, kept, progress)
    progress.say_each(cut_short(config.importance, train.tokens))
    progress.say("  measuring experts, and joining those that add most")
    with progress.task("repairing", total=layers if config.heal else 0, unit="layers") as task:
        made = densify(teacher.model, config, train, lambda: task.advance(1))
    for version in filter(None, (made.model, made.unrepaired)):
        if kept is not None:
            keep_rows(version, kept, vocabulary.student_size)
            renumber_config(version, kept)
    if made.unrepaired is not None:
        save_model(made.unrepaired, tokenizer, stage.path / "cut")
    use = made.use
    count, routed = use.tokens.shape[1], use.routed
    never = _say_experts(use.tokens[routed], progress)
    stay = max(map(len, made.kept))
    progress.say(
        f"  {stay} of {count} experts of each layer joined; the others add {use.lost(stay):.0%}; "
        f"KL to the teacher {made.kl:.2f}" + repaired_words(made.healed_kl, made.unrepaired is not None)
    )
    return (
        made.model,
        tokenizer,
        vocabulary,
        {
            "intermediate_size": int(made.model.config.intermediate_size),
            "layers": {
                "kl": made.kl,
                "healed_kl": made.healed_kl,
                "healed": made.unrepaired is not None,
                "repair_tokens": made.repair_tokens,
            },
            "experts": {
                "teacher": count,
                "kept": {str(index): made.kept[index] for index in routed},
                "added": use.added.tolist(),
                "mean_gates": use.gates.tolist(),
                "tokens": use.tokens.tolist(),
                "never_chosen": never,
                "lost": use.lost(stay),
                "expected_loss": expected_loss(use.added, count),
            },
        },
    )


def _say_experts(tokens: torch.Tensor, progress: Progress) -> int:
    """Say how well the experts are known, from the tokens that chose each, [layers, E]; how many were never chosen."""
    if not tokens.numel():
        return 0
    never = int((tokens == 0).sum())
    progress.say(
        f"  calibration tokens per expert: {float(tokens.mean()):,.0f} on average, {float(tokens.min()):,.0f} at least"
    )
    if never:
        progress.say(
            f"  {never} of {tokens.numel()} experts were never chosen on the sample: "
            "nothing is known of them (a larger `student.importance.tokens` says more)"
        )
    return never


def _expert_facts(
    measured: Measured,
    teacher_config: ModelConfig,
    kept: list[int],
    anatomy: Anatomy,
    shape: Shape,
    progress: Progress,
) -> dict[str, Any]:
    """What was measured of the experts, and which stay: by layer of the teacher, as lists of numbers."""
    tokens = measured.widths.tokens
    routed = [index for index in range(len(tokens)) if float(tokens[index].sum()) > 0]
    never = _say_experts(tokens[routed], progress)
    expected = expected_loss(measured.widths.experts, anatomy.teacher.experts)
    parts = ", ".join(f"{share} of them kept {lost:.0%}" for share, lost in expected.items())
    progress.say(f"  weight of the gates that is lost with experts: {parts}")
    chosen = None
    if shape.experts < anatomy.teacher.experts:
        whole = choose_widths(measured.widths, teacher_config, kept, None, None, None, shape.experts, anatomy.family)
        assert whole.experts is not None
        chosen = {
            str(index): picked.tolist() for index, picked in zip(kept, whole.experts, strict=True) if index in routed
        }
    return {
        "teacher": anatomy.teacher.experts,
        "kept": chosen,
        "mass": measured.widths.experts.tolist(),
        "tokens": tokens.tolist(),
        "never_chosen": never,
        "expected_loss": expected,
    }


def _shape(
    config: ShrinkStudent,
    teacher: LoadedTeacher,
    family: Family,
    anatomy: Anatomy,
    vocabulary: VocabularyMap,
    measured: Measured,
    progress: Progress,
    given: list[int] | None,
) -> tuple[Shape, dict[str, Any] | None]:
    """The asked shape, or the one that the solver finds within the target."""
    fixed = given_sizes(config)
    if config.target is None:
        return replace(anatomy.teacher, vocabulary=vocabulary.student_size, **fixed), None
    plan = plan_shape(
        teacher.model,
        family,
        anatomy,
        config.target,
        fixed,
        vocabulary.student_size,
        measured,
        config.heal,
        progress,
        given,
    )
    return plan.shape, plan.record()


def _fresh(
    config: FreshStudent, teacher: _Basis, train: Sequences, progress: Progress
) -> tuple[CausalModel, Tokenizer, VocabularyMap, dict[str, Any]]:
    tokenizer, vocabulary, kept = choose_vocabulary(config.vocabulary, teacher.tokenizer, teacher.rows, train)
    model = fresh_model(config, teacher.config, vocabulary.student_size)
    if kept is not None and (lost := words_of_lost(renumber_config(model, kept))):
        progress.say(f"  {lost}")
    return model, tokenizer, vocabulary, {"config": config.config}


def _existing(config: ExistingStudent, teacher: _Basis) -> tuple[CausalModel, Tokenizer, VocabularyMap, dict[str, Any]]:
    model, tokenizer = load_student(model_folder(config.name, config.revision), torch.float32)
    if config.tokenizer == "own":
        rows = model.get_output_embeddings().weight.shape[0]
        alignment = Alignment.of(teacher.tokenizer, tokenizer, teacher.rows, rows)
        if tokenizer.chat_template is None:
            # Chats are rendered by the teacher's template, and the prompt has the form it was taught.
            tokenizer.chat_template = teacher.tokenizer.chat_template
        return model, tokenizer, alignment, {"name": config.name, "tokenizer": "own"}
    require_vocabulary(config, teacher.tokenizer, tokenizer)
    rows = model.get_output_embeddings().weight.shape[0]
    # Rows behind the tokenizer's ids are padding, and models of one family are padded differently.
    used = max(teacher.tokenizer.get_vocab().values()) + 1
    pieces = [[index] if index < used else [] for index in range(teacher.rows)]
    return model, tokenizer, VocabularyMap.from_pieces(pieces, rows, used), {"name": config.name}


def _aligned(run: Run, alignment: Alignment, train: Sequences) -> dict[str, Any]:
    """How the tokenizations of the training text are aligned; all text that later stages read is tokenized once.

    Raises:
        VocabularyMismatch: The student's tokenizer cannot take some of it.
    """
    corpus = run.stage("corpus").path
    for text in (train, *(Sequences.load(corpus / f"{name}.safetensors") for name in ("validation", "heldout"))):
        for index in range(len(text)):
            alignment.row(text, index)
    return describe(alignment, train)


def choose_vocabulary(
    config: VocabularyConfig, tokenizer: Tokenizer, rows: int, train: Sequences
) -> tuple[Tokenizer, VocabularyMap, list[int] | None]:
    """The student's tokenizer, the map to it, and the teacher's ids that it keeps; None where it keeps all.

    Args:
        config: The recipe's section.
        tokenizer: The teacher's.
        rows: Rows of the teacher's output layer.
        train: The training text, whose ids are counted.
    """
    if config.keep == "all":
        return tokenizer, whole(tokenizer, rows), None
    require_languages(config.languages)
    counts = Counter(train.ids[train.segments >= 0].tolist())
    counts.update(language_counts(tokenizer, config.languages))
    trimmed = trim(tokenizer, counts, config.size, rows, config.multiple_of)
    return trimmed.tokenizer, trimmed.vocabulary, trimmed.kept


def pieces_a_token(vocabulary: VocabularyMap, train: Sequences) -> float:
    """Student tokens a teacher token of the training text."""
    lengths = vocabulary.lengths[train.ids[train.segments >= 0]]
    return float(lengths.double().mean())
