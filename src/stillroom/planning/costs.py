"""What each stage takes, from counts and a pilot's rates.

Every formula counts what the stage really does; the constants stand here, each with what it counts.

Legend: T parameters of the teacher, S of the student, n tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from stillroom.evaluation.cost import PROMPT_TOKENS
from stillroom.evaluation.fidelity import CHUNK
from stillroom.evaluation.speed import REPETITIONS
from stillroom.planning.pilot import Pilot
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.student import ShrinkStudent
from stillroom.students.importance import POSITIONS
from stillroom.students.shape import Shape

MODEL_SECONDS = 1.5
"""To open a stored student."""
BYTES_A_SECOND = 400e6
"""At which weights are written and digested."""
CHECK_POSITIONS_A_SECOND = 25.0
"""Of an exported file, position by position through the runtime."""
RECOVERY = 4 / 3
"""A step of recovery, which runs the unrounded student too, over one of training."""
OUTPUT_LAYER = 1.6
"""A forward pass with its output layer, over one without."""
LANGUAGE_TOKENS = 700
"""Of one language's sample; its paragraphs are short."""
ONNX_LAYER_SECONDS = 2.2
"""To trace one layer and write it as a graph: work of Python, whatever its width."""
ONNX_LAYER_BYTES = 130e3
"""Of the graph, weights left out."""
ONNX_COPIES = 4
"""Of the student's weights, while its graph is written and set beside it."""
DECODED_BYTES_A_SECOND = 9e9
"""Weights read while decoding token by token."""
LAYER_SECONDS = 4e-4
"""Of one layer for one token, besides its weights."""
FLOAT = 4
"""Bytes of a float32."""
COMPARED = 9
"""Distributions of a chunk of positions that exist at once while models are compared."""
HEALED_COPIES = 5
"""Of a layer's inputs and outputs, held while it is repaired."""


@dataclass(frozen=True)
class Counts:
    """What a recipe is about.

    Attributes:
        teacher: Parameters of the teacher.
        student: Parameters of the student.
        uncut: Parameters of the student with the teacher's vocabulary.
        whole: The teacher's shape.
        shape: The student's shape; None for one that is not cut from the teacher.
        layers: The student's layers.
        train: Tokens to train on.
        validation: Tokens that choose the checkpoint.
        heldout: Tokens of the final numbers.
        length: Tokens a sequence.
        pieces: Student tokens a teacher token of the training text.
        corpus_seconds: What reading the text took.
    """

    teacher: int
    student: int
    uncut: int
    whole: Shape
    shape: Shape | None
    layers: int
    train: int
    validation: int
    heldout: int
    length: int
    pieces: float
    corpus_seconds: float

    @property
    def ratio(self) -> float:
        """Parameters of the student's body for each of the teacher's, at least."""
        return min(1.0, self.student / self.teacher)


def stage_seconds(recipe: Recipe, counts: Counts, pilot: Pilot) -> dict[str, float]:
    """Seconds of each stage."""
    seconds = {
        "corpus": counts.corpus_seconds,
        "capture": pilot.load_seconds + (counts.train + counts.validation) / pilot.capture_rate,
        "shrink": pilot.load_seconds + _shrink_seconds(recipe, counts, pilot) + _written(counts, 1),
    }
    seconds["distill"] = training_seconds(recipe, counts, pilot)
    if recipe.baseline:
        seconds["baseline"] = seconds["distill"]
    seconds["export"] = _export_seconds(recipe, counts, pilot)
    seconds["evaluate"] = pilot.load_seconds + _evaluate_seconds(recipe, counts, pilot)
    return seconds


