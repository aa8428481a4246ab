"""Export of one network or file: which form it gets, and the images that it is calibrated and tested on."""

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import timm
import torch
from onnx import TensorProto
from timm.models import save_for_hf

import models  # noqa: F401 - registers the networks with timm
from suite.data import augment
from suite.data import sets as data
from suite.errors import InputError
from suite.inference import deploy, latency, networks, parity, reduced
from suite.registry import DATA_SETS
from suite.schema.outcomes import LatencyResult

Suite = Callable[..., tuple[int, str, str]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.onnx"


@pytest.mark.parametrize(
    "fastest",
    [
        ("rewritten", "unsigned"),
        pytest.param(("rewritten", "signed"), marks=pytest.mark.full),
        pytest.param(("plain", "unsigned"), marks=pytest.mark.full),
    ],
    ids=" ".join,
)
def test_int8_has_the_form_and_type_that_ran_fastest_here(
    path: Path, fastest: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(requests: Sequence[latency.Request]) -> list[LatencyResult]:
        tried = [(file.stem, file.suffix[1:]) for file in (Path(request.path) for request in requests)]
        assert sorted(tried) == [("plain", "unsigned"), ("rewritten", "signed"), ("rewritten", "unsigned")]
        times = [[0.1, 0.1, 9.0] if each == fastest else [0.2, 0.2, 0.2] for each in tried]
        return [LatencyResult(samples=each) for each in times]

    monkeypatch.setattr(latency, "measure", measure)
    monkeypatch.setattr(reduced, "CALIBRATION_IMAGES", 20)
    said: list[str] = []
    with networks.find_network("resnet20_crelu_bn") as of:
        result = deploy.export(of, path, "int8", "cpu", False, {}, said.append)
    assert (result["form"], result["activations"]) == fastest
    assert said == [
        "export resnet20_crelu_bn, the rewritten graph",
        "int8 of resnet20_crelu_bn, the rewritten graph with unsigned activations: calibrate on 20 images",
        "int8 of resnet20_crelu_bn, the rewritten graph with signed activations: calibrate on 20 images",
        "export resnet20_crelu_bn, the plain graph",
        "int8 of resnet20_crelu_bn, the plain graph with unsigned activations: calibrate on 20 images",
        "time the 3 files",
        "compare with float32",
    ]
    model = onnx.load(path)
    types = {tensor.data_type for tensor in model.graph.initializer if "zero_point" in tensor.name}
    assert (TensorProto.UINT8 in types) == (fastest[1] == "unsigned")
    assert ("Neg" in {node.op_type for node in model.graph.node}) == (fastest[0] == "plain")
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_form_that_does_not_run_leaves_the_choice_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: dict[str, LatencyResult | RuntimeError] = {
        "a": RuntimeError("no kernel"),
        "b": LatencyResult(samples=[0.2]),
        "c": LatencyResult(samples=[0.1]),
        "d": latency.NotFiniteError(LatencyResult(samples=[0.01, 0.05, 0.09])),
    }
    monkeypatch.setattr(latency, "measure", lambda requests: [answers[request.path] for request in requests])
    of = networks.NamedNetwork(Path(), "resnet20_relu_np", 10, 32, trained=False)
    assert deploy._fastest(of, [Path(name) for name in "abcd"], "cpu") == (Path("c"), 0.1, [])
    with pytest.raises(RuntimeError, match="no kernel"):
        deploy._fastest(of, [Path("a"), Path("a")], "cpu")
    file, seconds, (warning,) = deploy._fastest(of, [Path("a"), Path("d")], "cpu")
    assert (file, seconds) == (Path("d"), 0.05)
    assert "not finite" in warning
    with pytest.raises(RuntimeError, match="logits that are not finite"):
        deploy._fastest(dataclasses.replace(of, trained=True), [Path("d")], "cpu")


@pytest.mark.full
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_cuda_is_given_the_default_export_and_its_time_is_told(
    precision: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = latency.NotFiniteError(LatencyResult(samples=[0.002, 0.003, 0.9]))
    monkeypatch.setattr(latency, "measure", lambda requests: [answer for _ in requests])
    monkeypatch.setattr(latency, "why_unavailable", lambda provider: None)
    with networks.find_network("resnet20_crelu_bn") as of:
        result = deploy.export(of, path, precision, "cuda", False, {})
    assert result["form"] == "plain"
    assert result["milliseconds"] == 3
    assert any("not finite" in warning for warning in result["warnings"])
    assert "Neg" in {node.op_type for node in onnx.load(path).graph.node}


def test_int8_for_cuda_is_refused_in_one_line() -> None:
    of = networks.NamedNetwork(Path(), "resnet20_relu_bn", 10, 32, trained=False)
    with pytest.raises(InputError, match=r"CUDA provider has no int8 convolution, .*; use fp32 or fp16$"):
        deploy.export(of, Path("net.onnx"), "int8", "cuda", False, {})


def scaled(path: Path, factor: float) -> Path:
    """A copy whose first convolution has so many times its weights."""
    model = onnx.load(path)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "conv1.weight")
    larger = onnx.numpy_helper.to_array(weight) * np.float32(factor)
    weight.CopyFrom(onnx.numpy_helper.from_array(larger, "conv1.weight"))
    onnx.save(model, path.with_name("scaled.onnx"))
    return path.with_name("scaled.onnx")


def test_activations_that_float16_cannot_hold_are_refused_with_their_layer(path: Path, tmp_path: Path) -> None:
    with networks.find_network("resnet20_relu_bn") as of:
        deploy.export(of, path, "fp32", "cpu", False, {})
    images = reduced.Calibration([np.random.default_rng(0).standard_normal((4, 3, 32, 32), np.float32)], "4 images")
    said = reduced.convert(path, tmp_path / "half.onnx", "fp16", images)
    assert 0 < said.greatest_activation < 65504
    with pytest.raises(
        RuntimeError, match=r"^conv1 gives values to .* on 4 images, and float16 holds 65504 at most; use fp32, or"
    ):
        reduced.convert(scaled(path, 60000), tmp_path / "half.onnx", "fp16", images)
    said = reduced.convert(scaled(path, 60000), tmp_path / "half.onnx", "fp16", images, trained=False)
    assert said.greatest_activation > 65504
    assert len(said.warnings) == 1


def test_int8_for_a_gpu_is_symmetric(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def measure(requests: Sequence[latency.Request]) -> list[LatencyResult]:
        tried.extend(Path(request.path).name for request in requests)
        return [LatencyResult(samples=[0.1]) for _ in requests]

    monkeypatch.setattr(latency, "measure", measure)
    monkeypatch.setattr(latency, "why_unavailable", lambda provider: None)
    monkeypatch.setattr(reduced, "CALIBRATION_IMAGES", 20)
    with networks.find_network("resnet20_relu_bn") as of:
        result = deploy.export(of, path, "int8", "tensorrt", False, {})
    assert sorted(tried) == ["plain.symmetric", "rewritten.symmetric"]
    assert result["activations"] == "symmetric"


@pytest.mark.full
def test_an_exported_int8_file_was_timed_and_runs(path: Path) -> None:
    with networks.find_network("resnet20_relu_bn") as of:
        result = deploy.export(of, path, "int8", "cpu", True, {})
    assert result["form"] == "plain"
    assert result["activations"] in ("signed", "unsigned")
    assert 0 < result["difference_from_fp32"] < 0.2
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"input": np.zeros((2, 3, 32, 32), np.float32)})
    assert logits.shape == (2, 10)


def test_what_is_said_of_a_float16_file_is_of_that_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reduced, "CALIBRATION_IMAGES", 20)
    with networks.find_network("resnet20_crelu_bn") as of:
        result = deploy.export(of, path, "fp16", "cpu", False, {})
    assert result["operators"] == Counter(node.op_type for node in onnx.load(path).graph.node)
    assert "Cast" in result["operators"]
    assert 1e-6 < result["difference_from_fp32"] < 0.02
    assert result["rewrite_difference_of_fp32"] <= 1e-5
    assert "rewrite_difference" not in result


