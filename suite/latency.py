"""How long one inference takes: one session, in a process of its own, timed to a synchronisation.

No thread pool, allocator or cache of the caller, or of another session, takes part in a figure: for ONNX Runtime,
`measure` starts `python -m suite.latency`, which reads one request as JSON from standard input and writes one JSON
object to standard output. For torch, whose import takes far longer than the measurement, it forks a process off a
server that has imported torch and done nothing else.
"""

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
# TF32 is switched on in both runtimes and pinned with the convolution search, for comparable CUDA figures.
PROVIDER_OPTIONS: dict[str, dict[str, str]] = {
    "cpu": {},
    "cuda": {"cudnn_conv_algo_search": "EXHAUSTIVE", "use_tf32": "1"},
    "tensorrt": {},
}
DISTINCT_INPUTS = 4


@dataclass(frozen=True)
class Protocol:
    """When to stop: after `min_seconds` and `min_runs` have both passed, or at `max_runs`. `warmup` runs come first."""

    min_seconds: float
    min_runs: int
    max_runs: int
    warmup: int


# 64 runs are what MLPerf's rule asks for a 90th percentile; a quick run only has a median to show.
QUICK = Protocol(min_seconds=1.0, min_runs=8, max_runs=200, warmup=1)
THOROUGH = Protocol(min_seconds=10.0, min_runs=64, max_runs=2000, warmup=5)


@dataclass(frozen=True)
class Request:
    """One figure to measure.

    Attributes:
        runtime: "onnxruntime" or "torch" (eager, channels_last).
        path: the ONNX file, or the folder of weights in timm's local layout.
        provider: "cpu", "cuda" or "tensorrt"; for torch the device.
        batch_size: images a run.
        size: side of an image in pixels.
        threads: of the runtime's thread pool.
        protocol: when to stop.
    """

    runtime: Literal["onnxruntime", "torch"]
    path: str
    provider: str
    batch_size: int
    size: int
    threads: int
    protocol: Protocol


def measure(request: Request) -> dict[str, Any]:
    """Measure a request in a fresh process.

    Returns:
        `load_seconds` (session creation or loading of weights), `first_run_seconds`, `samples` (seconds of each
        steady run, inputs and outputs staying on the device), `provider` as the runtime names it, and `settings`.

    Raises:
        RuntimeError: the process failed; the message is its last line.
    """
    if request.runtime == "torch":
        return _in_fork(request)
    return _in_fresh_process(asdict(request), request.threads)


def unavailable(provider: str) -> str | None:
    """Why a provider of ONNX Runtime cannot be used on this machine, or None if it can."""
    if provider == "cpu":
        return None
    try:
        _in_fresh_process({"probe": provider}, threads=1)
    except RuntimeError as error:
        return f"ONNX Runtime cannot load {PROVIDERS[provider]}, for want of a GPU or of its libraries ({error})"
    return None


def _in_fork(request: Request) -> dict[str, Any]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["timm", "models"])
    try:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(_time_torch, request).result()
    except BrokenProcessPool:
        raise RuntimeError("the timing process ended without an answer") from None


