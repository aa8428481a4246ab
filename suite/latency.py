"""How long one inference takes: each session in a process of its own, timed to a synchronisation.

No thread pool, allocator or cache of the caller, or of another session, takes part in a figure. Figures that are to be
compared are taken in turns: every process loads its network and warms up, and then they run a burst of inferences each,
round after round, one at a time and all others asleep, so that a slow spell of the machine falls on all of them. Every
other round goes backwards, so that nobody is always the first.

For ONNX Runtime a process is `python -m suite.latency`, which speaks JSON lines; for torch, whose import takes far
longer than the measurement, it is forked off a server that has imported torch and done nothing else.
"""

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import IO, Any, Literal
from typing import Protocol as Interface

from suite import samples
from suite.session import PROVIDERS, open_session, provider_options

DISTINCT_INPUTS = 4
# Sessions that are alive at the same time; a ResNet-101 in float32 with a batch of 8 takes about 1 GB.
ALIVE = 6
# Side of the square matrices whose product stands for what the machine can do.
PEAK_SIDE = 2048
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


# 72 runs are enough for a 90th percentile; a quick run only has a median to show.
QUICK = Protocol(rounds=3, min_seconds=0.3, min_runs=3, max_runs=70, warmup=1)
THOROUGH = Protocol(rounds=24, min_seconds=0.5, min_runs=3, max_runs=100, warmup=5)
# Short bursts, since only what is close in time has met the same machine.
PAIRED = Protocol(rounds=12, min_seconds=0.05, min_runs=2, max_runs=200, warmup=3)
# Fewest and most pairs of processes for one ratio: where its pages lie can make a process faster than its twin for all
# its life. They are enough when the interval of the ratio is not wider than `TIGHT`.
PROCESSES = (2, 10)
TIGHT = 0.02


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


def measure(
    requests: Sequence[Request], progress: Callable[[int, int, str], None] = lambda done, total, note: None
) -> list[dict[str, Any] | RuntimeError]:
    """Measure requests against each other, in turns and in fresh processes. All must have the same protocol.

    Args:
        requests: what to measure; at most `ALIVE` of them at a time take turns.
        progress: called with bursts done, bursts in all, and a note.

    Returns:
        For each request the error that its process ended with, or `load_seconds` (session creation or loading of
        weights), `first_run_seconds`, `rounds` (for each round the seconds of its runs, inputs and outputs staying on
        the device), `samples` (all of them), `in_turns_with` (how many others took turns with it), `provider` as the
        runtime names it, `nodes` (of the graph, as given out to providers; fusion comes later, and `suite.explain`
        counts what is executed), `settings`, and for other devices than the CPU `host_samples` (seconds of runs from
        host memory to host memory).
    """
    answers: list[dict[str, Any] | RuntimeError] = []
    rounds = max((request.protocol.rounds for request in requests), default=0)
    for start in range(0, len(requests), ALIVE):
        together = requests[start : start + ALIVE]
        done = start * rounds

        def say(count: int, done: int = done) -> None:
            progress(done + count, len(requests) * rounds, "bursts")

        answers += _in_turns(together, say)
    return answers


def _in_turns(requests: Sequence[Request], say: Callable[[int], None]) -> list[dict[str, Any] | RuntimeError]:
    answers: dict[int, dict[str, Any] | RuntimeError] = {}
    workers: dict[int, _Worker] = {}
    bursts = 0
    try:
        for index, request in enumerate(requests):
            try:
                workers[index] = _OnnxRuntime(request) if request.runtime == "onnxruntime" else _Torch(request)
                answers[index] = workers[index].ask("load") | {"rounds": [], "in_turns_with": len(requests) - 1}
            except RuntimeError as error:
                answers[index] = error
        rounds = requests[0].protocol.rounds if requests else 0
        for number, action in enumerate(["burst"] * rounds + ["end"]):
            for index in sorted(workers, reverse=number % 2 == 1):
                worker, answer = workers[index], answers[index]
                if isinstance(answer, RuntimeError):
                    continue
                try:
                    reply = worker.ask(action)
                except RuntimeError as error:
                    answers[index] = error
                    continue
                if action == "burst":
                    answer["rounds"].append(reply["samples"])
                    bursts += 1
                    say(bursts)
                else:
                    answer |= reply
                    answer["samples"] = [seconds for burst in answer["rounds"] for seconds in burst]
                    answers[index] = answer
    finally:
        for worker in workers.values():
            worker.close()
    return [answers[index] for index in range(len(requests))]


