"""Capture in units: which sequences a cache lacks, divided into units, and how one process makes one of them.

Nothing here knows who starts the processes: a scheduler's array of jobs, Ray, or a loop. All divide the same corpus into
the same units, because that depends on the corpus, on the sealed manifest and on the recipe alone.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from stillroom.core import files
from stillroom.core.errors import UsageError
from stillroom.core.progress import Progress, Task
from stillroom.core.store import Store, open_store
from stillroom.corpus.mapped import MappedSequences, open_split
from stillroom.corpus.sequences import Sequences
from stillroom.models.compute import choose_dtype, prepare
from stillroom.recipe.recipe import Recipe
from stillroom.runs.run import Run
from stillroom.runs.stages import CACHE
from stillroom.signals.cache import parts
from stillroom.signals.cache.identity import CacheIdentity
from stillroom.signals.cache.manifest import MODEL, Manifest
from stillroom.signals.cache.reader import TeacherCache
from stillroom.signals.cache.shard import Encoded, entry_of, shard_bytes
from stillroom.signals.cache.writer import CacheWriter
from stillroom.teachers.capture import cache_identity, capture
from stillroom.teachers.local import LocalTeacher
from stillroom.teachers.registry import open_teacher
from stillroom.teachers.teacher import Teacher

SPLITS = ("train", "validation")
PILOT_TOKENS = 16_384
"""Tokens of the first sequences from which the codec learns how to pack: about a shard of a capture in one process."""


@dataclass(frozen=True)
class Unit:
    """Some rows of one split.

    Attributes:
        name: Its content's name.
        split: Number of the split in :data:`SPLITS`.
        begin: Its first row among the rows that are missing.
        end: Behind its last row.
    """

    name: str
    split: int
    begin: int
    end: int


class Units:
    """The units of a capture, and how one is made: what every process of it has.

    Args:
        teacher: The teacher.
        recipe: The run's.
        splits: The splits of its corpus.
        store: Where the cache is.
    """

    def __init__(
        self, teacher: Teacher, recipe: Recipe, splits: Iterable[Sequences | MappedSequences], store: Store
    ) -> None:
        config = recipe.capture
        self.teacher = teacher
        self.recipe = recipe
        self.store = store
        self.identity: CacheIdentity = cache_identity(teacher, config.codec, config.temperature, config.seed)
        manifest = parts.begin(store, self.identity)
        whole = list(splits)
        self._rows = [_without(split, set()) for split in whole]
        self.model = self._learned(manifest)
        self.units = self._divided()
        others = {entry.name for entry in manifest.shards} - {parts.shard_key(unit.name) for unit in self.units}
        if others:
            self._leave_out(whole)

    def _leave_out(self, splits: list[Sequences | MappedSequences]) -> None:
        """Divide anew what is not in shards that are none of these units.

        A sealed unit is a unit still: where the rest were divided anew after each seal, a part would not be the same part any
        more. What one process captured is in numbered shards, and is left out. Only where the cache has units of another
        corpus or another size that share pieces with these, all that it holds is left out.
        """
        wanted = {address for split in splits for address in split.digests}
        with tempfile.TemporaryDirectory(prefix="stillroom-cache-") as copies:
            cache = TeacherCache.open(self.store.where, Path(copies))
            names = {entry.name for entry in cache.manifest.shards}
            numbered = {entry.name for entry in cache.manifest.shards if entry.number >= 0}
            for left_out in (set[str](), numbered, names):
                there = cache.addresses_in(left_out)
                self._rows = [_without(split, there) for split in splits]
                self.units = self._divided()
                others = names - left_out - {parts.shard_key(unit.name) for unit in self.units}
                if not wanted.intersection(cache.addresses_in(others)):
                    break

    def _divided(self) -> list[Unit]:
        """The rows in units."""
        model_sha256 = files.digest_bytes(self.model) if self.model else None
        found: list[Unit] = []
        for number, rows in enumerate(self._rows):
            per_unit = max(1, self.recipe.capture.unit_tokens // max(1, rows.length))
            for begin in range(0, len(rows), per_unit):
                end = min(begin + per_unit, len(rows))
                addresses = [address for row in rows.addresses[begin:end] for address in row]
                found.append(Unit(parts.unit_name(self.identity, model_sha256, addresses), number, begin, end))
        return found

    def missing(self) -> list[Unit]:
        """Units that are not noted as done, in order."""
        there = parts.done(self.store)
        return [unit for unit in self.units if unit.name not in there]

    def tokens(self, unit: Unit) -> int:
        """Tokens of a unit's rows."""
        return (unit.end - unit.begin) * self._rows[unit.split].length

    def make(self, unit: Unit) -> bool:
        """Capture a unit and put it into the store; returns whether it was the first of its name.

        Errors as in :func:`stillroom.teachers.capture.capture`.
        """
        writer = self._captured(self._rows[unit.split].part(slice(unit.begin, unit.end)), self.model)
        encoded = writer.encoded()
        data = shard_bytes(encoded)
        entry = entry_of(parts.shard_key(unit.name), data, encoded)
        device = "cpu"
        if isinstance(self.teacher, LocalTeacher):
            device = next(self.teacher.loaded.model.parameters()).device.type
        note = parts.PartNote(**entry.model_dump(exclude={"name"}), device=device)
        return parts.put_part(self.store, unit.name, data, note)

    def _captured(self, rows: Sequences, model: bytes = b"") -> _UnitWriter:
        writer = _UnitWriter(self.identity, self.store.where, model)
        with Progress(quiet=True).task("unit", total=len(rows) * rows.length) as task:
            capture(
                self.teacher,
                rows,
                writer,
                self.recipe.capture.temperature,
                self.recipe.capture.batch_tokens,
                len(rows) * rows.length + 1,
                task,
                set(),
            )
        return writer

    def _learned(self, manifest: Manifest) -> bytes:
        """How the codec packs: what the store has, or what is learned from the first rows and put there by the first one."""
        found = self.store.get(MODEL)
        if found is None and not manifest.shards:
            rows = next((rows for rows in self._rows if len(rows)), None)
            if rows is None:
                return b""
            learned = self._captured(rows.take(max(1, PILOT_TOKENS // rows.length))).learn()
            if not learned:
                return b""
            self.store.put_new(MODEL, learned)
            found = self.store.get(MODEL)
        return found or b""


class _UnitWriter(CacheWriter):
    """Holds the signals of one unit in memory; nothing is written.

    Args:
        identity: Of the cache.
        where: The store, for messages.
        model: How the codec packs; empty where that is still to be learned. It is there before the capture, so that a cache
            with hidden states refuses a teacher that has another output layer.
    """

    def __init__(self, identity: CacheIdentity, where: str, model: bytes) -> None:
        super().__init__(Path(), Manifest(identity=identity), set())
        self.where = where
        if model:
            self._codec.recall(model)

    def flush(self) -> None:
        """Nothing: the unit is one shard."""

    def learn(self) -> bytes:
        """What the codec learns from what was sampled."""
        return self._codec.learn([sequence.sample for sequence in self._waiting])

    def encoded(self) -> list[Encoded]:
        """The unit's sequences, packed."""
        return self._encoded(self._waiting)


def _without(split: Sequences | MappedSequences, there: set[str]) -> Sequences | MappedSequences:
    """A split without some addresses: the rows that a capture in one process has, so that the signals are the same to the bit
    on the CPU.
    """
    wanted = set(split.digests) - there
    return split if len(wanted) == len(split.digests) else split.only(wanted)


def splits_of(run: Run) -> list[Sequences | MappedSequences]:
    """The splits of a run's corpus."""
    corpus = run.stage("corpus").path
    return [open_split(corpus / f"{name}.safetensors") for name in SPLITS]


def where_of(run: Run) -> str | Path:
    """Where a run's cache is."""
    return run.recipe.capture.path or run.stage("capture").path / CACHE


def open_units(run: Run) -> Units:
    """The units of a run's capture; the teacher is loaded."""
    recipe = run.recipe
    device = prepare(recipe.compute, recipe.public_seed)
    teacher = open_teacher(recipe.teacher, device, choose_dtype(recipe.teacher.dtype, device.type))
    return Units(teacher, recipe, splits_of(run), open_store(where_of(run)))


@dataclass(frozen=True)
class Share:
    """One of several equal shares of the units: ``3/64``."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Share:
        """Read ``3/64``.

        Raises:
            UsageError: It is no share.
        """
        number, slash, count = text.partition("/")
        if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise UsageError(
                f"--part {text}: not a part.", "Write which of how many, from 1: --part 3/64 is the third of 64."
            )
        return cls(int(number), int(count))

    def of(self, units: list[Unit]) -> list[Unit]:
        """The units of this share."""
        return units[self.number - 1 :: self.count]


@dataclass(frozen=True)
class PartDone:
    """What a process did: units of its share, those that were done before, and those that it made first."""

    units: int
    before: int
    made: int
    seconds: float


def capture_part(run: Run, share: Share, progress: Progress) -> PartDone:
    """Make the units of a share that are not done. Several processes may do this at once, for the same share too."""
    progress.say("  loading the teacher")
    units = open_units(run)
    mine = share.of(units.units)
    missing = {unit.name for unit in units.missing()}
    todo = [unit for unit in mine if unit.name in missing]
    started = time.monotonic()
    made = 0
    with progress.task(f"part {share.number}/{share.count}", total=sum(map(units.tokens, mine))) as task:
        task.skip(sum(units.tokens(unit) for unit in mine if unit.name not in missing))
        for first in _made(units, todo, task):
            made += first
    return PartDone(len(mine), len(mine) - len(todo), made, time.monotonic() - started)


def _made(units: Units, todo: list[Unit], task: Task) -> Iterator[bool]:
    for unit in todo:
        yield units.make(unit)
        task.advance(units.tokens(unit))
