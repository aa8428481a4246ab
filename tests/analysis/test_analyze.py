"""Table 1 and Figures 2 and 3 against forwards that are written out here, in float64."""

import copy
import itertools
import math
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from models import BasicBlock, Bottleneck, NormPropConv2d, PreActBasicBlock
from suite.analysis import analyze
from suite.data import batches
from suite.data.batches import Batches
from suite.data.sets import Dataset, Split
from suite.schema.insides import Moments
from suite.tables import spec

CPU = torch.device("cpu")
RECIPE = spec.load_table(1).recipe
IMAGES = 10


def data_of(count: int = IMAGES, side: int = 32) -> Batches:
    random = np.random.default_rng(0)
    split = Split(random.integers(0, 256, (count, side, side, 3), dtype=np.uint8), np.zeros(count, np.int64))
    return Batches(Dataset("random", ("a",), split, split, (120.0,) * 3, (60.0,) * 3, {}), RECIPE, CPU)


@pytest.fixture(autouse=True)
def _batches_of_4(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the last of three batches is smaller than the others."""
    monkeypatch.setitem(batches.TEST_BATCH, "cpu", 4)


def network(name: str, **args: Any) -> nn.Module:
    """A network with initial weights, but for biases and BatchNorms, which are as if it had been trained."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, num_classes=10, **args)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.1)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # running statistics become those of the images below
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    with torch.no_grad():
        model.train()(torch.randn(8, 3, 32, 32))
    return model


def features(model: nn.Module, data: Batches) -> np.ndarray:
    """What `forward_features` gives for all images at once, in float64."""
    exact = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        values: np.ndarray = exact.forward_features(torch.cat([x for x, _ in data.test()]).double()).numpy()
    return values


def assert_moments(actual: Moments, values: np.ndarray) -> None:
    assert actual.count == values.size
    assert actual.mean == pytest.approx(values.mean(), rel=1e-5)
    assert actual.std == pytest.approx(values.std(), rel=1e-5)


@pytest.mark.parametrize("name", ["resnet20_relu_bn", "resnet20_crelu_plain", "resnet34_relu_np2", "resnet50_crelu_bn"])
def test_table_1_is_of_what_the_pool_takes_in_three_readings(name: str) -> None:
    model, data = network(name), data_of()
    values = features(model, data)
    result = analyze.activation_statistics(model, data)
    assert result.nonzero == pytest.approx((values != 0).mean(), abs=1e-5)
    assert 0 < result.nonzero < 1
    assert_moments(result.over_all, values)
    assert_moments(result.pooled, values.mean((2, 3)))
    # In float32 an entry beside zero may be cut off that float64 keeps.
    assert result.over_nonzero.count == result.nonzero * values.size
    assert result.over_nonzero.mean == pytest.approx(values[values != 0].mean(), rel=1e-4)
    assert result.over_nonzero.std == pytest.approx(values[values != 0].std(), rel=1e-4)


def test_table_1_counts_zeros_before_normprops_constants() -> None:
    model, data = network("resnet20_relu_np", np_constants="all"), data_of()
    values = features(model, data) * math.sqrt(1 / 2 - 1 / (2 * math.pi)) + 1 / math.sqrt(2 * math.pi)
    result = analyze.activation_statistics(model, data)
    assert result.nonzero == pytest.approx((values > 1e-6).mean(), abs=1e-4)
    assert 0.05 < result.nonzero < 0.95
    assert_moments(result.over_all, values)


@pytest.mark.parametrize("norm", ["plain", "np2", "bn"])
def test_with_crelu_half_of_the_entries_are_not_zero(norm: str) -> None:
    assert analyze.activation_statistics(network(f"resnet20_crelu_{norm}"), data_of()).nonzero == 0.5


def test_a_dead_activation_has_no_mean_over_its_nonzero_entries() -> None:
    model = network("resnet20_relu_plain")
    nn.init.constant_(model.layer3[-1].conv2.bias, -1e6)
    result = analyze.activation_statistics(model, data_of())
    assert result.nonzero == 0
    assert result.over_nonzero == Moments(count=0, mean=None, std=None)
    assert result.over_all == Moments(count=IMAGES * 64 * 8 * 8, mean=0, std=0)


def test_a_deviation_that_is_small_beside_the_mean_survives_the_merging() -> None:
    values = 1e8 + np.random.default_rng(0).standard_normal(1000)
    running = analyze._Running()
    for part in np.split(values, [1, 3, 400, 400, 990]):
        running.add(torch.from_numpy(part))
    moments = running.moments()
    assert moments.mean == pytest.approx(values.mean(), rel=1e-14)
    assert moments.std == pytest.approx(values.std(), rel=1e-6)
    by_squares = math.sqrt(abs((values**2).mean() - values.mean() ** 2))
    assert abs(by_squares / values.std() - 1) > 1e-2  # what the merging is there for


def test_merging_does_not_depend_on_the_parts() -> None:
    values = torch.arange(100.0, dtype=torch.float64).sin()
    whole, parts = analyze._Running(), analyze._Running()
    whole.add(values)
    for value in values:
        parts.add(value)
    assert parts.moments().mean == pytest.approx(whole.moments().mean, rel=1e-12)
    assert parts.moments().std == pytest.approx(whole.moments().std, rel=1e-12)


def by_hand(model: nn.Module, data: Batches) -> dict[str, tuple[float, float]]:
    """Delta of each block before and after its last activation, the blocks written out, position by position."""
    exact: Any = copy.deepcopy(model).double().eval()
    found = {}
    with torch.no_grad():
        x = torch.cat([images for images, _ in data.test()]).double()
        x = exact.maxpool(exact.act1(exact.norm1(exact.conv1(x))))
        for stage, index in itertools.product(range(1, 5), range(100)):
            blocks = getattr(exact, f"layer{stage}")
            if index >= len(blocks):
                continue
            block = blocks[index]
            x = block.input_norm(x)
            if isinstance(block, BasicBlock):
                f = block.norm2(block.conv2(block.act1(block.norm1(block.conv1(x)))))
                last = block.act2
            elif isinstance(block, PreActBasicBlock):
                f = block.norm2(block.conv2(block.act2(block.norm1(block.conv1(block.act1(x))))))
                last = nn.Identity()
            else:
                assert isinstance(block, Bottleneck)
                f = block.act2(block.norm2(block.conv2(block.act1(block.norm1(block.conv1(x))))))
                f = block.norm3(block.conv3(f))
                last = block.act3
            before = block.shortcut(x)
            x = last(block.sum_norm(before + f))
            found[f"layer{stage}.{index}"] = norms(before, before + f), norms(before, x)
    return found


def norms(before: torch.Tensor, after: torch.Tensor) -> float:
    assert before.shape == after.shape
    difference = (before - after).numpy()
    images, _, height, width = difference.shape
    positions = itertools.product(range(images), range(height), range(width))
    return sum(math.sqrt((difference[n, :, i, j] ** 2).sum()) for n, i, j in positions) / (images * height * width)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("resnet20_relu_bn", {}),
        ("resnet20_relu_np", {}),
        ("resnet20_crelu_plain", {}),
        ("resnet20_crelu_np2", {}),
        ("resnet20_crelu_np2", {"np_batchnorm": "trunk_input"}),
        ("resnet20_crelu_bn", {"crelu_placement": "inner"}),
        ("resnet34_relu_plain", {}),
        ("resnet34_crelu_np2", {}),
        ("resnet50_relu_np3", {}),
        ("resnet50_crelu_bn", {}),
    ],
    ids=str,
)
def test_figure_2_equals_blocks_written_out_position_by_position(name: str, args: dict[str, Any]) -> None:
    model, data = network(name, **args), data_of(side=32 if "resnet20" in name else 64)
    expected = by_hand(model, data)
    result = analyze.block_differences(model, data)
    assert result.blocks == list(expected)
    delta, after = np.array(list(expected.values())).T
    np.testing.assert_allclose(result.delta, delta, rtol=1e-4)
    np.testing.assert_allclose(result.delta_after_relu, after, rtol=1e-4)
    preact = "resnet50" not in name and "crelu" in name and "crelu_placement" not in args
    resets = "np" in name and "np_batchnorm" not in args
    same = np.equal(result.delta, result.delta_after_relu)
    first = np.array([name.endswith(".0") and name != "layer1.0" for name in result.blocks])
    assert same.tolist() == (~first if resets else np.ones_like(first)).tolist() if preact else not same.all()