def pairs(first: Request, second: Request) -> list[tuple[float, float]]:
    """Median seconds of bursts of the two, each pair close in time, for the interval of the ratio of two latencies.

    Their protocol is replaced by `PAIRED`, on several pairs of fresh processes.

    Raises:
        RuntimeError: one of them failed.
    """
    found: list[tuple[float, float]] = []
    both = [replace(request, protocol=PAIRED) for request in (first, second)]
    fewest, most = PROCESSES
    for number in range(1, most + 1):
        turned = number % 2 == 0
        answers = measure(both[::-1] if turned else both)
        medians = []
        for answer in reversed(answers) if turned else answers:
            if isinstance(answer, RuntimeError):
                raise answer
            medians.append([statistics.median(burst) for burst in answer["rounds"]])
        found += zip(*medians, strict=True)
        _, low, high = samples.interval([a / b for a, b in found])
        if number >= fewest and high - low <= TIGHT:
            break
    return found


def unavailable(provider: str) -> str | None:
    """Why a provider of ONNX Runtime cannot be used on this machine, or None if it can."""
    if provider == "cpu":
        return None
    try:
        _once({"probe": provider}, threads=1)
    except RuntimeError as error:
        return f"ONNX Runtime cannot load {PROVIDERS[provider]}, for want of a GPU or of its libraries ({error})"
    return None


def peak(provider: str, threads: int, precision: str = "fp32") -> dict[str, Any]:
    """What the machine can do in "fp32", "fp16" or "int8" (unsigned by signed): `flops` (additions and multiplications
    a second) of ONNX Runtime's product of two matrices of `side` rows and columns, the fastest of `samples` seconds, in
    a fresh process.

    Raises:
        RuntimeError: the provider is not here, or has no product of this type.
    """
    return _once({"peak": provider, "threads": threads, "precision": precision}, threads)


class _Worker(Interface):
    """A process that has one network loaded."""

    def ask(self, action: str) -> dict[str, Any]:
        """Have it "load", run a "burst" or "end", and wait for the answer; RuntimeError if it fails."""

    def close(self) -> None:
        """End the process, whatever it does."""


class _OnnxRuntime:
    def __init__(self, request: Request) -> None:
        # To a file: what a provider prints would fill a pipe that nobody reads, and then wait for ever.
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the process; `close` closes it
        self._process = _start(request.threads, self._errors)
        self._send(asdict(request))

    def ask(self, action: str) -> dict[str, Any]:
        self._send(action)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._errors.seek(0)
            raise RuntimeError(_last_line(self._errors.read()) or f"the timing process ended with code {code}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _send(self, content: Any) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # its last words say why
            self._process.stdin.write(json.dumps(content) + "\n")
            self._process.stdin.flush()


class _Torch:
    def __init__(self, request: Request) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["timm", "models"])
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve_torch, args=(theirs, request), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, action: str) -> dict[str, Any]:
        try:
            self._pipe.send(action)
            answer: dict[str, Any] = self._pipe.recv()
        except (EOFError, OSError):
            raise RuntimeError("the timing process ended without an answer") from None
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _start(threads: int, errors: IO[str] | int = subprocess.PIPE) -> subprocess.Popen[str]:
    package_folder = str(Path(__file__).resolve().parent.parent)
    search_path = os.pathsep.join(filter(None, (package_folder, os.environ.get("PYTHONPATH"))))
    variables = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "PYTHONPATH": search_path}
    return subprocess.Popen(
        [sys.executable, "-m", "suite.latency"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env=os.environ | variables,
    )


def _once(request: dict[str, Any], threads: int) -> dict[str, Any]:
    """The answer of a fresh process to one request."""
    process = _start(threads)
    out, err = process.communicate(json.dumps(request) + "\n")
    if process.returncode != 0:
        raise RuntimeError(_last_line(err) or f"the process ended with code {process.returncode}")
    answer: dict[str, Any] = json.loads(out.splitlines()[-1])
    return answer


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("RuntimeError: ") if lines else ""


def _burst(run: Callable[[int], None], protocol: Protocol) -> list[float]:
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
    """

    run: Callable[[int], None]
    run_from_host: Callable[[int], None] | None
    finite: Callable[[], bool]
    load_seconds: float
    description: dict[str, Any]


def _serve(load: Callable[[], _Loaded], protocol: Protocol, actions: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Answer actions as they come, to the last, and only when this process is asleep again."""
    assert next(actions) == "load"
    loaded = load()
    start = perf_counter()
    loaded.run(0)
    first = perf_counter() - start
    for index in range(protocol.warmup):
        loaded.run(index)
    _fall_asleep()
    yield {"load_seconds": loaded.load_seconds, "first_run_seconds": first}
    for action in actions:
        if action == "burst":
            samples = _burst(loaded.run, protocol)
            _fall_asleep()
            yield {"samples": samples}
            continue
        if not loaded.finite():
            raise RuntimeError("the timed network gave logits that are not finite")
        host = {"host_samples": _burst(loaded.run_from_host, protocol)} if loaded.run_from_host else {}
        yield loaded.description | host
        return


def _fall_asleep() -> None:
    """Wait until this process takes no more time of a core: the threads of a pool spin for a while after work, and
    whoever is timed meanwhile shares a core with them."""
    end = perf_counter() + SPIN
    spent = time.process_time()
    while perf_counter() < end:
        time.sleep(0.01)
        before, spent = spent, time.process_time()
        if spent - before < 0.001:
            return


def _open(source: str | bytes, provider: str, threads: int) -> Any:
    """A session as it is deployed, with TF32 where the provider has it, as torch beside it."""

    def configure(options: Any) -> None:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")

    return open_session(source, provider, threads, tf32=True, configure=configure)


def _load_onnxruntime(request: Request) -> _Loaded:
    import numpy as np
    import onnxruntime as ort

    start = perf_counter()
    session = _open(request.path, request.provider, request.threads)
    load = perf_counter() - start
    device = "cpu" if request.provider == "cpu" else "cuda"
    random = np.random.default_rng(0)
    shape = (request.batch_size, 3, request.size, request.size)
    images = [random.standard_normal(shape, np.float32) for _ in range(DISTINCT_INPUTS)]
    bindings = []
    for image in images:
        binding = session.io_binding()
        binding.bind_ortvalue_input("input", ort.OrtValue.ortvalue_from_numpy(image, device, 0))
        binding.bind_output("logits", device)
        bindings.append(binding)

    def run(index: int) -> None:
        binding = bindings[index % DISTINCT_INPUTS]
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    def run_from_host(index: int) -> None:
        session.run(["logits"], {"input": images[index % DISTINCT_INPUTS]})

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
            **provider_options(request.provider, tf32=True),
        },
    }
    return _Loaded(run, None if device == "cpu" else run_from_host, finite, load, description)


