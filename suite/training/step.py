"""One training step: forward, loss, gradient and update, as fast as the device lets it
be.

How it is computed changes speed and rounding, never the recipe: bfloat16 autocast with
float32 weights, channels_last throughout, torch.compile, and on a GPU a CUDA graph for
each batch size, so that a step is one launch.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from models import SubsampleAndPad
from suite import env
from suite.distributed import ALONE, Group
from suite.tables.spec import Recipe
from suite.training import fused_norm, kernels, memory

Precision = Literal["auto", "float32", "bfloat16"]
Compile = Literal["auto", "always", "never"]
Kernels = Literal["auto", "library"]
Stacks = Literal["auto", "always", "never"]

# Steps of a batch size that run launch by launch before its CUDA graph is captured: libraries choose their kernels
# in the first, and the optimiser makes its momentum.
STEPS_BEFORE_CAPTURE = 3
# Kinds of blocks, or networks without blocks, that a process can compile.
KINDS = 1000


@dataclass(frozen=True)
class Engine:
    """How steps are to be computed.

    Attributes:
        precision: of the activations; "auto" is bfloat16 where the device multiplies it
            faster than float32 (a CUDA GPU, a CPU with AVX512-BF16 or AMX), else
            float32. Weights, sums and the last test are float32 at all times, on a CPU
            all tests. Float32 is never TF32 (see `suite.tf32`).
        compile: whether torch.compile is used, of residual blocks; "auto" decides from
            steps that it measures, but for several processes, which on GPUs always use
            it and on CPUs never.
        kernels: of convolutions, and of BatchNorm with what follows it; "auto" is our
            own in Triton where they fit: bfloat16 on a GPU, few channels.
        stack: whether seeds of one network that are trained at the same time are
            trained as one network; "auto" is where our own kernels compute, which share
            their launches between seeds. Libraries are slow at convolutions of many
            groups.
    """

    precision: Precision = "auto"
    compile: Compile = "auto"
    kernels: Kernels = "auto"
    stack: Stacks = "auto"

    def bfloat16_on(self, device: torch.device) -> bool:
        """Whether steps on this device run under bfloat16 autocast."""
        if self.precision == "auto":
            return device.type == "cuda" or env.cpu_multiplies_bfloat16()
        return self.precision == "bfloat16"

    def wants_kernels_on(self, device: torch.device, recipe: Recipe) -> bool:
        """Whether networks trained by this recipe on this device are to use our own
        kernels, if these work there.

        Only CIFAR's networks are. Images of 224 pixels keep cuDNN busy, and nobody has
        compared the two there.
        """
        cifar = recipe.augment == "cifar"
        return self.kernels == "auto" and device.type == "cuda" and cifar and self.bfloat16_on(device)

    def stacks(self, own_kernels: bool) -> bool:
        """Whether seeds of a network are to be trained as one, where our own kernels
        compute or not."""
        return own_kernels if self.stack == "auto" else self.stack == "always"


AUTOMATIC = Engine()


class Step:
    """A network with its optimiser; a call does one training step.

    Args:
        model: gets its gradients and updates in place; moved to `device`.
        recipe: of the optimiser.
        device: where model and batches lie.
        bfloat16: whether to run under bfloat16 autocast.
        compiled: whether to use torch.compile in training, of each residual block; what
            it makes of one serves all that are like it, in other networks of this
            process too, and all batch sizes.
        group: the processes that share each batch.
        own_kernels: whether layers use our own kernels where they fit (see `kernels`,
            `fused_norm`).
        seeds: how many equal networks the model holds side by side (see `grouped`).
            Each is trained as it would be alone.

    Attributes:
        model, optimizer: as they are trained.
        loss_sum, correct: loss and correct predictions over all images since they were
            last zeroed, on the device, so that the host never waits for a GPU's step.
            Of several seeds they are vectors (seeds,).
        blocks_twice: how many blocks are computed twice to keep less (see `memory`); on
            the CPU and by CIFAR's recipe only, and not under torch.compile, which
            chooses what to keep itself.
        convolutions_by_kernels, norms_by_kernels: how many layers use our own
            kernels.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        device: torch.device,
        bfloat16: bool,
        compiled: bool = False,
        group: Group = ALONE,
        own_kernels: bool = False,
        seeds: int = 1,
    ) -> None:
        self.model = keep_channels_last(model.to(device))
        self.convolutions_by_kernels = kernels.use_kernels(self.model, compiled) if own_kernels else 0
        self.norms_by_kernels = fused_norm.use_norms(self.model) if own_kernels and not compiled else 0
        if compiled:
            _compile(self.model)
        self.device, self.bfloat16, self.group = device, bfloat16, group
        self.blocks_twice, self._fits = 0, True
        if device.type == "cpu" and not compiled and recipe.augment == "cifar":
            images = -(-recipe.batch_size // group.size), 3 * seeds, recipe.train_size, recipe.train_size
            self.blocks_twice, self._fits = memory.recompute_activations(self.model, images, 2 if bfloat16 else 4)
        # A GPU reads the rate from its memory, where a captured graph finds the present value.
        self._rate = torch.tensor(recipe.learning_rate, device=device) if device.type == "cuda" else None
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=recipe.learning_rate if self._rate is None else self._rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.momentum > 0,
            fused=True,
        )
        self.loss_sum = torch.zeros((seeds,) if seeds > 1 else (), device=device)
        self.correct = torch.zeros_like(self.loss_sum)
        forward: Callable[[Tensor], Tensor] = self.model
        if group.size > 1:
            forward = DistributedDataParallel(self.model, device_ids=[device] if device.type == "cuda" else None)
        self._forward = forward
        self._graphs: dict[int, Graph] | None = {} if device.type == "cuda" and group.size == 1 else None
        self._calls: Counter[int] = Counter()

    def set_learning_rate(self, rate: float) -> None:
        """Use this rate from the next step on."""
        if self._rate is not None:
            self._rate.fill_(rate)
            return
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def momenta(self) -> dict[str, Tensor]:
        """The momentum of each parameter by its name; none before the first step, or
        for a momentum of 0."""
        state = self.optimizer.state
        found = {name: state[value].get("momentum_buffer") for name, value in self.model.named_parameters()}
        return {name: momentum for name, momentum in found.items() if momentum is not None}

    def set_momenta(self, momenta: Mapping[str, Tensor]) -> None:
        """Go on with copies of these momenta."""
        for name, value in self.model.named_parameters():
            if name in momenta:
                # In the layout of its parameter, as the optimiser makes it: sums over it depend on the order.
                self.optimizer.state[value]["momentum_buffer"] = torch.empty_like(value).copy_(momenta[name])

    def __call__(self, images: Tensor, labels: Tensor, batch_size: int | None = None) -> Tensor:
        """Train on a batch; returns its mean loss, on the device, and of several seeds
        that of each.

        Args:
            images: float32 (B, 3, H, W), channels_last, on the device; of several seeds
                (B, 3 seeds, H, W).
            labels: int64 (B,); of several seeds (B, seeds).
            batch_size: images of this step over all processes; None for B.
        """
        if self._graphs is None:
            return self._compute(images, labels, batch_size)
        size = len(labels)
        self._calls[size] += 1
        if self._calls[size] <= STEPS_BEFORE_CAPTURE:
            return self._compute(images, labels)
        if size not in self._graphs:
            self._graphs[size] = Graph(self._compute, images, labels)
        return self._graphs[size].replay(images, labels)

    def _compute(self, images: Tensor, labels: Tensor, batch_size: int | None = None) -> Tensor:
        # Without the cache of cast weights, of which a captured graph would keep a stale one; each is used once anyway.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16, cache_enabled=False):
            logits = self._forward(images)
            if labels.dim() == 2:
                logits = torch.unflatten(logits, 1, (labels.shape[1], -1)).transpose(1, 2)
                loss = F.cross_entropy(logits, labels, reduction="none").mean(0)
            else:
                loss = F.cross_entropy(logits, labels)
        self.optimizer.zero_grad(set_to_none=True)
        # Gradients are averaged over processes, which hold unequal parts of a batch that they do not divide.
        share = len(labels) * self.group.size / (batch_size or len(labels) * self.group.size)
        torch.autograd.backward(loss, torch.full_like(loss, share))
        self.optimizer.step()
        self.loss_sum += loss.detach() * len(labels)
        self.correct += (logits.detach().argmax(1) == labels).sum(0)
        if not self._fits:
            memory.release_free_memory()  # which costs a tenth of a step
        return loss.detach()


