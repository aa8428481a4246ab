"""Options of the benchmarks, and what they write beside their figures."""

from pathlib import Path
from typing import Any

import pytest

from suite import env


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="every model of Tables 2 to 4 instead of a telling few")


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["suite"] = env.environment()


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
