"""The rewritten graph: what ONNX Runtime makes of it, and that it computes the same."""

import platform
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import timm
import torch
from onnxscript import ir
from torch import Tensor, nn

import models
from suite.export.blocks import BLOCK
from suite.export.exporter import to_graph, to_onnx
from suite.export.nodes import name_after_layers
from suite.export.rewrite import apply_rewrites, difference

# (model, size of an image): each kind of block, rectifier, shortcut and normalisation.
NETWORKS = [
    ("resnet20_relu_bn", 32),
    ("resnet20_crelu_np", 32),
    ("resnet20_relu_np", 32),
    ("resnet20_relu_np all", 32),  # NormProp's constants behind the sums too
    ("resnet20_crelu_np2", 32),
    ("resnet20_w24_crelu_bn", 32),
    ("resnet20_w12_crelu_bn", 32),  # its first stage has fewer channels than a block
    # Large enough for CReLU in halves in the first stage, and only there; then 16, 8 and 4 pixels wide.
    ("resnet34_crelu_nobias", 128),
    ("resnet50_crelu_bn", 96),
    ("resnet50_relu_np", 64),
]


each_network = pytest.mark.parametrize(
    ("name", "size"), [pytest.param(*each, marks=pytest.mark.full if each[1] > 32 else ()) for each in NETWORKS]
)


def randomized(name: str, **arguments: Any) -> nn.Module:
    """A model in which no BatchNorm, gain or bias has its initial value, so that a wrong rewrite shows."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, num_classes=7, **arguments)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.2, 0.6)
                module.bias.uniform_(-0.3, 0.3)
                module.running_mean.normal_(std=0.1)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
            elif isinstance(module, nn.Conv2d) and module.bias is not None:
                module.bias.uniform_(-0.3, 0.3)
            if isinstance(module, models.NormPropConv2d):
                module.gain.uniform_(0.5, 1.0)
    return model.eval()


def serialized(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString()


class Exported:
    """A network's graph as exported and as rewritten, and what was done to it."""

    def __init__(self, module: nn.Module, size: int) -> None:
        self.module = module
        model = to_graph(module, size)
        self.plain = serialized(model)
        self.counts = apply_rewrites(model)
        name_after_layers(model)
        self.rewritten = serialized(model)
        self.graph = onnx.load_from_string(self.rewritten).graph


@pytest.fixture(scope="session")
def exported() -> Callable[[str, int], Exported]:
    made: dict[str, Exported] = {}

    def get(name: str, size: int) -> Exported:
        known, _, constants = name.partition(" ")
        arguments = {"np_constants": constants} if constants else {}
        return made.get(name) or made.setdefault(name, Exported(randomized(known, **arguments), size))

    return get


def run(model: bytes, images: np.ndarray) -> Any:
    return ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"input": images})[0]


