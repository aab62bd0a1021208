"""Captures what an endpoint lists: pieces are scored side by side, kept as they come, and cached once they are confirmed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import torch

from stillroom.core import files
from stillroom.core.errors import CacheDamaged, StillroomError, TeacherError
from stillroom.core.progress import Task
from stillroom.corpus.sequences import IGNORED, Sequences
from stillroom.recipe.capture import ObservedCodec
from stillroom.signals.cache.manifest import NAME as MANIFEST
from stillroom.signals.cache.manifest import Manifest
from stillroom.signals.cache.observed import Observed
from stillroom.signals.cache.writer import CacheWriter
from stillroom.signals.signal import CoarseSignal
from stillroom.teachers.aside import FINGERPRINT, earlier, make_way, settle, take_up
from stillroom.teachers.endpoint.probe import Fingerprint, require_same
from stillroom.teachers.endpoint.received import Received
from stillroom.teachers.endpoint.teacher import EndpointTeacher


@dataclass(frozen=True)
class Piece:
    """A text to be scored.

    Attributes:
        address: In the cache.
        ids: Its tokens.
        learned: Which positions have a target, [tokens - 1] bool.
    """

    address: str
    ids: list[int]
    learned: torch.Tensor


def pieces_of(splits: Iterable[Sequences]) -> list[Piece]:
    """Every piece of some splits, once.

    Raises:
        TeacherError: Rows are not made of pieces: attention goes across documents there, and no server does that.
    """
    found: dict[str, Piece] = {}
    for split in splits:
        if not split.by_piece:
            raise TeacherError(
                "With `corpus.cross_documents` a sequence is several documents in one, which an endpoint cannot score.",
                "Leave `corpus.cross_documents` out.",
            )
        for row, addresses in enumerate(split.addresses):
            segments, targets = split.segments[row], split.targets[row]
            for number, address in zip(sorted(set(segments[segments >= 0].tolist())), addresses, strict=True):
                if address in found:
                    continue
                inside = segments == number
                ids, learned = split.ids[row][inside], (targets[inside] != IGNORED)[:-1]
                found[address] = Piece(address, ids.tolist(), learned)
    return list(found.values())


def known_teacher(teacher: EndpointTeacher, folder: Path) -> EndpointTeacher:
    """The teacher with the fingerprint that a cache was begun with.

    Raises:
        LookupError: None was begun there.
        TeacherError: Another model answers than the cache is of; or the probe failed.
    """
    known = begun_with(folder, teacher.config.model, teacher.server.top)
    if known is None:
        raise LookupError(folder)
    require_same(teacher.server, known)
    return EndpointTeacher(teacher.config, teacher.server, teacher.tokenizer, known)


def begun_with(folder: Path, model: str, top: int) -> Fingerprint | None:
    """The fingerprint that a cache was begun with, where it is of this model and of so many ids per position, or of all where
    its vocabulary has fewer.

    Raises:
        CacheDamaged: It cannot be read. Without it what was paid for is no one's, and would be paid for again.
    """
    path = folder / FINGERPRINT
    if not path.is_file():
        return None
    try:
        known = Fingerprint.from_dict(files.read_json(path))
    except ValueError:
        known = None
    if known is None or not known.ids:
        raise CacheDamaged(
            f"{path} cannot be read: by it the endpoint's model is known again.",
            "Put it back from a copy; or move the cache away, to ask and pay for everything again.",
        )
    return known if known.model == model and len(known.ids[0]) == min(top, _vocabulary_size(folder, top)) else None


def _vocabulary_size(folder: Path, otherwise: int) -> int:
    """Ids of the distribution that a cache is of; another number where its manifest cannot be read."""
    try:
        return Manifest.load(folder).identity.vocabulary_size
    except StillroomError:
        return otherwise


def set_aside(folder: Path, model: str, codec: ObservedCodec, seed: int) -> str | None:
    """Make way in the folder of a run's own cache that is of another model or other settings, and take up the one of these
    again if it was set aside before.

    Args:
        folder: The cache's.
        model: That is asked for.
        codec: What is kept of each distribution.
        seed: Of the cache.

    Returns:
        What became of another cache that was there, for the user; None where there was none.

    Raises:
        CacheDamaged: A fingerprint cannot be read.
    """

    def fits(cache: Path) -> bool:
        known = begun_with(cache, model, codec.k)
        try:
            identity = Manifest.load(cache).identity
        except StillroomError:
            return False
        return known is not None and identity.codec == codec and identity.seed == seed

    settle(folder)
    found = make_way(folder) if (folder / MANIFEST).is_file() and not fits(folder) else None
    if not (folder / MANIFEST).is_file():
        before = next((cache for cache in earlier(folder) if fits(cache)), None)
        if before is not None:
            take_up(before, folder)
    return found


def capture_listed(
    teacher: EndpointTeacher,
    pieces: list[Piece],
    writer: CacheWriter,
    received: Received,
    codec: Observed,
    shard_tokens: int,
    task: Task,
    say: Callable[[str], None],
) -> int:
    """Score every piece that the cache lacks.

    Args:
        teacher: The teacher, with its fingerprint.
        pieces: What is wanted.
        writer: The cache.
        received: Where answers are kept until they are confirmed.
        codec: Of the cache.
        shard_tokens: Positions after which what is confirmed is written.
        task: Shows progress, in tokens.
        say: Tells the user something.

    Returns:
        Pieces that an interrupted attempt had received already.

    Raises:
        TeacherError: A request failed for good, an answer is wrong, the cap is reached, or another model answers. What was
            confirmed is in the cache; what was received since then is kept, or thrown away where another model answers.
        OSError: A file cannot be written. What was received and written before is kept, likewise.
    """
    assert teacher.fingerprint is not None
    todo = [piece for piece in pieces if piece.address not in writer]
    task.skip(sum(len(piece.ids) for piece in pieces) - sum(len(piece.ids) for piece in todo))
    kept = received.read()
    waiting = {piece.address: kept[piece.address] for piece in todo if piece.address in kept}
    recovered = len(waiting)
    if recovered:
        say(f"  {recovered:,} answers of an interrupted attempt are used: nothing is paid for twice")
    for piece in todo:
        if piece.address in waiting:
            task.advance(len(piece.ids))
    todo = [piece for piece in todo if piece.address not in waiting]

    def confirm() -> None:
        """Put what was received into the cache, if the same model still answers."""
        assert teacher.fingerprint is not None
        try:
            require_same(teacher.server, teacher.fingerprint)
        except TeacherError as error:
            if "another model" in error.what:
                received.clear()
            raise
        for address, signal in waiting.items():
            writer.add_listed(address, signal)
        writer.flush()
        received.clear()
        waiting.clear()

    stop = threading.Event()

    def scored(piece: Piece) -> tuple[Piece, CoarseSignal]:
        if stop.is_set():
            raise CancelledError
        whole = teacher.server.score(piece.ids, piece.address)
        chosen = CoarseSignal(whole.ids[piece.learned], whole.logprobs[piece.learned], whole.rest[piece.learned])
        # As the cache will have it, so that what is recovered after a kill is the same to the bit.
        signal = codec.observe(chosen)
        received.add(piece.address, signal)
        return piece, signal

    pool = ThreadPoolExecutor(teacher.config.concurrency, "endpoint")
    try:
        # Between two checks of the model nothing is under way, so that each answer is clearly before or after one.
        for group in _groups(todo, teacher.config.check_every, shard_tokens):
            failure: BaseException | None = None
            for future in as_completed([pool.submit(scored, piece) for piece in group]):
                if future.cancelled():
                    continue
                error = future.exception()
                if error is not None and failure is None:
                    # What is under way is paid for: it is waited for and kept, and nothing new is begun.
                    failure = error
                    stop.set()
                elif error is None:
                    piece, signal = future.result()
                    waiting[piece.address] = signal
                    task.advance(len(piece.ids))
            if failure is not None:
                raise failure
            confirm()
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
    if waiting:
        confirm()
    teacher.server.client.ledger.settle()
    return recovered


def _groups(pieces: list[Piece], requests: int, positions: int) -> Iterator[list[Piece]]:
    """Pieces in order, in groups of at most so many requests and about so many positions."""
    group: list[Piece] = []
    inside = 0
    for piece in pieces:
        group.append(piece)
        inside += len(piece.ids)
        if len(group) >= requests or inside >= positions:
            yield group
            group, inside = [], 0
    if group:
        yield group
