"""Networks that do not take three channels, from their images to what every command says of them."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from PIL import Image
from timm.models import save_for_hf

import models  # noqa: F401 - registers the networks with timm
from suite.analysis.analyze import analyze
from suite.data.channels import ChannelBatches, adapt_to_channels
from suite.data.sets import Dataset, Split
from suite.export.exporter import load_weights
from suite.inference import deploy, latency, networks
from suite.schema.outcomes import LatencyResult
from suite.tables.spec import load_table

CPU = torch.device("cpu")


def dataset(side: int = 32, count: int = 12) -> Dataset:
    random = np.random.default_rng(0)
    split = Split(random.integers(0, 256, (count, side, side, 3), np.uint8), np.arange(count, dtype=np.int64) % 10)
    classes = tuple("0123456789")
    return Dataset("random", classes, split, split, (125.3, 123.0, 113.9), (63.0, 62.1, 66.7), {})


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder of weights of a network with so many input channels."""

    def make(channels: int, name: str = "resnet20_crelu_bn") -> Path:
        torch.manual_seed(0)
        model = timm.create_model(name, in_chans=channels)
        made = tmp_path / f"{name}-{channels}"
        save_for_hf(model, str(made), model_args={"in_chans": channels}, safe_serialization=True)
        return made

    return make


def test_one_channel_is_what_timm_reads() -> None:
    """PIL's `convert("L")`, normalised by the averages of mean and deviation."""
    data = dataset()
    batches = ChannelBatches(data, load_table(2).recipe, CPU, channels=1)
    ((images, labels),) = batches.test()
    grey = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in data.test.images])[:, None]
    mean, std = sum(data.mean) / 3, sum(data.std) / 3
    assert images.shape == (12, 1, 32, 32)
    assert np.abs(images.numpy() - (grey - mean) / std).max() <= 0.51 / std
    assert labels.tolist() == data.test.labels.tolist()
    assert batches.dataset.name == "random in grey"


def test_other_counts_take_colours_by_turns_by_the_statistics_of_the_network() -> None:
    data = dataset()
    mean, std = [0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]
    stated = {"mean": mean, "std": std}
    ((images, _),) = ChannelBatches(data, load_table(2).recipe, CPU, channels=4, statistics=stated).test()
    pixels = data.test.images[..., [0, 1, 2, 0]] / 255
    expected = ((pixels - mean) / std).transpose(0, 3, 1, 2)
    assert np.abs(images.numpy() - expected).max() < 1e-5
    assert adapt_to_channels((1.0, 2.0, 6.0), 2) == [3.0, 3.0]


def test_all_batches_of_photographs_have_the_networks_channels() -> None:
    recipe = dataclasses.replace(load_table(4).recipe, train_size=24, test_size=24, batch_size=5)
    batches = ChannelBatches(dataset(40), recipe, CPU, channels=2)
    assert next(batches.train(0, 1))[0].shape == (5, 2, 24, 24)
    assert next(batches.test())[0].shape == (12, 2, 24, 24)
    assert next(batches.test(ten_crop=True))[0].shape[1:] == (10, 2, 24, 24)
    assert sum(map(len, batches.calibration(7))) == 7


@pytest.mark.parametrize(
    ("channels", "precision"),
    [
        (1, "fp32"),
        pytest.param(1, "fp16", marks=pytest.mark.full),
        pytest.param(1, "int8", marks=pytest.mark.full),
        (4, "fp32"),
    ],
)
def test_a_network_of_any_count_of_channels_is_exported_checked_and_explained(
    channels: int,
    precision: str,
    folder: Callable[..., Path],
    tmp_path: Path,
    suite: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Which int8 file is fastest is no matter here, and takes its time.
    monkeypatch.setattr(latency, "measure", lambda requests: [LatencyResult(samples=[0.1]) for _ in requests])
    run, file = str(folder(channels)), tmp_path / "net.onnx"
    code, out, err = suite("export", run, str(file), "--precision", precision)
    assert code == 0, err
    words = "in grey" if channels == 1 else "in 4 channels"
    if precision != "fp32":
        assert f"200 training images of digits10 {words}" in out
    stated = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert stated["mean"].count(",") == stated["std"].count(",") == channels - 1
    code, out, err = suite("parity", str(file), "--weights", run, "--images", "20")
    assert code == 0, out + err
    assert f"on digits10 {words}" in out
    code, out, err = suite("explain", str(file))
    assert (code, err) == (0, "")
    assert re.search(r"nodes +\d+ CPUExecutionProvider", out)
    code, out, err = suite("explain", run)
    assert (code, err) == (0, "export resnet20_crelu_bn ...\n")
    code, _, err = suite("parity", str(file), "--weights", "resnet20_crelu_bn", "--images", "2")
    assert code == 2
    assert f"takes {channels} channels, resnet20_crelu_bn 3: another network's file" in err


@pytest.mark.full
def test_a_network_of_one_channel_is_analysed_and_timed(folder: Callable[..., Path], tmp_path: Path) -> None:
    file = tmp_path / "net.onnx"
    with networks.find_network(str(folder(1))) as of:
        found = analyze(load_weights(of.weights), networks.test_batches(of, {}, 20))
        deploy.export(of, file, "fp32", "cpu", False, {})
        protocol = latency.Protocol(rounds=1, min_seconds=0, min_runs=2, max_runs=2, warmup=0)
        requests = [
            latency.Request("onnxruntime", str(file), "cpu", 2, 32, 1, protocol),
            latency.Request("torch", str(of.weights), "cpu", 2, 32, 1, protocol),
        ]
        answers = list(latency.measure(requests))
    assert found.images == 20
    assert np.isfinite(found.blocks.delta).all()
    assert all(isinstance(answer, LatencyResult) and len(answer.rounds_ns[0]) == 2 for answer in answers)
