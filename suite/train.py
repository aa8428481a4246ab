"""Train one network by a recipe, and test it."""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import timm
import torch
from timm.models import save_for_hf
from torch import nn
from torch.nn import functional as F

import models  # noqa: F401 - registers the networks with timm
from suite.batches import Batch, Batches
from suite.data import Dataset
from suite.spec import Recipe

# Halving stops here and the cell is "did not train". The paper gives no floor. A plain ResNet-110 with CReLU first
# has a finite loss between 1e-5 and 1e-6, since its sum grows by a factor of 1.2 a block at the start.
LEAST_LEARNING_RATE = 1e-7
# "First epochs" after which a network that is no better than chance counts as not training.
FIRST_EPOCHS = 5

Progress = Callable[[int, int, str], None]


def train(
    model_name: str,
    batches: Batches,
    seed: int,
    out: Path,
    model_args: dict[str, Any] | None = None,
    progress: Progress = lambda done, total, note: None,
) -> dict[str, Any]:
    """Train a network and write its weights to `out` in timm's local layout (`model.safetensors`, `config.json`).

    A learning rate at which training is infeasible (a loss that is not finite, or no better than chance after the
    first epochs) is halved and training begins again, as in the paper's Experiments section.

    Args:
        model_name: a timm model.
        batches: the data set, the recipe and the device: "cpu" trains in float32, "cuda" under bfloat16 autocast
            with float32 weights.
        seed: of the start values, the order of the images and their augmentation.
        out: an existing folder.
        model_args: further arguments of the model.
        progress: called with steps done, steps in all, and a note.

    Returns:
        `top1`, `top5` (and `top1_10crop`, `top5_10crop`): test errors of the last epoch in percent, None when no
        learning rate was feasible; `best_top1`: the least over epochs; `trained`; `tries`: each learning rate and
        what came of it; `epochs`: learning rate, training loss and error, test errors and seconds of each epoch;
        `steps`; `test_images`; `device`; `precision`; `images_per_second` of training.
    """
    recipe, device = batches.recipe, batches.device
    model_args = {"num_classes": len(batches.dataset.classes)} | (model_args or {})
    tries: list[dict[str, Any]] = []
    rate = recipe.learning_rate
    while True:
        model = _fresh(model_name, model_args, seed, device)
        attempt = _fit(model, batches, replace(recipe, learning_rate=rate), seed, progress)
        tries.append({"learning_rate": rate, "epochs": len(attempt["epochs"]), "outcome": attempt.pop("outcome")})
        trained = tries[-1]["outcome"] == "trained"
        rate /= 2
        if trained or rate < LEAST_LEARNING_RATE:
            break
    errors: dict[str, float | None] = dict.fromkeys(("top1", "top5", "best_top1"))
    if trained:
        last = attempt["epochs"][-1]
        errors = {"top1": last["top1"], "top5": last["top5"]}
        errors["best_top1"] = min(epoch["top1"] for epoch in attempt["epochs"])
        if recipe.ten_crop:
            ten = evaluate(model, batches.test(ten_crop=True))
            errors |= {"top1_10crop": ten["top1"], "top5_10crop": ten["top5"]}
    else:
        model = _fresh(model_name, model_args, seed, device)  # so that the net can still be exported and timed
    _save(model, out, model_args, batches.dataset)
    return {
        **errors,
        **attempt,
        "trained": trained,
        "tries": tries,
        "test_images": batches.test_images,
        "device": device.type,
        "precision": "bfloat16 autocast" if device.type == "cuda" else "float32",
    }


