"""What a plot is, as plain data: two renderers, `suite.report.svg` and the page's
script, make pictures of it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from suite.report.look import Shape

# Points of a curve that are kept; more could not be told apart on a screen.
POINTS = 200
# What a box shows: whiskers, quartiles and median.
SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)

Points = list[list[float]]

# Round values, times a power of ten, of which an axis may begin at one.
ROUND = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
# Room beside the values of an axis, as a share of what they span.
ROOM = 0.05


@dataclass(frozen=True)
class Axis:
    """One axis from `low` to `high` with the values to be marked; `categories` name 0,
    1, ... where there are any."""

    label: str
    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class Series:
    """Points of one name: [x, y] each, or for boxes [category, then a value for each of
    `SHARES`].

    Attributes:
        color: index into `suite.report.look.PALETTE`.
        hollow: drawn as an outline, or as a broken line.
        labels: what each point is, where the series has many things.
        shape: of points.
        weight: of a line or a point, 1 for what is usual.
    """

    name: str
    mark: Literal["points", "line", "steps", "boxes"]
    points: Points
    color: int = 0
    hollow: bool = False
    labels: tuple[str, ...] = ()
    shape: Shape = "circle"
    weight: float = 1.0


@dataclass(frozen=True)
class Plot:
    """One picture: `name` is its file's, `title` tells it from the other plots of
    its figure, and `note` is what its readers must know, such as how short the runs
    were.

    Where the title is long, `brief` is its part for a list of the figure's plots, and
    `group` what stands there above all of a kind.
    """

    name: str
    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    note: str = ""
    brief: str = ""
    group: str = ""


@dataclass(frozen=True)
class Figure:
    """Plots of which one is seen at a time, what they show, and, line by line, what the
    paper says of it."""

    title: str
    caption: str
    plots: tuple[Plot, ...]
    paper: str = ""

    @property
    def choices(self) -> list[tuple[str, list[tuple[int, str]]]]:
        """Its plots as a list to choose from: each group with the number and the title
        of each plot."""
        found = groupby(enumerate(self.plots), key=lambda each: each[1].group)
        return [(group, [(number, plot.brief or plot.title) for number, plot in some]) for group, some in found]


def thin_out(points: Points) -> Points:
    """At most about `POINTS` of the points, evenly spaced, the last always among
    them."""
    step = math.ceil(len(points) / POINTS)
    return points if step <= 1 else [*points[:-1:step], points[-1]]


def category_axis(names: tuple[str, ...]) -> Axis:
    """A vertical axis with a place for each name."""
    return Axis("", -0.5, len(names) - 0.5, tuple(range(len(names))), categories=names)


def number_axis(
    label: str,
    values: Sequence[float],
    log: bool = False,
    most: float = math.inf,
    beyond: float = ROOM,
    marked: bool = False,
) -> Axis:
    """An axis with a little room beside the values, up to the greatest that is
    possible; logarithmic only where all are positive. `beyond` is the room behind the
    greatest, as a share of what the values span; `marked` puts a mark before the least,
    which must be positive."""
    low, high = min(values), max(values)
    log = log and low > 0
    forward: Callable[[float], float] = math.log10 if log else float
    back: Callable[[float], float] = (lambda value: 10**value) if log else float
    room = ROOM * (forward(high) - forward(low)) or (0.1 if log else 0.5)
    start, end = back(forward(low) - room), back(forward(high) + room * beyond / ROOM)
    if low >= 0 > start:
        start = 0.0
    end = max(high, min(end, most))
    ticks = _ticks(start, end, log)
    if marked and (not ticks or ticks[0] > low):
        size = 10.0 ** math.floor(math.log10(low))
        first = size * max(step for step in ROUND if step * size <= low)
        start, ticks = min(start, first), (first, *ticks)
    return Axis(label, start, end, ticks, log)


def _ticks(low: float, high: float, log: bool) -> tuple[float, ...]:
    """Round values between two, about five of them."""
    if log:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        decades = range(first, last + 1, math.ceil((last - first) / 8) or 1)
        for steps in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 4, 5, 6, 8)):
            marks = (step * 10.0**decade for decade in decades for step in steps)
            found = tuple(mark for mark in marks if low <= mark <= high)
            if len(found) >= 4:
                return found
    size = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(size))
    step = unit * next(factor for factor in (1, 2, 5, 10) if factor * unit >= size)
    return tuple(round(number * step, 12) for number in range(math.ceil(low / step), math.floor(high / step) + 1))