def _compile(model: nn.Module) -> None:
    """Have torch.compile compute each block of a network in training, or the network
    where it has no blocks.

    Most blocks of a deep network differ in their weights alone, so that few are to be
    compiled. Only the batch size is left open: the sizes of an image decide on loops
    and tiles.
    """
    from torch._dynamo import config

    # One function may be compiled 8 times before torch quietly leaves it as it is. That of a block is the same for
    # all networks, and a process may train more kinds than that.
    config.recompile_limit = config.accumulated_recompile_limit = KINDS
    config.fail_on_recompile_limit_hit = True
    for part in memory.blocks_of(model) or [model]:
        _compile_one(part)


def _compile_one(part: nn.Module) -> None:
    eager, compiled = part.forward, torch.compile(part.forward, dynamic=False)

    def forward(x: Tensor) -> Tensor:
        if not part.training:
            return cast(Tensor, eager(x))
        torch._dynamo.maybe_mark_dynamic(x, 0)
        found: Tensor = compiled(x)
        return found

    part.forward = forward


class Graph:
    """A computation on a GPU for inputs of one shape, captured once and replayed as a
    single launch.

    What it returns is overwritten by the next replay.
    """

    def __init__(self, compute: Callable[..., Tensor], *inputs: Tensor) -> None:
        self.inputs = [value.clone() for value in inputs]
        self.graph = torch.cuda.CUDAGraph()
        # All graphs are captured in one stream of torch's, where products of matrices would share their scratch memory:
        # with graphs that are replayed at the same time, and beyond the end of the one that it belongs to. Without
        # what is there each takes memory of its own.
        torch.cuda.synchronize()
        torch._C._cuda_clearCublasWorkspaces()
        # Other threads, such as a loader's that pins memory, may go on meanwhile.
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.output = compute(*self.inputs)
        torch._C._cuda_clearCublasWorkspaces()

    def replay(self, *inputs: Tensor) -> Tensor:
        for place, value in zip(self.inputs, inputs, strict=True):
            place.copy_(value)
        self.graph.replay()
        return self.output


class _GradientChannelsLast(torch.autograd.Function):
    """The identity, whose gradient is brought into channels_last."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.contiguous(memory_format=torch.channels_last)


def keep_channels_last(model: nn.Module) -> nn.Module:
    """Put a network into channels_last, and have gradients stay in it; returns the
    network.

    Pooling and the subsampling of a type-A shortcut hand back gradients in the default
    layout, which would spread along the identity paths, every BatchNorm and convolution
    below converting it anew.
    """
    for name, module in model.named_modules():
        if isinstance(module, SubsampleAndPad) or name == "global_pool":
            module.register_forward_pre_hook(lambda module, inputs: (_GradientChannelsLast.apply(inputs[0]),))
    return model.to(memory_format=torch.channels_last)
