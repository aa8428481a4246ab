"""What several test files share: a results folder with records that were written, not measured, folders of images, the
command line, and how thorough the tests of faults are."""

import functools
import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

import suite.__main__ as command_line
from suite.grid.machine import MachineLock
from suite.results.record import AnyRecord
from suite.results.store import Store
from suite.tables.spec import version_of

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell has started the tests behind its back. What they start is to hear Ctrl-C as anyone's command does.
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as nohup has them started

if "PYTEST_XDIST_WORKER" in os.environ:
    # A core for each of these processes. Torch, which is imported later, and what tests start read this.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

_ALWAYS: dict[str, Any] = dict(
    deadline=None,  # of a busy machine nothing is to be expected
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
settings.register_profile("quick", max_examples=200, derandomize=True, **_ALWAYS)
settings.register_profile("nightly", max_examples=10_000, **_ALWAYS)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--nightly", action="store_true", help="10,000 cases for each reader, 100 kills for each stage")


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("nightly" if config.getoption("--nightly") else "quick")


def pytest_report_header() -> list[str]:
    """Name runs of this machine that tests wait for, which may take hours."""
    return [f"tests that time something wait for: {each}" for each in MachineLock(print).holders()]


@pytest.fixture(scope="session", autouse=True)
def exporter_reads_its_operators_once() -> Iterator[None]:
    """PyTorch's exporter makes its table of 500 operators anew for each export, which is most of what a small network's
    takes; here it is made once a process."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    made = functools.cache(ONNXRegistry.from_torchlib)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(made))
        yield


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Call the command line; returns exit code, standard output and standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["suite", *arguments])
        with pytest.raises(SystemExit) as ended:
            command_line.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


MACHINE = "Test CPU (2 cores)"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


@pytest.fixture
def add_run(store: Store) -> Callable[..., dict[str, AnyRecord]]:
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
        weight_decay: float = 1e-4,
        learning_rate: float = 0.1,
        images_a_step: int = 128,
        forms: tuple[str, ...] = ("fp32",),
        rounds: int = 3,
        versions: dict[str, str] | None = None,
        version: int | None = None,
        tries: list[dict[str, Any]] | None = None,
        trained_in: str = "",
    ) -> dict[str, AnyRecord]:
        environment = environment or {}
        recipe = {"epochs": epochs, "max_steps": max_steps, "learning_rate": learning_rate, "max_test_images": None}
        recipe["batch_size"] = images_a_step
        recipe["weight_decay"] = weight_decay
        trained = top1 is not None
        train_result: dict[str, Any] = {
            "top1": top1,
            "trained": trained,
            "epochs": [{"top1": value} for value in (best, top1) if value is not None],
            "tries": tries or [{"learning_rate": 0.1, "outcome": "trained" if trained else "the loss was not finite"}],
            "steps": max_steps or epochs * 391,
            "test_images": 10000,
            "precision": trained_in,
        }
        fingerprint = {"name": data, "train": 50000, "test": 10000, "sha256": "0" * 64}
        train = store.put(
            "train",
            {
                "model": model,
                "version": version or version_of("train", model),
                "data": fingerprint,
                "recipe": recipe,
                "seed": seed,
            },
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
        made = {"train": train, "export": export, "parity": parity}
        for batch_size, form in itertools.product(batch_sizes, forms):
            kind = inputs | {"provider": "cpu", "batch_size": batch_size, "precision": form}
            kind |= {"protocol": {"rounds": rounds}, "versions": versions or {}}
            made["latency"] = store.put("latency", kind, {"samples": list(samples)} | (timed or {}), environment, {})
        return made

    return add


@pytest.fixture
def picture() -> Callable[..., Path]:
    """Write an image whose pixels are drawn with `seed`, `size` (width, height) large; returns its path."""

    def write(path: Path, seed: int = 0, size: tuple[int, int] = (32, 32)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return write


@pytest.fixture
def cifar_folder(picture: Callable[..., Path]) -> Callable[..., Path]:
    """Write one image a class, of ten classes, whose pixels are drawn with the class as seed; returns the folder."""

    def write(root: Path, test: str = "test") -> Path:
        for split in ("train", test):
            for number in range(10):
                picture(root / split / f"class{number}" / "0.png", number)
        return root

    return write


@pytest.fixture
def imagenet_folder(picture: Callable[..., Path]) -> Callable[[Path], Path]:
    """Write three train images and one for validation of each of two classes; returns the folder."""

    def write(root: Path) -> Path:
        for name in ("n02", "n01"):
            for file in ("b.JPEG", "a.jpg", "c.png"):
                picture(root / "train" / name / file)
            picture(root / "val" / name / "v.JPEG")
        return root

    return write
