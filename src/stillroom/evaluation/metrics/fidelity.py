"""How closely students follow their teacher on held-out text: headline numbers, slices, calibration, worst passages."""

from __future__ import annotations

from typing import Any

import numpy as np

from stillroom.evaluation.bench import Bench, kept_states
from stillroom.evaluation.fidelity import Contender, compare
from stillroom.evaluation.metric import Beside, Metric, Result, beside
from stillroom.evaluation.paired import paired_difference, paired_quotient
from stillroom.evaluation.sections import (
    STYLES,
    CardResult,
    Dot,
    DotChart,
    LineChart,
    Mark,
    Part,
    Passage,
    Passages,
    Section,
    Series,
    Table,
    Text,
)
from stillroom.evaluation.states import parts_of
from stillroom.evaluation.tally import (
    GROUPS,
    MEASURES,
    MORE_IS_BETTER,
    Drawing,
    Tally,
    behind,
    calibration,
    headline,
    sliced,
)
from stillroom.evaluation.tokens import CLASSES, position_edges, position_labels, token_classes
from stillroom.evaluation.words import of, percent, visible
from stillroom.evaluation.worst import Worst
from stillroom.signals.alignment import Alignment

AXES = {
    "source": "source",
    "position": "position in the context",
    "class": "class of the token that is predicted",
}
AT_LEAST = "at least"
"""What the KL to a teacher behind an endpoint is."""
FEW = 100
"""A slice of fewer positions is not called a weakness."""
DETAIL = {"sums", "worst", "bounds", "slices", "calibration", "models", "compared", "paired", "text"}
"""What only the report and comparisons of runs need."""


def measure_fidelity(bench: Bench) -> dict[str, Any]:
    """The measure `fidelity`: headline numbers, by source, position and token class, calibration, the worst passages."""
    listed = bench.listed
    heldout = bench.heldout
    axes = {
        "all": 1,
        "source": len(bench.sources),
        "position": len(position_edges(heldout.length)),
        "class": len(CLASSES),
    }
    groups = min(GROUPS, max(1, heldout.documents))
    tallies = {name: Tally(axes, groups) for name in bench.names}
    compared = _one_model_at_a_time if bench.device.type == "cpu" else _one_student_at_a_time
    documents, worst = compared(bench, tallies)
    result = summarize(tallies, documents, bench, position_labels(heldout.length)) | {"worst": worst.found()}
    if listed is not None:
        # Of the whole distributions; what the lists say is exact.
        for name in bench.names[1:]:
            result["models"][name]["kl_is"] = AT_LEAST
        result["models"]["teacher"]["bits_are"] = AT_LEAST
        result["kl_is"] = AT_LEAST
        result["warnings"] = [
            "The teacher is known by its lists of most probable tokens alone: every KL to it, and its own bits per byte, are "
            "at least what is shown."
        ]
    if isinstance(bench.known("student").vocabulary, Alignment):
        for name in bench.names[1:]:
            result["models"][name]["kl_is"] = AT_LEAST
        result["kl_is"] = AT_LEAST
        result.setdefault("warnings", []).append(
            "The student has another tokenizer than the teacher: compare them by bits per byte. KL and the same next token are "
            "of the positions where both split the text alike, and of the tokens that both have, all others as one: at least "
            "what is shown."
        )
    return result


def _one_model_at_a_time(bench: Bench, tallies: dict[str, Tally]) -> tuple[int, Worst]:
    """Fill the tallies: of each model its hidden states are kept, and then they are compared. Returns the documents, and the
    worst passages.
    """
    heldout, asked = bench.heldout, bench.listed or bench.routed
    models = bench.names if asked is None else bench.names[1:]
    documents: set[int] = set()
    watched: tuple[np.ndarray, Worst] | None = None
    total = (1 + len(models)) * len(heldout) * heldout.length
    with bench.progress.task("fidelity", total=total) as task:
        for part in parts_of(heldout):
            with kept_states(bench, models, {"": heldout}, task, part) as kept:
                # By now every model was loaded once, and its tokenizer is known.
                classes, worst = watched = watched or _watch(bench)
                contenders = [
                    Contender(name, kept[name][""], bench.known(name).vocabulary, tallies[name])
                    for name in bench.names[1:]
                ]
                said_by = asked or kept["teacher"][""]
                compare(said_by, tallies["teacher"], contenders, heldout, classes, task, worst, part, documents)
    return len(documents), (watched or _watch(bench))[1]


