"""Two measurements side by side: ratios and their intervals, and everything that must not pass as "no regression"."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from suite.errors import InputError
from suite.results.compare import compare, format_cell, render
from suite.results.store import Store

MACHINE = "Test CPU (2 cores)"
RANDOM = np.random.default_rng(0)


def noisy(median: float, count: int = 40, spread: float = 0.02) -> list[float]:
    return [float(value) for value in median * (1 + spread * RANDOM.standard_normal(count))]


def put(
    folder: Path,
    samples: Sequence[float] | None = None,
    rounds: Sequence[Sequence[float]] | None = None,
    environment: dict[str, Any] | None = None,
    **inputs: Any,
) -> Path:
    """Add a latency record to a results folder."""
    if rounds is not None and samples is None:
        samples = [seconds for each in rounds for seconds in each]
    result = {"samples": samples} | ({} if rounds is None else {"rounds": rounds})
    cell = {"model": "resnet20_relu_bn", "size": 32, "runtime": "onnxruntime", "provider": "cpu", "batch_size": 1}
    cell |= {"threads": 2, "export": "e", "machine": MACHINE} | inputs
    Store(folder).put("latency", cell, result, environment or {}, {})
    return folder


@pytest.fixture
def a(tmp_path: Path) -> Path:
    return put(tmp_path / "a", noisy(0.010))


def test_the_ratio_is_of_medians_with_an_interval_around_it(a: Path, tmp_path: Path) -> None:
    (found,) = compare(a, put(tmp_path / "b", noisy(0.012)), fail_above=None).ratios
    assert found.ratio == found.b / found.a == pytest.approx(1.2, rel=0.02)
    assert found.low < found.ratio < found.high
    # What processes of one file differ by alone makes 0.06 of it.
    assert 0.04 < found.high - found.low < 0.1
    assert found.a == pytest.approx(0.010, rel=0.01)
    assert format_cell(found.cell) == "resnet20_relu_bn size 32 onnxruntime cpu fp32 batch 1 threads 2"


def test_a_measurement_is_as_fast_as_itself_and_every_comparison_gives_the_same_figures(a: Path) -> None:
    first, second = compare(a, a, 0.0), compare(a, a, 0.0)
    assert first == second
    assert first.ratios[0].ratio == 1
    assert first.failures == []


@pytest.mark.parametrize(("factor", "fails"), [(0.8, False), (1.03, False), (1.2, True)])
def test_only_a_slow_down_beyond_what_is_allowed_fails(factor: float, fails: bool, a: Path, tmp_path: Path) -> None:
    comparison = compare(a, put(tmp_path / "b", noisy(0.010 * factor)), fail_above=0.05)
    assert bool(comparison.regressions) is bool(comparison.failures) is fails
    if fails:
        (line,) = comparison.failures
        assert line.startswith("slower: resnet20_relu_bn size 32")
        assert line.endswith("allowed 1.050")


def test_nothing_fails_by_its_speed_unless_asked_for(a: Path, tmp_path: Path) -> None:
    assert compare(a, put(tmp_path / "b", noisy(0.1))).failures == []


def test_a_slow_down_that_noise_explains_is_no_regression(tmp_path: Path) -> None:
    before = put(tmp_path / "a", noisy(0.010, count=8, spread=0.5))
    after = put(tmp_path / "b", noisy(0.011, count=8, spread=0.5))
    assert compare(before, after, 0.05).regressions == []


def test_rounds_are_drawn_whole_since_their_runs_share_the_machines_mood(tmp_path: Path) -> None:
    # Rounds differ by 20 %, runs within a round by nothing: 160 runs are worth no more than their 8 rounds.
    moods = [1.0, 1.2, 1.05, 1.1, 1.15, 0.95, 1.0, 1.2]
    rounds = [noisy(0.010 * mood, 20, 0.001) for mood in moods]
    samples = [seconds for each in rounds for seconds in each]
    (by_round,) = compare(put(tmp_path / "a", rounds=rounds), put(tmp_path / "b", rounds=rounds)).ratios
    (by_run,) = compare(put(tmp_path / "c", samples), put(tmp_path / "d", samples)).ratios
    assert by_round.ratio == by_run.ratio == 1
    assert by_round.high - by_round.low > 1.5 * (by_run.high - by_run.low)


def test_a_cell_that_is_missing_is_a_failure_and_a_new_one_is_not(a: Path, tmp_path: Path) -> None:
    put(a, noisy(0.02), batch_size=8)
    b = put(put(tmp_path / "b", noisy(0.010)), noisy(0.01), precision="int8")
    comparison = compare(a, b)
    assert len(comparison.ratios) == 1
    assert comparison.failures == ["missing: resnet20_relu_bn size 32 onnxruntime cpu fp32 batch 8 threads 2"]
    assert [format_cell(cell) for cell in comparison.new] == [
        "resnet20_relu_bn size 32 onnxruntime cpu int8 batch 1 threads 2"
    ]


@pytest.mark.parametrize("where", ["inputs", "environment"])
def test_figures_of_another_machine_are_not_compared(where: str, a: Path, tmp_path: Path) -> None:
    other = "Other CPU (8 cores)"
    given: dict[str, Any] = {"machine": other} if where == "inputs" else {"environment": {"machine": {"id": other}}}
    comparison = compare(a, put(tmp_path / "b", noisy(0.010), **given))
    assert comparison.ratios == []
    (line,) = comparison.failures
    assert line.startswith("another machine: resnet20_relu_bn")
    assert line.endswith(f"{other} instead of {MACHINE}")


def test_each_machine_of_a_folder_is_compared_with_itself(a: Path, tmp_path: Path) -> None:
    b = tmp_path / "b"
    for folder, factor in ((a, 1), (b, 2)):
        put(folder, noisy(0.5 * factor), machine="Slow CPU")
    put(b, noisy(0.010))
    comparison = compare(a, b)
    assert comparison.failures == []
    assert {found.machine: round(found.ratio) for found in comparison.ratios} == {MACHINE: 1, "Slow CPU": 2}


def test_networks_of_different_data_are_different_cells(store: Store, add_run: Callable[..., dict[str, Any]]) -> None:
    folder = store.root
    for data, seconds in (("cifar10", 0.01), ("cifar100", 0.02)):
        files = add_run(model="resnet20_relu_bn", data=data)
        put(folder, noisy(seconds), export=files["export"].key)
    cells = [(dict(each.cell), each.a) for each in compare(folder, folder).ratios]
    found = {cell["data"]: median for cell, median in cells if cell["batch_size"] == 1}
    assert found == {"cifar10": pytest.approx(0.01, rel=0.02), "cifar100": pytest.approx(0.02, rel=0.02)}


def benchmark(path: Path, machine: str = "box", **seconds: float) -> Path:
    info = {"node": machine, "cpu": {"brand_raw": "Test CPU", "count": 2}}
    entries = [
        {"fullname": f"tests/benchmark/test_x.py::{name}", "stats": {"data": noisy(value)}}
        for name, value in seconds.items()
    ]
    path.write_text(json.dumps({"machine_info": info, "benchmarks": entries}))
    return path


def test_files_of_pytest_benchmark_are_compared_the_same_way(tmp_path: Path) -> None:
    a = benchmark(tmp_path / "a.json", one=0.01, two=0.02, three=0.03)
    b = benchmark(tmp_path / "b.json", one=0.01, two=0.03)
    comparison = compare(a, b, fail_above=0.1)
    assert [round(found.ratio, 1) for found in comparison.ratios] == [1.0, 1.5]
    assert [line.split("::")[1].split(":")[0] for line in comparison.failures] == ["two", "three"]
    assert [line.split(":")[0] for line in comparison.failures] == ["slower", "missing"]
    elsewhere = compare(a, benchmark(tmp_path / "c.json", "other", one=0.01, two=0.02, three=0.03))
    assert elsewhere.ratios == []
    assert len(elsewhere.failures) == 3


def test_the_rounds_that_a_benchmark_notes_are_drawn_whole(tmp_path: Path) -> None:
    path = benchmark(tmp_path / "a.json", one=0.01)
    content = json.loads(path.read_text())
    (entry,) = content["benchmarks"]
    entry["stats"]["data"] = [seconds for mood in (1.0, 1.2, 1.05, 1.1) for seconds in noisy(0.01 * mood, 10, 0.001)]
    path.write_text(json.dumps(content))
    (by_run,) = compare(path, path).ratios
    entry["extra_info"] = {"rounds": [10, 10, 10, 10]}
    path.write_text(json.dumps(content))
    (by_round,) = compare(path, path).ratios
    assert by_round.high - by_round.low > 1.5 * (by_run.high - by_run.low)


def test_quick_timings_and_another_way_to_measure_are_said_beside_the_ratio(tmp_path: Path) -> None:
    few, many = ([noisy(0.010, 5) for _ in range(count)] for count in (3, 24))
    before, after = put(tmp_path / "a", rounds=many, version=3), put(tmp_path / "b", rounds=few, version=3)
    assert compare(before, before).ratios[0].doubts == ()
    assert compare(before, after).ratios[0].doubts == ("quick, 3 rounds",)
    assert "quick, 3 rounds" in render(compare(before, after))
    older = put(tmp_path / "c", rounds=many, version=2)
    assert compare(older, before).ratios[0].doubts == ("measured in two ways",)


def test_a_quick_run_afterwards_does_not_take_the_place_of_a_thorough_one(tmp_path: Path) -> None:
    slow, fast = ([[seconds] * 5 for _ in range(count)] for seconds, count in ((0.020, 24), (0.010, 3)))
    folder = put(tmp_path / "a", rounds=slow)
    put(folder, rounds=fast, protocol={"rounds": 3})
    assert compare(folder, folder).ratios[0].a == pytest.approx(0.020)


def test_the_text_says_every_figure_and_every_failure(a: Path, tmp_path: Path) -> None:
    put(a, noisy(0.02), batch_size=8)
    text = render(compare(a, put(tmp_path / "b", noisy(0.020)), fail_above=0.05))
    assert "b / a" in text
    assert "slower: resnet20_relu_bn size 32" in text
    assert "missing: resnet20_relu_bn size 32" in text
    assert f"measured on {MACHINE}" in text
    assert text.endswith("\n")
    nothing = render(compare(a, put(tmp_path / "c", noisy(0.010), provider="cuda")))
    assert nothing.count("missing: ") == 2


def test_many_cells_that_are_not_compared_are_one_line_with_the_reason_first(
    a: Path, tmp_path: Path, suite: Callable[..., tuple[int, str, str]]
) -> None:
    b = put(tmp_path / "b", noisy(0.010), machine="Other CPU")
    for threads in range(3, 9):
        put(a, noisy(0.010), threads=threads)
        put(b, noisy(0.010), threads=threads, machine="Other CPU")
        put(b, noisy(0.010), threads=threads, machine="Other CPU", batch_size=8)
    code, out, _ = suite("compare", str(a), str(b))
    assert code == 1
    assert out.splitlines() == [
        f"another machine: 7 cells: Other CPU instead of {MACHINE}",
        "new: 6 cells are only in B",
        "nothing could be compared: no cell was measured on one machine in both",
    ]
    code, out, _ = suite("compare", str(a), str(b), "--all")
    assert [line.partition(":")[0] for line in out.splitlines()] == [
        *["another machine"] * 7,
        *["new"] * 6,
        "nothing could be compared",
    ]
    other = put(tmp_path / "c", noisy(0.010), model="resnet20_crelu_bn")
    assert render(compare(other, a)).splitlines()[-1] == "nothing could be compared: no cell is in both"


def test_the_last_line_says_what_was_compared(a: Path, tmp_path: Path) -> None:
    assert render(compare(a, a)).splitlines()[-1] == "1 cell compared"
    put(a, noisy(0.02), batch_size=8)
    b = put(tmp_path / "b", noisy(0.020))
    last = render(compare(a, b, fail_above=0.05)).splitlines()[-1]
    assert last == "1 cell compared, 1 slower by more than 5 %, 1 of A could not be"


def test_on_a_terminal_what_all_cells_have_is_said_once(a: Path) -> None:
    put(a, noisy(0.02), batch_size=8, precision="int8")
    lines = render(compare(a, a), width=80).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[2].startswith("fp32 batch 1  ")
    assert "each cell: resnet20_relu_bn size 32 onnxruntime cpu threads 2" in lines
    assert "resnet20_relu_bn size 32 onnxruntime cpu fp32 batch 1 threads 2" in render(compare(a, a))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nothing", "no such file or folder; give a results folder or a JSON file of pytest-benchmark"),
        ("empty folder", "no latency records in it; give the --results folder of a run that has timed networks"),
        ("other file", "not a JSON file of pytest-benchmark; give one that --benchmark-json wrote"),
        ("other JSON", "not a JSON file of pytest-benchmark"),
        ("no benchmarks", "no benchmarks in it"),
        ("no samples", "one has no raw samples; give a file that --benchmark-json wrote"),
        ("broken record", "samples: not a list with entries.; delete it to measure again"),
        ("negative record", "-0.01 is not a positive number.; delete it to measure again"),
        ("deep", "not a JSON file of pytest-benchmark"),
        ("huge", "one has no samples, or some that are not positive seconds"),
        ("odd rounds", "rounds: not a list.; delete it to measure again"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(kind: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad"
    if kind == "empty folder":
        path.mkdir()
    elif kind == "other file":
        path.write_text("model,seconds")
    elif kind == "other JSON":
        path.write_text("[1]")
    elif kind == "no benchmarks":
        benchmark(path)
    elif kind == "no samples":
        content = json.loads(benchmark(path, one=0.01).read_text())
        del content["benchmarks"][0]["stats"]["data"]
        path.write_text(json.dumps(content))
    elif kind == "deep":
        path.write_text('{"machine_info": {}, "benchmarks": ' + "[" * 100_000)
    elif kind == "huge":
        path.write_text(benchmark(path, one=0.01).read_text().replace('"data": [', f'"data": [1{"0" * 400}, '))
    elif kind == "broken record":
        put(path, [])
    elif kind == "negative record":
        put(path, [0.01, -0.01])
    elif kind == "odd rounds":
        put(path, [0.01], rounds={"first": [0.01]})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=message) as caught:
        compare(path, path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("more", [None, 1, {"rounds": 5}, {"rounds": "ab"}, {"rounds": [3, -1]}, {"rounds": [[2]]}])
def test_what_others_note_beside_a_benchmark_is_left_alone(more: Any, tmp_path: Path) -> None:
    path = benchmark(tmp_path / "a.json", one=0.01)
    content = json.loads(path.read_text())
    content["benchmarks"][0] |= {"stats": {"data": [0.01, 0.012]}, "extra_info": more}
    path.write_text(json.dumps(content))
    (found,) = compare(path, path).ratios
    assert found.ratio == 1
    assert found.low <= 1 <= found.high


def test_names_in_files_do_not_steer_the_terminal(tmp_path: Path, suite: Callable[..., tuple[int, str, str]]) -> None:
    path = benchmark(tmp_path / "a.json", **{"x\x1b]0;title\x07": 0.01})
    code, out, _ = suite("compare", str(path), str(path))
    assert code == 0
    assert "\x1b" not in out
    assert r"x\x1b]0;title\x07" in out


def test_a_folder_is_not_compared_with_a_file(a: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one is a folder and one a file; give two results folders or two files"):
        compare(a, benchmark(tmp_path / "b.json", one=0.01))


def test_a_negative_slow_down_cannot_be_allowed(a: Path) -> None:
    with pytest.raises(InputError, match=r"slow-down of -0.1 cannot be allowed; use 0 or more"):
        compare(a, a, fail_above=-0.1)


def test_the_newest_version_of_a_timing_counts_as_in_tables(a: Path, tmp_path: Path) -> None:
    b = put(tmp_path / "b", rounds=[noisy(0.010)] * 6, version=3)
    put(b, rounds=[noisy(0.020)] * 24, version=1)
    (found,) = compare(a, b).ratios
    assert found.ratio == pytest.approx(1.0, rel=0.02)
