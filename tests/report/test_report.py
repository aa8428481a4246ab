from collections.abc import Callable
from typing import Any

import pytest

from suite.report import tables as report
from suite.report.latency import BEYOND, BEYOND_ONE
from suite.report.render import Report
from suite.results.store import Store
from suite.tables import spec

AddRun = Callable[..., dict[str, Any]]


def build(store: Store, model: str = "resnet110_relu_bn", number: int = 2, **options: Any) -> Report:
    return report.build(spec.with_rows(spec.load_table(number), [f"{model}@cifar10"]), store, **options)


def notes(result: Report, key: str) -> str:
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


def test_best_prints_the_least_error_over_epochs(store: Store, add_run: AddRun) -> None:
    add_run(top1=6.5, best=6.25)
    assert build(store, metric="last").lines[0].values["top1"] == 6.5
    assert build(store, metric="best").lines[0].values["top1"] == 6.25


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


def test_a_training_that_failed_on_other_images_than_the_row_s_names_them(store: Store) -> None:
    inputs = {"model": "resnet110_relu_bn", "data": {"name": "digits10"}}
    store.fail("train", inputs, "RuntimeError: out of memory")
    assert notes(build(store), "top1") == "train failed on digits10: RuntimeError: out of memory"


def test_parity_is_shown_relative_to_the_scale_and_a_failure_is_loud(store: Store, add_run: AddRun) -> None:
    add_run()
    result = build(store)
    assert result.lines[0].values["parity_logits"] == pytest.approx(1e-7)
    assert result.lines[0].values["parity_agreement"] == 99.99
    assert "1 ties" in notes(result, "parity_top1")
    assert "PARITY FAILED" not in notes(result, "parity_top1")
    add_run(seed=1, passed=False)
    assert "PARITY FAILED" in notes(build(store), "parity_top1")


def test_parity_in_reduced_precision_and_on_other_providers_has_columns_of_its_own(
    store: Store, add_run: AddRun
) -> None:
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
    assert "int8 - torch error" in headings
    assert "cuda - torch error" in headings


@pytest.mark.parametrize(
    ("result", "why"),
    [
        # As int8 of resnet20_crelu_nobias on CIFAR-100 once was.
        (
            {"precision": "int8", "torch_top1": 59.03, "lost": 153, "won": 111},
            "42 of 4097 right answers lost on balance, 40 allowed (1%, or what chance explains)",
        ),
        (
            {"precision": "fp32", "tf32": True, "torch_top1": 0.0, "lost": 500, "won": 0},
            "500 of 10000 right answers lost on balance, 100 allowed (1%, or what chance explains)",
        ),
        ({"max_logit_difference": 4e-3, "scale": 20.0}, "logits differ by 2.0e-04 of the greatest, 1e-04 allowed"),
        (
            {"max_logit_difference": 4e-3, "scale": 20.0, "departure": {"layer": "conv1"}},
            "logits differ by 2.0e-04 of the greatest, 1e-04 allowed, first at conv1",
        ),
        ({"max_logit_difference": 1e-6, "scale": 20.0}, "another first class than rounding explains"),
    ],
)
def test_a_parity_that_failed_says_at_which_limit(
    store: Store, add_run: AddRun, result: dict[str, Any], why: str
) -> None:
    made = add_run()
    inputs = {"model": "resnet110_relu_bn", "export": made["export"].key, "provider": "cpu", "precision": "int8"}
    store.put("parity", inputs, {**made["parity"].result, "passed": False, **result}, {}, {})
    assert f"PARITY FAILED: {why}" in build(store).lines[0].notes["parity_int8_top1"]


def test_latency_is_the_median_in_milliseconds_and_speed_counts_the_batch(store: Store, add_run: AddRun) -> None:
    add_run(samples=(0.030, 0.010, 0.020, 0.020, 0.020))
    values = build(store).lines[0].values
    assert values["onnxruntime_cpu_b8_p50_ms"] == pytest.approx(20.0)
    assert values["onnxruntime_cpu_b8_images_per_s"] == pytest.approx(8 / 0.020)


def test_latencies_that_a_quota_has_stopped_are_marked(store: Store, add_run: AddRun) -> None:
    add_run()
    assert "throttled" not in notes(build(store), "onnxruntime_cpu_b8_p50_ms")
    add_run(rounds=24, timed={"throttled": 3})
    said = notes(build(store), "onnxruntime_cpu_b8_p50_ms")
    assert "throttled: a container's CPU quota stopped the runs 3 times" in said


@pytest.mark.parametrize(("others", "marked"), [(0.099, False), (0.234, True)])
def test_latencies_of_a_busy_machine_are_marked(store: Store, add_run: AddRun, others: float, marked: bool) -> None:
    add_run(rounds=24, timed={"others": others})
    said = notes(build(store), "onnxruntime_cpu_b8_p50_ms")
    assert ("busy: other processes took 23% of the cores meanwhile" in said) == marked
    assert ("busy" in said) == marked


