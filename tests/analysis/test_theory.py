"""Propositions 1 to 3 as they are right and as they are printed, and NormProp's promise."""

import json
import math

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from torch import nn

from suite.analysis import theory

Array = NDArray[np.float64]
RANDOM = np.random.default_rng(0)


def orthogonal(n: int) -> Array:
    return np.linalg.qr(RANDOM.standard_normal((n, n)))[0]


def unit(weight: Array) -> Array:
    return np.asarray(weight / np.linalg.norm(weight, axis=1, keepdims=True))


@pytest.mark.parametrize("length", [0.1, 1.0, 10.0])
@pytest.mark.parametrize(("m", "n"), [(2, 2), (5, 40), (40, 5)])
def test_proposition_1_holds_with_squared_lengths_whatever_they_are(m: int, n: int, length: float) -> None:
    for _ in range(20):
        result = theory.proposition_1(length * RANDOM.standard_normal((m, n)), sigma=0.7)
        assert 0 < result.error <= result.bound * (1 + 1e-12)


def test_proposition_1_is_tight_for_two_filters() -> None:
    weight = np.array([[3.0, 0.0], [2.0, 2.0]])
    result = theory.proposition_1(weight, sigma=2.0)
    # One pair, counted twice: 4 * |w1 . w2| * sqrt(2).
    assert result.error == pytest.approx(4 * 6 * math.sqrt(2))
    assert result.bound == pytest.approx(result.error)


def test_proposition_1_as_printed_holds_for_filters_of_length_1_and_fails_for_longer_ones() -> None:
    weight = unit(RANDOM.standard_normal((2, 5)))
    normalised = theory.proposition_1(weight)
    assert normalised.printed_bound == pytest.approx(normalised.bound)
    longer = theory.proposition_1(3 * weight)
    assert longer.error == pytest.approx(longer.bound)
    assert longer.error == pytest.approx(3 * longer.printed_bound)


def test_proposition_1s_alpha_is_the_best_and_the_papers() -> None:
    weight = RANDOM.standard_normal((4, 6))
    result = theory.proposition_1(weight, sigma=1.5)
    np.testing.assert_allclose(result.alpha, 2.25 * (weight**2).sum(1))
    covariance = 2.25 * weight @ weight.T
    assert result.error == pytest.approx(np.linalg.norm(covariance - np.diag(result.alpha)))
    for _ in range(20):
        other = result.alpha + 0.1 * RANDOM.standard_normal(4)
        assert np.linalg.norm(covariance - np.diag(other)) > result.error


def test_proposition_1_fails_for_an_input_whose_mean_is_not_zero() -> None:
    # Orthogonal filters, so that mu and the bound are 0; the covariance of x itself is not diagonal.
    result = theory.proposition_1(np.eye(2), mean=np.array([0.6, 0.5]))
    assert result.bound == 0
    assert result.error == pytest.approx(0.3 * math.sqrt(2))
    with pytest.raises(ValueError, match=r"mean has length .*; it must be at most sigma, 1"):
        theory.proposition_1(np.eye(2), mean=np.array([1.0, 1.0]))


def test_proposition_1s_covariance_is_that_of_samples() -> None:
    # x is +-e_i sqrt(2) at random: mean 0, second moment I, and far from normal.
    weight = RANDOM.standard_normal((3, 2))
    x = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]]) * math.sqrt(2)
    covariance = np.cov(weight @ x.T, bias=True)
    result = theory.proposition_1(weight)
    assert result.error == pytest.approx(np.linalg.norm(covariance - np.diag(np.diag(covariance))))


def test_proposition_2_has_mean_1_over_root_2_pi_and_not_1_over_2_pi() -> None:
    result = theory.proposition_2()
    assert result.mean == pytest.approx(result.stated_mean, abs=1e-12)
    assert result.variance == pytest.approx(result.stated_variance, abs=1e-12)
    assert result.mean - result.printed_mean > 0.2
    samples = np.maximum(RANDOM.standard_normal(400_000), 0)
    assert samples.mean() == pytest.approx(result.mean, abs=0.005)
    assert samples.var() == pytest.approx(result.variance, abs=0.005)


@pytest.mark.parametrize("n", [2, 3, 16])
def test_proposition_3_has_covariance_2i_plus_w_plus_its_transpose(n: int) -> None:
    weight = orthogonal(n)
    result = theory.proposition_3(weight)
    np.testing.assert_allclose(result.covariance, result.stated, atol=1e-12)
    assert np.abs(result.covariance - np.eye(n)).max() > 0.1


