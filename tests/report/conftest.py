"""A results folder of several machines and kinds of runs, and the page that is written of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from suite.report import page
from suite.results.store import Store

AddRun = Callable[..., dict[str, Any]]
EVIL = "</script><script>window.hacked = 1</script><b onclick='x'>&amp;\x1b[2J"


@pytest.fixture
def evil() -> str:
    """What stands in some names of `many`, and is to be shown as text."""
    return EVIL


@pytest.fixture
def many(store: Store, add_run: AddRun) -> Store:
    """Runs of four nets: a full one with two seeds, two full ones, and a quick one of markup."""
    environment = {
        "machine": {"id": EVIL},
        "versions": {"torch": "9.9"},
        "source": {"commit": "abc"},
        "command": ["suite", EVIL],
    }
    for seed, top1 in enumerate((6.0, 7.0)):
        add_run(seed=seed, top1=top1, batch_sizes=(1, 8), environment=environment)
    add_run("resnet110_crelu_bn", top1=5.5, batch_sizes=(1, 8), samples=(0.02,) * 4, forms=("fp32", "plain"))
    add_run("resnet110_relu_plain", top1=9.5, samples=(0.01, 0.02, 0.03, 0.04), machine=EVIL)
    add_run("resnet110_crelu_plain", data="digits10", max_steps=4, top1=90.0)
    add_analysis(store, add_run("resnet110_crelu_np2", data="cifar100", top1=30.0)["train"].key)
    store.fail("train", {"model": "resnet110_relu_np", "data": {"name": "cifar10"}}, f"Error: {EVIL}")
    return store


def add_analysis(store: Store, train: str) -> None:
    def moments(mean: float) -> dict[str, float]:
        return {"count": 9, "mean": mean, "std": 2 * mean}

    activation = {"nonzero": 0.5, "over_nonzero": moments(10.5), "over_all": moments(5.5), "pooled": moments(4.5)}
    blocks = {"blocks": ["layer1.0", "layer1.1"], "delta": [1.0, 2.0], "delta_after_relu": [0.5, 1.0]}
    result = {"images": 4, "activation": activation, "blocks": blocks}
    result |= {"coherence": {"layers": ["conv1", "conv2"], "mu": [0.25, 0.75]}}
    store.put("analyze", {"model": "resnet110_crelu_np2", "train": train}, result, {}, {})


@pytest.fixture
def html(many: Store, tmp_path: Path) -> str:
    return page.write(many, tmp_path / "out").read_text("utf-8")
