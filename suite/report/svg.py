"""A plot as an SVG file, for papers and for readers without scripts."""

import math
import textwrap
from collections.abc import Callable, Sequence
from html import escape
from itertools import pairwise

from suite.report.drawing import Axis, Plot, Series
from suite.report.look import PALETTE

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 760, 64, 16, 62, 60
LEGEND_COLUMNS, LINE = 3, 18
# Letters of a line below the heading.
LETTERS = 118
# Of a letter, in pixels, at the size of labels.
LETTER = 6.2
# How far a label's letters reach above the line that they stand on, and below it.
HIGH, DEEP = 9.0, 3.0
# Keeps text legible over a line.
HALO = 'stroke="#fff" stroke-width="3" paint-order="stroke"'
Place = tuple[float, float]


def render(plot: Plot, heading: str = "") -> str:
    """The plot as an SVG document, drawn for white paper; `heading` says what its
    figure is of."""
    left = LEFT + LETTER * max((len(name) for name in plot.y.categories), default=0)
    inner = max(300, 22 * len(plot.y.categories))
    named = plot.series if len(plot.series) > 1 else ()
    titles = [*textwrap.wrap(plot.title, LETTERS), *textwrap.wrap(plot.note, LETTERS)]
    top = TOP + LINE * (len(titles) - 1)
    height = top + inner + BOTTOM + LINE * math.ceil(len(named) / LEGEND_COLUMNS)

    def at(x: float, y: float) -> Place:
        return (
            left + _share(plot.x, x) * (WIDTH - RIGHT - left),
            top + (1 - _share(plot.y, y)) * inner,
        )

    parts = [*_titles(heading, titles), *_axes(plot, at)]
    for series in sorted(plot.series, key=lambda each: each.mark == "points"):  # over the lines
        parts += _boxes(series, at) if series.mark == "boxes" else _marks(series, [at(*p) for p in series.points])
    if not plot.y.categories:  # which name the points already
        labelled = [(at(*p), label) for s in plot.series for p, label in zip(s.points, s.labels, strict=False)]
        marks = [at(*p) for s in plot.series if s.mark == "points" for p in s.points]
        steps = [[at(*p) for p in s.points] for s in plot.series if s.mark == "steps"]
        parts += _labels(labelled, marks, [line for places in steps for line in _lines_of(places)])
    for index, series in enumerate(named):
        x = LEFT + (WIDTH - LEFT) * (index % LEGEND_COLUMNS) / LEGEND_COLUMNS
        y = top + inner + BOTTOM + LINE * (index // LEGEND_COLUMNS)
        parts += _key(series, x, y)
        parts.append(f'<text x="{x + 14:.1f}" y="{y + 4:.1f}">{escape(series.name)}</text>')
    title = escape(f"{heading}: {plot.title}" if heading else plot.title)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" font-family="system-ui, sans-serif" font-size="12" fill="#222"><title>{title}</title>'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _titles(heading: str, below: Sequence[str]) -> list[str]:
    """What it is of; where it was measured, and what its readers must know."""
    parts = [f'<text x="16" y="22" font-size="16" font-weight="600">{escape(heading)}</text>'] if heading else []
    first = 42 if heading else 22
    return parts + [
        f'<text x="16" y="{first + LINE * number}" fill="#555">{escape(line)}</text>'
        for number, line in enumerate(below)
    ]


def _axes(plot: Plot, at: Callable[[float, float], Place]) -> list[str]:
    """The marked values of both axes and what they are of."""
    (left, top), (right, below) = at(plot.x.low, plot.y.high), at(plot.x.high, plot.y.low)
    parts = []
    for value in plot.x.ticks:
        x, y = at(value, plot.y.low)
        parts.append(f'<path d="M{x:.1f} {top:.1f}V{y:.1f}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle" fill="#555">{_number(value)}</text>')
    for value in plot.y.ticks:
        x, y = at(plot.x.low, value)
        name = escape(plot.y.categories[round(value)]) if plot.y.categories else _number(value)
        parts.append(f'<path d="M{x:.1f} {y:.1f}H{right:.1f}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end" fill="#555">{name}</text>')
    middle = f'x="{(left + right) / 2:.1f}" y="{below + 36:.1f}" text-anchor="middle"'
    parts.append(f"<text {middle}>{escape(plot.x.label)}</text>")
    turned = f'transform="translate(18 {(top + below) / 2:.1f}) rotate(-90)"'
    parts.append(f'<text {turned} text-anchor="middle">{escape(plot.y.label)}</text>')
    return parts


def _share(axis: Axis, value: float) -> float:
    """Where a value lies between the axis' ends, 0 to 1."""
    if axis.log:
        return math.log(value / axis.low) / math.log(axis.high / axis.low)
    return (value - axis.low) / (axis.high - axis.low)


def _marks(series: Series, places: list[Place], titles: bool = True) -> list[str]:
    color = PALETTE[series.color]
    if series.mark == "points":
        fill = "#fff" if series.hollow else color
        labels = series.labels if titles else ("",) * len(places)
        return [
            f'<{_shape(series, x, y)} fill="{fill}" stroke="{color}" stroke-width="2"><title>{escape(label)}</title></'
            f"{_shape(series, x, y).partition(' ')[0]}>"
            for (x, y), label in zip(places, labels, strict=True)
        ]
    path = f"M{places[0][0]:.1f} {places[0][1]:.1f}"
    for x, y in places[1:]:
        path += f"H{x:.1f}V{y:.1f}" if series.mark == "steps" else f"L{x:.1f} {y:.1f}"
    dash = ' stroke-dasharray="5 3"' if series.hollow else ""
    width = min(1.5 * series.weight, 3.5)
    drawn = [f'<path d="{path}" fill="none" stroke="{color}" stroke-width="{width:g}"{dash}/>']
    if len(places) == 1:
        drawn.append(f'<circle cx="{places[0][0]:.1f}" cy="{places[0][1]:.1f}" r="3" fill="{color}"/>')
    return drawn


def _shape(series: Series, x: float, y: float) -> str:
    """The name of an element and its place, for a point."""
    if series.shape == "triangle":
        return f'path d="M{x:.1f} {y - 6:.1f}l6 10.5h-12z"'
    if series.shape == "diamond":
        return f'path d="M{x:.1f} {y - 6.5:.1f}l6.5 6.5l-6.5 6.5l-6.5 -6.5z"'
    return f'circle cx="{x:.1f}" cy="{y:.1f}" r="5"'


def _key(series: Series, x: float, y: float) -> list[str]:
    """What stands before a series' name in the legend."""
    if series.mark == "boxes":
        path = f"M{x - 6:.1f} {y - 5:.1f}h12v10h-12z"
        return [f'<path d="{path}" fill="none" stroke="{PALETTE[series.color]}" stroke-width="1.5"/>']
    return _marks(series, [(x, y)] if series.mark == "points" else [(x - 9, y), (x + 9, y)], titles=False)


def _lines_of(places: Sequence[Place]) -> list[tuple[Place, Place]]:
    """The lines of steps, each from its upper left end to its lower right one."""
    corners = [places[0]] if places else []
    for x, y in places[1:]:
        corners += [(x, corners[-1][1]), (x, y)]
    return [((min(x, u), min(y, v)), (max(x, u), max(y, v))) for (x, y), (u, v) in pairwise(corners)]


def _labels(
    points: Sequence[tuple[Place, str]], marks: Sequence[Place], lines: Sequence[tuple[Place, Place]] = ()
) -> list[str]:
    """Each point's label above and beside it, on the side where there is room, and
    moved where another one, a point or a line is."""
    taken = [(x - 7, y + 4, 14.0) for x, y in marks]
    parts = []
    for (x, y), label in sorted(points):
        width = LETTER * len(label)
        right, left = x + 10, x - 10 - width
        starts = [start for start in (right, left) if start >= 0 and start + width <= WIDTH - RIGHT] or [left]
        # The nearest free line on either side; the last resort is the point's own.
        shifts = [shift for step in range(8) for shift in (-step * LINE / 1.5, step * LINE / 1.5)]
        places = [(start, y - 4 + shift) for shift in shifts for start in starts]
        free = [place for place in places if not _covers(taken, *place, width)]
        start, line = next((place for place in free if not _crossed(lines, *place, width)), (free or places)[0])
        taken.append((start, line, width))
        place = f'x="{right:.1f}"' if start == right else f'x="{x - 10:.1f}" text-anchor="end"'
        parts.append(f'<text {place} y="{line:.1f}" font-size="11.5" fill="#333" {HALO}>{escape(label)}</text>')
    return parts


def _covers(taken: Sequence[tuple[float, float, float]], left: float, line: float, width: float) -> bool:
    """Whether a text on this line would lie over another one."""
    return any(
        abs(line - other) < LINE / 1.5 and left < start + length and start < left + width
        for start, other, length in taken
    )


def _crossed(lines: Sequence[tuple[Place, Place]], left: float, line: float, width: float) -> bool:
    """Whether one of some upright or level lines runs through a text."""
    return any(
        x < left + width and left < right and y < line + DEEP and line - HIGH < below
        for (x, y), (right, below) in lines
    )


def _boxes(series: Series, at: Callable[[float, float], Place]) -> list[str]:
    color = PALETTE[series.color]
    parts = []
    for category, *values in series.points:
        p5, p25, p50, p75, p95 = (at(value, category)[0] for value in values)
        y = at(values[0], category)[1]
        parts.append(
            f'<path d="M{p5:.1f} {y:.1f}H{p25:.1f}M{p75:.1f} {y:.1f}H{p95:.1f}'
            f"M{p5:.1f} {y - 4:.1f}v8M{p95:.1f} {y - 4:.1f}v8"
            f'M{p25:.1f} {y - 6:.1f}H{p75:.1f}v12H{p25:.1f}zM{p50:.1f} {y - 6:.1f}v12" fill="none" stroke="{color}"/>'
        )
    return parts


def _number(value: float) -> str:
    return f"{value:.6g}"