def _one_student_at_a_time(bench: Bench, tallies: dict[str, Tally]) -> tuple[int, Worst]:
    """As :func:`_one_model_at_a_time` on a GPU: the teacher predicts all again for each, and all of them would not fit."""
    heldout, asked = bench.heldout, bench.listed or bench.routed
    students, documents = bench.names[1:], 0
    classes, worst = _watch(bench)
    with bench.progress.task("fidelity", total=len(students) * len(heldout) * heldout.length) as task:
        for number, name in enumerate(students):
            loaded = bench.load(name)
            contender = Contender(name, loaded.model, loaded.vocabulary, tallies[name])
            del loaded
            said = tallies["teacher"] if number == 0 else Tally(tallies["teacher"].axes, tallies["teacher"].groups)
            teacher = asked or bench.load("teacher").model
            seen = worst if name == "student" else None
            documents = compare(teacher, said, [contender], heldout, classes, task, seen)
            del contender
            if len(students) > 1:
                bench.release(name)
    return documents, worst


def _watch(bench: Bench) -> tuple[np.ndarray, Worst]:
    """The classes of the teacher's tokens, and what watches the student for the worst passages."""
    listed = bench.listed
    teacher = listed.tokenizer if listed is not None else bench.known("teacher").tokenizer
    size = listed.size if listed is not None else bench.known("teacher").vocabulary.teacher_size
    return token_classes(teacher, size), Worst(teacher, bench.known("student").tokenizer, bench.sources)


def summarize(tallies: dict[str, Tally], documents: int, bench: Bench, positions: list[str]) -> dict[str, Any]:
    """Values with intervals, slices, calibration and paired comparisons with the student."""
    config = bench.config
    drawing = Drawing(config.bootstrap_samples, config.confidence, bench.seed)
    labels = {"source": bench.sources, "position": positions, "class": list(CLASSES)}
    compared = {}
    for name in ("baseline", "shrunk", "repaired"):
        if name in tallies:
            compared[f"student_minus_{name}"] = paired(tallies["student"], tallies[name], drawing)
    groups = tallies["teacher"].groups
    text = behind(tallies["teacher"].of("tokens"))
    models = {name: headline(tally, drawing) for name, tally in tallies.items()}
    reliability = {name: calibration(tally, drawing) for name, tally in tallies.items()}
    slices = {
        axis: {name: sliced(tally, axis, labels[axis], drawing) for name, tally in tallies.items()} for axis in labels
    }
    # A student with another tokenizer is compared at some positions only: a slice is one that all models have.
    for axis, by_model in slices.items():
        common = set.intersection(*({entry["label"] for entry in entries} for entries in by_model.values()))
        slices[axis] = {
            name: [entry for entry in entries if entry["label"] in common] for name, entries in by_model.items()
        }
    bounds = {name: bound_of(models["student"], name) for name in MEASURES}
    bounds["ece"] = bound_of(reliability["student"], "ece")
    for axis, by_model in slices.items():
        for entry in by_model["student"]:
            for name in MEASURES:
                bounds[f"{axis}.{entry['label']}.{name}"] = bound_of(entry, name)
    return {
        "models": models,
        "compared": compared,
        "paired": pairs(tallies, drawing),
        "calibration": reliability,
        "slices": slices,
        "documents": documents,
        "effective_documents": text["effective_documents"],
        "enough": text["enough"],
        "positions": int(tallies["student"].of("compared").sum()),
        "tokens": {name: int(tally.of("tokens").sum()) for name, tally in tallies.items()},
        "groups": groups,
        "interval": _interval(drawing, documents, groups),
        "sums": {name: tally.as_dict() for name, tally in tallies.items()},
        "text": bench.text_digest,
        "bounds": bounds,
    }


def paired(first: Tally, second: Tally, drawing: Drawing) -> dict[str, Any]:
    """First minus second on the same documents, for every number whose weights they share; :func:`pairs` tells more."""
    result: dict[str, Any] = {}
    for name, (value, weight, factor) in MEASURES.items():
        if np.array_equal(first.of(weight), second.of(weight)):
            estimate = drawing.estimate((first.of(value) - second.of(value)) * factor, first.of(weight))
            result[name] = estimate.value
            result[f"{name}_interval"] = estimate.interval
    return result


