"""A network ready to be timed, in ONNX Runtime or in torch: loaded on its device, with inputs that stay there."""

import importlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

from suite.inference.feeds import Input, values_for
from suite.registry import PROVIDERS
from suite.session import load_onnxruntime, open_session, provider_options

DISTINCT_INPUTS = 4

Runtime = Literal["onnxruntime", "torch", "torch.compile"]


@dataclass(frozen=True)
class Protocol:
    """How often to run: `warmup` runs, then `rounds` bursts, each of at least `min_runs` runs and `min_seconds`, and at
    most `max_runs` runs, after one run that is not counted since others had the machine before it."""

    rounds: int
    min_seconds: float
    min_runs: int
    max_runs: int
    warmup: int


@dataclass(frozen=True)
class Request:
    """One figure to measure.

    Attributes:
        runtime: "onnxruntime", "torch" (eager, channels_last) or "torch.compile".
        path: the ONNX file, or the folder of weights in timm's local layout.
        provider: "cpu", "cuda" or "tensorrt"; for torch the device.
        batch_size: images a run.
        size: side of an image in pixels.
        threads: of the runtime's thread pool.
        protocol: how often to run.
        inputs: what the network takes; if there are none, `input` as this project's own files have it, float32
            (batch_size, channels, size, size).
        values: an .npz file with values for these inputs; those that it lacks are drawn.
        modules: to import before a network is loaded in torch, which they register with timm.
    """

    runtime: Runtime
    path: str
    provider: str
    batch_size: int
    size: int
    threads: int
    protocol: Protocol
    inputs: tuple[Input, ...] = ()
    values: str | None = None
    modules: tuple[str, ...] = ()

    @classmethod
    def from_plain(cls, raw: dict[str, Any]) -> "Request":
        """What `dataclasses.asdict` made of a request, and JSON of that."""
        inputs = tuple(Input(**each | {"shape": tuple(each["shape"])}) for each in raw["inputs"])
        nested = {"protocol": Protocol(**raw["protocol"]), "inputs": inputs, "modules": tuple(raw["modules"])}
        return cls(**raw | nested)


@dataclass(frozen=True)
class Loaded:
    """A network ready to run.

    Attributes:
        run: computes the i-th input and waits for the result.
        run_from_host: the same from host memory to host memory; None where that is the same thing.
        finite: whether the outputs of the last runs are.
        load_seconds: that it took to get here.
        description: `provider`, `nodes` and `settings` of the answer.
        graphs: CUDA graphs that its first runs record, one for each input.
    """

    run: Callable[[int], None]
    run_from_host: Callable[[int], None] | None
    finite: Callable[[], bool]
    load_seconds: float
    description: dict[str, Any]
    graphs: int = 0


def open_deployed(source: str | bytes, provider: str, threads: int, cuda_graph: bool = False) -> Any:
    """A session as it is deployed, with TF32 where the provider has it, as torch beside it."""

    def configure(options: Any) -> None:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")

    return open_session(source, provider, threads, tf32=True, cuda_graph=cuda_graph, configure=configure)


