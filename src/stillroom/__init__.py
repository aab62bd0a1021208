"""Stillroom turns a large language model into a small one that its owner can run, prove and switch off.

The verbs of the command line are functions here, with the same meaning::

    import stillroom as st

    run = st.run("recipe.yaml")           # the whole path; again: resume
    st.plan("recipe.yaml")                # what it will take, before anything is spent
    st.report(run)                        # summary.json and report.html again
    st.answer(run, "What is a list?")     # ask the student
    model, tokenizer = run.student()      # the student as transformers has it

Wherever a function takes a recipe it takes its file, a dict, a :class:`Recipe`, a run or a run's folder; ``overrides`` change
keys of it: ``st.run("recipe.yaml", overrides={"distill.epochs": 2})``. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datetime

    from stillroom.core.errors import StillroomError as StillroomError
    from stillroom.packages.sign import SignedNow as SignedNow
    from stillroom.recipe.reading import load_recipe as load_recipe
    from stillroom.recipe.recipe import Recipe as Recipe
    from stillroom.runs.run import Run as Run
    from stillroom.serving.ask import Chat as Chat
    from stillroom.signals.cache.reader import TeacherCache as TeacherCache
    from stillroom.verification.verification import VerifiedPackage as VerifiedPackage

__all__ = [
    "Chat",
    "Recipe",
    "Run",
    "SignedNow",
    "StillroomError",
    "TeacherCache",
    "VerifiedPackage",
    "answer",
    "capture",
    "chat",
    "compare",
    "distill",
    "evaluate",
    "export",
    "load_recipe",
    "package",
    "plan",
    "report",
    "run",
    "serve",
    "shrink",
    "sign",
    "verify",
]


StageCallback = Callable[[str, Mapping[str, Any]], None]
"""Called with a stage's name and its event: ``{"event": "begun", "resumed": …}`` or ``{"event": "finished", "seconds": …}``."""
StepCallback = Callable[[str, Mapping[str, Any]], None]
"""Called with the name of a training stage and the numbers of a step: ``{"step": …, "loss": …, …}``."""


def run(
    recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe | Run,
    runs: str | os.PathLike[str] | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    until: str | None = None,
    quiet: bool = False,
    on_stage: StageCallback | None = None,
    on_step: StepCallback | None = None,
    secret: str | os.PathLike[str] | None = None,
) -> Run:
    """Do a recipe's whole path, or go on with it: finished stages that still hold are skipped, others are resumed.

    Args:
        recipe: A recipe's file, a dict, a recipe, a run or its folder.
        runs: The folder that holds runs; without it, ``runs`` beside the recipe's file (in the working directory for a
            recipe that is no file), or ``runs`` in the working directory where that holds a run of this name. Not used for a
            run's folder.
        overrides: Values by dotted keys of the recipe, such as ``{"distill.epochs": 2}``.
        until: The last stage to do; all of them without it.
        quiet: Draw no progress.
        on_stage: Called when a stage begins and when it is finished.
        on_step: Called after every training step, and after every validation (``event`` is ``validation`` then).
        secret: The file `lineage.secret` of another run, whose order of training and initial weights are to be repeated; for
            a recipe without ``seed``.

    Returns:
        The run, with ``summary.json`` and ``report.html`` in its folder when all stages are done.

    Raises:
        StillroomError: With a message for the user; nothing that was finished is lost.
    """
    from stillroom import pipeline

    return pipeline.run(
        recipe, runs, overrides=overrides, until=until, quiet=quiet, on_stage=on_stage, on_step=on_step, secret=secret
    )


def plan(
    recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe | Run,
    runs: str | os.PathLike[str] | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    quiet: bool = True,
) -> dict[str, Any]:
    """What a recipe will take, and whether it fits, before anything is spent.

    Args:
        recipe: As in :func:`run`.
        runs: As in :func:`run`; a corpus that a run there has finished is used.
        overrides: As in :func:`run`.
        quiet: Draw no progress.

    Returns:
        Parameters, tokens, file sizes, and for each stage seconds, bytes of memory and of disk; ``verdict`` is ``go`` or
        ``stop``.

    Raises:
        StillroomError: What the stages would raise: the recipe cannot be carried out as written.
    """
    from stillroom.pipeline import recipe_and_root
    from stillroom.planning.plan import make_plan

    return make_plan(*recipe_and_root(recipe, runs, overrides), quiet=quiet)


def capture(
    recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe | Run,
    runs: str | os.PathLike[str] | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    quiet: bool = False,
    on_stage: StageCallback | None = None,
) -> Run:
    """Do the stage `capture`, and what it needs: the teacher's signals in the cache. Arguments as in :func:`run`."""
    return _stage("capture", recipe, runs, overrides, quiet, on_stage, None)


def shrink(
    recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe | Run,
    runs: str | os.PathLike[str] | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    quiet: bool = False,
    on_stage: StageCallback | None = None,
) -> Run:
    """Do the stage `shrink`, and what it needs: the pruned and repaired student. Arguments as in :func:`run`."""
    return _stage("shrink", recipe, runs, overrides, quiet, on_stage, None)


