import dataclasses
import statistics
from pathlib import Path

import pytest
import timm
from onnx import TensorProto, helper, save
from timm.models import save_for_hf

import models  # noqa: F401 - registers the networks with timm
from suite import latency
from suite.latency import Protocol, Request

SHORT = Protocol(min_seconds=0.0, min_runs=5, max_runs=50, warmup=1)


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph with this suite's input and output: the mean of each channel."""
    path: Path = tmp_path_factory.mktemp("onnx") / "mean.onnx"
    value = helper.make_tensor_value_info
    node = helper.make_node("ReduceMean", ["input", "axes"], ["logits"], keepdims=0)
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])
    graph = helper.make_graph(
        [node],
        "mean",
        [value("input", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [value("logits", TensorProto.FLOAT, ["batch", 3])],
        [axes],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def request(path: Path, **changes: object) -> Request:
    plain = Request("onnxruntime", str(path), "cpu", 2, 8, 1, SHORT)
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def test_onnx_runtime_is_timed_in_seconds_on_the_provider_asked_for(onnx_file: Path) -> None:
    answer = latency.measure(request(onnx_file))
    assert answer["provider"] == "CPUExecutionProvider"
    assert len(answer["samples"]) == 5
    assert all(0 < seconds < 1 for seconds in answer["samples"])
    assert 0 < answer["load_seconds"] < 10
    assert answer["first_run_seconds"] > 0


def test_torch_is_timed_in_a_process_of_its_own(tmp_path: Path) -> None:
    save_for_hf(timm.create_model("resnet20_relu_bn"), str(tmp_path), safe_serialization=True)
    answer = latency.measure(request(tmp_path, runtime="torch", size=32))
    assert answer["provider"] == "cpu"
    assert len(answer["samples"]) == 5
    # 41 million multiply-accumulates an image take a millisecond or so; 10 s would be another unit.
    assert 1e-5 < statistics.median(answer["samples"]) < 10


def test_a_failure_of_the_timing_process_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a graph")
    with pytest.raises(RuntimeError, match=r"broken\.onnx") as caught:
        latency.measure(request(tmp_path / "broken.onnx"))
    assert "\n" not in str(caught.value)


def test_a_failure_of_the_torch_process_is_raised(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="config"):
        latency.measure(request(tmp_path, runtime="torch"))


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_is_proven_or_refused_and_never_replaced(provider: str, onnx_file: Path) -> None:
    reason = latency.unavailable(provider)
    if reason is None:
        answer = latency.measure(request(onnx_file, provider=provider))
        assert answer["provider"] == latency.PROVIDERS[provider]
    else:
        assert "\n" not in reason
        with pytest.raises(RuntimeError):
            latency.measure(request(onnx_file, provider=provider))


def test_the_cpu_is_always_there() -> None:
    assert latency.unavailable("cpu") is None


def test_timing_stops_on_time_and_on_count() -> None:
    calls: list[int] = []
    first, samples = latency._steady(calls.append, Protocol(min_seconds=0.0, min_runs=7, max_runs=50, warmup=3))
    assert len(samples) == 7
    assert len(calls) == 1 + 3 + 7
    assert first >= 0
    assert len(latency._steady(calls.append, Protocol(min_seconds=60.0, min_runs=7, max_runs=50, warmup=0))[1]) == 50


def test_inputs_vary_from_run_to_run() -> None:
    calls: list[int] = []
    latency._steady(calls.append, SHORT)
    assert len({index % latency.DISTINCT_INPUTS for index in calls}) == latency.DISTINCT_INPUTS
