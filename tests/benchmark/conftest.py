"""Options of the benchmarks, and what they write beside their figures."""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from suite import env


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="every model of Tables 2 to 4 instead of a telling few")


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["suite"] = env.environment()


RATIOS = pytest.StashKey[list[str]]()


@pytest.fixture
def ratio(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Report the median ratio of interleaved pairs (first over second) with its range, and the bar it is meant to pass.

    A figure below its bar is printed as such and fails nothing: it is a measurement of this machine, not a test.
    """
    if request.config.getoption("benchmark_skip"):
        pytest.skip("a benchmark")

    def report(
        name: str, pairs: list[tuple[float, float]], least: float | None = None, most: float | None = None
    ) -> None:
        ratios = [first / second for first, second in pairs]
        median = statistics.median(ratios)
        missed = (least is not None and median < least) or (most is not None and median > most)
        bar = f"at least {least}" if least is not None else f"at most {most}"
        line = f"{name}: {median:.3g} ({min(ratios):.3g} to {max(ratios):.3g}); bar: {bar}"
        request.config.stash.setdefault(RATIOS, []).append(f"{line}, {'MISSED' if missed else 'met'}")

    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash.get(RATIOS, [])
    if lines:
        terminalreporter.section("ratios: median (range) of interleaved pairs")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Export a model with its start values, once a session; returns the file."""
    import timm
    import torch
    from timm.models import save_for_hf

    import models  # noqa: F401 - registers the networks with timm
    from suite.export import export

    made: dict[str, Path] = {}

    def file(model: str, size: int) -> Path:
        if model not in made:
            folder = tmp_path_factory.mktemp(model)
            torch.manual_seed(0)
            save_for_hf(timm.create_model(model), str(folder), safe_serialization=True)
            export(folder, size, folder / "model.onnx", {"model": model})
            made[model] = folder / "model.onnx"
        return made[model]

    return file
