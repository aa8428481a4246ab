"""ONNX Runtime latency of the tables' models side by side: `tox -e benchmark [-- --full] [-- -k resnet50]`.

Weights are start values, on which latency does not depend. Each group compares the variants of one architecture.
"""

import hashlib
import statistics
from typing import Any

import pytest

from suite import env, latency, spec

SHORT = ("resnet110_relu_bn", "resnet110_crelu_bn", "resnet50_relu_bn", "resnet50_crelu_bn", "resnet50_relu_np2")


def cases(full: bool) -> list[Any]:
    """(table, model, side of an image) for each model of Tables 2 to 4, each in the first table that holds it."""
    found: dict[str, Any] = {}
    for number in spec.DEPLOYED:
        table = spec.load_table(number)
        for row in table.rows:
            if full or row.model in SHORT:
                found.setdefault(row.model, pytest.param(number, row.model, table.recipe.test_size, id=row.model))
    return list(found.values())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    full = metafunc.config.getoption("--full", default=False)
    metafunc.parametrize(("table", "model", "size"), cases(bool(full)))


@pytest.fixture(scope="session", params=["cpu", "cuda", "tensorrt"])
def provider(request: pytest.FixtureRequest) -> str:
    reason = latency.unavailable(request.param)
    if reason:
        pytest.skip(f"{request.param} is not available here: {reason}")
    return str(request.param)


class Replay:
    """A clock that lets pytest-benchmark keep and compare what was measured in another process."""

    def __init__(self, samples: list[float]) -> None:
        self.samples = samples
        self.calls = 0

    def __call__(self) -> float:
        """0, first sample, 0, second sample, and so on."""
        self.calls += 1
        return self.samples[self.calls // 2 - 1] if self.calls % 2 == 0 else 0.0


@pytest.mark.parametrize("form", ["fp32", "int8", "fp16"])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_latency(
    benchmark: Any, files: Any, provider: str, table: int, model: str, size: int, batch_size: int, form: str
) -> None:
    depth = model.split("_")[0].removeprefix("resnet")
    benchmark.group = f"table {table}, ResNet-{depth}, {provider}, batch {batch_size}, {form}, {size}x{size}"
    if benchmark.disabled:
        pytest.skip("a benchmark")
    if form == "fp16" and provider == "cpu":
        pytest.skip("float16 is for GPUs: ONNX Runtime's CPU provider computes it in float32")
    file, threads = files.exported(model, size, form), env.available_cores()
    protocol = latency.Protocol(rounds=8, min_seconds=0.15, min_runs=2, max_runs=100, warmup=2)
    request = latency.Request("onnxruntime", str(file), provider, batch_size, size, threads, protocol)
    (answer,) = latency.measure([request])
    if isinstance(answer, RuntimeError):
        raise answer
    samples = answer["samples"]
    benchmark.extra_info.update(
        provider=provider,
        batch_size=batch_size,
        form=form,
        threads=threads,
        model=model,
        file_sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        nodes=answer["nodes"],
        percentiles=latency.percentiles(samples),
        rounds=[len(burst) for burst in answer["rounds"]],
    )
    benchmark._timer = Replay(samples)
    benchmark.pedantic(lambda: None, rounds=len(samples))
    assert benchmark.stats.stats.median == pytest.approx(statistics.median(samples))
