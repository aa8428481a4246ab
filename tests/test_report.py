import csv
import io
import json
from collections.abc import Callable
from typing import Any

import pytest

from suite import report, spec
from suite.errors import InputError
from suite.store import Store

AddRun = Callable[..., dict[str, Any]]


def build(store: Store, model: str = "resnet110_relu_bn", number: int = 2, **options: Any) -> report.Report:
    return report.build(spec.matching(spec.load_table(number), [f"{model}@cifar10"]), store, **options)


def notes(result: report.Report, key: str) -> str:
    return "; ".join(result.lines[0].notes.get(key, []))


def test_the_paper_figure_and_ours_stand_in_columns_of_their_own(store: Store, add_run: AddRun) -> None:
    add_run(top1=6.5)
    values = build(store).lines[0].values
    assert (values["paper_top1"], values["top1"]) == (6.35, 6.5)


def test_without_records_every_measured_cell_is_empty_and_says_why(store: Store) -> None:
    result = build(store)
    measured = [c.key for c in result.columns if not c.key.startswith(("heading", "model", "paper"))]
    assert measured
    for key in measured:
        assert result.lines[0].values[key] is None
        assert notes(result, key) in ("not run", "not exported")


def test_the_error_is_the_median_over_seeds(store: Store, add_run: AddRun) -> None:
    for seed, top1 in enumerate((6.0, 9.0, 6.2, 6.1, 6.4)):
        add_run(seed=seed, top1=top1)
    result = build(store)
    assert result.lines[0].values["top1"] == 6.2
    assert "top1" not in result.lines[0].notes


def test_fewer_seeds_than_the_paper_are_said(store: Store, add_run: AddRun) -> None:
    add_run(seed=0)
    add_run(seed=1)
    assert "2 of the 5 runs" in notes(build(store), "top1")


def test_best_prints_the_least_error_over_epochs(store: Store, add_run: AddRun) -> None:
    add_run(top1=6.5, best=6.25)
    assert build(store, metric="last").lines[0].values["top1"] == 6.5
    assert build(store, metric="best").lines[0].values["top1"] == 6.25


def test_a_quick_run_on_embedded_data_is_not_comparable(store: Store, add_run: AddRun) -> None:
    add_run(data="digits10", max_steps=4)
    text = notes(build(store), "top1")
    assert "quick run, not comparable with the paper" in text
    assert "on the embedded digits10, not on cifar10" in text
    assert "4 training steps" in text


def test_a_shortened_run_says_how_many_epochs(store: Store, add_run: AddRun) -> None:
    add_run(epochs=3)
    assert "shortened run, not comparable with the paper: 3 of 164 epochs" in notes(build(store), "top1")


def test_a_run_of_the_whole_recipe_has_no_such_note(store: Store, add_run: AddRun) -> None:
    add_run()
    assert "comparable" not in notes(build(store), "top1")


def test_the_run_that_says_most_is_shown(store: Store, add_run: AddRun) -> None:
    add_run(data="digits10", epochs=164, top1=1.0)
    add_run(epochs=3, top1=30.0)
    assert build(store).lines[0].values["top1"] == 30.0
    add_run(epochs=10, top1=20.0)
    assert build(store).lines[0].values["top1"] == 20.0


def test_the_runs_of_one_command_can_be_asked_for(store: Store, add_run: AddRun) -> None:
    add_run(epochs=10, top1=20.0)
    short = add_run(epochs=3, top1=30.0)["train"]
    assert build(store, trained=frozenset({short.key})).lines[0].values["top1"] == 30.0


def test_a_net_that_did_not_train_is_an_empty_cell_with_the_reason(store: Store, add_run: AddRun) -> None:
    add_run(top1=None)
    result = build(store)
    assert result.lines[0].values["top1"] is None
    assert "did not train at any learning rate" in notes(result, "top1")
    assert "the loss was not finite" in notes(result, "top1")


def test_a_failed_stage_is_an_empty_cell_with_the_reason(store: Store) -> None:
    inputs = {"model": "resnet110_relu_bn", "data": {"name": "cifar10"}}
    store.fail("train", inputs, "RuntimeError: out of memory")
    assert notes(build(store), "top1") == "train failed: RuntimeError: out of memory"