def in_onnxruntime(request: Request) -> Loaded:
    """A session on the provider asked for, with inputs and outputs on its device.

    Raises:
        RuntimeError: it cannot be loaded there.
    """
    import numpy as np

    ort = load_onnxruntime()
    # One shape and buffers that stay where they are, which is what a CUDA graph asks for. A file of others may have
    # outputs whose shapes are known only after a run.
    recorded = request.provider == "cuda" and not request.inputs
    start = perf_counter()
    session = open_deployed(request.path, request.provider, request.threads, recorded)
    load = perf_counter() - start
    device = PROVIDERS[request.provider].device
    taken = request.inputs
    if not taken:
        channels = session.get_inputs()[0].shape[1]
        taken = (Input("input", "float32", (request.batch_size, channels, request.size, request.size)),)
    feeds = [values_for(taken, request.values, seed) for seed in range(DISTINCT_INPUTS)]
    outputs = [output.name for output in session.get_outputs()]
    inputs, bindings, options = [], [], []
    for number, feed in enumerate(feeds, start=1):
        binding = session.io_binding()
        for name, values in feed.items():
            inputs.append(ort.OrtValue.ortvalue_from_numpy(values, device, 0))
            binding.bind_ortvalue_input(name, inputs[-1])
        option = None
        if recorded:
            logits = [request.batch_size, session.get_outputs()[0].shape[1]]
            held = ort.OrtValue.ortvalue_from_shape_and_type(logits, np.float32, device, 0)
            binding.bind_ortvalue_output("logits", held)
            # Each input has a graph of its own; ONNX Runtime keeps number 0 for itself.
            option = ort.RunOptions()
            option.add_run_config_entry("gpu_graph_id", str(number))
        else:
            for output in outputs:
                binding.bind_output(output, device)
        bindings.append(binding)
        options.append(option)

    def run(index: int) -> None:
        binding = bindings[index % DISTINCT_INPUTS]
        session.run_with_iobinding(binding, options[index % DISTINCT_INPUTS])
        binding.synchronize_outputs()

    def run_from_host(index: int) -> None:
        feed = feeds[index % DISTINCT_INPUTS]
        if recorded:
            inputs[0].update_inplace(feed["input"])
            run(0)
            bindings[0].copy_outputs_to_cpu()
        else:
            session.run(outputs, feed)

    def finite() -> bool:
        if any(not output.type.startswith("tensor(") for output in session.get_outputs()):
            return True  # lists and the like, of which nothing is asked
        for index in range(DISTINCT_INPUTS):
            run(index)
        return all(_finite(values) for binding in bindings for values in binding.copy_outputs_to_cpu())

    nodes: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        nodes[part.ep_name] += len(part.get_nodes())
    description = {
        "provider": session.get_providers()[0],
        "nodes": dict(nodes),
        "settings": {
            "execution": "sequential",
            "graph_optimization": "all",
            **provider_options(request.provider, tf32=True, cuda_graph=recorded),
        },
    }
    graphs = DISTINCT_INPUTS if recorded else 0
    return Loaded(run, None if device == "cpu" else run_from_host, finite, load, description, graphs)


def _finite(values: Any) -> bool:
    import numpy as np

    return values.dtype.kind != "f" or bool(np.isfinite(values).all())


def in_torch(request: Request) -> Loaded:
    """A network from its folder of weights, eager or compiled, in channels_last where it takes images.

    Raises:
        RuntimeError: torch has no such device.
    """
    import torch

    from suite.export.zoo import load

    if not PROVIDERS[request.provider].torch_runs_there:
        raise RuntimeError("torch runs on cpu or cuda; TensorRT is a provider of ONNX Runtime alone")
    torch.set_num_threads(request.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    device = torch.device(PROVIDERS[request.provider].device)
    for module in request.modules:
        importlib.import_module(module)
    start = perf_counter()
    model: Any = load(Path(request.path)).to(device).to(memory_format=torch.channels_last)
    if request.runtime == "torch.compile":
        model.compile(dynamic=False)
    load_seconds = perf_counter() - start
    taken: Sequence[Input] = request.inputs
    if not taken:
        taken = (Input("input", "float32", (request.batch_size, model.in_chans, request.size, request.size)),)
    feeds = [values_for(taken, request.values, seed) for seed in range(DISTINCT_INPUTS)]
    hosted = [[torch.from_numpy(values) for values in feed.values()] for feed in feeds]

    def placed(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        moved = [tensor.to(device) for tensor in tensors]
        return [each.contiguous(memory_format=torch.channels_last) if each.dim() == 4 else each for each in moved]

    resident = [placed(each) for each in hosted]
    outputs: dict[int, Any] = {}

    @torch.inference_mode()
    def run(index: int) -> None:
        outputs[index % DISTINCT_INPUTS] = model(*resident[index % DISTINCT_INPUTS])
        if device.type == "cuda":
            torch.cuda.synchronize()

    @torch.inference_mode()
    def run_from_host(index: int) -> None:
        result = model(*placed(hosted[index % DISTINCT_INPUTS]))
        for each in tensors(result):
            each.cpu()

    def finite() -> bool:
        found = [each for output in outputs.values() for each in tensors(output)]
        return all(bool(each.isfinite().all()) for each in found if each.is_floating_point())

    mode = "compiled" if request.runtime == "torch.compile" else "eager"
    settings = {"mode": mode, "memory_format": "channels_last", "tf32": "1"}
    description = {"provider": device.type, "settings": settings}
    return Loaded(run, None if device.type == "cpu" else run_from_host, finite, load_seconds, description)


def tensors(output: Any) -> list[Any]:
    """The tensors of a network's output: one, several, or by name."""
    if hasattr(output, "isfinite"):
        return [output]
    parts = output.values() if hasattr(output, "values") else output if isinstance(output, list | tuple) else ()
    return [tensor for part in parts for tensor in tensors(part)]
