"""What a finished run and single metrics print: tables of at most 80 columns, and a headline in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stillroom.core.bounded import least
from stillroom.core.plain import guard_tables
from stillroom.evaluation.floors import sentence
from stillroom.evaluation.intervals import TOO_FEW
from stillroom.evaluation.metric import Result
from stillroom.evaluation.registry import metric
from stillroom.reporting.headline import against_baseline, documents, enough, has_interval, roles, unequal
from stillroom.reporting.summary import text_warnings
from stillroom.runs.run import MODELS

if TYPE_CHECKING:
    from rich.table import Table


def print_measures(measures: dict[str, Result]) -> None:
    """Some metrics on standard output: teacher, baseline, student with its interval, McNemar's test where there is one."""
    from rich.console import Console

    guard_tables()
    table = _table()
    # A long name goes on in the next line, at any letter: numbers are never folded.
    table.add_column("", overflow="fold", ratio=1)
    for heading in ("teacher", "baseline", "student", "p"):
        table.add_column(heading, justify="right", no_wrap=True)
    tested = False
    for name, result in measures.items():
        spec = metric(name)
        for key, (value, low, high) in result["bounds"].items():
            if value is not None and not key.startswith(spec.details):
                other = spec.beside(result, key)
                tested = tested or other.p_value is not None
                table.add_row(
                    f"{name}.{key}",
                    *("" if number is None else f"{number:,.4g}" for number in (other.teacher, other.baseline)),
                    # The interval is under its value, so that the table fits a narrow terminal.
                    f"{value:,.4g}" + ("" if low is None else f"\n[{low:,.3g}, {high:,.3g}]"),
                    "" if other.p_value is None else f"{other.p_value:.2g}",
                )
    console = Console(highlight=False, markup=False)
    console.print(table)
    if tested:
        console.print("p: McNemar's test, the student against its teacher on the same items.", style="dim")
    for warning in warnings(measures):
        console.print(f"Warning: {warning}")


def warnings(measures: dict[str, Result]) -> list[str]:
    """What metrics warn of."""
    return [warning for result in measures.values() for warning in result.get("warnings", ())]


def print_table(summary: dict[str, Any]) -> None:
    """Teacher, shrunk, repaired, baseline and student side by side on standard output."""
    from rich.console import Console

    guard_tables()
    # What comes from files (names of a source, texts of a metric) is no markup.
    console = Console(highlight=False, markup=False)
    table = _table()
    table.add_column("")
    for heading in (
        "size,\ndecode",
        "KL to\nteacher",
        "same next\ntoken",
        "bits per\nbyte",
        "KL of student\nminus this",
    ):
        # Where intervals are unusually wide, they go on in the next line.
        table.add_column(heading, justify="right")
    for name in MODELS:
        if name in summary:
            # The interval is under its value, so that the table fits a narrow terminal.
            size, divergence, agreement, bits, speed = cells(summary[name], own=name == "teacher")
            row = [f"{size}\n{speed}".rstrip(), divergence, agreement, bits, paired_cell(summary, name)]
            table.add_row(name, *(cell.replace(TOO_FEW, "too few").replace(" [", "\n[") for cell in row))
    console.print(table)
    told = " ".join(f"{name}: {roles(summary)[name]}." for name in MODELS[1:-1] if name in summary)
    console.print(f"KL in nats per token; {summary['interval']}; {documents(summary)}. {told}", style="dim")
    reason = unequal(summary) if "baseline" in summary else ""
    if reason:
        console.print(f"Student and baseline are not compared: {reason}.")
    for bound in summary["bounds"]:
        console.print(f"{'met' if bound['met'] else 'MISSED'}: {sentence(bound)}")
    for warning in [*text_warnings(summary), *warnings(summary["measures"])]:
        console.print(f"Warning: {warning}")
    for entry in summary["student"].get("gguf_files", ()):
        console.print(
            f"{entry['type']:<5} {entry['bytes'] / 1e6:,.1f} MB, KL to the PyTorch student {entry['kl_to_pytorch']:.1e}"
        )


def paired_cell(summary: Mapping[str, Any], name: str) -> str:
    """KL of the student minus a model's on the same documents, with its interval; empty where there is none."""
    if name == "baseline":
        found = against_baseline(summary)
    else:
        compared = summary["compared"].get(f"student_minus_{name}", {})
        paired = (summary.get("paired") or {}).get("kl", {}).get(f"student_minus_{name}")
        found = None
        if paired:
            found = paired["value"], paired["low"], paired["high"]
        elif "kl_to_teacher" in compared:
            found = compared["kl_to_teacher"], *(compared.get("kl_to_teacher_interval") or (None, None))
    if found is None:
        return "not compared" if name == "baseline" else ""
    value, low, high = found
    digits = 3 if abs(value) < 10 else 1
    if low is None or high is None or not enough(summary):
        return f"{value:+.{digits}f} [{TOO_FEW}]"
    return f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def cells(model: Mapping[str, Any], *, own: bool) -> list[str]:
    """A model's row: parameters, KL, agreement, bits per byte, decode speed, each with its interval."""
    speed = model.get("decode_tokens_per_second")
    return [
        f"{model['parameters'] / 1e6:,.1f} M",
        "0" if own else least(model, "kl_to_teacher") + with_interval(model, "kl_to_teacher", 3),
        "100 %" if own else with_interval(model, "top1_agreement", 1, percent=True),
        least(model, "bits_per_byte") + with_interval(model, "bits_per_byte", 3),
        f"{speed:,.0f} tok/s" if speed else "",
    ]


def with_interval(model: Mapping[str, Any], name: str, digits: int, *, percent: bool = False) -> str:
    """A value and its interval, such as ``1.734 [1.69, 1.78]``; words in its place where there are too few documents."""
    factor = 100 if percent else 1
    value = model[name] * factor
    unit = " %" if percent else ""
    bounds = model.get(f"{name}_interval")
    digits = digits if abs(value) < 10 or percent else 1
    if not has_interval(bounds):
        return f"{value:.{digits}f}{unit} [{TOO_FEW}]"
    low, high = (bound * factor for bound in bounds)
    return f"{value:.{digits}f}{unit} [{low:.{digits}f}, {high:.{digits}f}]"


def _table() -> Table:
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 0))