def test_parity_is_shown_relative_to_the_scale_and_a_failure_is_loud(store: Store, add_run: AddRun) -> None:
    add_run()
    result = build(store)
    assert result.lines[0].values["parity_logits"] == pytest.approx(1e-7)
    assert result.lines[0].values["parity_agreement"] == 99.99
    assert "1 ties" in notes(result, "parity_top1")
    assert "PARITY FAILED" not in notes(result, "parity_top1")
    add_run(seed=1, passed=False)
    assert "PARITY FAILED" in notes(build(store), "parity_top1")


def test_parity_in_fewer_bits_and_on_other_providers_has_columns_of_its_own(store: Store, add_run: AddRun) -> None:
    export = add_run()["export"]
    checked = {"images": 100, "difference": 0.4, "max_logit_difference": 1.0, "scale": 20.0, "agreement": 98.0}
    for provider, precision, passed in (("cpu", "int8", False), ("cuda", "fp32", True)):
        inputs = {"model": "resnet110_relu_bn", "export": export.key, "provider": provider, "precision": precision}
        store.put("parity", inputs, checked | {"ties": 0, "passed": passed}, {}, {})
    result = build(store)
    values = result.lines[0].values
    assert values["parity_top1"] == 0.01
    assert (values["parity_int8_top1"], values["parity_int8_agreement"]) == (0.4, 98.0)
    assert "PARITY FAILED" in notes(result, "parity_int8_top1")
    assert values["parity_cuda_top1"] == 0.4
    assert "PARITY FAILED" not in notes(result, "parity_cuda_top1")
    headings = [column.heading for column in result.columns]
    assert "int8 - torch top-1" in headings
    assert "cuda - torch top-1" in headings


def test_latency_is_the_median_in_milliseconds_and_speed_counts_the_batch(store: Store, add_run: AddRun) -> None:
    add_run(samples=(0.030, 0.010, 0.020, 0.020, 0.020))
    values = build(store).lines[0].values
    assert values["onnxruntime_cpu_b8_p50_ms"] == pytest.approx(20.0)
    assert values["onnxruntime_cpu_b8_images_per_s"] == pytest.approx(8 / 0.020)


def test_scattered_samples_are_marked_unstable(store: Store, add_run: AddRun) -> None:
    add_run(samples=(0.010, 0.020, 0.030, 0.040))
    assert "unstable" in notes(build(store), "onnxruntime_cpu_b8_p50_ms")


def test_two_machines_never_share_a_column(store: Store, add_run: AddRun) -> None:
    add_run(seed=0, machine="A")
    add_run(seed=1, machine="B", samples=(0.002,) * 4)
    result = build(store)
    values = result.lines[0].values
    assert values["onnxruntime_cpu_b8_m1_p50_ms"] == pytest.approx(10.0)
    assert values["onnxruntime_cpu_b8_m2_p50_ms"] == pytest.approx(2.0)
    assert result.remarks == ["machine 1: A", "machine 2: B"]


def test_markdown_numbers_its_footnotes_and_explains_each(store: Store, add_run: AddRun) -> None:
    add_run(epochs=3)
    text = report.render(build(store), "github")
    assert "| 6.50 [1] [2]" in text
    assert "- [1] shortened run" in text
    assert "- latency: Test CPU (2 cores)" in text


def test_csv_has_plain_numbers_and_a_column_of_notes(store: Store, add_run: AddRun) -> None:
    add_run(epochs=3)
    rows = list(csv.DictReader(io.StringIO(report.render(build(store), "csv"))))
    assert len(rows) == 1
    assert rows[0]["top1"] == "6.5"
    assert "top1: shortened run" in rows[0]["notes"]


def test_json_keeps_missing_values_as_null(store: Store) -> None:
    content = json.loads(report.render(build(store), "json"))
    assert content["rows"][0]["top1"] is None
    assert content["rows"][0]["notes"]["top1"] == ["not run"]
    assert [column["key"] for column in content["columns"]][:4] == ["heading_0", "heading_1", "heading_2", "model"]


def test_latex_is_escaped_and_uses_booktabs(store: Store, add_run: AddRun) -> None:
    add_run()
    text = report.render(build(store), "latex")
    assert "\\toprule" in text
    assert "resnet110\\_relu\\_bn" in text
    assert "test error (\\%)" in text


def test_no_name_is_a_command_to_latex(store: Store, add_run: AddRun) -> None:
    evil = r"\input{/etc/passwd} $x^2$ ~ % & # _"
    add_run(machine=evil)
    store.fail("train", {"model": "resnet110_crelu_bn", "data": {"name": "cifar10"}}, evil)
    text = report.render(build(store), "latex") + report.render(build(store, "resnet110_crelu_bn"), "latex")
    assert "passwd" in text
    for part in ("\\input", "input{", " $x", "x^2", "$ ~", "~ %", " % &", "& #"):
        assert part not in text