def pairs(tallies: dict[str, Tally], drawing: Drawing) -> dict[str, dict[str, Any]]:
    """The student against the others on the same documents.

    Returns:
        For ``kl``, ``top1_agreement`` and ``bits_per_byte``: ``student_minus_baseline``, ``student_minus_repaired`` (as
        :func:`paired_difference` tells them) where there are such models, and for ``bits_per_byte`` ``student_over_teacher``
        (:func:`paired_quotient`).
    """
    found: dict[str, dict[str, Any]] = {}
    student = tallies["student"]
    for called, name in (
        ("kl", "kl_to_teacher"),
        ("top1_agreement", "top1_agreement"),
        ("bits_per_byte", "bits_per_byte"),
    ):
        value, weight, factor = MEASURES[name]
        found[called] = {}
        for other in ("baseline", "repaired"):
            if other in tallies and np.array_equal(student.of(weight), tallies[other].of(weight)):
                found[called][f"student_minus_{other}"] = paired_difference(
                    student.of(value) * factor,
                    tallies[other].of(value) * factor,
                    student.of(weight),
                    drawing.confidence,
                    less=name not in MORE_IS_BETTER,
                )
    # Both have the same bytes, so that the quotient of bits per byte is that of the bits. (With another tokenizer a few bytes
    # at the beginning of a document are predicted by the teacher alone; for them the student's nats are counted up.)
    teacher_bytes, student_bytes = tallies["teacher"].of("text_bytes"), student.of("text_bytes")
    scale = np.divide(teacher_bytes, student_bytes, out=np.ones_like(teacher_bytes), where=student_bytes > 0)
    found["bits_per_byte"]["student_over_teacher"] = paired_quotient(
        student.of("nats") * scale, tallies["teacher"].of("nats"), drawing.confidence, less=True
    )
    return found


def bound_of(entry: dict[str, Any], name: str) -> list[float | None]:
    """A number of an entry as ``bounds`` has it: value and the ends of ``NAME_interval``, None where there is none."""
    return [entry[name], *(entry[f"{name}_interval"] or (None, None))]


def _interval(drawing: Drawing, documents: int, groups: int) -> str:
    over = "documents" if documents <= groups else f"{groups} groups of documents"
    return f"{percent(drawing.confidence)} intervals over {over} (Student's, by effective documents)"


def summary(result: Result) -> Result:
    """The result without what only the report and comparisons need, and with the calibration errors."""
    found = {key: value for key, value in result.items() if key not in DETAIL}
    found["ece"] = {
        model: {"value": entry["ece"], "interval": entry["ece_interval"]}
        for model, entry in result["calibration"].items()
    }
    return found


def numbers_beside(result: Result, key: str) -> Beside:
    """The teacher's and the baseline's calibration error is stored apart from their other numbers."""
    if key != "ece":
        return beside(result, key)
    return Beside(*(result["calibration"].get(name, {}).get("ece") for name in ("teacher", "baseline")))


def weaknesses(result: Result) -> list[str]:
    """The worst class of tokens, the worst source, and probabilities that are less to be trusted."""
    found = []
    for axis, words in (("class", "{} tokens"), ("source", "text of {}")):
        rows = [entry for entry in result["slices"][axis]["student"] if entry["positions"] >= FEW]
        if len(rows) > 1:
            worst = max(rows, key=lambda entry: float(entry["kl_to_teacher"]))
            found.append(
                f"Furthest from its teacher on {words.format(worst['label'])}: {'at least ' if 'kl_is' in result else ''}"
                f"{worst['kl_to_teacher']:.3f} nats per token, the same next token in {percent(worst['top1_agreement'], 1)}."
            )
    mine, theirs = (result["calibration"][name]["ece"] for name in ("student", "teacher"))
    if mine is not None and mine > theirs:
        found.append(
            f"Its probabilities are less to be trusted: calibration error {mine:.3f}, the teacher's {theirs:.3f}."
        )
    return found


def card(result: Result) -> list[CardResult]:
    """The headline numbers."""
    titles = {
        "kl_to_teacher": "KL to the teacher, nats per token",
        "top1_agreement": "same next token as the teacher",
        "bits_per_byte": "bits per byte",
    }
    student = result["models"]["student"]
    if "kl_is" in result:
        titles["kl_to_teacher"] += ", at least"
    return [
        CardResult("held-out text of the run", "heldout", name, title, student[name]) for name, title in titles.items()
    ]


def sections(result: Result) -> list[Section]:
    """Slices, calibration, worst passages."""
    errors = "; ".join(f"{name} {of(entry, 'ece')}" for name, entry in result["calibration"].items())
    return [
        Section(
            "fidelity",
            "How closely it follows its teacher",
            [
                *_slice(result, "source", "By source; strokes are intervals.", "By source"),
                *_by_position(result),
                *_slice(
                    result,
                    "class",
                    "By class of the token that is predicted; strokes are intervals.",
                    "By class of token",
                ),
                Text(f"Expected calibration error (15 bins): {errors}.", page=False),
            ],
            order=10,
        ),
        Section("calibration", "Can its probabilities be trusted?", [_reliability(result, errors)], order=11),
        Section(
            "worst",
            "Where they differ most",
            [
                Passages(
                    "The passages of the held-out text on which student and teacher are furthest apart.",
                    "how far before each token",
                    (0.5, 2.0, 4.0),
                    "nats",
                    [_passage(passage) for passage in result["worst"]],
                )
            ],
            order=80,
        ),
    ]


