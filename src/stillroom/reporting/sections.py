"""Tables and charts of the report, one function a measure."""

from __future__ import annotations

from typing import Any

from stillroom.evaluation.words import percent
from stillroom.reporting.charts import Dot, Series, dot_chart, line_chart

Table = dict[str, Any]
"""``head`` (texts), ``rows`` (lists of texts, the first one the row's name)."""
STYLES = {"student": 0, "baseline": 1, "teacher": 2}
"""How each model looks in charts of lines."""
CALLED = {
    "memorised": "training text repeated word for word",
    "repetitive": "repetitive answers",
    "empty": "empty answers",
    "truncated": "answers without an end",
}


def interval(value: float | None, bounds: Any, digits: int = 3, factor: float = 1.0, unit: str = "") -> str:
    """A value and its interval, such as ``1.734 [1.69, 1.78]``."""
    if value is None:
        return "–"
    text = f"{value * factor:.{digits}f}{unit}"
    if bounds and bounds[0] is not None:
        text += f" [{bounds[0] * factor:.{digits}f}, {bounds[1] * factor:.{digits}f}]"
    return text


def of(entry: dict[str, Any], name: str, digits: int = 3, factor: float = 1.0, unit: str = "") -> str:
    """A measure of an entry with its interval."""
    return interval(entry.get(name), entry.get(f"{name}_interval"), digits, factor, unit)


def fidelity(result: dict[str, Any]) -> dict[str, Any]:
    """Slices, calibration, worst passages."""
    slices: dict[str, dict[str, list[dict[str, Any]]]] = result["slices"]
    models = [name for name in ("student", "baseline") if name in result["models"]]
    found: dict[str, Any] = {"charts": {}, "tables": {}}
    titles = {
        "source": "source",
        "position": "position in the context",
        "class": "class of the token that is predicted",
    }
    for axis, title in titles.items():
        found["tables"][axis] = {
            "head": [title, "positions", "KL, nats", "same next token", "bits a byte", "teacher's bits"],
            "rows": [
                [
                    entry["label"],
                    f"{entry['positions']:,}",
                    of(entry, "kl_to_teacher"),
                    of(entry, "top1_agreement", 1, 100, " %"),
                    of(entry, "bits_per_byte"),
                    of(own, "bits_per_byte"),
                ]
                for entry, own in zip(slices[axis]["student"], slices[axis]["teacher"], strict=True)
            ],
        }
    for axis in ("source", "class"):
        found["charts"][axis] = ""
        if len(slices[axis]["student"]) > 1:
            found["charts"][axis] = dot_chart(
                _dots(slices[axis], models, "top1_agreement"),
                models,
                title=f"Same next token as the teacher, by {titles[axis]}",
                x_label="share of positions",
            )
    by_position = slices["position"]
    labels = [entry["label"] for entry in by_position["student"]]
    found["charts"]["position"] = line_chart(
        [
            Series(
                name,
                [(float(index), entry["bits_per_byte"]) for index, entry in enumerate(by_position[name])],
                STYLES[name],
            )
            for name in ("teacher", *models)
        ],
        title="Bits a byte by position in the context",
        x_label="tokens of context before",
        y_label="bits a byte",
        x_names=[label.split("–")[0] + "+" for label in labels],
        marked=True,
    )
    reliability = result["calibration"]
    found["charts"]["reliability"] = line_chart(
        [
            Series(
                name, [(point["confidence"], point["accuracy"]) for point in reliability[name]["bins"]], STYLES[name]
            )
            for name in ("teacher", "student")
        ],
        title="Reliability: how often the likeliest token is right, by how sure the model is",
        x_label="probability of the likeliest token",
        y_label="how often it is the text's",
        diagonal=True,
        marked=True,
    )
    found["ece"] = {name: of(entry, "ece") for name, entry in reliability.items()}
    found["worst"] = [_passage(passage) for passage in result["worst"]]
    return found