@pytest.mark.parametrize("form", report.FORMATS)
@pytest.mark.parametrize("number", spec.NUMBERS)
def test_every_table_renders_in_every_format(store: Store, number: int, form: str) -> None:
    table = spec.load_table(number)
    text = report.render(report.build(table, store), form)
    assert text.endswith("\n")
    assert all(row.model in text.replace("\\_", "_") for row in table.rows)


def test_a_newer_version_of_a_stage_stands_before_an_older_one(store: Store, add_run: AddRun) -> None:
    train = add_run()["train"]
    for version in (3, 2):
        store.put(
            "export",
            {"model": "resnet110_relu_bn", "train": train.key, "version": version},
            {"parameters": version, "macs": version},
            {},
            {},
        )
    assert build(store).lines[0].values["parameters"] == 3


def test_with_detail_difference_seeds_and_spread_have_columns(store: Store, add_run: AddRun) -> None:
    add_run(seed=0, top1=6.0)
    add_run(seed=1, top1=7.0)
    values = build(store, detail=True).lines[0].values
    assert values["difference_top1"] == pytest.approx(0.15)
    assert (values["seeds"], values["spread_top1"]) == (2, 1.0)
    assert "seeds" not in build(store).lines[0].values


def test_of_a_net_that_was_timed_twice_the_figure_of_more_samples_stands(store: Store, add_run: AddRun) -> None:
    add_run(seed=0, samples=(0.002,) * 5)
    add_run(seed=1, samples=(0.003,) * 9)
    add_run(seed=2, samples=(0.004,) * 5)
    assert build(store).lines[0].values["onnxruntime_cpu_b8_p50_ms"] == pytest.approx(3)


def test_a_data_set_that_is_not_whole_is_said(store: Store, add_run: AddRun) -> None:
    train = add_run()["train"]
    fingerprint = {**train.inputs["data"], "train": 49_375}
    store.put("train", {**train.inputs, "data": fingerprint, "seed": 1}, train.result | {"steps": 99_999}, {}, {})
    said = notes(build(store), "top1")
    assert "not comparable with the paper: cifar10 of 49375 training and 10000 test images, not all of it" in said


def test_a_record_without_what_its_stage_says_is_named(store: Store, add_run: AddRun) -> None:
    train = add_run()["train"]
    for result in (
        {},
        {**train.result, "steps": "many"},
        {**train.result, "tries": []},
        {**train.result, "epochs": [1]},
    ):
        key = store.put("train", {**train.inputs, "seed": len(str(result))}, result, {}, {}).key
        with pytest.raises(InputError, match=f"resnet110_relu_bn-{key}.json: not a record .result.*delete it"):
            build(store, metric="best")  # which reads the epochs too
        (store.root / "records" / "train" / f"resnet110_relu_bn-{key}.json").unlink()


def test_no_cell_is_a_formula_to_a_spreadsheet(store: Store, add_run: AddRun) -> None:
    evil = "=HYPERLINK(0)"
    records = add_run(machine=evil)
    timed = {**records["latency"].inputs, "runtime": evil, "provider": "@SUM(1)"}
    store.put("latency", timed, {"samples": [0.1]}, {"machine": {"id": evil}}, {})
    store.fail("train", {"model": "resnet110_crelu_bn", "data": {"name": "cifar10"}}, f"{evil}\n-2+3")
    for row in csv.reader(io.StringIO(report.render(build(store, "resnet110_relu_bn"), "csv"))):
        for cell in row:
            assert not cell.startswith(("=", "@", "+", "\t", "\r")) or _is_number(cell), cell


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def test_a_run_by_another_table_s_recipe_is_not_a_row_s_own(store: Store, add_run: AddRun) -> None:
    """Tables 2 and 3 have a net in common, with another weight decay."""
    for weight_decay, top1 in ((1e-4, 27.0), (5e-4, 22.0)):
        add_run("resnet110_w32_relu_bn", data="cifar100", top1=top1, weight_decay=weight_decay)
    for number, top1 in ((2, 27.0), (3, 22.0)):
        table = spec.matching(spec.load_table(number), ["resnet110_w32_relu_bn@cifar100"])
        assert report.build(table, store).lines[0].values["top1"] == top1


