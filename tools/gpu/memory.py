"""Peak memory of every stage on one card, counted: the stages' own functions run on a card that holds shapes only.

    .venv/bin/python -m tools.gpu.memory     writes docs/benchmarks/gpu-memory.json; `tools.gpu.report` makes the table

:class:`tools.gpu.device.Device` counts the bytes of every live tensor; :mod:`stillroom.planning.card` says the same by
arithmetic, which is what `stillroom plan` uses. No weights are needed, and no GPU. What is not counted: the CUDA context and
libraries, and what the allocator loses between blocks, for which :data:`stillroom.training.memory.USABLE` leaves room.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stillroom.core.progress import Progress
from stillroom.corpus.sequences import Sequences
from stillroom.evaluation import original as original_pass
from stillroom.evaluation.fidelity import TOKENS_AT_ONCE, Contender, compare
from stillroom.evaluation.heldout import InMemory
from stillroom.evaluation.tally import Tally
from stillroom.models import documents, forward
from stillroom.models.at_hand import hold
from stillroom.models.families.registry import family_of
from stillroom.models.forward import output_head
from stillroom.models.load import LoadedTeacher
from stillroom.models.passes import WAY, Way
from stillroom.planning import card
from stillroom.recipe.training import DistillConfig
from stillroom.signals.batches import Batch
from stillroom.signals.cache.codec import sampling_generator
from stillroom.signals.cache.threshold import Threshold
from stillroom.signals.device_draw import draw
from stillroom.signals.signal import SparseSignal
from stillroom.signals.vocabulary_map import VocabularyMap
from stillroom.students.importance import Sample
from stillroom.students.measured import Measured
from stillroom.students.shape import Anatomy, shaped_config
from stillroom.students.shrink import shrink
from stillroom.teachers.local import LocalTeacher
from stillroom.training.batch_size import loss_chunk
from stillroom.training.lean import AVERAGES, LeanAdamW
from stillroom.training.loop import _Stepper
from stillroom.training.losses.fused import FusedLoss
from stillroom.training.losses.registry import make_objective
from stillroom.training.network import LossNetwork
from stillroom.training.optimizer import make_optimizer
from tools.gpu.device import Device

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel, ModelConfig

KEPT = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "gpu-memory.json"
TAU = 1 / 36
ENTRIES = 20
"""Entries of a position's signal."""


@dataclass(frozen=True)
class Case:
    """A teacher, a student and what goes through them.

    Attributes:
        teacher: Its config.
        sizes: Of the student, as :class:`stillroom.students.shape.Shape` names them.
        length: Tokens of a sequence.
        capture_tokens: Of a forward pass of the teacher.
        sample_tokens: On which the student is pruned.
        micro_tokens: Of a forward and backward pass of training.
        micros: Such passes of a step.
        state: Bytes of a parameter: `distill.state`, or `plain`.
        checkpointing: `distill.gradient_checkpointing`.
    """

    teacher: ModelConfig
    sizes: dict[str, int]
    length: int
    capture_tokens: int
    sample_tokens: int
    micro_tokens: int
    micros: int
    state: Any
    checkpointing: bool


def eight_to_four() -> Case:
    """The shape of Qwen3 8B to four billion parameters."""
    from transformers import Qwen3Config

    config: Any = Qwen3Config(
        vocab_size=151_936,
        hidden_size=4096,
        intermediate_size=12_288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=False,
        max_position_embeddings=40_960,
    )
    return Case(config, {"layers": 26, "hidden": 3072, "channels": 9216}, 2048, 65_536, 12_288, 8192, 3, 12, True)


def small() -> Case:
    """A case of the same kind that a test can count in a second: large enough that weights, not blocks, decide."""
    from transformers import Qwen3Config

    config: Any = Qwen3Config(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        tie_word_embeddings=False,
        max_position_embeddings=1024,
    )
    return Case(config, {"layers": 2, "hidden": 384, "channels": 1024}, 128, 512, 512, 256, 3, 12, True)


def model_of(config: Any, device: Device, dtype: torch.dtype) -> CausalModel:
    """A model of shapes."""
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    with torch.device(device.where), no_init_weights():
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval().requires_grad_(False)  # type: ignore[no-any-return]


