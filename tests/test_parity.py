import numpy as np
import pytest

from suite.parity import TOLERANCE, judge

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.standard_normal((200, 10)).astype(np.float32)
LABELS = RANDOM.integers(0, 10, 200)


def test_equal_logits_pass_with_no_difference() -> None:
    result = judge(LOGITS, LOGITS.copy(), LABELS)
    assert result["passed"]
    assert result["agreement"] == 100
    assert result["max_logit_difference"] == result["difference"] == 0
    assert result["torch_top1"] == result["onnx_top1"] == pytest.approx(100 * np.mean(LOGITS.argmax(1) != LABELS))
    assert result["scale"] == pytest.approx(np.abs(LOGITS).max())


def test_noise_below_the_tolerance_passes_and_above_it_fails() -> None:
    for share, passed in ((0.9, True), (1.1, False)):
        other = LOGITS.copy()
        other[3, 4] -= share * TOLERANCE * np.abs(LOGITS).max()
        assert judge(LOGITS, other, LABELS)["passed"] is passed


def test_another_answer_by_a_clear_margin_fails_and_is_listed() -> None:
    other = LOGITS.copy()
    first, second = np.argsort(LOGITS[7])[[-1, -2]]
    other[7, second] = LOGITS[7, first] + 1
    result = judge(LOGITS, other, LABELS)
    assert not result["passed"]
    assert [item["image"] for item in result["disagreements"]] == [7]
    assert result["disagreements"][0]["margin"] == pytest.approx(LOGITS[7, first] - LOGITS[7, second])
    assert result["agreement"] == 99.5


def test_a_tie_that_flips_is_no_failure() -> None:
    expected = LOGITS.copy()
    expected[5, :2] = 9.0, 9.0 - 1e-6
    other = expected.copy()
    other[5, :2] = 9.0 - 1e-6, 9.0
    result = judge(expected, other, LABELS)
    assert result["passed"]
    assert result["ties"] == 1
    assert result["agreement"] == 99.5


def test_the_difference_of_errors_is_onnx_minus_torch() -> None:
    expected = np.eye(4, dtype=np.float32)
    other = expected[[1, 0, 2, 3]]
    result = judge(expected, other, np.arange(4))
    assert (result["torch_top1"], result["onnx_top1"], result["difference"]) == (0, 50, 50)


@pytest.mark.parametrize("which", ["torch", "ONNX Runtime"])
def test_logits_that_are_not_finite_cannot_be_compared(which: str) -> None:
    broken = LOGITS.copy()
    broken[0, 0] = np.inf
    pair = (broken, LOGITS) if which == "torch" else (LOGITS, broken)
    with pytest.raises(RuntimeError, match=f"logits of {which} are not finite"):
        judge(*pair, LABELS)