EVIL = "\x1b[2J\x00=cmd|' /C calc'!A0\\input{x}"


@pytest.mark.parametrize("form", report.FORMATS)
def test_control_characters_of_records_reach_neither_terminal_nor_file(
    store: Store, add_run: AddRun, form: str
) -> None:
    store.fail("train", {"model": "resnet110_relu_bn"}, EVIL)
    failed = report.render(build(store), form)
    assert "calc" in failed
    add_run(machine=EVIL)
    for text in (failed, report.render(build(store), form)):
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
    rows = list(csv.reader(io.StringIO(report.render(build(store, detail=True), "csv"))))
    assert {"'=cmd()_cpu_b1_p50_ms", "'@x_cpu_b1_p50_ms"} <= set(rows[0])
    assert not any(cell.startswith(("=", "@", "+")) for row in rows for cell in row)
    difference = rows[1][rows[0].index("difference_top1")]
    assert float(difference) == pytest.approx(0.15)


def test_latex_commands_in_records_are_text(store: Store, add_run: AddRun) -> None:
    add_run(machine=EVIL)
    text = report.render(build(store), "latex")
    assert "\\input{x}" not in text
    assert "\\textbackslash{}input\\{x\\}" in text


def test_a_bar_in_a_record_ends_no_cell_of_a_markdown_table(store: Store, add_run: AddRun) -> None:
    export = add_run()["export"]
    timed = {"model": "resnet110_relu_bn", "export": export.key, "machine": "A", "batch_size": 1, "provider": "c|p"}
    store.put("latency", timed | {"runtime": "onnxruntime"}, {"samples": [0.01]}, {}, {})
    lines = [line for line in report.render(build(store), "github").splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


def test_the_detail_has_the_percentiles_that_there_are_samples_for(store: Store, add_run: AddRun) -> None:
    add_run("resnet110_relu_bn", samples=tuple(0.001 * n for n in range(1, 131)))
    add_run("resnet110_crelu_bn", samples=tuple(0.001 * n for n in range(1, 65)))
    table = spec.matching(spec.load_table(2), ["resnet110_relu_bn@cifar10", "resnet110_crelu_bn@cifar10"])
    lines = {line.values["model"]: line for line in report.build(table, store, detail=True).lines}
    key = "onnxruntime_cpu_b8_p{}_ms".format
    relu, crelu = lines["resnet110_relu_bn"], lines["resnet110_crelu_bn"]
    assert relu.values[key(90)] == pytest.approx(117.1)
    assert relu.values[key(95)] == pytest.approx(123.55)
    assert crelu.values[key(90)] == pytest.approx(57.7)
    assert crelu.values[key(95)] is None
    assert crelu.notes[key(95)] == ["64 runs, too few for this percentile"]
    assert key(99) not in relu.values
    assert key(90) not in build(store).lines[0].values


def test_loading_the_first_run_and_the_way_over_the_host_are_figures_of_their_own(
    store: Store, add_run: AddRun
) -> None:
    add_run(timed={"load_seconds": 0.5, "first_run_seconds": 0.02, "host_samples": [0.012, 0.013, 0.014]})
    key = "onnxruntime_cpu_b8_{}_ms".format
    plain, detail = build(store), build(store, detail=True)
    assert plain.lines[0].values[key("host_to_host_p50")] == pytest.approx(13)
    assert {key("load"), key("first_run")}.isdisjoint(column.key for column in plain.columns)
    assert detail.lines[0].values[key("load")] == pytest.approx(500)
    assert detail.lines[0].values[key("first_run")] == pytest.approx(20)
    headings = [column.heading for column in detail.columns if column.key.startswith("onnxruntime")]
    assert headings[0] == "ORT cpu b8 p50 ms"
    assert headings[-1] == "ORT cpu b8 first run ms"


def test_the_exporters_own_graph_beside_the_deployed_one_changes_no_other_column(store: Store, add_run: AddRun) -> None:
    records = add_run()
    before = build(store).lines[0].values
    inputs = {**records["export"].inputs, "plain": True}
    plain = store.put("export", inputs, {"parameters": 1, "macs": 1}, {}, {})
    timed = {**records["latency"].inputs, "file": plain.key, "precision": "plain"}
    store.put("latency", timed, {"samples": [0.02] * 5}, {}, {})
    after = build(store).lines[0].values
    assert {name: after[name] for name in before} == before
    assert after["onnxruntime_cpu_plain_b8_p50_ms"] == pytest.approx(20)
