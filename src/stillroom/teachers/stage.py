"""The stage `capture`: the teacher's signal for every training and validation token."""

from __future__ import annotations

import time

from stillroom.core import files
from stillroom.core.progress import Progress
from stillroom.corpus.sequences import Sequences
from stillroom.models.compute import choose_dtype, prepare
from stillroom.runs.run import Run, Stage
from stillroom.signals.cache.reader import TeacherCache
from stillroom.signals.cache.writer import CacheWriter
from stillroom.teachers.capture import cache_identity, capture
from stillroom.teachers.local import LocalTeacher
from stillroom.teachers.registry import open_teacher


def run_stage(run: Run, stage: Stage, progress: Progress) -> None:
    """Capture what the cache lacks; verify what a killed process left."""
    recipe = run.recipe
    config = recipe.capture
    device = prepare(recipe.compute, recipe.seed)
    progress.say("  loading the teacher")
    teacher = open_teacher(recipe.teacher, device, choose_dtype(recipe.teacher.dtype, device.type))
    for note in teacher.loaded.notes if isinstance(teacher, LocalTeacher) else ():
        progress.say(f"  {note}")
    corpus = run.stage("corpus").path
    splits = [Sequences.load(corpus / f"{name}.safetensors") for name in ("train", "validation")]
    folder = config.path or stage.path / "cache"
    identity = cache_identity(teacher, config.codec, config.temperature, recipe.seed, splits[0].length)
    started = time.monotonic()
    writer = CacheWriter.open(folder, identity)
    with progress.task("capture", total=sum(len(split) * split.length for split in splits)) as task:
        for split in splits:
            capture(teacher, split, writer, config.temperature, config.batch_tokens, config.shard_tokens, task)
    seconds = time.monotonic() - started
    cache = TeacherCache.open(folder)
    files.write_json(stage.path / "teacher.json", teacher.record())
    stage.notes.update(
        bytes_per_position=cache.bytes_per_position,
        codec=config.codec.model_dump(mode="json"),
        tokens_per_second=round((task.done - task.begun_at) / seconds, 1) if seconds > 0 else None,
    )
