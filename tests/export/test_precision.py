"""Float16 and int8: what the files hold, and that they still compute the network."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import timm
import torch
from onnxscript import ir
from torch import nn

import models  # noqa: F401 - registers the networks with timm
from suite.export.exporter import check, to_graph
from suite.export.nodes import name_after_layers
from suite.export.precision import Activations, activation_magnitudes, difference, to_float16, to_int8
from suite.export.rewrite import apply_rewrites

NAMES = ["resnet20_crelu_bn", "resnet20_relu_np"]


@pytest.fixture(scope="module", params=NAMES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    # With NormProp's constants behind the sums too, which is harder: most values are then what a rectifier gives off.
    module = timm.create_model(request.param, **({"np_constants": "all"} if request.param.endswith("np") else {}))
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.2, 0.6)
            nn.init.uniform_(norm.bias, -0.3, 0.3)
    model = to_graph(module, 32)
    apply_rewrites(model)
    name_after_layers(model)
    path = tmp_path_factory.mktemp(request.param) / "model.onnx"
    ir.save(model, path)
    return path


def images(seed: int, batch: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 3, 32, 32), np.float32)


def logits(path: Path, batch: int = 8, fused: bool = False) -> Any:
    """What the file says, unless its nodes are fused: eight-bit kernels then saturate on a CPU without VNNI."""
    options = ort.SessionOptions()
    if not fused:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"input": images(9, batch)})[0]


def relative_error(path: Path, reference: Path, batch: int = 8, fused: bool = False) -> float:
    """Root mean square of the difference of two files' logits over that of the second's."""
    expected, actual = (logits(each, batch, fused) for each in (reference, path))
    assert actual.dtype == np.float32
    return float(np.sqrt(np.square(actual - expected).mean() / np.square(expected).mean()))


def test_half_precision_computes_the_network_from_float32_to_float32(exported: Path, tmp_path: Path) -> None:
    out = tmp_path / "half.onnx"
    to_float16(exported, out)
    assert relative_error(out, exported) < 0.005
    weights = [tensor for tensor in onnx.load(out).graph.initializer if tensor.name.endswith("weight")]
    assert weights
    assert {tensor.data_type for tensor in weights} == {onnx.TensorProto.FLOAT16}


def test_small_weights_stay_small_in_half_precision(exported: Path, tmp_path: Path) -> None:
    model = onnx.load(exported)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "fc.weight")
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0, :3] = 1e-6, -3e-5, 0.0
    weight.CopyFrom(onnx.numpy_helper.from_array(values, "fc.weight"))
    onnx.save(model, tmp_path / "small.onnx")
    to_float16(tmp_path / "small.onnx", tmp_path / "half.onnx")
    half = {tensor.name: tensor for tensor in onnx.load(tmp_path / "half.onnx").graph.initializer}
    assert np.abs(onnx.numpy_helper.to_array(half["fc.weight"]) - values).max() <= np.abs(values).max() * 2**-11


def test_a_weight_beyond_the_range_of_float16_is_refused(exported: Path, tmp_path: Path) -> None:
    model = onnx.load(exported)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "fc.weight")
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(1e7), "fc.weight"))
    onnx.save(model, tmp_path / "large.onnx")
    with pytest.raises(RuntimeError, match=r"large\.onnx: fc\.weight has values that float16 cannot hold"):
        to_float16(tmp_path / "large.onnx", tmp_path / "half.onnx")


def test_an_int8_file_computes_the_network_at_any_batch_size(exported: Path, tmp_path: Path) -> None:
    out = tmp_path / "eight.onnx"
    to_int8(exported, out, (images(seed) for seed in range(3)))
    for batch in (1, 8):
        assert 1e-4 < relative_error(out, exported, batch) < 0.06


def test_weights_are_signed_with_a_scale_each_filter_and_activations_unsigned(exported: Path, tmp_path: Path) -> None:
    out = tmp_path / "eight.onnx"
    to_int8(exported, out, [images(0)])
    graph = onnx.load(out).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    assert constants["conv1.weight_quantized"].data_type == onnx.TensorProto.INT8
    assert list(constants["conv1.weight_scale"].dims) == [16]
    quantizers = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert {constants[node.input[2]].data_type for node in quantizers} == {onnx.TensorProto.UINT8}
    assert out.stat().st_size < 0.6 * exported.stat().st_size


def test_the_form_for_gpus_is_signed_around_zero_with_biases_in_float(exported: Path, tmp_path: Path) -> None:
    out = tmp_path / "eight.onnx"
    to_int8(exported, out, (images(seed) for seed in range(3)), activations="symmetric")
    graph = onnx.load(out).graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    pairs = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert {(constants[node.input[2]].dtype, constants[node.input[2]].any()) for node in pairs} == {
        (np.dtype(np.int8), False)
    }
    # A pair stands alone: what is quantised is dequantised at once, and by one node.
    assert [node.op_type for node in pairs].count("QuantizeLinear") == len(pairs) / 2
    quantised = {node.output[0] for node in pairs if node.op_type == "QuantizeLinear"}
    assert quantised == {node.input[0] for node in pairs if node.op_type == "DequantizeLinear"}
    biases = [constants[node.input[2]] for node in graph.node if node.op_type == "Conv" and len(node.input) > 2]
    assert {bias.dtype for bias in biases} == {np.dtype(np.float32)}
    # With initial weights NormProp's sums grow from block to block, and leave most values few of the symmetric steps.
    assert 1e-4 < relative_error(out, exported, 4) < (0.5 if "relu_np" in str(exported) else 0.1)


@pytest.mark.parametrize("exported", ["resnet20_relu_np"], indirect=True)
@pytest.mark.parametrize("activations", ["unsigned", "signed", "symmetric"])
def test_what_a_rectifier_gives_where_it_is_off_has_a_code_of_its_own(
    exported: Path, tmp_path: Path, activations: Activations
) -> None:
    out = tmp_path / "eight.onnx"
    to_int8(exported, out, [images(0)], activations=activations)
    graph = onnx.load(out).graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    quantizers = [n for n in graph.node if n.op_type == "QuantizeLinear"]
    steps = {n.input[0]: (constants[n.input[1]], constants[n.input[2]]) for n in quantizers}
    model = onnx.load(exported)
    rectified = [n.output[0] for n in model.graph.node if n.op_type == "Clip" or n.name.endswith("act2.1")]
    assert len(rectified) == 18
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in rectified)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for name, values in zip(rectified, session.run(rectified, {"input": images(9)}), strict=True):
        scale, zero = steps[name]
        assert np.mean(values == values.min()) > 0.3
        code = values.min() / scale + float(zero)
        if activations == "symmetric":  # steps are twice as coarse, and one may be larger than the value
            assert code == pytest.approx(round(code), abs=1e-3) or abs(code) < 1
        else:
            assert code == pytest.approx(np.iinfo(zero.dtype).min, abs=1e-3)


def test_named_nodes_stay_in_float(exported: Path, tmp_path: Path) -> None:
    out = tmp_path / "eight.onnx"
    to_int8(exported, out, [images(0)], keep_float=["conv1"])
    names = {tensor.name for tensor in onnx.load(out).graph.initializer}
    assert "conv1.weight" in names
    assert "fc.weight_quantized" in names


def test_quantisation_without_images_or_of_unknown_nodes_is_an_error(exported: Path, tmp_path: Path) -> None:
    def none() -> Iterator[np.ndarray]:
        yield from ()

    with pytest.raises(ValueError, match="needs calibration images"):
        to_int8(exported, tmp_path / "eight.onnx", none())
    with pytest.raises(ValueError, match=r"model\.onnx has no node conv7"):
        to_int8(exported, tmp_path / "eight.onnx", [images(0)], keep_float=["conv7"])


def registered(config: pytest.Config) -> list[str]:
    """All networks, or of each kind of block, activation and normalisation one."""
    if config.getoption("--nightly"):
        return timm.list_models(module="crelu_resnet")
    return ["resnet20_relu_bn", "resnet20_crelu_np"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "network" in metafunc.fixturenames:
        metafunc.parametrize("network", registered(metafunc.config))


@pytest.mark.parametrize("form", ["rewritten", "plain"])
def test_files_in_reduced_precision_conform_to_the_onnx_standard(network: str, form: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    size = 32
    graph = to_graph(timm.create_model(network).eval(), size)
    if form == "rewritten":
        apply_rewrites(graph)
    name_after_layers(graph)
    ir.save(graph, tmp_path / "whole.onnx")
    to_float16(tmp_path / "whole.onnx", tmp_path / "half.onnx")
    to_int8(tmp_path / "whole.onnx", tmp_path / "eight.onnx", [images(0, 2)])
    to_int8(tmp_path / "whole.onnx", tmp_path / "gpu.onnx", [images(0, 2)], activations="symmetric")
    for name in ("half", "eight", "gpu"):
        check(tmp_path / f"{name}.onnx")  # by ONNX's own checker, with the types and shapes of all nodes


def test_the_greatest_magnitude_of_each_node_is_told_by_its_layer(exported: Path) -> None:
    found = activation_magnitudes(exported, [images(0), images(1)])
    model = onnx.load(exported)
    output = next(node.output[0] for node in model.graph.node if node.name == "layer2.0.conv1")
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(output))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = [np.abs(session.run([output], {"input": images(seed)})[0]).max() for seed in (0, 1)]
    assert found["layer2.0.conv1"] == pytest.approx(max(values), rel=1e-5)
    assert next(iter(found)) == "conv1"
    assert list(found)[-1] == "fc"


def test_the_difference_of_two_files_is_relative_to_the_second(exported: Path, tmp_path: Path) -> None:
    to_int8(exported, tmp_path / "eight.onnx", [images(0)])
    assert difference(exported, exported, [images(9)]) == 0
    expected = relative_error(tmp_path / "eight.onnx", exported, fused=True)
    assert difference(tmp_path / "eight.onnx", exported, [images(9)]) == pytest.approx(expected, rel=1e-3)
