"""What several test files share: a results folder with records that were written, not measured."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from suite.store import Record, Store

MACHINE = "Test CPU (2 cores)"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


@pytest.fixture
def add_run(store: Store) -> Callable[..., dict[str, Record]]:
    """Put the records of one complete cell into `store`; keyword arguments change what they say."""

    def add(
        model: str = "resnet110_relu_bn",
        data: str = "cifar10",
        seed: int = 0,
        epochs: int = 164,
        top1: float | None = 6.5,
        best: float | None = None,
        max_steps: int | None = None,
        machine: str = MACHINE,
        samples: tuple[float, ...] = (0.010, 0.010, 0.010, 0.011, 0.010),
        timed: dict[str, Any] | None = None,
        passed: bool = True,
        batch_sizes: tuple[int, ...] = (8,),
        environment: dict[str, Any] | None = None,
    ) -> dict[str, Record]:
        environment = environment or {}
        recipe = {"epochs": epochs, "max_steps": max_steps, "learning_rate": 0.1, "max_test_images": None}
        trained = top1 is not None
        train_result: dict[str, Any] = {
            "top1": top1,
            "trained": trained,
            "epochs": [{"top1": value} for value in (best, top1) if value is not None],
            "tries": [{"learning_rate": 0.1, "outcome": "trained" if trained else "the loss was not finite"}],
            "steps": max_steps or epochs * 391,
            "test_images": 10000,
        }
        fingerprint = {"name": data, "train": 50000, "test": 10000, "sha256": "0" * 64}
        train = store.put(
            "train",
            {"model": model, "data": fingerprint, "recipe": recipe, "seed": seed},
            train_result,
            environment,
            {},
        )
        export = store.put(
            "export",
            {"model": model, "train": train.key},
            {"parameters": 1_727_962, "macs": 252_887_680},
            environment,
            {},
        )
        parity_result = {
            "images": 10000,
            "difference": 0.01,
            "max_logit_difference": 2e-6,
            "scale": 20.0,
            "agreement": 99.99,
            "ties": 1,
            "passed": passed,
        }
        parity = store.put("parity", {"model": model, "export": export.key}, parity_result, environment, {})
        inputs = {"model": model, "export": export.key, "machine": machine, "runtime": "onnxruntime"}
        for batch_size in batch_sizes:
            kind = inputs | {"provider": "cpu", "batch_size": batch_size}
            latency = store.put("latency", kind, {"samples": list(samples)} | (timed or {}), environment, {})
        return {"train": train, "export": export, "parity": parity, "latency": latency}

    return add
