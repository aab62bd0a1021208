"""What each stage takes of a GPU's memory, by arithmetic: from configs alone, before anything is spent.

``tools/gpu/memory.py`` counts the same by running the stages on a card that holds shapes only; docs/benchmarks/gpu.md shows
both.
The stages `corpus` and `export` put nothing on the card.

Legend: H hidden size, F feed-forward channels, Q and K widths of all query and all key/value heads, V ids, N tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from stillroom.core.errors import OutOfMemory
from stillroom.evaluation import original as original_pass
from stillroom.evaluation.bench import STUDENTS_AT_ONCE
from stillroom.evaluation.fidelity import CHUNK, TOKENS_AT_ONCE
from stillroom.evaluation.stage_cost import DISTRIBUTIONS
from stillroom.models.at_hand import Keep, where_layers_go
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.routes import OWN
from stillroom.recipe.student import ShrinkStudent
from stillroom.runs.costs import FLOAT_BYTES
from stillroom.signals.device_draw import positions_at_once
from stillroom.students.importance import POSITIONS, repaired_on
from stillroom.teachers.local import MAX_BATCH_TOKENS
from stillroom.teachers.several import any_endpoint
from stillroom.teachers.write.stage_cost import CHARACTERS_PER_TOKEN
from stillroom.teachers.write.writers import ROWS, SPARE_TOKENS
from stillroom.training.batch_size import loss_chunk, micro_rows, step_rows
from stillroom.training.memory import USABLE, Sizes, State, choose_layout, frozen_bytes, state_bytes, step_bytes

if TYPE_CHECKING:
    from stillroom.models.types import ModelConfig

HALF_BYTES = 2
"""Bytes of a bfloat16 number."""
SAMPLING_COPIES = 4
"""Rows of logits, one a text, that sampling holds: as computed, in float32, divided by the temperature, and probabilities."""
DRAW_COPIES = 4.5
"""Sizes of a part's float32 logits that the draw on the card holds at its peak: logits in both formats, probabilities, and what
is computed from them."""
PROJECTED_COPIES = 5
"""The same of a part that is carried over to the student's ids: logits, their log-probabilities, those of ids that occur and as
they are summed, and the sums."""
ORIGINAL_COPIES = 5
"""Distributions of the positions that are compared with an original's at once: both, probabilities, difference and product."""


@dataclass(frozen=True)
class Model:
    """A model as far as memory depends on it.

    Attributes:
        sizes: Of its layers.
        parameters: Parameters.
        tied: Whether the output matrix is the embedding.
        half: Whether its files hold every weight in 16 bits, so that its layers can be stored so without loss.
    """

    sizes: Sizes
    parameters: int
    tied: bool = False
    half: bool = False

    @classmethod
    def of(cls, config: ModelConfig, parameters: int, *, half: bool = False) -> Model:
        """From its config, and whether its files hold every weight in 16 bits."""
        return cls(Sizes.of(config), parameters, bool(config.tie_word_embeddings), half)

    @property
    def outside(self) -> int:
        """Parameters of embedding and output matrix."""
        return min(self.parameters, self.sizes.rows * self.sizes.hidden * (1 if self.tied else 2))

    @property
    def layer(self) -> float:
        """Parameters of a layer."""
        return (self.parameters - self.outside) / self.sizes.layers

    def weight_bytes(self, number: int, keep: Keep) -> float:
        """Bytes of the device that weights take: what is stored there, and the layer at hand.

        Args:
            number: Bytes of the format that is computed in.
            keep: Where and how its layers are stored (:mod:`stillroom.models.at_hand`).
        """
        if keep == "device":
            return float(number * self.parameters)
        stored = HALF_BYTES * (self.parameters - self.outside) if keep == "half" else 0.0
        at_hand = 0.0 if keep == "half" and number == HALF_BYTES else number * self.layer
        return number * self.outside + stored + at_hand

    def inside_bytes(self, tokens: int, number: int) -> float:
        """What a forward pass without gradients holds inside one layer, at its peak, in a format of ``number`` bytes.

        The stream and its normed form; then the two halves of the feed-forward layer and their product; or queries and keys
        as they are projected, normed and rotated, half by half, and with the values as the attention kernel takes them.
        """
        sizes = self.sizes
        feed_forward = 3 * sizes.inner
        attention = 9 * sizes.queries + 6 * sizes.keys
        return tokens * number * (2.0 * sizes.hidden + max(feed_forward, attention))


