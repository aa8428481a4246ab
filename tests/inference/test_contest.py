"""Networks timed against each other: what is compared with what, and what is said of it."""

import importlib.util
import json
import statistics
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from suite.inference import contest, latency, names
from suite.inference.contest import Entrant
from suite.inference.latency import Request
from suite.schema.outcomes import LatencyResult, PeakResult

Suite = Callable[..., tuple[int, str, str]]


@pytest.fixture
def net(tmp_path: Path) -> Callable[..., Path]:
    """Write a convolution under names and an opset of others; returns the file."""

    def write(name: str, channels: int = 4, opset: int = 11, batch: Any = "N") -> Path:
        weight = np.random.default_rng(0).standard_normal((channels, 3, 3, 3)).astype(np.float32)
        ends = [
            helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [batch, 3, 8, 8]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, channels, 6, 6]),
        ]
        node = helper.make_node("Conv", ["pixels", "w"], ["scores"])
        graph = helper.make_graph([node], "net", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=6)
        onnx.save(model, tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    short = latency.Protocol(rounds=2, min_seconds=0.0, min_runs=5, max_runs=50, warmup=1)
    monkeypatch.setattr(contest, "QUICK", short)
    monkeypatch.setattr(latency, "measure_peak", lambda provider, threads, precision: PeakResult(flops=1e12))


@pytest.mark.parametrize(("share", "said"), [(0.3, True), (0.05, False)])
def test_a_busy_machine_is_told(
    net: Callable[..., Path], suite: Suite, monkeypatch: pytest.MonkeyPatch, share: float, said: bool
) -> None:
    monkeypatch.setattr(latency.Interference, "share", lambda self: share)
    code, out, err = suite("time", str(net("a.onnx")), "--quick")
    assert code == 0, err
    assert ("busy: other processes took 30% of the cores meanwhile" in " ".join(out.split())) == said


def test_files_of_others_are_timed_and_compared_with_the_first(net: Callable[..., Path], suite: Suite) -> None:
    a, b = net("a.onnx"), net("b.onnx", 64, opset=17)
    code, out, err = suite("time", str(a), str(b), "--quick", "--format", "json", "--batch-sizes", "1,2")
    assert code == 0, err
    rows = json.loads(out)["rows"]
    assert [(row["network"], row["batch_size"]) for row in rows] == [(str(f), n) for f in (a, b) for n in (1, 2)]
    for row in rows:
        assert (row["provider"], row["nodes"], row["precision"]) == ("CPUExecutionProvider", "1 of 1", "fp32")
        assert 0 < row["median_ms"] < 1000
        assert row["images_per_s"] == pytest.approx(1e3 * row["batch_size"] / row["median_ms"])
        macs = row["batch_size"] * 36 * 27 * (4 if row["network"] == str(a) else 64)
        assert row["peak_percent"] == pytest.approx(100 * 2 * macs / (1e-3 * row["median_ms"]) / 1e12)
    assert [row.get("ratio") is None for row in rows] == [True, True, False, False]
    assert "[2/3] time: done" in err


def test_json_has_each_run_once_in_whole_nanoseconds(net: Callable[..., Path], suite: Suite) -> None:
    code, out, err = suite("time", str(net("a.onnx")), "--quick", "--format", "json")
    assert code == 0, err
    (row,) = json.loads(out)["rows"]
    assert [len(each) for each in row["rounds_ns"]] == [5, 5]
    runs = [run for each in row["rounds_ns"] for run in each]
    assert all(isinstance(run, int) for run in runs)
    assert row["median_ms"] == pytest.approx(statistics.median(runs) / 1e6)
    assert row["settings"]["graph_optimization"] == "all"
    assert json.dumps(row["rounds_ns"][0])[1:-1] in out  # a round stands in one line
    assert "rounds_ns" not in suite("time", str(net("a.onnx")), "--quick", "--format", "csv")[1]


class Encoder(nn.Module):
    """A small transformer as those of language are called: by token ids, and by a mask of those that count."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 16)
        self.query, self.key, self.value, self.last = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        words = self.table(input_ids)
        scores = self.query(words) @ self.key(words).transpose(1, 2) / 4
        scores = scores.masked_fill(attention_mask[:, None] == 0, -1e9)
        return self.last(scores.softmax(-1) @ self.value(words))


def test_a_transformer_of_torch_goes_through_every_instrument(tmp_path: Path, suite: Suite) -> None:
    path = tmp_path / "encoder.onnx"
    names = ["input_ids", "attention_mask"]
    example = torch.ones(2, 9, dtype=torch.int64)
    free = {name: {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")} for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = Encoder().eval()
        torch.onnx.export(network, (example, example), path, input_names=names, dynamic_shapes=free, verbose=False)
    shapes = ("--input", "input_ids=3x7", "--input", "attention_mask=3x7")
    code, out, err = suite("time", str(path), "--quick", "--format", "json", *shapes)
    assert code == 0, err
    (row,) = json.loads(out)["rows"]
    assert row["batch_size"] == 3
    assert row["runs_per_s"] > 0
    code, out, err = suite("explain", str(path), *shapes)
    assert code == 0, err
    assert "MatMul" in out
    code, out, err = suite("parity", str(path), "--against", str(path), "--images", "6", *shapes)
    assert code == 0, err
    assert "greatest difference 0, which is 0.0e+00 of the greatest value" in out
    assert "6 random inputs" in out


def test_a_transformer_is_timed_with_its_token_ids_and_mask(tmp_path: Path, suite: Suite) -> None:
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["words"]),
        helper.make_node("Cast", ["attention_mask"], ["kept"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["kept"], ["column"], axes=[2]),
        helper.make_node("Mul", ["words", "column"], ["masked"]),
        helper.make_node("MatMul", ["masked", "weight"], ["hidden"]),
    ]
    taken = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
        for name in ("input_ids", "attention_mask")
    ]
    given = helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["batch", "sequence", 6])
    held = [
        numpy_helper.from_array(np.ones(size, np.float32), n) for n, size in (("table", (50, 8)), ("weight", (8, 6)))
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "words", taken, [given], held),
        opset_imports=[helper.make_opsetid("", 11)],
        ir_version=6,
    )
    onnx.save(model, tmp_path / "words.onnx")
    path = str(tmp_path / "words.onnx")
    code, out, err = suite("time", path, "--quick", "--format", "json", "--input", "input_ids=2x9")
    assert code == 0, err
    (row,) = json.loads(out)["rows"]
    assert (row["batch_size"], row["nodes"]) == (2, "5 of 5")
    assert row["runs_per_s"] == pytest.approx(1e3 / row["median_ms"])
    assert row["peak_percent"] == pytest.approx(100 * 2 * (2 * 9 * 8 * 6) / (1e-3 * row["median_ms"]) / 1e12)
    code, _, err = suite("time", path)
    assert code == 2
    assert "dimension 1 'sequence' of input 'input_ids' is free; say its shape, as in --input input_ids=1x128" in err
    code, _, err = suite("time", path, "--input", "words=1x9")  # which is why the shape is not known
    assert code == 2
    assert err == "error: --input: nothing here has an input 'words'; use attention_mask or input_ids\n"


def test_a_file_without_inputs_is_timed_and_explained(tmp_path: Path, suite: Suite) -> None:
    node = helper.make_node("Relu", ["w"], ["y"])
    held = numpy_helper.from_array(np.ones((3, 4), np.float32), "w")
    graph = helper.make_graph([node], "net", [], [helper.make_tensor_value_info("y", 1, [3, 4])], [held])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "n.onnx")
    code, out, err = suite("time", str(tmp_path / "n.onnx"), "--quick", "--format", "json")
    assert code == 0, err
    assert json.loads(out)["rows"][0]["median_ms"] > 0
    code, out, err = suite("explain", str(tmp_path / "n.onnx"))
    assert code == 0, err
    assert out.startswith("n.onnx: no inputs, ")
    assert "GPU" not in out


def answer(rounds: list[list[float]]) -> LatencyResult:
    """As a process answers whose runs took so many seconds."""
    provider = "CPUExecutionProvider"
    return LatencyResult(
        samples=[run for each in rounds for run in each],
        rounds=rounds,
        load_seconds=0.1,
        first_run_seconds=0.1,
        provider=provider,
    )


def test_a_slower_network_is_a_failure_where_that_is_asked_for(
    net: Callable[..., Path], suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {"a.onnx": 0.010, "b.onnx": 0.012}

    def measure(requests: Sequence[Request], progress: Any, at_once: int) -> list[LatencyResult]:
        return [answer([[seconds[Path(request.path).name]] * 30] * 4) for request in requests]

    monkeypatch.setattr(latency, "measure", measure)
    files = [str(net("a.onnx")), str(net("b.onnx"))]
    assert suite("time", *files, "--compare-fail", "25%")[0] == 0
    code, out, err = suite("time", *files, "--compare-fail", "10%", "--columns", "all")
    assert code == 1
    assert all(part in err for part in ("slower: ", "b.onnx: 1.200 (", "allowed 1.100"))
    assert ("p90 ms" in out, "p99 ms" in out) == (True, False)  # of 360 runs
    assert suite("time", *files[::-1], "--compare-fail", "10%")[0] == 0
    assert suite("time", files[0], "--compare-fail", "10%")[0] == 2


@pytest.mark.parametrize(("second", "sittings"), [([0.5], 10), ([0.002], 3)])
def test_an_unsteady_machine_gets_more_sittings(
    second: list[float], sittings: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds of one network are alike, and of the other alike or, on an unsteady machine, of two speeds."""
    random, asked, shown = np.random.default_rng(0), 0, []

    def measure(requests: Sequence[Request], progress: Any, at_once: int) -> list[LatencyResult]:
        nonlocal asked
        asked += 1
        progress(2 * len(requests), 0, "")
        spread = {"steady": 0.002, "unsteady": second[0]}
        return [answer([[1 + spread[each.path] * random.random()] * 3 for _ in range(6)]) for each in requests]

    monkeypatch.setattr(latency, "measure", measure)
    entrants = [
        Entrant(name, Request("onnxruntime", name, "cpu", 1, 8, 1, contest.USUAL)) for name in ("steady", "unsteady")
    ]
    contest.time_in_turns(entrants, progress=lambda done, total, note: shown.append((done, total)))
    assert asked == sittings
    assert all(done <= total for done, total in shown)
    assert shown[-1][1] == sittings * contest.USUAL.rounds * 2
    contest.time_in_turns(entrants, quick=True)
    assert asked == sittings + contest.QUICK_SITTINGS[0]


def test_the_first_takes_part_in_every_group_of_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "ALIVE", 6)
    asked: list[list[str]] = []

    def measure(requests: Sequence[Request], progress: Any, at_once: int) -> list[LatencyResult]:
        asked.append([request.path for request in requests])
        assert at_once == len(requests), "however much memory there is by now"
        return [answer([[1.0 + int(request.path)] * 3] * 2) for request in requests]

    monkeypatch.setattr(latency, "measure", measure)
    entrants = [
        Entrant(str(number), Request("onnxruntime", str(number), "cpu", 1, 8, 1, contest.QUICK)) for number in range(8)
    ]
    outcomes = contest.time_in_turns(entrants)
    assert asked[: contest.SITTINGS[0]] == [list("012345"), list("543210"), list("012345")]
    assert asked[contest.SITTINGS[0] :] == [list("067"), list("760"), list("067")]
    assert [outcome.ratio and outcome.ratio[0] for outcome in outcomes] == [None, 2, 3, 4, 5, 6, 7, 8]
    assert all(o.ratio is None or o.ratio[1] < o.ratio[0] < o.ratio[2] for o in outcomes)


