"""Is the student any good? A headline in words, each number rated against quality gates or defaults, and what to do next.

A recipe's own quality gates (`evaluate.floors`, `evaluate.ceilings`) decide where there are any. Without them, the defaults
below rate each number as good, fair or poor, and the worst rating is the student's. They are rules of thumb, not laws: what
is good enough depends on the use. With fewer than ten effective held-out documents there is no rating.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from stillroom.core.bounded import least
from stillroom.evaluation.intervals import ENOUGH, TOO_FEW
from stillroom.evaluation.words import percent

SYMBOLS = {"good": "✓", "fair": "≈", "poor": "✗", "unknown": "?"}
"""A rating is told by symbol and word as well as by colour."""
AGREEMENT = (0.70, 0.55)
"""Share of positions with the teacher's next token: good from, fair from."""
DIVERGENCE = (0.5, 1.0)
"""KL to the teacher, nats per token: good up to, fair up to."""
DEGENERATE = (0.10, 0.25)
"""Share of prompts by which the student's degenerate answers may exceed the teacher's: good up to, fair up to."""
LENGTH = (0.5, 0.25)
"""Median length of answers over the teacher's: good from, fair from."""
EARLY = 0.7
"""A best validation before this share of the steps means overfitting."""
STILL_FALLING = 0.01
"""So much lower in the last validation than in the one before: the student would go on learning."""

Summary = Mapping[str, Any]

ROLES = {
    "teacher": "the large model",
    "repaired": "after the least-squares repair; where training begins",
    "baseline": "the same start, trained on the same text without the teacher",
    "student": "trained on the teacher's predictions",
}

BEFORE = {
    "shrink": ("pruned, neither repaired nor trained", "right after pruning"),
    "existing": ("the model that was given, before training", "before training"),
    "fresh": ("random weights, before training", "before training"),
}
"""What `shrunk` is by the kind of the student, and when it was measured; in summaries of earlier releases it was pruned."""


def roles(summary: Summary) -> dict[str, str]:
    """What each model of a summary is."""
    return ROLES | {"shrunk": BEFORE[summary.get("student_kind", "shrink")][0]}


@dataclass(frozen=True)
class Check:
    """One number, rated.

    Attributes:
        name: What it is.
        value: As it is shown, with its interval.
        level: ``good``, ``fair``, ``poor`` or ``unknown``.
        why: What it was rated by.
    """

    name: str
    value: str
    level: str
    why: str

    @property
    def symbol(self) -> str:
        """Its rating as a symbol."""
        return SYMBOLS[self.level]


@dataclass(frozen=True)
class Step:
    """Something to do next.

    Attributes:
        why: What was found.
        what: What to do about it.
        codes: Recipe keys, or a command.
    """

    why: str
    what: str
    codes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Headline:
    """The answer in ten seconds.

    Attributes:
        level: ``good``, ``fair``, ``poor`` or ``unknown``.
        title: The answer in a few words.
        words: One or two sentences more.
        checks: The numbers behind it.
        steps: What to do next, the most important first.
    """

    level: str
    title: str
    words: str
    checks: list[Check]
    steps: list[Step]

    @property
    def symbol(self) -> str:
        """Its rating as a symbol."""
        return SYMBOLS[self.level]


def effective_documents(summary: Summary) -> float:
    """How many documents of equal length the numbers rest on; summaries of 0.1.0 only know how many there were at all."""
    return float(summary.get("effective_documents") or summary["heldout_documents"])


def enough(summary: Summary) -> bool:
    """Whether there are enough documents to tell anything."""
    return effective_documents(summary) >= ENOUGH


def documents(summary: Summary) -> str:
    """How many documents the numbers rest on, in words, such as ``51 held-out documents (33.4 effective)``."""
    count = summary["heldout_documents"]
    found = f"{count:,} held-out document{'s' * (count != 1)}"
    if summary.get("effective_documents"):
        found += f" ({effective_documents(summary):.3g} effective)"
    return found if enough(summary) else f"{found}: {TOO_FEW}"


def has_interval(bounds: Sequence[float | None] | None) -> TypeGuard[Sequence[float]]:
    """Whether there is an interval: one document has none, which 0.1.0 wrote as one without width."""
    if not bounds or bounds[0] is None or bounds[1] is None:
        return False
    return bounds[0] < bounds[1]


def unequal(summary: Summary) -> str:
    """Why the student must not be compared with the baseline, in words; empty where it may be, or there is none."""
    found = summary.get("baseline_comparison")
    return "" if not found or found["claimed"] else str(found["reason"])


def against_baseline(summary: Summary) -> tuple[float, float | None, float | None] | None:
    """KL of the student minus the baseline's on the same documents, with its interval; None without a fair baseline."""
    if "baseline" not in summary or unequal(summary):
        return None
    paired = (summary.get("paired") or {}).get("kl", {}).get("student_minus_baseline")
    if paired:
        return paired["value"], paired["low"], paired["high"]
    compared = summary["compared"]["student_minus_baseline"]
    low, high = compared.get("kl_to_teacher_interval") or (None, None)
    return compared["kl_to_teacher"], low, high


