"""Export of one network or file: which form it gets."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto

from suite import deploy, latency


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
        "a": RuntimeError("logits that are not finite"),
        "b": {"samples": [0.2]},
        "c": {"samples": [0.1]},
    }
    monkeypatch.setattr(latency, "measure", lambda requests: [answers[request.path] for request in requests])
    of = deploy.Source(Path(), "resnet20_relu_np", 10, 32, trained=False)
    assert deploy._fastest(of, [Path(name) for name in "abc"], "cpu") == Path("c")
    with pytest.raises(RuntimeError, match="logits that are not finite"):
        deploy._fastest(of, [Path("a"), Path("a")], "cpu")


def test_eight_bits_for_a_gpu_are_symmetric(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def measure(requests: Sequence[latency.Request]) -> list[dict[str, Any]]:
        tried.extend(Path(request.path).name for request in requests)
        return [{"samples": [0.1]} for _ in requests]

    monkeypatch.setattr(latency, "measure", measure)
    monkeypatch.setattr(latency, "unavailable", lambda provider: None)
    with deploy.source("resnet20_relu_bn") as of:
        result = deploy.export(of, path, "int8", "cuda", False, {})
    assert sorted(tried) == ["plain.symmetric", "rewritten.symmetric"]
    assert result["activations"] == "symmetric"


def test_what_is_exported_in_eight_bits_was_timed_and_runs(path: Path) -> None:
    with deploy.source("resnet20_relu_bn") as of:
        result = deploy.export(of, path, "int8", "cpu", True, {})
    assert result["form"] == "plain"
    assert result["activations"] in ("signed", "unsigned")
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"input": np.zeros((2, 3, 32, 32), np.float32)})
    assert logits.shape == (2, 10)
