"""How long one inference takes: each session in a process of its own, timed to a
synchronisation.

No thread pool, allocator or cache of the caller, or of another session, takes part in a
figure. Figures that are to be compared are taken in turns: every process loads its
network and warms up, and then they run a burst of inferences each, round after round,
one at a time and all others asleep, so that a slow spell of the machine falls on all of
them. Every other round goes backwards, so that nobody is always the first.

A process is `python -m suite.inference.timing`, which speaks JSON lines; for torch,
whose import takes far longer than the measurement, it is forked off a server that has
imported torch and done nothing else.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from glob import escape
from pathlib import Path
from typing import IO, Any
from typing import Protocol as Interface

import psutil
from msgspec import convert

import suite
from suite import env
from suite.inference.interference import Interference
from suite.inference.loaded import Protocol as Protocol
from suite.inference.loaded import Request as Request
from suite.inference.processes import PipedProcess, fork_context
from suite.inference.timing import serve_torch
from suite.registry import PROVIDERS, RUNTIMES
from suite.results import samples
from suite.schema.outcomes import LatencyResult, PeakResult

# Most sessions that are alive at the same time.
ALIVE = 32
# Bytes that a session takes: its process, more of it with a GPU's libraries, for each byte of its file, and for each
# pixel of a batch. ResNet-20 took 0.07 GB in ONNX Runtime, ResNet-50 with CReLU 0.52 at batch 8, for which these give
# 0.15 and 0.73.
PROCESS, LIBRARIES, PER_BYTE, PER_PIXEL = 150e6, 1e9, 2.5, 400

# A quick run only has a median to show. Of a large batch a burst is one run, so that each row has time for many bursts.
QUICK = Protocol(rounds=5, min_seconds=0.25, min_runs=1, max_runs=70, warmup=1)

THOROUGH = Protocol(rounds=24, min_seconds=0.5, min_runs=3, max_runs=100, warmup=5)

# Short bursts, since only what is close in time has met the same machine.
PAIRED = Protocol(rounds=5, min_seconds=0.05, min_runs=2, max_runs=200, warmup=3)

# Fewest and most pairs of processes for one ratio: where its pages lie can make a process faster than its twin for all
# its life. Six are the fewest whose least and greatest ratio have the true one between them in 19 of 20 cases; they are
# enough when that interval is not wider than `TIGHT`.
PROCESSES = (6, 10)

TIGHT = 0.02


class NotFiniteError(RuntimeError):
    """The timed network's logits are not finite; `answer` is what `measure` would else
    have answered."""

    def __init__(self, answer: LatencyResult) -> None:
        super().__init__("the timed network gave logits that are not finite")
        self.answer = answer


def most_alive(requests: Sequence[Request]) -> int:
    """How many sessions such as these may be alive at the same time: `ALIVE`, or fewer
    where memory is short, but a pair."""
    largest = max(map(_memory, requests), default=PROCESS)
    return max(2, min(ALIVE, int(psutil.virtual_memory().available / largest)))


def _memory(request: Request) -> float:
    """The bytes that a session takes at most; of a file that is not there those of its
    process."""
    path, stored = Path(request.path), 0
    with suppress(OSError):  # what cannot be read is told when it is loaded
        # Weights may lie beside the file, in one whose name goes on from its own.
        files = path.iterdir() if path.is_dir() else path.parent.glob(f"{escape(path.name)}*")
        stored = sum(file.stat().st_size for file in files if file.is_file())
    pixels = request.batch_size * request.size**2
    libraries = LIBRARIES if request.provider != "cpu" else 0.0
    return PROCESS + libraries + PER_BYTE * stored + PER_PIXEL * pixels


def measure(
    requests: Sequence[Request],
    progress: Callable[[int, int, str], None] = lambda done, total, note: None,
    at_once: int | None = None,
) -> list[LatencyResult | RuntimeError]:
    """Measure requests against each other, in turns and in fresh processes. All must
    have the same protocol.

    Args:
        requests: what to measure.
        progress: called with bursts done, bursts in all, and a note.
        at_once: how many at a time take turns; by default as many as `most_alive` says.

    Returns:
        For each request what was measured (`suite.results.samples.to_seconds` gives it
        in seconds), the error that its process ended with, or a `NotFiniteError`.
        Inputs and outputs of a run stay on the device, but for `host_samples_ns`.
        `nodes` are those of the graph as given out to providers: fusion comes later,
        and `explain` counts what is executed.
    """
    answers: list[LatencyResult | RuntimeError] = []
    rounds = max((request.protocol.rounds for request in requests), default=0)
    for start in range(0, len(requests), most := at_once or most_alive(requests)):
        together = requests[start : start + most]
        done = start * rounds

        def say(count: int, done: int = done) -> None:
            progress(done + count, len(requests) * rounds, "bursts")

        answers += _in_turns(together, say)
    return answers


def _in_turns(requests: Sequence[Request], say: Callable[[int], None]) -> list[LatencyResult | RuntimeError]:
    answers: dict[int, dict[str, Any] | RuntimeError] = {}
    workers: dict[int, _Worker] = {}
    bursts = 0
    try:
        for index, request in enumerate(requests):
            forked = RUNTIMES[request.runtime].library == "torch"
            workers[index] = (
                PipedProcess(fork_context(["timm", "models"]), serve_torch, request) if forked else _Fresh(request)
            )
        # They import their libraries side by side, and nobody loads a network before all have done so.
        for index, worker in workers.items():
            try:
                worker.wait()
            except RuntimeError as error:
                answers[index] = error
        for index, worker in workers.items():
            if index in answers:
                continue
            try:
                answers[index] = worker.ask("load") | {"rounds": [], "in_turns_with": len(requests) - 1}
            except RuntimeError as error:
                answers[index] = error
        rounds = requests[0].protocol.rounds if requests else 0
        interference = Interference()
        for number, action in enumerate(["burst"] * rounds + ["end"]):
            for index in sorted(workers, reverse=number % 2 == 1):
                worker, answer = workers[index], answers[index]
                if isinstance(answer, RuntimeError):
                    continue
                before = env.throttled()
                try:
                    reply = worker.ask(action)
                except RuntimeError as error:
                    answers[index] = error
                    continue
                if action == "burst":
                    if stops := env.throttled() - before:
                        answer["throttled"] = answer.get("throttled", 0) + stops
                    answer["rounds"].append(reply["samples"])
                    bursts += 1
                    say(bursts)
                else:
                    answer |= reply
                    answers[index] = answer if answer["finite"] else NotFiniteError(_to_result(answer))
        if (others := interference.share()) is not None:
            for answer in answers.values():
                if not isinstance(answer, RuntimeError):
                    answer["others"] = round(others, 3)
    finally:
        for worker in workers.values():
            worker.close()
    found = (answers[index] for index in range(len(requests)))
    return [each if isinstance(each, RuntimeError) else _to_result(each) for each in found]


def _to_result(answer: dict[str, Any]) -> LatencyResult:
    """What a process has said of its network, as its record keeps it."""
    return convert(samples.to_record(answer), LatencyResult)


def time_pairs(first: Request, second: Request, at_most: int | None = None) -> list[tuple[float, float]]:
    """Seconds of the two on several pairs of fresh processes, for the interval of the
    ratio of two latencies.

    Their protocol is replaced by `PAIRED`. Of each pair of processes the round counts
    whose ratio is the median: both bursts of a round are close in time.

    Args:
        first: what stands first in each pair.
        second: what stands second.
        at_most: pairs of processes; by default the greater of `PROCESSES`.

    Raises:
        RuntimeError: one of them failed.
    """
    found: list[tuple[float, float]] = []
    both = [replace(request, protocol=PAIRED) for request in (first, second)]
    fewest, most = PROCESSES
    for number in range(1, (at_most or most) + 1):
        turned = number % 2 == 0
        answers = measure(both[::-1] if turned else both)
        medians = []
        for answer in reversed(answers) if turned else answers:
            if isinstance(answer, RuntimeError):
                raise answer
            medians.append([samples.median(burst) for burst in samples.to_seconds(answer).by_round()])
        rounds = sorted(zip(*medians, strict=True), key=lambda both: both[0] / both[1])
        found.append(rounds[len(rounds) // 2])
        _, low, high = samples.interval([a / b for a, b in found])
        if number >= fewest and high - low <= TIGHT:
            break
    return found


def why_unavailable(provider: str) -> str | None:
    """Why a provider of ONNX Runtime cannot be used on this machine, or None if it
    can."""
    if provider == "cpu":
        return None
    try:
        _once({"probe": provider}, threads=1)
    except RuntimeError as error:
        why = f"ONNX Runtime cannot load {PROVIDERS[provider].name}, for want of a GPU or of its libraries"
        # That the CPU may not stand in for it follows from that, and is no reason.
        return why if "fallback to CPU" in str(error) else f"{why} ({error})"
    return None


def measure_peak(provider: str, threads: int, precision: str = "fp32") -> PeakResult:
    """What the machine can do in "fp32", "fp16" or "int8" (unsigned by signed), in a
    fresh process.

    Returns:
        The additions and multiplications a second in ONNX Runtime of the fastest of
        several products of matrices and convolutions (`suite.inference.peak`), and of
        each those of the fastest of its runs.

    Raises:
        RuntimeError: the provider is not here, or has no product or convolution of this
            type.
    """
    return convert(_once({"peak": provider, "threads": threads, "precision": precision}, threads), PeakResult)


class _Worker(Interface):
    """A process that has one network loaded."""

    def wait(self) -> dict[str, Any]:
        """Wait until it has imported what it needs; RuntimeError if it fails."""

    def ask(self, action: str) -> dict[str, Any]:
        """Have it "load", run a "burst" or "end", and wait for the answer; RuntimeError
        if it fails."""

    def close(self) -> None:
        """End the process, whatever it does."""


class _Fresh:
    def __init__(self, request: Request) -> None:
        # To a file: what a provider prints would fill a pipe that nobody reads, and then wait for ever.
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the process; `close` closes it
        self._process = _start(request.threads, self._errors)
        self._send(asdict(request))

    def ask(self, action: str) -> dict[str, Any]:
        self._send(action)
        return self.wait()

    def wait(self) -> dict[str, Any]:
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
        with suppress(BrokenPipeError), self._process:
            pass  # closes its pipes unread: a process that a library has started may still hold their other ends
        self._errors.close()

    def _send(self, content: Any) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # its last words say why
            self._process.stdin.write(json.dumps(content) + "\n")
            self._process.stdin.flush()


def _start(threads: int, errors: IO[str] | int = subprocess.PIPE) -> subprocess.Popen[str]:
    packages = str(Path(suite.__file__).resolve().parent.parent)
    search_path = os.pathsep.join(filter(None, (packages, os.environ.get("PYTHONPATH"))))
    variables = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "PYTHONPATH": search_path}
    return subprocess.Popen(
        [sys.executable, "-m", "suite.inference.timing"],
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
    return lines[-1] if lines else ""
