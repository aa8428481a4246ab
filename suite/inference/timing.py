"""The latency worker process: it loads one network and times runs when asked.

`suite.inference.latency` starts such processes and has them take turns.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from time import perf_counter
from typing import Any

from suite.errors import describe_error, first_line
from suite.inference.loaded import DISTINCT_INPUTS, Loaded, Protocol, Request, import_library, load
from suite.registry import PROVIDERS

# How each candidate for the machine's peak is timed: twice, since a slow spell of the machine is longer than a burst.
PEAK_ROUNDS = 2

# Longest wait for a process whose threads spin to fall asleep, in seconds; ONNX Runtime's spin for some 50 ms.
SPIN = 1.0


def time_burst(run: Callable[[int], None], protocol: Protocol) -> list[float]:
    """Seconds of each run of one burst; `run(i)` computes input i and waits for the
    result."""
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


def _serve(request: Request, actions: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Answer actions as they come, to the last, and only when this process is asleep
    again."""
    from suite.inference.feeds import values_for

    assert next(actions) == "load"
    loaded, protocol = load(request), request.protocol
    taken = request.taken(loaded.channels)
    feeds = [values_for(taken, request.values, seed) for seed in range(DISTINCT_INPUTS)]
    loaded.hold(feeds)

    def run(index: int) -> None:
        loaded.run(index % DISTINCT_INPUTS)

    def run_from_host(index: int) -> None:
        loaded.compute(feeds[index % DISTINCT_INPUTS])

    start = perf_counter()
    run(0)
    first = perf_counter() - start
    for index in range(max(protocol.warmup, loaded.graphs)):
        run(index)
    fall_asleep()
    yield {"load_seconds": loaded.load_seconds, "first_run_seconds": first}
    for action in actions:
        if action == "burst":
            samples = time_burst(run, protocol)
            fall_asleep()
            yield {"samples": samples}
            continue
        finite = _finite(loaded)
        # On the CPU there is no other memory.
        on_cpu = PROVIDERS[request.provider].device == "cpu"
        host = {} if on_cpu else {"host_samples": time_burst(run_from_host, protocol)}
        yield {"finite": finite} | loaded.description() | host
        return


def _finite(loaded: Loaded) -> bool:
    """Whether all that a network gives for the inputs that it was timed on is
    finite."""
    import numpy as np

    for index in range(DISTINCT_INPUTS):
        loaded.run(index)
    found = [values for index in range(DISTINCT_INPUTS) for values in loaded.results(index)]
    return all(bool(np.isfinite(values).all()) for values in found if values.dtype.kind == "f")


def fall_asleep() -> None:
    """Wait until this process takes no more time of a core: the threads of a pool spin
    for a while after work, and whoever is timed meanwhile shares a core with them."""
    end = perf_counter() + SPIN
    spent = time.process_time()
    while perf_counter() < end:
        time.sleep(0.01)
        before, spent = spent, time.process_time()
        if spent - before < 0.001:
            return


def serve_torch(pipe: Any, request: Request) -> None:
    def actions() -> Iterator[str]:
        with suppress(EOFError):
            while True:
                yield pipe.recv()

    try:
        import_library(request.runtime)  # where nothing was loaded before the fork
        pipe.send({})
        for answer in _serve(request, actions()):
            pipe.send(answer)
    except Exception as error:  # whatever it is, the other process is to hear of it
        pipe.send({"error": describe_error(error)})


def _probe(provider: str) -> dict[str, Any]:
    """Load a provider by a session of one multiplication."""
    from onnx import TensorProto, helper

    from suite.inference.in_onnxruntime import open_deployed

    value = helper.make_tensor_value_info
    node = helper.make_node("Mul", ["x", "x"], ["y"])
    graph = helper.make_graph(
        [node], "probe", [value("x", TensorProto.FLOAT, [1])], [value("y", TensorProto.FLOAT, [1])]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return {"provider": open_deployed(model.SerializeToString(), provider, 1).get_providers()[0]}


def _peak(provider: str, threads: int, precision: str) -> dict[str, Any]:
    """Time what may be the fastest that the machine can do."""
    from suite.inference.in_onnxruntime import open_deployed
    from suite.inference.peak import Candidate, candidates
    from suite.results.samples import to_record
    from suite.session import load_onnxruntime

    ort = load_onnxruntime()
    device = PROVIDERS[provider].device
    once = Protocol(rounds=1, min_seconds=0.25, min_runs=2, max_runs=200, warmup=0)

    def runner(candidate: Candidate) -> Callable[[int], None]:
        session = open_deployed(candidate.model.SerializeToString(), provider, threads)
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
            seconds[candidate.name] += time_burst(run, once)
    flops = {candidate.name: candidate.operations / min(seconds[candidate.name]) for candidate, _ in tried}
    fastest = max(flops, key=lambda name: flops[name])
    trials = {name: {"flops": flops[name]} | to_record({"samples": seconds[name]}) for name in seconds}
    return {"flops": flops[fastest], "of": fastest, "trials": trials}


def main() -> None:
    """Answer what standard input asks, in JSON lines: one request, and for a figure the
    actions after it."""
    # Libraries print to standard output what they could not load; the answers keep it for themselves.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        for reply in _replies(json.loads(sys.stdin.readline())):
            print(json.dumps(reply), file=answers, flush=True)
    except Exception as error:  # whatever it is, the other process is to hear of it, in one line
        plain = isinstance(error, RuntimeError) or type(error).__module__.startswith("onnxruntime")
        sys.exit(first_line(error) if plain else describe_error(error))


def _replies(raw: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What a request, in JSON, is answered with; for a figure as actions come in."""
    if "probe" in raw:
        yield _probe(raw["probe"])
    elif "peak" in raw:
        yield _peak(raw["peak"], raw["threads"], raw["precision"])
    else:
        request = Request.from_plain(raw)
        import_library(request.runtime)
        yield {}
        yield from _serve(request, (json.loads(line) for line in sys.stdin))


if __name__ == "__main__":
    main()