@pytest.mark.parametrize(("gflops", "percent"), [(500, 80.92), (404.7, 99.98), (404.6, 100.005), (400, 101.16)])
@pytest.mark.parametrize(
    ("result", "mark"), [({"of": "product of 512 x 512"}, BEYOND), ({}, BEYOND_ONE)], ids=["now", "v1"]
)
def test_more_than_the_peak_is_marked_as_impossible(
    store: Store, add_run: AddRun, gflops: float, percent: float, result: dict[str, Any], mark: str
) -> None:
    # 8 images of 252,887,680 multiplications, and as many additions, in 10 ms: 404.62 GFLOP/s.
    timed = add_run(timed={})["latency"]
    inputs = {"model": "peak", "machine": timed.inputs["machine"], "provider": "cpu", "threads": 0}
    store.put("peak", inputs, {"flops": gflops * 1e9} | result, {}, {})
    line, key = build(store).lines[0], "onnxruntime_cpu_b8_peak_percent"
    assert line.values[key] == pytest.approx(percent, abs=0.005)
    assert line.notes.get(key, []) == ([mark] if percent > 100 else [])


def test_of_several_peaks_the_highest_counts_whatever_its_version(store: Store, add_run: AddRun) -> None:
    timed = add_run(timed={})["latency"]
    inputs = {"model": "peak", "machine": timed.inputs["machine"], "provider": "cpu", "threads": 0}
    for version, gflops in ((1, 420), (2, 500), (3, 450)):
        store.put("peak", inputs | {"version": version}, {"flops": gflops * 1e9}, {}, {})
    assert build(store).lines[0].values["onnxruntime_cpu_b8_peak_percent"] == pytest.approx(80.92, abs=0.005)


def test_scattered_samples_are_marked_unstable(store: Store, add_run: AddRun) -> None:
    add_run(samples=(0.010, 0.020, 0.030, 0.040))
    assert "unstable" in notes(build(store), "onnxruntime_cpu_b8_p50_ms")


@pytest.mark.parametrize(("spread", "marked"), [(0.0999, False), (0.1001, True)])
def test_quartiles_more_than_10_percent_of_the_median_apart_are_unstable(
    store: Store, add_run: AddRun, spread: float, marked: bool
) -> None:
    # Of five samples the second and the fourth are the quartiles, and the third is the median.
    add_run(samples=tuple(0.010 * (1 + spread * place) for place in (-5, -0.5, 0, 0.5, 5)))
    said = "unstable: quartiles more than 10% of the median apart" in notes(build(store), "onnxruntime_cpu_b8_p50_ms")
    assert said is marked


def test_what_failed_and_has_no_cell_is_said_below(store: Store, add_run: AddRun) -> None:
    files = add_run(batch_sizes=())
    inputs = {"model": "resnet110_relu_bn", "export": files["export"].key}
    store.fail("convert", inputs | {"form": "int8"}, "RuntimeError: no images")
    store.fail("latency", inputs | {"batch_size": 8}, "RuntimeError: out of memory")
    assert build(store).remarks == [
        "resnet110_relu_bn on cifar10: convert failed: RuntimeError: no images",
        "resnet110_relu_bn on cifar10: latency failed: RuntimeError: out of memory",
    ]


def test_two_machines_never_share_a_column(store: Store, add_run: AddRun) -> None:
    add_run(seed=0, machine="A")
    add_run(seed=1, machine="B", samples=(0.002,) * 4)
    result = build(store)
    values = result.lines[0].values
    assert values["onnxruntime_cpu_b8_m1_p50_ms"] == pytest.approx(10.0)
    assert values["onnxruntime_cpu_b8_m2_p50_ms"] == pytest.approx(2.0)
    assert result.remarks == ["m1: A", "m2: B"]


def test_with_detail_difference_seeds_and_spread_have_columns(store: Store, add_run: AddRun) -> None:
    add_run(seed=0, top1=6.0)
    add_run(seed=1, top1=7.0)
    values = build(store, detail=True).lines[0].values
    assert values["difference_top1"] == pytest.approx(0.15)
    assert (values["seeds"], values["spread_top1"]) == (2, 1.0)
    assert "seeds" not in build(store).lines[0].values