@torch.inference_mode()
def evaluate(model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
    """Top-1 and top-5 error in percent; ten crops of an image have their logits summed.

    An image whose logits are not all finite counts as an error, and `finite` is then False.
    """
    model.eval()
    wrong1 = wrong5 = count = 0
    finite = True
    for images, labels in batches:
        if images.dim() == 5:
            logits = model(images.flatten(0, 1)).view(*images.shape[:2], -1).sum(1)
        else:
            logits = model(images)
        best = logits.topk(min(5, logits.shape[1])).indices
        sound = logits.isfinite().all(1, keepdim=True)
        finite = finite and bool(sound.all())
        hits = (best == labels[:, None]) & sound
        wrong1 += len(labels) - int(hits[:, 0].sum())
        wrong5 += len(labels) - int(hits.sum())
        count += len(labels)
    return {"top1": 100 * wrong1 / count, "top5": 100 * wrong5 / count, "finite": finite}


def _fresh(model_name: str, model_args: dict[str, Any], seed: int, device: torch.device) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = timm.create_model(model_name, **model_args)
    return model.to(device).to(memory_format=torch.channels_last)


def _fit(model: nn.Module, batches: Batches, recipe: Recipe, seed: int, progress: Progress) -> dict[str, Any]:
    """One try at one initial learning rate; ends early when training turns out to be infeasible."""
    device = batches.device
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.momentum > 0,
        fused=True,
    )
    total = recipe.epochs * batches.steps_per_epoch
    if recipe.max_steps is not None:
        total = min(total, recipe.max_steps)
    steps, images_seen, training_seconds = 0, 0, 0.0
    epochs: list[dict[str, Any]] = []
    outcome = "trained"
    for epoch in range(1, recipe.epochs + 1):
        start = perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(epoch)
        model.train()
        # Summed on the device and read once an epoch, so that the host never waits for a GPU's step.
        loss_sum, hits, seen = torch.zeros((), device=device), torch.zeros((), device=device), 0
        for images, labels in batches.train(seed, epoch):
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                logits = model(images)
                loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
            loss_sum += loss.detach() * len(labels)
            hits += (logits.detach().argmax(1) == labels).sum()
            seen += len(labels)
            steps += 1
            progress(steps, total, f"epoch {epoch}/{recipe.epochs}")
            if steps == total or (device.type == "cpu" and not math.isfinite(loss.item())):
                break
        loss_mean, error = float(loss_sum) / seen, 100 - 100 * float(hits) / seen
        training_seconds += perf_counter() - start
        images_seen += seen
        tested: dict[str, Any] = {}
        if math.isfinite(loss_mean):
            # The last step can spoil the weights after its loss was read, so the test's logits must be finite too.
            tested = evaluate(model, batches.test())
        if not tested.pop("finite", False):
            outcome = "the loss was not finite"
        elif epoch == FIRST_EPOCHS and steps == epoch * batches.steps_per_epoch:
            outcome = "trained" if _beats_chance(error, batches.dataset.train.labels) else "no better than chance"
        epochs.append(
            {
                "epoch": epoch,
                "learning_rate": recipe.learning_rate_at(epoch),
                "train_loss": loss_mean if math.isfinite(loss_mean) else None,
                "train_error": error,
                **tested,
                "seconds": round(perf_counter() - start, 3),
            }
        )
        if steps == total or outcome != "trained":
            break
    return {
        "outcome": outcome,
        "epochs": epochs,
        "steps": steps,
        "images_per_second": images_seen / training_seconds,
    }


def _beats_chance(error: float, labels: np.ndarray) -> bool:
    """Whether a training error (percent) is below that of always naming the commonest class, by three deviations."""
    count = len(labels)
    chance = int(np.bincount(labels).max()) / count
    return 1 - error / 100 > chance + 3 * math.sqrt(chance * (1 - chance) / count)


def _save(model: nn.Module, out: Path, model_args: dict[str, Any], dataset: Dataset) -> None:
    """Write weights and what timm needs to load them: class count, class names, mean and std on [0, 1]."""
    statistics = {name: [value / 255 for value in getattr(dataset, name)] for name in ("mean", "std")}
    config = {"pretrained_cfg": statistics | {"label_names": list(dataset.classes)}}
    model = model.cpu().to(memory_format=torch.contiguous_format)
    save_for_hf(model, str(out), model_config=config, model_args=model_args, safe_serialization=True)
