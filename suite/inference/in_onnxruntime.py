"""Networks in ONNX Runtime."""

from collections import Counter
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np

from suite.inference.feeds import Arrays, Values
from suite.inference.loaded import Loaded, Request
from suite.registry import PROVIDERS
from suite.session import load_onnxruntime, open_session, provider_options, uses_tf32


def import_library() -> None:
    """Import ONNX Runtime."""
    load_onnxruntime()


def open_deployed(source: str | bytes, provider: str, threads: int, cuda_graph: bool = False) -> Any:
    """A session as it is deployed, with TF32 where the provider has it, as torch beside
    it."""

    def configure(options: Any) -> None:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")

    return open_session(source, provider, threads, tf32=True, cuda_graph=cuda_graph, configure=configure)


def load(request: Request, checked: bool) -> Loaded:
    """A session on the provider asked for; see `suite.inference.loaded.load`."""
    if checked:
        return InSession(request, open_session(request.path, request.provider, request.threads))
    # One shape and buffers that stay where they are, which is what a CUDA graph asks for. A file of others may have
    # outputs whose shapes are known only after a run.
    recorded = request.provider == "cuda" and request.inputs is None
    start = perf_counter()
    session = open_deployed(request.path, request.provider, request.threads, recorded)
    return InSession(request, session, perf_counter() - start, recorded)


class InSession(Loaded):
    """A session with inputs and outputs on its device.

    Args:
        request: by which it was opened.
        session: of ONNX Runtime.
        load_seconds: to open it; None of one that is checked, and not as it is
            deployed.
        recorded: whether runs are recorded as CUDA graphs.
    """

    def __init__(
        self, request: Request, session: Any, load_seconds: float | None = None, recorded: bool = False
    ) -> None:
        self._session, self._ort, self._recorded = session, load_onnxruntime(), recorded
        self._request, self._device = request, PROVIDERS[request.provider].device
        self.load_seconds = load_seconds or 0.0
        self.provider = session.get_providers()[0]
        self.outputs = tuple(output.name for output in session.get_outputs())
        first = session.get_inputs()[0].shape if session.get_inputs() else []
        self.channels = first[1] if len(first) == 4 and isinstance(first[1], int) else 0
        told = provider_options(request.provider, tf32=load_seconds is not None, cuda_graph=recorded)
        self.settings = {"execution": "sequential", "graph_optimization": "all", **told}
        nodes: Counter[str] = Counter()
        if load_seconds is not None:
            for part in session.get_provider_graph_assignment_info():
                nodes[part.ep_name] += len(part.get_nodes())
        self.nodes = dict(nodes)
        self.computes = "tf32" if uses_tf32(request.provider) else "fp32"

    def hold(self, feeds: Sequence[Values]) -> None:
        """Bind inputs, and outputs, to the device."""
        self._inputs, self._bindings, self._options = [], [], []
        self.graphs = len(feeds) if self._recorded else 0
        for number, feed in enumerate(feeds, start=1):
            binding, option = self._session.io_binding(), None
            for name, values in feed.items():
                self._inputs.append(self._ort.OrtValue.ortvalue_from_numpy(values, self._device, 0))
                binding.bind_ortvalue_input(name, self._inputs[-1])
            if self._recorded:
                logits = [self._request.batch_size, self._session.get_outputs()[0].shape[1]]
                held = self._ort.OrtValue.ortvalue_from_shape_and_type(logits, np.float32, self._device, 0)
                binding.bind_ortvalue_output("logits", held)
                # Each input has a graph of its own; ONNX Runtime keeps number 0 for itself.
                option = self._ort.RunOptions()
                option.add_run_config_entry("gpu_graph_id", str(number))
            else:
                for output in self.outputs:
                    binding.bind_output(output, self._device)
            self._bindings.append(binding)
            self._options.append(option)

    def run(self, index: int) -> None:
        """Compute one of the bound inputs."""
        self._session.run_with_iobinding(self._bindings[index], self._options[index])
        self._bindings[index].synchronize_outputs()

    def results(self, index: int) -> Arrays:
        """What it gave; nothing of outputs that are lists and the like."""
        if any(not output.type.startswith("tensor(") for output in self._session.get_outputs()):
            return []
        found: Arrays = self._bindings[index].copy_outputs_to_cpu()
        return found

    def compute(self, values: Values) -> Arrays:
        """By the session, or where it is recorded by the first of its graphs."""
        if self._recorded:
            self._inputs[0].update_inplace(values["input"])
            self.run(0)
            return self.results(0)
        found: Arrays = self._session.run(self.outputs, values)
        return found
