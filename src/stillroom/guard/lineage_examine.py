"""All white-box tests of one suspect against one owner, as findings: the exact one, the calibrated one, and the base check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from stillroom.core import files
from stillroom.core.errors import UsageError
from stillroom.guard.findings import Finding, Findings, Rank, findings_of, subject_digest
from stillroom.guard.lineage import CANDIDATES, MOST_UNITS, SCAN_UNITS, OrderTest, unit_order
from stillroom.guard.lineage_weights import open_units
from stillroom.recipe.teacher import EndpointTeacher, GgufTeacher, HuggingFaceTeacher
from stillroom.runs.run import Run

LEVEL = -6.0
"""log10 of the p-value from which a finding says more than `cannot tell`."""
FIXED_SEED = (
    "the run's recipe fixes its randomness (`seed:` is explicit), so that anybody who gives the same seed repeats it"
)
"""Why a run with a seed has no evidence of grade A of its own."""
LEAST_CONTROLS = 39
"""Controls from which being first among them says more than `cannot tell`: 1 in 40."""


@dataclass(frozen=True)
class Owner:
    """The owner's model.

    Attributes:
        name: As given.
        model: A Hugging Face folder or a GGUF file.
        base: The model that it was made from, where its run says so: its units are in the base's order.
        run: Its run, where the owner's run was given.
        why_not_exact: Why its order of units is no secret of the owner's; empty where it is.
        from_base: Whether it was made from another model, whose units' order it has; None where nothing says.
        package_commitment: What a package's provenance says of the secret of its run.
    """

    name: str
    model: Path
    base: Path | None = None
    run: Run | None = None
    why_not_exact: str = ""
    from_base: bool | None = None
    package_commitment: str | None = None

    @property
    def commitment(self) -> str | None:
        """SHA-256 of the secret that ordered the units; None where they are in a base's order, or nothing is known."""
        if self.from_base is not False:
            return None
        return self.run.commitment if self.run is not None else self.package_commitment


@dataclass
class Examination:
    """What was examined: findings, subjects by name, notes."""

    findings: list[Finding] = field(default_factory=list)
    subjects: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def result(self) -> Findings:
        """The findings, dated."""
        return findings_of(self.findings, self.notes)


def open_owner(path: Path) -> Owner:
    """The owner's model: a run's folder, a package, a Hugging Face folder or a GGUF file.

    Raises:
        UsageError: It is none of these, or a run without a student.
    """
    if (path / "recipe.yaml").is_file():
        return _of_run(Run.open(path))
    if (path / "policy.json").is_file():
        found = sorted((path / "weights").rglob("*.gguf"), key=lambda file: file.stat().st_size)
        folders = sorted(file.parent for file in (path / "weights").rglob("config.json"))
        if found or folders:
            return _of_package(path, found[-1] if found else folders[0])
        raise UsageError(f"{path}: this package holds no weights that can be compared.", "Give the run's folder.")
    return Owner(str(path), open_units(path).path)


def _of_run(run: Run) -> Owner:
    for name in ("distill", "shrink"):
        stage = run.stage(name)
        if stage.record is not None:
            model = stage.path / "model"
            break
    else:
        raise UsageError(f"{run.path}: there is no student yet.", f"Make it: stillroom run {run.path}")
    student = run.recipe.student
    base: Path | None = None
    if student.kind != "fresh":
        teacher = run.recipe.teacher
        if student.kind == "existing":
            base = _local(HuggingFaceTeacher(name=student.name))
        else:
            base = _local(teacher)
        return Owner(str(run.path), model, base, run, from_base=True)
    return Owner(str(run.path), model, None, run, FIXED_SEED if run.recipe.seed is not None else "", from_base=False)


def _of_package(path: Path, model: Path) -> Owner:
    """A package, with what its provenance says of the student's origin and randomness."""
    try:
        definition = files.read_json(path / "provenance.json")["predicate"]["buildDefinition"]
        fresh = definition["externalParameters"]["recipe"]["student"]["kind"] == "fresh"
        randomness = definition["internalParameters"]["randomness"]
        seeded, commitment = randomness["kind"] == "seed", randomness["commitment"]
    except (OSError, ValueError, KeyError, TypeError):
        return Owner(str(path), model)  # written by an earlier version: nothing says
    if not fresh:
        return Owner(str(path), model, from_base=True)
    why = FIXED_SEED if seeded else ""
    return Owner(str(path), model, None, None, why, from_base=False, package_commitment=commitment)


def _local(config: HuggingFaceTeacher | GgufTeacher | EndpointTeacher) -> Path | None:
    if isinstance(config, EndpointTeacher):
        return None  # its weights are not here
    if isinstance(config, GgufTeacher):
        from stillroom.models.gguf_source import gguf_path

        try:
            return gguf_path(config.path)
        except UsageError:
            return None  # it is not here any more
    return Path(config.name) if Path(config.name).is_dir() else None


