"""The stages `distill` and `baseline`: the shrunk student, trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from stillroom.core import files
from stillroom.core.progress import Progress
from stillroom.core.secret import library_seed
from stillroom.core.store import open_store
from stillroom.corpus.mapped import MappedSequences, open_split
from stillroom.corpus.sequences import Sequences
from stillroom.models.compute import choose_dtype, prepare
from stillroom.models.load import load_student, save_model
from stillroom.recipe.capture import Codec
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.student import ExistingStudent, FreshStudent
from stillroom.runs.run import BEGUN, Run, Stage
from stillroom.signals.alignment import Alignment, load_vocabulary
from stillroom.signals.batches import BatchSource
from stillroom.signals.cache.registry import signal_kind
from stillroom.signals.projected import ProjectedEntropy, identity_of
from stillroom.signals.routed import Signals
from stillroom.signals.signal import SignalKind
from stillroom.signals.vocabulary_map import VocabularyMap
from stillroom.teachers.projected import FILE, needed, projected_entropy
from stillroom.teachers.several import open_signals
from stillroom.training import adapters, extension
from stillroom.training.checkpoint import State, best_weights
from stillroom.training.checkpoint_copy import CheckpointCopy
from stillroom.training.group import ALONE, Group
from stillroom.training.loop import Stretch, Training, require_alone
from stillroom.training.optimizer import OBSERVED_SHARE
from stillroom.training.rounds import Rounds

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel


def run_distill(run: Run, stage: Stage, progress: Progress) -> None:
    """Train the student on the teacher's signals."""
    _run(run, stage, progress, distill=True)


def run_baseline(run: Run, stage: Stage, progress: Progress) -> None:
    """Train the same start on the same tokens, in the same order, by cross-entropy alone."""
    _run(run, stage, progress, distill=False)


def run_in_group(run: Run, stage: Stage, progress: Progress, group: Group) -> None:
    """What one process of a group does of either stage. Rank 0 alone writes into the run's folder."""
    _run(run, stage, progress, stage.name == "distill", group)


def _run(run: Run, stage: Stage, progress: Progress, distill: bool, group: Group = ALONE) -> None:
    recipe = run.recipe
    config = recipe.distill
    rounds = config.rounds if distill else None
    if config.lora is not None or rounds is not None:
        require_alone(group, "distill.lora" if config.lora is not None else "distill.rounds")
    randomness = run.randomness
    device = prepare(recipe.compute, library_seed(randomness, "training"))
    copies = _copies(run, stage, progress) if group.first else None
    group.barrier()
    corpus = run.stage("corpus").path
    # Of a cache in an object store, what is read is copied once into the stage's scratch folder.
    cache = open_signals(run, stage.scratch / "cache")
    cache.require(temperature=config.temperature if distill else recipe.capture.temperature)
    shrunk = run.stage("shrink").path
    vocabulary = load_vocabulary(shrunk / "vocabulary.safetensors")
    validation = open_split(corpus / "validation.safetensors")
    projected = _projected(run, validation, vocabulary, cache, device, progress, group)
    model, tokenizer = load_student(shrunk / "model", torch.float32)
    lora: dict[str, Any] | None = None
    if config.lora is not None:
        seed = library_seed(randomness, "adapters")
        adapters.attach(model, config.lora, choose_dtype(config.precision, device.type), seed)
        lora = adapters.record(model, config.lora)
        progress.say(f"  {adapters.words_of(lora)}")

    share = output_share(recipe, cache.identity.codec) if distill else 1.0
    if share != 1.0:
        progress.say(f"  output layer: {share:g} of the learning rate")

    def training_of(train: BatchSource, model: CausalModel, stretch: Stretch | None = None) -> Training:
        return Training(
            title=stage.name,
            model=model.to(device),
            config=config,
            train=train,
            validation=BatchSource(validation, vocabulary, cache, projected, exact=True),
            distill=distill,
            folder=stage.scratch,
            seed=randomness,
            device=device,
            used=vocabulary.student_used,
            progress=progress,
            event=lambda **values: run.event(stage.name, **values) if group.first else None,
            group=group,
            base=_identity(run) if lora is not None else "",
            stretch=stretch,
            copies=copies,
            output_share=share,
        )

    begin: extension.Begin | None = None
    in_rounds: Rounds | None = None
    if rounds is not None:
        assert isinstance(vocabulary, VocabularyMap)
        del model

        def stretch_of(train: BatchSource, stretch: Stretch) -> Training:
            return training_of(train, load_student(shrunk / "model", torch.float32)[0], stretch)

        in_rounds = Rounds(run, stage, progress, cache, vocabulary, device, stretch_of, projected)
        training, state = in_rounds.train()
        model = training.model
    else:
        source = BatchSource(
            open_split(corpus / "train.safetensors"), vocabulary, cache if distill else None, projected
        )
        training = training_of(source, model)
        if not group.many and (begin := extension.extend(run, stage, stage.inputs, stage.sections)) is not None:
            progress.say(
                f"  goes on from step {begin.step:,} of the shorter training in {begin.came_from}, before its learning rate "
                "fell"
            )
        begin = extension.Begin.load(stage.scratch)
        state = training.run()
    silent = int(group.sum([training.silent])[0])
    if not group.first:
        return
    if silent:
        progress.say(
            f"  at {silent:,} positions the teacher rules out every token that the student has: there it taught nothing"
        )
    kl_is = meaning_of_kl(
        cache.identity.codec,
        cache.identity.temperature,
        aligned=isinstance(vocabulary, Alignment),
        bound=projected is None and isinstance(vocabulary, VocabularyMap) and needed(validation, vocabulary, cache),
    )
    if group.many:
        # The trained one may be divided; the best weights are whole, in a file.
        model, tokenizer = load_student(shrunk / "model", torch.float32)
        training.model = model
        training.restore(best_weights(stage.scratch, state.best_step))
        stage.notes.update(processes=group.world, sharding=group.sharding)
    if config.lora is not None and lora is not None:
        lora["without_gradient"] = training.untouched
        if training.untouched:
            progress.say(
                f"  {len(training.untouched)} adapters had no gradient in any step: {training.untouched[0]}, …"
            )
        model, tokenizer = adapters.merged(model, tokenizer, config.lora, shrunk / "model")
    save_model(model, tokenizer, stage.path / "model")
    extension.hand_over(stage.scratch, stage.path)
    files.write_json(
        stage.path / "history.json", {"validations": state.history, "best_step": state.best_step, "kl_is": kl_is}
    )
    chosen = training.chosen
    stage.notes.update(
        steps=state.step,
        best_step=state.best_step,
        best_validation_kl=state.best_kl,
        validation_kl_is=kl_is,
        tokens=state.tokens,
        step_tokens=training.step_tokens,
        clipped_share=round(state.clipped / state.step, 4),
        **({"silent_positions": silent} if silent else {}),
        **(chosen.record() if chosen is not None else {}),
        precision=config.precision,
        passes=training.passes,
        **({"output_layer_rate": share} if share != 1.0 else {}),
        **({"training_seconds": seconds} if in_rounds is None and (seconds := _seconds(training, state)) else {}),
        **({"lora": lora} if lora is not None else {}),
        **({"rounds": in_rounds.record()} if in_rounds is not None else {}),
        **({"state": training.state, "gradient_checkpointing": True} if training.checkpointing else {})
        | ({"state": training.state} if training.state != "plain" else {}),
        threads=torch.get_num_threads(),
        **({"extends": {"result": begin.came_from, "from_step": begin.step}} if begin is not None else {}),
    )