def _in_fresh_process(request: dict[str, Any], threads: int) -> dict[str, Any]:
    package_folder = str(Path(__file__).resolve().parent.parent)
    search_path = os.pathsep.join(filter(None, (package_folder, os.environ.get("PYTHONPATH"))))
    variables = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "PYTHONPATH": search_path}
    done = subprocess.run(
        [sys.executable, "-m", "suite.latency"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env=os.environ | variables,
        check=False,
    )
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise RuntimeError(
            lines[-1].removeprefix("RuntimeError: ")
            if lines
            else f"the timing process ended with code {done.returncode}"
        )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _steady(run: Callable[[int], None], protocol: Protocol) -> tuple[float, list[float]]:
    """Seconds of the first run, and of each steady one; `run(i)` computes input i and waits for the result."""
    start = perf_counter()
    run(0)
    first = perf_counter() - start
    for index in range(protocol.warmup):
        run(index)
    samples: list[float] = []
    begin = perf_counter()
    while len(samples) < protocol.max_runs:
        start = perf_counter()
        run(len(samples))
        end = perf_counter()
        samples.append(end - start)
        if end - begin >= protocol.min_seconds and len(samples) >= protocol.min_runs:
            break
    return first, samples


def open_session(source: str | bytes, provider: str, threads: int) -> Any:
    """A session that runs on this provider and on no other.

    Raises:
        RuntimeError: the provider is not in this build, or cannot be loaded here.
    """
    import onnxruntime as ort

    name = PROVIDERS[provider]
    if name not in ort.get_available_providers():
        raise RuntimeError(f"this build of ONNX Runtime has no {name}")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is raised below, in one line
    if provider != "cpu":
        # With CUDA and cuDNN from pip, their libraries have to be loaded before the provider's own.
        ort.preload_dlls()
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    session = ort.InferenceSession(source, options, providers=[(name, PROVIDER_OPTIONS[provider])])
    session.disable_fallback()
    if session.get_providers()[0] != name:
        raise RuntimeError(f"{name} cannot be loaded here; ONNX Runtime fell back to {session.get_providers()[0]}")
    return session


def _time_onnxruntime(request: Request) -> dict[str, Any]:
    import numpy as np
    import onnxruntime as ort

    start = perf_counter()
    session = open_session(request.path, request.provider, request.threads)
    load = perf_counter() - start
    device = "cpu" if request.provider == "cpu" else "cuda"
    random = np.random.default_rng(0)
    shape = (request.batch_size, 3, request.size, request.size)
    bindings = []
    for _ in range(DISTINCT_INPUTS):
        binding = session.io_binding()
        image = ort.OrtValue.ortvalue_from_numpy(random.standard_normal(shape, np.float32), device, 0)
        binding.bind_ortvalue_input("input", image)
        binding.bind_output("logits", device)
        bindings.append(binding)

    def run(index: int) -> None:
        binding = bindings[index % DISTINCT_INPUTS]
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    first, samples = _steady(run, request.protocol)
    for binding in bindings[: len(samples)]:
        if not np.isfinite(binding.copy_outputs_to_cpu()[0]).all():
            raise RuntimeError("the timed session gave logits that are not finite")
    settings = {"execution": "sequential", "graph_optimization": "all", **PROVIDER_OPTIONS[request.provider]}
    return _answer(load, first, samples, session.get_providers()[0], settings)


def _time_torch(request: Request) -> dict[str, Any]:
    import timm
    import torch

    import models  # noqa: F401 - registers the networks with timm

    torch.set_num_threads(request.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    device = torch.device("cpu" if request.provider == "cpu" else "cuda")
    start = perf_counter()
    model = timm.create_model(f"local-dir:{request.path}", pretrained=True).eval()
    model = model.to(device).to(memory_format=torch.channels_last)
    load = perf_counter() - start
    shape = (request.batch_size, 3, request.size, request.size)
    images = [
        torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        .to(device)
        .contiguous(memory_format=torch.channels_last)
        for seed in range(DISTINCT_INPUTS)
    ]
    outputs: dict[int, torch.Tensor] = {}

    @torch.inference_mode()
    def run(index: int) -> None:
        outputs[index % DISTINCT_INPUTS] = model(images[index % DISTINCT_INPUTS])
        if device.type == "cuda":
            torch.cuda.synchronize()

    first, samples = _steady(run, request.protocol)
    if not all(bool(logits.isfinite().all()) for logits in outputs.values()):
        raise RuntimeError("the timed network gave logits that are not finite")
    settings = {"mode": "eager", "memory_format": "channels_last", "tf32": "1"}
    return _answer(load, first, samples, device.type, settings)


def _answer(load: float, first: float, samples: list[float], provider: str, settings: dict[str, str]) -> dict[str, Any]:
    return {
        "load_seconds": load,
        "first_run_seconds": first,
        "samples": samples,
        "provider": provider,
        "settings": settings,
    }


def _probe(provider: str) -> dict[str, Any]:
    """Load a provider by a session of one multiplication."""
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info
    node = helper.make_node("Mul", ["x", "x"], ["y"])
    graph = helper.make_graph(
        [node], "probe", [value("x", TensorProto.FLOAT, [1])], [value("y", TensorProto.FLOAT, [1])]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return {"provider": open_session(model.SerializeToString(), provider, 1).get_providers()[0]}


def main() -> None:
    """Answer the request on standard input."""
    raw = json.load(sys.stdin)
    if "probe" in raw:
        answer = _probe(raw["probe"])
    else:
        request = Request(**raw | {"protocol": Protocol(**raw["protocol"])})
        answer = _time_onnxruntime(request)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
