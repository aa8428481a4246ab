"""Several trainings at the same time: they take turns step by step, and seeds of one
network do their steps together.

On a GPU each training has a stream of its own, so that the small kernels of one fill
the gaps of the others. Equal networks that are equally far need not even that: they are
stacked (see `suite.training.stacked`).
"""

import traceback
from collections import defaultdict
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from suite.errors import describe_error
from suite.interrupt import Interruption
from suite.training.job import FinishedTraining
from suite.training.stacked import Seed, Stack
from suite.training.step import Step

# Images, labels, and how many images the step has over all processes.
StepBatch = tuple[Tensor, Tensor, int]
# A training asks for a step and is sent its loss. Between two steps, where it can be saved, it asks for nothing.
Run = Generator[StepBatch | None, Tensor | None, FinishedTraining]
Outcome = FinishedTraining | Exception


class Training(Protocol):
    """What takes turns.

    Attributes:
        step: how its steps are done: by its own, or together with those of other seeds.
        must_stop: whether an interruption is pending.
    """

    step: Step | Seed
    must_stop: bool

    def run(self) -> Run:
        """Do all that is left."""

    def stream(self) -> AbstractContextManager[Any]:
        """Where its work is queued."""

    def kind(self) -> Hashable | None:
        """What trainings must have in common to be stacked now: the network, how it is
        trained and how far it is; None for one that is not to be stacked."""

    def stack(self, others: Sequence[Any]) -> None:
        """Have the steps of this training and of others of its kind done together from
        now on."""

    def leave_stack(self) -> None:
        """Go on alone, from before the stack's first step if that has not been done."""

    def stay_alone(self, others: Sequence[Any], reason: str) -> None:
        """Never be stacked, nor these others; the reason is told."""

    def checkpoint_is_due(self, interruption: Interruption) -> bool:
        """Whether it is time for a checkpoint; notes a pending interruption."""

    def checkpoint(self) -> None:
        """Save all that the rest of the training depends on."""


J = TypeVar("J")


@dataclass
class _Turn(Generic[J]):
    job: J
    fit: Training
    run: Run
    request: StepBatch | None = None


def train_in_turns(
    jobs: Sequence[J],
    begin: Callable[[J, bool], Training],
    end: Callable[[J, Outcome], J | None],
    interruption: Interruption,
) -> list[Outcome]:
    """Do trainings at the same time.

    Args:
        jobs: what to begin with.
        begin: begins a training; the second argument says whether others are under way.
        end: told of a training's result, or of the exception that ended it, which does
            not end the others; returns what to begin in its place.
        interruption: a pending one is delivered once all trainings are saved.

    Returns:
        The outcomes in the order of the beginnings.
    """
    pack = _Pack(jobs, begin, end, interruption)
    while pack.waiting or pack.turns:
        pack.round()
    return [pack.outcomes[index] for index in sorted(pack.outcomes)]