def capture_bytes(teacher: Model, tokens: int, length: int, keep: Keep = "device") -> float:
    """The teacher in bfloat16, and the larger of one layer over a batch and the draw of a part of its positions.

    Args:
        teacher: The teacher.
        tokens: Of a forward pass.
        length: Tokens of a sequence.
        keep: Where its layers are stored.
    """
    weights = teacher.weight_bytes(HALF_BYTES, keep)
    part = FLOAT_BYTES * min(length, positions_at_once(teacher.sizes.rows)) * teacher.sizes.rows
    drawing = HALF_BYTES * tokens * teacher.sizes.hidden + DRAW_COPIES * part
    return weights + max(teacher.inside_bytes(tokens, HALF_BYTES), drawing)


def entropy_bytes(teacher: Model, tokens: int, length: int, keep: Keep = "device") -> float:
    """As :func:`capture_bytes`, with the teacher's distribution carried over to the student's ids in place of the draw
    (:meth:`stillroom.signals.vocabulary_map.VocabularyMap.entropy`).
    """
    weights = teacher.weight_bytes(HALF_BYTES, keep)
    part = FLOAT_BYTES * min(length, positions_at_once(teacher.sizes.rows)) * teacher.sizes.rows
    projecting = HALF_BYTES * tokens * teacher.sizes.hidden + PROJECTED_COPIES * part
    return weights + max(teacher.inside_bytes(tokens, HALF_BYTES), projecting)


def original_bytes(
    teacher: Model, original: Model, length: int, keep: Keep = "device", keep_original: Keep = "device"
) -> float:
    """A quantized teacher's original and then the teacher, each over a row in float32; beside the teacher the original's output
    layer, and the distributions of some positions.
    """
    sizes = teacher.sizes
    inside = teacher.inside_bytes(length, FLOAT_BYTES)
    head = FLOAT_BYTES * sizes.rows * sizes.hidden
    compared = ORIGINAL_COPIES * FLOAT_BYTES * min(original_pass.CHUNK, length) * sizes.rows
    states = FLOAT_BYTES * length * sizes.hidden
    return max(
        original.weight_bytes(FLOAT_BYTES, keep_original) + inside,
        teacher.weight_bytes(FLOAT_BYTES, keep) + max(inside, head + states + compared),
    )