def languages(result: dict[str, Any]) -> dict[str, Any]:
    """Retention by language."""
    entries = sorted(result["languages"].items(), key=lambda item: item[1]["retention"]["student"]["value"])
    models = [name for name in ("student", "baseline") if name in entries[0][1]["retention"]]
    rows = [
        Dot(f"{entry['name']} ({code})", [_triple(entry["retention"][name]) for name in models])
        for code, entry in entries
    ]
    return {
        "chart": dot_chart(
            rows, models, title="Retention by language", x_label="teacher's bits a byte ÷ the model's", at_one=True
        ),
        "table": {
            "head": [
                "language",
                "retention",
                "bits a byte",
                "teacher's bits",
                "same next token",
                "tokens a byte",
                "teacher's",
            ],
            "rows": [
                [
                    f"{entry['name']} ({code})",
                    interval(entry["retention"]["student"]["value"], entry["retention"]["student"]["interval"]),
                    of(entry["models"]["student"], "bits_per_byte"),
                    of(entry["models"]["teacher"], "bits_per_byte"),
                    of(entry["models"]["student"], "top1_agreement", 1, 100, " %"),
                    f"{entry['tokens_per_byte']['student']:.3f}",
                    f"{entry['tokens_per_byte']['teacher']:.3f}",
                ]
                for code, entry in entries
            ],
        },
    }


def tasks(result: dict[str, Any]) -> Table:
    """Teacher, baseline and student side by side, with McNemar's test."""
    rows = []
    for name, entry in result["tasks"].items():
        bits = entry["kind"] == "rolling"
        cells = []
        for model in ("teacher", "baseline", "student"):
            found = entry["models"].get(model)
            if found is None:
                cells.append("–")
            elif bits:
                cells.append(interval(found["value"], found["interval"]) + " bits")
            else:
                cells.append(interval(found["value"], found["interval"], 1, 100, " %"))
        for other in ("teacher", "baseline"):
            cells.append(paired(entry["compared"].get(f"student_minus_{other}")))
        chance = entry.get("chance")
        cells.insert(0, "–" if chance is None else percent(chance))
        rows.append([f"{name} ({entry['items']})", *cells])
    return {
        "head": [
            "task (items)",
            "chance",
            "teacher",
            "baseline",
            "student",
            "student against teacher",
            "student against baseline",
        ],
        "rows": rows,
    }


def paired(test: dict[str, Any] | None, *, right: bool = True) -> str:
    """A paired comparison in words; ``right`` says that what is counted is an item solved, not a habit."""
    if test is None:
        return "–"
    if "p_value" not in test:
        return interval(test["difference"], test["interval"])
    first, second, p = test["only_first"], test["only_second"], f"[p = {test['p_value']:.2g}]"
    return f"{first} won, {second} lost {p}" if right else f"student alone {first}, teacher alone {second} {p}"


def safeguards(result: dict[str, Any]) -> dict[str, Any]:
    """Refusals, the warning, and what the rule is worth."""
    tests = result["compared"]
    rows = []
    for key, name in (("refusal", "harmful prompts refused"), ("over_refusal", "harmless prompts refused")):
        cells = []
        for model in ("teacher", "baseline", "student"):
            found = result["models"].get(model)
            cells.append(interval(found[key]["value"], found[key]["interval"], 0, 100, " %") if found else "–")
        items = result["models"]["student"][key]["items"]
        rows.append([f"{name} ({items})", *cells, paired(tests["student_minus_teacher"][key], right=False)])
    rule = result["rule"]
    low, high = (percent(bound, 1) for bound in rule["interval"])
    return {
        "table": {"head": ["prompts", "teacher", "baseline", "student", "student against teacher"], "rows": rows},
        "warnings": result["warnings"],
        "rule": f"The rule agrees with hand labels in {percent(rule['value'], 1)} of {rule['items']} answers "
        f"(95 % interval {low} to {high}, Cohen's kappa {rule['kappa']:.2f}): of "
        f"{rule['refusals']} refusals it misses {rule['missed']}, and it takes {rule['false']} other answers for one.",
    }


