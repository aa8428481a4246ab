"""Images of few channels, filled up to a block."""

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnxscript import ir
from torch import Tensor, nn

from suite.export.blocks import BLOCK, fill_channel_blocks
from suite.export.exporter import to_onnx

FEW = 5


class Sum(nn.Module):
    """An identity path beside a depthwise convolution with a bias, as a deployed NormProp block has one."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Conv2d(FEW, FEW, 1, groups=FEW)

    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(self.shift(x) + x, min=-3.0)


def filled(*modules: nn.Module) -> tuple[int, bool, list[list[int]]]:
    """How many images were filled, whether the result is the same, and the weights' shapes after it.

    Weights and images are whole numbers, of which sums are exact in whatever order ONNX Runtime makes them.
    """
    torch.manual_seed(0)
    network = nn.Sequential(*modules).eval()
    for parameter in network.parameters():
        parameter.data.random_(-3, 4)
    channels = next(each.in_channels for each in modules if isinstance(each, nn.Conv2d))
    model = to_onnx(network, torch.randn(2, channels, 9, 9), ["logits"])
    before = ir.to_proto(model).SerializeToString()
    count = fill_channel_blocks(model.graph)
    ir.passes.common.RemoveUnusedNodesPass()(model)
    proto = ir.to_proto(model)
    images = np.random.default_rng(0).integers(-3, 4, (2, 3, 9, 9)).astype(np.float32)
    results = [
        ort.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(None, {"input": images})[0]
        for graph in (before, proto.SerializeToString())
    ]
    shapes = [list(weight.dims) for weight in proto.graph.initializer if len(weight.dims) == 4]
    return count, np.array_equal(*results), sorted(shapes)


def test_filters_and_weights_of_zero_fill_a_block_and_change_no_result() -> None:
    count, same, shapes = filled(nn.Conv2d(3, FEW, 3), nn.ReLU(), Sum(), nn.MaxPool2d(2), nn.Conv2d(FEW, 20, 1))
    assert count == 6  # of the convolution, its rectifier, the depthwise convolution, the sum, its bound and the pool
    assert same
    assert shapes == sorted([[BLOCK, 3, 3, 3], [BLOCK, 1, 1, 1], [20, BLOCK, 1, 1]])


@pytest.mark.parametrize(
    "modules",
    [
        [nn.Conv2d(3, BLOCK, 3), nn.ReLU(), nn.Conv2d(BLOCK, 20, 3)],  # nothing to fill
        [nn.Conv2d(3, FEW, 3)],  # what the graph gives out
        [nn.Conv2d(3, FEW, 3), nn.Sigmoid(), nn.Conv2d(FEW, 20, 1)],  # an operator that would give out no zeros
        [nn.Conv2d(3, FEW, 3), nn.Flatten(), nn.Linear(FEW * 49, 20)],  # one to which channels mean something else
        [nn.Conv2d(3, 6, 3), nn.Conv2d(6, 20, 1, groups=2)],  # a convolution whose groups would be others
        [nn.Conv2d(3, 6, 1, groups=3), nn.Conv2d(6, 20, 1)],
    ],
)
def test_any_other_graph_stays_as_it_is(modules: list[nn.Module]) -> None:
    before = sorted(list(module.weight.shape) for module in modules if isinstance(module, nn.Conv2d))
    assert filled(*modules) == (0, True, before)