MEAN, STD = [0.1, 0.2, 0.3], [0.5, 0.25, 0.125]


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Save a network whose folder says this of it; returns the folder."""

    def save(**stated: Any) -> Path:
        model = timm.create_model("resnet20_relu_bn")
        save_for_hf(model, str(tmp_path / "run"), model_config={"pretrained_cfg": stated}, safe_serialization=True)
        return tmp_path / "run"

    return save


def test_a_runs_own_mean_and_std_are_used_wherever_it_is_tested_or_calibrated(saved: Callable[..., Path]) -> None:
    folder = saved(mean=MEAN, std=STD)
    with networks.find_network(str(folder)) as of:
        made = networks.test_batches(of, {}, 20)
        held = reduced.calibration(made)
    of_digits = data.load("digits10")
    wanted = [torch.tensor(values) * 255 for values in (MEAN, STD)]
    chosen = torch.from_numpy(of_digits.test.images[::50])
    torch.testing.assert_close(next(made.test())[0], augment.normalize(chosen, *wanted))
    chosen = torch.from_numpy(of_digits.train.images[::25])
    torch.testing.assert_close(torch.from_numpy(np.concatenate(held.batches)), augment.normalize(chosen, *wanted))
    assert held.notes == made.dataset.notes
    (note,) = held.notes
    assert note == (
        f"images are normalised as {folder}/config.json states: "
        "mean 0.1 0.2 0.3 (of digits10 0.5035 0.5043 0.4996), std 0.5 0.25 0.125 (of digits10 0.2725 0.2902 0.2663)"
    )
    assert of_digits.notes == ()


def test_ten_crops_have_the_stated_mean_and_std_too(saved: Callable[..., Path]) -> None:
    with networks.find_network(str(saved(mean=MEAN, std=STD))) as of:
        made = networks.test_batches(of, {}, 1)
    made.recipe = dataclasses.replace(made.recipe, augment="imagenet", test_size=28)
    ((ten, _),) = made.test(ten_crop=True)
    pixels = torch.from_numpy(made.dataset.test.images[0])
    wanted = [tuple(255 * value for value in values) for values in (MEAN, STD)]
    torch.testing.assert_close(ten[0], augment.imagenet_ten_crop(pixels, 28, *wanted, "exact"))


def test_the_data_sets_own_mean_and_std_stay_where_a_folder_states_them_or_nothing(saved: Callable[..., Path]) -> None:
    own = data.load("digits10")
    stated = {name: [value / 255 for value in getattr(own, name)] for name in ("mean", "std")}
    with networks.find_network(str(saved(**stated))) as of:
        assert networks.test_batches(of, {}, 20).dataset is own
    # timm's description has CIFAR-10's, but nothing was trained by them.
    with networks.find_network("resnet20_relu_bn") as of:
        assert networks.test_batches(of, {}, 20).dataset is own


@pytest.mark.parametrize("stated", [{"mean": [0.5]}, {"std": [0.5, 0.5]}])
def test_a_mean_or_std_of_other_than_three_channels_is_named(
    stated: dict[str, Any], saved: Callable[..., Path]
) -> None:
    folder = saved()
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pretrained_cfg": stated}))  # timm writes three
    with (
        networks.find_network(str(folder)) as of,
        pytest.raises(InputError, match="give 3, one for each channel") as caught,
    ):
        networks.test_batches(of, {}, 20)
    assert str(path) in str(caught.value)


def test_a_run_checks_and_calibrates_with_the_mean_and_std_that_its_weights_state(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, Any]] = []

    def watched(module: Any, name: str, position: int) -> None:
        original = getattr(module, name)

        def call(*given: Any, **named: Any) -> Any:
            seen.append((name, given[position].dataset.mean))
            return original(*given, **named)

        monkeypatch.setattr(module, name, call)

    row = ["run", "--table", "2", "--depth", "20", "--rows", "resnet20_relu_bn@cifar10", "--steps", "1"]
    row += ["--compile", "never", "--forms", "int8", "--results", str(tmp_path)]
    assert suite(*row, "--stages", "train")[0] == 0
    was = data.load("digits10").mean
    # As if it had been trained by an earlier version.
    other = dataclasses.replace(DATA_SETS["digits10"], mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0))
    monkeypatch.setitem(DATA_SETS, "digits10", other)
    monkeypatch.setattr(data, "_load_embedded", data._load_embedded.__wrapped__)
    watched(reduced, "calibration", 0)
    watched(parity, "compare", 2)
    code, _, err = suite(*row, "--stages", "export,parity")
    assert code == 0
    assert [name for name, _ in seen] == ["calibration", "compare", "compare"]
    assert all(mean == pytest.approx(was) for _, mean in seen)
    assert "images are normalised as" in err


def test_images_of_other_classes_than_a_network_was_trained_on_are_told(saved: Callable[..., Path]) -> None:
    digits = data.load("digits10")

    def said(given: bool, trained: bool = True, **stated: Any) -> str:
        with networks.find_network(str(saved(**stated))) as of:
            return networks.training_data_note(dataclasses.replace(of, trained=trained), digits, given)

    assert said(False, label_names=list(digits.classes)) == ""
    others = said(True, label_names=[f"cat\x1b{number}" for number in range(10)])
    assert others == "trained on other classes (cat\\x1b0, cat\\x1b1, cat\\x1b2, ...); --data NAME=PATH gives its own"
    assert said(False).startswith("trained on what its folder does not say")
    assert said(True) == ""  # as the user says
    assert said(False, trained=False) == ""


PUBLISHED = Path(__file__).parents[2] / "results" / "published" / "amd-epyc-2-cores"


def test_a_published_network_on_the_embedded_digits_is_told_apart_from_a_test_of_its_own(suite: Suite) -> None:
    folder = next(
        path.parent
        for path in sorted(PUBLISHED.glob("artifacts/*/config.json"))
        if json.loads(path.read_text())["architecture"] == "resnet20_relu_bn"
    )
    code, out, err = suite("parity", str(folder), "--images", "20")
    assert code == 0
    (line,) = (line for line in out.splitlines() if line.startswith("top-1 error"))
    assert line.endswith(" points on digits10, but trained on cifar10; --data cifar10=PATH gives that")
    assert f"\nnote: images are normalised as {folder}/config.json states: mean 0.4914 " in err
    with networks.find_network(str(folder)) as of:
        held = reduced.calibration(networks.test_batches(of, {}, None), "trained on cifar10")
    assert held.notes[-1] == "calibrated on 200 training images of digits10, but trained on cifar10"
    code, out, _ = suite(
        "figure", "2", "--depth", "20", "--results", str(PUBLISHED), "--images", "20", "--format", "csv"
    )
    heading = next(line for line in out.splitlines() if line.startswith("number,"))
    assert re.search(r'"resnet20_relu_bn \(on digits(10+), trained on cifar\1\)"', heading)


@pytest.mark.parametrize(
    ("start", "each", "of", "expected"),
    [(1.0, 0.01, 999, None), (1.0, 0.1, 999, 590), (0.0, 0.5, 999, 120), (0.0, 10.0, 999, 16), (30.0, 0.1, 9, None)],
)
def test_as_many_images_as_take_a_minute_are_those_after_a_slow_start(
    start: float, each: float, of: int, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def compare(model: None, path: Path, count: int, *given: Any, **named: Any) -> None:
        now[0] += start + each * count

    monkeypatch.setattr(deploy, "perf_counter", lambda: now[0])
    monkeypatch.setattr(parity, "compare", compare)
    monkeypatch.setattr(networks, "test_batches", lambda of, data, count: count)
    monkeypatch.setattr("suite.export.weights.load_weights", lambda folder: None)
    network = networks.NamedNetwork(Path(), "resnet20_relu_np", 10, 32, trained=False)
    found = deploy._in_a_minute(network, {}, Path("net.onnx"), "fp32", "cpu", "onnxruntime", of)
    assert found == (None if expected is None else pytest.approx(expected, abs=1))


def test_a_data_set_that_is_not_whole_is_told() -> None:
    digits = data.load("digits10")
    assert networks.size_notes(digits, None) == networks.size_notes(digits, len(digits.test)) == []
    train, test = len(digits.train), len(digits.test)
    assert networks.size_notes(dataclasses.replace(digits, name="cifar10"), 10_000) == [
        f"cifar10 of {train} training and {test} test images, not all of it",
        f"{test} test images are all that there are, of 10000 asked for",
    ]