def make_headline(
    summary: Summary, ratio: tuple[float, float | None, float | None] | None, record: Summary
) -> Headline:
    """Rate a run.

    Args:
        summary: The run's summary.
        ratio: KL of the student over the baseline's with its interval, where it may be claimed.
        record: The record's notes of the student's training (``steps``, ``best_step``) and its ``validations``.
    """
    checks = rate(summary, ratio)
    gates = summary.get("bounds", [])
    missed = [gate for gate in gates if not gate["met"]]
    told = enough(summary)
    documents = _documents(summary)
    if gates and missed:
        level = "poor"
        title = f"Not good enough: {len(missed)} of {len(gates)} quality gates missed"
        words = "The recipe's own quality gates decide."
    elif gates:
        level = "good" if told else "fair"
        title = f"Good enough by its recipe: {_all(len(gates))} met"
        words = "The recipe's own quality gates decide."
    elif not told:
        level, title = "unknown", f"Too few to tell: only {documents}"
        words = f"With fewer than {ENOUGH}, the numbers below may be chance. Read the answers, and hold out more text."
    else:
        levels = [check.level for check in checks]
        level = next((name for name in ("poor", "fair") if name in levels), "good")
        title = {
            "good": "Good: the student is close to its teacher",
            "fair": "Fair: the student follows its teacher, with losses",
            "poor": "Poor: the student is not ready for use",
        }[level]
        worst = [check.name.partition(",")[0] for check in checks if check.level == level] if level != "good" else []
        words = f"What holds it back: {_listed(worst)}. " if worst else ""
        words += "The recipe sets no quality gates, so that rules of thumb rate it."
    if gates and not told:
        words += f" But there are only {documents}: too few to be sure."
    return Headline(level, title, words, checks, next_steps(summary, checks, level, record))


def rate(summary: Summary, ratio: tuple[float, float | None, float | None] | None) -> list[Check]:
    """Every number that is rated by default."""
    student = summary["student"]
    told = enough(summary)
    agreement, divergence = student["top1_agreement"], student["kl_to_teacher"]
    rated, at_least = _rated(divergence, DIVERGENCE, more=False, told=told), "kl_is" in student
    checks = [
        Check(
            "same next token as the teacher",
            _with(agreement * 100, student.get("top1_agreement_interval"), 1, 100, " %"),
            _rated(agreement, AGREEMENT, more=True, told=told),
            f"good from {percent(AGREEMENT[0])}, fair from {percent(AGREEMENT[1])}",
        ),
        Check(
            "KL to the teacher, nats per token",
            least(student, "kl_to_teacher") + _with(divergence, student.get("kl_to_teacher_interval"), 3),
            # A lower bound can be too large, and never small enough.
            "unknown" if at_least and rated != "poor" else rated,
            f"good up to {DIVERGENCE[0]:g}, fair up to {DIVERGENCE[1]:g}",
        ),
    ]
    checks += _baseline(summary, ratio, told)
    samples = summary.get("measures", {}).get("samples")
    if samples and samples.get("prompts"):
        checks += _samples(samples)
    return checks


def _baseline(summary: Summary, ratio: tuple[float, float | None, float | None] | None, told: bool) -> list[Check]:
    name = "KL over the baseline's"
    why = "good where the whole interval is below 1, poor where it is above"
    if "baseline" not in summary:
        return []
    reason = unequal(summary)
    if reason:
        return [Check(name, "not compared", "unknown", f"not the same budget: {reason}")]
    if ratio is None:
        return []
    value, low, high = ratio
    if not told or low is None or high is None:
        return [Check(name, f"{value:.2f} [{TOO_FEW}]", "unknown", why)]
    level = "good" if high < 1 else "poor" if low > 1 else "fair"
    return [Check(name, f"{value:.2f} [{low:.2f}, {high:.2f}]", level, why)]


def _samples(samples: Mapping[str, Any]) -> list[Check]:
    models, prompts = samples["models"], samples["prompts"]
    told = prompts >= ENOUGH
    mine, theirs = models["student"]["degenerate"]["count"], models["teacher"]["degenerate"]["count"]
    found = [
        Check(
            "answers that repeat themselves",
            f"{mine} of {prompts} [teacher {theirs}]",
            _rated((mine - theirs) / prompts, DEGENERATE, more=False, told=told),
            f"good up to {percent(DEGENERATE[0])} more than the teacher's, fair up to {percent(DEGENERATE[1])}",
        )
    ]
    length, own = models["student"]["median_tokens"], models["teacher"]["median_tokens"]
    if own:
        found.append(
            Check(
                "median length of answers",
                f"{length:.0f} tokens [teacher {own:.0f}]",
                _rated(length / own, LENGTH, more=True, told=told),
                f"good from {LENGTH[0]:g} of the teacher's, fair from {LENGTH[1]:g}",
            )
        )
    return found


