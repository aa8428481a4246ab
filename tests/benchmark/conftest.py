"""Options of the benchmarks, and what they write beside their figures."""

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
from suite import env
from suite.export.exporter import load_weights
from suite.export.precision import Activations
from suite.inference import deploy, networks, reduced
from suite.registry import PROVIDERS
from suite.results.samples import interval


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="every model of Tables 2 to 4 instead of a telling few")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked `more`, without `--full`."""
    if not config.getoption("--full", default=False):
        left_out = [item for item in items if item.get_closest_marker("more")]
        items[:] = [item for item in items if not item.get_closest_marker("more")]
        config.hook.pytest_deselected(items=left_out)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["suite"] = env.environment()


BARS = pytest.StashKey[list[dict[str, Any]]]()


@pytest.fixture
def bar(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Report figures, in words, and whether they are as they are meant to be.

    Those that are not are printed as such and fail nothing: they are measurements of this machine, not tests.
    """
    if request.config.getoption("benchmark_skip"):
        pytest.skip("a benchmark")

    def report(name: str, words: str, met: bool, **figures: Any) -> None:
        request.config.stash.setdefault(BARS, []).append({"name": name, "words": words, "met": met, **figures})

    return report


@pytest.fixture
def ratio(bar: Callable[..., None]) -> Callable[..., None]:
    """Report the median ratio of interleaved pairs (first over second), and the bar that it is meant to pass."""

    def report(
        name: str, pairs: list[tuple[float, float]], least: float | None = None, most: float | None = None
    ) -> None:
        median, low, high = interval([first / second for first, second in pairs])
        met = (least is None or median >= least) and (most is None or median <= most)
        limits = (("least", least), ("most", most))
        legal = " and ".join(f"at {side} {value}" for side, value in limits if value is not None)
        bar(name, f"{median:.3g} ({low:.3g} to {high:.3g}); bar: {legal}", met, ratio=median, interval=[low, high])

    return report


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]) -> None:
    output_json["bars"] = config.stash.get(BARS, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    bars = config.stash.get(BARS, [])
    if bars:
        terminalreporter.section("ratios: median of interleaved pairs (95 %)")
        for each in bars:
            terminalreporter.write_line(f"{each['name']}: {each['words']}, {'met' if each['met'] else 'MISSED'}")


@dataclass(frozen=True)
class Files:
    """The ONNX files of networks with their initial weights, on which latency does not depend; each made once."""

    root: Path

    def weights(self, model: str) -> Path:
        """Folder in timm's local layout."""
        folder = self.root / model
        if not folder.exists():
            folder.mkdir()
            torch.manual_seed(0)
            save_for_hf(timm.create_model(model), str(folder), safe_serialization=True)
        return folder

    def exported(self, model: str, size: int, form: str = "fp32", provider: str = "cpu") -> Path:
        """As the tables have it: rewritten for the CPU provider and the default export for GPUs, and "fp16" and
        "int8" made from that."""
        activations: Activations = "unsigned" if provider == "cpu" else "symmetric"
        graph = PROVIDERS[provider].graph
        file = self.weights(model) / f"{form}-{graph}-{size}.onnx"
        if not file.exists():
            with networks.find_network(str(self.weights(model)), size) as of:
                if form == "fp32":
                    deploy.export(of, file, form, "cpu", graph == "plain", {})
                else:
                    whole = self.exported(model, size, provider=provider)
                    images = reduced.calibration(networks.test_batches(of, {}, None))
                    reduced.convert(whole, file, form, images, activations, trained=False)
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
