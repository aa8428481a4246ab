"""Which runs of a row count, and what is said of those that fall short."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from suite.errors import InputError
from suite.grid import cleaning
from suite.report import tables as report
from suite.report.entries import Entry, why_none_counts
from suite.report.render import Report
from suite.report.runs import Records
from suite.report.sheet import sheet
from suite.results.record import TrainRecord
from suite.results.store import Store
from suite.tables import spec

AddRun = Callable[..., dict[str, Any]]


def build(store: Store | Records, model: str = "resnet110_relu_bn", number: int = 2, **options: Any) -> Report:
    return report.build(spec.with_rows(spec.load_table(number), [f"{model}@cifar10"]), store, **options)


def notes(result: Report, key: str) -> str:
    return "; ".join(result.lines[0].notes.get(key, []))


def test_fewer_seeds_than_the_paper_are_said(store: Store, add_run: AddRun) -> None:
    add_run(seed=0)
    add_run(seed=1)
    assert "2 of the 5 runs" in notes(build(store), "top1")


def test_a_quick_run_on_embedded_data_is_not_comparable(store: Store, add_run: AddRun) -> None:
    add_run(data="digits10", max_steps=4)
    text = notes(build(store), "top1")
    assert "quick run, not comparable with the paper" in text
    assert "on the embedded digits10, not on cifar10" in text
    assert "4 training steps" in text


def test_one_step_is_no_steps(store: Store, add_run: AddRun) -> None:
    add_run(data="digits10", max_steps=1)
    text = notes(build(store), "top1")
    assert "1 training step" in text
    assert "1 training steps" not in text


@pytest.mark.parametrize(
    ("run", "is_quick", "counts", "begins"),
    [
        ({"max_steps": 390}, True, False, "quick run"),  # of 391, which are an epoch of CIFAR-10
        ({"max_steps": 391}, False, False, "shortened run"),
        ({"data": "digits10", "max_steps": 390}, True, False, "quick run"),
        ({"data": "digits10"}, False, False, "run on other images"),
        ({"epochs": 1}, False, True, "shortened run"),
        ({}, False, True, "1 of the 5 runs"),
    ],
)
def test_quick_is_a_run_shorter_than_an_epoch_wherever_it_is_told(
    store: Store,
    add_run: AddRun,
    run: dict[str, Any],
    is_quick: bool,
    counts: bool,
    begins: str,
) -> None:
    key = add_run(top1=50.0, **run)["train"].key
    (store.root / "artifacts" / key).mkdir(parents=True)
    (record,) = store.typed(TrainRecord)
    table = spec.with_rows(spec.load_table(2), ["resnet110_relu_bn@cifar10"])
    (row,) = table.rows
    entry = Entry(table, row, Records([store]).runs(table, row))
    assert (record.is_quick, entry.counts) == (is_quick, counts)
    assert why_none_counts([entry]) == (
        "" if counts else "quick runs only" if is_quick else "only runs that are quick, cut off or on other images"
    )
    (line,) = build(store).lines
    assert line.values["top1"] == ("quick" if is_quick else 50.0)
    assert line.notes["top1"][0].startswith(begins)
    assert [each.kind for each in cleaning.find_removable(store)] == ["quick"] * is_quick
    shown = sheet(build(store))
    (place,) = (number for number, head in enumerate(shown["heads"]) if head.key == "top1")
    assert shown["lines"][0]["cells"][place]["text"] == ("" if is_quick else "50.00")


def test_a_run_of_all_steps_counts_where_the_recipe_is_in_steps(store: Store, add_run: AddRun) -> None:
    add_run(max_steps=1000)
    table = spec.with_rows(spec.load_table(2), ["resnet110_relu_bn@cifar10"])
    for steps, counts in ((1000, True), (2000, False)):
        whole = replace(table, recipe=replace(table.recipe, max_steps=steps))
        assert Entry(whole, whole.rows[0], Records([store]).runs(table, whole.rows[0])).counts == counts


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


def test_of_a_net_that_was_timed_twice_the_more_thorough_figure_stands_and_never_the_faster(
    store: Store, add_run: AddRun
) -> None:
    add_run(seed=0, samples=(0.002,) * 50, rounds=3)
    add_run(seed=1, samples=(0.003,) * 9, rounds=24)
    assert build(store).lines[0].values["onnxruntime_cpu_b8_p50_ms"] == pytest.approx(3)


def test_a_column_is_of_one_version_of_the_runtimes(store: Store, add_run: AddRun) -> None:
    for seed, version in enumerate(("1.31.0", "1.32.0")):
        versions = {"onnxruntime": version, "torch": "2.15.0", "torchvision": "0.29.0"}
        add_run(seed=seed, samples=(0.002 + seed,) * 5, versions=versions)
    result = build(store)
    assert result.remarks == [
        "m1: Test CPU (2 cores), onnxruntime 1.31.0, torch 2.15.0",
        "m2: Test CPU (2 cores), onnxruntime 1.32.0, torch 2.15.0",
    ]
    medians = [result.lines[0].values[f"onnxruntime_cpu_b8_m{number}_p50_ms"] for number in (1, 2)]
    assert medians == pytest.approx([2, 1002])


def test_runs_of_which_auto_chose_other_precisions_are_not_one_row(store: Store, add_run: AddRun) -> None:
    train = add_run(top1=6.0)["train"]
    for seed, precision in ((1, "bfloat16 autocast"), (2, "bfloat16 autocast")):
        result = train.result | {"precision": precision, "top1": 9.0}
        store.put("train", {**train.inputs, "seed": seed}, result, {}, {})
    assert build(store, detail=True).lines[0].values["seeds"] == 2


def test_of_results_that_two_folders_have_unlike_the_first_are_shown_with_that_said(
    store: Store, add_run: AddRun, tmp_path: Path
) -> None:
    made = add_run(top1=6.0)["train"]
    copy, other = Store(tmp_path / "copy"), Store(tmp_path / "other")
    copy.put("train", made.inputs, made.result, {}, {"seconds": 1.0})
    other.put("train", made.inputs, made.result | {"top1": 7.0}, {}, {})
    assert Records([store, copy]).contradictions == [], "equal results, whatever time they took"
    assert len(Records([store, other, other]).contradictions) == 1
    for stores, error in (([store, other], 6.0), ([other, store], 7.0)):
        records = Records(stores)
        assert records.contradictions == [
            "trainings that stand in several folders with different figures: 1; "
            "shown are those of the folder that was named first"
        ]
        assert build(records).lines[0].values["top1"] == error


def test_a_failure_is_told_at_the_row_whose_data_it_was_on(store: Store, add_run: AddRun) -> None:
    inputs = {"model": "resnet110_relu_bn"}
    (cifar10, cifar100) = (add_run(data=data) for data in ("cifar10", "cifar100"))
    store.fail("latency", inputs | {"export": cifar100["export"].key}, "RuntimeError: out of memory")
    records = Records([store])
    rows = {row.data: row for row in spec.with_rows(spec.load_table(2), ["resnet110_relu_bn@*"]).rows}
    assert records.reason(rows["cifar10"], "latency") is None
    assert records.reason(rows["cifar100"], "latency") == "latency failed: RuntimeError: out of memory"
    store.fail("export", inputs | {"train": cifar10["train"].key}, "RuntimeError: no")
    assert Records([store]).reason(rows["cifar10"], "export") == "export failed: RuntimeError: no"
    assert Records([store]).reason(rows["cifar100"], "export") is None


def test_a_data_set_that_is_not_whole_is_said(store: Store, add_run: AddRun) -> None:
    train = add_run()["train"]
    fingerprint = {**train.inputs["data"], "train": 50_625}
    store.put("train", {**train.inputs, "data": fingerprint, "seed": 1}, train.result, {}, {})
    said = notes(build(store), "top1")
    assert "not comparable with the paper: cifar10 of 50625 training and 10000 test images, not all of it" in said


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


def test_a_run_by_another_table_s_recipe_is_not_a_row_s_own(store: Store, add_run: AddRun) -> None:
    """Tables 2 and 3 have a net in common, with another weight decay."""
    for weight_decay, top1 in ((1e-4, 27.0), (5e-4, 22.0)):
        add_run("resnet110_w32_relu_bn", data="cifar100", top1=top1, weight_decay=weight_decay)
    for number, top1 in ((2, 27.0), (3, 22.0)):
        table = spec.with_rows(spec.load_table(number), ["resnet110_w32_relu_bn@cifar100"])
        assert report.build(table, store).lines[0].values["top1"] == top1


def test_a_run_by_a_recipe_that_is_neither_the_paper_s_nor_the_quick_one_is_no_row_s(
    store: Store, add_run: AddRun
) -> None:
    add_run(learning_rate=0.05)
    assert build(store).lines[0].values["top1"] is None
    add_run(learning_rate=0.001, images_a_step=32, max_steps=1, top1=90.0)
    assert build(store).lines[0].values["top1"] == "quick"
    add_run(epochs=3, top1=30.0)
    assert build(store).lines[0].values["top1"] == 30.0


def test_a_run_with_initial_weights_that_were_wrong_stands_in_no_table(store: Store, add_run: AddRun) -> None:
    for model in ("resnet110_relu_plain", "resnet110_relu_np2"):
        add_run(model, version=2, top1=1.0)
        result = build(store, model)
        assert result.lines[0].values["top1"] is None
        assert "run before its initial weights or its BatchNorm were corrected" in notes(result, "top1")
        assert not result.remarks or "corrected" not in "".join(result.remarks)
        add_run(model, epochs=3, top1=30.0)
        result = build(store, model)
        assert result.lines[0].values["top1"] == 30.0
        assert "corrected" not in notes(result, "top1")


def test_networks_with_batchnorm_are_what_they_were(store: Store, add_run: AddRun) -> None:
    add_run(version=2, top1=6.5)
    assert build(store).lines[0].values["top1"] == 6.5
    assert spec.version_of("train", "resnet110_relu_bn") == 2
    assert spec.version_of("train", "resnet110_relu_plain") == spec.VERSIONS["train"] == 3


def test_a_network_that_did_not_train_says_why_for_each_reason(store: Store, add_run: AddRun) -> None:
    finite = {"last_loss": 2.3029, "train_error": 90.02, "dead_units": 0.984, "outcome": "no better than chance"}
    tries = [
        {"learning_rate": 0.1, "outcome": "the loss was not finite", "last_loss": None},
        {"learning_rate": 0.05, "outcome": "the loss was not finite", "last_loss": None},
        {"learning_rate": 0.025, **finite},
    ]
    add_run(top1=None, tries=tries)
    assert (
        "did not train at any learning rate from 0.1 down to 0.025: the loss was not finite at 0.05; no better than "
        "chance at 0.025 (loss 2.3, training error 90.0 %, dead units 98%)" in notes(build(store), "top1")
    )