def text(count: int, length: int, ids: int) -> Sequences:
    """Random packed sequences of two documents each."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(3, ids, (count, length), generator=generator)
    segments = torch.zeros(count, length, dtype=torch.int32)
    segments[:, length // 3 :] = 1
    return Sequences(
        values,
        segments,
        torch.ones(count, length, dtype=torch.bool),
        segments + 2 * torch.arange(count, dtype=torch.int32)[:, None],
        torch.ones(count, length, dtype=torch.int32),
        torch.zeros(2 * count, dtype=torch.int32),
    )


@contextlib.contextmanager
def hollow() -> Iterator[Device]:
    """A card that holds shapes, with the flash kernel of a real one."""
    names: dict[str, Any] = vars(forward)
    before, prove = documents.flash, names["prove"]
    documents.flash = lambda query: query.dtype in (torch.bfloat16, torch.float16)
    names["prove"] = _proved
    try:
        with Device("cuda:0", hollow=True) as device:
            yield device
    finally:
        documents.flash, names["prove"] = before, prove


WAY_THERE = Way(packed=True, blocks=False, documents=True)


def _proved(model: CausalModel) -> Any:
    """How a model is run, which nothing can prove without numbers."""
    setattr(model, WAY, WAY_THERE)
    return SimpleNamespace(way=WAY_THERE)


def capture(case: Case, device: Device) -> None:
    """The teacher over one batch, and the draw."""
    model = model_of(case.teacher, device, torch.bfloat16)
    teacher = LocalTeacher(LoadedTeacher(model, None, "", "", "", "", None, 0))  # type: ignore[arg-type]
    rows = text(max(1, case.capture_tokens // case.length), case.length, case.teacher.vocab_size)
    codec = Threshold(TAU, case.teacher.vocab_size)
    for index, pieces in teacher.score_there(rows, range(len(rows)), rows.counts):
        for scores in pieces:
            draw(codec, scores, sampling_generator(0, str(index)))
        if index == 1:  # from then on it repeats itself
            break


def pruned(case: Case) -> ModelConfig:
    """The student's config."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(case.teacher)
    family = family_of(model)
    shape = replace(Anatomy.of(model, family, 0).teacher, **case.sizes)
    return shaped_config(case.teacher, family, shape)


