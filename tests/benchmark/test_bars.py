"""What the rewrites gain and keep, what CReLU costs, and how far the harness can be trusted: ratios, most of latencies
in turns.

ONNX Runtime's CPU provider, two threads, one image; each network in a process of its own.
"""

import contextlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from suite.export.exporter import load_weights
from suite.inference import latency
from suite.results.samples import interval, to_seconds
from suite.session import open_session

# Loads one core for about half of the time.
DISTURBANCE = """
import random, time
while True:
    end = time.perf_counter() + random.expovariate(1 / 0.7)
    while time.perf_counter() < end:
        pass
    time.sleep(random.expovariate(1 / 0.7))
"""


MORE = pytest.mark.more
Pairs = Callable[[Path, Path, int], list[tuple[float, float]]]


@pytest.fixture
def pairs(request: pytest.FixtureRequest) -> Pairs:
    """Median seconds of two files, burst by burst in turns."""
    processes = latency.PROCESSES[request.config.getoption("--full")]

    def measure(first: Path, second: Path, size: int) -> list[tuple[float, float]]:
        one, other = (
            latency.Request("onnxruntime", str(file), "cpu", 1, size, 2, latency.PAIRED) for file in (first, second)
        )
        return latency.time_pairs(one, other, processes)

    return measure


@pytest.mark.parametrize(
    ("model", "size", "most"),
    [
        ("resnet50_crelu_bn", 224, 0.95),
        pytest.param("resnet34_crelu_bn", 224, 0.95, marks=MORE),
        ("resnet110_crelu_bn", 32, 0.86),
        ("resnet110_relu_bn", 32, 0.88),
    ],
)
def test_the_deployed_graph_is_faster_than_the_default_export(
    model: str, size: int, most: float, files: Any, pairs: Pairs, ratio: Callable[..., None]
) -> None:
    found = pairs(files.exported(model, size), files.default(model, size), size)
    ratio(f"{model}, {size}x{size}: latency over that of the default export", found, most=most)


@pytest.mark.parametrize(("depth", "most"), [(50, 1.72), pytest.param(34, 2.0, marks=MORE)])
def test_crelu_takes_at_most_twice_as_long_as_relu(
    depth: int, most: float, files: Any, pairs: Pairs, ratio: Callable[..., None]
) -> None:
    found = pairs(*(files.exported(f"resnet{depth}_{act}_bn", 224) for act in ("crelu", "relu")), 224)
    ratio(f"ResNet-{depth}, 224x224: latency of CReLU over ReLU", found, most=most)


@pytest.mark.parametrize("norm", ["np2", pytest.param("plain", marks=MORE), pytest.param("np3", marks=MORE)])
def test_no_normalisation_costs_anything_once_deployed(
    norm: str, files: Any, pairs: Pairs, ratio: Callable[..., None]
) -> None:
    found = pairs(*(files.exported(f"resnet50_relu_{each}", 224) for each in (norm, "bn")), 224)
    ratio(f"resnet50_relu_{norm}, 224x224: latency over resnet50_relu_bn", found, least=0.97, most=1.03)


@pytest.mark.parametrize(("model", "most"), [("resnet50_relu_bn", 0.38), ("resnet50_crelu_bn", 0.42)])
def test_int8_takes_less_than_half_as_long_as_float32(
    model: str, most: float, files: Any, pairs: Pairs, ratio: Callable[..., None]
) -> None:
    found = pairs(files.exported(model, 224, "int8"), files.exported(model, 224), 224)
    ratio(f"{model}, 224x224: latency of int8 over float32", found, most=most)


@pytest.mark.parametrize(("form", "most"), [("fp32", 1.1), ("fp16", 0.85)])
def test_crelu_stays_within_its_time_on_the_cuda_provider(
    form: str, most: float, files: Any, bar: Callable[..., None]
) -> None:
    """One image, from and to the GPU's memory; in float32 with TF32."""
    if reason := latency.why_unavailable("cuda"):
        pytest.skip(f"cuda is not available here: {reason}")
    file = files.exported("resnet50_crelu_bn", 224, form, "cuda")
    request = latency.Request("onnxruntime", str(file), "cuda", 1, 224, 1, latency.QUICK)
    (answer,) = latency.measure([request])
    assert not isinstance(answer, RuntimeError), answer
    milliseconds = 1e3 * to_seconds(answer).median
    words = f"{milliseconds:.3f} ms; bar for an H100 or H200: at most {most} ms"
    bar(f"resnet50_crelu_bn, cuda, {form}, batch 1", words, milliseconds <= most, milliseconds=milliseconds)


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
    if "registered" in metafunc.fixturenames:
        few = ["resnet110_crelu_np", "resnet50_crelu_bn"]
        full = metafunc.config.getoption("--full", default=False)
        metafunc.parametrize("registered", timm.list_models(module="crelu_resnet") if full else few)


@pytest.mark.parametrize("disturbed", [False, True], ids=["quiet", "disturbed"])
def test_a_file_is_as_fast_as_itself(
    disturbed: bool, files: Any, pairs: Pairs, bar: Callable[..., None], request: pytest.FixtureRequest
) -> None:
    file, repetitions = files.exported("resnet20_relu_bn", 32), 20 if request.config.getoption("--full") else 1
    with contextlib.ExitStack() as stack:
        if disturbed:
            stack.callback(stack.enter_context(subprocess.Popen([sys.executable, "-c", DISTURBANCE])).kill)
        found = [interval([a / b for a, b in pairs(file, file, 32)])[0] for _ in range(repetitions)]
    within = sum(abs(ratio - 1) <= 0.03 for ratio in found)
    words = f"{within} of {repetitions} repetitions within 3 %, {min(found):.3g} to {max(found):.3g}; bar: 19 of 20"
    what = "while another process loads a core half of the time" if disturbed else "on a quiet machine"
    bar(f"the same file twice, {what}", words, within >= 0.95 * repetitions, ratios=found)
