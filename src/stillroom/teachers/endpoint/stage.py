"""The stage `capture` with a teacher behind an endpoint: of all three splits, since no later stage can ask it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.core import files
from stillroom.core.errors import CacheDamaged, RecipeError, SignalError, UsageError
from stillroom.core.progress import Progress
from stillroom.corpus.sequences import Sequences
from stillroom.recipe.capture import ObservedCodec
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.routes import OWN
from stillroom.recipe.student import DenseStudent, ShrinkStudent
from stillroom.recipe.teacher import EndpointTeacher as EndpointConfig
from stillroom.runs.run import Run, Stage
from stillroom.runs.stages import CACHE
from stillroom.signals.cache.observed import Observed
from stillroom.signals.cache.reader import TeacherCache
from stillroom.teachers.aside import FINGERPRINT, earlier
from stillroom.teachers.capture import cache_identity, open_writer
from stillroom.teachers.endpoint import ledger, received
from stillroom.teachers.endpoint.capture import (
    Piece,
    begun_with,
    capture_listed,
    known_teacher,
    pieces_of,
    set_aside,
)
from stillroom.teachers.endpoint.http import key_of
from stillroom.teachers.endpoint.probe import Fingerprint
from stillroom.teachers.endpoint.servers import TEXT_ONLY
from stillroom.teachers.endpoint.teacher import EndpointTeacher, open_endpoint, require_most
from stillroom.teachers.original import require_originals
from stillroom.teachers.several import folder_of, require_fitting, route_of_pieces, splits_of
from stillroom.teachers.teacher import learned_from

SPLITS = ("train", "validation", "heldout")


def require_possible(recipe: Recipe) -> None:
    """Refuse, before anything is spent, what the recipe's teachers cannot do, alone or together.

    Raises:
        RecipeError: Names the key, and what to do.
    """
    if isinstance(recipe.teacher, EndpointConfig) and isinstance(recipe.student, (ShrinkStudent, DenseStudent)):
        taken = "prunes" if isinstance(recipe.student, ShrinkStudent) else "takes"
        raise RecipeError(
            f"`student: {{kind: {recipe.student.kind}}}` {taken} the teacher's weights, and a teacher behind an endpoint has "
            "none here.",
            "Use `student: {kind: existing, name: FOLDER}` (a smaller model with its tokenizer) or `{kind: fresh, …}`, "
            "or a teacher on this machine.",
        )
    learned_from = {name for route in recipe.routes for name in route.names}
    for name, config in recipe.every_teacher.items():
        if isinstance(config, EndpointConfig) and (name in learned_from or name == OWN):
            _require_possible(recipe, config, name if name == OWN else f"teachers.{name}")
    if isinstance(recipe.teacher, EndpointConfig) and OWN not in learned_from:
        raise RecipeError(
            f"`{OWN}` is behind an endpoint, and no source is learned from it: it is asked for nothing, and nothing of it "
            "is here to make or evaluate a student by.",
            f"Make a teacher that is learned from the recipe's `{OWN}`, or have a source learned from it.",
        )
    require_fitting(recipe)
    require_originals(recipe)


def _require_possible(recipe: Recipe, teacher: EndpointConfig, key: str) -> None:
    """Refuse what one endpoint cannot do."""
    if teacher.server in TEXT_ONLY:
        raise RecipeError(
            f"`{key}` is learned from, and {TEXT_ONLY[teacher.server]}.",
            "Let it write instead (`write: {by: NAME}`), and learn from a teacher that can be scored.",
        )
    if teacher.server != "auto":
        require_most(teacher.server, teacher.top, key)
    if not isinstance(recipe.capture.codec, ObservedCodec):
        raise RecipeError(
            f"`capture.codec: {{kind: {recipe.capture.codec.kind}}}` needs the teacher's whole distribution, and an endpoint "
            "lists its most probable tokens.",
            f"Write `capture: {{codec: {{kind: observed, k: {teacher.top}}}}}`.",
        )
    if recipe.capture.codec.k != teacher.top:
        raise RecipeError(
            f"`capture.codec.k` is {recipe.capture.codec.k} and `{key}.top` is {teacher.top}: what is asked for is "
            "what is kept.",
            "Give both the same value.",
        )
    if recipe.capture.temperature != 1.0:
        raise RecipeError(
            f"`capture.temperature` is {recipe.capture.temperature:g}, and an endpoint lists probabilities at temperature 1.",
            "Leave it out, and `distill.temperature` too.",
        )
    if isinstance(recipe.capture.path, str):
        raise RecipeError(
            f"`capture.path: {recipe.capture.path}` is in an object store, into which a teacher on this machine captures unit "
            "by unit; what an endpoint lists is written into a folder.",
            "Name a folder as `capture.path`, or leave it out.",
        )


def require_keys(run: Run, stages: Container[str]) -> None:
    """Refuse, before anything is spent, to begin without the key of an endpoint that is still to be asked.

    Args:
        run: The run.
        stages: Names of those that are still to be done.

    Raises:
        TeacherError: Names the environment variable.
    """
    recipe = run.recipe
    keyed = {
        name: config.key_env
        for name, config in recipe.every_teacher.items()
        if isinstance(config, EndpointConfig) and config.key_env is not None
    }
    asked = keyed.keys() & recipe.learned_from if "capture" in stages else set()
    if asked and "corpus" not in stages:
        asked -= _captured(run, asked)
    if "write" in stages and recipe.write is not None:
        asked.add(recipe.write.by)
    for name, variable in keyed.items():
        if name in asked:
            key_of(variable)


def _captured(run: Run, names: Container[str]) -> set[str]:
    """Those of some endpoints of a run whose caches have all that is captured of them: they are asked for nothing."""
    recipe = run.recipe
    base = recipe.capture.path or run.stage("capture").path / CACHE
    if not isinstance(base, Path):
        return set()
    found: set[str] = set()
    corpus = run.stage("corpus").path
    splits = [Sequences.load(corpus / f"{name}.safetensors") for name in splits_of(recipe)]
    if not all(split.by_piece for split in splits):
        return found
    of_piece = route_of_pieces(recipe.routes, splits)
    for number, route in enumerate(recipe.routes):
        name = route.names[0]
        config = recipe.every_teacher[name]
        if name not in names or not isinstance(config, EndpointConfig):
            continue
        wanted = {address for address, other in of_piece.items() if other == number}
        pieces = pieces_of(part for split in splits if len(part := split.only(wanted.intersection(split.digests))))
        folder = folder_of(base, route, {"model": config.model, "name": name})
        for cache in (folder, *earlier(folder)):
            teacher = _of_cache(run, config, name, cache, pieces)
            if teacher is not None:
                teacher.close()
                found.add(name)
                break
    return found


def _pieces(run: Run) -> list[Piece]:
    """All that is captured of a run's corpus."""
    corpus = run.stage("corpus").path
    return pieces_of(Sequences.load(corpus / f"{name}.safetensors") for name in SPLITS)


