"""The stage `capture` with several teachers: one route after the other, each into a cache of its own."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import torch

from stillroom.core import files
from stillroom.core.errors import TeacherError
from stillroom.core.memory import release_memory
from stillroom.core.progress import Progress
from stillroom.corpus.build import has_chats
from stillroom.corpus.sequences import Sequences
from stillroom.models.compute import choose_dtype, prepare
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.routes import OWN, Route
from stillroom.recipe.teacher import EndpointTeacher as EndpointConfig
from stillroom.runs.run import Run, Stage
from stillroom.runs.stages import CACHE, MORE_TEACHERS, ROUTES, TEACHERS, WRITTEN_RECORD
from stillroom.signals.cache.reader import TeacherCache
from stillroom.teachers.capture import BEGUN, cache_identity, capture, held_before, open_writer
from stillroom.teachers.endpoint.capture import begun_with, known_teacher, pieces_of
from stillroom.teachers.endpoint.stage import listed, listening, opened, require_possible
from stillroom.teachers.local import LocalTeacher
from stillroom.teachers.registry import open_teacher
from stillroom.teachers.several import folder_of, mixed, other_tokenizers, route_of_pieces, splits_of
from stillroom.teachers.teacher import Teacher, learned_from
from stillroom.teachers.tokenizers import differences


def run_stage(run: Run, stage: Stage, progress: Progress) -> None:
    """Capture what the caches lack."""
    recipe = run.recipe
    require_possible(recipe)
    device = prepare(recipe.compute, recipe.public_seed)
    corpus = run.stage("corpus").path
    unlike = differences(recipe, other_tokenizers(recipe), chats=has_chats(corpus))
    progress.say_each(unlike)
    splits = [Sequences.load(corpus / f"{name}.safetensors") for name in splits_of(recipe)]
    routes = recipe.routes
    of_piece = route_of_pieces(routes, splits)
    base = recipe.capture.path or stage.path / CACHE
    assert isinstance(base, Path)
    records: dict[str, dict[str, Any]] = {}
    kept: list[dict[str, Any]] = []
    results: list[Any] = []
    sizes: list[int] = []
    started = time.monotonic()
    for number, route in enumerate(routes):
        wanted = {address for address, other in of_piece.items() if other == number}
        progress.say(f"  {route.label}: {len(wanted):,} pieces")
        mine = [part for part in (split.only(wanted.intersection(split.digests)) for split in splits) if len(part)]
        found = _Route(run, stage, route, base, device, progress)
        notes = found.ask(mine, records, sizes)
        kept.append(
            {"label": route.label, "sources": list(route.sources), "weights": dict(route.weights)}
            | {"folder": str(found.folder.relative_to(base)), "pieces": len(wanted)}
            | notes
        )
        results.append([found.identity, sorted(wanted)])
        release_memory()
    everyone = []
    for name in recipe.learned_from:
        if name not in records:
            # The recipe's own is not learned from on any source; the student is made from it.
            records[name] = _opened(recipe, name, device).record()
        everyone.append(
            records[name]
            | {"called": name}
            | {"learned_from": [dict(route.weights) for route in routes if name in route.names]}
            | {"sources": [source for route in routes if name in route.names for source in route.sources]}
        )
    if recipe.write is not None and recipe.write.by not in recipe.learned_from:
        everyone.append(_writer(run, recipe.write.by))
    files.write_json(stage.path / "teacher.json", records[OWN])
    files.write_json(stage.path / TEACHERS, everyone)
    files.write_json(stage.path / ROUTES, {"vocabulary_size": max(sizes), "routes": kept})
    stage.result = files.digest_json([results, [learned_from(record) for record in everyone]])
    caches = [TeacherCache.open(base / entry["folder"]) for entry in kept]
    positions = sum(cache.positions for cache in caches)
    stage.notes.update(
        bytes_per_position=sum(cache.bytes_per_position * cache.positions for cache in caches) / max(1, positions),
        codec=recipe.capture.codec.model_dump(mode="json"),
        tokens_per_second=None,
        seconds_of_routes=round(time.monotonic() - started, 3),
        reused=sum(entry["reused"] for entry in kept),
        routes=kept,
        **({"tokenizers_differ": unlike} if unlike else {}),
    )


class _Route:
    """One route's capture."""

    def __init__(
        self, run: Run, stage: Stage, route: Route, base: Path, device: torch.device, progress: Progress
    ) -> None:
        self.run, self.stage, self.route, self.base, self.device = run, stage, route, base, device
        self.progress = progress
        self.folder = base
        self.identity: dict[str, Any] = {}

    def ask(self, splits: list[Sequences], records: dict[str, dict[str, Any]], sizes: list[int]) -> dict[str, Any]:
        """Capture what its cache lacks of these pieces.

        Args:
            splits: The pieces.
            records: Takes what is kept of each teacher, by its name in the recipe.
            sizes: Takes the sizes of vocabularies.

        Returns:
            What ``routes.json`` has of it besides.
        """
        recipe = self.run.recipe
        config = recipe.every_teacher[self.route.names[0]]
        if isinstance(config, EndpointConfig):
            return self._listed(config, splits, records, sizes)
        opened = {name: _opened(recipe, name, self.device) for name in self.route.names}
        for name, teacher in opened.items():
            records[name] = teacher.record()
            for note in teacher.loaded.notes if isinstance(teacher, LocalTeacher) else ():
                self.progress.say(f"  {name}: {note}")
        teacher = mixed(self.route, opened)
        sizes.append(teacher.vocabulary.size)
        self.folder = folder_of(self.base, self.route, teacher.identity)
        identity = cache_identity(teacher, recipe.capture.codec, recipe.capture.temperature, recipe.capture.seed)
        self.identity = identity.model_dump(mode="json")
        return {"reused": self._captured(teacher, splits), "spent": None}

    def _captured(self, teacher: Teacher, splits: list[Sequences]) -> int:
        config, folder = self.run.recipe.capture, self.folder
        wanted = [address for split in splits for address in split.digests]
        identity = cache_identity(teacher, config.codec, config.temperature, config.seed)
        own = config.path is None
        writer = open_writer(folder, identity, wanted, own=own, progress=self.progress)
        begun = Path(BEGUN)
        tag = str(folder.relative_to(self.base)).replace("/", "-").strip(".-")
        before = held_before(writer, self.stage.scratch / f"{begun.stem}{tag and '-' + tag}{begun.suffix}")
        total = sum(len(split) * split.length for split in splits)
        with self.progress.task("capture", total=total) as task:
            for split in splits:
                capture(
                    teacher, split, writer, config.temperature, config.batch_tokens, config.shard_tokens, task, before
                )
        writer.close()
        return len(before.intersection(wanted))

    def _listed(
        self,
        config: EndpointConfig,
        splits: list[Sequences],
        records: dict[str, dict[str, Any]],
        sizes: list[int],
    ) -> dict[str, Any]:
        (name,) = self.route.names
        # What an endpoint is told apart by is known once it answers; the folder goes by what it is asked for.
        asked = {"model": config.model, "name": name}
        self.folder = folder_of(self.base, self.route, asked)
        self._take_over(config, name)
        pieces = pieces_of(splits)
        with listening(self.run, config, name, self.folder, pieces, self.progress) as teacher:
            found = listed(self.run, teacher, pieces, self.folder, name, self.progress)
            sizes.append(teacher.vocabulary.size)
        records[name] = found.record
        self.identity = found.identity
        return {"reused": found.notes["reused"], "spent": found.notes["spent"]}

    def _take_over(self, config: EndpointConfig, name: str) -> None:
        """Take the cache of an endpoint that the recipe called otherwise before, where the same model answers."""
        run = self.run
        if self.folder.exists() or run.recipe.capture.path is not None:
            return
        now = {
            folder_of(self.base, Route(((other, 1.0),), ()), {"model": known.model, "name": other})
            for other, known in run.recipe.every_teacher.items()
            if isinstance(known, EndpointConfig)
        }
        orphans = [
            cache
            for cache in sorted((self.base / MORE_TEACHERS).glob("*"))
            if cache not in now and begun_with(cache, config.model, config.top) is not None
        ]
        if not orphans:
            return
        teacher = opened(run, config, name)
        try:
            for cache in orphans:
                with contextlib.suppress(TeacherError):
                    known_teacher(teacher, cache)
                    cache.rename(self.folder)
                    self.progress.say(f"  the same model was captured under another name: `{name}` takes its cache")
                    return
        finally:
            teacher.close()


def _writer(run: Run, name: str) -> dict[str, Any]:
    """What a run keeps of a teacher that writes and is not learned from otherwise."""
    written = files.read_json(run.stage("write").path / WRITTEN_RECORD)["writer"]
    digest = written.get("digest") or files.digest_json({"model": written["name"]})
    known = {
        key: written.get(key)
        for key in ("name", "family", "licence", "parameters", "tokenizer_digest", "bytes", "dtype")
    }
    known |= {key: written[key] for key in ("quantization",) if key in written}
    return known | {"digest": digest, "called": name, "learned_from": [], "sources": [], "role": "writer"}


def _opened(recipe: Recipe, name: str, device: torch.device) -> Teacher:
    config = recipe.every_teacher[name]
    return open_teacher(config, device, choose_dtype(config.dtype, device.type))
