"""A pilot of some seconds: how fast this machine does a recipe's work, on its own text and models.

The teacher is loaded and captures a few sequences; a student of the planned shape with random weights takes a few training
steps on them.
"""

from __future__ import annotations

import copy
import itertools
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stillroom.core.files import folder_bytes
from stillroom.core.memory import MemoryMeter, release_memory
from stillroom.core.progress import Progress, Task
from stillroom.corpus.sequences import Sequences
from stillroom.models.compute import choose_dtype, prepare, wait_for
from stillroom.models.forward import hidden_states
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.teacher import EndpointTeacher
from stillroom.runs.costs import Profile
from stillroom.signals.batches import BatchSource
from stillroom.signals.cache.identity import CacheIdentity
from stillroom.signals.cache.reader import TeacherCache
from stillroom.signals.cache.registry import VERSIONS
from stillroom.signals.cache.writer import CacheWriter
from stillroom.signals.signal import CoarseSignal
from stillroom.signals.vocabulary_map import VocabularyMap
from stillroom.teachers.capture import cache_identity, capture
from stillroom.teachers.registry import open_teacher
from stillroom.teachers.teacher import Teacher, weights_of
from stillroom.training.adapters import attach
from stillroom.training.batch_size import LEAST_CHUNK
from stillroom.training.checkpoint import State
from stillroom.training.loop import Training

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel, ModelConfig

CAPTURED_TOKENS = 2048
"""Tokens that the pilot captures: the codec's model is fitted to them, and to fewer it does not fit well."""
STEP_TOKENS = 1024
"""Tokens of the pilot's larger training step."""


