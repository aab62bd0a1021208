"""The stage `capture`: the teacher's signal for every training and validation token."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from stillroom.core import files
from stillroom.core.errors import CacheDamaged, SignalError
from stillroom.core.progress import Progress
from stillroom.core.store import LocalStore, open_store
from stillroom.corpus.mapped import MappedSequences, open_split
from stillroom.corpus.sequences import Sequences
from stillroom.models.compute import choose_dtype, prepare
from stillroom.recipe.teacher import EndpointTeacher
from stillroom.runs.run import Run, Stage
from stillroom.runs.stages import CACHE
from stillroom.signals.cache import parts
from stillroom.signals.cache.identity import CacheIdentity
from stillroom.signals.cache.reader import TeacherCache
from stillroom.teachers.capture import BEGUN, cache_identity, capture, held_before, open_writer
from stillroom.teachers.local import LocalTeacher
from stillroom.teachers.registry import open_teacher
from stillroom.teachers.teacher import Teacher, learned_from
from stillroom.teachers.units import Units


def run_stage(run: Run, stage: Stage, progress: Progress) -> None:
    """Capture what the cache lacks; verify what a killed process left."""
    recipe = run.recipe
    if recipe.teachers:
        from stillroom.teachers.several_stage import run_stage as capture_several

        capture_several(run, stage, progress)
        return
    if isinstance(recipe.teacher, EndpointTeacher):
        from stillroom.teachers.endpoint.stage import run_stage as capture_endpoint

        capture_endpoint(run, stage, progress)
        return
    config = recipe.capture
    device = prepare(recipe.compute, recipe.public_seed)
    progress.say("  loading the teacher")
    teacher = open_teacher(recipe.teacher, device, choose_dtype(recipe.teacher.dtype, device.type))
    for note in teacher.loaded.notes if isinstance(teacher, LocalTeacher) else ():
        progress.say(f"  {note}")
    corpus = run.stage("corpus").path
    splits = [open_split(corpus / f"{name}.safetensors") for name in ("train", "validation")]
    folder = config.path or stage.path / CACHE
    if not isinstance(folder, Path):
        _capture_units(run, stage, teacher, splits, folder, progress)
        return
    _seal(folder, progress)
    identity = cache_identity(teacher, config.codec, config.temperature, config.seed)
    wanted = [address for split in splits for address in split.digests]
    writer = open_writer(folder, identity, wanted, own=config.path is None, progress=progress)
    before = held_before(writer, stage.scratch / BEGUN)
    started = time.monotonic()
    with progress.task("capture", total=sum(len(split) * split.length for split in splits)) as task:
        for split in splits:
            capture(teacher, split, writer, config.temperature, config.batch_tokens, config.shard_tokens, task, before)
    writer.close()
    seconds = time.monotonic() - started
    cache = TeacherCache.open(folder)
    files.write_json(stage.path / "teacher.json", teacher.record())
    # Signals are addressed by content: in which shards they are stored, and when, is no part of the result.
    stage.result = files.digest_json(
        [identity.model_dump(mode="json"), sorted(set(wanted)), learned_from(teacher.record())]
    )
    kept = len(before.intersection(wanted))
    if kept:
        progress.say(f"  {kept:,} of {len(set(wanted)):,} pieces stood in the cache")
    stage.notes.update(
        bytes_per_position=cache.bytes_per_position,
        codec=config.codec.model_dump(mode="json"),
        tokens_per_second=round((task.done - task.begun_at) / seconds, 1) if seconds > 0 else None,
        reused=kept,
    )


def _seal(folder: Path, progress: Progress) -> None:
    """Name the units that other processes captured; a cache that cannot be read is left to what follows."""
    store = LocalStore(folder)
    if not parts.done(store):
        return
    with contextlib.suppress(SignalError, CacheDamaged):
        sealed = parts.seal(store)
        if sealed.added or sealed.damages:
            progress.say(f"  {parts.seal_words(sealed)}")


def _capture_units(
    run: Run, stage: Stage, teacher: Teacher, splits: list[Sequences | MappedSequences], where: str, progress: Progress
) -> None:
    """Capture into an object store: unit by unit, and seal."""
    store = open_store(where)
    started = time.monotonic()
    sealed = parts.begin(store, cache_identity_of(teacher, run))
    kept = len(sealed.shards)
    while True:
        units = Units(teacher, run.recipe, splits, store)
        todo = units.missing()
        with progress.task("capture", total=sum(map(units.tokens, todo))) as task:
            for unit in todo:
                units.make(unit)
                task.advance(units.tokens(unit))
        done = parts.seal(store)
        progress.say(f"  {parts.seal_words(done)}")
        if not done.damages:
            break
    cache = TeacherCache.open(where, stage.scratch / CACHE)
    files.write_json(stage.path / "teacher.json", teacher.record())
    wanted = sorted({address for split in splits for address in split.digests})
    stage.result = files.digest_json([units.identity.model_dump(mode="json"), wanted, learned_from(teacher.record())])
    stage.notes.update(
        bytes_per_position=cache.bytes_per_position,
        codec=run.recipe.capture.codec.model_dump(mode="json"),
        tokens_per_second=None,
        seconds_of_units=round(time.monotonic() - started, 3),
        shards_before=kept,
        store=store.where,
    )


def cache_identity_of(teacher: Teacher, run: Run) -> CacheIdentity:
    """The identity of a run's cache."""
    config = run.recipe.capture
    return cache_identity(teacher, config.codec, config.temperature, config.seed)