def require_no_units(recipe: Recipe, what: str) -> None:
    """Refuse, before anything is spent, to capture in units what an endpoint lists.

    Args:
        recipe: The run's.
        what: What was asked for, such as ``--ray``.

    Raises:
        UsageError: The teacher is behind an endpoint, or there are several.
    """
    if isinstance(recipe.teacher, EndpointConfig):
        raise UsageError(
            f"{what}: several processes capture from a teacher on each of their machines, and this one is behind an endpoint.",
            "Leave it out: one process asks the endpoint, with many requests at the same time.",
        )
    if recipe.teachers:
        raise UsageError(
            f"{what}: several processes capture from one teacher, and this recipe has {1 + len(recipe.teachers)}.",
            "Leave it out: one process captures from one teacher after the other.",
        )


def run_stage(run: Run, stage: Stage, progress: Progress) -> None:
    """Capture what the cache lacks."""
    recipe = run.recipe
    assert isinstance(recipe.teacher, EndpointConfig)
    require_possible(recipe)
    pieces = _pieces(run)
    folder = recipe.capture.path or stage.path / CACHE
    assert isinstance(folder, Path)
    with listening(run, recipe.teacher, OWN, folder, pieces, progress) as teacher:
        found = listed(run, teacher, pieces, folder, OWN, progress)
    files.write_json(stage.path / "teacher.json", found.record)
    wanted = sorted({piece.address for piece in pieces})
    stage.result = files.digest_json([found.identity, wanted, learned_from(found.record)])
    stage.notes.update(found.notes)