def prune(case: Case, device: Device) -> None:
    """Measure, cut, repair, judge."""
    model = model_of(case.teacher, device, torch.bfloat16)
    hold(model, device.where, torch.float32, "half")
    family = family_of(model)
    rows = text(max(2, case.sample_tokens // case.length), case.length, case.teacher.vocab_size)
    measured = Measured.of(model, family, Sample.of(rows, rows.tokens), leave_one_out=True)
    shape = replace(Anatomy.of(model, family, 0).teacher, **case.sizes)
    shrink(model, family, shape, measured, True)


def distill(case: Case, device: Device) -> None:
    """Two steps of training."""
    model = model_of(pruned(case), device, torch.float32).requires_grad_(True)
    config = DistillConfig(learning_rate=1e-5)
    lean = case.state != "plain"
    if case.state == 8:
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    network = LossNetwork(model, torch.bfloat16, straight=lean, checkpointing=case.checkpointing)
    network.train()
    optimizer = LeanAdamW(model, config, AVERAGES[case.state]) if lean else make_optimizer(model, config)
    rows = int(model.get_output_embeddings().weight.shape[0])
    loss = FusedLoss(make_objective("forward_kl"), 0.0, 1.0, rows, loss_chunk(config, "cuda", rows))
    training: Any = SimpleNamespace(
        group=SimpleNamespace(many=False),
        device=device.where,
        model=model,
        config=config,
        _output_rows=rows,
        chosen=None,
    )
    step = _Stepper(training, optimizer, network, loss)
    for number in range(2):  # from then on the averages are there too
        step([batch_of(case, rows) for _ in range(case.micros)], 1e-5, number)


def batch_of(case: Case, ids: int) -> Batch:
    """A random batch with its signal, on the processor."""
    part = text(max(1, case.micro_tokens // case.length), case.length, ids)
    chosen = torch.arange(part.ids.numel())
    signal = SparseSignal(torch.randint(ids, (len(chosen), ENTRIES)), torch.full((len(chosen), ENTRIES), 1 / ENTRIES))
    return Batch(part.ids, part.positions, chosen, torch.randint(ids, (len(chosen),)), signal)


def evaluate(case: Case, device: Device) -> None:
    """The teacher and one student over held-out text."""
    teacher = model_of(case.teacher, device, torch.float32)
    student = model_of(pruned(case), device, torch.float32)
    rows = text(max(1, TOKENS_AT_ONCE // case.length), case.length, case.teacher.vocab_size)
    own, tally = (Tally({"all": 1}, 2) for _ in range(2))
    same = VocabularyMap.identity(case.teacher.vocab_size)
    with Progress(quiet=True).task("x", total=1) as task:
        contenders = [Contender("student", student, same, tally)]
        compare(teacher, own, contenders, InMemory(rows), np.zeros(same.teacher_size, np.int64), task)


def entropy(case: Case, device: Device) -> None:
    """The teacher's entropy over its student's ids, of one batch of validation text."""
    model = model_of(case.teacher, device, torch.bfloat16)
    teacher = LocalTeacher(LoadedTeacher(model, None, "", "", "", "", None, 0))  # type: ignore[arg-type]
    rows = text(max(1, case.capture_tokens // case.length), case.length, case.teacher.vocab_size)
    vocabulary = trimmed(case.teacher.vocab_size)
    for number, (_, pieces) in enumerate(teacher.score_there(rows, range(len(rows)), rows.counts)):
        for scores in pieces:
            for part in scores:
                vocabulary.entropy(part)
        if number == 1:  # from then on it repeats itself
            break


def trimmed(size: int) -> VocabularyMap:
    """Of so many ids all occur, and every fourth has its first sub-token in common with the one before it."""
    first = torch.arange(size)
    first -= (first + 1) // 4
    return VocabularyMap(torch.arange(size + 1), first, int(first[-1]) + 1, int(first[-1]) + 1)


def original(case: Case, device: Device) -> None:
    """A quantized teacher's original over one row of validation text, then the teacher itself."""
    row = text(1, case.length, case.teacher.vocab_size)
    first = model_of(case.teacher, device, torch.float32)
    head, states = original_pass._apart(output_head(first)), original_pass._states(first, row).cpu()
    del first
    model = model_of(case.teacher, device, torch.float32)
    original_pass._divergence(head, states, output_head(model), original_pass._states(model, row))


STAGES: dict[str, Callable[[Case, Device], None]] = {
    "capture": capture,
    "shrink": prune,
    "distill": distill,
    "evaluate": evaluate,
    "entropy": entropy,
    "original": original,
}
"""Stages that put models on the card, and passes that some of them begin with. `corpus` and `export` work on the processor."""


def counted(case: Case, names: Iterable[str] = STAGES) -> dict[str, int]:
    """Peak bytes of stages."""
    found = {}
    for name in names:
        with hollow() as device:
            STAGES[name](case, device)
            found[name] = device.peak
        gc.collect()
    return found


def planned(case: Case) -> dict[str, float]:
    """The same by arithmetic."""
    from transformers import AutoModelForCausalLM

    def model(config: Any) -> card.Model:
        with torch.device("meta"):
            made: Any = AutoModelForCausalLM.from_config(config)
        return card.Model.of(config, sum(parameter.numel() for parameter in made.parameters()), half=True)

    teacher, student = model(case.teacher), model(pruned(case))
    chunk = loss_chunk(DistillConfig(), "cuda", student.sizes.rows)
    accumulates = case.micros > 1
    return {
        "capture": card.capture_bytes(teacher, case.capture_tokens, case.length),
        "shrink": card.shrink_bytes(teacher, student, case.sample_tokens, case.sample_tokens * 5 // 6, case.length),
        "distill": card.distill_bytes(student, case.micro_tokens, chunk, case.state, case.checkpointing, accumulates),
        "evaluate": card.evaluate_bytes(teacher, [student], case.length),
        "entropy": card.entropy_bytes(teacher, case.capture_tokens, case.length),
        "original": card.original_bytes(teacher, teacher, case.length),
    }


def main() -> int:
    """Count and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "stages", nargs="*", choices=[*STAGES, []], help="only these; the others stay as they were written"
    )
    names = parser.parse_args().stages or list(STAGES)
    case = eight_to_four()
    before = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else {"counted": {}}
    counts = before["counted"] | counted(case, names)
    found = {
        "counted": {name: counts[name] for name in STAGES if name in counts},
        "planned": {name: round(value) for name, value in planned(case).items()},
    }
    KEPT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
