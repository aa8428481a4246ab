"""Train networks by a recipe, and test them."""

import math
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

import timm
import torch
from torch import Tensor, nn

import models  # noqa: F401 - registers the networks with timm
from suite.data.batches import Batch, Batches
from suite.distributed import ALONE, Group
from suite.export import trained as weights
from suite.interrupt import Interruption
from suite.tf32 import without_tf32
from suite.training import checkpoint, feasible, fused_norm, kernels, memory
from suite.training.grouped import obstacle
from suite.training.pack import Outcome, Request, Run, in_turns, synchronize
from suite.training.stacked import Seed, Stack, State, below
from suite.training.step import AUTOMATIC, TRIAL, Engine, Step, try_compile
from suite.training.testing import Forward, measured_convolutions, quick_forward

# A kill costs at most the work of so long.
CHECKPOINT_SECONDS = 30.0
# Steps between two questions of several processes to each other whether one of them is to stop.
AGREE_EVERY = 10


@dataclass(frozen=True)
class Job:
    """One network to train.

    Attributes:
        model_name: a timm model.
        batches: the data set, the recipe, the device, and the processes that share the work.
        seed: of the initial weights, the order of the images and their augmentation.
        out: an existing folder for the weights.
        model_args: further arguments of the model; not for dropout, whose draws a checkpoint does not hold.
        checkpoints: folder of this run's checkpoints; None for none.
        on_step: called with steps done, steps in all, and a note on speed.
        on_epoch: called with an entry of the result's `epochs` and with the images/s of that epoch.
        on_end: called with the result, or the exception that ended it; returns a job to begin in its place, or None.
    """

    model_name: str
    batches: Batches
    seed: int
    out: Path
    model_args: dict[str, Any] = field(default_factory=dict)
    checkpoints: Path | None = None
    on_step: Callable[[int, int, str], None] = lambda done, total, note: None
    on_epoch: Callable[[dict[str, Any], float], None] = lambda epoch, images_per_second: None
    on_end: Callable[[dict[str, Any] | Exception], "Job | None"] = lambda outcome: None