def output_share(recipe: Recipe, codec: Codec) -> float:
    """Share of the learning rate that a student's output layer takes while it learns from such a signal."""
    asked, student = recipe.distill.output_layer_rate, recipe.student
    if recipe.distill.lora is not None:
        return 1.0  # it gets no adapter
    if asked != "auto":
        return asked
    own = isinstance(student, ExistingStudent) and student.tokenizer == "own"
    begins_at_random = isinstance(student, FreshStudent)
    coarse = signal_kind(codec) is SignalKind.COARSE
    return OBSERVED_SHARE if coarse and not own and not begins_at_random else 1.0


def _seconds(training: Training, state: State) -> float:
    """Seconds of all steps, by those that this process made; 0 where it made none."""
    made = len(training.losses)
    return round(training.step_seconds / made * state.step, 3) if made else 0.0


def _copies(run: Run, stage: Stage, progress: Progress) -> CheckpointCopy | None:
    """The store for copies of checkpoints, where the recipe names one; an empty scratch folder gets the newest of them."""
    where = run.recipe.distill.checkpoint_copy
    if where is None:
        return None
    # In a process of a group the stage was begun by the driver.
    inputs = stage.inputs or files.read_json(stage.path / BEGUN)["inputs"]
    copies = CheckpointCopy(open_store(where), stage.scratch, stage.name, inputs, progress.say)
    step = copies.restore()
    if step is not None:
        run.event(stage.name, event="restored", from_step=step, where=copies.where)
    return copies


def _projected(
    run: Run,
    validation: Sequences | MappedSequences,
    vocabulary: VocabularyMap | Alignment,
    cache: Signals,
    device: torch.device,
    progress: Progress,
    group: Group,
) -> ProjectedEntropy | None:
    """The teacher's entropy over the student's ids, by which a KL is less than a cross-entropy; rank 0 measures it."""
    file = run.path / FILE
    found: ProjectedEntropy | None = None
    if group.first:
        found = projected_entropy(run.recipe, validation, vocabulary, cache, device, file, progress)
    there = group.sum([float(found is not None)])
    if there[0] and not group.first:
        assert isinstance(vocabulary, VocabularyMap)
        found = ProjectedEntropy.load(file, identity_of(cache.identity, vocabulary, validation.digests))
    return found


def _identity(run: Run) -> str:
    """SHA-256 over the weights that the stage `shrink` wrote, as its record has them."""
    outputs = (run.stage("shrink").record or {}).get("outputs", {})
    return files.digest_json(
        {name: entry["sha256"] for name, entry in outputs.items() if name.endswith(".safetensors")}
    )


def meaning_of_kl(codec: Codec, temperature: float, *, aligned: bool = False, bound: bool = False) -> str:
    """What the validation KL of a training on a cache is, in words: of which ids, at which temperature, and whether it is a
    lower bound (``bound``).
    """
    words = "KL(teacher ‖ student), nats per token"
    if aligned:
        return (
            "nats per token of the student's: KL(teacher ‖ student) of the ids that both tokenizers have and all others as one "
            "where their tokens are the same, and the loss on whole chunks elsewhere"
        )
    if signal_kind(codec) is SignalKind.PARTIAL:
        words += ", of the kept ids and all others as one"
    if signal_kind(codec) is SignalKind.COARSE:
        words += ", of the listed ids and all others as one: at least"
    if bound:
        words += ", a lower bound: the teacher's entropy over the student's ids is estimated from the sample"
    return words if temperature == 1 else f"{words}, at temperature {temperature:g}"