def distill(
    recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe | Run,
    runs: str | os.PathLike[str] | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    quiet: bool = False,
    on_stage: StageCallback | None = None,
    on_step: StepCallback | None = None,
) -> Run:
    """Do the stage `distill`, and what it needs: the trained student. Arguments as in :func:`run`."""
    return _stage("distill", recipe, runs, overrides, quiet, on_stage, on_step)


def evaluate(
    recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe | Run,
    runs: str | os.PathLike[str] | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    quiet: bool = False,
    on_stage: StageCallback | None = None,
    on_step: StepCallback | None = None,
) -> Run:
    """Do the stage `evaluate`, and what it needs: the student against its teacher. Arguments as in :func:`run`."""
    return _stage("evaluate", recipe, runs, overrides, quiet, on_stage, on_step)


def export(
    recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe | Run,
    runs: str | os.PathLike[str] | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    quiet: bool = False,
    on_stage: StageCallback | None = None,
    on_step: StepCallback | None = None,
) -> Run:
    """Do the stage `export`, and what it needs: files that devices run. Arguments as in :func:`run`."""
    return _stage("export", recipe, runs, overrides, quiet, on_stage, on_step)


def _stage(
    name: str,
    recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe | Run,
    runs: str | os.PathLike[str] | None,
    overrides: Mapping[str, Any] | None,
    quiet: bool,
    on_stage: StageCallback | None,
    on_step: StepCallback | None,
) -> Run:
    from stillroom import pipeline

    return pipeline.run_stage(recipe, name, runs, overrides=overrides, quiet=quiet, on_stage=on_stage, on_step=on_step)


def report(run: str | os.PathLike[str] | Run) -> dict[str, Any]:
    """Write ``summary.json`` and ``report.html`` of a finished run again; returns the summary.

    Raises:
        RunError: There is no run in this folder, or a stage of it is not finished.
    """
    from stillroom.pipeline import finish
    from stillroom.runs.run import Run as RunFolder

    return finish(RunFolder.open(run))


def compare(*runs: str | os.PathLike[str] | Run) -> dict[str, Any]:
    """Set the students of several finished runs side by side, paired with the first.

    Raises:
        StillroomError: They were not measured on the same text, or one is not finished.
    """
    from stillroom.evaluation.compare import compare_runs

    return compare_runs([Path(folder) for folder in runs])


def package(
    run: str | os.PathLike[str] | Run,
    out: str | os.PathLike[str] | None = None,
    *,
    sequence: int = 1,
    released: datetime.date | None = None,
    grace_days: int = 30,
    at_expiry: str = "refuse",
    safetensors: bool = False,
    open_weights: bool = True,
    teacher_operations: float | None = None,
    destinations: Iterable[str] = (),
    denied: Iterable[str | os.PathLike[str]] = (),
) -> Path:
    """Write a finished run's package: files, bill of materials, provenance, terms, scores, policy, licences.

    Args:
        run: A finished run or its folder.
        out: The folder to write; ``package`` in the run's folder without it.
        sequence: Number among the releases of this name, from 1.
        released: The day; today in UTC without it.
        grace_days: Days offline beyond expiry.
        at_expiry: ``refuse`` or ``warn``, after the grace.
        safetensors: Carry the full-precision weights too.
        open_weights: Whether the weights are published.
        teacher_operations: Training operations of the teacher, where they are known.
        destinations: Countries or parties that it goes to.
        denied: Files of destinations that it may not go to.

    Returns:
        The package's folder. Sign it with :func:`sign`.

    Raises:
        UsageError: A value is none of those allowed.
        StillroomError: The run is not finished, or its terms do not allow a package.
    """
    from stillroom.core.errors import UsageError
    from stillroom.packages.pack import PackOptions, pack
    from stillroom.runs.run import Run as RunFolder

    if at_expiry not in ("refuse", "warn"):
        raise UsageError(f"at_expiry={at_expiry!r} is not known.", "Give refuse or warn.")
    options = PackOptions(
        sequence=sequence,
        released=released,
        grace_days=grace_days,
        at_expiry=at_expiry,  # type: ignore[arg-type]
        safetensors=safetensors,
        open_weights=open_weights,
        teacher_operations=teacher_operations,
        destinations=tuple(destinations),
        denied=tuple(Path(path) for path in denied),
    )
    return pack(RunFolder.open(run), None if out is None else Path(out), options)


def sign(
    package: str | os.PathLike[str],
    keys: str | os.PathLike[str] = "keys",
    *,
    passphrase: str,
    names: Iterable[str] | None = None,
) -> SignedNow:
    """Sign a package with every release key at hand, or add signatures to it.

    Args:
        package: Its folder.
        keys: The folder of keys.
        passphrase: Opens the keys.
        names: Sign with these keys only.

    Raises:
        UsageError: There is no package, or no key.
    """
    from stillroom.packages.keys import Ring
    from stillroom.packages.sign import sign_package

    return sign_package(Path(package), Ring.open(Path(keys)), passphrase, None if names is None else list(names))


