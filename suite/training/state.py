"""The state of one training: its network and optimiser, made, stacked with other seeds,
saved and restored."""

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import timm
import torch
from msgspec import UNSET, convert, structs
from torch import Tensor, nn

import models  # noqa: F401 - registers the networks with timm
from suite.interrupt import Interruption
from suite.training import checkpoint, feasible, fused_norm, kernels
from suite.training.compiling import TRIAL, try_compile
from suite.training.grouped import obstacle
from suite.training.job import Job
from suite.training.pack import synchronize
from suite.training.position import Compiling, Position
from suite.training.stacked import Seed, Stack, State, without_prefix
from suite.training.step import Engine, Step
from suite.training.testing import quick_forward


class TrainingState:
    """All that a training is made of and has come to.

    Args:
        job: what to train.
        engine: how to compute it.
        warn: told of what failed and is done in another way.
        trials: what was measured to decide on torch.compile, by network; seeds of a
            network in the same pack share it.
        interruption: a pending one ends the measuring of torch.compile, and with it the
            training, of which nothing is done then.

    Attributes:
        at: how far it is.
        model: the network.
        step: how its steps are done: by its own, or together with those of other seeds.
        watch: of its losses.
        last_losses: on the device.
    """

    def __init__(
        self,
        job: Job,
        engine: Engine,
        warn: Callable[[str], None],
        trials: dict[Hashable, Compiling],
        interruption: Interruption,
    ) -> None:
        self.job, self.batches = job, job.batches
        self.recipe, self.device, self.group = self.batches.recipe, self.batches.device, self.batches.group
        self.model_args = {"num_classes": len(self.batches.dataset.classes)} | job.model_args
        self.bfloat16 = engine.bfloat16_on(self.device)
        self.own_kernels = engine.wants_kernels_on(self.device, self.recipe)
        if self.own_kernels and (fault := kernels.why_unusable(self.device) or fused_norm.why_unusable(self.device)):
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
        on_gpu = self.device.type == "cuda"
        self._stream = torch.cuda.Stream(self.device) if on_gpu else None  # type: ignore[no-untyped-call] # torch has no types here
        saved = checkpoint.read(job.checkpoints, warn) if job.checkpoints and self.group.rank == 0 else None
        saved = self.group.share(saved)
        with self.stream():
            if saved:
                self._restore(*saved)
            else:
                self.at = Position(
                    learning_rate=self.recipe.learning_rate,
                    compile=self._decide_on_compile(engine, trials, interruption),
                )
                self._begin()

    def note_what_computes(self) -> None:
        """Keep what the next steps are computed by, for the record."""
        at = self.at
        for known, now in (
            (at.devices, self.device.type),
            (at.precisions, "bfloat16 autocast" if self.bfloat16 else "float32"),
            (at.kernels, "triton" if self.step.convolutions_by_kernels else "library"),
        ):
            if now not in known:
                known.append(now)

    def stream(self) -> AbstractContextManager[Any]:
        """Where this network's work is queued."""
        return torch.cuda.stream(self._stream) if self._stream else nullcontext()

    def _decide_on_compile(
        self, engine: Engine, trials: dict[Hashable, Compiling], interruption: Interruption
    ) -> Compiling:
        if engine.compile != "auto":
            return Compiling(compiled=engine.compile == "always")
        if self.group.size > 1:
            return Compiling(compiled=self.device.type == "cuda")
        if self.total <= 10 * TRIAL:  # which would take longer to decide on
            return Compiling(compiled=False)
        network = self._network()
        if network not in trials:
            images, labels = next(iter(self.batches.train(self.job.seed, 1)))
            batch = images, labels
            how = self.bfloat16, batch, self.total, self.own_kernels, interruption
            found = try_compile(self._start(), self.recipe, *how)
            trials[network] = found
            if found.compile_error is not UNSET:
                self.warn(f"{self.job.model_name}: goes on without torch.compile, which failed: {found.compile_error}")
        return trials[network]

    def _network(self) -> Hashable:
        """What all seeds of a network have in common: the network, and how it is
        trained."""
        arguments = repr(sorted(self.model_args.items()))
        how = self.bfloat16, self.own_kernels, self.batches.dataset, self.recipe, self.device
        return self.job.model_name, arguments, *how

    def _start(self) -> nn.Module:
        """The network with the initial weights of its seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.job.seed)
            model: nn.Module = timm.create_model(self.job.model_name, **self.model_args)
            return model

    def _step_of(self, model: nn.Module, seeds: int = 1) -> Step:
        """The step of a network, or of so many side by side."""
        how = self.bfloat16, self.at.compile.compiled, self.group, self.own_kernels, seeds
        step = Step(model, self.recipe, self.device, *how)
        step.set_learning_rate(self.learning_rate())
        return step

    def learning_rate(self) -> float:
        """That of the present epoch."""
        tried = replace(self.recipe, learning_rate=self.at.learning_rate)
        return tried.learning_rate_at(len(self.at.epochs) + 1)

    def _begin(self) -> None:
        """Initial weights and a fresh optimiser."""
        self.step: Step | Seed = self._step_of(self._start())
        self.model = self.step.model
        self.quick_forward = quick_forward(self.model, self.device, self.bfloat16)
        self.watch = feasible.LossWatch(self.device)
        self.last_losses: deque[Tensor] = deque(maxlen=feasible.LAST_STEPS)  # on the device

    def start_over(self, learning_rate: float) -> None:
        """Begin again with initial weights; the tries so far stay in the record."""
        nothing = dict(epochs=[], step=0, seen=0, steps=0, devices=[], precisions=[], kernels=[])
        self.at = structs.replace(self.at, learning_rate=learning_rate, **nothing)
        self._begin()

    def kind(self) -> Hashable | None:
        """What trainings must have in common to be stacked now: the network, how it is
        trained and how far it is; None for one that is not to be stacked."""
        if not self.stacks:
            return None
        return self._network(), self.at.learning_rate, len(self.at.epochs), self.at.step

    def stack(self, others: Sequence["TrainingState"]) -> None:
        """Have the steps of this training and of others of its kind done together from
        now on."""
        fits = [self, *others]
        synchronize(self.device)
        streams = [fit._stream for fit in fits if fit._stream]
        stack = Stack(self._start(), self._step_of, [fit.tensors() for fit in fits], streams)
        for number, fit in enumerate(fits):
            fit.step = stack.seed(number, fit.model)
            # Measured for each alone, where two may differ by noise.
            fit.at.compile = structs.replace(fit.at.compile, compiled=self.at.compile.compiled)
        synchronize(self.device)

    def leave_stack(self) -> None:
        """Go on alone, from before the stack's first step if that has not been done."""
        assert isinstance(self.step, Seed)
        synchronize(self.device)
        before = self.step.stack.begun_from
        with self.stream():
            self._load(self.tensors() if before is None else before[self.step.number])
        synchronize(self.device)  # before the memory of the stack is given to others

    def stay_alone(self, others: Sequence["TrainingState"], reason: str) -> None:
        """Never be stacked, nor these others; the reason is told."""
        for fit in (self, *others):
            fit.stacks = False
        self.warn(f"{self.job.model_name}: its seeds go on one by one, since they could not be stacked: {reason}")

    def sums(self) -> list[float]:
        """The loss and the correct predictions of the present epoch, of all
        processes."""
        return self.group.sums(float(self.step.loss_sum), float(self.step.correct))

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that the rest of the training depends on; all processes of a
        group must call this."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"momentum.{name}": value for name, value in self.step.momenta().items()}
        loss_sum, correct = self.sums()
        tensors |= {"loss_sum": torch.tensor(loss_sum), "hits": torch.tensor(correct)}
        if self.last_losses:
            tensors["last_losses"] = torch.stack(list(self.last_losses))
        return tensors

    def _restore(self, tensors: State, state: dict[str, Any]) -> None:
        self.at = convert(state, Position)
        self._load(tensors)

    def _load(self, tensors: State) -> None:
        """Go on from these, alone."""
        self._begin()
        assert isinstance(self.step, Step)
        self.model.load_state_dict({name: tensors[f"model.{name}"] for name in self.model.state_dict()})
        self.step.set_momenta(without_prefix("momentum.", tensors))
        if self.group.rank == 0:  # which then stands for all
            self.step.loss_sum.copy_(tensors["loss_sum"])
            self.step.correct.copy_(tensors["hits"])
        if "last_losses" in tensors:  # which a checkpoint of an earlier version has not
            self.last_losses.extend(tensors["last_losses"].to(self.device))
