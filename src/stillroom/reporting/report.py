"""The report of a run: one self-contained page, and the same as a model card."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from stillroom.core import files
from stillroom.core.errors import EnvironmentProblem
from stillroom.core.plain import public_name
from stillroom.core.progress import clock
from stillroom.corpus.tally import sentences
from stillroom.evaluation.floors import sentence
from stillroom.evaluation.intervals import TOO_FEW
from stillroom.evaluation.metric import Result
from stillroom.evaluation.registry import find, in_order
from stillroom.evaluation.sections import STYLES, Part, Section, Series, SideBySide, Table, Text
from stillroom.evaluation.stage import extras
from stillroom.evaluation.tally import Drawing
from stillroom.evaluation.words import percent
from stillroom.recipe.evaluation import EvaluateConfig
from stillroom.recipe.recipe import Recipe
from stillroom.reporting.charts import bar_chart, draw, line_chart, number
from stillroom.reporting.headline import BEFORE, against_baseline, documents, enough, make_headline, roles, unequal
from stillroom.reporting.summary import text_warnings
from stillroom.reporting.terminal import cells, paired_cell
from stillroom.runs.run import MODELS, Run
from stillroom.teachers.several import licence_of_all, records_of

RESERVED = ("headline", "next", "numbers", "files", "cost", "lineage")
"""Anchors of the page's own sections."""
Curves = dict[str, list[tuple[float, float]]]
LOSS_POINTS = 24
"""At most this many points of the loss curve."""


def write_report(run: Run, summary: dict[str, Any]) -> None:
    """Write ``report.html`` and ``report.md`` beside ``summary.json``, without paths of this machine."""
    content = _content(run, summary)
    paths = _paths(run)
    for html, name in ((True, "report.html"), (False, "report.md")):
        text = _environment(html).get_template(f"{name}.jinja").render(content)
        for path in paths:
            text = text.replace(str(escape(path)) if html else path, public_name(path))
        files.write_text(run.path / name, text)


def _paths(run: Run) -> list[str]:
    """Every absolute path that a text of the report may hold, as a source's name does; longest first."""
    ledger = files.read_json(run.stage("corpus").path / "ledger.json")
    found = {str(run.path), str(run.path.resolve()), *(str(source["name"]) for source in ledger["sources"])}

    def gather(value: Any) -> None:
        if isinstance(value, str):
            found.add(value)
        elif isinstance(value, (dict, list)):
            for entry in value.values() if isinstance(value, dict) else value:
                gather(entry)

    gather(run.recipe.model_dump(mode="json"))
    return sorted((value for value in found if public_name(value) != value), key=len, reverse=True)


def verdict(summary: dict[str, Any]) -> list[str]:
    """What the numbers mean, in sentences that hold for them."""
    student, shrunk = summary["student"], summary["shrunk"]
    share = student["parameters"] / summary["teacher"]["parameters"]
    least = "at least " if "kl_is" in student else ""
    when = BEFORE[summary.get("student_kind", "shrink")][1]
    fidelity = summary.get("measures", {}).get("fidelity", {})
    positions, tokens = fidelity.get("positions"), fidelity.get("tokens", {}).get("teacher")
    where = "held-out positions"
    if positions and tokens and positions < tokens:
        where = f"{positions:,} held-out positions that can be compared, of {tokens:,}"
    found = [
        f"The student has {student['parameters']:,} parameters, {percent(share)} of its teacher's, and predicts the same next "
        f"token in {percent(student['top1_agreement'], 1)} of the {where}.",
        f"Its KL divergence from the teacher is {least}{student['kl_to_teacher']:.3f} nats per token; {when} it "
        f"was {least}{shrunk['kl_to_teacher']:.3f}"
        + (f", after the repair {summary['repaired']['kl_to_teacher']:.3f}." if "repaired" in summary else "."),
    ]
    if "baseline" in summary:
        found.append(_gain(summary))
    teacher_bits, bits = summary["teacher"]["bits_per_byte"], student["bits_per_byte"]
    word = "more" if bits > teacher_bits else "fewer"
    found.append(
        f"On the text itself it needs {bits:.3f} bits per byte, {percent(abs(bits / teacher_bits - 1))} {word} than its "
        f"teacher ({teacher_bits:.3f})."
    )
    return found


def _gain(summary: dict[str, Any]) -> str:
    """Whether learning from the teacher helped, in a sentence."""
    gap = against_baseline(summary)
    if gap is None:
        return f"Whether learning from the teacher helped is not said here: {unequal(summary)}."
    value, low, high = gap
    if not enough(summary) or low is None or high is None:
        return "Whether learning from the teacher helped cannot be told: too few held-out documents."
    least, most = sorted((abs(low), abs(high)))
    amount = f"{abs(value):.3f} nats per token (paired, {least:.3f} to {most:.3f})"
    if high < 0:
        return f"Learning from the teacher helped: the same training without it ends {amount} further away."
    if low > 0:
        return f"Learning from the teacher did not help: the same training without it ends {amount} closer."
    return (
        "Whether learning from the teacher helped cannot be told from this text: the difference is "
        f"{value:.3f} nats per token, between {low:.3f} and {high:.3f}."
    )


