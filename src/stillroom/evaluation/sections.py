"""What a metric shows in the report, as plain data: tables, charts, sentences, passages. `reporting` draws it.

The report is written twice: as a page (HTML, with charts) and as a model card (Markdown, without). A text says
on which of the two it is; charts and passages are on the page alone, tables on both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

STYLES = {"student": 0, "baseline": 1, "teacher": 2}
"""Colour, dash and mark of each model in line charts, so that a model looks the same in all of them."""
LEAD = -1
"""Order of sections that come first, before the table of numbers; so does any that is negative."""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        head: Names of the columns.
        rows: Cells; the first of a row is the row's name. Of a cell such as ``1.73 [1.69, 1.78]`` the page puts the
            interval on a line of its own.
        label: What screen readers call it; the section's title without one.
        folded: The page folds it away behind these words.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    label: str = ""
    folded: str = ""


@dataclass(frozen=True)
class Text:
    """A paragraph.

    Attributes:
        words: Plain text.
        note: In small print on the page.
        page: It is on the page.
        card: It is on the model card.
    """

    words: str
    note: bool = False
    page: bool = True
    card: bool = True


@dataclass(frozen=True)
class Series:
    """Points of one line.

    Attributes:
        name: Is written at the line's end.
        points: Pairs of x and y, in order of x.
        style: Its colour, dash and mark, 0 to 3 (see ``STYLES``); by its index without it.
    """

    name: str
    points: list[tuple[float, float]]
    style: int | None = None


@dataclass(frozen=True)
class LineChart:
    """Lines over a common scale; nothing is drawn without points.

    Attributes:
        series: The lines.
        title: Of the chart, for screen readers.
        x_label: Under the scale.
        y_label: Beside it.
        caption: Under the chart.
        x_names: Names of x = 0, 1, 2, … instead of numbers.
        diagonal: Both axes are shares; draw the line where they are equal.
        marked: Draw a mark at every point; each series has another.
    """

    series: list[Series]
    title: str
    x_label: str
    y_label: str
    caption: str = ""
    x_names: list[str] | None = None
    diagonal: bool = False
    marked: bool = False


@dataclass(frozen=True)
class Dot:
    """A row of a dot chart: values with their intervals.

    Attributes:
        name: What it is.
        values: For each series the value and its interval's ends, or None.
    """

    name: str
    values: list[tuple[float, float, float] | None]


@dataclass(frozen=True)
class DotChart:
    """Values as marks and intervals as strokes, one line a row; nothing is drawn without values.

    Attributes:
        rows: What is drawn.
        series: Names of the series; each has its own mark.
        title: Of the chart, for screen readers.
        x_label: Under the scale.
        caption: Under the chart.
        at_one: Draw a line at 1.
    """

    rows: list[Dot]
    series: list[str]
    title: str
    x_label: str
    caption: str = ""
    at_one: bool = False


@dataclass(frozen=True)
class Mark:
    """A token of a passage.

    Attributes:
        text: As it is shown.
        value: By which it is marked.
        hint: Is shown when it is pointed at.
    """

    text: str
    value: float
    hint: str


@dataclass(frozen=True)
class Passage:
    """A text whose tokens are marked.

    Attributes:
        marks: Its tokens.
        note: Under it.
        table: Numbers of some of its tokens.
    """

    marks: list[Mark]
    note: str
    table: Table


@dataclass(frozen=True)
class Passages:
    """Texts with a legend.

    Attributes:
        words: Before the legend.
        measured: What the marks mean, before the steps.
        steps: A token of at least so much is dotted, dashed, double.
        unit: Of the steps.
        passages: The texts.
    """

    words: str
    measured: str
    steps: tuple[float, float, float]
    unit: str
    passages: list[Passage]


@dataclass(frozen=True)
class Answer:
    """What one model wrote.

    Attributes:
        model: Its name.
        text: As the model wrote it.
        note: What is remarkable about it, such as that it repeats itself.
    """

    model: str
    text: str
    note: str = ""


@dataclass(frozen=True)
class Asked:
    """A prompt with the answers of several models.

    Attributes:
        prompt: As it is shown.
        chat: Whether it is a question; otherwise it is the beginning of a text.
        answers: One of each model, in the same order for every prompt.
    """

    prompt: str
    chat: bool
    answers: Sequence[Answer]


@dataclass(frozen=True)
class SideBySide:
    """Prompts, each with the answers of several models side by side.

    Attributes:
        asked: The prompts.
    """

    asked: Sequence[Asked]


Part = Table | Text | LineChart | DotChart | Passages | SideBySide


@dataclass(frozen=True)
class Section:
    """A part of the report with a heading.

    Attributes:
        key: Its anchor on the page; no two sections have the same.
        title: The heading.
        parts: What it shows, in this order.
        order: Sections of all metrics are sorted by it, then by the order of metrics. One with a negative order is
            right after the report's headline.
    """

    key: str
    title: str
    parts: list[Part] = field(default_factory=list)
    order: int = 50


@dataclass(frozen=True)
class CardResult:
    """A result in the head of the model card, in the form that the Hugging Face Hub reads.

    Attributes:
        dataset: What was measured on, in words.
        dataset_type: Its short name.
        metric: Short name of the number.
        title: The number in words.
        value: The student's.
        language: ISO 639-1 code of the language that the result shows the student to have.
    """

    dataset: str
    dataset_type: str
    metric: str
    title: str
    value: float
    language: str | None = None
