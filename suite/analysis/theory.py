"""The paper's supplement as numbers: Propositions 1 to 3, and what becomes of
NormProp's promise in a ResNet.

The propositions are computed as they are printed and as they are right. Three misprints
change a value: the lengths in Proposition 1's bound lack their squares, Proposition 2's
mean lacks a square root, and Proposition 3's covariance is that of a symmetric W. Two
statements need more than they say: Proposition 1 a mean of zero, and Proposition 3 that
W is none of the exceptions that `proposition_3` names.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import models  # noqa: F401 - registers the networks with timm
from models import NormPropConv2d
from models.layers import activation, initialize
from suite.analysis.analyze import filter_coherence

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Result:
    """A result that can be stored as JSON."""

    def to_dict(self) -> dict[str, Any]:
        """The same values as dictionaries, lists and numbers."""

        def plain(items: list[tuple[str, Any]]) -> dict[str, Any]:
            return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in items}

        return asdict(self, dict_factory=plain)


@dataclass(frozen=True, eq=False)
class CanonicalError(Result):
    """Proposition 1: how far a covariance is from a diagonal one.

    Attributes:
        error: the least |Sigma - diag(alpha)| (Frobenius) over alpha.
        bound: sigma^2 mu sqrt(sum over i != j of |W_i|^2 |W_j|^2).
        printed_bound: the same as printed, without the squares; right only for filters
            of length 1.
        alpha: (m,) where the least is reached.
    """

    error: float
    bound: float
    printed_bound: float
    alpha: FloatArray


@dataclass(frozen=True)
class RectifiedNormal(Result):
    """Proposition 2: mean and variance of ReLU(x), x ~ N(0, 1).

    Attributes:
        mean, variance: by numerical integration.
        stated_mean: 1/sqrt(2 pi), as in the paper's NormProp formula.
        printed_mean: 1/(2 pi), as in the proposition.
        stated_variance: (1 - 1/pi) / 2.
    """

    mean: float
    variance: float
    stated_mean: float
    printed_mean: float
    stated_variance: float


@dataclass(frozen=True, eq=False)
class SumCovariance(Result):
    """Proposition 3: the covariance (n, n) of W x + x, x ~ N(0, I), W orthogonal.

    Attributes:
        covariance: (W + I) (W + I)^T.
        stated: 2 I + W + W^T.
        printed: 2 (W + I), which is no covariance unless W is symmetric.
    """

    covariance: FloatArray
    stated: FloatArray
    printed: FloatArray


@dataclass(frozen=True, eq=False)
class LayerMoments(Result):
    """Mean and variance (L,) of what each of L convolutions sees, in order of depth."""

    layers: tuple[str, ...]
    mean: FloatArray
    variance: FloatArray


def proposition_1(weight: FloatArray, sigma: float = 1.0, mean: FloatArray | None = None) -> CanonicalError:
    """The Canonical Error Bound for W x with E[x x^T] = sigma^2 I.

    Args:
        weight: W (m, n).
        sigma: root of the second moment of each input.
        mean: E[x] (n,), 0 by default. The paper does not ask for 0, but the bound does
            not hold without.

    Raises:
        ValueError: the mean is longer than sigma, which no such x has.
    """
    mean = np.zeros(weight.shape[1]) if mean is None else mean
    if np.linalg.norm(mean) > sigma:
        raise ValueError(f"mean has length {np.linalg.norm(mean):.4g}; it must be at most sigma, {sigma:.4g}")
    covariance = weight @ (sigma**2 * np.eye(len(mean)) - np.outer(mean, mean)) @ weight.T
    alpha = np.diag(covariance)
    error = float(np.linalg.norm(covariance - np.diag(alpha)))
    lengths = np.linalg.norm(weight, axis=1)
    pairs = np.outer(lengths, lengths)[~np.eye(len(lengths), dtype=bool)]
    scale = sigma**2 * filter_coherence(torch.from_numpy(weight))
    return CanonicalError(error, scale * math.sqrt((pairs**2).sum()), scale * math.sqrt(pairs.sum()), alpha.copy())


def proposition_2() -> RectifiedNormal:
    """Mean and variance of a rectified standard normal variable, integrated and in
    closed form."""
    nodes, weights = np.polynomial.legendre.leggauss(100)
    x = 6 * (nodes + 1)  # from 0 to 12; beyond lies less than 1e-31
    density = 6 * weights * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    mean = float(density @ x)
    variance = float(density @ x**2) - mean**2
    return RectifiedNormal(mean, variance, 1 / math.sqrt(2 * math.pi), 1 / (2 * math.pi), (1 - 1 / math.pi) / 2)


def proposition_3(weight: FloatArray) -> SumCovariance:
    """The covariance of a residual block W x + x.

    The paper says that it is never I. It is, for W + W^T = -I: a rotation by 120
    degrees in every plane of an even n. A W at random is never one of them, and an odd
    n has none.

    Args:
        weight: W (n, n), orthogonal.

    Raises:
        ValueError: W is not orthogonal.
    """
    identity = np.eye(weight.shape[-1])
    if weight.shape != identity.shape or not np.allclose(weight @ weight.T, identity, rtol=0, atol=1e-8):
        raise ValueError(f"weight has shape {weight.shape}; it must be square and orthogonal")
    total = weight + identity
    return SumCovariance(total @ total.T, 2 * identity + weight + weight.T, 2 * total)


def describe_propositions() -> list[str]:
    """The propositions with numbers: what is right, and what the paper prints."""
    filters = 3 * np.eye(2) @ np.array([[1.0, 0.0], [0.6, 0.8]])
    first, second = proposition_1(filters), proposition_2()
    third = proposition_3(np.array([[0.0, -1.0], [1.0, 0.0]]))
    return [
        f"Proposition 1, two filters of length 3, coherence 0.6: the error {first.error:.3f} is within the bound "
        f"{first.bound:.3f}; as printed, without the squares of the lengths, it were {first.printed_bound:.3f}",
        f"Proposition 2: the mean of ReLU(x) is {second.mean:.4f}, 1/sqrt(2 pi); as printed, 1/(2 pi), it were "
        f"{second.printed_mean:.4f}; the variance {second.variance:.4f} is the printed (1 - 1/pi)/2",
        f"Proposition 3, W a turn by 90 degrees: the covariance of W x + x is {third.covariance.tolist()}, "
        f"2 I + W + W^T; as printed, 2 (W + I), it were {third.printed.tolist()}, which is no covariance",
    ]


def normprop_promise(
    model_name: str = "resnet20_relu_np", gain: float = 1.0, images: int = 64, seed: int = 0
) -> dict[str, LayerMoments]:
    """NormProp at its initial weights on standard normal images: a plain CNN beside a
    ResNet.

    NormProp promises zero mean and unit variance to every layer. The plain CNN keeps to
    it, and in the ResNet each addition more than doubles the variance ("Normalization
    Propagation in ResNets"; supplement, "Identity Mapping"). Both have the constants
    behind every rectifier, as the formula is stated.

    Args:
        model_name: an `np` network of this project.
        gain: g of every layer. The promise is made for 1. At the initial value 1/1.21
            the plain CNN's first layer gives mean -0.12 and variance 0.68 instead.
        images: how many, of 3 x 32 x 32.
        seed: of weights and images.

    Returns:
        `plain` and `resnet`: see `propagation`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = {"plain": plain_normprop(), "resnet": timm.create_model(model_name, np_constants="all")}
        inputs = torch.randn(images, 3, 32, 32)
    for network in networks.values():
        for module in network.modules():
            if isinstance(module, NormPropConv2d):
                nn.init.constant_(module.gain, gain)
    return {name: propagation(network, inputs) for name, network in networks.items()}


def plain_normprop(depth: int = 12, width: int = 64) -> nn.Sequential:
    """A CNN without shortcuts: `depth` times 3x3 convolution and ReLU with NormProp's
    formula and initial weights.

    Without padding, whose zeros have no unit variance, so that each layer takes 2 off
    height and width.
    """
    network = nn.Sequential()
    for layer in range(1, depth + 1):
        conv = NormPropConv2d(3 if layer == 1 else width, width, 3)
        initialize(conv, "xavier")
        network.add_module(f"conv{layer}", conv)
        network.add_module(f"act{layer}", activation("relu", standardize=True))
    return network


def propagation(model: nn.Module, images: Tensor) -> LayerMoments:
    """Mean and variance, over images, channels and positions, of the input of each
    convolution off the shortcuts.

    Args:
        model: any network; left in evaluation mode, so that BatchNorm does not look at
            these images.
        images: (B, C, H, W).
    """
    seen: dict[str, tuple[float, float]] = {}

    def watch(name: str, conv: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            variance, mean = torch.var_mean(inputs[0].double(), correction=0)
            seen[name] = mean.item(), variance.item()

        return conv.register_forward_pre_hook(note)

    convolutions = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    hooks = [watch(name, conv) for name, conv in convolutions.items() if "shortcut" not in name.split(".")]
    try:
        with torch.inference_mode():
            model.eval()(images)
    finally:
        for hook in hooks:
            hook.remove()
    mean, variance = np.array(list(seen.values()), np.float64).reshape(-1, 2).T
    return LayerMoments(tuple(seen), mean, variance)
