"""Several teachers: which piece is learned from which, mixtures of them, and where the signals of each are.

A *route* is what some sources are learned from: one teacher, or several with weights. The signals of the recipe's own
`teacher` are in the cache's folder, as always; those of every other route are in a cache of their own below it, named by what
they are made of, so that another routing asks no teacher twice.

Legend: N positions of a sequence that have a target, V ids of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stillroom.core import files
from stillroom.core.errors import CacheDamaged, RecipeError, SignalError, TeacherError
from stillroom.corpus.sequences import Sequences
from stillroom.models.load import load_tokenizer, teacher_config
from stillroom.recipe.capture import HiddenCodec
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.routes import OWN, Route
from stillroom.recipe.teacher import EndpointTeacher as EndpointConfig
from stillroom.recipe.teacher import Teacher as TeacherConfig
from stillroom.runs.run import Run
from stillroom.runs.stages import CACHE, MORE_TEACHERS, ROUTES, TEACHERS
from stillroom.signals.cache.reader import TeacherCache
from stillroom.signals.routed import RoutedSignals, Signals
from stillroom.teachers.teacher import Capability, Teacher, Vocabulary, require

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class MixedTeacher:
    """A :class:`stillroom.teachers.teacher.Teacher` whose distribution is the weighted mean of others' of one vocabulary.

    Attributes:
        teachers: They give whole distributions.
        weights: One for each, above 0; they sum to 1.
        label: How people call it.
    """

    teachers: tuple[Teacher, ...]
    weights: tuple[float, ...]
    label: str

    @property
    def name(self) -> str:
        """How people call it."""
        return self.label

    @property
    def vocabulary(self) -> Vocabulary:
        """Of the teacher with the most ids."""
        return max((teacher.vocabulary for teacher in self.teachers), key=lambda vocabulary: vocabulary.size)

    @property
    def identity(self) -> Mapping[str, str]:
        """Digests of all of them with their weights, and of the tokenizer of the first."""
        parts = sorted(
            [*sorted(teacher.identity.items()), weight]
            for teacher, weight in zip(self.teachers, self.weights, strict=True)
        )
        return {
            "teacher": files.digest_json({"mean_of": parts}),
            "tokenizer": self.teachers[0].identity["tokenizer"],
        }

    @property
    def licence(self) -> str | None:
        """None: each has its own (``record``)."""
        return None

    @property
    def dtype(self) -> str:
        """The dtypes that they compute in."""
        return "+".join(dict.fromkeys(teacher.dtype for teacher in self.teachers))

    @property
    def capabilities(self) -> frozenset[Capability]:
        """Whole distributions."""
        return frozenset(("dense",))

    def record(self) -> dict[str, Any]:
        """What a run keeps of the mean; each of them has a record of its own."""
        return {
            "name": self.name,
            "family": None,
            "digest": self.identity["teacher"],
            "tokenizer_digest": self.identity["tokenizer"],
            "licence": None,
            "parameters": sum(teacher.record()["parameters"] for teacher in self.teachers),
            "bytes": None,
            "dtype": self.dtype,
        }

    def batch_tokens(self, length: int) -> int:
        """As many as the one that takes the fewest."""
        return min(teacher.batch_tokens(length) for teacher in self.teachers)

    def score(
        self, sequences: Sequences, indices: Sequence[int], temperature: float = 1.0
    ) -> Iterator[tuple[int, Iterator[torch.Tensor]]]:
        """Log-probs of the mean of the distributions: :meth:`stillroom.teachers.teacher.Teacher.score`."""
        asked = [teacher.score(sequences, indices, temperature) for teacher in self.teachers]
        for found in zip(*asked, strict=True):
            yield found[0][0], self._mean([scores for _, scores in found])

    def _mean(self, scores: Sequence[Iterator[torch.Tensor]]) -> Iterator[torch.Tensor]:
        """The mean of one sequence's distributions, some positions at a time."""
        size = self.vocabulary.size
        shares = [math.log(weight) for weight in self.weights]
        for parts in zip(*scores, strict=True):
            if len({len(part) for part in parts}) > 1:
                # A teacher of another package may give other numbers of positions at a time.
                whole = [torch.cat([part, *rest]) for part, rest in zip(parts, scores, strict=True)]
                parts = tuple(whole)
            yield mean_logprobs([part.float().log_softmax(1) for part in parts], shares, size)


