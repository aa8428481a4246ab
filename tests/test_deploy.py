"""Export of one network or file: which form it gets."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto

from suite.errors import InputError
from suite.inference import deploy, latency


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.onnx"


@pytest.mark.parametrize(
    "fastest", [("rewritten", "unsigned"), ("rewritten", "signed"), ("plain", "unsigned")], ids=" ".join
)
def test_eight_bits_have_the_form_and_type_that_ran_fastest_here(
    path: Path, fastest: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(requests: Sequence[latency.Request]) -> list[dict[str, Any]]:
        tried = [(file.stem, file.suffix[1:]) for file in (Path(request.path) for request in requests)]
        assert sorted(tried) == [("plain", "unsigned"), ("rewritten", "signed"), ("rewritten", "unsigned")]
        return [{"samples": [0.1, 0.1, 9.0] if each == fastest else [0.2, 0.2, 0.2]} for each in tried]

    monkeypatch.setattr(latency, "measure", measure)
    with deploy.source("resnet20_crelu_bn") as of:
        result = deploy.export(of, path, "int8", "cpu", False, {})
    assert (result["form"], result["activations"]) == fastest
    model = onnx.load(path)
    types = {tensor.data_type for tensor in model.graph.initializer if "zero_point" in tensor.name}
    assert (TensorProto.UINT8 in types) == (fastest[1] == "unsigned")
    assert ("Neg" in {node.op_type for node in model.graph.node}) == (fastest[0] == "plain")
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_form_that_does_not_run_leaves_the_choice_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: dict[str, dict[str, Any] | RuntimeError] = {
        "a": RuntimeError("no kernel"),
        "b": {"samples": [0.2]},
        "c": {"samples": [0.1]},
        "d": latency.NotFiniteError({"samples": [0.01, 0.05, 0.09]}),
    }
    monkeypatch.setattr(latency, "measure", lambda requests: [answers[request.path] for request in requests])
    of = deploy.Source(Path(), "resnet20_relu_np", 10, 32, trained=False)
    assert deploy._fastest(of, [Path(name) for name in "abcd"], "cpu") == (Path("c"), 0.1, [])
    with pytest.raises(RuntimeError, match="no kernel"):
        deploy._fastest(of, [Path("a"), Path("a")], "cpu")
    file, seconds, (warning,) = deploy._fastest(of, [Path("a"), Path("d")], "cpu")
    assert (file, seconds) == (Path("d"), 0.05)
    assert "not finite" in warning
    with pytest.raises(RuntimeError, match="logits that are not finite"):
        deploy._fastest(dataclasses.replace(of, trained=True), [Path("d")], "cpu")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_cuda_is_given_the_exporters_own_graph_and_the_time_it_takes(
    precision: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = latency.NotFiniteError({"samples": [0.002, 0.003, 0.9]})
    monkeypatch.setattr(latency, "measure", lambda requests: [answer for _ in requests])
    monkeypatch.setattr(latency, "unavailable", lambda provider: None)
    with deploy.source("resnet20_crelu_bn") as of:
        result = deploy.export(of, path, precision, "cuda", False, {})
    assert result["form"] == "plain"
    assert result["milliseconds"] == 3
    assert any("not finite" in warning for warning in result["warnings"])
    assert "Neg" in {node.op_type for node in onnx.load(path).graph.node}


def test_eight_bits_for_cuda_are_one_line() -> None:
    of = deploy.Source(Path(), "resnet20_relu_bn", 10, 32, trained=False)
    with pytest.raises(
        InputError, match=r"CUDA provider has no int8 convolution, .*; legal on this provider: fp32, fp16$"
    ):
        deploy.export(of, Path("net.onnx"), "int8", "cuda", False, {})


def scaled(path: Path, factor: float) -> Path:
    """A copy whose first convolution has so many times its weights."""
    model = onnx.load(path)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "conv1.weight")
    larger = onnx.numpy_helper.to_array(weight) * np.float32(factor)
    weight.CopyFrom(onnx.numpy_helper.from_array(larger, "conv1.weight"))
    onnx.save(model, path.with_name("scaled.onnx"))
    return path.with_name("scaled.onnx")


def test_activations_that_float16_cannot_hold_are_refused_with_their_layer(path: Path, tmp_path: Path) -> None:
    with deploy.source("resnet20_relu_bn") as of:
        deploy.export(of, path, "fp32", "cpu", False, {})
    images = deploy.Calibration([np.random.default_rng(0).standard_normal((4, 3, 32, 32), np.float32)], "4 images")
    said = deploy.convert(path, tmp_path / "half.onnx", "fp16", images)
    assert 0 < said["greatest_activation"] < 65504
    with pytest.raises(RuntimeError, match=r"^conv1 gives values to .* on 4 images, and float16 holds 65504 at most"):
        deploy.convert(scaled(path, 60000), tmp_path / "half.onnx", "fp16", images)
    said = deploy.convert(scaled(path, 60000), tmp_path / "half.onnx", "fp16", images, trained=False)
    assert said["greatest_activation"] > 65504
    assert len(said["warnings"]) == 1


def test_eight_bits_for_a_gpu_are_symmetric(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def measure(requests: Sequence[latency.Request]) -> list[dict[str, Any]]:
        tried.extend(Path(request.path).name for request in requests)
        return [{"samples": [0.1]} for _ in requests]

    monkeypatch.setattr(latency, "measure", measure)
    monkeypatch.setattr(latency, "unavailable", lambda provider: None)
    with deploy.source("resnet20_relu_bn") as of:
        result = deploy.export(of, path, "int8", "tensorrt", False, {})
    assert sorted(tried) == ["plain.symmetric", "rewritten.symmetric"]
    assert result["activations"] == "symmetric"


def test_what_is_exported_in_eight_bits_was_timed_and_runs(path: Path) -> None:
    with deploy.source("resnet20_relu_bn") as of:
        result = deploy.export(of, path, "int8", "cpu", True, {})
    assert result["form"] == "plain"
    assert result["activations"] in ("signed", "unsigned")
    assert 0 < result["difference_from_fp32"] < 0.2
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"input": np.zeros((2, 3, 32, 32), np.float32)})
    assert logits.shape == (2, 10)
