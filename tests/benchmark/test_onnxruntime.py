"""ONNX Runtime latency of the tables' models side by side: `tox -e benchmark [-- --full] [-- -k resnet50]`.

Weights are initial weights, on which latency does not depend. Each group compares the variants of one architecture.
"""

import hashlib
import statistics
from typing import Any

import pytest

from suite import env
from suite.inference import latency
from suite.registry import why_unsupported
from suite.results.samples import percentiles, to_seconds
from suite.tables import spec

PROTOCOL = latency.Protocol(rounds=8, min_seconds=0.2, min_runs=2, max_runs=100, warmup=2)
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
    full = bool(metafunc.config.getoption("--full", default=False))
    metafunc.parametrize("batch_size", [1, 8] if full else [1])
    metafunc.parametrize(("table", "model", "size"), cases(full))


@pytest.fixture(scope="session", params=["cpu", "cuda", "tensorrt"])
def provider(request: pytest.FixtureRequest) -> str:
    reason = latency.why_unavailable(request.param)
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


def group_of(table: int, model: str, size: int, provider: str, batch_size: int, form: str) -> str:
    """The variants of one architecture under the same conditions, which are timed in turns and shown together."""
    depth = model.split("_")[0].removeprefix("resnet")
    return f"table {table}, ResNet-{depth}, {provider}, batch {batch_size}, {form}, {size}x{size}"


@pytest.fixture(scope="session")
def measured() -> dict[str, dict[str, Any]]:
    """What `suite.inference.latency.measure` has answered, by group and model."""
    return {}


@pytest.mark.parametrize("form", ["fp32", "int8", "fp16"])
def test_latency(
    benchmark: Any,
    files: Any,
    measured: dict[str, dict[str, Any]],
    request: pytest.FixtureRequest,
    provider: str,
    table: int,
    model: str,
    size: int,
    batch_size: int,
    form: str,
) -> None:
    group = benchmark.group = group_of(table, model, size, provider, batch_size, form)
    if benchmark.disabled:
        pytest.skip("a benchmark")
    if form == "fp16" and provider == "cpu":
        pytest.skip("float16 is for GPUs: ONNX Runtime's CPU provider computes it in float32")
    if reason := why_unsupported(provider, form):
        pytest.skip(reason)
    threads = env.available_cores()
    if group not in measured:
        selected = [item.callspec.params for item in request.session.items if item.name.startswith("test_latency[")]
        names = [params["model"] for params in selected if group_of(**params) == group]
        paths = [str(files.exported(name, size, form, provider)) for name in names]
        requests = [
            latency.Request("onnxruntime", path, provider, batch_size, size, threads, PROTOCOL) for path in paths
        ]
        measured[group] = dict(zip(names, latency.measure(requests), strict=True))
    answer = measured[group][model]
    if isinstance(answer, RuntimeError):
        raise answer
    found = to_seconds(answer)
    samples = list(found.samples)
    benchmark.extra_info.update(
        provider=provider,
        batch_size=batch_size,
        form=form,
        threads=threads,
        model=model,
        file_sha256=hashlib.sha256(files.exported(model, size, form, provider).read_bytes()).hexdigest(),
        nodes=answer.nodes,
        percentiles=percentiles(samples),
        rounds=list(found.rounds),
        load_seconds=found.load_seconds,
        first_run_seconds=found.first_run_seconds,
    )
    benchmark._timer = Replay(samples)
    benchmark.pedantic(lambda: None, rounds=len(samples))
    assert benchmark.stats.stats.median == pytest.approx(statistics.median(samples))
