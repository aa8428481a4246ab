"""Options of the benchmarks, and what they write beside their figures."""

import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf

import models  # noqa: F401 - registers the networks with timm
from suite import deploy, env
from suite.export import load_weights


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
        bar = " and ".join(
            f"at {side} {value}" for side, value in (("least", least), ("most", most)) if value is not None
        )
        line = f"{name}: {median:.3g} ({min(ratios):.3g} to {max(ratios):.3g}); bar: {bar}"
        request.config.stash.setdefault(RATIOS, []).append(f"{line}, {'MISSED' if missed else 'met'}")

    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash.get(RATIOS, [])
    if lines:
        terminalreporter.section("ratios: median (range) of interleaved pairs")
        for line in lines:
            terminalreporter.write_line(line)


@dataclass(frozen=True)
class Files:
    """The ONNX files of networks with their start values, on which latency does not depend; each made once."""

    root: Path

    def weights(self, model: str) -> Path:
        """Folder in timm's local layout."""
        folder = self.root / model
        if not folder.exists():
            folder.mkdir()
            torch.manual_seed(0)
            save_for_hf(timm.create_model(model), str(folder), safe_serialization=True)
        return folder

    def exported(self, model: str, size: int, form: str = "fp32") -> Path:
        """As the suite deploys it on the CPU provider."""
        file = self.weights(model) / f"{form}-{size}.onnx"
        if not file.exists():
            with deploy.source(str(self.weights(model)), size) as of:
                deploy.export(of, file, form, "cpu", False, {})
        return file

    def default(self, model: str, size: int) -> Path:
        """As PyTorch's own exporter writes it when it is asked for nothing else."""
        file = self.weights(model) / f"default-{size}.onnx"
        if not file.exists():
            network = load_weights(self.weights(model))
            names = {"input_names": ["input"], "output_names": ["logits"]}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.onnx.export(network, (torch.randn(1, 3, size, size),), file, **names, verbose=False)
        return file


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("files"))