@contextlib.contextmanager
def listening(
    run: Run, config: EndpointConfig, name: str, folder: Path, pieces: list[Piece], progress: Progress
) -> Iterator[EndpointTeacher]:
    """An endpoint, open and recognised; where its cache has everything, it is asked for nothing.

    Args:
        run: The run, in whose folder the record of spending is.
        config: The endpoint.
        name: What the recipe calls it.
        folder: Where its cache is or will be.
        pieces: What is wanted.
        progress: Tells what is found.

    Yields:
        The teacher with its fingerprint.
    """
    capture = run.recipe.capture
    assert isinstance(capture.codec, ObservedCodec)
    if capture.path is None and folder.is_dir():
        found = set_aside(folder, config.model, capture.codec, capture.seed)
        if found is not None:
            progress.say(found)
    with contextlib.suppress(SignalError, CacheDamaged):
        TeacherCache.verify_folder(folder)
    teacher = _of_cache(run, config, name, folder, pieces)
    known = teacher is not None
    if teacher is None:
        progress.say("  asking the endpoint" if name == OWN else f"  asking the endpoint `{name}`")
        teacher = opened(run, config, name)
    else:
        progress.say("  the cache has every piece: the endpoint is asked for nothing")
    try:
        yield teacher if known else _recognised(teacher, folder, progress)
    finally:
        teacher.close()


def opened(run: Run, config: EndpointConfig, name: str, known: Fingerprint | None = None) -> EndpointTeacher:
    """An endpoint of a run, whose record of spending is in the run's folder; see :func:`open_endpoint`."""
    spent = run.path / named(ledger.NAME, name)
    return open_endpoint(config, spent, earlier=spent_before(run), known=known)


def _of_cache(run: Run, config: EndpointConfig, name: str, folder: Path, pieces: list[Piece]) -> EndpointTeacher | None:
    """An endpoint as its cache knows it, where the cache has every piece; otherwise None."""
    known = begun_with(folder, config.model, config.top)
    if known is None:
        return None
    teacher = opened(run, config, name, known)
    capture = run.recipe.capture
    try:
        cache = TeacherCache.open(folder)
    except (SignalError, CacheDamaged):
        teacher.close()
        return None
    wanted = cache_identity(teacher, capture.codec, 1.0, capture.seed)
    fits = cache.identity.difference(wanted, cache.manifest.version) is None
    if fits and all(piece.address in cache for piece in pieces):
        return teacher
    teacher.close()
    return None


@dataclass(frozen=True)
class Listed:
    """What a capture came to.

    Attributes:
        record: What a run keeps of the teacher.
        identity: Of the cache, as JSON.
        notes: For the stage's record.
    """

    record: dict[str, Any]
    identity: dict[str, Any]
    notes: dict[str, Any]


