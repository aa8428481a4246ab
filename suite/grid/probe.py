"""A short probe of a network on this machine: what its training, testing, export and
timing take.

A probe is a process of its own that trains and tests a few images with the very code of
a run, exports the network and runs the file. Time and memory are measured at two batch
sizes and continued on the straight line through them, which is the only thing here that
is not measured.
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any, Literal

from suite import env
from suite.errors import describe_error
from suite.inference import processes
from suite.tables.spec import Recipe

# Pixels of the larger probed batch: 64 images of 32x32, 8 of 224x224 at the least.
PIXELS = 64 * 32 * 32
LEAST = 8
STEPS = 3


@dataclass(frozen=True)
class Probe:
    """One network on this machine, in seconds and bytes.

    Attributes:
        step_fixed, step_per_image: of a training step.
        memory_fixed, memory_per_image: of the process that trains (on a GPU: of the
            GPU's memory).
        test_per_image: of a forward pass in torch at the size for which a network is
            deployed, run_per_image: in ONNX Runtime on the CPU.
        export: of writing the ONNX file.
        start: until a process that trains or exports can begin, timing_start: one that
            times.
    """

    step_fixed: float
    step_per_image: float
    memory_fixed: float
    memory_per_image: float
    test_per_image: float
    run_per_image: float
    export: float
    start: float
    timing_start: float


@dataclass(frozen=True)
class ProbeRequest:
    """What to probe: a network for so many classes, trained by a recipe on "cpu" or
    "cuda" in the precision of `RunOptions`, and deployed for images of `size` x `size`
    pixels; made with further `arguments`, after an import of the `modules` that
    register it with timm."""

    model: str
    classes: int
    recipe: Recipe
    device: str
    precision: Literal["auto", "float32", "bfloat16"]
    size: int
    arguments: Mapping[str, Any] = field(default_factory=dict)
    modules: tuple[str, ...] = ()


# Seconds that a process has to end by itself once it has answered: killed at once, it leaves semaphores of libraries
# behind, of which Python warns.
FAREWELL = 5.0


class Prober:
    """Probes networks, each in a process that is forked from one that has loaded what
    all of them need."""

    def __init__(self) -> None:
        self._context = processes.fork_context(["models", "suite.export.exporter", "suite.training.train"])
        self._start: float | None = None

    def probe(self, request: ProbeRequest) -> Probe:
        """Measure a network.

        Raises:
            RuntimeError: the process failed; one line.
        """
        # This process removes the files of one that is killed, as a run is stopped.
        with tempfile.TemporaryDirectory() as scratch:
            return self._in_process(request, Path(scratch))

    def _in_process(self, request: ProbeRequest, scratch: Path) -> Probe:
        begun = monotonic()
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_answer, args=(theirs, request, scratch, begun, self._start), daemon=True
        )
        processes.start(process, self._context)
        theirs.close()
        try:
            answer: Probe | str = ours.recv()
            process.join(FAREWELL)
        except EOFError:
            process.join()
            answer = f"its process ended with code {process.exitcode}"
        finally:
            process.kill()
            process.join()
            ours.close()
        if isinstance(answer, str):
            raise RuntimeError(answer)
        # That of the first, for which all was loaded.
        self._start = answer.start
        return answer


def _answer(pipe: Any, request: ProbeRequest, scratch: Path, begun: float, start: float | None) -> None:
    """Send the probe, or what went wrong with it, in one line."""
    # Libraries print what does not belong between the lines of the process that asks.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    try:
        import suite.export.exporter
        import suite.training.train  # noqa: F401 - loaded already, but for the first of all

        # A clock that all processes of a machine share.
        pipe.send(_measure(request, scratch, monotonic() - begun if start is None else start))
    except Exception as error:  # whatever it is, the other process is to hear of it
        pipe.send(describe_error(error))


def _measure(request: ProbeRequest, scratch: Path, start: float) -> Probe:
    """Probe a network in this process, whose memory is then that of a training."""
    import numpy as np
    import torch

    from suite.data.batches import Batches
    from suite.data.sets import Dataset, Split
    from suite.export import zoo
    from suite.export.trained import export
    from suite.inference import latency
    from suite.results.samples import to_seconds
    from suite.training.step import STEPS_BEFORE_CAPTURE, Engine
    from suite.training.testing import evaluate
    from suite.training.train import Job, train

    zoo.import_modules(request.modules)
    recipe, device = request.recipe, torch.device(request.device)
    on_gpu = device.type == "cuda"
    large = max(2, min(recipe.batch_size, max(LEAST, PIXELS // recipe.train_size**2)))
    sizes = (large // 2, large)
    random = np.random.default_rng(0)
    # Larger than what the network sees, as photographs are.
    side = recipe.train_size if recipe.augment == "cifar" else 2 * recipe.train_size
    steps = STEPS + on_gpu * STEPS_BEFORE_CAPTURE
    images = random.integers(0, 256, (steps * large, side, side, 3), dtype=np.uint8)
    labels = np.arange(len(images), dtype=np.int64) % request.classes
    split, classes = Split(images, labels), tuple(map(str, range(request.classes)))
    source = Dataset("random", classes, split, split, (128.0, 128.0, 128.0), (64.0, 64.0, 64.0), {})
    step_seconds, memory = [], []
    for size in sizes:
        short = replace(recipe, batch_size=size, max_steps=steps, epochs=steps, milestones=(), learning_rate=1e-6)
        batches = Batches(source, replace(short, max_test_images=1, ten_crop=False), device)
        ends: list[float] = []
        arguments = dict(request.arguments)
        job = Job(request.model, batches, 0, scratch, arguments, on_step=partial(_note, ends, on_gpu))
        train(job, Engine(request.precision, "never"))
        # The fastest, since whatever else the machine does can only add to it.
        step_seconds.append(min(later - earlier for earlier, later in pairwise(ends)))
        memory.append(_memory(device))
    model = zoo.load(scratch).to(device)
    seen = replace(recipe, test_size=request.size, max_test_images=LEAST)
    test = [next(iter(Batches(source, seen, device).test()))]
    begin = perf_counter()
    evaluate(model, test)
    test_per_image = (perf_counter() - begin) / len(test[0][1])
    begin = perf_counter()
    export(scratch, request.size, scratch / "model.onnx", {})
    exported = perf_counter() - begin
    file = str(scratch / "model.onnx")
    once = latency.Protocol(rounds=1, min_seconds=0, min_runs=3, max_runs=3, warmup=0)
    timing = latency.Request("onnxruntime", file, "cpu", LEAST, request.size, env.available_cores(), once)
    begin = perf_counter()
    (answer,) = latency.measure([timing])
    elapsed = perf_counter() - begin
    if isinstance(answer, RuntimeError):
        raise answer
    run = to_seconds(answer).median
    timing_start = max(0.0, elapsed - 5 * run)  # two more than the samples: the first of the process and of the burst
    per_image = test_per_image, run / LEAST
    return Probe(*_line(sizes, step_seconds), *_line(sizes, memory), *per_image, exported, start, timing_start)


def _note(ends: list[float], on_gpu: bool, done: int, total: int, note: str) -> None:
    if on_gpu:
        import torch

        torch.cuda.synchronize()
    ends.append(perf_counter())


def _line(sizes: tuple[int, int], values: Sequence[float]) -> tuple[float, float]:
    """The straight line through two measurements, as a fixed part and one for each
    image, neither below zero."""
    per_image = max(0.0, (values[1] - values[0]) / (sizes[1] - sizes[0]))
    return max(0.0, values[1] - per_image * sizes[1]), per_image


def _memory(device: Any) -> float:
    """The most bytes that were in use so far."""
    import torch

    if device.type == "cuda":
        return float(torch.cuda.max_memory_reserved(device))
    return float(env.peak_memory())
