"""OpenVINO beside the other runtimes: what it computes, in which precision, and what a record says of it; and that
this process, which goes on afterwards, never loads it (see `suite.inference.in_openvino`)."""

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from suite import env
from suite.inference import contest, latency, loaded
from suite.inference.feeds import Input
from suite.inference.loaded import Request
from suite.registry import RUNTIMES
from suite.schema.outcomes import LatencyResult, PeakResult

Suite = Callable[..., tuple[int, str, str]]
SHORT = latency.Protocol(rounds=2, min_seconds=0.0, min_runs=5, max_runs=50, warmup=1)
DEFAULT = "openvino.default"


@pytest.fixture(autouse=True)
def _apart(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if "without" not in request.node.name and importlib.util.find_spec("openvino") is None:
        pytest.skip("needs openvino")
    monkeypatch.setattr(contest, "QUICK", SHORT)
    monkeypatch.setattr(latency, "measure_peak", lambda provider, threads, precision: PeakResult(flops=1e12))
    yield
    assert "openvino" not in sys.modules


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """A convolution with a free batch, and the mean of each of its channels."""
    weight = np.random.default_rng(0).standard_normal((16, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Flatten", ["c"], ["logits"]),
    ]
    ends = [
        helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 16, 16]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 16]),
    ]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def asked(path: Path, **changes: Any) -> Request:
    fields: dict[str, Any] = {"runtime": "openvino", "provider": "cpu", "batch_size": 2, "size": 16, "threads": 1}
    return Request(path=str(path), protocol=SHORT, **fields | changes)


def test_openvino_computes_what_onnx_runtime_computes_for_any_batch(net: Path) -> None:
    images = np.random.default_rng(1).standard_normal((5, 3, 16, 16)).astype(np.float32)
    ours, theirs = (
        loaded.load(asked(net, runtime=name), checked=True).compute({"input": images})
        for name in ("openvino", "onnxruntime")
    )
    assert ours[0].shape == (5, 16)
    assert ours[0] == pytest.approx(theirs[0], abs=1e-5 * float(np.abs(theirs[0]).max()))


def test_all_runtimes_have_one_form(net: Path) -> None:
    """What one of them is asked for, the others answer too."""
    taken = (Input("input", "float32", (2, 3, 16, 16)),)
    feeds = [{"input": np.full((2, 3, 16, 16), value, np.float32)} for value in (0, 1)]
    for name in [name for name, runtime in RUNTIMES.items() if runtime.reads_files]:
        network = loaded.load(asked(net, runtime=name, inputs=taken), checked=True)
        assert (network.outputs, network.channels) == (("logits",), 3)
        network.hold(feeds)
        for index, feed in enumerate(feeds):
            network.run(index)
            assert np.array_equal(network.results(index)[0], network.compute(feed)[0])
        assert not np.array_equal(network.results(0)[0], network.results(1)[0])


def test_openvino_is_told_float32_one_stream_and_the_threads(net: Path) -> None:
    answer, own = latency.measure([asked(net), asked(net, runtime=DEFAULT)])
    assert isinstance(answer, LatencyResult)
    assert isinstance(own, LatencyResult)
    settings: Any = answer.settings
    assert (settings["INFERENCE_PRECISION_HINT"], settings["NUM_STREAMS"]) == ("f32", "1")
    assert (settings["INFERENCE_NUM_THREADS"], settings["PERFORMANCE_HINT"]) == ("1", "LATENCY")
    assert settings["runtimePrecision"] == {"f32": sum(settings["runtimePrecision"].values())}
    assert answer.provider == "CPU"
    assert [len(burst) for burst in answer.rounds_ns] == [5, 5]
    expected = "bf16" if env.cpu_multiplies_bfloat16() else "f32"
    assert own.settings["INFERENCE_PRECISION_HINT"] == expected