def listed(
    run: Run, teacher: EndpointTeacher, pieces: list[Piece], folder: Path, name: str, progress: Progress
) -> Listed:
    """Capture what one endpoint's cache lacks of some pieces.

    Args:
        run: The run.
        teacher: From :func:`listening`.
        pieces: What is wanted.
        folder: Its cache.
        name: What the recipe calls the teacher.
        progress: Shows it.
    """
    config = run.recipe.capture
    assert isinstance(config.codec, ObservedCodec)
    folder.mkdir(parents=True, exist_ok=True)
    identity = cache_identity(teacher, config.codec, 1.0, config.seed)
    wanted = [piece.address for piece in pieces]
    own = config.path is None
    writer = open_writer(folder, identity, wanted, own=own, progress=progress)
    # Once the cache is open: one of something else was refused or begun anew by then.
    assert teacher.fingerprint is not None
    files.write_json(folder / FINGERPRINT, teacher.fingerprint.as_dict())
    before = len([address for address in wanted if address in writer])
    codec = Observed(config.codec.k, teacher.vocabulary.size)
    kept = received.Received(
        run.path / named(received.NAME, name), codec, files.digest_json(identity.model_dump(mode="json"))
    )
    for path in _of_names_before(run, received.NAME):
        kept.take_over(path)
    started = time.monotonic()
    with progress.task("capture", total=sum(len(piece.ids) for piece in pieces)) as task:
        recovered = capture_listed(teacher, pieces, writer, kept, codec, config.shard_tokens, task, progress.say)
    writer.close()
    seconds = time.monotonic() - started
    cache = TeacherCache.open(folder)
    if before:
        progress.say(f"  {before:,} of {len(wanted):,} pieces stood in the cache")
    totals = teacher.server.client.ledger.totals
    progress.say(
        f"  {totals.requests:,} requests of this run so far: {totals.tokens_in:,} tokens in, {totals.tokens_out:,} out"
        + (f", cost {totals.cost:.4g}" if totals.cost else "")
    )
    missing = missing_mass(cache, wanted)
    progress.say(f"  the listed ids miss {missing:.1%} of the probability")
    return Listed(
        teacher.record(),
        identity.model_dump(mode="json"),
        {
            "bytes_per_position": cache.bytes_per_position,
            "codec": config.codec.model_dump(mode="json"),
            "tokens_per_second": round((task.done - task.begun_at) / seconds, 1) if seconds > 0 else None,
            "reused": before + recovered,
            "missing_mass": round(missing, 5),
            "spent": {**vars(totals)},
        },
    )


def named(file: str, name: str) -> str:
    """A file of a run that belongs to one teacher; the recipe's own has the plain name."""
    path = Path(file)
    return file if name == OWN else f"{path.stem}-{name}{path.suffix}"


def spent_before(run: Run) -> list[Path]:
    """Files of what was spent under names that the run's recipe does not have any more: the cap is for all of it."""
    return _of_names_before(run, ledger.NAME)


def _of_names_before(run: Run, file: str) -> list[Path]:
    """Files of a run that belong to endpoints whose names its recipe does not have any more; see :func:`named`."""
    now = {named(file, name) for name, config in run.recipe.every_teacher.items() if isinstance(config, EndpointConfig)}
    pattern = Path(file)
    return [path for path in sorted(run.path.glob(f"{pattern.stem}*{pattern.suffix}")) if path.name not in now]


def missing_mass(cache: TeacherCache, addresses: list[str]) -> float:
    """Mean probability of all ids that are not listed, over the first pieces."""
    signal = cache.read(addresses[:64])[0]
    rest = getattr(signal, "rest", None)
    return float(rest.mean()) if rest is not None and len(rest) else 0.0


def _recognised(teacher: EndpointTeacher, folder: Path, progress: Progress) -> EndpointTeacher:
    """The teacher as the cache knows it; a new cache is begun with a probe."""
    try:
        return known_teacher(teacher, folder)
    except LookupError:
        teacher, found = teacher.probed()
    progress.say(
        f"  {found.kind}: {found.top} ids per position, {found.missing_mass:.1%} of the probability is not listed; "
        + (
            "answers are the same each time"
            if found.deterministic
            else f"answers differ by {found.fingerprint.noise:.1e} nats"
        )
    )
    if not found.tokenizer_checked:
        progress.say("  the server does not tell how it makes tokens: each answer is checked instead")
    return teacher
