"""What the report draws, as data."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from suite.report import figures, plots
from suite.report.drawing import Figure
from suite.report.entries import Entry
from suite.report.runs import Records
from suite.results.store import Store
from suite.tables import spec

# What an analysis says of the last activations.
ACTIVATION = {"nonzero": 0.5} | {name: {"mean": 1.0, "std": 1.0} for name in ("over_nonzero", "over_all", "pooled")}

DEPTH_20 = spec.with_depth(spec.load_table(2), 20)

AddRun = Callable[..., dict[str, Any]]


def entries(store: Store, *numbers: int) -> list[Entry]:
    records = Records([store])
    return [
        Entry(table, row, records.runs(table, row))
        for table in map(spec.load_table, numbers or (2,))
        for row in table.rows
    ]


def only(figures: list[Figure]) -> Figure:
    (figure,) = figures
    return figure


def test_without_records_nothing_is_drawn(store: Store) -> None:
    for draw in (
        plots.error_against_latency,
        plots.learning_curves,
        plots.latency_distributions,
        plots.rewrite_gains,
        plots.inside,
    ):
        assert draw(entries(store)) == []


def test_an_error_is_drawn_against_the_median_latency_in_milliseconds(store: Store, add_run: AddRun) -> None:
    add_run(top1=6.0, samples=(0.01, 0.02, 0.09))
    add_run(seed=1, top1=7.0, samples=(0.01,))
    (plot,) = only(plots.error_against_latency(entries(store))).plots
    points = plot.series[0]
    assert (points.points, points.labels) == ([[20.0, 6.5]], ("resnet110_relu_bn",))
    assert (points.name, points.shape, points.hollow) == ("ReLU + BatchNorm", "circle", False)
    assert plot.note == "Errors: 2 of 5 seeds"


def test_short_runs_are_hollow_and_no_part_of_the_front(store: Store, add_run: AddRun) -> None:
    add_run(top1=6.0)
    add_run("resnet110_relu_plain", epochs=3, top1=1.0, samples=(0.001,) * 4)
    (plot,) = only(plots.error_against_latency(entries(store))).plots
    points = [("ReLU + Plain, shortened", True), ("ReLU + BatchNorm", False)]
    assert [(s.name, s.hollow) for s in plot.series[:-1]] == points
    assert plot.note == "Errors: 3 of 164 epochs, 1 of 5 seeds"
    assert plot.series[-1].points == [[10.0, 6.0]]


def test_of_short_runs_the_longest_on_the_paper_s_data_have_the_front(store: Store, add_run: AddRun) -> None:
    add_run(epochs=10, top1=15.0)
    add_run("resnet110_relu_plain", epochs=3, top1=9.0, samples=(0.001,) * 4)
    add_run("resnet110_relu_np", data="digits10", top1=1.0, samples=(0.001,) * 4)
    (plot,) = only(plots.error_against_latency(entries(store))).plots
    assert plot.series[-1].points == [[10.0, 15.0]]


def test_a_net_of_two_tables_is_drawn_once(store: Store, add_run: AddRun) -> None:
    add_run()
    (plot,) = only(plots.error_against_latency(entries(store, 2, 3))).plots
    assert len(plot.series[0].points) == 1


def test_each_machine_has_a_plot_of_its_own(store: Store, add_run: AddRun) -> None:
    add_run(machine="A")
    add_run("resnet110_crelu_bn", machine="B")
    for draw in (plots.error_against_latency, plots.latency_distributions):
        assert [plot.title for plot in only(draw(entries(store))).plots] == [
            "ONNX Runtime, cpu, batch 8; A",
            "ONNX Runtime, cpu, batch 8; B",
        ]


def test_plots_of_trained_nets_come_first_and_of_these_those_of_most_nets(store: Store, add_run: AddRun) -> None:
    add_run("resnet110_relu_bn", max_steps=4, machine="A")
    add_run("resnet110_relu_plain", machine="B")
    for model in ("resnet110_crelu_bn", "resnet110_crelu_plain"):
        add_run(model, machine="C")
    add_run("resnet110_relu_np", max_steps=4, machine="C")
    figure = only(plots.latency_distributions(entries(store)))
    assert [(plot.group, len(plot.y.categories)) for plot in figure.plots] == [("C", 3), ("B", 1), ("A", 1)]
    assert [plot.name for plot in figure.plots] == [f"cifar10-latency-{number}" for number in (1, 2, 3)]


def test_a_list_of_plots_has_each_setup_once_above_its_plots(store: Store, add_run: AddRun) -> None:
    add_run(machine="A", batch_sizes=(1, 8))
    add_run(seed=1, machine="B")
    figure = only(plots.latency_distributions(entries(store)))
    assert figure.choices == [
        ("A", [(0, "ONNX Runtime, cpu, batch 1"), (1, "ONNX Runtime, cpu, batch 8")]),
        ("B", [(2, "ONNX Runtime, cpu, batch 8")]),
    ]


def test_there_is_a_mark_before_the_first_box(store: Store, add_run: AddRun) -> None:
    add_run(samples=(0.00137,) * 3)
    add_run("resnet110_crelu_bn", samples=(0.009,) * 3)
    (plot,) = only(plots.latency_distributions(entries(store))).plots
    assert plot.x.ticks[:2] == (1.2, 2.0)
    assert plot.x.low <= 1.2


def test_a_box_is_made_of_quantiles_in_milliseconds(store: Store, add_run: AddRun) -> None:
    add_run(samples=tuple(n / 1000 for n in range(1, 102)))
    (plot,) = only(plots.latency_distributions(entries(store))).plots
    assert plot.series[0].points == [pytest.approx([0, 6, 26, 51, 76, 96])]
    assert plot.y.categories == ("resnet110_relu_bn",)


def test_the_gain_of_the_rewrites_is_a_ratio_to_the_default_export_of_the_same_kind(
    store: Store, add_run: AddRun
) -> None:
    add_run(samples=(0.009,) * 3)
    add_run(seed=1, samples=(0.010,) * 4, forms=("plain",))
    add_run("resnet110_crelu_bn", samples=(0.010,) * 3)
    (plot,) = only(plots.rewrite_gains(entries(store))).plots
    assert plot.title == "ONNX Runtime, cpu, batch 8; Test CPU (2 cores)"
    assert plot.series[0].points == [[pytest.approx(0.9), 0.0]]
    assert plot.y.categories == plot.series[0].labels == ("resnet110_relu_bn",)
    assert plot.x.low < 0.9 < 1 < plot.x.high
    titles = [plot.title for plot in only(plots.latency_distributions(entries(store))).plots]
    assert titles == [
        "ONNX Runtime, cpu, batch 8; Test CPU (2 cores)",
        "ONNX Runtime, cpu, default export, batch 8; Test CPU (2 cores)",
    ]


def test_normprop_s_promise_is_drawn_as_it_is_computed() -> None:
    """The page shows stored values, so that it need not load torch."""
    computed, remarks = figures.promise()
    figure = only(plots.promise())
    assert figure.paper.splitlines() == remarks
    drawn = {(plot.title, series.name): series.points for plot in figure.plots for series in plot.series}
    assert len(drawn) == 4
    for curve in computed:
        name, _, what = curve.model.partition(", ")
        expected = [[number, value] for number, value in enumerate(curve.values, start=1)]
        for point, other in zip(drawn[what, name], expected, strict=True):
            assert point == pytest.approx(other, rel=0.02, abs=0.01)


def test_a_curve_is_the_median_over_seeds_epoch_by_epoch(store: Store, add_run: AddRun) -> None:
    for seed, (first, last) in enumerate(((50.0, 6.0), (40.0, 8.0), (45.0, 7.0))):
        add_run(seed=seed, best=first, top1=last)
    (plot,) = only(plots.learning_curves(entries(store))).plots
    assert plot.series[0].points == [[1, 45.0], [2, 7.0]]


@pytest.mark.parametrize("quick", [{"max_steps": 4}, {"data": "digits10"}], ids=["few steps", "stand-in"])
def test_errors_of_quick_runs_are_not_drawn_but_their_latency_is(
    store: Store, add_run: AddRun, quick: dict[str, Any]
) -> None:
    add_run(top1=99.9, **quick)
    assert plots.error_against_latency(entries(store)) == plots.learning_curves(entries(store)) == []
    assert len(only(plots.latency_distributions(entries(store))).plots) == 1
    add_run("resnet110_relu_plain", top1=9.5)
    assert [series.labels for series in pareto(store)] == [("resnet110_relu_plain",), ()]


def test_an_axis_of_errors_ends_at_100_percent(store: Store, add_run: AddRun) -> None:
    add_run(top1=99.9)
    (plot,) = only(plots.error_against_latency(entries(store))).plots
    assert plot.y.high == 100


def test_a_colour_is_a_normalisation_in_every_plot(store: Store, add_run: AddRun) -> None:
    names = ("relu_bn", "crelu_bn", "w32_relu_bn", "relu_plain", "crelu_plain", "relu_np", "relu_np2")
    for name in names:
        add_run(f"resnet110_{name}", forms=("fp32", "plain"))
    found: dict[str, set[int]] = {}
    for draw in (
        plots.error_against_latency,
        plots.learning_curves,
        plots.latency_distributions,
        plots.rewrite_gains,
    ):
        for series in (s for plot in only(draw(entries(store))).plots for s in plot.series if s.name != "Pareto front"):
            for label in series.labels or (series.name,):
                found.setdefault(label.rpartition("_")[2], set()).add(series.color)
    assert {name: len(colors) for name, colors in found.items()} == dict.fromkeys(("bn", "plain", "np", "np2"), 1)
    assert len(set.union(*found.values())) == 4


def test_curves_of_different_depths_have_figures_of_their_own(store: Store, add_run: AddRun) -> None:
    add_run()
    add_run("resnet20_relu_bn")
    both = [*entries(store), *(Entry(t, r, Records([store]).runs(t, r)) for t in [DEPTH_20] for r in t.rows)]
    titles = [figure.title for figure in plots.learning_curves(both)]
    assert titles == ["Learning curves, CIFAR-10, ResNet-20", "Learning curves, CIFAR-10, ResNet-110"]


def test_the_points_of_a_front_are_beaten_by_none() -> None:
    assert plots.pareto_front([(3, 1), (1, 5), (2, 6), (2, 3), (4, 1), (2, 3)]) == [(1, 5), (2, 3), (3, 1)]
    # Within what the harness tells apart, the one with the lesser error.
    assert plots.pareto_front([(1.0, 5), (1.009, 4), (1.2, 3)]) == [(1.009, 4), (1.2, 3)]


def test_figure_2_of_a_deep_net_has_the_paper_s_zoom(store: Store, add_run: AddRun) -> None:
    for model, blocks in (("resnet110_relu_plain", 54), ("resnet110_relu_bn", 54)):
        delta = [float(block) for block in range(1, blocks + 1)]
        train = add_run(model, data="cifar100")["train"]
        result = {"activation": ACTIVATION, "blocks": {"delta": delta, "delta_after_relu": delta}}
        store.put("analyze", {"model": model, "train": train.key}, result, {}, {})
    whole, zoom, *_ = only(plots.inside(entries(store, 1))).plots
    assert [len(series.points) for series in whole.series] == [54, 54]
    assert [series.points[-1] for series in zoom.series] == [[36, 36.0], [36, 36.0]]
    assert (zoom.title, zoom.y.log) == ("before the activation, the first 36 blocks", False)


def pareto(store: Store) -> Sequence[plots.Series]:
    (plot,) = only(plots.error_against_latency(entries(store))).plots
    return plot.series