class _Pack(Generic[J]):
    """Trainings that take turns, by the order of their beginnings: `waiting` to begin,
    under way in `turns`, or ended with one of the `outcomes`."""

    def __init__(
        self,
        jobs: Sequence[J],
        begin: Callable[[J, bool], Training],
        end: Callable[[J, Outcome], J | None],
        interruption: Interruption,
    ) -> None:
        self.waiting, self.turns = dict(enumerate(jobs)), dict[int, _Turn[J]]()
        self.outcomes: dict[int, Outcome] = {}
        self._begin, self._end, self._interruption = begin, end, interruption

    def round(self) -> None:
        """Begin what waits, and have each training do a step."""
        while self.waiting:
            self._begin_next()
        for index in list(self.turns):
            if self.turns[index].request is None:
                self._advance(index, None)
        if self.waiting:
            return  # what takes the place of one that ended is to have its first step with the others' next
        for index, reason in _arrange({index: turn.fit for index, turn in self.turns.items()}).items():
            self._finish(index, self.turns[index].job, reason)
        if self.waiting:
            return
        for together in _group_by_step(self.turns):
            self._step(together)
        if any(turn.fit.must_stop for turn in self.turns.values()):
            for turn in self.turns.values():
                turn.fit.checkpoint()
            self._interruption.deliver()

    def _begin_next(self) -> None:
        index = next(iter(self.waiting))
        job = self.waiting.pop(index)
        try:
            fit = self._begin(job, bool(self.turns))
            self.turns[index] = _Turn(job, fit, fit.run())
        except Exception as error:
            self._finish(index, job, error)

    def _advance(self, index: int, loss: Tensor | None) -> None:
        """Have a training go on until it asks for a step, or has done one."""
        turn = self.turns[index]
        try:
            with turn.fit.stream():
                turn.request = turn.run.send(loss)
        except StopIteration as last:
            self._finish(index, turn.job, last.value)
        except Exception as error:
            self._finish(index, turn.job, error)

    def _step(self, together: Sequence[int]) -> None:
        """Do a step of trainings that do it together, and save those that are due."""
        try:
            losses = _compute([self.turns[index] for index in together])
        except Exception as error:
            for index, reason in _redo_alone({index: self.turns[index].fit for index in together}, error).items():
                self._finish(index, self.turns[index].job, reason)
            return
        for index, loss in zip(together, losses, strict=True):
            self._advance(index, loss)
        fits = [self.turns[index].fit for index in together if index in self.turns]
        # Seeds that are saved at the same step are stacked again after a kill.
        due = [fit.checkpoint_is_due(self._interruption) for fit in fits]
        if any(due):
            for fit in fits:
                fit.checkpoint()

    def _finish(self, index: int, job: J, outcome: Outcome) -> None:
        if isinstance(outcome, Exception):
            traceback.clear_frames(outcome.__traceback__)  # which hold its memory
        self.turns.pop(index, None)
        self.outcomes[index] = outcome
        following = self._end(job, outcome)
        if following is not None:
            self.waiting[len(self.outcomes) + len(self.turns) + len(self.waiting)] = following


def _arrange(fits: Mapping[int, Training]) -> dict[int, Exception]:
    """Take stacks apart of which a training ended or began anew, and stack what is of
    one kind and alone; returns what ended those that could not leave their stack."""
    stacks: dict[Stack, dict[int, Training]] = defaultdict(dict)
    for index, fit in fits.items():
        if isinstance(fit.step, Seed):
            stacks[fit.step.stack][index] = fit
    failed: dict[int, Exception] = {}
    for stack, members in stacks.items():
        if len(members) < stack.size:
            for index, fit in members.items():
                try:
                    fit.leave_stack()
                except Exception as error:  # such as too little memory for both
                    failed[index] = error
    kinds: dict[Hashable, list[Training]] = defaultdict(list)
    for index, fit in fits.items():
        if index not in failed and isinstance(fit.step, Step) and (kind := fit.kind()) is not None:
            kinds[kind].append(fit)
    for first, *others in kinds.values():
        if others:
            try:
                first.stack(others)
            except Exception as error:  # such as too little memory; each still has its own step
                first.stay_alone(others, describe_error(error))
    return failed


def _redo_alone(fits: Mapping[int, Training], error: Exception) -> dict[int, Exception]:
    """Have trainings whose first step together has failed do it again each alone;
    returns what ended the others."""
    first, *others = fits.values()
    if not isinstance(first.step, Seed) or first.step.stack.begun_from is None:
        return dict.fromkeys(fits, error)
    first.stay_alone(others, describe_error(error))
    traceback.clear_frames(error.__traceback__)  # which hold its memory
    found: dict[int, Exception] = {}
    for index, fit in fits.items():
        try:
            fit.leave_stack()
        except Exception as reason:
            found[index] = reason
    return found


def _group_by_step(turns: Mapping[int, _Turn[Any]]) -> list[list[int]]:
    """Whose steps are done together, in the order of the first of each."""
    found: dict[int, list[int]] = defaultdict(list)
    for index, turn in turns.items():
        step = turn.fit.step
        found[id(step.stack if isinstance(step, Seed) else step)].append(index)
    return list(found.values())


def _compute(turns: Sequence[_Turn[Any]]) -> list[Tensor]:
    """Do a step of each of these, which are one training or the seeds of one stack;
    returns the losses."""
    fit, requests = turns[0].fit, [turn.request for turn in turns if turn.request]
    if isinstance(fit.step, Seed):
        return fit.step.stack([(images, labels) for images, labels, _ in requests])
    with fit.stream():
        return [fit.step(*requests[0])]


def synchronize(device: torch.device) -> None:
    """Wait for all streams of a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
