"""Train one network by a recipe, and test it."""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

import numpy as np
import timm
import torch
from timm.models import save_for_hf
from torch import Tensor, nn
from torch.nn import functional as F

import models  # noqa: F401 - registers the networks with timm
from suite import checkpoint
from suite.batches import Batch, Batches
from suite.data import Dataset
from suite.interrupt import Interruption

# Halving stops here and the cell is "did not train". The paper gives no floor. A plain ResNet-110 with CReLU first
# has a finite loss between 1e-5 and 1e-6, since its sum grows by a factor of 1.2 a block at the start.
LEAST_LEARNING_RATE = 1e-7
# "First epochs" after which a network that is no better than chance counts as not training.
FIRST_EPOCHS = 5
# A kill costs at most the work of so long.
CHECKPOINT_SECONDS = 30.0

Progress = Callable[[int, int, str], None]


def train(
    model_name: str,
    batches: Batches,
    seed: int,
    out: Path,
    model_args: dict[str, Any] | None = None,
    checkpoints: Path | None = None,
    interruption: Interruption | None = None,
    progress: Progress = lambda done, total, note: None,
    warn: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Train a network and write its weights to `out` in timm's local layout (`model.safetensors`, `config.json`).

    A learning rate at which training is infeasible (a loss that is not finite, or no better than chance after the
    first epochs) is halved and training begins again, as in the paper's Experiments section.

    Training that was stopped goes on from its last checkpoint. Batches depend on seed, epoch and position alone, so
    on the CPU the result is bit for bit that of a run which was never stopped.

    Args:
        model_name: a timm model.
        batches: the data set, the recipe and the device: "cpu" trains in float32, "cuda" under bfloat16 autocast
            with float32 weights.
        seed: of the start values, the order of the images and their augmentation.
        out: an existing folder.
        model_args: further arguments of the model.
        checkpoints: folder of this run's checkpoints; None for none.
        interruption: a pending one is delivered after a checkpoint.
        progress: called with steps done, steps in all, and a note.
        warn: told of a damaged checkpoint.

    Returns:
        `top1`, `top5` (and `top1_10crop`, `top5_10crop`): test errors of the last epoch in percent, None when no
        learning rate was feasible; `best_top1`: the least over epochs; `trained`; `tries`: each learning rate and
        what came of it; `epochs`: learning rate, training loss and error, and test errors of each epoch; `steps`;
        `test_images`; `device`; `precision`; `timing`: `training_seconds`, without tests, and `images_per_second`.
    """
    model_args = {"num_classes": len(batches.dataset.classes)} | (model_args or {})
    fit = _Fit(model_name, model_args, batches, seed, checkpoints, interruption or Interruption(), progress, warn)
    while fit.one_try() != "trained" and fit.at.learning_rate / 2 >= LEAST_LEARNING_RATE:
        fit.start_over(fit.at.learning_rate / 2)
    at = fit.at
    trained = at.tries[-1]["outcome"] == "trained"
    errors: dict[str, float | None] = dict.fromkeys(("top1", "top5", "best_top1"))
    if trained:
        last = at.epochs[-1]
        errors = {"top1": last["top1"], "top5": last["top5"]}
        errors["best_top1"] = min(epoch["top1"] for epoch in at.epochs)
        if batches.recipe.ten_crop:
            ten = evaluate(fit.model, batches.test(ten_crop=True))
            errors |= {"top1_10crop": ten["top1"], "top5_10crop": ten["top5"]}
    else:
        fit.start_over(batches.recipe.learning_rate)  # start values, so that the net can still be exported and timed
    _save(fit.model, out, model_args, batches.dataset)
    return {
        **errors,
        "trained": trained,
        "tries": at.tries,
        "epochs": at.epochs,
        "steps": at.steps,
        "test_images": batches.test_images,
        "device": batches.device.type,
        "precision": "bfloat16 autocast" if batches.device.type == "cuda" else "float32",
        "timing": {"training_seconds": at.seconds, "images_per_second": at.images / at.seconds},
    }


@torch.inference_mode()
def evaluate(model: nn.Module, batches: Iterable[Batch]) -> dict[str, Any]:
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


@dataclass
class _Position:
    """How far training is: what a checkpoint holds besides tensors."""

    learning_rate: float
    tries: list[dict[str, Any]] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)  # of the present try
    step: int = 0  # steps done in the present epoch
    seen: int = 0  # images seen in the present epoch
    steps: int = 0  # steps done in the present try
    images: int = 0  # images seen in all tries, and the seconds that it took
    seconds: float = 0.0


class _Fit:
    """The fitting of one network: tries at falling learning rates, each of which can be taken up at any step."""

    def __init__(
        self,
        model_name: str,
        model_args: dict[str, Any],
        batches: Batches,
        seed: int,
        checkpoints: Path | None,
        interruption: Interruption,
        progress: Progress,
        warn: Callable[[str], None],
    ) -> None:
        self.model_name, self.model_args, self.batches, self.seed = model_name, model_args, batches, seed
        self.checkpoints, self.interruption, self.progress = checkpoints, interruption, progress
        self.at = _Position(batches.recipe.learning_rate)
        self.total = batches.recipe.epochs * batches.steps_per_epoch
        if batches.recipe.max_steps is not None:
            self.total = min(self.total, batches.recipe.max_steps)
        self._begin(self.at.learning_rate)
        saved = checkpoint.read(checkpoints, warn) if checkpoints else None
        if saved:
            self._restore(*saved)
        self._last_checkpoint = monotonic()

    def _begin(self, learning_rate: float) -> None:
        """Start values and a fresh optimiser."""
        recipe, device = self.batches.recipe, self.batches.device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model: nn.Module = timm.create_model(self.model_name, **self.model_args)
        self.model = model.to(device).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.momentum > 0,
            fused=True,
        )
        # Summed on the device and read once an epoch, so that the host never waits for a GPU's step.
        self.loss_sum = torch.zeros((), device=device)
        self.hits = torch.zeros((), device=device)

    def start_over(self, learning_rate: float) -> None:
        """Begin again with start values; the tries so far stay in the record."""
        self.at = replace(self.at, learning_rate=learning_rate, epochs=[], step=0, seen=0, steps=0)
        self._begin(learning_rate)

    def one_try(self) -> str:
        """Train at the present learning rate to the end, or until it turns out to be infeasible; says which."""
        outcome = "trained"
        while outcome == "trained" and (self.at.steps < self.total or self.at.step):
            outcome = self._epoch()
        tried = {"learning_rate": self.at.learning_rate, "epochs": len(self.at.epochs), "outcome": outcome}
        self.at.tries.append(tried)
        return outcome

    def _epoch(self) -> str:
        """Do what is left of an epoch, and test; says what came of it."""
        at, number = self.at, len(self.at.epochs) + 1
        rate = replace(self.batches.recipe, learning_rate=at.learning_rate).learning_rate_at(number)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._steps(number)
        loss, error = float(self.loss_sum) / at.seen, 100 - 100 * float(self.hits) / at.seen
        # The last step can spoil the weights after its loss was read, so the test's logits must be finite too.
        tested = evaluate(self.model, self.batches.test()) if math.isfinite(loss) else {}
        outcome = "trained"
        if not tested.pop("finite", False):
            outcome = "the loss was not finite"
        elif number == FIRST_EPOCHS and at.step == self.batches.steps_per_epoch:
            labels = self.batches.dataset.train.labels
            outcome = "trained" if _beats_chance(error, labels) else "no better than chance"
        train_loss = loss if math.isfinite(loss) else None
        at.epochs.append(
            {"epoch": number, "learning_rate": rate, "train_loss": train_loss, "train_error": error, **tested}
        )
        at.step = at.seen = 0
        self.loss_sum.zero_()
        self.hits.zero_()
        return outcome

    def _steps(self, epoch: int) -> None:
        """Do what is left of an epoch's steps; a loss that is not finite ends them early on the CPU."""
        at, device = self.at, self.batches.device
        self.model.train()
        start = perf_counter()
        for images, labels in self.batches.train(self.seed, epoch, skip=at.step):
            if at.steps == self.total:
                break
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                logits = self.model(images)
                loss = F.cross_entropy(logits, labels)
            self.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            self.optimizer.step()
            self.loss_sum += loss.detach() * len(labels)
            self.hits += (logits.detach().argmax(1) == labels).sum()
            at.step += 1
            at.steps += 1
            at.seen += len(labels)
            at.images += len(labels)
            at.seconds, start = at.seconds + perf_counter() - start, perf_counter()
            self.progress(at.steps, self.total, f"epoch {epoch}/{self.batches.recipe.epochs}")
            if device.type == "cpu" and not math.isfinite(loss.item()):
                break
            if self.interruption.pending or monotonic() - self._last_checkpoint > CHECKPOINT_SECONDS:
                self._checkpoint()

    def _checkpoint(self) -> None:
        """Save everything that the rest of the training depends on, then give way to a pending interruption."""
        if self.checkpoints is not None:
            tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
            for name, parameter in self.model.named_parameters():
                tensors[f"momentum.{name}"] = self.optimizer.state[parameter]["momentum_buffer"]
            tensors |= {"loss_sum": self.loss_sum, "hits": self.hits, "random": torch.get_rng_state()}
            # Counted over all tries, so that a later checkpoint has the higher number.
            checkpoint.write(self.checkpoints, self.at.images, tensors, asdict(self.at))
            self._last_checkpoint = monotonic()
        if self.interruption.pending:
            self.interruption.deliver()

    def _restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        self.at = _Position(**state)
        self.model.load_state_dict({name: tensors[f"model.{name}"] for name in self.model.state_dict()})
        for name, parameter in self.model.named_parameters():
            # In the layout of its parameter, as the optimiser makes it: sums over it depend on the order.
            buffer = torch.empty_like(parameter).copy_(tensors[f"momentum.{name}"])
            self.optimizer.state[parameter]["momentum_buffer"] = buffer
        self.loss_sum.copy_(tensors["loss_sum"])
        self.hits.copy_(tensors["hits"])
        torch.set_rng_state(tensors["random"])


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
