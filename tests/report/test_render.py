"""Tables as text: in every format, whatever the records hold."""

import csv
import io
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from suite.report import tables as report
from suite.report.formats import FORMATS
from suite.report.render import PARTS, Report, render, select_columns
from suite.results.store import Store
from suite.tables import spec

AddRun = Callable[..., dict[str, Any]]
MACHINE = "Test CPU (2 cores)"


def build(store: Store, model: str = "resnet110_relu_bn", number: int = 2, **options: Any) -> Report:
    return report.build(spec.with_rows(spec.load_table(number), [f"{model}@cifar10"]), store, **options)


def test_markdown_numbers_its_footnotes_and_explains_each(store: Store, add_run: AddRun) -> None:
    add_run(epochs=3)
    text = render(build(store), "github")
    assert "| 6.50 [1,2]" in text
    assert "- [1] shortened run" in text
    assert "- latency: Test CPU (2 cores)" in text


def test_csv_has_plain_numbers_and_a_column_of_notes(store: Store, add_run: AddRun) -> None:
    add_run(epochs=3)
    rows = list(csv.DictReader(io.StringIO(render(build(store), "csv"))))
    assert len(rows) == 1
    assert rows[0]["top1"] == "6.5"
    assert "top1: shortened run" in rows[0]["notes"]


def test_csv_does_not_show_the_last_bits_of_a_sum(store: Store, add_run: AddRun) -> None:
    train = add_run()["train"]
    export = store.put(
        "export", {"model": "resnet110_relu_bn", "train": train.key, "version": 9}, {"parameters": 1, "macs": 1}, {}, {}
    )
    timed = {"model": "resnet110_relu_bn", "export": export.key, "machine": "A", "runtime": "onnxruntime"}
    samples = {"samples": [0.000409923, 0.000409924]}
    store.put("latency", timed | {"provider": "cpu", "batch_size": 1}, samples, {}, {})
    rows = list(csv.DictReader(io.StringIO(render(build(store), "csv"))))
    assert rows[0]["onnxruntime_cpu_b1_p50_ms"] == "0.4099235"


def test_json_keeps_missing_values_as_null(store: Store) -> None:
    content = json.loads(render(build(store), "json"))
    assert content["rows"][0]["top1"] is None
    assert content["rows"][0]["notes"]["top1"] == ["not run"]
    assert [column["key"] for column in content["columns"]][:4] == ["heading_0", "heading_1", "heading_2", "model"]


def test_latex_is_escaped_and_uses_booktabs(store: Store, add_run: AddRun) -> None:
    add_run()
    text = render(build(store), "latex")
    assert "\\toprule" in text
    assert "resnet110\\_relu\\_bn" in text
    assert "test error (\\%)" in text


def test_no_name_is_a_command_to_latex(store: Store, add_run: AddRun) -> None:
    evil = r"\input{/etc/passwd} $x^2$ ~ % & # _"
    add_run(machine=evil)
    store.fail("train", {"model": "resnet110_crelu_bn", "data": {"name": "cifar10"}}, evil)
    text = render(build(store), "latex") + render(build(store, "resnet110_crelu_bn"), "latex")
    assert "passwd" in text
    for part in ("\\input", "input{", " $x", "x^2", "$ ~", "~ %", " % &", "& #"):
        assert part not in text


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("number", spec.NUMBERS)
def test_every_table_renders_in_every_format(store: Store, number: int, form: str) -> None:
    table = spec.load_table(number)
    text = render(report.build(table, store), form)
    assert text.endswith("\n")
    assert all(row.model in text.replace("\\_", "_") for row in table.rows)


def test_no_cell_is_a_formula_to_a_spreadsheet(store: Store, add_run: AddRun) -> None:
    evil = "=HYPERLINK(0)"
    records = add_run(machine=evil)
    timed = {**records["latency"].inputs, "runtime": evil, "provider": "@SUM(1)"}
    store.put("latency", timed, {"samples": [0.1]}, {"machine": {"id": evil}}, {})
    store.fail("train", {"model": "resnet110_crelu_bn", "data": {"name": "cifar10"}}, f"{evil}\n-2+3")
    for row in csv.reader(io.StringIO(render(build(store, "resnet110_relu_bn"), "csv"))):
        for cell in row:
            assert not cell.startswith(("=", "@", "+", "\t", "\r")) or _is_number(cell), cell


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


EVIL = "\x1b[2J\x00=cmd|' /C calc'!A0\\input{x}"


@pytest.mark.parametrize("form", FORMATS)
def test_control_characters_of_records_reach_neither_terminal_nor_file(
    store: Store, add_run: AddRun, form: str
) -> None:
    store.fail("train", {"model": "resnet110_relu_bn"}, EVIL)
    failed = render(build(store), form)
    assert "calc" in failed
    add_run(machine=EVIL)
    for text in (failed, render(build(store), form)):
        assert all(character.isprintable() or character == "\n" for character in text)