def shrink_bytes(teacher: Model, student: Model, tokens: int, repaired: int, length: int) -> float:
    """The teacher (in 16 bits where its files are), the student before and after its repair in float32, and what the repair of
    a layer holds.

    Args:
        teacher: The teacher.
        student: The student.
        tokens: Of the sample.
        repaired: Tokens that the repair is fitted on.
        length: Tokens of a sequence.
    """
    models = teacher.weight_bytes(FLOAT_BYTES, "half" if teacher.half else "device")
    models += FLOAT_BYTES * 2 * student.parameters
    reference = FLOAT_BYTES * min(POSITIONS, max(length, tokens // 6)) * teacher.sizes.rows
    # States of both, targets, and the inputs of the fitted matrix twice.
    fitted = repaired * FLOAT_BYTES * (6 * teacher.sizes.hidden + 2 * student.sizes.inner)
    # Second moments of what is fitted on and of what is held out, and the factor of either.
    gram = student.sizes.inner**2 * (FLOAT_BYTES + 3 * 8)
    return models + reference + max(fitted + gram, teacher.inside_bytes(length, FLOAT_BYTES))


def distill_bytes(
    student: Model,
    tokens: int,
    chunk: int,
    state: State,
    checkpointing: bool,
    accumulates: bool,
    precise: bool = False,
    adapters: int | None = None,
) -> float:
    """Training, at the larger of a backward pass's peak and an optimizer step's.

    Args:
        student: The student.
        tokens: Of a forward pass.
        chunk: Positions whose logits exist at the same time.
        state: How weights and averages are stored.
        checkpointing: Whether activations are computed twice.
        accumulates: Whether a step has several micro-batches.
        precise: Whether it computes in float32.
        adapters: Parameters that are trained beside the student's, which are frozen; None where its own are trained.
    """
    number = FLOAT_BYTES if precise else HALF_BYTES
    if adapters is None:
        kept = student.parameters * state_bytes(state, precise, accumulates)
    else:
        kept = frozen_bytes(student.parameters, precise) + adapters * state_bytes(state, precise, accumulates)
    passing = student.sizes.passing_bytes(tokens, chunk, checkpointing, number, frozen=adapters is not None)
    if adapters is not None:
        return kept + passing
    return kept + max(passing, step_bytes(state, student.sizes, accumulates))


def write_bytes(writer: Model, read: float, written: int) -> float:
    """A writer in bfloat16, the KV cache of the texts that it writes together, and the logits that they are sampled from.

    Args:
        writer: The teacher that writes.
        read: Tokens of a prompt.
        written: Tokens of a text at most.
    """
    sizes = writer.sizes
    cache = 2 * HALF_BYTES * sizes.layers * sizes.keys * ROWS * (read + written)
    sampling = SAMPLING_COPIES * FLOAT_BYTES * ROWS * sizes.rows
    return HALF_BYTES * writer.parameters + cache + max(sampling, writer.inside_bytes(round(ROWS * read), HALF_BYTES))


def evaluate_bytes(teacher: Model, students: list[Model], length: int, keep: Keep = "device") -> float:
    """The teacher and the students that are compared at once, float32, a batch, and a chunk's distributions.

    ``keep`` is where the teacher's layers are stored.
    """
    models = teacher.weight_bytes(FLOAT_BYTES, keep) + FLOAT_BYTES * sum(student.parameters for student in students)
    compared = DISTRIBUTIONS * FLOAT_BYTES * min(CHUNK, length) * teacher.sizes.rows
    tokens = max(length, TOKENS_AT_ONCE // length * length)
    states = FLOAT_BYTES * tokens * (teacher.sizes.hidden + sum(student.sizes.hidden for student in students))
    return models + max(states + compared, teacher.inside_bytes(tokens, FLOAT_BYTES))


@dataclass(frozen=True)
class Price:
    """What an hour of a card costs, US dollars.

    Attributes:
        low: Of a market's index.
        high: The median of what providers ask.
        source: Where both are from, and of when.
    """

    low: float
    high: float
    source: str


PRICES = {
    "H100": Price(
        2.35, 2.95, "SemiAnalysis GPU rental index, March 2026; median of 37 providers, May 2026; on demand, one card"
    ),
}
"""By what the name of a card contains. Prices change: `limits.price_per_hour` takes their place."""


@dataclass(frozen=True)
class Card:
    """The GPU that a recipe is planned for.

    Attributes:
        name: As the driver calls it; empty where the recipe alone says how large it is.
        memory_bytes: Its memory.
    """

    name: str
    memory_bytes: int


def card_of(recipe: Recipe, device: str) -> Card | None:
    """The card that a recipe says, or else that is here; None where it runs on the CPU or no one knows.

    Args:
        recipe: The recipe.
        device: Type of the device that it runs on.
    """
    import torch

    said = recipe.limits.gpu_memory_bytes
    there = device == "cuda" and torch.cuda.is_available()
    name = torch.cuda.get_device_name() if there else ""
    if said is not None:
        return Card(name, said)
    return Card(name, torch.cuda.mem_get_info()[0]) if there else None


def card_plan(
    recipe: Recipe,
    card: Card,
    teacher: Model | None,
    student: Model,
    tokens: int,
    length: int,
    others: Mapping[str, Model] = MappingProxyType({}),
    adapters: int | None = None,
    writer: Model | None = None,
    originals: Mapping[str, tuple[Model, Model]] = MappingProxyType({}),
    *,
    measures_entropy: bool = False,
) -> dict[str, Any]:
    """Bytes of the card that each stage takes, and what `auto` chooses.

    Args:
        recipe: The recipe.
        card: The card.
        teacher: The teacher; None where it is behind an endpoint.
        student: The student.
        tokens: Of one pass over the training text.
        length: Tokens of a sequence.
        others: The recipe's other teachers on this machine that are learned from, by name.
        adapters: As in :func:`distill_bytes`.
        writer: The teacher on this machine that writes text, if one does.
        originals: Quantized teachers, by name, each with the model that it was made from.
        measures_entropy: Whether training begins with the teacher's entropy over the student's ids
            (:func:`stillroom.training.stage_cost.measures_entropy`).

    Raises:
        OutOfMemory: A stage does not fit, by name.
    """
    usable = USABLE * card.memory_bytes
    config = recipe.distill
    stages: dict[str, float] = {}
    found: dict[str, Any] = {"card": card.name or None, "memory_bytes": card.memory_bytes}
    here = ({OWN: teacher} if teacher is not None else {}) | dict(others)
    found["layers_in_host_memory"] = []
    if writer is not None and recipe.write is not None:
        read = recipe.write.chunk_characters / CHARACTERS_PER_TOKEN + SPARE_TOKENS
        stages["write"] = write_bytes(writer, read, recipe.write.max_tokens)

    def stored(name: str, number: int, memory: float, stage: str, model: Model | None = None) -> Keep:
        """As :func:`stillroom.teachers.registry.keep_of` decides when the stage opens it."""
        model = here[name] if model is None else model
        keep = where_layers_go(model.parameters, number, memory, half=model.half)
        said = f"{name} ({stage})"
        if keep == "host" and said not in found["layers_in_host_memory"]:
            found["layers_in_host_memory"].append(said)
        return keep

    # A route's teachers are in memory together; one route comes after the other.
    names = [[name for name in route.names if name in here] for route in recipe.routes]
    routes: list[list[tuple[Model, Keep]]] = []
    for route in filter(None, names):
        free, opened = float(card.memory_bytes), []
        for name in route:
            keep = stored(name, HALF_BYTES, free, "capture")
            free -= here[name].weight_bytes(HALF_BYTES, keep)
            opened.append((here[name], keep))
        routes.append(opened)

    def capturing(batch: int) -> float:
        return max(
            max(
                capture_bytes(model, batch, length, keep) - model.weight_bytes(HALF_BYTES, keep)
                for model, keep in route
            )
            + sum(model.weight_bytes(HALF_BYTES, keep) for model, keep in route)
            for route in routes
        )

    most = max(length, (recipe.capture.batch_tokens or MAX_BATCH_TOKENS["cuda"]) // length * length)

    def fitting(needed: Callable[[int], float]) -> tuple[int, float]:
        """Tokens of a forward pass, fewer where they do not fit, and what it then takes."""
        batch = most
        while needed(batch) > usable and batch > length:
            batch = max(length, batch // 2 // length * length)
        return batch, needed(batch)

    if routes:
        found["capture_batch_tokens"], stages["capture"] = fitting(capturing)
    if teacher is not None and isinstance(recipe.student, ShrinkStudent):
        sample, repaired = recipe.student.importance.tokens, repaired_on(recipe.student.importance, tokens)
        stages["shrink"] = shrink_bytes(teacher, student, min(tokens, sample), repaired, length)
    rows = step_rows(config, tokens, length)
    micro = micro_rows(config, rows, length)
    chunk = loss_chunk(config, "cuda", student.sizes.rows)
    precise = config.precision == "float32"
    # Says by itself what does not fit.
    state, checkpointing = choose_layout(
        config,
        student.sizes,
        student.parameters if adapters is None else adapters,
        micro * length,
        chunk,
        card.memory_bytes,
        precise=precise,
        accumulates=micro < rows,
        frozen=0 if adapters is None else student.parameters,
    )
    stages["distill"] = distill_bytes(
        student, micro * length, chunk, state, checkpointing, micro < rows, precise, adapters
    )
    # The teacher's passes come when no student is there: before training, and between two rounds of it.
    passes = ([entropy_bytes] if measures_entropy else []) + ([capture_bytes] if config.rounds is not None else [])
    if teacher is not None and passes:
        own, keep = teacher, stored(OWN, HALF_BYTES, card.memory_bytes, "distill")
        for taken in passes:
            needed = fitting(lambda batch, taken=taken: taken(own, batch, length, keep))[1]  # type: ignore[misc]
            stages["distill"] = max(stages["distill"], needed)
    evaluating = [
        original_bytes(
            quantized,
            first,
            length,
            stored(name, FLOAT_BYTES, card.memory_bytes, "evaluate", quantized),
            stored(f"the original of {name}", FLOAT_BYTES, card.memory_bytes, "evaluate", first),
        )
        for name, (quantized, first) in originals.items()
    ]
    if teacher is not None and not any_endpoint(recipe):
        # With several, all stay in memory, beside the recipe's own.
        more = FLOAT_BYTES * sum(model.parameters for model in others.values())
        keep = stored(OWN, FLOAT_BYTES, card.memory_bytes, "evaluate")
        evaluating.append(evaluate_bytes(teacher, [student] * STUDENTS_AT_ONCE, length, keep) + more)
    if evaluating:
        stages["evaluate"] = max(evaluating)
    for name, needed in stages.items():
        if needed > usable:
            raise OutOfMemory(
                f"The stage `{name}` takes {needed / 1e9:.0f} GB of the GPU's memory, and of its "
                f"{card.memory_bytes / 1e9:.0f} GB {usable / 1e9:.0f} can be used.",
                _ADVICE[name],
            )
    found |= {
        "stages": {name: round(needed) for name, needed in stages.items()},
        "state": state,
        "gradient_checkpointing": checkpointing,
        "loss_chunk": chunk,
        "micro_batch_tokens": micro * length,
    }
    return found


_ADVICE = {
    "capture": "Take a smaller teacher, a shorter `corpus.sequence_length`, or a larger GPU; a teacher that fits nowhere can "
    "be asked behind an endpoint (docs/endpoint-teacher.md).",
    "write": "Lower `write.chunk_characters` or `write.max_tokens`, or let a smaller teacher, or one behind an endpoint, write "
    "(`write.by`).",
    "shrink": "Make the student on the CPU first: stillroom shrink RECIPE --set compute.device=cpu; or take a smaller "
    "teacher or a larger GPU.",
    "distill": "Lower `distill.micro_batch_tokens`, or make the student smaller; with a trimmed vocabulary or `distill.rounds` "
    "the teacher is on the GPU in this stage too: take a smaller one, or a larger GPU.",
    "evaluate": "Evaluate on the CPU: stillroom evaluate RUN --set compute.device=cpu; or take a larger GPU.",
}


def price_of(recipe: Recipe, card: Card | None, seconds: float) -> dict[str, Any] | None:
    """What a run costs: by the recipe's price, or else the table's for this card; None where neither knows.

    Args:
        recipe: The recipe.
        card: The card, if there is one.
        seconds: Of the whole run, planned.
    """
    hours = seconds / 3600
    own = recipe.limits.price_per_hour
    if own is not None:
        return {"low": hours * own, "high": hours * own, "per_hour": [own, own], "source": "limits.price_per_hour"}
    known = next((price for name, price in PRICES.items() if card is not None and name in card.name), None)
    if known is None:
        return None
    return {
        "low": hours * known.low,
        "high": hours * known.high,
        "per_hour": [known.low, known.high],
        "source": f"US dollars: {known.source}",
    }