def optimized(model: bytes, path: Path) -> Counter[str]:
    """The operators that ONNX Runtime executes."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4  # a warning that such a file is for this machine alone
    ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return Counter(f"{node.domain}:{node.op_type}".lstrip(":") for node in onnx.load(path).graph.node)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="ONNX Runtime's blocked layout needs x86")
@each_network
def test_the_layout_stays_blocked_and_rectifiers_and_sums_are_parts_of_convolutions(
    name: str, size: int, exported: Callable[[str, int], Exported], tmp_path: Path
) -> None:
    network = exported(name, size)
    executed = optimized(network.rewritten, tmp_path / "optimized.onnx")
    convolutions = sum(node.op_type == "Conv" for node in network.graph.node)
    pools = {"com.microsoft.nchwc:MaxPool": 1} if size > 32 else {}
    # Between the halves of a CReLU stands a rectifier, which has a blocked kernel.
    halves = network.counts["convolution of CReLU in halves"]
    rectifiers = {"Relu": halves} if halves else {}
    assert executed == {
        "com.microsoft.nchwc:Conv": convolutions,
        **pools,
        **rectifiers,
        "com.microsoft.nchwc:GlobalAveragePool": 1,
        "com.microsoft.nchwc:ReorderOutput": 1,
        "Reshape": 1,
        "Gemm": 1,
    }


@each_network
def test_the_rewritten_graph_gives_torchs_logits(
    name: str, size: int, exported: Callable[[str, int], Exported]
) -> None:
    network = exported(name, size)
    for batch in (1, 3):
        images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(batch))
        with torch.inference_mode():
            expected = network.module(images).numpy()
        actual = run(network.rewritten, images.numpy())
        assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()
    assert difference(network.plain, network.rewritten, (2, 3, size, size)) <= 1e-5


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("resnet20_relu_bn", 32, {"type-A shortcut as convolution": 2, "mean as pool": 1}),
        (
            "resnet20_crelu_np2",
            32,
            {
                "mean as pool": 1,
                "CReLU beside a column of zeros": 5,  # the second stage is 16 pixels wide
                "CReLU as convolution": 14,
                "order of channels into weights": 12,  # the 7 of 16 channels are one block
            },
        ),
        (
            "resnet20_relu_np",
            32,
            {
                "mean as pool": 1,
                "division into weights": 9,
                "subtraction into bias and clip": 9,  # all that the default reading has, between two convolutions
            },
        ),
        (
            "resnet20_relu_np all",
            32,
            {
                "mean as pool": 1,
                "division into weights": 19,
                "subtraction into bias and clip": 10,
                "subtraction into biases": 1,
                "subtraction as depthwise convolution": 8,
            },
        ),
        (
            "resnet20_w12_crelu_bn",
            32,
            {
                "type-A shortcut as convolution": 2,
                "mean as pool": 1,
                "CReLU beside a column of zeros": 5,
                "CReLU as convolution": 14,
                "order of channels into weights": 6,  # of 48 channels; 12 and 24 are no whole blocks
                "image filled up to a block": 10,  # 7 convolutions and 3 sums of the first stage
            },
        ),
        (
            "resnet34_crelu_nobias",
            128,
            {
                "mean as pool": 1,
                "convolution of CReLU in halves": 7,  # the 6 of the first stage and the first of the second
                "sum of three": 3,
                "CReLU beside a column of zeros": 12,  # the others of the second stage, and of the fourth but the first
                "CReLU as convolution": 14,
                "order of channels into weights": 26,
            },
        ),
        (
            "resnet50_relu_np",
            64,
            {
                "mean as pool": 1,
                "division into weights": 32,
                "subtraction into bias and clip": 32,
            },
        ),
    ],
)
def test_each_rewrite_is_counted(
    name: str, size: int, expected: dict[str, int], exported: Callable[[str, int], Exported]
) -> None:
    assert {rule: count for rule, count in exported(name, size).counts.items() if count} == expected


@pytest.mark.parametrize(("name", "size"), NETWORKS)
def test_nodes_and_weights_are_named_after_their_layers(
    name: str, size: int, exported: Callable[[str, int], Exported]
) -> None:
    network = exported(name, size)
    names = [node.name for node in network.graph.node]
    assert len(set(names)) == len(names)
    layers = {name for name, _ in network.module.named_modules()}
    for node in network.graph.node:
        name = node.name.removesuffix(".2")  # the second half of a convolution of CReLU, and the addition of it
        assert (name if node.op_type in ("Conv", "Gemm") else name.rpartition(".")[0]) in layers
        assert node.op_type not in ("Conv", "Gemm") or node.input[1] == f"{node.name}.weight"
    assert {"conv1", "layer1.0.conv1", "layer1.0.add", "fc"} <= set(names)


def test_a_bound_is_a_scalar_as_its_operator_wants_it(exported: Callable[[str, int], Exported]) -> None:
    graph = exported("resnet20_relu_np", 32).graph
    bounds = {node.input[1] for node in graph.node if node.op_type == "Clip"}
    assert len(bounds) == 9
    assert all(list(tensor.dims) == [] for tensor in graph.initializer if tensor.name in bounds)


def test_the_file_says_nothing_of_the_machine_that_wrote_it(exported: Callable[[str, int], Exported]) -> None:
    assert str(Path(models.__file__).parent).encode() not in exported("resnet20_relu_bn", 32).rewritten


def rewritten(module: nn.Module, channels: int, size: int = 9) -> tuple[bytes, bytes, Counter[str]]:
    """A module's graph before and after, behind a convolution that takes three channels to its own."""
    whole = nn.Sequential(nn.Conv2d(3, channels, 1), module).eval()
    model = to_onnx(whole, torch.randn(2, 3, size, size), ["logits"])
    before = serialized(model)
    apply_rewrites(model)
    return before, serialized(model), Counter(node.op_type for node in model.graph)


