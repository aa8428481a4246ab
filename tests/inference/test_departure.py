"""The first node at which a file departs from its network, whatever form the file has and whatever is at fault."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import timm
import torch
from onnx import helper, numpy_helper
from onnxscript import ir
from torch import nn

import models  # noqa: F401 - registers the networks with timm
from suite import session
from suite.export import exporter as export
from suite.export.exporter import to_graph
from suite.export.nodes import name_after_layers
from suite.export.precision import Activations, to_int8
from suite.export.rewrite import apply_rewrites
from suite.inference import departure, nodewise
from suite.inference.departure import first_departure

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Network:
    """A network and its two files. `exported` stands for a fresh export, which takes seconds."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        # CReLU, NormProp's constants and type-A shortcuts: everything that rewriting changes.
        self.model = timm.create_model("resnet20_crelu_np", num_classes=7).eval()
        self.exported = ir.to_proto(to_graph(self.model, 32))
        self.files = {form: folder / f"{form}.onnx" for form in ("plain", "rewritten")}
        for form, path in self.files.items():
            graph = ir.from_proto(self.exported)
            if form == "rewritten":
                apply_rewrites(graph)
            name_after_layers(graph)
            ir.save(graph, path)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    return Network(tmp_path_factory.mktemp("network"))


@pytest.fixture
def quick(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(departure, "to_graph", lambda model, size: ir.from_proto(network.exported))


def damage(model: onnx.ModelProto, weight: str) -> None:
    """Change one value of one weight a little."""
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == weight)
    array = numpy_helper.to_array(tensor).copy()
    array.flat[array.size // 2] += 0.05
    tensor.CopyFrom(numpy_helper.from_array(array, weight))


def damaged(path: Path, weight: str, out: Path) -> Path:
    model = onnx.load(path)
    damage(model, weight)
    onnx.save(model, out)
    return out


@pytest.mark.parametrize("form", ["plain", "rewritten"])
def test_an_undamaged_file_departs_nowhere(form: str, network: Network) -> None:
    assert first_departure(network.model, network.files[form], IMAGES) is None


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("form", "layer"),
    [
        ("plain", "conv1"),
        ("plain", "layer2.0.conv2"),
        ("plain", "fc"),
        ("rewritten", "layer1.1.conv1"),
        ("rewritten", "layer2.0.shortcut"),  # beside it are nodes that come later and are right
        ("rewritten", "layer3.2.conv2"),
    ],
)
def test_the_layer_whose_weights_are_damaged_is_named(form: str, layer: str, network: Network, tmp_path: Path) -> None:
    path = damaged(network.files[form], f"{layer}.weight", tmp_path / "damaged.onnx")
    found = first_departure(network.model, path, IMAGES)
    assert found is not None
    assert (found.comparison, found.node, found.layer) == ("file", layer, layer)
    assert found.operator == ("Gemm" if layer == "fc" else "Conv")
    assert found.difference == pytest.approx(abs(found.expected - found.actual), rel=1e-3)
    assert 1e-5 * found.scale < found.difference
    assert len(found.position) == (2 if layer == "fc" else 4)


@pytest.mark.usefixtures("quick")
def test_a_constant_that_is_no_weight_is_named_by_its_module(network: Network, tmp_path: Path) -> None:
    model = onnx.load(network.files["plain"])
    node = next(node for node in model.graph.node if node.op_type == "Div")
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "wrong"))
    node.input[1] = "wrong"
    onnx.save(model, tmp_path / "damaged.onnx")
    found = first_departure(network.model, tmp_path / "damaged.onnx", IMAGES)
    assert found is not None
    assert (found.node, found.operator) == (node.name, "Div")
    assert node.name.startswith(found.layer + ".")
    assert found.layer in dict(network.model.named_modules())


@pytest.mark.usefixtures("quick")
def test_a_value_that_is_not_finite_departs(network: Network, tmp_path: Path) -> None:
    model = onnx.load(network.files["plain"])
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "layer1.0.conv1.weight")
    tensor.CopyFrom(numpy_helper.from_array(np.full(tensor.dims, np.nan, np.float32), tensor.name))
    onnx.save(model, tmp_path / "damaged.onnx")
    found = first_departure(network.model, tmp_path / "damaged.onnx", IMAGES)
    assert found is not None
    assert (found.layer, found.difference, found.actual) == ("layer1.0.conv1", None, None)
    assert found.expected is not None


