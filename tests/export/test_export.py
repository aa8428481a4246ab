from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import timm
import torch
from msgspec import UNSET
from onnxscript import ir
from timm.models import save_for_hf
from torch import nn

import models
from suite.export.exporter import OPSET, check, cost, export, fold, load_weights

# Two of every kind of block and shortcut: BatchNorm, NormProp with and without constants, both layouts.
NAMES = ["resnet20_relu_bn", "resnet20_crelu_np", "resnet20_relu_np2", "resnet20_crelu_nobias", "resnet34_crelu_np3"]


def randomized(name: str, **arguments: Any) -> nn.Module:
    """A model in which every parameter and statistic has a value of its own, so that a wrong fold shows."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, num_classes=7, **arguments)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | models.NormPropConv2d):
                for value in (module.bias, getattr(module, "gain", None), getattr(module, "running_var", None)):
                    if value is not None:
                        value.uniform_(0.5, 1.5)
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.2, 0.6)
                module.running_mean.normal_(std=0.1)  # type: ignore[union-attr]
    return model.eval()


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    def save(model: nn.Module, arguments: dict[str, Any] | None = None) -> Path:
        folder = tmp_path / "weights"
        folder.mkdir()
        save_for_hf(model, str(folder), safe_serialization=True, model_args=arguments)
        return folder

    return save


@pytest.mark.parametrize("name", NAMES)
def test_folding_changes_nothing_but_rounding(name: str) -> None:
    model = randomized(name).double()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    folded = fold(model)
    with torch.inference_mode():
        expected, actual = model(images), folded.double()(images)
    assert torch.allclose(actual, expected, rtol=0, atol=2e-5 * expected.abs().max())


@pytest.mark.parametrize("name", ["resnet20_relu_bn", "resnet50_crelu_bn", "resnet20_crelu_np", "resnet34_relu_np3"])
def test_no_normalisation_is_left_after_folding(name: str) -> None:
    folded = fold(timm.create_model(name))
    assert not any(isinstance(module, nn.BatchNorm2d | models.NormPropConv2d) for module in folded.modules())


@pytest.mark.parametrize("batch_norm", ["trunk", "trunk_input", "shortcut"])
@pytest.mark.parametrize("name", ["resnet20_relu_np", "resnet20_crelu_np2", "resnet34_crelu_np3", "resnet50_relu_np"])
def test_batchnorm_of_the_identity_path_folds_in_every_reading(name: str, batch_norm: str) -> None:
    model = randomized(name, np_batchnorm=batch_norm).double()
    folded = fold(model)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.inference_mode():
        expected, actual = model(images), folded.double()(images)
    assert torch.allclose(actual, expected, rtol=0, atol=2e-5 * expected.abs().max())
    layers = list(folded.modules())
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in layers)
    # What stays, of basic blocks alone, is one depthwise convolution for each reduction.
    depthwise = sum(isinstance(layer, nn.Conv2d) and layer.groups > 1 for layer in layers)
    assert depthwise == ({"resnet20": 2, "resnet34": 3, "resnet50": 0}[name[:8]] if batch_norm == "trunk_input" else 0)


def test_folding_leaves_the_model_itself_alone() -> None:
    model = randomized("resnet20_relu_np2")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fold(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(value.dtype == torch.float32 for value in model.parameters())


@pytest.mark.parametrize("name", [*NAMES[:2], *(pytest.param(name, marks=pytest.mark.full) for name in NAMES[2:])])
def test_the_exported_file_gives_torchs_logits_at_any_batch_size(
    name: str, saved: Callable[..., Path], tmp_path: Path
) -> None:
    model = randomized(name)
    out = tmp_path / "model.onnx"
    result = export(saved(model), 32, out, {"model": name})
    session = ort.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        images = torch.randn(batch, 3, 32, 32)
        with torch.inference_mode():
            expected = model(images).numpy()
        (actual,) = session.run(["logits"], {"input": images.numpy()})
        assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()
    assert result.opset == OPSET
    assert result.rewrite_difference <= 1e-5
    assert result.bytes == out.stat().st_size
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ""] == ["model.onnx"]
    assert {entry.key: entry.value for entry in onnx.load(str(out)).metadata_props}["model"] == name


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({"in_chans": 1}, marks=pytest.mark.full),
        pytest.param({"crelu_placement": "inner"}, marks=pytest.mark.full),
        {"crelu_placement": "inner", "np_constants": "direct"},
        {"np_constants": "all", "np_batchnorm": "trunk_input"},
        pytest.param({"np_batchnorm": "shortcut"}, marks=pytest.mark.full),
    ],
)
def test_variants_of_an_architecture_export_too(
    arguments: dict[str, Any], saved: Callable[..., Path], tmp_path: Path
) -> None:
    model = randomized("resnet20_crelu_np", **arguments)
    export(saved(model, arguments), 32, tmp_path / "model.onnx", {})
    images = torch.randn(2, arguments.get("in_chans", 3), 32, 32)
    with torch.inference_mode():
        expected = model(images).numpy()
    session = ort.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    (actual,) = session.run(["logits"], {"input": images.numpy()})
    assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.full
def test_normalisations_of_one_architecture_export_to_the_same_operators(tmp_path: Path) -> None:
    found = []
    for norm in ("bn", "plain", "np2", "np3"):
        folder = tmp_path / norm
        folder.mkdir()
        # Of np2 and np3 the two reduction blocks have a BatchNorm of the sum.
        save_for_hf(timm.create_model(f"resnet20_crelu_{norm}", num_classes=5), str(folder), safe_serialization=True)
        found.append(export(folder, 32, folder / "model.onnx", {}).operators)
    assert found[0] == found[1] == found[2] == found[3]
    # 19 convolutions, a CReLU before each but the first and before the pool, 2 shortcuts.
    assert found[0] == {"Conv": 40, "Relu": 19, "Add": 9, "GlobalAveragePool": 1, "Reshape": 1, "Gemm": 1}


def test_an_export_that_is_not_rewritten_keeps_the_exporters_operators(
    saved: Callable[..., Path], tmp_path: Path
) -> None:
    result = export(saved(randomized("resnet20_crelu_np2")), 32, tmp_path / "model.onnx", {}, rewrite=False)
    assert result.operators["Neg"] == 19
    assert "BatchNormalization" not in result.operators
    assert result.rewrites is UNSET


def test_a_rewrite_that_changes_the_logits_is_refused(
    saved: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(model: ir.Model) -> dict[str, int]:
        weight = model.graph.initializers["fc.weight"]
        weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(1.01))  # type: ignore[union-attr]
        return {}

    monkeypatch.setattr("suite.export.exporter.apply_rewrites", spoil)
    with pytest.raises(RuntimeError, match=r"model\.onnx: rewriting changed the logits by .* of the largest"):
        export(saved(randomized("resnet20_relu_bn")), 32, tmp_path / "model.onnx", {})


@pytest.mark.parametrize("name", ["resnet20_crelu_bn", "resnet20_relu_np"])
def test_a_network_whose_logits_are_all_zero_exports(name: str, saved: Callable[..., Path], tmp_path: Path) -> None:
    model = randomized(name)
    nn.init.zeros_(model.fc.weight)  # type: ignore[union-attr, arg-type]
    nn.init.zeros_(model.fc.bias)  # type: ignore[union-attr, arg-type]
    assert export(saved(model), 32, tmp_path / "model.onnx", {}).rewrite_difference == 0


def test_a_network_without_finite_logits_is_not_said_to_be_changed_by_rewriting(
    saved: Callable[..., Path], tmp_path: Path
) -> None:
    model = randomized("resnet20_crelu_np2")
    nn.init.zeros_(model.layer1[0].conv1.weight)  # type: ignore[union-attr, index, arg-type]
    with pytest.raises(RuntimeError, match="the network's logits are not finite on random images"):
        export(saved(model), 32, tmp_path / "model.onnx", {})


def test_weights_come_back_in_evaluation_mode(saved: Callable[..., Path]) -> None:
    model = randomized("resnet20_relu_bn")
    loaded = load_weights(saved(model))
    assert not loaded.training
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "size", "parameters", "macs"),
    [
        # Convolutions and classifier written out: 3x3 stem, 6 blocks a stage at 32, 16 and 8 pixels.
        ("resnet20_relu_bn", 32, 269_722, 40_551_040),
        # He et al. 2016a print 3.8e9 for ResNet-50, which has the stride on the 1x1; on the 3x3 it is 4.09e9.
        ("resnet50_relu_bn", 224, 25_557_032, 4_089_184_256),
    ],
)
def test_cost_counts_parameters_and_multiply_accumulates(name: str, size: int, parameters: int, macs: int) -> None:
    assert cost(timm.create_model(name), size) == {"parameters": parameters, "macs": macs}


def graph(path: Path, operator: str = "Relu", batch: str | int = "batch", opset: int = OPSET) -> Path:
    value = onnx.helper.make_tensor_value_info
    ends = ([value("input", 1, [batch, 3])], [value("logits", 1, [batch, 3])])
    constants = [onnx.helper.make_tensor(name, 1, [3], [1.0] * 3) for name in "abcd"]
    inputs = ["input", *"abcd"] if operator == "BatchNormalization" else ["input"]
    node = onnx.helper.make_node(operator, inputs, ["logits"])
    made = onnx.helper.make_graph([node], "g", *ends, constants if len(inputs) > 1 else [])  # type: ignore[arg-type]
    onnx.save(onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10), path)
    return path


def test_check_accepts_a_good_file_and_counts_its_operators(tmp_path: Path) -> None:
    assert check(graph(tmp_path / "g.onnx")).operators == {"Relu": 1}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"batch": 2}, "a fixed batch size"),
        ({"opset": 17}, "opset 17 instead of 18"),
        ({"operator": "BatchNormalization"}, "1 BatchNorm not folded"),
    ],
)
def test_check_refuses_a_file_that_breaks_a_promise(tmp_path: Path, fault: dict[str, object], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"g.onnx: the exported graph has {message}"):
        check(graph(tmp_path / "g.onnx", **fault))  # type: ignore[arg-type]