def test_resnet_110_has_54_blocks_in_order_of_depth() -> None:
    result = analyze.block_differences(timm.create_model("resnet110_relu_plain"), data_of(count=1))
    assert result.blocks == [f"layer{stage}.{index}" for stage in (1, 2, 3) for index in range(18)]
    assert len(result.delta) == len(result.delta_after_relu) == 54


@pytest.mark.parametrize("name", ["resnet20_relu_nobias", "resnet20_crelu_nobias", "resnet50_relu_nobias"])
def test_a_block_whose_residual_path_gives_nothing_has_delta_0(name: str) -> None:
    model: Any = network(name)
    last = "conv3" if "50" in name else "conv2"
    nn.init.zeros_(getattr(model.layer2[1], last).weight)  # an identity shortcut
    nn.init.zeros_(getattr(model.layer3[0], last).weight)  # a reduction: the input is the shortcut's output
    result = analyze.block_differences(model, data_of())
    zero = [result.blocks.index(block) for block in ("layer2.1", "layer3.0")]
    assert [result.delta[place] for place in zero] == [0, 0]
    assert np.count_nonzero(result.delta) == len(result.blocks) - 2
    assert result.delta_after_relu[zero[0]] == 0


def test_activations_whose_squares_overflow_float32_have_a_delta() -> None:
    model: Any = network("resnet20_relu_plain")
    nn.init.constant_(model.layer1[1].conv2.bias, 1e30)
    result = analyze.block_differences(model, data_of())
    assert result.delta[1] == pytest.approx(4e30, rel=1e-5)  # 16 channels


