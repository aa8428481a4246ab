"""The command `time` against a stopwatch: how long it takes to its answer, and how far its figures are from those of a
loop that someone writes by hand, and from each other's for one file."""

import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from suite import env

# What someone writes who is careful: a session with explicit threads, a warm-up, inputs that are there before, and the
# median of as many runs as fit two seconds.
LOOP = """
import statistics, sys, time
import numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads, options.inter_op_num_threads = int(sys.argv[2]), 1
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
(taken,) = session.get_inputs()
shape = [side if isinstance(side, int) else 1 for side in taken.shape]
feed = {taken.name: np.random.default_rng(0).standard_normal(shape, np.float32)}
for _ in range(5):
    session.run(None, feed)
seconds, end = [], time.perf_counter() + 2
while time.perf_counter() < end:
    start = time.perf_counter()
    session.run(None, feed)
    seconds.append(time.perf_counter() - start)
print(statistics.median(seconds), np.quantile(seconds, 0.1))
"""


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MobileNetV2 as PyTorch's exporter writes it when it is asked for nothing, its weights in a file beside it."""
    torchvision = pytest.importorskip("torchvision")
    path: Path = tmp_path_factory.mktemp("mobilenet") / "mobilenet_v2.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = torchvision.models.mobilenet_v2().eval()
        torch.onnx.export(network, (torch.randn(1, 3, 224, 224),), path, verbose=False)
    assert path.with_suffix(".onnx.data").is_file()
    return path


def timed(*names: Path) -> list[dict[str, Any]]:
    """Rows of the command, which is asked for nothing but JSON."""
    command = [sys.executable, "-m", "suite", "time", *map(str, names), "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows: list[dict[str, Any]] = json.loads(done.stdout)["rows"]
    return rows


def test_a_file_is_timed_within_15_seconds(mobilenet: Path, bar: Callable[..., None]) -> None:
    start = time.perf_counter()
    (row,) = timed(mobilenet)
    seconds = time.perf_counter() - start
    words = f"{seconds:.1f} s, {sum(map(len, row['rounds_ns']))} runs; bar: at most 15 s"
    bar("MobileNetV2 of torchvision: from the command to its answer", words, seconds <= 15, seconds=seconds)


def test_a_file_named_twice_is_as_fast_as_itself(mobilenet: Path, bar: Callable[..., None]) -> None:
    _, second = timed(mobilenet, mobilenet)
    found = second["ratio"]
    words = f"{found:.3f} (95 %: {second['ratio_interval']}); bar: 0.97 to 1.03"
    bar("MobileNetV2 twice in one call of `time`", words, abs(found - 1) <= 0.03, ratio=found)


@pytest.mark.parametrize(
    "name",
    [
        "mobilenet_v2",
        pytest.param("resnet20_crelu_bn", marks=pytest.mark.more),
        pytest.param("resnet50_relu_bn", marks=pytest.mark.more),
    ],
)
def test_time_agrees_with_a_loop_written_by_hand(
    name: str, mobilenet: Path, files: Any, ratio: Callable[..., None], request: pytest.FixtureRequest
) -> None:
    file = mobilenet if name == "mobilenet_v2" else files.exported(name, 32 if "20" in name else 224)
    threads = str(env.available_cores())
    medians, fastest = [], []
    for number in range(12 if request.config.getoption("--full") else 4):
        loop = [sys.executable, "-c", LOOP, str(file), threads]
        if turned := number % 2 == 1:
            done = subprocess.run(loop, capture_output=True, text=True, check=True)
        (row,) = timed(file)
        if not turned:
            done = subprocess.run(loop, capture_output=True, text=True, check=True)
        median, tenth = map(float, done.stdout.split())
        medians.append((row["median_ms"] / 1e3, median))
        runs = sorted(run / 1e9 for each in row["rounds_ns"] for run in each)
        fastest.append((runs[len(runs) // 10], tenth))
    ratio(f"{name}: `time`'s median over that of a loop written by hand", medians, least=0.95, most=1.05)
    # Where a machine has two speeds that last for seconds, the medians compare its moods. Fast runs do not.
    ratio(f"{name}: the same of the 10th percentile", fastest, least=0.95, most=1.05)