def examine(
    suspect: Path,
    owner: Owner,
    base: Path | None = None,
    controls: Path | None = None,
    text: str | None = None,
    *,
    match: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> Examination:
    """Test a suspect against an owner's model.

    Args:
        suspect: A Hugging Face folder or a GGUF file.
        owner: See :func:`open_owner`.
        base: The public model that both may stem from; without it, what the owner's run was made from.
        controls: A folder of models that are known to be independent: what the match is calibrated on.
        text: Text over which activations are compared; Python's documentation without it.
        match: Whether to run the models and compare activations too.
        say: Called with progress.

    Raises:
        UsageError: A model or the controls cannot be read.
    """
    base = base or owner.base
    made = Examination(subjects={f"suspect {suspect.name}": subject_digest(suspect)})
    made.subjects[f"owner {Path(owner.name).name}"] = subject_digest(owner.model)
    if base is not None:
        made.subjects[f"base {base.name}"] = subject_digest(base)
    compared = []
    if match and controls is not None:
        others = {"the suspect": suspect, "the owner's model": owner.model} | (
            {} if base is None else {"the base": base}
        )
        compared = independent_models(controls, others)
    say("comparing the order of units")
    with_owner = unit_order(suspect, owner.model)
    shared = None if base is None else unit_order(owner.model, base)
    with_base = None if base is None else unit_order(suspect, base)
    made.findings.append(_order_finding(owner, with_owner, shared, with_base))
    if same_weights(suspect, owner.model):
        made.notes.append("The suspect's weights are the owner's own, byte for byte.")
    if base is None and owner.from_base is None:
        made.notes.append(
            "No base model was given: if the owner's model was itself tuned or pruned from a public one, a match shows that "
            "both belong to its family and no more. Give it with --base; --no-base says that there is none."
        )
    if base is None and owner.from_base:
        made.notes.append(
            "The owner's model was made from another one, which is not here, and has the order of its units: a match shows "
            "that both belong to its family and no more. Give it with --base."
        )
    if match:
        made.findings.append(_match_finding(suspect, owner, base, compared, text, made, say))
    return made


def _significant(test: OrderTest | None) -> bool:
    return test is not None and test.log10_p is not None and test.log10_p <= LEVEL


def _order_finding(
    owner: Owner, with_owner: OrderTest, shared: OrderTest | None, with_base: OrderTest | None
) -> Finding:
    # Made from another model, it has that one's order of units, whether or not it is here to be compared.
    family = _significant(shared) or (shared is None and owner.from_base is True)
    statistic: dict[str, object] = {
        "decided_by": with_owner.statistic,
        "k": with_owner.k,
        "units_compared": with_owner.compared,
        "owner_units": with_owner.units,
        "layers": [list(entry) for entry in with_owner.layers],
    }
    if with_owner.reason:
        statistic["not_compared"] = with_owner.reason
    if shared is not None:
        statistic["owner_against_base_log10"] = shared.log10_p
    if with_base is not None:
        statistic["suspect_against_base_log10"] = with_base.log10_p
    exact = with_owner.log10_p is not None and not owner.why_not_exact
    cannot = ["who made the suspect, or by which method", "that a model was not copied, where it says `cannot tell`"]
    null = (
        f"the suspect was made independently of the training run that gave {Path(owner.name).name} its units, whose order "
        "came from a random initialisation that was drawn for it alone"
    )
    if not _significant(with_owner):
        verdict = "cannot tell"
        cannot.append("independence: units that were shuffled on purpose are not found by this test")
    elif family:
        verdict = "same family"
        null = (
            "the suspect was made independently of the training run of the base, from which the owner's model has the order "
            "of its units"
        )
        cannot.append("that it stems from the owner's model and not from another model of the same base")
    elif owner.why_not_exact:
        verdict = "same units, which proves nothing here"
        cannot.append(f"derivation from this run: {owner.why_not_exact}")
    elif shared is None and owner.from_base is None:
        verdict = "derived, or same family"
        cannot.append(
            "that it stems from the owner's model and not from its base or another model of that base, if the owner's was "
            "itself made from a public one (--base names it, --no-base says that there is none)"
        )
    else:
        verdict = "derived"
    if owner.why_not_exact:
        statistic["grade_a_ruled_out"] = owner.why_not_exact
    return Finding(
        test="lineage/unit-order",
        grade="A" if exact else "C",
        verdict=verdict,
        null=null,
        statistic=statistic,  # type: ignore[arg-type]
        log10_p=round(with_owner.log10_p, 3) if exact and with_owner.log10_p is not None else None,
        correction=f"Bonferroni over {with_owner.pairs} pairs of layers and two statistics"
        if with_owner.pairs
        else "none: nothing could be compared",
        cannot_conclude=tuple(cannot),
        parameters={
            "level_log10": LEVEL,
            "candidates": CANDIDATES,
            "scan_units": SCAN_UNITS,
            "most_units": MOST_UNITS,
        },
        commitment=owner.commitment,
    )


def _match_finding(
    suspect: Path,
    owner: Owner,
    base: Path | None,
    controls: list[Path],
    text: str | None,
    made: Examination,
    say: Callable[[str], None],
) -> Finding:
    from stillroom.guard.lineage_match import WORDS, activity_of, default_text, matched_share

    words = text if text is not None else default_text()
    say("matching activations")
    of_owner = activity_of(owner.model, words)
    share, layers = matched_share(activity_of(suspect, words), of_owner)
    among: list[float] = []
    for path in controls:
        say(f"control {path.name}")
        made.subjects[f"control {path.name}"] = subject_digest(path)
        among.append(matched_share(activity_of(path, words), of_owner)[0])
    of_base = None if base is None else matched_share(activity_of(base, words), of_owner)[0]
    rank = 1 + sum(value >= share for value in among)
    cannot = ["a p-value: no one knows how this statistic is distributed among independent models"]
    first = len(among) >= LEAST_CONTROLS and rank == 1
    if not first:
        verdict = "cannot tell"
        if len(among) < LEAST_CONTROLS:
            cannot.append(f"anything from {len(among)} controls: at least {LEAST_CONTROLS} are needed")
    elif of_base is not None and of_base > max(among):
        verdict = "same family"
        cannot.append("that it stems from the owner's model and not from another model of the same base")
    else:
        verdict = "more alike than all controls"
        cannot.append("derivation beyond doubt: the controls are what was compared with, not all models")
    statistic: dict[str, object] = {"matched_share": round(share, 5), "controls": len(among)}
    if among:
        statistic["best_control"] = round(max(among), 5)
    if of_base is not None:
        statistic["base_matched_share"] = round(of_base, 5)
    statistic["layers"] = [[other, round(value, 5)] for other, value in layers]
    return Finding(
        test="lineage/match",
        grade="B",
        verdict=verdict,
        null="the suspect is one more model like the controls, independent of the owner's",
        statistic=statistic,  # type: ignore[arg-type]
        rank=Rank(rank=rank, of=len(among) + 1) if among else None,
        correction="none: one statistic, and a rank",
        cannot_conclude=tuple(cannot),
        parameters={
            "words": WORDS,
            "text_sha256": files.digest_bytes(words.encode()),
            "least_controls": LEAST_CONTROLS,
        },
    )


def same_weights(one: Path, other: Path) -> bool:
    """Whether two models' files of weights hold the same bytes, whatever they are called."""
    sizes = [sorted(file.stat().st_size for file in _weights(path)) for path in (one, other)]
    return sizes[0] == sizes[1] and _weights_digest(one) == _weights_digest(other)


def _weights(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.glob("*.safetensors"))


def _weights_digest(path: Path) -> str:
    return files.digest_json(sorted(files.digest_file(file) for file in _weights(path)))


def independent_models(folder: Path, others: dict[str, Path]) -> list[Path]:
    """The controls of a folder: all different, and none of them a model of this examination.

    Args:
        folder: See :func:`control_models`.
        others: The models that are examined, by what they are called.

    Raises:
        UsageError: There is no control, one is there twice, or one is itself examined.
    """
    found = control_models(folder)
    by_size: dict[tuple[int, ...], list[tuple[str, Path]]] = {}
    for name, path in [*others.items(), *((str(path), path) for path in found)]:
        by_size.setdefault(tuple(sorted(file.stat().st_size for file in _weights(path))), []).append((name, path))
    for alike in by_size.values():
        seen: dict[str, tuple[str, Path]] = {}
        for name, path in alike if len(alike) > 1 else []:
            first, _ = seen.setdefault(_weights_digest(path), (name, path))
            if first != name and path in found:
                raise UsageError(
                    f"{path}: this control has the same weights as {first}; controls are different models, and independent "
                    "of those that are examined.",
                    "Take it out of the folder.",
                )
    return found


def control_models(folder: Path) -> list[Path]:
    """Models in a folder: subfolders with a config.json, and GGUF files.

    Raises:
        UsageError: There is none.
    """
    found = [
        path
        for path in (sorted(folder.iterdir()) if folder.is_dir() else [])
        if (path / "config.json").is_file() or path.suffix.lower() == ".gguf"
    ]
    if not found:
        raise UsageError(
            f"{folder} holds no control models.", "Put Hugging Face folders or GGUF files of independent models there."
        )
    return found