def test_the_detail_has_the_percentiles_that_there_are_samples_for(store: Store, add_run: AddRun) -> None:
    add_run("resnet110_relu_bn", samples=tuple(0.001 * n for n in range(1, 131)))
    add_run("resnet110_crelu_bn", samples=tuple(0.001 * n for n in range(1, 65)))
    table = spec.with_rows(spec.load_table(2), ["resnet110_relu_bn@cifar10", "resnet110_crelu_bn@cifar10"])
    lines = {line.values["model"]: line for line in report.build(table, store, detail=True).lines}
    key = "onnxruntime_cpu_b8_p{}_ms".format
    relu, crelu = lines["resnet110_relu_bn"], lines["resnet110_crelu_bn"]
    assert relu.values[key(90)] == pytest.approx(117.1)
    assert relu.values[key(95)] == pytest.approx(123.55)
    assert crelu.values[key(90)] == pytest.approx(57.7)
    assert crelu.values[key(95)] is None
    assert crelu.notes[key(95)] == ["too few runs for this percentile"]
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


def test_the_default_export_beside_the_deployed_graph_changes_no_other_column(store: Store, add_run: AddRun) -> None:
    records = add_run()
    before = build(store).lines[0].values
    inputs = {**records["export"].inputs, "plain": True}
    plain = store.put("export", inputs, {"parameters": 1, "macs": 1}, {}, {})
    timed = {**records["latency"].inputs, "file": plain.key, "precision": "plain"}
    store.put("latency", timed, {"samples": [0.02] * 5}, {}, {})
    after = build(store).lines[0].values
    assert {name: after[name] for name in before} == before
    assert after["onnxruntime_cpu_plain_b8_p50_ms"] == pytest.approx(20)


def test_what_a_provider_cannot_run_is_an_empty_cell_with_the_reason(store: Store, add_run: AddRun) -> None:
    made = add_run(samples=(0.010,) * 5)
    inputs = made["export"].inputs | {"plain": True}
    plain = store.put("export", inputs, dict(made["export"].result), {}, {})
    timed = dict(made["latency"].inputs) | {"export": plain.key, "provider": "cuda"}
    store.put("latency", timed, {"samples": [0.002] * 5}, {}, {})
    without = build(store)
    assert not [column for column in without.columns if "cuda_int8" in column.key]
    asked = build(store, forms=("fp32", "int8"))
    (line,) = asked.lines
    assert line.values["onnxruntime_cuda_b8_p50_ms"] == pytest.approx(2)  # of the default export
    assert line.values["onnxruntime_cpu_b8_p50_ms"] == pytest.approx(10)
    assert line.values["onnxruntime_cuda_int8_b8_p50_ms"] is None
    (note,) = line.notes["onnxruntime_cuda_int8_b8_p50_ms"]
    assert "no int8 convolution" in note


DIVERGED = [{"learning_rate": 0.1 / 2**halved, "outcome": "the loss was not finite"} for halved in range(9)]


def test_a_whole_run_that_diverged_at_once_is_not_quick(store: Store, add_run: AddRun) -> None:
    train = add_run(top1=None, tries=DIVERGED)["train"]
    (store.root / "records" / "train" / f"resnet110_relu_bn-{train.key}.json").unlink()
    store.put("train", train.inputs, train.result | {"steps": 3}, {}, {})
    assert build(store).lines[0].values["top1"] is None
    assert "did not train at any learning rate from 0.1 down to 0.000390625" in notes(build(store), "top1")
    add_run(max_steps=4)  # says less, though it did more steps
    assert build(store).lines[0].values["top1"] is None
    for seed in range(1, 5):
        add_run(seed=seed, top1=6.0 + seed)
    assert build(store).lines[0].values["top1"] == 8.5
    assert "1 of 5 seeds did not train, which the median leaves out" in notes(build(store), "top1")


def test_the_learning_rates_of_seeds_that_did_not_train_are_not_told(store: Store, add_run: AddRun) -> None:
    add_run(top1=None, tries=DIVERGED)
    add_run(seed=1, tries=[{"learning_rate": 0.00625, "outcome": "trained"}])
    assert "trained at a learning rate of 0.00625 after halving" in notes(build(store), "top1")


def test_a_failure_of_other_runs_is_not_told_of_a_row_that_is_complete(store: Store, add_run: AddRun) -> None:
    made = add_run()
    model, data = {"model": "resnet110_relu_bn"}, {"name": "cifar10"}
    other = made["train"].inputs["recipe"] | {"max_steps": 4}
    store.fail("train", model | {"data": data, "recipe": other, "seed": 0}, "no space left")
    store.fail("parity", model | {"export": "gone", "provider": "cpu"}, "of an earlier export")
    again = {name: value for name, value in made["latency"].inputs.items() if name != "versions"}
    store.fail("latency", again | {"threads": 7}, "what was done since")
    assert build(store).remarks == ["latency: Test CPU (2 cores)"]
    same = made["train"].inputs["recipe"]
    store.fail("train", model | {"data": data, "recipe": same, "seed": 1}, "the disk is full")
    store.fail("latency", again | {"provider": "cuda"}, "no memory")
    told = [remark.partition(": ")[2] for remark in build(store).remarks[1:]]
    assert told == ["train failed: the disk is full", "latency failed: no memory"]
