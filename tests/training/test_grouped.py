"""Equal networks side by side in one: values and gradients are those of each alone."""

import pytest
import timm
import torch
from torch import Tensor, nn

import models
from suite.training import grouped

NAMES = ["resnet20_relu_bn", "resnet20_crelu_plain", "resnet20_crelu_np2", "resnet20_relu_np", "resnet20_relu_np3"]
SEEDS = 3


def networks(name: str, **arguments: object) -> list[nn.Module]:
    made = []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        made.append(timm.create_model(name, num_classes=7, **arguments).double().train())
    return made


def beside(single: list[nn.Module], name: str, **arguments: object) -> nn.Module:
    """One network of all of them."""
    whole = grouped.side_by_side(timm.create_model(name, num_classes=7, **arguments).double(), SEEDS)
    states = [model.state_dict() for model in single]
    whole.load_state_dict({key: grouped.join([state[key] for state in states]) for key in states[0]})
    return whole.train()


def images(size: int = 8) -> list[Tensor]:
    return [torch.randn(2, 3, size, size, dtype=torch.float64) for _ in range(SEEDS)]


@pytest.mark.parametrize("name", [*NAMES, "resnet34_crelu_bn"])
def test_outputs_gradients_and_statistics_are_those_of_each_alone(name: str) -> None:
    single = networks(name, width=8)
    whole = beside(single, name, width=8)
    batches = images(32 if "34" in name else 8)
    weights = torch.randn(2, SEEDS, 7, dtype=torch.float64)
    (whole(torch.cat(batches, 1)).view(2, SEEDS, 7) * weights).sum().backward()
    for number, (model, batch) in enumerate(zip(single, batches, strict=True)):
        (model(batch) * weights[:, number]).sum().backward()
    rounding = 1e-12 * max(float(p.grad.abs().max()) for p in whole.parameters() if p.grad is not None)
    for key, parameter in whole.named_parameters():
        expected = [dict(model.named_parameters())[key].grad for model in single]
        assert all(gradient is not None for gradient in expected)
        # Before BatchNorm a bias has no gradient but rounding.
        torch.testing.assert_close(parameter.grad, torch.cat(expected), rtol=1e-9, atol=rounding)  # type: ignore[arg-type]
    for key, buffer in whole.named_buffers():
        expected_buffers = [dict(model.named_buffers())[key] for model in single]
        torch.testing.assert_close(buffer, grouped.join(expected_buffers), rtol=1e-9, atol=1e-12)


def test_a_network_that_is_not_finite_leaves_the_others_alone() -> None:
    single = networks("resnet20_crelu_bn")
    batches = images()
    expected = [model(batch) for model, batch in zip(single, batches, strict=True)]
    batches[1].fill_(torch.nan)
    whole = beside(networks("resnet20_crelu_bn"), "resnet20_crelu_bn")
    logits = whole(torch.cat(batches, 1)).view(2, SEEDS, 7)
    logits.sum().backward()
    assert logits[:, 1].isnan().all()
    for number in (0, 2):
        torch.testing.assert_close(logits[:, number], expected[number], rtol=1e-9, atol=1e-12)
    for parameter in whole.parameters():
        assert parameter.grad is not None
        for number in (0, 2):
            assert grouped.part(parameter.grad, number, SEEDS).isfinite().all()


def test_a_single_network_holds_its_part() -> None:
    single = networks("resnet20_crelu_np3")
    whole = beside(single, "resnet20_crelu_np3")
    expected = [{name: value.clone() for name, value in model.state_dict().items()} for model in single]
    others = networks("resnet20_crelu_np3")[::-1]
    for number, model in enumerate(others):
        grouped.share(model, whole.state_dict(), number, SEEDS)
    for model, state in zip(others, expected, strict=True):
        assert list(model.state_dict()) == list(state)
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        for value in whole.state_dict().values():
            value.add_(1)
    for model, state in zip(others, expected, strict=True):
        assert all(torch.equal(value, state[name] + 1) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)), "layers of another kind: GroupNorm"),
        (nn.Linear(3, 4, bias=False), "its classifier has no bias"),
        (timm.create_model("resnet20_relu_bn", num_classes=7, drop_rate=0.5), "it has dropout"),
    ],
)
def test_other_networks_are_refused_with_the_reason(network: nn.Module, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        grouped.side_by_side(network, 2)


def test_every_network_of_the_paper_can_be_put_side_by_side() -> None:
    for name in timm.list_models(["resnet20_*", "resnet50_*_*"], module="crelu_resnet"):
        if name.rpartition("_")[2] in models.NORMALIZATIONS:
            with torch.device("meta"):
                assert grouped.obstacle(timm.create_model(name)) is None, name
