import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

import models  # noqa: F401 - registers the networks with timm
from suite.errors import InputError
from suite.export.weights import load_weights, read_config

NAME = "resnet20_relu_np2"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_for_hf(timm.create_model(NAME), str(tmp_path / "run"), safe_serialization=True)
    return tmp_path / "run"


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_weights(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", ["resnet20_crelu_np", NAME, "resnet34_crelu_np3", "resnet20_crelu_bn"])
def test_a_network_comes_back_as_timm_reads_it(name: str, tmp_path: Path) -> None:
    save_for_hf(timm.create_model(name, num_classes=7), str(tmp_path), safe_serialization=True)
    ours, theirs = load_weights(tmp_path), timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(ours(images), theirs(images))
    assert not ours.training
    assert all(value.requires_grad for value in ours.parameters())
    assert read_config(tmp_path).classes == 7


class Trap:
    """Pickles as a call that leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def test_pickled_weights_beside_the_safe_ones_are_never_loaded(folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    for name in ("pytorch_model.bin", "model.bin", "model.pth", "model.pt", "model.pkl"):
        (folder / name).write_bytes(pickle.dumps(Trap(trace)))
    load_weights(folder)
    (folder / "model.safetensors").unlink()
    assert refusal(folder) == f"{folder}: holds no model.safetensors"
    (folder / "model.safetensors").write_bytes((folder / "pytorch_model.bin").read_bytes())
    assert "model.safetensors: cannot be read as weights" in refusal(folder)
    assert not trace.exists()


@pytest.mark.parametrize(
    "name",
    ["hf-hub:someone/model", "local-dir:/tmp", "resnet50", "https://host/model", "../resnet20", "", 5, None, ["a"]],
)
def test_a_network_that_is_not_of_this_project_is_refused(folder: Path, name: Any) -> None:
    change(folder, architecture=name)
    assert f"its model {name!r} is not one of this project's" in refusal(folder)


@pytest.mark.parametrize(
    "arguments",
    [
        {"checkpoint_path": "evil.bin"},
        {"pretrained_cfg_overlay": {"url": "https://host/evil.pth"}},
        {"pretrained_cfg": {"hf_hub_id": "someone/model"}},
        {"pretrained": True},
        {"depth": 10**9},
        {"width": 10**9},
        {"global_pool": ["avg"]},
        {"drop_rate": "much"},
    ],
)
def test_arguments_that_no_run_has_are_refused(folder: Path, arguments: dict[str, Any]) -> None:
    change(folder, model_args=arguments)
    assert "config.json: model_args: " in refusal(folder)


@pytest.mark.parametrize("classes", [0, -1, 1.5, "10", True, 10**12, 10**400])
def test_absurd_numbers_of_classes_are_refused_without_memory_for_them(folder: Path, classes: Any) -> None:
    change(folder, num_classes=classes, model_args={})
    assert refusal(folder)


@pytest.mark.parametrize("channels", [0, -1, 1.5, True, "3", None, 10**12, 10**400])
def test_absurd_numbers_of_channels_are_refused_without_memory_for_them(folder: Path, channels: Any) -> None:
    for changes in ({"model_args": {"in_chans": channels}}, {"pretrained_cfg": {"input_size": [channels, 32, 32]}}):
        change(folder, **{"model_args": {}, "pretrained_cfg": {}} | changes)
        assert refusal(folder)


def test_channels_are_those_that_timm_would_read(tmp_path: Path) -> None:
    save_for_hf(timm.create_model(NAME, in_chans=2), str(tmp_path), safe_serialization=True)
    change(tmp_path, pretrained_cfg={"input_size": [2, 32, 32]})
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert read_config(tmp_path).channels == theirs.in_chans == 2
    images = torch.randn(2, 2, 32, 32)
    with torch.inference_mode():
        assert torch.equal(load_weights(tmp_path)(images), theirs(images))
    change(tmp_path, model_args={"in_chans": 2}, pretrained_cfg={})
    assert load_weights(tmp_path).in_chans == 2


@pytest.mark.parametrize("key", ["url", "file", "hf_hub_id", "state_dict", "custom_load"])
def test_where_else_the_description_points_is_not_followed(folder: Path, key: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    (tmp_path / "evil.bin").write_bytes(pickle.dumps(Trap(trace)))
    change(folder, pretrained_cfg={key: str(tmp_path / "evil.bin")})
    load_weights(folder)
    assert not trace.exists()


@pytest.mark.parametrize("statistics", [{"mean": [1e400]}, {"std": "big"}, {"mean": ["a"]}, {"label_names": [1]}])
def test_statistics_and_class_names_are_numbers_and_text(folder: Path, statistics: dict[str, Any]) -> None:
    change(folder, pretrained_cfg=statistics)
    assert "config.json" in refusal(folder)


@pytest.mark.parametrize(
    "statistics", [{"mean": [125.3, 123.0, 113.9]}, {"mean": [-0.1]}, {"std": [63.0]}, {"std": [0]}]
)
def test_a_mean_and_a_std_are_of_pixels_between_0_and_1(folder: Path, statistics: dict[str, Any]) -> None:
    change(folder, pretrained_cfg=statistics)
    assert f"config.json: {next(iter(statistics))} must be of pixels on [0, 1]" in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_cut_at_any_sixteenth_is_named(folder: Path, name: str) -> None:
    raw = (folder / name).read_bytes()
    for part in range(16):
        (folder / name).write_bytes(raw[: len(raw) * part // 16])
        assert name in refusal(folder)


def test_weights_of_another_network_are_named(folder: Path, tmp_path: Path) -> None:
    change(folder, architecture="resnet32_relu_np2")
    assert refusal(folder).endswith("not weights of resnet32_relu_np2: layer1.3.conv1.bias (16) is missing")
    change(folder, architecture=NAME, num_classes=11, model_args={})
    assert refusal(folder).endswith("fc.bias is 10, not 11")
    change(folder, num_classes=10)
    halves = {key: value.half() for key, value in load_file(folder / "model.safetensors").items()}
    save_file(halves, folder / "model.safetensors")
    assert "is of torch.float16, not torch.float32" in refusal(folder)