def test_a_fault_of_folding_is_named_although_a_fresh_export_repeats_it(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    fold = export.fold

    def spoil(model: nn.Module) -> nn.Module:
        folded = fold(model)
        with torch.no_grad():
            folded.get_submodule("layer2.1.conv1").bias.add_(0.1)  # type: ignore[operator, union-attr]
        return folded

    monkeypatch.setattr(export, "fold", spoil)
    found = first_departure(network.model, network.files["rewritten"], IMAGES)
    assert found is not None
    assert (found.comparison, found.layer) == ("export", "layer2.1.conv1")


@pytest.mark.usefixtures("quick")
def test_a_fault_of_the_runtimes_optimisations_is_named(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_faulty(source: bytes, provider: str, threads: int, configure: Callable[[Any], None]) -> Any:
        options = ort.SessionOptions()
        configure(options)
        if options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_ALL:
            model = onnx.load_from_string(source)
            damage(model, "layer1.2.conv2.weight")
            source = model.SerializeToString()
        return session.open_session(source, provider, threads, configure=configure)

    monkeypatch.setattr(nodewise, "open_session", open_faulty)
    found = first_departure(network.model, network.files["rewritten"], IMAGES)
    assert found is not None
    assert (found.comparison, found.layer) == ("runtime", "layer1.2.conv2")


@pytest.mark.usefixtures("quick")
def test_a_file_of_another_network_is_refused(network: Network, tmp_path: Path) -> None:
    shutil.copy(network.files["plain"], tmp_path / "other.onnx")
    model = onnx.load(tmp_path / "other.onnx")
    for index, node in enumerate(model.graph.node):
        node.name = f"node{index}"
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(RuntimeError, match=r"other\.onnx has no node in common"):
        first_departure(network.model, tmp_path / "other.onnx", IMAGES)


@pytest.mark.parametrize("kind", ["unsigned", "symmetric"])
def test_a_rectifier_that_a_quantiser_left_out_is_compared_behind_the_eight_bits(
    kind: Activations, tmp_path: Path, suite: Callable[..., tuple[int, str, str]]
) -> None:
    whole, fewer, wrong = (tmp_path / f"{name}.onnx" for name in ("whole", "fewer", "wrong"))
    random = np.random.default_rng(0)
    shapes = {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "w3": (8, 10)}
    held = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["c1"], name="conv1", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"], name="act1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="conv2", pads=[1] * 4),
        helper.make_node("Add", ["c2", "r1"], ["sum"], name="add"),
        helper.make_node("Relu", ["sum"], ["r2"], name="act2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "w3"], ["logits"], name="fc"),
    ]
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", *sides])
        for name, sides in (("input", (3, 8, 8)), ("logits", (10,)))
    ]
    constants = [numpy_helper.from_array(array, name) for name, array in held.items()]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), whole)
    images = random.standard_normal((4, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "images.npz", input=images)
    to_int8(whole, fewer, [images], activations=kind, normprop=False)
    rectifiers = [node for node in onnx.load(fewer).graph.node if node.op_type == "Relu"]
    assert len(rectifiers) == (0 if kind == "unsigned" else 2)

    def departs(a: Path, b: Path, tolerance: float) -> str:
        ask = ("--data", str(tmp_path / "images.npz"), "--tolerance", str(tolerance))
        _, out, err = suite("parity", str(b), "--against", str(a), *ask)
        assert "cannot be looked for" not in err
        return next((line for line in out.splitlines() if line.startswith("departs first")), "")

    for a, b in ((whole, fewer), (fewer, whole)):
        assert departs(a, b, 0.03) == ""  # eight bits are not further off than this anywhere
        found = nodewise.first_difference_of_files(a, b, {"input": images}, 0.03)
        assert found is None
        found = nodewise.first_difference_of_files(a, b, {"input": images}, 1e-6)
        assert found is not None
        first = ("act1", "Relu", "r1") if kind == "unsigned" else ("conv1", "Conv", "c1")
        assert (found["node"], found["operator"], found["tensor"]) == first
        assert kind == "symmetric" or (found["quantised"] and min(found["expected"], found["actual"]) >= 0)
    model = onnx.load(fewer)
    damaged = {"unsigned": "w2_scale", "symmetric": "w2"}[kind]  # which is quantised when the file is made, or run
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == damaged)
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) / np.float32(2), weights.name))
    onnx.save(model, wrong)
    for a, b in ((whole, wrong), (wrong, whole)):
        said = departs(a, b, 0.03)
        assert said.startswith("departs first  at node conv2 (Conv): expected "), said