def _load_torch(request: Request) -> _Loaded:
    import torch

    from suite.weights import load_weights

    if request.provider == "tensorrt":
        raise RuntimeError("torch runs on cpu or cuda; TensorRT is a provider of ONNX Runtime alone")
    torch.set_num_threads(request.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    device = torch.device("cpu" if request.provider == "cpu" else "cuda")
    start = perf_counter()
    model = load_weights(Path(request.path)).to(device).to(memory_format=torch.channels_last)
    if request.runtime == "torch.compile":
        model.compile(dynamic=False)
    load = perf_counter() - start
    shape = (request.batch_size, 3, request.size, request.size)
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


def _serve_torch(pipe: Any, request: Request) -> None:
    def actions() -> Iterator[str]:
        with suppress(EOFError):
            while True:
                yield pipe.recv()

    try:
        for answer in _serve(lambda: _load_torch(request), request.protocol, actions()):
            pipe.send(answer)
    except Exception as error:  # whatever it is, the other process is to hear of it
        lines = str(error).splitlines() or [""]
        pipe.send({"error": f"{type(error).__name__}: {lines[0]}"})


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
    import numpy as np
    import onnxruntime as ort
    from onnx import TensorProto, helper

    operator, types = {
        "fp32": ("MatMul", (TensorProto.FLOAT,) * 3),
        "fp16": ("MatMul", (TensorProto.FLOAT16,) * 3),
        "int8": ("MatMulInteger", (TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32)),
    }[precision]
    shape = [PEAK_SIDE, PEAK_SIDE]
    values = [helper.make_tensor_value_info(name, kind, shape) for name, kind in zip("abc", types, strict=True)]
    graph = helper.make_graph([helper.make_node(operator, ["a", "b"], ["c"])], "peak", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = _open(model.SerializeToString(), provider, threads)
    device = "cpu" if provider == "cpu" else "cuda"
    binding = session.io_binding()
    random = np.random.default_rng(0)
    for name, kind in zip("ab", types[:2], strict=True):
        # Small whole numbers, which all the types hold.
        matrix = random.integers(0, 8, shape).astype(helper.tensor_dtype_to_np_dtype(kind))
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(matrix, device, 0))
    binding.bind_output("c", device)

    def run(index: int) -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    samples = _burst(run, Protocol(rounds=1, min_seconds=1.0, min_runs=10, max_runs=1000, warmup=0))
    return {"side": PEAK_SIDE, "samples": samples, "flops": 2 * PEAK_SIDE**3 / min(samples)}


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
        actions = (json.loads(line) for line in sys.stdin)
        for reply in _serve(lambda: _load_onnxruntime(request), request.protocol, actions):
            answer(reply)


if __name__ == "__main__":
    main()
