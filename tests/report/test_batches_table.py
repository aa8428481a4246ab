"""What a larger batch brings."""

from collections.abc import Callable
from typing import Any

import pytest

from suite.report import batches
from suite.report.entries import Entry
from suite.report.render import Report
from suite.report.runs import Records
from suite.results.store import Store
from suite.tables import spec

AddRun = Callable[..., dict[str, Any]]


def table(store: Store) -> Report | None:
    records, of = Records([store]), spec.load_table(2)
    return batches.table([Entry(of, row, records.runs(of, row)) for row in of.rows])


def test_images_a_second_are_a_multiple_of_those_at_the_smallest_batch(store: Store, add_run: AddRun) -> None:
    add_run(batch_sizes=(1, 8, 64), samples=(0.004,) * 3)
    add_run("resnet110_crelu_bn", batch_sizes=(8,))
    shown = table(store)
    assert shown is not None
    (line,) = shown.lines
    assert line.values == {
        "model": "resnet110_relu_bn",
        "heading_data": "CIFAR-10",
        "ORT_cpu_b8_over_b1": pytest.approx(8.0),
        "ORT_cpu_b64_over_b1": pytest.approx(64.0),
    }
    assert [column.heading for column in shown.columns][2:] == ["ORT cpu b8 over b1", "ORT cpu b64 over b1"]


def test_machines_have_columns_of_their_own(store: Store, add_run: AddRun) -> None:
    add_run(batch_sizes=(1, 8), machine="A")
    add_run("resnet110_crelu_bn", batch_sizes=(1, 8), machine="B")
    shown = table(store)
    assert shown is not None
    assert [column.heading for column in shown.columns][2:] == ["ORT cpu b8 m1 over b1", "ORT cpu b8 m2 over b1"]
    assert shown.remarks == ["m1: A", "m2: B"]
    assert shown.lines[0].values["ORT_cpu_b8_m2_over_b1"] is None


def test_one_batch_size_makes_no_table(store: Store, add_run: AddRun) -> None:
    add_run(batch_sizes=(8,))
    assert table(store) is None


def test_lines_stand_by_data_set_and_depth(store: Store, add_run: AddRun) -> None:
    places = [("cifar100", 110), ("cifar10", 110), ("cifar100", 20), ("cifar10", 20)]
    for data, depth in places:
        add_run(f"resnet{depth}_crelu_bn", data=data, batch_sizes=(1, 8))
        add_run(f"resnet{depth}_relu_bn", data=data, batch_sizes=(1, 8))
    records, paper = Records([store]), spec.load_table(2)
    tables = [paper, spec.with_depth(paper, 20)]
    shown = batches.table([Entry(each, row, records.runs(each, row)) for each in tables for row in each.rows])
    assert shown is not None
    assert [(line.values["heading_data"], line.values["model"]) for line in shown.lines] == [
        (data, f"resnet{depth}_{net}")
        for data in ("CIFAR-10", "CIFAR-100")
        for depth in (20, 110)
        for net in ("relu_bn", "crelu_bn")
    ]


def test_a_net_counts_in_the_table_in_which_it_was_timed(store: Store, add_run: AddRun) -> None:
    """That of Table 2 by the usual recipe was not."""
    add_run("resnet110_w32_relu_bn", "cifar100", batch_sizes=())
    add_run("resnet110_w32_relu_bn", "cifar100", weight_decay=5e-4, batch_sizes=(1, 8))
    records, tables = Records([store]), [spec.load_table(number) for number in (2, 3)]
    entries = [Entry(table, row, records.runs(table, row)) for table in tables for row in table.rows]
    shown = batches.table(entries)
    assert shown is not None
    assert [line.values["model"] for line in shown.lines] == ["resnet110_w32_relu_bn"]