@pytest.mark.parametrize("channels", [BLOCK, 3 * BLOCK, 12])
def test_crelu_as_a_convolution_is_exact_in_value_and_order(channels: int) -> None:
    before, after, operators = rewritten(models.CReLU(), channels)
    assert "Neg" not in operators
    assert "Concat" not in operators
    images = np.random.default_rng(0).standard_normal((2, 3, 9, 9), np.float32)
    assert np.array_equal(run(before, images), run(after, images))


@pytest.mark.parametrize(("width", "beside_zeros"), [(7, True), (10, True), (6, False), (8, False)])
def test_a_column_of_zeros_replaces_padding_where_it_spares_single_outputs(width: int, beside_zeros: bool) -> None:
    module = nn.Sequential(models.CReLU(), nn.Conv2d(4 * BLOCK, BLOCK, 3, padding=1))
    before, after, operators = rewritten(module, 2 * BLOCK, width)
    graph = onnx.load_from_string(after).graph
    pads = [list(a.ints) for node in graph.node for a in node.attribute if a.name == "pads"]
    assert ([1, 1, 1, 0] in pads) == ([0, 0, 0, 1] in pads) == beside_zeros
    assert operators == {"Conv": 3, "Relu": 1}
    assert difference(before, after, (2, 3, width, width)) <= 1e-6


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4 * BLOCK, BLOCK, 3, stride=2, padding=1),
        nn.Conv2d(4 * BLOCK, BLOCK, 3),
        nn.Conv2d(4 * BLOCK, BLOCK, 5, padding=2),
        nn.Conv2d(4 * BLOCK, BLOCK, 1),
    ],
)
def test_other_convolutions_keep_their_padding(conv: nn.Conv2d) -> None:
    before, after, _ = rewritten(nn.Sequential(models.CReLU(), conv), 2 * BLOCK, 7)
    attributes = (a for node in onnx.load_from_string(after).graph.node for a in node.attribute)
    assert [1, 1, 1, 0] not in [list(a.ints) for a in attributes]
    assert difference(before, after, (2, 3, 7, 7)) <= 1e-6


def test_a_shortcut_as_a_convolution_is_exact() -> None:
    before, after, operators = rewritten(models.layers.SubsampleAndPad(16, 32, stride=2), 16)
    assert operators == {"Conv": 2}
    images = np.random.default_rng(0).standard_normal((2, 3, 9, 9), np.float32)
    assert np.array_equal(run(before, images), run(after, images))


class Cut(nn.Module):
    """Looks like a type-A shortcut, but is none: it starts at another pixel, or pads other axes."""

    def __init__(self, start: int, pads: tuple[int, ...]) -> None:
        super().__init__()
        self.start, self.pads = start, pads

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x[:, :, self.start :: 2, ::2], self.pads)


@pytest.mark.parametrize(("start", "pads"), [(1, (0, 0, 0, 0, 0, 4)), (0, (0, 1, 0, 0, 0, 4)), (0, (0, 0, 0, 0, 4, 0))])
def test_what_only_resembles_a_shortcut_is_left_alone(start: int, pads: tuple[int, ...]) -> None:
    before, after, operators = rewritten(Cut(start, pads), 4)
    assert operators["Slice"] == 2
    images = np.random.default_rng(0).standard_normal((2, 3, 9, 9), np.float32)
    assert np.array_equal(run(before, images), run(after, images))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(models.CReLU(), nn.Sigmoid()), "no rule moves a constant or an order of channels past Sigmoid"),
        (nn.Sequential(models.CReLU(), nn.MaxPool2d(2)), "no weights are left"),
    ],
)
def test_an_order_of_channels_that_nothing_can_take_is_an_error(module: nn.Module, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        rewritten(module, 2 * BLOCK)
