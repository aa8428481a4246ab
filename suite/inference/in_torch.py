"""Networks in torch, eager or compiled."""

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from suite.inference.feeds import Arrays, Values
from suite.inference.loaded import Loaded, Request
from suite.registry import PROVIDERS

if TYPE_CHECKING:
    from torch import Tensor, nn


def import_library() -> None:
    """Import torch."""
    import torch  # noqa: F401


def load(request: Request, checked: bool) -> Loaded:
    """A network from its folder of weights; see `suite.inference.loaded.load`."""
    import torch

    from suite.export import zoo

    torch.set_num_threads(request.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not checked
    torch.backends.cudnn.benchmark = not checked
    zoo.import_modules(request.modules)
    start = perf_counter()
    device = PROVIDERS[request.provider].device
    model: Any = zoo.load(Path(request.path)).to(device).to(memory_format=torch.channels_last)
    if request.runtime == "torch.compile":
        model.compile(dynamic=checked)
    loaded = InTorch(model, device, perf_counter() - start, request.runtime == "torch.compile", channels_last=True)
    if not loaded.channels:  # of a user's own network, which need not say
        loaded.channels = zoo.from_folder(Path(request.path)).input_size[0]
    return loaded


class InTorch(Loaded):
    """A network in evaluation mode.

    Args:
        model: takes its inputs by place.
        device: "cpu" or "cuda".
        load_seconds: to get here.
        compiled: whether `torch.compile` compiles it.
        channels_last: whether it is in that layout, which its images are then brought
            to.
    """

    def __init__(
        self,
        model: "nn.Module",
        device: str = "cpu",
        load_seconds: float = 0.0,
        compiled: bool = False,
        channels_last: bool = False,
    ) -> None:
        self._model, self._device, self._channels_last = model, device, channels_last
        self.load_seconds, self.provider, self.nodes = load_seconds, device, {}
        self.channels = int(getattr(model, "in_chans", 0))
        mode = "compiled" if compiled else "eager"
        layout = "channels_last" if channels_last else "contiguous_format"
        self.settings = {"mode": mode, "memory_format": layout, "tf32": "1"}

    def hold(self, feeds: Sequence[Values]) -> None:
        """Copy inputs to the device."""
        self._resident = [self._to_device(feed) for feed in feeds]
        self._outputs: dict[int, Any] = {}

    def run(self, index: int) -> None:
        """One forward pass."""
        import torch

        with torch.inference_mode():
            self._outputs[index] = self._model(*self._resident[index])
        if self._device == "cuda":
            torch.cuda.synchronize()

    def results(self, index: int) -> Arrays:
        """The tensors of the last output."""
        return [_array(each) for each in tensors(self._outputs[index])]

    def compute(self, values: Values) -> Arrays:
        """One forward pass with its copies."""
        import torch

        with torch.inference_mode():
            return [_array(each) for each in tensors(self._model(*self._to_device(values)))]

    def _to_device(self, values: Values) -> "list[Tensor]":
        import torch

        moved = [torch.from_numpy(each).to(self._device) for each in values.values()]
        if not self._channels_last:
            return moved
        return [each.contiguous(memory_format=torch.channels_last) if each.dim() == 4 else each for each in moved]


def _array(tensor: "Tensor") -> Any:
    import torch

    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()


def tensors(output: Any) -> "list[Tensor]":
    """The tensors of a network's output: one, several, or by name."""
    if hasattr(output, "isfinite"):
        return [output]
    parts = output.values() if hasattr(output, "values") else output if isinstance(output, list | tuple) else ()
    return [tensor for part in parts for tensor in tensors(part)]