def verify(
    package: str | os.PathLike[str],
    *,
    trust: str | os.PathLike[str] | None = None,
    state: str | os.PathLike[str] | None = None,
    repository: str | None = None,
) -> VerifiedPackage:
    """Let a package prove itself; the result holds a private copy of what was verified, until it is closed.

    Args:
        package: Its folder.
        trust: A ``trust.json``, or a folder of them; this user's without it.
        state: Where this machine's trust state is; this user's state folder without it.
        repository: Read the publisher's metadata from this mirror.

    Raises:
        StillroomError: Says which proof is missing.
    """
    from stillroom.verification.verification import verify as verify_package

    return verify_package(
        Path(package),
        trust=None if trust is None else Path(trust),
        state=None if state is None else Path(state),
        repository=repository,
    )


def serve(
    *models: str | os.PathLike[str] | Run,
    host: str = "127.0.0.1",
    port: int = 8080,
    keys: Iterable[str] = (),
    allow_hosts: Iterable[str] = (),
    context: int = 4096,
    parallel: int = 4,
    queue: int = 32,
    threads: int | None = None,
    batch: int = 256,
    memory_bytes: int | None = None,
    idle_seconds: float | None = None,
    timeout: float = 600,
    drafter: str | os.PathLike[str] | Run | None = None,
    drafts: int = 4,
) -> None:
    """Serve models until interrupted: the OpenAI API, a chat page, and the switch.

    Args:
        models: Packages, runs or their folders, GGUF files.
        host: Address to listen on; another than loopback needs a key.
        port: Port; 0 takes a free one.
        keys: Keys, of which a client needs one; none without them.
        allow_hosts: Further names by which clients may call.
        context: Tokens of context, for each request.
        parallel: Requests answered at once, by each model.
        queue: Requests that may wait, for each model.
        threads: Threads of each model; all cores but one without it.
        batch: Tokens per prefill step.
        memory_bytes: Memory that all models together may take.
        idle_seconds: Time after which an unused model is unloaded.
        timeout: Longest time a request may take, in seconds.
        drafter: A small model of the same vocabulary that drafts tokens, which the served one accepts or not.
        drafts: Tokens that it drafts at a time.

    Raises:
        MissingDependency: The extra ``serve`` is not installed.
        SwitchedOff: The owner's switch is off.
        UsageError: No model is named, the address needs a key, or the drafter has another vocabulary.
    """
    from stillroom.core.extras import require

    require("serve", "The server needs packages that are not installed: {}.")
    from stillroom.serving.running import serve_models

    serve_models(
        [Path(model) for model in models],
        host,
        port,
        keys=list(keys),
        allow_hosts=list(allow_hosts),
        context=context,
        parallel=parallel,
        queue=queue,
        threads=threads,
        batch=batch,
        memory_bytes=memory_bytes,
        idle_seconds=idle_seconds,
        timeout=timeout,
        drafter=Path(drafter) if drafter is not None else None,
        drafts=drafts,
    )


def chat(model: str | os.PathLike[str] | Run, *, system: str | None = None, context: int = 2048) -> Chat:
    """Begin a conversation with a model.

    ::

        with st.chat(run) as chat:
            print(chat.say("What is a list?"))

    Args:
        model: A package, a run or its folder, or a GGUF file.
        system: What the model is told before the conversation.
        context: Tokens of context.

    Raises:
        SwitchedOff: The owner's switch is off.
        StillroomError: The model cannot be opened.
    """
    from stillroom.serving.ask import Chat as Conversation

    return Conversation(model, system=system, context=context)


def answer(
    model: str | os.PathLike[str] | Run,
    prompt: str,
    max_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
) -> str:
    """Ask a model once.

    Args:
        model: A package, a run or its folder, or a GGUF file.
        prompt: The question.
        max_tokens: Longest answer, in tokens.
        temperature: 0 always takes the most probable token.
        seed: Seed of the sampling.

    Raises:
        SwitchedOff: The owner's switch is off.
        StillroomError: The model cannot be opened.
    """
    from stillroom.serving.ask import answer as ask

    return ask(model, prompt, max_tokens, temperature, seed)


_CLASSES = {
    "Chat": "stillroom.serving.ask",
    "Recipe": "stillroom.recipe.recipe",
    "Run": "stillroom.runs.run",
    "SignedNow": "stillroom.packages.sign",
    "StillroomError": "stillroom.core.errors",
    "TeacherCache": "stillroom.signals.cache.reader",
    "VerifiedPackage": "stillroom.verification.verification",
    "load_recipe": "stillroom.recipe.reading",
}
"""Public names that are imported when they are first used, so that ``import stillroom`` stays light."""


if not TYPE_CHECKING:  # a type checker that saw this would take any misspelt name for one of type `Any`

    def __getattr__(name: str) -> Any:
        if name in _CLASSES:
            import importlib

            return getattr(importlib.import_module(_CLASSES[name]), name)
        raise AttributeError(f"module 'stillroom' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