def _slice(result: Result, axis: str, caption: str, called: str) -> list[Part]:
    """A chart where there is more than one slice, and the table."""
    slices = result["slices"][axis]
    models = [name for name in ("student", "baseline") if name in result["models"]]
    chart: list[Part] = []
    if len(slices["student"]) > 1:
        rows = []
        for index, first in enumerate(slices["student"]):
            entries = [slices[name][index] for name in models]
            rows.append(Dot(first["label"], [triple(entry, "top1_agreement") for entry in entries]))
        title = f"Same next token as the teacher, by {AXES[axis]}"
        chart = [DotChart(rows, models, title, "share of positions", caption)]
    return [*chart, Text(f"By {AXES[axis]}:", page=False), _slice_table(result, axis, called)]


def triple(entry: dict[str, Any], name: str) -> tuple[float, float, float]:
    """A number of an entry as a chart draws it; where there is no interval, no stroke."""
    value = entry[name]
    low, high = entry[f"{name}_interval"] or (value, value)
    return value, low, high


def _by_position(result: Result) -> list[Part]:
    by_model = result["slices"]["position"]
    labels = [entry["label"] for entry in by_model["student"]]
    models = [name for name in ("teacher", "student", "baseline") if name in result["models"]]
    return [
        LineChart(
            [
                Series(
                    name,
                    [(float(index), entry["bits_per_byte"]) for index, entry in enumerate(by_model[name])],
                    STYLES[name],
                )
                for name in models
            ],
            title="Bits a byte by position in the context",
            x_label="tokens of context before",
            y_label="bits per byte",
            caption="By position in the context: a line that falls as the teacher's does uses long context as the teacher "
            "does.",
            x_names=[label.split("–")[0] + "+" for label in labels],
            marked=True,
        ),
        Text(f"By {AXES['position']}:", page=False),
        _slice_table(result, "position", "By position"),
    ]


def _slice_table(result: Result, axis: str, called: str) -> Table:
    slices = result["slices"][axis]
    return Table(
        [AXES[axis], "positions", "KL, nats", "same next token", "bits per byte", "teacher's bits"],
        [
            [
                entry["label"],
                f"{entry['positions']:,}",
                of(entry, "kl_to_teacher"),
                of(entry, "top1_agreement", 1, 100, " %"),
                of(entry, "bits_per_byte"),
                of(own, "bits_per_byte"),
            ]
            for entry, own in zip(slices["student"], slices["teacher"], strict=True)
        ],
        label=f"Fidelity {called[0].lower()}{called[1:]}",
        folded=f"{called}, in numbers",
    )


def _reliability(result: Result, errors: str) -> LineChart:
    return LineChart(
        [
            Series(
                name,
                [(point["confidence"], point["accuracy"]) for point in result["calibration"][name]["bins"]],
                STYLES[name],
            )
            for name in ("teacher", "student")
        ],
        title="Reliability: how often the likeliest token is right, by how sure the model is",
        x_label="probability of the likeliest token",
        y_label="how often it is the text's",
        caption="On the dashed diagonal a model is right as often as it is sure. "
        f"Expected calibration error (15 bins): {errors}.",
        diagonal=True,
        marked=True,
    )


def _passage(passage: dict[str, Any]) -> Passage:
    """A worst passage, and a table of its worst tokens."""
    tokens = passage["tokens"]
    order = sorted(range(len(tokens)), key=lambda index: -tokens[index]["kl"])[:6]
    return Passage(
        [
            Mark(
                visible(token["text"]),
                token["kl"],
                f"KL {token['kl']}: teacher {token['teacher']}, student {token['student']}",
            )
            for token in tokens
        ],
        f"{passage['source']}, document {passage['document']}: {passage['mean_kl']:.2f} nats per token on average.",
        Table(
            ["after", "the text has", "teacher predicts", "student predicts", "KL, nats"],
            [
                [
                    "…" + visible("".join(token["text"] for token in tokens[max(0, index - 3) : index])),
                    visible(tokens[index]["text"]),
                    visible(tokens[index]["teacher"]),
                    visible(tokens[index]["student"]),
                    f"{tokens[index]['kl']:.2f}",
                ]
                for index in order
            ],
            label=f"Worst tokens of document {passage['document']}",
            folded="Its worst tokens",
        ),
    )


METRIC = Metric(
    name="fidelity",
    function=measure_fidelity,
    what="how closely students follow their teacher on held-out text",
    version=2,
    order=10,
    summary=summary,
    numbers=(*MEASURES, "ece", "*.*"),
    sections=sections,
    weaknesses=weaknesses,
    card=card,
    beside=numbers_beside,
    details=("source.", "position.", "class."),
    with_endpoint=True,
)