def test_openvino_runs_a_quantised_file_in_int8(net: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Images(CalibrationDataReader):  # type: ignore[misc] # ONNX Runtime has no types
        left = 3

        def get_next(self) -> dict[str, Any] | None:
            self.left -= 1
            return {"input": np.random.default_rng(0).random((1, 3, 16, 16), np.float32)} if self.left >= 0 else None

    few = net.with_name("int8.onnx")
    quantize_static(
        net,
        few,
        Images(),
        QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    ran = loaded.load(asked(few), checked=True).settings["runtimePrecision"]
    assert {"u8", "i8"} & set(ran)


def test_what_openvino_cannot_load_is_one_line(net: Path) -> None:
    model = onnx.load(net)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, net)
    with pytest.raises(RuntimeError, match=r"^OpenVINO: .*NoSuchOperator") as caught:
        loaded.load(asked(net), checked=True)
    assert "\n" not in str(caught.value)
    (timed,) = latency.measure([asked(net)])
    assert "NoSuchOperator" in str(timed)
    with pytest.raises(RuntimeError, match=r"OpenVINO does not run on CUDAExecutionProvider; use cpu$"):
        loaded.load(asked(net, provider="cuda"))


def test_the_process_of_openvino_ends_with_the_network_that_it_loaded(net: Path) -> None:
    network: Any = loaded.load(asked(net), checked=True)
    process = psutil.Process(network._process._process.pid)
    assert process.is_running()
    del network
    assert not process.is_running()


def test_what_goes_wrong_in_its_process_is_one_line(net: Path) -> None:
    network = loaded.load(asked(net), checked=True)
    with pytest.raises(RuntimeError) as caught:
        network.compute({"input": np.zeros((1, 5, 16, 16), np.float32)})
    assert "\n" not in str(caught.value)
    with pytest.raises(RuntimeError, match="the process ended without an answer"):
        network.compute({"input": np.zeros((1, 3, 16, 16), np.float32)})


def test_files_are_timed_and_compared_in_openvino(net: Path, suite: Suite) -> None:
    runtimes = ("--runtimes", f"onnxruntime,openvino,{DEFAULT},torch")
    code, out, err = suite("time", str(net), *runtimes, "--quick", "--format", "json")
    assert code == 0, err
    found = json.loads(out)
    assert [row["runtime"] for row in found["rows"]] == ["onnxruntime", "openvino", DEFAULT]
    assert found["rows"][1]["settings"]["INFERENCE_PRECISION_HINT"] == "f32"
    assert found["rows"][1]["ratio"] > 0
    assert "files are not timed in torch" in found["remarks"]
    (versions,) = (remark for remark in found["remarks"] if remark.startswith("versions: "))
    assert f"openvino {env.versions()['openvino']}" in versions
    code, out, err = suite("parity", str(net), "--against", str(net), "--runtime", "openvino", "--images", "8")
    assert code == 0, err
    assert "logits         greatest difference" in out
    code, _, err = suite("parity", str(net), "--against", str(net), "--runtime", "openvino", "--provider", "cuda")
    assert (code, err.count("\n")) == (2, 1)
    assert "--provider cuda: openvino does not run on it; use cpu\n" in err


def test_a_network_of_this_project_is_checked_in_openvino(suite: Suite) -> None:
    code, out, err = suite("parity", "resnet20_crelu_bn", "--images", "16", "--runtime", "openvino")
    assert code == 0, err
    assert "fp32 on CPU: 16 images" in out
    assert "OpenVINO" in out
    assert "ONNX Runtime" not in out


ROW = ("resnet20_crelu_bn@cifar10",)


def test_openvino_changes_no_key_of_other_runtimes(tmp_path: Path) -> None:
    from suite.grid import plan as grid

    options = grid.RunOptions(
        2, tmp_path, depth=20, rows=ROW, forms=("fp32", "fp16", "int8"), batch_sizes=(1,), steps=2
    )
    alone = {stage.key: stage for stage in grid.plan(options).stages}
    beside = replace(options, runtimes=("onnxruntime", "torch", "openvino", DEFAULT))
    more = [stage for stage in grid.plan(beside).stages if stage.key not in alone]
    assert len(more) + len(alone) == len(grid.plan(beside).stages)
    found = [(stage.kind, stage.inputs["runtime"], stage.inputs["precision"]) for stage in more]
    expected = [(name, form) for name in ("openvino", DEFAULT) for form in ("fp32", "int8")]
    assert sorted(found) == sorted((kind, *each) for kind in ("latency", "parity") for each in expected)


@pytest.mark.full
def test_a_run_checks_and_times_in_openvino(tmp_path: Path, suite: Suite) -> None:
    arguments = ["--table", "2", "--depth", "20", "--rows", *ROW, "--forms", "fp32,int8", "--batch-sizes", "1"]
    arguments += ["--runtimes", "onnxruntime,openvino", "--steps", "2", "--results", str(tmp_path)]
    code, out, err = suite("run", *arguments, "--columns", "all", "--format", "json")
    assert code == 0, err
    table = json.loads(out)
    (only,) = table["rows"]
    headings = {column["key"]: column["heading"] for column in table["columns"]}
    version = env.versions()["openvino"]
    assert headings[f"openvino_{version}_cpu_b1_p50_ms"] == f"OpenVINO {version} cpu b1 p50 ms"
    for key in (
        f"openvino_{version}_cpu_int8_b1_p50_ms",
        f"openvino_{version}_cpu_b1_p50_ms",
        "onnxruntime_cpu_b1_p50_ms",
    ):
        assert only[key] > 0
    assert abs(only["parity_openvino_cpu_top1"]) < 100
    assert only["parity_openvino_cpu_agreement"] > 0
    timed = [json.loads(path.read_text()) for path in (tmp_path / "records" / "latency").iterdir()]
    (whole,) = (
        each for each in timed if (each["inputs"]["runtime"], each["inputs"]["precision"]) == ("openvino", "fp32")
    )
    assert whole["inputs"]["versions"]["openvino"] == version
    assert whole["result"]["settings"]["INFERENCE_PRECISION_HINT"] == "f32"
    assert all(
        "openvino" not in each["inputs"]["versions"] for each in timed if each["inputs"]["runtime"] != "openvino"
    )
    assert f"OpenVINO {version}" in (tmp_path / "report" / "index.html").read_text()
    shown = ("show", "--table", "2", "--depth", "20", "--rows", *ROW, "--results", str(tmp_path))
    assert f"| OpenVINO {version} cpu b1 p50 ms |" in suite(*shown, "--columns", "latency")[1]


@pytest.mark.parametrize("pip", [True, False], ids=["pip", "uv"])
def test_without_the_package_the_answer_says_how_to_install_it(
    pip: bool, net: Path, suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    known = {"openvino": None, "pip": pip or None}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: known[name] if name in known else find(name, *more)
    )
    for command in (
        ("time", str(net), "--runtimes", "openvino"),
        ("run", "--table", "2", "--runtimes", "onnxruntime,openvino"),
        ("parity", str(net), "--against", str(net), "--runtime", DEFAULT),
    ):
        code, out, err = suite(*command)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "needs the package openvino, which is not installed here: " in err
        assert err.endswith(f"here: {'pip' if pip else 'uv pip'} install openvino\n")
