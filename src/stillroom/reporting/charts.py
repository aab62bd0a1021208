"""Small vector charts for the report: SVG with text alternatives, told apart by dashes and labels as well as colour."""

from __future__ import annotations

import itertools
import math
from html import escape

from stillroom.core.plain import public_name
from stillroom.evaluation.sections import Dot, DotChart, LineChart, Series

WIDTH, HEIGHT = 480, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 84, 16, 44
DASHES = ("", "7 4", "2 3", "10 3 2 3")


def draw(chart: LineChart | DotChart) -> str:
    """A metric's chart as SVG; an empty text where there is nothing to draw."""
    if isinstance(chart, DotChart):
        return dot_chart(chart.rows, chart.series, title=chart.title, x_label=chart.x_label, at_one=chart.at_one)
    return line_chart(
        chart.series,
        title=chart.title,
        x_label=chart.x_label,
        y_label=chart.y_label,
        x_names=chart.x_names,
        diagonal=chart.diagonal,
        marked=chart.marked,
    )


def line_chart(
    series: list[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    x_names: list[str] | None = None,
    diagonal: bool = False,
    marked: bool = False,
) -> str:
    """Lines over a common scale, as SVG; an empty text where there is nothing to draw.

    Args:
        series: The lines.
        title: Of the chart.
        x_label: Under the scale.
        y_label: Beside it.
        x_names: Names of x = 0, 1, 2, … in place of numbers.
        diagonal: Both are shares; draw where they are equal.
        marked: Draw a mark at every point; each series has another.
    """
    series = [line for line in series if line.points]
    if not series:
        return ""
    xs = [x for line in series for x, _ in line.points]
    ys = [y for line in series for _, y in line.points]
    x_low, x_high = min(xs), max(xs)
    y_ticks = ticks(min(0.0, *ys), max(ys))
    if diagonal:
        # Both scales are shares: whole and alike, so that the diagonal is one.
        x_low, x_high, y_ticks = 0.0, 1.0, ticks(0.0, 1.0)
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low or 1)
        up = (y - y_low) / (y_high - y_low or 1)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = _frame(y_ticks, y_low, y_high, x_label, y_label)
    named = [(float(index), name) for index, name in enumerate(x_names or ())]
    for tick, name in named or [(tick, number(tick)) for tick in ticks(x_low, x_high)]:
        if x_low <= tick <= x_high:
            parts.append(_text(place(tick, y_low)[0], HEIGHT - BOTTOM + 16, name, "middle"))
    if diagonal:
        low, high = max(x_low, y_low), min(x_high, y_high)
        (x1, y1), (x2, y2) = place(low, low), place(high, high)
        parts.append(f'<line class="diagonal" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
    styles = [index % 4 if line.style is None else line.style for index, line in enumerate(series)]
    for style, line in zip(styles, series, strict=True):
        path = " ".join(
            f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(place(*p) for p in line.points)
        )
        dash = f' stroke-dasharray="{DASHES[style]}"' if DASHES[style] else ""
        parts.append(f'<path class="line s{style}" d="{path}"{dash}/>')
        if marked:
            parts += [_mark(style, *place(*point)) for point in line.points]
    ends = [place(*line.points[-1]) for line in series]
    for index, y in enumerate(_apart([y for _, y in ends])):
        name = escape(series[index].name)
        parts.append(f'<text class="label s{styles[index]}" x="{ends[index][0] + 8:.1f}" y="{y + 4:.1f}">{name}</text>')
    words = "; ".join(
        f"{line.name}: from {number(line.points[0][1])} to {number(line.points[-1][1])}" for line in series
    )
    return _svg(parts, title, f"{y_label} over {x_label}. {words}.")


def dot_chart(rows: list[Dot], series: list[str], *, title: str, x_label: str, at_one: bool = False) -> str:
    """A line for each row: values as marks, their intervals as strokes. As SVG; an empty text without rows.

    Args:
        rows: What is drawn.
        series: Names of the series; each has its own mark.
        title: Of the chart.
        x_label: Under the scale.
        at_one: Draw a line at 1.
    """
    found = [value for row in rows for value in row.values if value is not None]
    if not found:
        return ""
    x_ticks = ticks(
        min(0.0, *(low for _, low, _ in found)), max(max(high for _, _, high in found), 1.0 if at_one else 0.0)
    )
    x_low, x_high = x_ticks[0], x_ticks[-1]
    left = int(16 + 7.5 * max(len(row.name) for row in rows))
    left = min(left, 190)
    step = 12 * len(series) + 10
    height = TOP + 18 + step * len(rows) + BOTTOM

    def across(x: float) -> float:
        return left + (x - x_low) / (x_high - x_low or 1) * (WIDTH - left - 20)

    parts = []
    for tick in x_ticks:
        x = across(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP + 14}" y2="{height - BOTTOM}"/>')
        parts.append(_text(x, height - BOTTOM + 16, number(tick), "middle"))
    if at_one:
        x = across(1.0)
        parts.append(f'<line class="diagonal" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP + 14}" y2="{height - BOTTOM}"/>')
    place = left
    for index, name in enumerate(series):
        parts.append(_mark(index, place, TOP))
        parts.append(f'<text class="label s{index % 4}" x="{place + 9:.1f}" y="{TOP + 4}">{escape(name)}</text>')
        place += 30 + 8 * len(name)
    for number_, row in enumerate(rows):
        top = TOP + 18 + step * number_
        # Before it is shortened: the beginning of a path would be known as one no more.
        name = public_name(row.name)
        shown = name if len(name) <= 26 else name[:25] + "…"
        parts.append(_text(left - 10, top + step / 2 + 4, shown, "end"))
        for index, value in enumerate(row.values):
            if value is not None:
                y = top + 10 + 12 * index
                parts.append(
                    f'<line class="whisker s{index % 4}" x1="{across(value[1]):.1f}" x2="{across(value[2]):.1f}" '
                    f'y1="{y}" y2="{y}"/>'
                )
                parts.append(_mark(index, across(value[0]), y))
    parts.append(_text((left + WIDTH - 20) / 2, height - 6, x_label, "middle"))
    words = "; ".join(
        f"{row.name}: "
        + ", ".join(
            f"{name} {number(value[0])} ({number(value[1])} to {number(value[2])})"
            for name, value in zip(series, row.values, strict=True)
            if value is not None
        )
        for row in rows
    )
    return _svg(parts, title, f"{x_label}. {words}.", height)


def bar_chart(values: list[float], marked: set[int], *, title: str, x_label: str, y_label: str, marked_as: str) -> str:
    """One bar a value; marked bars are hatched. As SVG; an empty text where there is nothing to draw."""
    if not values:
        return ""
    y_ticks = ticks(min(0.0, *values), max(values))
    y_low, y_high = y_ticks[0], y_ticks[-1]
    room = (WIDTH - LEFT - 16) / len(values)
    parts = [
        '<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<rect width="6" height="6" class="hatch-ground"/><line x1="0" y1="0" x2="0" y2="6" class="hatch-line"/>'
        "</pattern></defs>",
        *_frame(y_ticks, y_low, y_high, x_label, y_label, right=16),
    ]
    for index, value in enumerate(values):
        share = (value - y_low) / (y_high - y_low or 1)
        tall = share * (HEIGHT - TOP - BOTTOM)
        x = LEFT + index * room
        kind = "bar marked" if index in marked else "bar"
        parts.append(
            f'<rect class="{kind}" x="{x + 1:.1f}" y="{HEIGHT - BOTTOM - tall:.1f}" width="{max(1.0, room - 2):.1f}" '
            f'height="{tall:.1f}"/>'
        )
        if len(values) <= 16 or index % (len(values) // 10) == 0:
            parts.append(_text(x + room / 2, HEIGHT - BOTTOM + 16, str(index), "middle"))
    named = ", ".join(str(index) for index in sorted(marked)) or "none"
    listed = ", ".join(number(value) for value in values)
    return _svg(parts, title, f"{y_label} by {x_label}. {marked_as}: {named}. Values: {listed}.")


def _apart(heights: list[float], step: float = 16.0) -> list[float]:
    """Heights of labels, moved as little as keeps them apart and inside the chart."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    moved = list(heights)
    for before, after in itertools.pairwise(order):
        moved[after] = max(moved[after], moved[before] + step)
    low: float = HEIGHT - BOTTOM
    for after in reversed(order):
        moved[after] = min(moved[after], low)
        low = moved[after] - step
    return moved


def _mark(index: int, x: float, y: float) -> str:
    """A series' mark: circle, square, triangle, diamond."""
    kind = f'class="mark s{index % 4}"'
    if index % 4 == 0:
        return f'<circle {kind} cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    shapes = {
        1: f"M{x - 3.6:.1f} {y - 3.6:.1f}h7.2v7.2h-7.2z",
        2: f"M{x:.1f} {y - 4.6:.1f}l4.6 8h-9.2z",
        3: f"M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z",
    }
    return f'<path {kind} d="{shapes[index % 4]}"/>'


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers that span a range, at least two."""
    span = high - low
    if span <= 0:
        return [low, low + 1]
    raw = span / wanted
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw)
    first, last = math.floor(low / step), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def number(value: float) -> str:
    """A number as short as it can be read."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000:
        return f"{value / 1000:,.0f}k"
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _frame(
    y_ticks: list[float], y_low: float, y_high: float, x_label: str, y_label: str, right: int = RIGHT
) -> list[str]:
    parts = []
    for tick in y_ticks:
        y = HEIGHT - BOTTOM - (tick - y_low) / (y_high - y_low or 1) * (HEIGHT - TOP - BOTTOM)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(LEFT - 8, y + 4, number(tick), "end"))
    parts.append(_text((LEFT + WIDTH - right) / 2, HEIGHT - 6, x_label, "middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">{escape(y_label)}</text>'
    )
    return parts


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(parts: list[str], title: str, words: str, height: float = HEIGHT) -> str:
    body = "".join(parts)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title)}. {escape(words)}">'
        f"<title>{escape(title)}</title>{body}</svg>"
    )