def test_proposition_3s_covariance_is_that_of_samples() -> None:
    weight = orthogonal(4)
    x = RANDOM.standard_normal((4, 200_000))
    np.testing.assert_allclose(theory.proposition_3(weight).covariance, np.cov(weight @ x + x), atol=0.05)


def test_proposition_3_as_printed_needs_a_symmetric_w() -> None:
    weight = orthogonal(4)
    result = theory.proposition_3(weight)
    assert np.abs(result.printed - result.covariance).max() > 0.1
    assert not np.allclose(result.printed, result.printed.T)  # no covariance at all
    direction = unit(RANDOM.standard_normal((1, 4)))
    mirrored = theory.proposition_3(np.eye(4) - 2 * direction.T @ direction)
    np.testing.assert_allclose(mirrored.printed, mirrored.covariance, atol=1e-12)


def test_proposition_3_has_an_exception_that_the_paper_does_not_name() -> None:
    angle = 2 * math.pi / 3
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    basis = orthogonal(6)
    weight = basis @ np.kron(np.eye(3), turn) @ basis.T
    np.testing.assert_allclose(theory.proposition_3(weight).covariance, np.eye(6), atol=1e-12)


@pytest.mark.parametrize("weight", [2 * np.eye(2), np.ones((2, 3)), np.ones(3)], ids=["long", "wide", "vector"])
def test_proposition_3_is_about_orthogonal_matrices_alone(weight: Array) -> None:
    with pytest.raises(ValueError, match="square and orthogonal"):
        theory.proposition_3(weight)


def test_normprop_keeps_its_promise_in_a_plain_cnn_and_breaks_it_in_a_resnet() -> None:
    found = theory.normprop_promise(images=16)
    plain, resnet = found["plain"], found["resnet"]
    assert plain.layers == tuple(f"conv{layer}" for layer in range(1, 13))
    assert np.abs(plain.mean).max() < 0.1
    assert np.abs(plain.variance - 1).max() < 0.2
    # What each block takes: the sums.
    blocks = [index for index, name in enumerate(resnet.layers) if name.startswith("layer") and "conv1" in name]
    assert len(blocks) == 9
    assert (resnet.variance[blocks][1:] / resnet.variance[blocks][:-1] > 2).all()
    assert resnet.mean[-1] > 10
    assert json.loads(json.dumps(plain.to_dict()))["variance"] == plain.variance.tolist()


def test_at_the_start_value_of_the_gain_one_layer_is_off_by_what_the_formula_says() -> None:
    gain = 1 / 1.21
    layer = theory.normprop_promise(gain=gain, images=64)["plain"]
    mean, variance = (1 / math.sqrt(2 * math.pi), 0.5 - 0.5 / math.pi)
    assert layer.mean[1] == pytest.approx((gain - 1) * mean / math.sqrt(variance), abs=0.01)  # -0.119
    assert layer.variance[1] == pytest.approx(gain**2, abs=0.02)


def test_propagation_is_of_the_inputs_of_the_convolutions_off_the_shortcuts() -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet34_relu_np")
    images = torch.randn(4, 3, 64, 64)
    result = theory.propagation(model, images)
    assert len(result.layers) == 33
    assert result.mean[0] == pytest.approx(images.double().mean().item())
    assert result.variance[0] == pytest.approx(images.double().var(correction=0).item())
    with torch.no_grad():
        second = model.maxpool(model.act1(model.conv1(images))).double()
    assert result.layers[1] == "layer1.0.conv1"
    assert result.mean[1] == pytest.approx(second.mean().item(), rel=1e-5)
    assert result.variance[1] == pytest.approx(second.var(correction=0).item(), rel=1e-5)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_same_seed_gives_the_same_figures_and_leaves_the_random_state_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second = (theory.normprop_promise(images=2, seed=3)["resnet"].variance for _ in range(2))
    assert np.array_equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(theory.plain_normprop(2, 4), nn.Sequential)


def test_the_propositions_are_told_with_what_is_right_and_what_is_printed() -> None:
    first, second, third = theory.describe_propositions()
    assert "error 7.637 is within the bound 7.637" in first
    assert "it were 2.546" in first
    assert "0.3989, 1/sqrt(2 pi)" in second
    assert "it were 0.1592" in second
    assert "[[2.0, 0.0], [0.0, 2.0]]" in third
    assert "[[2.0, -2.0], [2.0, 2.0]], which is no covariance" in third