def test_a_network_that_fails_leaves_the_others_and_exits_with_1(net: Callable[..., Path], suite: Suite) -> None:
    bad = net("bad.onnx")
    model = onnx.load(bad)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, bad)
    code, out, _ = suite("time", str(net("a.onnx")), str(bad), "--quick")
    assert code == 1
    assert "NoSuchOperator" in out


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_where_nothing_could_be_timed_that_is_one_line_and_no_table(
    runtime: str, net: Callable[..., Path], suite: Suite
) -> None:
    if importlib.util.find_spec(runtime) is None:  # which does not import it: a process of its own is to
        pytest.skip(f"needs {runtime}")
    bad = net("bad.onnx")
    model = onnx.load(bad)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, bad)
    code, out, err = suite("time", str(bad), str(bad), "--quick", "--runtimes", runtime)
    assert (code, out) == (2, "")
    (line,) = (line for line in err.splitlines() if line.startswith("error: "))  # beside the progress
    assert line.startswith(f"error: {bad}: ")
    assert "NoSuchOperator" in line


def test_a_share_of_more_than_the_peak_is_called_impossible(
    net: Callable[..., Path], suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "measure_peak", lambda provider, threads, precision: PeakResult(flops=1.0))
    _, out, _ = suite("time", str(net("a.onnx")), "--quick", "--columns", "all")
    assert "impossible: more than the peak" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--runtimes", "torch"], "is a file; use onnxruntime"),
        (["--precisions", "int8"], "--precisions is only for models, which are exported; a file is timed as it is"),
        (["--input", "ids=1x3"], "nothing here has an input 'ids'; use pixels"),
        (["--batch-sizes", "0"], "is not a batch size"),
        (["--providers", "tpu"], "'tpu' is not valid; use cpu, cuda or tensorrt"),
    ],
)
def test_what_cannot_be_timed_is_said_in_one_line(
    arguments: list[str], said: str, net: Callable[..., Path], suite: Suite
) -> None:
    code, out, err = suite("time", str(net("a.onnx")), *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_a_name_that_nothing_has_is_answered_with_the_nearest_ones(suite: Suite) -> None:
    for command, more in (("time", []), ("explain", []), ("export", ["out.onnx"]), ("parity", [])):
        code, _, err = suite(command, "resnet5_crelu_bn", *more)
        assert code == 2
        assert "resnet50_crelu_bn" in err, command
    assert "mobilenetv3_small_100" in suite("time", "mobilnetv3_small")[2]


def test_names_are_known_from_text_as_timm_knows_them() -> None:
    import timm

    import models  # noqa: F401 - registers the networks with timm

    assert names.our_models() == set(timm.list_models(module="crelu_resnet"))
    modules = {name: timm.model_entrypoint(name).__module__ for name in timm.list_models()}
    assert {name for name, module in modules.items() if module.startswith("timm.")} == names.timm_models()


def test_the_main_columns_of_a_contest_fit_a_terminal(
    net: Callable[..., Path], suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(net("a.onnx").parent)
    given = ("time", "a.onnx", str(net("b.onnx").name), "--quick", "--batch-sizes", "1,2")
    code, out, _ = suite(*given)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 100
    (heads,) = [line for line in out.splitlines() if line.startswith("| network")]
    assert [head.strip() for head in heads.strip("|").split("|")][:4] == ["network", "batch", "median ms", "95 %"]
    assert "- each row: runtime onnxruntime, provider CPUExecutionProvider, precision fp32\n" in out
    code, out, _ = suite(*given, "--columns", "speed")
    assert code == 0
    assert "| network " in out
    assert "/s " in out
    assert "median ms" not in out
    code, _, err = suite(*given, "--columns", "all,paper")
    assert (code, err.count("\n")) == (2, 1)


@pytest.mark.parametrize("batch_sizes", ["4", "1"])
def test_values_of_another_batch_size_than_asked_for_are_refused_of_a_model_too(
    suite: Suite, tmp_path: Path, batch_sizes: str
) -> None:
    values = tmp_path / "x.npz"
    np.savez(values, input=np.zeros((8, 3, 32, 32), np.float32))
    code, out, err = suite("time", "resnet20_relu_bn", "--input", str(values), "--batch-sizes", batch_sizes)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{values}: its batches are not of size {batch_sizes}; give no batch size with it" in err
