"""What each net costs and brings beside BatchNorm and ReLU."""

from collections.abc import Callable
from typing import Any

import pytest

from suite.report import choices
from suite.report.entries import Entry
from suite.report.render import Report
from suite.report.runs import Records
from suite.results.store import Store
from suite.tables import spec

AddRun = Callable[..., dict[str, Any]]


def tables(store: Store) -> dict[str, Report]:
    records, table = Records([store]), spec.load_table(2)
    return choices.tables([Entry(table, row, records.runs(table, row)) for row in table.rows])


def test_nets_stand_beside_batchnorm_with_relu_least_error_first(store: Store, add_run: AddRun) -> None:
    add_run("resnet110_relu_bn", top1=6.5, samples=(0.010,) * 3, batch_sizes=(1, 8))
    add_run("resnet110_crelu_bn", top1=5.5, samples=(0.015,) * 3, batch_sizes=(1, 8))
    ((name, shown),) = tables(store).items()
    assert name == "choices-cifar10-resnet110"
    first, second = (line.values for line in shown.lines)
    assert (first["model"], first["top1"], first["points"]) == ("resnet110_crelu_bn", 5.5, -1.0)
    assert (first["parameters"], first["ORT_cpu_b1_ms"]) == (1.0, 15.0)
    assert first["ORT_cpu_b1_ratio"] == pytest.approx(1.5)
    assert (second["points"], second["ORT_cpu_b1_ratio"]) == (0.0, 1.0)
    assert not any("b8" in column.key for column in shown.columns)


def test_runs_of_another_length_are_not_subtracted(store: Store, add_run: AddRun) -> None:
    add_run("resnet110_relu_bn", top1=6.5)
    add_run("resnet110_crelu_bn", top1=9.5, epochs=3)
    (shown,) = tables(store).values()
    crelu = shown.lines[1]
    assert crelu.values["points"] is None
    assert "over as many whole epochs" in crelu.notes["points"][0]
    assert "shortened run" in crelu.notes["top1"][0]


@pytest.mark.parametrize("quick", [{"max_steps": 4}, {"data": "digits10"}], ids=["few steps", "stand-in"])
def test_errors_of_quick_runs_are_not_subtracted(store: Store, add_run: AddRun, quick: dict[str, Any]) -> None:
    add_run("resnet110_relu_bn", top1=90.0, **quick)
    add_run("resnet110_crelu_bn", top1=89.0, **quick)
    (shown,) = tables(store).values()
    assert [line.values["points"] for line in shown.lines] == [None, None]
    errors = [line.values["top1"] for line in shown.lines]
    assert errors == (["quick"] * 2 if "max_steps" in quick else [89.0, 90.0])


def test_without_the_usual_net_there_is_nothing_to_stand_beside(store: Store, add_run: AddRun) -> None:
    add_run("resnet110_crelu_plain", top1=8.0)
    add_run("resnet110_crelu_bn", top1=None)
    (shown,) = tables(store).values()
    plain, untrained = (line.values for line in shown.lines)
    assert (plain["top1"], plain["points"], plain["ORT_cpu_b8_ratio"]) == (8.0, None, None)
    assert untrained["top1"] is None


def test_two_machines_have_columns_of_their_own(store: Store, add_run: AddRun) -> None:
    add_run("resnet110_relu_bn", machine="A")
    add_run("resnet110_crelu_bn", machine="B", samples=(0.001,) * 3)
    (shown,) = tables(store).values()
    crelu = next(line for line in shown.lines if line.values["model"] == "resnet110_crelu_bn")
    assert (crelu.values["ORT_cpu_b8_m1_ms"], crelu.values["ORT_cpu_b8_m2_ms"]) == (None, 1.0)
    assert crelu.values["ORT_cpu_b8_m2_ratio"] is None
    assert shown.remarks[1:] == ["m1: A", "m2: B"]


def test_a_latency_that_is_unstable_or_of_a_file_that_fails_parity_says_so(store: Store, add_run: AddRun) -> None:
    add_run("resnet110_relu_bn", top1=6.5)
    add_run("resnet110_crelu_bn", top1=5.5, samples=(0.01, 0.02, 0.03, 0.04), passed=False)
    (shown,) = tables(store).values()
    crelu, relu = shown.lines
    unstable, failed = crelu.notes["ORT_cpu_b8_ms"]
    assert unstable.startswith("unstable")
    assert failed.startswith("PARITY FAILED")
    assert "ORT_cpu_b8_ms" not in relu.notes


def test_a_single_net_is_no_choice(store: Store, add_run: AddRun) -> None:
    add_run()
    assert tables(store) == {}