def steps_of(recipe: Recipe, counts: Counts) -> int:
    """Optimizer steps."""
    per_step = max(1, recipe.distill.batch_tokens // counts.length)
    return recipe.distill.epochs * -(-counts.train // (per_step * counts.length))


def training_seconds(recipe: Recipe, counts: Counts, pilot: Pilot) -> float:
    """Steps, validations (a third of a step's work a token), and the weights that are kept."""
    steps = steps_of(recipe, counts)
    validations = 1 + -(-steps // (recipe.distill.evaluate_every or max(1, -(-steps // 10))))
    tokens = counts.train * recipe.distill.epochs + counts.validation * validations / 3
    work = tokens * counts.pieces * pilot.token_seconds + steps * pilot.step_seconds
    checkpoints = 3 * work / max(recipe.distill.checkpoint_seconds, 1.0)
    return MODEL_SECONDS + work + _written(counts, validations + checkpoints + 1)


def _export_seconds(recipe: Recipe, counts: Counts, pilot: Pilot) -> float:
    """Every GGUF file written and checked, one more where one is chosen; importance, recovery and the graph where asked."""
    from stillroom.core.gguf_types import GGUF_TYPES

    config = recipe.export
    files = len(config.gguf) + int(config.choose is not None)
    weighted = sum(GGUF_TYPES[kind].importance for kind in config.gguf)
    each = MODEL_SECONDS + _written(counts, 1) + config.check_tokens / CHECK_POSITIONS_A_SECOND
    seconds = MODEL_SECONDS + files * each
    if weighted or config.choose is not None:
        seconds += min(config.importance_tokens, counts.train) * counts.ratio / pilot.exact_rate
    if config.recover is not None:
        tokens = config.recover.steps * config.recover.batch_tokens
        seconds += weighted * tokens * counts.pieces * pilot.token_seconds * RECOVERY
    if config.onnx:
        seconds += 2 * MODEL_SECONDS + counts.layers * ONNX_LAYER_SECONDS + _written(counts, 1)
    return seconds


def _evaluate_seconds(recipe: Recipe, counts: Counts, pilot: Pilot) -> float:
    """All models over the held-out text and one language's sample, and what the measure `cost` decodes."""
    models = _students(recipe)
    body = 1 / pilot.exact_rate
    teacher, student = body * OUTPUT_LAYER, body * OUTPUT_LAYER * counts.ratio
    seconds = models * MODEL_SECONDS + (counts.heldout + LANGUAGE_TOKENS) * (teacher + models * student)
    if recipe.evaluate.speed_tokens:
        seconds += (1 + REPETITIONS) * PROMPT_TOKENS * body * (1 + counts.ratio)
        layers = counts.whole.layers * (1 + counts.ratio)
        token = 4 * (counts.teacher + counts.student) / DECODED_BYTES_A_SECOND + layers * LAYER_SECONDS
        seconds += REPETITIONS * recipe.evaluate.speed_tokens * token
    return seconds


def _students(recipe: Recipe) -> int:
    """Models beside the teacher: the student, its start before and after the repair, and the baseline."""
    repaired = isinstance(recipe.student, ShrinkStudent) and recipe.student.heal
    return 2 + int(repaired) + int(recipe.baseline)


def training_operations(recipe: Recipe, counts: Counts) -> int:
    """Operations of the student's training, 6 S n (Kaplan et al. 2020, arXiv 2001.08361), without the baseline's."""
    return round(6 * counts.student * counts.train * counts.pieces * recipe.distill.epochs)


def _shrink_seconds(recipe: Recipe, counts: Counts, pilot: Pilot) -> float:
    """Measuring, candidates and the repair, in passes of the teacher's body over the sample."""
    student = recipe.student
    if not isinstance(student, ShrinkStudent) or counts.shape is None:
        return MODEL_SECONDS
    sample = min(student.importance.tokens, counts.train)
    judge = max(counts.length, sample / 6)
    fit = max(counts.length, sample - judge)
    screen = fit / 3
    ratio = counts.shape.layers / counts.whole.layers
    tokens = 2 * screen + judge
    solves = 0.0
    if counts.shape != replace(counts.whole, vocabulary=counts.shape.vocabulary):
        tokens += judge * (1 + ratio)
        fewer = counts.shape.layers < counts.whole.layers
        if fewer and student.importance.leave_one_out:
            tokens += counts.length * counts.whole.layers / 2
        candidates = 4 if fewer else 0
        tokens += candidates * judge * ratio
        if student.heal:
            # The teacher once, the student about twice: to catch inputs and to go on.
            tokens += (candidates * screen + fit) * (1 + 2 * ratio)
            solves = counts.shape.layers * (fit + candidates * screen) * _repair_operations(counts.shape)
        if counts.shape.channels < counts.whole.channels or counts.shape.groups < counts.whole.groups:
            tokens += fit
            solves += counts.whole.layers * fit * _repair_operations(counts.whole)
    if student.target is not None:
        # Two sizes of each axis and the shortlist are cut, repaired and judged on the screening part.
        tried = 2 * len(student.target.axes) + 3
        tokens += tried * 4 * (screen * (1 + 2 * ratio) + judge)
    return tokens / pilot.exact_rate + solves / pilot.matrix_rate


def _repair_operations(shape: Shape) -> float:
    """Of one layer and token: second moments of channels and of the attention's outputs, and what they are fitted to."""
    return 2.0 * (shape.channels**2 + shape.hidden**2 + shape.hidden * (shape.channels + shape.hidden))


def stage_memory(recipe: Recipe, counts: Counts, pilot: Pilot) -> dict[str, float]:
    """Peak bytes of each stage, libraries included."""
    base = pilot.base_bytes
    teacher, student = 4 * counts.teacher, 4 * counts.student
    rows = counts.whole.vocabulary
    captured = teacher // 2 if pilot.capture_rate and _narrow(recipe) else teacher
    judged = FLOAT * POSITIONS * rows
    uncut = 4 * counts.uncut
    # What loading needed at its peak stays with the process, and is little use to what comes after.
    loaded = base + teacher + pilot.load_bytes
    shrinking = loaded + 2 * uncut + judged
    if isinstance(recipe.student, ShrinkStudent) and recipe.student.heal:
        sample = min(recipe.student.importance.tokens, counts.train)
        shrinking += HEALED_COPIES * 4 * sample * (counts.whole.channels + counts.whole.hidden)
    forward_tokens = min(recipe.distill.micro_batch_tokens or recipe.distill.batch_tokens, counts.train)
    training = pilot.train_bytes + forward_tokens * counts.pieces * pilot.token_bytes
    memory = {
        "corpus": base + 40.0 * (counts.train + counts.validation + counts.heldout),
        "capture": base + captured + max(pilot.load_bytes, pilot.capture_bytes),
        "shrink": shrinking,
        # In the end the best weights are read back.
        "distill": base + training + student,
    }
    if recipe.baseline:
        memory["baseline"] = memory["distill"]
    memory["export"] = base + (ONNX_COPIES if recipe.export.onnx else 3) * student
    memory["evaluate"] = loaded + _students(recipe) * student + COMPARED * FLOAT * CHUNK * rows
    return memory


def _narrow(recipe: Recipe) -> bool:
    import torch

    from stillroom.models.compute import choose_dtype

    return choose_dtype(recipe.teacher.dtype, "cpu") == torch.bfloat16


def stage_disk(recipe: Recipe, counts: Counts, pilot: Pilot) -> dict[str, float]:
    """Bytes that each stage writes; checkpoints are gone when it ends. GGUF files are counted elsewhere."""
    student = 4 * counts.student
    checkpoint = 3 * student + student
    disk = {
        "corpus": 29.0 * (counts.train + counts.validation + counts.heldout),
        "capture": pilot.cache_bytes + pilot.bytes_per_position * (counts.train + counts.validation),
        "shrink": student,
        "distill": student + checkpoint,
        "export": student + counts.layers * ONNX_LAYER_BYTES if recipe.export.onnx else 0.0,
    }
    if recipe.baseline:
        disk["baseline"] = student + checkpoint
    return disk


def _written(counts: Counts, times: float) -> float:
    return times * 4 * counts.student / BYTES_A_SECOND
