from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec import to_builtins
from onnx import TensorProto, helper, numpy_helper, save
from torch import Tensor, nn

from suite.inference.loaded import Request
from suite.inference.parity import SHOWN, compare, compare_logits, render
from suite.schema.outcomes import ParityResult
from suite.tables.spec import TOLERANCE

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.standard_normal((200, 10)).astype(np.float32)
LABELS = RANDOM.integers(0, 10, 200)


def test_equal_logits_pass_with_no_difference() -> None:
    result = compare_logits(LOGITS, LOGITS.copy(), LABELS)
    assert result.passed
    assert result.agreement == 100
    assert result.max_logit_difference == result.difference == 0
    assert result.torch_top1 == result.onnx_top1 == pytest.approx(100 * np.mean(LOGITS.argmax(1) != LABELS))
    assert result.scale == pytest.approx(np.abs(LOGITS).max())


def test_noise_below_the_tolerance_passes_and_above_it_fails() -> None:
    for share, passed in ((0.9, True), (1.1, False)):
        other = LOGITS.copy()
        other[3, 4] -= share * TOLERANCE * np.abs(LOGITS).max()
        assert compare_logits(LOGITS, other, LABELS).passed is passed


def test_a_logit_may_differ_by_1e_4_of_the_greatest_as_the_readme_says() -> None:
    expected = np.zeros((2, 3), np.float64)
    expected[:, 0] = 20.0
    for difference, passed in ((0.00199, True), (0.00201, False)):
        other = expected.copy()
        other[1, 2] += difference
        assert compare_logits(expected, other, np.zeros(2)).passed is passed


def test_reduced_precision_may_lose_1_percent_of_the_right_answers_or_what_chance_explains() -> None:
    expected = np.zeros((1000, 2))
    expected[:, 0] = 1.0
    for lost, won, passed in ((9, 0, True), (10, 0, False), (40, 25, True), (40, 23, False)):
        labels, other = np.zeros(1000, int), expected.copy()
        labels[900:] = 1  # 900 right answers, of which 9 may be lost; beyond that 2 sqrt(40 + won), which is 16
        other[:lost] = other[900 : 900 + won] = (0.0, 1.0)
        assert compare_logits(expected, other, labels, exact=False).passed is passed


def test_another_answer_by_a_clear_margin_fails_and_is_listed() -> None:
    other = LOGITS.copy()
    first, second = np.argsort(LOGITS[7])[[-1, -2]]
    other[7, second] = LOGITS[7, first] + 1
    result = compare_logits(LOGITS, other, LABELS)
    assert not result.passed
    assert [item.image for item in result.disagreements] == [7]
    assert result.disagreements[0].margin == pytest.approx(LOGITS[7, first] - LOGITS[7, second])
    assert result.agreement == 99.5


def test_a_tie_that_flips_is_no_failure() -> None:
    expected = LOGITS.copy()
    expected[5, :2] = 9.0, 9.0 - 1e-6
    other = expected.copy()
    other[5, :2] = 9.0 - 1e-6, 9.0
    result = compare_logits(expected, other, LABELS)
    assert result.passed
    assert result.ties == 1
    assert result.agreement == 99.5


def test_the_difference_of_errors_is_onnx_minus_torch() -> None:
    expected = np.eye(4, dtype=np.float32)
    other = expected[[1, 0, 2, 3]]
    result = compare_logits(expected, other, np.arange(4))
    assert (result.torch_top1, result.onnx_top1, result.difference) == (0, 50, 50)


@pytest.mark.parametrize("which", ["torch", "ONNX Runtime"])
def test_logits_that_are_not_finite_cannot_be_compared(which: str) -> None:
    broken = LOGITS.copy()
    broken[0, 0] = np.inf
    pair = (broken, LOGITS) if which == "torch" else (LOGITS, broken)
    with pytest.raises(RuntimeError, match=f"logits of {which} are not finite"):
        compare_logits(*pair, LABELS)


def test_logits_whose_difference_float32_cannot_hold_are_compared() -> None:
    expected = np.array([[2e38, -2e38]], np.float32)
    result = compare_logits(expected, -expected, np.array([0]))
    assert not result.passed
    assert result.max_logit_difference == result.mean_logit_difference == pytest.approx(4e38)
    assert [each.margin for each in result.disagreements or ()] == pytest.approx([4e38])
    assert "greatest difference 4e+38, which is 2.0e+00 of the greatest logit" in told(expected, -expected, np.zeros(1))


def answers(classes: np.ndarray) -> np.ndarray:
    """Logits whose greatest is that of these classes."""
    return np.eye(10, dtype=np.float32)[classes]


@pytest.mark.parametrize(("lost", "won", "passed"), [(10, 0, True), (11, 0, False), (30, 17, True), (30, 16, False)])
def test_reduced_precision_may_lose_what_chance_or_one_percent_explains(lost: int, won: int, passed: bool) -> None:
    # 1 % of 1000 right answers are 10; of 47 and 46 answers that change, two deviations are 13.7 and 13.6.
    right = np.arange(1000) % 10
    labels = np.concatenate([right, (right + 1)[:100] % 10])
    expected = answers(np.concatenate([right, right[:100]]))
    other = expected.copy()
    other[:lost] = answers((labels[:lost] + 1) % 10)
    other[1000 : 1000 + won] = answers(labels[1000 : 1000 + won])
    result = compare_logits(expected, other, labels, exact=False)
    assert (result.lost, result.won) == (lost, won)
    assert result.passed is passed
    assert not compare_logits(expected, other, labels).passed