def train(
    job: Job,
    engine: Engine = AUTOMATIC,
    interruption: Interruption | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Train a network and write its weights to `out` in timm's local layout (`model.safetensors`, `config.json`).

    A learning rate at which training is infeasible (a loss that is not finite, or no better than chance after the
    first epochs; see `feasible`) is halved and training begins again, as in the paper's Experiments section.

    Training that was stopped goes on from its last checkpoint. Batches depend on seed, epoch and position alone, so
    on the CPU the result is bit for bit that of a run which was never stopped.

    Args:
        job: what to train.
        engine: how to compute it.
        interruption: a pending one is delivered after a checkpoint.
        warn: told of a damaged checkpoint, and of a torch.compile or of kernels that failed.

    Returns:
        `top1`, `top5` (and `top1_10crop`, `top5_10crop`): test errors of the last epoch in percent, in float32, None
        when no learning rate was feasible; `best_top1`: the least over epochs, which on a GPU are tested in the
        precision of training but for the last; `trained`; `tries`: what came of each learning
        rate, with `epochs` and `steps` (begun, done), `last_loss` (mean of the last 25 steps, None if not finite),
        `train_error` (percent, of the last epoch), `dead_units` (share of the channels before the classifier that are
        zero on a whole test batch of this process, None if not finite) and `outcome`, why it ended; `epochs`: learning
        rate, training loss and error, and test errors of each epoch; `steps`; `test_images`; `device`; `precision`;
        `compiled`;
        `kernels`: of convolutions and BatchNorm, "triton" (our own, where they fit) or "library"; `processes` and the
        `batch_per_process`; `timing`: `training_seconds`, without tests, `images_per_second`, `packed` (networks
        trained at the same time, at most), `stacked` (those of them that were trained as one network with this one, at
        most; 1 for none but itself), `blocks_twice` (blocks computed twice to save memory), and what was measured
        to decide on torch.compile.
    """
    (outcome,) = train_packed([job], engine, interruption, warn)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def train_packed(
    jobs: Sequence[Job],
    engine: Engine = AUTOMATIC,
    interruption: Interruption | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any] | Exception]:
    """Train several networks at the same time, each as `train` would alone.

    They take turns step by step, and on a GPU each has a stream of its own, so that the small kernels of one fill the
    gaps of the others. Seeds of one network that are equally far are trained as one network where the engine wants it
    (see `stacked`); their losses are then those of each alone within rounding. One that ends makes room at once
    for the job that its `on_end` returns.

    Returns:
        For each job, in the order of their beginnings, what `train` returns, or the exception that ended it; it does
        not end the others.
    """

    def begin(job: Job, others: bool) -> _Fit:
        if others:
            synchronize(job.batches.device)  # what is measured of it is not to wait for the others
        return _Fit(job, engine, len(jobs), warn)

    def end(job: Job, outcome: Outcome) -> Job | None:
        if isinstance(outcome, Exception) and job.batches.group.size > 1:
            raise outcome  # the other processes wait for this one, and only its end tells them
        return job.on_end(outcome)

    with without_tf32():
        return in_turns(jobs, begin, end, interruption or Interruption())


@torch.inference_mode()
def evaluate(
    model: nn.Module, batches: Iterable[Batch], group: Group = ALONE, forward: Forward | None = None
) -> dict[str, Any]:
    """Top-1 and top-5 error in percent; ten crops of an image have their logits summed.

    An image whose logits are not all finite counts as an error, and `finite` is then False. Several processes test
    a part of the images each. `forward` computes the logits in the model's place.
    """
    model.eval()
    forward = forward or model
    counts: Tensor | None = None  # right at rank one, right up to rank five, finite; on the device until the end
    images_seen = 0
    for images, labels in batches:
        if images.dim() == 5:
            logits = forward(images.flatten(0, 1)).view(*images.shape[:2], -1).sum(1)
        else:
            logits = forward(images)
        best = logits.topk(min(5, logits.shape[1])).indices
        sound = logits.isfinite().all(1, keepdim=True)
        hits = (best == labels[:, None]) & sound
        found = torch.stack((hits[:, 0].sum(), hits.sum(), sound.sum()))
        counts = found if counts is None else counts + found
        images_seen += len(labels)
    right1, right5, sound_images, count = group.sums(
        *(counts.tolist() if counts is not None else (0, 0, 0)), images_seen
    )
    return {
        "top1": 100 * (count - right1) / count,
        "top5": 100 * (count - right5) / count,
        "finite": sound_images == count,
    }


@dataclass
class _Position:
    """How far training is: what a checkpoint holds besides tensors."""

    learning_rate: float
    compile: dict[str, Any]  # what was measured to decide on torch.compile, and `compiled`
    tries: list[dict[str, Any]] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)  # of the present try
    step: int = 0  # steps done in the present epoch
    seen: int = 0  # images seen in the present epoch
    steps: int = 0  # steps done in the present try
    images: int = 0  # images seen in all tries, and the seconds that it took
    seconds: float = 0.0
    stacked: int = 1  # seeds that were trained as one network with this one, itself included; the most there were


class _Fit:
    """The fitting of one network: tries at falling learning rates, each of which can be taken up at any step."""

    def __init__(self, job: Job, engine: Engine, packed: int, warn: Callable[[str], None]) -> None:
        self.job, self.batches, self.packed = job, job.batches, packed
        self.recipe, self.device, self.group = self.batches.recipe, self.batches.device, self.batches.group
        self.model_args = {"num_classes": len(self.batches.dataset.classes)} | job.model_args
        self.bfloat16 = engine.bfloat16_on(self.device)
        self.own_kernels = engine.wants_kernels_on(self.device, self.recipe)
        if self.own_kernels and (fault := kernels.fault(self.device) or fused_norm.fault(self.device)):
            self.own_kernels = False
            warn(f"{job.model_name}: goes on with the library's layers, since our kernels failed: {fault}")
        self.warn = warn
        self.stacks = engine.stacks(self.own_kernels) and self.group.size == 1
        # Asked of the network as it is made: our kernels are layers of their own classes.
        if self.stacks:
            with torch.device("meta"):
                self.stacks = not obstacle(timm.create_model(job.model_name, **self.model_args))
        self.total = self.recipe.steps(len(self.batches.dataset.train))
        # Networks that are trained at the same time on one GPU overlap only in streams of their own.
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self.must_stop = False
        saved = checkpoint.read(job.checkpoints, warn) if job.checkpoints and self.group.rank == 0 else None
        saved = self.group.share(saved)
        with self.stream():
            if saved:
                self._restore(*saved)
            else:
                self.at = _Position(self.recipe.learning_rate, self._decide_on_compile(engine, warn))
                self._begin()
        self._last_checkpoint = monotonic()
        self._mark = perf_counter()  # until when `at.seconds` counts
        self._waited = 0.0  # seconds of the present epoch in which the next batch was waited for

    def stream(self) -> AbstractContextManager[Any]:
        """Where this network's work is queued."""
        return torch.cuda.stream(self._stream) if self._stream else nullcontext()

    def _decide_on_compile(self, engine: Engine, warn: Callable[[str], None]) -> dict[str, Any]:
        if engine.compile != "auto":
            return {"compiled": engine.compile == "always"}
        if self.group.size > 1:
            return {"compiled": self.device.type == "cuda"}
        if self.total <= 10 * TRIAL:  # which would take longer to decide on
            return {"compiled": False}
        images, labels = next(iter(self.batches.train(self.job.seed, 1)))
        batch = images, labels
        found = try_compile(self._start(), self.recipe, self.bfloat16, batch, self.total, self.own_kernels)
        if error := found.get("compile_error"):
            warn(f"{self.job.model_name}: goes on without torch.compile, which failed: {error}")
        return found

    def _start(self) -> nn.Module:
        """The network with the initial weights of its seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.job.seed)
            model: nn.Module = timm.create_model(self.job.model_name, **self.model_args)
            return model

    def _step_of(self, model: nn.Module, seeds: int = 1) -> Step:
        """The step of a network, or of so many side by side."""
        how = self.bfloat16, self.at.compile["compiled"], self.group, self.own_kernels, seeds
        step = Step(model, self.recipe, self.device, *how)
        step.set_learning_rate(self._learning_rate())
        return step

    def _learning_rate(self) -> float:
        """That of the present epoch."""
        tried = replace(self.recipe, learning_rate=self.at.learning_rate)
        return tried.learning_rate_at(len(self.at.epochs) + 1)

    def _begin(self) -> None:
        """Initial weights and a fresh optimiser."""
        self.step: Step | Seed = self._step_of(self._start())
        self.model = self.step.model
        self._quick = quick_forward(self.model, self.device, self.bfloat16)
        self.watch = feasible.LossWatch(self.device)
        self.last_losses: deque[Tensor] = deque(maxlen=feasible.LAST_STEPS)  # on the device

    def _start_over(self, learning_rate: float) -> None:
        """Begin again with initial weights; the tries so far stay in the record."""
        self.at = replace(self.at, learning_rate=learning_rate, epochs=[], step=0, seen=0, steps=0)
        self._begin()

    def kind(self) -> Hashable | None:
        """What trainings must have in common to be stacked now: the network, how it is trained and how far it is; None
        for one that is not to be stacked."""
        if not self.stacks:
            return None
        at, arguments = self.at, repr(sorted(self.model_args.items()))
        network = self.job.model_name, arguments, self.bfloat16, self.own_kernels
        return *network, self.batches.dataset, self.recipe, self.device, at.learning_rate, len(at.epochs), at.step

    def stack(self, others: Sequence["_Fit"]) -> None:
        """Have the steps of this training and of others of its kind done together from now on."""
        fits = [self, *others]
        synchronize(self.device)
        streams = [fit._stream for fit in fits if fit._stream]
        stack = Stack(self._start(), self._step_of, [fit._tensors() for fit in fits], streams)
        for number, fit in enumerate(fits):
            fit.step = stack.seed(number, fit.model)
            # Measured for each alone, where two may differ by noise.
            fit.at.compile = fit.at.compile | {"compiled": self.at.compile["compiled"]}
        synchronize(self.device)

    def leave_stack(self) -> None:
        """Go on alone, from before the stack's first step if that has not been done."""
        assert isinstance(self.step, Seed)
        synchronize(self.device)
        before = self.step.stack.begun_from
        with self.stream():
            self._load(self._tensors() if before is None else before[self.step.number])
        synchronize(self.device)  # before the memory of the stack is given to others

    def stay_alone(self, others: Sequence["_Fit"], reason: str) -> None:
        """Never be stacked, nor these others; the reason is told."""
        for fit in (self, *others):
            fit.stacks = False
        self.warn(f"{self.job.model_name}: its seeds go on one by one, since they could not be stacked: {reason}")

    def run(self) -> Run:
        """Do all that is left, asking for each step; returns the result."""
        least = feasible.LEAST_LEARNING_RATE
        while (yield from self._one_try()) != feasible.TRAINED and self.at.learning_rate / 2 >= least:
            self._start_over(self.at.learning_rate / 2)
        at, recipe = self.at, self.recipe
        trained = at.tries[-1]["outcome"] == feasible.TRAINED
        errors: dict[str, float | None] = dict.fromkeys(("top1", "top5", "best_top1"))
        if trained:
            last = at.epochs[-1]
            errors = {"top1": last["top1"], "top5": last["top5"]}
            errors["best_top1"] = min(epoch["top1"] for epoch in at.epochs)
            if recipe.ten_crop:
                ten = self._test(ten_crop=True)
                errors |= {"top1_10crop": ten["top1"], "top5_10crop": ten["top5"]}
        else:
            self._start_over(recipe.learning_rate)  # initial weights, so that the net can still be exported and timed
        if self.group.rank == 0:
            _save(self.model, self.job, self.model_args)
        return {
            **errors,
            "trained": trained,
            "tries": at.tries,
            "epochs": at.epochs,
            "steps": at.steps,
            "test_images": self.batches.test_images,
            "device": self.device.type,
            "precision": "bfloat16 autocast" if self.bfloat16 else "float32",
            "compiled": at.compile["compiled"],
            "kernels": "triton" if self.step.convolutions_by_kernels else "library",
            "processes": self.group.size,
            "batch_per_process": -(-recipe.batch_size // self.group.size),
            "timing": {
                "training_seconds": at.seconds,
                "images_per_second": at.images / at.seconds,
                "packed": self.packed,
                "stacked": at.stacked,
                "blocks_twice": self.step.blocks_twice,
                **{name: value for name, value in at.compile.items() if name != "compiled"},
            },
        }

    def _one_try(self) -> Generator[Request | None, Tensor | None, str]:
        """Train at the present learning rate to the end, or until it turns out to be infeasible; says which."""
        outcome = feasible.TRAINED
        while outcome == feasible.TRAINED and (self.at.steps < self.total or self.at.step):
            outcome = yield from self._epoch()
        last_loss = self._last_loss()
        tried = {
            "learning_rate": self.at.learning_rate,
            "epochs": len(self.at.epochs),
            "steps": self.at.steps,
            "last_loss": last_loss if math.isfinite(last_loss) else None,
            "train_error": self.at.epochs[-1]["train_error"],
            "dead_units": None if outcome == feasible.NOT_FINITE else self._dead_units(),
            "outcome": outcome,
        }
        self.at.tries.append(tried)
        return outcome

    def _last_loss(self) -> float:
        """The mean loss of the last steps, of all processes; not a number if none is known, as after a checkpoint of an
        earlier version."""
        losses = list(self.last_losses)
        mean = torch.stack(losses).double().mean().item() if losses else math.nan
        return self.group.sums(mean)[0] / self.group.size

    def _dead_units(self) -> float | None:
        images, _ = next(iter(self.batches.test()))
        with measured_convolutions():
            share = feasible.dead_units(self.model, images)
        self._mark = perf_counter()
        return share

    def _epoch(self) -> Generator[Request | None, Tensor | None, str]:
        """Do what is left of an epoch, and test; says what came of it."""
        at, number = self.at, len(self.at.epochs) + 1
        rate = self._learning_rate()
        self.step.set_learning_rate(rate)
        images, seconds = at.images, at.seconds
        yield from self._steps(number)
        loss_sum, hits = self.group.sums(float(self.step.loss_sum), float(self.step.hits))
        self._count_time()  # reading the sums has waited for the device
        loss, error = loss_sum / at.seen, 100 - 100 * hits / at.seen
        if self.device.type == "cpu":
            memory.give_back()
        # The last step can spoil the weights after its loss was read, so the test's logits must be finite too.
        tested = self._test(quick=at.steps < self.total) if math.isfinite(loss) else {}
        self._mark = perf_counter()
        judged = number == feasible.FIRST_EPOCHS and at.step == self.batches.steps_per_epoch
        outcome = feasible.TRAINED
        if not tested.pop("finite", False):
            outcome = feasible.NOT_FINITE
        elif judged and not feasible.beats_chance(error, self.batches.dataset.train.labels):
            outcome = feasible.NO_BETTER
        train_loss = loss if math.isfinite(loss) else None
        entry = {"epoch": number, "learning_rate": rate, "train_loss": train_loss, "train_error": error, **tested}
        at.epochs.append(entry)
        self.job.on_epoch(entry, (at.images - images) / max(at.seconds - seconds, 1e-9))
        at.step = at.seen = 0
        self.step.loss_sum.zero_()
        self.step.hits.zero_()
        return outcome

    def _test(self, quick: bool = False, ten_crop: bool = False) -> dict[str, Any]:
        """Test the network that is saved: each process has had statistics of its own part of the last batch since.

        On a GPU a quick test is in the precision of training; the others are in float32, as on a CPU all are.
        """
        self.group.spread(self.model.buffers())
        with measured_convolutions():
            return evaluate(self.model, self.batches.test(ten_crop), self.group, self._quick if quick else None)

    def _steps(self, epoch: int) -> Generator[Request | None, Tensor | None]:
        """Do what is left of an epoch's steps; a loss that is not finite ends them early."""
        at = self.at
        self.model.train()
        self._mark, self._waited = perf_counter(), 0.0
        images_before, seconds_before = at.images, at.seconds
        feed = iter(self.batches.train(self.job.seed, epoch, skip=at.step))
        while at.steps < self.total:
            start = perf_counter()
            batch = next(feed, None)
            self._waited += perf_counter() - start
            if batch is None:
                break
            count = self.batches.batch_size_of(at.step)
            loss = yield *batch, count
            assert loss is not None
            # A copy, since a captured graph writes each step's loss to the same place.
            self.last_losses.append(loss.clone())
            at.step += 1
            at.steps += 1
            at.stacked = max(at.stacked, self.step.stack.size if isinstance(self.step, Seed) else 1)
            at.seen += count
            at.images += count
            self._count_time()
            seconds = at.seconds - seconds_before
            speed = (
                f"{(at.images - images_before) / seconds:,.0f} images/s, {100 * self._waited / seconds:.0f} % data wait"
            )
            epochs = -(-self.total // self.batches.steps_per_epoch)
            self.job.on_step(at.steps, self.total, f"epoch {epoch}/{epochs}, {speed}" if epochs > 1 else speed)
            if not self._finite():
                break
            yield None

    def _finite(self) -> bool:
        """Whether the losses are finite as far as is known; several processes find the same."""
        if self.group.size == 1:
            return self.watch.finite(self.step.loss_sum)
        if self.at.steps % AGREE_EVERY:
            return True
        return math.isfinite(self.group.sums(float(self.step.loss_sum))[0])

    def _count_time(self) -> None:
        now = perf_counter()
        self.at.seconds += now - self._mark
        self._mark = now

    def due(self, interruption: Interruption) -> bool:
        """Whether it is time for a checkpoint; notes in `must_stop` that an interruption is pending, here or in another
        process, before which there will be one anyway."""
        due = monotonic() - self._last_checkpoint > CHECKPOINT_SECONDS
        stop = interruption.pending
        if self.group.size > 1:
            if self.at.steps % AGREE_EVERY:
                return False
            due, stop = (value > 0 for value in self.group.sums(float(due), float(stop)))
        self.must_stop = stop
        return due and not stop

    def checkpoint(self) -> None:
        """Save everything that the rest of the training depends on; all processes of a group must call this."""
        with self.stream():
            self._checkpoint()
        self._last_checkpoint = monotonic()

    def _checkpoint(self) -> None:
        tensors = self._tensors()
        if self.job.checkpoints is not None and self.group.rank == 0:
            # Counted over all tries, so that a later checkpoint has the higher number.
            checkpoint.write(self.job.checkpoints, self.at.images, tensors, asdict(self.at))

    def _tensors(self) -> dict[str, Tensor]:
        """All tensors that the rest of the training depends on; all processes of a group must call this."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"momentum.{name}": value for name, value in self.step.momenta().items()}
        loss_sum, hits = self.group.sums(float(self.step.loss_sum), float(self.step.hits))
        tensors |= {"loss_sum": torch.tensor(loss_sum), "hits": torch.tensor(hits)}
        if self.last_losses:
            tensors["last_losses"] = torch.stack(list(self.last_losses))
        return tensors

    def _restore(self, tensors: State, state: dict[str, Any]) -> None:
        self.at = _Position(**state)
        self._load(tensors)

    def _load(self, tensors: State) -> None:
        """Go on from these, alone."""
        self._begin()
        assert isinstance(self.step, Step)
        self.model.load_state_dict({name: tensors[f"model.{name}"] for name in self.model.state_dict()})
        self.step.set_momenta(below("momentum.", tensors))
        if self.group.rank == 0:  # which then stands for all
            self.step.loss_sum.copy_(tensors["loss_sum"])
            self.step.hits.copy_(tensors["hits"])
        if "last_losses" in tensors:  # which a checkpoint of an earlier version has not
            self.last_losses.extend(tensors["last_losses"].to(self.device))


def _save(model: nn.Module, job: Job, model_args: dict[str, Any]) -> None:
    """Write weights and what timm needs to load them: class count, class names, mean and std on [0, 1]."""
    dataset = job.batches.dataset
    statistics: dict[str, Any] = {name: [value / 255 for value in getattr(dataset, name)] for name in ("mean", "std")}
    described = statistics | {"label_names": list(dataset.classes)}
    weights.keep(model, job.model_name, model_args, described, job.out)
