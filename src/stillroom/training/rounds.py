"""On-policy distillation in rounds: the student writes, the teacher is captured on its text, training goes on with some of it.

One training with one learning-rate schedule is divided into stretches of equally many steps. Before each but the first, the
student of that step continues beginnings of training documents; the text becomes pieces in the teacher's ids, of which what
the student wrote is learned (GKD, arXiv 2306.13649, with text of a whole round in place of a step's); the teacher's signals
go into a cache beside the run's own, with the same codec; and rows of that text take the place of a share of the corpus's. So
the number of steps stays what it was, teacher and student are never in memory together, and each part is kept when it is
done.

In the stage's scratch folder, by the round's number n: ``own-n.jsonl`` while the student writes, ``own-n.safetensors`` its
pieces and ``own-n.json`` its counts once it has, ``own-n-scored.json`` once the teacher's signals are in ``own-cache``.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stillroom.core import files
from stillroom.core.errors import RunError, SignalError
from stillroom.core.memory import release_memory
from stillroom.core.progress import Progress
from stillroom.core.secret import library_seed
from stillroom.corpus.joined import JoinedSequences
from stillroom.corpus.mapped import MappedSequences, open_split
from stillroom.corpus.packing import best_fit
from stillroom.corpus.pieces import PieceFile, PieceList
from stillroom.corpus.sequences import IGNORED, Sequences
from stillroom.models.compute import choose_dtype
from stillroom.models.load import load_student
from stillroom.models.tokenizer import open_tokenizer
from stillroom.recipe.training import RoundsConfig
from stillroom.runs.run import Run, Stage
from stillroom.signals.batches import BatchSource
from stillroom.signals.cache.reader import TeacherCache
from stillroom.signals.projected import ProjectedEntropy
from stillroom.signals.routed import RoutedSignals, Signals
from stillroom.signals.vocabulary_map import VocabularyMap
from stillroom.teachers.capture import cache_identity, capture, held_before, open_writer
from stillroom.teachers.registry import open_teacher
from stillroom.training.batch_size import step_rows
from stillroom.training.checkpoint import STATE, State, load_weights, newest
from stillroom.training.loop import Stretch, Training
from stillroom.training.own_text import REASONS, Journal, OwnText, OwnWriter, require_beginnings, write_round
from stillroom.training.refusals import require_steps
from stillroom.training.schedule import batch_order

OWN_CACHE = "own-cache"
"""In the scratch folder: the cache of the teacher's signals on the student's text."""


@dataclass(frozen=True)
class Division:
    """The steps of a training in rounds.

    Attributes:
        order: Sequences of the corpus, step by step, as they are without rounds.
        rows: Sequences per full step.
        bounds: Steps after which each round ends.
        slots: For each round, which sequences are the student's own: numbers of step and place.
    """

    order: list[list[int]]
    rows: int
    bounds: list[int]
    slots: list[list[tuple[int, int]]]

    @classmethod
    def of(cls, order: list[list[int]], rows: int, rounds: RoundsConfig) -> Division:
        """Divide an order.

        Raises:
            RecipeError: There are fewer steps than rounds.
        """
        require_steps(len(order), rounds)
        bounds = [len(order) * (number + 1) // rounds.count for number in range(rounds.count)]
        slots: list[list[tuple[int, int]]] = [[]]
        for begin, end in itertools.pairwise(bounds):
            chosen: list[tuple[int, int]] = []
            seen = 0
            for step in range(begin, end):
                seen += len(order[step])
                # As many in each step as keep the share, so that no step is all of one kind unless it has to be.
                new = min(int(rounds.own_share * seen + 1e-9) - len(chosen), len(order[step]))
                chosen += [(step, place) for place in range(new)]
            slots.append(chosen)
        return cls(order, rows, bounds, slots)


TrainingOf = Callable[[BatchSource, Stretch], Training]
"""Makes a training of the student as it began, with these batches, for a stretch."""


class Rounds:
    """A training in rounds.

    Args:
        run: The run.
        stage: The stage `distill`.
        progress: Shows progress.
        signals: The captured signals of the corpus.
        vocabulary: From the teacher's ids to the student's.
        device: Where to compute.
        training_of: Makes the training of a stretch.
        projected: The teacher's entropy over the student's ids, where it was measured.
    """

    def __init__(
        self,
        run: Run,
        stage: Stage,
        progress: Progress,
        signals: Signals,
        vocabulary: VocabularyMap,
        device: torch.device,
        training_of: TrainingOf,
        projected: ProjectedEntropy | None = None,
    ) -> None:
        config = run.recipe.distill
        assert config.rounds is not None
        self.run, self.stage, self.progress, self.device = run, stage, progress, device
        self.rounds, self.vocabulary, self.training_of = config.rounds, vocabulary, training_of
        self.projected = projected
        # With another teacher that only writes there is one route all the same.
        cache = signals.caches[0] if isinstance(signals, RoutedSignals) else signals
        assert isinstance(cache, TeacherCache)
        self.cache: TeacherCache = cache
        self.corpus = open_split(run.stage("corpus").path / "train.safetensors")
        rows = step_rows(config, self.corpus.tokens, self.corpus.length)
        order = batch_order(len(self.corpus), rows, config.epochs, run.randomness)
        self.division = Division.of(order, rows, self.rounds)
        require_beginnings(self.corpus, self.rounds)
        self.seed = library_seed(run.randomness, "text that the student writes")

    def train(self) -> tuple[Training, State]:
        """Do all rounds, or go on with them; the training ends with the best weights. Errors as in :meth:`Training.run`."""
        training: Training | None = None
        silent = 0
        state = State()
        for number, until in enumerate(self.division.bounds):
            if number:
                training = None
                release_memory()
                self._write(number)
                self._score(number)
            if number + 1 < self.rounds.count and self._step() >= until:
                continue
            order, splits = self._order(number)
            stretch = Stretch(order, self.division.rows, until)
            training = self.training_of(self._source(splits), stretch)
            state = training.run()
            silent += training.silent
        assert training is not None
        training.silent = silent
        return training, state

    def _step(self) -> int:
        """Steps that the newest checkpoint has; 0 without one."""
        found = newest(self.stage.scratch)
        return 0 if found is None else int(files.read_json(found / STATE)["step"])

    def _path(self, number: int, ending: str) -> Path:
        return self.stage.scratch / f"own-{number + 1}{ending}"

    def _counts(self, number: int) -> dict[str, Any]:
        found: dict[str, Any] = files.read_json(self._path(number, ".json"))
        return found

    def _write(self, number: int) -> None:
        """Have the student write for a round, unless it has."""
        if self._path(number, ".json").is_file():
            return
        begin = self.division.bounds[number - 1]
        if self._step() != begin:
            raise RunError(
                f"{self._path(number, '.json')}: what the student wrote after step {begin} is missing, and it is trained "
                "further.",
                f"Remove {self.stage.path}, and give the same command again: training begins at its start.",
            )
        length, room = self.corpus.length, len(self.division.slots[number])
        started = time.monotonic()
        found = OwnText()
        if room:
            model, tokenizer = load_student(self.run.stage("shrink").path / "model", torch.float32)
            load_weights(self.stage.scratch, model)
            dtype = choose_dtype(self.run.recipe.distill.precision, self.device.type)
            teacher_tokenizer = open_tokenizer(self.run.stage("corpus").path / "tokenizer")
            writer = OwnWriter(
                model.to(device=self.device, dtype=dtype).eval(),
                tokenizer,
                self.vocabulary,
                teacher_tokenizer,
                self.rounds,
                length,
            )
            found = write_round(
                writer,
                self.corpus,
                room * length,
                [self.seed, number],
                Journal(self._path(number, ".jsonl")),
                self.progress,
                f"{self.stage.name}: the student writes, round {number + 1}",
            )
            del writer, model
            release_memory()
        learned = self._fitting(found, room)
        pieces = PieceList(length, 0, folder=self.stage.scratch)
        for index in learned:
            pieces.add([found.pieces[index]], 0)
        pieces.finish().save(self._path(number, ".safetensors"))
        seconds = round(time.monotonic() - started, 3)
        counts = found.counts() | {"learned_texts": len(learned), "seconds": seconds}
        files.write_json(self._path(number, ".json"), counts)
        self._path(number, ".jsonl").unlink(missing_ok=True)
        self.progress.say(
            f"  round {number + 1} of {self.rounds.count}: the student wrote {found.tokens:,} tokens in {found.texts:,} texts; "
            f"{len(learned):,} are learned"
        )
        for reason in REASONS:
            if found.left_out[reason]:
                self.progress.say(f"    left out: {reason}: {found.left_out[reason]:,}")
        if room and not learned:
            self.progress.say("    nothing that it wrote can be learned: this round has the corpus alone")

    def _fitting(self, found: OwnText, room: int) -> list[int]:
        """The texts of as many rows as there are places for, the fullest first, in the order in which they were written."""
        sizes = [len(piece.ids) for piece in found.pieces]
        packed = best_fit(sizes, self.corpus.length)
        fullest = sorted(packed, key=lambda row: -sum(sizes[index] for index in row))[:room]
        return sorted(index for row in fullest for index in row)

    def _split(self, number: int) -> MappedSequences:
        return MappedSequences(PieceFile(self._path(number, ".safetensors")))

    def _score(self, number: int) -> None:
        """Capture the teacher's signals on what the student wrote for a round, as far as no cache has them."""
        if self._path(number, "-scored.json").is_file():
            return
        recipe = self.run.recipe
        config = recipe.capture
        split = self._split(number)
        new = split.only({address for address in split.digests if address not in self.cache})
        started = time.monotonic()
        scored = 0
        if len(new):
            self.progress.say("  loading the teacher")
            teacher = open_teacher(recipe.teacher, self.device, choose_dtype(recipe.teacher.dtype, self.device.type))
            identity = cache_identity(teacher, config.codec, config.temperature, config.seed)
            difference = self.cache.identity.difference(identity, self.cache.manifest.version)
            if difference is not None:
                raise SignalError(
                    f"The teacher is not the one that the corpus was captured from: {difference}.",
                    "Give the same `run` again: what changed is captured anew.",
                )
            folder = self.stage.scratch / OWN_CACHE
            writer = open_writer(folder, identity, new.digests, own=True, progress=self.progress)
            before = held_before(writer, self._path(number, "-begun.json"))
            known = set(new.digests) & before
            scored = sum(new.row_tokens) - sum(new.only(known).row_tokens)
            title = f"{self.stage.name}: capture, round {number + 1}"
            with self.progress.task(title, total=len(new) * new.length) as task:
                capture(
                    teacher, new, writer, config.temperature, config.batch_tokens, config.shard_tokens, task, before
                )
            writer.close()
            del teacher
            release_memory()
        seconds = round(time.monotonic() - started, 3)
        files.write_json(self._path(number, "-scored.json"), {"scored_tokens": scored, "seconds": seconds})
        self.run.event(self.stage.name, event="round", round=number + 1, scored_tokens=scored, **self._counts(number))

    def _order(self, number: int) -> tuple[list[list[int]], list[Sequences | MappedSequences]]:
        """The order of the whole training as it is known in a round, and the splits that it counts through."""
        order = [list(rows) for rows in self.division.order]
        splits: list[Sequences | MappedSequences] = [self.corpus]
        for earlier in range(1, number + 1):
            begin = sum(map(len, splits))
            split = self._split(earlier)
            splits.append(split)
            slots = self.division.slots[earlier]
            if not len(split):
                continue
            random = np.random.default_rng([int(files.digest_json([self.seed, earlier, "order"])[:15], 16)])
            passes = -(-len(slots) // len(split))
            chosen = [row for _ in range(passes) for row in random.permutation(len(split)).tolist()]
            for (step, place), row in zip(slots, chosen, strict=False):
                order[step][place] = begin + row
        return order, splits

    def _source(self, splits: list[Sequences | MappedSequences]) -> BatchSource:
        """Batches of the corpus and of the student's own text."""
        own = {address for split in splits[1:] for address in split.digests if address not in self.cache}
        if not own:
            return BatchSource(JoinedSequences(splits), self.vocabulary, self.cache, self.projected)
        caches = [self.cache, TeacherCache.open(self.stage.scratch / OWN_CACHE)]
        routed = RoutedSignals(caches, _Routes.fromkeys(own, 1), self.cache.identity.vocabulary_size)
        return BatchSource(JoinedSequences(splits), self.vocabulary, routed, self.projected)

    def record(self) -> dict[str, Any]:
        """What was written, scored and learned, once all rounds are done: for the stage's notes."""
        order, splits = self._order(self.rounds.count - 1)
        targets = [count for split in splits for count in row_targets(split)]
        chosen = [row for rows in order for row in rows]
        own = sum(targets[row] for row in chosen if row >= len(self.corpus))
        total = sum(targets[row] for row in chosen)
        each = []
        for number in range(1, self.rounds.count):
            counts, scored = self._counts(number), files.read_json(self._path(number, "-scored.json"))
            rows, slots = len(splits[number]), len(self.division.slots[number])
            each.append(
                {"round": number + 1, "after_step": self.division.bounds[number - 1]}
                | {key: value for key, value in counts.items() if key != "seconds"}
                | {
                    "scored_tokens": scored["scored_tokens"],
                    "passes": round(slots / rows, 3) if rows else 0.0,
                    "writing_seconds": counts["seconds"],
                    "scoring_seconds": scored["seconds"],
                }
            )
        left_out: dict[str, int] = {}
        for entry in each:
            for reason, count in entry["left_out"].items():
                left_out[reason] = left_out.get(reason, 0) + count

        def summed(key: str) -> Any:
            return sum(entry[key] for entry in each)

        return {
            "count": self.rounds.count,
            "own_share": self.rounds.own_share,
            "texts": summed("texts"),
            "written_tokens": summed("written_tokens"),
            "learned_texts": summed("learned_texts"),
            "same_ids": summed("same_ids"),
            "cut": summed("cut"),
            "left_out": left_out,
            "scored_tokens": summed("scored_tokens"),
            "learned": {"corpus": total - own, "own": own},
            "learned_own_share": round(own / total, 4) if total else 0.0,
            "writing_seconds": round(summed("writing_seconds"), 3),
            "scoring_seconds": round(summed("scoring_seconds"), 3),
            "rounds": each,
        }


class _Routes(dict[str, int]):
    """The number of the cache of each piece: what is not listed is the corpus's."""

    def __missing__(self, key: str) -> int:
        return 0


def row_targets(split: Sequences | MappedSequences) -> list[int]:
    """Targets of each row, in the teacher's tokens."""
    if isinstance(split, MappedSequences) and split.by_piece:
        found: list[int] = split.layout.sums(np.asarray(split.file.targets)).tolist()
        return found
    return [int((split.part([row]).targets != IGNORED).sum()) for row in range(len(split))]