def run_pilot(recipe: Recipe, sequences: Sequences, vocabulary: VocabularyMap, student: ModelConfig) -> Profile:
    """Measure.

    Args:
        recipe: The recipe.
        sequences: The training split; the first few are used.
        vocabulary: From the teacher's ids to the student's.
        student: A Hugging Face config of the planned student.

    Raises:
        StillroomError: What the stages would raise, too.
    """
    import psutil

    device = prepare(recipe.compute, recipe.public_seed)
    if isinstance(recipe.teacher, EndpointTeacher):
        return _with_endpoint(recipe, recipe.teacher, sequences, vocabulary, student, device)
    few = sequences.take(max(2, CAPTURED_TOKENS // sequences.length))
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        dtype = choose_dtype(recipe.teacher.dtype, device.type)
        with MemoryMeter() as loading:
            teacher = open_teacher(recipe.teacher, device, dtype)
            model = weights_of(teacher, "The plan").model
        load_seconds = time.perf_counter() - begun
        loaded = psutil.Process().memory_info().rss
        # Libraries are loaded with the first model.
        base = loaded - sum(parameter.nbytes for parameter in model.parameters())
        config = recipe.capture
        identity = cache_identity(teacher, config.codec, config.temperature, config.seed)
        one = few.take(1)
        with MemoryMeter() as meter:
            _captured(teacher, one, CacheWriter.open(Path(folder) / "first", identity), recipe)
            writer = CacheWriter.open(Path(folder) / "cache", identity)
            begun = time.perf_counter()
            _captured(teacher, few, writer, recipe)
            seconds = time.perf_counter() - begun
        capture_rate = len(few) * few.length / seconds
        # A model read from GGUF refuses its own `float`, though its weights are floats by now.
        exact_rate = _exact_rate(torch.nn.Module.float(model), one)
        del model, teacher
        cache = TeacherCache.open(Path(folder) / "cache")
        shards = sum(entry.bytes for entry in cache.manifest.shards)
        bytes_per_position = shards / max(1, cache.positions)
        cache_bytes = folder_bytes(cache.folder) - shards
        trained = _trained(_Trial(recipe, few, vocabulary, cache, student, Path(folder), device), base)
    return Profile(
        base_bytes=base,
        load_seconds=load_seconds,
        load_bytes=max(0, loading.peak - loaded),
        capture_rate=capture_rate,
        capture_bytes=max(0, meter.peak - loaded),
        bytes_per_position=bytes_per_position,
        cache_bytes=cache_bytes,
        exact_rate=exact_rate,
        matrix_rate=matrix_rate(few.length),
        **trained,
    )


def _trained(training: _Trial, base: int) -> dict[str, Any]:
    """What the profile has of training steps; ``base`` is the memory of the libraries."""
    few = training.sequences
    # From a whole chunk of the loss on, memory grows with tokens alone.
    asked = training.recipe.distill.loss_chunk
    fewest = max(1, min(LEAST_CHUNK if asked == "auto" else asked, STEP_TOKENS // 2) // few.length)
    most = min(max(2 * fewest, STEP_TOKENS // few.length), len(few))
    small = training.measure(fewest)
    # With so little text that both would be all of it, one measurement is all there is.
    large = training.measure(most) if most > fewest else small
    tokens = max(1, large.tokens - small.tokens)
    slope = (large.seconds - small.seconds) / tokens
    token_seconds = min(max(slope, 0.5 * large.seconds / large.tokens), large.seconds / large.tokens)
    token_bytes = max(0.0, (large.peak - small.peak) / tokens)
    return {
        "token_seconds": token_seconds,
        "step_seconds": max(0.0, large.seconds - token_seconds * large.tokens),
        "token_bytes": token_bytes,
        "holes": training.device.type == "cpu",
        "train_bytes": max(0, round(small.peak - base - token_bytes * small.tokens)),
    }


def _with_endpoint(
    recipe: Recipe,
    teacher: EndpointTeacher,
    sequences: Sequences,
    vocabulary: VocabularyMap,
    student: ModelConfig,
    device: torch.device,
) -> Profile:
    """Measure without the teacher, which is asked for nothing: lists of random tokens stand in for its own."""
    import psutil
    from transformers import AutoModelForCausalLM

    few = sequences.take(max(2, CAPTURED_TOKENS // sequences.length))
    with tempfile.TemporaryDirectory() as folder:
        model = AutoModelForCausalLM.from_config(copy.deepcopy(student), dtype=torch.float32).eval().to(device)
        base = psutil.Process().memory_info().rss - sum(parameter.nbytes for parameter in model.parameters())
        one = few.take(1)
        # The student may have fewer ids than the teacher; any of them take the same time.
        rate = _exact_rate(model, replace(one, ids=one.ids.clamp(max=student.vocab_size - 1)))
        del model
        identity = CacheIdentity(
            teacher_digest="0" * 64,
            tokenizer_digest="0" * 64,
            vocabulary_size=vocabulary.teacher_size,
            temperature=1.0,
            codec=recipe.capture.codec,
            codec_version=VERSIONS[recipe.capture.codec.kind],
            seed=0,
            dtype="stated",
        )
        writer = CacheWriter.open(Path(folder) / "cache", identity)
        random = torch.Generator().manual_seed(0)
        for row, counts in zip(few.addresses, few.counts, strict=True):
            for address, count in zip(row, counts, strict=True):
                if address not in writer:
                    scores = torch.randn(count, min(4096, vocabulary.teacher_size), generator=random).mul(3)
                    best, ids = scores.log_softmax(1).topk(min(teacher.top, scores.shape[1]), dim=1)
                    writer.add_listed(address, CoarseSignal(ids, best, (1 - best.exp().sum(1)).clamp_min(0)))
        writer.flush()
        cache = TeacherCache.open(Path(folder) / "cache")
        shards = sum(entry.bytes for entry in cache.manifest.shards)
        trained = _trained(_Trial(recipe, few, vocabulary, cache, student, Path(folder), device), base)
        return Profile(
            base_bytes=base,
            load_seconds=0.0,
            load_bytes=0,
            # No one knows how fast the server is before it was asked; one answer per second and slot is a slow one.
            capture_rate=float(teacher.concurrency * few.length),
            capture_bytes=0,
            bytes_per_position=shards / max(1, cache.positions),
            cache_bytes=folder_bytes(cache.folder) - shards,
            exact_rate=rate,
            matrix_rate=matrix_rate(few.length),
            **trained,
        )


def _captured(teacher: Teacher, sequences: Sequences, writer: CacheWriter, recipe: Recipe) -> None:
    quiet = Task("", 1, "", quiet=True)
    capture(teacher, sequences, writer, recipe.capture.temperature, sequences.length, 1 << 30, quiet)


@torch.inference_mode()
def _exact_rate(model: CausalModel, one: Sequences) -> float:
    device = next(model.parameters()).device
    best = float("inf")
    for _ in range(2):
        ids, positions = one.ids.to(device), one.positions.to(device)
        wait_for(device)
        begun = time.perf_counter()
        hidden_states(model, ids, positions)
        wait_for(device)
        best = min(best, time.perf_counter() - begun)
    return one.length / best


def matrix_rate(rows: int, width: int = 1024) -> float:
    """Floating-point operations per second of a float32 matrix product, the best within 0.2 seconds."""
    left, right = torch.randn(rows, width), torch.randn(width, width)
    best = 0.0
    begun = time.perf_counter()
    while time.perf_counter() - begun < 0.2:
        started = time.perf_counter()
        left @ right
        best = max(best, 2 * rows * width * width / (time.perf_counter() - started))
    return best


@dataclass(frozen=True)
class _Step:
    tokens: int
    seconds: float
    peak: int


class _Steps(Training):
    """A training that leaves nothing behind: its steps are measured, and writing files is no part of them."""

    def _save(self, optimizer: torch.optim.Optimizer, state: State) -> None:
        pass

    def _keep(self, path: Path) -> None:
        pass

    def restore(self, path: Path) -> None:
        pass


@dataclass(frozen=True)
class _Trial:
    """Training steps of a student with random weights."""

    recipe: Recipe
    sequences: Sequences
    vocabulary: VocabularyMap
    cache: TeacherCache
    student: ModelConfig
    folder: Path
    device: torch.device

    def measure(self, per_step: int) -> _Step:
        """The fastest of a few steps of so many sequences, and the memory that they took."""
        from transformers import AutoModelForCausalLM

        length = self.sequences.length
        per_step = min(per_step, len(self.sequences))
        source = BatchSource(self.sequences.take(per_step), self.vocabulary, self.cache)
        config = self.recipe.distill.model_copy(
            update={
                "batch_tokens": per_step * length,
                "micro_batch_tokens": None,
                "epochs": 3,
                "evaluate_every": 1 << 30,
            }
        )
        moments: list[float] = []

        def note(**values: Any) -> None:
            if "event" not in values:
                moments.append(time.perf_counter())

        release_memory()  # of the step before
        with MemoryMeter() as meter:
            model = AutoModelForCausalLM.from_config(copy.deepcopy(self.student), dtype=torch.float32)
            if config.lora is not None:
                attach(model, config.lora, choose_dtype(config.precision, self.device.type), 0)
            model = model.to(self.device)
            folder = self.folder / f"trial-{per_step}"
            folder.mkdir()
            _Steps(
                title="pilot",
                model=model,
                config=config.model_copy(update={"learning_rate": 1e-6, "checkpoint_seconds": 1e9}),
                train=source,
                validation=BatchSource(self.sequences.take(1), self.vocabulary, self.cache),
                distill=True,
                folder=folder,
                seed=0,
                device=self.device,
                used=self.vocabulary.student_used,
                progress=Progress(quiet=True),
                event=note,
            ).run()
        steps = [later - earlier for earlier, later in itertools.pairwise(moments)]
        return _Step(per_step * length, min(steps), meter.peak)
