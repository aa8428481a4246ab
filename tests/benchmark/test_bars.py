"""What the rewrites gain and keep, what CReLU costs, and how far the harness can be trusted: ratios, most of latencies
in turns.

ONNX Runtime's CPU provider, two threads, one image; each network in a process of its own.
"""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from suite import latency
from suite.export import load_weights
from suite.session import open_session

PROTOCOL = latency.Protocol(rounds=12, min_seconds=0.25, min_runs=4, max_runs=200, warmup=3)


def pairs(first: Path, second: Path, size: int) -> list[tuple[float, float]]:
    """Median seconds of the two files, round by round."""
    requests = [latency.Request("onnxruntime", str(file), "cpu", 1, size, 2, PROTOCOL) for file in (first, second)]
    rounds = []
    for answer in latency.measure(requests):
        if isinstance(answer, RuntimeError):
            raise answer
        rounds.append([statistics.median(burst) for burst in answer["rounds"]])
    return list(zip(*rounds, strict=True))


@pytest.mark.parametrize(
    ("model", "size", "most"),
    [
        ("resnet50_crelu_bn", 224, 0.95),
        ("resnet34_crelu_bn", 224, 0.95),
        ("resnet110_crelu_bn", 32, 0.86),
        ("resnet110_relu_bn", 32, 0.88),
    ],
)
def test_the_deployed_graph_against_the_default_export(
    model: str, size: int, most: float, files: Any, ratio: Callable[..., None]
) -> None:
    found = pairs(files.exported(model, size), files.default(model, size), size)
    ratio(f"{model}, {size}x{size}: latency over that of the default export", found, most=most)


@pytest.mark.parametrize(("depth", "most"), [(50, 1.72), (34, 2.0)])
def test_crelu_against_relu(depth: int, most: float, files: Any, ratio: Callable[..., None]) -> None:
    found = pairs(*(files.exported(f"resnet{depth}_{act}_bn", 224) for act in ("crelu", "relu")), 224)
    ratio(f"ResNet-{depth}, 224x224: latency of CReLU over ReLU", found, most=most)


@pytest.mark.parametrize("norm", ["plain", "np2", "np3"])
def test_no_normalisation_costs_anything_once_deployed(norm: str, files: Any, ratio: Callable[..., None]) -> None:
    found = pairs(*(files.exported(f"resnet50_relu_{each}", 224) for each in (norm, "bn")), 224)
    ratio(f"resnet50_relu_{norm}, 224x224: latency over resnet50_relu_bn", found, least=0.97, most=1.03)


@pytest.mark.parametrize(("model", "most"), [("resnet50_relu_bn", 0.38), ("resnet50_crelu_bn", 0.42)])
def test_int8_against_float32(model: str, most: float, files: Any, ratio: Callable[..., None]) -> None:
    found = pairs(files.exported(model, 224, "int8"), files.exported(model, 224), 224)
    ratio(f"{model}, 224x224: latency of int8 over float32", found, most=most)


def test_the_deployed_graph_gives_torchs_logits(registered: str, files: Any, ratio: Callable[..., None]) -> None:
    size = timm.get_pretrained_cfg(registered).input_size[-1]
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = load_weights(files.weights(registered))(images).numpy()
    session = open_session(str(files.exported(registered, size)), "cpu", 2)
    (actual,) = session.run(["logits"], {"input": images.numpy()})
    greatest = (float(np.abs(actual - expected).max()), float(np.abs(expected).max()))
    ratio(f"{registered}, {size}x{size}: greatest difference of logits over the greatest logit", [greatest], most=1e-4)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    full = metafunc.config.getoption("--full", default=False)
    if "repetition" in metafunc.fixturenames:
        metafunc.parametrize("repetition", range(20 if full else 5))
    if "registered" in metafunc.fixturenames:
        few = ["resnet110_crelu_np", "resnet50_crelu_bn"]
        metafunc.parametrize("registered", timm.list_models(module="crelu_resnet") if full else few)


def test_the_same_file_against_itself(repetition: int, files: Any, ratio: Callable[..., None]) -> None:
    file = files.exported("resnet20_relu_bn", 32)
    ratio(f"the same file twice, repetition {repetition + 1}", pairs(file, file, 32), least=0.97, most=1.03)