def mean_logprobs(logprobs: Sequence[torch.Tensor], shares: Sequence[float], size: int) -> torch.Tensor:
    """Log-probs of the weighted mean of distributions, [N, size].

    Args:
        logprobs: Each [N, V] with V at most ``size``; an id that one of them does not have is impossible there.
        shares: Logarithms of the weights.
        size: Ids of the vocabulary.
    """
    found = torch.full((logprobs[0].shape[0], size), float("-inf"), device=logprobs[0].device)
    for part, share in zip(logprobs, shares, strict=True):
        found[:, : part.shape[1]] = torch.logaddexp(found[:, : part.shape[1]], part + share)
    return found


def any_endpoint(recipe: Recipe) -> bool:
    """Whether a teacher that is learned from is behind an endpoint: held-out text is then captured, too."""
    everyone = recipe.every_teacher
    return any(isinstance(everyone[name], EndpointConfig) for route in recipe.routes for name in route.names)


def require_fitting(recipe: Recipe) -> None:
    """Refuse, before anything is spent, teachers that one student cannot learn from together.

    Raises:
        RecipeError: Names the teacher and the reason: another tokenizer, a mixture of what cannot be mixed, a codec that one of
            them cannot serve.
    """
    if not recipe.teachers:
        return
    everyone = recipe.every_teacher
    codec = recipe.capture.codec
    if isinstance(recipe.capture.path, str):
        raise RecipeError(
            f"`capture.path: {recipe.capture.path}` is in an object store, which serves one teacher; the recipe has several.",
            "Name a folder as `capture.path`, or leave it out.",
        )
    for route in recipe.routes:
        if len(route.weights) == 1:
            continue
        served = [name for name in route.names if isinstance(everyone[name], EndpointConfig)]
        if served:
            raise RecipeError(
                f"`{route.label}` mixes the teacher `{served[0]}`, which is behind an endpoint: lists of the most probable "
                "tokens do not say what the mean of two distributions is.",
                "Name one teacher for each source, or mix teachers that are models on this machine.",
            )
        if isinstance(codec, HiddenCodec):
            raise RecipeError(
                f"`capture.codec: {{kind: hidden}}` keeps one teacher's hidden states, and `{route.label}` is a mixture.",
                "Use the codec `threshold`, or name one teacher for each source.",
            )
    own = load_tokenizer(recipe.teacher)
    known, size = own.get_vocab(), _size(recipe.teacher, len(own))
    for key, theirs in other_tokenizers(recipe).items():
        name = key.removeprefix("teachers.")
        other = other_token(known, theirs.get_vocab(), OWN, name)
        if other is not None:
            raise RecipeError(
                f"`{key}` has another tokenizer than `{OWN}`: {other}. Distributions over other vocabularies can "
                "be neither mixed nor put into one student's training.",
                "Use teachers of one vocabulary.",
            )
        rows = _size(everyone[name], len(theirs))
        if rows > size:
            raise RecipeError(
                f"`{key}` has {rows:,} rows in its output layer, and `{OWN}` has {size:,}.",
                f"Make it the recipe's `{OWN}`: a teacher with fewer rows than `{OWN}` is taken.",
            )


def other_tokenizers(recipe: Recipe) -> dict[str, PreTrainedTokenizerFast]:
    """The tokenizers of the teachers that are learned from besides the recipe's own, by their keys."""
    return {f"teachers.{name}": load_tokenizer(config) for name, config in recipe.learned_from.items() if name != OWN}


def other_token(known: Mapping[str, int], vocabulary: Mapping[str, int], own: str, name: str) -> str | None:
    """The first token that two vocabularies have another id for, in words; None where they are the same.

    Args:
        known: Ids by token.
        vocabulary: Those of the other.
        own: What the first is called.
        name: What the other is called.
    """
    if vocabulary == known:
        return None
    token = next(
        (token for token in sorted(known, key=lambda item: known[item]) if vocabulary.get(token) != known[token]), None
    )
    if token is None:
        return f"`{name}` has {len(vocabulary) - len(known):,} tokens that `{own}` lacks"
    return f"the token {token!r} has id {known[token]} in `{own}` and {vocabulary.get(token, 'none')} in `{name}`"