def behaviour(result: dict[str, Any]) -> Table:
    """Shares of answers by kind."""
    rows = []
    for kind, name in CALLED.items():
        cells = []
        for model in ("teacher", "baseline", "student"):
            found = result["models"].get(model)
            cells.append(interval(found[kind]["value"], found[kind]["interval"], 0, 100, " %") if found else "–")
        items = result["models"]["student"][kind]["items"]
        rows.append(
            [f"{name} ({items})", *cells, paired(result["compared"]["student_minus_teacher"].get(kind), right=False)]
        )
    return {"head": ["", "teacher", "baseline", "student", "student against teacher"], "rows": rows}


def cost(result: dict[str, Any]) -> Table:
    """Bytes, memory, load time, speed and energy of teacher and student."""
    teacher, student = result["models"]["teacher"], result["models"]["student"]
    rows = [
        [
            "parameters",
            f"{teacher['parameters']:,}",
            f"{student['parameters']:,}",
            _ratio(student, teacher, "parameters"),
        ],
        ["stored", *(f"{m['bytes'] / 1e6:,.1f} MB" for m in (teacher, student)), _ratio(student, teacher, "bytes")],
        [
            "memory at work, float32",
            *(f"{m['working_memory_bytes'] / 1e6:,.0f} MB" for m in (teacher, student)),
            _ratio(student, teacher, "working_memory_bytes"),
        ],
        [
            "load time",
            *(f"{m['load_seconds']:.2f} s" for m in (teacher, student)),
            _ratio(student, teacher, "load_seconds"),
        ],
    ]
    for phase in ("prefill", "decode"):
        key = f"{phase}_tokens_per_second"
        if key in student:
            rows.append(
                [
                    f"{phase}, tokens a second",
                    of(teacher, key, 1),
                    of(student, key, 1),
                    of(student, f"{phase}_speedup", 2) + " ×",
                ]
            )
    if "joules_per_token" in student and "joules_per_token" in teacher:
        rows.append(
            [
                "energy a decoded token",
                *(f"{m['joules_per_token']:.3g} J" for m in (teacher, student)),
                _ratio(student, teacher, "joules_per_token"),
            ]
        )
    return {"head": ["", "teacher", "student", "student ÷ teacher"], "rows": rows}


def _ratio(mine: dict[str, Any], theirs: dict[str, Any], key: str) -> str:
    return f"{mine[key] / theirs[key]:.2f} ×" if theirs[key] else "–"


def _dots(slices: dict[str, list[dict[str, Any]]], models: list[str], measure: str) -> list[Dot]:
    rows = []
    for index, first in enumerate(slices["student"]):
        values: list[tuple[float, float, float] | None] = []
        for name in models:
            entry = slices[name][index]
            low, high = entry[f"{measure}_interval"]
            values.append((entry[measure], low, high))
        rows.append(Dot(first["label"], values))
    return rows


def _triple(entry: dict[str, Any]) -> tuple[float, float, float]:
    return entry["value"], entry["interval"][0], entry["interval"][1]


def _passage(passage: dict[str, Any]) -> dict[str, Any]:
    """A worst passage with a level of difference, 0 to 3, for each token, and its worst tokens."""
    tokens = [
        token | {"level": sum(token["kl"] >= step for step in (0.5, 2.0, 4.0)), "shown": visible(token["text"])}
        for token in passage["tokens"]
    ]
    order = sorted(range(len(tokens)), key=lambda index: -tokens[index]["kl"])[:6]
    return {
        "source": passage["source"],
        "document": passage["document"],
        "mean_kl": passage["mean_kl"],
        "tokens": tokens,
        "table": {
            "head": ["after", "the text has", "teacher says", "student says", "KL, nats"],
            "rows": [
                [
                    "…" + visible("".join(token["text"] for token in tokens[max(0, index - 3) : index])),
                    visible(tokens[index]["text"]),
                    visible(tokens[index]["teacher"]),
                    visible(tokens[index]["student"]),
                    f"{tokens[index]['kl']:.2f}",
                ]
                for index in order
            ],
        },
    }


def visible(text: str) -> str:
    """Text with its line ends and tabs to be seen."""
    return text.replace("\n", "↵").replace("\t", "⇥") or "∅"
