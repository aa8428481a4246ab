"""The rules by which a learning rate counts as feasible, and how soon a loss that is not finite is noticed."""

import math

import numpy as np
import pytest
import timm
import torch
from torch import nn

import models  # noqa: F401 - registers the networks with timm
from suite.training import feasible
from suite.training.feasible import LossWatch

CPU = torch.device("cpu")
LABELS = np.arange(1000) % 10


def test_the_rule_looks_after_five_epochs_for_three_deviations_and_gives_up_below_2e_4() -> None:
    assert (feasible.FIRST_EPOCHS, feasible.DEVIATIONS, feasible.LEAST_LEARNING_RATE) == (5, 3, 2e-4)
    assert (feasible.LAST_STEPS, feasible.LOOK_EVERY) == (25, 20)
    tries = [0.1 / 2**halvings for halvings in range(20) if 0.1 / 2**halvings >= feasible.LEAST_LEARNING_RATE]
    assert len(tries) == 9, "as docs/interpretations.md says"


@pytest.mark.parametrize(("error", "beats"), [(90.0, False), (87.2, False), (87.1, True)])
def test_chance_is_beaten_by_three_deviations(error: float, beats: bool) -> None:
    # 3 deviations of 1,000 guesses at 10 % are 2.85 points.
    assert feasible.beats_chance(error, LABELS) is beats


def test_dead_units_are_channels_that_are_zero_on_a_whole_batch() -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet20_relu_plain", num_classes=10)
    with torch.no_grad():
        model.layer3[-1].conv2.bias[:16] = -1e6
    images = torch.randn(4, 3, 32, 32)
    alive = 1 - feasible.dead_units(timm.create_model("resnet20_relu_bn"), images)
    assert alive > 0.5
    found = feasible.dead_units(model, images)
    assert found is not None
    assert 0.25 <= found < 1
    crops = images.view(2, 2, 3, 32, 32)
    assert feasible.dead_units(model, crops) == found


def test_half_of_crelus_channels_are_not_dead_in_an_untrained_network() -> None:
    torch.manual_seed(0)
    share = feasible.dead_units(timm.create_model("resnet20_crelu_bn"), torch.randn(4, 3, 32, 32))
    assert share is not None
    assert share < 0.5


def test_a_network_whose_activations_are_not_finite_or_not_rectified_has_no_share() -> None:
    model = timm.create_model("resnet20_relu_plain")
    nn.init.constant_(model.fc.weight, math.nan)
    assert feasible.dead_units(model, torch.randn(2, 3, 32, 32)) is not None  # the classifier comes after
    nn.init.constant_(model.conv1.weight, math.nan)
    assert feasible.dead_units(model, torch.randn(2, 3, 32, 32)) is None
    assert feasible.dead_units(nn.Conv2d(3, 4, 1), torch.randn(2, 3, 8, 8)) is None


def test_on_a_cpu_a_loss_that_is_not_finite_is_noticed_at_once() -> None:
    watch = LossWatch(CPU)
    assert watch.finite(torch.tensor(1.0))
    assert not watch.finite(torch.tensor(math.nan))


@pytest.mark.parametrize("bad", [1, 5, 20, 21, 40])
def test_a_loss_read_every_twentieth_step_is_noticed_within_forty(bad: int, monkeypatch: pytest.MonkeyPatch) -> None:
    watch, total, noticed, looks = LossWatch(CPU, every=20), torch.zeros(()), 0, []
    item = torch.Tensor.item
    monkeypatch.setattr(torch.Tensor, "item", lambda tensor: (looks.append(step), item(tensor))[1])
    for step in range(1, 100):
        total += math.inf if step == bad else 1.0
        if not watch.finite(total):
            noticed = step
            break
    assert bad <= noticed < bad + 40
    assert all(step % 20 == 0 for step in looks)