def test_a_spreadsheet_takes_no_text_of_a_record_for_a_formula(store: Store, add_run: AddRun) -> None:
    train = add_run()["train"]
    inputs = {"model": "resnet110_relu_bn", "export": "none", "machine": "A", "batch_size": 1}
    export = store.put(
        "export", {"model": "resnet110_relu_bn", "train": train.key, "version": 9}, {"parameters": 1, "macs": 1}, {}, {}
    )
    for runtime in ("=cmd()", "@x", "+1", "-1"):
        timed = inputs | {"export": export.key, "runtime": runtime, "provider": "cpu"}
        store.put("latency", timed, {"samples": [0.01]}, {}, {})
    rows = list(csv.reader(io.StringIO(render(build(store, detail=True), "csv"))))
    assert {"'=cmd()_cpu_b1_p50_ms", "'@x_cpu_b1_p50_ms"} <= set(rows[0])
    assert not any(cell.startswith(("=", "@", "+")) for row in rows for cell in row)
    difference = rows[1][rows[0].index("difference_top1")]
    assert float(difference) == pytest.approx(0.15)


def test_latex_commands_in_records_are_text(store: Store, add_run: AddRun) -> None:
    add_run(machine=EVIL)
    text = render(build(store), "latex")
    assert "\\input{x}" not in text
    assert "\\textbackslash{}input\\{x\\}" in text


def test_a_bar_in_a_record_ends_no_cell_of_a_markdown_table(store: Store, add_run: AddRun) -> None:
    export = add_run()["export"]
    timed = {"model": "resnet110_relu_bn", "export": export.key, "machine": "A", "batch_size": 1, "provider": "c|p"}
    store.put("latency", timed | {"runtime": "onnxruntime"}, {"samples": [0.01]}, {}, {})
    lines = [line for line in render(build(store), "github").splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


def test_every_part_can_be_asked_for_and_tables_have_no_other(store: Store, add_run: AddRun) -> None:
    empty = report.build(spec.load_table(2), store)
    headings = [column for column in empty.columns if column.key.startswith("heading_")]
    assert select_columns(empty, ["latency"]).columns == headings
    add_run()
    shown = {column.part for number in spec.NUMBERS for column in report.build(spec.load_table(number), store).columns}
    assert shown - {""} == {*PARTS} - {"peak"}  # of which there is no record here


def timed_in_openvino(store: Store, add_run: AddRun, passed: bool = True) -> None:
    """All rows of Table 2 on CIFAR-10, whose cells have as many marks as they come with."""
    for row in spec.load_table(2).rows:
        if row.data == "cifar10":
            spread = (0.010, 0.020, 0.030)
            export = add_run(row.model, epochs=3, batch_sizes=(1,), samples=spread, passed=passed)["export"]
            inputs = {"model": row.model, "export": export.key, "machine": MACHINE, "provider": "cpu", "batch_size": 1}
            inputs |= {"runtime": "openvino", "precision": "fp32", "versions": {"openvino": "2026.2.1"}}
            store.put("latency", inputs, {"samples": list(spread)}, {}, {})


def test_a_terminal_has_room_for_the_latency_of_a_second_runtime(store: Store, add_run: AddRun) -> None:
    timed_in_openvino(store, add_run)
    brief = select_columns(report.build(spec.load_table(2), store))
    headings = [column.heading for column in brief.columns]
    assert headings == ["Norm", "Activation", "Data", "paper", "ours", "cpu b1 ms", "OV ms"]
    text = render(brief, "github")
    assert max(map(len, text.splitlines())) <= 100
    assert "- OV: OpenVINO 2026.2.1\n" in text
    assert "- ONNX diff is left out for want of room: no parity failed\n" in text
    assert re.search(r"\n- --columns all shows \d+ more columns\n", text)
    assert not any("--columns" in render(brief, other) for other in ("csv", "latex", "json")), "a hint for a terminal"
    few = select_columns(build(store))
    assert [column.heading for column in few.columns][-3:] == ["ONNX diff", "cpu b1 ms", "OV ms"]
    assert "left out" not in render(few, "github")


@pytest.mark.parametrize(("columns", "most", "shown"), [(80, 80, "cpu b1 ms"), (40, 75, "ours"), (300, 100, "OV ms")])
def test_a_table_is_as_wide_as_the_terminal_allows(
    columns: int, most: int, shown: str, store: Store, add_run: AddRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed_in_openvino(store, add_run)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    brief = select_columns(report.build(spec.load_table(2), store))
    assert max(map(len, render(brief, "github").splitlines())) <= most
    assert brief.columns[-1].heading == shown


def test_a_parity_that_failed_is_shown_whatever_the_room(store: Store, add_run: AddRun) -> None:
    timed_in_openvino(store, add_run, passed=False)
    text = render(select_columns(report.build(spec.load_table(2), store)), "github")
    assert "ONNX diff" in text
    assert "PARITY FAILED" in text
    assert max(map(len, text.splitlines())) <= 100
