"""Seeds of one network trained as one: a step of all of them has as many launches as a
step of one alone.

A `Stack` is made from the training states of equal networks and can be taken apart into
them again at any step. Such a state is what a checkpoint holds of a network, so that a
seed goes on in a stack or alone, whichever it was saved in.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from suite.data.batches import Batch
from suite.training.grouped import join, part, share, side_by_side
from suite.training.step import Step

# Weights and buffers as "model.NAME", momentum as "momentum.NAME", and of the epoch "loss_sum" and "hits", its correct
# predictions.
State = Mapping[str, Tensor]


class Stack:
    """Equal networks whose steps are done together, each with its own images.

    Args:
        network: one of them, on the CPU, whose values do not matter; it becomes the
            network of all.
        step_of: makes the step of the network that holds so many.
        states: of each.
        streams: of a GPU, where each makes its batches and reads its losses; the stack
            has a further one.

    Attributes:
        size: how many networks there are.
        begun_from: the states, until a step has been done.
    """

    def __init__(
        self,
        network: nn.Module,
        step_of: Callable[[nn.Module, int], Step],
        states: Sequence[State],
        streams: Sequence[torch.cuda.Stream] = (),
    ) -> None:
        self.size = len(states)
        self.begun_from: Sequence[State] | None = states
        self._streams = streams
        self._stream = torch.cuda.Stream(streams[0].device) if streams else None  # type: ignore[no-untyped-call] # torch has no types here
        with self._queue():
            self.step = step_of(side_by_side(network, self.size), self.size)
            self.step.model.train()
            names = [name for name in states[0] if name.startswith(("model.", "momentum."))]
            joined = {name: join([state[name] for state in states]) for name in names}
            self.step.model.load_state_dict(without_prefix("model.", joined))
            self.step.set_momenta(without_prefix("momentum.", joined))
            for name, total in (("loss_sum", self.step.loss_sum), ("hits", self.step.correct)):
                total.copy_(torch.stack([state[name] for state in states]))
        self._losses: Tensor | None = None

    def seed(self, number: int, model: nn.Module) -> "Seed":
        """One of the networks. `model` then holds its weights and statistics as they
        are trained."""
        share(model, self.step.model.state_dict(keep_vars=False), number, self.size)
        return Seed(self, number, model)

    def __call__(self, batches: Sequence[Batch]) -> list[Tensor]:
        """Do one step, of a batch for each network; returns the mean loss of each, on
        the device."""
        images, labels = zip(*batches, strict=True)
        with self._queue() as own:
            for stream in self._streams:
                own.wait_stream(stream)
            losses = self.step(torch.cat(images, dim=1), torch.stack(labels, dim=1))
            for stream in self._streams:
                stream.wait_stream(own)
        self.begun_from = None
        return list(losses)

    @contextmanager
    def _queue(self) -> Iterator[Any]:
        """Work in the stack's own stream."""
        with torch.cuda.stream(self._stream) if self._stream else nullcontext():
            yield self._stream


class Seed:
    """One network of a stack, with what a `Step` tells of a network that is trained
    alone."""

    def __init__(self, stack: Stack, number: int, model: nn.Module) -> None:
        self.stack, self.number, self.model = stack, number, model
        self.loss_sum, self.correct = stack.step.loss_sum[number], stack.step.correct[number]
        self.blocks_twice = stack.step.blocks_twice
        self.convolutions_by_kernels = stack.step.convolutions_by_kernels

    def set_learning_rate(self, rate: float) -> None:
        """Use this rate from the next step on; all of a stack use the same."""
        self.stack.step.set_learning_rate(rate)

    def momenta(self) -> dict[str, Tensor]:
        """As `Step.momenta`."""
        momenta = self.stack.step.momenta()
        return {name: part(momentum, self.number, self.stack.size) for name, momentum in momenta.items()}


def without_prefix(prefix: str, tensors: State) -> dict[str, Tensor]:
    """What has this prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
