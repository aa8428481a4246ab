"""A plot as an SVG file, for papers and for readers without scripts."""

import math
from collections.abc import Callable, Sequence
from html import escape

from suite.report.drawing import Axis, Plot, Series

# Okabe and Ito's colours, which colour-blind readers can tell apart, and darker ones where a plot needs more.
# The first three are those of ReLU, CReLU and the Pareto front.
PALETTE = (
    "#0072b2", "#d55e00", "#767676", "#009e73", "#cc79a7", "#b38600", "#56b4e9", "#7f3b08", "#542788", "#1b7837",
)  # fmt: skip
WIDTH, LEFT, RIGHT, TOP, BOTTOM = 760, 64, 16, 36, 52
LEGEND_COLUMNS, LINE = 3, 18
Place = tuple[float, float]


def render(plot: Plot) -> str:
    """The plot as an SVG document, drawn for white paper."""
    left = LEFT + 6.2 * max((len(name) for name in plot.y.categories), default=0)
    inner = max(300, 22 * len(plot.y.categories))
    named = plot.series if len(plot.series) > 1 else ()
    height = TOP + inner + BOTTOM + LINE * math.ceil(len(named) / LEGEND_COLUMNS)

    def at(x: float, y: float) -> Place:
        return (
            left + _share(plot.x, x) * (WIDTH - RIGHT - left),
            TOP + (1 - _share(plot.y, y)) * inner,
        )

    parts = [f'<text x="{left:.0f}" y="20" font-weight="bold">{escape(plot.title)}</text>']
    for value in plot.x.ticks:
        x, y = at(value, plot.y.low)
        parts.append(f'<path d="M{x:.1f} {TOP}V{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{_number(value)}</text>')
    for value in plot.y.ticks:
        x, y = at(plot.x.low, value)
        name = escape(plot.y.categories[round(value)]) if plot.y.categories else _number(value)
        parts.append(f'<path d="M{x:.1f} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{name}</text>')
    middle, below = (left + WIDTH - RIGHT) / 2, TOP + inner
    parts.append(f'<text x="{middle:.1f}" y="{below + 36}" text-anchor="middle">{escape(plot.x.label)}</text>')
    turned = f'transform="translate(16 {TOP + inner / 2}) rotate(-90)"'
    parts.append(f'<text {turned} text-anchor="middle">{escape(plot.y.label)}</text>')
    for series in plot.series:
        parts += _boxes(series, at) if series.form == "boxes" else _marks(series, [at(*p) for p in series.points])
    if not plot.y.categories:  # which name the points already
        parts += _labels([(at(*p), label) for s in plot.series for p, label in zip(s.points, s.labels, strict=False)])
    for index, series in enumerate(named):
        x = LEFT + (WIDTH - LEFT) * (index % LEGEND_COLUMNS) / LEGEND_COLUMNS
        y = below + BOTTOM + LINE * (index // LEGEND_COLUMNS)
        parts += _marks(series, [(x, y)] if series.form == "points" else [(x - 9, y), (x + 9, y)], titles=False)
        parts.append(f'<text x="{x + 14:.1f}" y="{y + 4:.1f}">{escape(series.name)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" font-family="sans-serif" font-size="12" fill="#222"><title>{escape(plot.title)}</title>'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _share(axis: Axis, value: float) -> float:
    """Where a value lies between the axis' ends, 0 to 1."""
    if axis.log:
        return math.log(value / axis.low) / math.log(axis.high / axis.low)
    return (value - axis.low) / (axis.high - axis.low)


def _marks(series: Series, places: list[Place], titles: bool = True) -> list[str]:
    color = PALETTE[series.color % len(PALETTE)]
    if series.form == "points":
        fill = "#fff" if series.hollow else color
        labels = series.labels if titles else ("",) * len(places)
        return [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{fill}" stroke="{color}" stroke-width="1.5">'
            f"<title>{escape(label)}</title></circle>"
            for (x, y), label in zip(places, labels, strict=True)
        ]
    path = f"M{places[0][0]:.1f} {places[0][1]:.1f}"
    for x, y in places[1:]:
        path += f"H{x:.1f}V{y:.1f}" if series.form == "steps" else f"L{x:.1f} {y:.1f}"
    dash = ' stroke-dasharray="5 3"' if series.hollow else ""
    drawn = [f'<path d="{path}" fill="none" stroke="{color}" stroke-width="1.5"{dash}/>']
    if len(places) == 1:
        drawn.append(f'<circle cx="{places[0][0]:.1f}" cy="{places[0][1]:.1f}" r="3" fill="{color}"/>')
    return drawn


def _labels(points: Sequence[tuple[Place, str]]) -> list[str]:
    """Each point's label above and beside it, on the side where there is room, and moved where another one is."""
    taken: list[tuple[float, float, float]] = []
    parts = []
    for (x, y), label in sorted(points):
        width = 6.2 * len(label)
        turned = x + 7 + width > WIDTH
        left = x - 7 - width if turned else x + 7
        # The nearest free line; the last resort is the point's own.
        shifts = [shift for step in range(6) for shift in (-step * LINE / 1.5, step * LINE / 1.5)]
        free = (y - 3 + shift for shift in shifts if not _covers(taken, left, y - 3 + shift, width))
        line = next(free, y - 3)
        taken.append((left, line, width))
        place = f'x="{x - 7:.1f}" text-anchor="end"' if turned else f'x="{left:.1f}"'
        parts.append(f'<text {place} y="{line:.1f}" font-size="11" fill="#555">{escape(label)}</text>')
    return parts


def _covers(taken: Sequence[tuple[float, float, float]], left: float, line: float, width: float) -> bool:
    """Whether a text on this line would lie over another one."""
    return any(
        abs(line - other) < LINE / 1.5 and left < start + length and start < left + width
        for start, other, length in taken
    )


def _boxes(series: Series, at: Callable[[float, float], Place]) -> list[str]:
    color = PALETTE[series.color % len(PALETTE)]
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