def over_baseline(
    summary: dict[str, Any], fidelity: Result, config: EvaluateConfig, seed: int
) -> tuple[float, float | None, float | None] | None:
    """KL of the student over the baseline's on the same documents, with its interval; None where it must not be claimed."""
    import numpy as np

    sums = fidelity.get("sums", {})
    if "baseline" not in sums or unequal(summary) or sums["student"]["compared"] != sums["baseline"]["compared"]:
        return None
    mine, theirs = (np.asarray(sums[name]["kl"], dtype=np.float64) for name in ("student", "baseline"))
    found = Drawing(config.bootstrap_samples, config.confidence, seed).estimate(mine, theirs)
    if not math.isfinite(found.value) or found.low is None or found.high is None or found.low == found.high:
        return (found.value, None, None) if math.isfinite(found.value) else None
    return found.value, max(0.0, found.low), found.high


def without_paths(recipe: Recipe) -> str:
    """A recipe as YAML for others to read: absolute paths, which say how the maker's disk is laid out, become names."""

    def shown(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shown(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [shown(entry) for entry in value]
        return public_name(value) if isinstance(value, str) else value

    return yaml.safe_dump(shown(recipe.model_dump(mode="json")), sort_keys=False, allow_unicode=True)


def weaknesses(measures: dict[str, Result]) -> list[str]:
    """Where the student is weaker than its teacher, in sentences: what a reader should know before using it."""
    found = []
    for name, result in measures.items():
        spec = find(name)
        found += spec.weaknesses(result) if spec else []
        found += result.get("warnings", [])
    return found


def sections(measures: dict[str, Result]) -> list[Section]:
    """What the report shows of every metric.

    Raises:
        EnvironmentProblem: Two sections have the same anchor.
    """
    found: list[Section] = []
    for name, result in measures.items():
        spec = find(name)
        if spec is None:
            missing = f"The package that shows this metric is not installed. Its numbers: measures/{name}.json."
            found.append(Section(name, name, [Text(missing, note=True)]))
        else:
            found += spec.sections(result)
    keys = [*RESERVED, *(section.key for section in found)]
    for key in keys:
        if keys.count(key) > 1:
            raise EnvironmentProblem(
                f"The report has two sections with the key `{key}`.", "Rename the `Section.key` of your metric."
            )
    return sorted(found, key=lambda section: section.order)


def _content(run: Run, summary: dict[str, Any]) -> dict[str, Any]:
    shrunk = files.read_json(run.stage("shrink").path / "shrink.json")
    ledger = files.read_json(run.stage("corpus").path / "ledger.json")
    teacher = files.read_json(run.stage("capture").path / "teacher.json")
    record = run.stage("distill").record or {}
    measures = in_order(files.read_json(run.stage("evaluate").path / "evaluation.json")["measures"] | extras(run))
    trained = [name for name in ("distill", "baseline") if run.stage(name).record]
    losses = {name: _points(run, name, "cross_entropy", validation=False) for name in trained}
    # The mean of so many steps is one point of the loss curve, so that its noise does not hide it.
    pooled = max(1, -(-max(map(len, losses.values()), default=0) // LOSS_POINTS))
    history = run.stage("distill").path / "history.json"
    learned = record.get("notes", {}) | (
        {"validations": files.read_json(history)["validations"]} if history.is_file() else {}
    )
    ratio = over_baseline(summary, measures["fidelity"], run.recipe.evaluate, run.recipe.public_seed)
    shown = sections(measures)
    return {
        "headline": make_headline(summary, ratio, learned),
        "lead": [section for section in shown if section.order < 0],
        "sections": [section for section in shown if section.order >= 0],
        "paired": paired_cell,
        "unequal": unequal(summary),
        "documents": documents(summary),
        "weaknesses": text_warnings(summary) + weaknesses(measures),
        "results": [entry for name, result in measures.items() if (spec := find(name)) for entry in spec.card(result)],
        "sentence": sentence,
        "name": run.recipe.name,
        "summary": summary,
        "verdict": verdict(summary),
        "models": [name for name in MODELS if name in summary],
        "roles": roles(summary),
        "cells": cells,
        "clock": clock,
        "teacher": teacher | {"name": public_name(teacher["name"])},
        "teachers": [
            record | {"name": public_name(record["name"])}
            for record in (records_of(run) if run.recipe.teachers else [])
        ],
        "licence": licence_of_all(records_of(run)),
        "ledger": ledger
        | {
            "sources": [
                source | {"name": public_name(source["name"]), "said": sentences(source)}
                for source in ledger["sources"]
            ],
            "left_out": ledger.get("chat_template_left_out", {}),
        },
        "shrunk": shrunk,
        "training": record.get("notes", {}),
        "charts": _charts(run, shrunk, losses, pooled),
        "pooled": pooled,
        "recipe": without_paths(run.recipe),
        "seconds": sum(stage["seconds"] for stage in summary["stages"].values()),
        "peak": max(stage["peak_memory_bytes"] for stage in summary["stages"].values()),
    }


def _charts(run: Run, shrunk: dict[str, Any], losses: Curves, pooled: int) -> dict[str, Any]:
    called = {"distill": "student", "baseline": "baseline"}
    charts = {
        "heldout": line_chart(
            [Series(called[name], _points(run, name, "kl", validation=True), STYLES[called[name]]) for name in losses],
            title="KL to the teacher while training",
            x_label="training step",
            y_label="validation KL, nats per token",
        ),
        "loss": line_chart(
            [Series(called[name], _means(points, pooled), STYLES[called[name]]) for name, points in losses.items()],
            title="Cross-entropy on the training text",
            x_label="training step",
            y_label="nats per token",
        ),
    }
    layers = shrunk.get("layers")
    if layers:
        charts["layers"] = bar_chart(
            layers["block_influence"],
            set(layers["removed"]),
            title="How much each of the teacher's layers changes what passes through it",
            x_label="layer",
            y_label="block influence",
            marked_as="Removed layers",
        )
    return {name: Markup(chart) for name, chart in charts.items()}  # noqa: S704 - charts escape their texts


def _points(run: Run, stage: str, key: str, *, validation: bool) -> list[tuple[float, float]]:
    """Step and value of a training's events; of a step that was done twice after a kill, the last counts."""
    found: dict[int, float] = {}
    for event in run.events(stage):
        if event.get("event") == "begun" and not event.get("resumed"):
            found.clear()
        if (event.get("event") == "validation") == validation and event.get(key) is not None and "step" in event:
            found[int(event["step"])] = float(event[key])
    return sorted((float(step), value) for step, value in found.items())


def _means(points: list[tuple[float, float]], pooled: int) -> list[tuple[float, float]]:
    """Means of so many points each, at the last step of each."""
    parts = [points[start : start + pooled] for start in range(0, len(points), pooled)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def _dequantized(teacher: dict[str, Any]) -> str:
    """How a teacher of the summary is quantized, and how far that took it from the model it was made from."""
    said = (
        f"quantized: {teacher['quantization']}; dequantized when it was loaded, and another model than the one it was made "
        "from: "
    )
    kl = teacher.get("kl_to_original")
    if kl is None:
        return said + "KL to that one not measured"
    low, high = kl["interval"] or (None, None)
    interval = "" if low is None else f" [{low:.3g}, {high:.3g}]"
    few = "" if kl["enough"] else f" ({TOO_FEW})"
    return said + (
        f"KL({public_name(kl['original']['name'])} ‖ this one) {kl['value']:.3g}{interval} nats per token, over "
        f"{kl['tokens']:,} tokens of validation text{few}"
    )


def _stacked(value: str) -> Markup:
    """A cell with its interval on a line of its own, so that tables stay narrow."""
    found = re.fullmatch(r"(.*?) (\[[^\]]*\])(.*)", value)
    if found is None:
        return escape(value)
    return escape(found.group(1) + found.group(3)) + Markup("<small>{}</small>").format(found.group(2))


def _is_on_card(part: Part) -> bool:
    return isinstance(part, (Table, SideBySide)) or (isinstance(part, Text) and part.card)


@functools.cache
def _environment(html: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("stillroom.reporting", "pages"),
        autoescape=html,  # noqa: S701 - the other page is Markdown
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., object]] = {
        "count": lambda value: f"{value:,}",
        "megabytes": lambda value: f"{value / 1e6:,.1f} MB",
        "dequantized": _dequantized,
        "percent": lambda value: percent(value, 1),
        "stacked": _stacked,
        "kind": lambda part: type(part).__name__,
        "draw": lambda chart: Markup(draw(chart)),  # noqa: S704 - charts escape their texts
        "number": number,
        "on_card": lambda section: [part for part in section.parts if _is_on_card(part)],
        "level": lambda mark, steps: sum(mark.value >= step for step in steps),
        "indented": lambda text: "\n".join(f"    {line}" for line in str(text).splitlines()) or "    ",
        "cell": lambda value: str(value).replace("|", "\\|").replace("\n", " "),
        "yaml": lambda value: json.dumps(str(value), ensure_ascii=False),
    }
    environment.filters.update(filters)
    return environment
