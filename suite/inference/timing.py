"""What a process does that times one network: it loads it, runs bursts when it is asked to, and sleeps in between.

`suite.inference.latency` starts such processes and has them take turns.
"""

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

from suite.errors import in_words
from suite.registry import PROVIDERS
from suite.results.samples import packed
from suite.session import load_onnxruntime, open_session, provider_options

DISTINCT_INPUTS = 4

# How each candidate for the machine's peak is timed: twice, since a slow spell of the machine is longer than a burst.
PEAK_ROUNDS = 2

# Longest wait for a process whose threads spin to fall asleep, in seconds; ONNX Runtime's spin for some 50 ms.
SPIN = 1.0

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
    """

    runtime: Runtime
    path: str
    provider: str
    batch_size: int
    size: int
    threads: int
    protocol: Protocol


def burst(run: Callable[[int], None], protocol: Protocol) -> list[float]:
    """Seconds of each run of one burst; `run(i)` computes input i and waits for the result."""
    run(0)
    samples: list[float] = []
    begin = perf_counter()
    while len(samples) < protocol.max_runs:
        start = perf_counter()
        run(len(samples))
        end = perf_counter()
        samples.append(end - start)
        if end - begin >= protocol.min_seconds and len(samples) >= protocol.min_runs:
            break
    return samples


@dataclass(frozen=True)
class _Loaded:
    """A network ready to run.

    Attributes:
        run: computes the i-th input and waits for the result.
        run_from_host: the same from host memory to host memory; None where that is the same thing.
        finite: whether the logits of the last runs are.
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