def next_steps(summary: Summary, checks: list[Check], level: str, record: Summary) -> list[Step]:
    """What to do next, the most important first."""
    rated = {check.name: check.level for check in checks}
    found: list[Step] = []
    for gate in summary.get("bounds", []):
        if not gate["met"]:
            word = "minimum" if gate["kind"] == "floor" else "maximum"
            found.append(
                Step(
                    f"{gate['name']} is {gate['value']:.4g}; the recipe's {word} is {gate['bound']:.4g}.",
                    "Improve the student as below, or change the gate knowingly:",
                    (f"evaluate.{gate['kind']}s",),
                )
            )
    if not enough(summary):
        found.append(
            Step(
                f"The numbers rest on {_documents(summary)}.",
                f"Hold out more documents, {ENOUGH} at the very least and better 50: add text, or raise",
                ("corpus.heldout_share", "corpus.heldout_tokens"),
            )
        )
    repeated = (summary.get("near_duplicates") or {}).get("heldout") or {}
    if repeated.get("documents"):
        found.append(
            Step(
                f"{repeated['documents']:,} of {repeated['of']:,} held-out documents are near-duplicates of training "
                "documents, which flatters the student.",
                "Leave copies out of the sources:",
                ("corpus.sources",),
            )
        )
    learning = _learning(record)
    if rated.get("KL over the baseline's") in ("fair", "poor"):
        found.append(
            Step(
                "Learning from the teacher did not help more than the text alone.",
                "Try a third and three times the learning rate, then more text:",
                ("distill.learning_rate", "corpus.train_tokens"),
            )
        )
    reason = unequal(summary)
    if reason:
        found.append(
            Step(
                f"Student and baseline had no equal budget: {reason}.",
                "What is finished is not trained again. On a machine that does nothing else, remove both and run again:",
                ("rm -r RUN/distill RUN/baseline", "stillroom run RECIPE"),
            )
        )
    wanting = level in ("fair", "poor", "unknown")
    if learning == "worse":
        found.append(
            Step(
                f"Not one of the {record['steps']:,} steps made the student better: it has the weights from before training.",
                "Try a third of the learning rate, or leave it to be chosen:",
                ("distill.learning_rate",),
            )
        )
    elif learning == "overfit":
        found.append(
            Step(
                f"Validation was best at step {record['best_step']:,} of {record['steps']:,}: it overfits after that.",
                "Give more text and fewer passes over it:",
                ("corpus.train_tokens", "distill.epochs"),
            )
        )
    elif learning == "falling" and wanting:
        found.append(
            Step(
                "Validation was still improving at the last step.",
                "Train longer; double the tokens, or the passes over them:",
                ("corpus.train_tokens", "distill.epochs"),
            )
        )
    elif wanting and "poor" in (rated["same next token as the teacher"], rated["KL to the teacher, nats per token"]):
        found.append(
            Step(
                "Training has levelled off while the student is far from its teacher.",
                "Keep more of the teacher, or give more text:",
                ("student", "corpus.train_tokens"),
            )
        )
    if rated.get("answers that repeat themselves") in ("fair", "poor"):
        found.append(
            Step(
                "Answers run in circles more often than the teacher's.",
                "Give more text of the kind that it will be asked; sampling hides loops, it does not cure them:",
                ("corpus.sources", "corpus.train_tokens"),
            )
        )
    if level == "good":
        found.append(Step("", "Try it, then pack it for others:", ("stillroom chat RUN", "stillroom package RUN")))
    elif level == "fair":
        found.append(Step("", "See for yourself whether it is good enough for your use:", ("stillroom chat RUN",)))
    if found and level != "good":
        found.append(
            Step(
                "", "After a change of the recipe, what it does not touch is not done again:", ("stillroom run RECIPE",)
            )
        )
    return found


def _learning(record: Summary) -> str:
    """``worse`` (than where it began), ``overfit``, ``falling`` or an empty text: how training ended."""
    steps, best = record.get("steps"), record.get("best_step")
    validations = [entry["kl"] for entry in record.get("validations", []) if entry.get("kl") is not None]
    if not steps or best is None:
        return ""
    if best == 0 and len(validations) >= 2:
        return "worse"
    if best < EARLY * steps and len(validations) >= 4:
        return "overfit"
    if len(validations) >= 3 and best == steps and validations[-1] < (1 - STILL_FALLING) * validations[-2]:
        return "falling"
    return ""


def _rated(value: float, steps: tuple[float, float], *, more: bool, told: bool) -> str:
    if not told:
        return "unknown"
    for level, step in zip(("good", "fair"), steps, strict=True):
        if value >= step if more else value <= step:
            return level
    return "poor"


def _with(value: float, bounds: Any, digits: int, factor: float = 1.0, unit: str = "") -> str:
    text = f"{value:.{digits}f}{unit}"
    if not has_interval(bounds):
        return f"{text} [{TOO_FEW}]"
    return f"{text} [{bounds[0] * factor:.{digits}f}, {bounds[1] * factor:.{digits}f}]"


def _documents(summary: Summary) -> str:
    count = f"{effective_documents(summary):.3g}"
    return f"{count} effective held-out document{'' if count == '1' else 's'}"


def _all(count: int) -> str:
    return "its quality gate is" if count == 1 else f"all {count} quality gates are"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
