"""The instruments from Python, for a module of one's own."""

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from suite import api
from suite.errors import InputError
from suite.inference import contest, latency
from suite.schema.outcomes import PeakResult


class Own(nn.Module):
    """A network that nobody has registered anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.body(x).mean((2, 3)))


@pytest.fixture
def own() -> Own:
    torch.manual_seed(0)
    net = Own().train()
    net.body[3].eval()
    return net


def test_a_module_is_exported_compared_timed_and_explained(
    own: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contest, "QUICK", latency.Protocol(2, 0.0, 5, 50, 1))
    monkeypatch.setattr(latency, "measure_peak", lambda provider, threads, precision: PeakResult(flops=1e12))
    out = tmp_path / "own.onnx"
    result = api.export_onnx(own, out, shape=(3, 8, 8))
    assert result["difference_from_torch"] < 1e-5
    assert result["macs"] == 36 * 16 * 27 + 16 * 5
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(out).graph.node}
    found = api.check_parity(out, own, count=16)
    assert (found.count, found.passed(1e-5)) == (16, True)
    assert [part.training for part in (own, own.body[1], own.body[3])] == [True, True, False]
    with torch.no_grad():
        own.head.bias[2] += 1
    assert not api.check_parity(out, own, count=16).passed(1e-2)
    first, second = api.time_models([out, own], shape=(3, 8, 8), quick=True)
    assert (first.error, second.error) == (None, None)
    assert first.ratio is None
    assert second.ratio is not None
    assert 0.1 < second.ratio[0] < 10
    assert api.explain_model(out, batch_size=2)["inputs"] == {"input": [2, 3, 8, 8]}


def test_what_is_not_said_of_a_module_is_asked_for(own: Own, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="shape: say that of one input"):
        api.export_onnx(own, tmp_path / "own.onnx")
    with pytest.raises(InputError, match="precision='int8' is not valid for a module; use fp32"):
        api.export_onnx(own, tmp_path / "own.onnx", shape=(3, 8, 8), precision="int8")
    with pytest.raises(InputError, match="a module is compared with an ONNX file"):
        api.check_parity(own, own)
    with pytest.raises(InputError, match="; did you mean resnet18"):
        api.export_onnx("resnet_18", tmp_path / "own.onnx")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_module_or_does_not_fit_it_is_bad_input(own: Own, tmp_path: Path) -> None:
    out = tmp_path / "own.onnx"
    with pytest.raises(InputError, match=r"^Own: its forward fails on float32 of 2x4x8x8: RuntimeError: .*channels"):
        api.export_onnx(own, out, shape=(4, 8, 8))
    with pytest.raises(InputError, match=r"^Own: its forward fails on float32 of 2x3x1x8: RuntimeError: "):
        api.time_models([own], shape=(3, 1, 8))
    wrong: Any = (3, "8")
    for shape in (wrong, (3, -1, 8)):
        with pytest.raises(InputError, match="shape: say that of one input"):
            api.export_onnx(own, out, shape=shape)
    none: Any = 3
    for call in (
        lambda: api.export_onnx(none, out, shape=(3, 8, 8)),
        lambda: api.check_parity(own, none),
        lambda: api.time_models([none], shape=(3, 8, 8)),
    ):
        with pytest.raises(InputError, match=r"^3: is neither the name of a file or model nor a module of torch"):
            call()
    module: Any = own
    with pytest.raises(InputError, match=r"^Own: is neither the name of a file nor of a model; export_onnx makes"):
        api.explain_model(module)
    assert list(tmp_path.iterdir()) == []