def _serve(load: Callable[[], _Loaded], protocol: Protocol, actions: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Answer actions as they come, to the last, and only when this process is asleep again."""
    assert next(actions) == "load"
    loaded = load()
    start = perf_counter()
    loaded.run(0)
    first = perf_counter() - start
    for index in range(max(protocol.warmup, loaded.graphs)):
        loaded.run(index)
    fall_asleep()
    yield {"load_seconds": loaded.load_seconds, "first_run_seconds": first}
    for action in actions:
        if action == "burst":
            samples = burst(loaded.run, protocol)
            fall_asleep()
            yield {"samples": samples}
            continue
        finite = loaded.finite()
        host = {"host_samples": burst(loaded.run_from_host, protocol)} if loaded.run_from_host else {}
        yield {"finite": finite} | loaded.description | host
        return


def fall_asleep() -> None:
    """Wait until this process takes no more time of a core: the threads of a pool spin for a while after work, and
    whoever is timed meanwhile shares a core with them."""
    end = perf_counter() + SPIN
    spent = time.process_time()
    while perf_counter() < end:
        time.sleep(0.01)
        before, spent = spent, time.process_time()
        if spent - before < 0.001:
            return


def _open(source: str | bytes, provider: str, threads: int, cuda_graph: bool = False) -> Any:
    """A session as it is deployed, with TF32 where the provider has it, as torch beside it."""

    def configure(options: Any) -> None:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")

    return open_session(source, provider, threads, tf32=True, cuda_graph=cuda_graph, configure=configure)


def _load_onnxruntime(request: Request) -> _Loaded:
    import numpy as np

    ort = load_onnxruntime()
    # One shape and buffers that stay where they are, which is what a CUDA graph asks for.
    recorded = request.provider == "cuda"
    start = perf_counter()
    session = _open(request.path, request.provider, request.threads, recorded)
    load = perf_counter() - start
    device = PROVIDERS[request.provider].device
    random = np.random.default_rng(0)
    shape = (request.batch_size, session.get_inputs()[0].shape[1], request.size, request.size)
    images = [random.standard_normal(shape, np.float32) for _ in range(DISTINCT_INPUTS)]
    inputs, bindings, options = [], [], []
    for number, image in enumerate(images, start=1):
        binding = session.io_binding()
        inputs.append(ort.OrtValue.ortvalue_from_numpy(image, device, 0))
        binding.bind_ortvalue_input("input", inputs[-1])
        option = None
        if recorded:
            logits = [request.batch_size, session.get_outputs()[0].shape[1]]
            held = ort.OrtValue.ortvalue_from_shape_and_type(logits, np.float32, device, 0)
            binding.bind_ortvalue_output("logits", held)
            # Each input has a graph of its own; ONNX Runtime keeps number 0 for itself.
            option = ort.RunOptions()
            option.add_run_config_entry("gpu_graph_id", str(number))
        else:
            binding.bind_output("logits", device)
        bindings.append(binding)
        options.append(option)

    def run(index: int) -> None:
        binding = bindings[index % DISTINCT_INPUTS]
        session.run_with_iobinding(binding, options[index % DISTINCT_INPUTS])
        binding.synchronize_outputs()

    def run_from_host(index: int) -> None:
        image = images[index % DISTINCT_INPUTS]
        if recorded:
            inputs[0].update_inplace(image)
            run(0)
            bindings[0].copy_outputs_to_cpu()
        else:
            session.run(["logits"], {"input": image})

    def finite() -> bool:
        for index in range(DISTINCT_INPUTS):
            run(index)
        return all(bool(np.isfinite(binding.copy_outputs_to_cpu()[0]).all()) for binding in bindings)

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
    return _Loaded(run, None if device == "cpu" else run_from_host, finite, load, description, graphs)


def _load_torch(request: Request) -> _Loaded:
    import torch

    from suite.export.weights import load_weights

    if not PROVIDERS[request.provider].torch_runs_there:
        raise RuntimeError("torch runs on cpu or cuda; TensorRT is a provider of ONNX Runtime alone")
    torch.set_num_threads(request.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    device = torch.device(PROVIDERS[request.provider].device)
    start = perf_counter()
    model: Any = load_weights(Path(request.path)).to(device).to(memory_format=torch.channels_last)
    if request.runtime == "torch.compile":
        model.compile(dynamic=False)
    load = perf_counter() - start
    shape = (request.batch_size, model.in_chans, request.size, request.size)
    hosted = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in range(DISTINCT_INPUTS)]
    images = [image.to(device).contiguous(memory_format=torch.channels_last) for image in hosted]
    outputs: dict[int, torch.Tensor] = {}

    @torch.inference_mode()
    def run(index: int) -> None:
        outputs[index % DISTINCT_INPUTS] = model(images[index % DISTINCT_INPUTS])
        if device.type == "cuda":
            torch.cuda.synchronize()

    @torch.inference_mode()
    def run_from_host(index: int) -> None:
        image = hosted[index % DISTINCT_INPUTS].to(device).contiguous(memory_format=torch.channels_last)
        model(image).cpu()

    def finite() -> bool:
        return all(bool(logits.isfinite().all()) for logits in outputs.values())

    mode = "compiled" if request.runtime == "torch.compile" else "eager"
    settings = {"mode": mode, "memory_format": "channels_last", "tf32": "1"}
    description = {"provider": device.type, "settings": settings}
    return _Loaded(run, None if device.type == "cpu" else run_from_host, finite, load, description)


def serve_torch(pipe: Any, request: Request) -> None:
    def actions() -> Iterator[str]:
        with suppress(EOFError):
            while True:
                yield pipe.recv()

    try:
        import torch  # noqa: F401 - where nothing was loaded before the fork

        pipe.send({})
        for answer in _serve(lambda: _load_torch(request), request.protocol, actions()):
            pipe.send(answer)
    except Exception as error:  # whatever it is, the other process is to hear of it
        pipe.send({"error": in_words(error)})


def _probe(provider: str) -> dict[str, Any]:
    """Load a provider by a session of one multiplication."""
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info
    node = helper.make_node("Mul", ["x", "x"], ["y"])
    graph = helper.make_graph(
        [node], "probe", [value("x", TensorProto.FLOAT, [1])], [value("y", TensorProto.FLOAT, [1])]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return {"provider": _open(model.SerializeToString(), provider, 1).get_providers()[0]}


def _peak(provider: str, threads: int, precision: str) -> dict[str, Any]:
    """Time what may be the fastest that the machine can do."""
    from suite.inference.peak import Candidate, candidates

    ort = load_onnxruntime()
    device = PROVIDERS[provider].device
    once = Protocol(rounds=1, min_seconds=0.25, min_runs=2, max_runs=200, warmup=0)

    def runner(candidate: Candidate) -> Callable[[int], None]:
        session = _open(candidate.model.SerializeToString(), provider, threads)
        binding = session.io_binding()
        for name, values in candidate.inputs.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(values, device, 0))
        binding.bind_output(session.get_outputs()[0].name, device)

        def run(index: int) -> None:
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return run

    tried = [(candidate, runner(candidate)) for candidate in candidates(device, precision)]
    seconds: dict[str, list[float]] = {candidate.name: [] for candidate, _ in tried}
    for _ in range(PEAK_ROUNDS):
        for candidate, run in tried:
            seconds[candidate.name] += burst(run, once)
    flops = {candidate.name: candidate.operations / min(seconds[candidate.name]) for candidate, _ in tried}
    fastest = max(flops, key=lambda name: flops[name])
    trials = {name: {"flops": flops[name]} | packed({"samples": seconds[name]}) for name in seconds}
    return {"flops": flops[fastest], "of": fastest, "trials": trials}


def main() -> None:
    """Answer what standard input asks, in JSON lines: one request, and for a figure the actions after it."""
    # Libraries print to standard output what they could not load; the answers keep it for themselves.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(content: dict[str, Any]) -> None:
        print(json.dumps(content), file=answers, flush=True)

    raw = json.loads(sys.stdin.readline())
    if "probe" in raw:
        answer(_probe(raw["probe"]))
    elif "peak" in raw:
        answer(_peak(raw["peak"], raw["threads"], raw["precision"]))
    else:
        request = Request(**raw | {"protocol": Protocol(**raw["protocol"])})
        load_onnxruntime()
        answer({})
        actions = (json.loads(line) for line in sys.stdin)
        for reply in _serve(lambda: _load_onnxruntime(request), request.protocol, actions):
            answer(reply)


if __name__ == "__main__":
    main()