class Mean(nn.Module):
    """Three classes: the mean of each channel, times `factor`. Notes whether TF32 was allowed."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor
        self.tf32: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.tf32 += [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32]
        return self.factor * x.mean((2, 3))


class Images:
    """Two batches of random images, with their brightest channels as labels."""

    test_images = 50

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        for seed, count in enumerate((30, 20)):
            images = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
            yield images, images.mean((2, 3)).argmax(1)


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    path = tmp_path / "mean.onnx"
    node = helper.make_node("ReduceMean", ["input", "axes"], ["logits"], keepdims=0)
    graph = helper.make_graph(
        [node],
        "mean",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.array([2, 3]), "axes")],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def compared(model: nn.Module, path: Path, **arguments: Any) -> ParityResult:
    return compare(model, path, Images(), 1, **arguments)  # type: ignore[arg-type]


def test_a_file_is_run_beside_its_network_on_every_image(onnx_file: Path) -> None:
    seen: list[int] = []
    result = compared(Mean(), onnx_file, progress=lambda done, total, note: seen.append(done))
    assert seen == [30, 50]
    assert result.images == 50
    assert result.onnx_top1 == 0
    assert result.passed
    assert (result.provider, result.precision, result.tf32) == ("CPUExecutionProvider", "fp32", False)


@pytest.mark.parametrize(("precision", "passed"), [("fp32", False), ("fp16", True), ("int8", True)])
def test_a_logit_difference_fails_float32_only(precision: str, passed: bool, onnx_file: Path) -> None:
    result = compared(Mean(1.01), onnx_file, precision=precision)
    assert result.max_logit_difference > 0.005 * result.scale
    assert result.agreement == 100
    assert result.passed is passed


def test_torch_runs_without_tf32_and_has_it_back_afterwards(onnx_file: Path) -> None:
    places = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    try:
        for place in places:
            place.allow_tf32 = True
        model = Mean()
        compared(model, onnx_file)
        assert not any(model.tf32)
        assert all(place.allow_tf32 for place in places)
    finally:
        for place, allowed in zip(places, before, strict=True):
            place.allow_tf32 = allowed


def test_tensorrt_which_multiplies_in_tf32_is_judged_by_its_answers(
    onnx_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from suite.inference.in_onnxruntime import InSession
    from suite.session import open_session

    def on_cpu(request: Request, checked: bool) -> InSession:
        assert (request.provider, checked) == ("tensorrt", True)
        return InSession(request, open_session(request.path, "cpu", request.threads))

    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    assert compared(Mean(1.01), onnx_file, provider="tensorrt", load=on_cpu).passed
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert not compared(Mean(1.01), onnx_file, provider="tensorrt", load=on_cpu).passed


def test_a_provider_that_is_not_there_is_an_error(onnx_file: Path) -> None:
    from suite.inference.latency import why_unavailable

    if why_unavailable("cuda") is None:
        assert compared(Mean(), onnx_file, provider="cuda").provider == "CUDAExecutionProvider"
    else:
        with pytest.raises(RuntimeError, match="CUDAExecutionProvider"):
            compared(Mean(), onnx_file, provider="cuda")


def test_an_unknown_precision_is_an_error(onnx_file: Path) -> None:
    with pytest.raises(ValueError, match="precision='fp8' is not valid; use fp32, fp16 or int8"):
        compared(Mean(), onnx_file, precision="fp8")


def told(expected: np.ndarray, actual: np.ndarray, labels: np.ndarray = LABELS, **more: Any) -> str:
    used = {"provider": "CPUExecutionProvider", "precision": "fp32", "tf32": False}
    return render(to_builtins(compare_logits(expected, actual, labels)) | used | more)


def test_the_text_says_errors_differences_and_the_margin_of_each_disagreement() -> None:
    other = LOGITS.copy()
    first, second = np.argsort(LOGITS[7])[[-1, -2]]
    other[7, second] = LOGITS[7, first] + 1
    text = told(LOGITS, other)
    margin = LOGITS[7, first] - LOGITS[7, second]
    assert text.startswith("fp32 on CPUExecutionProvider: 200 images\n")
    assert f"disagreements  1, torch's margins: image 7 by {margin:.3g}\n" in text
    assert "agreement      99.5 % of images" in text
    assert "passed         NO\n" in text
    assert "departs" not in text
    assert "disagreements  none\n" in told(LOGITS, LOGITS)


def test_of_many_disagreements_the_text_says_the_widest() -> None:
    found = compare_logits(LOGITS, LOGITS[:, ::-1], LABELS)
    widest = max(found.disagreements, key=lambda each: each.margin)
    text = told(LOGITS, LOGITS[:, ::-1])
    assert text.count("image ") == SHOWN
    assert f"margins: image {widest.image} by {widest.margin:.3g}, image" in text


def test_the_text_names_the_layer_and_both_values_where_a_file_departs() -> None:
    departure = {"comparison": "file", "layer": "layer2.0.conv1", "node": "layer2.0.conv1", "operator": "Conv"}
    values = {"difference": 0.5, "scale": 2.0, "position": [0, 3, 1, 1], "expected": 0.0, "actual": 0.5}
    text = told(LOGITS, LOGITS, departure=departure | values)
    assert "at layer layer2.0.conv1 (node layer2.0.conv1, Conv), in the file, which is damaged" in text
    assert "expected 0.0, got 0.5 at [0, 3, 1, 1]" in text
    text = told(LOGITS, LOGITS, departure=departure | values | {"actual": None})
    assert "expected 0.0, got no number at [0, 3, 1, 1]" in text
    text = told(LOGITS, LOGITS, departure=departure | dict.fromkeys(values))
    assert "in the file, which is damaged or of other weights: its result has another shape\n" in text
    assert "departs first  nowhere" in told(LOGITS, LOGITS, departure=None)