def test_one_pass_finds_table_1_and_figure_2_and_tells_its_progress() -> None:
    model, data = network("resnet20_crelu_bn"), data_of()
    passes, seen = [], []
    handle = model.register_forward_hook(lambda *_: passes.append(1))
    result = analyze.analyze(model, data, lambda *step: seen.append(step))
    handle.remove()
    assert len(passes) == 3
    assert seen == [(4, 10, "images"), (8, 10, "images"), (10, 10, "images")]
    assert result.images == IMAGES
    assert result.activation == analyze.activation_statistics(model, data)
    assert result.blocks == analyze.block_differences(model, data)
    assert result.coherence == analyze.coherence(model)


def test_the_last_activation_that_is_not_finite_is_an_error_and_no_hook_stays() -> None:
    model: Any = network("resnet20_relu_plain")
    nn.init.constant_(model.layer3[-1].conv2.bias, math.inf)
    with pytest.raises(RuntimeError, match="last activation is not finite"):
        analyze.activation_statistics(model, data_of())
    with pytest.raises(RuntimeError, match="residual block are not finite"):
        analyze.block_differences(model, data_of())

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        analyze.analyze(model, data_of(), stop)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_network_can_be_trained_after_it_was_analysed() -> None:
    model, data = network("resnet20_relu_np2"), data_of()
    analyze.analyze(model, data)
    model.train()(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_model_without_rectifier_or_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="neither a ReLU nor a CReLU"):
        analyze.activation_statistics(nn.Conv2d(3, 4, 1), data_of())
    with pytest.raises(ValueError, match="no residual block"):
        analyze.block_differences(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), data_of())


def mu_by_hand(weight: torch.Tensor) -> float:
    filters = weight.detach().double().flatten(1).numpy()
    return max(
        abs(float(a @ b)) / math.sqrt(float(a @ a) * float(b @ b)) for a, b in itertools.combinations(filters, 2)
    )


def test_figure_3_equals_definition_2_over_all_pairs() -> None:
    model = network("resnet20_crelu_np2")
    result = analyze.coherence(model)
    weights = [model.get_parameter(f"{name}.weight") for name in result.layers]
    np.testing.assert_allclose(result.mu, [mu_by_hand(weight) for weight in weights], rtol=1e-12)
    assert len(set(result.mu)) == len(result.mu) == 19


def test_coherence_is_0_for_orthogonal_filters_and_1_for_filters_that_oppose_each_other() -> None:
    assert analyze.filter_coherence(torch.eye(4).reshape(4, 1, 2, 2)) == 0
    pair = torch.tensor([[1.0, 2.0], [0.3, 0.1], [-3.0, -6.0]])
    assert analyze.filter_coherence(pair) == pytest.approx(1)
    assert analyze.filter_coherence(torch.tensor([[1.0, 0.0], [1.0, -1.0]])) == pytest.approx(math.sqrt(1 / 2))


def test_neither_the_length_of_a_filter_nor_normprops_division_and_gain_change_its_coherence() -> None:
    torch.manual_seed(0)
    conv = NormPropConv2d(3, 5, 3).double()
    expected = analyze.filter_coherence(conv.weight)
    nn.init.uniform_(conv.gain, 0.5, 2)
    assert analyze.filter_coherence(conv.normalized_weight()) == pytest.approx(expected, rel=1e-12)
    lengths = torch.tensor([1e-200, 1, 5, 1e200, 3], dtype=torch.float64)
    assert analyze.filter_coherence(conv.weight * lengths.view(-1, 1, 1, 1)) == pytest.approx(expected, rel=1e-12)


def test_a_filter_of_zeros_makes_no_pair() -> None:
    assert analyze.filter_coherence(torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])) == pytest.approx(0.5**0.5)
    assert analyze.filter_coherence(torch.tensor([[0.0, 0.0], [1.0, 0.0]])) == 0
    assert analyze.filter_coherence(torch.zeros(2, 2)) == 0


@pytest.mark.full
def test_resnet_34_has_33_convolutions_in_the_order_in_which_they_run() -> None:
    model = timm.create_model("resnet34_crelu_np2")
    ran: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    model.eval()(torch.randn(1, 3, 32, 32))
    plain = tuple(name for name in ran if "shortcut" not in name and name != "fc")
    assert len(plain) == 33
    assert analyze.coherence(model).layers == list(plain)
    assert analyze.coherence(model, shortcuts=True, classifier=True).layers == list(ran)
    assert len(ran) == 33 + 3 + 1
    assert analyze.coherence(model, classifier=True).layers == [*plain, "fc"]
