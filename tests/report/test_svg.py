"""Plots as SVG files."""

import itertools
import re
from xml.etree import ElementTree

import pytest

from suite.report import svg
from suite.report.drawing import Axis, Plot, Series

LINEAR = Axis("error", 0, 10, (0, 5, 10))
LOG = Axis("latency", 1, 100, (1, 10, 100), log=True)
NAMES = Axis("", -0.5, 1.5, (0, 1), categories=("first", "<second>"))
SVG = "{http://www.w3.org/2000/svg}"


def draw(x: Axis, y: Axis, *series: Series) -> ElementTree.Element:
    return ElementTree.fromstring(svg.render(Plot("name", "A & <title>", x, y, series)))


def texts(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def test_titles_labels_and_categories_are_escaped_text() -> None:
    root = draw(LOG, NAMES, Series("s", "boxes", [[0, 1, 2, 3, 4, 5], [1, 1, 2, 3, 4, 5]]))
    assert {"A & <title>", "latency", "first", "<second>"} <= set(texts(root))


def test_a_logarithmic_axis_gives_each_decade_the_same_width() -> None:
    root = draw(LOG, LINEAR, Series("s", "points", [[1, 5], [10, 5], [100, 5]], labels=("a", "b", "c")))
    left, middle, right = [float(circle.get("cx", "")) for circle in root.iter(f"{SVG}circle")]
    assert middle - left == pytest.approx(right - middle, abs=0.2)
    assert right > left


def test_a_higher_value_stands_higher_in_the_picture() -> None:
    root = draw(LINEAR, LINEAR, Series("s", "points", [[5, 1], [5, 9]], labels=("low", "high")))
    low, high = [float(circle.get("cy", "")) for circle in root.iter(f"{SVG}circle")]
    assert high < low


def test_hollow_points_are_outlines_and_hollow_lines_are_broken() -> None:
    full = Series("full", "points", [[1, 1]], labels=("a",))
    hollow = Series("hollow", "points", [[2, 2]], hollow=True, labels=("b",))
    broken = Series("broken", "line", [[1, 1], [2, 2]], hollow=True)
    root = draw(LINEAR, LINEAR, full, hollow, broken)
    fills = [circle.get("fill") for circle in root.iter(f"{SVG}circle")]
    assert fills[0] == svg.PALETTE[0]
    assert fills[1] == "#fff"
    # One in the plot, one in the legend.
    assert sum(path.get("stroke-dasharray") is not None for path in root.iter(f"{SVG}path")) == 2


def test_a_legend_names_the_series_where_there_are_several() -> None:
    one, two = Series("one", "line", [[1, 1], [2, 2]]), Series("two", "line", [[1, 2]], 1)
    assert "one" not in texts(draw(LINEAR, LINEAR, one))
    assert {"one", "two"} <= set(texts(draw(LINEAR, LINEAR, one, two)))


def test_labels_of_points_lie_in_the_picture_and_over_no_other() -> None:
    points = [[1.0, 5.0], [1.01, 5.0], [1.02, 5.1], [9.9, 5.0], [9.9, 9.0]]
    names = ("one", "two", "three", "near the right", "<b>")
    root = draw(LINEAR, LINEAR, Series("s", "points", points, labels=names))
    found = [text for text in root.iter(f"{SVG}text") if text.text in names]
    assert sorted(text.text or "" for text in found) == sorted(names)
    lines = []
    for text in found:
        x, width = float(text.get("x", "")), 6.2 * len(text.text or "")
        lines.append((x - width if text.get("text-anchor") == "end" else x, float(text.get("y", "")), width))
    for left, _, width in lines:
        assert 0 < left < left + width < svg.WIDTH
    for one, other in itertools.combinations(lines, 2):
        beside = one[0] + one[2] <= other[0] or other[0] + other[2] <= one[0]
        assert beside or abs(one[1] - other[1]) >= 11


def test_points_that_an_axis_names_have_no_second_label() -> None:
    root = draw(LINEAR, NAMES, Series("s", "points", [[1, 0], [2, 1]], labels=("first", "<second>")))
    assert sorted(text for text in texts(root) if text in ("first", "<second>")) == ["<second>", "first"]


def test_the_front_crosses_no_label_that_has_another_place() -> None:
    """The level line runs where the label of the first point would stand, the upright one right of the second."""
    points, front = [[2.0, 7.7], [3.0, 4.0]], [[1.0, 8.0], [4.0, 2.0]]
    root = draw(
        LINEAR,
        LINEAR,
        Series("s", "points", points, labels=("resnet20_relu_bn", "resnet20_w32_relu_bn")),
        Series("front", "steps", front),
    )
    path, _ = [
        found for each in root.iter(f"{SVG}path") if {"H", "V"} <= set(found := each.get("d", ""))
    ]  # and its key
    left, top, right, below = (float(number) for number in re.findall(r"[\d.]+", path))
    labels = [each for each in root.iter(f"{SVG}text") if (each.text or "").startswith("resnet")]
    assert len(labels) == 2
    for label in labels:
        width, x, y = svg.LETTER * len(label.text or ""), float(label.get("x", "")), float(label.get("y", ""))
        start = x - width if label.get("text-anchor") == "end" else x
        assert not (y - 8 < top < y + 2 and start < right and left < start + width), label.text
        assert not (start < right < start + width and y > top and y - 8 < below), label.text
