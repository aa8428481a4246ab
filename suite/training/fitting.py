"""The training of one network: tries at falling learning rates, epoch by epoch and step
by step."""

import math
from collections.abc import Callable, Generator, Hashable
from time import monotonic, perf_counter

import torch
from msgspec import UNSET, structs, to_builtins
from torch import Tensor

import models  # noqa: F401 - registers the networks with timm
from suite.export import trained
from suite.interrupt import Interruption
from suite.schema.outcomes import Epoch, Errors, TrainResult, Try, none_if_unset
from suite.schema.speed import CompileTrial, TrainTiming
from suite.training import checkpoint, feasible, memory
from suite.training.job import FinishedTraining, Job
from suite.training.pack import Run, StepBatch
from suite.training.position import Compiling
from suite.training.stacked import Seed
from suite.training.state import TrainingState
from suite.training.step import Engine
from suite.training.testing import ErrorRates, benchmark_convolutions, evaluate

# A kill costs at most the work of so long.
CHECKPOINT_SECONDS = 30.0
# Steps between two questions of several processes to each other whether one of them is to stop.
AGREE_EVERY = 10


class Fit(TrainingState):
    """The fitting of one network: tries at falling learning rates, each of which can be
    taken up at any step."""

    def __init__(
        self,
        job: Job,
        engine: Engine,
        packed: int,
        warn: Callable[[str], None],
        trials: dict[Hashable, Compiling],
        interruption: Interruption,
    ) -> None:
        super().__init__(job, engine, warn, trials, interruption)
        self.packed, self.must_stop = packed, False
        self._last_checkpoint = monotonic()
        self._mark = perf_counter()  # until when `at.seconds` counts
        self._waited = 0.0  # seconds of the present epoch in which the next batch was waited for

    def run(self) -> Run:
        """Do all that is left, asking for each step; returns the result."""
        least = feasible.LEAST_LEARNING_RATE
        while (yield from self._one_try()) != feasible.TRAINED and self.at.learning_rate / 2 >= least:
            self.start_over(self.at.learning_rate / 2)
        last = self.at
        trained = last.tries[-1].outcome == feasible.TRAINED
        errors = self._errors() if trained else Errors(top1=None, top5=None)
        if not trained:
            self.start_over(self.recipe.learning_rate)  # so that the net can still be exported and timed
        if self.group.rank == 0:
            self._save()
        result = TrainResult(
            **structs.asdict(errors),
            best_top1=min(error for epoch in last.epochs if (error := none_if_unset(epoch.top1)) is not None)
            if trained
            else None,
            trained=trained,
            tries=last.tries,
            epochs=last.epochs,
            steps=last.steps,
            test_images=self.batches.test_images,
            device=", ".join(last.devices),
            precision=", ".join(last.precisions),
            compiled=last.compile.compiled,
            kernels=", ".join(last.kernels),
            processes=self.group.size,
            batch_per_process=-(-self.recipe.batch_size // self.group.size),
        )
        return FinishedTraining(result, self._timing())

    def _errors(self) -> Errors:
        """The test errors of the last epoch, and those by ten crops where the recipe
        asks for them."""
        last = self.at.epochs[-1]
        if not self.recipe.ten_crop:
            return Errors(top1=last.top1, top5=last.top5)
        ten = self._test(ten_crop=True)
        return Errors(top1=last.top1, top5=last.top5, top1_10crop=ten.top1, top5_10crop=ten.top5)

    def _timing(self) -> TrainTiming:
        at = self.at
        return TrainTiming(
            training_seconds=at.seconds,
            images_per_second=at.images / at.seconds,
            packed=self.packed,
            stacked=at.stacked,
            blocks_twice=self.step.blocks_twice,
            **{name: getattr(at.compile, name) for name in CompileTrial.__struct_fields__},
        )

    def _one_try(self) -> Generator[StepBatch | None, Tensor | None, str]:
        """Train at the present learning rate to the end, or until it turns out to be
        infeasible; says which."""
        outcome = feasible.TRAINED
        while outcome == feasible.TRAINED and (self.at.steps < self.total or self.at.step):
            outcome = yield from self._epoch()
        last_loss = self._last_loss()
        tried = Try(
            learning_rate=self.at.learning_rate,
            epochs=len(self.at.epochs),
            steps=self.at.steps,
            last_loss=last_loss if math.isfinite(last_loss) else None,
            train_error=self.at.epochs[-1].train_error,
            dead_units=None if outcome == feasible.NOT_FINITE else self._dead_units(),
            outcome=outcome,
        )
        self.at.tries.append(tried)
        return outcome

    def _last_loss(self) -> float:
        """The mean loss of the last steps, of all processes; not a number if none is
        known, as after a checkpoint of an earlier version."""
        losses = list(self.last_losses)
        mean = torch.stack(losses).double().mean().item() if losses else math.nan
        return self.group.sums(mean)[0] / self.group.size

    def _dead_units(self) -> float | None:
        images, _ = next(iter(self.batches.test()))
        with benchmark_convolutions():
            share = feasible.dead_units(self.model, images)
        self._mark = perf_counter()
        return share

    def _epoch(self) -> Generator[StepBatch | None, Tensor | None, str]:
        """Do what is left of an epoch, and test; says what came of it."""
        at, number = self.at, len(self.at.epochs) + 1
        rate = self.learning_rate()
        self.step.set_learning_rate(rate)
        images, seconds = at.images, at.seconds
        yield from self._steps(number)
        loss_sum, correct = self.sums()
        self._count_time()  # reading the sums has waited for the device
        loss, error = loss_sum / at.seen, 100 - 100 * correct / at.seen
        if self.device.type == "cpu":
            memory.release_free_memory()
        # The last step can spoil the weights after its loss was read, so the test's logits must be finite too.
        tested = self._test(quick=at.steps < self.total) if math.isfinite(loss) else None
        self._mark = perf_counter()
        judged = number == feasible.FIRST_EPOCHS and at.step == self.batches.steps_per_epoch
        outcome = feasible.TRAINED
        if tested is None or not tested.finite:
            outcome = feasible.NOT_FINITE
        elif judged and not feasible.beats_chance(error, self.batches.dataset.train.labels):
            outcome = feasible.NO_BETTER
        epoch = Epoch(
            epoch=number,
            learning_rate=rate,
            train_loss=loss if math.isfinite(loss) else None,
            train_error=error,
            top1=tested.top1 if tested else UNSET,
            top5=tested.top5 if tested else UNSET,
        )
        at.epochs.append(epoch)
        self.job.on_epoch(epoch, (at.images - images) / max(at.seconds - seconds, 1e-9))
        at.step = at.seen = 0
        self.step.loss_sum.zero_()
        self.step.correct.zero_()
        return outcome

    def _test(self, quick: bool = False, ten_crop: bool = False) -> ErrorRates:
        """Test the network that is saved: each process has had statistics of its own
        part of the last batch since.

        On a GPU a quick test is in the precision of training; the others are in
        float32, as on a CPU all are.
        """
        self.group.spread(self.model.buffers())
        with benchmark_convolutions():
            return evaluate(self.model, self.batches.test(ten_crop), self.group, self.quick_forward if quick else None)

    def _steps(self, epoch: int) -> Generator[StepBatch | None, Tensor | None]:
        """Do what is left of an epoch's steps; a loss that is not finite ends them
        early."""
        at = self.at
        self.model.train()
        self._mark, self._waited = perf_counter(), 0.0
        images_before, seconds_before = at.images, at.seconds
        feed = iter(self.batches.train(self.job.seed, epoch, skip=at.step))
        if at.steps < self.total:
            self.note_what_computes()
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
        """Whether the losses are finite as far as is known; several processes find the
        same."""
        if self.group.size == 1:
            return self.watch.finite(self.step.loss_sum)
        if self.at.steps % AGREE_EVERY:
            return True
        return math.isfinite(self.group.sums(float(self.step.loss_sum))[0])

    def _count_time(self) -> None:
        now = perf_counter()
        self.at.seconds += now - self._mark
        self._mark = now

    def checkpoint_is_due(self, interruption: Interruption) -> bool:
        """Whether it is time for a checkpoint; notes in `must_stop` that an
        interruption is pending, here or in another process, before which there will be
        one anyway."""
        due = monotonic() - self._last_checkpoint > CHECKPOINT_SECONDS
        stop = interruption.pending
        if self.group.size > 1:
            if self.at.steps % AGREE_EVERY:
                return False
            due, stop = (value > 0 for value in self.group.sums(float(due), float(stop)))
        self.must_stop = stop
        return due and not stop

    def checkpoint(self) -> None:
        """Save everything that the rest of the training depends on; all processes of a
        group must call this."""
        with self.stream():
            self._checkpoint()
        self._last_checkpoint = monotonic()

    def _checkpoint(self) -> None:
        tensors = self.tensors()
        if self.job.checkpoints is not None and self.group.rank == 0:
            # Counted over all tries, so that a later checkpoint has the higher number.
            checkpoint.write(self.job.checkpoints, self.at.images, tensors, to_builtins(self.at))

    def _save(self) -> None:
        """Write weights and what timm needs to load them: class count, class names,
        mean and std on [0, 1]."""
        dataset = self.batches.dataset
        described: dict[str, object] = {
            name: [value / 255 for value in getattr(dataset, name)] for name in ("mean", "std")
        }
        described["label_names"] = list(dataset.classes)
        trained.save(self.model, self.job.model_name, self.model_args, described, self.job.out)