def _size(config: TeacherConfig, tokens: int) -> int:
    return max(tokens, int(getattr(teacher_config(config), "vocab_size", 0) or 0))


def mixed(route: Route, opened: Mapping[str, Teacher]) -> Teacher:
    """The teacher of a route: one of those that are open, or a mixture of them.

    Raises:
        TeacherError: One of a mixture gives no whole distributions.
    """
    if len(route.weights) == 1:
        return opened[route.names[0]]
    for name in route.names:
        require(opened[name], "dense", f"The mixture `{route.label}`")
    return MixedTeacher(
        tuple(opened[name] for name in route.names), tuple(weight for _, weight in route.weights), route.label
    )


def folder_of(base: Path, route: Route, identity: Mapping[str, str]) -> Path:
    """Where the signals of a route are, inside a cache's folder."""
    if route.names == (OWN,):
        return base
    return base / MORE_TEACHERS / files.digest_json(dict(identity))[:16]


def route_of_pieces(routes: Sequence[Route], splits: Sequence[Sequences]) -> dict[str, int]:
    """The number of the route of each piece, by its address."""
    of_source = {source: number for number, route in enumerate(routes) for source in route.sources}
    found: dict[str, int] = {}
    for split in splits:
        for address, source in split.piece_sources().items():
            # The same stretch of text may be in two sources; the first split and source decide.
            found.setdefault(address, of_source[source])
    return found


def open_signals(run: Run, copies: Path | None = None) -> Signals:
    """The captured signals of a run: one teacher's cache, or those of several behind one face.

    Args:
        run: The run; its stage `capture` is finished.
        copies: Where copies of what is read from an object store are kept.

    Raises:
        SignalError: There is no cache that this program can read.
        CacheDamaged: One is damaged.
    """
    stage = run.stage("capture").path
    base = run.recipe.capture.path or stage / CACHE
    if not run.recipe.teachers:
        return TeacherCache.open(base, copies)
    assert isinstance(base, Path)
    try:
        kept = files.read_json(stage / ROUTES)
        caches = [TeacherCache.open(base / entry["folder"]) for entry in kept["routes"]]
        sources = [tuple(entry["sources"]) for entry in kept["routes"]]
        size = int(kept["vocabulary_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CacheDamaged(f"{stage / ROUTES} cannot be read: {error}.", "Give the same `run` again.") from None
    routes = [Route((), numbers) for numbers in sources]
    corpus = run.stage("corpus").path
    splits = [Sequences.load(corpus / f"{name}.safetensors") for name in splits_of(run.recipe)]
    if not caches:
        raise SignalError(f"{stage / ROUTES} names no cache.", "Give the same `run` again.")
    return RoutedSignals(caches, route_of_pieces(routes, splits), size)


def splits_of(recipe: Recipe) -> tuple[str, ...]:
    """The splits that several teachers capture; one behind an endpoint cannot be asked later."""
    return ("train", "validation", "heldout") if any_endpoint(recipe) else ("train", "validation")


def licence_of_all(records: Sequence[Mapping[str, Any]]) -> str | None:
    """One SPDX expression for what several teachers state; None where one of them states nothing."""
    stated = [record.get("licence") for record in records]
    if not stated or any(not licence for licence in stated):
        return None
    return " AND ".join(dict.fromkeys(str(licence) for licence in stated))


def records_of(run: Run) -> list[dict[str, Any]]:
    """What a run keeps of each of its teachers, the recipe's own first: ``called`` and ``sources`` beside what
    ``teacher.json`` has. One teacher where the recipe has one.
    """
    stage = run.stage("capture").path
    path = stage / TEACHERS
    if path.is_file():
        found: list[dict[str, Any]] = files.read_json(path)
        return found
    if (stage / "teacher.json").is_file():
        return [files.read_json(stage / "teacher.json")]
    raise TeacherError(f"{run.path}: the run has no captured teacher.", "Finish it: stillroom run RECIPE.")
