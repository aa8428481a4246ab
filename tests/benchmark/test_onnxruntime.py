"""ONNX Runtime latency of the tables' models side by side: `tox -e benchmark [-- --full] [-- -k resnet50]`.

Weights are start values, on which latency does not depend. Each group compares the variants of one architecture.
"""

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from suite import env, latency, spec

SHORT = ("resnet110_relu_bn", "resnet110_crelu_bn", "resnet50_relu_bn", "resnet50_crelu_bn", "resnet50_relu_np2")


def cases(full: bool) -> list[Any]:
    """(table, model, side of an image) for each model of Tables 2 to 4, each in the first table that holds it."""
    found: dict[str, Any] = {}
    for number in spec.RUNNABLE:
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


@pytest.mark.parametrize("batch_size", [1, 8])
def test_latency(
    benchmark: Any, exported: Any, provider: str, table: int, model: str, size: int, batch_size: int
) -> None:
    depth = model.split("_")[0].removeprefix("resnet")
    benchmark.group = f"table {table}, ResNet-{depth}, {provider}, batch {batch_size}, {size}x{size}"
    threads = env.available_cores()
    session = latency.open_session(str(exported(model, size)), provider, threads)
    device = "cpu" if provider == "cpu" else "cuda"
    images = np.random.default_rng(0).standard_normal((batch_size, 3, size, size), np.float32)
    binding = session.io_binding()
    binding.bind_ortvalue_input("input", ort.OrtValue.ortvalue_from_numpy(images, device, 0))
    binding.bind_output("logits", device)

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    benchmark.extra_info.update(provider=provider, batch_size=batch_size, threads=threads, model=model)
    benchmark.pedantic(run, rounds=20 if size < 100 else 8, warmup_rounds=2)
    assert np.isfinite(binding.copy_outputs_to_cpu()[0]).all()
